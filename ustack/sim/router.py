"""A router on the way whose MTU is smaller than the hosts' and changes: what does not fit is dropped, and the sender is told by ICMP
(fragmentation needed, RFC 1191), or not."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ustack.links.base import Link, Packets

if TYPE_CHECKING:
    from ustack._fastpath import Engine
    from ustack.clock import VirtualClock
    from ustack.stack import Stack

DF = 0x4000
OWN = bytes([192, 0, 2, 254])


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - ((total & 0xFFFF) + (total >> 16))


def too_big(packet: bytes, mtu: int) -> bytes:
    """The ICMP error for a packet."""
    quote = packet[: (packet[0] & 15) * 4 + 8]
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quote
    body = body[:2] + struct.pack("!H", _sum(body)) + body[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, 64, 1, 0) + OWN + packet[12:16]
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + body


class Router(Link):
    """link with a router behind it. steps: (virtual ns, MTU), in order."""

    def __init__(self, link: Link, steps: list[tuple[int, int]], silent: bool) -> None:
        self.link = link
        self.mtu = link.mtu
        self.refused = 0
        self._steps = steps
        self._silent = silent
        self._sink: Callable[[int, bytes], None] | None = None
        self._answers: deque[tuple[bool, bytes]] = deque()      # (to the stack, packet)

    def attach_manual(self, stack: Stack, driver: Packets) -> None:
        self.engine: Engine = driver.engine
        self.clock: VirtualClock = driver.clock
        self._driver = driver
        self.clock.attach(self)
        self.link.attach_manual(stack, self)

    def _refuses(self, packet: bytes, outward: bool) -> bool:
        mtu = next((mtu for at, mtu in reversed(self._steps) if at <= self.clock.now), 65535)
        if len(packet) <= mtu:
            return False
        assert int.from_bytes(packet[6:8], "big") & DF, "the simulated hosts never clear DF"
        self.refused += 1
        if not self._silent:
            self._answers.append((outward, too_big(packet, mtu)))
        return True

    def set_sink(self, sink: Callable[[int, bytes], None] | None) -> None:
        self._sink = sink
        self._driver.set_sink(None if sink is None else self._out)

    def _out(self, at: int, packet: bytes) -> None:
        if self._sink is not None and not self._refuses(packet, True):
            self._sink(at, packet)

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        return 0 if self._refuses(packet, False) else self._driver.inject(packet, at, csum, gso_size)

    def next_timeout(self) -> int | None:
        return self.clock.now if self._answers else None

    def fire(self) -> None:
        while self._answers:
            to_stack, packet = self._answers.popleft()
            if to_stack:
                self._driver.inject(packet)
            elif self._sink is not None:
                self._sink(self.clock.now, packet)

    def close(self) -> None:
        self.link.close()
        self.clock.detach(self)
