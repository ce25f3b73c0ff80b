"""A small IPv4 / TCP / ICMP codec of the interpreter's own.

Deliberately independent of the stack's wire code: what judges the stack must not share its offsets.
RFC 791, 792, 9293, 7323, 2018, 7413, 2385, and the AccECN option kinds 172 and 174.

`decode` accepts anything that came out of the stack and never raises; what is broken is told in
`Packet.trouble`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ustack.drill.nodes import TcpOption

PROTO_ICMP, PROTO_TCP, PROTO_UDP = 1, 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, AE = (1 << bit for bit in range(9))
ECN_BITS = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}

_EOL, _NOP, _MSS, _WSCALE, _SACKOK, _SACK, _TS, _MD5, _FO = 0, 1, 2, 3, 4, 5, 8, 19, 34
_ACCECN0, _ACCECN1, _EXP = 172, 174, 254
_FO_MAGIC = b"\xf9\x89"


def checksum(*parts: bytes) -> int:
    """The Internet checksum of the parts joined (RFC 1071); 0 over data that holds a right one."""
    data = b"".join(parts)
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def address(text: str) -> bytes:
    """Dotted quad to four bytes; ValueError if it is not one."""
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isdecimal() and int(p) < 256 for p in parts):
        raise ValueError(f"not an IPv4 address: {text!r}")
    return bytes(int(p) for p in parts)


def dotted(raw: bytes) -> str:
    return ".".join(map(str, raw))


# --- encoding ------------------------------------------------------------------------------------------


def ipv4(proto: int, src: bytes, dst: bytes, body: bytes, tos: int = 0, ttl: int = 255, ident: int = 0,
         fragment: int = 0) -> bytes:
    """One IPv4 packet without options."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, tos, 20 + len(body), ident, fragment, ttl, proto, 0, src, dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def _pseudo(src: bytes, dst: bytes, length: int) -> bytes:
    return src + dst + struct.pack("!BBH", 0, PROTO_TCP, length)


def tcp(src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, win: int, urg: int,
        options: bytes, payload: bytes) -> bytes:
    """One TCP segment with a full checksum; `options` must be a multiple of four bytes, 40 at most."""
    doff = 5 + len(options) // 4
    head = struct.pack("!HHIIHHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, doff << 12 | flags,
                       win, 0, urg)
    segment = head + options + payload
    total = checksum(_pseudo(src, dst, len(segment)), segment)
    return segment[:16] + struct.pack("!H", total) + segment[18:]


def icmp(kind: int, code: int, rest: int, body: bytes) -> bytes:
    """One ICMP message; `rest` is the second word of the header (mtu, id and sequence, ...)."""
    message = struct.pack("!BBHI", kind, code, 0, rest) + body
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def encode_option(option: TcpOption) -> bytes:
    """One option as it stands on the wire."""
    match option.name:
        case "eol":
            return b"\0"
        case "nop":
            return b"\1"
        case "mss":
            return struct.pack("!BBH", _MSS, 4, option.a)
        case "wscale":
            return struct.pack("!BBB", _WSCALE, 3, option.a)
        case "sackOK":
            return struct.pack("!BB", _SACKOK, 2)
        case "TS":
            return struct.pack("!BBII", _TS, 10, option.a, option.b)
        case "sack":
            edges = b"".join(struct.pack("!II", left, right) for left, right in option.blocks)
            return struct.pack("!BB", _SACK, 2 + len(edges)) + edges
        case "FO":
            return struct.pack("!BB", _FO, 2 + len(option.data)) + option.data
        case "FOEXP":
            return struct.pack("!BB", _EXP, 4 + len(option.data)) + _FO_MAGIC + option.data
        case "md5":
            return struct.pack("!BB", _MD5, 18) + option.data
        case "ECN":
            kind = _ACCECN0 if option.counters[0][0] == "e0b" else _ACCECN1
            counts = b"".join(value.to_bytes(3, "big") for _, value in option.counters)
            return struct.pack("!BB", kind, 2 + len(counts)) + counts
    raise AssertionError(f"no encoding for the option {option.name}")


def encode_options(options: Iterable[TcpOption]) -> bytes:
    return b"".join(map(encode_option, options))


# --- decoding ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WireOption:
    """Kind, the whole option's bytes, and whether its length byte made sense."""

    kind: int
    raw: bytes
    whole: bool = True

    def text(self) -> str:
        """As a script would write it."""
        body, words = self.raw[2:], struct.unpack(f"!{len(self.raw[2:]) // 4}I",
                                                  self.raw[2:][:len(self.raw[2:]) & ~3])
        if not self.whole:
            return f"broken(kind {self.kind}, {self.raw.hex()})"
        match self.kind, len(self.raw):
            case (0, _):
                return "eol"
            case (1, _):
                return "nop"
            case (2, 4):
                return f"mss {int.from_bytes(body, 'big')}"
            case (3, 3):
                return f"wscale {body[0]}"
            case (4, 2):
                return "sackOK"
            case (5, size) if size % 8 == 2 and size > 2:
                return "sack " + " ".join(f"{a}:{b}" for a, b in zip(words[::2], words[1::2], strict=True))
            case (8, 10):
                return f"TS val {words[0]} ecr {words[1]}"
            case (19, 18):
                return f"md5 {body.hex()}"
            case (34, _):
                return f"FO {body.hex()}".rstrip()
            case (254, size) if size >= 4 and body[:2] == _FO_MAGIC:
                return f"FOEXP {body[2:].hex()}".rstrip()
            case (172 | 174, 2 | 5 | 8 | 11):
                names = ("e0b", "ceb", "e1b") if self.kind == _ACCECN0 else ("e1b", "ceb", "e0b")
                counts = [int.from_bytes(body[i:i + 3], "big") for i in range(0, len(body), 3)]
                return " ".join(["ECN"] + [f"{n} {c}" for n, c in zip(names, counts, strict=False)])
        return f"kind {self.kind} {body.hex()}".rstrip()


def decode_options(raw: bytes) -> list[WireOption]:
    """All options, the padding after an EOL included."""
    out: list[WireOption] = []
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind in (_EOL, _NOP):
            out.append(WireOption(kind, raw[at:at + 1]))
            at += 1
            continue
        size = raw[at + 1] if at + 1 < len(raw) else 0
        if size < 2 or at + size > len(raw):
            out.append(WireOption(kind, raw[at:], whole=False))
            break
        out.append(WireOption(kind, raw[at:at + size]))
        at += size
    return out


def options_text(raw: bytes) -> str:
    return ",".join(option.text() for option in decode_options(raw))


@dataclass(slots=True)
class Tcp:
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    doff: int = 0
    reserved: int = 0
    flags: int = 0
    win: int = 0
    csum: int = 0
    urg: int = 0
    options: bytes = b""
    payload: bytes = b""


@dataclass(slots=True)
class Icmp:
    """`quoted` is the packet inside an error message, `body` all bytes after the eight of the header."""

    type: int = 0
    code: int = 0
    rest: int = 0
    body: bytes = b""
    quoted: Packet | None = None


@dataclass(slots=True)
class Packet:
    raw: bytes
    version: int = 0
    ihl: int = 0
    tos: int = 0
    total_length: int = 0
    ident: int = 0
    fragment: int = 0
    ttl: int = 0
    proto: int = 0
    ip_csum_ok: bool = False
    src: str = ""
    dst: str = ""
    tcp: Tcp | None = None
    icmp: Icmp | None = None
    trouble: str = ""

    @property
    def payload_length(self) -> int:
        return len(self.tcp.payload) if self.tcp else 0

    def tcp_csum_ok(self) -> bool:
        """Of a whole (not a quoted) TCP packet."""
        segment = self.raw[self.ihl * 4:self.total_length]
        return checksum(address(self.src), address(self.dst), struct.pack("!BBH", 0, PROTO_TCP, len(segment)),
                        segment) == 0


def _decode_tcp(body: bytes) -> tuple[Tcp, str]:
    if len(body) < 20:
        return Tcp(), "the TCP header is cut short"
    sport, dport, seq, ack, bits, win, csum, urg = struct.unpack_from("!HHIIHHHH", body)
    doff = bits >> 12
    end = max(doff * 4, 20)
    segment = Tcp(sport, dport, seq, ack, doff, bits >> 9 & 7, bits & 0x1FF, win, csum, urg, body[20:end],
                  body[end:])
    return segment, "" if doff >= 5 and end <= len(body) else f"TCP data offset {doff}"


def decode(raw: bytes, quoted: bool = False) -> Packet:
    """Take a packet apart; `quoted` for the beginning of a packet inside an ICMP error."""
    packet = Packet(raw)
    if len(raw) < 20:
        packet.trouble = "shorter than an IP header"
        return packet
    first, packet.tos, packet.total_length, packet.ident = struct.unpack_from("!BBHH", raw)
    packet.fragment, packet.ttl, packet.proto = struct.unpack_from("!HBB", raw, 6)
    packet.version, packet.ihl = first >> 4, first & 15
    packet.src, packet.dst = dotted(raw[12:16]), dotted(raw[16:20])
    head = packet.ihl * 4
    if packet.version != 4 or head < 20 or head > len(raw):
        packet.trouble = f"IP version {packet.version}, header of {head} bytes"
        return packet
    packet.ip_csum_ok = checksum(raw[:head]) == 0
    body = raw[head:packet.total_length]
    if packet.total_length != len(raw) and not quoted:
        packet.trouble = f"IP total length {packet.total_length} of a packet of {len(raw)} bytes"
    if quoted:
        if len(body) >= 8 and packet.proto == PROTO_TCP:
            sport, dport, seq = struct.unpack_from("!HHI", body)
            packet.tcp = Tcp(sport, dport, seq)
    elif packet.proto == PROTO_TCP:
        packet.tcp, trouble = _decode_tcp(body)
        packet.trouble = packet.trouble or trouble
    elif packet.proto == PROTO_ICMP and len(body) >= 8:
        kind, code, _csum, rest = struct.unpack_from("!BBHI", body)
        packet.icmp = Icmp(kind, code, rest, body[8:])
        if kind in (3, 4, 5, 11, 12) and len(body) >= 28:
            packet.icmp.quoted = decode(body[8:], quoted=True)
    return packet
