"""Numbers that hang on randomness: rewriting injected packets, and what an emitted packet has to carry.

A recording names such numbers by the packet that defined them (`sym`): `["isn", p, n]` is the initial
sequence number of SYN-ACK p plus n, `["tsval", p, n]` the TSval of packet p plus n. `Numbers` knows the
packets of the replaying stack that were matched to the recorded ones, and turns a symbol into this run's
number. A symbol whose packet has not been matched raises `Unresolved`: what follows cannot be replayed.

Ports chosen by the stack (an unbound listener, a connecting socket) are mapped in both directions by
`Ports`.
"""

from __future__ import annotations

import struct
from typing import Any

from . import packet as wire
from .recording import FormatError, PacketStep

MASK = 0xFFFFFFFF
QUOTED_SEQ = 24


class Unresolved(LookupError):
    """A symbol names a packet which the stack has not sent."""

    def __init__(self, p: int) -> None:
        super().__init__(f"the stack has sent no packet for p{p}")
        self.p = p


class Numbers:
    """This run's numbers of the recorded packets."""

    def __init__(self) -> None:
        self._emitted: dict[int, tuple[int, wire.Packet]] = {}
        self._injected: dict[int, wire.Packet | None] = {}

    def emitted(self, p: int, at: int, got: wire.Packet) -> None:
        self._emitted[p] = (at, got)

    def injected(self, p: int, raw: bytes) -> None:
        self._injected[p] = wire.parse(raw)

    def _tcp(self, p: int) -> tuple[int, wire.Tcp]:
        found = self._emitted.get(p)
        if found is None or found[1].tcp is None:
            raise Unresolved(p)
        return found[0], found[1].tcp

    def isn(self, p: int, n: int = 0) -> int:
        return (self._tcp(p)[1].seq + n) & MASK

    def tsval(self, p: int, n: int = 0) -> int:
        value = self._tcp(p)[1].tsval
        if value is None:
            raise Unresolved(p)
        return (value + n) & MASK

    def time(self, p: int) -> int:
        return self._tcp(p)[0]

    def ack_of(self, p: int) -> int:
        sent = self._injected.get(p)
        if sent is None or sent.tcp is None:
            raise Unresolved(p)
        return sent.tcp.ack


def triple(value: Any, kind: str, where: str) -> tuple[int, int]:
    """The p and n of a `[kind, p, n]` symbol."""
    if isinstance(value, list) and len(value) == 3 and value[0] == kind and \
            all(isinstance(x, int) for x in value[1:]):
        return value[1], value[2]
    raise FormatError(f"{where}: {value!r} is not a [{kind!r}, p, n] symbol")


def signed(n: int) -> int:
    """A difference of 32-bit numbers as a signed one."""
    n &= MASK
    return n - (MASK + 1) if n >> 31 else n


class Ports:
    """Local ports that the stack chose by itself, against those of the recording."""

    def __init__(self) -> None:
        self._to_stack: dict[int, int] = {}
        self._to_recording: dict[int, int] = {}

    def learn(self, recorded: int, real: int) -> None:
        if recorded != real:
            self._to_stack[recorded] = real
            self._to_recording[real] = recorded

    def __bool__(self) -> bool:
        return bool(self._to_stack)

    def stack(self, recorded: int) -> int:
        return self._to_stack.get(recorded, recorded)

    def recorded(self, real: int) -> int:
        return self._to_recording.get(real, real)

    def recorded_text(self, endpoint: str) -> str:
        """`addr:port` of a socket table with the recording's port."""
        host, _, port = endpoint.rpartition(":")
        return f"{host}:{self.recorded(int(port))}" if port.isdigit() else endpoint

    def to_stack(self, raw: bytes) -> bytes:
        """An injected TCP packet with the stack's destination port."""
        p = wire.parse(raw)
        if p is None or p.tcp is None or self.stack(p.tcp.dport) == p.tcp.dport:
            return raw
        out = bytearray(raw)
        struct.pack_into(">H", out, len(p.header) + 2, self.stack(p.tcp.dport))
        wire.fix_checksums(out, raw)
        return bytes(out)

    def to_recording(self, raw: bytes) -> bytes:
        """An emitted TCP packet with the recording's source port."""
        p = wire.parse(raw)
        if p is None or p.tcp is None or self.recorded(p.tcp.sport) == p.tcp.sport:
            return raw
        out = bytearray(raw)
        struct.pack_into(">H", out, len(p.header), self.recorded(p.tcp.sport))
        wire.fix_checksums(out, raw)
        return bytes(out)


def _rewrite_sack(out: bytearray, base: int, tcp: wire.Tcp, blocks: Any, numbers: Numbers,
                  where: str) -> None:
    places = [s for kind, s, length in wire.walk_options(tcp.options) if kind == wire.OPT_SACK]
    if not places:
        raise FormatError(f"{where}: sym has sack, but the packet has no SACK option")
    at = base + 20 + places[0] + 2
    for i, block in enumerate(blocks):
        if not (isinstance(block, list) and len(block) == 4 and block[0] == "isn"):
            raise FormatError(f"{where}: {block!r} is not an ['isn', p, left, right] symbol")
        left, right = numbers.isn(block[1], block[2]), numbers.isn(block[1], block[3])
        struct.pack_into(">II", out, at + 8 * i, left, right)


def rewrite(step: PacketStep, numbers: Numbers, ports: Ports) -> bytes:
    """The packet to inject: the recorded one with this run's numbers and good (or equally bad) checksums."""
    raw = ports.to_stack(step.packet) if ports else step.packet
    if not step.sym:
        return raw
    where = step.title()
    p = wire.parse(raw)
    if p is None:
        raise FormatError(f"{where}: sym on a packet that is not IPv4")
    out = bytearray(raw)
    base = len(p.header)
    for key, value in step.sym.items():
        if key == "quote":
            seq = value.get("seq") if isinstance(value, dict) else None
            at = base + 8 + QUOTED_SEQ
            if seq is not None and at + 4 <= len(out):
                struct.pack_into(">I", out, at, numbers.isn(*triple(seq, "isn", where)))
            continue
        if p.tcp is None:
            raise FormatError(f"{where}: sym {key!r} on a packet that is not TCP")
        if key == "ack":
            struct.pack_into(">I", out, base + 8, numbers.isn(*triple(value, "isn", where)))
        elif key == "tsecr":
            ts = p.tcp.ts_offset
            if ts is None:
                raise FormatError(f"{where}: sym has tsecr, but the packet has no timestamp option")
            struct.pack_into(">I", out, base + 20 + ts + 4, numbers.tsval(*triple(value, "tsval", where)))
        elif key == "sack":
            _rewrite_sack(out, base, p.tcp, value, numbers, where)
        elif key != "ipid":
            raise FormatError(f"{where}: unknown sym {key!r} of an injected packet")
    wire.fix_checksums(out, raw)
    return bytes(out)
