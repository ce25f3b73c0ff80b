# From an ACK to the RTO: which time difference counts as a round trip (layer: above loss, below recovery and ack).
#
# RFC 6298 (Karn: never from a retransmission), RFC 7323 4 (timestamps only when new data is acknowledged). Facts D13, J4.
# Linux: tcp_ack_update_rtt, tcp_update_rtt_min, tcp_set_rto, tcp_synack_rtt_meas. The estimator itself is rtt.pxd.
# Callers: ack; request and input for the handshake's sample.

from ustack.core.types cimport NS_PER_MS, NS_PER_US, int64_t, uint32_t
from ustack.core.connhook cimport connhook_rtt
from ustack.core.cwnd cimport rate_sample_t, tcp_min_rtt
from ustack.core.hooks cimport hooked
from ustack.core.output cimport tcp_rto_max
from ustack.core.route cimport sk_rto_min
from ustack.core.rtt cimport minmax_running_min, rtt_rto, rtt_sample
from ustack.core.sack cimport FLAG_ACKED, FLAG_ACK_MAYBE_DELAYED, FLAG_SYN_ACKED
from ustack.core.access cimport tcp_clock_ms
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t


cdef inline int64_t tcp_rtt_tsopt_us(engine_t* e, tcb_t* sk, uint32_t min_delta_ms) noexcept nogil:
    """Round trip by the echoed timestamp, in whole milliseconds; -1 if the echo makes no sense."""
    cdef uint32_t delta = tcp_clock_ms(e) - sk.rcv_tsecr
    if delta >= 0x7fffffff // 1000:
        return -1
    return <int64_t> (delta if delta else min_delta_ms) * 1000


cdef inline void tcp_update_rtt_min(engine_t* e, tcb_t* sk, uint32_t rtt_us, int flag) noexcept nogil:
    """Windowed minimum (tcp_min_rtt_wlen). A sample that a delayed ACK may have lengthened can only confirm it."""
    if flag & FLAG_ACK_MAYBE_DELAYED and rtt_us > tcp_min_rtt(sk):
        return
    minmax_running_min(&sk.rtt_min, <uint32_t> (e.cfg.tcp_min_rtt_wlen * 1000), <uint32_t> (e.now // NS_PER_MS),
                       rtt_us if rtt_us else <uint32_t> (e.tick // NS_PER_US))


cdef inline bint tcp_ack_update_rtt(engine_t* e, tcb_t* sk, int flag, int64_t seq_rtt_us, int64_t sack_rtt_us, int64_t ca_rtt_us,
                                    rate_sample_t* rs) noexcept nogil:
    """Take a sample: from the oldest packet acknowledged and never retransmitted, else from a SACKed one, else from the timestamp. -1 = none.
    ca_rtt_us is that of the newest. True: RTO has been computed anew and backoff is over."""
    if seq_rtt_us < 0:
        seq_rtt_us = sack_rtt_us
    if seq_rtt_us < 0 and sk.saw_tstamp and sk.rcv_tsecr and flag & FLAG_ACKED:
        ca_rtt_us = tcp_rtt_tsopt_us(e, sk, 1)
        seq_rtt_us = ca_rtt_us
    rs.rtt_us = ca_rtt_us
    if seq_rtt_us < 0:
        return False
    tcp_update_rtt_min(e, sk, <uint32_t> ca_rtt_us, flag)
    rtt_sample(&sk.rtt, seq_rtt_us, sk.snd_una, sk.snd_nxt, <uint32_t> (sk_rto_min(e, sk) // NS_PER_US))
    sk.rto = rtt_rto(&sk.rtt, e.tick, 0, tcp_rto_max(e, sk))
    sk.backoff = 0
    if hooked(e.hooks):
        connhook_rtt(e, sk, <uint32_t> seq_rtt_us)
    return True


cdef inline void tcp_synack_rtt_meas(engine_t* e, tcb_t* sk, int64_t rtt_us) noexcept nogil:
    """The handshake's sample: time since the only SYN-ACK, or -1, when only a timestamp can tell."""
    cdef rate_sample_t rs
    tcp_ack_update_rtt(e, sk, FLAG_SYN_ACKED, rtt_us, -1, rtt_us, &rs)
