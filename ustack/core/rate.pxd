# Delivery rate samples (layer: above cwnd, below cc and output).
#
# draft-cheng-iccrg-delivery-rate-estimation; Linux counterpart: tcp_rate.c. Every record remembers, when it is sent, how much had been
# delivered and when; when it is (s)acked, the difference gives the rate over the longer of the send and the ACK interval.
# Times in tcb_t and srec_t are ns; the arithmetic is done in whole microseconds, as the kernel's is.
# tcp_rate_skb_sent is called by output for each (re)transmission, before packets_out is raised; the rest by ack and sack.

from ustack.core.types cimport TH_SYN, uint32_t, uint64_t, unlikely
from ustack.core.cwnd cimport rate_sample_t, tcp_min_rtt, tcp_mstamp, tcp_stamp_us_delta, us_of
from ustack.core.records cimport SR_EVER_RETRANS, SR_REPAIRED, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.sendq cimport tcp_packets_in_flight
from ustack.core.seqno cimport after
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t


cdef inline bint tcp_skb_sent_after(uint64_t t1, uint64_t t2, uint32_t seq1, uint32_t seq2) noexcept nogil:
    """Was (t1, seq1) sent after (t2, seq2)? Sequence breaks the tie within one microsecond."""
    return t1 > t2 or (t1 == t2 and after(seq1, seq2))


cdef inline void tcp_rate_skb_sent(engine_t* e, tcb_t* sk, srec_t* r) noexcept nogil:
    """Snapshot at transmission; r.tx_time is set already."""
    if sk.packets_out == 0:
        # Nothing in flight: both intervals start here, or idle time would count as sending time.
        sk.first_tx_mstamp = r.tx_time
        sk.delivered_mstamp = r.tx_time
    r.first_tx = sk.first_tx_mstamp
    r.delivered_time = sk.delivered_mstamp
    r.delivered = sk.delivered
    r.delivered_ce = sk.delivered_ce
    # A SYN comes before any delivery: it gives no sample.
    r.rate_valid = 1 if not r.flags & TH_SYN else 0
    r.app_limited = 1 if sk.app_limited else 0


cdef inline void tcp_rate_skb_delivered(tcb_t* sk, srec_t* r, rate_sample_t* rs) noexcept nogil:
    """A record is (s)acked: of all that this ACK covers, the one sent last gives the sample."""
    if not r.rate_valid:
        return
    if (rs.prior_delivered == 0
            or tcp_skb_sent_after(us_of(r.tx_time), us_of(sk.first_tx_mstamp), r.end_seq, rs.last_end_seq)):
        rs.prior_delivered_ce = r.delivered_ce
        rs.prior_delivered = r.delivered
        rs.prior_mstamp = us_of(r.delivered_time)
        rs.is_app_limited = r.app_limited
        rs.is_retrans = (r.sacked & (SR_RETRANS | SR_EVER_RETRANS | SR_REPAIRED)) != 0
        rs.last_end_seq = r.end_seq
        sk.first_tx_mstamp = r.tx_time
        rs.interval_us = tcp_stamp_us_delta(us_of(r.tx_time), us_of(r.first_tx))
    if r.sacked & SR_SACKED:
        r.rate_valid = 0            # used up: the cumulative ACK must not use it again


cdef inline void tcp_rate_gen(engine_t* e, tcb_t* sk, uint32_t delivered, int lost, bint is_sack_reneg, rate_sample_t* rs) noexcept nogil:
    """Complete the sample of this ACK and remember the best rate for tcp_info."""
    cdef uint32_t snd_us
    cdef uint32_t ack_us
    if sk.app_limited and after(sk.delivered, sk.app_limited):
        sk.app_limited = 0
    if delivered:
        sk.delivered_mstamp = e.now
    rs.acked_sacked = delivered
    rs.losses = lost
    if unlikely(rs.prior_mstamp == 0) or unlikely(is_sack_reneg):
        rs.delivered = -1
        rs.interval_us = -1
        return
    rs.delivered = <int> (sk.delivered - rs.prior_delivered)
    rs.delivered_ce = <int> (sk.delivered_ce - rs.prior_delivered_ce)
    snd_us = <uint32_t> rs.interval_us
    ack_us = tcp_stamp_us_delta(tcp_mstamp(e), rs.prior_mstamp)
    rs.interval_us = snd_us if snd_us > ack_us else ack_us
    rs.snd_interval_us = snd_us
    rs.rcv_interval_us = ack_us
    if <uint64_t> rs.interval_us < tcp_min_rtt(sk):
        rs.interval_us = -1         # shorter than any round trip: a spurious retransmission was measured
        return
    if (not rs.is_app_limited
            or <uint64_t> rs.delivered * sk.rate_interval_us >= <uint64_t> sk.rate_delivered * <uint64_t> rs.interval_us):
        sk.rate_delivered = <uint32_t> rs.delivered
        sk.rate_interval_us = <uint32_t> rs.interval_us
        sk.rate_app_limited = rs.is_app_limited


cdef inline void tcp_rate_check_app_limited(engine_t* e, tcb_t* sk) noexcept nogil:
    """Called when send() has nothing more to send: mark the flight so that its samples do not lower an estimate. The device queue
    holds nothing of ours (facts J9)."""
    cdef uint32_t mark
    if (sk.write_seq - sk.snd_nxt < sk.mss_cache and tcp_packets_in_flight(sk) < sk.snd_cwnd
            and sk.lost_out <= sk.retrans_out):
        mark = sk.delivered + tcp_packets_in_flight(sk)
        sk.app_limited = mark if mark else 1
