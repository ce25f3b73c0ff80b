"""SYN cookies: value, options in the timestamp, age, counters (facts section F)."""

from __future__ import annotations

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
COOKIES = "net.ipv4.tcp_syncookies"
MINUTE = 60


def always(**kw: object) -> Testbed:
    """A listener that answers every SYN with a cookie; the epoch begins at 0."""
    sysctl = {COOKIES: 2, **kw.pop("sysctl", {})}  # type: ignore[dict-item]
    return Testbed(sysctl=sysctl, cookie_phase_ns=-(1_700_000_000 % MINUTE) * 10**9, **kw)  # type: ignore[arg-type]


def cookie(t: Testbed, at: float, port: int = 1000, options: str = LINUX) -> int:
    t.run(f"{at} {port} < S 0 {options} ! taken\n{at} {port} > S. 0 ack 1")
    return t.flow(port).stack_isn or 0


def test_counters_and_nothing_kept() -> None:
    with always() as t:
        cookie(t, 0.0)
        t.line("count TCPReqQFullDoCookies+1 SyncookiesSent+1")
        assert t.half_open() == 0
        t.run("40 quiet\n40 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        t.line("count SyncookiesRecv+1 PassiveOpens+1 CurrEstab+1 TCPPureAcks+1")


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        ("mss 1460,sackOK,TS 1000 0,nop,ws 7", "mss 1460,sackOK,TS 0 1000,nop,ws 10"),
        ("mss 1460,sackOK,nop,nop,nop,ws 7", "mss 1460"),
        ("mss 1460,nop,nop,TS 1000 0", "mss 1460,nop,nop,TS 0 1000"),
        ("", "mss 1460"),
    ],
)
def test_without_a_timestamp_no_other_option_survives(offered: str, answered: str) -> None:
    with always() as t:
        t.run(f"0.0 < S 0 <{offered}>\n0.0 > S. 0 ack 1 id 0 <{answered}>")


@pytest.mark.parametrize(
    ("mss", "kept"),
    [
        (None, 536),
        (500, 536),
        (536, 536),
        (1299, 536),
        (1300, 1300),
        (1439, 1300),
        (1440, 1440),
        (1459, 1440),
        (1460, 1460),
        (9000, 1460),
    ],
)
@pytest.mark.parametrize("ts", [False, True])
def test_mss_table(mss: int | None, kept: int, ts: bool) -> None:
    options = ",".join(filter(None, [mss and f"mss {mss}", ts and "nop,nop,TS 1000 0"]))
    with always() as t:
        cookie(t, 0.0, options=f"<{options}>")
        t.line(f"0.0 < . 1 ack 1 {'<nop,nop,TS 1000 0>' if ts else ''} ! taken")
        conn, _ = t.listener.accept()
        assert conn.getsockopt(6, 2) == kept - (12 if ts else 0)
        t.line("0.0 < R 1")


@pytest.mark.parametrize("ws", [0, 7, 14])
@pytest.mark.parametrize("sack", [False, True])
@pytest.mark.parametrize("ecn", [False, True])
def test_options_come_back_in_the_timestamp(ws: int, sack: bool, ecn: bool) -> None:
    with always() as t:
        options = f"mss 1460,{'sackOK,' if sack else 'nop,nop,'}TS 1000 0,nop,ws {ws}"
        t.run(f"0.0 < S{'EW' if ecn else ''} 0 <{options}>\n0.0 > S.{'E' if ecn else ''} 0 ack 1")
        t.line("0.0 < . 1 ack 1 win 100 <nop,nop,TS 1000 0> ! taken")
        conn, _ = t.listener.accept()
        info = conn.getsockopt(6, 11, 280)
        assert info[5] == 1 | 2 * sack | 4 | 8 * ecn  # tcpi_options
        assert info[6] & 15 == ws
        t.line("0.0 < R 1")


def test_timestamp_lies_at_most_64_ms_in_the_past() -> None:
    """F4, against the clock of an ordinary SYN-ACK on the same 4-tuple."""
    with always() as t:
        t.stack.sysctl[COOKIES] = 1
        t.run("0.0 < S 0 <TS 1 0>\n0.0 > S. 0")
        t.line("0.001 < R 1")
        base = t.flow(1000).tsval or 0
        t.stack.sysctl[COOKIES] = 2
        for ms in range(10, 400, 7):
            t.line(f"{ms / 1000} < S 0 <TS 1 0>")
            t.collect()
            tcp = t.flow(1000).out.pop()[1].payload
            sent = dict(tcp.options)["Timestamp"][0]
            assert 0 <= base + ms - sent < 64


def test_value_within_and_across_epochs() -> None:
    """F1: a function of 4-tuple, client ISN (linear), MSS index (linear) and the minute."""
    with always() as t:
        a = cookie(t, 1.0)
        assert cookie(t, 59.9) == a
        t.flow(1000).isn += 7
        assert cookie(t, 59.91) == (a + 7) % 2**32
        t.flow(1000).isn -= 7
        assert cookie(t, 59.92, options="<mss 536,TS 1 0>") == (a - 3) % 2**32
        assert (cookie(t, 60.0) - a) % 2**32 != 0
        assert cookie(t, 60.1, port=1001) != cookie(t, 60.1, port=1002)


@pytest.mark.parametrize(
    ("issued", "returned", "good"),
    [(0, 115, True), (0, 119.9, True), (0, 120, False), (59, 119, True), (59, 120, False), (30, 90, True)],
)
def test_age(issued: int, returned: float, good: bool) -> None:
    with always() as t:
        cookie(t, issued)
        t.line("count TCPReqQFullDoCookies+1 SyncookiesSent+1")
        if good:
            t.line(f"{returned} < . 1 ack 1 <nop,nop,TS 1000 0> ! taken")
            return
        t.run(f"{returned} < . 1 ack 1 ! TCP_FLAGS\n{returned} > R 1 ack =0 win 0")
        t.line("count OutRsts+1 SyncookiesFailed+1")


def test_no_check_without_a_recent_cookie() -> None:
    """F6: up to 120 s after the last one was given out."""
    with always() as t:
        t.run("0.0 < . 1 ack =77\n0.0 > R =77\ncount OutRsts+1")
        cookie(t, 1.0)
        t.line("count TCPReqQFullDoCookies+1 SyncookiesSent+1")
        t.run("121.0 2000 < . 1 ack =77\n121.0 2000 > R =77\ncount OutRsts+1 SyncookiesFailed+1")
        t.run("121.1 2000 < . 1 ack =77\n121.1 2000 > R =77\ncount OutRsts+1")


def test_neighbouring_sequence_numbers_validate_with_another_mss() -> None:
    """F3's consequence."""
    with always() as t:
        cookie(t, 0.0, options="<mss 1460>")
        for delta, mss in ((1, 1440), (3, 536)):
            t.line(f"0.0 < . {1 + delta} ack 1 ! taken")
            conn, _ = t.listener.accept()
            assert conn.getsockopt(6, 2) == mss
            t.line(f"0.0 < R {1 + delta}")
            conn.close()
        t.run("0.0 < . 5 ack 1 ! TCP_FLAGS\n0.0 > R 1")
        t.run("0.0 < . 0 ack 1 ! TCP_FLAGS\n0.0 > R 1")


@pytest.mark.parametrize(("flags", "rst"), [("S.", True), ("R.", False)])
def test_only_a_plain_ack_is_looked_at(flags: str, rst: bool) -> None:
    """F10"""
    with always() as t:
        cookie(t, 0.0)
        t.line(f"0.0 < {flags} 1 ack 1")
        if rst:
            t.line("0.0 > R 1")
        assert (
            "TcpExtSyncookiesFailed" not in t.stack.nstat() and "TcpExtSyncookiesRecv" not in t.stack.nstat()
        )


def test_full_accept_queue() -> None:
    """F9: counted as received, no answer; a later segment may succeed. 0.4: no cookie for a SYN."""
    with always(backlog=0, sysctl={"net.ipv4.tcp_abort_on_overflow": 1}) as t:
        cookie(t, 0.0, 1001)
        cookie(t, 0.0, 1002)
        t.line("0.0 1001 < . 1 ack 1 <nop,nop,TS 1000 0> ! taken")
        t.line(
            "count TCPReqQFullDoCookies+2 SyncookiesSent+2 SyncookiesRecv+1 "
            "PassiveOpens+1 CurrEstab+1 TCPPureAcks+1"
        )
        t.run("0.1 1002 < P. 1(3) ack 1 <nop,nop,TS 1000 0> ! TCP_LISTEN_OVERFLOW\n0.1 quiet")
        t.line("count SyncookiesRecv+1 ListenOverflows+1 ListenDrops+1")
        t.run("0.2 1003 < S 0 ! TCP_LISTEN_OVERFLOW\n0.2 quiet")
        t.line("count TCPReqQFullDoCookies+1 ListenOverflows+1 ListenDrops+1")
        one = t.listener.accept()
        t.run("0.3 1002 < P. 1(3) ack 1 <nop,nop,TS 1000 0> ! taken\n0.3 1002 > . 1 ack 4")
        assert t.listener.accept()[0].recv(9) == b"abc"
        del one
        t.swallow()


def test_switched_off_and_on_again() -> None:
    """F11, and a replay of the ACK after a reset makes a new connection."""
    with always() as t:
        cookie(t, 0.0)
        t.stack.sysctl[COOKIES] = 0
        t.run("0.1 < . 1 ack 1 ! TCP_FLAGS\n0.1 > R 1")
        t.stack.sysctl[COOKIES] = 1
        t.line("0.2 < . 1 ack 1 ! taken")
        t.line("0.3 < R 1")
        t.line("0.4 < . 1 ack 1 ! taken")
        assert t.stack.nstat()["TcpPassiveOpens"] == 2


@pytest.mark.parametrize("name", ["net.ipv4.tcp_sack", "net.ipv4.tcp_window_scaling"])
def test_an_option_that_was_switched_off_meanwhile(name: str) -> None:
    """F5"""
    with always() as t:
        cookie(t, 0.0)
        t.stack.sysctl[name] = 0
        t.run("0.1 < . 1 ack 1 <nop,nop,TS 1000 0> ! TCP_FLAGS\n0.1 > R 1")
        assert t.stack.nstat()["TcpExtSyncookiesRecv"] == 1


def test_two_stacks_with_one_seed_accept_each_others_cookies() -> None:
    with always(seed=5) as a, always(seed=5) as b, always(seed=6) as c:
        isn = cookie(a, 0.0)
        for other, good in ((b, True), (c, False)):
            cookie(other, 0.0, port=9)
            other.flow(1000).stack_isn = isn
            other.line(f"0.0 < . 1 ack 1 ! {'taken' if good else 'TCP_FLAGS'}")
            other.swallow()


def test_rebuilt_window() -> None:
    """F8: the window counts whole segments of the cookie's MSS, without room for timestamps."""
    with always() as t:
        cookie(t, 0.0, options="<mss 1300,TS 1000 0>")
        t.run("0.0 < P. 1(1) ack 1 <nop,nop,TS 1000 0>\n0.0 > . 1 ack 2 win 64999")
