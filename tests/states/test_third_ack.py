"""What makes the child, what is answered instead, and how the child begins (facts section E, D11, L6)."""

from __future__ import annotations

import pytest

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
PLAIN = "<mss 1460>"


def half_open(options: str = LINUX, **kw: object) -> Testbed:
    t = Testbed(**kw)  # type: ignore[arg-type]
    t.run(f"0.0 < S 0 {options}\n0.0 > S. 0 ack 1")
    return t


def accepted(t: Testbed) -> int:
    return int(t.rows("LISTEN")[0]["recvq"])


@pytest.mark.parametrize(
    "line",
    [
        ". 1 ack 1",
        ". 1 ack 1 win 0",
        ". 1 ack 1 <nop,nop,TS 1000 =0>",
        ". 1 ack 1 <nop,nop,TS 1001 0>",
        ". 64241 ack 1",
        ". 2 ack 1",
        "P. 1(10) ack 1",
        "U. 1(10) ack 1 urg 3",
        "F. 1 ack 1",
        "P. 11(5) ack 1",
    ],
)
def test_makes_the_child(line: str) -> None:
    with half_open(PLAIN) as t:
        t.line(f"0.1 < {line} ! taken")
        assert accepted(t) == 1 and t.half_open() == 0
        counters = t.stack.nstat()
        assert counters["TcpPassiveOpens"] == counters["TcpCurrEstab"] == 1
        t.advance(10**9)
        t.swallow()


@pytest.mark.parametrize(
    ("line", "answer", "counted"),
    [
        (". 0 ack 1", ". 1 ack 1 win 64240", ""),
        (". 64242 ack 1", ". 1 ack 1 win 64240", ""),
        ("P. 64242(9) ack 1", ". 1 ack 1 win 64240", ""),
        ("S. 0 ack 1", ". 1 ack 1 win 64240", ""),
        ("S. 1 ack 1", "R 1 ack =0 win 0", "AttemptFails+1 EmbryonicRsts+1 OutRsts+1"),
        (". 1 ack 0", "R 0 ack =0 win 0", "OutRsts+1"),
        (". 1 ack 2", "R 2 ack =0 win 0", "OutRsts+1"),
        ("S. 0 ack 7", "R 7 ack =0 win 0", "OutRsts+1"),
        ("F 1", None, ""),
        ("P 1(10)", None, ""),
        ("- 1", None, ""),
        ("R 2", ". 1 ack 1 win 64240", "TCPChallengeACK+1"),
        ("R 64241", ". 1 ack 1 win 64240", "TCPChallengeACK+1"),
        ("R 64242", None, ""),
        ("R 0", None, ""),
        ("R 1", None, "AttemptFails+1 EmbryonicRsts+1"),
        ("R. 1 ack 99", None, "AttemptFails+1 EmbryonicRsts+1"),
    ],
)
def test_does_not(line: str, answer: str | None, counted: str) -> None:
    with half_open(PLAIN) as t:
        t.line(f"0.1 < {line}")
        if answer:
            t.line(f"0.1 > {answer} id 0 <>")
        t.run(f"0.1 quiet\ncount {counted}".rstrip())
        assert accepted(t) == 0
        assert t.half_open() == (0 if "Embryonic" in counted else 1)


def test_the_window_is_cut_at_65535_and_scaled_in_the_answer() -> None:
    """E2, C10"""
    with Testbed(backlog=None) as t:
        sock = t.stack.socket()
        sock.setsockopt(1, 8, 262144)
        sock.bind(("0.0.0.0", 80))
        sock.listen(5)
        t.run("""
            0.0 < S 0 <mss 1460,nop,ws 7>
            0.0 > S. 0 ack 1 win 65535 <mss 1460,nop,ws 3>
            0.1 < . 65537 ack 1
            0.1 > . 1 ack 1 win 8191
            0.2 < . 65536 ack 1 ! taken
        """)
        assert len(t.rows("ESTAB")) == 1


@pytest.mark.parametrize(
    ("tsval", "echo", "verdict"),
    [
        (1000, "=0", "taken"),
        (1000, "0", "taken"),
        (1000, "3", "taken"),
        (1001, "7", "taken"),
        (1000, "8", "TSECR"),
        (1000, "-1", "TSECR"),
        (999, "0", "PAWS"),
    ],
)
def test_timestamps(tsval: int, echo: str, verdict: str) -> None:
    """E5: the echo must lie between first and last TSval sent; TSval must not be older than the SYN's."""
    with half_open(sysctl={"net.ipv4.tcp_synack_retries": 2}) as t:
        t.line("0.007 < S 0 <mss 1460,sackOK,TS 1000 0,nop,ws 7>")
        t.line("0.007 > S. 0 ack 1")
        drop = "taken" if verdict == "taken" else f"TCP_RFC7323_{verdict}"
        t.line(f"0.6 < . 1 ack 1 <nop,nop,TS {tsval} {echo}> ! {drop}")
        if verdict == "taken":
            assert accepted(t) == 1
        else:
            t.line("0.6 > . 1 ack 1 win 63 <nop,nop,TS 600 1000>")
            t.line(
                "count RetransSegs+1 TCPSynRetrans+1 "
                + {"TSECR": "TSEcrRejected+1", "PAWS": "PAWSEstab+1"}[verdict]
            )
            t.run("1.007 > S. 0\n1.007 quiet")


def test_the_limiter_of_a_request() -> None:
    """E9: one answer in 500 ms, data is exempt, but not from the challenge's limit."""
    with half_open(PLAIN) as t:
        t.run("""
            0.1 < . -5 ack 1
            0.1 > . 1 ack 1
            0.2 < . -5 ack 1
            0.2 quiet
            count TCPACKSkippedSynRecv+1
            0.2 < P. -50(4) ack 1
            0.2 > . 1 ack 1
            0.3 < R 9(5)
            0.3 quiet
            count TCPACKSkippedChallenge+1
            0.61 < R 9(5)
            0.61 > . 1 ack 1
            count TCPChallengeACK+1
        """)


def test_an_ack_with_data_is_delivered_and_acknowledged() -> None:
    with half_open() as t:
        t.run("""
            0.1 < P. 1(10) ack 1 win 512 <nop,nop,TS 1001 0> ! taken
            0.1 > . 1 ack 11 win 64 id nz <nop,nop,TS 100 1001>
        """)
        conn, peer = t.listener.accept()
        assert peer == ("192.0.2.2", 1000)
        assert conn.recv(99) == b"abcdefghij"
        conn.close()
        t.line("0.1 > F. 1 ack 11")


def test_a_repeated_third_ack_is_the_childs() -> None:
    with half_open() as t:
        t.run("0.1 < . 1 ack 1 ! taken\n0.2 < . 1 ack 1 ! taken")
        t.line("count PassiveOpens+1 CurrEstab+1 TCPPureAcks+2")


@pytest.mark.parametrize(
    ("offer", "ts", "mss"),
    [
        ("", False, 536),
        ("mss 1", False, 48),
        ("mss 40", False, 48),
        ("mss 64", False, 64),
        ("mss 1460", False, 1460),
        ("mss 9000", False, 1460),
        ("mss 1460", True, 1448),
        ("mss 100", True, 88),
    ],
)
def test_send_mss_of_the_child(offer: str, ts: bool, mss: int) -> None:
    """C17"""
    options = ",".join(filter(None, [offer, "nop,nop,TS 1000 0" if ts else ""]))
    with half_open(f"<{options}>") as t:
        t.line("0.1 < . 1 ack 1 ! taken")
        conn, _ = t.listener.accept()
        assert conn.getsockopt(6, 2) == mss
        conn.setsockopt(1, 13, (1).to_bytes(4, "little") + bytes(4))
        conn.close()
        t.swallow()


@pytest.mark.parametrize(("lost", "burst"), [(0, 10), (1, 10), (2, 1)])
def test_initial_window_after_lost_syn_acks(lost: int, burst: int) -> None:
    """D11: no timestamps, so nothing can show that the SYN-ACKs were not lost."""
    with half_open(PLAIN) as t:
        for when in [1, 3][:lost]:
            t.line(f"{when} > S. 0")
        t.line(f"{0.5 if lost == 0 else 3.5 if lost == 2 else 1.5} < . 1 ack 1 ! taken")
        conn, _ = t.listener.accept()
        conn.setblocking(False)
        conn.send(bytes(30000))
        t.collect()
        assert sum(len(p[1].payload.payload) for p in t.flow(1000).out) == burst * 1460
        t.swallow()
        t.line(f"{t.clock.now / 1e9:.9f} < R 1")


def test_options_are_inherited() -> None:
    """A12"""
    with half_open() as t:
        t.listener.setsockopt(6, 1, 1)  # NODELAY
        t.listener.setsockopt(1, 9, 1)  # KEEPALIVE
        t.listener.setsockopt(6, 4, 33)  # KEEPIDLE
        t.listener.setsockopt(0, 2, 77)  # IP_TTL
        t.listener.setsockopt(1, 8, 20000)  # RCVBUF
        t.line("0.1 < P. 1(3) ack 1 ! taken")
        t.line("0.1 > . 1 ack 4 ttl 77")
        conn, _ = t.listener.accept()
        got = [conn.getsockopt(*o) for o in ((6, 1), (1, 9), (6, 4), (0, 2), (1, 8))]
        assert got == [1, 1, 33, 77, 40000]
        assert conn.getblocking()
        t.line("0.2 < R 4")


@pytest.mark.parametrize(
    ("options", "at", "echo", "rtt", "rto"),
    [
        (PLAIN, "0.155", None, 155000, 468000),
        (PLAIN, "0.001", None, 1000, 204000),
        (LINUX, "1.201", 0, 1201000, 3604000),
        (LINUX, "1.201", 1000, 201000, 604000),
        (PLAIN, "1.201", None, 0, 3000000),
    ],
)
def test_rtt_of_the_handshake(options: str, at: str, echo: int | None, rtt: int, rto: int) -> None:
    """D13: the only SYN-ACK's age, else the echoed timestamp, else none and an RTO of 3 s."""
    with half_open(options) as t:
        if at > "1":
            t.line("1.0 > S. 0")
        t.line(f"{at} < . 1 ack 1" + (f" <nop,nop,TS 1001 {echo}>" if echo is not None else ""))
        conn, _ = t.listener.accept()
        info = conn.getsockopt(6, 11, 280)
        assert int.from_bytes(info[8:12], "little") == rto
        assert abs(int.from_bytes(info[68:72], "little") - rtt) <= 1
        t.line(f"{at} < R 1")
