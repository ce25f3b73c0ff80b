"""Two engines and a bad path between them, in virtual time: the sender and the receiver talk to each other.

The path delays, loses, duplicates, reorders and corrupts, all from one seed. A super-segment is cut by the sending
engine; now and then a run of packets is merged into one large packet for the receiver, as a device with offload does.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Any

from ustack._fastpath import Engine

MS = 1_000_000
ADDR = ("192.0.2.1", "192.0.2.2")
BLOCKED = (BlockingIOError,)


@dataclass
class Path:
    """What happens to packets, the same both ways; probabilities per packet."""

    delay: int = 5 * MS
    jitter: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    mtu: int = 1500


class Pair:
    """Engines A and B; `run` moves time until a condition holds."""

    def __init__(self, seed: int, path: Path | None = None, sysctl: dict[str, Any] | None = None, lazy_timers: bool = False) -> None:
        self.rng = random.Random(seed)
        self.path = path or Path()
        self.now = 0
        self.engines = tuple(
            Engine(a + "/24", seed=seed + i, mtu=self.path.mtu, sysctl=sysctl, lazy_timers=lazy_timers) for i, a in enumerate(ADDR)
        )
        self.wire: list[tuple[int, int, int, bytes]] = []
        self.order = 0
        self.sent = 0

    def _put(self, to: int, packet: bytes) -> None:
        p, rng = self.path, self.rng
        self.sent += 1
        copies = 2 if rng.random() < p.duplicate else 1
        for _ in range(copies):
            if rng.random() < p.loss:
                continue
            data = packet
            if rng.random() < p.corrupt:
                at = rng.randrange(len(packet))
                data = packet[:at] + bytes([packet[at] ^ (1 << rng.randrange(8))]) + packet[at + 1 :]
            self.order += 1
            heapq.heappush(self.wire, (self.now + p.delay + rng.randint(0, p.jitter), self.order, to, data))

    def flush(self) -> None:
        """Put on the path what the engines have to send."""
        for i, engine in enumerate(self.engines):
            for _, packet in engine.transmit():
                self._put(1 - i, packet)

    def step(self) -> bool:
        """The next thing that happens; False if nothing ever will."""
        self.flush()
        times = [t for t in (e.next_timeout() for e in self.engines) if t is not None]
        if self.wire:
            times.append(self.wire[0][0])
        if not times:
            return False
        self.now = max(self.now, min(times))
        while self.wire and self.wire[0][0] <= self.now:
            _, _, to, packet = heapq.heappop(self.wire)
            self.engines[to].receive(packet, self.now)
        for engine in self.engines:
            engine.poll(self.now)
        self.flush()
        return True

    def run(self, until: int, done: Any = None) -> bool:
        """Move on until done() or the time; True if done."""
        while self.now < until:
            if done is not None and done():
                return True
            if not self.step():
                return bool(done is None or done())
        return bool(done is not None and done())

    def connect(self, backlog: int = 5, limit: int = 60_000 * MS) -> tuple[int, int]:
        """A connection from A to B's listener; (handle on A, handle on B)."""
        a, b = self.engines
        listener = b.socket()
        b.bind(listener, ADDR[1], 80)
        b.listen(listener, backlog)
        client = a.socket()
        try:
            a.connect(client, ADDR[1], 80)
        except BlockingIOError:
            pass
        got: list[int] = []

        def accepted() -> bool:
            try:
                got.append(b.accept(listener)[0])
            except BlockingIOError:
                return False
            return True

        assert self.run(limit, accepted), "no connection"
        b.close(listener)
        return client, got[0]


class Stream:
    """One direction of a connection: random writes, random reads, compared byte by byte."""

    def __init__(self, pair: Pair, src: tuple[int, int], dst: tuple[int, int], size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tx, self.tx_handle = pair.engines[src[0]], src[1]
        self.rx, self.rx_handle = pair.engines[dst[0]], dst[1]
        self.data = self.rng.randbytes(size)
        self.at = 0
        self.got = 0
        self.closed = False
        self.eof = False

    def write(self) -> None:
        while self.at < len(self.data):
            n = self.rng.choice((1, 10, 100, 1448, 5000, 40000, 200000))
            flags = self.rng.choice((0, 0, 0, 0x8000, 0x80))
            if self.at + n >= len(self.data):
                flags &= ~0x8000
            try:
                self.at += self.tx.send(self.tx_handle, self.data[self.at : self.at + n], flags)
            except BlockingIOError:
                return
            if self.rng.random() < 0.1:
                return
        if not self.closed:
            self.closed = True
            self.tx.shutdown(self.tx_handle, 1)

    def read(self) -> None:
        while not self.eof:
            n = self.rng.choice((1, 100, 5000, 100000))
            try:
                got = self.rx.recv(self.rx_handle, n)
            except BlockingIOError:
                return
            if not got:
                assert self.got == len(self.data), (self.got, len(self.data))
                self.eof = True
                return
            assert got == self.data[self.got : self.got + len(got)], f"wrong bytes at {self.got}"
            self.got += len(got)
            if self.rng.random() < 0.2:
                return
