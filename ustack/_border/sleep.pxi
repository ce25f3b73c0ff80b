# When the engine thread sleeps, and what it does instead: reading on while that pays, or as long as it is told to; giving the core to the program's
# threads. Included by _fastpath.pyx after thread.pxi, whose loop_t this works on; called by loop_run only.
#
# A sleep begins with `sleeping` and `wake_at` set under the lock (engine_turn); whoever leaves work behind from then on ends it through the eventfd.
# Nothing here takes time from a link on which no packet comes: every way of not sleeping begins with a packet, and ends soon.

cdef enum:
    ACTIVE_NS = 300000          # so long after a call the program counts as at work
    YIELDED_NS = 3000           # a yield that took less was refused: nobody else wants the core
    STARVED_NS = 2000000        # one that took more, without a call of the program in the end, gave the core to a stranger ...
    SHY_NS = 20000000           # ... and is not tried again for so long
    READS_A_LOOK = 4            # reads between two looks at the clock and at what else there is to do
    LINGER_NS = 50000           # before a sleep the link is read on for so long ...
    SLEEP_NS = 30000            # ... at the expense of the sleeps that it saves, which cost so much: switches, and an idle core's waking ...
    LINGER_TRY_NS = 500         # ... and so much per sleep, to find out again whether it pays:
    LINGER_TRIES = 20           # several times in a row, because cores that are woken often wake up faster
    LINGER_CROWD = 100          # packets in the last millisecond from which on there is no lingering: who comes late then serves several at once
    LONE_LEAST = 4              # lone packets in a row, after which the next is expected to be one
    LONE_MOST = 32              # ... and after which that is looked at again


# ---- sleep -----------------------------------------------------------------------------------------------------------------------------
cdef void sleep_until(loop_t* l, ns_t t) noexcept nogil:
    """Poll the link and the eventfd until something happens or time t."""
    cdef pollfd p[2]
    cdef timespec ts
    cdef ns_t left
    cdef uint64_t count
    p[0].fd = l.s.wake_fd
    p[0].events = 1
    p[0].revents = 0
    p[1].fd = -1 if l.dev.failed else l.dev.fd
    p[1].events = 1
    p[1].revents = 0
    ts.tv_sec = 0
    ts.tv_nsec = 0
    if t != NS_NEVER:
        left = t - clock_ns()
        if left > 0:
            ts.tv_sec = left // 1000000000
            ts.tv_nsec = left % 1000000000
    l.sleeps += 1
    count_linger(l, LINGER_TRY_NS)
    c_ppoll(p, 2, NULL if t == NS_NEVER else &ts, NULL)
    atomic_swap(&l.s.sleeping, 0)
    l.slept = True
    if p[0].revents:
        sys_read(l.s.wake_fd, &count, 8)


cdef bint loop_has_work(loop_t* l, ns_t now) noexcept nogil:
    """Without the lock: is there anything to do besides reading the link?"""
    return (atomic_load(&l.stop) != 0 or now >= l.s.wake_at or ustack_peek(&l.e.tx_n) != 0 or ustack_peek(&l.e.ready) != 0
            or peek8(&l.e.owed_what) & OWES_PUSH
            or (l.group != NULL and atomic_load(&l.group.inbox[l.e.shard].n) != 0))


cdef uint32_t busy_poll(loop_t* l, ns_t* now) noexcept nogil:
    """Read on until a packet comes, there is other work, or the time is over; how many packets came, and the time after that. Only while packets
    come close together: a link where the next one takes four times as long costs a sleep a packet, and no spinning."""
    cdef uint32_t n = 0
    cdef int i
    while n == 0 and now[0] - l.last_rx < l.busy and not loop_has_work(l, now[0]):
        for i in range(READS_A_LOOK):
            n = dev_read_batch(&l.dev, l.e, now[0])
            if n:
                break
        now[0] = clock_ns()
    return n


cdef void note_arrival(loop_t* l, ns_t now) noexcept nogil:
    l.lively = now - l.last_rx <= 4 * l.busy
    l.last_rx = now


cdef inline bint at_work_here(loop_t* l, ns_t now) noexcept nogil:
    """Has the program made a call on this core lately?"""
    return l.s.user_cpu == l.s.engine_cpu and now - l.s.called_at <= HOLD_NS


cdef inline bint may_linger(loop_t* l, ns_t now) noexcept nogil:
    return l.lingers and l.s.crowd <= LINGER_CROWD and l.n_stages == 0 and not at_work_here(l, now)


cdef inline void count_linger(loop_t* l, ns_t gain) noexcept nogil:
    l.saved += gain
    if l.saved >= LINGER_TRIES * LINGER_NS:
        l.saved = LINGER_TRIES * LINGER_NS
        l.lingers = not l.hurries
    elif l.saved < LINGER_NS:
        l.lingers = False


cdef uint32_t linger(loop_t* l, ns_t* now) noexcept nogil:
    """A sleep costs more than the switches: an idle core has to wake up. So it pays to read on shortly where the next packet tends to come in less
    time than that costs. What it has cost is set against the sleeps that it has saved: lingering takes no more CPU time than they would, plus
    LINGER_TRY_NS per sleep. How many packets came, as busy_poll."""
    cdef ns_t began = now[0]
    cdef uint32_t n = 0
    cdef bint work = False
    while n == 0 and not work and now[0] - began < LINGER_NS:
        cpu_relax()
        n = dev_read_batch(&l.dev, l.e, now[0])
        now[0] = clock_ns()
        work = loop_has_work(l, now[0])
    l.lingered += 1
    l.saved_sleeps += 1 if n or work else 0
    count_linger(l, (SLEEP_NS if n or work else 0) - (now[0] - began))
    return n


cdef bint foresees_sleep(loop_t* l, uint32_t n, ns_t now) noexcept nogil:
    """Is a batch of n packets a lone one, so that the thread may sleep when it is served, without the read and the turn that find nothing?
    Learned from the reads that found nothing, and looked at again now and then: a packet that has come all the same ends the sleep at once."""
    if l.after_lone:
        l.lone = l.lone + 1 if n == 0 else 0
        l.after_lone = False
    if n != 1:
        if n:
            l.lone = 0
        return False
    if LONE_LEAST <= l.lone < LONE_MOST and not may_linger(l, now):
        l.lone += 1
        l.dev.quota = 1
        return True
    if l.lone >= LONE_MOST:
        l.lone = LONE_LEAST - 1
    l.after_lone = True
    return False


cdef inline bint shares_core(loop_t* l, ns_t now) noexcept nogil:
    """Are users' threads at work on this very core? Then each packet would take it from them and give it back: better to let them run until they
    have nothing left to do, or the scheduler thinks that it is our turn, and to serve all that came meanwhile."""
    cdef ns_t user_at = l.s.user_at
    return (user_at != 0 and now - user_at < ACTIVE_NS and now >= l.shy_until and l.n_stages == 0 and l.group == NULL
            and l.busy == 0 and l.s.user_cpu == l.s.engine_cpu)


cdef inline uint8_t what_is_due(loop_t* l, ns_t now, bint sleepy, bint last) noexcept nogil:
    """OWES_* that do not wait any longer: what the program, on this core, is about to answer does."""
    if last or not at_work_here(l, now):
        return OWES_ALL
    if shares_core(l, now) and not (sleepy and l.alone):
        return OWES_ACK
    return OWES_ALL & ~OWES_UNREAD


cdef bint yield_core(loop_t* l) noexcept nogil:
    """Instead of a sleep (s.sleeping and s.yielding are set): True if others ran, or work came, so that there is no sleep now."""
    cdef shared_t* s = l.s
    cdef ns_t before = clock_ns()
    cdef ns_t took
    sched_yield()
    atomic_swap(&s.yielding, 0)
    took = clock_ns() - before
    l.yields += 1
    if took > STARVED_NS and before + took - s.user_at > STARVED_NS:
        l.shy_until = before + took + SHY_NS
    if took < YIELDED_NS:
        l.alone = True
        pthread_mutex_lock(&s.mu)
        if not sleeper_needed(l.e, s):
            pthread_mutex_unlock(&s.mu)
            return False
        pthread_mutex_unlock(&s.mu)
    atomic_swap(&s.sleeping, 0)
    return True
