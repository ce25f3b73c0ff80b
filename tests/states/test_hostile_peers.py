"""Packets that no honest peer sends, in bulk: whatever comes in, the stack stays whole and ends empty.

A seeded peer answers what the stack sends, mostly well, often wrongly: bits flipped with and without the right checksum, headers
cut short, numbers at the edges of windows, fragments, ICMP errors that quote what was sent, options of any shape. Between the
packets the application sends, receives and closes, and time passes. At the end all sockets are closed: every connection must go
away by its own timers and give back what it held.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from ustack import Stack, VirtualClock

SERVER, PEER = 0xC0000201, 0xC0000202
SECOND = 1_000_000_000


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - ((total & 0xFFFF) + (total >> 16))


def ip(payload: bytes, proto: int = 6, src: int = PEER, dst: int = SERVER, frag: int = 0, ident: int = 0, tos: int = 0,
       options: bytes = b"", ttl: int = 64) -> bytes:
    head = struct.pack("!BBHHHBBHII", 0x45 + len(options) // 4, tos, 20 + len(options) + len(payload), ident, frag, ttl, proto,
                       0, src, dst) + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, window: int, options: bytes = b"", data: bytes = b"",
        urg: int = 0, src: int = PEER) -> bytes:
    head = struct.pack("!HHIIHHHH", sport, dport, seq % 2**32, ack % 2**32, (20 + len(options)) // 4 << 12 | flags, window, 0, urg)
    segment = head + options + data
    pseudo = struct.pack("!IIHH", src, SERVER, 6, len(segment))
    return segment[:16] + checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]


class Peer:
    """Knows of each connection what the stack sent last, and answers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stack = Stack(None, "192.0.2.1/24", clock=VirtualClock(wall=SECOND * 1_700_000_000), seed=seed,
                           sysctl=self.sysctl())
        self.seen: dict[tuple[int, int], tuple[int, int]] = {}     # (peer's port, ours) -> (their next, our next)
        self.sent: list[bytes] = []
        self.socks: list[Any] = []
        self.listeners = [self.listen(80), self.listen(81)]
        self.listeners[1].setsockopt(6, 23, 5)
        self.listeners[1].setsockopt(6, 9, 3)

    def sysctl(self) -> dict[str, int]:
        pick = self.random.choice
        return {
            "net.ipv4.tcp_syncookies": pick([0, 1, 2]), "net.ipv4.tcp_fastopen": pick([0, 3, 0x603]),
            "net.ipv4.tcp_ecn": pick([0, 1, 2]), "net.ipv4.tcp_mtu_probing": pick([0, 2]), "net.ipv4.tcp_dsack": pick([0, 1]),
            "net.ipv4.tcp_abort_on_overflow": pick([0, 1]), "net.ipv4.ipfrag_max_dist": pick([0, 64]),
            "net.ipv4.conf.all.accept_source_route": pick([0, 1]), "net.ipv4.tcp_rfc1337": pick([0, 1]),
            "net.ipv4.tcp_shrink_window": pick([0, 1]),
        }

    def listen(self, port: int) -> Any:
        sock = self.stack.socket()
        sock.setblocking(False)
        sock.setsockopt(1, 2, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(self.random.choice([0, 3, 50]))
        return sock

    # ---- packets -----------------------------------------------------------------------------------------
    def look(self) -> None:
        for _, packet in self.stack.take():
            self.sent.append(packet)
            if packet[9] == 6 and len(packet) >= 40:
                ours, port, seq, ack = struct.unpack("!HHII", packet[20:32])
                flags, size = packet[33], len(packet) - 20 - (packet[32] >> 4) * 4
                if flags & 4:
                    self.seen.pop((port, ours), None)
                    continue
                self.seen[port, ours] = (ack, seq + size + bool(flags & 2) + bool(flags & 1))
        del self.sent[:-50]

    def number(self, base: int) -> int:
        r = self.random
        if r.random() < 0.8:
            return base
        return base + r.choice([1, -1, r.randrange(-3000, 3000), r.randrange(-70000, 70000), r.randrange(2**32)])

    def options(self) -> bytes:
        r = self.random
        out = b""
        for _ in range(r.randrange(4)):
            kind = r.choice([0, 1, 2, 3, 4, 5, 8, 19, 30, 34, 254, r.randrange(256)])
            body = r.randbytes(r.choice([0, 1, 2, 4, 8, 16, 8, 24, r.randrange(30)]))
            out += r.choice([bytes([kind, len(body) + 2]) + body, bytes([kind]), bytes([kind, r.randrange(256)]) + body])
        out = out[:40]
        return out + bytes(-len(out) % 4)

    def good_options(self, syn: bool) -> bytes:
        stamp = b"\x01\x01\x08\x0a" + struct.pack("!II", self.stack.clock.now // 1_000_000 & 0xFFFFFFFF, 0)
        if syn:
            return self.random.choice([b"", b"\2\4\5\xb4", b"\2\4\5\xb4\1\3\3\7\4\2\1\1" + stamp, b"\2\4\2\0\4\2\1\1"])
        return self.random.choice([b"", stamp])

    def segment(self) -> bytes:
        r = self.random
        if not self.seen or r.random() < 0.1:
            port, ours, theirs, mine, flags = r.randrange(1, 40), r.choice([80, 81, 80, 81, 82]), r.randrange(2**32), 0, 2
        else:
            (port, ours), (theirs, mine) = r.choice(list(self.seen.items()))
            flags = r.choice([16] * 30 + [24] * 10 + [17, 17, 4, 20, 2, 18, 48, 0, 0x50, 0xD0, r.randrange(512)])
        data = r.randbytes(r.choice([0, 0, 0, 1, 100, 1460, r.randrange(3000)]))
        options = self.good_options(bool(flags & 2)) if r.random() < 0.7 else self.options()
        window = r.choice([0, 1, 500, 65535, 65535, r.randrange(65536)])
        return tcp(port, ours, self.number(theirs), self.number(mine), flags, window, options, data, r.choice([0, 0, r.randrange(65536)]))

    def packet(self) -> bytes:
        r = self.random
        what = r.random()
        if what < 0.12 and self.sent:
            quote = r.choice(self.sent)[: r.choice([8, 20, 27, 28, 40, 100])]
            body = struct.pack("!BBHI", r.choice([3, 3, 3, 4, 5, 11, 12, 8, 13, r.randrange(256)]),
                               r.choice([0, 1, 3, 4, 4, r.randrange(256)]), 0, r.choice([0, 68, 576, 1000, r.randrange(2**32)])) + quote
            return ip(body[:2] + checksum(body).to_bytes(2, "big") + body[4:], 1)
        if what < 0.15:
            return ip(r.randbytes(r.randrange(60)), r.randrange(256), src=r.choice([PEER, r.randrange(2**32)]))
        if what < 0.17:
            return r.randbytes(r.randrange(80))
        if what < 0.2:
            options = self.options()
            return ip(self.segment(), options=options, tos=r.randrange(256), ttl=r.randrange(256))
        return ip(self.segment(), tos=r.choice([0, 0, 2, 3]))

    def spoil(self, packet: bytes) -> bytes:
        r = self.random
        data = bytearray(packet)
        for _ in range(r.choice([1, 1, 2, 8])):
            if data:
                data[r.randrange(len(data))] ^= 1 << r.randrange(8)
        if r.random() < 0.5 and len(data) >= 20:
            size = max(20, (data[0] & 15) * 4)
            data[10:12] = b"\0\0"
            data[10:12] = checksum(bytes(data[:size])).to_bytes(2, "big")
        return bytes(data[: r.choice([len(data), len(data), r.randrange(len(data) + 1)])])

    def pieces(self, packet: bytes) -> list[bytes]:
        r = self.random
        payload, ident, out, at = packet[20:], r.randrange(5), [], 0
        while at < len(payload):
            size = 8 * r.randrange(1, 60)
            start = max(0, at + 8 * r.choice([0, 0, 0, 0, 0, -1, 1]))
            last = at + size >= len(payload)
            out.append(ip(payload[start : at + size], packet[9], frag=start // 8 | (0 if last else 0x2000), ident=ident))
            at += size
        if r.random() < 0.3:
            r.shuffle(out)
        return out

    def inject(self) -> None:
        r = self.random
        packet = self.packet()
        kind = r.random()
        packets = self.pieces(packet) if kind < 0.08 and len(packet) > 28 else [self.spoil(packet) if kind < 0.25 else packet]
        for one in packets:
            self.stack.inject(one, csum=r.choice([0, 0, 0, 1]), gso_size=r.choice([0, 0, 0, 536]) if len(one) > 600 else 0)
        self.look()

    # ---- the application ---------------------------------------------------------------------------------
    def use(self) -> None:
        r = self.random
        self.stack.link(mtu=r.choice([1500, 1500, 1500, 1500, 576, 9000]))
        try:
            if r.random() < 0.3 or not self.socks:
                sock, _ = r.choice(self.listeners).accept()
                sock.setblocking(False)
                self.socks.append(sock)
                return
            if r.random() < 0.1:
                sock = self.stack.socket()
                sock.setblocking(False)
                self.socks.append(sock)
                sock.connect(("192.0.2.2", r.randrange(1, 40)))
            sock = r.choice(self.socks)
            action = r.randrange(8)
            if action < 3:
                sock.send(bytes(r.choice([1, 100, 5000, 100_000])), r.choice([0, 0, 1, 0x8000, 0x80]))
            elif action < 6:
                sock.recv(r.choice([1, 1000, 200_000]), r.choice([0, 0, 2, 1]))
            elif action == 6:
                sock.shutdown(r.randrange(3))
            else:
                self.socks.remove(sock)
                if r.random() < 0.3:
                    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
                sock.close()
        except OSError:
            pass
        finally:
            self.look()

    def finish(self) -> None:
        for sock in (*self.socks, *self.listeners):
            sock.setsockopt(1, 13, struct.pack("ii", 0, 0))
            sock.close()
        self.stack.run_until(self.stack.clock.now + 4000 * SECOND)
        self.stack.take()
        assert self.stack.ss("-tan") == []
        assert self.stack.next_timeout() is None
        assert {k: v for k, v in self.stack.pools().items() if v} == {}


@pytest.mark.parametrize("seed", range(8))
def test_hostile_peer(seed: int) -> None:
    peer = Peer(seed)
    for _ in range(150):
        for _ in range(peer.random.randrange(1, 8)):
            peer.inject()
        peer.use()
        if peer.random.random() < 0.5:
            step = peer.random.choice([1_000_000, 40_000_000, 210_000_000, 3 * SECOND])
            for at, packet in peer.stack.run_until(peer.stack.clock.now + step):
                assert at <= peer.stack.clock.now
                peer.sent.append(packet)
    peer.finish()
    peer.stack.close()
