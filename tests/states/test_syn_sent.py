"""The answer to our SYN (RFC 9293 3.10.7.3)."""

from __future__ import annotations

import errno

import pytest

from tests.kit.testbed import PEER, Testbed

SOL_SOCKET, SO_ERROR = 1, 4


def connecting(**kw: object) -> tuple[Testbed, object]:
    t = Testbed(backlog=None, **kw)  # type: ignore[arg-type]
    sock = t.stack.socket()
    sock.setblocking(False)
    assert sock.connect_ex((PEER, 1000)) == errno.EINPROGRESS
    t.port = sock.getsockname()[1]
    t.line("0.0 > S 0 ack =0 win 64240 <mss 1460,sackOK,TS 0 0,nop,ws 10>")
    return t, sock


def state(t: Testbed) -> str:
    return t.stack.ss("-tan")[0]["state"]


def error(sock: object) -> int:
    return sock.getsockopt(SOL_SOCKET, SO_ERROR)  # type: ignore[attr-defined]


def test_syn_ack() -> None:
    t, sock = connecting()
    with t:
        t.run("0.1 < S. 0 ack 1 win 60000 <mss 1000,sackOK,TS 500 0,nop,ws 3>\n0.1 > . 1 ack 1 win 63")
        assert state(t) == "ESTAB" and error(sock) == 0
        t.run("0.2 quiet")
        assert sock.send(bytes(2000)) == 2000
        t.run("0.2 > . 1(988) ack 1\n0.2 > P. 989(988) ack 1\n0.2 > P. 1977(24) ack 1")


def test_syn_ack_without_options() -> None:
    t, sock = connecting()
    with t:
        t.run("0.1 < S. 0 ack 1 win 60000\n0.1 > . 1 ack 1 win 64240 <>")
        assert sock.send(bytes(600)) == 600
        t.run("0.1 > . 1(536) ack 1\n0.1 > P. 537(64) ack 1")


@pytest.mark.parametrize("segment", ["S. 0 ack 0", "S. 0 ack 2", ". 5 ack 0", "S. 0 ack 99999", "F. 0 ack 7"])
def test_ack_of_something_else_is_reset_and_the_syn_goes_on(segment: str) -> None:
    t, _ = connecting()
    with t:
        ack = segment.split("ack ")[1]
        t.run(f"0.1 < {segment}\n0.1 > R {ack} ack =0 win 0")
        # an old connection of the peer is out of the way now: the SYN is repeated at once
        t.run("0.108 > S 0\n0.2 < S. 0 ack 1 <mss 1460>\n0.2 > . 1 ack 1")
        assert state(t) == "ESTAB"


@pytest.mark.parametrize("segment", ["R 0", "R. 0 ack 0", "R. 0 ack 2", ". 0 ack 1", "F. 0 ack 1", "- 0", "F 0", "P 0(9)"])
def test_ignored(segment: str) -> None:
    t, _ = connecting()
    with t:
        t.run(f"0.2 < {segment}\n0.2 quiet")
        assert state(t) == "SYN-SENT"
        t.swallow()


@pytest.mark.parametrize("segment", ["R. 0 ack 1", "R. 777 ack 1", "SR. 0 ack 1", "R. 0(10) ack 1"])
def test_refused(segment: str) -> None:
    t, sock = connecting()
    with t:
        t.run(f"0.1 < {segment}\n9.0 quiet")
        assert error(sock) == errno.ECONNREFUSED
        assert t.stack.nstat()["TcpAttemptFails"] == 1


def test_timestamp_echo_must_be_ours() -> None:
    t, _ = connecting()
    with t:
        t.run("0.1 < S. 0 ack 1 <mss 1460,sackOK,TS 500 =12345>\n0.1 > R 1 ack =0")
        assert t.stack.nstat()["TcpExtPAWSActive"] == 1 and state(t) == "SYN-SENT"
        t.swallow()
        t.advance(2 * 10**8)
        t.swallow()


def test_both_connect_at_once() -> None:
    t, sock = connecting()
    with t:
        t.run("0.1 < S 0 win 60000 <mss 1460,sackOK,TS 500 0,nop,ws 7>")
        t.run("0.1 > S. 0 ack 1 <mss 1460,sackOK,TS 100 500,nop,ws 10>")
        assert state(t) == "SYN-RECV"
        t.line("0.2 < S. 0 ack 1 win 60000 <mss 1460,sackOK,TS 501 0,nop,ws 7>")
        assert state(t) == "ESTAB"
        t.run("0.2 > . 1 ack 1\n0.3 quiet")
        assert sock.send(b"both") == 4
        t.line("0.3 > P. 1(4) ack 1")


def test_data_in_the_syn_ack_comes_again() -> None:
    t, sock = connecting()
    with t:
        t.run("0.1 < S. 0(5) ack 1 <mss 1460>\n0.1 > . 1 ack 1\n0.2 < P. 1(5) ack 1\n0.2 > . 1 ack 6")
        assert sock.recv(9) == b"abcde"
