"""TIME_WAIT, FIN_WAIT2 of an orphan, reuse of a 4-tuple (facts section H)."""

from __future__ import annotations

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
PLAIN = "<mss 1460>"
NOTHING = "! TCP_TW"


def closed(options: str = LINUX, fin: bool = True, **kw: object) -> Testbed:
    """A connection that we closed first, at 1.0. fin: TIME_WAIT, rcv_nxt 2; else FIN_WAIT2, rcv_nxt 1."""
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.connect(1000, 0, options.strip("<>"))
    conn, _ = t.listener.accept()
    t.advance(10**9)
    conn.close()
    t.line("1.0 > F. 1 ack 1")
    ts = "<nop,nop,TS 1000 0>" if "TS" in options else ""
    t.line(f"1.0 < {'F.' if fin else '.'} 1 ack 2 {ts}")
    if fin:
        t.line("1.0 > . 2 ack 2")
    t.base = t.stack.nstat(zeros=True)
    return t


def state(t: Testbed) -> str | None:
    rows = t.rows("TIME-WAIT") + t.rows("FIN-WAIT-2")
    return rows[0]["state"] if rows else None


def test_lasts_sixty_seconds() -> None:
    with closed() as t:
        assert state(t) == "TIME-WAIT"
        t.advance(61 * 10**9 - 1)
        assert state(t) == "TIME-WAIT"
        t.advance(61 * 10**9)
        assert state(t) is None
        t.run("61.5 < . 2 ack 2 ! TCP_FLAGS\n61.5 > R 2")


ACK = "> . 2 ack 2 win 64 id 0 ttl 64"


@pytest.mark.parametrize(
    ("line", "answer", "counted", "restarted"),
    [
        ("F. 1 ack 2 <nop,nop,TS 1000 0>", ACK, "", True),
        (". 2 ack 2 <nop,nop,TS 1000 0>", None, "", True),
        (". 2 ack 2 <nop,nop,TS 999 0>", ACK, "PAWSTimewait+1", True),
        (". 1 ack 2 <nop,nop,TS 1000 0>", ACK, "", True),
        ("P. 2(5) ack 2 <nop,nop,TS 1000 0>", ACK, "", True),
        ("R 5", None, "", False),
        ("R 2 <nop,nop,TS 900 0>", None, "PAWSTimewait+1", False),
        ("S. 5 ack 2", ACK, "", True),
        ("S 1 <mss 1460,nop,nop,TS 1000 0>", ACK, "", False),
        ("S 9 <mss 1460,nop,nop,TS 999 0>", ACK, "PAWSTimewait+1", True),
        ("S 1 <mss 1460>", ACK, "", False),
        ("S 2 <mss 1460>", ACK, "", False),
    ],
)
def test_stays(line: str, answer: str | None, counted: str, restarted: bool) -> None:
    """H4's rows that leave the record alone; which of them begin the 60 s anew."""
    with closed() as t:
        t.line(f"11.0 < {line} {NOTHING}")
        if answer:
            t.line(f"11.0 {answer}")
        t.run(f"11.0 quiet\ncount {counted}".rstrip())
        t.advance(61 * 10**9)
        assert (state(t) is not None) == restarted
        t.advance(71 * 10**9)
        assert state(t) is None


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("S 3 <mss 1460,sackOK,TS 1001 0,nop,ws 7>", LINUX),
        ("S 2 <mss 1460,sackOK,TS 1001 0,nop,ws 7>", LINUX),
        ("S -7 <mss 1460,sackOK,TS 1001 0,nop,ws 7>", LINUX),
        ("S 3 <mss 1460,sackOK,TS 1000 0,nop,ws 7>", LINUX),
        ("S 3 <mss 1460>", LINUX),
        ("S 3", PLAIN),
    ],
)
def test_a_new_syn_is_accepted(line: str, options: str) -> None:
    """H4.3, H5: ISN = old snd_nxt + 65537; the timestamps of the 4-tuple go on."""
    with closed(options) as t:
        old = t.flow(1000).stack_isn or 0
        seq = int(line.split()[1])
        t.line(f"11.0 < {line} ! taken")
        t.collect()
        tcp = t.flow(1000).out.pop()[1].payload
        assert (
            tcp.seq == (old + 2 + 65535 + 2) % 2**32
            and tcp.flags == "SA"
            and tcp.ack == t.flow(1000).isn + seq + 1
        )
        if "TS" in line:
            assert dict(tcp.options)["Timestamp"][0] == ((t.flow(1000).tsval or 0) + 11000) % 2**32
        assert state(t) is None and t.half_open() == 1


@pytest.mark.parametrize("line", ["S 2", "S 1", "S 1 <TS 5000 0>"])
def test_without_timestamps_only_a_higher_number_is_new(line: str) -> None:
    with closed(PLAIN) as t:
        t.run(f"11.0 < {line} {NOTHING}\n11.0 > . 2 ack 2 win 64239 <>")


@pytest.mark.parametrize(("rfc1337", "gone"), [(0, True), (1, False)])
def test_assassination(rfc1337: int, gone: bool) -> None:
    with closed(sysctl={"net.ipv4.tcp_rfc1337": rfc1337}) as t:
        t.run("11.0 < R 2\n11.0 quiet\ncount")
        assert (state(t) is None) == gone


def test_acks_are_limited() -> None:
    with closed() as t:
        t.run("""
            11.0 < . 1 ack 2
            11.0 > . 2 ack 2
            11.4 < . 1 ack 2
            11.4 quiet
            count TCPACKSkippedTimeWait+1
            11.5 < . 1 ack 2
            11.5 > . 2 ack 2
            11.6 < P. 1(1) ack 2
            11.6 > . 2 ack 2
        """)


@pytest.mark.parametrize("what", ["cookies", "full"])
def test_no_cookie_for_a_syn_out_of_time_wait(what: str) -> None:
    """F13"""
    with closed(backlog=1 if what == "full" else 9) as t:
        if what == "cookies":
            t.stack.sysctl["net.ipv4.tcp_syncookies"] = 2
        else:
            t.run("2.0 2001 < S 0\n2.0 2001 > S. 0\n2.0 2002 < S 0\n2.0 2002 > S. 0")
        t.run("2.1 < S 9 <mss 1460,TS 2000 0> ! taken")
        t.collect()
        assert t.flow(1000).out.pop()[1].payload.flags == "SA"
        assert t.half_open() == (1 if what == "cookies" else 3)
        assert "TcpExtSyncookiesSent" not in t.stack.nstat()


def test_without_a_listener() -> None:
    with closed() as t:
        t.listener.close()
        t.run(f"11.0 < S 9 <mss 1460,TS 2000 0> {NOTHING}\n11.0 {ACK}")
        assert state(t) == "TIME-WAIT"


def test_a_full_accept_queue_still_counts() -> None:
    """H4.3: B6 applies, and the record is gone by then."""
    with closed(backlog=0) as t:
        t.connect(1001, 2)
        t.run("11.0 < S 9 <mss 1460,TS 2000 0> ! TCP_LISTEN_OVERFLOW\n11.0 quiet")
        assert state(t) is None


def test_buckets() -> None:
    """H3"""
    with Testbed(sysctl={"net.ipv4.tcp_max_tw_buckets": 1}) as t:
        for port in (1000, 1001):
            t.connect(port, 0)
            t.listener.accept()[0].close()
            t.run(f"0.0 {port} > F. 1 ack 1\n0.0 {port} < F. 1 ack 2\n0.0 {port} > . 2 ack 2")
        assert len(t.rows("TIME-WAIT")) == 1
        counters = t.stack.nstat()
        assert (counters["TcpExtTW"], counters["TcpExtTCPTimeWaitOverflow"]) == (1, 1)


# ---- FIN_WAIT2 of an orphan (H7, H8) -------------------------------------------------------------------
def test_fin_wait2_lasts_fin_timeout() -> None:
    with closed(fin=False, sysctl={"net.ipv4.tcp_fin_timeout": 10}) as t:
        assert state(t) == "FIN-WAIT-2"
        t.advance(11 * 10**9 - 1)
        assert state(t) == "FIN-WAIT-2"
        t.advance(11 * 10**9)
        assert state(t) is None
        assert t.stack.nstat()["TcpExtTW"] == 1


def test_fin_turns_it_into_time_wait() -> None:
    with closed(fin=False, sysctl={"net.ipv4.tcp_fin_timeout": 10}) as t:
        t.run("2.0 < F. 1 ack 2 <nop,nop,TS 1000 0>\n2.0 > . 2 ack 2")
        t.advance(61 * 10**9)
        assert state(t) == "TIME-WAIT"
        t.advance(62 * 10**9)
        assert state(t) is None


@pytest.mark.parametrize(
    ("line", "answer", "left"),
    [
        (". 1 ack 2 <nop,nop,TS 1000 0>", None, True),
        (". 0 ack 2 <nop,nop,TS 1000 0>", ". 2 ack 1", True),
        (". 1 ack 2 <nop,nop,TS 999 0>", ". 2 ack 1", True),
        ("P. 70000(5) ack 2", ". 2 ack 1", True),
        ("P 1(5)", None, True),
        ("P. 1(5) ack 2", "R 2", False),
        ("F. 3 ack 2", "R 2", False),
        ("PF. 1(5) ack 2", "R 2", False),
        ("S 1", "R. =0 ack 2", False),
        ("S 9(3)", "R. =0 ack 13", False),
        ("R 1", None, False),
        ("R 600", None, False),
    ],
)
def test_segments_for_fin_wait2(line: str, answer: str | None, left: bool) -> None:
    with closed(fin=False) as t:
        t.line(f"2.0 < {line} {NOTHING}")
        if answer:
            t.line(f"2.0 > {answer}")
        t.line("2.0 quiet")
        assert (state(t) == "FIN-WAIT-2") == left
        assert "TcpExtTCPAbortOnData" not in t.stack.nstat()


def test_linger2_negative() -> None:
    """H7"""
    with Testbed() as t:
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        conn.setsockopt(6, 8, -1)
        conn.shutdown(1)
        t.run("0.0 > F. 1 ack 1\n0.0 < . 1 ack 2")
        conn.close()
        t.run("0.0 > R. 2 ack 1")
        assert t.stack.nstat()["TcpExtTCPAbortOnLinger"] == 1 and state(t) is None
