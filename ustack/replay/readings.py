"""Readings of TCP_INFO, and the timers that fired just before or fire just after one.

A paced packet leaves by a timer of microseconds. The kernel's is late by what its machine needs to wake up, the stack's is exact, so a
reading next to such a moment may show the state on the other side of it. A reading agrees if the state at its time does, or the state
before a timer that fired within SLACK before it, or the state after a timer that fires within SLACK after it with nothing in between.

A scenario may say by how much a field may differ (`tolerance`), where its value rests on measured times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..observe import tcp_info
from .recording import Scenario, TcpInfoStep
from .table import fields_fault

SLACK = 2_000_000
Fault = tuple[str, str, str]


@dataclass
class Open:
    """A reading that differed and may yet be explained by a timer."""

    step: TcpInfoStep
    fault: Fault


class Readings:
    """`read(sock)` gives the present TCP_INFO of a socket by name, b"" if there is none."""

    def __init__(self, scenario: Scenario, read: Callable[[str], bytes]) -> None:
        self.tolerance = scenario.tolerance
        self.read = read
        self.steps = [s for s in scenario.timed_steps() if isinstance(s, TcpInfoStep)]
        self.times = [s.at for s in self.steps]
        self.before: dict[str, list[tuple[int, bytes]]] = {}
        self.open: list[Open] = []
        self.seen: list[tuple[TcpInfoStep, dict[str, int]]] = []

    def fires(self, at: int) -> None:
        """A timer is about to fire: keep the state for the readings that follow soon."""
        for s in self.steps[bisect_left(self.times, at):bisect_right(self.times, at + SLACK)]:
            kept = [k for k in self.before.get(s.sock, []) if k[0] + SLACK >= at]
            self.before[s.sock] = [*kept, (at, self.read(s.sock))]

    def fired(self, at: int) -> None:
        """It has fired: readings just before it may have been meant to show this."""
        self.open = [o for o in self.open if o.step.at + SLACK < at or self._fault(o.step.fields, self.read(o.step.sock))]

    def compare(self, step: TcpInfoStep, raw: bytes) -> None:
        """A reading; a fault is held until `settled` gives it."""
        self.seen.append((step, tcp_info.decode(raw)))
        fault = self._fault(step.fields, raw)
        if fault is None:
            return
        near = [r for at, r in self.before.get(step.sock, []) if at + SLACK >= step.at]
        if not any(r and self._fault(step.fields, r) is None for r in near):
            self.open.append(Open(step, fault))

    def settled(self) -> list[Open]:
        """The faults that nothing explains, when something else than a timer comes next."""
        out, self.open = self.open, []
        return out

    def _fault(self, want: Mapping[str, int], raw: bytes) -> Fault | None:
        return fields_fault(want, tcp_info.decode(raw), self.tolerance)
