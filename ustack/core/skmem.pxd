# Memory that sockets are charged for, in pages (layer: below sock).
#
# Linux's sk_forward_alloc: a socket reserves whole pages of the protocol's memory and charges records against them.
# What shows from outside: a segment whose truesize exceeds the reserve leaves the header-prediction path (TCPHPHits),
# and tcp_mem limits refuse memory. Invariants: fwd_alloc + rmem_alloc + what the send queue charged is a multiple of
# the page size, and the sum over all sockets is e.mem_pages. Called by rcvq, sendq and sock.

from ustack.core.types cimport int32_t, int64_t, likely, unlikely
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t

cdef enum:
    SK_PAGE = 4096
    SK_PAGE_SHIFT = 12


cdef inline bint tcp_under_memory_pressure(engine_t* e) noexcept nogil:
    return e.mem_pressure != 0


cdef inline int32_t sk_mem_pages(int32_t n) noexcept nogil:
    return (n + SK_PAGE - 1) >> SK_PAGE_SHIFT


cdef inline void sk_mem_reserve_(engine_t* e, tcb_t* sk, int32_t pages) noexcept nogil:
    sk.fwd_alloc += pages << SK_PAGE_SHIFT
    e.mem_pages += pages


cdef inline void sk_forced_mem_schedule(engine_t* e, tcb_t* sk, int32_t size) noexcept nogil:
    """The reserve holds size afterwards, whatever the limits say."""
    if unlikely(size > sk.fwd_alloc):
        sk_mem_reserve_(e, sk, sk_mem_pages(size - sk.fwd_alloc))


cdef inline bint sk_mem_schedule_(engine_t* e, tcb_t* sk, int32_t size, int64_t have, int64_t least) noexcept nogil:
    # have < least: a socket below its minimum is served under any pressure.
    cdef int32_t pages
    if likely(size <= sk.fwd_alloc):
        return True
    pages = sk_mem_pages(size - sk.fwd_alloc)
    sk_mem_reserve_(e, sk, pages)
    if likely(e.mem_pages <= e.cfg.tcp_mem_min):
        e.mem_pressure = 0
        return True
    if e.mem_pages > e.cfg.tcp_mem_def:
        e.mem_pressure = 1
    if e.mem_pages <= e.cfg.tcp_mem_max and not e.mem_pressure:
        return True
    if have < least:
        return True
    if e.mem_pages <= e.cfg.tcp_mem_max:
        # Under pressure a socket may still have its even share.
        if e.cfg.tcp_mem_max > <int64_t> e.n_sockets * sk_mem_pages(<int32_t> sk.wmem_queued + sk.rmem_alloc + sk.fwd_alloc):
            return True
    sk.fwd_alloc -= pages << SK_PAGE_SHIFT
    e.mem_pages -= pages
    return False


cdef inline bint sk_rmem_schedule(engine_t* e, tcb_t* sk, int32_t size) noexcept nogil:
    return sk_mem_schedule_(e, sk, size, sk.rmem_alloc, e.cfg.tcp_rmem_min)


cdef inline bint sk_wmem_schedule(engine_t* e, tcb_t* sk, int32_t size) noexcept nogil:
    return sk_mem_schedule_(e, sk, size, sk.wmem_queued, e.cfg.tcp_wmem_min)


cdef inline void sk_mem_charge(tcb_t* sk, int32_t size) noexcept nogil:
    sk.fwd_alloc -= size


cdef inline void sk_mem_uncharge(engine_t* e, tcb_t* sk, int32_t size) noexcept nogil:
    """Give back; whole pages leave the socket's reserve at once."""
    cdef int32_t pages
    sk.fwd_alloc += size
    if sk.fwd_alloc >= SK_PAGE:
        pages = sk.fwd_alloc >> SK_PAGE_SHIFT
        sk.fwd_alloc -= pages << SK_PAGE_SHIFT
        e.mem_pages -= pages
        if unlikely(e.mem_pressure) and e.mem_pages < e.cfg.tcp_mem_min:
            e.mem_pressure = 0
