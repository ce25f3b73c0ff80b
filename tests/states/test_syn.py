"""SYNs and stray segments for a listener (facts B3, B11, B20-B23, B30, C)."""

from __future__ import annotations

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (".", "R 77"),
        ("S.", "R 77"),
        ("F.", "R 77"),
        ("SF.", "R 77"),
        ("P.", "R 77"),
        ("R.", None),
        ("SR.", None),
        ("R", None),
        ("SR", None),
        ("SF", None),
        ("-", None),
        ("F", None),
        ("P", None),
        ("U", None),
        ("FPU", None),
    ],
)
@pytest.mark.parametrize("length", [0, 4])
def test_flags_in_listen(flags: str, answer: str | None, length: int) -> None:
    with Testbed() as t:
        t.run(f"0.0 < {flags} 0({length}) ack =77")
        if answer:
            t.run("0.0 > R =77 ack =0 win 0 <>\ncount OutRsts+1")
        t.run("0.1 quiet\ncount")


@pytest.mark.parametrize("extra", ["", "P", "U", "E", "W", "A", "PU"])
def test_flags_that_do_not_prevent_a_handshake(extra: str) -> None:
    with Testbed() as t:
        t.run(f"0.0 < S{extra} 0(4) {LINUX} ! taken\n0.0 > S. 0 ack 1 win 65160")


@pytest.mark.parametrize(
    ("flags", "seq", "length", "answer"),
    [
        ("S", 0, 0, "R. =0 ack 1"),
        ("S", 0, 5, "R. =0 ack 6"),
        ("SF", 0, 0, "R. =0 ack 2"),
        ("-", 0, 3, "R. =0 ack 3"),
        (".", 0, 0, "R =9 ack =0"),
        ("S.", 0, 0, "R =9 ack =0"),
        ("R", 0, 0, None),
        ("R.", 0, 0, None),
    ],
)
def test_closed_port(flags: str, seq: int, length: int, answer: str | None) -> None:
    """B30, also the TOS of the reply: the request's without its ECN bits."""
    with Testbed(backlog=None) as t:
        t.run(f"0.0 < {flags} {seq}({length}) ack =9 tos 0x4b ! NO_SOCKET")
        if answer:
            t.run(f"0.0 > {answer} win 0 tos 0x48 ttl 64 id 0 <>\ncount OutRsts+1")
        t.run("0.1 quiet\ncount")


@pytest.mark.parametrize(
    ("offered", "answered", "win"),
    [
        ("", "mss 1460", 64240),
        ("mss 1460", "mss 1460", 64240),
        ("mss 1460,sackOK,eol,eol", "mss 1460,nop,nop,sackOK", 64240),
        ("mss 1460,nop,ws 7", "mss 1460,nop,ws 10", 64240),
        ("mss 1460,nop,ws 7,nop,nop,sackOK", "mss 1460,nop,nop,sackOK,nop,ws 10", 64240),
        ("mss 1460,nop,nop,TS 1000 0", "mss 1460,nop,nop,TS 0 1000", 65160),
        ("mss 1460,sackOK,TS 1000 0", "mss 1460,sackOK,TS 0 1000", 65160),
        ("mss 1460,sackOK,TS 1000 0,nop,ws 7", "mss 1460,sackOK,TS 0 1000,nop,ws 10", 65160),
        ("sackOK,TS 1000 0", "mss 1460,sackOK,TS 0 1000", 65160),
        ("mss 1460,nop,ws 15", "mss 1460,nop,ws 10", 64240),
    ],
)
def test_options_of_the_syn_ack(offered: str, answered: str, win: int) -> None:
    with Testbed() as t:
        t.run(
            f"0.0 < S 0 win 1000 <{offered}>\n0.0 > S. 0 ack 1 win {win} id 0 ttl 64 tos 0 urg 0 <{answered}>"
        )


def test_a_whole_syn_ack_byte_by_byte() -> None:
    """C5's full packet."""
    with Testbed() as t:
        t.line("0.0 < S 0 win 1000")
        t.collect()
        packet = bytes(t.flow(1000).out.pop()[1])
        assert packet[:24].hex() == "4500002c000040004006b6c8c0000201c0000202005003e8"
        assert packet[28:36].hex() == "000027116012faf0"
        assert packet[38:].hex() == "0000020405b4"


@pytest.mark.parametrize(
    ("top", "admitted"),
    [(1, 2), (2, 3), (3, 4), (4, 4), (5, 5), (6, 6), (7, 7), (8, 7), (10, 9), (12, 10), (16, 13)],
)
def test_last_quarter_of_max_syn_backlog(top: int, admitted: int) -> None:
    """B11: without cookies, for peers that have shown nothing yet."""
    sysctl = {"net.ipv4.tcp_syncookies": 0, "net.ipv4.tcp_max_syn_backlog": top}
    with Testbed(sysctl=sysctl) as t:
        for i in range(admitted):
            t.run(f"0.0 {1000 + i} < S 0\n0.0 {1000 + i} > S. 0 ack 1")
        t.run("0.0 2000 < S 0 ! TCP_SYN_BACKLOG_RESERVE\n0.1 quiet\ncount ListenDrops+1")


def test_duplicate_syn() -> None:
    """B20, B21: answered once in 500 ms with what was agreed first; timer starts anew; old timestamp: ACK."""
    with Testbed() as t:
        t.run(f"""
            0.0 < S 0 {LINUX}
            0.0 > S. 0 ack 1 win 65160 <mss 1460,sackOK,TS 0 1000,nop,ws 10>
            0.1 < S 0(10) <mss 500,TS 1050 0> ! taken
            0.1 > S. 0 ack 1 win 65160 <mss 1460,sackOK,TS 100 1000,nop,ws 10>
            count RetransSegs+1 TCPSynRetrans+1
            0.2 < S 0 {LINUX} ! TCP_REQ_LIMITED
            0.2 quiet
            count TCPACKSkippedSynRecv+1
            0.7 < S 0 <nop,nop,TS 999 0> ! TCP_RFC7323_PAWS
            0.7 > . 1 ack 1 win 63 <nop,nop,TS 700 1000>
            count PAWSEstab+1
            1.1 > S. 0 ack 1
            count TCPTimeouts+1 RetransSegs+1 TCPSynRetrans+1
            3.1 > S. 0 ack 1
        """)


@pytest.mark.parametrize("seq", [1, 2, 1000])
def test_another_syn_in_the_window_ends_the_request(seq: int) -> None:
    with Testbed() as t:
        t.run(f"""
            0.0 < S 0 {LINUX}
            0.0 > S. 0 ack 1
            0.1 < S {seq}(3)
            0.1 > R. =0 ack {seq + 4} win 0 <>
            count AttemptFails+1 EmbryonicRsts+1 OutRsts+1
            9.0 quiet
        """)
        assert t.half_open() == 0


@pytest.mark.parametrize(
    ("line", "answer"),
    [("S -5", ". 1 ack 1"), ("S. 0 ack 1", ". 1 ack 1"), ("S. 0 ack 5", "R 5 ack =0"), ("SR 0", None)],
)
def test_syns_that_do_not(line: str, answer: str | None) -> None:
    """B22, B23"""
    with Testbed() as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1\n0.1 < {line}")
        if answer:
            t.run(f"0.1 > {answer}")
        t.run("0.2 quiet\n1.0 > S. 0 ack 1")
        assert t.half_open() == 1


@pytest.mark.parametrize(
    ("sysctl", "flags", "tos", "answer"),
    [
        (2, "SEW", 0, "S.E"),
        (1, "SEW", 0, "S.E"),
        (0, "SEW", 0, "S."),
        (2, "SE", 0, "S."),
        (2, "SW", 0, "S."),
        (2, "SEW", 2, "S."),
        (2, "SEWA", 2, "S.E"),
        (2, "SEWA", 0, "S.E"),
    ],
)
def test_ecn(sysctl: int, flags: str, tos: int, answer: str) -> None:
    with Testbed(sysctl={"net.ipv4.tcp_ecn": sysctl}) as t:
        t.run(f"0.0 < {flags} 0 tos {tos}\n0.0 > {answer} 0 ack 1 tos 0")


@pytest.mark.parametrize(
    ("reflect", "tos", "answer"), [(0, 0x4B, 0), (1, 0x4B, 0x48), (1, 0xFF, 0xFC), (1, 0, 0)]
)
def test_reflected_tos(reflect: int, tos: int, answer: int) -> None:
    with Testbed(sysctl={"net.ipv4.tcp_reflect_tos": reflect}) as t:
        t.run(f"""
            0.0 < S 0 tos {tos}
            0.0 > S. 0 ack 1 tos {answer}
            1.0 > S. 0 ack 1 tos {answer}
            1.5 < P. 1(10) ack 1 tos {tos}
            1.5 > . 1 ack 11 tos {answer}
        """)


def test_broadcast_and_multicast_syns() -> None:
    for destination in ("192.0.2.255", "224.0.0.1", "255.255.255.255"):
        with Testbed() as t:
            t.server = destination
            t.run("0.0 < S 0 ! TCP_LISTEN_BCAST\n0.1 quiet\ncount ListenDrops+1")


def test_no_route_back() -> None:
    with Testbed(default_route=False) as t:
        t.peer = "203.0.113.9"
        t.run("0.0 < S 0 ! TCP_NO_ROUTE\n0.1 quiet\ncount IpOutNoRoutes+1 ListenDrops+1")


def test_md5_and_min_ttl() -> None:
    with Testbed() as t:
        t.run("0.0 < S 0 <md5,nop,nop> ! TCP_MD5UNEXPECTED\n0.0 quiet\ncount TCPMD5Unexpected+1")
        t.listener.setsockopt(0, 21, 200)
        t.run("0.1 < S 0 ttl 199 ! TCP_MINTTL\n0.1 quiet\ncount TCPMinTTLDrop+1")
        t.run("0.2 < S 0 ttl 200 ! taken\n0.2 > S. 0 ack 1")
