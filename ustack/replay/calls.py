"""Application calls: carrying a recorded one out on the stack, and comparing what it gave.

Every call that can block goes through `submit()`, so that it waits in virtual time as the recorded program
waited; the others are plain method calls. A call that is not finished at once stays in `Calls.pending`
until the clock has brought its end; `poll` over several sockets is kept here too, since the stack waits for
one socket at a time: it is looked at again after each instant at which something happened.

A name (`L0`, `C3`) stands for what the recorded call with that `new` returned. If the stack's call failed,
the name has no socket, and later calls on it are left out: the first difference has been told.
"""

from __future__ import annotations

import errno as errnos
import socket as consts
from dataclasses import dataclass
from typing import Any

from ..observe import tcp_info
from . import values
from .recording import CallStep, FormatError, ns
from .symbols import Ports
from .target import Target
from .timing import Events, immediate_fault, timer_fault

Fault = tuple[str, str, str]
SUBMITTED = frozenset({"accept", "recv", "send", "connect", "close"})
SO_ERROR = (1, 4)
TCP_INFO = (6, 11)
SO_INCOMING_CPU = (1, 49)
FLAG_BITS = {"MSG_OOB": 1, "MSG_PEEK": 2, "MSG_DONTROUTE": 4, "MSG_TRUNC": 0x20, "MSG_DONTWAIT": 0x40,
             "MSG_EOR": 0x80, "MSG_WAITALL": 0x100, "MSG_NOSIGNAL": 0x4000, "MSG_MORE": 0x8000,
             "MSG_ERRQUEUE": 0x2000, "MSG_FASTOPEN": 0x20000000}


@dataclass
class Outcome:
    """What a call gave: a value, or the name of an errno."""

    value: Any = None
    errno: str | None = None


@dataclass
class Pending:
    """A call that has not returned yet."""

    step: CallStep
    completion: Any
    since: int


class NoSocket(LookupError):
    """The name has no socket because the call that should have made it failed."""


def errno_name(value: str | int | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return errnos.errorcode.get(value, str(value))


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def place(addr: tuple[str, int]) -> str:
    return f"{addr[0]}:{addr[1]}"


def flags(names: list[str]) -> int:
    total = 0
    for name in names:
        if name not in FLAG_BITS:
            raise FormatError(f"unknown message flag {name!r}")
        total |= FLAG_BITS[name]
    return total


def _constant(text: str) -> int:
    total = 0
    for word in text.split("|"):
        value = getattr(consts, word.strip(), None)
        if value is None:
            raise FormatError(f"unknown constant {word!r}")
        total |= int(value)
    return total


class PollCompletion:
    """poll() on several sockets; `look()` is called whenever something may have changed."""

    def __init__(self, fds: list[tuple[str, Any, int]], deadline: int | None) -> None:
        self.fds = fds
        self.deadline = deadline
        self.done = False
        self.result: list[dict[str, Any]] = []
        self.errno: str | None = None
        self.at: int | None = None

    def look(self, now: int) -> None:
        if self.done:
            return
        ready = [(name, sock.poll() & (events | values.POLL_ALWAYS)) for name, sock, events in self.fds]
        self.result = [{"sock": n, "revents": values.mask_out(m)} for n, m in ready if m]
        if self.result or (self.deadline is not None and now >= self.deadline):
            self.done, self.at = True, now


class Calls:
    """The application of one scenario: its sockets by name and its unfinished calls."""

    def __init__(self, stack: Target, steps: list[CallStep], ports: Ports) -> None:
        self.stack = stack
        self.ports = ports
        self.sockets: dict[str, Any] = {}
        self.pending: list[Pending] = []
        self._chosen = self._chosen_ports(steps)
        self._fixed: set[str] = set()
        self._info: dict[str, bytes] = {}

    @staticmethod
    def _chosen_ports(steps: list[CallStep]) -> dict[str, list[tuple[int, int]]]:
        """The recorded ports of each socket, from its getsockname: (index of the step, port)."""
        found: dict[str, list[tuple[int, int]]] = {}
        for s in steps:
            if s.call == "getsockname" and s.sock and isinstance(s.result, str):
                found.setdefault(s.sock, []).append((s.index, address(s.result)[1]))
        return found

    def socket(self, name: str | None) -> Any:
        if name is None or name not in self.sockets:
            raise NoSocket(name)
        return self.sockets[name]

    def perform(self, step: CallStep, now: int) -> Outcome | Pending:
        """Carry a call out at the current time."""
        if step.call in SUBMITTED:
            return self._submit(step, now)
        if step.call == "poll":
            return self._poll(step, now)
        try:
            value = getattr(self, "_" + step.call, self._unknown)(step)
        except OSError as e:
            return Outcome(errno=errno_name(e.errno))
        if step.call == "bind" and step.sock and address(step.args["addr"])[1]:
            self._fixed.add(step.sock)
        if step.call in ("listen", "bind"):
            self._learn_port(step)
        return Outcome(value)

    def _unknown(self, step: CallStep) -> Any:
        raise FormatError(f"{step.title()}: unknown call {step.call!r}")

    def _learn_port(self, step: CallStep) -> None:
        """A port chosen by the stack stands for the one the kernel had chosen, which the next getsockname tells."""
        name = step.sock
        if name is None or name in self._fixed:
            return
        recorded = next((port for index, port in self._chosen.get(name, []) if index > step.index), 0)
        port = self.sockets[name].getsockname()[1]
        if port and recorded:
            self.ports.learn(recorded, port)

    def _submit(self, step: CallStep, now: int) -> Outcome | Pending:
        sock = self.socket(step.sock)
        a = step.args
        match step.call:
            case "recv":
                args: tuple[Any, ...] = (a["len"], flags(a.get("flags", [])))
            case "send":
                args = (values.payload(a), flags(a.get("flags", [])))
            case "connect":
                args = (address(a["addr"]),)
            case _:
                args = ()
        completion = self.stack.submit(sock, step.call, *args)
        if step.call == "connect":
            self._learn_port(step)
        if not completion.done:
            pending = Pending(step, completion, now)
            self.pending.append(pending)
            return pending
        return self._finished(step, completion)

    def _poll(self, step: CallStep, now: int) -> Outcome | Pending:
        fds = [(f["sock"], self.socket(f["sock"]), values.mask_in(f["events"])) for f in step.args["fds"]]
        wait = step.args.get("timeout_ms", 0)
        poll = PollCompletion(fds, None if wait < 0 else now + wait * 1_000_000)
        poll.look(now)
        if poll.done:
            return Outcome(poll.result)
        pending = Pending(step, poll, now)
        self.pending.append(pending)
        return pending

    def deadline(self) -> int | None:
        """When the next waiting poll() gives up: the clock has to stop there."""
        ends = [p.completion.deadline for p in self.pending if isinstance(p.completion, PollCompletion)]
        return min((e for e in ends if e is not None), default=None)

    def finished(self, now: int) -> list[tuple[Pending, Outcome]]:
        """Blocked calls that have returned by now."""
        for p in self.pending:
            if isinstance(p.completion, PollCompletion):
                p.completion.look(now)
        done = [p for p in self.pending if p.completion.done]
        self.pending = [p for p in self.pending if not p.completion.done]
        return [(p, self._finished(p.step, p.completion)) for p in done]

    def _finished(self, step: CallStep, completion: Any) -> Outcome:
        name = errno_name(completion.errno)
        if name is not None:
            return Outcome(errno=name)
        value = completion.result
        if step.call == "accept":
            child, peer = value
            child.setblocking("SOCK_NONBLOCK" not in step.args.get("flags", []))
            if step.new:
                self.sockets[step.new] = child
            return Outcome({"peer": place(peer)})
        if step.call in ("connect", "close"):
            return Outcome(0)
        return Outcome(value)

    def _socket(self, step: CallStep) -> Any:
        a = step.args
        family, kind = a.get("family", "AF_INET"), a.get("type", "SOCK_STREAM")
        made = self.stack.socket(_constant(family), _constant(kind), a.get("proto", 0))
        if step.new:
            self.sockets[step.new] = made
        return "fd"

    def _bind(self, step: CallStep) -> Any:
        self.socket(step.sock).bind(address(step.args["addr"]))
        return 0

    def _listen(self, step: CallStep) -> Any:
        self.socket(step.sock).listen(step.args["backlog"])
        return 0

    def _shutdown(self, step: CallStep) -> Any:
        how = step.args["how"]
        self.socket(step.sock).shutdown(_constant(how) if isinstance(how, str) else how)
        return 0

    def _setblocking(self, step: CallStep) -> Any:
        self.socket(step.sock).setblocking(step.args["blocking"])
        return 0

    def _getsockname(self, step: CallStep) -> Any:
        host, port = self.socket(step.sock).getsockname()
        return place((host, self.ports.recorded(port)))

    def _getpeername(self, step: CallStep) -> Any:
        return place(self.socket(step.sock).getpeername())

    def _setsockopt(self, step: CallStep) -> Any:
        a = step.args
        self.socket(step.sock).setsockopt(a["level_num"], a["name_num"], values.option_in(a["value"]))
        return 0

    def _getsockopt(self, step: CallStep) -> Any:
        a = step.args
        level, name = a["level_num"], a["name_num"]
        like = step.result.get("value") if isinstance(step.result, dict) else None
        if (level, name) == TCP_INFO:
            raw = self.read_option(step.sock, level, name, a.get("buflen", tcp_info.SIZE))
            self._info[step.sock or ""] = raw
            return {"len": len(raw), "hex": raw.hex()}
        raw = self.read_option(step.sock, level, name, values.option_size(like, a.get("buflen")))
        value = values.option_out(raw, like if like is not None else 0)
        if (level, name) == SO_ERROR and isinstance(value, int):
            return {"value": value, "errno": errno_name(value) if value else None}
        return {"value": value}

    def read_option(self, name: str | None, level: int, option: int, size: int) -> bytes:
        raw = self.socket(name).getsockopt(level, option, size)
        if isinstance(raw, int):
            return raw.to_bytes(4, "little", signed=True)
        return bytes(raw)

    def readback(self, step: CallStep) -> Any:
        """getsockopt right after a setsockopt, in the form of the recorded reading."""
        a = step.args
        try:
            size = values.option_size(step.readback)
            raw = self.read_option(step.sock, a["level_num"], a["name_num"], size)
        except OSError as e:
            return f"errno {errno_name(e.errno)}"
        return values.option_out(raw, step.readback)

    def last_info(self, name: str) -> bytes:
        """The TCP_INFO read last on a socket."""
        return self._info.get(name, b"")

    def info(self, name: str) -> bytes:
        """The TCP_INFO of a socket now; empty if it has none."""
        try:
            return self.read_option(name, *TCP_INFO, tcp_info.SIZE)
        except (NoSocket, OSError):
            return b""


def _show(value: Any, errno: str | None) -> str:
    if errno:
        return f"-1 {errno}"
    return values.brief(value) if isinstance(value, bytes) else str(value)


def result_fault(step: CallStep, got: Outcome) -> Fault | None:
    """What a call's result differs in."""
    if step.errno or got.errno:
        if step.errno == got.errno:
            return None
        return "result", _show(step.result, step.errno), _show(got.value, got.errno)
    want, have = step.result, got.value
    if step.call == "recv" and isinstance(want, dict) and isinstance(have, (bytes, bytearray)):
        fault = values.payload_fault(want, bytes(have))
        return ("received data", *fault) if fault else None
    if step.call == "getsockopt" and isinstance(want, dict) and "hex" in want and isinstance(have, dict) \
            and (step.args.get("level_num"), step.args.get("name_num")) == TCP_INFO:
        if want["len"] != have["len"]:
            return "length of TCP_INFO", str(want["len"]), str(have["len"])
        return None         # the fields are compared by the reading that follows
    if step.call == "getsockopt" and (step.args.get("level_num"), step.args.get("name_num")) == SO_INCOMING_CPU:
        return None if _some_cpu(want) == _some_cpu(have) else ("result", str(want), str(have))
    if step.call == "poll":
        def order(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
            return sorted((r["sock"], sorted(r["revents"])) for r in rows)
        return None if order(want) == order(have) else ("poll result", str(want), str(have))
    return None if want == have else ("result", str(want), str(have))


def _some_cpu(result: Any) -> tuple[bool, Any]:
    """SO_INCOMING_CPU: the processor that a packet came in on is the machine's choice; that there was none is not."""
    value = result.get("value")
    if isinstance(value, dict):
        raw = bytes.fromhex(value["hex"])
        return raw == b"\xff" * len(raw), len(raw)
    return value == -1, 4


def end_fault(step: CallStep, since: int, at: int, by_timer: bool) -> Fault | None:
    """Whether a call returned when the recorded one did; `at` is the virtual time of its return."""
    end = ns(step.t_end) if step.t_end is not None else step.at
    if by_timer:
        late = timer_fault(at, end, Events([(since, since)]))
    else:
        late = immediate_fault(at, end)
    if late is None:
        return None
    return "time of return", f"{end / 1e9:.6f} s", late
