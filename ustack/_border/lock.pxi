# The engine's mutex, the clock of real drivers, and the release of blocked calls. Included by _fastpath.pyx.

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_post(sem_t*)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    const int CLOCK_MONOTONIC

cdef extern from "<unistd.h>" nogil:
    ssize_t fd_write "write"(int, const void*, size_t)

cdef extern from *:
    """
    #define ustack_atomic_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define ustack_atomic_add(p, v) __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST)
    #define ustack_atomic_swap(p, v) __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST)
    #if defined(__x86_64__) || defined(__i386__)
    #define ustack_relax() __builtin_ia32_pause()
    #else
    #define ustack_relax() ((void)0)
    #endif
    """
    int atomic_load "ustack_atomic_load"(int*) nogil
    int atomic_add "ustack_atomic_add"(int*, int) nogil
    int atomic_swap "ustack_atomic_swap"(int*, int) nogil
    void cpu_relax "ustack_relax"() nogil

cdef enum:
    SPIN_NS = 20000

# What a driver and the user's threads share beside the engine itself.
cdef struct shared_t:
    pthread_mutex_t mu
    int waiting                 # user threads blocked for the lock: the engine thread lets them in before it locks again
    int sleeping                # the engine thread is in, or about to enter, its poll
    int wake_fd                 # eventfd that ends the sleep, -1 without a thread
    int real_clock              # user calls set e.now from CLOCK_MONOTONIC
    int dead                    # stopped, or the child of a fork
    int in_hook                 # a Python function runs in the middle of the core, the lock is held
    unsigned long hook_thread   # ... by this thread
    int nested                  # views that it has open
    int note_fd                 # eventfd of the thread that brings notes to Python, -1 = none
    int note_events             # events are such notes too
    int noted                   # it has been told
    int parked                  # segments that wait for a Python hook
    ns_t wake_at                # when the sleeping engine thread wakes by itself


cdef inline ns_t clock_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <ns_t> ts.tv_sec * 1000000000 + ts.tv_nsec


cdef inline bint lock_spin(shared_t* s) noexcept nogil:
    """Try for at most SPIN_NS, counted as a waiter, so that the engine thread does not lock again first."""
    cdef ns_t limit = clock_ns() + SPIN_NS
    cdef bint taken = False
    atomic_add(&s.waiting, 1)
    while not taken and clock_ns() < limit:
        cpu_relax()
        taken = pthread_mutex_trylock(&s.mu) == 0
    atomic_add(&s.waiting, -1)
    return taken


cdef inline void lock_wait(shared_t* s) noexcept nogil:
    """Sleep until the lock has been free for a moment."""
    atomic_add(&s.waiting, 1)
    pthread_mutex_lock(&s.mu)
    pthread_mutex_unlock(&s.mu)
    atomic_add(&s.waiting, -1)


cdef inline bint inside_hook(shared_t* s) noexcept:
    """Does this thread hold the lock already, in the middle of the core, as a hook?"""
    return s.in_hook and s.hook_thread == <unsigned long> pthread_self()


cdef inline int acquire(engine_t* e, shared_t* s) except -1:
    """Lock for a user call and set the time. The GIL is held on entry and on return, and nobody ever waits for it while he holds the lock:
    a busy Python thread would stop the packets for milliseconds, and a thread that locks with the GIL held would never end. A hook that runs
    in the middle of the core holds the lock and may not act on its own stack: RuntimeError."""
    if pthread_mutex_trylock(&s.mu) != 0:
        if inside_hook(s):
            raise RuntimeError("a synchronous hook may look at its stack but not act on it: choose through the hook's argument")
        while not lock_spin(s):
            with nogil:
                lock_wait(s)
    if s.real_clock:
        engine_time(e, clock_ns())
    return 0


cdef inline int acquire_view(engine_t* e, shared_t* s) except -1:
    """As acquire, for a look: allowed inside a hook."""
    if inside_hook(s):
        s.nested += 1
        return 0
    return acquire(e, s)


cdef inline void release_view(engine_t* e, shared_t* s) noexcept nogil:
    if s.nested:
        s.nested -= 1
        return
    release(e, s)


cdef inline bint note_due(engine_t* e, shared_t* s) noexcept nogil:
    """Is there something to tell the notes' thread that it has not been told? Under the lock."""
    if s.note_fd < 0 or s.noted:
        return False
    s.noted = e.log_n != 0 or (s.note_events and e.ev_n != 0) or s.parked != 0
    return s.noted


cdef inline void post_woken(engine_t* e) noexcept nogil:
    """Release the blocked calls whose wait ended. Under the lock: their semaphores live until they have taken it again."""
    cdef idx_t i = e.woken
    cdef idx_t nxt
    cdef waiter_t* w
    e.woken = 0
    while i:
        w = wait_at(e, i)
        nxt = w.next
        w.next = 0
        if w.sem != NULL:
            sem_post(<sem_t*> w.sem)
        i = nxt


cdef inline void release(engine_t* e, shared_t* s) noexcept nogil:
    """Unlock after a user call; if it left work for the engine thread (frames, an earlier timer), end its sleep."""
    cdef uint64_t one = 1
    cdef bint kick
    cdef int note
    if e.tx_local:
        engine_loop(e)
    if e.woken:
        post_woken(e)
    note = s.note_fd if note_due(e, s) else -1
    kick = s.wake_fd >= 0 and atomic_load(&s.sleeping) and (e.tx_n or e.ready or (
        engine_next_bound(e) < s.wake_at and engine_next_timeout(e) < s.wake_at))
    pthread_mutex_unlock(&s.mu)
    if kick and atomic_swap(&s.sleeping, 0):
        fd_write(s.wake_fd, &one, 8)
    if note >= 0:
        fd_write(note, &one, 8)
