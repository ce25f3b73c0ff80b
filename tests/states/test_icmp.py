"""ICMP: answers, limits, and errors about packets of ours (facts N4, N10-N13, N20-N26)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import IP, TCP, UDP, Raw, raw  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed

PEER, SERVER = "192.0.2.2", "192.0.2.1"
SECOND = 1_000_000_000
SO_ERROR = (1, 4)
IP_RECVERR = (0, 11)


@pytest.fixture
def bed() -> Iterator[Testbed]:
    t = Testbed()
    yield t
    t.stack.close()


class Counted:
    """What nstat changed inside a with block, without what every packet changes."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed

    def __enter__(self) -> Counted:
        self.before = self.bed.stack.nstat()
        return self

    def __exit__(self, *_: object) -> None:
        now = self.bed.stack.nstat()
        skip = ("IpIn", "IpOut", "IpExtInOctets", "IpExtOutOctets", "IpExtInNoECT")
        self.got = {k: v - self.before.get(k, 0) for k, v in now.items()
                    if v != self.before.get(k, 0) and not k.startswith(skip)}


def message(type_: int, code: int = 0, rest: int = 0, body: bytes = b"", **kw: Any) -> bytes:
    icmp = struct.pack("!BBHI", type_, code, 0, rest) + body
    words = struct.unpack(f"!{(len(icmp) + 1) // 2}H", icmp + bytes(len(icmp) % 2))
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    return raw(IP(**{"src": PEER, "dst": SERVER, **kw}, proto=1) / Raw(icmp[:2] + total.to_bytes(2, "big") + icmp[4:]))


# ---- answers (N10-N12) ------------------------------------------------------------------------------------
def test_echo(bed: Testbed) -> None:
    with Counted(bed) as c:
        bed.inject(message(8, 5, 0x12340007, b"abc", tos=0x4B, ttl=1))
    ((_, packet),) = bed.stack.take()
    p = IP(packet)
    assert (p.src, p.dst, p.ttl, p.tos, int(p.flags)) == (SERVER, PEER, 64, 0x4B, 0)
    assert p.id != 0
    assert packet[20:22] == b"\0\5"
    assert packet[24:] == b"\x12\x34\x00\x07abc"
    assert c.got == {
        "IcmpInMsgs": 1, "IcmpInEchos": 1, "IcmpMsgInType8": 1, "IcmpOutMsgs": 1, "IcmpOutEchoReps": 1,
        "IcmpMsgOutType0": 1, "IpExtInCEPkts": 1,
    }


def test_timestamp(bed: Testbed) -> None:
    bed.inject(message(13, 3, 0x12340007, struct.pack("!III", 1, 0, 0)), at=5 * SECOND)
    ((_, packet),) = bed.stack.take()
    since_midnight = (1_700_000_000 + 5) % 86400 * 1000
    assert packet[20:22] == b"\x0e\0"
    assert packet[24:] == struct.pack("!IIII", 0x12340007, 1, since_midnight, since_midnight)
    assert bed.stack.nstat()["IcmpOutEchoReps"] == 1


@pytest.mark.parametrize(
    ("packet", "counted"),
    [
        (message(8)[:24], {"IcmpInErrors": 1}),
        (message(13, body=b"abc"), {"IcmpInErrors": 1, "IcmpInTimestamps": 1, "IcmpMsgInType13": 1}),
        (message(99), {"IcmpInErrors": 1, "IcmpMsgInType99": 1}),
        (message(19), {"IcmpInErrors": 1, "IcmpMsgInType19": 1}),
        (message(43), {"IcmpMsgInType43": 1}),
        (message(42), {"IcmpMsgInType42": 1}),
        (message(0), {"IcmpInEchoReps": 1, "IcmpMsgInType0": 1}),
        (message(15), {"IcmpMsgInType15": 1}),
        (message(17), {"IcmpInAddrMasks": 1, "IcmpMsgInType17": 1}),
        (message(10), {"IcmpMsgInType10": 1}),
        (message(8, dst="192.0.2.255"), {"IcmpInErrors": 1, "IcmpInEchos": 1, "IcmpMsgInType8": 1}),
        (message(13, body=bytes(12), dst="224.0.0.1"), {"IcmpInErrors": 1, "IcmpInTimestamps": 1, "IcmpMsgInType13": 1}),
        (message(17, dst="192.0.2.255"), {"IcmpInAddrMasks": 1, "IcmpMsgInType17": 1}),
        (message(3, body=bytes(28)), {"IcmpInErrors": 1, "IcmpInDestUnreachs": 1, "IcmpMsgInType3": 1}),
        (message(3, body=b"\x45" + bytes(18)), {"IcmpInErrors": 1, "IcmpInDestUnreachs": 1, "IcmpMsgInType3": 1}),
    ],
)
def test_messages_that_draw_no_answer(bed: Testbed, packet: bytes, counted: dict[str, int]) -> None:
    if len(packet) == 24:       # cut short inside the ICMP header: the sum must still be right
        packet = raw(IP(src=PEER, dst=SERVER, proto=1) / Raw(b"\x08\x00\xf7\xff"))
    with Counted(bed) as c:
        bed.inject(packet)
    got = {k: v for k, v in c.got.items() if "cast" not in k}
    assert got == {"IcmpInMsgs": 1, **counted}
    assert bed.stack.take() == []


def test_bad_checksum(bed: Testbed) -> None:
    packet = bytearray(message(8))
    packet[23] ^= 1
    with Counted(bed) as c:
        bed.inject(bytes(packet))
    assert c.got == {"IcmpInMsgs": 1, "IcmpInErrors": 1, "IcmpInCsumErrors": 1}


def test_switches() -> None:
    with Testbed(sysctl={"net.ipv4.icmp_echo_ignore_all": 1}) as bed:
        bed.inject(message(8))
    bed = Testbed(sysctl={"net.ipv4.icmp_echo_ignore_broadcasts": 0})
    bed.inject(message(8, dst="192.0.2.255"))
    ((_, packet),) = bed.stack.take()
    assert IP(packet).src == SERVER
    bed.stack.close()


# ---- limits (N13) -----------------------------------------------------------------------------------------
def udp(src: str = PEER) -> bytes:
    return raw(IP(src=src, dst=SERVER) / UDP(sport=5, dport=53))


def burst(bed: Testbed, n: int, src: str = PEER) -> int:
    for _ in range(n):
        bed.inject(udp(src))
    return len(bed.stack.take())


def test_six_errors_then_one_a_second(bed: Testbed) -> None:
    assert burst(bed, 30) == 6
    assert bed.stack.nstat()["IcmpOutRateLimitHost"] == 24
    bed.stack.run_until(SECOND - 4_000_000)
    assert burst(bed, 5) == 0
    bed.stack.run_until(SECOND)
    assert burst(bed, 5) == 1
    bed.stack.run_until(3 * SECOND)
    assert burst(bed, 5) == 2
    bed.stack.run_until(100 * SECOND)
    assert burst(bed, 30) == 6


def test_each_destination_has_its_own_limit(bed: Testbed) -> None:
    assert [burst(bed, 8, f"192.0.2.{i}") for i in range(2, 6)] == [6, 6, 6, 6]


def test_global_limit(bed: Testbed) -> None:
    """Fifty at a price of 0 to 2 each, then what msgs_per_sec gives back."""
    sent = burst_of_many(bed)
    assert 25 <= sent < 120
    assert bed.stack.nstat()["IcmpOutRateLimitGlobal"] == 200 - sent
    bed.stack.run_until(10_000_000)
    assert burst(bed, 1, "192.0.2.250") == 0
    bed.stack.run_until(60_000_000)
    assert burst(bed, 1, "192.0.2.250") == 1


def burst_of_many(bed: Testbed) -> int:
    return sum(burst(bed, 1, f"192.0.2.{2 + i}") for i in range(200))


def test_no_limit_for_what_is_not_in_the_mask(bed: Testbed) -> None:
    for _ in range(100):
        bed.inject(message(8))
    assert len(bed.stack.take()) == 100
    bed.stack.sysctl["net.ipv4.icmp_ratemask"] = 0
    assert burst(bed, 30) == 30


def test_never_about_an_error_or_a_later_fragment(bed: Testbed) -> None:
    bed.inject(raw(IP(src=PEER, dst=SERVER, proto=253, frag=8) / Raw(b"x" * 8)))
    assert bed.stack.take() == []


# ---- errors about half-open connections (N20) -------------------------------------------------------------
def error(quoted: bytes, type_: int, code: int, rest: int = 0, src: str = "198.51.100.254") -> bytes:
    return message(type_, code, rest, quoted[:28], src=src)


def half_open(bed: Testbed) -> bytes:
    bed.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=1000, dport=80, flags="S", seq=10000)))
    ((_, syn_ack),) = bed.stack.take()
    return syn_ack


KILLERS = {(3, 0), (3, 1), (11, 0)}


@pytest.mark.parametrize(
    ("type_", "code"),
    [*((3, c) for c in range(17)), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0), (12, 1)],
)
def test_request(bed: Testbed, type_: int, code: int) -> None:
    syn_ack = half_open(bed)
    with Counted(bed) as c:
        bed.inject(error(syn_ack, type_, code))
    killed = type_ == 12 or (type_, code) in KILLERS
    assert bed.half_open() == (not killed)
    assert c.got.get("TcpExtListenDrops", 0) == killed
    assert "IcmpInErrors" not in c.got
    assert "TcpAttemptFails" not in c.got
    assert bed.stack.take() == []


@pytest.mark.parametrize("off", [-1, 1, 70000])
def test_request_with_another_number(bed: Testbed, off: int) -> None:
    syn_ack = bytearray(half_open(bed))
    syn_ack[24:28] = ((int.from_bytes(syn_ack[24:28], "big") + off) % 2**32).to_bytes(4, "big")
    with Counted(bed) as c:
        bed.inject(error(bytes(syn_ack), 3, 1))
    assert bed.half_open() == 1
    assert c.got["TcpExtOutOfWindowIcmps"] == 1


def test_no_such_connection(bed: Testbed) -> None:
    syn_ack = bytearray(half_open(bed))
    syn_ack[22:24] = b"\x12\x34"
    with Counted(bed) as c:
        bed.inject(error(bytes(syn_ack), 3, 1))
    assert c.got == {"IcmpInMsgs": 1, "IcmpInErrors": 1, "IcmpInDestUnreachs": 1, "IcmpMsgInType3": 1}
    with Counted(bed) as c:
        bed.inject(message(3, 1, 0, half_open_quote_of(27)))
    assert c.got["IcmpInErrors"] == 1


def half_open_quote_of(n: int) -> bytes:
    return raw(IP(src=SERVER, dst=PEER) / TCP(sport=80, dport=1000, flags="SA"))[:n]


# ---- errors about connections (N21-N24) -------------------------------------------------------------------
def established(bed: Testbed, data: int = 1000) -> tuple[Any, list[bytes]]:
    """An accepted connection with data in flight, and the packets that carry it."""
    bed.connect(1000, 0.0, "mss 1460,nop,ws 7")
    sock, _ = bed.listener.accept()
    sock.setblocking(False)
    if data:
        sock.send(b"x" * data)
    return sock, [p for _, p in bed.stack.take()]


def so_error(sock: Any) -> int:
    return int(sock.getsockopt(*SO_ERROR))


ERRNO = {
    0: 101, 1: 113, 2: 92, 3: 111, 5: 95, 6: 101, 7: 112, 8: 64, 9: 101, 10: 113, 11: 101, 12: 113, 13: 113, 14: 113, 15: 113,
}


@pytest.mark.parametrize(
    ("type_", "code", "errno"),
    [*((3, c, e) for c, e in ERRNO.items()), (3, 16, 0), (11, 0, 113), (11, 1, 0), (12, 0, 71), (4, 0, 0), (5, 0, 0)],
)
def test_soft_error(bed: Testbed, type_: int, code: int, errno: int) -> None:
    sock, (segment,) = established(bed)
    bed.inject(error(segment, type_, code))
    assert so_error(sock) == errno
    assert sock.poll() & 8 == 0
    assert [r["state"] for r in bed.rows("ESTAB")] == ["ESTAB"]


def test_hard_error_if_asked_for(bed: Testbed) -> None:
    sock, (segment,) = established(bed)
    sock.setsockopt(*IP_RECVERR, 1)
    bed.inject(error(segment, 3, 1))
    assert sock.poll() & 8
    with pytest.raises(OSError, match=r"113"):
        sock.recv(1)
    assert len(bed.rows("ESTAB")) == 1


def test_quote_outside_of_what_is_in_flight(bed: Testbed) -> None:
    sock, (segment,) = established(bed)
    for off, counted in ((-1, 1), (1001, 1), (1000, 0), (0, 0)):
        quote = bytearray(segment)
        quote[24:28] = ((int.from_bytes(segment[24:28], "big") + off) % 2**32).to_bytes(4, "big")
        with Counted(bed) as c:
            bed.inject(error(bytes(quote), 3, 1))
        assert c.got.get("TcpExtOutOfWindowIcmps", 0) == counted, off
    assert so_error(sock) == 113


def test_time_wait_is_left_alone(bed: Testbed) -> None:
    sock, _ = established(bed, 0)
    sock.close()
    bed.run("0.0 > F. 1 ack 1\n0.0 < F. 1 ack 2 win 500\n0.0 > . 2 ack 2")
    assert len(bed.rows("TIME-WAIT")) == 1
    quote = raw(IP(src=SERVER, dst=PEER) / TCP(sport=80, dport=1000, flags="A"))
    with Counted(bed) as c:
        bed.inject(error(quote, 3, 1))
    assert len(bed.rows("TIME-WAIT")) == 1
    assert c.got == {"IcmpInMsgs": 1, "IcmpInDestUnreachs": 1, "IcmpMsgInType3": 1}


def test_min_ttl_holds_for_errors_too(bed: Testbed) -> None:
    sock, (segment,) = established(bed)
    sock.setsockopt(0, 21, 255)
    bed.inject(message(3, 1, 0, segment[:28], ttl=254))
    assert so_error(sock) == 0
    assert bed.stack.nstat()["TcpExtTCPMinTTLDrop"] == 1


def test_backoff_is_taken_back(bed: Testbed) -> None:
    """RFC 6069: without TLP (no SACK) the timer has run three times, at 0.2, 0.6 and 1.4 s."""
    _, (segment,) = established(bed, 100)
    times = [at for at, _ in bed.stack.run_until(1_800_000_000)]
    assert len(times) == 3
    before = bed.stack.next_timeout()
    bed.inject(error(segment, 3, 1))
    after = bed.stack.next_timeout()
    assert before is not None and after is not None
    assert after - times[-1] == (before - times[-1]) // 2
    bed.stack.run_until(after)
    bed.inject(error(segment, 3, 3))    # a closed port says nothing about the route
    assert bed.stack.next_timeout() == after + (before - times[-1])


# ---- path MTU (N24) ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mtu", "largest", "df"),
    [
        (1400, 1400, True),
        (576, 576, True),
        (552, 552, True),
        (500, 552, False),
        (0, 552, False),
    ],
)
def test_fragmentation_needed(bed: Testbed, mtu: int, largest: int, df: bool) -> None:
    sock, segments = established(bed, 4000)
    assert [len(p) for p in segments] == [1500, 1500, 1120]
    bed.inject(error(segments[0], 3, 4, mtu))
    again = [p for _, p in bed.stack.take()]
    assert sum(len(p) - 40 for p in again) == 4000
    assert len(again) >= 3
    assert max(len(p) for p in again) == largest
    assert all(bool(p[6] & 0x40) == df for p in again)
    n = bed.stack.nstat()
    assert n["TcpRetransSegs"] == n["TcpExtTCPSlowStartRetrans"] == len(again)
    assert sock.getsockopt(0, 14) == largest


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_fragmentation_needed_that_changes_nothing(bed: Testbed, mtu: int) -> None:
    sock, segments = established(bed, 4000)
    bed.inject(error(segments[0], 3, 4, mtu))
    assert bed.stack.take() == []
    assert sock.getsockopt(0, 14) == 1500


def test_a_learned_mtu_holds_for_new_connections_for_ten_minutes(bed: Testbed) -> None:
    sock, segments = established(bed, 4000)
    bed.inject(error(segments[0], 3, 4, 1000))
    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
    sock.close()
    bed.stack.take()
    for at, mss in ((599, 960), (600, 1460)):
        bed.stack.run_until(at * SECOND)
        port = 2000 + at
        bed.stack.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=port, dport=80, flags="S", options=[("MSS", 1460)])))
        ((_, syn_ack),) = bed.stack.take()
        assert dict(IP(syn_ack)[TCP].options)["MSS"] == mss


@pytest.mark.parametrize("how", ["route", "sysctl"])
def test_a_learned_mtu_is_forgotten_on_demand(bed: Testbed, how: str) -> None:
    """`ip route flush cache`, which writes net.ipv4.route.flush; a connection finds the route's MTU with its next segment."""
    sock, segments = established(bed, 4000)
    bed.inject(error(segments[0], 3, 4, 1000))
    bed.stack.take()
    if how == "route":
        bed.stack.route("flush cache")
    else:
        bed.stack.sysctl["net.ipv4.route.flush"] = 1
    assert sock.getsockopt(0, 14) == 1000
    bed.line("0.0 < . 1 ack 4001 win 65535")
    sock.send(b"x")                     # looks up the route; what is cut from now on is longer
    sock.send(b"x" * 2000)
    assert sock.getsockopt(0, 14) == 1500
    assert [len(p) for _, p in bed.stack.take()] == [41, 1500]
    bed.stack.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=2000, dport=80, flags="S", options=[("MSS", 1460)])))
    ((_, syn_ack),) = bed.stack.take()
    assert dict(IP(syn_ack)[TCP].options)["MSS"] == 1460
    with pytest.raises(PermissionError, match="write-only"):
        bed.stack.sysctl["net.ipv4.route.flush"]


def test_path_mtu_discovery_switched_off() -> None:
    bed = Testbed(sysctl={"net.ipv4.ip_no_pmtu_disc": 1})
    _, segments = established(bed, 4000)
    assert segments[0][6] & 0x40 == 0
    bed.inject(error(segments[0], 3, 4, 1000))
    assert bed.stack.take() == []
    bed.stack.close()
