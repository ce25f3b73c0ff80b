"""An engine with a connection in every state, and frames that fit each of them: what fuzzing starts from.

`Zoo` drives a bare Engine by raw packets from PEER. Each animal remembers where its stream stands, so frame() writes what an honest peer would send
next. mutate() spoils a frame; reseal() makes its checksums right again, so that the damage gets past the first door.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import ustack

SERVER, PEER = 0xC0000201, 0xC0000202
MS = 1_000_000
SYN_OPTIONS = b"\2\4\5\xb4\4\2\x08\x0a" + struct.pack("!II", 1000, 0) + b"\1\3\3\7"
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))
STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK",
          10: "LISTEN", 11: "CLOSING"}


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def reseal(packet: bytes) -> bytes:
    """The same bytes with the checksums that its header fields ask for, as far as there is room for them."""
    p = bytearray(packet)
    if len(p) < 20:
        return packet
    ihl = max(20, (p[0] & 15) * 4)
    p[10:12] = b"\0\0"
    p[10:12] = checksum(bytes(p[:ihl])).to_bytes(2, "big")
    end = min(len(p), max(ihl, int.from_bytes(p[2:4], "big")))
    body = p[ihl:end]
    at = {6: 16, 1: 2}.get(p[9])
    if at is not None and len(body) >= at + 2:
        body[at : at + 2] = b"\0\0"
        pseudo = bytes(p[12:20]) + struct.pack("!BBH", 0, 6, len(body)) if p[9] == 6 else b""
        p[ihl + at : ihl + at + 2] = checksum(pseudo + bytes(body)).to_bytes(2, "big")
    return bytes(p)


def ip(payload: bytes, proto: int = 6, *, src: int = PEER, dst: int = SERVER, frag: int = 0, ident: int = 1, tos: int = 0,
       options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBHII", 0x45 + len(options) // 4, tos, 20 + len(options) + len(payload) & 0xFFFF, ident, frag, 64, proto,
                       0, src, dst)
    return reseal(head + options + payload)


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, *, window: int = 512, options: bytes = b"", data: bytes = b"",
        urg: int = 0, **outer: Any) -> bytes:
    doff = (20 + len(options)) // 4
    return ip(struct.pack("!HHIIHHHH", sport, dport, seq % 2**32, ack % 2**32, doff << 12 | flags, window, 0, urg) + options + data,
              **outer)


class Animal:
    """One 4-tuple: where the peer's stream and ours stand."""

    def __init__(self, name: str, sport: int, dport: int) -> None:
        self.name, self.sport, self.dport = name, sport, dport
        self.seq = 10_000 + sport * 1000          # the peer's next
        self.ack = 0                              # ours that it expects
        self.stamp = 0
        self.handle: int | None = None


class Zoo:
    """`animals` in the order of their names below; `sent` holds the last packets of the engine."""

    def __init__(self, seed: int, **engine: Any) -> None:
        self.random = random.Random(seed)
        self.engine = ustack.Engine("192.0.2.1/24", seed=seed, wall_offset_ns=1_700_000_000_000 * MS,
                                    sysctl={"net.ipv4.tcp_fastopen": 0x603, "net.ipv4.tcp_ecn": 1}, **engine)
        self.now = 0
        self.sent: list[bytes] = []
        self.animals: dict[str, Animal] = {}
        self.port = 1000
        self.listener = self.engine.socket()
        self.engine.setsockopt(self.listener, 6, 23, 10)
        self.engine.bind(self.listener, "", 80)
        self.engine.listen(self.listener, 50)
        for name in ("idle", "unread", "hole", "in flight", "no window", "urgent"):
            self.established(name)
        for name in ("FIN_WAIT1", "FIN_WAIT2", "FIN_WAIT2 without a user", "CLOSING", "TIME_WAIT", "CLOSE_WAIT", "LAST_ACK"):
            self.closing(name)
        self.others()

    # ---- packets -----------------------------------------------------------------------------------------------------
    def put(self, packet: bytes, csum: int = 0, gso_size: int = 0) -> int:
        reason = self.engine.receive(packet, self.now, csum, gso_size)
        self.look()
        return reason

    def look(self) -> None:
        for _, packet in self.engine.transmit():
            self.sent.append(packet)
            if packet[9] != 6 or len(packet) < 40:
                continue
            dport, sport, seq = struct.unpack("!HHI", packet[20:28])
            for a in self.animals.values():
                if (a.sport, a.dport) == (sport, dport) and not packet[33] & RST:
                    size = len(packet) - 20 - (packet[32] >> 4) * 4
                    a.ack = (seq + size + bool(packet[33] & SYN) + bool(packet[33] & FIN)) % 2**32
                    where = packet[: 20 + (packet[32] >> 4) * 4].rfind(b"\x08\x0a", 40)
                    if where >= 0:
                        a.stamp = int.from_bytes(packet[where + 2 : where + 6], "big")
        del self.sent[:-60]

    def frame(self, a: Animal, flags: int = ACK, data: bytes = b"", *, ahead: int = 0, **kw: Any) -> bytes:
        """A segment that fits; `data` and FIN are not remembered as sent."""
        options = kw.pop("options", None)
        if options is None:
            options = b"\1\1\x08\x0a" + struct.pack("!II", 1000 + self.now // MS, a.stamp) if a.stamp else b""
        return tcp(a.sport, a.dport, a.seq + ahead, a.ack if flags & ACK else 0, flags, data=data, options=options, **kw)

    def send(self, a: Animal, flags: int = ACK, data: bytes = b"", **kw: Any) -> None:
        self.put(self.frame(a, flags, data, **kw))
        a.seq += len(data) + bool(flags & FIN)

    # ---- the animals -------------------------------------------------------------------------------------------------
    def new(self, name: str, dport: int = 80) -> Animal:
        self.port += 1
        return self.animals.setdefault(name, Animal(name, self.port, dport))

    def handshake(self, name: str) -> Animal:
        a = self.new(name)
        self.put(tcp(a.sport, 80, a.seq, 0, SYN, window=65535, options=SYN_OPTIONS))
        a.seq += 1
        self.send(a)
        a.handle = self.engine.accept(self.listener)[0]
        return a

    def established(self, name: str) -> None:
        a = self.handshake(name)
        if name == "unread":
            self.send(a, ACK | PSH, bytes(3000))
        elif name == "hole":
            self.put(self.frame(a, ACK, bytes(500), ahead=1000))
            self.put(self.frame(a, ACK, bytes(500), ahead=3000))
        elif name == "in flight":
            before = a.ack
            self.engine.send(a.handle, bytes(9000))
            self.look()
            a.ack = before
        elif name == "no window":
            self.send(a, window=0)
            self.engine.send(a.handle, bytes(9000))
        elif name == "urgent":
            self.put(self.frame(a, ACK | URG, bytes(10), urg=5))
            a.seq += 10

    def closing(self, name: str) -> None:
        a = self.handshake(name)
        if name in ("CLOSE_WAIT", "LAST_ACK"):
            self.send(a, ACK | FIN)
            if name == "LAST_ACK":
                self.engine.close(a.handle)
                self.look()
                a.ack -= 1
            return
        if name == "FIN_WAIT2 without a user":
            self.engine.close(a.handle)
        else:
            self.engine.shutdown(a.handle, 1)
        before = a.ack
        self.look()
        if name.startswith("FIN_WAIT2"):
            self.send(a)
        elif name == "CLOSING":
            fin, a.ack = a.ack, before
            self.send(a, ACK | FIN)
            a.ack = fin
        elif name == "TIME_WAIT":
            self.send(a, ACK | FIN)
        elif name == "FIN_WAIT1":
            a.ack = before

    def others(self) -> None:
        a = self.new("LISTEN")
        a = self.new("request")
        self.put(tcp(a.sport, 80, a.seq, 0, SYN, window=65535, options=SYN_OPTIONS))
        a.seq += 1
        a = self.new("Fast Open child")
        self.put(tcp(a.sport, 80, a.seq, 0, SYN, options=b"\2\4\5\xb4", data=b"early"))
        a.seq += 6
        for name in ("SYN_SENT", "crossed SYNs"):
            a = self.new(name, 0)
            a.sport += 8000
            a.handle = self.engine.socket()
            with contextlib.suppress(BlockingIOError):
                self.engine.connect(a.handle, "192.0.2.2", a.sport)
            a.dport = self.engine.getsockname(a.handle)[1]
            self.look()
            if name == "crossed SYNs":
                self.put(tcp(a.sport, a.dport, a.seq, 0, SYN, options=b"\2\4\5\xb4"))
                a.seq += 1
        self.new("closed port", 81)

    def state(self, name: str) -> str:
        """What the engine makes of an animal."""
        a = self.animals[name]
        found = self.engine.lookup(("192.0.2.1", a.dport, "192.0.2.2", a.sport))
        if found is None or found[0] != "socket":
            return found[0] if found else "none"
        rows = ustack._fastpath.dump(self.engine)
        return next(STATES[r["state"]] for r in rows if r["kind"] == "sock" and (r["lport"], r["fport"]) == (a.dport, a.sport))

    # ---- frames and damage -------------------------------------------------------------------------------------------
    def frames(self, a: Animal) -> Iterator[bytes]:
        """What a peer may send in this place: one of each kind."""
        left = struct.pack("!II", a.ack + 1448, a.ack + 2896 & 0xFFFFFFFF) if a.ack < 2**32 - 3000 else bytes(8)
        yield self.frame(a)
        yield self.frame(a, ACK | PSH, b"data" * 50)
        yield self.frame(a, ACK, bytes(1448), ahead=1448)
        yield self.frame(a, ACK | FIN)
        yield self.frame(a, ACK | FIN | PSH, b"last")
        yield self.frame(a, RST)
        yield self.frame(a, RST | ACK)
        yield self.frame(a, SYN, options=SYN_OPTIONS)
        yield self.frame(a, SYN | ACK, options=SYN_OPTIONS, ahead=-1)
        yield self.frame(a, ACK | URG, b"urgent", urg=3)
        yield self.frame(a, ACK, window=0)
        yield self.frame(a, ACK | ECE)
        yield self.frame(a, SYN | ECE | CWR, options=SYN_OPTIONS + b"\x22\x02\1\1", ahead=-1)
        yield self.frame(a, ACK, options=b"\1\1\5\x0a" + left)
        yield self.frame(a, 0)

    def error(self) -> bytes:
        """An ICMP error that quotes something of ours."""
        r = self.random
        quote = r.choice(self.sent)[: r.choice([0, 19, 20, 24, 27, 28, 40, 60])] if self.sent else b""
        kind, code = r.choice([(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (4, 0), (5, 0), (11, 0), (11, 1), (12, 0), (8, 0), (13, 0)])
        return ip(struct.pack("!BBHHH", kind, code, 0, r.choice([0, 1, 65535]), r.choice([0, 67, 68, 576, 1400, 65535])) + quote, 1)

    def mutate(self, packet: bytes) -> bytes:
        """One or several kinds of damage, mostly sealed again."""
        r = self.random
        p = bytearray(packet)
        for _ in range(r.choice([1, 1, 1, 2, 4])):
            kind = r.randrange(9)
            if kind == 0:
                del p[r.randrange(len(p) + 1) :]
            elif kind == 1:
                p += r.randbytes(r.choice([1, 3, 40, 1500]))
            elif kind == 2 and p:
                for _ in range(r.choice([1, 2, 8])):
                    p[r.randrange(len(p))] ^= 1 << r.randrange(8)
            elif kind == 3 and len(p) >= 40:        # one field at an edge
                at, n = r.choice([(0, 1), (1, 1), (2, 2), (4, 2), (6, 2), (8, 1), (9, 1), (12, 4), (16, 4), (20, 2), (22, 2), (24, 4),
                                  (28, 4), (32, 1), (33, 1), (34, 2), (38, 2)])
                old = int.from_bytes(p[at : at + n], "big")
                new = r.choice([0, 1, old - 1, old + 1, 1 << (8 * n - 1), (1 << 8 * n) - 1, old ^ 1 << r.randrange(8 * n)])
                p[at : at + n] = (new % (1 << 8 * n)).to_bytes(n, "big")
            elif kind == 4 and len(p) >= 40:        # the TCP options
                p[40 : 20 + max(20, (p[32] >> 4) * 4)] = self.options(r)
                p[32] = p[32] & 15 | r.randrange(5, 16) << 4
                p[2:4] = (len(p) & 0xFFFF).to_bytes(2, "big")
            elif kind == 5 and len(p) >= 20:        # IP options
                words = r.randrange(1, 11)
                p[20:20] = self.options(r)[: words * 4].ljust(words * 4, b"\0")
                p[0] = 0x40 | min(15, (p[0] & 15) + words)
                p[2:4] = (len(p) & 0xFFFF).to_bytes(2, "big")
            elif kind == 6 and len(p) >= 20:        # a piece of a datagram
                p[6:8] = r.choice([0x2000, 0x1FFF, 0x3FFF, 1, 0x2001, 180, 0x4000, 0x8000, r.randrange(65536)]).to_bytes(2, "big")
                p[4:6] = r.randrange(3).to_bytes(2, "big")
            elif kind == 7 and len(p) >= 40:        # sequence numbers around the window
                at = r.choice([24, 28])
                new = int.from_bytes(p[at : at + 4], "big") + r.choice([-1, 1, -65535, 65535, 2**31, 2**31 - 1, r.randrange(2**32)])
                p[at : at + 4] = (new % 2**32).to_bytes(4, "big")
            elif kind == 8 and p:
                at = r.randrange(len(p))
                p[at : at + r.randrange(20)] = r.randbytes(r.randrange(20))
        return reseal(bytes(p)) if r.random() < 0.8 else bytes(p)

    @staticmethod
    def options(r: random.Random) -> bytes:
        """Up to forty bytes that look like options: kinds that are known with lengths that are wrong."""
        out = b""
        while len(out) < 40 and r.random() < 0.8:
            kind = r.choice([0, 1, 2, 3, 4, 5, 5, 8, 8, 19, 34, 34, 254, 7, 68, 131, 137, r.randrange(256)])
            size = r.choice([0, 1, 2, 3, 4, 6, 8, 10, 18, 34, 40, 255])
            out += bytes([kind, size]) + r.randbytes(r.choice([max(0, size - 2), 0, r.randrange(12)]))
        return out[:40]
