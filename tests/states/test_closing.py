"""Closing from either side, both at once, and what still arrives (facts K, H7, H9)."""

from __future__ import annotations

import errno

import pytest

from tests.kit.testbed import Testbed

RD, WR, RDWR = 0, 1, 2
SOL_SOCKET, SO_ERROR = 1, 4
TCP_LINGER2 = 8


def accepted(**kw: object) -> tuple[Testbed, object]:
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.connect(1000, 0, "mss 1460")
    sock, _ = t.listener.accept()
    sock.setblocking(False)
    t.base = t.stack.nstat(zeros=True)
    return t, sock


def states(t: Testbed) -> list[str]:
    return sorted(r["state"] for r in t.stack.ss("-tan") if r["state"] != "LISTEN")


def test_passive_close() -> None:
    t, sock = accepted()
    with t:
        t.run("0.1 < P. 1(3) ack 1\n0.1 > . 1 ack 4\n0.2 < F. 4 ack 1\n0.24 > . 1 ack 5")
        assert states(t) == ["CLOSE-WAIT"]
        assert sock.recv(10) == b"abc" and sock.recv(10) == b"" == sock.recv(10)
        t.run("0.3 < F. 4 ack 1\n0.3 > . 1 ack 5")          # the FIN again
        t.run("0.4 < P. 5(9) ack 1 ! NOT_SPECIFIED\n0.5 quiet")  # beyond it there is nothing
        sock.close()
        t.line("0.5 > F. 1 ack 5")
        assert states(t) == ["LAST-ACK"]
        t.line("0.6 < . 5 ack 2")
        assert states(t) == []
        t.run("0.7 < . 5 ack 2\n0.7 > R 2")                 # no TIME_WAIT on this side


def test_active_close() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.close()
        t.line("0.1 > F. 1 ack 1")
        assert states(t) == ["FIN-WAIT-1"]
        t.line("0.2 < . 1 ack 2")
        assert states(t) == ["FIN-WAIT-2"]
        t.run("0.3 < F. 1 ack 2\n0.3 > . 2 ack 2")
        assert states(t) == ["TIME-WAIT"]
        t.run("60.2 quiet")
        assert states(t) == ["TIME-WAIT"]
        t.run("60.4 quiet")
        assert states(t) == []


def test_fin_with_the_ack_of_ours() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.close()
        t.run("0.1 > F. 1 ack 1\n0.2 < F. 1 ack 2\n0.2 > . 2 ack 2")
        assert states(t) == ["TIME-WAIT"]


def test_both_close_at_once() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.close()
        t.run("0.1 > F. 1 ack 1\n0.1 < F. 1 ack 1\n0.1 > . 2 ack 2")
        assert states(t) == ["CLOSING"]
        t.line("0.2 < . 2 ack 2")
        assert states(t) == ["TIME-WAIT"]


def test_half_close_still_reads() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.shutdown(WR)
        t.run("0.1 > F. 1 ack 1\n0.2 < . 1 ack 2\n500.0 quiet")
        assert states(t) == ["FIN-WAIT-2"]                  # an owned socket waits for ever
        t.run("500.1 < P. 1(5) ack 2\n500.1 > . 2 ack 6")
        assert sock.recv(10) == b"abcde"
        t.run("500.2 < F. 6 ack 2\n500.2 > . 2 ack 7")
        assert states(t) == ["TIME-WAIT"]
        assert sock.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


def test_unread_data_at_close_is_a_reset() -> None:
    t, sock = accepted()
    with t:
        t.run("0.1 < P. 1(3) ack 1\n0.1 > . 1 ack 4")
        sock.close()
        t.run("0.1 > R. 1 ack 4\n0.2 quiet")
        assert t.stack.nstat()["TcpExtTCPAbortOnClose"] == 1 and states(t) == []


@pytest.mark.parametrize("segment", ["P. 1(5) ack 2", "P. 1(5) ack 1", "FP. 1(5) ack 1", "P. 11(5) ack 2"])
def test_data_for_nobody_is_a_reset(segment: str) -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.close()
        ack = segment.split("ack ")[1]
        t.run(f"0.1 > F. 1 ack 1\n0.2 < {segment}\n0.2 > R {ack} ack =0 win 0\n0.3 quiet")
        t.run("count CurrEstab-1 OutRsts+1 TCPAbortOnData+1 TCPOrigDataSent+1" + (
            " TCPDelivered+1" if ack == "2" else ""))
        assert states(t) == []


def test_shutdown_of_both_directions_refuses_data_too() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.shutdown(RDWR)
        t.run("0.1 > F. 1 ack 1\n0.2 < P. 1(5) ack 2\n0.2 > R 2 ack =0\n0.3 quiet")
        assert sock.getsockopt(SOL_SOCKET, SO_ERROR) == errno.ECONNRESET


def test_shutdown_for_reading_is_local() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.shutdown(RD)
        assert sock.recv(10) == b""
        t.run("0.2 < P. 1(5) ack 1\n0.2 > . 1 ack 6")
        assert sock.recv(10) == b"abcde" and sock.recv(10) == b""
        sock.send(b"still")
        t.line("0.2 > P. 1(5) ack 6")


def test_no_linger_in_fin_wait_2() -> None:
    t, sock = accepted()
    with t:
        t.advance(10**8)
        sock.setsockopt(6, TCP_LINGER2, -1)
        sock.close()
        t.run("0.1 > F. 1 ack 1\n0.2 < . 1 ack 2\n0.2 > R 2 ack =0 win 0")
        t.run("count CurrEstab-1 OutRsts+1 TCPAbortOnData+1 TCPOrigDataSent+1 TCPPureAcks+1 TCPDelivered+1")
        assert states(t) == []


def test_long_fin_timeout_goes_through_the_socket_first() -> None:
    t, sock = accepted(sysctl={"net.ipv4.tcp_fin_timeout": 100})
    with t:
        t.advance(10**8)
        sock.close()
        t.run("0.1 > F. 1 ack 1\n0.2 < . 1 ack 2\n40.0 quiet")
        assert states(t) == ["FIN-WAIT-2"]
        # the excess over 60 s as a socket, then as long again as a record
        t.run("79.0 quiet")
        assert states(t) == ["FIN-WAIT-2"]
        t.run("81.0 quiet")
        assert states(t) == []


def test_reset_in_each_closing_state_ends_it_quietly() -> None:
    for script in (
        "0.1 > F. 1 ack 1\n0.2 < R 1",                                          # FIN_WAIT_1
        "0.1 > F. 1 ack 1\n0.2 < . 1 ack 2\n0.3 < R 1",                         # FIN_WAIT_2
        "0.1 > F. 1 ack 1\n0.1 < F. 1 ack 1\n0.1 > . 2 ack 2\n0.2 < R 2",       # CLOSING
        "0.1 > F. 1 ack 1\n0.1 < F. 1 ack 1\n0.1 > . 2 ack 2\n0.2 < R 1",       # with the number of the FIN
        "0.1 > F. 1 ack 1\n0.1 < F. 1 ack 2\n0.1 > . 2 ack 2\n0.2 < R 2",       # TIME_WAIT
    ):
        t, sock = accepted()
        with t:
            t.advance(10**8)
            sock.close()
            t.run(script + "\n0.3 quiet")
            assert states(t) == [], script
            assert "TcpEstabResets" not in t.stack.nstat()


def test_time_wait_needs_a_free_bucket() -> None:
    t, sock = accepted(sysctl={"net.ipv4.tcp_max_tw_buckets": 0})
    with t:
        t.advance(10**8)
        sock.close()
        t.run("0.1 > F. 1 ack 1\n0.2 < F. 1 ack 2\n0.2 > . 2 ack 2\n0.3 < . 2 ack 2\n0.3 > R 2")
        assert t.stack.nstat()["TcpExtTCPTimeWaitOverflow"] == 1
