"""Routes, their metrics, addresses and the MTU of the link, all changing at run time (facts B9, C7, C8, N3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import IP, TCP, raw  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed

SERVER = "192.0.2.1"
SECOND = 1_000_000_000


@pytest.fixture
def bed() -> Iterator[Testbed]:
    t = Testbed(default_route=False)
    yield t
    t.stack.close()


def syn_ack(bed: Testbed, src: str = "192.0.2.2", dst: str = SERVER, port: int = 1000) -> Any:
    """The answer to a SYN, None if there is none."""
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    bed.inject(raw(IP(src=src, dst=dst) / TCP(sport=port, dport=80, flags="S", options=options)))
    out = bed.stack.take()
    return IP(out[0][1]) if out else None


def mss(packet: Any) -> int:
    return int(dict(packet[TCP].options)["MSS"])


def test_longest_prefix_wins(bed: Testbed) -> None:
    stack = bed.stack
    stack.route("add 198.51.0.0/16 dev tun0 advmss 1000")
    stack.route("add 198.51.100.0/24 dev tun0 advmss 900")
    stack.route("add 198.51.100.7 dev tun0 advmss 800")
    stack.route("add default dev tun0 advmss 700")
    peers = ["198.51.1.1", "198.51.100.1", "198.51.100.7", "203.0.113.1", "192.0.2.2"]
    assert [mss(syn_ack(bed, p)) for p in peers] == [1000, 900, 800, 700, 1460]
    stack.route("del 198.51.100.0/24")
    assert mss(syn_ack(bed, "198.51.100.1", port=2)) == 1000
    stack.route("del default")
    assert syn_ack(bed, "203.0.113.1", port=2) is None


def test_the_default_route_is_a_switch() -> None:
    for on, answered in ((True, True), (False, False)):
        bed = Testbed(default_route=on)
        for peer in ("203.0.113.9", "240.0.0.1"):
            assert (syn_ack(bed, peer) is not None) == answered
        assert bed.stack.nstat().get("IpOutNoRoutes", 0) == (0 if on else 2)
        assert bed.stack.nstat().get("TcpExtListenDrops", 0) == (0 if on else 2)
        bed.stack.close()


@pytest.mark.parametrize(
    ("words", "errno"),
    [
        ("add 192.0.2.0/24 dev tun0", 17),
        ("change 198.51.100.0/24 dev tun0", 2),
        ("del 198.51.100.0/24", 3),
        ("add 198.51.100.0/33", 22),
        ("frobnicate 198.51.100.0/24", 22),
        ("add 198.51.100.0/24 colour blue", 22),
        ("add 198.51.100.0/24 mtu", 22),
    ],
)
def test_commands_that_fail(bed: Testbed, words: str, errno: int) -> None:
    with pytest.raises(OSError) as caught:
        bed.stack.route(words)
    assert caught.value.errno == errno


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
def test_routes_that_lead_nowhere(bed: Testbed, kind: str) -> None:
    bed.stack.route("add default dev tun0")
    bed.stack.route(f"add {kind} 203.0.113.0/24")
    assert syn_ack(bed, "203.0.113.1") is None
    assert syn_ack(bed, "198.51.100.1") is not None
    assert bed.stack.nstat()["TcpExtListenDrops"] == 1


def test_change_replaces_all_metrics(bed: Testbed) -> None:
    bed.stack.route("change 192.0.2.0/24 dev tun0 advmss 700")
    assert mss(syn_ack(bed)) == 700
    bed.stack.route("change 192.0.2.0/24 dev tun0 mtu 1300")
    assert mss(syn_ack(bed, port=2)) == 1260
    bed.stack.route("change 192.0.2.0/24 dev tun0")
    assert mss(syn_ack(bed, port=3)) == 1460


@pytest.mark.parametrize(("mtu", "expected"), [(1400, 1360), (9000, 8960), (576, 536), (68, 256), (65535, 65495)])
def test_mtu_of_the_link(bed: Testbed, mtu: int, expected: int) -> None:
    bed.stack.link(mtu=mtu)
    assert mss(syn_ack(bed)) == expected


def test_a_connection_follows_the_mtu(bed: Testbed) -> None:
    bed.connect(1000, 0.0)
    sock, _ = bed.listener.accept()
    for mtu, size in ((1500, 1500), (1000, 1000), (1400, 1400)):
        bed.stack.link(mtu=mtu)
        sock.send(b"x" * 5000)
        assert max(len(p) for _, p in bed.stack.take()) == size
        seq = 1 + 5000 * (1 + [1500, 1000, 1400].index(mtu))
        bed.line(f"{bed.clock.now / 1e9:.9f} < . 1 ack {seq} win 512 <nop,nop,TS 1000 0>")
        assert sock.getsockopt(0, 14) == size


@pytest.mark.parametrize(
    ("metric", "window", "scale"),
    [("window 10000", 8688, 0), ("initrwnd 10", 14480, 10), ("initrwnd 100", 65160, 10), ("window 100000", 65160, 1)],
)
def test_window_metrics(bed: Testbed, metric: str, window: int, scale: int) -> None:
    bed.stack.route(f"change 192.0.2.0/24 dev tun0 {metric}")
    answer = syn_ack(bed)
    assert (answer[TCP].window, dict(answer[TCP].options)["WScale"]) == (window, scale)


@pytest.mark.parametrize("n", [1, 3, 30])
def test_initcwnd(bed: Testbed, n: int) -> None:
    bed.stack.route(f"change 192.0.2.0/24 dev tun0 initcwnd {n}")
    bed.connect(1000, 0.0)
    sock, _ = bed.listener.accept()
    sock.setblocking(False)
    sock.setsockopt(1, 7, 200_000)
    sock.send(b"x" * 60_000)
    assert len(bed.stack.take()) == n


def test_rto_min(bed: Testbed) -> None:
    bed.stack.route("change 192.0.2.0/24 dev tun0 rto_min 40ms")
    bed.connect(1000, 0.0, "mss 1460")
    sock, _ = bed.listener.accept()
    sock.send(b"x")
    bed.stack.take()
    assert bed.stack.next_timeout() == 40_000_000


def test_hoplimit_and_ecn(bed: Testbed) -> None:
    bed.stack.sysctl["net.ipv4.tcp_ecn"] = 0
    bed.stack.route("change 192.0.2.0/24 dev tun0 hoplimit 9 features ecn")
    bed.run("0.0 < SEW 0 <mss 1460>\n0.0 > SE. 0 ack 1 ttl 9")


def test_addresses_come_and_go(bed: Testbed) -> None:
    stack = bed.stack
    assert syn_ack(bed, dst="192.0.2.3") is None
    stack.address("add", "192.0.2.3/24 dev tun0")
    assert syn_ack(bed, dst="192.0.2.3").src == "192.0.2.3"
    stack.address("add", "203.0.113.1/28 dev tun0")
    assert syn_ack(bed, "203.0.113.2", "203.0.113.1").src == "203.0.113.1"
    assert syn_ack(bed, "203.0.113.2", "203.0.113.15") is None          # its broadcast address
    assert stack.drops()["TCP_LISTEN_BCAST"] == 1
    stack.address("del", "203.0.113.1/28")
    assert syn_ack(bed, "203.0.113.2", "203.0.113.1", port=3) is None
    assert syn_ack(bed, "203.0.113.2", port=3) is None                  # its prefix went with it
    stack.address("del", "192.0.2.1/24")
    assert syn_ack(bed, dst="192.0.2.3", port=4).src == "192.0.2.3"     # the other one keeps the prefix
    for op, text, errno in (("add", "192.0.2.3/24", 17), ("del", "192.0.2.9/24", 99), ("add", "224.0.0.1/24", 22)):
        with pytest.raises(OSError) as caught:
            stack.address(op, text)
        assert caught.value.errno == errno


def test_many_routes(bed: Testbed) -> None:
    for i in range(255):
        bed.stack.route(f"add 198.51.{i}.0/24 advmss {300 + i}")
    with pytest.raises(OSError):
        bed.stack.route("add 198.52.0.0/16")
    assert mss(syn_ack(bed, "198.51.254.1")) == 554
    bed.stack.route("del 198.51.7.0/24")
    bed.stack.route("add 198.52.0.0/16")
    assert mss(syn_ack(bed, "198.52.1.1")) == 1460


# ---- what earlier connections taught ----------------------------------------------------------------------
def finish(bed: Testbed, port: int, rtt: float) -> None:
    """A connection whose handshake took so long, closed in order."""
    t = bed.clock.now / 1e9
    later, stamp = f"{t + rtt:.6f}", 1000 + round(rtt * 1000)
    bed.line(f"{t:.6f} {port} < S 0 <mss 1460,sackOK,TS 1000 0,nop,ws 7>")
    bed.line(f"{t:.6f} {port} > S. 0 ack 1")
    bed.line(f"{later} {port} < . 1 ack 1 win 512 <nop,nop,TS {stamp} 0>")
    bed.listener.accept()[0].close()
    bed.swallow()
    bed.line(f"{later} {port} < F. 1 ack 2 win 512 <nop,nop,TS {stamp} 0>")
    bed.swallow()


def first_rto(bed: Testbed, port: int) -> int:
    """RTO in ms of a new connection whose handshake took no time."""
    bed.connect(port, bed.clock.now / 1e9)
    sock, _ = bed.listener.accept()
    return int.from_bytes(sock.getsockopt(6, 11, 280)[8:12], "little") // 1000


def test_metrics_seed_the_first_rto(bed: Testbed) -> None:
    """R + max(2 R, rto_min) of the cached R, until a flush forgets it. R: 7/8 of 0.3 s after the FIN's round trip of 0, in whole ticks."""
    finish(bed, 1000, 0.3)
    assert first_rto(bed, 2000) == 3 * 260
    bed.stack.tcp_metrics_flush()
    assert first_rto(bed, 2001) <= 204


def test_metrics_are_of_an_address_pair(bed: Testbed) -> None:
    finish(bed, 1000, 0.3)
    bed.peer = "192.0.2.3"
    assert first_rto(bed, 1000) <= 204


def test_metrics_can_be_switched_off(bed: Testbed) -> None:
    bed.stack.sysctl["net.ipv4.tcp_no_metrics_save"] = 1
    finish(bed, 1000, 0.3)
    assert first_rto(bed, 2000) <= 204


def test_a_route_seeds_the_metrics(bed: Testbed) -> None:
    bed.stack.route("change 192.0.2.0/24 dev tun0 rtt 50ms reordering 7")
    finish(bed, 1000, 0.0)
    bed.connect(2000, bed.clock.now / 1e9)
    sock, _ = bed.listener.accept()
    info = sock.getsockopt(6, 11, 280)
    assert int.from_bytes(info[88:92], "little") == 7
