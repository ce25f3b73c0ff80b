"""A gigabyte each way at once over a path that loses, reorders, duplicates and corrupts: the digests are equal.

Two bare engines and the compiled impairment, one loop over packets and timers: virtual time passes as fast as the machine can go.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from ustack._fastpath import Engine, Impairment

ADDR = ("192.0.2.1", "192.0.2.2")
MS = 1_000_000
CHUNK = 1 << 18
BLOCK = random.Random(7).randbytes((1 << 22) + 12345)       # what is sent, over and over, each way from another place


class End:
    """One end: sends `size` bytes, reads all that comes, keeps a digest of both."""

    def __init__(self, engine: Engine, handle: int, size: int, at: int) -> None:
        self.engine = engine
        self.handle = handle
        self.left = size
        self.at = at
        self.sent = hashlib.sha256()
        self.got = hashlib.sha256()
        self.n_got = 0
        self.eof = False
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)

    def step(self) -> None:
        try:
            while self.left:
                piece = memoryview(BLOCK)[self.at : self.at + min(self.left, CHUNK)]
                n = self.engine.send(self.handle, piece)
                self.sent.update(piece[:n])
                self.at = (self.at + n) % len(BLOCK)
                self.left -= n
                if not self.left:
                    self.engine.shutdown(self.handle, 1)
        except BlockingIOError:
            pass
        try:
            while not self.eof:
                n = self.engine.recv_into(self.handle, self.buffer)
                self.got.update(self.view[:n])
                self.n_got += n
                self.eof = n == 0
        except BlockingIOError:
            pass


def connect(a: Engine, b: Engine) -> tuple[int, int]:
    """Before the path turns bad."""
    listener = b.socket()
    b.bind(listener, ADDR[1], 80)
    b.listen(listener, 1)
    client = a.socket()
    with pytest.raises(BlockingIOError):
        a.connect(client, ADDR[1], 80)
    for src, dst in ((a, b), (b, a), (a, b)):
        for _, packet in src.transmit():
            dst.receive(packet, 0)
    server = b.accept(listener)[0]
    b.close(listener)
    return client, server


def transfer(size: int, mtu: int, seed: int, **bad: Any) -> tuple[list[End], int, dict[str, int]]:
    """Both ends at their end, the virtual ns it took, the counters of both added up."""
    sysctl = {"net.ipv4.tcp_congestion_control": "bbr"}
    engines = [Engine(f"{addr}/24", seed=seed + i, mtu=mtu, sysctl=sysctl) for i, addr in enumerate(ADDR)]
    ends = [End(engine, handle, size, 1000 * i) for i, (engine, handle) in enumerate(zip(engines, connect(*engines), strict=True))]
    path = Impairment(seed=seed, limit=1 << 20, **bad)
    now = 0
    while not all(end.eof and not end.left for end in ends):
        for i, end in enumerate(ends):
            end.step()
            for at, packet in end.engine.transmit():
                path.push(i == 0, packet, max(at, now))
        times = [t for t in (path.next(True), path.next(False), *(e.next_timeout() for e in engines)) if t is not None]
        now = max(now, min(times))
        for i, engine in enumerate(engines):
            while (due := path.pop(i == 1, now)) is not None:
                engine.receive(due[0], now, due[1], due[2])
            engine.poll(now)
    total: dict[str, int] = {}
    for engine in engines:
        for name, n in engine.nstat().items():
            total[name] = total.get(name, 0) + n
    for end in ends:
        end.engine.close(end.handle)
    return ends, now, total


BAD = {"loss": 0.05, "delay": 2 * MS, "jitter": MS // 2, "reorder": 0.02, "duplicate": 0.02, "corrupt": 0.01}


def check(size: int, mtu: int, seed: int) -> None:
    ends, ns, total = transfer(size, mtu, seed, **BAD)
    a, b = ends
    assert a.n_got == b.n_got == size
    assert a.sent.digest() == b.got.digest() and b.sent.digest() == a.got.digest()
    assert a.sent.digest() != b.sent.digest()
    assert total["TcpRetransSegs"] > 0 and total["TcpInCsumErrors"] > 0 and total["TcpExtTCPOFOQueue"] > 0
    print(f"{size} bytes each way in {ns / 1e9:.0f} s of virtual time, {total['TcpOutSegs']} segments, {total['TcpRetransSegs']} retransmitted, "
          f"{total['TcpInCsumErrors']} corrupt")


def test_eight_megabytes_each_way() -> None:
    check(8 << 20, 1500, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_gigabyte_each_way() -> None:
    check(1 << 30, 9000, 2)
