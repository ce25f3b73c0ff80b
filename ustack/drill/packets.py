"""Script packets and live packets: building what is injected, comparing what was emitted.

A script counts from the first sequence numbers of both sides; `Flow` holds the translation of one
connection (language description, section 3).  Comparison goes in the reference's order: IP header,
TCP header, options, payload; the first difference ends it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ustack.drill import codec
from ustack.drill.codec import ACK, AE, CWR, ECE, FIN, PSH, RST, SYN, URG
from ustack.drill.nodes import Direction, IcmpPacket, TcpOption, TcpPacket
from ustack.drill.options import Options, UnsupportedError
from ustack.drill.parse import flags_text
from ustack.drill.symbols import icmp_code, icmp_type

MASK = 0xFFFFFFFF
_FIELD_NAMES = ((FIN, "FIN"), (SYN, "SYN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (URG, "URG"),
                (ECE, "ECE"),
                (CWR, "CWR"), (AE, "AE"))


class Difference(Exception):
    """What was expected and what came; both as a script would write them."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what, self.expected, self.got = what, str(expected), str(got)


class FlowState(Enum):
    NEW = auto()
    LISTENING = auto()
    PASSIVE_RECEIVED = auto()  # child made by an inbound packet, our SYN-ACK not seen yet
    PASSIVE_ANSWERED = auto()
    CONNECTING = auto()
    SYN_SENT = auto()
    ACTIVE_ANSWERED = auto()


@dataclass(eq=False, slots=True)
class Flow:
    """One connection as the script sees it: addresses, both sequence spaces, timestamps."""

    state: FlowState = FlowState.NEW
    local: tuple[str, int] = ("", 0)
    remote: tuple[str, int] = ("", 0)
    script_local_isn: int = 0
    script_remote_isn: int = 0
    live_local_isn: int = 0
    live_remote_isn: int = 0
    script_ports: tuple[int, int] | None = None  # (local, remote) as written in packets, if written
    next_isn: int | None = None  # of a SYN that asks for a new connection of the same client, until it is answered
    fd: int | None = None
    name: str = ""  # @label.N of a client by name
    ts_live: dict[int, int] = field(default_factory=dict)
    ts_first: tuple[int, int] | None = None  # (script, live) of the first outbound TS val

    def local_offset(self, syn: bool) -> int:
        """Add to a script number of our space to get the live one."""
        return (self.live_local_isn - (self.script_local_isn if syn else 0)) & MASK

    def remote_offset(self, syn: bool) -> int:
        """The same for the peer's space."""
        return (self.live_remote_isn - (self.script_remote_isn if syn else 0)) & MASK

    def known(self) -> bool:
        """Whether both ends' addresses are known."""
        return bool(self.local[1] and self.remote[0])


# --- injecting -----------------------------------------------------------------------------------------


def _tos(packet: TcpPacket | IcmpPacket) -> int:
    if packet.ip.tos is not None:
        return packet.ip.tos
    return codec.ECN_BITS[packet.ip.ecn] if packet.ip.ecn else 0


def _live_options(packet: TcpPacket, flow: Flow, options: Options, syn: bool) -> bytes:
    out = []
    for option in packet.options or ():
        if option.name == "sack":
            offset = flow.local_offset(syn)
            shifted = tuple(((a + offset) & MASK, (b + offset) & MASK) for a, b in option.blocks)
            option = replace(option, blocks=shifted)
        elif option.name == "TS" and option.b:
            option = replace(option, b=_live_ecr(flow, option, options))
        out.append(option)
    return codec.encode_options(out)


def _live_ecr(flow: Flow, option: TcpOption, options: Options) -> int:
    if option.b in flow.ts_live:
        return flow.ts_live[option.b]
    if options.tcp_ts_ecr_scaled and flow.ts_first is not None:
        script, live = flow.ts_first
        return (live + option.b - script) & MASK
    raise Difference("inbound TS ecr", "a TS val of an earlier outbound packet", option.b)


def build_tcp(packet: TcpPacket, flow: Flow, options: Options) -> tuple[bytes, int]:
    """The live packet of an inbound script line, and its gso_size (0 = not a super-segment)."""
    syn = bool(packet.flags & SYN)
    ack = packet.ack or 0
    if packet.flags & ACK:
        ack += flow.local_offset(syn)
    src, dst = codec.address(flow.remote[0]), codec.address(flow.local[0])
    segment = codec.tcp(src, dst, flow.remote[1], flow.local[1], packet.start + flow.remote_offset(syn), ack,
                        packet.flags, packet.win or 0, packet.urg,
                        _live_options(packet, flow, options, syn), bytes(packet.length))
    raw = codec.ipv4(codec.PROTO_TCP, src, dst, segment, _tos(packet), 255 if packet.ip.ttl is None
                     else packet.ip.ttl)
    return raw, options.mss if options.mss and packet.length > options.mss else 0


def build_icmp(packet: IcmpPacket, flow: Flow) -> bytes:
    """An ICMP message from the peer; an error quotes a segment of ours."""
    kind, code = icmp_numbers(packet)
    src, dst = codec.address(flow.remote[0]), codec.address(flow.local[0])
    rest, body = 0, b""
    if kind in (0, 8, 13, 14, 15, 16, 17, 18):
        rest = (packet.ident or 0) << 16
    elif packet.mtu is not None:
        rest = packet.mtu
    if kind in (3, 4, 5, 11, 12) or packet.quoted is not None:
        start, length = packet.quoted or (0, 0)
        quoted = struct.pack("!HHI", flow.local[1], flow.remote[1], (start + flow.local_offset(False)) & MASK)
        whole = codec.ipv4(codec.PROTO_TCP, dst, src, bytes(20 + length), ttl=64)
        body = whole[:20] + quoted
    return codec.ipv4(codec.PROTO_ICMP, src, dst, codec.icmp(kind, code, rest, body), _tos(packet),
                      255 if packet.ip.ttl is None else packet.ip.ttl)


def icmp_numbers(packet: IcmpPacket) -> tuple[int, int]:
    """Type and code of the words."""
    kind, code = icmp_type(packet.type), icmp_code(packet.type, packet.code)
    if kind is None or code is None:
        raise UnsupportedError(f"{packet.pos}: icmp {packet.type} {packet.code or ''}".rstrip())
    return kind, code


# --- comparing -----------------------------------------------------------------------------------------


def is_ours(flow: Flow, live: codec.Packet, icmp: bool = False) -> bool:
    """Whether an emitted packet belongs to the flow under test; learns our end of a connect().

    An ICMP message belongs to the flow that it quotes; one that quotes nothing (an echo reply) only to a
    line that expects ICMP (`icmp`).
    """
    if live.tcp is None:
        if live.icmp is None:
            return False
        quoted = live.icmp.quoted
        if quoted is not None and quoted.tcp is not None:
            return ((quoted.src, quoted.tcp.sport), (quoted.dst, quoted.tcp.dport)) == (flow.remote,
                                                                                        flow.local)
        return icmp and live.dst == flow.remote[0]
    src, dst = (live.src, live.tcp.sport), (live.dst, live.tcp.dport)
    if (src, dst) == (flow.local, flow.remote):
        return True
    if flow.state is FlowState.SYN_SENT and not flow.local[1] and dst == flow.remote \
            and live.tcp.flags & (SYN | ACK) == SYN:
        flow.local, flow.live_local_isn = src, live.tcp.seq
        return True
    return False


def script_options(live: codec.Tcp, expected: TcpPacket | None, flow: Flow) -> bytes:
    """The live options in script space; TS val relative to the first one seen, TS ecr as the script's."""
    offset = flow.remote_offset(bool(live.flags & SYN))
    want = next((o for o in (expected.options or ()) if o.name == "TS"), None) if expected else None
    out = b""
    for option in codec.decode_options(live.options):
        raw, words = option.raw, option.raw[2:]
        if option.whole and option.kind == 5 and len(words) % 8 == 0:
            edges = [(edge - offset) & MASK for edge in struct.unpack(f"!{len(words) // 4}I", words)]
            raw = raw[:2] + struct.pack(f"!{len(edges)}I", *edges)
        elif option.whole and option.kind == 8 and len(raw) == 10:
            val, ecr = struct.unpack("!II", words)
            if flow.ts_first is not None:
                val = (flow.ts_first[0] + val - flow.ts_first[1]) & MASK
            raw = raw[:2] + struct.pack("!II", val, want.b if want else ecr)
        out += raw
    return out


def live_text(live: codec.Packet, flow: Flow | None) -> str:
    """A live packet as a script line, in script space where the flow is known."""
    if live.icmp is not None:
        return f"icmp type_{live.icmp.type} code_{live.icmp.code}"
    tcp = live.tcp
    if tcp is None:
        return f"IP protocol {live.proto}, {len(live.raw)} bytes"
    seq, ack, options = tcp.seq, tcp.ack, tcp.options
    if flow is not None:
        syn = bool(tcp.flags & SYN)
        outbound = (live.src, tcp.sport) == flow.local
        ours, peers = flow.local_offset(syn), flow.remote_offset(syn)
        seq = (seq - (ours if outbound else peers)) & MASK
        if tcp.flags & ACK:
            ack = (ack - (peers if outbound else ours)) & MASK
        options = script_options(tcp, None, flow) if outbound else options
    words = [flags_text(tcp.flags), f"{seq}:{(seq + len(tcp.payload)) & MASK}({len(tcp.payload)})"]
    if tcp.flags & ACK or ack:
        words.append(f"ack {ack}")
    words.append(f"win {tcp.win}")
    if tcp.urg:
        words.append(f"urg {tcp.urg}")
    if options:
        words.append(f"<{codec.options_text(options)}>")
    return " ".join(words)


def script_text(packet: TcpPacket | IcmpPacket) -> str:
    """A script packet, normalised, without its direction."""
    if isinstance(packet, IcmpPacket):
        return " ".join(filter(None, ("icmp", packet.type, packet.code,
                                      f"mtu {packet.mtu}" if packet.mtu is not None else "")))
    words = [flags_text(packet.flags), f"{packet.start}:{packet.end}({packet.length})"]
    if packet.ack is not None:
        words.append(f"ack {packet.ack}")
    if packet.win is not None:
        words.append(f"win {packet.win}")
    if packet.urg:
        words.append(f"urg {packet.urg}")
    if packet.options is None:
        words.append("<...>")
    elif packet.options:
        words.append(f"<{codec.options_text(codec.encode_options(packet.options))}>")
    return " ".join(words)


def _check(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise Difference(what, expected, got)


def _compare_ip(expected: TcpPacket | IcmpPacket, live: codec.Packet) -> None:
    if live.trouble:
        raise Difference("packet", "a well-formed packet", live.trouble)
    _check("IP header checksum", "right", "right" if live.ip_csum_ok else "wrong")
    _check("IP version", 4, live.version)
    _check("IP header length", 5, live.ihl)
    info = expected.ip
    if info.tos is not None:
        _check("IP tos", f"{info.tos:#04x}", f"{live.tos:#04x}")
    elif info.ecn == "ect01":
        if live.tos & 3 not in (1, 2):
            raise Difference("IP ECN bits", "ect0 or ect1", live.tos & 3)
    elif info.ecn is not None:
        names = {value: name for name, value in codec.ECN_BITS.items()}
        _check("IP ECN bits", info.ecn, names[live.tos & 3])
    if info.ttl is not None:
        _check("IP ttl", info.ttl, live.ttl)


@dataclass(frozen=True, slots=True)
class Part:
    """Which piece of an expected packet a live one is, when several add up to it."""

    offset: int = 0
    first: bool = True
    last: bool = True


def _expected_flags(expected: TcpPacket, live: codec.Tcp, part: Part) -> int:
    """What segmentation makes of the flags: FIN only at the end, CWR only at the start, PSH as the whole
    at the end; before that it is not compared, since Linux sets it on every super-segment it sends."""
    flags = expected.flags
    if not part.last:
        flags = flags & ~(FIN | PSH) | live.flags & PSH
    if not part.first:
        flags &= ~CWR
    return flags


def compare_tcp(expected: TcpPacket, live: codec.Packet, flow: Flow, options: Options, part: Part) -> None:
    """Raise Difference unless the live packet is (this part of) the expected one."""
    _compare_ip(expected, live)
    tcp = live.tcp
    if tcp is None:
        raise Difference("protocol", "tcp", "icmp" if live.icmp else live.proto)
    syn = bool(tcp.flags & SYN)
    _check("sequence number", (expected.start + part.offset) & MASK,
           (tcp.seq - flow.local_offset(syn)) & MASK)
    live_ack = (tcp.ack - flow.remote_offset(syn)) & MASK if tcp.flags & ACK else tcp.ack
    flags = _expected_flags(expected, tcp, part)
    for bit, name in _FIELD_NAMES:
        _check(f"flag {name}", int(bool(flags & bit)), int(bool(tcp.flags & bit)))
    _check("acknowledgement number", expected.ack or 0, live_ack)
    _check("reserved bits", 0, tcp.reserved)
    if expected.win is not None:
        _check("window", expected.win, tcp.win)
    _check("urgent pointer", expected.urg, tcp.urg)
    _compare_ports(expected, flow)
    _remember_timestamp(expected, tcp, flow)
    if expected.options is not None:
        _compare_options(expected, tcp, flow, options)
    if part.first and part.last:
        _check("payload length", expected.length, len(tcp.payload))
    if any(tcp.payload):
        raise Difference("payload", "zero bytes", f"{tcp.payload[:16].hex()}...")
    if options.strict:
        _check("TCP checksum", "right", "right" if live.tcp_csum_ok() else "wrong")


def _compare_ports(expected: TcpPacket, flow: Flow) -> None:
    if expected.ports is None:
        return
    ours = expected.ports if expected.direction is Direction.OUTBOUND else expected.ports[::-1]
    if flow.script_ports is None:
        flow.script_ports = ours
    _check("ports (local, remote)", flow.script_ports, ours)


def _remember_timestamp(expected: TcpPacket, tcp: codec.Tcp, flow: Flow) -> None:
    want = next((o for o in expected.options or () if o.name == "TS"), None)
    have = next((o for o in codec.decode_options(tcp.options) if o.kind == 8 and len(o.raw) == 10), None)
    if want is None or have is None:
        return
    live = int.from_bytes(have.raw[2:6], "big")
    flow.ts_live[want.a] = live
    if flow.ts_first is None:
        flow.ts_first = (want.a, live)


def _compare_options(expected: TcpPacket, tcp: codec.Tcp, flow: Flow, options: Options) -> None:
    got = script_options(tcp, expected, flow)
    want = codec.encode_options(expected.options or ())
    have, need = codec.decode_options(got), codec.decode_options(want)
    shown = f"<{codec.options_text(want)}>", f"<{codec.options_text(got)}>"
    if len(have) != len(need):
        raise Difference("options", *shown)
    for a, b in zip(have, need, strict=True):
        if b.kind == 8 and a.kind == 8 and len(a.raw) == 10:
            tick = options.tcp_ts_tick_usecs
            delta = (int.from_bytes(a.raw[2:6], "big") - int.from_bytes(b.raw[2:6], "big")) & MASK
            delta = min(delta, (1 << 32) - delta)
            if tick and delta * tick > options.tolerance_usecs:
                raise Difference("TS val", *shown)
        elif a.raw != b.raw:
            raise Difference("options", *shown)
    _check("data offset", 5 + len(want) // 4, tcp.doff)


def compare_icmp(expected: IcmpPacket, live: codec.Packet) -> None:
    """Type and code, and the IP header as far as the line says it."""
    _compare_ip(expected, live)
    if live.icmp is None:
        raise Difference("protocol", "icmp", "tcp" if live.tcp else live.proto)
    kind, code = icmp_numbers(expected)
    _check("ICMP type", kind, live.icmp.type)
    _check("ICMP code", code, live.icmp.code)


def continues(before: codec.Packet, after: codec.Packet, size: int) -> bool:
    """Whether `after` can be the next piece of the same super-segment; `size` is the first piece's."""
    a, b = before.tcp, after.tcp
    return (a is not None and b is not None and b.seq == (a.seq + len(a.payload)) & MASK and b.ack == a.ack
            and b.win == a.win and b.options == a.options and len(a.payload) == size
            and 0 < len(b.payload) <= size)
