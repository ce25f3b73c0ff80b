# Hooks as Python sees them: registering a C op-table, the op-table that calls Python functions, parked segments. Included by _fastpath.pyx.
#
# Two tables can hang on an engine: a user's C table (copied from its capsule) and ours, whose ops call ustack/hooks.py. In a stack without
# a thread our ops are called synchronously, in the middle of the core, under the lock: such a function may look at the stack (acquire_view)
# but not act on it. Beside an engine thread none of them takes the GIL: the ack op parks the segment before anything has changed,
# and resume_parked, on a thread of its own, asks Python without the lock and lets the segment go on with the verdict.

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

cdef class Engine

cdef enum:
    PARK_MAX = 4096             # segments that wait for a verdict; more are discarded, their senders repeat them
    # which ops of our table are wanted; bits of hooks_enable
    OP_SYN = 1
    OP_SELECT = 2
    OP_OVERFLOW = 4
    OP_COOKIE = 8
    OP_SYNACK = 16
    OP_ACK = 32
    OP_ESTABLISHED = 64
    OP_QUEUED = 128
    OP_STATE = 256
    OP_RETRANS = 512
    OP_RTO = 1024
    OP_RTT = 2048
    OP_DROP = 4096
    OP_PARK = 8192

cdef struct parked_t:
    parked_t* next
    hook_ack_t a                # without the packet pointer
    uint32_t len
    uint8_t data[1]

cdef struct verdict_t:          # of the segment that goes on now
    uint8_t active
    uint8_t verdict
    flow_t flow
    uint32_t isn
    hook_conn_t conn            # settings for the child

cdef struct pyhooks_t:
    hooks_t table               # ours
    hooks_t user                # the user's, copied
    uint8_t has_user
    uint32_t mask               # OP_*
    void* engine                # the Engine, borrowed
    shared_t* s                 # of the engine; s.parked counts the segments below
    parked_t* head
    parked_t* tail
    uint64_t park_lost
    verdict_t now


cdef pyhooks_t* pyhooks_of(Engine engine) except NULL:
    if engine.ph == NULL:
        engine.ph = <pyhooks_t*> calloc(1, sizeof(pyhooks_t))
        if engine.ph == NULL:
            raise MemoryError
        engine.ph.engine = <void*> engine
        engine.ph.s = &engine.s
    return engine.ph


cdef void pyhooks_free(pyhooks_t* ph) noexcept:
    cdef parked_t* p
    if ph == NULL:
        return
    while ph.head != NULL:
        p = ph.head
        ph.head = p.next
        free(p)
    free(ph)


cdef void relink(engine_t* e, pyhooks_t* ph) noexcept nogil:
    """The chain: the user's table, then ours; NULL if both are empty. Under the lock."""
    cdef hooks_t* ours = &ph.table if ph.mask else NULL
    ph.table.next = NULL
    ph.user.next = ours
    e.hooks = &ph.user if ph.has_user else ours


def set_hooks(Engine engine not None, capsule):
    """Install the hooks_t in a PyCapsule named "ustack.core.hooks.hooks_t" (None: take it away). The struct is copied; what its functions and
    its user pointer refer to has to outlive the engine or the next call. ValueError for another capsule or another version."""
    cdef const hooks_t* given = NULL
    cdef pyhooks_t* ph = pyhooks_of(engine)
    if capsule is not None:
        if not PyCapsule_IsValid(capsule, HOOKS_CAPSULE):
            raise ValueError(f"set_hooks wants a PyCapsule named {(<bytes> HOOKS_CAPSULE).decode()!r} (ustack/core/hooks.pxd)")
        given = <const hooks_t*> PyCapsule_GetPointer(capsule, HOOKS_CAPSULE)
        if given.version != HOOKS_VERSION:
            raise ValueError(f"the op-table is of version {given.version}, this ustack has {HOOKS_VERSION}: compile it again")
    acquire(engine.e, &engine.s)
    ph.has_user = given != NULL
    if given != NULL:
        ph.user = given[0]
    relink(engine.e, ph)
    release(engine.e, &engine.s)
    engine.capsule = capsule


def hooks_enable(Engine engine not None, uint32_t mask):
    """Which ops of our own table are wanted: OP_* bits. RuntimeError inside a hook."""
    cdef pyhooks_t* ph = pyhooks_of(engine)
    cdef hooks_t* t = &ph.table
    acquire(engine.e, &engine.s)
    memset(t, 0, sizeof(hooks_t))
    t.version = HOOKS_VERSION
    t.user = <void*> ph
    if mask & OP_SYN:
        t.syn = py_syn
    if mask & OP_SELECT:
        t.select = py_select
    if mask & OP_OVERFLOW:
        t.overflow = py_overflow
    if mask & OP_COOKIE:
        t.cookie = py_cookie
    if mask & OP_SYNACK:
        t.synack = py_synack
    if mask & OP_ACK:
        t.ack = py_ack
    if mask & OP_ESTABLISHED:
        t.established = py_conn
    if mask & OP_QUEUED:
        t.acceptq = py_queued
    if mask & OP_STATE:
        t.state = py_conn
    if mask & OP_RETRANS:
        t.retrans = py_conn
    if mask & OP_RTO:
        t.rto = py_conn
    if mask & OP_RTT:
        t.rtt = py_conn
    if mask & OP_DROP:
        t.drop = py_drop
    if mask & OP_PARK:
        t.ack = park_ack
        t.established = park_established
    ph.mask = mask
    relink(engine.e, ph)
    release(engine.e, &engine.s)


def share_hooks(engines):
    """Give the engines of one stack their HookSets, which share the functions: on() and remove() at one count for all."""
    from ustack.hooks import HookSet
    cdef Engine engine
    shards = []
    for number, engine in enumerate(engines):
        engine.hookset = HookSet(engine, number, shards)


# ---- calling Python ----------------------------------------------------------------------------------------------------------------
cdef object ask(Engine engine, str name, dict fields):
    """The view after every function of this hook has seen it, or None. Called under the lock, by the thread that holds it."""
    cdef int depth = engine.s.in_hook
    cdef unsigned long thread = engine.s.hook_thread
    engine.s.hook_thread = <unsigned long> pthread_self()
    engine.s.in_hook = 1
    try:
        return engine.hookset.run(name, fields)
    except BaseException as exc:
        engine.hookset.interrupted(exc)
        return None
    finally:
        engine.s.in_hook = depth
        engine.s.hook_thread = thread


cdef dict flow_fields(const flow_t* f):
    return {"local": (dotted(f.laddr), f.lport), "peer": (dotted(f.faddr), f.fport)}


cdef dict queue_fields(const flow_t* f, const hook_queue_t* q):
    d = flow_fields(f)
    d.update(listener=q.listener, qlen=q.qlen, young=q.young, accept_queue=q.ackq, backlog=q.maxq)
    return d


cdef void py_syn(void* user, hook_syn_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = queue_fields(&a.flow, &a.q)
    fields.update(
        packet=(<char*> a.packet)[:a.packet_len], seq=a.seq, peer_window=a.window, payload=a.payload, peer_mss=a.peer_mss or None,
        peer_wscale=a.peer_wscale if a.opts & OPT_WSCALE else None, sack_ok=bool(a.opts & OPT_SACKOK),
        tsval=a.tsval if a.opts & OPT_TS else None, tos=a.tos, ttl=a.ttl, ecn=bool(a.ecn), time_wait=bool(a.time_wait))
    view = ask(engine, "syn", fields)
    if view is None:
        return
    chosen = view.chosen
    if view.verdict:
        a.verdict = view.verdict
    if "isn" in chosen:
        a.set |= SYN_ISN
        a.isn = chosen["isn"]
    if "mss" in chosen:
        a.set |= SYN_MSS
        a.mss = chosen["mss"]
    if "window" in chosen:
        a.set |= SYN_WINDOW
        a.window_out = chosen["window"]
    if "rwnd_init" in chosen:
        a.set |= SYN_RWND_INIT
        a.rwnd_init = chosen["rwnd_init"]
    if "rto_ms" in chosen:
        a.set |= SYN_RTO
        a.rto_ms = chosen["rto_ms"]
    if "needs_ecn" in chosen:
        a.set |= SYN_NEEDS_ECN
        a.needs_ecn = chosen["needs_ecn"]
    if "evict" in chosen:
        a.set |= SYN_EVICT
        a.evict_addr = undotted_or_0(chosen["evict"][0])
        a.evict_port = chosen["evict"][1]


cdef uint32_t undotted_or_0(text) noexcept:
    try:
        return undotted(text)
    except OSError:
        return 0


cdef void py_select(void* user, hook_select_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = flow_fields(&a.flow)
    fields.update(hash=a.hash, members=a.n, default=a.choice, migrating=(None, "request", "connection")[a.migrating])
    view = ask(engine, "reuseport", fields)
    if view is not None and "member" in view.chosen:
        a.choice = view.chosen["member"]


cdef void py_overflow(void* user, hook_overflow_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = queue_fields(&a.flow, &a.q)
    fields["queue"] = "syn" if a.queue == QUEUE_SYN else "accept"
    fields["at"] = "ack" if a.queue == QUEUE_ACCEPT_ACK else "syn"
    view = ask(engine, "overflow", fields)
    if view is not None and view.verdict:
        a.verdict = view.verdict


cdef void py_cookie(void* user, hook_cookie_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = flow_fields(&a.flow)
    fields.update(listener=a.listener, seq=a.seq, tsval=a.tsval)
    if a.checking:
        fields.update(cookie=a.cookie, tsecr=a.tsecr)
    else:
        fields.update(mss=a.mss, sack=bool(a.sack), wscale=a.wscale if a.wscale_ok else None, ecn=bool(a.ecn))
    view = ask(engine, "cookie_check" if a.checking else "cookie_make", fields)
    if view is None:
        return
    chosen = view.chosen
    if not a.checking:
        if "cookie" in chosen:
            a.taken = 1
            a.cookie = chosen["cookie"]
            a.keeps_options = chosen.get("keeps_options", 0)
        return
    if view.verdict == HOOK_DROP:
        a.taken = 1
        a.valid = 0
    elif "mss" in chosen:
        a.taken = 1
        a.valid = 1
        a.mss = chosen["mss"]
        a.keeps_options = chosen.get("keeps_options", 0)
        a.sack = chosen.get("sack", 0)
        a.ecn = chosen.get("ecn", 0)
        a.wscale_ok = "wscale" in chosen
        a.wscale = chosen.get("wscale", 0)


cdef void py_synack(void* user, hook_synack_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = queue_fields(&a.flow, &a.q)
    fields.update(isn=a.isn, num_timeout=a.num_timeout, num_retrans=a.num_retrans, tries=a.tries, acked=bool(a.acked))
    view = ask(engine, "synack", fields)
    if view is None:
        return
    if view.verdict:
        a.verdict = view.verdict
    if "next_ms" in view.chosen:
        a.next_ms = view.chosen["next_ms"]


cdef dict ack_fields(const hook_ack_t* a, const uint8_t* packet, uint32_t n):
    fields = queue_fields(&a.flow, &a.q)
    fields.update(packet=(<char*> packet)[:n], isn=a.isn, client_isn=a.irs, payload=a.payload, num_timeout=a.num_timeout,
                  num_retrans=a.num_retrans, mss=a.mss, cookie=bool(a.cookie))
    return fields


cdef void py_ack(void* user, hook_ack_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    view = ask(engine, "ack", ack_fields(a, a.packet, a.packet_len))
    if view is not None and view.verdict:
        a.verdict = view.verdict


cdef void py_queued(void* user, hook_acceptq_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = queue_fields(&a.flow, &a.q)
    fields["handle"] = a.handle
    view = ask(engine, "queued", fields)
    if view is not None and view.verdict:
        a.verdict = view.verdict


cdef void take_conn_settings(dict chosen, hook_conn_t* a) except *:
    if "cwnd" in chosen:
        a.set |= CONN_CWND
        a.cwnd = chosen["cwnd"]
    if "ssthresh" in chosen:
        a.set |= CONN_SSTHRESH
        a.ssthresh = chosen["ssthresh"]
    if "rto_ms" in chosen:
        a.set |= CONN_RTO
        a.rto_ms = chosen["rto_ms"]
    if "tos" in chosen:
        a.set |= CONN_TOS
        a.tos = chosen["tos"]


cdef void py_conn(void* user, hook_conn_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = flow_fields(&a.flow)
    fields.update(handle=a.handle, state=a.state, cwnd_now=a.snd_cwnd, ssthresh_now=a.snd_ssthresh, srtt_us=a.srtt_us,
                  mss=a.mss, rto_now_ms=a.rto_now // 1000000)
    if a.what == CONN_ESTABLISHED:
        name = "established"
        fields["passive"] = bool(a.passive)
    elif a.what == CONN_STATE:
        name = "state"
        fields["new_state"] = a.new_state
    elif a.what == CONN_RETRANS:
        name = "retransmit"
        fields.update(seq=a.seq, segs=a.segs, err=a.err)
    elif a.what == CONN_RTO_FIRED:
        name = "rto"
        fields.update(retransmits=a.retransmits, expired=bool(a.expired))
    else:
        name = "rtt"
        fields["rtt_us"] = a.rtt_us
    view = ask(engine, name, fields)
    if view is None:
        return
    if view.verdict:
        a.verdict = view.verdict
    take_conn_settings(view.chosen, a)


cdef void py_drop(void* user, hook_drop_t* a) noexcept with gil:
    cdef Engine engine = <Engine> (<pyhooks_t*> user).engine
    fields = flow_fields(&a.flow)
    fields.update(reason=DROP_NAMES[a.reason], listener=a.listener or None, packet=(<char*> a.packet)[:a.packet_len])
    view = ask(engine, "drop", fields)
    if view is not None and view.verdict:
        a.verdict = view.verdict


# ---- calls of the user: asked before the lock is taken -------------------------------------------------------------------------------
cdef int ask_listen(Engine engine, uint64_t h, int64_t backlog) except -1:
    """OSError if a hook refuses; nothing has changed then."""
    cdef tcb_t* sk = engine._enter(h)
    cdef bint first = sk.state != TCP_LISTEN
    cdef bint legal = sk.state == TCP_CLOSE or sk.state == TCP_LISTEN
    cdef uint32_t addr = sk.rcv_saddr
    cdef uint16_t port = sk_lport(sk)
    engine._leave(0, None)
    if legal:
        view = engine.hookset.run("listen", {"handle": h, "local": (dotted(addr), port), "first": first, "backlog": backlog})
        if view is not None and view.verdict:
            raise failure(view.verdict, "a listen hook refused")
    return 0


cdef uint32_t ask_connect(Engine engine, uint64_t h, uint32_t addr, uint16_t port) except? 0xffffffff:
    """OSError if a hook refuses; else the first timeout of the SYN in ms, 0 = the usual. Only for a connect() that sends a SYN."""
    cdef tcb_t* sk = engine._enter(h)
    cdef bint fresh = sk.state == TCP_CLOSE
    cdef flow_t f = flow_t(sk.rcv_saddr, addr, sk_lport(sk), port)
    engine._leave(0, None)
    if not fresh:
        return 0
    fields = flow_fields(&f)
    fields["handle"] = h
    view = engine.hookset.run("connect", fields)
    if view is None:
        return 0
    if view.verdict:
        raise failure(view.verdict, "a connect hook refused")
    return view.chosen.get("rto_ms", 0)


cdef uint64_t accept_head(Engine engine, tcb_t* lsk, flow_t* f, hook_queue_t* q) noexcept:
    """Handle of the connection that accept() would return, 0 if there is none. Under the lock."""
    cdef listener_t* l
    cdef tcb_t* child
    if lsk.state != TCP_LISTEN:
        return 0
    l = lst_at(engine.e, lsk.listener)
    if l.acc_head == 0:
        return 0
    child = sk_at(engine.e, l.acc_head)
    f[0] = flow_t(child.en.laddr, child.en.faddr, sk_lport(child), sk_fport(child))
    q.listener = sk_handle(engine.e, lsk)
    q.qlen = l.qlen
    q.young = l.young
    q.ackq = l.ackq
    q.maxq = l.maxq
    return sk_handle(engine.e, child)


cdef tcb_t* accept_asked(Engine engine, uint64_t h) except NULL:
    """Two phases: look at the head of the queue, ask without the lock, and go on only if the head is still the same. Returns locked, with
    nothing at the head that has not been asked about."""
    cdef flow_t f
    cdef hook_queue_t q
    cdef uint64_t head
    cdef uint64_t asked = 0
    cdef bint refuse = False
    cdef tcb_t* lsk
    while True:
        lsk = engine._enter(h)
        head = accept_head(engine, lsk, &f, &q)
        if head != 0 and head == asked and refuse:
            listener_refuse(engine.e, lsk)
            head = accept_head(engine, lsk, &f, &q)
        if head == 0 or (head == asked and not refuse):
            return lsk
        release(engine.e, &engine.s)
        asked = head
        fields = queue_fields(&f, &q)
        fields["handle"] = head
        view = engine.hookset.run("accept", fields)
        refuse = view is not None and view.verdict == HOOK_RESET


# ---- two phases: established beside an engine thread ---------------------------------------------------------------------------------
cdef bint same_flow(const flow_t* a, const flow_t* b) noexcept nogil:
    return a.laddr == b.laddr and a.faddr == b.faddr and a.lport == b.lport and a.fport == b.fport


cdef void park_ack(void* user, hook_ack_t* a) noexcept nogil:
    """Keep a copy of the segment until Python has spoken; or say what it said."""
    cdef pyhooks_t* ph = <pyhooks_t*> user
    cdef parked_t* p
    if ph.now.active and ph.now.isn == a.isn and same_flow(&ph.now.flow, &a.flow):
        a.verdict = ph.now.verdict
        return
    p = NULL
    if ph.s.parked < PARK_MAX:
        p = <parked_t*> malloc(sizeof(parked_t) + a.packet_len)
    if p == NULL:
        ph.park_lost += 1
        a.verdict = HOOK_DROP
        return
    p.next = NULL
    p.a = a[0]
    p.a.packet = NULL
    p.len = a.packet_len
    memcpy(p.data, a.packet, a.packet_len)
    if ph.tail != NULL:
        ph.tail.next = p
    else:
        ph.head = p
    ph.tail = p
    ph.s.parked += 1
    a.verdict = HOOK_PARK


cdef void park_established(void* user, hook_conn_t* a) noexcept nogil:
    """What the function chose for the child that is being made."""
    cdef pyhooks_t* ph = <pyhooks_t*> user
    if not ph.now.active or not same_flow(&ph.now.flow, &a.flow):
        return
    a.set = ph.now.conn.set
    a.cwnd = ph.now.conn.cwnd
    a.ssthresh = ph.now.conn.ssthresh
    a.rto_ms = ph.now.conn.rto_ms
    a.tos = ph.now.conn.tos


cdef bint still_half_open(engine_t* e, const hook_ack_t* a) noexcept nogil:
    """Is the decision still open? A request of the same generation (its ISN), or, after a cookie, nothing."""
    cdef ref_t ref = ehash_lookup(&e.ehash, a.flow.laddr, a.flow.faddr, a.flow.lport, a.flow.fport)
    if ref == 0:
        return a.cookie
    return ref_kind(ref) == KIND_REQ and req_at(e, ref_idx(ref)).isn == a.isn


def resume_parked(Engine engine not None):
    """Ask about every parked segment, in the order of arrival, and let it go on. Without the lock while Python is asked."""
    cdef pyhooks_t* ph = engine.ph
    cdef parked_t* p
    cdef bint undecided = False
    cdef verdict_t v
    while ph != NULL:
        acquire(engine.e, &engine.s)
        p = ph.head
        if p != NULL:
            ph.head = p.next
            if ph.head == NULL:
                ph.tail = NULL
            engine.s.parked -= 1
            undecided = still_half_open(engine.e, &p.a)
        release(engine.e, &engine.s)
        if p == NULL:
            return
        memset(&v, 0, sizeof(v))
        try:
            if undecided:
                view = engine.hookset.run("established", park_fields(p))
                v.active = 1
                v.flow = p.a.flow
                v.isn = p.a.isn
                if view is not None:
                    v.verdict = view.verdict
                    take_conn_settings(view.chosen, &v.conn)
            acquire(engine.e, &engine.s)
            if not engine.s.dead:
                # The request may have changed meanwhile: then its ISN has too, and the segment is parked again.
                ph.now = v
                engine_resume(engine.e, p.data, p.len)
                ph.now.active = 0
            release(engine.e, &engine.s)
        finally:
            free(p)


cdef dict park_fields(parked_t* p):
    fields = ack_fields(&p.a, p.data, p.len)
    fields.update(handle=None, passive=True, state=3, cwnd_now=None, ssthresh_now=None, srtt_us=None, rto_now_ms=None)
    return fields


# ---- notes: what a driver's helper thread is woken for -------------------------------------------------------------------------------
def has_thread(Engine engine not None):
    """Does an engine thread drive it?"""
    return bool(engine.s.real_clock)


def set_note_fd(Engine engine not None, int fd):
    """An eventfd that is written when log lines, parked segments or (note_events) events wait; -1: none."""
    acquire(engine.e, &engine.s)
    engine.s.note_fd = fd
    engine.s.noted = 0
    release(engine.e, &engine.s)


def note_events(Engine engine not None, bint on):
    """Are events such notes?"""
    acquire(engine.e, &engine.s)
    engine.s.note_events = on
    engine.s.noted = 0
    release(engine.e, &engine.s)


def take_log(Engine engine not None):
    """([(time, line, a, b, flow), ...], lost): the kernel's log lines since the last call, by LOG_* number."""
    cdef event_t copy[LOG_RING]
    cdef uint32_t n
    cdef uint32_t i
    cdef uint64_t lost
    acquire(engine.e, &engine.s)
    n = engine.e.log_n
    memcpy(copy, engine.e.log, n * sizeof(event_t))
    lost = engine.e.log_lost
    engine.e.log_n = 0
    engine.e.log_lost = 0
    engine.s.noted = 0
    release(engine.e, &engine.s)
    return [(copy[i].at, copy[i].arg, copy[i].a, copy[i].b,
             py_flow(copy[i].flow.laddr, copy[i].flow.lport, copy[i].flow.faddr, copy[i].flow.fport)) for i in range(n)], lost


def log_waits(Engine engine not None):
    """Are there log lines? Without the lock: a hint."""
    return engine.e.log_n != 0


def listener_drops(Engine engine not None, uint64_t h):
    """Packets that a listener discarded, by reason, those that occurred; decided after it was found. OSError EINVAL for another socket."""
    cdef uint64_t copy[DROP_REASONS]
    cdef int i
    cdef tcb_t* sk
    acquire_view(engine.e, &engine.s)
    sk = engine._at(h)
    if sk != NULL and sk.state == TCP_LISTEN:
        memcpy(copy, lst_at(engine.e, sk.listener).drop_by, sizeof(copy))
        release_view(engine.e, &engine.s)
    else:
        release_view(engine.e, &engine.s)
        raise failure(E_BADF if sk == NULL else E_INVAL, "not a listener")
    return {DROP_NAMES[i]: copy[i] for i in range(DROP_REASONS) if copy[i]}
