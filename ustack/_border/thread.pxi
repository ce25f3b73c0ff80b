# The engine thread: one loop without the GIL around a descriptor, the engine and a clock. Included by _fastpath.pyx.
#
# One turn: take the link (drive), read a batch, lock (mu), hand it to the engine, run the timers, take the frames, unlock, write them, give the link up,
# release blocked calls. mu never covers a system call on a descriptor (but write_early, of a thread that polls), and users who wait for it are
# let in before it is taken again. Before it is given up for a sleep, `sleeping` and `wake_at` are set under it, so a user call that leaves work
# behind ends the sleep through the eventfd (release()). wake_at is not put off when a timer is stopped: the next one armed would be the earliest
# again, and end the sleep.
# Users' threads take the link too, if it is free: to write a few frames (loop_claim, loop_write), to read before they sleep (loop_help). Only one
# batch is out at a time, so ring memory of frames in flight is freed by whoever wrote them (tx_batch_done).
# Time is CLOCK_MONOTONIC, read once per batch.

cdef extern from "<poll.h>" nogil:
    int c_ppoll "ppoll"(pollfd*, unsigned long, const timespec*, const void*)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)
    const int PR_SET_TIMERSLACK

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef enum:
    MAX_STAGES = 8
    LET_IN_TURNS = 200
    HELP_TURNS = 4

cdef struct loop_t:
    engine_t* e
    shared_t* s
    pthread_mutex_t drive               # whoever holds it is at the link: dev, batch, stages
    mirrors_t* mirrors
    dev_t dev
    imdir_t* stage_in[MAX_STAGES]       # from the wire to the stack
    imdir_t* stage_out[MAX_STAGES]      # from the stack to the wire
    uint32_t n_stages
    txbatch_t batch
    uint32_t written                    # frames of it that are out, when the link was full to a user's thread
    impkt_t late[BATCH]                 # impaired packets that arrive now
    uint32_t n_late
    uint8_t* scratch                    # of the built-in services
    bint coalesce                       # segments of a batch share an ACK
    group_t* group                      # NULL: the only engine of its stack
    msg_t* inbox                        # what other shards passed on to us
    uint32_t wake                       # shards that we passed something to
    ns_t busy                           # how long to read on after the last packet before sleeping, 0: LINGER_NS if that pays
    bint hurries                        # ... or not at all
    ns_t saved                          # time by which lingering has been cheaper than the sleeps in its place, at most LINGER_TRIES * LINGER_NS
    bint lingers                        # until nothing is saved any more, then not until everything is
    bint fresh                          # the turn before had packets
    ns_t last_rx                        # when the last packet came
    bint lively                         # packets come so close together that reading on pays
    uint32_t lone                       # lone packets in a row: nothing else had come when they were answered
    bint after_lone                     # the last batch was one packet: what the next read finds counts
    bint slept                          # since now was last taken
    int stop
    uint64_t turns
    uint64_t sleeps
    uint64_t yields
    uint64_t lingered                   # sleeps put off ...
    uint64_t saved_sleeps               # ... and not needed
    uint64_t early                      # frames written by write_early
    ns_t shy_until                      # no yields before
    uint32_t run                        # packets since run_at
    ns_t run_at
    bint alone                          # nobody wanted the core: sleep if there is nothing else to do
    uint64_t helped                     # turns made by users' calls
    uint64_t direct                     # batches written by users' calls

# What is left to do after a turn, when no lock is held any more.
cdef struct after_t:
    posts_t posts
    idx_t touched[BATCH]                # sockets whose descriptor is to be looked at
    uint32_t n_touched
    int note                            # descriptor to write, -1 = none
    bint kick                           # the sleeping engine thread has to know of an earlier timer


# ---- one turn ----------------------------------------------------------------------------------------------------------------------
cdef inline void let_in(shared_t* s) noexcept nogil:
    """Users who sleep on the lock go first; bounded, so that they cannot starve the network."""
    cdef int i
    for i in range(LET_IN_TURNS):
        if atomic_load(&s.waiting) == 0:
            return
        sched_yield()


cdef uint32_t take_ready(engine_t* e, idx_t* touched) noexcept nogil:
    """Empty e.ready; returns how many sockets with a descriptor stand in touched (room for BATCH; the rest stays on the list)."""
    cdef tcb_t* sk
    cdef uint32_t n = 0
    while e.ready and n < BATCH:
        sk = sk_at(e, e.ready)
        e.ready = sk.ready_next
        sk.sflags &= ~<uint32_t> SF_IN_READY
        if sk.sflags & SF_HAS_FD:
            touched[n] = sk.idx
            n += 1
    return n


cdef void through_stages_in(loop_t* l, uint32_t n, ns_t now) noexcept nogil:
    """Received packets into the outermost queue; what has come through all of them is in l.late."""
    cdef uint32_t i
    cdef impkt_t p
    cdef rxpkt_t* r
    for i in range(n):
        r = &l.dev.pkts[i]
        im_push(l.stage_in[0], r.p, r.len, r.csum, r.gso_size, now)
    for i in range(l.n_stages - 1):
        while im_pop(l.stage_in[i], now, &p):
            im_push(l.stage_in[i + 1], p.data, p.len, p.csum, p.gso_size, now)
            free(p.data)
    l.n_late = 0
    while l.n_late < BATCH and im_pop(l.stage_in[l.n_stages - 1], now, &l.late[l.n_late]):
        l.n_late += 1


cdef void write_early(engine_t* e, txframe_t* f) noexcept nogil:
    """engine_t.doorbell of a thread that polls: the answer to a lone packet leaves when it is complete, before timers and counters have
    been seen to. The only write under the lock; it never waits."""
    cdef loop_t* l = <loop_t*> e.doorbell_arg
    if f.flags & TXF_LOCAL:
        return
    l.dev.hasty = True
    if dev_send_small(&l.dev, f) and not l.dev.full:
        f.flags |= TXF_SENT
        l.early += 1
    l.dev.hasty = False
    l.dev.full = False


cdef bint write_batch(loop_t* l, ns_t now) noexcept nogil:
    """False: the link is full and the caller does not wait (dev_t.hasty); the engine thread goes on from there."""
    cdef uint32_t i
    cdef uint32_t k
    cdef uint32_t n
    cdef txframe_t* f
    for i in range(l.written, l.batch.n):
        f = &l.batch.tx[i]
        if f.flags & (TXF_LOCAL | TXF_SENT):
            continue
        if l.n_stages == 0:
            dev_send_frame(&l.dev, l.e, f, now)
            if l.dev.full:
                l.dev.full = False
                l.written = i
                return False
            continue
        for k in range(tx_segs(f)):
            n = tx_segment(f, k, l.dev.seg)
            im_push(l.stage_out[0], l.dev.seg, n, CSUM_VERIFIED, 0, now)
    l.written = 0
    tx_batch_done(&l.batch)
    return True


cdef void through_stages_out(loop_t* l, ns_t now) noexcept nogil:
    cdef uint32_t i
    cdef impkt_t p
    if l.n_stages == 0:
        return
    for i in range(l.n_stages):
        while im_pop(l.stage_out[i], now, &p):
            if i + 1 < l.n_stages:
                im_push(l.stage_out[i + 1], p.data, p.len, p.csum, 0, now)
            else:
                dev_send_packet(&l.dev, l.e, p.data, p.len, now)
            free(p.data)


cdef ns_t stages_next(loop_t* l) noexcept nogil:
    cdef uint32_t i
    cdef ns_t t = NS_NEVER
    for i in range(l.n_stages):
        if im_next(l.stage_in[i]) < t:
            t = im_next(l.stage_in[i])
        if im_next(l.stage_out[i]) < t:
            t = im_next(l.stage_out[i])
    return t


cdef void receive_steered(loop_t* l, uint32_t n, ns_t now) noexcept nogil:
    """The packets of a shard: what others passed on, then the batch. Each goes to the engine or on to another shard."""
    cdef engine_t* e = l.e
    cdef msg_t* m
    cdef rxpkt_t* r
    cdef uint32_t i
    while l.inbox != NULL:
        m = l.inbox
        l.inbox = m.next
        l.wake |= shard_receive(l.group, e, m.data, m.len, m.csum, m.gso_size, m.asked, m.origin, m.settled, now)
        free(m)
    for i in range(n):
        r = &l.dev.pkts[i]
        l.wake |= shard_receive(l.group, e, r.p, r.len, r.csum, r.gso_size, 0, e.shard, False, now)


cdef void engine_turn(loop_t* l, uint32_t n, ns_t now, bint may_sleep, uint8_t due, bint helping, after_t* a) noexcept nogil:
    """Everything that happens under the lock. due: what of OWES_* does not wait any longer. helping: on a user's thread."""
    cdef engine_t* e = l.e
    cdef shared_t* s = l.s
    cdef uint32_t i
    cdef ns_t wake
    cdef rxpkt_t* r
    let_in(s)
    pthread_mutex_lock(&s.mu)
    engine_time(e, now)
    if not helping:
        engine_settle(e, OWES_PUSH, HOLD_NS)
    engine_batch(e, l.coalesce)
    if n == 1 and l.busy and l.dev.gso and not helping:
        e.doorbell_arg = l
        e.doorbell = <void*> &write_early
    if l.n_stages == 0:
        if n > 1:
            for i in range(n):
                engine_prefetch(e, l.dev.pkts[i].p, l.dev.pkts[i].len, 0)
            for i in range(n):
                engine_prefetch(e, l.dev.pkts[i].p, l.dev.pkts[i].len, 1)
            if engine_crowded(e):
                for i in range(n):
                    engine_prefetch(e, l.dev.pkts[i].p, l.dev.pkts[i].len, 2)
        if l.group != NULL:
            receive_steered(l, n, now)
        else:
            for i in range(n):
                r = &l.dev.pkts[i]
                engine_receive(e, r.p, r.len, r.csum, r.gso_size, now)
    else:
        for i in range(l.n_late):
            engine_receive(e, l.late[i].data, l.late[i].len, l.late[i].csum, l.late[i].gso_size, now)
    service_pump(e, l.scratch)      # answers before timers: somebody waits for them
    engine_poll(e, now)
    service_pump(e, l.scratch)      # what the timers have made ready
    e.doorbell = NULL
    engine_batch(e, False)
    engine_settle(e, due, HOLD_NS)
    engine_loop(e)
    a.n_touched = take_ready(e, a.touched)
    a.posts.n = 0
    if e.woken:
        take_woken(e, &a.posts)
        s.user_at = now
    tx_swap(e, &l.batch)
    a.note = s.note_fd if note_due(e, s) else -1
    if helping:
        a.kick = atomic_load(&s.sleeping) and not atomic_load(&s.yielding) and sleeper_needed(e, s)
    else:
        wake = i64_min(engine_next_bound(e), e.owed_at + HOLD_NS if e.n_owed else NS_NEVER)
        if s.wake_at <= now or wake < s.wake_at:
            s.wake_at = wake
        if may_sleep and e.ready == 0 and e.woken == 0:
            atomic_swap(&s.sleeping, 1)
            atomic_swap(&s.yielding, due == OWES_ACK)   # before users' threads, who may take the core at any time, look at it
    pthread_mutex_unlock(&s.mu)
    if l.n_stages:
        for i in range(l.n_late):
            free(l.late[i].data)
        l.n_late = 0


cdef inline void finish_turn(loop_t* l, after_t* a) noexcept nogil:
    """What a turn has left to do, without any lock: those who are woken may run at once."""
    cdef uint64_t one = 1
    if a.note >= 0:
        fd_write(a.note, &one, 8)
    if a.n_touched:
        mirror_sync(l.mirrors, l.e, l.s, a.touched, a.n_touched)
    if a.posts.n:
        post_all(&a.posts)


# ---- users at the link -----------------------------------------------------------------------------------------------------------------
cdef inline bint loop_try(loop_t* l) noexcept nogil:
    """Take the link for a user's thread, which never waits for it; not while impairments delay packets or a batch is half written."""
    if l == NULL or l.n_stages or pthread_mutex_trylock(&l.drive) != 0:
        return False
    if l.written or l.batch.n:
        pthread_mutex_unlock(&l.drive)
        return False
    return True


cdef loop_t* loop_claim(engine_t* e, shared_t* s) noexcept nogil:
    """For a user call with frames to send, under the lock: take them, and the link, if it is free and they are few. loop_write must follow."""
    cdef loop_t* l = s.loop
    cdef uint32_t i
    cdef uint32_t bytes = 0
    if l == NULL or e.tx_n > DIRECT_FRAMES:
        return NULL
    for i in range(e.tx_n):
        bytes += tx_payload(&e.tx[i])
        if not l.dev.gso and tx_segs(&e.tx[i]) > 1:
            return NULL
    if bytes > DIRECT_BYTES or not loop_try(l):
        return NULL
    tx_swap(e, &l.batch)
    return l


cdef bint loop_write(loop_t* l) noexcept nogil:
    """Write what loop_claim took and give up the link. False: it is full, the engine thread has to go on."""
    cdef bint done
    l.dev.hasty = not l.dev.ether
    done = write_batch(l, l.e.now)
    l.dev.hasty = False
    l.direct += 1
    pthread_mutex_unlock(&l.drive)
    return done


cdef bint loop_help(loop_t* l) noexcept nogil:
    """A turn by a user's thread that is about to sleep and has claimed the link, which it gives up. False: nothing came."""
    cdef ns_t now = clock_ns()
    cdef uint32_t n = dev_read_batch(&l.dev, l.e, now)
    cdef after_t after
    if n == 0:
        pthread_mutex_unlock(&l.drive)
        return False
    engine_turn(l, n, now, False, OWES_ACK if atomic_load(&l.s.yielding) else OWES_ALL, True, &after)
    l.helped += 1
    write_batch(l, now)
    pthread_mutex_unlock(&l.drive)
    finish_turn(l, &after)
    if after.kick:
        wake_sleeper(l.s)
    return True


# ---- the loop ------------------------------------------------------------------------------------------------------------------------
cdef inline void take_link(loop_t* l) noexcept nogil:
    """For the engine thread. A user's thread has the link shortly: on another core it is waited for awake."""
    cdef ns_t limit
    if pthread_mutex_trylock(&l.drive) == 0:
        return
    if l.s.user_cpu != l.s.engine_cpu:
        limit = clock_ns() + SPIN_NS
        while clock_ns() < limit:
            cpu_relax()
            if pthread_mutex_trylock(&l.drive) == 0:
                return
    pthread_mutex_lock(&l.drive)


cdef inline void count_run(loop_t* l, uint32_t n, ns_t now) noexcept nogil:
    """How much there is to do (shared_t.crowd): packets in a millisecond."""
    l.run += n
    if now - l.run_at >= IDLE_NS:
        l.s.crowd = <uint32_t> (l.run * <ns_t> IDLE_NS // (now - l.run_at))
        l.run = 0
        l.run_at = now


cdef void loop_run(loop_t* l) noexcept nogil:
    """Until loop_t.stop; the last turn still writes what the engine has to say."""
    cdef ns_t now
    cdef ns_t t
    cdef uint32_t n
    cdef bint last
    cdef bint sleepy
    cdef after_t after
    cdef uint8_t due
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    while True:
        last = atomic_load(&l.stop) != 0
        take_link(l)
        l.s.engine_cpu = sched_getcpu()
        now = clock_ns()
        if l.slept:
            l.s.idle_at = now
            l.slept = False
        if l.batch.n:
            write_batch(l, now)
        n = dev_read_batch(&l.dev, l.e, now)
        if l.busy:
            if n == 0 and l.lively:
                n = busy_poll(l, &now)
            if n:
                note_arrival(l, now)
        elif n == 0 and l.fresh and not last and may_linger(l, now):
            n = linger(l, &now)
        l.fresh = n != 0
        if n == BATCH:
            now = clock_ns()
        if l.n_stages:
            through_stages_in(l, n, now)
        # After packets the link is read once more before the sleep: while they were served the next ones came, and a read costs
        # less than a poll.
        if l.group != NULL:
            l.inbox = inbox_take(&l.group.inbox[l.e.shard])
        sleepy = n == 0 and l.inbox == NULL and not last and l.n_late < BATCH
        if l.busy and l.lively and now - l.last_rx < l.busy:
            sleepy = False              # there was other work; go on reading
        if foresees_sleep(l, n, now) and not (last or l.busy or l.n_stages or l.group != NULL or shares_core(l, now)):
            sleepy = True
        due = what_is_due(l, now, sleepy, last)
        l.alone = False
        count_run(l, n, now)
        engine_turn(l, n, now, sleepy, due, False, &after)
        l.turns += 1
        if l.wake:
            shards_wake(l.group, l.wake)
            l.wake = 0
        if l.batch.n:
            write_batch(l, now)
        else:
            tx_batch_done(&l.batch)
        through_stages_out(l, now)
        pthread_mutex_unlock(&l.drive)
        finish_turn(l, &after)
        if last:
            return
        if sleepy and l.group != NULL and atomic_load(&l.group.inbox[l.e.shard].n):
            atomic_swap(&l.s.sleeping, 0)       # a message came since we looked
        if atomic_load(&l.s.yielding) and yield_core(l):
            continue
        if sleepy and atomic_load(&l.s.sleeping):
            t = stages_next(l)
            if l.s.wake_at < t:
                t = l.s.wake_at
            sleep_until(l, t)


# ---- as Python sees it -------------------------------------------------------------------------------------------------------------
cdef class Loop:
    """The loop of one engine thread: run() returns after stop(). fd: the link's descriptor (non-blocking), -1 for none.

    kind: "ip" (one IPv4 packet per read and write) or "ether" (Ethernet frames; mac, network and gateway are the link's).
    vnet: a virtio_net_hdr stands in front of each packet; gso: super-segments and open checksums may go out.
    stages: Impairments, the one next to the stack first. coalesce: the segments of a batch share an ACK; False: each gets its own,
    as Linux without GRO. shards: the group that engine is one of. busy_poll_ns: read on for
    so long after a packet before the thread sleeps; None: shortly, while that costs no more than the sleeps that it saves; 0: not at all.
    """

    cdef loop_t* l
    cdef readonly Engine engine
    cdef readonly tuple stages
    cdef readonly Shards shards

    def __cinit__(self, Engine engine not None, int fd, int wake_fd, *, kind="ip", bint vnet=False, bint gso=False, mac=None,
                  network=None, gateway=None, stages=(), bint coalesce=True, Shards shards=None,
                  busy_poll_ns=None):
        cdef uint32_t i
        cdef bytes raw
        cdef Impairment one
        if kind not in ("ip", "ether"):
            raise ValueError(f"kind is 'ip' or 'ether', not {kind!r}")
        if len(stages) > MAX_STAGES:
            raise ValueError(f"at most {MAX_STAGES} impairments on one link")
        self.engine = engine
        self.stages = tuple(stages)
        self.l = <loop_t*> calloc(1, sizeof(loop_t))
        if self.l == NULL:
            raise MemoryError
        self.l.e = engine.e
        self.l.s = &engine.s
        if engine.mirrors == NULL:
            engine.mirrors = mirrors_new()
            if engine.mirrors == NULL:
                raise MemoryError
        self.l.mirrors = engine.mirrors
        self.l.dev.fd = fd
        self.l.dev.vnet = vnet
        self.l.dev.gso = vnet and gso
        self.l.dev.ether = kind == "ether"
        if self.l.dev.ether:
            raw = bytes(mac)
            memcpy(self.l.dev.mac, PyBytes_AS_STRING(raw), 6)
            if network is not None:
                self.l.dev.net = undotted(network[0])
                self.l.dev.mask = 0 if network[1] == 0 else <uint32_t> (0xffffffffULL << (32 - <int> network[1]))
                self.l.dev.net &= self.l.dev.mask
            self.l.dev.gateway = undotted(gateway)
        i = 0
        for one in stages:
            self.l.stage_out[i] = &one.d[IM_OUT]
            self.l.stage_in[len(stages) - 1 - i] = &one.d[IM_IN]
            i += 1
        self.l.n_stages = i
        self.l.coalesce = coalesce
        self.l.busy = 0 if stages or busy_poll_ns is None else busy_poll_ns     # impaired packets have times of their own
        self.l.hurries = busy_poll_ns == 0
        count_linger(self.l, LINGER_TRIES * LINGER_NS)
        self.shards = shards
        if shards is not None:
            if stages:
                raise ValueError("an impaired link has one queue")
            self.l.group = shards.g
        self.l.scratch = <uint8_t*> malloc(SVC_CHUNK)
        if dev_init(&self.l.dev) < 0 or self.l.scratch == NULL:
            raise MemoryError
        engine.s.wake_fd = wake_fd
        engine.s.real_clock = 1
        pthread_mutex_init(&self.l.drive, NULL)

    def __dealloc__(self):
        if self.l != NULL:
            pthread_mutex_destroy(&self.l.drive)
            dev_free(&self.l.dev)
            free(self.l.scratch)
            tx_batch_free(&self.l.batch)
            free(self.l)

    def run(self):
        """The engine thread's life. Without the GIL."""
        cdef loop_t* l = self.l
        with nogil:
            pthread_mutex_lock(&l.s.mu)
            l.s.loop = l
            l.s.may_hold = l.coalesce
            pthread_mutex_unlock(&l.s.mu)
            loop_run(l)
            pthread_mutex_lock(&l.s.mu)
            l.s.loop = NULL
            l.s.may_hold = False
            pthread_mutex_unlock(&l.s.mu)
            pthread_mutex_lock(&l.drive)        # users who are at the link leave it
            pthread_mutex_unlock(&l.drive)

    def stop(self):
        """Ask the loop to end; it writes what is waiting to be sent first."""
        cdef uint64_t one = 1
        atomic_swap(&self.l.stop, 1)
        fd_write(self.l.s.wake_fd, &one, 8)

    def counters(self):
        """What the link carried and how the loop ran: turns, sleeps, yields of the core, turns made and batches written by users' calls."""
        return {
            "rx_packets": self.l.dev.rx_packets, "rx_bytes": self.l.dev.rx_bytes, "tx_packets": self.l.dev.tx_packets,
            "tx_bytes": self.l.dev.tx_bytes, "tx_errors": self.l.dev.tx_errors, "tx_dropped": self.l.dev.tx_dropped,
            "turns": self.l.turns, "sleeps": self.l.sleeps, "yields": self.l.yields,
            "lingered": self.l.lingered, "saved_sleeps": self.l.saved_sleeps, "early": self.l.early, "helped": self.l.helped, "direct": self.l.direct,
            "failed": self.l.dev.failed,
        }


def kill(Engine engine not None):
    """The stack has stopped: every handle is EBADF from now on, and blocked calls come back."""
    cdef idx_t i
    acquire(engine.e, &engine.s)
    engine.s.dead = 1
    engine.s.wake_fd = -1
    engine.s.note_fd = -1
    for i in range(1, engine.e.tcb.high + 1):
        if pool_gen(&engine.e.tcb, i) & 1:
            while sk_at(engine.e, i).waiters:
                waiter_finish(engine.e, sk_at(engine.e, i).waiters, WT_WOKEN)
    release(engine.e, &engine.s)


# ---- fork: the child gets a consistent engine that refuses every call ----------------------------------------------------------------
def fork_before(Engine engine not None):
    if engine.mirrors != NULL:
        pthread_mutex_lock(&engine.mirrors.mu)
    pthread_mutex_lock(&engine.s.mu)


def fork_after(Engine engine not None, bint child):
    if child:
        engine.s.dead = 1
        engine.s.wake_fd = -1
        engine.s.note_fd = -1
        engine.s.waiting = 0
        engine.s.loop = NULL
    pthread_mutex_unlock(&engine.s.mu)
    if engine.mirrors != NULL:
        pthread_mutex_unlock(&engine.mirrors.mu)


# ---- blocked calls -------------------------------------------------------------------------------------------------------------------
cdef bint still_blocked(engine_t* e, tcb_t* sk, uint32_t events) noexcept nogil:
    """Would the call that found nothing a moment ago still find nothing? events 0: a lingering close."""
    if events == 0:
        return close_is_lingering(sk)
    return sk.sk_err == 0 and not user_poll(e, sk) & (events | POLLHUP)


cdef int wait_once(int* word, ns_t deadline) noexcept nogil:
    """Sleep on the word of a blocked call: 0 = posted, else errno."""
    cdef timespec ts
    cdef int rc = 0
    ts.tv_sec = deadline // 1000000000
    ts.tv_nsec = deadline % 1000000000
    while rc == 0 or rc == -E_AGAIN:
        if atomic_turn(word, CALL_POSTED, CALL_IDLE):
            return 0
        atomic_turn(word, CALL_IDLE, CALL_SLEEPS)
        rc = futex_wait(word, CALL_SLEEPS, NULL if deadline == NS_NEVER else &ts)
    return -rc


cdef int wait_posted(engine_t* e, idx_t w, int* word, ns_t deadline) noexcept nogil:
    """As wait_once, until waiter w is no longer waiting: its word may be told of what became of the one who had it before."""
    cdef int rc = 0
    while rc == 0 and peek8(&wait_at(e, w).state) == WT_WAITING:
        rc = wait_once(word, deadline)
    return rc


cdef int* wait_word(shared_t* s, idx_t w) noexcept nogil:
    """The word of waiter w, fresh. Under the lock."""
    atomic_swap(&s.words[w], CALL_IDLE)
    return &s.words[w]


cdef int sleep_or_help(engine_t* e, shared_t* s, loop_t* l, idx_t w, int* word, ns_t deadline) noexcept nogil:
    """Sleep until waiter w is released: 0, or errno. l: the link has been claimed, and is read first, since what we wait for may have come."""
    cdef int turns = 0
    while l != NULL:
        turns += 1
        if not loop_help(l) or turns == HELP_TURNS or peek8(&wait_at(e, w).state) != WT_WAITING or not loop_try(l):
            break
    if peek8(&wait_at(e, w).state) == WT_WAITING:
        s.user_at = 0
    return wait_posted(e, w, word, deadline)


def block(Engine engine not None, uint64_t h, uint32_t events, deadline=None, bint exclusive=False):
    """Sleep until the socket has one of the poll bits `events` (0: until a lingering close is over), an error, or the deadline (ns of
    CLOCK_MONOTONIC). False: the deadline passed. Signals are handled; what a handler raises ends the wait."""
    cdef ns_t t = NS_NEVER if deadline is None else deadline
    cdef tcb_t* sk = engine._enter(h)
    cdef bint woken = block_entered(engine, sk, h, events, t, exclusive)
    release(engine.e, &engine.s)
    return woken


cdef bint block_entered(Engine engine, tcb_t* sk, uint64_t h, uint32_t events, ns_t t, bint exclusive) except -1:
    """block() for who has the lock, and has it again at the end, when the socket may be gone; an exception leaves it free."""
    cdef engine_t* e = engine.e
    cdef shared_t* s = &engine.s
    cdef loop_t* l
    cdef int* word
    cdef idx_t w
    cdef int rc
    if not still_blocked(e, sk, events):
        return True
    w = user_wait(e, sk, events, exclusive, NS_NEVER, NULL, 0)
    if w == 0:
        release(e, s)
        raise failure(E_NOBUFS, "too many blocked calls")
    word = wait_word(s, w)
    wait_at(e, w).word = word
    l = s.loop
    if l != NULL and (l.group != NULL or s.user_cpu != s.engine_cpu or not loop_try(l)):
        l = NULL
    release(e, s)
    try:
        while True:
            with nogil:
                rc = sleep_or_help(e, s, l, w, word, t)
                l = NULL
            if rc != E_INTR:
                break
            PyErr_CheckSignals()
    except BaseException:
        unblock(engine, h, w, exclusive, events)
        raise
    acquire(e, s)
    rc = wait_at(e, w).state
    user_wait_done(e, w)
    return rc == WT_WOKEN


def block_any(list places, uint32_t events, deadline=None):
    """As an exclusive block() on several sockets, [(engine, handle), ...] of different engines: the number of one that woke us, -1 at
    the deadline. What else woke meanwhile goes to the next caller in line."""
    cdef ns_t t = NS_NEVER if deadline is None else deadline
    cdef Engine engine
    cdef tcb_t* sk
    cdef int* word = NULL
    cdef idx_t w
    cdef int rc
    cdef int woken = -1
    cdef list waits = []
    try:
        for engine, h in places:
            sk = engine._enter(h)
            if not still_blocked(engine.e, sk, events):
                release(engine.e, &engine.s)
                woken = len(waits)
                break
            w = user_wait(engine.e, sk, events, True, NS_NEVER, NULL, 0)
            if w:
                word = wait_word(&engine.s, w) if word == NULL else word
                wait_at(engine.e, w).word = word
            release(engine.e, &engine.s)
            if w == 0:
                raise failure(E_NOBUFS, "too many blocked calls")
            waits.append(w)
        while woken < 0 and not any_released(places, waits):
            with nogil:
                rc = wait_once(word, t)
            if rc == E_INTR:
                PyErr_CheckSignals()
            elif rc:
                break
    except BaseException:
        for (engine, h), w in zip(places, waits):
            unblock(engine, h, w, True, events)
        raise
    for i, ((engine, h), w) in enumerate(zip(places, waits)):
        if unblock(engine, h, w, woken >= 0, events) == WT_WOKEN and woken < 0:
            woken = i
    return woken


cdef bint any_released(list places, list waits):
    """Has one of these waits ended?"""
    cdef Engine engine
    for (engine, _), w in zip(places, waits):
        if peek8(&wait_at(engine.e, <idx_t> w).state) != WT_WAITING:
            return True
    return False


cdef int unblock(Engine engine, uint64_t h, idx_t w, bint pass_on, uint32_t events):
    """Give the waiter back; a wake-up that this caller will not use goes to the next one."""
    cdef int state
    cdef tcb_t* sk
    acquire(engine.e, &engine.s)
    state = wait_at(engine.e, w).state
    user_wait_done(engine.e, w)
    if pass_on and state == WT_WOKEN and not engine.s.dead:
        sk = engine._at(h)
        if sk != NULL:
            sk_wake(engine.e, sk, events)
    release(engine.e, &engine.s)
    return state


# ---- descriptors ---------------------------------------------------------------------------------------------------------------------
def mirror_add(Engine engine not None, uint64_t h, int user_fd, int peer_fd):
    """From now on user_fd polls as the socket does."""
    cdef mirrors_t* ms
    cdef uint32_t slot
    cdef idx_t i
    cdef tcb_t* sk
    if engine.mirrors == NULL:
        engine.mirrors = mirrors_new()
        if engine.mirrors == NULL:
            raise MemoryError
    ms = engine.mirrors
    pthread_mutex_lock(&ms.mu)
    if ms.of == NULL:
        ms.of = <uint32_t*> calloc(<size_t> engine.e.tcb.cap + 1, sizeof(uint32_t))
    slot = 0xffffffffU if ms.of == NULL else mirror_slot(ms)
    if slot == 0xffffffffU:
        pthread_mutex_unlock(&ms.mu)
        raise MemoryError
    i = <idx_t> (h & 0xffffffffULL)
    pthread_mutex_lock(&engine.s.mu)
    sk = engine._at(h)
    if sk != NULL:
        sk.sflags |= SF_HAS_FD
        ms.slots[slot].handle = h
        ms.slots[slot].user_fd = user_fd
        ms.slots[slot].peer_fd = peer_fd
        ms.slots[slot].shown = SHOW_WRITE
        ms.slots[slot].wake_seq = sk.wake_seq
        ms.of[i] = slot + 1
    pthread_mutex_unlock(&engine.s.mu)
    pthread_mutex_unlock(&ms.mu)
    if sk == NULL:
        raise failure(E_BADF, None)
    mirror_sync(ms, engine.e, &engine.s, &i, 1)


def mirror_remove(Engine engine not None, uint64_t h):
    """(user_fd, peer_fd) are no longer touched: the caller closes them. None if there were none."""
    cdef mirrors_t* ms = engine.mirrors
    cdef idx_t i = <idx_t> (h & 0xffffffffULL)
    cdef uint32_t slot
    cdef tcb_t* sk
    if ms == NULL or ms.of == NULL or i > engine.e.tcb.cap:
        return None
    pthread_mutex_lock(&ms.mu)
    slot = ms.of[i]
    if slot == 0 or ms.slots[slot - 1].handle != h:
        pthread_mutex_unlock(&ms.mu)
        return None
    ms.of[i] = 0
    pthread_mutex_lock(&engine.s.mu)
    sk = engine._at(h)
    if sk != NULL:
        sk.sflags &= ~<uint32_t> SF_HAS_FD
    pthread_mutex_unlock(&engine.s.mu)
    user_fd = ms.slots[slot - 1].user_fd
    peer_fd = ms.slots[slot - 1].peer_fd
    ms.slots[slot - 1].user_fd = -1
    pthread_mutex_unlock(&ms.mu)
    return user_fd, peer_fd


def show_ready(Engine engine not None):
    """Empty the list of sockets with wake-ups; their descriptors show it. What the engine thread does each turn, for a driver without one."""
    cdef idx_t touched[BATCH]
    cdef uint32_t n
    while engine.e.ready:
        acquire(engine.e, &engine.s)
        n = take_ready(engine.e, touched)
        release(engine.e, &engine.s)
        if n:
            mirror_sync(engine.mirrors, engine.e, &engine.s, touched, n)
