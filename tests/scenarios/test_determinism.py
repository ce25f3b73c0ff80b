"""The same scenario with the same seed is the same packets, byte for byte, at the same nanosecond; another seed is another stack."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from scapy.all import ICMP, IP, TCP, Raw

from ustack import Stack, VirtualClock

TOP = Path(__file__).resolve().parents[2]
SERVER, PEER = "192.0.2.1", "192.0.2.2"
MS = 1_000_000
SECOND = 1000 * MS
OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1000, 0)), ("NOP", None), ("WScale", 7)]

Packets = list[tuple[int, bytes]]


class Scenario:
    """Handshake, cookies, Fast Open cookies, data both ways with a loss, an active open, a reset, ICMP, time-outs."""

    def __init__(self, seed: int) -> None:
        self.clock = VirtualClock(wall=1_700_000_000 * SECOND)
        self.stack = Stack(None, f"{SERVER}/24", clock=self.clock, seed=seed, sysctl={"net.ipv4.tcp_fastopen": 3})
        self.out: Packets = []

    def put(self, packet: IP) -> None:
        self.stack.inject(bytes(packet))
        self.take()

    def take(self) -> None:
        self.out += self.stack.take()

    def last(self) -> TCP:
        return IP(self.out[-1][1])[TCP]

    def run(self) -> Packets:
        listener = self.stack.socket()
        listener.setsockopt(6, 23, 5)
        listener.bind((SERVER, 80))
        listener.listen(2)
        listener.setblocking(False)
        to = IP(src=PEER, dst=SERVER)
        self.put(to / TCP(sport=1000, dport=80, flags="S", seq=1, options=OPTIONS))
        isn, stamp = self.last().seq, next(v for k, v in self.last().options if k == "Timestamp")
        echo = [("NOP", None), ("NOP", None), ("Timestamp", (1010, stamp[0]))]
        self.put(to / TCP(sport=1000, dport=80, flags="A", seq=2, ack=isn + 1, options=echo))
        conn, _ = listener.accept()
        conn.setblocking(False)
        self.put(to / TCP(sport=1000, dport=80, flags="PA", seq=2, ack=isn + 1, options=echo) / Raw(b"x" * 700))
        conn.send(bytes(20_000))
        self.take()
        self.put(to / TCP(sport=1000, dport=80, flags="A", seq=702, ack=isn + 1, window=500,
                          options=[("NOP", None), ("NOP", None), ("SAck", (isn + 1 + 1448, isn + 1 + 5 * 1448))]))
        self.clock.advance(self.clock.now + 300 * MS)
        self.take()
        self.put(to / TCP(sport=1001, dport=80, flags="S", seq=5, options=[("MSS", 1000), (34, b"")]))
        for port in range(2000, 2008):          # beyond the queue: cookies
            self.put(to / TCP(sport=port, dport=80, flags="S", seq=port, options=OPTIONS))
        client = self.stack.socket()
        client.setblocking(False)
        client.connect_ex((PEER, 9000))
        self.take()
        self.put(to / TCP(sport=3000, dport=9, flags="S", seq=5))
        self.put(to / ICMP(type=8, id=7, seq=1) / Raw(b"ping"))
        self.clock.advance(40 * SECOND)
        conn.close()
        client.close()
        listener.close()
        self.clock.advance(200 * SECOND)
        self.take()
        return self.out


def digest(packets: Packets) -> str:
    return hashlib.sha256(b"".join(at.to_bytes(8, "big") + packet for at, packet in packets)).hexdigest()


def tcp_of(packets: Packets) -> list[TCP]:
    return [IP(packet)[TCP] for _, packet in packets if packet[9] == 6]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = Scenario(7), Scenario(7)
    first, second = one.run(), two.run()
    assert len(first) > 40
    assert first == second
    assert one.stack.nstat() == two.stack.nstat()


def test_another_seed_gives_other_numbers_of_the_same_shape() -> None:
    one, two = Scenario(7).run(), Scenario(8).run()
    assert [(at, len(packet)) for at, packet in one] == [(at, len(packet)) for at, packet in two]
    syn_acks = [[p for p in tcp_of(run) if p.flags == "SA"] for run in (one, two)]
    assert len(syn_acks[0]) > 10
    isns = [{(p.dport, p.seq) for p in run} for run in syn_acks]
    assert not isns[0] & isns[1], "an initial sequence number does not depend on the seed"
    stamps = [{v for p in run for k, v in p.options if k == "Timestamp"} for run in syn_acks]
    assert not {t[0] for t in stamps[0]} & {t[0] for t in stamps[1]}
    cookies = [{v for p in run for k, v in p.options if k == "TFO" or k == 34} for run in syn_acks]
    assert cookies[0] and not cookies[0] & cookies[1]
    opens = [[p for p in tcp_of(run) if p.flags == "S"] for run in (one, two)]
    assert opens[0][0].sport != opens[1][0].sport and opens[0][0].seq != opens[1][0].seq


def test_another_process_sends_the_same_bytes() -> None:
    """Neither addresses of memory nor Python's hash seed have a say."""
    code = f"import sys; sys.path.insert(0, {str(TOP)!r}); from tests.scenarios.test_determinism import *; print(digest(Scenario(7).run()))"
    digests = {
        subprocess.run([sys.executable, "-c", code], cwd=TOP, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout.strip() for seed in ("1", "2")
    }
    assert digests == {digest(Scenario(7).run())}
