"""What an ACK may do to an established connection: acceptability, window, ECN echo, SACK blocks that lie (facts J20(6), J13)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.testbed import Testbed
from ustack.observe.tcp_info import decode

TCP_INFO = 11


def established(options: str = "<mss 1000>", flags: str = "S", **kw: Any) -> tuple[Testbed, Any]:
    """A connection to peer port 1000 at 0.1 s, its segments counted from 1 on both sides; counters begin there."""
    t = Testbed(**kw)
    t.run(f"0.0 < {flags} 0 win 30000 {options}")
    t.advance(0)
    t.flow(1000).stack_isn = t.flow(1000).out[0][1]["TCP"].seq
    t.swallow()
    t.run("0.1 < . 1 ack 1 win 30000")
    conn, _ = t.listener.accept()
    conn.setblocking(False)
    t.base = t.stack.nstat(zeros=True)
    return t, conn


def info(conn: Any) -> dict[str, Any]:
    return dict(decode(conn.getsockopt(6, TCP_INFO, 280)))


SENT = "0.1 > P. 1(500)"


@pytest.mark.parametrize(
    ("line", "reason", "answer", "counted"),
    [
        # nothing beyond SND.NXT
        (". 1 ack 502 win 30000", "TCP_ACK_UNSENT_DATA", True, "TCPChallengeACK+1"),
        ("P. 1(10) ack 502 win 30000", "TCP_ACK_UNSENT_DATA", True, "TCPChallengeACK+1"),
        # nothing from before what was ever acknowledged: nothing was, so there is no reach
        (". 1 ack 0 win 29999", "TCP_TOO_OLD_ACK", True, "TCPChallengeACK+1"),
        ("P. 1(10) ack 0 win 29999", "TCP_TOO_OLD_ACK", True, "TCPChallengeACK+1"),
        # header prediction answers, but does not hear that it was to be dropped
        (". 1 ack 0 win 30000", "taken", True, "TCPChallengeACK+1"),
        # a duplicate, then partial and whole
        (". 1 ack 1 win 30000", "taken", False, "TCPPureAcks+1 TCPRenoReorder+1"),
        (". 1 ack 100 win 30000", "taken", False, None),
        (". 1 ack 501 win 30000", "taken", False, None),
    ],
)
def test_acceptability(line: str, reason: str, answer: bool, counted: str | None) -> None:
    t, conn = established()
    with t:
        conn.send(bytes(500))
        t.run(SENT)
        t.count(["OrigDataSent+1".replace("Orig", "TCPOrig")], "count")
        t.run(f"0.2 < {line} ! {reason}")
        if answer:
            t.run("0.2 > . 501 ack 1")
        if counted is not None:
            t.count(counted.split(), f"count {counted}")
        t.swallow()


def test_an_old_ack_within_reach_brings_its_data() -> None:
    """Behind SND.UNA by no more than what was acknowledged: overtaken on the way, its text is still good."""
    t, conn = established()
    with t:
        conn.send(bytes(500))
        t.run(SENT)
        t.run("0.2 < . 1 ack 501 win 30000 ! taken")
        t.run("0.3 < P. 1(10) ack 301 win 1 ! taken")
        assert conn.recv(100) == b"abcdefghij"
        t.swallow()
        assert info(conn)["snd_wnd"] == 30000, "an old ACK tells nothing of the window"
        t.run("0.4 < P. 11(10) ack 0 win 2 ! TCP_TOO_OLD_ACK")
        t.swallow()


@pytest.mark.parametrize(
    ("lines", "window"),
    [
        (["0.2 < . 1 ack 501 win 100"], 100),  # newer acknowledgment
        (["0.2 < P. 1(10) ack 1 win 30000", "0.3 < . 11 ack 1 win 200"], 200),  # newer sequence number
        (["0.2 < . 1 ack 1 win 40000"], 40000),  # same age: larger
        (["0.2 < . 1 ack 1 win 20000"], 30000),  # same age: smaller is reordering
        (["0.2 < . 1 ack 1 win 0"], 0),  # same age: closed is believed
        (["0.2 < P. 1(10) ack 1 win 40000", "0.3 < . 11 ack 501 win 100"], 100),
    ],
)
def test_which_segment_tells_the_window(lines: list[str], window: int) -> None:
    t, conn = established()
    with t:
        conn.send(bytes(500))
        t.run(SENT)
        for line in lines:
            t.run(line)
            t.swallow()
        assert info(conn)["snd_wnd"] == window


def test_soft_errors_and_probes_end_with_any_acceptable_ack() -> None:
    t, conn = established()
    with t:
        t.run("0.15 < . 1 ack 1 win 0")
        conn.send(bytes(500))
        t.advance(1_090_000_000)
        assert info(conn)["probes"] > 0
        t.swallow()
        t.run("1.1 < . 1 ack 1 win 0")
        assert info(conn)["probes"] == 0
        t.run("1.2 < . 1 ack 1 win 600\n1.2 > P. 1(500)")


def test_an_opened_window_is_used_at_once_and_ends_the_backoff() -> None:
    t, conn = established()
    with t:
        t.run("0.15 < . 1 ack 1 win 0")
        conn.send(bytes(2500))
        t.advance(2 * 10**9)
        assert info(conn)["backoff"] >= 2
        t.swallow()
        t.run("2.1 < . 1 ack 1 win 30000\n2.1 > . 1(1000)\n2.1 > P. 1001(1000)\n2.1 > P. 2001(500)")
        assert info(conn)["backoff"] == 0


ECN = {"options": "<mss 1000>", "flags": "SEW", "sysctl": {"net.ipv4.tcp_ecn": 1}}


def test_an_echo_is_answered_with_cwr_once_per_window() -> None:
    t, conn = established(**ECN)
    with t:
        conn.send(bytes(3000))
        t.advance(10**8)
        t.swallow()
        t.run("0.2 < E. 1 ack 1001 win 30000")
        assert (info(conn)["ca_state"], info(conn)["snd_ssthresh"]) == (2, 7)
        t.run("0.21 < E. 1 ack 2001 win 30000")
        assert info(conn)["snd_ssthresh"] == 7
        t.run("0.22 < E. 1 ack 3001 win 30000")
        assert info(conn)["ca_state"] == 2, "held until something after high_seq is acknowledged"
        conn.send(bytes(100))
        t.run("0.22 > PW. 3001(100) tos 2")
        t.run("0.3 < . 1 ack 3101 win 30000")
        assert info(conn)["ca_state"] == 0
        conn.send(bytes(100))
        t.run("0.3 > P. 3101(100) tos 2")
        assert info(conn)["delivered_ce"] == 3


def test_an_echo_without_ecn_is_no_news() -> None:
    t, conn = established()
    with t:
        conn.send(bytes(3000))
        t.advance(10**8)
        t.swallow()
        t.run("0.2 < E. 1 ack 1001 win 30000")
        assert info(conn)["ca_state"] == 0
        assert info(conn)["snd_cwnd"] >= 10


def test_cwr_on_data_is_acknowledged_at_once() -> None:
    t, conn = established(**ECN)
    with t:
        t.run("0.2 < P. 1(100) ack 1 tos 3\n0.2 > E. 1 ack 101")
        t.run("0.3 < P. 101(100) ack 1 tos 2\n0.3 > E. 1 ack 201")
        t.run("0.31 < PW. 201(100) ack 1 tos 2\n0.31 > . 1 ack 301")
        assert conn.recv(1000)


SACK = "<mss 1000,sackOK>"


@pytest.mark.parametrize(
    ("sack", "counted", "sacked"),
    [
        ("1001:2001", "", 1),
        ("1001:3001", "", 2),
        ("1:1001", "SACKDiscard", 0),  # begins where nothing can be missing
        ("4001:6001", "SACKDiscard", 0),  # beyond SND.NXT
        ("3001:2001", "SACKDiscard", 0),  # backwards
        ("1501:2001", "", 0),  # no whole packet
        ("1501:3001", "", 1),
        ("1001:2501", "", 1),
        ("0:1", "SACKDiscard DSACKIgnoredDubious", 0),  # D-SACK of what was never retransmitted
    ],
)
def test_sack_blocks(sack: str, counted: str, sacked: int) -> None:
    t, conn = established(SACK)
    with t:
        conn.send(bytes(4000))
        t.advance(10**8)
        t.swallow()
        before = t.stack.nstat(zeros=True)
        t.run(f"0.2 < . 1 ack 1 win 30000 <nop,nop,sack {sack}>")
        assert info(conn)["sacked"] == sacked
        after = t.stack.nstat(zeros=True)
        for name in ("SACKDiscard", "DSACKIgnoredDubious"):
            assert after[f"TcpExtTCP{name}"] - before[f"TcpExtTCP{name}"] == (name in counted.split())
        t.swallow()
        t.advance(t.clock.now + 10**6)
        t.swallow()


def test_sack_means_nothing_where_it_was_not_negotiated() -> None:
    t, conn = established()
    with t:
        conn.send(bytes(4000))
        t.advance(10**8)
        t.swallow()
        t.run("0.2 < . 1 ack 1 win 30000 <nop,nop,sack 1001:3001>")
        assert info(conn)["sacked"] == 1, "a duplicate ACK and no more"
        t.swallow()
