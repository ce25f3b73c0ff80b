"""Rules of the listen path that only a corner shows: who takes over from a listener that closes, what a listener counts, the order of automatic
ports, and limits that hold to the last second (facts sections A, F, H, J, L)."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
PLAIN = "<mss 1460>"
REUSEADDR, REUSEPORT, MEMINFO = 2, 15, 55
PORTS = range(1000, 1032)
GONE = 2  # the member that closes; its place in the group goes to the last
MIGRATE = {"net.ipv4.tcp_migrate_req": 1}


def member(t: Testbed, backlog: int = 100) -> Any:
    sock = t.stack.socket()
    sock.setsockopt(1, REUSEPORT, 1)
    sock.bind(("0.0.0.0", 80))
    sock.setblocking(False)
    sock.listen(backlog)
    return sock


def group(n: int, sysctl: dict[str, Any] | None = None, **kw: Any) -> tuple[Testbed, list[Any]]:
    t = Testbed(backlog=None, sysctl=MIGRATE | (sysctl or {}), **kw)
    return t, [member(t) for _ in range(n)]


def syns(t: Testbed) -> None:
    for port in PORTS:
        t.run(f"0.0 {port} < S 0 {LINUX} ! taken\n0.0 {port} > S. 0 ack 1")


def third_acks(t: Testbed, at: str, ports: Any = PORTS) -> None:
    for port in ports:
        t.line(f"{at} {port} < . 1 ack 1 ! taken")


def owners(members: list[Any]) -> dict[int, int]:
    """Peer port -> number of the member that has the connection in its accept queue; the connections are reset."""
    out = {}
    for i, m in enumerate(members):
        while True:
            try:
                conn, peer = m.accept()
            except (BlockingIOError, OSError):
                break
            conn.setsockopt(1, 13, struct.pack("ii", 1, 0))
            conn.close()
            out[peer[1]] = i
    return out


def chosen(n: int, closed: int | None) -> dict[int, int]:
    """Which member of n a SYN of each port reaches, with all listening or without one."""
    t, members = group(n)
    with t:
        if closed is not None:
            members[closed].close()
        for port in PORTS:
            t.connect(port, 0)
        got = owners(members)
        t.swallow()
    return got


@pytest.mark.parametrize("when", ["child", "segment", "timer", "second timer"])
def test_the_successor_is_who_would_get_the_syn_now(when: str) -> None:
    """A19, A20, A22: the hash of the 4-tuple chooses among those that are left: a child at the close, a request at its next event."""
    before, after = chosen(4, None), chosen(4, GONE)
    moved = [port for port in PORTS if before[port] == GONE]
    assert len(moved) >= 4 and len({after[port] for port in moved}) == 2
    t, members = group(4)
    with t:
        syns(t)
        if when == "child":
            third_acks(t, "0.1")
        if when == "second timer":
            t.advance(1_500_000_000)
            t.swallow()
        t.base = t.stack.nstat(zeros=True)
        members[GONE].close()
        t.line(f"count TCPMigrateReqSuccess+{len(moved)}" if when == "child" else "count")
        if "timer" in when:
            tick = 1 if when == "timer" else 3
            for port in PORTS:
                t.line(f"{tick} {port} > S. 0 ack 1")
            n = len(PORTS)
            t.line(f"count TCPMigrateReqSuccess+{len(moved)} TCPTimeouts+{n} RetransSegs+{n} TCPSynRetrans+{n}")
        if when != "child":
            assert t.half_open() == len(PORTS)
            third_acks(t, {"segment": "0.5", "timer": "1.5", "second timer": "3.5"}[when], moved)
            one = len(moved)
            t.line(f"count PassiveOpens+{one} CurrEstab+{one} TCPPureAcks+{one}" + (f" TCPMigrateReqSuccess+{one}" if when == "segment" else ""))
        got = owners(members)
        assert {port: got[port] for port in moved} == {port: after[port] for port in moved}
        t.swallow()


@pytest.mark.parametrize("ticks", [0, 1])
def test_a_moved_request_counts_at_its_new_listener(ticks: int) -> None:
    """A22, 0.1: length and young ones of the successor's queue; the closed one is gone from the list."""
    t, members = group(2)
    with t:
        syns(t)
        if ticks:
            t.advance(1_500_000_000)
            t.swallow()
        queues = t.stack.queues()
        assert sum(q["half_open"] for q in queues) == len(PORTS) and min(q["half_open"] for q in queues) > 0
        members[0].close()
        (left,) = t.stack.queues()
        assert 0 < left["half_open"] < len(PORTS), "requests move at their next event, not at the close"
        t.advance(3_500_000_000)
        t.swallow()
        (left,) = t.stack.queues()
        assert (left["half_open"], left["young"]) == (len(PORTS), 0)
        third_acks(t, "3.6")
        (left,) = t.stack.queues()
        assert (left["half_open"], left["young"], left["accept"]) == (0, 0, len(PORTS))
        owners(members[1:])
        t.swallow()


def test_a_third_ack_moves_the_young_count_of_the_closed_listener() -> None:
    """A21, A22: the child is the successor's, the request was the closed listener's; the group lives on without it."""
    t, members = group(2)
    with t:
        syns(t)
        members[0].close()
        third_acks(t, "0.5")
        (left,) = t.stack.queues()
        assert (left["half_open"], left["young"], left["accept"]) == (0, 0, len(PORTS))
        members.append(member(t))
        owners(members[1:])
        t.swallow()
        for port in range(2000, 2032):
            t.connect(port, 1)
        assert set(owners(members[1:]).values()) == {0, 1}
        t.swallow()


def test_children_move_even_to_a_full_queue() -> None:
    """A22: the successor's limit is not asked."""
    t = Testbed(backlog=None, sysctl=MIGRATE)
    with t:
        members = [member(t, 100)]
        for port in range(1000, 1005):
            t.connect(port, 0)
        members.append(member(t, 0))
        members[0].close()
        (left,) = t.stack.queues()
        assert (left["accept"], left["limit"]) == (5, 0)
        assert t.stack.nstat()["TcpExtTCPMigrateReqSuccess"] == 5
        owners(members[1:])
        t.swallow()


@pytest.mark.parametrize("abort", [0, 1])
def test_a_full_successor_fails_the_migration(abort: int) -> None:
    """A22, E3: counted, and the request waits for room where it was, unless tcp_abort_on_overflow."""
    t = Testbed(backlog=None, sysctl=MIGRATE | {"net.ipv4.tcp_abort_on_overflow": abort})
    with t:
        members = [member(t)]
        t.run(f"0.0 1000 < S 0 {LINUX} ! taken\n0.0 1000 > S. 0 ack 1")
        members.append(member(t, 0))
        members[0].close()
        t.connect(1001, "0.1")
        t.line("count PassiveOpens+1 CurrEstab+1 TCPPureAcks+1")
        t.line("0.2 1000 < . 1 ack 1 ! TCP_LISTEN_OVERFLOW")
        if abort:
            t.line("0.2 1000 > R 1")
        t.line("count ListenOverflows+1 ListenDrops+1 TCPMigrateReqFailure+1" + (" EmbryonicRsts+1 OutRsts+1" if abort else ""))
        assert t.half_open() == 1 - abort
        (left,) = t.stack.queues()
        assert (left["half_open"], left["overflows"], left["drops"]) == (-abort, 1, 2)      # Linux counts it off where it died, and the segment too
        assert owners(members[1:]) == {1001: 0}
        t.swallow()
        if not abort:
            t.line("0.3 1000 < . 1 ack 1 ! taken")
            assert owners(members[1:]) == {1000: 0} and t.stack.nstat()["TcpExtTCPMigrateReqSuccess"] == 1
            t.swallow()


def test_a_request_that_moves_at_its_last_tick_fails() -> None:
    """A22, D3: the successor's own limit of retries ends it at once."""
    t, members = group(2)
    with t:
        syns(t)
        moved = [q["half_open"] for q in t.stack.queues()]
        members[1].setsockopt(6, 7, 1)
        t.advance(1_500_000_000)
        t.swallow()
        t.base = t.stack.nstat(zeros=True)
        members[0].close()
        t.run(f"3.5 quiet\ncount TCPTimeouts+{len(PORTS)} TCPMigrateReqFailure+{moved[0]}")
        assert t.half_open() == 0
        assert [q["half_open"] for q in t.stack.queues()] == [0]


def test_a_member_that_listens_again_finds_its_requests() -> None:
    """A22: shutdown() leaves it in the group as closed; listen() puts it last, and its requests are its own again."""
    t, members = group(2)
    with t:
        syns(t)
        members[0].shutdown(2)
        members[0].listen(100)
        t.base = t.stack.nstat(zeros=True)
        third_acks(t, "0.5")
        n = len(PORTS)
        t.line(f"count PassiveOpens+{n} CurrEstab+{n} TCPPureAcks+{n}")
        owners(members)
        t.swallow()
        for port in range(2000, 2032):
            t.connect(port, 1)
        again = owners(members)
        t.swallow()
        assert set(again.values()) == {0, 1}
        t.stack.sysctl["net.ipv4.tcp_migrate_req"] = 0
        members[0].close()
        for port in range(2000, 2032):
            t.connect(port, 2)
        assert set(owners(members[1:]).values()) == {0} and len(t.stack.queues()) == 1
        t.swallow()
        members[1].close()
        for port in range(3000, 3032):
            t.run(f"3 {port} < S 0 ! NO_SOCKET\n3 {port} > R. =0 ack 1")


def test_nobody_takes_over_from_a_listener_without_a_group() -> None:
    """A9: tcp_migrate_req does not matter to it, and no failure is counted."""
    with Testbed(sysctl=MIGRATE) as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
        t.connect(1001, 0)
        t.line("count PassiveOpens+1 CurrEstab+1 TCPPureAcks+1")
        t.listener.close()
        t.run("0.0 1001 > R. 1 ack 1\n1.5 quiet\ncount CurrEstab-1 EstabResets+1 OutRsts+1")
        assert t.half_open() == 0


# ---- what a listener counts (L1) -----------------------------------------------------------------------------------------------------
def drops(t: Testbed) -> tuple[int, int]:
    """As the queues show them, and as `ss -m` does (SO_MEMINFO)."""
    meminfo = struct.unpack("9I", t.listener.getsockopt(1, MEMINFO, 36))
    return t.stack.queues()[0]["drops"], meminfo[8]


def test_every_segment_thrown_away_for_a_listener_is_its_drop() -> None:
    """L1, E1: what a request or the listener discards counts at the socket, a SYN that finds no room also as ListenDrops."""
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        t.run(f"0.0 1000 < S 0 {LINUX} ! taken\n0.0 1000 > S. 0 ack 1")
        for n, line in enumerate(
            (
                "2000 < F 0 ! TCP_FLAGS",
                "2001 < R 0 ! TCP_LISTEN_RST",
                f"2002 < S 0 {LINUX} ! TCP_REQQFULL_DROP",
                "1000 < R 500000 ! TCP_REQ_OOW",
                "1000 < F 1 ! TCP_REQ_NOACK",
                "1000 < R 1 ! TCP_RESET",
            ),
            1,
        ):
            t.line(f"0.{n} {line}")
            assert drops(t) == (n, n), line
        t.line("count TCPReqQFullDrop+1 ListenDrops+1 AttemptFails+1 EmbryonicRsts+1")


def test_the_reset_of_a_broadcast_ack_is_counted_and_not_sent() -> None:
    """B2: no way leads back from a broadcast address. A RST among them is not even counted."""
    with Testbed() as t:
        before = t.stack.nstat(zeros=True)["TcpOutSegs"]
        t.server = "192.0.2.255"
        t.run("0.0 < . 1 ack =77 ! TCP_FLAGS\n0.1 quiet\ncount OutRsts+1")
        assert t.stack.nstat(zeros=True)["TcpOutSegs"] == before + 1
        t.run("0.2 < R. 1 ack =77 ! TCP_LISTEN_RST\n0.3 quiet\ncount")
        assert t.stack.nstat(zeros=True)["TcpOutSegs"] == before + 1


def test_a_timestamp_ahead_of_the_window_is_not_remembered() -> None:
    """E1.11: the child's ts_recent is that of the third ACK only if nothing is missing before it."""
    with Testbed() as t:
        t.run(f"""
            0.0 < S 0 {LINUX}
            0.0 > S. 0 ack 1
            0.1 < P. 11(5) ack 1 <nop,nop,TS 1500 0> ! taken
        """)
        t.collect()
        echoed = dict(t.flow(1000).out.pop()[1].payload.options)["Timestamp"][1]
        assert echoed == 1000
        t.line("0.2 < P. 1(10) ack 1 <nop,nop,TS 1200 0> ! taken")
        assert t.stack.nstat().get("TcpExtPAWSEstab", 0) == 0
        t.swallow()


def test_a_third_ack_with_a_syn_leaves_its_timestamp() -> None:
    """E1.5, E1.11, J20: with data it makes the child, which refuses the SYN; the challenge echoes the segment's own time."""
    with Testbed() as t:
        t.run(f"""
            0.0 < S 0 {LINUX}
            0.0 > S. 0 ack 1
            0.1 < S. 0(5) ack 1 <TS 1500 0>
            0.1 > . 1 ack 1 <nop,nop,TS 100 1500>
        """)


# ---- cookies (F6) --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("issued", "returned", "checked"),
    [
        (["0.0", "1.0"], "120.0", True),
        (["0.0", "1.0"], "120.000000001", False),  # exactly one second later is not yet an update
        (["0.0", "1.000000001"], "121.0", True),
        (["0.0", "0.9", "1.1", "1.8"], "121.1", True),
        (["0.0", "0.9", "1.1", "1.8"], "121.100000001", False),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_last_cookie_is_noted_once_a_second(issued: list[str], returned: str, checked: bool, grouped: bool) -> None:
    """F6: an ACK is tried as a cookie up to 120 s after the note; one note for a whole reuseport group."""
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        members = [member(t)] if grouped else [t.listen(80, 5)]
        for port in range(3000, 3004):
            t.run(f"0.0 {port} < . 1 ack =77\n0.0 {port} > R =77")
        t.line("count OutRsts+4")
        for at in issued:
            t.run(f"{at} < S 0 {LINUX} ! taken\n{at} > S. 0")
        if grouped:
            members += [member(t) for _ in range(3)]
        n = len(issued)
        t.line(f"count TCPReqQFullDoCookies+{n} SyncookiesSent+{n}")
        for port in range(4000, 4008):
            t.run(f"{returned} {port} < . 1 ack =77\n{returned} {port} > R =77")
        t.line("count OutRsts+8" + (" SyncookiesFailed+8" if checked else ""))


# ---- challenge ACKs (J21) ------------------------------------------------------------------------------------------------------------
def test_the_challenge_budget_is_there_in_the_first_second_and_varies() -> None:
    """J21: half the limit and a random part below the limit, anew in each second from the first on."""
    seen = set()
    with Testbed(sysctl={"net.ipv4.tcp_challenge_ack_limit": 8, "net.ipv4.tcp_invalid_ratelimit": 0}) as t:
        t.connect(1000, 0, PLAIN.strip("<>"))
        for second in range(12):
            sent = 0
            for i in range(14):
                t.line(f"{second}.{i + 1:03d} < S 1")
                sent += len(t.flow(1000).out)
                t.swallow()
            assert 4 <= sent <= 11
            seen.add(sent)
    assert len(seen) >= 4


# ---- TIME_WAIT (section H) -----------------------------------------------------------------------------------------------------------
def in_time_wait(t: Testbed, fin: bool = True) -> None:
    """Closed first by us at 1.0; fin: TIME_WAIT, else the FIN_WAIT2 of an orphan."""
    t.connect(1000, 0)
    conn, _ = t.listener.accept()
    t.advance(10**9)
    conn.close()
    t.run(f"1.0 > F. 1 ack 1\n1.0 < {'F.' if fin else '.'} 1 ack 2 <nop,nop,TS 1000 0>")
    t.swallow()
    t.base = t.stack.nstat(zeros=True)


@pytest.mark.parametrize("fin", [True, False])
def test_a_newer_timestamp_renews_the_age_of_ts_recent(fin: bool) -> None:
    """H4, H8, E2: an old RST is believed once ts_recent is 60 s old, counted from the last segment that set it."""
    with Testbed(sysctl={"net.ipv4.tcp_fin_timeout": 60}) as t:
        in_time_wait(t, fin)
        if fin:
            t.run("50 < . 2 ack 2 <nop,nop,TS 1100 0> ! TCP_TW\n50 quiet\ncount")
        else:
            t.run("50 < F. 1 ack 2 <nop,nop,TS 1100 0> ! TCP_TW\n50 > . 2 ack 2 <nop,nop,TS 50000 1100>\ncount")
        t.run("""
            90 < R 2 <nop,nop,TS 1099 0> ! TCP_TW
            count PAWSTimewait+1
            91 < . 2 ack 2 <nop,nop,TS 1099 0> ! TCP_TW
            91 > . 2 ack 2 <nop,nop,TS 91000 1100>
            count PAWSTimewait+1
            110 < R 2 <nop,nop,TS 1099 0> ! TCP_TW
            count
        """)
        assert not t.rows("TIME-WAIT")


def test_a_record_that_is_gone_makes_room_for_another() -> None:
    """H3: tcp_max_tw_buckets counts those that there are."""
    with Testbed(sysctl={"net.ipv4.tcp_max_tw_buckets": 1}) as t:
        in_time_wait(t)
        t.run("2.0 < R 2 ! TCP_TW\n2.0 quiet")
        t.connect(1001, 3)
        t.listener.accept()[0].close()
        t.run("3.0 1001 > F. 1 ack 1\n3.0 1001 < F. 1 ack 2\n3.0 1001 > . 2 ack 2")
        assert len(t.rows("TIME-WAIT")) == 1 and "TcpExtTCPTimeWaitOverflow" not in t.stack.nstat()


@pytest.mark.parametrize(("seconds", "counter"), [(3, "TWKilled"), (4, "TWKilled"), (5, "TW")])
def test_a_short_record_counts_as_killed(seconds: int, counter: str) -> None:
    """H3: up to four seconds."""
    with Testbed(sysctl={"net.ipv4.tcp_fin_timeout": seconds}) as t:
        in_time_wait(t, fin=False)
        counted = {k: v for k, v in t.stack.nstat().items() if k.startswith("TcpExtTW")}
        assert counted == {f"TcpExt{counter}": 1}
        t.advance((1 + seconds) * 10**9)
        assert not t.rows("FIN-WAIT-2")


# ---- automatic ports (section A) -----------------------------------------------------------------------------------------------------
def automatic(t: Testbed, kept: list[Any], count: int, reuse: int = 0) -> list[int]:
    """The ports that bind() chooses one after the other, 0 where it finds none; they stay bound while they are kept."""
    socks = [t.stack.socket() for _ in range(count)]
    for sock in socks:
        sock.setsockopt(1, REUSEADDR, reuse)
        with contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", 0))
    kept += socks
    return [int(sock.getsockname()[1]) for sock in socks]


def ports(low: int, high: int, **kw: Any) -> Testbed:
    return Testbed(backlog=None, sysctl={"net.ipv4.ip_local_port_range": f"{low} {high}", **kw.pop("sysctl", {})}, **kw)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bind_takes_the_other_parity_first(seed: int) -> None:
    """A4: the ports at odd distance from the lower end come first, connect() begins with the even ones."""
    with ports(50000, 50039, seed=seed) as t:
        got = automatic(t, [], 41)
        assert set(got[:20]) == set(range(50001, 50040, 2)) and set(got[20:40]) == set(range(50000, 50040, 2))
        assert got[40] == 0 and got[:20] != sorted(got[:20])


@pytest.mark.parametrize(("count", "found"), [(1, [0]), (2, [1, 0]), (3, [1, 0])])
def test_the_last_port_of_an_odd_range_is_not_found(count: int, found: list[int]) -> None:
    """A4: the search goes over an even number of ports, unless there is but one."""
    for seed in range(1, 5):
        with ports(50000, 50000 + count - 1, seed=seed) as t:
            assert automatic(t, [], len(found) + 1) == [*(50000 + n for n in found), 0]


@pytest.mark.parametrize("seed", range(1, 6))
def test_reuseaddr_takes_the_lower_half_first(seed: int) -> None:
    """A4, A14: so that the upper half stays for those who do not share; from four ports on."""
    with ports(50000, 50003, seed=seed) as t:
        assert automatic(t, [], 5, 1) == [50001, 50000, 50003, 50002, 0]
    with ports(50000, 50009, seed=seed) as t:
        got = automatic(t, [], 10, 1)
        assert set(got[:4]) == set(range(50000, 50004)) and set(got[4:]) == set(range(50004, 50010))


@pytest.mark.parametrize("reuse", [0, 1])
def test_ip_autobind_reuse_shares_when_nothing_is_free(reuse: int) -> None:
    """A14: only among sockets with SO_REUSEADDR, and only after a search for a free port."""
    with ports(50000, 50001, sysctl={"net.ipv4.ip_autobind_reuse": reuse}) as t:
        kept: list[Any] = []
        assert automatic(t, kept, 2, 1) == [50001, 50000]
        assert automatic(t, kept, 1) == [0]
        assert (automatic(t, kept, 1, 1) != [0]) == reuse
