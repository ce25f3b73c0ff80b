# The congestion window's vocabulary: packets in flight, slow start, growth, and what an ACK tells (layer: above sendq, below cc).
#
# RFC 5681, 6675 (pipe), 7661 (is the window the limit?). Linux counterparts: tcp_slow_start, tcp_cong_avoid_ai,
# tcp_is_cwnd_limited, tcp_current_ssthresh, struct rate_sample. Nothing here dispatches to a congestion control;
# every module of them and the recovery code use it. Windows count packets of mss_cache.

from ustack.core.types cimport int32_t, int64_t, ns_t, uint8_t, uint32_t, uint64_t
from ustack.core.rtt cimport minmax_get
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport TCP_CA_CWR, TCP_CA_RECOVERY, TCP_INFINITE_SSTHRESH, tcb_t

cdef enum:
    # cc_cwnd_event
    CA_EVENT_TX_START = 0       # first transmission when no packets are in flight
    CA_EVENT_CWND_RESTART = 1   # window was cut after idle
    CA_EVENT_COMPLETE_CWR = 2   # end of a reduction
    CA_EVENT_LOSS = 3           # retransmission timeout
    CA_EVENT_ECN_NO_CE = 4      # received data without, with CE
    CA_EVENT_ECN_IS_CE = 5
    # cc_in_ack_event
    CA_ACK_SLOWPATH = 1
    CA_ACK_WIN_UPDATE = 2
    CA_ACK_ECE = 4

cdef struct rate_sample_t:      # delivery rate sample of one ACK (rate.pxd)
    uint64_t prior_mstamp       # us: start of the interval, 0 = no sample
    uint32_t prior_delivered    # tcb.delivered at that time
    uint32_t prior_delivered_ce
    int32_t delivered           # packets over the interval; -1 = invalid
    int32_t delivered_ce
    int64_t interval_us         # -1 = invalid
    uint32_t snd_interval_us
    uint32_t rcv_interval_us
    int64_t rtt_us              # of the last packet (s)acked; -1 = none
    int32_t losses              # packets marked lost by this ACK
    uint32_t acked_sacked       # packets newly (s)acked
    uint32_t prior_in_flight    # before this ACK
    uint32_t last_end_seq
    uint8_t is_app_limited
    uint8_t is_retrans
    uint8_t is_ack_delayed

cdef struct ack_sample_t:       # what cc_pkts_acked gets
    uint32_t pkts_acked
    int64_t rtt_us
    uint32_t in_flight          # bytes


# ---- time as the congestion controls count it -------------------------------------------------------------------------------
cdef inline uint32_t jiffies_at(engine_t* e, ns_t t) noexcept nogil:
    """The tick that time t falls into; never 0 in practice: modules keep 0 for "not set"."""
    return <uint32_t> ((t + e.tick_phase) // e.tick) + 1


cdef inline uint32_t tcp_jiffies32(engine_t* e) noexcept nogil:
    return jiffies_at(e, e.now)


cdef inline uint32_t tcp_hz(engine_t* e) noexcept nogil:
    return <uint32_t> (1000000000 // e.tick)


cdef inline uint64_t us_of(ns_t t) noexcept nogil:
    """A time in whole microseconds; never 0, which means "none" in samples, though a virtual clock may start at 0."""
    return <uint64_t> t // 1000 + 1


cdef inline uint64_t tcp_mstamp(engine_t* e) noexcept nogil:
    """Microseconds, as every RTT and rate is measured."""
    return us_of(e.now)


cdef inline uint32_t tcp_stamp_us_delta(uint64_t t1, uint64_t t0) noexcept nogil:
    """t1 - t0 in us, not negative."""
    return <uint32_t> (t1 - t0) if t1 > t0 else 0


# ---- packets ----------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_is_reno(const tcb_t* sk) noexcept nogil:
    return sk.sack_ok == 0


cdef inline uint32_t tcp_min_rtt(tcb_t* sk) noexcept nogil:
    """Windowed minimum in us; ~0 before the first sample."""
    return minmax_get(&sk.rtt_min)


# ---- the window ---------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_in_slow_start(tcb_t* sk) noexcept nogil:
    return sk.snd_cwnd < sk.snd_ssthresh


cdef inline bint tcp_in_cwnd_reduction(tcb_t* sk) noexcept nogil:
    return sk.ca_state == TCP_CA_CWR or sk.ca_state == TCP_CA_RECOVERY


cdef inline uint32_t tcp_current_ssthresh(tcb_t* sk) noexcept nogil:
    """ssthresh to come back to if what is about to happen is undone: at least 3/4 of the window, unless a reduction is under way."""
    if tcp_in_cwnd_reduction(sk):
        return sk.snd_ssthresh
    return u32_max(sk.snd_ssthresh, (sk.snd_cwnd >> 1) + (sk.snd_cwnd >> 2))


cdef inline bint tcp_is_cwnd_limited(tcb_t* sk) noexcept nogil:
    """May the window grow? In slow start up to twice what was ever in flight, otherwise only if it was the limit."""
    if sk.is_cwnd_limited:
        return True
    if tcp_in_slow_start(sk):
        return sk.snd_cwnd < 2 * sk.max_packets_out
    return False


cdef inline uint32_t tcp_slow_start(tcb_t* sk, uint32_t acked) noexcept nogil:
    """Grow by acked, at most to ssthresh; returns what is left for congestion avoidance."""
    cdef uint32_t cwnd = u32_min(sk.snd_cwnd + acked, sk.snd_ssthresh)
    acked -= cwnd - sk.snd_cwnd
    sk.snd_cwnd = u32_min(cwnd, sk.snd_cwnd_clamp)
    return acked


cdef inline void tcp_cong_avoid_ai(tcb_t* sk, uint32_t w, uint32_t acked) noexcept nogil:
    """Additive increase: one packet for every w acknowledged."""
    cdef uint32_t delta
    if sk.snd_cwnd_cnt >= w:
        # Credits gathered at a larger w: they become one packet now, not a burst.
        sk.snd_cwnd_cnt = 0
        sk.snd_cwnd += 1
    sk.snd_cwnd_cnt += acked
    if sk.snd_cwnd_cnt >= w:
        delta = sk.snd_cwnd_cnt // w
        sk.snd_cwnd_cnt -= delta * w
        sk.snd_cwnd += delta
    sk.snd_cwnd = u32_min(sk.snd_cwnd, sk.snd_cwnd_clamp)


cdef inline void tcp_update_pacing_rate(engine_t* e, tcb_t* sk) noexcept nogil:
    """Bytes per second: 2 * cwnd / srtt while far below ssthresh, 1.2 * otherwise (tcp_pacing_*_ratio). It sizes TSO packets even
    where nothing is paced (facts J9, J29)."""
    cdef uint64_t rate = <uint64_t> sk.mss_cache * ((1000000 // 100) << 3)
    if sk.snd_cwnd < sk.snd_ssthresh // 2:
        rate *= <uint64_t> e.cfg.tcp_pacing_ss_ratio
    else:
        rate *= <uint64_t> e.cfg.tcp_pacing_ca_ratio
    rate *= u32_max(sk.snd_cwnd, sk.packets_out)
    if sk.rtt.srtt_us:
        rate //= sk.rtt.srtt_us
    sk.pacing_rate = rate if rate < sk.opt.max_pacing_rate else sk.opt.max_pacing_rate
