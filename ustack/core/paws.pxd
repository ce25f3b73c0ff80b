# Tests that a request, a TIME_WAIT record and a socket apply alike to an arriving segment (layer above sock).
#
# RFC 7323 5 (PAWS), RFC 9293 3.10.7.4 (window), facts E1, E2, E9, H4, J22. Linux: tcp_paws_reject, tcp_in_window, tcp_oow_rate_limited.
# Callers: timewait, request, fastopen, input.

from ustack.core.seqno cimport after, before
from ustack.core.access cimport tcp_clock_s
from ustack.core.state cimport engine_t
from ustack.core.stats cimport mib_inc
from ustack.core.types cimport NS_PER_MS, TH_SYN, int32_t, int64_t, ns_t, seg_t, uint32_t

cdef enum:
    PAWS_24DAYS_S = 2073600     # an older ts_recent proves nothing
    PAWS_MSL_S = 60             # a RST is believed once ts_recent is older


cdef inline bint tcp_paws_check(engine_t* e, uint32_t ts_recent, int64_t stamp_s, uint32_t tsval, int32_t window) noexcept nogil:
    # May the segment with this TSval be new?
    if <int32_t>(ts_recent - tsval) <= window:
        return True
    return tcp_clock_s(e) >= stamp_s + PAWS_24DAYS_S or ts_recent == 0


cdef inline bint tcp_paws_reject(engine_t* e, uint32_t ts_recent, int64_t stamp_s, uint32_t tsval, bint rst) noexcept nogil:
    if tcp_paws_check(e, ts_recent, stamp_s, tsval, 0):
        return False
    return not (rst and tcp_clock_s(e) >= stamp_s + PAWS_MSL_S)


cdef inline bint tcp_in_window(uint32_t seq, uint32_t end_seq, uint32_t s_win, uint32_t e_win) noexcept nogil:
    if seq == s_win:
        return True
    if after(end_seq, s_win) and before(seq, e_win):
        return True
    return seq == e_win and seq == end_seq


cdef inline bint tcp_ack_rate_limited(engine_t* e, int mib, ns_t* last) noexcept nogil:
    # Has an answer to such a segment been sent within tcp_invalid_ratelimit? If not, one is being sent now. *last 0 = never.
    cdef ns_t elapsed
    if last[0] != 0:
        elapsed = e.now - last[0]
        if 0 <= elapsed < <ns_t>e.cfg.tcp_invalid_ratelimit * NS_PER_MS:
            mib_inc(&e.stats, mib)
            return True
    last[0] = e.now if e.now != 0 else 1
    return False


cdef inline bint tcp_oow_rate_limited(engine_t* e, const seg_t* s, int mib, ns_t* last) noexcept nogil:
    # Segments with data are no part of an ACK loop and always answered.
    if s.seq != s.end_seq and not s.flags & TH_SYN:
        return False
    return tcp_ack_rate_limited(e, mib, last)
