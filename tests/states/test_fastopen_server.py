"""TCP Fast Open, the server's side (facts section I)."""

from __future__ import annotations

import pytest
from scapy.all import ICMP, IP, TCP

from tests.kit.testbed import Testbed

KEY = "01020304-05060708-090a0b0c-0d0e0f10"
OTHER = "11121314-15161718-191a1b1c-1d1e1f20"
GOOD = "884cc778306eeefe"  # of 192.0.2.2 at 192.0.2.1 with KEY
BASE = "mss 1460,sackOK,TS 1000 0,nop,ws 7"
MODE, KEYS = "net.ipv4.tcp_fastopen", "net.ipv4.tcp_fastopen_key"
FASTOPEN, FASTOPEN_KEY, SYNCNT = 23, 33, 7
NOISE = "PassiveOpens+1"


def server(qlen: int | None = 10, mode: int = 3, key: str = KEY, **kw: object) -> Testbed:
    sysctl = {MODE: mode, KEYS: key, **kw.pop("sysctl", {})}  # type: ignore[dict-item]
    t = Testbed(sysctl=sysctl, **kw)  # type: ignore[arg-type]
    if qlen:
        t.listener.setsockopt(6, FASTOPEN, qlen)
    return t


def fo(cookie: str = GOOD) -> str:
    return f"<{BASE},fo {cookie},nop,nop>"


ANSWER = "<mss 1460,sackOK,TS 0 1000,nop,ws 10>"
WITH_COOKIE = f"<mss 1460,sackOK,TS 0 1000,nop,ws 10,fo {GOOD},nop,nop>"


@pytest.mark.parametrize(
    ("client", "cookie"),
    [
        ("192.0.2.2", "884cc778306eeefe"),
        ("198.51.100.7", "1f59175ecea2c608"),
        ("192.0.2.77", "7bf1a8992b543218"),
        ("198.51.100.200", "7d6583098944d004"),
    ],
)
def test_cookie_vectors(client: str, cookie: str) -> None:
    """I4"""
    with server() as t:
        t.peer = client
        t.run(
            f"0.0 < S 0 <{BASE},34:,nop,nop>\n"
            f"0.0 > S. 0 ack 1 <mss 1460,sackOK,TS 0 1000,nop,ws 10,fo {cookie},nop,nop>"
        )
        t.line("count TCPFastOpenCookieReqd+1")


def test_the_experimental_form_is_answered_in_kind() -> None:
    with server() as t:
        t.run(
            f"0.0 < S 0 <{BASE},254:f989>\n"
            f"0.0 > S. 0 ack 1 <mss 1460,sackOK,TS 0 1000,nop,ws 10,254:f989{GOOD}>"
        )


@pytest.mark.parametrize(("mode", "qlen"), [(1, 10), (0, 10), (3, 0)])
def test_both_switches_are_needed(mode: int, qlen: int) -> None:
    """I1, I6: CookieReqd is counted all the same; data is ignored."""
    with server(qlen, mode) as t:
        t.run(f"0.0 < S 0 <{BASE},34:,nop,nop>\n0.0 > S. 0 ack 1 {ANSWER}\ncount TCPFastOpenCookieReqd+1")
        t.run(f"0.0 1001 < S 0(5) {fo()}\n0.0 1001 > S. 0 ack 1 {ANSWER}\ncount")


def test_0x400_needs_no_option() -> None:
    with Testbed(backlog=7, sysctl={MODE: 0x403, KEYS: KEY}) as t:
        assert t.listener.getsockopt(6, FASTOPEN) == 7
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6 {ANSWER}")
        t.line("0.0 < R 6")


def test_data_with_a_good_cookie() -> None:
    """I7-I9: the child is there at once; send and receive before the handshake is over."""
    with server() as t:
        t.run(f"0.0 < S 0(5) win 1000 {fo()} ! taken\n0.0 > S. 0 ack 6 win 65160 id 0 {ANSWER}")
        t.line("count TCPFastOpenPassive+1 PassiveOpens+1")
        row = t.rows("SYN-RECV")[0]
        assert int(row["recvq"]) == 5
        conn, peer = t.listener.accept()
        assert peer == ("192.0.2.2", 1000) and conn.recv(99) == b"abcde"
        conn.send(b"hello")
        t.line("0.0 > P. 1(5) ack 6")
        t.run("0.1 < . 6 ack 6 <nop,nop,TS 1001 0> ! taken")
        assert len(t.rows("ESTAB")) == 1
        assert t.stack.nstat()["TcpCurrEstab"] == 1
        t.line("0.2 < R 6")


def test_a_dataless_syn_with_a_good_cookie() -> None:
    with server() as t:
        t.run(f"0.0 < S 0 {fo()}\n0.0 > S. 0 ack 1 {ANSWER}\ncount TCPFastOpenPassive+1 PassiveOpens+1")
        t.run("0.0 < P. 1(4) ack 1 <nop,nop,TS 1000 0> ! taken\n0.0 > . 1 ack 5")
        conn, _ = t.listener.accept()
        assert conn.recv(9) == b"abcd"
        t.line("0.0 < R 5")


@pytest.mark.parametrize("cookie", ["0011223344556677", "884cc778", GOOD * 2])
def test_a_wrong_cookie_is_corrected(cookie: str) -> None:
    """I6.6"""
    pad = {16: ",nop,nop", 8: ",nop,nop", 32: ",nop,nop"}[len(cookie)]
    with server() as t:
        t.run(f"0.0 < S 0(5) <mss 1460,sackOK,fo {cookie}{pad}>")
        t.run(f"0.0 > S. 0 ack 1 <mss 1460,nop,nop,sackOK,fo {GOOD},nop,nop>\ncount TCPFastOpenPassiveFail+1")


@pytest.mark.parametrize("option", ["34:aabbcc,nop,nop,nop", "34:aa,nop", f"34:{'11' * 18}"])
def test_an_odd_or_oversized_option_is_none(option: str) -> None:
    """I5"""
    with server() as t:
        t.run(f"0.0 < S 0(5) <mss 1460,{option}>\n0.0 > S. 0 ack 1 <mss 1460>\ncount")


def test_backup_key() -> None:
    """I6.5: taken, and the client gets a cookie of the primary key."""
    with server(key=f"{OTHER},{KEY}") as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        t.line("count TCPFastOpenPassive+1 TCPFastOpenPassiveAltKey+1 PassiveOpens+1")
        t.line("0.1 < R 6")


def test_listener_keys() -> None:
    with server(key=OTHER) as t:
        t.listener.setsockopt(6, FASTOPEN_KEY, b"".join(bytes.fromhex(w)[::-1] for w in KEY.split("-")))
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6 {ANSWER}")
        t.line("0.1 < R 6")


@pytest.mark.parametrize("option", ["", ",34:,nop,nop", ",fo 0011223344556677,nop,nop"])
def test_no_cookie_required(option: str) -> None:
    """I6.3: whatever the option says."""
    with server(mode=0x203) as t:
        t.run(f"0.0 < S 0(5) <{BASE}{option}>\n0.0 > S. 0 ack 6 {ANSWER}")
        assert t.stack.nstat()["TcpExtTCPFastOpenPassive"] == 1
        t.line("0.1 < R 6")


def test_a_full_accept_queue_comes_first() -> None:
    with server(backlog=0) as t:
        t.connect(999, 0)
        t.run(f"0.0 < S 0(5) {fo()} ! TCP_LISTEN_OVERFLOW\n0.1 quiet")


def test_syn_fin_is_never_taken() -> None:
    with server() as t:
        t.run(f"0.0 < SF 0(5) {fo()} ! TCP_FLAGS\n0.1 quiet\ncount")


@pytest.mark.parametrize(
    ("retries", "syncnt", "at", "dead"),
    [(2, 0, [1, 3, 7], 15), (1, 0, [1, 3], 7), (5, 1, [1], 3)],
)
def test_repetition_and_the_end(retries: int, syncnt: int, at: list[int], dead: int) -> None:
    """I10: one more than the ordinary number, no Fast Open option; the child stays in the accept queue."""
    with server(sysctl={"net.ipv4.tcp_synack_retries": retries}) as t:
        if syncnt:
            t.listener.setsockopt(6, SYNCNT, syncnt)
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        t.line("count TCPFastOpenPassive+1 PassiveOpens+1")
        for when in at:
            t.line(f"{when} > S. 0 ack 6 <mss 1460,sackOK,TS {when * 1000} 1000,nop,ws 10>")
        n = len(at)
        t.line(f"count RetransSegs+{n} TCPSynRetrans+{n} TCPTimeouts+{n}")
        t.run(f"{dead} quiet")
        t.line("count TCPTimeouts+1 AttemptFails+1 TCPAbortOnTimeout+1")
        conn, _ = t.listener.accept()
        assert conn.recv(9) == b"abcde"
        with pytest.raises(TimeoutError):
            conn.recv(9)


def test_duplicate_syn() -> None:
    """I11"""
    with server() as t:
        t.run(f"""
            0.0 < S 0(5) {fo()}
            0.0 > S. 0 ack 6
            0.1 < S 0(5) {fo()}
            0.1 > S. 0 ack 6 <mss 1460,sackOK,TS 100 1000,nop,ws 10>
            count TCPFastOpenPassive+1 PassiveOpens+1 RetransSegs+1 TCPSynRetrans+1
            0.2 < P. 6(4) ack 1 <nop,nop,TS 1001 0> ! taken
            0.2 > . 1 ack 10
        """)
        conn, _ = t.listener.accept()
        assert conn.recv(99) == b"abcdeabcd"
        t.line("0.3 < R 10")


def test_rst_before_accept() -> None:
    """I12: both the request and the child count; the slot is free at once; the data stays readable."""
    with server(1) as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6\n0.1 < R 6")
        t.line("count TCPFastOpenPassive+1 PassiveOpens+1 AttemptFails+2")
        conn, _ = t.listener.accept()
        assert conn.recv(9) == b"abcde"
        t.run(f"0.2 1001 < S 0(5) {fo()}\n0.2 1001 > S. 0 ack 6\n0.3 1001 < R 6")


def test_rst_after_accept_holds_the_slot() -> None:
    """I12: for 60 s new Fast Open SYNs get an ordinary handshake."""
    with server(1) as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        conn, _ = t.listener.accept()
        t.run("0.5 < R 6")
        t.base = t.stack.nstat(zeros=True)
        t.run(
            f"60.4 1001 < S 0(5) {fo()}\n60.4 1001 > S. 0 ack 1 {ANSWER}\ncount TCPFastOpenListenOverflow+1"
        )
        t.run("60.4 1001 < R 1")
        t.run(f"60.5 1002 < S 0(5) {fo()}\n60.5 1002 > S. 0 ack 6\n60.5 1002 < R 6")
        conn.close()


def test_listener_closes() -> None:
    """I13"""
    with server() as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        t.listener.close()
        t.run("0.0 > R. 1 ack 6\n9 quiet")


@pytest.mark.parametrize("accepted", [False, True])
def test_icmp_error(accepted: bool) -> None:
    """N21: fatal for a child nobody has accepted, a soft error for another."""
    with server() as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        if accepted:
            conn, _ = t.listener.accept()
        quote = bytes(
            IP(src=t.server, dst=t.peer) / TCP(sport=80, dport=1000, seq=t.flow(1000).stack_isn, flags="SA")
        )[:28]
        t.inject(bytes(IP(src="192.0.2.9", dst=t.server) / ICMP(type=3, code=1) / quote))
        assert t.stack.nstat().get("TcpAttemptFails", 0) == (0 if accepted else 1)
        if not accepted:
            conn, _ = t.listener.accept()
            assert conn.recv(9) == b"abcde"
        else:
            t.line("0.0 < R 6")
