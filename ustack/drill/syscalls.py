"""The system calls of a script, carried out on the stack.

Each call is a method `call_NAME` that starts it and returns a `Started`: what to wait for, and how to
turn the completion into the value a program would have got, checking what the kernel wrote through
pointers on the way.  The interpreter waits, and compares value and errno with the script's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ustack.drill import epoll, extensions, messages, nodes, sockopts, values
from ustack.drill.nodes import Syscall
from ustack.drill.options import UnsupportedError
from ustack.drill.packets import Flow, FlowState
from ustack.drill.port import CompletionLike, Done, Port
from ustack.drill.state import Descriptor, Failure, World
from ustack.drill.symbols import SYMBOLS

_O_RDWR, _O_NONBLOCK = SYMBOLS["O_RDWR"], SYMBOLS["O_NONBLOCK"]
_SOCK_NONBLOCK = SYMBOLS["SOCK_NONBLOCK"]
_SOCK_FLAGS = _SOCK_NONBLOCK | SYMBOLS["SOCK_CLOEXEC"]
_FASTOPEN, _PEEK, _DONTWAIT = SYMBOLS["MSG_FASTOPEN"], SYMBOLS["MSG_PEEK"], SYMBOLS["MSG_DONTWAIT"]
_POLLNVAL = SYMBOLS["POLLNVAL"]
_POLL_ALWAYS = SYMBOLS["POLLERR"] | SYMBOLS["POLLHUP"]

# Known to the language, not to this interpreter.
NOT_BUILT = frozenset({"pipe", "splice", "vmsplice", "tee", "sendfile", "open", "cap_set", "cap_get",
                       "openat",
                       "socketpair", "mmap", "dup", "dup2", "sctp_sendmsg", "sctp_recvmsg"})


@dataclass(frozen=True, slots=True)
class Returned:
    """What the program got: a value, and the errno name when it is -1."""

    value: int
    errno: str | None = None

    def __str__(self) -> str:
        return f"{self.value} {self.errno}" if self.errno else str(self.value)


@dataclass(slots=True)
class Started:
    completion: CompletionLike
    finish: Callable[[CompletionLike], Returned]
    look: Callable[[], None] | None = None  # brings a waiter of the interpreter's own up to date


class Waiter:
    """A poll() or epoll_wait() that has to wait: done when `ready()` gives something or time is up."""

    def __init__(self, port: Port, ready: Callable[[], Any], deadline: int | None) -> None:
        self.done = False
        self.result: Any = None
        self.errno: str | None = None
        self.at: int | None = None
        self.deadline = deadline  # stack time
        self._port, self._ready = port, ready
        self.look()

    def look(self) -> None:
        if self.done:
            return
        now = self._port.stack.clock.now
        self.result = self._ready()
        if self.result or (self.deadline is not None and now >= self.deadline):
            self.done, self.at = True, now


def _count(completion: CompletionLike) -> Returned:
    """The usual result: the number given, the size of the data given, or zero."""
    if completion.errno is not None:
        return Returned(-1, completion.errno)
    result = completion.result
    if isinstance(result, (bytes, bytearray, memoryview)):
        return Returned(len(result))
    return Returned(int(result) if isinstance(result, int) else 0)


class Syscalls:
    def __init__(self, world: World, port: Port, waiting: Callable[[list[Flow]], str | None] = lambda flows: None) -> None:
        self.world, self.port, self.waiting = world, port, waiting

    def start(self, call: Syscall) -> Started:
        """Begin the call; UnsupportedError if there is no such call here."""
        method: Callable[[Syscall], Started] | None = getattr(self, f"call_{call.name}", None)
        if method is None:
            raise UnsupportedError(f"{call.pos}: the system call {call.name}() is not built")
        try:
            return method(call)
        except (OverflowError, ValueError, MemoryError, struct.error) as error:
            raise Failure("script", call.pos, f"an argument of {call.name}() cannot be passed: {error or 'too large'}") from None

    @classmethod
    def known(cls, name: str) -> bool:
        return hasattr(cls, f"call_{name}")

    # -- helpers
    def _fd(self, value: nodes.Value) -> Descriptor:
        return self.world.descriptor(values.number(value), value.pos)

    def _tcp(self, value: nodes.Value) -> Descriptor:
        descriptor = self._fd(value)
        if descriptor.kind != "tcp":
            raise Failure("script", value.pos, "this is not a TCP socket")
        return descriptor

    def _submit(self, descriptor: Descriptor, op: str, *args: Any) -> Started:
        return Started(self.port.submit(descriptor.sock, op, *args), _count)

    def _returns(self, value: int, errno: str | None = None) -> Started:
        return Started(Done(self.port.stack.clock.now, value, errno), lambda c: Returned(value, errno))

    def _at_once(self, method: Callable[..., Any], *args: Any) -> Started:
        return Started(self.port.at_once(method, *args), lambda c: Returned(0) if c.errno is None
                       else Returned(-1, c.errno))

    @staticmethod
    def _script_fd(call: Syscall) -> int:
        return call.result.value if isinstance(call.result, nodes.Int) else -1

    # -- opening and closing
    def call_socket(self, call: Syscall) -> Started:
        domain, kind, protocol = values.args(call, 3)
        if not values.is_dots(domain) and values.number(domain) != SYMBOLS["AF_INET"]:
            raise UnsupportedError(f"{domain.pos}: only AF_INET sockets are built")
        flags = values.number(kind)
        if flags & ~_SOCK_FLAGS != SYMBOLS["SOCK_STREAM"] or values.number(protocol) not in (0, 6):
            raise UnsupportedError(f"{kind.pos}: only TCP sockets are built")
        flow = Flow()

        def finish(done: CompletionLike) -> Returned:
            if done.errno is not None:
                return Returned(-1, done.errno)
            fd = self._script_fd(call)
            done.result.setblocking(not flags & _SOCK_NONBLOCK)
            flow.fd = fd
            self.world.open_fd(fd, Descriptor("tcp", done.result, flow, bool(flags & _SOCK_NONBLOCK)),
                               call.pos)
            self.world.flows.append(flow)
            self.world.under_test = flow
            return Returned(fd)

        return Started(self.port.at_once(self.port.stack.socket), finish)

    def call_accept(self, call: Syscall) -> Started:
        fd, address, _size = values.args(call, 3)
        return self._accept(call, fd, 0, address)

    def call_accept4(self, call: Syscall) -> Started:
        fd, address, _size, flags = values.args(call, 4)
        return self._accept(call, fd, values.number(flags), address)

    def _accept(self, call: Syscall, listener: nodes.Value, flags: int, address: nodes.Value) -> Started:
        def finish(done: CompletionLike) -> Returned:
            if done.errno is not None:
                return Returned(-1, done.errno)
            sock, peer = done.result
            fd = self._script_fd(call)
            sock.setblocking(not flags & _SOCK_NONBLOCK)
            flow = self.world.accepted(fd, (peer[0], peer[1]), call.pos)
            if isinstance(address, nodes.Label) and flow not in self.world.clients(address):
                raise Failure("syscall", address.pos, "accept() returned another client's connection", str(address), flow.name)
            self.world.open_fd(fd, Descriptor("tcp", sock, flow, bool(flags & _SOCK_NONBLOCK)), call.pos)
            return Returned(fd)

        return Started(self.port.submit(self._tcp(listener).sock, "accept"), finish)

    def call_close(self, call: Syscall) -> Started:
        (value,) = values.args(call, 1)
        fd = values.number(value)
        descriptor = self._fd(value)
        self.world.notice_wakeups()
        del self.world.fds[fd]
        for other in self.world.fds.values():
            other.watches.pop(fd, None)
        return self._returns(0) if descriptor.kind == "epoll" else self._submit(descriptor, "close")

    # -- addresses and states
    def call_bind(self, call: Syscall) -> Started:
        fd, address, _size = values.args(call, 3)
        options = self.world.options
        where = values.socket_address(address, (options.local_ip, options.bind_port))
        return self._at_once(self._tcp(fd).sock.bind, where)

    def call_listen(self, call: Syscall) -> Started:
        fd, backlog = values.args(call, 2)
        descriptor = self._tcp(fd)
        started = self._at_once(descriptor.sock.listen, values.number(backlog))
        if started.completion.errno is None and descriptor.flow is not None:
            descriptor.flow.state = FlowState.LISTENING
        return started

    def call_connect(self, call: Syscall) -> Started:
        fd, address, _size = values.args(call, 3)
        descriptor = self._tcp(fd)
        if isinstance(address, nodes.Name) and values.number(address) == SYMBOLS["AF_UNSPEC"]:
            # The tuple lives on until the next connect(): the reset that this sends is still expected on it.
            started = self._submit(descriptor, "disconnect")
            if descriptor.flow is not None and started.completion.errno is None:
                descriptor.flow.state = FlowState.NEW
            return started
        if descriptor.flow is not None:
            self.world.connecting(descriptor.flow)
        return self._submit(descriptor, "connect", values.socket_address(address, self._remote()))

    def _remote(self) -> tuple[str, int]:
        return self.world.options.remote_ip, self.world.options.connect_port

    def call_shutdown(self, call: Syscall) -> Started:
        fd, how = values.args(call, 2)
        return self._at_once(self._tcp(fd).sock.shutdown, values.number(how))

    def call_fcntl(self, call: Syscall) -> Started:
        fd, command, *rest = values.args(call, 2, 3)
        descriptor = self._tcp(fd)
        match values.number(command):
            case 3:
                return self._returns(_O_RDWR | (_O_NONBLOCK if descriptor.nonblocking else 0))
            case 4 if rest:
                descriptor.nonblocking = bool(values.number(rest[0]) & _O_NONBLOCK)
                return self._at_once(descriptor.sock.setblocking, not descriptor.nonblocking)
        raise UnsupportedError(f"{command.pos}: only F_GETFL and F_SETFL are built")

    def call_ioctl(self, call: Syscall) -> Started:
        fd, request, *rest = values.args(call, 2, 3)
        descriptor = self._tcp(fd)
        code = values.number(request)
        if code == SYMBOLS["FIONBIO"] and rest:
            descriptor.nonblocking = bool(values.pointed_number(rest[0]))
            return self._at_once(descriptor.sock.setblocking, not descriptor.nonblocking)

        def finish(done: CompletionLike) -> Returned:
            if done.errno is not None:
                return Returned(-1, done.errno)
            if rest and not values.is_dots(rest[0]) and values.pointed_number(rest[0]) != done.result:
                raise Failure("syscall", rest[0].pos, "ioctl() gave another value",
                              str(values.pointed_number(rest[0])), str(done.result))
            return Returned(0)

        return Started(self.port.at_once(descriptor.sock.ioctl, code), finish)

    # -- not of packetdrill
    def call_queue(self, call: Syscall) -> Started:
        return Started(extensions.queue(call, self._tcp(call.args[0]).sock, self.port), _count)

    def call_silent(self, call: Syscall) -> Started:
        return Started(extensions.silent(call, self.world, self.waiting, self.port), _count)

    # -- options
    def call_setsockopt(self, call: Syscall) -> Started:
        fd, level, name, value, size = values.args(call, 5)
        raw = sockopts.encode(value, values.number(size))
        if raw is None:
            return self._returns(-1, "EFAULT")
        return self._at_once(self._tcp(fd).sock.setsockopt, values.number(level), values.number(name), raw)

    def call_getsockopt(self, call: Syscall) -> Started:
        fd, level, name, value, size = values.args(call, 5)
        wanted = values.pointed_number(size)

        def finish(done: CompletionLike) -> Returned:
            if done.errno is not None:
                return Returned(-1, done.errno)
            sockopts.check(call, value, done.result, wanted)
            return Returned(0)

        method = self._tcp(fd).sock.getsockopt
        return Started(self.port.at_once(method, values.number(level), values.number(name), wanted), finish)

    # -- receiving
    def call_read(self, call: Syscall) -> Started:
        fd, buffer, size = values.args(call, 3)
        return self._read(fd, buffer, values.number(size))

    def call_recv(self, call: Syscall) -> Started:
        fd, buffer, size, flags = values.args(call, 4)
        return self._receive(fd, buffer, values.number(size), values.number(flags))

    def call_recvfrom(self, call: Syscall) -> Started:
        fd, buffer, size, flags, _address, _address_size = values.args(call, 6)
        return self._receive(fd, buffer, values.number(size), values.number(flags))

    def call_readv(self, call: Syscall) -> Started:
        fd, vector, count = values.args(call, 3)
        return self._read(fd, None, sum(self._vector(vector, count)))

    def _read(self, fd: nodes.Value, buffer: nodes.Value | None, size: int) -> Started:
        """A read of nothing does not come to the socket."""
        self._tcp(fd)
        return self._receive(fd, buffer, size, 0) if size else self._returns(0)

    def _receive(self, fd: nodes.Value, buffer: nodes.Value | None, size: int, flags: int) -> Started:
        descriptor = self._tcp(fd)
        if buffer is not None and values.is_null(buffer) and size > 0:
            # The copy faults only if there is something to copy.
            done = self.port.submit(descriptor.sock, "recv", 1, flags | _PEEK | _DONTWAIT)
            if not done.done:
                raise Failure("syscall", fd.pos, "a non-blocking recv() did not return")
            return Started(done, lambda c: Returned(-1, "EFAULT") if c.errno is None and c.result
                           else _count(c))
        self._need_dots(buffer)
        return self._submit(descriptor, "recv", size, flags)

    @staticmethod
    def _need_dots(buffer: nodes.Value | None) -> None:
        if buffer is not None and not values.is_dots(buffer) and not values.is_null(buffer):
            raise Failure("script", buffer.pos, "a buffer is `...` or NULL")

    @staticmethod
    def _vector(vector: nodes.Value, count: nodes.Value) -> list[int]:
        lengths = values.iovec_lengths(vector)
        if values.number(count) != len(lengths):
            raise Failure("script", count.pos,
                          f"the vector has {len(lengths)} elements, not {values.number(count)}")
        return lengths

    def call_recvmsg(self, call: Syscall) -> Started:
        fd, message, flags = values.args(call, 3)
        incoming = messages.Incoming(values.struct(message), self._stamp_ok)
        size = sum(messages.iov_lengths(incoming.message))

        def finish(done: CompletionLike) -> Returned:
            if done.errno is not None:
                return Returned(-1, done.errno)
            data, control, got_flags = done.result[:3]
            incoming.check(got_flags, [(level, kind, bytes(raw)) for level, kind, raw in control])
            return Returned(len(data))

        done = self.port.submit(self._tcp(fd).sock, "recvmsg", size, incoming.control_size,
                                values.number(flags))
        return Started(done, finish)

    def _stamp_ok(self, relative: int, wall: int) -> str | None:
        """None if a real-time stamp is the script's time within the tolerance, else the time it is."""
        at = self.port.wall_to_script(wall)
        near = abs(at - relative) <= self.world.options.tolerance_usecs * 1000
        return None if near else f"{at / 1e9:.9f} s"

    # -- sending
    def call_write(self, call: Syscall) -> Started:
        fd, buffer, size = values.args(call, 3)
        return self._send(fd, buffer, values.number(size), 0)

    def call_send(self, call: Syscall) -> Started:
        fd, buffer, size, flags = values.args(call, 4)
        return self._send(fd, buffer, values.number(size), values.number(flags))

    def call_sendto(self, call: Syscall) -> Started:
        fd, buffer, size, flags, address, _address_size = values.args(call, 6)
        return self._send(fd, buffer, values.number(size), values.number(flags), address)

    def call_writev(self, call: Syscall) -> Started:
        fd, vector, count = values.args(call, 3)
        return self._send(fd, None, sum(self._vector(vector, count)), 0)

    def _send(self, fd: nodes.Value, buffer: nodes.Value | None, size: int, flags: int,
              address: nodes.Value | None = None) -> Started:
        descriptor = self._tcp(fd)
        if buffer is not None and values.is_null(buffer) and size > 0:
            return self._returns(-1, "EFAULT")
        self._need_dots(buffer)
        if flags & _FASTOPEN and address is not None:
            if descriptor.flow is not None:
                self.world.connecting(descriptor.flow)
            return self._submit(descriptor, "sendto", bytes(size), flags,
                                values.socket_address(address, self._remote()))
        return self._submit(descriptor, "send", bytes(size), flags)

    def call_sendmsg(self, call: Syscall) -> Started:
        fd, message, flag_value = values.args(call, 3)
        descriptor, fields, flags = self._tcp(fd), values.struct(message), values.number(flag_value)
        data = bytes(sum(messages.iov_lengths(fields)))
        control = messages.outgoing_control(fields)
        if control:
            return self._submit(descriptor, "sendmsg", [data], control, flags)
        if not flags & _FASTOPEN:
            return self._submit(descriptor, "send", data, flags)
        if descriptor.flow is not None:
            self.world.connecting(descriptor.flow)
        return self._submit(descriptor, "sendto", data, flags, self._remote())

    # -- readiness
    def call_poll(self, call: Syscall) -> Started:
        array, count, timeout = values.args(call, 3)
        items = [values.struct(item) for item in values.array(array)]
        if values.number(count) != len(items):
            raise Failure("script", count.pos,
                          f"the array has {len(items)} elements, not {values.number(count)}")
        watched = []
        for item in items:
            fd = values.number(values.member(item, "fd"))
            watched.append((self.world.fds.get(fd), values.number(values.member(item, "events"))))

        def masks() -> list[int]:
            return [_POLLNVAL if d is None else d.sock.poll() & (events | _POLL_ALWAYS) for d,
                    events in watched]

        def finish(done: CompletionLike) -> Returned:
            got = masks()
            for item, mask in zip(items, got, strict=True):
                wanted = item.get("revents")
                if wanted is not None and not values.is_dots(wanted) and values.number(wanted) != mask:
                    raise Failure("syscall", wanted.pos, "poll() gave other revents",
                                  _poll_words(values.number(wanted)), _poll_words(mask))
            return Returned(sum(1 for mask in got if mask))

        waiter = Waiter(self.port, lambda: any(masks()), self._deadline(values.number(timeout)))
        return Started(waiter, finish, waiter.look)

    def _deadline(self, timeout_ms: int) -> int | None:
        return None if timeout_ms < 0 else self.port.stack.clock.now + timeout_ms * 1_000_000

    def call_epoll_create(self, call: Syscall) -> Started:
        (size,) = values.args(call, 1)
        if values.number(size) <= 0:
            return self._returns(-1, "EINVAL")
        return self._open_epoll(call)

    def call_epoll_create1(self, call: Syscall) -> Started:
        values.args(call, 1)
        return self._open_epoll(call)

    def _open_epoll(self, call: Syscall) -> Started:
        fd = self._script_fd(call)
        self.world.open_fd(fd, Descriptor("epoll"), call.pos)
        return self._returns(fd)

    def _epoll(self, value: nodes.Value) -> Descriptor:
        descriptor = self._fd(value)
        if descriptor.kind != "epoll":
            raise Failure("script", value.pos, "this is not an epoll descriptor")
        return descriptor

    @staticmethod
    def _event(value: nodes.Value) -> tuple[int, int]:
        fields = values.struct(value)
        data = fields.get("fd", "ptr", "u32", "u64")
        return (values.number(values.member(fields, "events")) & 0xFFFFFFFF,
                0 if data is None else values.number(data) & 0xFFFFFFFFFFFFFFFF)

    def call_epoll_ctl(self, call: Syscall) -> Started:
        epfd, op, fd, *rest = values.args(call, 3, 4)
        watches, target = self._epoll(epfd).watches, self._tcp(fd)
        events, data = self._event(rest[0]) if rest and isinstance(rest[0], nodes.Struct) else (0, 0)
        self.world.notice_wakeups()
        wrong = epoll.control(watches, values.number(op), values.number(fd), target.sock, events, data)
        return self._returns(0 if wrong is None else -1, wrong)

    def call_epoll_wait(self, call: Syscall) -> Started:
        epfd, event, limit, timeout = values.args(call, 4)
        watches, most = self._epoll(epfd).watches, values.number(limit)
        wanted = self._event(event)
        if most <= 0:
            return self._returns(-1, "EINVAL")

        def ready() -> list[tuple[int, int]]:
            self.world.notice_wakeups()
            return epoll.ready(watches, most)

        def finish(done: CompletionLike) -> Returned:
            got = done.result[0] if done.result else (0, 0)
            if got != wanted:
                raise Failure("syscall", event.pos, "epoll_wait() gave another event", _event_words(*wanted),
                              _event_words(*got))
            return Returned(len(done.result or ()))

        waiter = Waiter(self.port, ready, self._deadline(values.number(timeout)))
        return Started(waiter, finish, waiter.look)


def _poll_words(mask: int) -> str:
    names = [n for n, bit in SYMBOLS.items() if n.startswith("POLL") and mask & bit]
    return "|".join(names) or "0"


def _event_words(events: int, data: int) -> str:
    return "{events=" + _poll_words(events).replace("POLL", "EPOLL") + f", data={data}}}"


