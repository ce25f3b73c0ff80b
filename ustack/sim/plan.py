"""What a seed decides about one simulation: the wire, the hosts, and what the applications may do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

SECOND = 1_000_000_000


@dataclass
class Plan:
    """impair: ImpairedLink's arguments. mtu: of both hosts. narrow: (virtual ns, MTU) of the router on the way; silent: it sends no ICMP.
    fastopen: TCP Fast Open at both ends. urgent: urgent data is sent (and read in line). facing: connections whose ends both connect().
    slow: who reads may pause for half a minute."""

    impair: dict[str, Any]
    mtu: int
    sysctls: dict[str, Any]
    connections: int
    facing: int
    narrow: list[tuple[int, int]]
    silent: bool
    fastopen: bool
    urgent: bool
    slow: bool

    @property
    def lossy(self) -> bool:
        return bool(self.impair.get("loss") or self.impair.get("corrupt"))

    @property
    def orphans_may_die(self) -> bool:
        """A socket that is closed with data under way is given up after a few retransmissions without an answer that helps (facts J6)."""
        return self.lossy or self.slow or bool(self.narrow)

    @property
    def resets_may_miss(self) -> bool:
        """A reset counts only with the next sequence number expected (RFC 5961): it may be lost, or come before what it follows, and the
        challenge that answers it may be held back by its rate limit (facts K5). Who then only reads never learns that the other end is gone."""
        return self.lossy or bool(self.impair.get("jitter") or self.impair.get("reorder") or self.narrow)


def draw(rng: random.Random) -> Plan:
    impair: dict[str, Any] = {}
    if rng.random() < 0.8:
        impair["delay"] = rng.choice([0.0, 0.0002, 0.005, 0.05, 0.3])
        impair["loss"] = rng.choice([0, 0, 0.01, 0.05, 0.08])
        impair["reorder"] = rng.choice([0, 0, 0.05, 0.3])
        impair["duplicate"] = rng.choice([0, 0, 0.02, 0.2])
        # Together at most one packet in ten: beyond that Linux too gives connections up, its RTO doubled to 120 s by ambiguous samples.
        impair["corrupt"] = rng.choice([0, 0, 0.01, 0.02])
        impair["jitter"] = rng.choice([0, 0, impair["delay"] / 2])
        impair["rate"] = rng.choice([0, 0, 0, 1e6, 1e8])
    sysctls: dict[str, Any] = {}
    for name, values in (("tcp_sack", [1, 1, 0]), ("tcp_timestamps", [1, 1, 0]), ("tcp_window_scaling", [1, 1, 0]),
                         ("tcp_dsack", [1, 0]), ("tcp_recovery", [1, 1, 0]), ("tcp_early_retrans", [3, 3, 0]),
                         ("tcp_frto", [2, 0]), ("tcp_ecn", [2, 1]), ("tcp_mtu_probing", [0, 0, 1, 2]), ("tcp_syncookies", [1, 1, 2]),
                         ("tcp_congestion_control", ["cubic", "cubic", "reno", "bbr"]), ("tcp_autocorking", [1, 0]),
                         ("tcp_slow_start_after_idle", [1, 0]), ("tcp_moderate_rcvbuf", [1, 0])):
        sysctls[f"net.ipv4.{name}"] = rng.choice(values)
    if any(impair.get(k) for k in ("loss", "corrupt", "reorder", "duplicate", "jitter")):
        # A cookie is not retransmitted, and a segment that overtakes its ACK draws a reset: so Linux too (facts F12, F3).
        sysctls["net.ipv4.tcp_syncookies"] = min(int(sysctls["net.ipv4.tcp_syncookies"]), 1)
    if impair.get("loss") or impair.get("corrupt"):
        # The patience of the default is counted from the first loss of an episode, which slow progress may not end in 15 minutes.
        sysctls["net.ipv4.tcp_retries2"] = 30
    mtu = rng.choice([1500, 1500, 576, 9000, 68 + 512])
    narrow, silent = _narrow(rng, mtu, sysctls)
    fastopen = rng.random() < 0.25
    if fastopen:
        sysctls["net.ipv4.tcp_fastopen"] = 3
    connections = rng.choice([1, 1, 2, 4])
    # Linux scales the window of the SYN-ACK that ends a simultaneous open: with large segments the first flight overruns the real one.
    facing = rng.choice([0, 0, 0, 1]) if mtu <= 1500 else 0
    return Plan(impair, mtu, sysctls, connections, facing, narrow, silent, fastopen, urgent=rng.random() < 0.2, slow=rng.random() < 0.3)


def _narrow(rng: random.Random, mtu: int, sysctls: dict[str, Any]) -> tuple[list[tuple[int, int]], bool]:
    """A router with a smaller MTU; one that keeps silent about it only where the hosts probe for it."""
    if mtu < 1500 or rng.random() < 0.8:
        return [], False
    steps = sorted((rng.choice([0, SECOND // 100, SECOND, 20 * SECOND]), rng.choice([1492, 1300, 1100])) for _ in range(rng.choice([1, 2])))
    return steps, sysctls["net.ipv4.tcp_mtu_probing"] != 0 and rng.random() < 0.3
