"""What a recording says about the random numbers of each packet (`sym`), worked out while the kernel answers.

One `Symbols` per scenario. Emitted packets of a 4-tuple refer to the SYN or SYN-ACK that defined its initial
sequence number; a reset whose number is the acknowledgement of an injected packet refers to that packet;
TSvals refer to the first of their initial sequence number's packets. Injected packets say which of their
numbers were taken from packets of the kernel (`Place`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..replay import packet as wire
from ..replay.symbols import signed

Key = tuple[str, int, str, int]
NEAR = 1 << 24
ANOTHER_CLOCK = 1 << 24     # a TSval so far from the last one has another base


def key_of(p: wire.Packet, injected: bool) -> Key:
    assert p.tcp is not None
    return (p.src, p.tcp.sport, p.dst, p.tcp.dport) if injected else (p.dst, p.tcp.dport, p.src, p.tcp.sport)


@dataclass
class Known:
    """What is known of one 4-tuple."""

    isns: list[tuple[int, int]] = field(default_factory=list)
    tsvals: list[tuple[int, int]] = field(default_factory=list)
    acks: list[tuple[int, int]] = field(default_factory=list)

    def isn(self, seq: int) -> tuple[int, int] | None:
        """(packet, offset) of a sequence number: the latest initial number that is near."""
        for p, isn in reversed(self.isns):
            if abs(signed(seq - isn)) < NEAR:
                return p, signed(seq - isn)
        return None


class Symbols:
    def __init__(self) -> None:
        self.flows: dict[Key, Known] = {}

    def known(self, key: Key) -> Known:
        return self.flows.setdefault(key, Known())

    def injected(self, p: int, packet: wire.Packet) -> None:
        if packet.tcp:
            self.known(key_of(packet, True)).acks.append((p, packet.tcp.ack))

    def emitted(self, p: int, packet: wire.Packet) -> dict[str, Any]:
        """`sym` of a packet of the kernel."""
        sym: dict[str, Any] = {"ipid": "nz" if packet.ident else 0}
        if packet.tcp is None:
            return sym
        known, t = self.known(key_of(packet, False)), packet.tcp
        self._seq(p, t, known, sym)
        if t.tsval is not None:
            if known.tsvals:
                base, value = known.tsvals[-1]
                delta = signed(t.tsval - value)
                sym["tsval"] = "new" if abs(delta) > ANOTHER_CLOCK else ["tsval", base, delta]
            else:
                sym["tsval"] = "new"
            if not known.tsvals or t.flags & wire.SYN or sym["tsval"] == "new":
                known.tsvals.append((p, t.tsval))
        return sym

    @staticmethod
    def _seq(p: int, t: wire.Tcp, known: Known, sym: dict[str, Any]) -> None:
        if t.flags & wire.SYN:
            again = next((q for q, isn in known.isns if isn == t.seq), None)
            if again is not None:
                sym["seq"] = ["isn", again, 0]
                return
            sym["seq"] = "new"
            if known.isns:
                q, isn = known.isns[-1]
                sym["isn_delta"] = [q, signed(t.seq - isn)]
            known.isns.append((p, t.seq))
            return
        bare = t.flags & wire.RST and not t.flags & wire.ACK
        from_ack = next((q for q, ack in reversed(known.acks) if ack == t.seq), None) if bare else None
        if from_ack is not None:
            sym["seq"] = ["ack_of", from_ack]
            return
        near = known.isn(t.seq)
        if near is not None and not (t.flags & wire.RST and t.seq == 0):
            sym["seq"] = ["isn", *near]
