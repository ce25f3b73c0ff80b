# What the world hears of a socket: events and log lines, wake-ups of blocked calls and pollers, room in the send buffer; the garbage list (layer 5).
#
# Linux counterparts: sk_data_ready, sk_write_space, sk_state_change, sk_error_report. Invariants: readiness is the poll mask and a count of wake-ups,
# so nothing can overflow; a waiter is finished once; memory that a frame may still point into goes to the garbage list.

from libc.stdlib cimport realloc
from libc.string cimport memset

from ustack.core.types cimport NS_PER_SEC, REF_SHIFT, TM_WAITER, idx_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t, likely
from ustack.core.access cimport sk_at, wait_at
from ustack.core.records cimport WT_TIMEDOUT, WT_WOKEN, waiter_t
from ustack.core.ring cimport ring_free
from ustack.core.state cimport EV_LOG, LOG_RING, engine_t, event_t
from ustack.core.tcb cimport SF_IN_READY, tcb_t
from ustack.core.wheel cimport wheel_disarm


cdef enum:
    POLLIN = 0x001
    POLLPRI = 0x002
    POLLOUT = 0x004
    POLLERR = 0x008
    POLLHUP = 0x010
    POLLNVAL = 0x020
    POLLRDNORM = 0x040
    POLLRDBAND = 0x080
    POLLWRNORM = 0x100
    POLLWRBAND = 0x200
    POLLRDHUP = 0x2000
    WAKE_READ = 0x0c3           # IN PRI RDNORM RDBAND
    WAKE_WRITE = 0x304          # OUT WRNORM WRBAND
    WAKE_ALL = 0xffff
    LOG_BURST = 10              # net_ratelimit: so many log lines ...
    LOG_INTERVAL_S = 5          # ... in so many seconds


# ---- what happened -----------------------------------------------------------------------------------------------------------
cdef inline event_t* ev_push(engine_t* e, uint16_t kind, uint16_t arg) noexcept nogil:
    """A zeroed slot of the event ring, or NULL if nobody listens. The oldest event is overwritten and counted as lost."""
    cdef event_t* ev
    if likely(e.ev_cap == 0):
        return NULL
    if e.ev_n == e.ev_cap:
        e.ev_head = (e.ev_head + 1) % e.ev_cap
        e.ev_n -= 1
        e.ev_lost += 1
    ev = &e.ev[(e.ev_head + e.ev_n) % e.ev_cap]
    e.ev_n += 1
    memset(ev, 0, sizeof(event_t))
    ev.at = e.now
    ev.kind = kind
    ev.arg = arg
    return ev


cdef inline event_t* log_push(engine_t* e, uint16_t line) noexcept nogil:
    """A zeroed log line (LOG_*), or NULL: too many of late, or the driver has not fetched the last ones. Linux: net_ratelimit."""
    cdef event_t* ev
    if e.log_count == 0 or e.now - e.log_epoch > LOG_INTERVAL_S * NS_PER_SEC:
        e.log_epoch = e.now
        e.log_count = 0
    if e.log_count == LOG_BURST or e.log_n == LOG_RING:
        e.log_lost += 1
        return NULL
    e.log_count += 1
    ev = &e.log[e.log_n]
    e.log_n += 1
    memset(ev, 0, sizeof(event_t))
    ev.at = e.now
    ev.kind = EV_LOG
    ev.arg = line
    return ev


cdef inline void log_done(engine_t* e, const event_t* line) noexcept nogil:
    """The line is filled in: those who listen to events get it too."""
    cdef event_t* ev = ev_push(e, EV_LOG, line.arg)
    if ev != NULL:
        ev[0] = line[0]


cdef inline void garbage_put(engine_t* e, void* p) noexcept nogil:
    """Free p later: after the driver has written out every frame that may point into it."""
    cdef void** grown
    cdef uint32_t cap
    if likely(p == NULL):
        return
    if e.garbage_n == e.garbage_cap:
        cap = e.garbage_cap * 2 if e.garbage_cap else 64
        grown = <void**> realloc(<void*> e.garbage, cap * sizeof(void*))
        if grown == NULL:
            return                      # leaks p, which is better than a dangling frame
        e.garbage = grown
        e.garbage_cap = cap
    e.garbage[e.garbage_n] = p
    e.garbage_n += 1


cdef inline void garbage_collect(engine_t* e) noexcept nogil:
    """Driver thread only, with no frame outstanding."""
    cdef uint32_t i
    for i in range(e.garbage_n):
        ring_free(e.garbage[i])
    e.garbage_n = 0


# ---- wake-ups ----------------------------------------------------------------------------------------------------------------
cdef inline void waiter_unlink(engine_t* e, waiter_t* w, idx_t i) noexcept nogil:
    cdef tcb_t* sk
    if w.sk == 0:
        return
    sk = sk_at(e, w.sk)
    if w.prev:
        wait_at(e, w.prev).next = w.next
    else:
        sk.waiters = w.next
    if w.next:
        wait_at(e, w.next).prev = w.prev
    w.next = 0
    w.prev = 0
    w.sk = 0
    wheel_disarm(&e.wheel, (<uint32_t> TM_WAITER << REF_SHIFT) | i)


cdef inline void waiter_finish(engine_t* e, idx_t i, uint8_t state) noexcept nogil:
    """Take a waiter off its socket and put it on the list the driver looks at."""
    cdef waiter_t* w = wait_at(e, i)
    waiter_unlink(e, w, i)
    w.state = state
    w.next = e.woken
    e.woken = i


cdef inline void sk_ready_link(engine_t* e, tcb_t* sk) noexcept nogil:
    if not sk.sflags & SF_IN_READY:
        sk.sflags |= SF_IN_READY
        sk.ready_next = e.ready
        e.ready = sk.idx


cdef inline void sk_wake(engine_t* e, tcb_t* sk, uint32_t bits) noexcept nogil:
    """One wake-up: counted for edge-triggered users; blocked calls that wait for one of bits are released, of exclusive ones one only."""
    cdef idx_t i
    cdef idx_t nxt
    cdef waiter_t* w
    sk.wake_seq += 1
    sk.wake_mask |= bits
    sk_ready_link(e, sk)
    i = sk.waiters
    while i:
        w = wait_at(e, i)
        nxt = w.next
        if bits == WAKE_ALL or w.events & bits or bits & (POLLERR | POLLHUP):
            if w.exclusive and bits != WAKE_ALL:
                waiter_finish(e, i, WT_WOKEN)
                return
            waiter_finish(e, i, WT_WOKEN)
        i = nxt


cdef inline void waiter_timeout(engine_t* e, idx_t i) noexcept nogil:
    """TM_WAITER fired: the blocked call's time is over."""
    waiter_finish(e, i, WT_TIMEDOUT)


cdef inline void sk_data_ready(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_wake(e, sk, WAKE_READ)


cdef inline void sk_write_space(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_wake(e, sk, WAKE_WRITE)


cdef inline void sk_state_change(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_wake(e, sk, WAKE_ALL)


cdef inline void sk_error_report(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_wake(e, sk, POLLERR)


# ---- send buffer space: what send() tests and poll() reports ---------------------------------------------------------------------
cdef inline bint sk_stream_memory_free(engine_t* e, tcb_t* sk, int wake) noexcept nogil:
    """Below sndbuf and, shifted by wake, below the not-sent limit."""
    cdef uint32_t lowat = sk.opt.notsent_lowat if sk.opt.notsent_lowat else <uint32_t> e.cfg.tcp_notsent_lowat
    cdef uint64_t notsent = sk.write_seq - sk.snd_nxt
    if <int64_t> sk.wmem_queued >= sk.sndbuf:
        return False
    return (notsent << wake) < lowat


cdef inline bint sk_stream_is_writeable(engine_t* e, tcb_t* sk) noexcept nogil:
    return (<int64_t> sk.sndbuf - <int64_t> sk.wmem_queued >= <int64_t> (sk.wmem_queued >> 1)
            and sk_stream_memory_free(e, sk, 1))
