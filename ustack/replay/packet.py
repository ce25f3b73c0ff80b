"""A small IPv4/TCP/ICMP codec of the replay: take a packet apart, put it together, say it in words.

It is written apart from the core's own parser on purpose: the replay judges the core, so it must not share
its mistakes. Pure functions on bytes; a packet that cannot be taken apart has `tcp` and `icmp` None and
compares as raw bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TCP = 6
ICMP = 1
FLAG_NAMES = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "A"), (0x20, "U"), (0x40, "E"),
              (0x80, "W"), (0x100, "e"))
SYN, ACK, RST, FIN, PSH = 0x02, 0x10, 0x04, 0x01, 0x08
OPT_EOL, OPT_NOP, OPT_TS, OPT_SACK = 0, 1, 8, 5


def checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071), as it stands in a header."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_checksum(ip_header: bytes, segment: bytes) -> int:
    pseudo = ip_header[12:20] + struct.pack(">BBH", 0, TCP, len(segment))
    return checksum(pseudo + segment)


def dotted(raw: bytes) -> str:
    return ".".join(str(b) for b in raw)


@dataclass(frozen=True)
class Tcp:
    sport: int
    dport: int
    seq: int
    ack: int
    doff: int
    flags: int
    window: int
    cksum: int
    urgent: int
    options: bytes
    payload: bytes

    @property
    def ts_offset(self) -> int | None:
        """Place of the timestamp option's first value inside `options`."""
        for kind, start, length in walk_options(self.options):
            if kind == OPT_TS and length == 10:
                return start + 2
        return None

    @property
    def tsval(self) -> int | None:
        at = self.ts_offset
        return None if at is None else int.from_bytes(self.options[at:at + 4], "big")


@dataclass(frozen=True)
class Icmp:
    type: int
    code: int
    cksum: int
    body: bytes


@dataclass(frozen=True)
class Packet:
    raw: bytes
    header: bytes
    tos: int
    ident: int
    frag: int
    ttl: int
    proto: int
    cksum: int
    src: str
    dst: str
    ip_options: bytes
    data: bytes
    tcp: Tcp | None
    icmp: Icmp | None

    @property
    def offset(self) -> int:
        return self.frag & 0x1FFF


def walk_options(options: bytes) -> list[tuple[int, int, int]]:
    """(kind, start, length) of each TCP option up to the first that cannot be followed."""
    out: list[tuple[int, int, int]] = []
    i = 0
    while i < len(options):
        kind = options[i]
        if kind in (OPT_EOL, OPT_NOP):
            out.append((kind, i, 1))
            if kind == OPT_EOL:
                break
            i += 1
            continue
        if i + 1 >= len(options) or options[i + 1] < 2 or i + options[i + 1] > len(options):
            break
        out.append((kind, i, options[i + 1]))
        i += options[i + 1]
    return out


def _parse_tcp(data: bytes) -> Tcp | None:
    if len(data) < 20:
        return None
    sport, dport, seq, ack, word, window, cksum, urgent = struct.unpack(">HHIIHHHH", data[:20])
    size = (word >> 12) * 4
    if size < 20 or size > len(data):
        return None
    return Tcp(sport, dport, seq, ack, word >> 12, word & 0xFFF, window, cksum, urgent, data[20:size],
               data[size:])


def parse(raw: bytes) -> Packet | None:
    """Take an IPv4 packet apart; None if it is not one."""
    if len(raw) < 20 or raw[0] >> 4 != 4:
        return None
    size = (raw[0] & 15) * 4
    if size < 20 or size > len(raw):
        return None
    _, tos, total, ident, frag, ttl, proto, cksum = struct.unpack(">BBHHHBBH", raw[:12])
    data = raw[size:total] if size <= total <= len(raw) else raw[size:]
    tcp = icmp = None
    if proto == TCP and not frag & 0x3FFF:
        tcp = _parse_tcp(data)
    elif proto == ICMP and not frag & 0x1FFF and len(data) >= 8:
        icmp = Icmp(data[0], data[1], int.from_bytes(data[2:4], "big"), data[4:])
    return Packet(raw, raw[:size], tos, ident, frag, ttl, proto, cksum, dotted(raw[12:16]),
                  dotted(raw[16:20]), raw[20:size], data, tcp, icmp)


def flag_text(flags: int) -> str:
    return "".join(name for bit, name in FLAG_NAMES if flags & bit) or "none"


def option_text(options: bytes) -> str:
    words = []
    for kind, start, length in walk_options(options):
        body = options[start + 2:start + length]
        if kind == OPT_EOL:
            words.append("eol")
        elif kind == OPT_NOP:
            words.append("nop")
        elif kind == 2 and length == 4:
            words.append(f"mss {int.from_bytes(body, 'big')}")
        elif kind == 3 and length == 3:
            words.append(f"wscale {body[0]}")
        elif kind == 4 and length == 2:
            words.append("sackOK")
        elif kind == OPT_TS and length == 10:
            words.append("TS val {} ecr {}".format(*struct.unpack(">II", body)))
        elif kind == OPT_SACK:
            edges = struct.unpack(f">{len(body) // 4}I", body[:len(body) // 4 * 4])
            blocks = zip(edges[::2], edges[1::2], strict=False)
            words.append("sack " + " ".join(f"{a}:{b}" for a, b in blocks))
        else:
            words.append(f"kind {kind} {body.hex()}")
    return ",".join(words)


def describe(raw: bytes) -> str:
    """One packet in one line, in the manner of tcpdump."""
    p = parse(raw)
    if p is None:
        return f"{len(raw)} bytes that are not IPv4: {raw[:24].hex()}"
    tail = f" (ttl {p.ttl}, tos 0x{p.tos:x}, id {p.ident}{', DF' if p.frag & 0x4000 else ''})"
    if p.tcp:
        t = p.tcp
        text = f"{p.src}.{t.sport} > {p.dst}.{t.dport}: Flags [{flag_text(t.flags)}], seq {t.seq}"
        text += f", ack {t.ack}, win {t.window}, length {len(t.payload)}"
        return text + (f", options [{option_text(t.options)}]" if t.options else "") + tail
    if p.icmp:
        return f"{p.src} > {p.dst}: ICMP {p.icmp.type}/{p.icmp.code}, length {len(p.icmp.body)}{tail}"
    return f"{p.src} > {p.dst}: proto {p.proto}, offset {p.offset * 8}, length {len(p.data)}{tail}"


def fix_checksums(raw: bytearray, like: bytes) -> None:
    """Give `raw` the checksums it needs after a rewrite of `like`.

    A checksum that was wrong in `like` stays wrong by the same XOR: the lab makes bad ones so.
    """
    old = parse(like)
    if old is None:
        return
    size = len(old.header)

    def put(at: int, zeroed_sum: int, was: int, was_right: int) -> None:
        struct.pack_into(">H", raw, at, zeroed_sum ^ was ^ was_right)

    def without(data: bytes, at: int) -> bytes:
        return data[:at] + b"\0\0" + data[at + 2:]

    put(10, checksum(without(bytes(raw[:size]), 10)), old.cksum, checksum(without(old.header, 10)))
    end = size + len(old.data)
    if old.tcp:
        new_sum = tcp_checksum(bytes(raw[:size]), without(bytes(raw[size:end]), 16))
        put(size + 16, new_sum, old.tcp.cksum, tcp_checksum(old.header, without(old.data, 16)))
    elif old.icmp and not old.frag & 0x2000:
        new_sum = checksum(without(bytes(raw[size:end]), 2))
        put(size + 2, new_sum, old.icmp.cksum, checksum(without(old.data, 2)))


def checksum_faults(p: Packet) -> list[str]:
    """The checksums of an emitted packet that are wrong."""
    faults = []
    if checksum(p.header):
        faults.append("IP header checksum")
    if p.tcp and tcp_checksum(p.header, p.data):
        faults.append("TCP checksum")
    if p.icmp and not p.frag & 0x3FFF and checksum(p.data):
        faults.append("ICMP checksum")
    return faults
