"""A peer that acknowledges anything: random and impossible ACKs, SACK blocks, windows, path MTUs.

Nothing on the wire is expected; what must hold is the stack itself: no crash, the counters of TCP_INFO never contradict one another, and the
connection ends. Built with USTACK_DEBUG=1 every ACK is followed by a check of the whole send queue (tcp_verify_queue).
"""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from ustack import Stack, VirtualClock
from ustack.drill.codec import checksum
from ustack.observe.tcp_info import decode

PEER = bytes([192, 0, 2, 2])
STACK = bytes([192, 0, 2, 1])
MASK = 0xFFFFFFFF
MS = 1_000_000
MSG_OOB, MSG_EOR, MSG_MORE = 1, 0x80, 0x8000


def ip(proto: int, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, proto, 0) + PEER + STACK
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def tcp(seq: int, ack: int, flags: int, window: int, options: bytes = b"", data: bytes = b"") -> bytes:
    options += b"\1" * (-len(options) % 4)
    offset = (20 + len(options)) // 4
    body = struct.pack("!HHIIBBHHH", 1000, 80, seq & MASK, ack & MASK, offset << 4, flags, window, 0, 0)
    body += options + data
    pseudo = PEER + STACK + struct.pack("!BBH", 0, 6, len(body))
    return ip(6, body[:16] + struct.pack("!H", checksum(pseudo + body)) + body[18:])


def frag_needed(quoted: bytes, mtu: int) -> bytes:
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted[:28]
    return ip(1, body[:2] + struct.pack("!H", checksum(body)) + body[4:])


class Liar:
    """The peer's side of one connection, and the application's."""

    def __init__(self, seed: int) -> None:
        self.rng = r = random.Random(seed)
        self.ts = r.random() < 0.5
        self.scale = 7 if r.random() < 0.5 else 0
        self.ecn = r.random() < 0.3
        self.clock = VirtualClock(wall=10**18)
        self.stack = Stack(None, "192.0.2.1/24", clock=self.clock, seed=seed, sysctl={
            "net.ipv4.tcp_congestion_control": r.choice(["cubic", "reno", "bbr"]),
            "net.ipv4.tcp_recovery": r.choice([1, 1, 3, 5]),
            "net.ipv4.tcp_frto": r.choice([2, 2, 0]),
            "net.ipv4.tcp_ecn": 1,
            "net.ipv4.tcp_mtu_probing": r.choice([0, 0, 1, 2]),
        })
        self.conn = self.handshake(r.random() < 0.8)
        self.last_data = b""
        self.open = True

    def handshake(self, sack: bool) -> Any:
        r = self.rng
        listener = self.stack.create_server(("0.0.0.0", 80))
        options = struct.pack("!BBH", 2, 4, r.choice([1460, 1000, 536, 100, 9000]))
        options += b"\4\2" if sack else b""
        options += b"\1\1\x08\x0a" + struct.pack("!II", 1000, 0) if self.ts else b""
        options += b"\1\3\3\7" if self.scale else b""
        self.seq = r.choice([r.getrandbits(32), 0xFFFFFF00])
        self.echo = self.una = self.nxt = 0
        self.stack.inject(tcp(self.seq, 0, 0xC2 if self.ecn else 2, 65535, options))
        self.nxt = self.una = struct.unpack("!I", self.stack.take()[0][1][24:28])[0] + 1
        self.seq += 1
        self.stack.inject(tcp(self.seq, self.una, 0x10, 65535, self.stamp()))
        conn, _ = listener.accept()
        conn.setblocking(False)
        listener.close()
        return conn

    def stamp(self) -> bytes:
        now = (1000 + self.clock.now // MS) & MASK
        return b"\1\1\x08\x0a" + struct.pack("!II", now, self.echo) if self.ts else b""

    def look(self) -> None:
        """Note what the stack has sent: the highest sequence number, sometimes the timestamp to echo."""
        for _, packet in self.stack.take():
            if packet[9] != 6:
                continue
            seg = packet[20:]
            offset = seg[12] >> 2
            end = struct.unpack("!I", seg[4:8])[0] + len(seg) - offset + (seg[13] & 1)
            if (end - self.nxt) & MASK < 1 << 31:
                self.nxt = end & MASK
            if self.ts and offset >= 32 and self.rng.random() < 0.8:
                self.echo = struct.unpack("!I", seg[28:32])[0]
            if len(seg) > offset:
                self.last_data = packet

    def application(self) -> None:
        r = self.rng
        try:
            if (a := r.random()) < 0.5 and self.open:
                size = r.choice([1, 100, 1448, 5000, 30000, 100000])
                self.conn.send(bytes(size), r.choice([0, 0, 0, MSG_MORE, MSG_EOR, MSG_OOB]))
            elif a < 0.6:
                self.conn.setsockopt(6, r.choice([1, 3]), r.choice([0, 1]))
            elif a < 0.62 and self.open:
                self.open = False
                self.conn.shutdown(1)
        except BlockingIOError:
            pass
        except OSError:
            self.open = False

    def edge(self, out: int) -> int:
        r = self.rng
        mss = r.choice([1448, 1460, 1000, 988, 100, 1])
        if (q := r.random()) < 0.6:
            return self.una + mss * r.randrange(out // mss + 2)
        return self.una + (r.randrange(out + 1) if q < 0.9 else r.randrange(-5000, out + 5000))

    def blocks(self, out: int) -> bytes:
        r = self.rng
        if r.random() < 0.4:
            return b""
        found = [(self.edge(out), self.edge(out)) for _ in range(r.randrange(1, 5))]
        found = [(a, b) if a <= b or r.random() < 0.05 else (b, a) for a, b in found]
        if r.random() < 0.2:
            found.insert(0, (self.una - r.randrange(3000), self.una - r.randrange(2)))
        found = found[: 3 if self.ts else 4]
        return (b"\1\1\5" + bytes([2 + 8 * len(found)])
                + b"".join(struct.pack("!II", a & MASK, b & MASK) for a, b in found))

    def answer(self) -> None:
        r = self.rng
        out = (self.nxt - self.una) & MASK
        k = r.random()
        ack = self.una
        if 0.5 <= k < 0.8:
            ack += min(out, r.choice([1448, 1000, 536]) * r.randrange(out // 536 + 2))
        elif 0.8 <= k < 0.95:
            ack += r.randrange(out + 1)
        elif k >= 0.95:
            ack += r.randrange(-70000, 70000)
        options = self.stamp() + self.blocks(out)
        if 0 <= ack - self.una <= out:
            self.una = ack & MASK
        flags = 0x10 | (r.choice([0, 0, 0, 0x40, 0x80]) if self.ecn else 0)
        data = bytes(r.choice([0, 0, 0, 10]))
        window = r.choice([65535, 65535, 65535, 3000 >> self.scale, 0, 500])
        self.stack.inject(tcp(self.seq, ack, flags, window, options, data))
        self.seq += len(data)
        if r.random() < 0.03 and self.last_data:
            self.stack.inject(frag_needed(self.last_data, r.choice([68, 552, 576, 1000, 1400])))

    def check(self) -> None:
        i = decode(self.conn.getsockopt(6, 11, 280))
        assert i["sacked"] + i["lost"] <= i["unacked"]
        assert i["snd_cwnd"] >= 1
        assert i["ca_state"] <= 4
        assert i["snd_mss"] >= 36


@pytest.mark.parametrize("seed", range(30))
def test_the_sender_stands_any_acknowledgment(seed: int) -> None:
    liar = Liar(seed)
    with liar.stack:
        for _ in range(liar.rng.choice([40, 120])):
            liar.application()
            liar.look()
            liar.answer()
            liar.check()
            if liar.rng.random() < 0.4:
                liar.stack.run_until(liar.clock.now + liar.rng.choice([1000, MS // 10, MS, 5 * MS, 30 * MS, 300 * MS, 2000 * MS]))
        liar.conn.close()
        liar.stack.run_until(liar.clock.now + 2000 * 1000 * MS)
        assert not liar.stack.ss("-tan"), "an orphan gives up in the end"
