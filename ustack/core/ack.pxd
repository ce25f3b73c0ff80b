# An acceptable ACK: what it acknowledges, measures, opens and sets in motion (layer: above recovery, below input).
#
# RFC 9293 3.10.7.4 (fifth check), RFC 5961 5, RFC 5681, RFC 3168 6.1.2; facts J4, J13, J20(6), L1. Linux: tcp_ack and what it calls,
# tcp_init_transfer; same order of decisions. tcp_ack returns > 0 (acceptable), 0 (old), or -DROP_* (discard the segment).
# Order matters: marks and counters first (clean_rtx_queue, SACK, RACK), then the state machine, then the rate sample, then the
# congestion control, and only then transmissions.
# Callers: input, request (Fast Open).

from libc.string cimport memset

from ustack.core.types cimport (
    DROP_TCP_ACK_UNSENT_DATA, DROP_TCP_TOO_OLD_ACK, TH_CWR, TH_ECE, TH_SYN, idx_t, int64_t, ns_t, seg_t, uint8_t,
    uint32_t, uint64_t, likely, unlikely,
)
from ustack.core.cc cimport (
    cc_cong_avoid, cc_cong_control, cc_has_cong_control, cc_in_ack_event, cc_init, cc_pkts_acked, tcp_cwnd_reduction,
    tcp_end_cwnd_reduction, tcp_init_cwnd_reduction, tcp_set_ca_state,
)
from ustack.core.challenge cimport tcp_send_challenge_ack
from ustack.core.connhook cimport connhook_established
from ustack.core.cwnd cimport (
    CA_ACK_ECE, CA_ACK_SLOWPATH, CA_ACK_WIN_UPDATE, ack_sample_t, rate_sample_t, tcp_in_cwnd_reduction, tcp_is_reno, tcp_mstamp,
    tcp_stamp_us_delta, tcp_update_pacing_rate, us_of,
)
from ustack.core.hooks cimport hooked
from ustack.core.txstamp cimport tcp_ack_tstamp
from ustack.core.loss cimport (
    SR_ANY_RETRANS, tcp_check_sack_reordering, tcp_count_delivered, tcp_highest_sack_seq, tcp_rack_advance, tcp_rack_update_reo_wnd,
    tcp_remove_reno_sacks, tcp_skb_spurious_retrans, tcp_verify_queue,
)
from ustack.core.metrics cimport tcp_init_metrics
from ustack.core.output cimport (
    tcp_clamp_probe0_to_user_timeout, tcp_init_cwnd, tcp_mtup_init, tcp_probe0_when, tcp_rearm_rto, tcp_reset_xmit_timer_paced,
    tcp_schedule_loss_probe, tcp_slow_start_after_idle_check, tcp_sync_mss,
)
from ustack.core.paws cimport tcp_paws_check
from ustack.core.rate cimport tcp_rate_gen, tcp_rate_skb_delivered
from ustack.core.rcvwin cimport tcp_fast_path_check, tcp_init_rcv_space
from ustack.core.records cimport SR_LOST, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.recovery cimport (
    REXMIT_NONE, tcp_fastretrans_alert, tcp_mtup_probe_success, tcp_try_keep_open, tcp_xmit_recovery,
)
from ustack.core.rttmeas cimport tcp_ack_update_rtt
from ustack.core.sack cimport (
    FLAG_ACKED, FLAG_ACK_MAYBE_DELAYED, FLAG_CA_ALERT, FLAG_DATA, FLAG_DATA_ACKED, FLAG_DATA_SACKED, FLAG_DSACKING_ACK, FLAG_DSACK_TLP,
    FLAG_ECE, FLAG_FORWARD_PROGRESS, FLAG_NOT_DUP, FLAG_NO_CHALLENGE_ACK, FLAG_ORIG_SACK_ACKED, FLAG_RETRANS_DATA_ACKED,
    FLAG_SACK_RENEGING, FLAG_SET_XMIT_TIMER, FLAG_SLOWPATH, FLAG_SND_UNA_ADVANCED, FLAG_SYN_ACKED, FLAG_UPDATE_TS_RECENT, FLAG_WIN_UPDATE,
    sack_state_t, tcp_sacktag_write_queue,
)
from ustack.core.sendq cimport (
    sq_rtx_head, sq_trim_head, sq_unlink_free, sq_wq_empty, tcp_chrono_stop, tcp_is_sack, tcp_packets_in_flight, tcp_sndbuf_expand, tcp_wnd_end,
)
from ustack.core.seqno cimport after, before, between
from ustack.core.access cimport sk_los, sr_at, tcp_clock_s
from ustack.core.sock cimport sk_rings_idle, tcp_clear_retrans_timer
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPDelivered, MIB_TcpExtTCPDeliveredCE, MIB_TcpExtTCPHPAcks, MIB_TcpExtTCPLossProbeRecovery, MIB_TcpExtTCPPureAcks, mib_add,
    mib_inc,
)
from ustack.core.tcb cimport (
    CHRONO_BUSY, ICSK_ACK_NOW, ICSK_TIME_PROBE0, SOCK_SNDBUF_LOCK, TCP_CA_CWR, TCP_CA_OPEN, TCP_ECN_DEMAND_CWR, TCP_ECN_OK, tcb_t,
)

# What the walk over the retransmit queue finds out.
cdef struct clean_t:
    int flag
    uint32_t reord              # lowest never retransmitted, never SACKed sequence acknowledged
    uint32_t pkts_acked
    bint has_ackt
    ns_t first_ackt             # send times of the first and last such record
    ns_t last_ackt
    bint fully_acked            # the last record is gone as a whole


# ---- windows and timestamps --------------------------------------------------------------------------------------------------------
cdef inline void tcp_snd_una_update(tcb_t* sk, uint32_t ack) noexcept nogil:
    sk.bytes_acked += ack - sk.snd_una
    sk.snd_una = ack


cdef inline bint tcp_may_update_window(tcb_t* sk, uint32_t ack, uint32_t ack_seq, uint32_t nwin) noexcept nogil:
    """Newer by acknowledgment or sequence; of equal age, a larger window wins, and a closed one is believed."""
    return (after(ack, sk.snd_una) or after(ack_seq, sk.snd_wl1)
            or (ack_seq == sk.snd_wl1 and (nwin > sk.snd_wnd or nwin == 0)))


cdef inline int tcp_ack_update_window(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    cdef uint32_t nwin = s.wnd
    cdef int flag = 0
    if not s.flags & TH_SYN:
        nwin <<= sk.snd_wscale
    if tcp_may_update_window(sk, s.ack, s.seq, nwin):
        flag = FLAG_WIN_UPDATE
        sk.snd_wl1 = s.seq
        if sk.snd_wnd != nwin:
            sk.snd_wnd = nwin
            sk.pred_flags = 0
            tcp_fast_path_check(e, sk)
            if not sq_wq_empty(sk):
                tcp_slow_start_after_idle_check(e, sk)
            if nwin > sk.max_window:
                sk.max_window = nwin
                tcp_sync_mss(e, sk, sk.pmtu)
    tcp_snd_una_update(sk, s.ack)
    return flag


cdef inline void tcp_replace_ts_recent(engine_t* e, tcb_t* sk, uint32_t seq) noexcept nogil:
    """RFC 7323 4.3: only a segment that begins at or before what was last acknowledged sets TS.Recent."""
    if sk.saw_tstamp and not after(seq, sk.rcv_wup) and tcp_paws_check(e, sk.ts_recent, sk.ts_recent_stamp, sk.rcv_tsval, 0):
        sk.ts_recent = sk.rcv_tsval
        sk.ts_recent_stamp = tcp_clock_s(e)


# ---- ECN ---------------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_ecn_accept_cwr(tcb_t* sk, const seg_t* s) noexcept nogil:
    """The peer has reduced its window: stop echoing. It may be down to one packet, so data with CWR is acknowledged at once."""
    if unlikely(s.flags & TH_CWR) and sk.ecn_flags & TCP_ECN_OK:
        sk.ecn_flags &= ~<uint8_t> TCP_ECN_DEMAND_CWR
        if s.seq != s.end_seq:
            sk.ack_pending |= ICSK_ACK_NOW


cdef inline bint tcp_ecn_rcv_ecn_echo(tcb_t* sk, const seg_t* s) noexcept nogil:
    return s.flags & (TH_ECE | TH_SYN) == TH_ECE and sk.ecn_flags & TCP_ECN_OK


# ---- what is acknowledged ------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_tso_acked(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Part of a record is acknowledged: cut it off; returns the packets that were."""
    cdef srec_t* r = sr_at(e, i)
    cdef uint32_t pcount = r.pcount
    sq_trim_head(e, sk, i, sk.snd_una - r.seq)
    return pcount - r.pcount


cdef inline void tcp_clean_one(engine_t* e, tcb_t* sk, srec_t* r, uint8_t sacked, uint32_t start, uint32_t pcount, bint ece_ack, sack_state_t* state,
                               clean_t* c) noexcept nogil:
    """Account for pcount packets, beginning at start, that the cumulative ACK covers."""
    if unlikely(sacked & SR_ANY_RETRANS):
        if sacked & SR_RETRANS:
            sk.retrans_out -= pcount
        c.flag |= FLAG_RETRANS_DATA_ACKED
    elif not sacked & SR_SACKED:
        c.last_ackt = r.tx_time
        if not c.has_ackt:
            c.first_ackt = r.tx_time
            c.has_ackt = True
        if before(start, c.reord):
            c.reord = start
        if not after(r.end_seq, sk.high_seq):
            c.flag |= FLAG_ORIG_SACK_ACKED
    if unlikely(sacked & SR_SACKED):
        sk.sacked_out -= pcount
    elif tcp_is_sack(sk):
        tcp_count_delivered(sk, pcount, ece_ack)
        if not tcp_skb_spurious_retrans(e, sk, r):
            tcp_rack_advance(e, sk, sacked, r.end_seq, r.tx_time)
    if unlikely(sacked & SR_LOST):
        sk.lost_out -= pcount
    sk.packets_out -= pcount
    c.pkts_acked += pcount
    tcp_rate_skb_delivered(sk, r, state.rate)
    if unlikely(r.flags & TH_SYN):
        # Our SYN is no data: it must not open the window, and its retransmission does not belong to the transfer.
        c.flag |= FLAG_SYN_ACKED
        sk.retrans_stamp = 0
    else:
        c.flag |= FLAG_DATA_ACKED


cdef inline void tcp_clean_walk(engine_t* e, tcb_t* sk, uint32_t prior_snd_una, bint ece_ack, sack_state_t* state,
                                clean_t* c) noexcept nogil:
    """Take off the retransmit queue what SND.UNA has passed."""
    cdef idx_t i = sq_rtx_head(sk)
    cdef srec_t* r
    cdef uint32_t start
    cdef uint32_t pcount
    while i:
        r = sr_at(e, i)
        start = r.seq
        if unlikely(after(r.end_seq, sk.snd_una)):
            if r.pcount == 1 or not after(sk.snd_una, r.seq):
                return
            pcount = tcp_tso_acked(e, sk, i)
            if pcount == 0:
                return
            c.fully_acked = False
        else:
            pcount = r.pcount
        tcp_clean_one(e, sk, r, r.sacked, start, pcount, ece_ack, state, c)
        if unlikely(r.tstamp_flags):
            tcp_ack_tstamp(e, sk, r, prior_snd_una)
        if unlikely(not c.fully_acked):
            return
        sq_unlink_free(e, sk, i)
        i = sq_rtx_head(sk)


cdef inline bint tcp_ack_was_delayed(tcb_t* sk, const clean_t* c, uint32_t prior_sacked, uint32_t prior_snd_una,
                                     const sack_state_t* state) noexcept nogil:
    """A single small packet, alone under way: a receiver may have held its ACK back, so the sample may be too long."""
    return (c.pkts_acked == 1 and c.fully_acked and prior_sacked == 0 and sk.snd_una - prior_snd_una < sk.mss_cache
            and state.rate.prior_delivered + 1 == sk.delivered and not c.flag & (FLAG_CA_ALERT | FLAG_SYN_ACKED))


cdef inline bint tcp_clean_rtt(engine_t* e, tcb_t* sk, uint32_t prior_sacked, uint32_t prior_snd_una, sack_state_t* state, clean_t* c,
                               int64_t* sack_rtt_us) noexcept nogil:
    """The round trip that this ACK shows. True: RTO was computed anew."""
    cdef uint64_t now = tcp_mstamp(e)
    cdef int64_t seq_rtt_us = -1
    cdef int64_t ca_rtt_us = -1
    sack_rtt_us[0] = -1
    if c.has_ackt and not c.flag & FLAG_RETRANS_DATA_ACKED:
        seq_rtt_us = tcp_stamp_us_delta(now, us_of(c.first_ackt))
        ca_rtt_us = tcp_stamp_us_delta(now, us_of(c.last_ackt))
        if tcp_ack_was_delayed(sk, c, prior_sacked, prior_snd_una, state):
            c.flag |= FLAG_ACK_MAYBE_DELAYED
    if unlikely(state.has_sackt):
        sack_rtt_us[0] = tcp_stamp_us_delta(now, us_of(state.first_sackt))
        ca_rtt_us = tcp_stamp_us_delta(now, us_of(state.last_sackt))
    return tcp_ack_update_rtt(e, sk, c.flag, seq_rtt_us, sack_rtt_us[0], ca_rtt_us, state.rate)


cdef inline void tcp_clean_acked(engine_t* e, tcb_t* sk, uint32_t prior_fack, bint ece_ack, clean_t* c) noexcept nogil:
    """Something new was acknowledged."""
    c.flag |= FLAG_SET_XMIT_TIMER
    if unlikely(sk.mtup_probe_size) and not after(sk.los.mtup_probe_seq_end, sk.snd_una):
        tcp_mtup_probe_success(e, sk)
    if tcp_is_reno(sk):
        tcp_remove_reno_sacks(e, sk, <int> c.pkts_acked, ece_ack)
        # Without SACK nothing shows that it was not the retransmission that made the progress.
        if c.flag & FLAG_RETRANS_DATA_ACKED:
            c.flag &= ~FLAG_ORIG_SACK_ACKED
    elif unlikely(before(c.reord, prior_fack)):
        tcp_check_sack_reordering(e, sk, c.reord, False)


cdef inline int tcp_clean_rtx_queue(engine_t* e, tcb_t* sk, uint32_t prior_fack, uint32_t prior_snd_una, sack_state_t* state,
                                    bint ece_ack) noexcept nogil:
    """Remove acknowledged records; RTT, reordering, the congestion control's pkts_acked. Returns FLAG_* to add."""
    cdef uint32_t prior_sacked = sk.sacked_out
    cdef ack_sample_t sample
    cdef clean_t c
    cdef int64_t sack_rtt_us
    cdef bint rtt_update
    cdef idx_t head
    memset(&c, 0, sizeof(clean_t))
    c.reord = sk.snd_nxt
    c.fully_acked = True
    tcp_clean_walk(e, sk, prior_snd_una, ece_ack, state, &c)
    head = sq_rtx_head(sk)
    if head == 0:
        tcp_chrono_stop(e, sk, CHRONO_BUSY)
        if sk.sq_head == 0 and sk.snd.size:
            sk_rings_idle(e, sk)
    elif unlikely(sr_at(e, head).sacked & SR_SACKED):
        c.flag |= FLAG_SACK_RENEGING
    if between(sk.snd_up, prior_snd_una, sk.snd_una):
        sk.snd_up = sk.snd_una
    rtt_update = tcp_clean_rtt(e, sk, prior_sacked, prior_snd_una, state, &c, &sack_rtt_us)
    if likely(c.flag & FLAG_ACKED):
        tcp_clean_acked(e, sk, prior_fack, ece_ack, &c)
    elif (head != 0 and rtt_update and sack_rtt_us >= 0
            and sack_rtt_us > <int64_t> tcp_stamp_us_delta(tcp_mstamp(e), us_of(sr_at(e, head).tx_time))):
        # The RTT was measured on something sent before the head's last transmission: the timer may start again from that.
        c.flag |= FLAG_SET_XMIT_TIMER
    sample.pkts_acked = c.pkts_acked
    sample.rtt_us = state.rate.rtt_us
    sample.in_flight = sk.mss_cache * (sk.delivered - state.rate.prior_delivered)
    cc_pkts_acked(e, sk, &sample)
    if sk.packets_out == 0 and tcp_is_sack(sk):
        # Nothing is out, so nothing can be marked; see tcp_verify_queue for what may have leaked.
        sk.lost_out = 0
        sk.sacked_out = 0
        sk.retrans_out = 0
    return c.flag


# ---- after the queue -----------------------------------------------------------------------------------------------------------------
cdef inline void tcp_ack_probe(engine_t* e, tcb_t* sk) noexcept nogil:
    """Nothing is out. If the head of the write queue now fits the window, probing is over (the caller pushes); else the next probe counts
    from this answer."""
    cdef ns_t when
    if sk.send_head == 0:
        return
    if not after(sr_at(e, sk.send_head).end_seq, tcp_wnd_end(sk)):
        sk.backoff = 0
        if sk.los.probes_tstamp:
            sk_los(e, sk).probes_tstamp = 0
        tcp_clear_retrans_timer(e, sk)
    else:
        when = tcp_clamp_probe0_to_user_timeout(e, sk, tcp_probe0_when(e, sk))
        tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_PROBE0, when)


cdef inline bint tcp_ack_is_dubious(tcb_t* sk, int flag) noexcept nogil:
    return not flag & FLAG_NOT_DUP or flag & FLAG_CA_ALERT or sk.ca_state != TCP_CA_OPEN


cdef inline bint tcp_may_raise_cwnd(engine_t* e, tcb_t* sk, int flag) noexcept nogil:
    """With more reordering than usual, SACKed packets count as progress too, or the window would stall until the hole is filled."""
    if unlikely(<int64_t> sk.reordering > e.cfg.tcp_reordering):
        return (flag & FLAG_FORWARD_PROGRESS) != 0
    return (flag & FLAG_DATA_ACKED) != 0


cdef inline void tcp_cong_control(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t acked_sacked, int flag, const rate_sample_t* rs) noexcept nogil:
    """The window's turn, once all is known about this ACK."""
    if unlikely(cc_has_cong_control(e, sk)):
        cc_cong_control(e, sk, ack, <uint32_t> flag, rs)
        return
    if tcp_in_cwnd_reduction(sk):
        tcp_cwnd_reduction(sk, <int> acked_sacked, rs.losses, (flag & FLAG_SND_UNA_ADVANCED) != 0)
    elif tcp_may_raise_cwnd(e, sk, flag):
        cc_cong_avoid(e, sk, ack, acked_sacked)
    tcp_update_pacing_rate(e, sk)


cdef inline void tcp_process_tlp_ack(engine_t* e, tcb_t* sk, uint32_t ack, int flag) noexcept nogil:
    """Was the loss probe needed (RFC 8985 7.4)? If it repaired a loss, that loss must cost window as any other."""
    if before(ack, sk.tlp_high_seq):
        return
    if not sk.tlp_retrans or flag & FLAG_DSACK_TLP:
        sk.tlp_high_seq = 0
    elif after(ack, sk.tlp_high_seq):
        tcp_init_cwnd_reduction(e, sk)
        tcp_set_ca_state(e, sk, TCP_CA_CWR)
        tcp_end_cwnd_reduction(e, sk)
        tcp_try_keep_open(e, sk)
        mib_inc(&e.stats, MIB_TcpExtTCPLossProbeRecovery)
    elif not flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DATA_SACKED):
        sk.tlp_high_seq = 0         # a duplicate ACK: original and probe both arrived


cdef inline void tcp_in_ack_event(engine_t* e, tcb_t* sk, int flag) noexcept nogil:
    cdef uint32_t what = 0
    if flag & FLAG_WIN_UPDATE:
        what |= CA_ACK_WIN_UPDATE
    if flag & FLAG_SLOWPATH:
        what |= CA_ACK_SLOWPATH
        if flag & FLAG_ECE:
            what |= CA_ACK_ECE
    cc_in_ack_event(e, sk, what)


cdef inline uint32_t tcp_newly_delivered(engine_t* e, tcb_t* sk, uint32_t prior_delivered, int flag) noexcept nogil:
    cdef uint32_t delivered = sk.delivered - prior_delivered
    mib_add(&e.stats, MIB_TcpExtTCPDelivered, delivered)
    if flag & FLAG_ECE:
        mib_add(&e.stats, MIB_TcpExtTCPDeliveredCE, delivered)
    return delivered


# ---- the ACK -------------------------------------------------------------------------------------------------------------------------
cdef inline int tcp_ack_old(engine_t* e, tcb_t* sk, const seg_t* s, int flag, sack_state_t* state, uint32_t delivered) noexcept nogil:
    """An ACK from before SND.UNA: its SACK blocks may still be news."""
    cdef int rexmit = REXMIT_NONE
    if not s.n_sack or not tcp_is_sack(sk):
        return 0
    flag |= tcp_sacktag_write_queue(e, sk, s, sk.snd_una, state)
    if state.sack_delivered:
        tcp_count_delivered(sk, state.sack_delivered, (flag & FLAG_ECE) != 0)
    tcp_fastretrans_alert(e, sk, sk.snd_una, 0, &flag, &rexmit)
    tcp_newly_delivered(e, sk, delivered, flag)
    tcp_xmit_recovery(e, sk, rexmit)
    return 0


cdef inline int tcp_ack_no_queue(engine_t* e, tcb_t* sk, const seg_t* s, int flag, uint32_t prior_snd_una, uint32_t delivered) noexcept nogil:
    """Nothing was out: only the window and D-SACKs matter."""
    cdef int rexmit = REXMIT_NONE
    tcp_in_ack_event(e, sk, flag)
    if unlikely(flag & FLAG_DSACKING_ACK):
        tcp_fastretrans_alert(e, sk, prior_snd_una, 0, &flag, &rexmit)
        tcp_newly_delivered(e, sk, delivered, flag)
    tcp_ack_probe(e, sk)
    if sk.tlp_high_seq:
        tcp_process_tlp_ack(e, sk, s.ack, flag)
    return 1


cdef inline int tcp_ack_advance(engine_t* e, tcb_t* sk, const seg_t* s, int flag, uint32_t prior_snd_una, sack_state_t* state) noexcept nogil:
    """Window and SND.UNA, SACK, ECE. Returns the flags with what was found."""
    if flag & (FLAG_SLOWPATH | FLAG_SND_UNA_ADVANCED) == FLAG_SND_UNA_ADVANCED:
        # Header prediction: the window is the known one.
        sk.snd_wl1 = s.seq
        tcp_snd_una_update(sk, s.ack)
        mib_inc(&e.stats, MIB_TcpExtTCPHPAcks)
        return flag | FLAG_WIN_UPDATE
    if s.seq != s.end_seq:
        flag |= FLAG_DATA
    else:
        mib_inc(&e.stats, MIB_TcpExtTCPPureAcks)
    flag |= tcp_ack_update_window(e, sk, s)
    if unlikely(s.n_sack) and tcp_is_sack(sk):
        flag |= tcp_sacktag_write_queue(e, sk, s, prior_snd_una, state)
    if tcp_ecn_rcv_ecn_echo(sk, s):
        flag |= FLAG_ECE
    if state.sack_delivered:
        tcp_count_delivered(sk, state.sack_delivered, (flag & FLAG_ECE) != 0)
    return flag


cdef inline int tcp_ack_process(engine_t* e, tcb_t* sk, const seg_t* s, int flag, uint32_t prior_snd_una, uint32_t prior_fack, bint is_sack_reneg,
                                uint32_t delivered, uint32_t lost, sack_state_t* state) noexcept nogil:
    """Packets were out: clean the queue, run the state machine, the congestion control, and retransmit."""
    cdef int rexmit = REXMIT_NONE
    cdef int num_dupack = 0
    flag |= tcp_clean_rtx_queue(e, sk, prior_fack, prior_snd_una, state, (flag & FLAG_ECE) != 0)
    tcp_rack_update_reo_wnd(e, sk, state.rate)
    tcp_in_ack_event(e, sk, flag)
    if sk.tlp_high_seq:
        tcp_process_tlp_ack(e, sk, s.ack, flag)
    if unlikely(tcp_ack_is_dubious(sk, flag)):
        if not flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DSACKING_ACK):
            num_dupack = 1
        tcp_fastretrans_alert(e, sk, prior_snd_una, num_dupack, &flag, &rexmit)
    if flag & FLAG_SET_XMIT_TIMER and not tcp_schedule_loss_probe(e, sk, True):
        tcp_rearm_rto(e, sk)
    delivered = tcp_newly_delivered(e, sk, delivered, flag)
    state.rate.is_ack_delayed = (flag & FLAG_ACK_MAYBE_DELAYED) != 0
    tcp_rate_gen(e, sk, delivered, <int> (sk.lost - lost), is_sack_reneg, state.rate)
    tcp_cong_control(e, sk, s.ack, delivered, flag, state.rate)
    tcp_xmit_recovery(e, sk, rexmit)
    tcp_verify_queue(e, sk)
    return 1


cdef inline int tcp_ack(engine_t* e, tcb_t* sk, const seg_t* s, int flag) noexcept nogil:
    cdef rate_sample_t rs
    cdef sack_state_t state
    cdef uint32_t prior_snd_una = sk.snd_una
    cdef uint32_t prior_packets = sk.packets_out
    cdef uint32_t delivered = sk.delivered
    cdef uint32_t lost = sk.lost
    cdef bint is_sack_reneg = sk.is_sack_reneg
    cdef uint32_t prior_fack
    cdef uint64_t reach
    memset(&rs, 0, sizeof(rate_sample_t))
    memset(&state, 0, sizeof(sack_state_t))
    state.rate = &rs
    if unlikely(before(s.ack, prior_snd_una)):
        # RFC 5961 5.2: a blind attacker's guess lies further back than any ACK that can still be under way.
        reach = sk.max_window if sk.max_window < sk.bytes_acked else sk.bytes_acked
        if before(s.ack, prior_snd_una - <uint32_t> reach):
            if not flag & FLAG_NO_CHALLENGE_ACK:
                tcp_send_challenge_ack(e, sk)
            return -DROP_TCP_TOO_OLD_ACK
        return tcp_ack_old(e, sk, s, flag, &state, delivered)
    if unlikely(after(s.ack, sk.snd_nxt)):
        if not flag & FLAG_NO_CHALLENGE_ACK:
            tcp_send_challenge_ack(e, sk)
        return -DROP_TCP_ACK_UNSENT_DATA
    if after(s.ack, prior_snd_una):
        flag |= FLAG_SND_UNA_ADVANCED
        sk.retransmits = 0
    prior_fack = tcp_highest_sack_seq(e, sk) if tcp_is_sack(sk) else sk.snd_una
    rs.prior_in_flight = tcp_packets_in_flight(sk)
    if flag & FLAG_UPDATE_TS_RECENT:
        tcp_replace_ts_recent(e, sk, s.seq)
    flag = tcp_ack_advance(e, sk, s, flag, prior_snd_una, &state)
    tcp_ecn_accept_cwr(sk, s)
    sk.sk_err_soft = 0
    sk.probes_out = 0
    sk.rcv_tstamp = e.now
    if prior_packets == 0:
        return tcp_ack_no_queue(e, sk, s, flag, prior_snd_una, delivered)
    return tcp_ack_process(e, sk, s, flag, prior_snd_una, prior_fack, is_sack_reneg, delivered, lost, &state)


# ---- the transfer begins -------------------------------------------------------------------------------------------------------------
cdef inline void tcp_init_congestion(engine_t* e, tcb_t* sk, bint passive) noexcept nogil:
    """Initial window: one packet if more than one SYN(-ACK) was lost for real (facts D11), else the route's or 10."""
    if unlikely(sk.los.total_retrans > 1) and sk.undo_marker:
        sk.snd_cwnd = 1
    else:
        sk.snd_cwnd = tcp_init_cwnd(e, sk)
    sk.snd_cwnd_stamp = e.now
    if hooked(e.hooks):
        connhook_established(e, sk, passive)
    if not sk.ca_initialized:
        cc_init(e, sk)


cdef inline void tcp_init_transfer(engine_t* e, tcb_t* sk, bint passive) noexcept nogil:
    """The handshake is over (or, with Fast Open, data may flow): metrics, windows, congestion control, buffers. A hook may choose another
    window, or refuse a passive connection (SF_REFUSED): the caller looks."""
    tcp_mtup_init(e, sk)
    tcp_init_metrics(e, sk)
    tcp_init_congestion(e, sk, passive)
    if not sk.userlocks & SOCK_SNDBUF_LOCK:
        tcp_sndbuf_expand(e, sk)
    tcp_init_rcv_space(e, sk)
