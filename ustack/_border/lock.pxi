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

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    const int CLOCK_MONOTONIC

cdef extern from "<unistd.h>" nogil:
    ssize_t fd_write "write"(int, const void*, size_t)

cdef extern from "<sched.h>" nogil:
    int sched_getcpu()

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #define ustack_atomic_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define ustack_atomic_add(p, v) __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST)
    #define ustack_atomic_swap(p, v) __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST)
    #define ustack_peek8(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define ustack_atomic_turn(p, from, to) \\
        ({ int ustack_was = (from); __atomic_compare_exchange_n(p, &ustack_was, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); })
    /* Sleeps while *p is v, at most until the absolute time ts of CLOCK_MONOTONIC (NULL: for ever); 0 or -errno. */
    static inline int ustack_futex_wait(int* p, int v, const struct timespec* ts) {
      return syscall(SYS_futex, p, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, v, ts, NULL, FUTEX_BITSET_MATCH_ANY) == 0 ? 0 : -errno;
    }
    static inline void ustack_futex_wake(int* p) { syscall(SYS_futex, p, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0); }
    #if defined(__x86_64__) || defined(__i386__)
    #define ustack_relax() __builtin_ia32_pause()
    #else
    #define ustack_relax() ((void)0)
    #endif
    """
    int atomic_load "ustack_atomic_load"(int*) nogil
    int atomic_add "ustack_atomic_add"(int*, int) nogil
    int atomic_swap "ustack_atomic_swap"(int*, int) nogil
    uint8_t peek8 "ustack_peek8"(const uint8_t*) nogil
    bint atomic_turn "ustack_atomic_turn"(int*, int, int) nogil
    int futex_wait "ustack_futex_wait"(int*, int, const timespec*) nogil
    void futex_wake "ustack_futex_wake"(int*) nogil
    void cpu_relax "ustack_relax"() nogil

cdef enum:
    SPIN_NS = 20000
    HOLD_NS = 10000000          # an ACK waits at most about so long for the program's answer
    POSTS = 64                  # blocked calls released at once
    DIRECT_FRAMES = 8           # what a user call writes itself; more is the engine thread's
    DIRECT_BYTES = 65536
    IDLE_NS = 1000000           # a core that has slept within so long is not busy ...
    FEW_PACKETS = 8             # ... nor is one with so few packets in a millisecond
    CALL_IDLE = 0               # the word a blocked call sleeps on
    CALL_SLEEPS = 1
    CALL_POSTED = 2

cdef struct loop_t              # thread.pxi

# Blocked calls to release once the lock is free: a thread that is woken under it would run straight into it.
cdef struct posts_t:
    uint32_t n
    int* word[POSTS]

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
    loop_t* loop                # the running engine thread's, NULL: none
    int* words                  # by waiter: what the blocked call sleeps on. Never given back while the engine lives, so a late wake-up harms none
    int yielding                # the engine thread, about to sleep, lets the users' threads on its core run first: it looks again before it sleeps
    uint32_t crowd              # packets in the last full millisecond
    ns_t idle_at                # when the engine thread last slept
    int engine_cpu              # where it runs
    bint may_hold               # small sends may wait for the engine thread's turn, or the next call
    uint8_t left                # OWES_PUSH: an earlier call left some
    int user_cpu                # where the last user call was made ...
    ns_t user_at                # ... and when; 0: it blocked
    ns_t called_at              # ... and when, also if it blocked


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


cdef inline bint writes_itself(shared_t* s) noexcept nogil:
    """Does a user call write what it has to send? If the engine thread sleeps; if it waits for this core, only while the core is not busy, or else it
    writes more at once: fewer packets, and the other side is woken less often."""
    if atomic_load(&s.sleeping) and not atomic_load(&s.yielding):
        return True
    return s.user_cpu == s.engine_cpu and (s.crowd <= FEW_PACKETS or s.user_at - s.idle_at < IDLE_NS)


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
        s.user_at = clock_ns()
        s.called_at = s.user_at
        s.user_cpu = sched_getcpu()
        engine_time(e, s.user_at)
        e.holds_pushes = s.may_hold and s.user_cpu == s.engine_cpu and (atomic_load(&s.yielding) or not atomic_load(&s.sleeping))
        e.holds_acks = e.holds_pushes
        s.left = e.owed_what & OWES_PUSH
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


cdef inline void take_woken(engine_t* e, posts_t* p) noexcept nogil:
    """Collect the blocked calls whose wait ended, at most POSTS; the rest stays on e.woken. Under the lock."""
    cdef waiter_t* w
    while e.woken and p.n < POSTS:
        w = wait_at(e, e.woken)
        e.woken = w.next
        w.next = 0
        if w.word != NULL:
            p.word[p.n] = <int*> w.word
            p.n += 1


cdef inline void post_all(posts_t* p) noexcept nogil:
    """Release them. No lock is needed; a call that has gone meanwhile leaves its word to whoever has it next, who looks and sleeps on."""
    cdef uint32_t i
    for i in range(p.n):
        if atomic_swap(p.word[i], CALL_POSTED) == CALL_SLEEPS:
            futex_wake(p.word[i])
    p.n = 0


cdef inline bint shown_ready(engine_t* e, shared_t* s) noexcept nogil:
    """Is there a socket whose descriptor the engine thread has to look at? Those without one are taken off the list. Under the lock."""
    cdef tcb_t* sk
    while e.ready:
        sk = sk_at(e, e.ready)
        if sk.sflags & SF_HAS_FD:
            return True
        e.ready = sk.ready_next
        sk.sflags &= ~<uint32_t> SF_IN_READY
    return False


cdef inline bint sleeper_needed(engine_t* e, shared_t* s) noexcept nogil:
    """Is there anything for a sleeping engine thread: frames, sends that wait, descriptors to look at, an earlier time? Under the lock."""
    return (e.tx_n or e.woken or e.owed_what & OWES_PUSH or shown_ready(e, s) or (e.n_owed and e.owed_at + HOLD_NS < s.wake_at)
            or (engine_next_bound(e) < s.wake_at and engine_next_timeout(e) < s.wake_at))


cdef inline void wake_sleeper(shared_t* s) noexcept nogil:
    """End the engine thread's sleep. No lock is held."""
    cdef uint64_t one = 1
    if atomic_swap(&s.sleeping, 0):
        fd_write(s.wake_fd, &one, 8)


cdef inline void release(engine_t* e, shared_t* s) noexcept nogil:
    """Unlock after a user call. What it left to send it writes itself if it is little and nobody else is at the link; if there is other work for
    the engine thread, ends its sleep."""
    cdef uint64_t one = 1
    cdef bint kick
    cdef int note
    cdef posts_t posts
    cdef loop_t* l = NULL
    posts.n = 0
    if e.tx_local:
        engine_loop(e)
    while e.woken:
        take_woken(e, &posts)
        if e.woken:
            post_all(&posts)
    note = s.note_fd if note_due(e, s) else -1
    if (e.tx_n or s.left) and writes_itself(s):
        if s.left:
            engine_settle(e, OWES_PUSH, HOLD_NS)
        l = loop_claim(e, s)
    kick = s.wake_fd >= 0 and atomic_load(&s.sleeping) and not atomic_load(&s.yielding) and sleeper_needed(e, s)
    pthread_mutex_unlock(&s.mu)
    if l != NULL and not loop_write(l):
        kick = True
    if posts.n:
        post_all(&posts)
    if kick:
        wake_sleeper(s)
    if note >= 0:
        fd_write(note, &one, 8)
