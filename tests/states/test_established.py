"""Which segments an established connection accepts, answers, ignores (facts J20-J22, K8)."""

from __future__ import annotations

import errno

import pytest

from tests.kit.testbed import Testbed

PLAIN = "mss 1460"
LINUX = "mss 1460,sackOK,TS 1000 0,nop,ws 7"


def established(options: str = PLAIN, **kw: object) -> tuple[Testbed, object]:
    """One accepted connection, everything counted so far forgotten."""
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.connect(1000, 0, options)
    sock, _ = t.listener.accept()
    sock.setblocking(False)
    t.base = t.stack.nstat(zeros=True)
    return t, sock


# segment, answer, counters; the receive window is 64240
ROWS = [
    ("- 1", None, ""),
    ("P 1(10)", None, ""),
    ("F 1", None, ""),
    ("R 0", None, ""),
    ("R 64242", None, ""),
    ("R 2", ". 1 ack 1", "TCPChallengeACK+1"),
    ("R. 60000 ack 77", ". 1 ack 1", "TCPChallengeACK+1"),
    ("S 0", ". 1 ack 1", "InErrs+1 TCPSYNChallenge+1 TCPChallengeACK+1"),
    ("S 1", ". 1 ack 1", "InErrs+1 TCPSYNChallenge+1 TCPChallengeACK+1"),
    ("S 900000", ". 1 ack 1", "InErrs+1 TCPSYNChallenge+1 TCPChallengeACK+1"),
    ("S. 0 ack 1", ". 1 ack 1", "InErrs+1 TCPSYNChallenge+1 TCPChallengeACK+1"),
    (". 1 ack 2", ". 1 ack 1", "TCPChallengeACK+1"),
    ("P. 1(10) ack 2", ". 1 ack 1", "TCPChallengeACK+1"),
    (". 1 ack 0", ". 1 ack 1", "TCPChallengeACK+1"),
    ("P. 1(10) ack 0", ". 1 ack 1", "TCPChallengeACK+1"),
    (". 0 ack 1", ". 1 ack 1", ""),
    (". 64242 ack 1", ". 1 ack 1", "BeyondWindow+1"),
    ("P. 70000(10) ack 1", ". 1 ack 1", "BeyondWindow+1"),
    (". 64241 ack 1", None, "TCPPureAcks+1"),
]


@pytest.mark.parametrize(("line", "answer", "counted"), ROWS)
def test_segment(line: str, answer: str | None, counted: str) -> None:
    t, sock = established()
    with t:
        t.line(f"0.1 < {line}")
        if answer:
            t.line(f"0.1 > {answer}")
        t.run(f"0.6 quiet\ncount {counted}")
        assert sock.getsockopt(1, 4) == 0 and len(t.rows("ESTAB")) == 1


@pytest.mark.parametrize("line", ["R 1", "R. 1 ack 1", "R. 1 ack 99999"])
def test_exact_reset(line: str) -> None:
    t, sock = established()
    with t:
        t.run(f"0.1 < {line}\n0.2 quiet\ncount EstabResets+1 CurrEstab-1")
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
        assert sock.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


def test_data_before_a_reset_stays_readable() -> None:
    t, sock = established()
    with t:
        t.run("0.1 < P. 1(5) ack 1\n0.1 > . 1 ack 6\n0.2 < R 6")
        assert sock.recv(10) == b"abcde"
        assert sock.getsockopt(1, 4) == errno.ECONNRESET
        assert sock.recv(10) == b""


def test_reset_at_the_edge_of_the_last_sack_block() -> None:
    t, sock = established(LINUX)
    with t:
        t.run("""
            0.1 < P. 101(50) ack 1 <nop,nop,TS 1001 0>
            0.1 > . 1 ack 1
            0.2 < P. 301(50) ack 1 <nop,nop,TS 1001 0>
            0.2 > . 1 ack 1
            0.3 < R 150            # inside, not an edge
            0.3 > . 1 ack 1
            0.4 < R 351            # the rightmost edge
            0.5 quiet
        """)
        assert sock.getsockopt(1, 4) == errno.ECONNRESET


def test_reset_with_the_number_of_the_fin() -> None:
    t, sock = established()
    with t:
        t.run("0.1 < F. 1 ack 1\n0.101 > . 1 ack 2\n0.2 < R 1\n0.3 quiet")
        assert sock.getsockopt(1, 4) == errno.EPIPE


def test_challenge_acks_are_limited_per_socket() -> None:
    t, _ = established()
    with t:
        t.run("""
            0.100 < S 1
            0.100 > . 1 ack 1
            0.300 < S 1
            0.599 < R 5
            0.600 < R 5
            0.600 > . 1 ack 1
            0.700 < . 70000 ack 1      # duplicate ACKs share the limit
            count InErrs+2 TCPSYNChallenge+2 TCPChallengeACK+2 TCPACKSkippedChallenge+2 BeyondWindow+1 TCPACKSkippedSeq+1
            0.800 < P. 70000(1) ack 1  # a segment with data is no part of an ACK loop
            0.800 > . 1 ack 1
            0.801 < P. 70000(1) ack 1
            0.801 > . 1 ack 1
        """)


def test_challenge_acks_are_limited_per_second() -> None:
    t, _ = established(sysctl={"net.ipv4.tcp_challenge_ack_limit": 0, "net.ipv4.tcp_invalid_ratelimit": 0})
    with t:
        t.run("0.1 < S 1\n0.1 > . 1\ncount InErrs+1 TCPSYNChallenge+1 TCPChallengeACK+1")     # 0 does not forbid
        t.stack.sysctl["net.ipv4.tcp_challenge_ack_limit"] = 10
        sent = 0
        for i in range(30):
            t.line(f"1.{i:03d} < S 1")
            sent += len(t.flow(1000).out)
            t.swallow()
        assert 5 <= sent <= 14      # half to one and a half times the limit
        assert t.stack.nstat()["TcpExtTCPChallengeACK"] == sent + 1


def test_paws() -> None:
    t, sock = established(LINUX)
    with t:
        t.run("0.1 < P. 1(10) ack 1 win 512 <nop,nop,TS 2000 0>\n0.1 > . 1 ack 11")
        t.base = t.stack.nstat(zeros=True)
        t.run("""
            0.2 < P. 11(10) ack 1 win 512 <nop,nop,TS 1998 0>      # too old
            0.2 > . 1 ack 11
            count PAWSEstab+1
            0.3 < P. 11(10) ack 1 win 512 <nop,nop,TS 1999 0>      # one tick of grace
            0.3 > . 1 ack 21
            0.35 < . 21 ack 1 win 512 <nop,nop,TS 2000 0>
        """)
        t.base = t.stack.nstat(zeros=True)
        t.run("""
            0.4 < . 21 ack 1 win 512 <nop,nop,TS 1998 0>           # a pure ACK that tells nothing new and is only a little late
            0.5 quiet
            count TCPPureAcks+1
            0.5 < . 20 ack 1 win 512 <nop,nop,TS 1998 0>           # the same from before rcv_nxt: silently dropped
            0.6 quiet
            count PAWSOldAck+1
            1.1 < . 21 ack 1 win 512 <nop,nop,TS 1 0>              # far too late
            1.1 > . 1 ack 21
            1.2 < . 21 ack 1 win 512 <nop,nop,TS 1 0>
            1.3 quiet
            count PAWSEstab+2 TCPACKSkippedPAWS+1
            1.4 < P. 21(5) ack 1                           # no timestamp at all is accepted
            1.4 > . 1 ack 26
            1.5 < R 26 <nop,nop,TS 1 0>                    # a RST needs none
            1.6 quiet
        """)
        assert sock.recv(100) == b"abcdefghijabcdefghijabcde"
        assert sock.getsockopt(1, 4) == errno.ECONNRESET


def test_old_duplicate_is_reported_by_dsack() -> None:
    t, _ = established(LINUX)
    with t:
        t.run("""
            0.1 < P. 1(10) ack 1 <nop,nop,TS 1001 0>
            0.1 > . 1 ack 11
            0.3 < P. 1(10) ack 1 <nop,nop,TS 1001 0>
            0.3 > . 1 ack 11 <nop,nop,TS 300 1001,nop,nop,sack 1:11>
            0.4 < P. 6(10) ack 1 <nop,nop,TS 1001 0>
            0.4 > . 1 ack 16 <nop,nop,TS 400 1001,nop,nop,sack 6:11>
            count DelayedACKLost+1 TCPDSACKOldSent+2
        """)
