"""One simulation: what its seed decides, how it runs, and what must hold at its end.

Held: no connection hangs; an end that finished politely against a polite peer saw the whole stream and its end, without an error; nobody
read a byte that was not sent; after TIME_WAIT every pool of both stacks is empty. Two runs of one seed send the same packets at the same times.
"""

from __future__ import annotations

import hashlib
import random
import socket as std
from collections import Counter
from dataclasses import dataclass, field

from ustack.clock import VirtualClock
from ustack.links.base import Link
from ustack.links.impair import ImpairedLink
from ustack.links.memory import MemoryLink
from ustack.sim.peer import Mismatch, Peer, stream
from ustack.sim.plan import SECOND, Plan, draw
from ustack.sim.router import Router
from ustack.stack import Stack

LIMIT = 3600 * SECOND           # virtual time after which a connection counts as stuck
DRAIN = 1200 * SECOND           # for orphans, TIME_WAIT and held Fast Open slots


@dataclass
class Outcome:
    """What one seed did. fault: None, or what was wrong; counters: nstat of both stacks added up."""

    seed: int
    fault: str | None
    virtual_s: float
    packets: int
    digest: str
    peers: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)


def run(seed: int) -> Outcome:
    """Run one seed to its end."""
    rng = random.Random(seed)
    plan = draw(rng)
    clock = VirtualClock()
    left, right = MemoryLink.pair()
    wire: Link = Router(left, plan.narrow, plan.silent) if plan.narrow else left
    if plan.impair:
        wire = ImpairedLink(wire, seed=seed & 0x7FFFFFFF, **plan.impair)
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
        fault = fault or _judge(peers, plan.resets_may_miss)
        if fault is None:
            clock.advance(clock.now + DRAIN)
            left_over = {name: {k: v for k, v in s.pools().items() if v} for name, s in (("a", a), ("b", b))}
            if any(left_over.values()):
                fault = f"not given back: {left_over}"
        counters = Counter(a.nstat()) + Counter(b.nstat())
        digest.update(repr((sorted(a.nstat().items()), sorted(b.nstat().items()), clock.now)).encode())
    return Outcome(seed, fault, clock.now / SECOND, counters["TcpOutSegs"], digest.hexdigest(), [repr(p) for p in peers], counters)


def _run(rng: random.Random, plan: Plan, clock: VirtualClock, a: Stack, b: Stack) -> list[Peer]:
    """Open the connections, let the applications work, until all are done or nothing moves any more."""
    listener = b.create_server(("192.0.2.2", 80), backlog=16)
    listener.setblocking(False)
    if plan.fastopen:
        listener.setsockopt(std.IPPROTO_TCP, std.TCP_FASTOPEN, 16)
    peers: list[Peer] = []
    waiting: dict[int, tuple[random.Random, bytes, bytes]] = {}
    for n in range(plan.connections + plan.facing):
        up = stream(rng.getrandbits(32), rng.choice([0, 1, 1000, 20000, 150000]))
        down = stream(rng.getrandbits(32), rng.choice([0, 1, 1000, 20000, 150000]))
        client = Peer(f"client {n}", a.socket(), clock, random.Random(rng.getrandbits(32)), up, down, plan)
        server_rng = random.Random(rng.getrandbits(32))
        client.sock.bind(("192.0.2.1", 10000 + n))
        peers.append(client)
        if n < plan.connections:
            waiting[10000 + n] = (server_rng, down, up)
            client.begin(("192.0.2.2", 80), rng.choice([0, 0, 0, SECOND // 5, 4 * SECOND]))
        else:
            server = Peer(f"server {n}", b.socket(), clock, server_rng, down, up, plan)
            server.sock.bind(("192.0.2.2", 10000 + n))
            peers.append(server)
            client.begin(("192.0.2.2", 10000 + n), 0)
            server.begin(("192.0.2.1", 10000 + n), 0)
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
    peer = Peer(f"server {port - 10000}", conn, clock, rng, out, expected, plan)
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


def _judge(peers: list[Peer], resets_may_miss: bool) -> str | None:
    """What is wrong with how the ends ended, or None."""
    ends: dict[str, list[Peer]] = {}
    for peer in peers:
        ends.setdefault(peer.name.split()[1], []).append(peer)
    for pair in ends.values():
        rude = any(p.rude for p in pair)
        for peer in pair:
            if not peer.done and not (rude and resets_may_miss):
                return f"stuck: {pair}"
            if rude:
                continue
            if peer.error is not None:
                return f"an error nobody caused: {pair}"
            if peer.got != len(peer.expected) or not peer.eof:
                return f"lost bytes: {pair}"
    return None
