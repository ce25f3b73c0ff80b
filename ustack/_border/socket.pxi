# class SocketBase: the calls that every connection of a real server makes, as C slots. Included by _fastpath.pyx; ustack._socket.Socket inherits.
#
# accept, recv, recv_into, send, sendall, close and the end of an object run here from beginning to end beside an engine thread: attempt, sleep
# while there is nothing (block_entered), attempt again, without an exception, a closure or a Python frame. Who waits goes to sleep under the lock of the
# attempt that found nothing, and makes the next one under the lock that ends the sleep. What is unusual (virtual time, a listener with twins,
# flags, SO_RCVLOWAT, SO_*TIMEO, a connect that waits for data, files, a lingering close) goes to the method with "_by_driver" behind its name in
# Socket, which knows all the rules; none of those comes back here.
#
# The functions on (engine, handle, who) are the attempts of Engine's methods too: who is None there, and EAGAIN is raised at once.
# No Python object is made or released under the lock. An object that __init__ has not been through, or has failed, counts as closed: `_engine` is set
# whenever `_closed` is False, and no_gc_clear keeps it so to the end.

cdef enum:
    SMALL_READ = 4096           # a read of so little goes over the C stack, and the bytes object is made to fit

cdef int64_t MOST_PATIENCE = 1 << 62

cdef object socket_class = None     # ustack._socket.Socket, which imports us


# ---- attempts, and the sleep between them ------------------------------------------------------------------------------------------
cdef tcb_t* rest(SocketBase who, Engine engine, tcb_t* sk, uint64_t h, uint32_t events, ns_t* until, bint exclusive) except? NULL:
    """The attempt found nothing; the lock is held. EAGAIN, or a sleep until there may be something: the socket, locked again. NULL: it is gone,
    nothing is locked. *until is 0 at first, then the deadline of the whole call."""
    cdef bint woken
    if who is None or who.patience == 0:
        engine._done(sk, 0)
        raise failure(E_AGAIN, None)
    if until[0] == 0:
        until[0] = NS_NEVER if who.patience < 0 else clock_ns() + who.patience
    if sk.sflags & SF_HAS_FD:
        engine._done(sk, 0)
        sk = engine._enter(h)
    woken = block_entered(engine, sk, h, events, until[0], exclusive)
    if not woken:
        release(engine.e, &engine.s)
        raise TimeoutError("timed out")
    sk = engine._at(h)
    if sk == NULL or sk.sflags & SF_DEAD or engine.s.dead or who._closed:
        release(engine.e, &engine.s)
        return NULL
    return sk


cdef tcb_t* at_queue(Engine engine, uint64_t h) except NULL:
    """Lock a listener whose head of the queue, if any, has been asked about."""
    if engine.hookset is not None and engine.hookset.active("accept"):
        return accept_asked(engine, h)
    return engine._enter(h)


cdef tuple take_connection(Engine engine, uint64_t h, SocketBase who, uint64_t* taken):
    """The oldest connection of a listener: its handle in *taken, and the peer's address."""
    cdef engine_t* e = engine.e
    cdef tcb_t* sk = at_queue(engine, h)
    cdef tcb_t* born
    cdef idx_t child = 0
    cdef ns_t until = 0
    cdef uint32_t addr = 0
    cdef uint16_t port = 0
    cdef int err = user_accept(e, sk, &child)
    while err == -E_AGAIN:
        sk = rest(who, engine, sk, h, POLLIN, &until, True)
        if sk == NULL:
            raise failure(E_BADF, None)
        if engine.hookset is not None:
            release(e, &engine.s)
            sk = at_queue(engine, h)
        err = user_accept(e, sk, &child)
    if err == 0:
        born = sk_at(e, child)
        taken[0] = sk_handle(e, born)
        addr = born.en.faddr
        port = sk_fport(born)
    engine._leave_fd(sk, err, "accept")
    return dotted(addr), port


cdef bytes read_bytes(Engine engine, uint64_t h, size_t size, uint32_t flags, SocketBase who):
    """recv(): the object is made before the lock is taken, no larger than what is queued."""
    cdef uint8_t small[SMALL_READ]
    cdef uint8_t* room = small
    cdef size_t fits = size if size < SMALL_READ else SMALL_READ
    cdef size_t there
    cdef bytes out = None
    cdef ns_t until = 0
    cdef int64_t got
    cdef tcb_t* sk
    if size > SMALL_READ:
        sk = engine._at(h)          # for a first guess, without the lock
        if sk != NULL:
            there = <uint32_t> (ustack_peek(&sk.rcv_nxt) - ustack_peek(&sk.copied_seq))
            if there > SMALL_READ:
                fits = there if there < size else size
                out = PyBytes_FromStringAndSize(NULL, fits)
                room = <uint8_t*> PyBytes_AS_STRING(out)
    sk = engine._enter(h)
    while True:
        there = <size_t> tcp_inq(engine.e, sk)
        if out is None and size > SMALL_READ and there > SMALL_READ:
            release(engine.e, &engine.s)
            fits = there if there < size else size
            out = PyBytes_FromStringAndSize(NULL, fits)
            room = <uint8_t*> PyBytes_AS_STRING(out)
            sk = engine._enter(h)
        got = tcp_recvmsg(engine.e, sk, room, fits, flags)
        if got != -E_AGAIN:
            break
        sk = rest(who, engine, sk, h, POLLIN, &until, False)
        if sk == NULL:
            raise failure(E_BADF, None)
    engine._leave_fd(sk, <int> got if got < 0 else 0, "recv")
    if out is None:
        return PyBytes_FromStringAndSize(<char*> small, got)
    return out if <size_t> got == fits else out[:got]


cdef int64_t read_into(Engine engine, uint64_t h, object buffer, size_t limit, uint32_t flags, SocketBase who) except -1:
    """recv_into(): at most limit bytes, 0: as many as fit."""
    cdef Py_buffer view
    cdef size_t size
    cdef int64_t got
    cdef ns_t until = 0
    cdef tcb_t* sk
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        size = <size_t> view.len
        if limit and limit < size:
            size = limit
        sk = engine._enter(h)
        got = tcp_recvmsg(engine.e, sk, <uint8_t*> view.buf, size, flags)
        while got == -E_AGAIN:
            sk = rest(who, engine, sk, h, POLLIN, &until, False)
            if sk == NULL:
                raise failure(E_BADF, None)
            got = tcp_recvmsg(engine.e, sk, <uint8_t*> view.buf, size, flags)
        engine._leave_fd(sk, <int> got if got < 0 else 0, "recv")
    finally:
        PyBuffer_Release(&view)
    return got


cdef int64_t write_from(Engine engine, uint64_t h, object data, uint32_t flags, SocketBase who, bint whole, bint strict) except -1:
    """send(): bytes taken. whole: until nothing is left; strict: an error counts even after a part was taken."""
    cdef Py_buffer view
    cdef size_t sent = 0
    cdef int64_t n
    cdef ns_t until = 0
    cdef tcb_t* sk
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        sk = engine._enter(h)
        while True:
            n = tcp_sendmsg(engine.e, sk, <const uint8_t*> view.buf + sent, <size_t> view.len - sent, flags)
            if n >= 0:
                sent += <size_t> n
                n = 0
                if sent == <size_t> view.len or not whole:
                    break
            elif n != -E_AGAIN:
                break
            else:
                if who is not None and who.patience != 0:
                    sk.write_pending = sk.state == TCP_SYN_SENT
                sk = rest(who, engine, sk, h, POLLOUT, &until, False)
                if sk == NULL:
                    if sent and not strict:
                        return sent
                    raise failure(E_BADF, None)
        if sent and not strict:
            n = 0
        engine._leave_fd(sk, <int> n, "send")
    finally:
        PyBuffer_Release(&view)
    return sent


# ---- the object -------------------------------------------------------------------------------------------------------------------------
cdef SocketBase accepted(SocketBase listener, uint64_t h):
    """A Socket for a connection, made as Socket(stack, handle) would, without a Python frame."""
    global socket_class
    cdef SocketBase child
    if socket_class is None:
        from ustack._socket import Socket
        socket_class = Socket
    child = <SocketBase> (<PyTypeObject*> socket_class).tp_new(socket_class, <PyObject*> (), NULL)
    child._begin(listener._stack, listener._driver, listener._engine, h)
    return child


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class SocketBase:
    """What of Socket is in C: where it is, how long its calls wait, and the calls that each connection makes."""

    cdef readonly object _stack
    cdef readonly object _driver
    cdef readonly Engine _engine
    cdef readonly uint64_t _handle
    cdef readonly object _timeout       # as gettimeout() returns it
    cdef int64_t patience               # the same in ns; -1: for ever, 0: not at all
    cdef public bint _closed
    cdef public bint _close_later       # when the last file of makefile() is closed
    cdef public bint _defers            # TCP_FASTOPEN_CONNECT: connect() may have left the SYN to the first send
    cdef public int _io_refs            # such files
    cdef public object _fd              # of fileno()
    cdef public object _twins           # a listener of a stack with several queues
    cdef public object _options         # what such a one has been set to, before it has twins

    def __cinit__(self):
        self._closed = True
        self.patience = -1

    def __init__(self, stack, handle=None, shard=0):
        cdef Engine engine = stack.engines[shard]
        self._begin(stack, stack.drivers[shard], engine, engine.socket() if handle is None else handle)
        if handle is None and len(stack.engines) > 1:
            self._options = []

    cdef int _begin(self, object stack, object driver, Engine engine, uint64_t h) except -1:
        self._set_timeout(stack.default_timeout)
        self._stack = stack
        self._driver = driver
        self._engine = engine
        self._handle = h
        self._closed = False
        return 0

    def __del__(self):
        if not self._closed and not self._engine.s.dead:
            self._leaked()

    cdef inline bint _plain(self) except -1:
        """Do the rules here cover this socket's calls? EBADF once it is closed."""
        cdef Engine engine = self._engine
        if self._closed:
            raise failure(E_BADF, None)
        return engine.s.real_clock and not (self._defers or self._twins is not None or engine.uses_lowat or engine.uses_timeo)

    @property
    def handle(self):
        """The engine's handle; EBADF once closed."""
        if self._closed:
            raise failure(E_BADF, None)
        return self._handle

    # ---- how long calls wait ---------------------------------------------------------------------------------------------------------
    cdef int _set_timeout(self, object value) except -1:
        cdef double ns
        if value is None:
            self.patience = -1
        else:
            ns = value * 1e9
            if not ns >= 0:
                raise ValueError("Timeout value out of range")
            self.patience = <int64_t> llrint(ns) if ns < MOST_PATIENCE else MOST_PATIENCE
            if self.patience == 0 and ns > 0:
                self.patience = 1
        self._timeout = value
        return 0

    def settimeout(self, value):
        """None: block; 0: never block; else seconds after which a call raises TimeoutError."""
        self._set_timeout(value)

    def gettimeout(self):
        return self._timeout

    @property
    def timeout(self):
        return self._timeout

    # ---- calls -----------------------------------------------------------------------------------------------------------------------
    def accept(self):
        """The oldest connection in the accept queue and the peer's address."""
        cdef uint64_t h = 0
        if not self._plain():
            return self._accept_by_driver()
        peer = take_connection(self._engine, self._handle, self, &h)
        return accepted(self, h), peer

    def recv(self, Py_ssize_t bufsize, uint32_t flags=0):
        """Up to bufsize bytes; b"" at the end of the stream."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        if not self._plain() or flags:
            return self._recv_by_driver(bufsize, flags)
        return read_bytes(self._engine, self._handle, bufsize, 0, self)

    def recv_into(self, buffer, Py_ssize_t nbytes=0, uint32_t flags=0):
        """As recv, into a writable buffer; the number of bytes."""
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if not self._plain() or flags:
            return self._recv_into_by_driver(buffer, nbytes, flags)
        return read_into(self._engine, self._handle, buffer, nbytes, 0, self)

    def send(self, data, uint32_t flags=0):
        """Bytes taken. Blocking: all of them, as Linux's blocking send does; non-blocking: as many as fit."""
        if not self._plain() or flags:
            return self._send_by_driver(data, flags)
        return write_from(self._engine, self._handle, data, 0, self, self.patience < 0, False)

    def sendall(self, data, uint32_t flags=0):
        """Send everything or raise; a timeout counts for the whole."""
        if not self._plain() or flags:
            self._sendall_by_driver(data, flags)
        else:
            write_from(self._engine, self._handle, data, 0, self, True, True)

    def close(self):
        """Close; with SO_LINGER on, waits for the FIN to be acknowledged as long as it says (facts K1)."""
        cdef int64_t left
        if self._closed:
            return
        if self._io_refs > 0:
            self._close_later = True
            return
        if self._twins is not None or self._fd is not None or not self._engine.s.real_clock:
            self._close_by_driver()
            return
        self._closed = True
        if self._engine.s.dead:
            return
        try:
            left = self._engine._close(self._handle, True)
        except OSError:
            if self._engine.s.dead:     # since we looked
                return
            raise
        if left:
            self._linger(self._handle, clock_ns() + left)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
