"""The kernel's log lines reach `logging`, logger "ustack.kernel", in the kernel's words."""

import logging

import pytest

from tests.kit.testbed import Testbed

OPTS = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "ustack.kernel")
    return lambda: [r.message for r in caplog.records if r.name == "ustack.kernel" and "entries" not in r.message and "tables" not in r.message]


@pytest.mark.parametrize(
    ("cookies", "what"), [(1, "Sending cookies."), (0, "Dropping request."), (2, None)]
)
def test_syn_flooding_once_per_listener(lines, cookies, what):
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": cookies}) as t:
        for port in range(2000, 2010):
            t.line(f"0 {port} < S 0 win 65535 {OPTS}")
        t.swallow()
        want = [f"TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:80. {what}"] if what else []
        assert lines() == want
        other = t.stack.socket()
        other.bind((t.server, 81))
        other.listen(0)
        t.port = 81
        for port in range(2000, 2003):
            t.line(f"1 {port} < S 0 win 65535 {OPTS}")
        t.swallow()
        assert lines()[1:] == ([want[0].replace("0.0.0.0:80", f"{t.server}:81")] if what else [])
        other.close()


def test_window_scale_too_large_and_the_rate_limit(lines):
    with Testbed() as t:
        for port in range(2000, 2030):
            t.line(f"0 {port} < S 0 win 65535 <mss 1460,nop,ws 15>")
        t.swallow()
        told = lines()
        assert told.count("TCP: tcp_parse_options: Illegal window scaling value 15 > 14 received") == 10
        assert len(told) == 10
        t.advance(6_000_000_000)
        t.swallow()
        t.line("6 2100 < S 0 win 65535 <mss 1460,nop,ws 15>")
        t.swallow()
        assert lines()[10:] == ["net_ratelimit: 20 callbacks suppressed", told[0]]


def test_the_lines_are_events_too():
    with Testbed(backlog=0) as t, t.stack.events() as stream:
        for port in (2000, 2001):
            t.line(f"0 {port} < S 0 win 65535 {OPTS}")
        t.swallow()
        assert [e.info["text"] for e in stream if e.kind == "log"] == [
            "TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:80. Sending cookies."
        ]


def test_hash_tables_at_the_start(caplog):
    with caplog.at_level(logging.INFO, "ustack.kernel"), Testbed(ehash_entries=8192) as t:
        assert [r.message for r in caplog.records if r.name == "ustack.kernel"] == [
            "TCP established hash table entries: 8192 (order: 3, 32768 bytes, linear)",
            "TCP: Hash tables configured (established 8192 bind 65536)",
        ]
        assert t.stack.sysctl["net.ipv4.tcp_ehash_entries"] == "8192"
