"""Packets that a scenario injects: IPv4, TCP, ICMP and UDP from named fields, right or wrong as asked.

Pure functions on bytes. A bad TCP or ICMP checksum is the right one XOR 0x1234, a bad header checksum the
right one XOR 0x1111, so that a replay can keep it wrong by the same amount.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from ..replay.packet import checksum, tcp_checksum

FLAG_BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "W": 128, "e": 256}
BAD_SUM, BAD_HEADER_SUM = 0x1234, 0x1111
TCP, UDP, ICMP = 6, 17, 1


@dataclass
class IpFields:
    """The IPv4 header around a payload; `None` means the right value."""

    src: str
    dst: str
    proto: int = TCP
    tos: int = 0
    ttl: int = 64
    ident: int = 0
    frag: int = 0x4000
    options: bytes = b""
    version: int = 4
    ihl: int | None = None
    total: int | None = None
    bad: bool = False


@dataclass
class TcpFields:
    sport: int
    dport: int
    seq: int
    ack: int = 0
    flags: int = 16
    window: int = 64240
    urgent: int = 0
    options: bytes = b""
    payload: bytes = b""
    doff: int | None = None
    bad: bool = False
    extra: dict[str, str] = field(default_factory=dict)


def flag_bits(text: str) -> int:
    """`SA` -> 0x12; `0` is no flag at all."""
    bits = 0
    for letter in text:
        if letter not in "0.":
            bits |= FLAG_BITS[letter]
    return bits


def pad_options(options: bytes) -> bytes:
    return options + b"\0" * (-len(options) % 4)


def ip(f: IpFields, payload: bytes) -> bytes:
    options = pad_options(f.options)
    ihl = f.ihl if f.ihl is not None else 5 + len(options) // 4
    total = f.total if f.total is not None else 20 + len(options) + len(payload)
    head = struct.pack(">BBHHHBBH4s4s", f.version << 4 | ihl, f.tos, total, f.ident, f.frag, f.ttl, f.proto, 0,
                       socket.inet_aton(f.src), socket.inet_aton(f.dst)) + options
    cksum = checksum(head) ^ (BAD_HEADER_SUM if f.bad else 0)
    return head[:10] + struct.pack(">H", cksum) + head[12:] + payload


def tcp(i: IpFields, f: TcpFields) -> bytes:
    """A whole TCP packet."""
    options = pad_options(f.options)
    doff = f.doff if f.doff is not None else 5 + len(options) // 4
    head = struct.pack(">HHIIHHHH", f.sport, f.dport, f.seq & 0xFFFFFFFF, f.ack & 0xFFFFFFFF, doff << 12 | f.flags, f.window, 0, f.urgent)
    segment = head + options + f.payload
    pseudo = b"\0" * 12 + socket.inet_aton(i.src) + socket.inet_aton(i.dst)
    cksum = tcp_checksum(pseudo, segment) ^ (BAD_SUM if f.bad else 0)
    return ip(i, segment[:16] + struct.pack(">H", cksum) + segment[18:])


def icmp(i: IpFields, kind: int, code: int, rest: bytes, bad: bool = False) -> bytes:
    """An ICMP packet; `rest` is everything behind the checksum."""
    body = bytes([kind, code, 0, 0]) + rest
    cksum = checksum(body) ^ (BAD_SUM if bad else 0)
    return ip(i, body[:2] + struct.pack(">H", cksum) + body[4:])


def udp(i: IpFields, sport: int, dport: int, payload: bytes) -> bytes:
    """A UDP packet without a checksum."""
    return ip(i, struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload)


def fragments(whole: bytes, size: int) -> list[bytes]:
    """An IPv4 packet cut into fragments of `size` payload bytes each (the last one shorter)."""
    head = (whole[0] & 15) * 4
    data, out = whole[head:], []
    for at in range(0, len(data), size):
        piece = data[at:at + size]
        more = 0x2000 if at + size < len(data) else 0
        h = bytearray(whole[:head])
        struct.pack_into(">H", h, 2, head + len(piece))
        struct.pack_into(">H", h, 6, more | at // 8)
        h[10:12] = b"\0\0"
        struct.pack_into(">H", h, 10, checksum(bytes(h)))
        out.append(bytes(h) + piece)
    return out
