"""Who may have a port, which listener gets a segment, SO_REUSEPORT groups (facts A4, A5, A13-A22)."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest

from tests.kit.testbed import Testbed

ANY, ONE, TWO = "0.0.0.0", "192.0.2.1", "192.0.2.3"
REUSEADDR, REUSEPORT = 2, 15
LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


def two_addresses() -> Testbed:
    return Testbed(backlog=None, address=["192.0.2.1/24", "192.0.2.3/24"])  # type: ignore[arg-type]


def sock(t: Testbed, reuse: int, port: int) -> Any:
    s = t.stack.socket()
    s.setsockopt(1, REUSEADDR, reuse)
    s.setsockopt(1, REUSEPORT, port)
    return s


def refused(call: Any, *args: object) -> bool:
    try:
        call(*args)
    except OSError as e:
        assert e.errno == errno.EADDRINUSE
        return True
    return False


@pytest.mark.parametrize("addresses", [(ANY, ANY), (ANY, ONE), (ONE, ANY), (ONE, ONE), (ONE, TWO)])
@pytest.mark.parametrize("listening", [False, True])
def test_conflicts_at_bind(addresses: tuple[str, str], listening: bool) -> None:
    """A13-A15: every combination of the two options on both sockets."""
    for r1, p1, r2, p2 in itertools.product((0, 1), repeat=4):
        with two_addresses() as t:
            first, second = sock(t, r1, p1), sock(t, r2, p2)
            first.bind((addresses[0], 8000))
            if listening:
                first.listen(1)
            allowed = (addresses == (ONE, TWO)) or (p1 and p2) or (r1 and r2 and not listening)
            assert refused(second.bind, (addresses[1], 8000)) == (not allowed), (r1, p1, r2, p2)


def test_of_two_bound_sockets_the_first_to_listen_wins() -> None:
    """A5, A15: the loser is as before, and may try again."""
    with two_addresses() as t:
        a, b = sock(t, 1, 0), sock(t, 1, 0)
        a.bind((ANY, 8000))
        b.bind((ANY, 8000))
        a.listen(1)
        assert refused(b.listen, 1)
        assert b.getsockname() == (ANY, 8000)
        a.close()
        b.listen(1)


@pytest.mark.parametrize("end", ["established", "time-wait"])
@pytest.mark.parametrize(("listener", "binder"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_children_keep_the_port(end: str, listener: int, binder: int) -> None:
    """A16: also a TIME_WAIT record, and also against SO_REUSEADDR if the listener had not set it."""
    with Testbed(backlog=None) as t:
        server = sock(t, listener, 0)
        server.bind((ANY, 80))
        server.listen(5)
        t.connect(1000, 0)
        conn, _ = server.accept()
        if end == "time-wait":
            conn.close()
            t.run("0.0 > F. 1 ack 1\n0.0 < F. 1 ack 2\n0.0 > . 2 ack 2")
        server.close()
        again = sock(t, binder, 0)
        assert refused(again.bind, (ANY, 80)) == (not (listener and binder))
        if end == "established":
            t.line("0.1 < R 1")


def test_ephemeral_ports_run_out() -> None:
    with Testbed(backlog=None, sysctl={"net.ipv4.ip_local_port_range": "50000 50003"}) as t:
        socks = []
        for _ in range(4):
            socks.append(t.stack.socket())
            socks[-1].bind((ANY, 0))
        assert sorted(s.getsockname()[1] for s in socks) == [50000, 50001, 50002, 50003]
        assert refused(t.stack.socket().bind, (ANY, 0))
        assert refused(t.stack.socket().listen, 1)
        t.stack.socket().bind((ANY, 40000))


def test_reserved_ports_are_not_chosen() -> None:
    sysctl = {
        "net.ipv4.ip_local_port_range": "50000 50003",
        "net.ipv4.ip_local_reserved_ports": "50000-50002",
    }
    with Testbed(backlog=None, sysctl=sysctl) as t:
        s = t.stack.socket()
        s.bind((ANY, 0))
        assert s.getsockname()[1] == 50003


def test_a_specific_address_beats_the_wildcard() -> None:
    """A18"""
    with two_addresses() as t:
        wild, one = sock(t, 0, 0), sock(t, 0, 0)
        one.bind((ONE, 80))
        one.listen(1)
        wild.bind((TWO, 80))
        wild.close()
        wild = sock(t, 0, 0)
        assert refused(wild.bind, (ANY, 80))
        wild = sock(t, 0, 1)
        one.close()
        one = sock(t, 0, 1)
        wild.bind((ANY, 80))
        wild.listen(9)
        one.bind((ONE, 80))
        one.listen(9)
        t.connect(1000, 0)
        t.server = TWO
        t.connect(1001, 0)
        assert one.accept()[1][1] == 1000
        assert wild.accept()[1][1] == 1001
        t.swallow()


def group(t: Testbed, n: int) -> list[Any]:
    members = []
    for _ in range(n):
        s = sock(t, 0, 1)
        s.bind((ANY, 80))
        s.listen(100)
        s.setblocking(False)
        members.append(s)
    return members


def drain(members: list[Any]) -> dict[int, tuple[int, Any]]:
    """Peer port -> (member, connection)."""
    out = {}
    for i, m in enumerate(members):
        while True:
            try:
                conn, peer = m.accept()
            except BlockingIOError:
                break
            out[peer[1]] = (i, conn)
    return out


def test_a_group_spreads_and_is_stable() -> None:
    """A19"""
    with Testbed(backlog=None) as t:
        members = group(t, 4)
        where: dict[int, int] = {}
        for attempt in range(2):
            for port in range(1000, 1064):
                t.connect(port, attempt)
            got = drain(members)
            for port, (i, _) in got.items():
                assert where.setdefault(port, i) == i
                t.line(f"{attempt} {port} < R 1")
        shares = [list(where.values()).count(i) for i in range(4)]
        assert sum(shares) == 64 and min(shares) >= 6


def test_the_last_member_takes_the_place_of_one_that_leaves() -> None:
    """A20"""
    with Testbed(backlog=None) as t:
        members = group(t, 4)
        for port in range(1000, 1064):
            t.connect(port, 0)
        taken = drain(members)
        before = {port: i for port, (i, _) in taken.items()}
        for port in before:
            t.line(f"0 {port} < R 1")
        members[1].close()
        left = [members[0], members[3], members[2]]
        for port in range(1000, 1064):
            t.connect(port, 1)
        after = drain(left)
        # multiplication by n: thirds in the order 0, 3, 2 of what were quarters in the order 0, 1, 2, 3
        for port, (place, _) in after.items():
            quarter = before[port]
            assert place in {quarter * 3 // 4, (quarter * 3 + 2) // 4}
            t.line(f"1 {port} < R 1")


@pytest.mark.parametrize("migrate", [0, 1])
def test_a_member_closes(migrate: int) -> None:
    """A21, A22"""
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_migrate_req": migrate}) as t:
        members = group(t, 2)
        for port in range(1000, 1016):
            t.run(f"0.0 {port} < S 0 {LINUX}\n0.0 {port} > S. 0")
        for port in range(1000, 1008):
            t.line(f"0.0 {port} < . 1 ack 1 ! taken")
        queued = [int(r["recvq"]) for r in t.rows("LISTEN")]
        assert sum(queued) == 8 and min(queued) > 0
        members[0].close()
        t.collect()
        resets = sum(1 for p in range(1000, 1008) if t.flow(p).out)
        t.swallow()
        for port in range(1008, 1016):
            t.line(f"0.5 {port} < . 1 ack 1")
        t.collect()
        orphans = sum(1 for p in range(1008, 1016) if t.flow(p).out)
        t.swallow()
        taken = len(drain(members[1:]))
        counters = t.stack.nstat()
        if migrate:
            assert (resets, orphans, taken) == (0, 0, 16)
            assert counters["TcpExtTCPMigrateReqSuccess"] >= 2
        else:
            assert resets in queued and orphans > 0 and taken == 16 - resets - orphans
            assert "TcpExtTCPMigrateReqSuccess" not in counters
        t.swallow()


def test_migration_at_the_timer_and_to_nobody() -> None:
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_migrate_req": 1}) as t:
        members = group(t, 2)
        for port in range(1000, 1016):
            t.run(f"0.0 {port} < S 0 {LINUX}\n0.0 {port} > S. 0")
        members[0].close()
        t.advance(1_500_000_000)
        counters = t.stack.nstat()
        moved = counters["TcpExtTCPMigrateReqSuccess"]
        assert 0 < moved < 16 and counters["TcpExtTCPSynRetrans"] == 16
        assert t.half_open() == 16
        members[1].close()
        t.swallow()
        t.advance(3_500_000_000)
        assert t.half_open() == 0
        assert t.stack.nstat()["TcpExtTCPMigrateReqFailure"] == 16
        t.run("3.5 quiet")
