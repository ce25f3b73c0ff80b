# The socket (layer 4): user-visible options, the RFC 9293 variables, and what Linux keeps beside them.
#
# One struct for every socket state from CLOSED over LISTEN to LAST_ACK; TIME_WAIT is a tw_t. Names are RFC 9293's and Linux's.
# Sequence numbers are uint32 modulo 2^32; times are ns_t (0 = never unless said); *_us are microseconds. Plain data: logic lives above.
#
# An idle connection costs a tcb_t and nothing else. What few connections have stands in three records of other pools,
# taken when first written to (access.pxd: sk_opt, sk_los, sk_set_cc):
# - skopt_t, what the user set away from the defaults, error queue, Fast Open, saved SYN;
# - sklos_t, what loss, reordering, compressed ACKs, pacing and MTU probes leave behind;
# - 112 bytes for a congestion control that needs more than ca_priv (BBR, CC_USER).
# Reading needs no branch: tcb.opt and tcb.los point to their pool's slot 0, a record of defaults, until the socket has one of its own.
# They are const here; writers go through sk_opt and sk_los.
#
# Order: the first four cache lines hold what every segment touches (4-tuple, header prediction, windows, delayed ACK, receive queue), the next
# three what an ACK and a send touch; then congestion state, then timers, links and what is used once in a connection's life.

from ustack.core.types cimport (
    idx_t, int16_t, int32_t, int64_t, ns_t, ref_t, sackblk_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.ehash cimport enode_t
from ustack.core.wheel cimport tnode_t
from ustack.core.ring cimport ring_t
from ustack.core.rtt cimport minmax_t, rtt_t

cdef enum:
    TCP_RTO_MAX_DEFAULT_MS = 120000
    # tcb.shutdown
    RCV_SHUTDOWN = 1
    SEND_SHUTDOWN = 2
    # tcb.userlocks
    SOCK_SNDBUF_LOCK = 1
    SOCK_RCVBUF_LOCK = 2
    SOCK_BINDADDR_LOCK = 4
    SOCK_BINDPORT_LOCK = 8
    SOCK_CONNECT_BIND = 16      # connect() chose the port
    # tcb.sflags: SO_* booleans
    SF_REUSEADDR = 0x1
    SF_REUSEPORT = 0x2
    SF_KEEPOPEN = 0x4
    SF_LINGER = 0x8
    SF_URGINLINE = 0x10
    SF_FREEBIND = 0x20
    SF_RECVERR = 0x40
    SF_DEAD = 0x80              # orphan: no user handle any more
    SF_DONE = 0x100             # the peer's FIN has been received (Linux's SOCK_DONE)
    SF_ACCEPTED = 0x200         # has left the accept queue (or never was in one)
    SF_REFUSED = 0x400          # a hook refused the connection: whoever made the child resets it
    SF_IN_EHASH = 0x800
    SF_IN_READY = 0x1000        # linked in engine.ready
    SF_TRANSPARENT = 0x2000
    SF_SAVE_SYN = 0x4000
    SF_OOO_INLINE = 0x8000
    SF_TIMESTAMPING = 0x10000   # tcb.tsflags != 0
    SF_RXSTAMP = 0x20000
    SF_INQ = 0x40000            # TCP_INQ control messages
    SF_ZEROCOPY = 0x80000
    SF_HAS_FD = 0x100000        # a driver mirrors readiness on a file descriptor
    SF_NO_CHECK_TX = 0x200000
    SF_IN_ACCEPTQ = 0x400000
    SF_NOSPACE = 0x800000       # someone found the send buffer full: sk_write_space must wake
    SF_BROADCAST = 0x1000000
    SF_DONTROUTE = 0x2000000
    SF_DEBUG = 0x4000000
    SF_RECVTOS = 0x8000000
    SF_TIMESTAMP = 0x10000000   # SO_TIMESTAMP
    SF_TIMESTAMPNS = 0x20000000
    SF_NO_RINGS = 0x40000000    # discard, chargen: what comes is not kept, what goes is the text of pattern.pxd
    # tcb.sock_state: socket->state of Linux
    SS_UNCONNECTED = 1
    SS_CONNECTING = 2
    SS_CONNECTED = 3
    SS_DISCONNECTING = 4
    # tcb.nonagle
    TCP_NAGLE_OFF = 1           # TCP_NODELAY
    TCP_NAGLE_CORK = 2          # TCP_CORK
    TCP_NAGLE_PUSH = 4          # cork is overridden for already queued data
    # tcb.icsk_pending: what TM_RETRANS means now
    ICSK_TIME_NONE = 0
    ICSK_TIME_RETRANS = 1
    ICSK_TIME_PROBE0 = 3
    ICSK_TIME_LOSS_PROBE = 5
    ICSK_TIME_REO_TIMEOUT = 6
    # tcb.ack_pending
    ICSK_ACK_SCHED = 1
    ICSK_ACK_TIMER = 2
    ICSK_ACK_PUSHED = 4
    ICSK_ACK_PUSHED2 = 8
    ICSK_ACK_NOW = 16
    ICSK_ACK_NOMEM = 32
    # tcb.owes: what waits for tcp_settle (output.pxd)
    OWES_ACK = 1                # an ACK that is due
    OWES_QUICKACK = 2           # one that is due only because the connection is young: the answer may carry it
    OWES_PUSH = 4               # the end of a send call
    OWES_UNREAD = 8             # not owed by itself: QUICKACK also where the program has not read what came, so that its answer is still to come
    OWES_ALL = 15
    # tcb.ca_state
    TCP_CA_OPEN = 0
    TCP_CA_DISORDER = 1
    TCP_CA_CWR = 2
    TCP_CA_RECOVERY = 3
    TCP_CA_LOSS = 4
    # tcb.ecn_flags
    TCP_ECN_OK = 1
    TCP_ECN_QUEUE_CWR = 2
    TCP_ECN_DEMAND_CWR = 4
    TCP_ECN_SEEN = 8
    # tcb.chrono_type
    CHRONO_UNSPEC = 0
    CHRONO_BUSY = 1
    CHRONO_RWND_LIMITED = 2
    CHRONO_SNDBUF_LIMITED = 3
    # tcb.cc: index into the congestion-control table (cc.pxd)
    CC_RENO = 0
    CC_CUBIC = 1
    CC_BBR = 2
    CC_USER = 3                 # the first of CC_USER_MAX modules that were registered
    CC_USER_MAX = 8

    TCP_INFINITE_SSTHRESH = 0x7fffffff
    TCP_INIT_CWND = 10
    MAX_TCP_WINDOW = 32767
    MAX_TCP_OPTION_SPACE = 40
    CA_PRIV_WORDS = 8           # private state of the congestion control in the socket
    CA_EXT_WORDS = 14           # ... of those that take a record for it

cdef struct skopt_t:            # slot 0 of its pool holds the defaults (access.pxd: skopt_defaults)
    idx_t idx                   # own index, 0 in the defaults
    # inherited from a listener, up to notsent_lowat
    uint32_t uid
    ns_t rcvtimeo               # NS_NEVER = block forever
    ns_t sndtimeo
    uint64_t max_pacing_rate    # bytes/s, ~0 = unlimited
    uint32_t linger_s
    uint32_t user_timeout_ms
    uint32_t rto_max_ms         # TCP_RTO_MAX_MS, or what the sysctl was at socket(); 0 = TCP_RTO_MAX_DEFAULT_MS
    int32_t keepalive_time_s    # TCP_KEEPIDLE, 0 = sysctl
    int32_t keepalive_intvl_s   # TCP_KEEPINTVL
    int32_t linger2_s           # TCP_LINGER2: 0 = sysctl, -1 = off
    uint32_t tsflags            # SO_TIMESTAMPING
    uint32_t tskey
    uint32_t mark
    uint32_t priority
    uint8_t keepalive_probes    # TCP_KEEPCNT, 0 = sysctl
    uint8_t save_syn
    uint8_t syn_retries         # TCP_SYNCNT
    uint8_t thin_lto            # TCP_THIN_LINEAR_TIMEOUTS
    uint8_t min_ttl
    uint8_t pktinfo             # IP_PKTINFO, IP_RECVTTL: kept; TCP has no message to attach them to
    uint8_t recvttl
    int16_t incoming_cpu2       # SO_INCOMING_CPU + 2, 0 = never set
    uint16_t user_mss           # TCP_MAXSEG, 0 = none
    int32_t rcvlowat
    uint32_t notsent_lowat      # 0 = sysctl
    # the socket's own
    idx_t errq_head             # error queue (IP_RECVERR, timestamps): records of the ext pool
    idx_t errq_tail
    uint32_t zckey              # MSG_ZEROCOPY calls so far
    idx_t saved_syn             # ext record
    idx_t ip_opt                # ext record with the IP options of every packet, 0 = none
    idx_t fo_ext                # client: Fast Open cookie to send (ext record)
    idx_t fo_keys               # TCP_FASTOPEN_KEY: ext record, fo_cookie = primary, saved_syn[:16] = backup if saved_syn_len
    uint32_t fo_qlen_set        # TCP_FASTOPEN value, already clamped to somaxconn; listen() copies it to the listener
    idx_t fo_listener           # listener of the Fast Open child in SYN_RECV
    uint8_t syn_fastopen_exp
    uint8_t fo_client_fail
    uint8_t syn_fastopen_ch     # client: Fast Open again after a black hole: success clears the black-hole count
    uint8_t is_tfo_child

cdef struct sklos_t:            # slot 0 of its pool is all zero
    idx_t idx                   # own index, 0 in slot 0
    idx_t sk                    # its socket
    tnode_t tm_pace
    tnode_t tm_compack
    uint32_t drops              # sk_drops
    uint32_t urg_seq
    # receiver of out-of-order data
    idx_t ofo_tail
    idx_t ofo_root              # search tree over the out-of-order list (ofotree.pxd)
    sackblk_t duplicate_sack
    sackblk_t selective_acks[4]
    uint32_t compressed_ack_rcv_nxt
    uint32_t rcv_ooopack
    ns_t last_oow_ack
    # sender
    ns_t probes_tstamp          # zero-window probes since
    uint32_t total_retrans
    sackblk_t recv_sack_cache[4]
    uint64_t bytes_retrans
    uint32_t dsack_dups
    uint32_t reord_seen
    uint32_t timeout_rehash
    uint32_t total_rto_time_ms
    ns_t rto_stamp
    uint16_t total_rto
    uint16_t total_rto_recoveries
    uint8_t dup_ack_counter
    uint32_t received_ce        # segments with a CE mark
    uint32_t received_ecn_bytes[3]  # payload received under ECT(1), ECT(0), CE
    # MTU probing
    uint32_t mtup_probe_seq_start
    uint32_t mtup_probe_seq_end
    ns_t mtup_probe_time

cdef struct tcb_t:
    # identity, header prediction, windows
    enode_t en                  # hash chain, laddr/faddr/ports (unhashed sockets keep their addresses here too)
    idx_t idx                   # own index
    uint8_t state               # TCP_*
    uint8_t shutdown
    uint8_t userlocks
    uint8_t nonagle
    uint32_t sflags             # SF_*
    uint32_t pred_flags         # header prediction: doff, flags and raw window of the expected segment, 0 = off (rcvwin.pxd)
    uint32_t rcv_nxt
    uint32_t copied_seq
    uint32_t rcv_wup
    uint32_t rcv_wnd
    uint32_t snd_una
    uint32_t snd_nxt
    uint32_t snd_wnd
    uint32_t snd_wl1
    # ---- 64: receive options, delayed ACK (icsk_ack)
    uint8_t saw_tstamp
    uint8_t tstamp_ok
    uint8_t sack_ok             # bit 0: negotiated, bit 2 (4): D-SACK seen
    uint8_t wscale_ok
    uint8_t snd_wscale
    uint8_t rcv_wscale
    uint8_t num_sacks
    uint8_t rx_dsack            # a D-SACK is to be sent (tp->rx_opt.dsack)
    uint32_t ts_recent
    uint32_t ts_recent_stamp    # seconds, 0 = none
    uint32_t rcv_tsval
    uint32_t rcv_tsecr
    uint32_t ts_offset
    uint16_t rcv_mss            # icsk_ack.rcv_mss
    uint16_t last_seg_size
    uint8_t ack_pending         # ICSK_ACK_*
    uint8_t ack_quick
    uint8_t ack_pingpong
    uint8_t compressed_ack
    uint8_t ecn_flags
    uint8_t urg_state           # 0, TCP_URG_NOTYET 0x01, TCP_URG_VALID 0x02, TCP_URG_READ 0x04
    uint8_t urg_byte
    uint8_t owes                # OWES_*
    ns_t ato
    ns_t lrcvtime
    # ---- 128: receive queue
    ns_t rcv_tstamp             # last ACK received
    ring_t rcv
    idx_t rq_head               # in-order records not yet consumed
    idx_t rq_tail
    idx_t ofo_head              # out of order, by sequence
    int32_t rmem_alloc          # truesize of both queues
    int32_t fwd_alloc           # bytes reserved and not charged (skmem.pxd)
    uint32_t rcv_ring_span_end  # highest seq + 1 held in the ring
    int32_t rcvbuf
    uint32_t window_clamp
    uint32_t rcv_ssthresh
    uint32_t max_window
    # ---- 192
    uint64_t bytes_received
    uint32_t segs_in
    uint32_t data_segs_in
    uint32_t rcvq_space         # receive autotuning
    uint32_t rcvq_seq
    ns_t rcvq_time
    ns_t rcvrtt_time
    uint32_t rcvrtt_us
    uint32_t rcvrtt_seq
    uint32_t rcvrtt_last_tsecr  # one sample per echoed timestamp
    uint16_t advmss
    uint8_t scaling_ratio       # truesize to window, of 256
    uint8_t ext_hdr_len         # IP options
    idx_t waiters               # blocked calls, in order of arrival
    uint32_t wake_seq           # counts wake-ups (EPOLLET)
    # ---- 256: send queue, route
    ring_t snd
    idx_t sq_head               # all records by sequence: first is the oldest not acknowledged
    idx_t sq_tail
    idx_t send_head             # first record never sent
    uint32_t wmem_queued        # 832 + payload per record
    int32_t sndbuf
    uint32_t write_seq
    uint32_t pushed_seq
    uint32_t snd_sml            # end of the last small packet sent (Minshall)
    uint32_t mss_cache
    uint16_t xmit_size_goal_segs
    uint16_t tcp_header_len     # with the options every segment carries
    uint16_t rt                 # route entry index + 1, 0 = none
    uint16_t pmtu               # icsk_pmtu_cookie
    uint16_t inet_id            # next IP ID
    uint8_t tos
    uint8_t ttl                 # 0 = ip_default_ttl
    # ---- 320: in flight
    uint32_t packets_out
    uint32_t sacked_out
    uint32_t lost_out
    uint32_t retrans_out
    uint32_t snd_cwnd
    uint32_t snd_ssthresh
    uint32_t snd_cwnd_cnt
    uint32_t snd_cwnd_clamp
    uint32_t max_packets_out
    uint32_t cwnd_usage_seq
    ns_t lsndtime               # last data sent
    ns_t rto
    uint8_t icsk_pending
    uint8_t retransmits
    uint8_t backoff
    uint8_t probes_out
    uint8_t ca_state
    uint8_t ca_initialized
    uint8_t frto
    # ---- 384: delivery, pacing, RTT
    uint32_t delivered
    uint32_t delivered_ce
    uint32_t lost
    uint32_t app_limited
    ns_t first_tx_mstamp
    ns_t delivered_mstamp
    uint32_t rate_delivered
    uint32_t rate_interval_us
    ns_t tcp_wstamp             # departure time of the last packet (pacing)
    uint64_t pacing_rate
    idx_t ts_head               # RACK order, oldest first
    idx_t ts_tail
    # ---- 448
    rtt_t rtt
    minmax_t rtt_min
    uint32_t rack_rtt_us
    uint64_t rack_mstamp_us     # 0: nothing delivered yet, also where the clock starts at 0
    uint32_t rack_end_seq
    uint32_t rack_last_delivered
    # ---- 512
    uint64_t bytes_acked
    uint64_t bytes_sent
    uint32_t segs_out
    uint32_t data_segs_out
    uint32_t chrono_start       # ms
    uint32_t chrono_stat[3]     # ms
    uint8_t chrono_type
    uint8_t is_cwnd_limited
    uint8_t rate_app_limited
    uint8_t cc                  # CC_*; changed by sk_set_cc only
    uint8_t cc_user             # set by setsockopt or a route
    uint8_t pacing_needed       # sk_pacing_status: asked for by bbr or SO_MAX_PACING_RATE
    uint8_t svc                 # SVC_*: the engine serves this socket itself (service.pxd)
    uint8_t sock_state          # SS_*
    uint64_t ca_priv[CA_PRIV_WORDS]     # BBR and CC_USER: [0] is the address of their record (access.pxd: sk_ca)
    # congestion and recovery
    ns_t snd_cwnd_stamp
    ns_t retrans_stamp          # first retransmission of this episode; 0 = none
    uint32_t snd_cwnd_used
    uint32_t prior_cwnd
    uint32_t prior_ssthresh
    uint32_t prr_delivered
    uint32_t prr_out
    uint32_t high_seq
    uint32_t undo_marker
    int32_t undo_retrans
    uint32_t reordering
    uint32_t tlp_high_seq
    idx_t highest_sack          # record just above the highest SACKed one
    idx_t retrans_hint          # retransmit_skb_hint
    uint8_t tlp_retrans
    uint8_t is_sack_reneg
    uint8_t rack_reo_wnd_steps
    uint8_t rack_reo_wnd_persist
    uint8_t rack_dsack_seen
    uint8_t rack_advanced
    uint8_t mtup_enabled        # MTU probing
    uint8_t pmtu_locked         # PMTU came below min_pmtu: DF off
    uint16_t mtup_probe_size
    uint16_t mtup_search_high
    uint16_t mtup_search_low
    uint16_t mss_clamp          # peer's MSS
    uint32_t rto_min_us
    uint32_t delack_max_us
    # timers
    tnode_t tm_retrans
    tnode_t tm_delack
    tnode_t tm_keep
    const skopt_t* opt
    const sklos_t* los
    # once in a connection's life
    uint32_t irs
    uint32_t iss
    uint32_t snd_up             # urgent pointer
    uint32_t rt_gen             # engine.rt_gen when pmtu etc. were looked up
    uint32_t rcv_saddr          # address given to bind (0 = any)
    idx_t listener              # LISTEN: listener record. Child not yet accepted: its listener
    idx_t acc_next              # accept FIFO
    idx_t bind                  # bind bucket
    ref_t bind_next
    ref_t bind_prev
    idx_t ready_next            # engine.ready list
    idx_t fastopen_rsk          # ext record of the request behind a Fast Open child in SYN_RECV
    uint16_t wake_mask          # poll bits of the wake-ups since the driver looked
    int16_t sk_err
    int16_t sk_err_soft
    uint8_t rings_kept          # empty buffers stay for a while (sock.pxd: sk_rings_idle)
    uint8_t pmtudisc            # IP_PMTUDISC_*
    uint8_t defer_accept        # on a listener: D; on a client: as set
    uint8_t syn_data            # SYN carried data (client)
    uint8_t syn_fastopen        # client: cookie asked or sent / child: TFO
    uint8_t syn_data_acked
    uint8_t fastopen_connect    # TCP_FASTOPEN_CONNECT
    uint8_t fastopen_no_cookie
    uint8_t defer_connect
    uint8_t write_pending       # a blocked send waits for the handshake: its data will carry the ACK of the SYN-ACK
