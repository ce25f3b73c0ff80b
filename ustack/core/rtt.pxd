# Round-trip time, retransmission timeout, windowed minimum and maximum (layer 2).
#
# RFC 6298 with Linux's variance filter: the mean is kept times 8 and the deviation times 4, in microseconds, so
# (srtt_us >> 3) + rttvar_us is SRTT + 4 * RTTVAR. The variance rises at once, falls at most once per round trip, is
# floored at rto_min, and a sample below the mean counts only an eighth as much, so that a falling RTT does not
# raise the RTO (Eifel). srtt_us == 0 means "no sample yet".
# The minmax filter is Kathleen Nichols': the best sample of a sliding window in three samples of memory.

from libc.stdint cimport int64_t, uint32_t

from ustack.core.seqno cimport after, i64_max, i64_min, u32_max
from ustack.core.types cimport NS_PER_US, TICK_NS, likely, ns_t

cdef struct rtt_t:
    uint32_t srtt_us            # << 3
    uint32_t mdev_us            # << 2
    uint32_t mdev_max_us        # largest mdev_us in this round trip
    uint32_t rttvar_us          # what the RTO uses; never below rto_min
    uint32_t rtt_seq            # the round trip ends when this is acknowledged

cdef struct minmax_sample_t:
    uint32_t t
    uint32_t v

cdef struct minmax_t:
    minmax_sample_t s[3]        # best, second best after it, third best after that


cdef inline void rtt_sample(rtt_t* r, int64_t rtt_us, uint32_t snd_una, uint32_t snd_nxt,
                            uint32_t rto_min_us) noexcept nogil:
    cdef int64_t err
    cdef uint32_t srtt = r.srtt_us
    if srtt == 0:
        srtt = <uint32_t>(rtt_us << 3)
        r.mdev_us = <uint32_t>(rtt_us << 1)
        r.rttvar_us = u32_max(r.mdev_us, rto_min_us)
        r.mdev_max_us = r.rttvar_us
        r.rtt_seq = snd_nxt
        r.srtt_us = u32_max(srtt, 1)
        return
    err = rtt_us - (srtt >> 3)
    srtt = <uint32_t>(srtt + err)
    if err < 0:
        err = -err - (r.mdev_us >> 2)
        if err > 0:
            err >>= 3
    else:
        err -= r.mdev_us >> 2
    r.mdev_us = <uint32_t>(r.mdev_us + err)
    if r.mdev_us > r.mdev_max_us:
        r.mdev_max_us = r.mdev_us
        r.rttvar_us = u32_max(r.rttvar_us, r.mdev_max_us)
    if after(snd_una, r.rtt_seq):
        if r.mdev_max_us < r.rttvar_us:
            r.rttvar_us -= (r.rttvar_us - r.mdev_max_us) >> 2
        r.rtt_seq = snd_nxt
        r.mdev_max_us = rto_min_us
    r.srtt_us = u32_max(srtt, 1)


cdef inline ns_t ticks_up(ns_t t, ns_t tick) noexcept nogil:
    # Round up to whole ticks, as the kernel converts microseconds to jiffies. By the usual tick without a division.
    if likely(tick == TICK_NS):
        return (t + TICK_NS - 1) // TICK_NS * TICK_NS
    return (t + tick - 1) // tick * tick


cdef inline ns_t rtt_rto(const rtt_t* r, ns_t tick, ns_t rto_min, ns_t rto_max) noexcept nogil:
    # Without backoff. The floor has no effect while rto_min stays what it was at the samples: rttvar_us holds it.
    cdef int64_t us = <int64_t>(r.srtt_us >> 3) + r.rttvar_us
    return i64_min(i64_max(ticks_up(us * NS_PER_US, tick), rto_min), rto_max)


cdef inline uint32_t minmax_get(const minmax_t* m) noexcept nogil:
    return m.s[0].v


cdef inline uint32_t minmax_reset(minmax_t* m, uint32_t t, uint32_t meas) noexcept nogil:
    cdef int i
    for i in range(3):
        m.s[i].t = t
        m.s[i].v = meas
    return meas


cdef inline uint32_t minmax_age_(minmax_t* m, uint32_t win, minmax_sample_t now) noexcept nogil:
    # The new sample is no better than any kept. Drop what left the window; otherwise make sure that the second and
    # third come from the later quarters, or all three would expire at the same time.
    cdef uint32_t age = now.t - m.s[0].t
    if age > win:
        m.s[0] = m.s[1]
        m.s[1] = m.s[2]
        m.s[2] = now
        if now.t - m.s[0].t > win:
            m.s[0] = m.s[1]
            m.s[1] = m.s[2]
            m.s[2] = now
    elif m.s[1].t == m.s[0].t and age > win // 4:
        m.s[1] = now
        m.s[2] = now
    elif m.s[2].t == m.s[1].t and age > win // 2:
        m.s[2] = now
    return m.s[0].v


cdef inline uint32_t minmax_running_min(minmax_t* m, uint32_t win, uint32_t t, uint32_t meas) noexcept nogil:
    # Window and times in any one unit, modulo 2^32.
    cdef minmax_sample_t now
    now.t = t
    now.v = meas
    if meas <= m.s[0].v or t - m.s[2].t > win:
        return minmax_reset(m, t, meas)
    if meas <= m.s[1].v:
        m.s[1] = now
        m.s[2] = now
    elif meas <= m.s[2].v:
        m.s[2] = now
    return minmax_age_(m, win, now)


cdef inline uint32_t minmax_running_max(minmax_t* m, uint32_t win, uint32_t t, uint32_t meas) noexcept nogil:
    cdef minmax_sample_t now
    now.t = t
    now.v = meas
    if meas >= m.s[0].v or t - m.s[2].t > win:
        return minmax_reset(m, t, meas)
    if meas >= m.s[1].v:
        m.s[1] = now
        m.s[2] = now
    elif meas >= m.s[2].v:
        m.s[2] = now
    return minmax_age_(m, win, now)
