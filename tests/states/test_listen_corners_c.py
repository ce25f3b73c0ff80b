"""What only a mutant of the listen path showed to be untested (scripts/mutants --all): who finds whom in the listener table, how long the log
walks, what a hook's choice does where no other test looks, and what is given back when something is short."""

from __future__ import annotations

import contextlib
import struct
from itertools import pairwise
from typing import Any

import pytest
from scapy.all import IP, TCP, Raw  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed
from tests.states.test_fastopen_server import GOOD, fo, server

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
REUSEADDR, REUSEPORT, TCP_INFO, IP_TOS = 2, 15, 11, 1
S = 10**9


def listening(t: Testbed, port: int, address: str = "0.0.0.0", reuseport: int = 1, backlog: int = 100) -> Any:
    sock = t.stack.socket()
    sock.setsockopt(1, REUSEPORT, reuseport)
    sock.bind((address, port))
    sock.setblocking(False)
    sock.listen(backlog)
    return sock


def info(conn: Any) -> bytes:
    return bytes(conn.getsockopt(6, TCP_INFO, 280))


def opened(t: Testbed, sock: Any) -> list[int]:
    """Peer ports of what waits at a listener; all of it is reset."""
    out = []
    with contextlib.suppress(BlockingIOError):
        while True:
            conn, peer = sock.accept()
            conn.setsockopt(1, 13, struct.pack("ii", 1, 0))
            conn.close()
            out.append(peer[1])
    t.swallow()
    return out


# ---- the listener table (A18-A21) -------------------------------------------------------------------------------------------------------
def slot(port: int) -> int:
    """Of the wildcard address, as bind.pxd has it; any other table serves these tests too, only less well."""
    return (((port << 16 ^ port) * 0x9E3779B1 & 0xFFFFFFFF) >> 8) & 4095


def test_listeners_in_one_slot_do_not_meet() -> None:
    """A18, A19: port and address are compared, a group is joined and searched by both; whoever leaves takes nobody along."""
    ports = [p for p in range(1024, 65536) if slot(p) == slot(2000)][:6]
    assert len(ports) == 6
    with Testbed(backlog=None) as t:
        socks = {p: [listening(t, p), listening(t, p)] for p in ports[:4]} | {p: [listening(t, p, reuseport=0)] for p in ports[4:]}
        peer = 3000

        def reached(p: int) -> set[int]:
            nonlocal peer
            t.port = p
            for _ in range(8):
                peer += 1
                t.connect(peer, 0)
            found = {i for i, sock in enumerate(socks[p]) if opened(t, sock)}
            assert all(not opened(t, sock) for q in ports for sock in socks[q])
            return found

        for p in ports:
            assert reached(p) == set(range(len(socks[p])))
        for gone in (ports[1], ports[4], ports[5], ports[0]):
            for sock in socks.pop(gone):
                sock.close()
            ports = [p for p in ports if p != gone]
            for p in ports:
                assert reached(p) == set(range(len(socks[p])))


def test_a_group_has_1024_members() -> None:
    """A19: one more is refused, and the group goes on."""
    with Testbed(backlog=None) as t:
        socks = [listening(t, 80, backlog=1) for _ in range(1024)]
        with pytest.raises(OSError):
            listening(t, 80)
        t.connect(1000, 0)
        assert sum(len(opened(t, sock)) for sock in socks) == 1


def test_a_successor_wakes_up() -> None:
    """A22: who waits at the successor for a connection is told of one that moves."""
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_migrate_req": 1}) as t:
        first = listening(t, 80)
        t.connect(1000, 0)
        second = listening(t, 80)
        second.wakeups()
        first.close()
        assert second.wakeups() & 1 and second.poll() & 1
        assert opened(t, second) == [1000]


def test_children_move_in_their_order() -> None:
    """A22, G2: the chain of the accept queue is made anew at the successor."""
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_migrate_req": 1}) as t:
        first = listening(t, 80)
        for port in range(1000, 1004):
            t.connect(port, 0)
        second = listening(t, 80)
        first.close()
        t.connect(1004, 0)
        assert opened(t, second) == list(range(1000, 1005))


def test_an_accepted_connection_may_become_a_listener() -> None:
    """A4, A12: after disconnect() it has a queue of its own, not its former parent's."""
    with Testbed() as t:
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        conn.disconnect()
        t.swallow()
        conn.bind(("0.0.0.0", 81))
        conn.listen(3)
        t.port = 81
        t.connect(1001, 1)
        assert [q["accept"] for q in sorted(t.stack.queues(), key=lambda q: q["local"][1])] == [0, 1]
        conn.setblocking(False)
        assert opened(t, conn) == [1001]


# ---- the young and the old (D5, D6) -----------------------------------------------------------------------------------------------------
def test_as_many_young_as_half_the_queue_cost_a_try() -> None:
    """D2.3: the loop stops where qlen < 2 * young, not where they are equal: one of the old goes, then there are fewer."""
    with Testbed(backlog=16) as t:
        for port in range(1000, 1006):
            t.line(f"0.0 {port} < S 0 {LINUX}")
        t.advance(30 * S)
        t.swallow()
        for port in range(2000, 2006):
            t.line(f"30.5 {port} < S 0 {LINUX}")
        t.swallow()
        t.advance(31 * S + 1)
        assert {r["peer"][1] for r in t.stack.requests()} == {*range(1001, 1006), *range(2000, 2006)}
        t.swallow()


# ---- the log (C1) -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("3:0e,0:02,3:0f", 0),                      # behind the end of the options
        ("4:,3:0f,1:", 1),                          # behind an option of two bytes
        ("3:0f,3:0f", 2),
        ("254:f9890f,3:0f", 1),
    ],
)
def test_how_far_the_log_looks_for_window_scales(options: str, told: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ustack.kernel")
    raw = b""
    for word in options.split(","):
        kind, _, data = word.partition(":")
        value = bytes.fromhex(data)
        raw += bytes([int(kind)]) + (value if kind == "0" else b"" if kind == "1" else bytes([2 + len(value)]) + value)
    with Testbed() as t, t.stack.events() as stream:
        raw += b"\x01" * (-len(raw) % 4)
        segment = bytearray(bytes(TCP(sport=2000, dport=80, flags="S", seq=1, window=100)) + raw)
        segment[12] = len(segment) // 4 << 4
        t.stack.inject(bytes(IP(src=t.peer, dst=t.server, proto=6) / bytes(segment)), 0, csum=1)
        lines = [r.message for r in caplog.records if "window scaling" in r.message]
        assert len(lines) == told
        assert [(e.local, e.peer) for e in stream if e.kind == "log"] == [((t.server, 80), (t.peer, 2000))] * told
        t.swallow()


# ---- what a request keeps ---------------------------------------------------------------------------------------------------------------
def test_what_a_request_took_for_its_limiter_goes_with_it() -> None:
    """E9: the record of a request that had to answer twice is no SYN to save, and not its child's."""
    with Testbed() as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1\n0.1 < S 0 {LINUX}\n0.1 > S. 0 ack 1")
        assert t.stack.pools()["extensions"] == 1
        t.line("0.2 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        assert t.stack.pools().get("extensions", 0) == 0
        t.line("0.3 < R 1")


def test_two_offences_at_one_time_get_one_answer() -> None:
    """E9: no time between them is less than tcp_invalid_ratelimit too."""
    with Testbed() as t:
        t.run(f"""
            0.0 < S 0 {LINUX}
            0.0 > S. 0 ack 1
            0.1 < R 7
            0.1 > . 1 ack 1
            0.1 < R 8
            count TCPChallengeACK+1 TCPACKSkippedChallenge+1
            0.2 < R 1
        """)


def test_segments_that_the_link_merged_into_the_third_ack() -> None:
    """L5: they count as what came over the wire."""
    for size, segs in ((300, 3), (301, 4), (100, 1)):
        with Testbed() as t:
            t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
            isn = t.flow(1000).stack_isn or 0
            t.stack.inject(bytes(IP(src=t.peer, dst=t.server) / TCP(sport=1000, dport=80, flags="PA", seq=10001, ack=isn + 1, window=500)
                                 / Raw(b"x" * size)), 0, gso_size=100)
            t.swallow()
            conn, _ = t.listener.accept()
            assert struct.unpack_from("<I", info(conn), 152)[0] == segs       # tcpi_data_segs_in
            t.line(f"0.1 < R {1 + size}")


def test_how_long_the_syn_ack_timer_kept_the_client_waiting() -> None:
    """D11, L6: tcpi_total_rto, _recoveries, _time: from the first SYN-ACK to the third ACK."""
    with Testbed() as t:
        t.run(f"0.5 < S 0 {LINUX}\n0.5 > S. 0 ack 1\n1.5 > S. 0 ack 1\n3.5 > S. 0 ack 1\n3.9 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        conn, _ = t.listener.accept()
        assert struct.unpack_from("<HHI", info(conn), 240) == (2, 1, 3400)
        t.line("4.0 < R 1")


# ---- the challenge budget (J21) ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [1, 3])
def test_a_small_challenge_budget(limit: int) -> None:
    """J21: from half the limit, rounded up, to a limit below one and a half of it."""
    with Testbed(sysctl={"net.ipv4.tcp_challenge_ack_limit": limit, "net.ipv4.tcp_invalid_ratelimit": 0}) as t:
        t.connect(1000, 0, "mss 1460")
        seen = set()
        for second in range(1, 30):
            sent = 0
            for i in range(6):
                t.line(f"{second}.{i + 1:03d} < S 1")
                sent += len(t.flow(1000).out)
                t.swallow()
            seen.add(sent)
        half = (limit + 1) // 2
        assert seen == set(range(half, half + limit))


# ---- hooks ------------------------------------------------------------------------------------------------------------------------------
def test_a_cookie_with_all_a_hook_may_choose() -> None:
    """B13: window, MSS, ECN of a SYN that is answered out of nothing."""
    with Testbed() as t:

        @t.stack.on("syn")
        def choose(view: Any) -> str:
            view.window, view.mss, view.needs_ecn = 5000, 1000, True
            return "cookie"

        t.run("0.0 < SEW 0 <mss 1460,sackOK,TS 1000 0,nop,ws 7>\n0.0 > S.E 0 ack 1 win 5000 tos 2")
        t.run("0.0 1001 < S 0 <mss 1460>\n0.0 1001 > S. 0 ack 1 win 5000 tos 2 <mss 1000>")
        assert t.half_open() == 0


def test_needs_ecn_on_a_socket_with_a_tos() -> None:
    with Testbed() as t:
        t.listener.setsockopt(0, IP_TOS, 0x14)
        t.stack.on("syn", lambda view: setattr(view, "needs_ecn", True))
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1 tos 0x16\n0.1 < R 1")


def test_the_mss_that_a_hook_chose_is_the_childs() -> None:
    with Testbed() as t:
        t.stack.on("syn", lambda view: setattr(view, "mss", 1000))
        t.run("0.0 < S 0 <mss 1460>\n0.0 > S. 0 ack 1 <mss 1000>\n0.1 < . 1 ack 1 ! taken")
        conn, _ = t.listener.accept()
        assert struct.unpack_from("<I", info(conn), 84)[0] == 1000         # tcpi_advmss
        t.line("0.2 < R 1")


def test_a_hook_evicts_nobody_elses_request_and_no_connection() -> None:
    """Only half-open requests of the listener that got the SYN."""
    with Testbed(backlog=None) as t:
        left, right = listening(t, 80, t.server), listening(t, 80)
        t.run(f"0.0 2000 < S 0 {LINUX}\n0.0 2000 > S. 0 ack 1")
        t.connect(2001, 0)
        left.close()                                                        # its request stays, its connection goes
        t.swallow()
        t.connect(2002, 0)
        victims = iter((2000, 2002, 2999))
        t.stack.on("syn", lambda view: setattr(view, "evict", (view.peer[0], next(victims))))
        for port in (3000, 3001, 3002):
            t.run(f"0.1 {port} < S 0 {LINUX}\n0.1 {port} > S. 0 ack 1")
        assert {r["peer"][1] for r in t.stack.requests()} == {2000, 3000, 3001, 3002}
        assert opened(t, right) == [2002]


def test_drops_that_a_hook_chose_are_the_listeners() -> None:
    """L1: also where the hook lets Linux decide."""
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        t.stack.on("syn", lambda view: None)
        t.stack.on("overflow", lambda view: "drop" if view.peer[1] == 2001 else None)
        t.run(f"0.0 2000 < S 0 {LINUX}\n0.0 2000 > S. 0 ack 1")
        t.run(f"0.0 2001 < S 0 {LINUX} ! HOOK\n0.0 2002 < S 0 {LINUX} ! TCP_REQQFULL_DROP\ncount ListenDrops+2 TCPReqQFullDrop+1")
        assert t.stack.queues()[0]["drops"] == 2


def test_a_refused_connection_leaves_the_queue_as_it_was() -> None:
    """G2: whoever stands before it is the last again; who comes next is found."""
    with Testbed(backlog=4) as t:
        t.stack.on("established", lambda view: "reset" if view.peer[1] in (1001, 1003) else None)
        for port in range(1000, 1005):
            t.connect(port, 0)
        assert t.stack.queues()[0]["accept"] == 3
        assert opened(t, t.listener) == [1000, 1002, 1004]


def test_a_hook_that_never_gives_up_ends_at_255_ticks() -> None:
    """The count of ticks stays where it is, and the wait with it."""
    with Testbed() as t:

        @t.stack.on("synack")
        def go_on(view: Any) -> str:
            view.next_ms = 10
            return "accept"

        t.line(f"0.0 < S 0 {LINUX}")
        t.advance(10 * S)
        assert t.stack.requests()[0]["num_timeout"] == 255
        t.swallow()


def test_a_timeout_of_a_hook_and_the_time_of_the_first_syn_ack() -> None:
    """D11, D13: what the wait was tells no more when it began, so the request remembers."""
    with Testbed() as t:

        @t.stack.on("synack")
        def soon(view: Any) -> None:
            view.next_ms = 300

        t.run("5.0 < S 0 <mss 1460>\n5.0 > S. 0 ack 1\n6.0 > S. 0 ack 1\n6.3 > S. 0 ack 1\n6.5 < . 1 ack 1 ! taken")
        conn, _ = t.listener.accept()
        assert struct.unpack_from("<HHI", info(conn), 240) == (2, 1, 1500)
        t.line("6.6 < R 1")


def test_where_a_queued_connection_is_from() -> None:
    with Testbed() as t, t.stack.events() as stream:
        t.connect(1000, 0)
        assert [(e.local, e.peer, e.info) for e in stream if e.kind == "queued"] == [
            ((t.server, 80), (t.peer, 1000), {"accept_queue": 1, "backlog": 128})
        ]
        t.line("0.1 < R 1")


# ---- what is short (E3) -----------------------------------------------------------------------------------------------------------------
def test_no_socket_for_a_child() -> None:
    """E1.10: lost at the listener, the request stays."""
    with Testbed(limits={"sockets": 1}) as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
        t.line("0.1 < . 1 ack 1 <nop,nop,TS 1001 0> ! POOL_TCB")
        t.line("count ListenDrops+1")
        assert t.half_open() == 1 and t.stack.queues()[0]["drops"] == 2
        t.line("0.2 < R 1")


@pytest.mark.parametrize("mode", [3, 0x203])
def test_no_socket_for_a_fast_open_child(mode: int) -> None:
    """I6: an ordinary SYN-ACK, which with a cookie required names it; nothing is kept."""
    with server(mode=mode, limits={"sockets": 1}) as t:
        before = t.stack.pools().get("extensions", 0)
        t.run(f"0.0 < S 0(5) {fo()}")
        t.collect()
        answer = t.flow(1000).out.pop()[1]
        assert (answer.payload.ack, bytes.fromhex(GOOD) in bytes(answer)) == (10001, mode == 3)
        assert t.stack.pools().get("extensions", 0) == before
        t.flow(1000).stack_isn = answer.payload.seq
        t.line("0.1 < R 1")


def test_no_record_for_the_limiter() -> None:
    """E9: without room to note the time of an answer, the answer is withheld, and counted as limited."""
    with Testbed(limits={"extensions": 1}) as t:
        t.run(f"0.0 1000 < S 0 {LINUX}\n0.0 1000 > S. 0 ack 1\n0.0 1001 < S 0 {LINUX}\n0.0 1001 > S. 0 ack 1")
        t.run("0.1 1000 < R 7\n0.1 1000 > . 1 ack 1\ncount TCPChallengeACK+1\n0.1 1001 < R 7\n0.2 quiet\ncount TCPACKSkippedChallenge+1")
        t.run("0.3 1000 < R 1\n0.3 1001 < R 1")


# ---- numbers ----------------------------------------------------------------------------------------------------------------------------
def test_initial_numbers_grow_by_one_in_64_ns() -> None:
    """B10: for one 4-tuple; a step of 63 ns may show or not."""
    with Testbed() as t:
        seen = []
        for at in ("1.000000000", "1.000000064", "2.000000064"):
            t.line(f"{at} < S 0 <mss 1460>")
            t.collect()
            seen.append(t.flow(1000).out.pop()[1][TCP].seq)
            t.flow(1000).stack_isn = seen[-1]
            t.line(f"{at} < R 1")
        assert [(b - a) % 2**32 for a, b in pairwise(seen)] == [1, 15_625_000]


def test_what_a_listener_counts_for_stack_queues() -> None:
    """L1 per listener: SYNs, full queues, cookies sent, returned and refused."""
    with Testbed(backlog=0) as t:
        for port in (1000, 1001, 1002):
            t.run(f"0.0 {port} < S 0 {LINUX}\n0.0 {port} > S. 0 ack 1")
        t.run("0.1 1001 < . 1 ack 1 <nop,nop,TS 1001 0>\n0.1 1002 < . 1 ack 77\n0.1 1002 > R 77\n0.2 1003 < S 0 <mss 1460>")
        t.swallow()
        (queue,) = t.stack.queues()
        assert (queue["syns"], queue["syn_queue_full"], queue["overflows"], queue["accept_peak"]) == (4, 3, 1, 1)
        assert (queue["cookies_sent"], queue["cookies_received"], queue["cookies_failed"]) == (2, 1, 1)
        assert opened(t, t.listener) == [1001]


@pytest.mark.parametrize("owner", ["bound", "child", "time wait"])
def test_connect_shares_no_port_that_somebody_bound(owner: str) -> None:
    """A13: an automatic port is shared with other automatic ones only, whoever holds it since."""
    with Testbed(backlog=None, sysctl={"net.ipv4.ip_local_port_range": "40000 40001"}) as t:
        sock = t.stack.socket()
        sock.bind(("0.0.0.0", 40001))
        if owner != "bound":
            sock.setblocking(False)
            sock.listen(1)
            t.port = 40001
            t.connect(1000, 0)
            conn, _ = sock.accept()
            sock.close()
            if owner == "time wait":
                conn.close()
                t.swallow()
                t.run("0.1 1000 < F. 1 ack 2 <nop,nop,TS 1001 0>")
                assert t.rows("TIME-WAIT")
        t.swallow()
        for last in range(3, 9):
            other = t.stack.socket()
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect((f"192.0.2.{last}", 80))
            assert other.getsockname()[1] == 40000
        t.stack.take()
