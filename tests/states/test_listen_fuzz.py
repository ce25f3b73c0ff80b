"""Listeners under anything: segments, calls, settings and time at random, with pools that run out.

After every step the counters of half-open requests and the accept queues agree with what the tables hold; that nothing is left
behind at the end is checked for every test (tests/kit/leaks.py).
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, IPOption, Raw

from tests.kit.testbed import PEER, SERVER, timestamp
from ustack import Stack, VirtualClock, _fastpath

PORTS = (80, 81)
SYSCTL = {
    "tcp_syncookies": (0, 1, 2),
    "tcp_abort_on_overflow": (0, 1),
    "tcp_migrate_req": (0, 1),
    "tcp_fastopen": (0, 3, 0x203, 0x403),
    "tcp_synack_retries": (0, 1, 5),
    "tcp_max_syn_backlog": (2, 8, 2048),
    "tcp_timestamps": (0, 1, 2),
    "tcp_reflect_tos": (0, 1),
    "tcp_max_tw_buckets": (0, 2, 1000),
    "tcp_rfc1337": (0, 1),
}
# TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_SAVE_SYN, TCP_SYNCNT, SO_RCVBUF
SOCKOPTS = ((6, 9, (0, 1, 30)), (6, 23, (0, 1, 5)), (6, 27, (0, 1)), (6, 7, (1, 3)), (1, 8, (2000, 300000)))
OPTIONS: tuple[Any, ...] = (
    [("MSS", 1460)],
    [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1000, 0)), ("NOP", None), ("WScale", 7)],
    [("MSS", 536), (34, b"")],
    [("MSS", 1460), (34, bytes.fromhex("0011223344556677"))],
    [("Timestamp", (900, 5))],
    [],
)
ROUTES: tuple[Any, ...] = ([], [], [], [IPOption(b"\x07\x0b\x04" + bytes(9))])


class Chaos:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = VirtualClock(wall=1_700_000_000_000_000_000)
        limits = {"requests": 40, "sockets": 30, "time_wait": 4, "extensions": 12, "listeners": 5}
        self.stack = Stack(None, SERVER + "/24", clock=self.clock, seed=seed, limits=limits)
        for name, values in SYSCTL.items():
            self.stack.sysctl[f"net.ipv4.{name}"] = self.rng.choice(values)
        self.listeners: list[Any] = []
        self.conns: list[Any] = []
        self.seen: list[Any] = []  # packets of the stack: where numbers that may fit come from

    def add_listener(self) -> None:
        rng = self.rng
        with contextlib.suppress(OSError):
            s = self.stack.socket()
            s.setsockopt(1, 2, rng.randrange(2))
            s.setsockopt(1, 15, rng.randrange(2))
            for level, name, values in SOCKOPTS:
                if rng.random() < 0.3:
                    s.setsockopt(level, name, rng.choice(values))
            s.bind((rng.choice(("0.0.0.0", SERVER)), rng.choice(PORTS)))
            s.listen(rng.choice((0, 1, 3, 20)))
            s.setblocking(False)
            self.listeners.append(s)

    def packet(self) -> None:
        rng = self.rng
        flags = rng.choice(
            ("S", "S", "S", "A", "A", "A", "PA", "FA", "R", "RA", "SA", "SF", "SEC", "F", "", "U")
        )
        seq, ack = 10000 + rng.choice((0, 0, 1, 1, 2, 6, -1, 65000, 70000)), 0
        port, sport = rng.choice(PORTS), rng.randrange(1000, 1012)
        if self.seen and rng.random() < 0.8:
            p = rng.choice(self.seen[-20:])[TCP]
            port, sport = p.sport, p.dport
            ack = p.seq + rng.choice((1, 1, 1, 1, 0, 2, 500))
            if rng.random() < 0.5:
                seq = p.ack
        options = rng.choice(OPTIONS)
        if self.seen and rng.random() < 0.4:  # what a peer would answer
            p = rng.choice(self.seen[-6:])[TCP]
            port, sport, seq = p.sport, p.dport, p.ack
            ack = p.seq + len(p.payload) + bool(p.flags.S) + bool(p.flags.F)
            flags = rng.choice(("A", "A", "PA", "FA"))
            stamp = timestamp(p.options)
            options = [("NOP", None), ("NOP", None), ("Timestamp", (2000, stamp[0]))] if stamp else []
        data = Raw(bytes(rng.choice((0, 0, 0, 5, 1400))))
        self.stack.inject(
            bytes(
                IP(src=PEER, dst=SERVER, tos=rng.choice((0, 2, 0x48)), options=rng.choice(ROUTES))
                / TCP(sport=sport, dport=port, flags=flags, seq=seq % 2**32, ack=ack % 2**32, options=options)
                / data
            )
        )

    def icmp(self) -> None:
        if self.seen:
            quote = bytes(self.rng.choice(self.seen[-20:]))[:28]
            kind, code = self.rng.choice(((3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)))
            self.stack.inject(bytes(IP(src="192.0.2.9", dst=SERVER) / ICMP(type=kind, code=code) / quote))

    def call(self) -> None:
        rng = self.rng
        with contextlib.suppress(OSError):
            if self.conns and rng.random() < 0.3:
                conn = self.conns.pop(rng.randrange(len(self.conns)))
                rng.choice((conn.close, lambda: conn.send(b"x" * 3000), lambda: conn.recv(4000)))()
                return
            if not self.listeners:
                return
            s = rng.choice(self.listeners)
            what = rng.randrange(8)
            if what == 0:
                self.listeners.remove(s)
                s.close()
            elif what == 1:
                s.shutdown(rng.randrange(3))
            elif what == 2:
                s.listen(rng.choice((0, 1, 3, 20)))
            else:
                conn = s.accept()[0]
                conn.setblocking(False)
                self.conns.append(conn)

    def step(self) -> None:
        rng = self.rng
        r = rng.random()
        if r < 0.75:
            self.packet()
        elif r < 0.77:
            self.icmp()
        elif r < 0.88:
            self.call()
        elif r < 0.90 or len(self.listeners) < 2:
            self.add_listener()
        elif r < 0.94:
            name = rng.choice(sorted(SYSCTL))
            self.stack.sysctl[f"net.ipv4.{name}"] = rng.choice(SYSCTL[name])
        else:
            self.clock.advance(
                self.clock.now + rng.choice((1, 10**6, 10**8, 4 * 10**8, 10**9, 5 * 10**9, 70 * 10**9))
            )
        self.seen += [p for p in (IP(packet) for _, packet in self.stack.take()) if TCP in p]
        del self.seen[:-50]
        self.check()

    def check(self) -> None:
        rows = _fastpath.dump(self.stack.engine)
        requests = [r for r in rows if r["kind"] == "req"]
        usage = _fastpath.pool_usage(self.stack.engine)
        assert usage["requests"] == len(requests)
        open_ = [r for r in requests if r["listener_open"]]
        listeners = [r for r in rows if r["kind"] == "listen"]
        assert sum(r["qlen"] for r in listeners) == len(open_)
        assert sum(r["young"] for r in listeners) == sum(r["num_timeout"] == 0 for r in open_)
        assert all(r["recvq"] >= 0 and r["fastopen_qlen"] >= 0 for r in listeners)
        current = self.stack.nstat(zeros=True)["TcpCurrEstab"]
        assert current == sum(r["kind"] == "sock" and r["state"] in (1, 8) for r in rows)
        flows = [
            (r["laddr"], r["lport"], r["faddr"], r["fport"])
            for r in rows
            if r["kind"] in ("req", "tw", "sock")
        ]
        assert len(flows) == len(set(flows)), "a 4-tuple is in the table twice"


@pytest.mark.parametrize("seed", range(5))
def test_chaos(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.add_listener()
    for _ in range(300):
        chaos.step()
    chaos.stack.close()
