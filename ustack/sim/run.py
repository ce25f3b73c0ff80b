"""One simulation: what its seed decides, how it runs, and what must hold at its end.

Held: no connection hangs; an end that finished politely against a polite peer saw the whole stream and its end, without an error; nobody
read a byte that was not sent; after TIME_WAIT every pool of both stacks is empty. Two runs of one seed send the same packets at the same times.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from ustack.clock import VirtualClock
from ustack.links.impair import ImpairedLink
from ustack.links.memory import MemoryLink
from ustack.sim.peer import Mismatch, Peer, stream
from ustack.stack import Stack

SECOND = 1_000_000_000
LIMIT = 3600 * SECOND           # virtual time after which a connection counts as stuck
DRAIN = 1200 * SECOND           # for orphans, TIME_WAIT and held Fast Open slots


@dataclass
class Outcome:
    """What one seed did. fault: None, or what was wrong."""

    seed: int
    fault: str | None
    virtual_s: float
    packets: int
    digest: str
    peers: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What a seed decides."""

    impair: dict[str, Any]
    mtu: int
    sysctls: dict[str, Any]
    connections: int

    @property
    def lossy(self) -> bool:
        return bool(self.impair.get("loss") or self.impair.get("corrupt"))


def _plan(rng: random.Random) -> Plan:
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
                         ("tcp_frto", [2, 0]), ("tcp_ecn", [2, 1]), ("tcp_mtu_probing", [0, 0, 1]), ("tcp_syncookies", [1, 1, 2]),
                         ("tcp_congestion_control", ["cubic", "cubic", "reno", "bbr"])):
        sysctls[f"net.ipv4.{name}"] = rng.choice(values)
    if any(impair.get(k) for k in ("loss", "corrupt", "reorder", "duplicate", "jitter")):
        # A cookie is not retransmitted, and a segment that overtakes its ACK draws a reset: so Linux too (facts F12, F3).
        sysctls["net.ipv4.tcp_syncookies"] = min(int(sysctls["net.ipv4.tcp_syncookies"]), 1)
    return Plan(impair, rng.choice([1500, 1500, 576, 9000, 68 + 512]), sysctls, rng.choice([1, 1, 2, 4]))


def run(seed: int) -> Outcome:
    """Run one seed to its end."""
    rng = random.Random(seed)
    plan = _plan(rng)
    clock = VirtualClock()
    left, right = MemoryLink.pair()
    wire = ImpairedLink(left, seed=seed & 0x7FFFFFFF, **plan.impair) if plan.impair else left
    digest = hashlib.sha256()
    fault: str | None = None
    peers: list[Peer] = []
    with (
        Stack(wire, "192.0.2.1/24", clock=clock, seed=seed * 2 + 1, mtu=plan.mtu, sysctl=plan.sysctls) as a,
        Stack(right, "192.0.2.2/24", clock=clock, seed=seed * 2 + 2, mtu=plan.mtu, sysctl=plan.sysctls) as b,
    ):
        try:
            peers = _run(rng, plan, clock, a, b)
        except Mismatch as exc:
            fault = str(exc)
        fault = fault or _judge(peers, plan.lossy)
        if fault is None:
            clock.advance(clock.now + DRAIN)
            left_over = {name: {k: v for k, v in s.pools().items() if v} for name, s in (("a", a), ("b", b))}
            if any(left_over.values()):
                fault = f"not given back: {left_over}"
        packets = a.nstat().get("TcpOutSegs", 0) + b.nstat().get("TcpOutSegs", 0)
        digest.update(repr((sorted(a.nstat().items()), sorted(b.nstat().items()), clock.now)).encode())
    return Outcome(seed, fault, clock.now / SECOND, packets, digest.hexdigest(), [repr(p) for p in peers])


def _run(rng: random.Random, plan: Plan, clock: VirtualClock, a: Stack, b: Stack) -> list[Peer]:
    """Open the connections, let the applications work, until all are done or nothing moves any more."""
    listener = b.create_server(("192.0.2.2", 80), backlog=16)
    listener.setblocking(False)
    peers: list[Peer] = []
    waiting: dict[int, tuple[random.Random, bytes, bytes]] = {}
    for n in range(plan.connections):
        up = stream(rng.getrandbits(32), rng.choice([0, 1, 1000, 20000, 150000]))
        down = stream(rng.getrandbits(32), rng.choice([0, 1, 1000, 20000, 150000]))
        sock = a.socket()
        sock.bind(("192.0.2.1", 10000 + n))
        peer = Peer(f"client {n}", sock, clock, random.Random(rng.getrandbits(32)), up, down, plan.lossy, plan.mtu)
        peers.append(peer)
        waiting[10000 + n] = (random.Random(rng.getrandbits(32)), down, up)
        try:
            sock.connect(("192.0.2.2", 80))
            peer.connected = True
        except BlockingIOError:
            pass
    while True:
        moved = _accept(listener, clock, peers, waiting, plan)
        for peer in peers:
            moved = peer.step() or moved
        if moved:
            continue
        if all(p.done for p in peers) and clock.now > 0 and not _more_may_come(waiting, peers):
            break
        if clock.now > LIMIT or not _wait(clock, peers):
            break
    listener.close()
    for peer in peers:
        peer.sock.close()
    return peers


def _accept(listener: object, clock: VirtualClock, peers: list[Peer], waiting: dict[int, tuple[random.Random, bytes, bytes]],
            plan: Plan) -> bool:
    try:
        conn, (_, port) = listener.accept()  # type: ignore[attr-defined]
    except BlockingIOError:
        return False
    if port not in waiting:             # a duplicate of a cookie's ACK after the connection is over makes a new one, as on Linux (facts F11)
        conn.close()
        return True
    rng, out, expected = waiting.pop(port)
    peer = Peer(f"server {port - 10000}", conn, clock, rng, out, expected, plan.lossy, plan.mtu)
    peer.connected = True
    peers.append(peer)
    return True


def _more_may_come(waiting: dict[int, tuple[random.Random, bytes, bytes]], peers: list[Peer]) -> bool:
    """A client that is done may still have a connection on its way into the accept queue, unless it never got through."""
    return any(p.error is None and 10000 + int(p.name.split()[1]) in waiting for p in peers if p.name.startswith("client"))


def _wait(clock: VirtualClock, peers: list[Peer]) -> bool:
    """Jump to the next timer, packet or end of a pause. False if there is none."""
    pauses = [p.wake for p in peers if not p.done and p.wake > clock.now]
    due = clock.next_timeout()
    if pauses and (due is None or min(pauses) <= due):
        clock.advance(min(pauses))
        return True
    return clock.step()


def _judge(peers: list[Peer], lossy: bool) -> str | None:
    """What is wrong with how the ends ended, or None."""
    ends: dict[str, list[Peer]] = {}
    for peer in peers:
        ends.setdefault(peer.name.split()[1], []).append(peer)
    for pair in ends.values():
        rude = any(p.rude for p in pair)
        for peer in pair:
            if not peer.done and not (rude and lossy):      # a reset may be lost, and who only reads never learns of it
                return f"stuck: {pair}"
            if rude:
                continue
            if peer.error is not None:
                return f"an error nobody caused: {pair}"
            if peer.got != len(peer.expected) or not peer.eof:
                return f"lost bytes: {pair}"
    return None
