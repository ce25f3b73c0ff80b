"""Socket: `socket.socket` on a ustack stack (TCP over IPv4).

The calls that each connection makes are in C (SocketBase, _border/socket.pxi) as long as nothing is unusual. All others, and those in virtual
time, are here: a method makes one attempt on the engine; where Linux would block, the attempt raises WouldBlock with the wait (poll mask,
deadline) and the driver waits: the threaded driver on a futex, the manual driver by running the virtual clock. Blocking follows Python's rules
for settimeout() and, for a blocking socket, SO_RCVTIMEO / SO_SNDTIMEO (EAGAIN) as Linux does.
"""

from __future__ import annotations

import contextlib
import errno
import io
import socket as _std
import struct
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ustack import congestion
from ustack._fastpath import SocketBase
from ustack._shards import Twins
from ustack._sockaux import Control, SocketIO, error_control, received_control
from ustack.drivers.manual import WouldBlock
from ustack.errors import failure

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from ustack._fastpath import Engine
POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLRDHUP = 0x001, 0x002, 0x004, 0x008, 0x010, 0x2000
MSG_OOB, MSG_PEEK, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT, MSG_WAITALL, MSG_ERRQUEUE = 0x1, 0x2, 0x8, 0x20, 0x40, 0x100, 0x2000
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT = 30

Address = tuple[str, int]
T = TypeVar("T")


def _pair(address: Any) -> Address:
    """(host, port) of an AF_INET address; names are for the caller to resolve."""
    if not isinstance(address, tuple) or len(address) != 2:
        raise TypeError("an address is a tuple (host, port)")
    host, port = address
    if not isinstance(port, int):
        raise TypeError(f"a port is an int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise OverflowError("a port is from 0 to 65535")
    if host in ("", "<any>", "0.0.0.0"):
        return "", port
    return "127.0.0.1" if host == "localhost" else host, port


class Socket(SocketBase):
    """A TCP socket of a Stack; made by stack.socket(), create_server(), create_connection() or accept()."""

    family = _std.AF_INET
    type = _std.SOCK_STREAM
    proto = _std.IPPROTO_TCP

    # ---- plumbing ----------------------------------------------------------------------------------------------------------
    def _deadline(self, rcv: bool) -> tuple[int | None, bool]:
        """(absolute ns or None, whether it is Python's timeout and not SO_*TIMEO)."""
        if self._timeout is not None:
            return self._driver.now_ns() + round(self._timeout * 1e9), True
        if not self._engine.uses_timeo:
            return None, False
        own = self._engine.timeouts(self.handle)[0 if rcv else 1]
        return (None if own is None else self._driver.now_ns() + own), False

    def _block(self, exc: OSError, mask: int, deadline: tuple[int | None, bool] | None, rcv: bool,
               exclusive: bool = False, flags: int = 0) -> NoReturn:
        """After EAGAIN: raise it as it is if non-blocking, else what the driver has to wait for."""
        if self._timeout == 0 or flags & MSG_DONTWAIT:
            raise exc
        at, pythons = deadline if deadline is not None else self._deadline(rcv)
        if at is not None and at <= self._driver.now_ns() and not pythons:
            raise exc

        def expired() -> NoReturn:
            if pythons:
                raise TimeoutError("timed out")
            raise exc

        raise WouldBlock((self.handle, mask, at, exclusive), expired)

    # ---- life --------------------------------------------------------------------------------------------------------------
    def bind(self, address: Any) -> None:
        host, port = _pair(address)
        self._driver.before_call()
        self._engine.bind(self.handle, host, port)

    def listen(self, backlog: int = 128) -> None:
        """Listen, or change the limit of a listener. The accept queue holds backlog + 1 (facts A6); -1 means somaxconn."""
        self._driver.before_call()
        self._engine.listen(self.handle, backlog)
        if self._options is not None:
            if self._twins is None:
                self._twins = Twins(self, self._options)
            self._twins.listen(backlog)
        self._driver.kick()

    def places(self) -> list[tuple[Engine, int]]:
        """Where the socket is: (engine, handle); a listener of a stack with several queues has one on each."""
        return [(self._engine, self.handle)] if self._twins is None else self._twins.places

    def serve(self, kind: str | None) -> None:
        """Let the engine serve this listener's connections: "echo", "discard", "chargen", "http"; None: the program does."""
        if self._twins is not None:
            self._twins.serve(kind)
        else:
            self._engine.set_service(self.handle, kind)

    def _accept_by_driver(self) -> tuple[Socket, Address]:
        if self._twins is not None:
            shard, child, peer = self._twins.accept(self)
            return Socket(self._stack, child, shard), peer
        deadline: tuple[int | None, bool] | None = None

        def attempt() -> tuple[int, Address]:
            nonlocal deadline
            try:
                return self._engine.accept(self.handle)
            except BlockingIOError as exc:
                deadline = deadline or (None if self._timeout == 0 else self._deadline(True))
                self._block(exc, POLLIN, deadline, True, exclusive=True)

        def made(result: tuple[int, Address]) -> tuple[Socket, Address]:
            return Socket(self._stack, result[0]), result[1]

        return self._driver.call(attempt, made)

    def connect(self, address: Any) -> None:
        """Connect; BlockingIOError(EINPROGRESS) on a non-blocking socket. Raises the connection's error, or TimeoutError."""
        host, port = _pair(address)
        deadline: tuple[int | None, bool] | None = None
        started = False

        def attempt() -> None:
            nonlocal deadline, started
            try:
                if started:
                    self._engine.connect_result(self.handle)
                else:
                    started = True
                    self._engine.connect(self.handle, host, port)
            except BlockingIOError as exc:
                deadline = deadline or (None if self._timeout == 0 else self._deadline(False))
                self._block(exc, POLLOUT, deadline, False)

        self._driver.call(attempt)

    def connect_ex(self, address: Any) -> int:
        try:
            self.connect(address)
        except TimeoutError as exc:
            return exc.errno or errno.EAGAIN
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0

    def disconnect(self) -> None:
        """connect() to AF_UNSPEC: abort the connection and be an unconnected socket again."""
        self._driver.before_call()
        self._engine.disconnect(self.handle)
        self._driver.kick()

    def shutdown(self, how: int) -> None:
        self._driver.before_call()
        try:
            self._engine.shutdown(self.handle, how)
        finally:
            self._driver.kick()

    def _close_by_driver(self) -> None:
        handle = self._handle
        self._closed = True
        if self._twins is not None:
            self._twins.close()
            self._fd = None
        if self._fd is not None:
            self._driver.drop_fd(handle)
            self._fd = None
        if self._stack.stopped:
            return
        self._driver.before_call()
        left = 0
        try:
            left = self._engine.close(handle, wait=True)
        except BrokenPipeError:
            pass
        finally:
            self._driver.kick()
        if left:
            self._linger(handle, self._driver.now_ns() + left)

    def _linger(self, handle: int, until: int) -> None:
        """The rest of a close with SO_LINGER: wait for the end of the connection, at most until then."""

        def attempt() -> None:
            if not self._engine.lingering(handle):
                return self._engine.close_finish(handle)
            raise WouldBlock((handle, 0, until, False), lambda: self._engine.close_finish(handle))

        with contextlib.suppress(BrokenPipeError):
            self._driver.call(attempt)

    def detach(self) -> int:
        """Give up the object without closing: returns the engine's handle (usable with Socket(stack, handle))."""
        handle = self.handle
        self._closed = True
        return handle

    def _leaked(self, _warn: Any = warnings.warn) -> None:
        """The object goes, and nobody has closed it."""
        if not self._stack.stopped:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            with contextlib.suppress(Exception):
                self._closed = True
                self._engine.close(self._handle)
                self._driver.kick()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ustack socket cannot be pickled: it lives in its stack")

    def __repr__(self) -> str:
        if self._closed:
            return f"<ustack.Socket [closed] of {self._stack.name}>"
        try:
            return f"<ustack.Socket handle={self._handle & 0xFFFFFFFF} laddr={self.getsockname()} of {self._stack.name}>"
        except OSError:
            return f"<ustack.Socket of {self._stack.name}>"

    # ---- data --------------------------------------------------------------------------------------------------------------
    def _recv_by_driver(self, bufsize: int, flags: int) -> bytes:
        if flags & MSG_WAITALL or self._engine.uses_lowat:
            buffer = bytearray(bufsize)
            return self._recv_into(memoryview(buffer), flags, lambda n: bytes(buffer[:n]))
        deadline: tuple[int | None, bool] | None = None

        def attempt() -> bytes:
            nonlocal deadline
            try:
                return self._engine.recv(self.handle, bufsize, flags)
            except BlockingIOError as exc:
                deadline = deadline or (None if self._timeout == 0 else self._deadline(True))
                self._block(exc, POLLIN, deadline, True, flags=flags)

        return self._driver.call(attempt)

    def _recv_into_by_driver(self, buffer: WriteableBuffer, nbytes: int, flags: int) -> int:
        view = memoryview(buffer).cast("B")
        return self._recv_into(view[:nbytes] if nbytes else view, flags, int)

    def _recv_into(self, view: memoryview, flags: int, finish: Callable[[int], T]) -> T:
        deadline: tuple[int | None, bool] | None = None
        got = 0
        want = len(view)
        target = 1
        if flags & MSG_WAITALL:
            target = want
        elif not flags & MSG_DONTWAIT and self._timeout != 0:
            target = max(1, min(self.getsockopt(_std.SOL_SOCKET, _std.SO_RCVLOWAT), want)) if self._engine.uses_lowat else 1

        def so_far() -> int:
            return got

        def attempt() -> int:
            nonlocal deadline, got
            while True:
                try:
                    n = self._engine.recv_into(self.handle, view[got:], flags & ~MSG_WAITALL)
                except BlockingIOError as exc:
                    if got and (self._timeout == 0 or flags & MSG_DONTWAIT):
                        return got
                    deadline = deadline or (None if self._timeout == 0 else self._deadline(True))
                    try:
                        self._block(exc, POLLIN, deadline, True, flags=flags)
                    except WouldBlock as block:
                        if got:
                            block.on_timeout = so_far
                        raise
                except OSError:
                    if got:
                        return got
                    raise
                if flags & (MSG_PEEK | MSG_OOB) or n == 0:
                    return got + n
                got += n
                if got >= target:
                    return got

        if want == 0:
            return finish(self._engine.recv_into(self.handle, view, flags))
        return self._driver.call(attempt, finish)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> tuple[bytes, list[Control], int, None]:
        """(data, control messages, flags, None): TCP_INQ, SCM_TIMESTAMP*, and with MSG_ERRQUEUE the error queue (IP_RECVERR)."""
        if flags & MSG_ERRQUEUE:
            return self._recv_error(ancbufsize)
        buffer = bytearray(bufsize)
        deadline: tuple[int | None, bool] | None = None

        def attempt() -> tuple[bytes, list[Control], int, None]:
            nonlocal deadline
            try:
                n, stamp, left = self._engine.recv_stamped(self.handle, buffer, flags)
            except BlockingIOError as exc:
                deadline = deadline or (None if self._timeout == 0 else self._deadline(True))
                self._block(exc, POLLIN, deadline, True, flags=flags)
            control = received_control(stamp, left, self._engine.receive_options(self.handle))
            return bytes(buffer[:n]), control if ancbufsize else [], MSG_CTRUNC if control and not ancbufsize else 0, None

        return self._driver.call(attempt)

    def _recv_error(self, room: int) -> tuple[bytes, list[Control], int, None]:
        """One entry of the error queue, as recvmsg(MSG_ERRQUEUE) returns it; never waits."""
        self._driver.before_call()
        entry = self._engine.take_error(self.handle)
        control, flags = error_control(entry, self._engine.receive_options(self.handle)[0])
        return b"", control if room else [], flags | (0 if room else MSG_CTRUNC), None

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, None]:
        """As recv; a stream has no sender address per read."""
        return self.recv(bufsize, flags), None

    def _send_by_driver(self, data: ReadableBuffer, flags: int) -> int:
        if self._timeout == 0 or flags & MSG_DONTWAIT:
            self._driver.before_call()
            try:
                return self._engine.send(self.handle, data, flags)
            finally:
                self._driver.kick()
        view = memoryview(data).cast("B")
        sent = self._send_now(view, flags)
        return sent if sent == len(view) else self._send(view, flags, self._timeout is None, sent)

    def _send_now(self, view: memoryview, flags: int) -> int:
        """What can be sent without waiting, as long as the connection is not opened by it."""
        if self._defers or flags & MSG_FASTOPEN:
            return 0
        self._driver.before_call()
        try:
            return self._engine.send(self.handle, view, flags)
        except BlockingIOError:
            return 0
        finally:
            self._driver.kick()

    def _send(self, view: memoryview, flags: int, whole: bool, sent: int = 0, address: Address | None = None,
              strict: bool = False) -> int:
        """The blocking send. It may open the connection (address: MSG_FASTOPEN; or a connect that waited for data): then it
        waits for the handshake, however much of the data went with the SYN, and goes on with the rest. strict: an error counts
        even after a part was sent."""
        deadline: tuple[int | None, bool] | None = None
        opening = address is not None or self._defers or bool(flags & MSG_FASTOPEN)
        handshake = False
        size = len(view)

        def so_far() -> int:
            return sent

        def step() -> bool:
            """Take some; True: enough."""
            nonlocal opening, handshake, sent
            if handshake:
                self._engine.connect_result(self.handle)
                handshake = False
            elif opening:
                opening = self._defers = False
                handshake = True
                sent += self._open(view, flags, address)
                return False
            else:
                sent += self._engine.send(self.handle, view[sent:], flags & ~MSG_FASTOPEN)
            return sent >= size or not whole

        def attempt() -> int:
            nonlocal deadline
            while True:
                try:
                    if step():
                        return sent
                except BlockingIOError as exc:
                    deadline = deadline or self._deadline(False)
                    try:
                        self._block(exc, POLLOUT, deadline, False, flags=flags)
                    except WouldBlock as block:
                        if sent < size:
                            self._engine.write_pending(self.handle)
                        if sent and not (whole and deadline[1]):
                            block.on_timeout = so_far
                        raise
                except OSError:
                    if sent and not handshake and not strict:
                        return sent
                    raise

        if sent and not whole:
            return sent
        return self._driver.call(attempt)

    def _open(self, view: memoryview, flags: int, address: Address | None) -> int:
        """Connect with data; what the SYN could not take is left to later sends."""
        try:
            if address is None:
                return self._engine.send(self.handle, view, flags)
            return self._engine.send_fastopen(self.handle, view, flags, *address)
        except BlockingIOError:
            return 0

    def _sendall_by_driver(self, data: ReadableBuffer, flags: int) -> None:
        view = memoryview(data).cast("B")
        sent = self._send_now(view, flags)
        if sent < len(view):
            if self._timeout == 0:
                raise failure(errno.EAGAIN, None)
            sent = self._send(view, flags, True, sent, strict=True)
        if sent < len(view):        # SO_SNDTIMEO
            raise failure(errno.EAGAIN, None)

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """sendto(data, [flags,] address): with MSG_FASTOPEN opens the connection with data in the SYN; else as send."""
        flags, address = (args[0], args[1]) if len(args) == 2 else (0, args[0] if args else None)
        if not flags & MSG_FASTOPEN:
            return self.send(data, flags)
        view = memoryview(data).cast("B")
        if self._timeout == 0 or flags & MSG_DONTWAIT:
            self._driver.before_call()
            try:
                return self._engine.send_fastopen(self.handle, view, flags, *_pair(address))
            finally:
                self._driver.kick()
        return self._send(view, flags, self._timeout is None, address=_pair(address))

    def sendmsg(self, buffers: Iterable[ReadableBuffer], ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        """Gathering send; control messages have no meaning for TCP here and must be empty."""
        if tuple(ancdata):
            raise failure(errno.EINVAL, "no control message is defined for sending on TCP here")
        data = b"".join(bytes(b) for b in buffers)
        return self.send(data, flags) if address is None else self.sendto(data, flags, address)

    def sendfile(self, file: io.BufferedIOBase, offset: int = 0, count: int | None = None) -> int:
        """Send a file's bytes from offset; the number sent. The file position ends behind the last byte sent."""
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        total = 0
        try:
            while count is None or total < count:
                block = file.read(min(262144, count - total) if count is not None else 262144)
                if not block:
                    break
                self.sendall(block)
                total += len(block)
        finally:
            if total and file.seekable():
                file.seek(offset + total)
        return total

    def makefile(self, mode: str = "r", buffering: int | None = None, *, encoding: str | None = None,
                 errors: str | None = None, newline: str | None = None) -> Any:
        """A file object as socket.socket.makefile gives."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw = SocketIO(self, ("r" if reading else "") + ("w" if writing else ""))
        self._io_refs += 1
        if buffering is None:
            buffering = -1
        if buffering < 0:
            buffering = io.DEFAULT_BUFFER_SIZE
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("unbuffered streams must be binary")
            return raw
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, buffering)
        elif reading:
            buffer = io.BufferedReader(raw, buffering)
        else:
            buffer = io.BufferedWriter(raw, buffering)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text

    def _decref_io(self) -> None:
        self._io_refs -= 1
        if self._io_refs <= 0 and self._close_later:
            self.close()

    # ---- options and names -------------------------------------------------------------------------------------------------
    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """value: an int or the option's bytes (struct linger, timeval, a congestion control's name ...)."""
        if value is None:
            value = bytes(optlen or 0)
        if (level, optname) == (_std.IPPROTO_TCP, _std.TCP_CONGESTION) and not isinstance(value, int):
            congestion.provide(self._engine, value)
        self._driver.before_call()
        try:
            self._engine.setsockopt(self.handle, level, optname, value)
            if self._twins is not None:
                self._twins.setsockopt(level, optname, value)
            elif self._options is not None:
                self._options.append((level, optname, value))
            if (level, optname) == (_std.IPPROTO_TCP, TCP_FASTOPEN_CONNECT):
                self._defers = True
        finally:
            self._driver.kick()

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        """An int, or with buflen the option's bytes."""
        self._driver.before_call()
        raw = self._engine.getsockopt(self.handle, level, optname, buflen or 4)
        if buflen:
            return raw
        return struct.unpack("i", raw.ljust(4, b"\0"))[0] if len(raw) >= 4 else int.from_bytes(raw, "little")

    def getsockname(self) -> Address:
        return self._engine.getsockname(self.handle)

    def getpeername(self) -> Address:
        return self._engine.getpeername(self.handle)

    def poll(self) -> int:
        """The poll mask now, in Linux's bits (IN 1, PRI 2, OUT 4, ERR 8, HUP 0x10, RDNORM 0x40, WRNORM 0x100, RDHUP 0x2000)."""
        self._driver.before_call()
        return self._engine.poll_mask(self.handle) if self._twins is None else self._twins.poll_mask()

    def wakeups(self) -> int:
        """The poll bits of all wake-ups since this was last asked (manual driver): what an EPOLLET watch goes by."""
        return self._engine.wakeup_bits(self.handle)

    def ioctl(self, request: int) -> int:
        """SIOCINQ, SIOCOUTQ, SIOCOUTQNSD, SIOCATMARK: the value."""
        return self._engine.ioctl(self.handle, request)

    def fileno(self) -> int:
        """A real descriptor that polls readable and writable as the socket does; -1 once closed."""
        if self._closed:
            return -1
        if self._fd is None:
            self._fd = self._driver.make_fd(self._handle) if self._twins is None else self._twins.fileno()
        return int(self._fd)

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        if inheritable:
            raise failure(errno.EINVAL, "a ustack socket cannot be passed to another process")

