# Our own SYN: initial variables, the SYN with or without Fast Open data, the SYN-ACK of a simultaneous open (layer: above retrans).
#
# RFC 9293 3.5, RFC 7323 2, RFC 3168 6.1.1, RFC 7413 4.1. Linux: tcp_connect and what it calls. Address, port, route, initial
# sequence number (sk.write_seq) and timestamp offset are set by connect.pxd, which calls tcp_connect.
# A SYN with data is two records: the SYN and, behind it, the data; retransmitting the SYN does not repeat the data.
# Data for the SYN is that of the send call in progress: e.fo_data, e.fo_size; e.fo_copied is how much of it was taken.

from ustack.core.cc cimport cc_needs_ecn
from ustack.core.fastopen_client cimport FO_NO_OPTION, tcp_fastopen_cookie_check
from ustack.core.metrics cimport tcp_init_metrics
from ustack.core.mss cimport mtu_to_mss_plain, tcp_mss_clamp, tcp_mtup_init, tcp_sync_mss
from ustack.core.rcvwin cimport tcp_full_space, tcp_initialize_rcv_mss, tcp_select_initial_window
from ustack.core.records cimport reqext_t, srec_t
from ustack.core.route cimport RTAX_FEATURE_ECN, route_mtu, sk_advmss, sk_route, sk_rt
from ustack.core.sendq cimport (
    sq_alloc, sq_append, sq_link_after, sq_new_tail, sq_rtx_head, tcp_chrono_start, tcp_write_queue_purge,
)
from ustack.core.seqno cimport u32_min
from ustack.core.sock cimport ext_at, sr_at, tcp_reset_xmit_timer
from ustack.core.state cimport engine_t, route_t
from ustack.core.stats cimport MIB_TcpActiveOpens, MIB_TcpExtTCPOrigDataSent, mib_inc
from ustack.core.tcb cimport (
    CHRONO_BUSY, ICSK_TIME_RETRANS, MAX_TCP_OPTION_SPACE, SF_DONE, SOCK_RCVBUF_LOCK, TCP_ECN_OK, tcb_t,
)
from ustack.core.types cimport (
    E_CONNREFUSED, E_FAULT, E_HOSTUNREACH, E_NOBUFS, NS_PER_SEC, TH_ACK, TH_CWR, TH_ECE, TH_PSH, TH_SYN, idx_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.wire cimport TCP_HLEN
from ustack.core.xmit cimport tcp_transmit_skb, tcp_transmit_skb_
