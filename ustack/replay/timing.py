"""When an emitted packet or the end of a blocked call is in time.

The recording's kernel answers at once (measured: below 1 ms, a busy machine up to about 10 ms until the
reading thread has the packet), and its timers are late by up to 2 % of their length and 60 ms, never early.
The stack in virtual time answers in the same instant and fires its timers exactly. So there are two rules,
and which holds is known, since the replay sees whether a packet came out of a driving step or while only
the clock ran:

* came out of a driving step at s:            s - EARLY <= recorded <= s + LATENCY;
* came out while the clock ran, at s (timer): there is an earlier event of the same 4-tuple, at a in virtual
  time and at b in the recording, which may have armed the timer: with S = s - a and R = recorded - b, S -
  EARLY <= R <= S + max(2 % of S, one slot of the kernel's timer wheel for S) + 60 ms.

From outside it is not known which event armed the timer. Candidates are all packets of the 4-tuple so far:
an injected one has a = b; an emitted one that was itself late has b > a, so that lateness of a chain of
retransmissions adds up as it did in the kernel. The first candidate that fits decides, so the tolerance is
at most that of the longest possible timer. The lower bound stays sharp for every
candidate, because b >= a: no packet of the stack may come later than the kernel's (but by EARLY).

EARLY covers what is not lateness: an RTT that contains the lab's own latency may round to the next 4 ms
tick.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MS = 1_000_000
LATENCY = 15 * MS
EARLY = 6 * MS
TIMER_SLACK = 60 * MS


def granule(length: int) -> int:
    """How coarse the kernel's timer wheel is for a timer of this length: one slot of the level it falls into.

    A level holds 64 slots; level n is 8^n jiffies (4 ms) a slot and takes timers below 64 * 8^n jiffies (measured: 4 s fire up to 0.26 s
    late, 32 s up to 2.05 s)."""
    slot = 4 * MS
    while length >= 64 * slot:
        slot *= 8
    return slot


def latest(length: int) -> int:
    """The latest firing of a kernel timer of this length, counted from its arming."""
    return length + max(length // 50, granule(length)) + TIMER_SLACK


def lateness(since: int, fired: int) -> int:
    """How late the kernel's counterpart of a timer that fired at `fired` may be, armed at `since` or later: alone, or at the
    end of a chain in which each timer was twice as long as the one before."""
    whole = fired - since
    chain, part = 0, (whole + 1000 * MS) // 2
    while part > 4 * MS:
        chain += granule(part)
        part //= 2
    return max(whole // 50, granule(whole), chain) + TIMER_SLACK


@dataclass
class Events:
    """Events of one 4-tuple that may have armed a timer: (virtual time, recorded time)."""

    pairs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, virtual: int, recorded: int) -> None:
        self.pairs.append((virtual, recorded))

    def first(self) -> int:
        return self.pairs[0][0] if self.pairs else 0

    def drift(self) -> int:
        """The greatest lateness of the recording seen so far on this 4-tuple."""
        return max((b - a for a, b in self.pairs), default=0)


def immediate_fault(at: int, recorded: int) -> str | None:
    """Why an answer given at `at` does not fit the recorded time, or None."""
    if recorded < at - EARLY:
        return f"at {at / 1e9:.6f} s, which is later than recorded"
    if recorded > at + LATENCY:
        return f"at once at {at / 1e9:.6f} s, {(recorded - at) / 1e6:.1f} ms before the kernel did"
    return None


def timer_fault(at: int, recorded: int, events: Events) -> str | None:
    """Why a packet that a timer sent at `at` does not fit the recorded time, or None."""
    pairs = events.pairs or [(0, 0)]
    for a, b in reversed(pairs):
        length = at - a
        if length - EARLY <= recorded - b <= latest(length):
            return None
    how = "later than recorded" if recorded < at else "earlier than the recording's timers allow"
    return f"at {at / 1e9:.6f} s by a timer, which is {abs(recorded - at) / 1e6:.1f} ms {how}"


def may_fall_after(at: int, end: int, events: Events) -> bool:
    """Could the kernel have sent this timer's packet only after the recording ended?"""
    return at + lateness(events.first(), at) + events.drift() >= end


def still_unread(at: int, end: int) -> bool:
    """Could an answer given at `at` have been on its way to the lab's reading thread when the recording ended?"""
    return at + LATENCY >= end
