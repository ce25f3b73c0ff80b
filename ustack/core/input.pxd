# Segments for a connection: header prediction in ESTABLISHED, the state machine elsewhere (layer below request and
# ipin).
#
# RFC 9293 3.10.7.4, facts E4, J20-J27, K. Linux: tcp_rcv_established, tcp_rcv_state_process. The caller (ipin,
# request) has found the socket, verified the checksum, applied IP_MINTTL and counted segs_in. Both functions return 0
# when the segment was consumed, else why it was dropped; every answer, a RST included, has been sent by then. An
# orphan may have been freed: the caller must not touch sk afterwards.

from ustack.core.types cimport (
    DROP_HOOK, DROP_NONE, DROP_NOT_SPECIFIED, DROP_TCP_ABORT_ON_DATA, DROP_TCP_CLOSE, DROP_TCP_FASTOPEN,
    DROP_TCP_FLAGS, DROP_TCP_OLD_ACK, NS_PER_SEC, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
    TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT, TH_ACK, TH_FIN, TH_PSH,
    TH_RST, TH_SYN, int32_t, ns_t, seg_t, uint32_t, uint8_t, likely, unlikely,
)
from ustack.core.ack cimport tcp_ack, tcp_init_transfer
from ustack.core.cc cimport cc_has_cong_control
from ustack.core.challenge cimport tcp_send_challenge_ack
from ustack.core.cwnd cimport tcp_update_pacing_rate
from ustack.core.dataq cimport SK_GONE, tcp_data_queue, tcp_urg
from ustack.core.delack cimport __tcp_ack_snd_check, inet_csk_ack_scheduled, tcp_ack_snd_check, tcp_event_data_recv
from ustack.core.fastopen cimport FO_DISCARD, FO_RESET, fastopen_check_req, fastopen_synack_rtt_us
from ustack.core.hooks cimport hooked
from ustack.core.ipout cimport ipout_rst_reply
from ustack.core.loss cimport tcp_retrans_stamp_cleanup
from ustack.core.metrics cimport tcp_update_metrics
from ustack.core.output cimport tcp_data_snd_check, tcp_send_fin
from ustack.core.rcvfin cimport tcp_reset
from ustack.core.rcvq cimport rcv_prepare, seg_truesize, tcp_queue_rcv
from ustack.core.rcvwin cimport (
    tcp_data_ready, tcp_fast_path_on, tcp_initialize_rcv_mss, tcp_rcv_rtt_measure_ts, tcp_receive_window,
)
from ustack.core.recovery cimport (
    tcp_try_undo_recovery, tcp_try_undo_spurious_syn, tcp_update_rto_time,
)
from ustack.core.retrans cimport tcp_rearm_rto
from ustack.core.rttmeas cimport tcp_synack_rtt_meas
from ustack.core.sack cimport FLAG_DATA, FLAG_NO_CHALLENGE_ACK, FLAG_SLOWPATH, FLAG_UPDATE_TS_RECENT
from ustack.core.seqno cimport after, before
from ustack.core.access cimport sk_los
from ustack.core.sock cimport fastopen_remove, sk_reset_keepalive, sk_set_state, tcp_done, tcp_fastopen_active_disable
from ustack.core.wake cimport sk_state_change
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPAbortOnData, MIB_TcpExtTCPHPHits, mib_inc
from ustack.core.synsent cimport SYNSENT_RESET, TCPOLEN_TSTAMP_ALIGNED, tcp_rcv_synsent
from ustack.core.tcb cimport (
    RCV_SHUTDOWN, SEND_SHUTDOWN, SF_DEAD, SF_IN_ACCEPTQ, SF_REFUSED, TCP_CA_LOSS, TCP_ECN_OK, TCP_ECN_SEEN, sklos_t, tcb_t,
)
from ustack.core.timewait cimport TCP_TIMEWAIT_S, tcp_fin_time, tcp_time_wait
from ustack.core.validate cimport sk_take_tstamp_, tcp_store_ts_recent, tcp_validate_incoming
from ustack.core.wire cimport get32

cdef enum:
    HDR_TS_LEN = 32                 # header with the timestamp option alone
    TS_ONLY_WORD = 0x0101080a


# ---- ESTABLISHED: header prediction --------------------------------------------------------------------------------
cdef inline bint predicted_(const tcb_t* sk, const seg_t* s) noexcept nogil:
    # The next segment of a connection on which nothing else happens: header length, flags (but PSH) and window as expected.
    if (s.doff << 26 | <uint32_t> (s.flags & ~<uint32_t> TH_PSH) << 16 | s.wnd) != sk.pred_flags:
        return False
    return s.seq == sk.rcv_nxt and not after(s.ack, sk.snd_nxt)


cdef inline bint predicted_tstamp_(tcb_t* sk, seg_t* s) noexcept nogil:
    # The timestamp of a predicted segment, if one is to be expected; False: the slow path must look at it.
    s.opts = 0
    s.n_sack = 0
    if unlikely(sk.tcp_header_len != HDR_TS_LEN):
        return True
    if get32(s.opt) != TS_ONLY_WORD:
        return False
    s.tsval = get32(s.opt + 4)
    s.tsecr = get32(s.opt + 8)
    sk_take_tstamp_(sk, s)
    return <int32_t> (sk.rcv_tsval - sk.ts_recent) >= 0


cdef inline void ecn_received_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # What tcp_info tells of ECN marks received, on connections without ECN too.
    cdef uint32_t ecn = s.tos & 3
    cdef sklos_t* los
    if likely(ecn == 0):
        return
    if not sk.ecn_flags & TCP_ECN_OK:
        sk.ecn_flags |= TCP_ECN_SEEN
    if ecn != 3 and s.len == 0:
        return
    los = sk_los(e, sk)
    if ecn == 3:
        los.received_ce += 1 if s.gso_size == 0 or s.len <= s.gso_size else (s.len + s.gso_size - 1) // s.gso_size
    los.received_ecn_bytes[ecn - 1] += s.len


cdef inline void predicted_replace_ts_(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.tcp_header_len == HDR_TS_LEN and sk.rcv_nxt == sk.rcv_wup:
        tcp_store_ts_recent(e, sk)


cdef inline void predicted_ack_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    predicted_replace_ts_(e, sk)
    ecn_received_(e, sk, s)
    tcp_ack(e, sk, s, 0)
    tcp_data_snd_check(e, sk)
    sk.rcvrtt_last_tsecr = sk.rcv_tsecr


cdef inline void predicted_data_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    cdef bint ack_due = True
    predicted_replace_ts_(e, sk)
    tcp_rcv_rtt_measure_ts(e, sk, s.len)
    mib_inc(&e.stats, MIB_TcpExtTCPHPHits)
    tcp_queue_rcv(e, sk, s)
    ecn_received_(e, sk, s)
    tcp_event_data_recv(e, sk, s)
    if s.ack != sk.snd_una:
        tcp_ack(e, sk, s, FLAG_DATA)
        tcp_data_snd_check(e, sk)
        ack_due = inet_csk_ack_scheduled(sk)
    else:
        sk.snd_wl1 = s.seq
    if ack_due:
        __tcp_ack_snd_check(e, sk, False)
    tcp_data_ready(e, sk)


# ---- ESTABLISHED: everything else ----------------------------------------------------------------------------------
cdef inline int established_text_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # The segment is acceptable: ACK, urgent pointer, text.
    cdef int reason
    ecn_received_(e, sk, s)
    reason = tcp_ack(e, sk, s, FLAG_SLOWPATH | FLAG_UPDATE_TS_RECENT)
    if reason < 0:
        sk_los(e, sk).drops += 1
        return -reason
    tcp_rcv_rtt_measure_ts(e, sk, s.end_seq - s.seq)
    tcp_urg(e, sk, s)
    reason = tcp_data_queue(e, sk, s)
    if unlikely(reason == SK_GONE):
        return DROP_NONE
    tcp_data_snd_check(e, sk)
    tcp_ack_snd_check(e, sk)
    return reason


cdef inline int tcp_rcv_established(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    """A segment for a connection in ESTABLISHED."""
    cdef int reason
    sk.saw_tstamp = 0
    if predicted_(sk, s) and predicted_tstamp_(sk, s):
        if s.len == 0:
            predicted_ack_(e, sk, s)
            return DROP_NONE
        if not after(s.end_seq, sk.rcv_nxt + tcp_receive_window(sk)):
            if seg_truesize(s) > sk.fwd_alloc:
                return established_text_(e, sk, s)
            if rcv_prepare(e, sk, s) == 0:
                predicted_data_(e, sk, s)
                return DROP_NONE
    if unlikely(not s.flags & (TH_ACK | TH_RST | TH_SYN)):
        sk_los(e, sk).drops += 1
        return DROP_TCP_FLAGS
    reason = tcp_validate_incoming(e, sk, s, True)
    if unlikely(reason != DROP_NONE):
        return DROP_NONE if reason == SK_GONE else reason
    return established_text_(e, sk, s)


# ---- SYN_RECV: our SYN is acknowledged -----------------------------------------------------------------------------
cdef inline void synrecv_fastopen_(engine_t* e, tcb_t* sk) noexcept nogil:
    # A Fast Open child has its handshake behind it: the request's slot is free, data sent meanwhile gets its own timer.
    if sk.ca_state == TCP_CA_LOSS and sk.packets_out == 0:
        tcp_try_undo_recovery(e, sk)
    tcp_update_rto_time(e, sk)
    sk.retransmits = 0
    tcp_retrans_stamp_cleanup(e, sk)
    fastopen_remove(e, sk, False)
    tcp_rearm_rto(e, sk)


cdef inline bint synrecv_done_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # False: a hook refused the connection; it stays in SYN_RECV for the caller to reset.
    cdef bint tfo = sk.fastopen_rsk != 0
    sk.delivered += 1
    if sk.rtt.srtt_us == 0:
        tcp_synack_rtt_meas(e, sk, fastopen_synack_rtt_us(e, sk))
    if sk.tstamp_ok:
        sk.advmss -= TCPOLEN_TSTAMP_ALIGNED
    if tfo:
        synrecv_fastopen_(e, sk)
    else:
        tcp_try_undo_spurious_syn(e, sk)
        sk.retrans_stamp = 0
        tcp_init_transfer(e, sk, (sk.sflags & SF_IN_ACCEPTQ) != 0)
        if hooked(e.hooks) and sk.sflags & SF_REFUSED:
            return False
        sk.copied_seq = sk.rcv_nxt
    sk_set_state(e, sk, TCP_ESTABLISHED)
    sk_state_change(e, sk)
    sk.snd_una = s.ack
    sk.snd_wnd = s.wnd << sk.snd_wscale
    sk.snd_wl1 = s.seq
    if not cc_has_cong_control(e, sk):
        tcp_update_pacing_rate(e, sk)
    sk.lsndtime = e.now
    tcp_initialize_rcv_mss(sk)
    tcp_fast_path_on(sk)
    if unlikely(sk.shutdown & SEND_SHUTDOWN):
        # shutdown() came before the handshake was over.
        sk_set_state(e, sk, TCP_FIN_WAIT1)
        tcp_send_fin(e, sk)
    return True


# ---- closing: our FIN may be acknowledged --------------------------------------------------------------------------
cdef inline int abort_orphan_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # Data for a socket that nobody reads any more (facts K3).
    tcp_done(e, sk)
    mib_inc(&e.stats, MIB_TcpExtTCPAbortOnData)
    ipout_rst_reply(e, s)
    return DROP_TCP_ABORT_ON_DATA


cdef inline int fin_wait1_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # 0: go on with the segment.
    cdef ns_t tmo
    if sk.fastopen_rsk:
        synrecv_fastopen_(e, sk)
    if sk.snd_una != sk.write_seq:
        return DROP_NONE
    sk_set_state(e, sk, TCP_FIN_WAIT2)
    sk.shutdown |= SEND_SHUTDOWN
    if not sk.sflags & SF_DEAD:
        sk_state_change(e, sk)
        return DROP_NONE
    if sk.opt.linger2_s < 0:
        return abort_orphan_(e, sk, s)
    if s.end_seq != s.seq and after(s.end_seq - ((s.flags & TH_FIN) != 0), sk.rcv_nxt):
        if sk.syn_fastopen and s.flags & TH_FIN:
            tcp_fastopen_active_disable(e)
        return abort_orphan_(e, sk, s)
    tmo = tcp_fin_time(e, sk)
    if tmo > TCP_TIMEWAIT_S * NS_PER_SEC:
        sk_reset_keepalive(e, sk, tmo - TCP_TIMEWAIT_S * NS_PER_SEC)
    elif s.flags & TH_FIN:
        sk_reset_keepalive(e, sk, tmo)
    else:
        tcp_time_wait(e, sk, TCP_FIN_WAIT2, tmo)
        return SK_GONE
    return DROP_NONE


cdef inline int our_fin_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # What the ACK means for the state. 0: go on; a drop reason; SK_GONE.
    cdef uint8_t state = sk.state
    if state == TCP_SYN_RECV:
        return DROP_NONE if synrecv_done_(e, sk, s) else DROP_HOOK
    elif state == TCP_FIN_WAIT1:
        return fin_wait1_(e, sk, s)
    elif state == TCP_CLOSING and sk.snd_una == sk.write_seq:
        tcp_time_wait(e, sk, TCP_TIME_WAIT, 0)
        return SK_GONE
    elif state == TCP_LAST_ACK and sk.snd_una == sk.write_seq:
        tcp_update_metrics(e, sk)
        tcp_done(e, sk)
        return SK_GONE
    return DROP_NONE


# ---- the state machine ---------------------------------------------------------------------------------------------
cdef inline int state_text_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # Step 7, by state. 0: consumed; a drop reason; SK_GONE or DROP_TCP_ABORT_ON_DATA: the connection is over.
    cdef uint8_t state = sk.state
    if state == TCP_CLOSE_WAIT or state == TCP_CLOSING or state == TCP_LAST_ACK:
        # Beyond the peer's FIN there is nothing to read. Linux counts a pure ACK here as dropped by the socket.
        if not before(s.seq, sk.rcv_nxt):
            sk_los(e, sk).drops += 1
            return DROP_NONE if s.seq == s.end_seq else DROP_NOT_SPECIFIED
    elif state != TCP_FIN_WAIT1 and state != TCP_FIN_WAIT2:
        return tcp_data_queue(e, sk, s) if state == TCP_ESTABLISHED else DROP_NOT_SPECIFIED
    if sk.shutdown & RCV_SHUTDOWN and s.end_seq != s.seq and after(s.end_seq - ((s.flags & TH_FIN) != 0), sk.rcv_nxt):
        mib_inc(&e.stats, MIB_TcpExtTCPAbortOnData)
        tcp_reset(e, sk)
        ipout_rst_reply(e, s)
        return DROP_TCP_ABORT_ON_DATA
    return tcp_data_queue(e, sk, s)


cdef inline int state_ack_failed_(engine_t* e, tcb_t* sk, const seg_t* s, int ack) noexcept nogil:
    # tcp_ack found an old ACK (0) or an unacceptable one (negative). 0: go on all the same.
    if sk.state == TCP_SYN_RECV:
        ipout_rst_reply(e, s)
        return DROP_TCP_OLD_ACK if ack == 0 else -ack
    if ack == 0:
        return DROP_NONE
    tcp_send_challenge_ack(e, sk)
    sk_los(e, sk).drops += 1
    return -ack


cdef inline int state_synsent_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    cdef int reason = tcp_rcv_synsent(e, sk, s)
    if reason == SK_GONE:
        return DROP_NONE
    if reason & SYNSENT_RESET:
        ipout_rst_reply(e, s)
        reason &= ~SYNSENT_RESET
    return reason


cdef inline int state_fastopen_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    # A Fast Open child whose handshake is not over: the tests of a request come first. 0: go on.
    cdef int verdict
    if sk.fastopen_rsk == 0:
        return DROP_NONE
    verdict = fastopen_check_req(e, sk, s)
    if verdict == FO_RESET:
        tcp_reset(e, sk)
        return SK_GONE
    if verdict == FO_DISCARD:
        sk_los(e, sk).drops += 1
        return DROP_TCP_FASTOPEN
    return DROP_NONE


cdef inline int tcp_rcv_state_process(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    """A segment for a connection in any state but ESTABLISHED and LISTEN."""
    cdef int reason
    if sk.state == TCP_CLOSE:
        sk_los(e, sk).drops += 1
        return DROP_TCP_CLOSE
    if sk.state == TCP_SYN_SENT:
        return state_synsent_(e, sk, s)
    sk.saw_tstamp = 0
    reason = state_fastopen_(e, sk, s)
    if reason == DROP_NONE:
        if not s.flags & (TH_ACK | TH_RST | TH_SYN):
            sk_los(e, sk).drops += 1
            return DROP_TCP_FLAGS
        reason = tcp_validate_incoming(e, sk, s, False)
    if unlikely(reason != DROP_NONE):
        return DROP_NONE if reason == SK_GONE else reason
    reason = tcp_ack(e, sk, s, FLAG_SLOWPATH | FLAG_UPDATE_TS_RECENT | FLAG_NO_CHALLENGE_ACK)
    if reason <= 0:
        reason = state_ack_failed_(e, sk, s, reason)
        if reason != DROP_NONE:
            return reason
    reason = our_fin_(e, sk, s)
    if reason != DROP_NONE:
        return DROP_NONE if reason == SK_GONE else reason
    tcp_urg(e, sk, s)
    reason = state_text_(e, sk, s)
    if reason == SK_GONE:
        return DROP_NONE
    if reason == DROP_TCP_ABORT_ON_DATA:
        return reason
    if likely(sk.state != TCP_CLOSE):
        tcp_data_snd_check(e, sk)
        tcp_ack_snd_check(e, sk)
    return reason
