"""The socket API against models in plain Python: hypothesis makes the calls, the model says what each must do.

Three machines: a listener with its two queues, fed with raw packets; a connection with both its ends; one call after another on sockets in every
state, right or wrong. All in virtual time; derandomized, so a run is the same run again.
"""

from __future__ import annotations

import errno
import socket as std
import struct
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ustack import MemoryLink, Stack, VirtualClock

SERVER, PEER = "192.0.2.1", "192.0.2.2"
SECOND = 1_000_000_000
SOMAXCONN = 6
POLLIN, POLLERR, POLLHUP = 0x1, 0x8, 0x10
SYN, RST, ACK = 0x02, 0x04, 0x10
OPTIONS = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True, database=None)


def outcome(call: Any, *args: Any) -> Any:
    """What a call returns, or the errno it fails with; a time-out by its name."""
    try:
        return call(*args)
    except TimeoutError as exc:
        return exc.errno or "timeout"
    except OSError as exc:
        return exc.errno


def errno_of(call: Any, *args: Any) -> int | None:
    """The errno a call fails with, None if it works."""
    try:
        call(*args)
    except OSError as exc:
        return exc.errno
    return None


# ---- the listener's two queues ---------------------------------------------------------------------------------------------------------
def packet(port: int, flags: int, seq: int, ack: int) -> bytes:
    """From the peer; the TCP checksum is vouched for by the link."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, std.inet_aton(PEER), std.inet_aton(SERVER))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:]
    return head + struct.pack("!HHIIBBHHH", port, 80, seq, ack, 0x50, flags, 65535, 0, 0)


class ListenQueues(RuleBasedStateMachine):
    """SYN queue and accept queue (facts A6, B4, B6, B8, E3, G3), cookies off. Requests: port -> our ISN; the accept queue in order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.requests: dict[int, int] = {}
        self.queue: deque[int] = deque()
        self.dead: set[int] = set()
        self.accepted: list[Any] = []
        self.next_port = 1024
        self.overflows = 0
        self.abort = False

    @initialize(backlog=st.integers(-1, 8), abort=st.booleans())
    def start(self, backlog: int, abort: bool) -> None:
        self.abort = abort
        self.stack = Stack(None, SERVER + "/24", clock=self.clock, seed=1, sysctl={
            "net.core.somaxconn": SOMAXCONN, "net.ipv4.tcp_syncookies": 0, "net.ipv4.tcp_max_syn_backlog": 4096,
            "net.ipv4.tcp_abort_on_overflow": int(abort)})
        self.open(backlog)

    def open(self, backlog: int) -> None:
        self.listener = self.stack.socket()
        self.listener.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        self.listener.bind((SERVER, 80))
        self.listener.setblocking(False)
        self.listen(backlog)

    def send(self, port: int, flags: int, seq: int, ack: int = 0) -> list[tuple[int, int, int]]:
        """Inject; what came back on that port: (flags, seq, ack)."""
        self.stack.inject(packet(port, flags, seq, ack), csum=2)
        out = []
        for _, data in self.stack.take():
            _, dport, seq, ack, _, flags = struct.unpack("!HHIIBB", data[20:34])
            assert dport == port
            out.append((flags, seq, ack))
        return out

    @property
    def full(self) -> bool:
        return len(self.queue) > self.limit

    @rule(backlog=st.integers(-1, 8))
    def listen(self, backlog: int) -> None:
        self.listener.listen(backlog)
        self.limit = SOMAXCONN if backlog < 0 else min(backlog, SOMAXCONN)

    @rule()
    def syn(self) -> None:
        port, self.next_port = self.next_port, self.next_port + 1
        out = self.send(port, SYN, 1000)
        if self.full:
            self.overflows += 1
            assert out == []
        elif len(self.requests) > self.limit:
            assert out == []
        else:
            ((flags, isn, ack),) = out
            assert (flags, ack) == (SYN | ACK, 1001)
            self.requests[port] = isn

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def syn_again(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.requests)))
        for flags, isn, ack in self.send(port, SYN, 1000):
            assert (flags, isn, ack) == (SYN | ACK, self.requests[port], 1001)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def third_ack(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.requests)))
        out = self.send(port, ACK, 1001, self.requests[port] + 1)
        if not self.full:
            del self.requests[port]
            self.queue.append(port)
            assert out == []
            return
        self.overflows += 1
        if self.abort:
            del self.requests[port]
        assert [flags & RST for flags, _, _ in out] == [RST] * self.abort

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def reset_of_a_request(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.requests)))
        assert self.send(port, RST, 1001) == []
        del self.requests[port]

    @precondition(lambda self: set(self.queue) - self.dead)
    @rule(data=st.data())
    def reset_in_the_queue(self, data: st.DataObject) -> None:
        """The connection dies and keeps its place."""
        port = data.draw(st.sampled_from(sorted(set(self.queue) - self.dead)))
        assert self.send(port, RST, 1001) == []
        self.dead.add(port)

    @rule()
    def accept(self) -> None:
        if not self.queue:
            assert outcome(self.listener.accept) == errno.EAGAIN
            return
        conn, (host, port) = self.listener.accept()
        assert (host, port) == (PEER, self.queue.popleft())
        conn.setblocking(False)
        assert outcome(conn.recv, 1) == (errno.ECONNRESET if port in self.dead else errno.EAGAIN)
        self.accepted.append(conn)

    @rule()
    def long_silence(self) -> None:
        """Every SYN-ACK has been sent five times in vain; established connections stay."""
        self.clock.advance(self.clock.now + 200 * SECOND)
        self.stack.take()
        self.requests.clear()

    @rule(backlog=st.integers(0, 3))
    def close_and_open_again(self, backlog: int) -> None:
        self.listener.close()
        resets = [struct.unpack("!HHIIBB", data[20:34]) for _, data in self.stack.take()]
        assert sorted(p[1] for p in resets if p[5] & RST) == sorted(set(self.queue) - self.dead)
        self.queue.clear()
        for port in sorted(self.requests):
            ((flags, _, _),) = self.send(port, ACK, 1001, self.requests[port] + 1)
            assert flags & RST
        self.requests.clear()
        self.overflows = 0
        self.open(backlog)

    @invariant()
    def the_listener_shows_both_queues(self) -> None:
        if not hasattr(self, "listener"):
            return
        rows = self.stack.dump()
        (row,) = [r for r in rows if r["kind"] == "listen"]
        assert (row["recvq"], row["qlen"], row["sendq"]) == (len(self.queue), len(self.requests), self.limit)
        assert row["n_overflow"] == self.overflows
        assert bool(self.listener.poll() & POLLIN) == bool(self.queue)

    def teardown(self) -> None:
        if hasattr(self, "listener"):
            for sock in (*self.accepted, self.listener):
                sock.close()
            self.stack.close()


# ---- a connection ------------------------------------------------------------------------------------------------------------------
class End:
    """Model of one end. gone: closed by its user. over: the connection is in CLOSE. err: what the next call that reports errors says."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.inbox = b""
        self.shut_wr = self.shut_rd = self.fin_in = self.gone = self.over = False
        self.err: int | None = None
        self.other: End

    def take_err(self) -> int | None:
        err, self.err = self.err, None
        return err


class Streams(RuleBasedStateMachine):
    """Two ends, a wire without delay, small data: what is sent is there at once."""

    ends: list[End]

    @initialize()
    def start(self) -> None:
        self.clock = VirtualClock()
        left, right = MemoryLink.pair()
        self.stacks = [Stack(link, f"{addr}/24", clock=self.clock, seed=i) for i, (link, addr) in enumerate(((left, SERVER), (right, PEER)))]
        with self.stacks[0].create_server((SERVER, 80)) as listener:
            client = self.stacks[1].create_connection((SERVER, 80))
            self.ends = [End(listener.accept()[0]), End(client)]
        for end, other in zip(self.ends, reversed(self.ends), strict=True):
            end.other = other
            end.sock.setblocking(False)
            end.sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        self.sent = 0

    def settle(self) -> None:
        self.clock.advance(self.clock.now)

    # What the wire does to the model.
    def fin_from(self, end: End) -> None:
        end.other.fin_in = True
        if end.other.shut_wr:                   # both directions are done
            end.over = end.other.over = True
            end.other.shut_rd = end.shut_rd = True

    def reset_to(self, end: End) -> None:
        if end.over or end.gone:
            end.over = True
            return
        end.over = end.shut_wr = end.shut_rd = True
        end.err = errno.EPIPE if end.fin_in else errno.ECONNRESET

    def pick(self, who: int) -> End:
        return self.ends[who]

    who = st.integers(0, 1)

    @rule(who=who, n=st.integers(1, 300))
    def send(self, who: int, n: int) -> None:
        end = self.pick(who)
        data = bytes((self.sent + i) % 251 for i in range(n))
        got = outcome(end.sock.send, data)
        self.settle()
        if end.gone:
            assert got == errno.EBADF
        elif end.err:
            assert got == end.take_err()
        elif end.shut_wr or end.over:
            assert got == errno.EPIPE
        else:
            assert got == n
            self.sent += n
            self.arrive(end.other, data)

    def arrive(self, end: End, data: bytes) -> None:
        if end.gone or (end.shut_rd and end.shut_wr):
            # Nobody will ever read it: reset, both ways.
            if not end.gone:
                end.over = True
                end.err = errno.ECONNRESET
            end.over = True
            self.reset_to(end.other)
        else:
            end.inbox += data

    @rule(who=who, n=st.integers(1, 400), peek=st.booleans())
    def recv(self, who: int, n: int, peek: bool) -> None:
        end = self.pick(who)
        got = outcome(end.sock.recv, n, std.MSG_PEEK if peek else 0)
        self.settle()
        assert got == self.readable(end, n, peek)

    def readable(self, end: End, n: int, peek: bool = False) -> Any:
        if end.gone:
            return errno.EBADF
        if end.inbox:
            data = end.inbox[:n]
            if not peek:
                end.inbox = end.inbox[n:]
            return data
        if end.fin_in:
            return b""
        if end.err:
            return end.take_err()
        return b"" if end.shut_rd or end.over else errno.EAGAIN

    @rule(who=who, n=st.integers(1, 400), ms=st.integers(1, 3000))
    def recv_all_or_wait(self, who: int, n: int, ms: int) -> None:
        """MSG_WAITALL on a blocking socket with SO_RCVTIMEO: all, or what is there when the time is over."""
        end = self.pick(who)
        if end.gone:
            return
        end.sock.setblocking(True)
        end.sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("qq", ms // 1000, ms % 1000 * 1000))
        began = self.clock.now
        got = outcome(end.sock.recv, n, std.MSG_WAITALL)
        waited = self.clock.now - began
        end.sock.setblocking(False)
        ends = end.fin_in or end.err or end.shut_rd or end.over or len(end.inbox) >= n
        assert waited == (0 if ends else ms * 1_000_000)
        assert got == self.readable(end, n)

    @rule(who=who, ms=st.integers(1, 3000))
    def recv_with_timeout(self, who: int, ms: int) -> None:
        end = self.pick(who)
        if end.gone:
            return
        end.sock.settimeout(ms / 1000)
        began = self.clock.now
        got = outcome(end.sock.recv, 10)
        waited = self.clock.now - began
        end.sock.setblocking(False)
        want = self.readable(end, 10)
        assert (got, waited) == (("timeout", ms * 1_000_000) if want == errno.EAGAIN else (want, 0))

    @rule(who=who, how=st.sampled_from([std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR]))
    def shutdown(self, who: int, how: int) -> None:
        end = self.pick(who)
        got = outcome(end.sock.shutdown, how)
        self.settle()
        if end.gone:
            assert got == errno.EBADF
            return
        if end.over:
            assert got == errno.ENOTCONN
            return
        assert got is None
        if how != std.SHUT_WR:
            end.shut_rd = True
        if how != std.SHUT_RD and not end.shut_wr:
            end.shut_wr = True
            self.fin_from(end)
            if end.fin_in:
                end.over = end.other.over = True

    @rule(who=who, linger=st.sampled_from([None, None, 0, 5]))
    def close(self, who: int, linger: int | None) -> None:
        end = self.pick(who)
        if end.gone:
            return
        if linger is not None:
            end.sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, linger))
        end.sock.close()
        self.settle()
        end.gone = True
        if end.over:
            return
        if linger == 0 or end.inbox:
            aborted = end.shut_wr and end.fin_in
            end.over = True
            if not aborted:
                self.reset_to(end.other)
        elif not end.shut_wr:
            end.shut_wr = end.shut_rd = True
            self.fin_from(end)
            if end.fin_in:
                end.over = end.other.over = True

    @rule(who=who)
    def so_error(self, who: int) -> None:
        end = self.pick(who)
        if not end.gone:
            assert end.sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == (end.take_err() or 0)

    @invariant()
    def poll_and_queues(self) -> None:
        for end in getattr(self, "ends", ()):
            if end.gone:
                continue
            mask = end.sock.poll()
            assert bool(mask & POLLIN) == bool(end.inbox or end.fin_in or end.shut_rd or end.over)
            assert bool(mask & POLLERR) == bool(end.err)
            assert bool(mask & POLLHUP) == bool(end.over or (end.shut_wr and (end.shut_rd or end.fin_in)))
            assert end.sock.ioctl(0x541B) == len(end.inbox)

    def teardown(self) -> None:
        for stack in getattr(self, "stacks", ()):
            stack.close()


# ---- calls in every state ------------------------------------------------------------------------------------------------------------
NEW, BOUND, LISTENING, CONNECTING, CONNECTED, CLOSED = "new", "bound", "listening", "connecting", "connected", "closed"
#: errno of each call by state (None: it works)
WANT: dict[str, dict[str, int | None]] = {
    "bind": {NEW: None, BOUND: errno.EINVAL, LISTENING: errno.EINVAL, CONNECTING: errno.EINVAL, CONNECTED: errno.EINVAL},
    "listen": {NEW: None, BOUND: None, LISTENING: None, CONNECTING: errno.EINVAL, CONNECTED: errno.EINVAL},
    "accept": {NEW: errno.EINVAL, BOUND: errno.EINVAL, LISTENING: errno.EAGAIN, CONNECTING: errno.EINVAL, CONNECTED: errno.EINVAL},
    "connect": {NEW: errno.EINPROGRESS, BOUND: errno.EINPROGRESS, LISTENING: errno.EISCONN, CONNECTING: errno.EALREADY,
                CONNECTED: errno.EISCONN},
    "send": {NEW: errno.EPIPE, BOUND: errno.EPIPE, LISTENING: errno.EPIPE, CONNECTING: errno.EAGAIN, CONNECTED: None},
    "recv": {NEW: errno.ENOTCONN, BOUND: errno.ENOTCONN, LISTENING: errno.ENOTCONN, CONNECTING: errno.EAGAIN, CONNECTED: errno.EAGAIN},
    "getpeername": {NEW: errno.ENOTCONN, BOUND: errno.ENOTCONN, LISTENING: errno.ENOTCONN, CONNECTING: errno.ENOTCONN, CONNECTED: None},
    "getsockname": dict.fromkeys((NEW, BOUND, LISTENING, CONNECTING, CONNECTED)),
}
AFTER = {("bind", NEW): BOUND, ("listen", NEW): LISTENING, ("listen", BOUND): LISTENING, ("connect", NEW): CONNECTING, ("connect", BOUND): CONNECTING}


class Calls(RuleBasedStateMachine):
    """One stack, sockets in all states. Connections come about through the stack's own loopback; nobody answers at the peer's address."""

    @initialize()
    def start(self) -> None:
        self.clock = VirtualClock()
        self.stack = Stack(None, SERVER + "/24", clock=self.clock, seed=1)
        self.server = self.stack.create_server((SERVER, 7))
        self.server.setblocking(False)
        self.sockets: list[tuple[Any, str]] = []
        self.conns: list[Any] = []
        self.next_port = 2000

    @precondition(lambda self: len(self.sockets) < 8)
    @rule()
    def socket(self) -> None:
        sock = self.stack.socket()
        sock.setblocking(False)
        self.sockets.append((sock, NEW))

    @precondition(lambda self: self.sockets)
    @rule(i=st.integers(0, 7), call=st.sampled_from(sorted(WANT)))
    def call(self, i: int, call: str) -> None:
        i %= len(self.sockets)
        sock, state = self.sockets[i]
        self.next_port += 1
        args: dict[str, Any] = {"bind": ((SERVER, self.next_port),), "connect": ((PEER, 9),), "send": (b"x",), "recv": (10,), "listen": (3,)}
        got = errno_of(getattr(sock, call), *args.get(call, ()))
        assert got == (errno.EBADF if state == CLOSED else WANT[call][state]), f"{call} on a {state} socket"
        self.sockets[i] = sock, AFTER.get((call, state), state)

    @precondition(lambda self: any(state in (NEW, BOUND) for _, state in self.sockets))
    @rule(data=st.data())
    def connect_to_ourselves(self, data: st.DataObject) -> None:
        i = data.draw(st.sampled_from([i for i, (_, state) in enumerate(self.sockets) if state in (NEW, BOUND)]))
        sock, _ = self.sockets[i]
        assert errno_of(sock.connect, (SERVER, 7)) == errno.EINPROGRESS
        self.clock.advance(self.clock.now)
        self.conns.append(self.server.accept()[0])
        assert errno_of(sock.connect, (SERVER, 7)) is None, "the second call says that the first has come to an end"
        self.sockets[i] = sock, CONNECTED

    @precondition(lambda self: any(state == LISTENING for _, state in self.sockets))
    @rule(data=st.data())
    def shutdown_of_a_listener(self, data: st.DataObject) -> None:
        """It stops listening, and keeps its port if bind() chose it."""
        i = data.draw(st.sampled_from([i for i, (_, state) in enumerate(self.sockets) if state == LISTENING]))
        sock, _ = self.sockets[i]
        port = sock.getsockname()[1]
        sock.shutdown(std.SHUT_RD)
        if port <= self.next_port:
            other = self.stack.socket()
            assert errno_of(other.bind, (SERVER, port)) == errno.EADDRINUSE
            other.close()
        assert errno_of(sock.accept) == errno.EINVAL
        sock.listen(3)

    @precondition(lambda self: self.sockets)
    @rule(i=st.integers(0, 7))
    def close(self, i: int) -> None:
        i %= len(self.sockets)
        sock, _ = self.sockets[i]
        sock.close()
        self.sockets[i] = sock, CLOSED

    @invariant()
    def what_options_say(self) -> None:
        for sock, state in getattr(self, "sockets", ()):
            if state != CLOSED:
                assert bool(sock.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN)) == (state == LISTENING)
                assert bool(sock.poll() & POLLHUP) == (state in (NEW, BOUND))

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            for sock in (*(s for s, _ in self.sockets), *self.conns, self.server):
                sock.close()
            self.stack.close()


MACHINES = [ListenQueues, Streams, Calls]


def run_machine(machine: type[RuleBasedStateMachine], options: settings) -> None:
    case = machine.TestCase()
    case.settings = options
    case.runTest()


@pytest.mark.parametrize("machine", MACHINES)
def test_machine(machine: type[RuleBasedStateMachine]) -> None:
    run_machine(machine, OPTIONS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", MACHINES)
def test_machine_at_length(machine: type[RuleBasedStateMachine]) -> None:
    run_machine(machine, settings(OPTIONS, max_examples=600, stateful_step_count=60))
