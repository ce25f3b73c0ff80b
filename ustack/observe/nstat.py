"""Counters as nstat shows them (iproute2 6.1): its lines, its history, differences of two readings.

The readings are dicts of MIB names as `/proc/net/snmp` and `/proc/net/netstat` spell them (prefix and name in
one word: TcpInSegs, TcpExtListenDrops). Some are levels or constants, not counters; nstat never shows those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

GAUGES = frozenset({"TcpCurrEstab", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn", "IpForwarding",
                    "IpDefaultTTL"})
HEADER = "#kernel"


def difference(new: Mapping[str, int], old: Mapping[str, int]) -> dict[str, int]:
    """What changed between two readings; names that did not change are left out."""
    names = new.keys() | old.keys()
    return {n: d for n in sorted(names) if (d := new.get(n, 0) - old.get(n, 0))}


def lines(values: Mapping[str, int], *, only: Iterable[str] = (), zeros: bool = False) -> list[str]:
    """nstat's lines: name, value, rate (0.0, nothing is averaged here)."""
    return [f"{name:<32}{value:<16d}{0.0:6.1f}" for name, value in chosen(values, only=only, zeros=zeros).items()]


def chosen(values: Mapping[str, int], *, only: Iterable[str] = (), zeros: bool = False) -> dict[str, int]:
    """Those that nstat shows: no levels, zeros on request, names that match one of the shell patterns (if there are any)."""
    patterns = list(only)
    return {name: value for name, value in values.items()
            if name not in GAUGES and (zeros or value) and (not patterns or any(fnmatchcase(name, p) for p in patterns))}


def parse_history(text: str) -> dict[str, int] | None:
    """What `HEADER` and `lines` wrote; None if it is something else."""
    head, *rest = text.splitlines() or [""]
    if head != HEADER:
        return None
    try:
        return {name: int(value) for name, value, _ in (line.split() for line in rest)}
    except ValueError:
        return None
