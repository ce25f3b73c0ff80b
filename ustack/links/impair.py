"""ImpairedLink: any link with loss, delay, jitter, reordering, duplicates, damage or a rate limit.

    ImpairedLink(TunLink("ustack0"), loss=0.02, delay=0.005, reorder=0.05, duplicate=0.01, seed=1)

Stackable. In a threaded stack the engine thread does it without the GIL; in virtual time the clock does, and equal seeds give equal runs.
Impairments work on single packets: a device that could hand over merged segments is asked not to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ustack._fastpath import Impairment
from ustack.links.base import Link, Packets, Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from ustack._fastpath import Engine
    from ustack.clock import VirtualClock
    from ustack.stack import Stack


class ImpairedLink(Link):
    """link with impairments. Probabilities 0..1; times in seconds; rate in bits per second (0: no limit).

    delay     of every packet; jitter: plus or minus up to this, evenly spread (packets may overtake each other).
    reorder   share of packets that skip the delay, or, without a delay, are held back for `gap`.
    corrupt   share of packets in which one bit is flipped.
    limit     packets on their way in one direction; more are lost.
    direction "both", "in" (towards the stack) or "out".
    """

    def __init__(self, link: Link, *, loss: float = 0, delay: float = 0, jitter: float = 0, reorder: float = 0,
                 duplicate: float = 0, corrupt: float = 0, rate: float = 0, limit: int = 10000, seed: int = 0,
                 direction: str = "both", gap: float = 0.001) -> None:
        self.link = link
        self.mtu = link.mtu
        self.impairment = Impairment(
            loss=loss, delay=round(delay * 1e9), jitter=round(jitter * 1e9), reorder=reorder, duplicate=duplicate, corrupt=corrupt,
            rate=rate / 8, limit=limit, seed=seed, direction=direction, gap=round(gap * 1e9),
        )
        self._between: _Between | None = None

    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        port = self.link.open(stack, offload=False)
        port.stages.insert(0, self.impairment)
        return port

    def attach_manual(self, stack: Stack, driver: Packets) -> None:
        self._between = _Between(self.impairment, driver)
        self.link.attach_manual(stack, self._between)

    def close(self) -> None:
        self.link.close()
        if self._between is not None:
            self._between.close()
            self._between = None

    def after_fork(self) -> None:
        self.link.after_fork()

    def counters(self) -> dict[str, Any]:
        """Of both directions: packets, lost, duplicated, corrupted, reordered, overflow."""
        return self.impairment.counters()

    def __repr__(self) -> str:
        return f"ImpairedLink({self.link!r})"


class _Between:
    """Stands between a manual driver and the inner link, as a participant of the clock."""

    def __init__(self, impairment: Impairment, driver: Packets) -> None:
        self.engine: Engine = driver.engine
        self.clock: VirtualClock = driver.clock
        self._driver = driver
        self._impairment = impairment
        self._sink: Callable[[int, bytes], None] | None = None
        driver.set_sink(self._out)
        self.clock.attach(self)

    def _out(self, at: int, packet: bytes) -> None:
        self._impairment.push(True, packet, max(at, self.clock.now))

    def set_sink(self, sink: Callable[[int, bytes], None] | None) -> None:
        self._sink = sink

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        if at is not None:
            self.clock.advance(at)
        self._impairment.push(False, packet, self.clock.now, csum, gso_size)
        return 0

    def next_timeout(self) -> int | None:
        times = [t for t in (self._impairment.next(False), self._impairment.next(True)) if t is not None]
        return min(times, default=None)

    def fire(self) -> None:
        now = self.clock.now
        while (due := self._impairment.pop(True, now)) is not None:
            if self._sink is not None:
                self._sink(now, due[0])
        while (due := self._impairment.pop(False, now)) is not None:
            self._driver.inject(due[0], None, due[1], due[2])

    def close(self) -> None:
        self._driver.set_sink(None)
        self.clock.detach(self)
