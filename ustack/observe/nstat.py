"""Counters as nstat shows them: differences of two readings, and its text.

The readings are dicts of MIB names as `/proc/net/snmp` and `/proc/net/netstat` spell them (prefix and name in
one word: TcpInSegs, TcpExtListenDrops). Some are levels or constants, not counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

GAUGES = frozenset({"TcpCurrEstab", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn", "IpForwarding",
                    "IpDefaultTTL"})


def difference(new: Mapping[str, int], old: Mapping[str, int]) -> dict[str, int]:
    """What changed between two readings; names that did not change are left out."""
    names = new.keys() | old.keys()
    return {n: d for n in sorted(names) if (d := new.get(n, 0) - old.get(n, 0))}


def lines(values: Mapping[str, int], *, only: Iterable[str] = (), zeros: bool = False) -> list[str]:
    """nstat's lines: `name`, value, rate (0.0, nothing is averaged here)."""
    wanted = set(only)
    return [f"{name:<32}{value:<15d} {0.0:.1f}" for name, value in values.items()
            if (zeros or value) and (not wanted or name in wanted)]
