# Loss recovery: the states Open, Disorder, CWR, Recovery, Loss, their undoing, and the retransmissions (layer: above sack, output; below ack).
#
# RFC 5681, 6582 (NewReno), 6675, 6937 (PRR), 8985 (RACK-TLP), 5682 (F-RTO), 3522/4015 (Eifel), 3708 (undo by D-SACK). Linux: the recovery
# part of tcp_input.c and tcp_recovery.c of 6.18; same order of decisions. high_seq is SND.NXT at the entry of the state; undo_marker is
# SND.UNA then, 0 when there is nothing to undo; undo_retrans counts retransmissions not yet reported as redundant, -1 = none was made.
# prior_ssthresh 0: the reduction stands. The functions decide; what is to be sent comes back in REXMIT_*, since the window is
# known only after the congestion control has run.
# Callers: ack, timers (tcp_enter_loss, tcp_rack_reo_timeout), icmp (tcp_simple_retransmit), request (tcp_init_undo).

from ustack.core.types cimport NS_PER_MS, NS_PER_US, TCP_SYN_SENT, idx_t, int32_t, int64_t, ns_t, uint8_t, uint32_t, uint64_t, likely, unlikely
from ustack.core.cc cimport (
    cc_cwnd_event, cc_has_cong_control, cc_min_tso_segs, cc_ssthresh, cc_undo_cwnd, tcp_cwnd_reduction, tcp_ecn_queue_cwr, tcp_ecn_withdraw_cwr,
    tcp_end_cwnd_reduction, tcp_enter_cwr, tcp_init_cwnd_reduction, tcp_set_ca_state,
)
from ustack.core.cwnd cimport CA_EVENT_LOSS, tcp_current_ssthresh, tcp_in_cwnd_reduction, tcp_is_reno
from ustack.core.loss cimport (
    RACK_RECOVERY_THRESH, tcp_add_reno_sack, tcp_any_retrans_done, tcp_check_sack_reordering, tcp_clear_all_retrans_hints,
    tcp_limit_reno_sacked, tcp_mark_skb_lost, tcp_newreno_mark_lost, tcp_rack_detect_loss, tcp_rack_mark_lost, tcp_rack_skb_timeout,
    tcp_reset_reno_sack, tcp_retrans_stamp_cleanup, tcp_skb_seglen, tcp_tsopt_ecr_before,
    tcp_verify_queue,
)
from ustack.core.mss cimport tcp_current_mss, tcp_mss_to_mtu, tcp_sync_mss, tcp_tso_segs
from ustack.core.output cimport __tcp_push_pending_frames
from ustack.core.records cimport SR_LOST, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.retrans cimport tcp_rearm_rto, tcp_retransmit_skb
from ustack.core.sack cimport (
    FLAG_DATA_SACKED, FLAG_ECE, FLAG_LOST_RETRANS, FLAG_ORIG_SACK_ACKED, FLAG_SACK_RENEGING, FLAG_SET_XMIT_TIMER,
    FLAG_SND_UNA_ADVANCED,
)
from ustack.core.sendq cimport (
    sq_rtx_head, sq_rtx_next, sq_wq_empty, tcp_is_sack, tcp_left_out, tcp_packets_in_flight, tcp_wnd_end,
)
from ustack.core.seqno cimport after, before, i64_max, u32_max, u32_min
from ustack.core.access cimport jiffies_up, sk_los, sr_at
from ustack.core.sock cimport tcp_reset_xmit_timer
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPDSACKUndo, MIB_TcpExtTCPFastRetrans, MIB_TcpExtTCPFullUndo, MIB_TcpExtTCPLossUndo, MIB_TcpExtTCPMTUPFail,
    MIB_TcpExtTCPMTUPSuccess, MIB_TcpExtTCPPartialUndo, MIB_TcpExtTCPRenoRecovery, MIB_TcpExtTCPSACKReneging, MIB_TcpExtTCPSackRecovery,
    MIB_TcpExtTCPSlowStartRetrans, MIB_TcpExtTCPSpuriousRTOs, mib_add, mib_inc,
)
from ustack.core.tcb cimport (
    ICSK_TIME_REO_TIMEOUT, ICSK_TIME_RETRANS, TCP_CA_CWR, TCP_CA_DISORDER, TCP_CA_LOSS, TCP_CA_OPEN, TCP_CA_RECOVERY, TCP_NAGLE_OFF, tcb_t,
)
from ustack.core.xmit cimport tcp_pacing_check, tcp_reset_xmit_timer_paced, tcp_ts_of

cdef enum:
    REXMIT_NONE = 0
    REXMIT_LOST = 1                 # what is marked lost
    REXMIT_NEW = 2                  # F-RTO: new data


# ---- undo ------------------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_init_undo(tcb_t* sk) noexcept nogil:
    """From here on, D-SACKs for all that is and will be retransmitted undo the reduction."""
    sk.undo_marker = sk.snd_una
    sk.undo_retrans = <int32_t> sk.retrans_out
    if sk.tlp_high_seq and sk.tlp_retrans:
        sk.undo_retrans += 1
    if sk.undo_retrans == 0:
        sk.undo_retrans = -1        # 0 would mean that all of them turned out redundant


cdef inline bint tcp_packet_delayed(engine_t* e, tcb_t* sk) noexcept nogil:
    """Did an original arrive, late? Either the echo is older than the first retransmission, or there was none yet; the exceptions
    are the two places where retrans_stamp is forgotten although there was."""
    if sk.retrans_stamp:
        return tcp_tsopt_ecr_before(sk, tcp_ts_of(e, sk.retrans_stamp))
    if not tcp_is_sack(sk) and not before(sk.snd_una, sk.high_seq):
        return False
    return sk.state != TCP_SYN_SENT


cdef inline bint tcp_may_undo(engine_t* e, tcb_t* sk) noexcept nogil:
    return sk.undo_marker and (sk.undo_retrans == 0 or tcp_packet_delayed(e, sk))


cdef inline void tcp_undo_cwnd_reduction(engine_t* e, tcb_t* sk, bint unmark_loss) noexcept nogil:
    cdef idx_t i
    if unmark_loss:
        i = sq_rtx_head(sk)
        while i:
            sr_at(e, i).sacked &= ~<uint8_t> SR_LOST
            i = sq_rtx_next(e, sk, i)
        sk.lost_out = 0
        tcp_clear_all_retrans_hints(sk)
    if sk.prior_ssthresh:
        sk.snd_cwnd = cc_undo_cwnd(e, sk)
        if sk.prior_ssthresh > sk.snd_ssthresh:
            sk.snd_ssthresh = sk.prior_ssthresh
            tcp_ecn_withdraw_cwr(sk)
    sk.snd_cwnd_stamp = e.now
    sk.undo_marker = 0
    sk.rack_advanced = 1            # RACK must look again at what is left


cdef inline bint tcp_is_non_sack_preventing_reopen(engine_t* e, tcb_t* sk) noexcept nogil:
    """Without SACK the state is kept until something above high_seq is acknowledged: duplicate ACKs of our own retransmissions would
    start a second recovery (RFC 6582 3.2)."""
    if sk.snd_una == sk.high_seq and tcp_is_reno(sk):
        tcp_retrans_stamp_cleanup(e, sk)
        return True
    return False


cdef inline bint tcp_try_undo_recovery(engine_t* e, tcb_t* sk) noexcept nogil:
    """high_seq is acknowledged. True: stay in the state."""
    if tcp_may_undo(e, sk):
        tcp_undo_cwnd_reduction(e, sk, False)
        mib_inc(&e.stats, MIB_TcpExtTCPLossUndo if sk.ca_state == TCP_CA_LOSS else MIB_TcpExtTCPFullUndo)
    elif sk.rack_reo_wnd_persist:
        sk.rack_reo_wnd_persist -= 1
    if tcp_is_non_sack_preventing_reopen(e, sk):
        return True
    tcp_set_ca_state(e, sk, TCP_CA_OPEN)
    sk.is_sack_reneg = 0
    return False


cdef inline bint tcp_try_undo_dsack(engine_t* e, tcb_t* sk) noexcept nogil:
    """All retransmissions were redundant."""
    if sk.undo_marker == 0 or sk.undo_retrans != 0:
        return False
    sk.rack_reo_wnd_persist = <uint8_t> u32_min(RACK_RECOVERY_THRESH, <uint32_t> sk.rack_reo_wnd_persist + 1)
    tcp_undo_cwnd_reduction(e, sk, False)
    mib_inc(&e.stats, MIB_TcpExtTCPDSACKUndo)
    return True


cdef inline bint tcp_try_undo_loss(engine_t* e, tcb_t* sk, bint frto_undo) noexcept nogil:
    """The timeout was spurious."""
    if not frto_undo and not tcp_may_undo(e, sk):
        return False
    tcp_undo_cwnd_reduction(e, sk, True)
    mib_inc(&e.stats, MIB_TcpExtTCPLossUndo)
    if frto_undo:
        mib_inc(&e.stats, MIB_TcpExtTCPSpuriousRTOs)
    sk.retransmits = 0
    if tcp_is_non_sack_preventing_reopen(e, sk):
        return True
    if frto_undo or tcp_is_sack(sk):
        tcp_set_ca_state(e, sk, TCP_CA_OPEN)
        sk.is_sack_reneg = 0
    return True


cdef inline void tcp_try_undo_spurious_syn(engine_t* e, tcb_t* sk) noexcept nogil:
    """The SYN(-ACK) was retransmitted, but the first one is echoed: no reason to start with a window of one."""
    if unlikely(sk.undo_marker) and sk.retrans_stamp and sk.saw_tstamp and tcp_ts_of(e, sk.retrans_stamp) == sk.rcv_tsecr:
        sk.undo_marker = 0


# ---- entering and leaving states -----------------------------------------------------------------------------------------------------
cdef inline void tcp_try_keep_open(engine_t* e, tcb_t* sk) noexcept nogil:
    """Open, or Disorder while something is SACKed, lost or retransmitted."""
    cdef uint8_t state = TCP_CA_OPEN
    if tcp_left_out(sk) or tcp_any_retrans_done(e, sk):
        state = TCP_CA_DISORDER
    if sk.ca_state != state:
        tcp_set_ca_state(e, sk, state)
        sk.high_seq = sk.snd_nxt


cdef inline void tcp_try_to_open(engine_t* e, tcb_t* sk, int flag) noexcept nogil:
    tcp_retrans_stamp_cleanup(e, sk)
    if flag & FLAG_ECE:
        tcp_enter_cwr(e, sk)
    if sk.ca_state != TCP_CA_CWR:
        tcp_try_keep_open(e, sk)


cdef inline void tcp_enter_recovery(engine_t* e, tcb_t* sk, bint ece_ack) noexcept nogil:
    tcp_retrans_stamp_cleanup(e, sk)
    mib_inc(&e.stats, MIB_TcpExtTCPRenoRecovery if tcp_is_reno(sk) else MIB_TcpExtTCPSackRecovery)
    sk.prior_ssthresh = 0
    tcp_init_undo(sk)
    if not tcp_in_cwnd_reduction(sk):
        if not ece_ack:
            sk.prior_ssthresh = tcp_current_ssthresh(sk)
        tcp_init_cwnd_reduction(e, sk)
    tcp_set_ca_state(e, sk, TCP_CA_RECOVERY)


cdef inline void tcp_timeout_mark_lost(engine_t* e, tcb_t* sk) noexcept nogil:
    """The timer says the head is lost, and so is all that was sent a round trip before. If the head is SACKed the receiver has dropped what
    it SACKed: then everything is lost."""
    cdef idx_t head = sq_rtx_head(sk)
    cdef idx_t i = head
    cdef bint is_reneg = head != 0 and (sr_at(e, head).sacked & SR_SACKED) != 0
    cdef srec_t* r
    if is_reneg:
        mib_inc(&e.stats, MIB_TcpExtTCPSACKReneging)
        sk.sacked_out = 0
        sk.is_sack_reneg = 1
    elif tcp_is_reno(sk):
        tcp_reset_reno_sack(sk)
    while i:
        r = sr_at(e, i)
        if is_reneg:
            r.sacked &= ~<uint8_t> SR_SACKED
            tcp_mark_skb_lost(e, sk, i)
        elif i == head or tcp_rack_skb_timeout(e, sk, r, 0) <= 0:
            tcp_mark_skb_lost(e, sk, i)
        i = sq_rtx_next(e, sk, i)
    tcp_verify_queue(e, sk)
    tcp_clear_all_retrans_hints(sk)


cdef inline void tcp_enter_loss(engine_t* e, tcb_t* sk) noexcept nogil:
    """Retransmission timeout: window of one packet beyond what is still in flight. ssthresh is reduced once per window; F-RTO is tried
    unless a recovery was under way."""
    cdef bint new_recovery = sk.ca_state < TCP_CA_RECOVERY
    cdef uint32_t reordering = <uint32_t> e.cfg.tcp_reordering
    tcp_timeout_mark_lost(e, sk)
    if (sk.ca_state <= TCP_CA_DISORDER or not after(sk.high_seq, sk.snd_una)
            or (sk.ca_state == TCP_CA_LOSS and sk.retransmits == 0)):
        sk.prior_ssthresh = tcp_current_ssthresh(sk)
        sk.prior_cwnd = sk.snd_cwnd
        sk.snd_ssthresh = cc_ssthresh(e, sk)
        cc_cwnd_event(e, sk, CA_EVENT_LOSS)
        tcp_init_undo(sk)
    sk.snd_cwnd = tcp_packets_in_flight(sk) + 1
    sk.snd_cwnd_cnt = 0
    sk.snd_cwnd_stamp = e.now
    # So many duplicate ACKs and yet no recovery: the reordering metric was too high.
    if sk.ca_state <= TCP_CA_DISORDER and sk.sacked_out >= reordering:
        sk.reordering = u32_min(sk.reordering, reordering)
    tcp_set_ca_state(e, sk, TCP_CA_LOSS)
    sk.high_seq = sk.snd_nxt
    sk.tlp_high_seq = 0
    tcp_ecn_queue_cwr(sk)
    sk.frto = e.cfg.tcp_frto != 0 and (new_recovery or sk.retransmits != 0) and sk.mtup_probe_size == 0


# ---- retransmitting --------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_xmit_retransmit_queue(engine_t* e, tcb_t* sk) noexcept nogil:
    """Retransmit lost records in order, as far as the window goes. The hint remembers where to go on."""
    cdef idx_t head = sq_rtx_head(sk)
    cdef idx_t i = sk.retrans_hint if sk.retrans_hint else head
    cdef idx_t hole = 0
    cdef srec_t* r
    cdef int segs
    cdef int max_segs
    cdef bint rearm = False
    if sk.packets_out == 0:
        return
    max_segs = <int> tcp_tso_segs(e, sk, tcp_current_mss(e, sk), cc_min_tso_segs(e, sk))
    while i:
        r = sr_at(e, i)
        if tcp_pacing_check(e, sk):
            break
        if hole == 0:
            sk.retrans_hint = i
        segs = <int> sk.snd_cwnd - <int> tcp_packets_in_flight(sk)
        if segs <= 0:
            break
        if segs > max_segs:
            segs = max_segs
        if sk.retrans_out >= sk.lost_out:
            break
        if not r.sacked & SR_LOST:
            if hole == 0 and not r.sacked & (SR_RETRANS | SR_SACKED):
                hole = i
        elif not r.sacked & (SR_SACKED | SR_RETRANS):
            if tcp_retransmit_skb(e, sk, i, <uint32_t> segs) != 0:
                break
            mib_add(&e.stats, MIB_TcpExtTCPSlowStartRetrans if sk.ca_state == TCP_CA_LOSS else MIB_TcpExtTCPFastRetrans, r.pcount)
            if tcp_in_cwnd_reduction(sk):
                sk.prr_out += r.pcount
            if i == head and sk.icsk_pending != ICSK_TIME_REO_TIMEOUT:
                rearm = True
        i = sq_rtx_next(e, sk, i)
    if rearm:
        tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_RETRANS, sk.rto)


cdef inline void tcp_xmit_recovery(engine_t* e, tcb_t* sk, int rexmit) noexcept nogil:
    """Last step of an ACK: (re)transmit what recovery asked for."""
    if likely(rexmit == REXMIT_NONE) or sk.state == TCP_SYN_SENT:
        return
    if rexmit == REXMIT_NEW:
        __tcp_push_pending_frames(e, sk, tcp_current_mss(e, sk), TCP_NAGLE_OFF)
        if after(sk.snd_nxt, sk.high_seq):
            return
        sk.frto = 0                 # nothing new could be sent: ordinary recovery
    tcp_xmit_retransmit_queue(e, sk)


cdef inline void tcp_non_congestion_loss_retransmit(engine_t* e, tcb_t* sk) noexcept nogil:
    """Losses that tell nothing of congestion: retransmit, leave the window as it is."""
    if sk.ca_state != TCP_CA_LOSS:
        sk.high_seq = sk.snd_nxt
        sk.snd_ssthresh = tcp_current_ssthresh(sk)
        sk.prior_ssthresh = 0
        sk.undo_marker = 0
        tcp_set_ca_state(e, sk, TCP_CA_LOSS)
    tcp_xmit_retransmit_queue(e, sk)


cdef inline void tcp_simple_retransmit(engine_t* e, tcb_t* sk) noexcept nogil:
    """The path MTU fell: every packet larger than the new MSS is lost. For a SYN with data, everything is."""
    cdef int mss = -1 if sk.syn_data and sk.state == TCP_SYN_SENT else <int> tcp_current_mss(e, sk)
    cdef idx_t i = sq_rtx_head(sk)
    while i:
        if <int> tcp_skb_seglen(sr_at(e, i)) > mss:
            tcp_mark_skb_lost(e, sk, i)
        i = sq_rtx_next(e, sk, i)
    if sk.lost_out == 0:
        return
    if tcp_is_reno(sk):
        tcp_limit_reno_sacked(sk)
    tcp_non_congestion_loss_retransmit(e, sk)


cdef inline void tcp_rack_reo_timeout(engine_t* e, tcb_t* sk) noexcept nogil:
    """The reordering window of something is over (timer ICSK_TIME_REO_TIMEOUT)."""
    cdef uint32_t prior_inflight = tcp_packets_in_flight(sk)
    cdef uint32_t lost = sk.lost
    tcp_rack_detect_loss(e, sk)
    if prior_inflight != tcp_packets_in_flight(sk):
        if sk.ca_state != TCP_CA_RECOVERY:
            tcp_enter_recovery(e, sk, False)
            if not cc_has_cong_control(e, sk):
                tcp_cwnd_reduction(sk, 1, <int> (sk.lost - lost), False)
        tcp_xmit_retransmit_queue(e, sk)
    if sk.icsk_pending != ICSK_TIME_RETRANS:
        tcp_rearm_rto(e, sk)


# ---- MTU probes ------------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_mtup_probe_failed(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.mtup_search_high = sk.mtup_probe_size - 1
    sk.mtup_probe_size = 0
    mib_inc(&e.stats, MIB_TcpExtTCPMTUPFail)


cdef inline void tcp_mtup_probe_success(engine_t* e, tcb_t* sk) noexcept nogil:
    """The path takes the larger packet: same window in bytes."""
    cdef uint64_t val
    sk.prior_ssthresh = tcp_current_ssthresh(sk)
    val = <uint64_t> sk.snd_cwnd * <uint64_t> tcp_mss_to_mtu(sk, <int> sk.mss_cache) // sk.mtup_probe_size
    sk.snd_cwnd = u32_max(1, <uint32_t> val)
    sk.snd_cwnd_cnt = 0
    sk.snd_cwnd_stamp = e.now
    sk.snd_ssthresh = tcp_current_ssthresh(sk)
    sk.mtup_search_low = sk.mtup_probe_size
    sk.mtup_probe_size = 0
    tcp_sync_mss(e, sk, sk.pmtu)
    mib_inc(&e.stats, MIB_TcpExtTCPMTUPSuccess)


# ---- the state machine ------------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_check_sack_reneging(engine_t* e, tcb_t* sk, int* ack_flag) noexcept nogil:
    """The ACK stops at a SACKed record. The receiver may have dropped it, or the rest of the ACKs is on its way: wait half an RTT, but at
    least 10 ms, before taking it for a timeout."""
    cdef ns_t delay
    if not ack_flag[0] & FLAG_SACK_RENEGING or not ack_flag[0] & FLAG_SND_UNA_ADVANCED:
        return False
    delay = i64_max(jiffies_up(e, <int64_t> (sk.rtt.srtt_us >> 4) * NS_PER_US), jiffies_up(e, 10 * NS_PER_MS))
    tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, delay)
    ack_flag[0] &= ~FLAG_SET_XMIT_TIMER
    return True


cdef inline void tcp_identify_packet_loss(engine_t* e, tcb_t* sk, int* ack_flag) noexcept nogil:
    cdef uint32_t prior_retrans = sk.retrans_out
    if sq_rtx_head(sk) == 0:
        return
    if tcp_is_reno(sk):
        tcp_newreno_mark_lost(e, sk, (ack_flag[0] & FLAG_SND_UNA_ADVANCED) != 0)
        return
    if tcp_rack_mark_lost(e, sk):
        ack_flag[0] &= ~FLAG_SET_XMIT_TIMER
    if prior_retrans > sk.retrans_out:
        ack_flag[0] |= FLAG_LOST_RETRANS


cdef inline bint tcp_try_undo_partial(engine_t* e, tcb_t* sk, uint32_t prior_snd_una) noexcept nogil:
    """A partial ACK in Recovery that an original caused: reordering. True: retransmissions are still under way, do nothing more."""
    if sk.undo_marker == 0 or not tcp_packet_delayed(e, sk):
        return False
    tcp_check_sack_reordering(e, sk, prior_snd_una, True)
    if sk.retrans_out:
        return True
    tcp_retrans_stamp_cleanup(e, sk)
    tcp_undo_cwnd_reduction(e, sk, True)
    mib_inc(&e.stats, MIB_TcpExtTCPPartialUndo)
    tcp_try_keep_open(e, sk)
    return False


cdef inline bint tcp_process_frto(engine_t* e, tcb_t* sk, int flag, int num_dupack, bint recovered, int* rexmit) noexcept nogil:
    """F-RTO, SACK-enhanced (RFC 5682 3.1): after the first retransmission new data is sent; if then something never retransmitted is
    (s)acked, the timeout was spurious. True: handled."""
    if flag & FLAG_ORIG_SACK_ACKED and tcp_try_undo_loss(e, sk, True):
        return True
    if after(sk.snd_nxt, sk.high_seq):
        if flag & FLAG_DATA_SACKED or num_dupack:
            sk.frto = 0             # the loss was real
    elif flag & FLAG_SND_UNA_ADVANCED and not recovered:
        sk.high_seq = sk.snd_nxt
        if not sq_wq_empty(sk) and after(tcp_wnd_end(sk), sk.snd_nxt):
            rexmit[0] = REXMIT_NEW
            return True
        sk.frto = 0
    return False


cdef inline void tcp_process_loss(engine_t* e, tcb_t* sk, int flag, int num_dupack, int* rexmit) noexcept nogil:
    """An ACK in Loss."""
    cdef bint recovered = not before(sk.snd_una, sk.high_seq)
    if (flag & FLAG_SND_UNA_ADVANCED or sk.fastopen_rsk) and tcp_try_undo_loss(e, sk, False):
        return
    if sk.frto and tcp_process_frto(e, sk, flag, num_dupack, recovered, rexmit):
        return
    if recovered:
        tcp_try_undo_recovery(e, sk)
        return
    if tcp_is_reno(sk):
        # A duplicate ACK now stands for new data that F-RTO sent.
        if after(sk.snd_nxt, sk.high_seq) and num_dupack:
            tcp_add_reno_sack(e, sk, <uint32_t> num_dupack, (flag & FLAG_ECE) != 0)
        elif flag & FLAG_SND_UNA_ADVANCED:
            tcp_reset_reno_sack(sk)
    rexmit[0] = REXMIT_LOST


cdef inline void tcp_update_rto_time(engine_t* e, tcb_t* sk) noexcept nogil:
    """A series of timeouts is over (tcpi_total_rto_time)."""
    if sk.los.rto_stamp:
        sk_los(e, sk).total_rto_time_ms += <uint32_t> ((e.now - sk.los.rto_stamp) // NS_PER_MS)
        sk_los(e, sk).rto_stamp = 0


cdef inline bint tcp_alert_leave(engine_t* e, tcb_t* sk) noexcept nogil:
    """high_seq is acknowledged: does the state end? True: nothing more to do for this ACK."""
    if sk.ca_state == TCP_CA_CWR:
        # Something above high_seq must be acknowledged, so that the CWR bit has been seen.
        if sk.snd_una != sk.high_seq:
            tcp_end_cwnd_reduction(e, sk)
            tcp_set_ca_state(e, sk, TCP_CA_OPEN)
    elif sk.ca_state == TCP_CA_RECOVERY:
        if tcp_is_reno(sk):
            tcp_reset_reno_sack(sk)
        if tcp_try_undo_recovery(e, sk):
            return True
        tcp_end_cwnd_reduction(e, sk)
    return False


cdef inline bint tcp_alert_recovery(engine_t* e, tcb_t* sk, uint32_t prior_snd_una, int num_dupack, int flag, int* ack_flag) noexcept nogil:
    """In Recovery. False: leave without retransmitting."""
    if not flag & FLAG_SND_UNA_ADVANCED:
        if tcp_is_reno(sk):
            tcp_add_reno_sack(e, sk, <uint32_t> num_dupack, (flag & FLAG_ECE) != 0)
    elif tcp_try_undo_partial(e, sk, prior_snd_una):
        return False
    if tcp_try_undo_dsack(e, sk):
        tcp_try_to_open(e, sk, flag)
    tcp_identify_packet_loss(e, sk, ack_flag)
    if sk.ca_state != TCP_CA_RECOVERY:
        if sk.lost_out == 0:
            return False
        tcp_enter_recovery(e, sk, (flag & FLAG_ECE) != 0)
    return True


cdef inline bint tcp_alert_open(engine_t* e, tcb_t* sk, int num_dupack, int flag, int* ack_flag) noexcept nogil:
    """In Open, Disorder, CWR, or Loss that was undone: is it time to recover? False: no."""
    if tcp_is_reno(sk):
        if flag & FLAG_SND_UNA_ADVANCED:
            tcp_reset_reno_sack(sk)
        tcp_add_reno_sack(e, sk, <uint32_t> num_dupack, (flag & FLAG_ECE) != 0)
    if sk.ca_state <= TCP_CA_DISORDER:
        tcp_try_undo_dsack(e, sk)
    tcp_identify_packet_loss(e, sk, ack_flag)
    if sk.lost_out == 0:
        tcp_try_to_open(e, sk, flag)
        return False
    if sk.ca_state < TCP_CA_CWR and sk.mtup_probe_size and sk.snd_una == sk.los.mtup_probe_seq_start:
        # The MTU probe was lost, not a packet of ordinary size: no congestion.
        tcp_mtup_probe_failed(e, sk)
        sk.snd_cwnd += 1
        tcp_simple_retransmit(e, sk)
        return False
    tcp_enter_recovery(e, sk, (flag & FLAG_ECE) != 0)
    return True


cdef inline void tcp_fastretrans_alert(engine_t* e, tcb_t* sk, uint32_t prior_snd_una, int num_dupack, int* ack_flag, int* rexmit) noexcept nogil:
    """An ACK that is a duplicate, carries SACK or ECE, or comes outside Open."""
    cdef int flag = ack_flag[0]
    if sk.packets_out == 0 and sk.sacked_out:
        sk.sacked_out = 0
    if flag & FLAG_ECE:
        sk.prior_ssthresh = 0       # congestion was told of: no undoing
    if tcp_check_sack_reneging(e, sk, ack_flag):
        return
    tcp_verify_queue(e, sk)
    if sk.ca_state == TCP_CA_OPEN:
        sk.retrans_stamp = 0
    elif not before(sk.snd_una, sk.high_seq) and tcp_alert_leave(e, sk):
        return
    if sk.ca_state == TCP_CA_RECOVERY:
        if not tcp_alert_recovery(e, sk, prior_snd_una, num_dupack, flag, ack_flag):
            return
    else:
        if sk.ca_state == TCP_CA_LOSS:
            tcp_process_loss(e, sk, flag, num_dupack, rexmit)
            if sk.ca_state != TCP_CA_LOSS:
                tcp_update_rto_time(e, sk)
            tcp_identify_packet_loss(e, sk, ack_flag)
            if sk.ca_state != TCP_CA_OPEN and not ack_flag[0] & FLAG_LOST_RETRANS:
                return
        if not tcp_alert_open(e, sk, num_dupack, flag, ack_flag):
            return
    rexmit[0] = REXMIT_LOST
