# Congestion control "reno" (layer: above cwnd, below cc).
#
# RFC 5681 with RFC 3465's byte counting in packets. Linux counterpart: the reno part of tcp_cong.c. No private state.

from ustack.core.types cimport uint32_t
from ustack.core.cwnd cimport tcp_cong_avoid_ai, tcp_in_slow_start, tcp_is_cwnd_limited, tcp_slow_start
from ustack.core.seqno cimport u32_max
from ustack.core.tcb cimport tcb_t


cdef inline uint32_t reno_ssthresh(tcb_t* sk) noexcept nogil:
    return u32_max(sk.snd_cwnd >> 1, 2)


cdef inline void reno_cong_avoid(tcb_t* sk, uint32_t acked) noexcept nogil:
    if not tcp_is_cwnd_limited(sk):
        return
    if tcp_in_slow_start(sk):
        acked = tcp_slow_start(sk, acked)
        if acked == 0:
            return
    tcp_cong_avoid_ai(sk, sk.snd_cwnd, acked)


cdef inline uint32_t reno_undo_cwnd(tcb_t* sk) noexcept nogil:
    """The window before the reduction that turned out to be spurious."""
    return u32_max(sk.snd_cwnd, sk.prior_cwnd)
