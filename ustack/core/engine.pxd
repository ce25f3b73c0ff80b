# The five sans-I/O calls: creation, packets in, timers, frames out (top layer).
from ustack.core.state cimport engine_t
from ustack.core.types cimport CSUM_NONE, DROP_NOT_SPECIFIED, E_NOMEM, NS_NEVER, ns_t, uint8_t, uint32_t

cdef struct engine_params_t:    # 0 = default
    const uint8_t* seed
    uint32_t seed_len
    ns_t now
    ns_t wall_offset
    ns_t cookie_phase
    uint32_t mtu
    uint32_t ehash_entries
    uint32_t max_req
    uint32_t max_tcb
    uint32_t max_tw
    uint32_t max_listeners
    uint32_t max_srec
    uint32_t max_rrec
    uint32_t max_ext
    uint32_t max_waiters


cdef inline int engine_init(engine_t* e, const engine_params_t* p) noexcept nogil:
    # e is zeroed memory that will not move. 0 or -errno (then nothing is left allocated).
    return -E_NOMEM


cdef inline void engine_destroy(engine_t* e) noexcept nogil:
    pass


cdef inline void engine_time(engine_t* e, ns_t now) noexcept nogil:
    # The time of the call that follows; never goes back.
    if now > e.now:
        e.now = now


cdef inline int engine_receive(engine_t* e, const uint8_t* p, uint32_t n, uint8_t csum, uint32_t gso_size, ns_t now) noexcept nogil:
    # One IP packet from the link: 0 = taken, else the reason it was dropped (already counted).
    return DROP_NOT_SPECIFIED


cdef inline uint32_t engine_poll(engine_t* e, ns_t now) noexcept nogil:
    # Runs every timer due at now, in order, each at its own deadline. Returns how many.
    return 0


cdef inline ns_t engine_next_timeout(engine_t* e) noexcept nogil:
    return NS_NEVER


cdef inline ns_t engine_next_bound(engine_t* e) noexcept nogil:
    # As engine_next_timeout or somewhat earlier, without a search.
    return NS_NEVER


cdef inline void engine_loop(engine_t* e) noexcept nogil:
    # After each user call: packets that we sent to ourselves come back.
    pass


cdef inline void engine_tx_done(engine_t* e) noexcept nogil:
    # The driver has written (or copied) e.tx[0 .. e.tx_n): forget them and free what they pointed to.
    pass
