# Our own SYN: initial variables, the SYN with or without Fast Open data, the SYN-ACK of a simultaneous open (layer: above retrans).
#
# RFC 9293 3.5, RFC 7323 2, RFC 3168 6.1.1, RFC 7413 4.1. Linux: tcp_connect and what it calls. Address, port, route, initial
# sequence number (sk.write_seq) and timestamp offset are set by connect.pxd, which calls tcp_connect.
# A SYN with data is two records: the SYN and, behind it, the data; retransmitting the SYN does not repeat the data.
# Data for the SYN is that of the send call in progress: e.fo_data, e.fo_size; e.fo_copied tells how much of it was taken.

from ustack.core.cc cimport cc_mark_ect, cc_needs_ecn
from ustack.core.errq cimport zc_attach
from ustack.core.fastopen_client cimport FO_NO_OPTION, tcp_fastopen_cookie_check, tcp_free_fastopen_req
from ustack.core.mss cimport mtu_to_mss_plain, tcp_mss_clamp, tcp_mtup_init, tcp_sync_mss
from ustack.core.rcvwin cimport tcp_full_space, tcp_initialize_rcv_mss, tcp_select_initial_window
from ustack.core.records cimport reqext_t, srec_t
from ustack.core.route cimport RTAX_FEATURE_ECN, route_mtu, sk_advmss, sk_route, sk_rt
from ustack.core.sendq cimport (
    sq_alloc, sq_append, sq_link_after, sq_rtx_head, sq_unlink_free, tcp_chrono_start, tcp_set_tso_segs, tcp_write_queue_purge,
)
from ustack.core.seqno cimport u32_min
from ustack.core.access cimport ext_at, sk_los, sk_set_cc, sr_at
from ustack.core.sock cimport tcp_reset_xmit_timer
from ustack.core.state cimport engine_t, route_t
from ustack.core.stats cimport MIB_TcpActiveOpens, MIB_TcpExtTCPOrigDataSent, mib_inc
from ustack.core.tcb cimport (
    CHRONO_BUSY, ICSK_TIME_RETRANS, MAX_TCP_OPTION_SPACE, SF_DONE, SOCK_RCVBUF_LOCK, TCP_ECN_OK, tcb_t,
)
from ustack.core.types cimport (
    E_CONNREFUSED, E_FAULT, E_HOSTUNREACH, E_NOBUFS, NS_PER_MS, NS_PER_SEC, TH_ACK, TH_CWR, TH_ECE, TH_PSH, TH_SYN, idx_t, ns_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.wire cimport TCP_HLEN
from ustack.core.xmit cimport tcp_transmit_skb

cdef enum:
    TCPOLEN_TSTAMP_ALIGNED = 12


# ---- initial variables -----------------------------------------------------------------------------------------------------------
cdef inline void connect_init_route(engine_t* e, tcb_t* sk) noexcept nogil:
    """What the route decides: MSS, congestion control, window."""
    cdef const route_t* rt = sk_rt(e, sk)
    sk.tcp_header_len = TCP_HLEN + (TCPOLEN_TSTAMP_ALIGNED if e.cfg.tcp_timestamps else 0)
    if sk.opt.user_mss:
        sk.mss_clamp = sk.opt.user_mss
    sk.max_window = 0
    tcp_mtup_init(e, sk)
    tcp_sync_mss(e, sk, route_mtu(e, sk))
    if rt != NULL and rt.cc:
        sk_set_cc(e, sk, rt.cc - 1)
        sk.cc_user = 1
    if sk.window_clamp == 0 and rt != NULL:
        sk.window_clamp = rt.window
    sk.advmss = tcp_mss_clamp(sk, sk_advmss(e, sk))
    tcp_initialize_rcv_mss(sk)


cdef inline void connect_init_window(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef const route_t* rt = sk_rt(e, sk)
    cdef uint32_t full = <uint32_t> tcp_full_space(sk)
    if sk.userlocks & SOCK_RCVBUF_LOCK and (sk.window_clamp > full or sk.window_clamp == 0):
        sk.window_clamp = full
    tcp_select_initial_window(e, full, sk.advmss - (sk.tcp_header_len - TCP_HLEN if sk.ts_recent_stamp else 0),
                              &sk.rcv_wnd, &sk.window_clamp, e.cfg.tcp_window_scaling != 0, &sk.rcv_wscale,
                              rt.initrwnd if rt != NULL else 0)
    sk.rcv_ssthresh = sk.rcv_wnd


cdef inline void tcp_connect_init(engine_t* e, tcb_t* sk) noexcept nogil:
    connect_init_route(e, sk)
    connect_init_window(e, sk)
    sk.sk_err = 0
    sk.sflags &= ~<uint32_t> SF_DONE
    sk.snd_wnd = 0
    sk.snd_wl1 = 0
    tcp_write_queue_purge(e, sk)
    sk.snd_una = sk.write_seq
    sk.snd_sml = sk.write_seq
    sk.snd_up = sk.write_seq
    sk.snd_nxt = sk.write_seq
    sk.rcv_nxt = 0
    sk.rcv_wup = 0
    sk.copied_seq = 0
    sk.rto = <ns_t> e.connect_rto_ms * NS_PER_MS if e.connect_rto_ms else NS_PER_SEC
    e.connect_rto_ms = 0
    sk.retransmits = 0
    sk.retrans_out = 0
    sk.lost_out = 0
    sk.sacked_out = 0
    sk.undo_marker = 0
    sk.undo_retrans = -1
    if sk.los.idx:
        sk_los(e, sk).rto_stamp = 0
        sk_los(e, sk).total_rto = 0
        sk_los(e, sk).total_rto_recoveries = 0
        sk_los(e, sk).total_rto_time_ms = 0


# ---- the SYN ---------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_ecn_send_syn(engine_t* e, tcb_t* sk, srec_t* syn) noexcept nogil:
    cdef const route_t* rt = sk_rt(e, sk)
    sk.ecn_flags = 0
    cdef bint needed = cc_needs_ecn(e, sk.cc)
    if needed or e.cfg.tcp_ecn == 1 or (rt != NULL and rt.features & RTAX_FEATURE_ECN):
        syn.flags |= TH_ECE | TH_CWR
        sk.ecn_flags = TCP_ECN_OK
    if needed:
        cc_mark_ect(e, sk)


cdef inline idx_t syn_queue(engine_t* e, tcb_t* sk, uint32_t flags) noexcept nogil:
    """A record behind the others that counts as sent already, 0 without memory."""
    cdef idx_t i = sq_alloc(e, sk, sk.write_seq, flags)
    cdef srec_t* r
    if i == 0:
        return 0
    r = sr_at(e, i)
    if flags & TH_SYN:
        r.end_seq += 1
        sk.write_seq += 1
    r.pcount = 1
    r.sent = 1
    sq_link_after(e, sk, sk.sq_tail, i)
    sk.packets_out += 1
    return i


cdef inline int tcp_send_syn_data(engine_t* e, tcb_t* sk, idx_t syn, reqext_t* fo) noexcept nogil:
    """A SYN with a Fast Open option and, if we hold a cookie for this peer, with data. What was sent last time tells the MSS."""
    cdef srec_t* r
    cdef idx_t i
    cdef uint32_t space
    cdef int err
    sk.mss_clamp = <uint16_t> sk.advmss
    if not tcp_fastopen_cookie_check(e, sk, &sk.mss_clamp, fo):
        return syn_plain(e, sk, syn, fo)
    sk.mss_clamp = <uint16_t> tcp_mss_clamp(sk, sk.mss_clamp)
    tcp_sync_mss(e, sk, sk.pmtu)
    space = <uint32_t> mtu_to_mss_plain(e, sk, sk.pmtu) - MAX_TCP_OPTION_SPACE
    space = u32_min(space, e.fo_size)
    i = syn_queue(e, sk, TH_ACK | TH_PSH)
    if i == 0:
        return syn_plain(e, sk, syn, fo)
    r = sr_at(e, i)
    if sq_append(e, sk, i, e.fo_data, space) != 0:
        sk.packets_out -= 1
        sq_unlink_free(e, sk, i)
        return syn_plain(e, sk, syn, fo)
    r.pcount = 1
    e.fo_copied = space
    if space:
        zc_attach(e, r, e.fo_zc)
        tcp_chrono_start(e, sk, CHRONO_BUSY)
    # For this one transmission the data record is the SYN as well.
    r.seq -= 1
    r.flags = sr_at(e, syn).flags
    err = tcp_transmit_skb(e, sk, i)
    sr_at(e, syn).tx_time = r.tx_time
    r.seq += 1
    r.flags = TH_ACK | TH_PSH
    if err == 0:
        sk.syn_data = space > 0
        mib_inc(&e.stats, MIB_TcpExtTCPOrigDataSent)
        return 0
    r.sent = 0
    sk.send_head = i
    sk.packets_out -= 1
    return syn_plain(e, sk, syn, fo)


cdef inline int syn_plain(engine_t* e, tcb_t* sk, idx_t syn, reqext_t* fo) noexcept nogil:
    """No data can go with it: the SYN asks for a cookie."""
    cdef int err
    if fo.fo_len > 0 and fo.fo_len != FO_NO_OPTION:
        fo.fo_len = 0
    err = tcp_transmit_skb(e, sk, syn)
    if err:
        sk.syn_fastopen = 0
    return err


cdef inline int tcp_connect(engine_t* e, tcb_t* sk) noexcept nogil:
    """Build the SYN and send it; the socket is in SYN_SENT. 0, or -errno if there is no way to send anything."""
    cdef idx_t syn
    cdef int err
    if sk_route(e, sk) != 0:
        return -E_HOSTUNREACH
    tcp_connect_init(e, sk)
    syn = syn_queue(e, sk, TH_SYN)
    if syn == 0:
        return -E_NOBUFS
    sk.retrans_stamp = e.now if e.now else 1
    tcp_ecn_send_syn(e, sk, sr_at(e, syn))
    if sk.opt.fo_ext:
        err = tcp_send_syn_data(e, sk, syn, ext_at(e, sk.opt.fo_ext))
        tcp_free_fastopen_req(e, sk)        # no option in a retransmission
    else:
        err = tcp_transmit_skb(e, sk, syn)
    if err == -E_CONNREFUSED:
        return err
    # Only now, so that the SYN counted as new data in OutSegs.
    sk.snd_nxt = sk.write_seq
    sk.pushed_seq = sk.write_seq
    if sk.send_head:
        sk.snd_nxt = sr_at(e, sk.send_head).seq
        sk.pushed_seq = sk.snd_nxt
    mib_inc(&e.stats, MIB_TcpActiveOpens)
    tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, sk.rto)
    return 0


cdef inline int tcp_send_synack(engine_t* e, tcb_t* sk) noexcept nogil:
    """Both sides have sent a SYN: ours turns into a SYN-ACK."""
    cdef idx_t i = sq_rtx_head(sk)
    cdef srec_t* r
    if i == 0 or not sr_at(e, i).flags & TH_SYN:
        return -E_FAULT
    r = sr_at(e, i)
    if not r.flags & TH_ACK:
        r.flags |= TH_ACK
        r.flags &= ~<uint32_t> TH_CWR
        if not sk.ecn_flags & TCP_ECN_OK:
            r.flags &= ~<uint32_t> TH_ECE
    return tcp_transmit_skb(e, sk, i)
