# Congestion controls of the user's own: C op-tables from capsules, and the op-table that calls a Python class. Included by _fastpath.pyx.
#
# A Python class is for stacks without a thread: its methods run in the middle of the core, under the lock, with the GIL that the calling thread
# holds anyway (as synchronous hooks do, _border/hooks.pxi). Each connection has an instance and a CcConnection; Engine.cc_kept keeps
# both, sk_ca(sk)[0] and [1] point to them between init and release. What a method raises is kept and raised by the call that drove the engine;
# until then Reno's answer stands in.

cdef struct pycc_t:
    cc_ops_t ops                # first: the core's pointer to it is a pointer to this
    char name[CC_NAME_MAX]
    void* engine                # the Engine, borrowed
    void* cls                   # kept by Engine.cc_kept


cdef class CcConnection:
    """The connection as a Python congestion control sees it, valid only while one of its methods runs. Windows count packets of `mss` bytes."""

    cdef engine_t* e
    cdef tcb_t* sk

    cdef tcb_t* at(self) except NULL:
        if self.sk == NULL:
            raise RuntimeError("the connection can be looked at only while a method of its congestion control runs")
        return self.sk

    @property
    def cwnd(self):
        """Congestion window, packets."""
        return self.at().snd_cwnd

    @cwnd.setter
    def cwnd(self, value):
        cdef tcb_t* sk = self.at()
        cdef uint32_t n = value
        sk.snd_cwnd = u32_min(u32_max(n, 1), sk.snd_cwnd_clamp)

    @property
    def ssthresh(self):
        """Slow start threshold, packets; 0x7fffffff before the first reduction."""
        return self.at().snd_ssthresh

    @ssthresh.setter
    def ssthresh(self, value):
        cdef uint32_t n = value
        self.at().snd_ssthresh = n

    @property
    def cwnd_cnt(self):
        """Packets acknowledged towards the next packet of window."""
        return self.at().snd_cwnd_cnt

    @cwnd_cnt.setter
    def cwnd_cnt(self, value):
        cdef uint32_t n = value
        self.at().snd_cwnd_cnt = n

    @property
    def pacing_rate(self):
        """Bytes per second."""
        return self.at().pacing_rate

    @pacing_rate.setter
    def pacing_rate(self, value):
        cdef uint64_t rate = value
        cdef tcb_t* sk = self.at()
        sk.pacing_rate = rate if rate < sk.opt.max_pacing_rate else sk.opt.max_pacing_rate

    @property
    def now(self):
        """The engine's time, ns."""
        self.at()
        return self.e.now

    @property
    def mss(self):
        """Bytes per packet."""
        return self.at().mss_cache

    @property
    def prior_cwnd(self):
        """Window before the reduction under way."""
        return self.at().prior_cwnd

    @property
    def srtt_us(self):
        """Smoothed round trip, microseconds; 0 = no sample yet."""
        return self.at().rtt.srtt_us >> 3

    @property
    def min_rtt_us(self):
        """Windowed minimum, microseconds; 0xffffffff = no sample yet."""
        return minmax_get(&self.at().rtt_min)

    @property
    def packets_out(self):
        return self.at().packets_out

    @property
    def in_flight(self):
        """Packets in the network: sent, not SACKed, not lost, and retransmitted."""
        return tcp_packets_in_flight(self.at())

    @property
    def delivered(self):
        """Packets delivered so far."""
        return self.at().delivered

    @property
    def lost(self):
        """Packets marked lost so far."""
        return self.at().lost

    @property
    def ca_state(self):
        """0 Open, 1 Disorder, 2 CWR, 3 Recovery, 4 Loss."""
        return self.at().ca_state

    @property
    def snd_una(self):
        return self.at().snd_una

    @property
    def snd_nxt(self):
        return self.at().snd_nxt

    @property
    def in_slow_start(self):
        return bool(tcp_in_slow_start(self.at()))

    @property
    def is_cwnd_limited(self):
        """May the window grow, that is, was it the limit?"""
        return bool(tcp_is_cwnd_limited(self.at()))

    def slow_start(self, uint32_t acked):
        """Grow by acked packets, at most to ssthresh; returns what is left of them."""
        return tcp_slow_start(self.at(), acked)

    def cong_avoid_ai(self, uint32_t w, uint32_t acked):
        """Additive increase: one packet for every w acknowledged."""
        tcp_cong_avoid_ai(self.at(), u32_max(w, 1), acked)


cdef object cc_ask(engine_t* e, tcb_t* sk, str method, dict args):
    """What the connection's instance answers; None if it raised. Under the lock."""
    cdef pycc_t* table = <pycc_t*> cc_ops_of(e, sk.cc)
    cdef Engine engine = <Engine> table.engine
    cdef void* control = <void*> sk_ca(sk)[0]
    cdef CcConnection conn
    cdef tcb_t* outer
    cdef int depth = engine.s.in_hook
    cdef unsigned long thread = engine.s.hook_thread
    if control == NULL or engine.cc_kept is None:       # being collected
        return None
    conn = <CcConnection> <void*> sk_ca(sk)[1]
    outer = conn.sk
    engine.s.hook_thread = <unsigned long> pthread_self()
    engine.s.in_hook = 1
    conn.sk = sk
    try:
        return getattr(<object> control, method)(**args)
    except BaseException as exc:
        if engine.cc_error is None:
            engine.cc_error = exc
        return None
    finally:
        conn.sk = outer
        engine.s.in_hook = depth
        engine.s.hook_thread = thread


cdef uint32_t cc_ask_window(engine_t* e, tcb_t* sk, str method, uint32_t otherwise):
    """A number of packets that the instance chooses; at least 2 is the module's own affair, at least 1 is ours."""
    cdef Engine engine
    cdef int64_t n
    answer = cc_ask(e, sk, method, {})
    if answer is None:
        return otherwise
    try:
        if not isinstance(answer, int):
            raise TypeError(f"{method}() returned {answer!r}, not a number of packets")
        n = answer
        if not 1 <= n <= 0x7fffffff:
            raise ValueError(f"{method}() returned {answer!r}, not a window of 1 to 2**31 - 1 packets")
        return <uint32_t> n
    except (TypeError, ValueError, OverflowError) as exc:
        engine = <Engine> (<pycc_t*> cc_ops_of(e, sk.cc)).engine
        if engine.cc_error is None:
            engine.cc_error = exc
        return otherwise


cdef void pycc_init(engine_t* e, tcb_t* sk) noexcept with gil:
    cdef pycc_t* table = <pycc_t*> cc_ops_of(e, sk.cc)
    cdef Engine engine = <Engine> table.engine
    cdef CcConnection conn = CcConnection.__new__(CcConnection)
    conn.e = e
    try:
        control = (<object> table.cls)(conn)
    except BaseException as exc:
        if engine.cc_error is None:
            engine.cc_error = exc
        return
    engine.cc_kept[sk.idx] = (control, conn)
    sk_ca(sk)[0] = <uint64_t> <void*> control
    sk_ca(sk)[1] = <uint64_t> <void*> conn
    cc_ask(e, sk, "init", {})


cdef void pycc_release(engine_t* e, tcb_t* sk) noexcept with gil:
    cdef Engine engine = <Engine> (<pycc_t*> cc_ops_of(e, sk.cc)).engine
    cc_ask(e, sk, "release", {})
    sk_ca(sk)[0] = 0
    sk_ca(sk)[1] = 0
    if engine.cc_kept is not None:
        engine.cc_kept.pop(sk.idx, None)


cdef uint32_t pycc_ssthresh(engine_t* e, tcb_t* sk) noexcept with gil:
    return cc_ask_window(e, sk, "ssthresh", reno_ssthresh(sk))


cdef uint32_t pycc_undo_cwnd(engine_t* e, tcb_t* sk) noexcept with gil:
    return cc_ask_window(e, sk, "undo_cwnd", reno_undo_cwnd(sk))


cdef uint32_t pycc_min_tso_segs(engine_t* e, tcb_t* sk) noexcept with gil:
    return cc_ask_window(e, sk, "min_tso_segs", 2)


cdef void pycc_cong_avoid(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t acked) noexcept with gil:
    cc_ask(e, sk, "cong_avoid", {"ack": ack, "acked": acked})


cdef void pycc_set_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept with gil:
    cc_ask(e, sk, "set_state", {"state": state})


cdef void pycc_cwnd_event(engine_t* e, tcb_t* sk, int event) noexcept with gil:
    cc_ask(e, sk, "cwnd_event", {"event": event})


cdef void pycc_in_ack_event(engine_t* e, tcb_t* sk, uint32_t flags) noexcept with gil:
    cc_ask(e, sk, "in_ack_event", {"flags": flags})


cdef void pycc_pkts_acked(engine_t* e, tcb_t* sk, const ack_sample_t* s) noexcept with gil:
    cc_ask(e, sk, "pkts_acked", {"acked": s.pkts_acked, "rtt_us": s.rtt_us, "in_flight": s.in_flight})


cdef void pycc_cong_control(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t flag, const rate_sample_t* rs) noexcept with gil:
    rate = {"delivered": rs.delivered, "interval_us": rs.interval_us, "rtt_us": rs.rtt_us, "losses": rs.losses, "acked_sacked": rs.acked_sacked,
            "prior_in_flight": rs.prior_in_flight, "is_app_limited": bool(rs.is_app_limited), "is_ack_delayed": bool(rs.is_ack_delayed)}
    cc_ask(e, sk, "cong_control", {"ack": ack, "flag": flag, "rate": rate})


def cc_names(Engine engine not None):
    """The congestion controls of this engine, built in and registered."""
    cdef uint8_t cc
    return [(<bytes> cc_name(engine.e, cc)).decode() for cc in range(CC_USER + CC_USER_MAX) if cc_name(engine.e, cc)[0]]


cdef int cc_add(Engine engine, const cc_ops_t* ops) except -1:
    cdef int err
    acquire(engine.e, &engine.s)
    err = cc_register(engine.e, ops)
    engine._leave(err if err < 0 else 0, f"congestion control: of {CC_USER_MAX} tables; a name of 1 to 15 bytes that is not taken; ssthresh, "
                                         "undo_cwnd and cong_avoid or cong_control; compiled with this ustack's headers (cc_abi)")
    return 0


def cc_add_table(Engine engine not None, capsule):
    """Register the cc_ops_t in a PyCapsule named "ustack.core.cc.cc_ops_t" (not copied; the capsule is kept)."""
    if not PyCapsule_IsValid(capsule, CC_CAPSULE):
        raise ValueError(f"a congestion control in C is a PyCapsule named {(<bytes> CC_CAPSULE).decode()!r} (ustack/core/cc.pxd)")
    cc_add(engine, <const cc_ops_t*> PyCapsule_GetPointer(capsule, CC_CAPSULE))
    engine.cc_kept[capsule] = capsule


def cc_add_class(Engine engine not None, cls, wanted):
    """Register a Python class; `wanted`: names of the optional methods that it has."""
    cdef pycc_t* table = <pycc_t*> calloc(1, sizeof(pycc_t))
    cdef bytes name = cls.name.encode()
    if table == NULL:
        raise MemoryError
    if len(name) >= CC_NAME_MAX:
        free(table)
        raise failure(E_INVAL, f"{cls.name!r}: a congestion control's name has at most {CC_NAME_MAX - 1} bytes")
    memcpy(table.name, PyBytes_AS_STRING(name), len(name))
    table.engine = <void*> engine
    table.cls = <void*> cls
    table.ops.name = table.name
    table.ops.abi = cc_abi()
    table.ops.flags = (CC_F_PACING if cls.pacing else 0) | (CC_F_ECN if cls.ecn else 0)
    table.ops.init = pycc_init
    table.ops.release = pycc_release
    table.ops.ssthresh = pycc_ssthresh
    table.ops.undo_cwnd = pycc_undo_cwnd
    table.ops.cong_avoid = pycc_cong_avoid
    if "set_state" in wanted:
        table.ops.set_state = pycc_set_state
    if "cwnd_event" in wanted:
        table.ops.cwnd_event = pycc_cwnd_event
    if "in_ack_event" in wanted:
        table.ops.in_ack_event = pycc_in_ack_event
    if "pkts_acked" in wanted:
        table.ops.pkts_acked = pycc_pkts_acked
    if "min_tso_segs" in wanted:
        table.ops.min_tso_segs = pycc_min_tso_segs
    if "cong_control" in wanted:
        table.ops.cong_control = pycc_cong_control
    try:
        cc_add(engine, &table.ops)
    except BaseException:
        free(table)
        raise
    engine.cc_kept[cls] = cls


def cc_raise(Engine engine not None):
    """Raise what a congestion control raised since the last time."""
    if engine.cc_error is not None:
        exc, engine.cc_error = engine.cc_error, None
        raise exc


cdef void cc_tables_free(engine_t* e) noexcept:
    """Our tables go with the engine; the users' belong to their capsules."""
    cdef int i
    for i in range(CC_USER_MAX):
        if e.cc_user[i] != NULL and (<const cc_ops_t*> e.cc_user[i]).init == pycc_init:
            free(<void*> e.cc_user[i])
            e.cc_user[i] = NULL
