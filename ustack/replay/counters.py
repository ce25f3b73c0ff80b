"""Counters between the marks of a recording.

A mark holds what each counter grew by since the mark before. The stack's counters must show the same sums,
with one allowance: a timer that the stack has fired may, in the kernel, have fired only after the mark
(timers are late, never early). What such a doubtful timer changed may be missing from the recorded sum, and
nothing else may. Sums are kept from the beginning, so the next mark, when the timer is beyond doubt, is
exact again: adjacent marks are compared by their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..observe.nstat import difference
from .recording import CountersStep
from .timing import lateness

LEFT_OUT = frozenset({
    "IpInReceives", "IpInDelivers", "IpOutRequests", "IpOutTransmits", "IpExtInOctets", "IpExtOutOctets",
    "IpExtInNoECTPkts",
})
"""Not in recordings: IP's own totals of packets and octets."""


class Counters:
    """The running comparison of one scenario."""

    def __init__(self, read: Callable[[], Mapping[str, int]], ignore: frozenset[str] = frozenset()) -> None:
        self._read = read
        self._ignore = LEFT_OUT | ignore
        self._base = dict(read())
        self._recorded: dict[str, int] = {}
        self._doubtful: list[tuple[int, dict[str, int]]] = []

    def now(self) -> dict[str, int]:
        """What has changed since the beginning."""
        return difference(self._read(), self._base)

    def fired(self, at: int, before: Mapping[str, int]) -> None:
        """A timer fired at `at`; `before` is `now()` from just before."""
        self._doubtful.append((at, difference(self.now(), before)))

    def mark(self, step: CountersStep) -> list[tuple[str, int, int]]:
        """(name, expected growth, growth) of every counter that differs at this mark."""
        at = step.at
        self._doubtful = [(f, d) for f, d in self._doubtful if f + lateness(0, f) >= at]
        previous = dict(self._recorded)
        for name, delta in step.delta.items():
            self._recorded[name] = self._recorded.get(name, 0) + delta
        have = self.now()
        faults = []
        for name in sorted(have.keys() | self._recorded.keys()):
            if name in self._ignore:
                continue
            value, want = have.get(name, 0), self._recorded.get(name, 0)
            changes = [d[name] for _, d in self._doubtful if name in d]
            low = value - sum(c for c in changes if c > 0)
            high = value - sum(c for c in changes if c < 0)
            if not low <= want <= high:
                before = previous.get(name, 0)
                faults.append((name, want - before, value - before))
                self._recorded[name] = value
        return faults
