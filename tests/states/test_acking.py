"""When data is acknowledged, and with which SACK blocks (facts J23, J24, J13)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tests.kit.testbed import Testbed

PLAIN = "mss 1460"
SACK = "mss 1460,sackOK"
LINUX = "mss 1460,sackOK,TS 1000 0,nop,ws 7"


def accepted(options: str = PLAIN, **kw: object) -> tuple[Testbed, object]:
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.connect(1000, 0, options)
    sock, _ = t.listener.accept()
    sock.setblocking(False)
    t.base = t.stack.nstat(zeros=True)
    return t, sock


def take(t: Testbed) -> list[tuple[int, Any]]:
    """What came out since, (time, TCP layer)."""
    out = [(at, p["TCP"]) for at, p in t.flow(1000).out]
    t.flow(1000).out.clear()
    return out


def test_the_first_segments_are_acked_at_once_then_every_second() -> None:
    t, sock = accepted()
    with t:
        acks = [1]
        for i in range(40):
            t.line(f"0.{100 + i} < . {1 + 1460 * i}(1460) ack 1")
            sock.recv(9999)
            t.collect()
            acks += [tcp.ack - 10000 for _, tcp in take(t)]
        steps = [(b - a) // 1460 for a, b in pairwise(acks)]
        assert steps[:16] == [1] * 16
        assert set(steps[22:]) == {2}


def test_delayed_ack() -> None:
    """Quick ACKs used up and no second segment: 40 ms, and the estimate of the gap grows when it fires."""
    t, sock = accepted()
    with t:
        for i in range(40):
            t.line(f"0.{100 + i} < P. {1 + 100 * i}(100) ack 1")
            t.swallow()
        t.advance(300_000_000)
        t.swallow()
        t.base = t.stack.nstat(zeros=True)
        t.run("0.320 < P. 4001(100) ack 1\n0.360 > . 1 ack 4101")
        assert t.stack.nstat()["TcpExtDelayedACKs"] >= 1
        sock.recv(9999)
        t.swallow()


def test_a_reply_carries_the_ack() -> None:
    """Data sent soon after data came makes the connection interactive: the next request waits for its reply."""
    t, sock = accepted()
    with t:
        t.run("0.1 < P. 1(10) ack 1\n0.1 > . 1 ack 11")
        assert sock.recv(99)
        sock.send(b"reply")
        t.run("0.1 > P. 1(5) ack 11\n0.2 < P. 11(10) ack 6")
        assert sock.recv(99)
        t.advance(210_000_000)
        sock.send(b"reply")
        t.run("0.21 > P. 6(5) ack 21\n0.3 < P. 21(10) ack 11\n0.34 > . 11 ack 31")


def test_out_of_order_is_acked_at_once_and_so_is_the_filled_hole() -> None:
    t, sock = accepted(SACK)
    with t:
        t.run("""
            0.1 < . 1(10) ack 1
            0.1 > . 1 ack 11 <>
            0.2 < . 21(10) ack 1
            0.2 > . 1 ack 11 <nop,nop,sack 21 31>
            0.3 < . 41(10) ack 1
            0.3 > . 1 ack 11 <nop,nop,sack 41 51 21 31>
            0.4 < . 31(10) ack 1
            0.4 > . 1 ack 11 <nop,nop,sack 21 51>
            0.5 < . 25(10) ack 1              # all of it known
            0.5 > . 1 ack 11 <nop,nop,sack 25 35 21 51>
            0.6 < . 11(5) ack 1
            0.6 > . 1 ack 16 <nop,nop,sack 21 51>
            0.7 < . 16(5) ack 1
            0.7 > . 1 ack 51 <>
        """)
        assert t.stack.nstat()["TcpExtTCPOFOQueue"] == 4
        assert t.stack.nstat()["TcpExtTCPOFOMerge"] == 1
        assert t.stack.nstat()["TcpExtTCPDSACKOfoSent"] == 1
        assert len(sock.recv(99)) == 50


def test_four_blocks_without_timestamps_three_with() -> None:
    for options, ts, most in ((SACK, "", 4), (LINUX, " <nop,nop,TS 1001 0>", 3)):
        t, _sock = accepted(options)
        with t:
            for i in range(6):
                t.line(f"0.{i + 1} < . {101 + 20 * i}(10) ack 1{ts}")
                t.advance(t.clock.now + 1_000_000)
                ((_, last),) = take(t)
            blocks = dict(o for o in last.options if isinstance(o[0], str))["SAck"]
            assert len(blocks) == 2 * most
            assert blocks[0] - 10000 == 201           # the most recent one first


def test_without_sack_duplicate_acks_only() -> None:
    t, _ = accepted()
    with t:
        t.run("""
            0.1 < . 21(10) ack 1
            0.1 > . 1 ack 1 <>
            0.2 < . 41(10) ack 1
            0.2 > . 1 ack 1 <>
            0.3 < . 1(20) ack 1
            0.3 > . 1 ack 31 <>
        """)


def test_duplicate_acks_are_compressed_after_the_third() -> None:
    """A twentieth of the round trip, at most a millisecond, for those beyond the third duplicate of a hole."""
    t = Testbed(sysctl={"net.ipv4.tcp_moderate_rcvbuf": 0})
    with t:
        t.run(f"0.0 < S 0 <{LINUX}>\n0.0 > S. 0 ack 1\n0.05 < . 1 ack 1 <nop,nop,TS 1000 0>")
        sock, _ = t.listener.accept()
        # use up the quick ACKs and let the window grow to its limit; each echo is 50 ms old
        for i in range(60):
            t.line(f"0.{150 + i} < . {1 + 1448 * i}(1448) ack 1 <nop,nop,TS 1001 {100 + i}>")
            sock.recv(9999)
            t.swallow()
        t.advance(290_000_000)
        t.swallow()
        t.base = t.stack.nstat(zeros=True)
        hole = 1 + 1448 * 60
        atonce = []
        for i in range(8):
            t.line(f"0.3000{i}0 < . {hole + 1448 * (i + 1)}(1448) ack 1 <nop,nop,TS 1001 100>")
            atonce.append(len(take(t)))
        # the first let the window grow once more, which is a reason of its own for an ACK
        assert atonce == [1, 1, 1, 1, 0, 0, 0, 0]
        t.advance(400_000_000)
        ((at, _tcp),) = take(t)
        assert at == 300_040_000 + 1_000_000
        t.run("count TCPOFOQueue+8 TCPAckCompressed+3")


def test_fin_out_of_order_counts_one() -> None:
    t, sock = accepted(SACK)
    with t:
        t.run("""
            0.1 < F. 11(10) ack 1
            0.1 > . 1 ack 1 <nop,nop,sack 11 22>
            0.2 < . 1(10) ack 1
        """)
        t.advance(300_000_000)
        assert t.flow(1000).out[-1][1]["TCP"].ack == 10000 + 22
        t.swallow()
        assert len(sock.recv(99)) == 20 and sock.recv(99) == b""


def test_ecn_is_echoed_until_cwr() -> None:
    t = Testbed(sysctl={"net.ipv4.tcp_ecn": 1})
    with t:
        t.run("0.0 < SEW 0 <mss 1460>\n0.0 > SE. 0 ack 1\n0.01 < . 1 ack 1")
        sock, _ = t.listener.accept()
        t.run("""
            0.1 < . 1(10) ack 1 tos 2
            0.1 > . 1 ack 11
            0.2 < . 11(10) ack 1 tos 3
            0.2 > E. 1 ack 21
            0.3 < . 21(10) ack 1 tos 2
            0.3 > E. 1 ack 31
            0.4 < W. 31(10) ack 1 tos 2
            0.4 > . 1 ack 41
        """)
        sock.send(b"x")
        t.line("0.4 > P. 1(1) ack 41 tos 2")
        t.line("0.5 < . 41 ack 2 tos 0")
        sock.recv(99)
        t.swallow()
