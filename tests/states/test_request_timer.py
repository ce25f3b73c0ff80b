"""SYN-ACK repetition, expiry, pruning, TCP_DEFER_ACCEPT, TCP_SYNCNT (facts section D)."""

from __future__ import annotations

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
SYNCNT, DEFER_ACCEPT = 7, 9


def syn(t: Testbed, port: int, at: float = 0.0) -> None:
    t.run(f"{at:.3f} {port} < S 0 {LINUX} ! taken\n{at:.3f} {port} > S. 0 ack 1")


@pytest.mark.parametrize(
    ("retries", "at", "gone"),
    [
        (5, [1, 3, 7, 15, 31], 63),
        (0, [], 1),
        (1, [1], 3),
        (2, [1, 3], 7),
        (7, [1, 3, 7, 15, 31, 63, 127], 247),
        (8, [1, 3, 7, 15, 31, 63, 127, 247], 367),
    ],
)
def test_schedule(retries: int, at: list[int], gone: int) -> None:
    with Testbed(sysctl={"net.ipv4.tcp_synack_retries": retries}) as t:
        syn(t, 1000)
        for i, when in enumerate(at):
            t.run(f"{when} > S. 0 ack 1 win 65160 <mss 1460,sackOK,TS {when * 1000} 1000,nop,ws 10>")
            assert t.stack.requests(t.listener)[0]["num_timeout"] == i + 1
        t.advance(gone * 10**9 - 1)
        assert t.half_open() == 1
        t.advance(gone * 10**9)
        assert t.half_open() == 0
        n = len(at)
        t.line(f"count TCPTimeouts+{n + 1}" + (f" RetransSegs+{n} TCPSynRetrans+{n}" if n else ""))


def test_syncnt_of_the_listener() -> None:
    with Testbed() as t:
        t.listener.setsockopt(6, SYNCNT, 3)
        syn(t, 1000)
        t.run("1 > S. 0\n3 > S. 0\n7 > S. 0\n15 quiet")
        assert t.half_open() == 0


@pytest.mark.parametrize(
    ("backlog", "old", "late", "when", "left"),
    [
        (16, 8, 0, 0.0, 8),  # 16 > 16 is false: nobody is pruned
        (16, 9, 0, 0.0, 8),
        (16, 10, 0, 0.0, 8),
        (4, 5, 0, 0.0, 4),
        (16, 12, 4, 5.2, 8),
        (16, 4, 8, 5.0, 8),
        (16, 3, 6, 5.0, 8),
        (16, 9, 8, 6.9, 17),  # the young protect the old
        (16, 12, 2, 6.9, 14),
        (16, 16, 1, 6.9, 8),
    ],
)
def test_pruning_at_the_third_tick(backlog: int, old: int, late: int, when: float, left: int) -> None:
    """D6's vectors, looked at just after 7 s."""
    with Testbed(backlog=backlog) as t:
        for i in range(old):
            t.line(f"0.0 {1000 + i} < S 0 ! taken")
        t.advance(int(when * 1e9))
        t.swallow()
        for i in range(late):
            t.line(f"{when} {2000 + i} < S 0 ! taken")
        t.advance(7_050_000_000)
        assert t.half_open() == left
        t.swallow()


@pytest.mark.parametrize(
    ("seconds", "got"),
    [
        (0, 0),
        (1, 1),
        (2, 3),
        (3, 3),
        (4, 7),
        (5, 7),
        (7, 7),
        (8, 15),
        (15, 15),
        (16, 31),
        (30, 31),
        (63, 63),
        (64, 127),
        (200, 247),
    ],
)
def test_defer_accept_is_rounded_to_the_schedule(seconds: int, got: int) -> None:
    with Testbed() as t:
        t.listener.setsockopt(6, DEFER_ACCEPT, seconds)
        assert t.listener.getsockopt(6, DEFER_ACCEPT) == got


def deferring(seconds: int, **kw: object) -> Testbed:
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.listener.setsockopt(6, DEFER_ACCEPT, seconds)
    return t


def test_a_bare_ack_waits_for_data() -> None:
    """D9"""
    with deferring(5) as t:
        syn(t, 1000)
        t.run("""
            0.1 < . 1 ack 1 ! TCP_DEFER_ACCEPT
            count TCPDeferAcceptDrop+1
            0.5 quiet
            0.6 < P. 1(5) ack 1 ! taken
            0.6 > . 1 ack 6
        """)
        conn, _ = t.listener.accept()
        assert conn.recv(10) == b"abcde"
        conn.close()
        t.line("0.6 > F. 1 ack 6")


@pytest.mark.parametrize("line", ["P. 1(3) ack 1", "F. 1 ack 1"])
def test_data_or_fin_at_once_make_the_child(line: str) -> None:
    with deferring(5) as t:
        syn(t, 1000)
        t.line(f"0.1 < {line} ! taken")
        assert int(t.rows("LISTEN")[0]["recvq"]) == 1
        t.advance(10**9)
        t.swallow()


@pytest.mark.parametrize(
    ("seconds", "retries", "acked", "at", "gone"),
    [
        (5, 5, True, [7, 15, 31], 63),
        (30, 5, True, [31], 63),
        (1, 5, True, [1, 3, 7, 15, 31], 63),
        (5, 1, True, [7], 15),
        (5, 5, False, [1, 3, 7, 15, 31], 63),
    ],
)
def test_defer_accept_schedule(seconds: int, retries: int, acked: bool, at: list[int], gone: int) -> None:
    """D10: after the bare ACK silence, until the last wait before the period ends."""
    with deferring(seconds, sysctl={"net.ipv4.tcp_synack_retries": retries}) as t:
        syn(t, 1000)
        if acked:
            t.line("0.1 < . 1 ack 1 ! TCP_DEFER_ACCEPT")
        for when in at:
            t.line(f"{when} > S. 0 ack 1")
        t.run(f"{gone} quiet")
        assert t.half_open() == 0


def test_late_bare_ack_is_taken() -> None:
    with deferring(1) as t:
        syn(t, 1000)
        t.run("0.5 < . 1 ack 1 ! TCP_DEFER_ACCEPT\n1 > S. 0\n1.1 < . 1 ack 1 ! taken")
        assert int(t.rows("LISTEN")[0]["recvq"]) == 1


def test_rst_ends_a_deferred_request() -> None:
    with deferring(5) as t:
        syn(t, 1000)
        t.run("0.1 < . 1 ack 1 ! TCP_DEFER_ACCEPT\n0.2 < R 1 ! TCP_RESET\n9 quiet")
        t.line("count TCPDeferAcceptDrop+1 AttemptFails+1 EmbryonicRsts+1")


@pytest.mark.parametrize(
    ("type_code", "gone"),
    [
        ((3, 0), True),
        ((3, 1), True),
        ((11, 0), True),
        ((12, 0), True),
        ((12, 1), True),
        ((3, 2), False),
        ((3, 3), False),
        ((3, 4), False),
        ((3, 9), False),
        ((3, 13), False),
        ((4, 0), False),
        ((5, 0), False),
        ((11, 1), False),
    ],
)
def test_icmp_errors(type_code: tuple[int, int], gone: bool) -> None:
    """N20"""
    from scapy.all import ICMP, IP, TCP

    with Testbed() as t:
        syn(t, 1000)
        isn = t.flow(1000).stack_isn or 0
        for seq, dropped in ((isn + 1, False), (isn, gone)):
            quote = bytes(IP(src=t.server, dst=t.peer) / TCP(sport=80, dport=1000, seq=seq, flags="SA"))[:28]
            t.inject(
                bytes(IP(src="192.0.2.9", dst=t.server) / ICMP(type=type_code[0], code=type_code[1]) / quote)
            )
            assert t.half_open() == (0 if dropped else 1)
        counters = t.stack.nstat()
        assert counters.get("TcpExtListenDrops", 0) == gone
        if type_code in ((3, 0), (3, 3), (11, 0), (12, 0)):
            assert counters["TcpExtOutOfWindowIcmps"] == 1
