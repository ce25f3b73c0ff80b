# Which packets are lost: marks, RACK, the reordering metric, Reno's count of duplicate ACKs (layer: above retrans, below sack).
#
# RFC 8985 (RACK) in the form of Linux's tcp_recovery.c, which since 6.17 is the only detection with SACK; RFC 6582 without it. Facts J7.
# A record is lost when one sent later (by more than the reordering window) has been delivered. Changes marks and counters only;
# what follows from a loss is in recovery.pxd. Invariants:
# - lost_out, sacked_out, retrans_out are the packet sums of the records with that mark (sacked_out without SACK: duplicate ACKs);
# - a record that RACK marked lost leaves the time list until it is retransmitted.
# Callers: sack, recovery, ack, timers.

from ustack.core.types cimport NS_PER_US, idx_t, int32_t, int64_t, ns_t, uint8_t, uint32_t, likely, unlikely
from ustack.core.cwnd cimport rate_sample_t, tcp_min_rtt, tcp_mstamp, tcp_stamp_us_delta, us_of
from ustack.core.pool cimport ustack_assert
from ustack.core.rate cimport tcp_skb_sent_after
from ustack.core.records cimport SR_EVER_RETRANS, SR_LOST, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.retrans cimport tcp_fragment_rtx
from ustack.core.sendq cimport sq_rtx_head, sq_ts_unlink
from ustack.core.seqno cimport after, before, i32_max, u32_max, u32_min
from ustack.core.access cimport jiffies_up, sk_los, sr_at
from ustack.core.sock cimport tcp_reset_xmit_timer
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPLostRetransmit, MIB_TcpExtTCPRenoReorder, MIB_TcpExtTCPSACKReorder, MIB_TcpExtTCPTSReorder, mib_add, mib_inc,
)
from ustack.core.tcb cimport ICSK_TIME_REO_TIMEOUT, TCP_CA_RECOVERY, tcb_t
from ustack.core.xmit cimport tcp_ts_of

cdef extern from *:
    """
    #ifdef USTACK_DEBUG
    #define USTACK_CHECK_QUEUES 1
    #else
    #define USTACK_CHECK_QUEUES 0
    #endif
    """
    const int CHECK_QUEUES "USTACK_CHECK_QUEUES"

cdef enum:
    RACK_STATIC_REO_WND = 2     # bits of tcp_recovery; bit 0 is always on
    RACK_NO_DUPTHRESH = 4
    RACK_RECOVERY_THRESH = 16   # recoveries without DSACK until the reordering window shrinks back
    TCP_TIMEOUT_MIN_US = 2000
    SR_ANY_RETRANS = 0x92       # SR_RETRANS | SR_EVER_RETRANS | SR_REPAIRED


# ---- the send queue as loss detection sees it ------------------------------------------------------------------------------------
cdef inline uint32_t tcp_highest_sack_seq(engine_t* e, tcb_t* sk) noexcept nogil:
    """Where the record above the highest SACKed one begins."""
    if likely(sk.sacked_out == 0):
        return sk.snd_una
    if sk.highest_sack == 0:
        return sk.snd_nxt
    return sr_at(e, sk.highest_sack).seq


cdef inline uint32_t tcp_skb_seglen(const srec_t* r) noexcept nogil:
    """Payload of one packet of the record."""
    return r.len if r.pcount == 1 else r.gso_size


cdef inline bint tcp_any_retrans_done(engine_t* e, tcb_t* sk) noexcept nogil:
    """May a retransmission be under way, counted or not (the head was one once)?"""
    cdef idx_t head
    if sk.retrans_out:
        return True
    head = sq_rtx_head(sk)
    return head != 0 and (sr_at(e, head).sacked & SR_EVER_RETRANS) != 0


cdef inline void tcp_retrans_stamp_cleanup(engine_t* e, tcb_t* sk) noexcept nogil:
    """retrans_stamp belongs to a retransmission that may still be acknowledged."""
    if not tcp_any_retrans_done(e, sk):
        sk.retrans_stamp = 0


cdef inline bint tcp_tsopt_ecr_before(tcb_t* sk, uint32_t when) noexcept nogil:
    """Does this ACK echo a timestamp older than `when`? rcv_tsecr is kept without our offset, 0 = no echo."""
    return sk.saw_tstamp and sk.rcv_tsecr and before(sk.rcv_tsecr, when)


cdef inline bint tcp_skb_spurious_retrans(engine_t* e, tcb_t* sk, const srec_t* r) noexcept nogil:
    """A retransmitted record is acknowledged, but the echo is older than the retransmission: the original did it (Eifel)."""
    return r.sacked & SR_ANY_RETRANS and tcp_tsopt_ecr_before(sk, tcp_ts_of(e, r.tx_time))


cdef inline void tcp_verify_queue(engine_t* e, tcb_t* sk) noexcept nogil:
    """Debug builds: do counters, marks and links agree? Linux warns of the first kind only (tcp_verify_left_out)."""
    cdef uint32_t packets = 0
    cdef uint32_t sacked = 0
    cdef uint32_t lost = 0
    cdef uint32_t retrans = 0
    cdef uint32_t seq = sk.snd_una
    cdef idx_t i = sk.sq_head
    cdef bint sent = i != sk.send_head
    cdef srec_t* r
    ustack_assert(sk.sacked_out + sk.lost_out <= sk.packets_out)
    if CHECK_QUEUES == 0:
        return
    while i:
        r = sr_at(e, i)
        if i == sk.send_head:
            sent = False
        ustack_assert(i == sk.sq_head or r.seq == seq)
        ustack_assert(i != sk.sq_head or not after(r.seq, seq))
        ustack_assert((r.sent != 0) == sent)
        seq = r.end_seq
        if sent:
            packets += r.pcount
            sacked += r.pcount if r.sacked & SR_SACKED else 0
            lost += r.pcount if r.sacked & SR_LOST else 0
            retrans += r.pcount if r.sacked & SR_RETRANS else 0
            ustack_assert(not r.sacked & SR_SACKED or not r.on_ts)
        i = r.next
    ustack_assert(seq == sk.write_seq or sk.sq_head == 0)
    # A timeout after an undo counts a retransmission twice, in Linux too; it is forgotten when the queue runs empty.
    ustack_assert(packets == sk.packets_out and lost == sk.lost_out and retrans <= sk.retrans_out)
    ustack_assert(sk.sack_ok == 0 or sacked == sk.sacked_out)


# ---- marks -------------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_clear_all_retrans_hints(tcb_t* sk) noexcept nogil:
    sk.retrans_hint = 0


cdef inline void tcp_verify_retransmit_hint(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Retransmission starts at the hint: it must not lie above a lost record."""
    if sk.retrans_hint == 0:
        if sk.retrans_out >= sk.lost_out:
            sk.retrans_hint = i
    elif before(sr_at(e, i).seq, sr_at(e, sk.retrans_hint).seq):
        sk.retrans_hint = i


cdef inline void tcp_mark_skb_lost(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """tcp_mark_skb_lost: also a retransmission can be lost again."""
    cdef srec_t* r = sr_at(e, i)
    if r.sacked & SR_SACKED:
        return
    tcp_verify_retransmit_hint(e, sk, i)
    if r.sacked & SR_LOST:
        if r.sacked & SR_RETRANS:
            r.sacked &= ~<uint8_t> SR_RETRANS
            sk.retrans_out -= r.pcount
            mib_add(&e.stats, MIB_TcpExtTCPLostRetransmit, r.pcount)
            sk.lost += r.pcount
    else:
        sk.lost_out += r.pcount
        r.sacked |= SR_LOST
        sk.lost += r.pcount


# ---- reordering ------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_check_sack_reordering(engine_t* e, tcb_t* sk, uint32_t low_seq, bint ts) noexcept nogil:
    """A never retransmitted packet at low_seq was delivered after later ones: the distance is the new metric."""
    cdef uint32_t fack = tcp_highest_sack_seq(e, sk)
    cdef uint32_t mss = sk.mss_cache
    cdef uint32_t metric
    if not before(low_seq, fack):
        return
    metric = fack - low_seq
    if metric > sk.reordering * mss and mss:
        sk.reordering = u32_min((metric + mss - 1) // mss, <uint32_t> e.cfg.tcp_max_reordering)
    sk_los(e, sk).reord_seen += 1
    mib_inc(&e.stats, MIB_TcpExtTCPTSReorder if ts else MIB_TcpExtTCPSACKReorder)


cdef inline bint tcp_limit_reno_sacked(tcb_t* sk) noexcept nogil:
    """More duplicate ACKs than packets that could have caused them? Then packets were reordered, not lost."""
    cdef uint32_t holes = u32_min(u32_max(sk.lost_out, 1), sk.packets_out)
    if sk.sacked_out + holes > sk.packets_out:
        sk.sacked_out = sk.packets_out - holes
        return True
    return False


cdef inline void tcp_check_reno_reordering(engine_t* e, tcb_t* sk, int addend) noexcept nogil:
    if not tcp_limit_reno_sacked(sk):
        return
    sk.reordering = u32_min(sk.packets_out + <uint32_t> addend, <uint32_t> e.cfg.tcp_max_reordering)
    sk_los(e, sk).reord_seen += 1
    mib_inc(&e.stats, MIB_TcpExtTCPRenoReorder)


# ---- what was delivered ------------------------------------------------------------------------------------------------------------
cdef inline void tcp_count_delivered(tcb_t* sk, uint32_t delivered, bint ece_ack) noexcept nogil:
    sk.delivered += delivered
    if unlikely(ece_ack):
        sk.delivered_ce += delivered


cdef inline void tcp_reset_reno_sack(tcb_t* sk) noexcept nogil:
    sk.sacked_out = 0


cdef inline void tcp_add_reno_sack(engine_t* e, tcb_t* sk, uint32_t num_dupack, bint ece_ack) noexcept nogil:
    """Each duplicate ACK stands for one packet that left the network."""
    cdef uint32_t prior = sk.sacked_out
    if num_dupack == 0:
        return
    sk.sacked_out += num_dupack
    tcp_check_reno_reordering(e, sk, 0)
    if <int32_t> (sk.sacked_out - prior) > 0:
        tcp_count_delivered(sk, sk.sacked_out - prior, ece_ack)


cdef inline void tcp_remove_reno_sacks(engine_t* e, tcb_t* sk, int acked, bint ece_ack) noexcept nogil:
    """acked packets were acknowledged: one filled the hole, the others had been counted as duplicate ACKs."""
    if acked > 0:
        tcp_count_delivered(sk, <uint32_t> i32_max(acked - <int> sk.sacked_out, 1), ece_ack)
        if <uint32_t> (acked - 1) >= sk.sacked_out:
            sk.sacked_out = 0
        else:
            sk.sacked_out -= <uint32_t> (acked - 1)
    tcp_check_reno_reordering(e, sk, acked)


# ---- RACK ----------------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_rack_reo_wnd(engine_t* e, tcb_t* sk) noexcept nogil:
    """How much later a packet may still come, us. None while no reordering was seen and the case is clear (recovery, or enough
    SACKed); otherwise quarters of the minimum RTT, more of them while DSACKs tell of spurious retransmissions, at most one SRTT."""
    if sk.los.reord_seen == 0:
        if sk.ca_state >= TCP_CA_RECOVERY:
            return 0
        if sk.sacked_out >= sk.reordering and not e.cfg.tcp_recovery & RACK_NO_DUPTHRESH:
            return 0
    return u32_min((tcp_min_rtt(sk) >> 2) * sk.rack_reo_wnd_steps, sk.rtt.srtt_us >> 3)


cdef inline int32_t tcp_rack_skb_timeout(engine_t* e, tcb_t* sk, const srec_t* r, uint32_t reo_wnd) noexcept nogil:
    """us until the record counts as lost; <= 0: it is."""
    return <int32_t> (sk.rack_rtt_us + reo_wnd - tcp_stamp_us_delta(tcp_mstamp(e), us_of(r.tx_time)))


cdef inline uint32_t tcp_rack_detect_loss(engine_t* e, tcb_t* sk) noexcept nogil:
    """Mark what is lost by now; returns the us after which the rest of the earlier-sent must be looked at again, 0 = nothing left."""
    cdef uint32_t reo_wnd = tcp_rack_reo_wnd(e, sk)
    cdef uint32_t reo_timeout = 0
    cdef int32_t remaining
    cdef idx_t i = sk.ts_head
    cdef idx_t nxt
    cdef srec_t* r
    while i:
        r = sr_at(e, i)
        nxt = r.ts_next
        if r.sacked & SR_LOST and not r.sacked & SR_RETRANS:
            i = nxt
            continue
        if not tcp_skb_sent_after(sk.rack_mstamp_us, us_of(r.tx_time), sk.rack_end_seq, r.end_seq):
            break
        remaining = tcp_rack_skb_timeout(e, sk, r, reo_wnd)
        if remaining <= 0:
            tcp_mark_skb_lost(e, sk, i)
            sq_ts_unlink(e, sk, r)
        else:
            reo_timeout = u32_max(reo_timeout, <uint32_t> remaining)
        i = nxt
    return reo_timeout


cdef inline bint tcp_rack_mark_lost(engine_t* e, tcb_t* sk) noexcept nogil:
    """After an ACK that moved RACK's clock. True: the reordering timer is set, in place of RTO or TLP."""
    cdef uint32_t timeout
    if not sk.rack_advanced:
        return False
    sk.rack_advanced = 0
    timeout = tcp_rack_detect_loss(e, sk)
    if timeout == 0:
        return False
    tcp_reset_xmit_timer(e, sk, ICSK_TIME_REO_TIMEOUT, jiffies_up(e, (<int64_t> timeout + TCP_TIMEOUT_MIN_US) * NS_PER_US))
    return True


cdef inline void tcp_rack_advance(engine_t* e, tcb_t* sk, uint8_t sacked, uint32_t end_seq, ns_t xmit_time) noexcept nogil:
    """A packet was delivered: keep the send time of the one sent last. A retransmission acknowledged sooner than any round trip
    tells nothing: its original may have been meant."""
    cdef uint32_t rtt_us = tcp_stamp_us_delta(tcp_mstamp(e), us_of(xmit_time))
    if rtt_us < tcp_min_rtt(sk) and sacked & SR_ANY_RETRANS:
        return
    sk.rack_advanced = 1
    sk.rack_rtt_us = rtt_us
    if tcp_skb_sent_after(us_of(xmit_time), sk.rack_mstamp_us, end_seq, sk.rack_end_seq):
        sk.rack_mstamp_us = us_of(xmit_time)
        sk.rack_end_seq = end_seq


cdef inline void tcp_rack_update_reo_wnd(engine_t* e, tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    """Adapt the reordering window: one step more per round trip with a DSACK, back to one step after 16 recoveries without."""
    if e.cfg.tcp_recovery & RACK_STATIC_REO_WND or rs.prior_delivered == 0:
        return
    if before(rs.prior_delivered, sk.rack_last_delivered):
        sk.rack_dsack_seen = 0
    if unlikely(sk.rack_dsack_seen):
        sk.rack_reo_wnd_steps = 0xff if sk.rack_reo_wnd_steps >= 0xfe else sk.rack_reo_wnd_steps + 1
        sk.rack_dsack_seen = 0
        sk.rack_last_delivered = sk.delivered
        sk.rack_reo_wnd_persist = RACK_RECOVERY_THRESH
    elif sk.rack_reo_wnd_persist == 0:
        sk.rack_reo_wnd_steps = 1


# ---- without SACK ------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_newreno_mark_lost(engine_t* e, tcb_t* sk, bint snd_una_advanced) noexcept nogil:
    """NewReno: the first packet is lost at the third duplicate ACK, and at each partial ACK of a recovery."""
    cdef idx_t i
    cdef srec_t* r
    if not ((sk.ca_state < TCP_CA_RECOVERY and sk.sacked_out >= sk.reordering)
            or (sk.ca_state == TCP_CA_RECOVERY and snd_una_advanced)):
        return
    i = sq_rtx_head(sk)
    if i == 0:
        return
    r = sr_at(e, i)
    if r.sacked & SR_LOST:
        return
    if r.pcount > 1 and r.len > r.gso_size:
        tcp_fragment_rtx(e, sk, i, r.gso_size, r.gso_size)
    tcp_mark_skb_lost(e, sk, i)
