"""The clock of manual drivers: virtual time in integer nanoseconds, shared by every stack and link that attaches to it."""

from __future__ import annotations

from typing import Protocol


class Participant(Protocol):
    """Something that wants to run at times: a stack's driver, a link with delay."""

    def next_timeout(self) -> int | None: ...

    def fire(self) -> None:
        """Do what is due at clock.now."""
        ...


class VirtualClock:
    """Time that moves only when told to, and never goes back.

    now   nanoseconds since the beginning.
    wall  nanoseconds that now = 0 is on the wall clock: ISN, TSval and the cookie minute use now + wall.
    Participants run in the order of their deadlines, equal deadlines in the order of attaching, so a run is reproducible.
    """

    __slots__ = ("_participants", "now", "wall")

    def __init__(self, wall: int = 0) -> None:
        self.now = 0
        self.wall = wall
        self._participants: list[Participant] = []

    def attach(self, participant: Participant) -> None:
        self._participants.append(participant)

    def detach(self, participant: Participant) -> None:
        if participant in self._participants:
            self._participants.remove(participant)

    def next_timeout(self) -> int | None:
        """The earliest deadline of any participant, or None."""
        return min((t for t in (p.next_timeout() for p in self._participants) if t is not None), default=None)

    def step(self, limit: int | None = None) -> bool:
        """Jump to the next deadline, if there is one up to `limit`, and run its participant. False if there is none."""
        due: int | None = None
        first: Participant | None = None
        for participant in self._participants:
            t = participant.next_timeout()
            if t is not None and (due is None or t < due):
                due, first = t, participant
        if due is None or first is None or (limit is not None and due > limit):
            return False
        self.now = max(self.now, due)
        first.fire()
        return True

    def advance(self, until: int) -> None:
        """Run everything due up to and including `until` and leave the clock there."""
        if until < self.now:
            raise ValueError(f"time goes forward: {until} is before {self.now}")
        while self.step(until):
            pass
        self.now = until

    def __repr__(self) -> str:
        return f"VirtualClock(now={self.now}, wall={self.wall})"
