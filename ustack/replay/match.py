"""Emitted packets against recorded ones: one queue per 4-tuple (ICMP together), in order, every field.

What is compared: every byte of the headers and the payload. By `sym` a sequence number or TSval is compared
with this run's number instead of the recorded one, an IP ID only as zero or not zero. Checksums must be
right, which says more than that they are equal. Beyond the packet's own bytes:

* `"seq": "new"` must not be a number that this 4-tuple had before; with `isn_delta` the distance from the
  earlier ISN must be the recorded one, where a rule made it: a TIME_WAIT successor or a SYN cookie (small,
  exact), or the clock (64 ns a step, so the distance is that of the two virtual times). Cookies of
  different minutes are free.
* TSval runs with a 1 kHz clock: its distance from the packet it refers to must be that of the virtual times
  within one step, and agree with the recorded distance as far as the rule for times allows. The TSval of a
  SYN cookie carries options in its low 6 bits and so lies up to 63 steps below the clock.
* An ICMP timestamp reply tells the time of the day: receive and transmit time are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from . import packet as wire
from .recording import FormatError, PacketStep
from .symbols import MASK, Numbers, Unresolved, signed, triple
from .timing import LATENCY, MS, Events, immediate_fault, latest, timer_fault

Key = tuple[str, ...]
ANOTHER_CLOCK = 1 << 24     # a TSval so far from another one has another base, not the same clock later
COOKIE_STEPS = 64
ISN_NS = 64
SMALL_DELTA = 1 << 17
ICMP_TIMESTAMP_REPLY = 14


@dataclass
class Emission:
    """A packet of the stack: when, what, and the driving step it answers (None: a timer sent it)."""

    at: int
    raw: bytes
    trigger: str | None
    step: int


@dataclass
class Flow:
    """One 4-tuple: what the recording expects, how much of it has come, and what may have armed timers."""

    key: Key
    expected: list[PacketStep] = field(default_factory=list)
    got: list[Emission] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    isns: list[int] = field(default_factory=list)
    idents: dict[int, int] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 0)
    diverged: bool = False

    @property
    def label(self) -> str:
        return "ICMP" if self.key[0] == "icmp" else " ".join(self.key)


def key_of(raw: bytes, injected: bool) -> Key:
    """The queue a packet belongs to; the client's end is named first for both directions."""
    p = wire.parse(raw)
    if p is None or p.tcp is None:
        return ("icmp",)
    there, here = f"{p.src}:{p.tcp.sport}", f"{p.dst}:{p.tcp.dport}"
    return (there, here) if injected else (here, there)


@dataclass(frozen=True)
class Fault:
    """One field that differs."""

    what: str
    expected: str
    got: str


def _hex(value: int) -> str:
    return f"0x{value:x}"


def _without_times(options: bytes) -> bytes:
    """IP options without the times of day that a timestamp option (68: alone, flag 0, or behind addresses, flag 1) has collected."""
    out, i = bytearray(options), 0
    while i + 4 <= len(out) and out[i] != 0:
        if out[i] == 1:
            i += 1
            continue
        size = max(2, out[i + 1])
        if out[i] == 68 and out[i + 3] & 15 in (0, 1):
            end = min(i + out[i + 2] - 1, i + size, len(out))
            step = 8 if out[i + 3] & 15 else 4
            for at in range(i + step, end - 3, step):
                out[at:at + 4] = bytes(4)
        i += size
    return bytes(out)


def _quote_without_times(rest: bytes) -> bytes:
    """An ICMP message behind its checksum; in what may be a quoted packet, its IP options without times."""
    hlen = (rest[4] & 15) * 4 if len(rest) > 4 and rest[4] >> 4 == 4 else 0
    if not 20 < hlen <= len(rest) - 4:
        return rest
    return rest[:24] + _without_times(rest[24:4 + hlen]) + rest[4 + hlen:]


def _ip_faults(want: wire.Packet, have: wire.Packet, flow: Flow) -> list[Fault]:
    faults = []
    for what, a, b in (
        ("type of service", _hex(want.tos), _hex(have.tos)), ("TTL", str(want.ttl), str(have.ttl)),
        ("protocol", str(want.proto), str(have.proto)),
        ("IP flags and offset", _hex(want.frag), _hex(have.frag)),
        ("IP options", _without_times(want.ip_options).hex() or "none", _without_times(have.ip_options).hex() or "none"),
        ("source address", want.src, have.src), ("destination address", want.dst, have.dst),
    ):
        if a != b:
            faults.append(Fault(what, a, b))
    past_zero = 0xFFFF in flow.counted          # a counter at 65535 goes on with 0
    flow.counted = want.ident, have.ident
    if bool(want.ident) != bool(have.ident) and not past_zero:
        faults.append(Fault("IP ID", "not 0" if want.ident else "0", str(have.ident)))
    if want.frag & 0x3FFF and flow.idents.setdefault(want.ident, have.ident) != have.ident:
        faults.append(Fault("IP ID of the fragments of one packet", "one value", "different values"))
    return faults


def masked_options(tcp: wire.Tcp) -> bytes:
    """The options with TSval blanked; TSecr is the client's own number and stays."""
    at = tcp.ts_offset
    return tcp.options if at is None else tcp.options[:at] + b"\0\0\0\0" + tcp.options[at + 4:]


def _icmp_faults(want: wire.Packet, have: wire.Packet) -> list[Fault]:
    a, b = want.data, have.data
    kinds = {p.icmp.type if p.icmp else -1 for p in (want, have)}
    if kinds == {ICMP_TIMESTAMP_REPLY} and len(a) == len(b):
        a, b = a[:2] + a[4:12] + a[20:], b[:2] + b[4:12] + b[20:]
    else:
        a, b = (x[:2] + _quote_without_times(x[4:]) if y.icmp else x for x, y in ((a, want), (b, have)))
    return [] if a == b else [Fault("ICMP message" if want.icmp else "data", a.hex(), b.hex())]


class Comparer:
    """Compares single packets; holds what all flows of one run share."""

    def __init__(self, numbers: Numbers, recorded: dict[int, PacketStep], cookies: bool) -> None:
        self.numbers = numbers
        self.recorded = recorded
        self.cookies = cookies

    def faults(self, step: PacketStep, e: Emission, flow: Flow) -> list[Fault]:
        """All fields in which an emitted packet differs from the recorded one."""
        want, have = wire.parse(step.packet), wire.parse(e.raw)
        if want is None or have is None:
            return [] if step.packet == e.raw else [Fault("packet", step.packet.hex(), e.raw.hex())]
        faults = _ip_faults(want, have, flow)
        faults += [Fault(f, "correct", "wrong") for f in wire.checksum_faults(have)]
        if want.tcp and have.tcp:
            faults += self._tcp(step, want.tcp, have.tcp, e, flow)
        elif want.proto == have.proto:
            faults += _icmp_faults(want, have)
        return faults

    def _tcp(self, step: PacketStep, want: wire.Tcp, have: wire.Tcp, e: Emission, flow: Flow) -> list[Fault]:
        faults = []
        for what, a, b, show in (
            ("flags", want.flags, have.flags, wire.flag_text),
            ("acknowledgement number", want.ack, have.ack, str), ("window", want.window, have.window, str),
            ("urgent pointer", want.urgent, have.urgent, str), ("source port", want.sport, have.sport, str),
            ("destination port", want.dport, have.dport, str),
        ):
            if a != b:
                faults.append(Fault(what, show(a), show(b)))
        if masked_options(want) != masked_options(have):
            faults.append(Fault("options", f"{want.options.hex()} [{wire.option_text(want.options)}]",
                                f"{have.options.hex()} [{wire.option_text(have.options)}]"))
        if len(want.payload) != len(have.payload):
            faults.append(Fault("payload length", str(len(want.payload)), str(len(have.payload))))
        elif want.payload != have.payload:
            faults.append(Fault("payload", want.payload[:32].hex(), have.payload[:32].hex()))
        faults += self._sequence(step, want, have, e, flow)
        if have.tsval is not None and want.tsval is not None:
            faults += self._timestamp(step, want.tsval, have.tsval, e, flow)
        return faults

    def _sequence(self, step: PacketStep, want: wire.Tcp, have: wire.Tcp, e: Emission,
                  flow: Flow) -> list[Fault]:
        sym = step.sym.get("seq")
        what = "sequence number"
        if sym is None:
            return [] if want.seq == have.seq else [Fault(what, str(want.seq), str(have.seq))]
        if sym == "new":
            if have.seq in flow.isns:
                return [Fault("initial sequence number", "a new one", f"{have.seq} again")]
            return self._isn_delta(step, have.seq, e) if "isn_delta" in step.sym else []
        if isinstance(sym, list) and len(sym) == 2 and sym[0] == "ack_of":
            value, how = self.numbers.ack_of(sym[1]), f"acknowledgement number of p{sym[1]}"
        else:
            p, n = triple(sym, "isn", step.title())
            value, how = self.numbers.isn(p, n), f"ISN of p{p} + {n}"
        return [] if value == have.seq else [Fault(what, f"{value} ({how})", str(have.seq))]

    def _isn_delta(self, step: PacketStep, isn: int, e: Emission) -> list[Fault]:
        delta = step.sym["isn_delta"]
        if not (isinstance(delta, list) and len(delta) == 2):
            raise FormatError(f"{step.title()}: isn_delta {delta!r} is not [p, d]")
        p, d = delta
        if p not in self.recorded:
            raise Unresolved(p)
        got = (isn - self.numbers.isn(p)) & MASK
        if got == d & MASK:
            return []
        ran = step.at - self.recorded[p].at
        clocked = abs(d * ISN_NS - ran) <= LATENCY + ran // 1000
        mine = ((e.at - self.numbers.time(p)) // ISN_NS) & MASK
        if clocked and min((got - mine) & MASK, (mine - got) & MASK) <= 1:
            return []
        if not clocked and abs(d) >= SMALL_DELTA:
            return []
        want = f"{mine} after p{p} (the clock's)" if clocked else f"{d} after p{p}"
        return [Fault("distance of the initial sequence number", want, str(got))]

    def _timestamp(self, step: PacketStep, want: int, have: int, e: Emission, flow: Flow) -> list[Fault]:
        sym = step.sym.get("tsval")
        if sym == "new":
            return []
        if sym is None:
            return [] if want == have else [Fault("TSval", str(want), str(have))]
        p, d = triple(sym, "tsval", step.title())
        got = signed(have - self.numbers.tsval(p))
        ran = (e.at - self.numbers.time(p)) // MS
        if abs(signed(d)) > ANOTHER_CLOCK:
            return [] if abs(got) > ANOTHER_CLOCK else [Fault("TSval", f"another base than p{p}'s", f"{got} after it")]
        below = COOKIE_STEPS if self.cookies and self._is_synack(p) else 0
        own = COOKIE_STEPS if self.cookies and self._is_synack(step.p) else 0
        if not ran - 1 - own <= got <= ran + 1 + below:
            return [Fault("TSval", f"{ran} after that of p{p} (a 1 kHz clock)", f"{got} after it")]
        drift = flow.events.drift() // MS
        low, high = ran - LATENCY // MS - below - own - drift, latest(ran * MS) // MS + below + drift
        if not low <= d <= high:
            return [Fault("TSval", f"{d} after that of p{p}", f"{got} after it")]
        return []

    def _is_synack(self, p: int) -> bool:
        r = wire.parse(self.recorded[p].packet) if p in self.recorded else None
        return bool(r and r.tcp and r.tcp.flags & wire.SYN)


class Allowance(Protocol):
    """What a recording says that varies, as far as single packets are concerned."""

    def is_loose(self, key: Key) -> bool: ...
    def time_is_free(self, step: PacketStep) -> bool: ...


class Matcher:
    """All flows of one run. `report` takes each difference: (recorded step or None, emission or None,
    fault)."""

    def __init__(self, packets: list[PacketStep], numbers: Numbers, cookies: bool,
                 report: Callable[[PacketStep | None, Emission | None, Fault], None],
                 allowance: Allowance) -> None:
        self.flows: dict[Key, Flow] = {}
        self.numbers = numbers
        self.report = report
        self.allowance = allowance
        self.comparer = Comparer(numbers, {s.p: s for s in packets if not s.injected}, cookies)
        for s in packets:
            if not s.injected:
                self.flow(key_of(s.packet, False)).expected.append(s)

    def flow(self, key: Key) -> Flow:
        if key not in self.flows:
            self.flows[key] = Flow(key)
        return self.flows[key]

    def injected(self, step: PacketStep, at: int) -> None:
        self.flow(key_of(step.packet, True)).events.add(at, at)

    def emitted(self, e: Emission) -> None:
        """Match one packet of the stack with the next one expected on its 4-tuple."""
        flow = self.flow(key_of(e.raw, False))
        n = len(flow.got)
        flow.got.append(e)
        parsed = wire.parse(e.raw)
        if n < len(flow.expected):
            step = flow.expected[n]
            self._compare(step, e, flow)
            flow.events.add(e.at, max(step.at, e.at))
            if parsed:
                self.numbers.emitted(step.p, e.at, parsed)
        elif not flow.diverged:
            flow.events.add(e.at, e.at)
        if parsed and parsed.tcp and parsed.tcp.flags & wire.SYN and parsed.tcp.seq not in flow.isns:
            flow.isns.append(parsed.tcp.seq)

    def _compare(self, step: PacketStep, e: Emission, flow: Flow) -> None:
        if flow.diverged or self.allowance.is_loose(flow.key):
            return
        try:
            faults = self.comparer.faults(step, e, flow)
        except Unresolved as missing:
            faults = [Fault("packet", f"one that refers to p{missing.p}", "one before that packet")]
        if e.trigger is not None:
            late = immediate_fault(e.at, step.at)
        else:
            late = timer_fault(e.at, step.at, flow.events)
        if late and not self.allowance.time_is_free(step):
            faults.append(Fault("time", f"{step.t:.6f} s", late))
        for fault in faults:
            self.report(step, e, fault)
        flow.diverged = bool(faults)
