"""A stand-in for the stack that says exactly what a script expects to hear.

It is built from a script's tree: packets the script expects come out at the times it expects them,
system calls give the results written in it.  With it a script must pass, whatever it says; a script
that was changed after the echo was made must fail.  So parser, clock, translation of sequence numbers
and matching are tested without a protocol.

It has an ISN and ports of its own, so that translation is really used.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ustack.drill import codec, nodes, sockopts, symbols, values
from ustack.drill.codec import ACK, SYN
from ustack.drill.nodes import Direction, Event, IcmpPacket, Script, Syscall, TcpPacket, When
from ustack.drill.options import Options
from ustack.drill.packets import icmp_numbers
from ustack.drill.port import WALL_AT_START_NS, Done

START = 5_000_000_000
MASK = 0xFFFFFFFF


@dataclass
class Clock:
    now: int = START
    wall: int = WALL_AT_START_NS


@dataclass
class Pending:
    at: int
    make: Callable[[], Any]
    errno: str | None
    clock: Clock

    @property
    def result(self) -> Any:
        return self.make()

    @property
    def done(self) -> bool:
        return self.clock.now >= self.at


def timeline(script: Script) -> list[int]:
    """When each event happens if everything comes exactly when it is written."""
    times: list[int] = []
    now = blocked_until = 0
    before: Event | None = None
    for event in script.events:
        action, time = event.action, event.time
        inbound = getattr(action, "direction", None) is Direction.INBOUND
        base = 0 if time.when is When.ABSOLUTE else now
        if inbound and time.when is When.RELATIVE and before is not None \
                and getattr(before.action, "direction", None) is Direction.INBOUND:
            base = times[-1]
        at = base + time.at
        times.append(at)
        now = max(now, at)
        if isinstance(action, Syscall):
            now = max(now, blocked_until)
            if action.lasts is not None:
                blocked_until = at + action.lasts
        before = event
    return times


@dataclass
class Side:
    """One connection as the echo knows it."""

    local: tuple[str, int] = ("", 0)
    remote: tuple[str, int] = ("", 0)
    script_local: int = 0
    script_remote: int = 0
    live_local: int = 0
    live_remote: int = 0
    answered: bool = False
    ts_ecr: dict[int, int] = field(default_factory=dict)


class EchoSocket:
    def __init__(self, echo: EchoStack) -> None:
        self.echo = echo

    def _nothing(self, *args: Any) -> None:
        self.echo.simple()

    bind = listen = shutdown = setsockopt = _nothing

    def setblocking(self, flag: bool) -> None:
        pass

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        call = self.echo.call()
        if call is None or call.name != "getsockopt":
            return bytes(size)
        self.echo.simple()
        value = call.args[3]
        if isinstance(value, nodes.Struct):
            return sockopts.encode(value, size) or b""
        return struct.pack("<i", values.pointed_number(value))[:size]

    def ioctl(self, request: int) -> int:
        self.echo.simple()
        call = self.echo.call()
        assert call is not None
        return values.pointed_number(call.args[2])

    def poll(self) -> int:
        call = self.echo.call()
        poll, ends = self.echo.polling
        if poll is not None and self.echo.clock.now >= ends:
            revents = values.struct(values.array(poll.args[0])[0]).get("revents")
            return values.number(revents) if revents is not None else 0
        if call is not None and call.name == "epoll_wait":
            return values.number(values.member(values.struct(call.args[1]), "events"))
        return 0

    def wakeups(self) -> int:
        return 0xFFFF


class EchoStack:
    """`script` is what is echoed; tell it each event that the interpreter begins with `begin`."""

    def __init__(self, script: Script, options: Options) -> None:
        self.script, self.options = script, options
        self.clock = Clock()
        self.sysctl: dict[str, Any] = {}
        self.times = timeline(script)
        self.current = -1
        self.side = Side()
        self.child = False
        self.ephemeral = 40000
        self.out: list[tuple[int, bytes]] = []
        self.cursor = 0  # next outbound event to emit
        self.gate = self._next_inbound(0)  # nothing at or beyond this one may be emitted yet
        self.polling: tuple[Syscall | None, int] = (None, 0)

    # -- following the script
    def begin(self, event: Event) -> None:
        if self.current + 1 == len(self.script.events):
            return
        self.current += 1
        action = self.script.events[self.current].action
        if isinstance(action, Syscall):
            if action.name == "socket":
                self.side, self.child = Side(), False
            elif action.name == "listen":
                self.child = True
            self.polling = (action, self.ends()) if action.name == "poll" else (None, 0)

    def call(self) -> Syscall | None:
        if not 0 <= self.current < len(self.script.events):
            return None
        action = self.script.events[self.current].action
        return action if isinstance(action, Syscall) else None

    def simple(self) -> None:
        call = self.call()
        assert call is not None
        if call.errno is not None:
            raise OSError(symbols.ERRNO[call.errno], call.errno)

    def ends(self) -> int:
        call = self.call()
        return START + self.times[self.current] + (call.lasts or 0 if call is not None else 0)

    def _next_inbound(self, start: int) -> int:
        for index in range(start, len(self.script.events)):
            if getattr(self.script.events[index].action, "direction", None) is Direction.INBOUND:
                return index
        return len(self.script.events)

    def _due(self) -> Iterator[int]:
        for index in range(self.cursor, self.gate):
            action = self.script.events[index].action
            if index > self.current and isinstance(action, Syscall) and action.name == "socket":
                return
            if getattr(self.script.events[index].action, "direction", None) is Direction.OUTBOUND:
                yield index

    # -- the stack's interface
    def socket(self) -> EchoSocket:
        return EchoSocket(self)

    def submit(self, sock: EchoSocket, op: str, *args: Any) -> Any:
        call = self.call()
        assert call is not None
        end = self.ends()
        if call.errno == "EFAULT":
            return Done(self.clock.now, b"x")
        result: Any = values.number(call.result)
        if result < 0 and call.errno is None:
            return Pending(end, lambda: None, "EIO", self.clock)
        if op == "accept":
            return Pending(end, lambda: (EchoSocket(self), self.side.remote), call.errno, self.clock)
        if op == "recvmsg":
            result = self._message(call, max(result, 0))
        elif op == "recv":
            result = bytes(max(result, 0))
        return Pending(end, lambda: result, call.errno, self.clock)

    def _message(self, call: Syscall, size: int) -> Any:
        fields = values.struct(call.args[1])
        flags = fields.get("msg_flags")
        control = []
        for item in values.array(fields.get("msg_control") or nodes.Array(call.pos, ())):
            one = values.struct(item)
            data = values.member(one, "cmsg_data")
            if isinstance(data, nodes.Struct) and data.get("scm_sec") is not None:
                at = values.number(values.member(data, "scm_sec")) * 10**9
                at += values.number(values.member(data, "scm_nsec")) + START + WALL_AT_START_NS
                raw = struct.pack("<qq", at // 10**9, at % 10**9) + bytes(32)
            elif isinstance(data, nodes.Struct):
                numbers = [values.number(data.get(f"ee_{n}") or nodes.Int(call.pos, 0))
                           for n in ("errno", "origin", "type", "code", "pad", "info", "data")]
                raw = struct.pack("<IBBBBII", *numbers)
            else:
                raw = struct.pack("<i", values.number(data))
            control.append((values.number(values.member(one, "cmsg_level")),
                            values.number(values.member(one, "cmsg_type")), raw))
        return bytes(size), control, values.number(flags) if flags is not None else 0, None

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> None:
        live = codec.decode(packet)
        assert live.ip_csum_ok and not live.trouble
        event = self.script.events[self.gate]
        action = event.action
        if live.tcp is not None:
            assert live.tcp_csum_ok() and isinstance(action, TcpPacket)
            if self.child:
                self.side = Side(local=(live.dst, live.tcp.dport), remote=(live.src, live.tcp.sport))
                self.side.script_remote = self.side.live_remote = action.start
                self.child = False
            elif not self.side.remote[1]:
                self.side.local, self.side.remote = (live.dst, live.tcp.dport), (live.src, live.tcp.sport)
            elif action.flags & SYN and action.flags & ACK and not self.side.answered \
                    and self.side.local[1] >= 40000:
                self.side.script_remote = self.side.live_remote = action.start
                self.side.answered = True
        self.cursor, self.gate = self.gate + 1, self._next_inbound(self.gate + 1)

    def run_until(self, t: int) -> list[tuple[int, bytes]]:
        for index in list(self._due()):
            if START + self.times[index] > t:
                break
            self.clock.now = max(self.clock.now, START + self.times[index])
            self.cursor = index + 1
            self.out.append((START + self.times[index], self._packet(self.script.events[index].action)))
        self.clock.now = max(self.clock.now, t)
        return self.take()

    def take(self) -> list[tuple[int, bytes]]:
        out, self.out = self.out, []
        return out

    def next_timeout(self) -> int | None:
        stops = [START + self.times[index] for index in self._due()]
        ends = self.polling[1] if self.polling[0] is not None else self.ends()
        if self.clock.now < ends:
            stops.append(ends)
        return min(stops, default=None)

    # -- what commands see
    def ss_text(self, args: str = "-tan") -> str:
        action = self.script.events[self.current].action
        assert isinstance(action, nodes.Command)
        state = re.search(r"state (\S+)", action.text)
        count = re.search(r"grep -qx (\d+)", action.text)
        assert state and count
        return "0 0 a:1 b:2\n" * int(count[1])

    def nstat(self) -> dict[str, int]:
        if self.current < 0:
            return {}
        action = self.script.events[self.current].action
        wanted = re.search(r'grep (\w+) .*" (\d+) "', getattr(action, "text", ""))
        return {wanted[1]: int(wanted[2])} if wanted else {}

    def route(self, text: str) -> None:
        pass

    def tcp_metrics_flush(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def link(self, **settings: Any) -> None:
        pass

    # -- packets
    def _packet(self, action: Any) -> bytes:
        side = self.side
        if isinstance(action, IcmpPacket):
            kind, code = icmp_numbers(action)
            quoted = struct.pack("!HHI", side.remote[1], side.local[1], 0)
            local, remote = codec.address(self.options.local_ip), codec.address(self.options.remote_ip)
            body = codec.ipv4(6, remote, local, quoted + bytes(12))[:28]
            return codec.ipv4(1, local, remote, codec.icmp(kind, code, 0, body))
        assert isinstance(action, TcpPacket)
        syn = bool(action.flags & SYN)
        if syn and not action.flags & ACK and not side.local[1]:
            self.ephemeral += 1
            side.local = (self.options.local_ip, self.ephemeral)
            side.remote = (self.options.remote_ip, self.options.connect_port)
            side.script_local, side.live_local = action.start, 0xFFFFF000
        elif syn and action.flags & ACK and not side.answered and side.local[1] == self.options.bind_port:
            side.script_local, side.live_local, side.answered = action.start, 0x7FFFFF00, True
        ours = side.live_local - (side.script_local if syn else 0)
        peers = side.live_remote - (side.script_remote if syn else 0)
        ack = (action.ack or 0) + (peers if action.flags & ACK else 0)
        options = b""
        for option in action.options or ():
            if option.name == "sack":
                option = replace(option, blocks=tuple(((a + peers) & MASK, (b + peers) & MASK)
                                                      for a, b in option.blocks))
            elif option.name == "TS":
                option = replace(option, a=(option.a + 1_000_000) & MASK, b=77)
            options += codec.encode_option(option)
        tos = action.ip.tos if action.ip.tos is not None else \
            {None: 0, "ect01": 1, **codec.ECN_BITS}[action.ip.ecn]
        segment = codec.tcp(codec.address(side.local[0]), codec.address(side.remote[0]), side.local[1],
                            side.remote[1],
                            action.start + ours, ack, action.flags, 4321 if action.win is None
                            else action.win,
                            action.urg, options, bytes(action.length))
        return codec.ipv4(6, codec.address(side.local[0]), codec.address(side.remote[0]), segment, tos,
                          64 if action.ip.ttl is None else action.ip.ttl)
