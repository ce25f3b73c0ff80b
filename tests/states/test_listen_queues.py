"""How many connections a listener takes, and what happens to the rest (facts 0.2, A1-A10, B5, B6, E3)."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


@pytest.mark.parametrize("backlog", [0, 1, 5])
@pytest.mark.parametrize("cookies", [0, 1])
def test_accept_queue_takes_backlog_plus_one(backlog: int, cookies: int) -> None:
    with Testbed(backlog=backlog, sysctl={"net.ipv4.tcp_syncookies": cookies}) as t:
        for i in range(backlog + 1):
            t.connect(1000 + i, 0)
        t.line(f"count PassiveOpens+{backlog + 1} CurrEstab+{backlog + 1} TCPPureAcks+{backlog + 1}")
        t.run(f"""
            1.0 2000 < S 0 {LINUX} ! TCP_LISTEN_OVERFLOW
            2.0 quiet
            count ListenOverflows+1 ListenDrops+1
        """)
        row = t.rows("LISTEN")[0]
        assert (int(row["recvq"]), int(row["sendq"])) == (backlog + 1, backlog)


@pytest.mark.parametrize("cookies", [0, 1])
def test_request_queue_takes_backlog_plus_one(cookies: int) -> None:
    with Testbed(backlog=4, sysctl={"net.ipv4.tcp_syncookies": cookies}) as t:
        for i in range(5):
            t.run(f"0.0 {1000 + i} < S 0 {LINUX} ! taken\n0.0 {1000 + i} > S. 0 ack 1 win 65160")
        assert t.half_open() == 5
        if cookies:
            t.run(f"""
                0.5 1005 < S 0 {LINUX} ! taken
                0.5 1005 > S. 0 ack 1
                count TCPReqQFullDoCookies+1 SyncookiesSent+1
            """)
        else:
            t.run(f"""
                0.5 1005 < S 0 {LINUX} ! TCP_REQQFULL_DROP
                0.6 quiet
                count TCPReqQFullDrop+1 ListenDrops+1
            """)
        assert t.half_open() == 5


OVERFLOW = f"""
    0.0 1001 < S 0 {LINUX}
    0.0 1001 > S. 0 ack 1
    0.0 1002 < S 0 {LINUX}
    0.0 1002 > S. 0 ack 1
    0.1 1001 < . 1 ack 1 ! taken
"""


def test_third_ack_at_a_full_queue_is_repeated_until_there_is_room() -> None:
    """E3: the request stays with its timer; data that comes when there is room makes the child."""
    with Testbed(backlog=1) as t:
        t.connect(1000, 0)
        t.run(OVERFLOW)
        t.line("count PassiveOpens+2 CurrEstab+2 TCPPureAcks+2")
        t.run("""
            0.1 1002 < . 1 ack 1 ! TCP_LISTEN_OVERFLOW
            count ListenOverflows+1 ListenDrops+1
            1.0 1002 > S. 0 ack 1
            1.0 1002 < . 1 ack 1 ! TCP_LISTEN_OVERFLOW
            3.0 1002 > S. 0 ack 1
            4.0 1002 < P. 1(10) ack 1 ! TCP_LISTEN_OVERFLOW
            count ListenOverflows+2 ListenDrops+2 TCPTimeouts+2 RetransSegs+2 TCPSynRetrans+2
        """)
        t.listener.accept()[0].close()
        t.run(
            "4.0 1000 > F. 1 ack 1\n4.0 1000 < R 1\n5.0 1002 < P. 1(10) ack 1 ! taken\n5.0 1002 > . 1 ack 11"
        )
        accepted = [t.listener.accept() for _ in range(2)]
        assert [peer[1] for _, peer in accepted] == [1001, 1002]


def test_listen_clamps_and_adjusts() -> None:
    """A1-A3: the limit is unsigned and clamped by somaxconn; listen() again only changes it."""
    with Testbed(backlog=-1) as t:
        assert int(t.rows("LISTEN")[0]["sendq"]) == 4096
        t.stack.sysctl["net.core.somaxconn"] = 10
        assert int(t.rows("LISTEN")[0]["sendq"]) == 4096
        t.listener.listen(100)
        assert int(t.rows("LISTEN")[0]["sendq"]) == 10


def test_listen_needs_a_closed_or_listening_socket() -> None:
    with Testbed() as t:
        with pytest.raises(OSError) as e:
            t.listener.bind(("0.0.0.0", 81))
        assert e.value.errno == errno.EINVAL
        with pytest.raises(OSError) as e:
            t.listener.connect(("192.0.2.2", 81))
        assert e.value.errno == errno.EISCONN
        sock = t.stack.socket()
        sock.listen(1)
        host, port = sock.getsockname()
        assert host == "0.0.0.0" and 32768 <= port <= 60999


def test_close_resets_what_was_not_accepted_and_forgets_requests() -> None:
    """A8, A9: children get RST|ACK in order of arrival; a request stays until its timer or a segment."""
    with Testbed() as t:
        t.connect(1001, 0)
        t.connect(1002, 0, data=10)
        t.run("0.0 1002 > . 1 ack 11")
        t.run(f"0.0 1003 < S 0 {LINUX}\n0.0 1003 > S. 0 ack 1")
        t.run(f"0.0 1004 < S 0 {LINUX}\n0.0 1004 > S. 0 ack 1")
        t.line("count PassiveOpens+2 CurrEstab+2 TCPPureAcks+1")
        t.listener.close()
        t.run("""
            0.0 1001 > R. 1 ack 1
            0.0 1002 > R. 1 ack 11
            count OutRsts+2 EstabResets+2 CurrEstab-2
        """)
        assert t.half_open() == 2
        t.run("""
            0.5 1003 < . 1 ack 1 ! NO_SOCKET
            0.5 1003 > R 1
            70 quiet
            count OutRsts+1
        """)
        assert t.half_open() == 0


def test_shutdown_of_a_listener() -> None:
    """A10: as close for the queues; the port stays; listen() works again and finds the requests."""
    with Testbed() as t:
        t.run(f"0.0 1001 < S 0 {LINUX}\n0.0 1001 > S. 0 ack 1")
        t.listener.shutdown(1)
        assert t.rows("LISTEN")
        t.listener.shutdown(0)
        assert not t.rows("LISTEN")
        with pytest.raises(OSError) as e:
            t.listener.accept()
        assert e.value.errno == errno.EINVAL
        assert t.listener.poll() & ~0x100 == 0x14
        t.listener.listen(5)
        t.run("0.5 1001 < . 1 ack 1 ! taken")
        conn, peer = t.listener.accept()
        assert peer == ("192.0.2.2", 1001)
        conn.close()
        t.line("0.5 1001 > F. 1 ack 1")


def test_abort_on_overflow() -> None:
    """E3: RST, the request is gone, EmbryonicRsts but no AttemptFails."""
    with Testbed(backlog=1, sysctl={"net.ipv4.tcp_abort_on_overflow": 1}) as t:
        t.connect(1000, 0)
        t.run(OVERFLOW)
        t.line("count PassiveOpens+2 CurrEstab+2 TCPPureAcks+2")
        t.run("""
            0.1 1002 < . 1 ack 1 ! TCP_LISTEN_OVERFLOW
            0.1 1002 > R 1 ack =0 win 0
            count ListenOverflows+1 ListenDrops+1 EmbryonicRsts+1 OutRsts+1
            9.0 quiet
        """)


def test_the_count_of_drops_stays_with_the_socket() -> None:
    """SO_MEMINFO: sk_drops survives shutdown(), counts on when the socket listens again, and is not its children's."""
    def drops(sock: Any) -> int:
        return int(struct.unpack("9I", sock.getsockopt(1, 55, 36))[8])

    with Testbed(backlog=0) as t:
        t.connect(1000, 0)
        t.run("0.1 2000 < S 0 ! TCP_LISTEN_OVERFLOW\n0.1 2001 < S 0 ! TCP_LISTEN_OVERFLOW")
        conn, _ = t.listener.accept()
        assert (drops(t.listener), drops(conn)) == (2, 0)
        t.listener.shutdown(2)
        assert drops(t.listener) == 2
        t.listener.listen(0)
        assert drops(t.listener) == 2
        t.run("0.2 2002 < - 0 ! TCP_FLAGS")
        assert drops(t.listener) == 3
