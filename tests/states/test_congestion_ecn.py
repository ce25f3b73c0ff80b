"""A congestion control that needs ECN (Linux's TCP_CONG_NEEDS_ECN, as dctcp): who asks, who agrees, which packets are ECT(0), what it is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from scapy.layers.inet import IP, TCP

import ustack
from tests.kit.testbed import Testbed
from ustack import congestion

CONGESTION = (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
TOS = (socket.IPPROTO_IP, socket.IP_TOS)


class Needy(congestion.CongestionControl):
    name = "needy"
    ecn = True
    told: ClassVar[list[str]] = []

    def cwnd_event(self, *, event: int) -> None:
        self.told.append(congestion.CWND_EVENTS[event])


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    congestion.register(Needy)
    Needy.told.clear()
    yield
    congestion.unregister("needy")


def listening(**sysctl: int) -> Testbed:
    """A listener that was given the control; nobody else's settings ask for ECN."""
    t = Testbed(sysctl={"net.ipv4.tcp_ecn": 0, **{f"net.ipv4.{k}": v for k, v in sysctl.items()}})
    t.listener.setsockopt(*CONGESTION, b"needy")
    return t


# ---- passive -------------------------------------------------------------------------------------------------------------------
def test_a_listener_agrees_whatever_tcp_ecn_and_all_its_packets_are_ect0() -> None:
    with listening() as t:
        assert t.listener.getsockopt(*TOS) == 2
        t.run("""
            0.0 < SEW 0 win 65535 <mss 1460>
            0.0 > S.E 0 ack 1 tos 2
            1.0 > S.E 0 ack 1 tos 2             # repeated
            1.1 < . 1 ack 1 tos 2
            1.2 < P. 1(100) ack 1 tos 2
        """)
        conn, _ = t.listener.accept()
        assert conn.recv(200)
        t.run("1.2 > . 1 ack 101 tos 2           # an ACK without data too")
        conn.send(b"x" * 1000)
        t.run("""
            1.2 > P. 1(1000) ack 101 tos 2
            1.3 < . 101 ack 1001 tos 2
        """)
        conn.close()
        t.run("""
            1.3 > F. 1001 ack 101 tos 2
            1.6 > F. 1001 ack 101 tos 2
        """)


def test_a_retransmission_is_ect0() -> None:
    with listening() as t:
        t.run("0.0 < SEW 0 win 65535 <mss 1460>\n0.0 > S.E 0 ack 1\n0.0 < . 1 ack 1")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 100)
        t.run("0.0 > P. 1(100) ack 1 tos 2\n0.2 > P. 1(100) ack 1 tos 2")


def test_a_syn_that_is_ect_is_agreed_with() -> None:
    """Others take ECT in a SYN for the mark of a network that sets it, and do without ECN."""
    with listening() as t:
        t.run("0.0 < SEW 0 win 65535 tos 2 <mss 1460>\n0.0 > S.E 0 ack 1 tos 2")
    with Testbed(sysctl={"net.ipv4.tcp_ecn": 1}) as t:
        t.run("0.0 < SEW 0 win 65535 tos 2 <mss 1460>\n0.0 > S. 0 ack 1 tos 0")


def test_a_client_without_ecn_gets_an_ect0_synack_and_nothing_more() -> None:
    with listening() as t:
        t.run("0.0 < S 0 win 65535 <mss 1460>\n0.0 > S. 0 ack 1 tos 2\n0.0 < . 1 ack 1")
        conn, _ = t.listener.accept()
        assert conn.getsockopt(*CONGESTION, 16).rstrip(b"\0") == b"needy"
        conn.send(b"x" * 100)
        t.run("0.0 > P. 1(100) ack 1 tos 0")


def test_the_mark_stands_beside_a_reflected_tos() -> None:
    with listening(tcp_reflect_tos=1) as t:
        t.run("0.0 < SEW 0 win 65535 tos 0x20 <mss 1460>\n0.0 > S.E 0 ack 1 tos 0x22\n0.0 < . 1 ack 1 tos 0x20")
        conn, _ = t.listener.accept()
        conn.send(b"x")
        t.run("0.0 > P. 1(1) ack 1 tos 0x22")


def test_a_cookie_is_ect0_and_keeps_ecn_as_tcp_ecn_says() -> None:
    """cookie_ecn_ok asks the sysctl and the route, not the congestion control."""
    with listening(tcp_syncookies=2) as t:
        t.run("0.0 < SEW 0 win 65535 <mss 1460,sackOK,TS 1000 0,nop,ws 7>\n0.0 > S.E 0 ack 1 tos 2\n0.1 < . 1 ack 1 <nop,nop,TS 1001 0>")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 100)
        t.run("0.1 > P. 1(100) ack 1 tos 0")


def test_the_route_may_bring_it() -> None:
    with Testbed(sysctl={"net.ipv4.tcp_ecn": 0}) as t:
        t.stack.route("change 192.0.2.0/24 dev tun0 congctl needy")
        t.run("0.0 < SEW 0 win 65535 <mss 1460>\n0.0 > S.E 0 ack 1 tos 0\n0.0 < . 1 ack 1")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 100)
        t.run("0.0 > P. 1(100) ack 1 tos 2")


def test_another_choice_takes_the_mark_away() -> None:
    with listening() as t:
        t.listener.setsockopt(*CONGESTION, b"reno")
        assert t.listener.getsockopt(*TOS) == 0
        t.run("0.0 < SEW 0 win 65535 <mss 1460>\n0.0 > S. 0 ack 1 tos 0")


def test_the_default_of_new_sockets() -> None:
    with Testbed(sysctl={"net.ipv4.tcp_ecn": 0}) as t:
        t.stack.sysctl["net.ipv4.tcp_congestion_control"] = "needy"
        assert t.stack.socket().getsockopt(*TOS) == 2


# ---- active --------------------------------------------------------------------------------------------------------------------
def opened(answer: str) -> tuple[Any, Any, list[Any]]:
    """(stack, socket, packets) of an active open that is answered with these flags."""
    stack = ustack.Stack(None, "192.0.2.1/24", clock=ustack.VirtualClock(), seed=1, sysctl={"net.ipv4.tcp_ecn": 0})
    sock = stack.socket()
    sock.setblocking(False)
    sock.setsockopt(*CONGESTION, b"needy")
    with pytest.raises(BlockingIOError):
        sock.connect(("192.0.2.9", 80))
    ((_, syn),) = stack.take()
    out = [IP(syn)]
    stack.inject(bytes(IP(src="192.0.2.9", dst="192.0.2.1") / TCP(
        sport=80, dport=out[0][TCP].sport, flags=answer, seq=7, ack=out[0][TCP].seq + 1, window=65535, options=[("MSS", 1460)])))
    sock.send(b"x" * 100)
    return stack, sock, out + [IP(p) for _, p in stack.take()]


def test_an_active_open_asks_for_it() -> None:
    stack, _, (syn, ack, data) = opened("SAE")
    with stack:
        assert (str(syn[TCP].flags), syn.tos) == ("SEC", 2)
        assert (ack.tos, data.tos) == (2, 2)


def test_a_server_that_does_not_agree_gets_not_ect() -> None:
    stack, sock, (syn, ack, data) = opened("SA")
    with stack:
        assert (syn.tos, ack.tos, data.tos) == (2, 0, 0)
        assert sock.getsockopt(*TOS) == 0


# ---- what it is told --------------------------------------------------------------------------------------------------------------
def test_it_is_told_of_every_mark() -> None:
    with listening() as t:
        t.run("0.0 < SEW 0 win 65535 <mss 1460>\n0.0 > S.E 0 ack 1\n0.0 < . 1 ack 1 tos 2")
        conn, _ = t.listener.accept()
        Needy.told.clear()
        t.run("""
            0.1 < P. 1(100) ack 1 tos 2
            0.1 > . 1 ack 101 tos 2
            0.2 < P. 101(100) ack 1 tos 3
            0.2 > .E 1 ack 201 tos 2
            0.3 < PW. 201(100) ack 1 tos 2
            0.3 > . 1 ack 301 tos 2
        """)
        assert len(conn.recv(1000)) == 300
        assert Needy.told == ["ECN_NO_CE", "ECN_IS_CE", "ECN_NO_CE"]


def test_who_does_not_need_it_is_not_told() -> None:
    Needy.ecn = False
    try:
        with Testbed(sysctl={"net.ipv4.tcp_ecn": 1}) as t:
            t.listener.setsockopt(*CONGESTION, b"needy")
            t.run("0.0 < SEW 0 win 65535 <mss 1460>\n0.0 > S.E 0 ack 1 tos 0\n0.0 < . 1 ack 1 tos 2")
            conn, _ = t.listener.accept()
            t.run("0.2 < P. 1(100) ack 1 tos 3\n0.2 > .E 1 ack 101 tos 0")
            assert len(conn.recv(1000)) == 100
            assert Needy.told == []
    finally:
        Needy.ecn = True
