# Pollable descriptors: the readiness of a socket shown on one end of an AF_UNIX socket pair. Included by _fastpath.pyx.
#
# The user polls one end. A byte sent from the other end makes it readable, reading that byte back not readable; filling its own send
# buffer makes it not writable, emptying that from the other end writable again. HUP and ERR show as both. On each further wake-up another
# byte is sent, so that an edge-triggered poll sees an edge.
#
# Who looks: the engine thread after each batch (sockets on e.ready that have SF_HAS_FD), and the user's own call, because taking the
# last byte wakes nobody. Both compute the mask and show it under `mu`, so no one shows a state that is older than the one shown. Order of
# locks: mu before the engine's. The descriptors are touched under mu only, never under the engine's lock.

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int, const void*, size_t, int)
    ssize_t c_recv "recv"(int, void*, size_t, int)
    const int MSG_DONTWAIT
    const int MSG_NOSIGNAL

cdef enum:
    SHOW_READ = 1
    SHOW_WRITE = 2

cdef struct mirror_t:
    uint64_t handle
    int user_fd                 # the end that the user polls; -1: a free slot
    int peer_fd
    int shown                   # SHOW_*
    uint32_t wake_seq           # wake-ups already shown

cdef struct mirrors_t:
    pthread_mutex_t mu
    mirror_t* slots
    uint32_t n
    uint32_t* of                # slot + 1 by socket index; made when the first descriptor is asked for


cdef void mirror_read_off(mirror_t* m) noexcept nogil:
    cdef char buf[256]
    while c_recv(m.user_fd, buf, sizeof(buf), MSG_DONTWAIT) == sizeof(buf):
        pass


cdef void mirror_show(mirror_t* m, int want, bint edge) noexcept nogil:
    """Make the descriptor poll as `want`; edge: there was a wake-up."""
    cdef char buf[256]
    cdef int changed = want ^ m.shown
    if want & SHOW_READ and (changed & SHOW_READ or edge):
        if c_send(m.peer_fd, b"r", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            mirror_read_off(m)
            c_send(m.peer_fd, b"r", 1, MSG_DONTWAIT | MSG_NOSIGNAL)
    elif changed & SHOW_READ:
        mirror_read_off(m)
    if changed & SHOW_WRITE:
        if want & SHOW_WRITE:
            while c_recv(m.peer_fd, buf, sizeof(buf), MSG_DONTWAIT) == sizeof(buf):
                pass
        else:
            while c_send(m.user_fd, b"w", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1:
                pass
    m.shown = want


cdef int mirror_want(engine_t* e, mirror_t* m, bint* edge) noexcept nogil:
    """Under the engine's lock: what to show. A handle that is gone polls as an error does."""
    cdef idx_t i = <idx_t> (m.handle & 0xffffffffULL)
    cdef tcb_t* sk
    cdef uint32_t mask
    edge[0] = False
    if not pool_live(&e.tcb, i, <uint32_t> (m.handle >> 32)):
        return SHOW_READ | SHOW_WRITE
    sk = sk_at(e, i)
    edge[0] = sk.wake_seq != m.wake_seq
    m.wake_seq = sk.wake_seq
    mask = user_poll(e, sk)
    if mask & (POLLERR | POLLHUP):
        return SHOW_READ | SHOW_WRITE
    return (SHOW_READ if mask & POLLIN else 0) | (SHOW_WRITE if mask & POLLOUT else 0)


cdef void mirror_sync(mirrors_t* ms, engine_t* e, shared_t* s, const idx_t* socks, uint32_t n) noexcept nogil:
    """Show the present state of these sockets."""
    cdef uint32_t i
    cdef uint32_t slot
    cdef int want[BATCH]
    cdef bint edge[BATCH]
    cdef uint32_t which[BATCH]
    cdef uint32_t k = 0
    if ms == NULL or ms.of == NULL:
        return
    pthread_mutex_lock(&ms.mu)
    pthread_mutex_lock(&s.mu)
    for i in range(n):
        slot = ms.of[socks[i]]
        if slot:
            which[k] = slot - 1
            want[k] = mirror_want(e, &ms.slots[slot - 1], &edge[k])
            k += 1
    pthread_mutex_unlock(&s.mu)
    for i in range(k):
        mirror_show(&ms.slots[which[i]], want[i], edge[i])
    pthread_mutex_unlock(&ms.mu)


cdef mirrors_t* mirrors_new() noexcept nogil:
    cdef mirrors_t* ms = <mirrors_t*> calloc(1, sizeof(mirrors_t))
    if ms != NULL:
        pthread_mutex_init(&ms.mu, NULL)
    return ms


cdef void mirrors_free(mirrors_t* ms) noexcept nogil:
    if ms != NULL:
        pthread_mutex_destroy(&ms.mu)
        free(ms.slots)
        free(ms.of)
        free(ms)


cdef uint32_t mirror_slot(mirrors_t* ms) noexcept nogil:
    """A free slot, or 0xffffffff without memory. Under mu."""
    cdef uint32_t i
    cdef mirror_t* grown
    for i in range(ms.n):
        if ms.slots[i].user_fd < 0:
            return i
    grown = <mirror_t*> realloc(ms.slots, (ms.n * 2 + 16) * sizeof(mirror_t))
    if grown == NULL:
        return 0xffffffffU
    ms.slots = grown
    for i in range(ms.n, ms.n * 2 + 16):
        ms.slots[i].user_fd = -1
    i = ms.n
    ms.n = ms.n * 2 + 16
    return i
