"""Reading and checking a recording (docs: the format of observations.json).

A recording is a list of scenarios; a scenario is a list of steps in time order. Driving steps are carried out
by the replay (packets in, application calls, configuration), the others are expectations (packets out,
counters, socket tables). This file turns the JSON text into typed steps and refuses everything that is not in
the format with a `FormatError` that names the place (`scenarios[3] (A1-fill), steps[17]: ...`), so that the
later stages need no checks of their own.

Times are kept as the recording has them (float seconds); `ns()` is the one place where they become integers.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = Any


class FormatError(ValueError):
    """The file is not a recording; the text says where and why."""


def ns(seconds: float) -> int:
    """Nanoseconds of a recorded time. The recording has microsecond resolution, so rounding is exact."""
    return round(seconds * 1_000_000) * 1000


@dataclass(frozen=True)
class Step:
    """One line of a scenario; `index` is its place in the recorded list (what reports name)."""

    index: int
    t: float
    setup: bool

    @property
    def at(self) -> int:
        return ns(self.t)

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s"


@dataclass(frozen=True)
class PacketStep(Step):
    p: int
    injected: bool
    packet: bytes
    sym: dict[str, Json]
    desc: str

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s, packet p{self.p}"


@dataclass(frozen=True)
class CallStep(Step):
    call: str
    sock: str | None
    args: dict[str, Json]
    result: Json
    errno: str | None
    new: str | None
    t_end: float | None
    readback: Json
    has_readback: bool

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s, {self.call}({self.sock or ''})"


@dataclass(frozen=True)
class SysctlStep(Step):
    name: str
    value: str
    errno: str | None


@dataclass(frozen=True)
class LinkStep(Step):
    device: str
    mtu: int | None


@dataclass(frozen=True)
class AddressStep(Step):
    words: str
    op: str


@dataclass(frozen=True)
class RouteStep(Step):
    words: str


@dataclass(frozen=True)
class CountersStep(Step):
    delta: dict[str, int]
    label: str

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s, counters at mark {self.label!r}"


@dataclass(frozen=True)
class TableStep(Step):
    args: str
    rows: list[dict[str, Json]]
    t_last: float

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s, ss {self.args}"


@dataclass(frozen=True)
class TextStep(Step):
    """The very bytes that `ss ARGS` or `netstat ARGS` printed."""

    command: str
    args: str
    text: str

    def title(self) -> str:
        return f"step {self.index} at {self.t:.6f} s, text of {self.command} {self.args}"


@dataclass(frozen=True)
class TcpInfoStep(Step):
    sock: str
    fields: dict[str, int]


@dataclass(frozen=True)
class SysctlGetStep(Step):
    name: str
    value: str


@dataclass(frozen=True)
class RemarkStep(Step):
    """A note or another reading of the lab: information, never compared."""

    text: str


@dataclass
class Scenario:
    id: str
    section: str
    desc: str
    steps: list[Step]
    t_end: float
    varies: str | None
    tfo_key: str | None
    cookie_minute_at: list[float]
    checks: dict[str, Json]
    tick_at: float | None = None
    tolerance: dict[str, float] = field(default_factory=dict)
    draws: int = 1
    counters_total: dict[str, int] = field(default_factory=dict)

    def setup_steps(self) -> list[Step]:
        return [s for s in self.steps if s.setup]

    def timed_steps(self) -> list[Step]:
        return [s for s in self.steps if not s.setup]

    def packets(self) -> Iterator[PacketStep]:
        return (s for s in self.steps if isinstance(s, PacketStep))

    def calls(self) -> Iterator[CallStep]:
        return (s for s in self.steps if isinstance(s, CallStep))


@dataclass
class Recording:
    meta: dict[str, Json]
    scenarios: list[Scenario]


class _Fields:
    """Typed access to the members of one JSON object; every complaint carries the place."""

    def __init__(self, obj: Json, where: str) -> None:
        if not isinstance(obj, dict):
            raise FormatError(f"{where}: expected an object, got {type(obj).__name__}")
        self.obj = obj
        self.where = where

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self.obj:
            raise FormatError(f"{self.where}: member {key!r} is missing")
        return self.get(key, kind, None)

    def get(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        if key not in self.obj:
            return default
        value = self.obj[key]
        wants_bool = kind is bool or (isinstance(kind, tuple) and bool in kind)
        if not isinstance(value, kind) or (isinstance(value, bool) and not wants_bool):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise FormatError(f"{self.where}: member {key!r} is {type(value).__name__}, expected {names}")
        return value

    def hexbytes(self, key: str) -> bytes:
        text = self.need(key, str)
        try:
            return bytes.fromhex(text)
        except ValueError as e:
            raise FormatError(f"{self.where}: member {key!r} is not hexadecimal: {e}") from None


_KINDS = ("dir", "call", "sysctl_get", "sysctl", "link", "addr", "route", "counters", "ss", "ss_text", "netstat_text", "tcp_info", "cmd",
          "note")


def _packet(f: _Fields, base: tuple[int, float, bool]) -> PacketStep:
    direction = f.need("dir", str)
    if direction not in ("<", ">"):
        raise FormatError(f"{f.where}: dir is {direction!r}, expected '<' or '>'")
    return PacketStep(*base, f.need("p", int), direction == ">", f.hexbytes("hex"), f.get("sym", dict, {}),
                      f.get("desc", str, ""))


def _call(f: _Fields, base: tuple[int, float, bool]) -> CallStep:
    if "result" not in f.obj:
        raise FormatError(f"{f.where}: call without a result")
    t_end = f.get("t_end", (int, float), None)
    return CallStep(*base, f.need("call", str), f.get("sock", str, None), f.get("args", dict, {}),
                    f.obj["result"], f.get("errno", str, None), f.get("new", str, None),
                    None if t_end is None else float(t_end), f.obj.get("readback"), "readback" in f.obj)


def _counters(f: _Fields, base: tuple[int, float, bool]) -> CountersStep:
    delta = f.need("counters", dict)
    for name, value in delta.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"{f.where}: counter {name} is not a number")
    return CountersStep(*base, delta, f.get("label", str, ""))


def _table(f: _Fields, base: tuple[int, float, bool]) -> TableStep:
    rows = f.need("rows", list)
    for i, row in enumerate(rows):
        r = _Fields(row, f"{f.where}, rows[{i}]")
        if "raw" in row:
            r.need("raw", str)
            continue
        for key in ("state", "local", "peer"):
            r.need(key, str)
        for key in ("recvq", "sendq"):
            r.need(key, int)
        r.get("info", str, "")
    return TableStep(*base, f.need("ss", str), rows, float(f.get("t_last", (int, float), base[1])))


def _step(obj: Json, index: int, where: str) -> Step:
    f = _Fields(obj, f"{where}, steps[{index}]")
    kind = next((k for k in _KINDS if k in f.obj), None)
    if kind is None:
        raise FormatError(f"{f.where}: no known kind of step among its members {sorted(f.obj)}")
    base = (index, float(f.need("t", (int, float))), f.get("setup", bool, False))
    match kind:
        case "dir":
            return _packet(f, base)
        case "call":
            return _call(f, base)
        case "sysctl":
            return SysctlStep(*base, f.need("sysctl", str), str(f.need("value", (str, int))),
                              f.get("errno", str, None))
        case "link":
            return LinkStep(*base, f.need("link", str), f.get("mtu", int, None))
        case "addr":
            return AddressStep(*base, f.need("addr", str), f.get("op", str, "add"))
        case "route":
            return RouteStep(*base, f.need("route", str))
        case "counters":
            return _counters(f, base)
        case "ss":
            return _table(f, base)
        case "ss_text" | "netstat_text":
            return TextStep(*base, kind.removesuffix("_text"), f.need(kind, str), f.need("text", str))
        case "tcp_info":
            return TcpInfoStep(*base, f.need("sock", str), f.need("tcp_info", dict))
        case "sysctl_get":
            return SysctlGetStep(*base, f.need("sysctl_get", str), str(f.need("value", (str, int))))
        case _:
            return RemarkStep(*base, str(f.obj[kind]))


def _check_order(steps: list[Step], where: str) -> None:
    last = 0.0
    numbers: set[int] = set()
    for s in steps:
        if s.setup:
            continue
        if s.t < last:
            raise FormatError(f"{where}, steps[{s.index}]: time {s.t} lies before the step before ({last})")
        last = s.t
        if isinstance(s, PacketStep):
            if s.p in numbers:
                raise FormatError(f"{where}, steps[{s.index}]: packet number {s.p} occurs twice")
            numbers.add(s.p)


def _scenario(obj: Json, n: int) -> Scenario:
    f = _Fields(obj, f"scenarios[{n}]")
    name = f.need("id", str)
    f.where = f"scenarios[{n}] ({name})"
    steps = [_step(s, i, f.where) for i, s in enumerate(f.need("steps", list))]
    _check_order(steps, f.where)
    last = max((s.t for s in steps), default=0.0)
    t_end = float(f.get("t_end", (int, float), last))
    minutes = [float(x) for x in f.get("cookie_minute_at", list, [])]
    return Scenario(name, f.get("section", str, name[:1]), f.get("desc", str, ""), steps, max(t_end, last),
                    f.get("varies", str, None), f.get("tfo_key", str, None), minutes,
                    f.get("checks", dict, {}), f.get("tick_at", (int, float), None), f.get("tolerance", dict, {}),
                    f.get("draws", int, 1), f.get("counters_total", dict, {}))


def parse(data: Json) -> Recording:
    """Typed form of a decoded recording."""
    top = _Fields(data, "top level")
    scenarios = [_scenario(s, i) for i, s in enumerate(top.need("scenarios", list))]
    return Recording(top.get("meta", dict, {}), scenarios)


def load(path: str | Path) -> Recording:
    """Read a recording from a file, plain or gzip-compressed JSON."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise FormatError(f"{path}: cannot be read: {e.strerror}") from None
    try:
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        data = json.loads(raw)
    except (OSError, EOFError, ValueError) as e:
        raise FormatError(f"{path}: not JSON: {e}") from None
    try:
        return parse(data)
    except FormatError as e:
        raise FormatError(f"{path}: {e}") from None
