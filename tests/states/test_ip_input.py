"""IPv4 input: header checks, destinations, options, protocols that nobody handles (facts N1-N6, B0, B32, B33, C13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, UDP, Raw, raw  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed

PEER, SERVER = "192.0.2.2", "192.0.2.1"


@pytest.fixture
def bed() -> Iterator[Testbed]:
    t = Testbed()
    yield t
    t.stack.close()


def ip(**kw: Any) -> Any:
    return IP(**{"src": PEER, "dst": SERVER, **kw})


def syn(port: int = 80) -> Any:
    return TCP(sport=1000, dport=port, flags="S", seq=10000, window=65535)


def deliver(bed: Testbed, packet: bytes) -> tuple[dict[str, int], list[str], list[Any]]:
    """Counters that changed (but InReceives and the like), drop reasons, packets that came out."""
    stats, drops = bed.stack.nstat(zeros=True), bed.stack.drops()
    bed.inject(packet)
    now, after = bed.stack.nstat(zeros=True), bed.stack.drops()
    noise = ("IpInReceives", "IpInDelivers", "IpOutRequests", "IpOutTransmits", "IpExtInOctets", "IpExtOutOctets")
    counted = {k: v - stats.get(k, 0) for k, v in now.items() if v != stats.get(k, 0) and k not in noise and "ECT" not in k}
    reasons = [k for k in after if after[k] != drops.get(k, 0)]
    return counted, reasons, [IP(p) for _, p in bed.stack.take()]


def patched(packet: Any, offset: int, value: bytes, fix: bool = True) -> bytes:
    """The packet with some header bytes replaced, header checksum made right again unless told otherwise."""
    data = bytearray(raw(packet))
    data[offset : offset + len(value)] = value
    if fix:
        data[10:12] = b"\0\0"
        size = (data[0] & 15) * 4
        total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, size, 2))
        total = (total & 0xFFFF) + (total >> 16)
        data[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")
    return bytes(data)


def with_options(options: bytes) -> bytes:
    """A SYN with these IP options (a multiple of 4 bytes), whatever they are."""
    plain = raw(ip(ihl=5 + len(options) // 4, len=40 + len(options)) / Raw(b""))[:20]
    segment = raw(ip() / syn())[20:]
    return patched(Raw(plain + options + segment), 9, b"\x06")


# ---- the header (N1) --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("packet", "counters", "reason"),
    [
        (b"", {"IpInHdrErrors": 1}, "PKT_TOO_SMALL"),
        (raw(ip() / syn())[:19], {"IpInHdrErrors": 1}, "PKT_TOO_SMALL"),
        (patched(ip() / syn(), 0, b"\x55"), {"IpInHdrErrors": 1}, "IP_INHDR"),
        (patched(ip() / syn(), 0, b"\x44", fix=False), {"IpInHdrErrors": 1}, "IP_INHDR"),
        (raw(ip() / Raw(b"x" * 10))[:30].replace(b"\x45", b"\x4f", 1), {"IpInHdrErrors": 1}, "PKT_TOO_SMALL"),
        (
            patched(ip() / syn(), 10, b"\x12\x34", fix=False),
            {"IpInHdrErrors": 1, "IpExtInCsumErrors": 1},
            "IP_CSUM",
        ),
        (patched(ip() / syn(), 2, b"\x00\x29"), {"IpExtInTruncatedPkts": 1}, "IP_TRUNCATED"),
        (patched(ip() / syn(), 2, b"\x00\x13"), {"IpInHdrErrors": 1}, "IP_INHDR"),
    ],
    ids=["empty", "short", "version5", "ihl4", "ihl60", "checksum", "longer", "total-below-header"],
)
def test_bad_header(bed: Testbed, packet: bytes, counters: dict[str, int], reason: str) -> None:
    assert deliver(bed, packet) == (counters, [reason], [])


@pytest.mark.parametrize(
    "packet",
    [
        raw(ip(flags="DF") / syn()) + b"trailing bytes",
        raw(ip(flags="evil") / syn()),
        raw(ip(ttl=0) / syn()),
        raw(ip(ttl=1) / syn()),
        raw(ip(tos=0xFF) / syn()),
    ],
    ids=["trailing", "evil-bit", "ttl0", "ttl1", "tos"],
)
def test_odd_but_good_header(bed: Testbed, packet: bytes) -> None:
    _, reasons, out = deliver(bed, packet)
    assert reasons == []
    assert [p[TCP].flags for p in out] == ["SA"]


def test_ecn_field_is_counted_before_the_checksum(bed: Testbed) -> None:
    names = ["IpExtInNoECTPkts", "IpExtInECT1Pkts", "IpExtInECT0Pkts", "IpExtInCEPkts"]
    for ecn, name in enumerate(names):
        bed.inject(patched(ip(tos=ecn) / syn(), 10, b"\0\1", fix=False))
        got = bed.stack.nstat(zeros=True)
        assert [got[n] for n in names] == [1] * (ecn + 1) + [0] * (3 - ecn), name


# ---- who is it for (N3, B32) ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("src", "dst", "counters", "reason"),
    [
        (SERVER, SERVER, {}, "IP_LOCAL_SOURCE"),
        ("0.0.0.0", SERVER, {}, "IP_INVALID_SOURCE"),
        ("255.255.255.255", SERVER, {}, "IP_INVALID_SOURCE"),
        ("224.0.0.5", SERVER, {}, "IP_INVALID_SOURCE"),
        ("127.0.0.1", SERVER, {}, "IP_INVALID_SOURCE"),
        (PEER, "127.0.0.1", {}, "IP_INVALID_DEST"),
        (PEER, "0.0.0.0", {}, "IP_INVALID_DEST"),
        (PEER, "192.0.2.0", {"IpInAddrErrors": 1}, "IP_INADDRERRORS"),
        (PEER, "192.0.2.9", {"IpInAddrErrors": 1}, "IP_INADDRERRORS"),
        (PEER, "224.0.0.251", {}, "IP_INVALID_DEST"),
    ],
)
def test_martians(bed: Testbed, src: str, dst: str, counters: dict[str, int], reason: str) -> None:
    assert deliver(bed, raw(IP(src=src, dst=dst) / syn())) == (counters, [reason], [])


@pytest.mark.parametrize(
    ("dst", "kind"),
    [("192.0.2.255", "Bcast"), ("255.255.255.255", "Bcast"), ("224.0.0.1", "Mcast")],
)
def test_broadcast_and_multicast_are_counted(bed: Testbed, dst: str, kind: str) -> None:
    counted, reasons, out = deliver(bed, raw(IP(src=PEER, dst=dst) / syn()))
    assert counted == {
        f"IpExtIn{kind}Pkts": 1,
        f"IpExtIn{kind}Octets": 40,
        "TcpInSegs": 1,
        "TcpExtListenDrops": 1,
    }
    assert (reasons, out) == (["TCP_LISTEN_BCAST"], [])


def test_an_answer_to_the_broadcast_address_is_heard_by_ourselves(bed: Testbed) -> None:
    counted, reasons, out = deliver(bed, raw(IP(src="192.0.2.255", dst=SERVER) / syn()))
    assert [p[TCP].flags for p in out] == ["SA"]
    assert counted["IpExtOutBcastPkts"] == counted["IpExtInBcastPkts"] == 1
    assert counted["TcpInSegs"] == 1
    assert reasons == ["NOT_SPECIFIED"]


# ---- options (N2, C13) ------------------------------------------------------------------------------------
RR = b"\x07\x0b\x04" + bytes(8)
US = bytes([192, 0, 2, 1])


@pytest.mark.parametrize(
    ("options", "echoed"),
    [
        (b"", b""),
        (b"\x01\x01\x01\x01", b""),
        (b"\x94\x04\x00\x00", b""),
        (b"\x99\x04\x00\x00", b""),
        (RR + b"\0", b"\x07\x0b\x0c" + US + US + b"\0"),
        (b"\x07\x07\x04" + bytes(4) + b"\0", b"\x07\x07\x08" + US + b"\0"),
        (b"\x07\x07\x08" + bytes(4) + b"\0", b"\x07\x07\x08" + bytes(4) + b"\0"),
        (b"\x44\x04\x05\x00", b"\x44\x04\x05\x10"),
    ],
    ids=["none", "nops", "router-alert", "unknown", "rr", "rr-one", "rr-full", "ts-full"],
)
def test_options_of_a_syn(bed: Testbed, options: bytes, echoed: bytes) -> None:
    bed.inject(with_options(options))
    ((_, answer),) = bed.stack.take()
    size = (answer[0] & 15) * 4
    assert answer[20:size] == echoed
    assert answer[size + 13] == 0x12


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        (b"\x07\x02\x04\x00", 21),
        (b"\x07\x0b\x03" + bytes(8) + b"\0", 22),
        (b"\x07\x0b\x0a" + bytes(8) + b"\0", 22),
        (b"\x01\x07\x0c\x04" + bytes(8), 21),
        (b"\x07\x01\x04\x00", 20),
        (b"\x01\x01\x01\x07", 23),
        (b"\x44\x03\x05\x00", 21),
        (b"\x44\x04\x04\x00", 22),
        (b"\x44\x04\x05\xf0", 23),
        (b"\x94\x03\x00\x00", 21),
        (RR + RR + b"\0\0", 31),
    ],
)
def test_bad_options_are_complained_about(bed: Testbed, options: bytes, pointer: int) -> None:
    options += bytes(-len(options) % 4)
    counted, reasons, out = deliver(bed, with_options(options))
    assert counted == {
        "IpInHdrErrors": 1,
        "IcmpOutMsgs": 1,
        "IcmpOutParmProbs": 1,
        "IcmpMsgOutType12": 1,
    }
    assert reasons == ["IP_INHDR"]
    (answer,) = out
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].ptr) == (12, 0, pointer)


@pytest.mark.parametrize("kind", [131, 137])
@pytest.mark.parametrize("pointer", [4, 8])
def test_source_routes_are_refused(bed: Testbed, kind: int, pointer: int) -> None:
    packet = with_options(bytes([kind, 7, pointer, 198, 51, 100, 1, 0]))
    assert deliver(bed, packet) == ({}, ["IP_SOURCE_ROUTE"], [])


def test_a_finished_source_route_can_be_allowed() -> None:
    with Testbed(sysctl={"net.ipv4.conf.all.accept_source_route": 1}) as bed:
        bed.inject(with_options(bytes([131, 7, 8, 198, 51, 100, 1, 0])))
        assert len(bed.stack.take()) == 1


# ---- protocols without a user (N4) ------------------------------------------------------------------------
def test_unknown_protocol(bed: Testbed) -> None:
    packet = raw(ip(proto=253, tos=0x12) / Raw(b"z" * 900))
    counted, reasons, (answer,) = deliver(bed, packet)
    assert counted == {
        "IpInUnknownProtos": 1,
        "IcmpOutMsgs": 1,
        "IcmpOutDestUnreachs": 1,
        "IcmpMsgOutType3": 1,
    }
    assert reasons == ["IP_NOPROTO"]
    assert (answer.src, answer.dst, answer.ttl, answer.tos, int(answer.flags)) == (SERVER, PEER, 64, 0xD2, 0)
    assert answer.id != 0
    assert len(raw(answer)) == 576
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 2)
    assert raw(answer)[28:] == packet[:548]


def test_udp_closed_port(bed: Testbed) -> None:
    packet = raw(ip() / UDP(sport=5, dport=53) / b"question")
    counted, reasons, (answer,) = deliver(bed, packet)
    assert counted["UdpNoPorts"] == 1
    assert reasons == ["UDP_NO_PORT"]
    assert (answer.tos, answer[ICMP].type, answer[ICMP].code) == (0xC0, 3, 3)
    assert raw(answer)[28:] == packet


@pytest.mark.parametrize(
    ("packet", "counters"),
    [
        (ip(proto=17) / Raw(b"1234567"), {"UdpInErrors": 1}),
        (ip() / UDP(sport=5, dport=53, len=20), {"UdpInErrors": 1}),
        (ip() / UDP(sport=5, dport=53, len=7), {"UdpInErrors": 1}),
        (ip() / UDP(sport=5, dport=53, chksum=0x1234) / b"x", {"UdpInErrors": 1, "UdpInCsumErrors": 1}),
    ],
)
def test_bad_udp(bed: Testbed, packet: Any, counters: dict[str, int]) -> None:
    counted, _, out = deliver(bed, raw(packet))
    assert (counted, out) == (counters, [])


def test_udp_without_checksum_is_good(bed: Testbed) -> None:
    assert len(deliver(bed, raw(ip() / UDP(sport=5, dport=53, chksum=0) / b"x"))[2]) == 1


@pytest.mark.parametrize("dst", ["192.0.2.255", "224.0.0.1"])
def test_nobody_complains_about_a_broadcast(bed: Testbed, dst: str) -> None:
    assert deliver(bed, raw(IP(src=PEER, dst=dst) / UDP(sport=5, dport=53)))[2] == []
    assert deliver(bed, raw(IP(src=PEER, dst=dst, proto=253) / Raw(b"x")))[2] == []


# ---- TCP up to the look-up (B0) ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("packet", "counters", "reason"),
    [
        (ip(proto=6) / Raw(b"x" * 19), {}, "PKT_TOO_SMALL"),
        (ip() / TCP(sport=1000, dport=80, flags="S", dataofs=4), {"TcpInErrs": 1}, "PKT_TOO_SMALL"),
        (ip() / TCP(sport=1000, dport=80, flags="S", dataofs=9), {}, "PKT_TOO_SMALL"),
        (
            ip() / TCP(sport=1000, dport=80, flags="S", chksum=0x1234),
            {"TcpInErrs": 1, "TcpInCsumErrors": 1},
            "TCP_CSUM",
        ),
        (
            ip() / TCP(sport=1000, dport=81, flags="S", chksum=0x1234),
            {"TcpInErrs": 1, "TcpInCsumErrors": 1},
            "TCP_CSUM",
        ),
    ],
)
def test_bad_tcp(bed: Testbed, packet: Any, counters: dict[str, int], reason: str) -> None:
    assert deliver(bed, raw(packet)) == ({"TcpInSegs": 1, **counters}, [reason], [])


def test_partial_checksum_is_believed(bed: Testbed) -> None:
    packet = raw(ip() / TCP(sport=1000, dport=80, flags="S", chksum=0x1234))
    assert bed.stack.inject(packet, csum=1) == 0
    assert len(bed.stack.take()) == 1


def test_port_zero(bed: Testbed) -> None:
    _, _, (answer,) = deliver(bed, raw(ip() / TCP(sport=0, dport=80, flags="S")))
    assert answer[TCP].flags == "SA"
    _, _, (answer,) = deliver(bed, raw(ip() / TCP(sport=1000, dport=0, flags="S", seq=5)))
    assert (answer[TCP].flags, answer[TCP].ack) == ("RA", 6)


def test_merged_segments_count_as_what_came_over_the_wire(bed: Testbed) -> None:
    bed.connect(1000, 0.0, "mss 1460,nop,ws 7")
    sock, _ = bed.listener.accept()
    synack = bed.flow(1000).stack_isn
    assert synack is not None
    data = TCP(sport=1000, dport=80, flags="A", seq=10001, ack=synack + 1, window=512, chksum=0) / Raw(b"x" * 4000)
    assert bed.stack.inject(raw(ip() / data), csum=1, gso_size=1460) == 0
    assert sock.recv(10_000) == b"x" * 4000
    info = sock.getsockopt(6, 11, 280)
    assert [int.from_bytes(info[i : i + 4], "little") for i in (140, 152)] == [2 + 3, 3]
    assert bed.stack.nstat()["TcpInSegs"] == 3
    assert bed.stack.nstat()["IpExtInNoECTPkts"] == 2 + 3
