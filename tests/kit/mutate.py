"""Wrong scripts made from right ones: every expected packet changed in one way at a time.

A script that passes is run once to see the live packets; then `mutants` gives scripts that each say
one untrue thing (flag, sequence number, acknowledgement, window, option, length, time, a packet too
many, a call's result).  An interpreter that still passes one of them is too loose.

Left out, because the language itself does not compare them: the sequence number of a SYN that defines
the stack's initial sequence number, TS val and TS ecr, options written `<...>`, the time of `*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ustack.drill import nodes
from ustack.drill.codec import ACK, FIN, PSH, RST, SYN, URG, Packet, encode_options
from ustack.drill.interp import Interpreter
from ustack.drill.nodes import Direction, Event, IcmpPacket, Script, Syscall, TcpOption, TcpPacket, When
from ustack.drill.options import Options, merge
from ustack.drill.report import Outcome
from ustack.drill.run import run_script

MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Mutant:
    what: str
    line: int
    script: Script


def _with(script: Script, index: int, action: Any = None, time: nodes.Time | None = None) -> Script:
    events = list(script.events)
    event = events[index]
    events[index] = Event(time or event.time, action or event.action)
    return replace(script, events=tuple(events))


def _option_changes(packet: TcpPacket) -> Iterator[tuple[str, TcpPacket]]:
    options = packet.options
    if options is None:
        return
    pos = packet.pos
    pad = TcpOption(pos, "nop")
    if len(encode_options(options)) <= 36:
        yield "four NOPs more", replace(packet, options=(*options, pad, pad, pad, pad))
    if options:
        yield "no options", replace(packet, options=())
        yield "options unpadded in another way", replace(packet, options=_rotated(options))
    for index, option in enumerate(options):
        changed: TcpOption | None = None
        if option.name in ("mss", "wscale"):
            changed = replace(option, a=option.a + 1)
        elif option.name == "sack":
            (left, right), *rest = option.blocks
            changed = replace(option, blocks=((left, (right + 1) & MASK), *rest))
        elif option.name in ("FO", "FOEXP") and option.data:
            changed = replace(option, data=bytes([option.data[0] ^ 1]) + option.data[1:])
        elif option.name == "ECN":
            (name, count), *others = option.counters
            changed = replace(option, counters=((name, count + 1), *others))
        elif option.name == "nop":
            changed = replace(option, name="eol")
        if changed is not None:
            yield f"option {option.name}", replace(packet,
                                                   options=(*options[:index], changed, *options[index + 1:]))


def _rotated(options: tuple[TcpOption, ...]) -> tuple[TcpOption, ...]:
    return (*options[1:], options[0]) if len({o.name for o in options}) > 1 else options + (options[0],) * 4


class _Openings:
    """Which SYN of the stack, of each client by name, stands for its real initial number: not compared then."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    @staticmethod
    def _name(packet: TcpPacket) -> str:
        return "" if packet.who is None else f"{packet.who.name}.{packet.who.index}"

    def socket(self) -> None:
        self._seen.discard("")

    def inbound(self, packet: TcpPacket) -> None:
        if packet.who is not None and packet.flags & (SYN | ACK) == SYN:
            self._seen.discard(self._name(packet))

    def defines(self, packet: TcpPacket) -> bool:
        return bool(packet.flags & SYN) and self._name(packet) not in self._seen

    def outbound(self, packet: TcpPacket) -> None:
        if packet.flags & SYN:
            self._seen.add(self._name(packet))


def _packet_changes(packet: TcpPacket, live: tuple[Packet, ...],
                    defines: bool) -> Iterator[tuple[str, TcpPacket]]:
    for bit, name in ((FIN, "FIN"), (SYN, "SYN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (URG, "URG"),
                      (0x40, "ECE"), (0x80, "CWR"), (0x100, "AE")):
        yield f"flag {name}", replace(packet, flags=packet.flags ^ bit)
    if not defines:
        yield "sequence number", replace(packet, start=(packet.start + 1) & MASK, end=(packet.end + 1) & MASK)
    if packet.ack is not None:
        yield "acknowledgement number", replace(packet, ack=(packet.ack + 1) & MASK)
    if packet.length < 65535:
        yield "length + 1", replace(packet, end=(packet.end + 1) & MASK, length=packet.length + 1)
    if packet.length:
        yield "length - 1", replace(packet, end=(packet.end - 1) & MASK, length=packet.length - 1)
    assert live[0].tcp is not None
    yield "window", replace(packet, win=live[0].tcp.win ^ 1)
    yield "urgent pointer", replace(packet, urg=packet.urg ^ 1)
    yield "ttl", replace(packet, ip=replace(packet.ip, ttl=live[0].ttl - 1))
    yield "tos", replace(packet, ip=nodes.IpInfo(tos=live[0].tos ^ 4))
    yield from _option_changes(packet)


def _time_changes(time: nodes.Time, before: int, options: Options) -> Iterator[tuple[str, nodes.Time]]:
    """`before`: time of the event before, on the base of this one (0 for a relative time)."""
    if time.when is When.ANY:
        return
    slack = 3 * options.tolerance_usecs * 1000
    width = (time.end or time.at) - time.at
    shift = slack + width + (time.at - before) // 2
    yield "later", replace(time, at=time.at + shift, end=None if time.end is None else time.end + shift)
    if time.when is When.RELATIVE and time.at >= shift:
        yield "earlier", replace(time, at=time.at - shift, end=None if time.end is None else time.end - shift)


def mutants(script: Script, options: Options, live: dict[int, tuple[Packet, ...]]) -> Iterator[Mutant]:
    """All of them, in the order of the script."""
    openings = _Openings()
    before = 0
    for index, event in enumerate(script.events):
        action, line = event.action, event.pos.line
        if getattr(action, "direction", None) is Direction.OUTBOUND and index in live:
            if isinstance(action, TcpPacket):
                for what, packet in _packet_changes(action, live[index], openings.defines(action)):
                    yield Mutant(what, line, _with(script, index, packet))
                if action.who is not None and action.who.count is not None:
                    yield Mutant("one client less", line, _with(script, index, _fewer(action)))
                openings.outbound(action)
            elif isinstance(action, IcmpPacket):
                yield Mutant("icmp code", line, _with(script, index, replace(action, code="code_77")))
            base = before if event.time.when is When.ABSOLUTE else 0
            last = all(getattr(e.action, "direction", None) is not Direction.INBOUND
                       for e in script.events[index + 1:])
            for what, time in _time_changes(event.time, base, options):
                yield Mutant(f"time {what}", line, _with(script, index, time=time))
            if last and index == max(live):
                doubled = (*script.events[:index + 1], Event(nodes.Time(event.pos, When.RELATIVE), action),
                           *script.events[index + 1:])
                yield Mutant("one packet more at the end", line, replace(script, events=doubled))
        elif isinstance(action, TcpPacket):
            openings.inbound(action)
        elif isinstance(action, Syscall):
            if action.name == "socket":
                openings.socket()
            yield from _call_changes(script, index, action)
        if event.time.when is When.ABSOLUTE:
            before = event.time.at


def _fewer(packet: TcpPacket) -> TcpPacket:
    assert packet.who is not None and packet.who.count is not None
    return replace(packet, who=replace(packet.who, count=packet.who.count - 1))


def _call_changes(script: Script, index: int, call: Syscall) -> Iterator[Mutant]:
    line = call.pos.line
    if isinstance(call.result, nodes.Int) and call.result.value >= 0 \
            and call.name not in ("socket", "accept", "accept4", "epoll_create", "epoll_create1"):
        other = replace(call.result, value=call.result.value + 1)
        yield Mutant(f"{call.name}() result", line, _with(script, index, replace(call, result=other)))
    if call.errno is not None:
        yield Mutant(f"{call.name}() errno", line, _with(script, index, replace(call, errno="ENOSPC")))
    elif isinstance(call.result, nodes.Int) and call.result.value >= 0:
        wrong = replace(call, result=replace(call.result, value=-1), errno="EIO")
        yield Mutant(f"{call.name}() fails", line, _with(script, index, wrong))


Runner = Callable[[Script], tuple[Outcome, Interpreter | None]]


def stack_runner(options: Options | None = None, **more: Any) -> Runner:
    """Runs a script on the real stack, or on what `stack_factory` in `more` makes."""
    def run(script: Script) -> tuple[Outcome, Interpreter | None]:
        seen: list[Interpreter] = []
        outcome = run_script(script, options, watch=seen.append, **more)
        return outcome, seen[0] if seen else None
    return run


def survivors(script: Script, run: Runner, keep: Callable[[Mutant], bool] = lambda m: True) -> list[str]:
    """Run the script, which must pass, and all its mutants: those that pass too, in words."""
    outcome, interpreter = run(script)
    assert interpreter is not None and outcome.result == 0, outcome.text()
    live = {match.event: match.packets for match in interpreter.matches}
    out = []
    for mutant in mutants(script, merge(script, Options(), {}), live):
        if keep(mutant):
            result, _ = run(mutant.script)
            if result.result == 0:
                out.append(f"{script.path}:{mutant.line}: {mutant.what}")
    return out
