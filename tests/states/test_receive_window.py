"""What window is offered, and when a read announces more (facts J25, J26)."""

from __future__ import annotations

from itertools import pairwise

from tests.kit.testbed import Testbed

SOL_SOCKET, SO_RCVBUF, SO_RCVLOWAT = 1, 8, 18
LINUX = "mss 1460,sackOK,nop,ws 7"
PLAIN = "mss 1460"


def accepted(options: str = PLAIN, rcvbuf: int = 0, **kw: object) -> tuple[Testbed, object]:
    t = Testbed(backlog=None, **kw)  # type: ignore[arg-type]
    t.listener = t.stack.socket()
    if rcvbuf:
        t.listener.setsockopt(SOL_SOCKET, SO_RCVBUF, rcvbuf)
    t.listener.bind(("0.0.0.0", 80))
    t.listener.listen(5)
    t.connect(1000, 0, options)
    sock, _ = t.listener.accept()
    sock.setblocking(False)
    t.base = t.stack.nstat(zeros=True)
    return t, sock


def windows(t: Testbed) -> list[int]:
    got = [p["TCP"].window for _, p in t.flow(1000).out]
    t.flow(1000).out.clear()
    return got


def fill(t: Testbed, size: int, n: int) -> list[int]:
    """n segments of size in order, 50 ms apart; the windows of all ACKs."""
    got: list[int] = []
    seq = 1
    for i in range(n):
        t.line(f"{1 + i * 0.05:.2f} < . {seq}({size}) ack 1")
        t.advance(1_000_000_000 + i * 50_000_000 + 45_000_000)
        got += windows(t)
        seq += size
    return got


def test_small_buffer_without_scale() -> None:
    """SO_RCVBUF 8192: the window falls in steps of what arrives, and what was offered stays offered."""
    t, _ = accepted(rcvbuf=8192)
    with t:
        got = fill(t, 1000, 8)
        assert got == [6300, 5300, 4300, 3300, 2300, 1300, 300, 300]
        assert t.stack.nstat()["TcpExtTCPWantZeroWindowAdv"] >= 1
        assert t.stack.nstat()["TcpExtBeyondWindow"] == 1


def test_a_read_announces_at_least_twice_the_window() -> None:
    t, sock = accepted(rcvbuf=8192)
    with t:
        fill(t, 1000, 7)
        t.base = t.stack.nstat(zeros=True)
        sent = []
        for _ in range(14):
            sock.recv(500)
            t.collect()
            sent += windows(t)
        # 300 was open; each update at least doubles it
        for a, b in pairwise([300, *sent]):
            assert b >= 2 * a
        assert len(sent) >= 2 and sent[-1] >= 4000


def close_window(t: Testbed) -> tuple[int, float]:
    """Fill the offered window to the last byte; the next sequence number and the time."""
    seq, at, left = 1, 1.0, 5000
    while left:
        size = min(1000, left)
        t.line(f"{at:.3f} < . {seq}({size}) ack 1")
        t.advance(int(at * 1e9) + 45_000_000)
        left = (windows(t) or [left - size])[-1]
        seq += size
        at += 0.05
    return seq, at


def test_zero_window_and_the_way_out() -> None:
    t, sock = accepted(rcvbuf=8192)
    with t:
        seq, at = close_window(t)
        assert t.stack.nstat()["TcpExtTCPToZeroWindowAdv"] == 1
        t.line(f"{at:.3f} < . {seq}(1) ack 1 ! TCP_INVALID_END_SEQUENCE")
        assert windows(t) == [0]
        assert len(sock.recv(100_000)) == seq - 1
        t.collect()
        (opened,) = windows(t)
        assert opened > 0 and t.stack.nstat()["TcpExtTCPFromZeroWindowAdv"] == 1


def test_a_fin_is_taken_at_a_closed_window() -> None:
    t, sock = accepted(rcvbuf=8192)
    with t:
        seq, at = close_window(t)
        t.line(f"{at:.3f} < F. {seq} ack 1 ! taken")
        t.advance(int(at * 1e9) + 100_000_000)
        t.swallow()
        assert len(sock.recv(100_000)) == seq - 1 and sock.recv(1) == b""


def test_beyond_the_window_counts_when_something_is_queued() -> None:
    t, sock = accepted(rcvbuf=8192)
    with t:
        t.run("1.0 < . 1(1000) ack 1\n1.0 > . 1 ack 1001 win 6300")
        t.run("1.1 < . 1001(6301) ack 1 ! TCP_INVALID_END_SEQUENCE\n1.1 > . 1 ack 1001 win 6300")
        assert len(sock.recv(9000)) == 1000
        t.swallow()
        t.line("1.2 < . 1001(6400) ack 1 ! taken")       # nothing queued: data over the edge is taken
        t.swallow()
        assert len(sock.recv(9000)) == 6400
        t.swallow()


def test_window_grows_with_full_segments() -> None:
    t, _ = accepted("mss 1460,sackOK,TS 1000 0,nop,ws 7")
    with t:
        got = []
        for i in range(5):
            t.line(f"0.0{i + 1} < . {1 + 1448 * i}(1448) ack 1 <nop,nop,TS 1001 0>")
            got += windows(t)
        assert got == [67, 70, 73, 75, 74]               # x 1024


def test_autotuning_follows_the_reader() -> None:
    """A reader that keeps up gets a larger buffer once a window's worth per round trip goes through."""
    t, sock = accepted("mss 1460,sackOK,TS 1000 0,nop,ws 7")
    with t:
        before = sock.getsockopt(SOL_SOCKET, SO_RCVBUF)
        seq, at, burst = 1, 0.1, 10
        for _ in range(12):
            for _ in range(burst):
                ms = int(at * 1000)
                t.line(f"{at:.4f} < . {seq}(1448) ack 1 <nop,nop,TS {1000 + ms} {ms - 20}>")
                sock.recv(1 << 20)
                t.swallow()
                seq += 1448
                at += 0.0001
            at = round(at + 0.02, 4)
            burst = min(burst * 2, 40)
        assert sock.getsockopt(SOL_SOCKET, SO_RCVBUF) > before


def test_shrinking_window_is_opt_in() -> None:
    """Tiny segments waste memory, so that the buffer is full long before the window."""
    for shrink in (0, 1):
        t, _ = accepted(LINUX, rcvbuf=65536, sysctl={"net.ipv4.tcp_shrink_window": shrink})
        with t:
            edges = []
            for i in range(150):
                t.line(f"{1 + i * 0.05:.2f} < P. {1 + 153 * i}(153) ack 1")
                t.advance(1_000_000_000 + i * 50_000_000 + 45_000_000)
                edges += [p["TCP"].ack + (p["TCP"].window << 1) for _, p in t.flow(1000).out]
                t.swallow()
            assert any(b < a for a, b in pairwise(edges)) == bool(shrink)


def test_rcvlowat_holds_readiness_back() -> None:
    t, sock = accepted()
    with t:
        sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 100)
        t.line("0.1 < P. 1(99) ack 1")
        t.swallow()
        assert not sock.poll() & 1
        t.line("0.2 < P. 100(1) ack 1")
        t.swallow()
        assert sock.poll() & 1
