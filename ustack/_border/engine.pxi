# class Engine: the sans-I/O engine and the user's operations on integer handles. Included by _fastpath.pyx.

cdef class SocketBase

cdef enum:
    MAX_OPT = 4096              # largest option value copied
    SOL_SOCKET = 1
    SO_RCVLOWAT = 18
    SO_RCVTIMEO = 20
    SO_SNDTIMEO = 21
    SO_RCVTIMEO_NEW = 66
    SO_SNDTIMEO_NEW = 67


cdef bytes seed_bytes(object seed):
    if seed is None:
        return b"ustack"
    if isinstance(seed, int):
        return b"int:" + str(seed).encode()
    return bytes(seed)


cdef int set_limits(engine_params_t* p, dict limits) except -1:
    """Sizes of the pools by pool_usage's names; what is not named keeps its default."""
    p.max_req = limits.pop("requests", 0)
    p.max_tcb = limits.pop("sockets", 0)
    p.max_tw = limits.pop("time_wait", 0)
    p.max_listeners = limits.pop("listeners", 0)
    p.max_srec = limits.pop("send_records", 0)
    p.max_rrec = limits.pop("receive_records", 0)
    p.max_ext = limits.pop("extensions", 0)
    p.max_waiters = limits.pop("waiters", 0)
    if limits:
        raise ValueError(f"no such limit: {', '.join(map(str, limits))}")
    return 0


cdef class Engine:
    """One stack without any I/O: packets, times and calls in, packets and results out.

    Times are integer nanoseconds of a monotonic clock of the caller's choice and never go back. Addresses: "a.b.c.d/len" is that host in
    that prefix, "a.b.c.0/len" (host bits zero, len < 32) makes every address of the prefix ours; several in a list. All randomness comes
    from seed. Handles are integers (index and generation); a stale one raises OSError(EBADF). Every call may be made from several threads.
    lazy_timers, for drivers in real time: a retransmission or delayed-ACK timer that is stopped or put off is not taken out of its place, so the next
    timeout may be one at which nothing happens.
    """

    cdef engine_t* e
    cdef shared_t s
    cdef uint8_t* scratch           # of the built-in services, made when one is asked for
    cdef mirrors_t* mirrors         # pollable descriptors, made when one is asked for
    cdef pyhooks_t* ph              # made with the first hook
    cdef object capsule             # of the C op-table, kept alive
    cdef readonly object hookset    # ustack.hooks.HookSet, made with the first Python hook
    cdef object stream              # of events()
    cdef readonly bint uses_lowat   # a socket has set SO_RCVLOWAT, so a blocking recv has to look at it
    cdef readonly bint uses_timeo   # ... SO_RCVTIMEO or SO_SNDTIMEO
    cdef dict cc_kept               # congestion controls: classes, capsules, and (instance, CcConnection) by socket
    cdef object cc_error            # the first exception that one raised, until cc_raise
    cdef object __weakref__

    def __cinit__(self, address, *, sysctl=None, seed=None, wall_offset_ns=0, now=0, ehash_entries=0, mtu=1500,
                  cookie_phase_ns=0, default_route=True, limits=None, bint lazy_timers=False):
        cdef engine_params_t p
        cdef int err
        cdef bytes key = seed_bytes(seed)
        memset(&p, 0, sizeof(p))
        memset(&self.s, 0, sizeof(self.s))
        self.s.wake_fd = -1
        self.s.note_fd = -1
        self.cc_kept = {}
        if not 68 <= mtu <= 65535:
            raise failure(E_INVAL, f"mtu {mtu} is not between 68 and 65535")
        p.seed = <const uint8_t*> PyBytes_AS_STRING(key)
        p.seed_len = <uint32_t> len(key)
        p.now = now
        p.wall_offset = wall_offset_ns
        p.cookie_phase = cookie_phase_ns
        p.mtu = mtu
        p.ehash_entries = ehash_entries or 0
        set_limits(&p, dict(limits or {}))
        self.e = <engine_t*> calloc(1, sizeof(engine_t))
        if self.e == NULL:
            raise MemoryError
        err = engine_init(self.e, &p)
        if err:
            free(self.e)
            self.e = NULL
            raise failure(-err, "the engine's pools could not be mapped")
        self.e.lazy_timers = lazy_timers
        self.s.words = <int*> map_reserve((<size_t> self.e.wait.cap + 1) * sizeof(int))
        if self.s.words == NULL:
            engine_destroy(self.e)
            free(self.e)
            self.e = NULL
            raise MemoryError
        pthread_mutex_init(&self.s.mu, NULL)
        route_default(self.e, bool(default_route))
        for one in ([address] if isinstance(address, str) else address):
            add_address(self, one)

    def __init__(self, address, *, sysctl=None, **_):
        for name, value in (sysctl or {}).items():
            self.sysctl_set(name, value)

    def __dealloc__(self):
        if self.e != NULL:
            cc_tables_free(self.e)
            munmap(self.s.words, (<size_t> self.e.wait.cap + 1) * sizeof(int))
            engine_destroy(self.e)
            free(self.e)
            pthread_mutex_destroy(&self.s.mu)
        free(self.scratch)
        mirrors_free(self.mirrors)
        pyhooks_free(self.ph)

    # ---- the five sans-I/O calls ---------------------------------------------------------------------------------------------
    def receive(self, packet, now, csum=0, gso_size=0):
        """One IP packet came in at `now`. csum: 0 full, 1 partial, 2 verified checksum. Returns the drop reason, 0 = taken."""
        cdef Py_buffer view
        cdef int reason
        cdef ns_t t = now
        cdef uint8_t state = csum
        cdef uint32_t size = gso_size
        PyObject_GetBuffer(packet, &view, PyBUF_SIMPLE)
        try:
            acquire(self.e, &self.s)
            reason = engine_receive(self.e, <const uint8_t*> view.buf, <uint32_t> view.len, state, size, t)
            service_pump(self.e, self.scratch)
            release(self.e, &self.s)
        finally:
            PyBuffer_Release(&view)
        return reason

    def poll(self, now):
        """Run the timers that are due at `now`, in order. Returns how many fired."""
        cdef uint32_t n
        cdef ns_t t = now
        acquire(self.e, &self.s)
        n = engine_poll(self.e, t)
        service_pump(self.e, self.scratch)
        release(self.e, &self.s)
        return n

    def next_timeout(self):
        """The time of the next timer, or None."""
        cdef ns_t t
        acquire(self.e, &self.s)
        t = engine_next_timeout(self.e)
        release(self.e, &self.s)
        return None if t == NS_NEVER else t

    def transmit(self):
        """The packets to send, none longer than the MTU, checksums complete: [(time, packet), ...]."""
        return take_frames(self, False)

    def transmit_gso(self):
        """The frames to send as the core made them: [(time, packet, gso_size), ...]; gso_size 0 = an ordinary packet, else the payload
        bytes per wire segment of a super-segment. Checksums are complete."""
        return take_frames(self, True)

    # ---- sockets ---------------------------------------------------------------------------------------------------------------
    cdef tcb_t* _at(self, uint64_t h) noexcept:
        """The socket of a handle, or NULL. Under the lock."""
        cdef idx_t i = <idx_t> (h & 0xffffffffULL)
        if not pool_live(&self.e.tcb, i, <uint32_t> (h >> 32)):
            return NULL
        return sk_at(self.e, i)

    cdef tcb_t* _enter(self, uint64_t h) except NULL:
        """Lock and find the socket; raises EBADF, unlocked, if it is gone."""
        cdef tcb_t* sk
        acquire(self.e, &self.s)
        sk = self._at(h)
        if sk == NULL or sk.sflags & SF_DEAD or self.s.dead:
            release(self.e, &self.s)
            raise failure(E_BADF, None)
        return sk

    cdef tcb_t* _look(self, uint64_t h) except NULL:
        """As _enter, for a call that changes nothing: a hook may make it."""
        cdef tcb_t* sk
        acquire_view(self.e, &self.s)
        sk = self._at(h)
        if sk == NULL or sk.sflags & SF_DEAD or self.s.dead:
            release_view(self.e, &self.s)
            raise failure(E_BADF, None)
        return sk

    cdef int _leave(self, int err, str what) except -1:
        """Unlock; raise if err is a negative errno."""
        release_view(self.e, &self.s)
        if err < 0:
            raise failure(-err, what)
        return 0

    cdef bint _done(self, tcb_t* sk, int err) noexcept:
        """Unlock after a call that may change what the socket's descriptor shows without waking anyone. True: it failed."""
        cdef bint shown = sk.sflags & SF_HAS_FD
        cdef idx_t i = sk.idx
        release_view(self.e, &self.s)
        if shown and not self.s.in_hook:
            mirror_sync(self.mirrors, self.e, &self.s, &i, 1)
        return err < 0

    cdef int _leave_fd(self, tcb_t* sk, int err, str what) except -1:
        """_done, and raise if err is a negative errno."""
        if self._done(sk, err):
            raise failure(-err, what)
        return 0

    def set_service(self, uint64_t h, name):
        """Let the engine itself serve a listener's connections: "echo", "discard", "chargen", "http" or None (core/service.pxd)."""
        kinds = {None: SVC_NONE, "echo": SVC_ECHO, "discard": SVC_DISCARD, "chargen": SVC_CHARGEN, "http": SVC_HTTP}
        if name not in kinds:
            raise failure(E_INVAL, f"no built-in service {name!r}: {', '.join(k for k in kinds if k)}")
        cdef int kind = kinds[name]
        cdef tcb_t* sk
        if self.scratch == NULL:
            self.scratch = <uint8_t*> malloc(SVC_CHUNK)
            if self.scratch == NULL:
                raise MemoryError
        sk = self._enter(h)
        self._leave(service_set(self.e, sk, kind), "set_service wants a listening socket")

    def advance(self, now):
        """Tell the engine the time without running timers; user calls that follow happen then."""
        cdef ns_t t = now
        if inside_hook(&self.s):
            return                      # the engine's time is the hook's
        acquire(self.e, &self.s)
        engine_time(self.e, t)
        release(self.e, &self.s)

    @property
    def now(self):
        return self.e.now

    def socket(self):
        cdef tcb_t* sk
        cdef uint64_t h = 0
        acquire(self.e, &self.s)
        sk = user_socket(self.e)
        if sk != NULL:
            h = sk_handle(self.e, sk)
        self._leave(0 if sk != NULL else -E_NOBUFS, "every socket of this stack is in use (limits={'sockets': n} raises the number)")
        return h

    def bind(self, uint64_t h, addr, uint16_t port):
        cdef uint32_t a = undotted(addr)
        cdef tcb_t* sk = self._enter(h)
        cdef int err = user_bind(self.e, sk, a, port)
        release(self.e, &self.s)
        if err:
            raise failure(-err, f"bind to {addr or '0.0.0.0'}:{port}")

    def listen(self, uint64_t h, backlog):
        cdef int64_t n = backlog
        cdef tcb_t* sk
        if self.hookset is not None and self.hookset.active("listen"):
            ask_listen(self, h, n)
        sk = self._enter(h)
        self._leave_fd(sk, user_listen(self.e, sk, n), "listen")

    def accept(self, uint64_t h):
        """(handle, (address, port)) of the oldest connection in the accept queue."""
        cdef uint64_t child = 0
        peer = take_connection(self, h, None, &child)
        return child, peer

    def connect(self, uint64_t h, addr, uint16_t port):
        """Start (or ask after) a connection; BlockingIOError(EINPROGRESS, EALREADY) while the handshake runs."""
        cdef uint32_t a = undotted(addr)
        cdef uint32_t rto_ms = 0
        cdef tcb_t* sk
        cdef int err
        if self.hookset is not None and self.hookset.active("connect"):
            rto_ms = ask_connect(self, h, a, port)
        sk = self._enter(h)
        self.e.connect_rto_ms = rto_ms
        err = user_connect(self.e, sk, a, port)
        if self._done(sk, err):
            raise failure(-err, f"connect to {addr}:{port}")

    def connect_result(self, uint64_t h):
        """After EINPROGRESS: returns when connected, BlockingIOError while pending, else the connection's error."""
        cdef tcb_t* sk = self._enter(h)
        self._leave_fd(sk, user_connect_result(self.e, sk, -E_INPROGRESS), "connect")

    def write_pending(self, uint64_t h):
        """A blocked send waits for the handshake: its data will carry the ACK of the SYN-ACK."""
        cdef tcb_t* sk = self._enter(h)
        sk.write_pending = sk.state == TCP_SYN_SENT
        self._leave_fd(sk, 0, "send")

    def disconnect(self, uint64_t h):
        """connect() to AF_UNSPEC."""
        cdef tcb_t* sk = self._enter(h)
        self._leave_fd(sk, user_disconnect(self.e, sk), "disconnect")

    def send(self, uint64_t h, data, uint32_t flags=0):
        """Bytes taken; BlockingIOError if none could be."""
        return write_from(self, h, data, flags, None, False, False)

    def send_fastopen(self, uint64_t h, data, uint32_t flags, addr, uint16_t port):
        """sendto() with MSG_FASTOPEN: connect with the data in the SYN where a cookie allows it. Bytes taken; BlockingIOError(EINPROGRESS)
        if the handshake runs without data."""
        cdef Py_buffer view
        cdef tcb_t* sk
        cdef int64_t n
        cdef uint32_t a = undotted(addr)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            sk = self._enter(h)
            n = tcp_sendmsg_to(self.e, sk, <const uint8_t*> view.buf, view.len, flags, a, port)
            self._leave(<int> n if n < 0 else 0, f"sendto {addr}:{port}")
        finally:
            PyBuffer_Release(&view)
        return n

    def recv_stamped(self, uint64_t h, buffer, uint32_t flags=0):
        """As recv_into; (bytes, wall-clock ns at which the last of them arrived, bytes that are left)."""
        cdef Py_buffer view
        cdef int64_t got
        cdef ns_t stamp = 0
        cdef int64_t left = 0
        cdef tcb_t* sk
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            sk = self._enter(h)
            got = tcp_recvmsg_ts(self.e, sk, <uint8_t*> view.buf, <size_t> view.len, flags, 0, &stamp)
            if got >= 0:
                left = tcp_inq_hint(sk)
            self._leave(<int> got if got < 0 else 0, "recvmsg")
        finally:
            PyBuffer_Release(&view)
        return got, (stamp + self.e.wall_offset if stamp else 0), left

    def take_error(self, uint64_t h):
        """The oldest entry of the error queue: (errno, origin, type, code, info, data, wall-clock ns). BlockingIOError if it is empty."""
        cdef reqext_t x
        cdef idx_t i
        cdef tcb_t* sk = self._enter(h)
        i = sk.opt.errq_head
        if i:
            x = ext_at(self.e, i)[0]
            sk_opt(self.e, sk).errq_head = x.next
            if x.next == 0:
                sk_opt(self.e, sk).errq_tail = 0
            pool_free(&self.e.ext, i)
        self._leave(0 if i else -E_AGAIN, "the error queue is empty")
        return x.ee_errno, x.ee_origin, x.ee_type, x.ee_code, x.ee_info, x.ee_data, x.ee_time

    def receive_options(self, uint64_t h):
        """(SO_TIMESTAMPING flags, SO_TIMESTAMP, SO_TIMESTAMPNS, TCP_INQ) of a socket: what recvmsg adds."""
        cdef tcb_t* sk = self._enter(h)
        cdef uint32_t ts = sk.opt.tsflags
        cdef uint32_t f = sk.sflags
        self._leave(0, None)
        return ts, bool(f & SF_TIMESTAMP), bool(f & SF_TIMESTAMPNS), bool(f & SF_INQ)

    def recv(self, uint64_t h, size_t n, uint32_t flags=0):
        """Up to n bytes; b"" at the end of the stream; BlockingIOError if there is nothing yet."""
        return read_bytes(self, h, n, flags, None)

    def recv_into(self, uint64_t h, buffer, uint32_t flags=0, size_t n=0):
        """As recv, into a writable buffer; the number of bytes."""
        return read_into(self, h, buffer, n, flags, None)

    def shutdown(self, uint64_t h, int how):
        cdef tcb_t* sk = self._enter(h)
        self._leave_fd(sk, user_shutdown(self.e, sk, how), "shutdown")

    def close(self, uint64_t h, bint wait=False):
        """End the handle. With wait (a lingering close): returns the nanoseconds the caller may wait for `lingering` to become False
        before close_finish; 0 means it is done."""
        return self._close(h, wait)

    cdef int64_t _close(self, uint64_t h, bint wait) except -1:
        cdef tcb_t* sk = self._enter(h)
        cdef ns_t left = user_close(self.e, sk)
        if left == 0 or not wait:
            user_close_finish(self.e, sk)
            left = 0
        self._leave(0, None)
        return left

    def lingering(self, uint64_t h):
        cdef tcb_t* sk = self._enter(h)
        cdef bint yes = close_is_lingering(sk)
        self._leave(0, None)
        return yes

    def close_finish(self, uint64_t h):
        cdef tcb_t* sk = self._enter(h)
        user_close_finish(self.e, sk)
        self._leave(0, None)

    def setsockopt(self, uint64_t h, int level, int name, value):
        """value: an int, or the bytes of the option."""
        cdef bytes raw = value.to_bytes(4, "little", signed=value < 0) if isinstance(value, int) else bytes(value)
        cdef const uint8_t* p = <const uint8_t*> PyBytes_AS_STRING(raw)
        cdef uint32_t n = <uint32_t> len(raw)
        cdef tcb_t* sk = self._enter(h)
        cdef int err = user_setsockopt(self.e, sk, level, name, p, n)
        if level == SOL_SOCKET and name == SO_RCVLOWAT:
            self.uses_lowat = True
        elif level == SOL_SOCKET and (name == SO_RCVTIMEO or name == SO_SNDTIMEO or name == SO_RCVTIMEO_NEW or name == SO_SNDTIMEO_NEW):
            self.uses_timeo = True
        if self._done(sk, err):
            raise failure(-err, f"setsockopt({level}, {name})")

    def getsockopt(self, uint64_t h, int level, int name, buflen=4):
        """The option's bytes, at most buflen."""
        cdef uint8_t out[MAX_OPT]
        cdef uint32_t n = min(int(buflen), MAX_OPT)
        cdef int err
        cdef tcb_t* sk = self._look(h)
        memset(out, 0, n)
        err = user_getsockopt(self.e, sk, level, name, out, &n)
        if self._done(sk, err):
            raise failure(-err, f"getsockopt({level}, {name})")
        return PyBytes_FromStringAndSize(<char*> out, n)

    def getsockname(self, uint64_t h):
        cdef uint32_t a = 0
        cdef uint16_t port = 0
        cdef tcb_t* sk = self._look(h)
        user_getsockname(self.e, sk, &a, &port)
        self._leave(0, None)
        return dotted(a), port

    def getpeername(self, uint64_t h):
        cdef uint32_t a = 0
        cdef uint16_t port = 0
        cdef tcb_t* sk = self._look(h)
        self._leave(user_getpeername(self.e, sk, &a, &port), "getpeername")
        return dotted(a), port

    def poll_mask(self, uint64_t h):
        """The socket's poll mask in Linux's bits."""
        cdef tcb_t* sk = self._look(h)
        cdef uint32_t mask = user_poll(self.e, sk)
        self._leave(0, None)
        return mask

    def wakeups(self, uint64_t h):
        """How often the socket has woken its waiters (EPOLLET fires on each)."""
        cdef tcb_t* sk = self._enter(h)
        cdef uint32_t n = sk.wake_seq
        self._leave(0, None)
        return n

    def wakeup_bits(self, uint64_t h):
        """The poll bits of all wake-ups since this was last asked: which of them an edge-triggered watch would see."""
        cdef tcb_t* sk = self._enter(h)
        cdef uint32_t bits = sk.wake_mask
        sk.wake_mask = 0
        self._leave(0, None)
        return bits

    def ioctl(self, uint64_t h, uint32_t request):
        cdef tcb_t* sk = self._enter(h)
        cdef int64_t v = user_ioctl(self.e, sk, request)
        self._leave(<int> v if v < 0 else 0, "ioctl")
        return v

    def state(self, uint64_t h):
        """Linux's state number (1 ESTABLISHED ... 11 CLOSING)."""
        cdef tcb_t* sk = self._look(h)
        cdef int st = sk.state
        self._leave(0, None)
        return st

    def timeouts(self, uint64_t h):
        """(SO_RCVTIMEO, SO_SNDTIMEO) in ns, None = wait for ever."""
        cdef tcb_t* sk = self._enter(h)
        cdef ns_t r = sk.opt.rcvtimeo
        cdef ns_t w = sk.opt.sndtimeo
        self._leave(0, None)
        return (None if r == NS_NEVER else r), (None if w == NS_NEVER else w)

    def sysctl_get(self, name):
        """A sysctl's text by its Linux name (ustack/sysctl.py)."""
        from ustack.sysctl import sysctl_get
        return sysctl_get(self, name)

    def sysctl_set(self, name, value):
        from ustack.sysctl import sysctl_set
        sysctl_set(self, name, value)

    def nstat(self):
        """Every MIB counter by nstat's name."""
        return counters(self)

    def lookup(self, flow):
        """What the hash table holds for (local, local port, foreign, foreign port): (kind, index) or None. The packet path's own look-up."""
        return lookup(self, *flow)

    # ---- hooks and events ------------------------------------------------------------------------------------------------------
    def set_hooks(self, capsule):
        """Install a C op-table (docs/hooks.md), or None for none."""
        set_hooks(self, capsule)

    def on(self, name, function=None):
        """Call function(view) at the decision `name`; returns a Hook with .remove(). Without a function: a decorator. See ustack/hooks.py."""
        if self.hookset is None:
            share_hooks([self])
        return self.hookset.on(name, function)

    def events(self, capacity=4096):
        """What happened since the last call, [Event, ...]; the first call switches the stream on, with room for `capacity` events."""
        if self.stream is None:
            from ustack.events import open_stream
            self.stream = open_stream(self, capacity)
        return self.stream.take()

    # ---- blocked calls of the manual driver -----------------------------------------------------------------------------------
    def wait(self, uint64_t h, uint32_t events, deadline=None, bint exclusive=False):
        """Queue a blocked call until a wake-up with one of the poll bits `events` (0: until the socket no longer lingers). Returns a
        waiter for wait_state and wait_done, or 0 if the call need not wait any more."""
        cdef ns_t t = NS_NEVER if deadline is None else deadline
        cdef idx_t w = 0
        cdef bint failed = False
        cdef tcb_t* sk = self._enter(h)
        if must_wait(self.e, sk, events):
            w = user_wait(self.e, sk, events, exclusive, t, NULL, 0)
            failed = w == 0
        self._leave(-E_NOBUFS if failed else 0, "too many blocked calls")
        return w

    def wait_state(self, uint32_t w):
        """1 waiting, 2 woken, 3 timed out."""
        cdef int st
        acquire(self.e, &self.s)
        st = wait_at(self.e, w).state
        release(self.e, &self.s)
        return st

    def wait_done(self, uint32_t w):
        acquire(self.e, &self.s)
        user_wait_done(self.e, w)
        release(self.e, &self.s)


cdef inline bint must_wait(engine_t* e, tcb_t* sk, uint32_t events) noexcept nogil:
    """Whether a call that found nothing has still nothing: looked at under the lock that queues it, so no wake-up is lost."""
    if events == 0:
        return close_is_lingering(sk)
    return not user_poll(e, sk) & (events | POLLERR | POLLHUP)
