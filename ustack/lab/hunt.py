"""Random scenarios from a seed: the search for differences that no one thought of.

A family is a function from a random generator to the lines of one scenario (`script` says what they mean); family, seed and number name a
scenario for ever. Nothing here knows what the right answer is: the kernel does.

Invariant: what a family makes keeps clear of the moments that the kernel itself decides either way (two timers of one instant, a packet
within a few ms of a timer): waits are taken from lists, and `scripts/hunt` plays a scenario that differs again before it believes it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from .hunt_calls import group, ports, sockopts, write_sysctls
from .hunt_listen import cookies, fastopen, queues, request, syn
from .hunt_segments import closing, established, packets
from .hunt_words import Rng
from .scenario import Scenario

_FIN = re.compile(r": (fin\b|seg \w*F)")
_GUARDED = re.compile(r"\w+\.[a-z]+|\w+: icmp")

#: name: the section of the facts it belongs to, and the function
FAMILIES: dict[str, tuple[str, Callable[[Rng], tuple[dict[str, str], list[str]]]]] = {
    "syn": ("B", syn), "request": ("E", request), "queues": ("D", queues), "cookies": ("F", cookies), "closing": ("H", closing),
    "fastopen": ("I", fastopen), "established": ("J", established), "ports": ("A", ports), "group": ("A", group), "packets": ("N", packets),
    "sockopts": ("A", sockopts), "sysctls": ("M", write_sysctls),
}
KEYED = {"group": "which member of the group a client gets is a keyed hash"}


def _spaced(lines: list[str]) -> list[str]:
    """A wait behind each FIN: on a connection without data the kernel acknowledges it at its next tick, whenever that is."""
    out = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        out.append(line)
        if _FIN.search(line) and not after.startswith("wait"):
            out.append("wait 0.061")
    return out


def scenario(family: str, seed: int, number: int) -> Scenario:
    """The scenario of this name."""
    r = random.Random(f"{family} {seed} {number}")
    section, make = FAMILIES[family]
    sysctl, lines = make(r)
    lines = [f"? {line}" if _GUARDED.match(line) else line for line in _spaced(lines)]
    return Scenario(
        f"{family}-{seed}-{number}", section, [], f"random: {family}", "\n".join(lines), sysctl, varies=KEYED.get(family), file="random"
    )
