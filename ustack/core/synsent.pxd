# The answer to our SYN (layer above validate, below input).
#
# RFC 9293 3.10.7.3, RFC 7413 4.1.3. Linux: tcp_rcv_synsent_state_process, tcp_finish_connect,
# tcp_rcv_fastopen_synack. A SYN-ACK completes the connection, a SYN without ACK makes it a simultaneous open,
# anything else is dropped or answered with a RST. Called by input in SYN_SENT.

from ustack.core.types cimport (
    DROP_NONE, DROP_TCP_FLAGS, DROP_TCP_INVALID_ACK_SEQUENCE, DROP_TCP_RESET, DROP_TCP_RFC7323_PAWS, NS_PER_MS,
    OPT_FASTOPEN, OPT_FO_EXP, OPT_MSS, OPT_SACKOK, OPT_TS, OPT_WSCALE, TCP_ESTABLISHED, TCP_SYN_RECV, TH_ACK, TH_CWR,
    TH_ECE, TH_FIN, TH_RST, TH_SYN, idx_t, ns_t, seg_t, uint16_t, uint8_t,
)
from ustack.core.ack cimport tcp_ack, tcp_init_transfer
from ustack.core.dataq cimport SK_GONE, tcp_urg
from ustack.core.delack cimport (
    DELACK_MAX_NS, TCP_MAX_QUICKACKS, inet_csk_in_pingpong_mode, inet_csk_schedule_ack, tcp_enter_quickack_mode,
)
from ustack.core.fastopen_client cimport TFO_DATA_NOT_ACKED, TFO_SYN_RETRANSMITTED
from ustack.core.loss cimport tcp_mark_skb_lost
from ustack.core.metrics cimport tcp_fastopen_cache_set
from ustack.core.mss cimport tcp_mtup_init, tcp_sync_mss
from ustack.core.output cimport tcp_data_snd_check
from ustack.core.paws cimport tcp_paws_reject
from ustack.core.rcvfin cimport tcp_fin, tcp_reset
from ustack.core.rcvq cimport rcv_queue_syn_data
from ustack.core.rcvwin cimport tcp_fast_path_on_raw, tcp_initialize_rcv_mss
from ustack.core.recovery cimport tcp_non_congestion_loss_retransmit, tcp_try_undo_spurious_syn
from ustack.core.sack cimport FLAG_SLOWPATH
from ustack.core.sendq cimport sq_rtx_head, sq_rtx_next
from ustack.core.seqno cimport after, between, u32_min
from ustack.core.access cimport sk_los, sk_opt, tcp_clock_ms
from ustack.core.sock cimport sk_reset_delack, sk_reset_keepalive, sk_set_state, tcp_reset_xmit_timer
from ustack.core.wake cimport sk_state_change
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtPAWSActive, MIB_TcpExtTCPFastOpenActive, MIB_TcpExtTCPFastOpenActiveFail, mib_inc,
)
from ustack.core.syn cimport tcp_send_synack
from ustack.core.tcb cimport ICSK_ACK_TIMER, ICSK_TIME_RETRANS, SF_DEAD, SF_KEEPOPEN, TCP_ECN_OK, tcb_t
from ustack.core.validate cimport sk_take_tstamp_, tcp_store_ts_recent
from ustack.core.wire cimport wire_parse_opts
from ustack.core.xmit cimport tcp_send_ack, tcp_ts_of

cdef enum:
    TCPOLEN_TSTAMP_ALIGNED = 12
    TCP_TIMEOUT_MIN_NS = 2000000        # at least; two ticks if they are longer
    SYNSENT_RESET = 0x10000             # flag on a drop reason: answer with a stateless RST


# ---- options of the SYN or SYN-ACK ---------------------------------------------------------------------------------
cdef inline void synsent_options_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    wire_parse_opts(s)
    if not s.flags & TH_SYN:
        s.opts &= OPT_TS
    if s.opts & OPT_MSS:
        sk.mss_clamp = s.mss
        if sk.opt.user_mss and sk.opt.user_mss < s.mss:
            sk.mss_clamp = sk.opt.user_mss
    if s.opts & OPT_WSCALE and e.cfg.tcp_window_scaling:
        sk.wscale_ok = 1
        sk.snd_wscale = s.wscale
    if s.opts & OPT_SACKOK and e.cfg.tcp_sack:
        sk.sack_ok = 1
        sk.num_sacks = 0
        sk.rx_dsack = 0
    if s.opts & OPT_TS and e.cfg.tcp_timestamps:
        sk_take_tstamp_(sk, s)


cdef inline void synsent_undo_(tcb_t* sk, uint16_t saved_clamp) noexcept nogil:
    # The segment was not for us: nothing of its options was agreed on.
    sk.tstamp_ok = 0
    sk.sack_ok = 0
    sk.wscale_ok = 0
    sk.snd_wscale = 0
    sk.mss_clamp = saved_clamp


cdef inline void synsent_tstamp_(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.tcp_header_len = 20
    if sk.saw_tstamp:
        sk.tstamp_ok = 1
        sk.tcp_header_len += TCPOLEN_TSTAMP_ALIGNED
        tcp_store_ts_recent(e, sk)


# ---- Fast Open -----------------------------------------------------------------------------------------------------
cdef inline bint tcp_rcv_fastopen_synack(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Remember the cookie; was the data of the SYN taken? True: it was not, and has been sent again."""
    cdef idx_t data = sq_rtx_head(sk) if sk.syn_data else 0
    cdef idx_t i
    cdef bint got = (s.opts & OPT_FASTOPEN) != 0
    cdef bint syn_drop = False
    cdef uint8_t try_exp = 0
    cdef uint16_t mss = s.mss if s.opts & OPT_MSS else (0 if sk.mss_clamp == sk.opt.user_mss else sk.mss_clamp)
    if not sk.syn_fastopen:
        got = False
    elif sk.los.total_retrans:
        syn_drop = not got and data != 0
    elif not got and not sk.syn_data:
        try_exp = 2 if sk.opt.syn_fastopen_exp else 1
    tcp_fastopen_cache_set(e, sk, mss, s.fo_cookie, s.fo_len if got else 0, (s.opts & OPT_FO_EXP) != 0, syn_drop, try_exp)
    if data:
        sk_opt(e, sk).fo_client_fail = TFO_SYN_RETRANSMITTED if sk.los.total_retrans else TFO_DATA_NOT_ACKED
        i = data
        while i:
            tcp_mark_skb_lost(e, sk, i)
            i = sq_rtx_next(e, sk, i)
        tcp_non_congestion_loss_retransmit(e, sk)
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenActiveFail)
        return True
    sk.syn_data_acked = sk.syn_data
    if sk.syn_data_acked:
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenActive)
        if sk.delivered > 1:
            sk.delivered -= 1           # the SYN and its data were one packet
    rcv_queue_syn_data(e, sk, s)
    return False


# ---- SYN-ACK -------------------------------------------------------------------------------------------------------
cdef inline void tcp_finish_connect(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_set_state(e, sk, TCP_ESTABLISHED)
    sk.lrcvtime = e.now
    tcp_init_transfer(e, sk, False)
    sk.lsndtime = e.now
    if sk.sflags & SF_KEEPOPEN:
        sk_reset_keepalive(e, sk, keepalive_time_when_(e, sk))
    if sk.snd_wscale == 0:
        tcp_fast_path_on_raw(sk, sk.snd_wnd)
    else:
        sk.pred_flags = 0


cdef inline ns_t keepalive_time_when_(engine_t* e, const tcb_t* sk) noexcept nogil:
    return (sk.opt.keepalive_time_s if sk.opt.keepalive_time_s else e.cfg.tcp_keepalive_time) * 1000 * NS_PER_MS


cdef inline void synack_variables_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # The numbers and windows that the SYN-ACK settles. Windows in it are not scaled.
    sk.irs = s.seq
    sk.rcv_nxt = s.seq + 1
    sk.rcv_wup = s.seq + 1
    sk.snd_wnd = s.wnd
    if not sk.wscale_ok:
        sk.snd_wscale = 0
        sk.rcv_wscale = 0
        sk.window_clamp = u32_min(sk.window_clamp, 65535)
    synsent_tstamp_(e, sk)
    if sk.tstamp_ok:
        sk.advmss -= TCPOLEN_TSTAMP_ALIGNED
    tcp_sync_mss(e, sk, sk.pmtu)
    tcp_initialize_rcv_mss(sk)
    sk.copied_seq = sk.rcv_nxt


cdef inline int synsent_established_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # A good SYN-ACK.
    cdef bint fastopen_fail = False
    cdef bint fin = False
    if sk.ecn_flags & TCP_ECN_OK and (not s.flags & TH_ECE or s.flags & TH_CWR):
        sk.ecn_flags &= <uint8_t> ~TCP_ECN_OK
    sk.snd_wl1 = s.seq
    tcp_try_undo_spurious_syn(e, sk)
    tcp_ack(e, sk, s, FLAG_SLOWPATH)
    synack_variables_(e, sk, s)
    tcp_finish_connect(e, sk)
    if sk.syn_fastopen or sk.syn_data:
        fastopen_fail = tcp_rcv_fastopen_synack(e, sk, s)
        fin = not fastopen_fail and s.flags & TH_FIN
    if fin and tcp_fin(e, sk):
        return SK_GONE
    if not sk.sflags & SF_DEAD:
        sk_state_change(e, sk)
    if not fastopen_fail:
        if sk.write_pending or sk.defer_accept or inet_csk_in_pingpong_mode(e, sk):
            # The ACK can ride on the data that is to follow.
            sk.write_pending = 0
            inet_csk_schedule_ack(sk)
            tcp_enter_quickack_mode(sk, TCP_MAX_QUICKACKS)
            sk.ack_pending |= ICSK_ACK_TIMER
            sk_reset_delack(e, sk, e.now + DELACK_MAX_NS)
            return DROP_NONE
        tcp_send_ack(e, sk)
    tcp_urg(e, sk, s)
    tcp_data_snd_check(e, sk)
    return DROP_NONE


cdef inline int synsent_ack_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # ACK set. Acceptable only if it is for our SYN.
    if not after(s.ack, sk.snd_una) or after(s.ack, sk.snd_nxt):
        # An old connection of the peer answers: once the RST has removed it, our SYN will be taken.
        if sk.retransmits == 0:
            tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, 2 * e.tick if e.tick > TCP_TIMEOUT_MIN_NS // 2 else TCP_TIMEOUT_MIN_NS)
        return DROP_TCP_INVALID_ACK_SEQUENCE | SYNSENT_RESET
    if sk.saw_tstamp and sk.rcv_tsecr and not between(sk.rcv_tsecr, tcp_ts_of(e, sk.retrans_stamp), tcp_clock_ms(e)):
        mib_inc(&e.stats, MIB_TcpExtPAWSActive)
        return DROP_TCP_RFC7323_PAWS | SYNSENT_RESET
    if s.flags & TH_RST:
        tcp_reset(e, sk)
        return SK_GONE
    if not s.flags & TH_SYN:
        return DROP_TCP_FLAGS
    return synsent_established_(e, sk, s)


# ---- SYN -----------------------------------------------------------------------------------------------------------
cdef inline int synsent_crossed_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # Both sides open at once. Data in the peer's SYN is not taken.
    sk_set_state(e, sk, TCP_SYN_RECV)
    synsent_tstamp_(e, sk)
    sk.irs = s.seq
    sk.rcv_nxt = s.seq + 1
    sk.copied_seq = sk.rcv_nxt
    sk.rcv_wup = s.seq + 1
    sk.snd_wnd = s.wnd
    sk.snd_wl1 = s.seq
    sk.max_window = sk.snd_wnd
    if sk.ecn_flags & TCP_ECN_OK and s.flags & (TH_ECE | TH_CWR) != TH_ECE | TH_CWR:
        sk.ecn_flags &= <uint8_t> ~TCP_ECN_OK
    tcp_mtup_init(e, sk)
    tcp_sync_mss(e, sk, sk.pmtu)
    tcp_initialize_rcv_mss(sk)
    tcp_send_synack(e, sk)
    return DROP_NONE


cdef inline int tcp_rcv_synsent(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    """0: consumed; a drop reason, with SYNSENT_RESET if a stateless RST is to answer; SK_GONE."""
    cdef uint16_t saved_clamp = sk.mss_clamp
    cdef int reason
    sk.saw_tstamp = 0
    synsent_options_(e, sk, s)
    if s.flags & TH_ACK:
        reason = synsent_ack_(e, sk, s)
    elif s.flags & TH_RST:
        reason = DROP_TCP_RESET
    elif (sk.ts_recent_stamp and sk.saw_tstamp and tcp_paws_reject(e, sk.ts_recent, sk.ts_recent_stamp, sk.rcv_tsval, False)):
        reason = DROP_TCP_RFC7323_PAWS
    elif s.flags & TH_SYN:
        return synsent_crossed_(e, sk, s)
    else:
        reason = DROP_TCP_FLAGS
    if reason > 0:
        synsent_undo_(sk, saved_clamp)
        if not reason & SYNSENT_RESET:
            sk_los(e, sk).drops += 1
    return reason
