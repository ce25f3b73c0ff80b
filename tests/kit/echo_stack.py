"""A stand-in for a stack that gives back what a recording says, with its own random numbers.

It plays the part of `ustack.replay.target.Target`: it hands out the recorded packets (other ISNs, TSvals,
IP IDs and ephemeral ports; answers at the instant of their cause, timers' packets somewhat before the
kernel's late ones), results of calls, counters and tables. It checks the replay as well: every call and
packet has to come in the recorded order, with exactly the rewritten numbers. Replaying a recording on its
own echo must find nothing; replaying a changed recording on the echo of the unchanged one must find the
change.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from ustack.replay import packet as wire
from ustack.replay import values
from ustack.replay.calls import address
from ustack.replay.match import Key, key_of
from ustack.replay.recording import (
    AddressStep,
    CallStep,
    CountersStep,
    LinkStep,
    PacketStep,
    Recording,
    RouteStep,
    Scenario,
    Step,
    SysctlGetStep,
    SysctlStep,
    TableStep,
    ns,
)
from ustack.replay.table import split_pipe

AT_ONCE = 12_000_000
PORT_SHIFT = 17
MASK = 0xFFFFFFFF


def _drives(step: Step) -> bool:
    if isinstance(step, PacketStep):
        return step.injected
    return isinstance(step, (CallStep, SysctlStep, LinkStep, AddressStep, RouteStep))


class Done:
    """A completion; `due` is when it is done, None if it is already."""

    def __init__(self, stack: EchoStack, step: CallStep, due: int | None) -> None:
        self.stack, self.step, self.due = stack, step, due
        self.at = stack.now if due is None else due
        self.errno = step.errno
        self.result = stack.result_of(step)

    @property
    def done(self) -> bool:
        return self.due is None or self.stack.now >= self.due


class EchoSocket:
    def __init__(self, stack: EchoStack, name: str) -> None:
        self.stack, self.name = stack, name

    def _take(self, call: str) -> CallStep:
        step = self.stack.consume()
        assert isinstance(step, CallStep) and step.call == call, f"{call} where {step.title()} is due"
        assert step.sock == self.name, f"{step.title()} done on {self.name}"
        if step.errno:
            raise OSError(getattr(errno, step.errno), step.errno)
        return step

    def bind(self, addr: tuple[str, int]) -> None:
        self.stack.consume_call("bind", self.name, addr == address(self.stack.next_call().args["addr"]))

    def listen(self, backlog: int) -> None:
        self.stack.consume_call("listen", self.name, backlog == self.stack.next_call().args["backlog"])

    def shutdown(self, how: int) -> None:
        self._take("shutdown")

    def setblocking(self, flag: bool) -> None:
        step = self.stack.peek()
        if isinstance(step, CallStep) and step.call == "setblocking" and step.sock == self.name \
                and step.at <= self.stack.now:
            assert self._take("setblocking").args["blocking"] == flag

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        step = self._take("setsockopt")
        assert (level, name) == (step.args["level_num"], step.args["name_num"])
        assert value == values.option_in(step.args["value"])

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        last = self.stack.last
        if isinstance(last, CallStep) and last.call == "setsockopt" and last.has_readback \
                and last.at == self.stack.now:
            self.stack.last = None
            return encode(last.readback, size)
        step = self._take("getsockopt")
        assert (level, name) == (step.args["level_num"], step.args["name_num"])
        result = step.result
        return bytes.fromhex(result["hex"]) if "hex" in result else encode(result["value"], size)

    def getsockname(self) -> tuple[str, int]:
        step = self.stack.peek()
        if isinstance(step, CallStep) and step.call == "getsockname" and step.sock == self.name \
                and step.at <= self.stack.now:
            self._take("getsockname")
        host, port = address(self.stack.names[self.name])
        return host, port + (PORT_SHIFT if self.name in self.stack.shifted else 0)

    def getpeername(self) -> tuple[str, int]:
        return address(self._take("getpeername").result)

    def poll(self) -> int:
        return self.stack.poll_mask(self.name)


def encode(value: Any, size: int) -> bytes:
    raw = values.option_in(value)
    return raw.to_bytes(size, "little", signed=True) if isinstance(raw, int) else raw


class EchoSysctl(MutableMapping[str, Any]):
    def __init__(self, stack: EchoStack) -> None:
        self.stack = stack

    def __getitem__(self, name: str) -> str:
        if not self.stack.started:
            return str(self.stack.scenario.checks["sysctl"][name])
        for s in self.stack.scenario.steps:
            if isinstance(s, SysctlGetStep) and s.name == name and s.at == self.stack.now:
                return s.value
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        step = self.stack.consume()
        assert isinstance(step, SysctlStep) and (step.name, step.value) == (name, value)
        if step.errno:
            raise OSError(getattr(errno, step.errno), step.errno)

    def __delitem__(self, name: str) -> None:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class EchoStack:
    """See the head of this file."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now = 0
        self.started = False
        self.last: Step | None = None
        self.sysctl = EchoSysctl(self)
        self.steps = scenario.timed_steps()
        self.driving = [s for s in self.steps if _drives(s)]
        self.position = 0
        self.sent: dict[int, bytes] = {}
        self.injected: dict[int, bytes] = {}
        self.out: list[tuple[int, bytes]] = []
        self.waiting: list[Done] = []
        self.polling: CallStep | None = None
        self.answers, self.timers = self._plan()
        bound = {s.sock for s in scenario.calls() if s.call == "bind" and not s.errno}
        self.names = {s.sock: s.result for s in scenario.calls()
                      if s.call == "getsockname" and s.sock and isinstance(s.result, str)}
        self.shifted = {n for n in self.names if n not in bound}

    def _plan(self) -> tuple[dict[int, list[PacketStep]], list[tuple[int, PacketStep]]]:
        """The packets that each driving step (by index) brings about at once, and those of timers with
        their time."""
        answers: dict[int, list[PacketStep]] = {}
        timers: list[tuple[int, PacketStep]] = []
        cause: Step | None = None
        for s in self.steps:
            if _drives(s):
                cause = s
            elif isinstance(s, PacketStep):
                if cause is not None and s.at - cause.at <= AT_ONCE:
                    answers.setdefault(cause.index, []).append(s)
                else:
                    since = cause.at if cause is not None else 0
                    timers.append((since + (s.at - since) * 100 // 101, s))
        return answers, timers

    # ---- order of driving steps

    def peek(self) -> Step | None:
        return self.driving[self.position] if self.position < len(self.driving) else None

    def next_call(self) -> CallStep:
        step = self.peek()
        assert isinstance(step, CallStep), f"a call where {step and step.title()} is due"
        return step

    def consume(self) -> Step:
        step = self.peek()
        assert step is not None, "more driving steps than recorded"
        assert step.at == self.now, f"{step.title()} done at {self.now / 1e9:.6f} s"
        self.position += 1
        self.last = step
        self.out += [(self.now, self._make(s)) for s in self.answers.get(step.index, [])]
        return step

    def consume_call(self, call: str, name: str | None, same: bool) -> CallStep:
        step = self.consume()
        assert isinstance(step, CallStep) and (step.call, step.sock) == (call, name), step.title()
        assert same, f"{step.title()} with other arguments"
        if step.errno:
            raise OSError(getattr(errno, step.errno), step.errno)
        return step

    # ---- this stack's numbers

    def _isn_shift(self, key: Key) -> int:
        return zlib.crc32(("isn" + " ".join(key)).encode())

    def _tsval(self, key: Key) -> int:
        return (zlib.crc32(("ts" + " ".join(key)).encode()) + self.now // 1_000_000) & MASK

    def _make(self, step: PacketStep) -> bytes:
        p = wire.parse(step.packet)
        assert p is not None
        out = bytearray(step.packet)
        if p.ident:
            struct.pack_into(">H", out, 4, (p.ident ^ 0x5A5A) or 1)
        key = key_of(step.packet, False)
        base = len(p.header)
        seq = step.sym.get("seq")
        if p.tcp and seq is not None:
            if isinstance(seq, list) and seq[0] == "ack_of":
                sent = wire.parse(self.injected[seq[1]])
                assert sent and sent.tcp
                number = sent.tcp.ack
            else:
                number = p.tcp.seq + self._isn_shift(key)
            struct.pack_into(">I", out, base + 4, number & MASK)
        if p.tcp and p.tcp.ts_offset is not None:
            struct.pack_into(">I", out, base + 20 + p.tcp.ts_offset, self._tsval(key))
        if p.tcp and p.tcp.sport in {address(self.names[n])[1] for n in self.shifted}:
            struct.pack_into(">H", out, base, p.tcp.sport + PORT_SHIFT)
        wire.fix_checksums(out, step.packet)
        self.sent[step.p] = bytes(out)
        return bytes(out)

    # ---- what the replay uses

    def inject(self, packet: bytes, at: int | None = None) -> None:
        step = self.peek()
        assert isinstance(step, PacketStep) and at is None
        self._check(step, packet)
        self.injected[step.p] = packet
        self.consume()

    def _check(self, step: PacketStep, packet: bytes) -> None:
        """The packet is the recorded one with this stack's numbers, its checksums as good or bad as
        recorded."""
        want = bytearray(step.packet)
        p = wire.parse(step.packet)
        if p is not None and step.sym:
            base = len(p.header)
            key = key_of(step.packet, True)
            if "quote" in step.sym:
                number = step.sym["quote"]["seq"]
                made = wire.parse(self.sent[number[1]])
                assert made and made.tcp
                struct.pack_into(">I", want, base + 32, (made.tcp.seq + number[2]) & MASK)
            if "ack" in step.sym:
                assert p.tcp
                struct.pack_into(">I", want, base + 8, (p.tcp.ack + self._isn_shift(key)) & MASK)
            if "tsecr" in step.sym:
                assert p.tcp and p.tcp.ts_offset is not None
                _, number, n = step.sym["tsecr"]
                made = wire.parse(self.sent[number])
                assert made and made.tcp and made.tcp.tsval is not None
                struct.pack_into(">I", want, base + 24 + p.tcp.ts_offset, (made.tcp.tsval + n) & MASK)
            if "sack" in step.sym:
                assert p.tcp
                at = next(s for k, s, _ in wire.walk_options(p.tcp.options) if k == wire.OPT_SACK)
                for i in range(2 * len(step.sym["sack"])):
                    place = base + 22 + at + 4 * i
                    edge = int.from_bytes(want[place:place + 4], "big")
                    struct.pack_into(">I", want, place, (edge + self._isn_shift(key)) & MASK)
            wire.fix_checksums(want, step.packet)
        assert bytes(want) == packet, f"{step.title()} rewritten wrongly"

    def run_until(self, t: int) -> list[tuple[int, bytes]]:
        assert t >= self.now
        self.started = True
        while self.timers and self.timers[0][0] <= t:
            at, step = self.timers.pop(0)
            self.now = max(self.now, at)
            self.out.append((self.now, self._make(step)))
        self.now = t
        return self.take()

    def take(self) -> list[tuple[int, bytes]]:
        out, self.out = self.out, []
        return out

    def next_timeout(self) -> int | None:
        ends = [d.due for d in self.waiting if d.due and d.due > self.now]
        return min([at for at, _ in self.timers[:1]] + ends, default=None)

    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> EchoSocket:
        step = self.consume_call("socket", None, True)
        assert step.new
        return EchoSocket(self, step.new)

    def submit(self, sock: EchoSocket, op: str, *args: Any) -> Done:
        step = self.consume()
        assert isinstance(step, CallStep) and (step.call, step.sock) == (op, sock.name), step.title()
        if op == "send":
            assert args[0] == values.payload(step.args)
        if op == "recv":
            assert args[0] == step.args["len"]
        if op == "connect":
            assert args[0] == address(step.args["addr"])
        done = Done(self, step, self._end(step))
        if done.due is not None:
            self.waiting.append(done)
        return done

    def _end(self, step: CallStep) -> int | None:
        """When a call that blocked returns here: at the driving step that ended it, else by a timer."""
        if step.t_end is None or ns(step.t_end) - step.at <= AT_ONCE:
            return None
        end = ns(step.t_end)
        causes = [s.at for s in self.driving if s.index > step.index and 0 <= end - s.at <= AT_ONCE]
        return causes[-1] if causes else step.at + (end - step.at) * 100 // 101

    def result_of(self, step: CallStep) -> Any:
        if step.errno:
            return None
        if step.call == "accept":
            assert step.new
            return EchoSocket(self, step.new), address(step.result["peer"])
        if step.call == "recv":
            return values.payload(step.result)
        return step.result

    def poll_mask(self, name: str) -> int:
        step = self.polling
        if step is None or step.at < self.now:
            step = self.next_call()
            assert step.call == "poll" and step.t_end is None
            self.consume()
            self.polling = step
        return next((values.mask_in(r["revents"]) for r in step.result if r["sock"] == name), 0)

    def nstat(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for s in self.steps:
            if isinstance(s, CountersStep) and s.at <= self.now and self.started:
                for name, delta in s.delta.items():
                    total[name] = total.get(name, 0) + delta
        return total

    def ss(self, args: str = "-tan") -> list[dict[str, Any]]:
        found: TableStep | None = None
        for s in self.steps:
            if isinstance(s, TableStep) and split_pipe(s.args)[0] == args and s.at <= self.now:
                found = s
        if found is None:
            return []
        if found.rows and "raw" in found.rows[0]:
            row = {"state": "ESTAB", "recvq": 0, "sendq": 0, "local": "192.0.2.1:1", "peer": "192.0.2.2:1"}
            return [row] * int(found.rows[0]["raw"])
        return [dict(r) for r in found.rows]

    def route(self, text: str) -> None:
        step = self.consume()
        assert isinstance(step, RouteStep) and step.words == text

    def address(self, op: str, text: str) -> None:
        step = self.consume()
        assert isinstance(step, AddressStep) and (step.op, step.words) == (op, text)

    def link(self, *, mtu: int) -> None:
        step = self.consume()
        assert isinstance(step, LinkStep) and step.mtu == mtu


def echo(recording: Recording, scenario: Scenario, seed: int = 0) -> EchoStack:
    """A builder for `ustack.replay.replay` that echoes the very scenario that is replayed."""
    return EchoStack(scenario)
