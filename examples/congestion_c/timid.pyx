"""A congestion control in C for ustack: Reno that grows half as fast and gives up less.

Build and use (the headers ship with the package, so an installed ustack is enough):

    cythonize -i timid.pyx
    stack.add_congestion_control(timid.capsule())
    sock.setsockopt(IPPROTO_TCP, TCP_CONGESTION, b"timid")

Its functions run on the engine thread, under the engine's lock and without the GIL.
"""

from cpython.pycapsule cimport PyCapsule_New

from ustack.core.cc cimport CC_CAPSULE, cc_abi, cc_ops_t
from ustack.core.cwnd cimport tcp_cong_avoid_ai, tcp_in_slow_start, tcp_is_cwnd_limited, tcp_slow_start
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport uint32_t


cdef uint32_t timid_ssthresh(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef uint32_t n = sk.snd_cwnd * 3 // 4
    return n if n > 2 else 2


cdef void timid_cong_avoid(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t acked) noexcept nogil:
    if not tcp_is_cwnd_limited(sk):
        return
    if tcp_in_slow_start(sk):
        acked = tcp_slow_start(sk, acked)
        if acked == 0:
            return
    tcp_cong_avoid_ai(sk, 2 * sk.snd_cwnd, acked)


cdef uint32_t timid_undo_cwnd(engine_t* e, tcb_t* sk) noexcept nogil:
    return sk.snd_cwnd if sk.snd_cwnd > sk.prior_cwnd else sk.prior_cwnd


cdef cc_ops_t ops
ops.name = "timid"
ops.abi = cc_abi()
ops.ssthresh = timid_ssthresh
ops.cong_avoid = timid_cong_avoid
ops.undo_cwnd = timid_undo_cwnd


def capsule():
    """The table, for Stack.add_congestion_control."""
    return PyCapsule_New(&ops, CC_CAPSULE, NULL)
