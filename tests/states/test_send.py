"""What the sender sends and when: records, Nagle, timers, windows, close (facts section J 1-14, K)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.kit.testbed import Testbed

SOL_SOCKET, SO_LINGER, SO_KEEPALIVE, SO_SNDBUF, SO_MAX_PACING_RATE = 1, 13, 9, 7, 47
TCP, NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT = 6, 1, 2, 3, 4, 5, 6
USER_TIMEOUT, NOTSENT_LOWAT, INFO = 18, 25, 11
MSG_OOB, MSG_EOR, MSG_MORE = 0x1, 0x80, 0x8000


class Connected(Testbed):
    """An accepted connection with MSS 1000 and a round trip of `rtt` ms, established at t = 1 s."""

    def __init__(self, options: str = "mss 1000,sackOK,nop,nop", rtt: int = 10, win: int = 65535, **kw: Any) -> None:
        super().__init__(**kw)
        self.run(
            f"{1 - rtt / 1000:.3f} < S 0 win {win} <{options}>\n"
            f"{1 - rtt / 1000:.3f} > S. 0 ack 1\n"
            f"1.000 < . 1 ack 1 win {win}"
        )
        self.sock, _ = self.listener.accept()
        self.sock.setblocking(False)

    def send(self, n: int, flags: int = 0) -> int:
        return int(self.sock.send(b"x" * n, flags))

    def opt(self, name: int, value: int, level: int = TCP) -> None:
        self.sock.setsockopt(level, name, value)

    def info(self, fmt: str, at: int) -> int:
        return int(struct.unpack_from(fmt, self.sock.getsockopt(TCP, INFO, 280), at)[0])


# ---- small segments --------------------------------------------------------------------------------------
def test_nagle_holds_a_second_small_segment_until_the_first_is_acknowledged() -> None:
    with Connected() as t:
        for _ in range(3):
            t.send(100)
        t.run("""
            1.000 > P. 1(100) ack 1
            1.010 < . 1 ack 101
            1.010 > P. 101(200) ack 1
            1.020 < . 1 ack 301
        """)


def test_nodelay_sends_each() -> None:
    with Connected() as t:
        t.opt(NODELAY, 1)
        for _ in range(3):
            t.send(100)
        t.run("""
            1.000 > P. 1(100) ack 1
            1.000 > P. 101(100) ack 1
            1.000 > P. 201(100) ack 1
            1.010 < . 1 ack 301
        """)


def test_a_small_segment_behind_full_ones_is_not_held() -> None:
    """Minshall's variant: only a small packet that is still out makes another one wait."""
    with Connected() as t:
        t.send(1000)
        t.send(100)
        t.send(100)
        t.run("""
            1.000 > P. 1(1000) ack 1
            1.000 > P. 1001(100) ack 1
            1.010 < . 1 ack 1101
            1.010 > P. 1101(100) ack 1
            1.020 < . 1 ack 1201
        """)


def test_setting_nodelay_pushes_what_waits() -> None:
    with Connected() as t:
        t.send(100)
        t.send(50)
        t.line("1.000 > P. 1(100) ack 1")
        t.advance(1_005_000_000)
        t.opt(NODELAY, 1)
        t.run("1.005 > P. 101(50) ack 1\n1.020 < . 1 ack 151")


def test_cork_holds_partial_segments_and_lets_full_ones_go() -> None:
    with Connected() as t:
        t.opt(CORK, 1)
        t.send(300)
        t.run("1.100 quiet")
        t.send(900)
        t.run("1.100 > . 1(1000) ack 1\n1.110 < . 1 ack 1001\n1.115 quiet")
        t.opt(CORK, 0)
        t.run("1.115 > P. 1001(200) ack 1\n1.125 < . 1 ack 1201")


def test_more_holds_the_rest_until_a_send_without_it() -> None:
    with Connected() as t:
        t.send(1000, MSG_MORE)
        t.send(300, MSG_MORE)
        t.run("1.000 > . 1(1000) ack 1\n1.005 quiet")
        t.send(10)
        t.run("1.005 > P. 1001(310) ack 1\n1.015 < . 1 ack 1311")


def test_more_is_no_cork_an_ack_lets_the_rest_go() -> None:
    with Connected() as t:
        t.send(1000, MSG_MORE)
        t.send(300, MSG_MORE)
        t.run("""
            1.000 > . 1(1000) ack 1
            1.010 < . 1 ack 1001
            1.010 > . 1001(300) ack 1
            1.020 < . 1 ack 1301
        """)


def test_the_end_of_a_record_keeps_later_data_out_of_its_segment() -> None:
    with Connected() as t:
        t.opt(CORK, 1)
        t.send(400, MSG_EOR)
        t.send(400, MSG_EOR)
        t.send(100)
        t.opt(CORK, 0)
        t.run("""
            1.000 > P. 1(400) ack 1
            1.000 > P. 401(400) ack 1
            1.010 < . 1 ack 801
            1.010 > P. 801(100) ack 1
            1.020 < . 1 ack 901
        """)


def test_urgent_data_points_behind_its_byte() -> None:
    with Connected() as t:
        t.send(5)
        t.send(3, MSG_OOB)
        t.run("""
            1.000 > P. 1(5) ack 1
            1.000 > PU. 6(3) ack 1 urg 3
            1.010 < . 1 ack 9
        """)


# ---- PSH and transmissions ---------------------------------------------------------------------------------
def test_a_flight_is_two_transmissions_of_half_the_window() -> None:
    with Connected(rtt=0) as t:
        t.send(20000)
        flags = ["."] * 4 + ["P."]
        for i in range(10):
            t.line(f"1.000 > {flags[i % 5]} {1 + 1000 * i}(1000) ack 1")
        t.run("1.003 quiet")
        t.line("1.003 < . 1 ack 10001")
        t.swallow()


def test_half_of_a_small_window_without_psh_forces_one() -> None:
    """The record limit is half the largest window; each full record that makes half a window since the last PSH carries one."""
    with Connected(win=5000) as t:
        t.send(10000)
        t.run("""
            1.000 > . 1(1000) ack 1
            1.000 > P. 1001(1000) ack 1
            1.000 > . 2001(1000) ack 1
            1.000 > P. 3001(1000) ack 1
            1.000 > . 4001(1000) ack 1
        """)
        t.swallow()


# ---- loss of everything --------------------------------------------------------------------------------------
def test_probe_and_timeouts_of_a_single_packet() -> None:
    """RTO 212 ms (srtt 10, floor 200, ticks of 4); the probe would be at 2 * srtt + 200, which is later."""
    with Connected() as t:
        t.send(100)
        t.run("""
            1.000 > P. 1(100) ack 1
            1.212 > P. 1(100) ack 1       # loss probe
            1.424 > P. 1(100) ack 1
            1.848 > P. 1(100) ack 1
            2.696 > P. 1(100) ack 1
            4.392 > P. 1(100) ack 1
            4.400 < . 1 ack 101
        """)
        t.line(
            "count TCPTimeouts+4 TcpTimeoutRehash+4 TCPLossProbes+1 RetransSegs+5 TCPLostRetransmit+3 "
            "TCPOrigDataSent+1 TCPDelivered+1 TCPHPAcks+1 TCPPureAcks+1 PassiveOpens+1 CurrEstab+1"
        )


def test_probe_of_a_flight_is_new_data_or_the_last_segment() -> None:
    """Two packets out: 2 * srtt + 2 ms in ticks. The probe counts as a tail that was lost."""
    with Connected() as t:
        t.send(2000)
        t.run("""
            1.000 > . 1(1000) ack 1
            1.000 > P. 1001(1000) ack 1
            1.024 > P. 1001(1000) ack 1
            1.236 > . 1(1000) ack 1
            1.240 < . 1 ack 2001
        """)


def test_without_sack_there_is_no_probe() -> None:
    with Connected("mss 1000") as t:
        t.send(2000)
        t.run("""
            1.000 > . 1(1000) ack 1
            1.000 > P. 1001(1000) ack 1
            1.212 > . 1(1000) ack 1
            1.220 < . 1 ack 2001
        """)


def test_small_records_are_merged_when_they_are_sent_again() -> None:
    with Connected("mss 1000") as t:
        t.opt(NODELAY, 1)
        for n in (400, 300, 200, 500):
            t.send(n)
        t.swallow()
        t.run("""
            1.212 > P. 1(900) ack 1
            1.220 < . 1 ack 901
            1.220 > P. 901(500) ack 1
            1.230 < . 1 ack 1401
        """)


def test_timeout_of_the_user_ends_it() -> None:
    with Connected() as t:
        t.opt(USER_TIMEOUT, 1000)
        t.send(100)
        t.run("""
            1.000 > P. 1(100) ack 1
            1.212 > P. 1(100) ack 1
            1.424 > P. 1(100) ack 1
            1.848 > P. 1(100) ack 1
            3.000 quiet
        """)
        # the time counts from the first retransmission by timeout
        assert t.sock.getsockopt(SOL_SOCKET, 4) == 110
        with pytest.raises(BrokenPipeError):
            t.send(1)


def test_it_gives_up_after_retries2() -> None:
    with Connected(sysctl={"net.ipv4.tcp_retries2": 3}) as t:
        t.send(100)
        t.advance(20_000_000_000)
        times = [at / 1e9 for at, _ in t.flow(1000).out]
        t.swallow()
        assert times == [1.0, 1.212, 1.424, 1.848, 2.696, 4.392]
        assert t.sock.getsockopt(SOL_SOCKET, 4) == 110
        assert t.stack.nstat()["TcpExtTCPAbortOnTimeout"] == 1


# ---- the peer's window ---------------------------------------------------------------------------------------
def test_zero_window_is_probed_with_an_old_number() -> None:
    with Connected() as t:
        t.line("1.000 < . 1 ack 1 win 0")
        t.send(1000)
        t.run("""
            1.212 > . 0 ack 1
            1.212 < . 1 ack 1 win 0
            1.636 > . 0 ack 1
            1.640 < . 1 ack 1 win 0
            2.488 > . 0 ack 1
            2.490 < . 1 ack 1 win 600
            3.000 quiet
        """)
        t.swallow()


def test_a_window_smaller_than_the_segment_is_used_by_the_probe_timer() -> None:
    """Silly window avoidance waits for a whole segment; the probe timer cuts it to what fits (facts J11)."""
    with Connected() as t:
        t.send(1000)
        t.run("1.000 > P. 1(1000) ack 1\n1.010 < . 1 ack 1001 win 600")
        t.send(1000)
        t.run("""
            1.222 > P. 1001(600) ack 1
            1.230 < . 1 ack 1601 win 600
            1.230 > P. 1601(400) ack 1
            1.240 < . 1 ack 2001 win 600
        """)


# ---- silence ---------------------------------------------------------------------------------------------------
def test_keepalive() -> None:
    with Connected() as t:
        t.opt(KEEPIDLE, 1)
        t.opt(KEEPINTVL, 1)
        t.opt(KEEPCNT, 3)
        t.opt(SO_KEEPALIVE, 1, SOL_SOCKET)
        t.run("""
            2.000 > . 0 ack 1
            2.010 < . 1 ack 1
            3.010 > . 0 ack 1
            4.010 > . 0 ack 1
            5.010 > . 0 ack 1
            6.010 > R. 1 ack 1
            7.000 quiet
        """)
        assert t.sock.getsockopt(SOL_SOCKET, 4) == 110


# ---- close -------------------------------------------------------------------------------------------------------
def test_fin_is_a_segment_of_its_own_and_joins_the_data_when_sent_again() -> None:
    with Connected() as t:
        t.send(5)
        t.sock.close()
        t.run("""
            1.000 > P. 1(5) ack 1
            1.000 > F. 6 ack 1
            1.024 > F. 6 ack 1
            1.236 > FP. 1(5) ack 1
            1.240 < . 1 ack 7
            1.250 < F. 1 ack 7
            1.250 > . 7 ack 2
        """)


def test_fin_rides_on_what_was_held_back() -> None:
    with Connected() as t:
        t.opt(CORK, 1)
        t.send(5)
        t.run("1.100 quiet")
        t.sock.shutdown(1)
        t.run("""
            1.100 > FP. 1(5) ack 1
            1.110 < . 1 ack 7
        """)


def test_orphan_gives_up_in_silence() -> None:
    with Connected() as t:
        t.sock.close()
        t.advance(200_000_000_000)
        times = [at / 1e9 for at, _ in t.flow(1000).out]
        t.swallow()
        assert times[:4] == [1.0, 1.212, 1.424, 1.848]
        assert len(times) == 10
        assert not t.rows("FIN-WAIT-1")


# ---- the congestion window -----------------------------------------------------------------------------------------
def test_after_idle_the_window_is_the_initial_one_again() -> None:
    with Connected() as t:
        t.send(10000)
        t.swallow()
        t.line("1.010 < . 1 ack 10001")
        assert t.info("I", 80) == 20
        t.advance(3_000_000_000)
        t.send(100)
        assert t.info("I", 80) == 10
        t.swallow()
        t.line("3.010 < . 1 ack 10101")


def test_pacing_spaces_the_transmissions() -> None:
    """1 MB/s: transmissions of two segments (tcp_min_tso_segs) 2 ms apart; after idle the first gap is halved."""
    with Connected() as t:
        t.opt(SO_MAX_PACING_RATE, 1_000_000, SOL_SOCKET)
        t.send(10000)
        t.swallow()
        t.line("1.010 < . 1 ack 10001")
        t.send(8000)
        t.run("""
            1.010 > . 10001(1000) ack 1
            1.010 > P. 11001(1000) ack 1
            1.011 > . 12001(1000) ack 1
            1.011 > P. 13001(1000) ack 1
            1.013 > . 14001(1000) ack 1
            1.013 > P. 15001(1000) ack 1
            1.015 > . 16001(1000) ack 1
            1.015 > P. 17001(1000) ack 1
            1.020 < . 1 ack 18001
        """)


# ---- the send buffer -------------------------------------------------------------------------------------------------
def test_unsent_data_is_limited() -> None:
    """The limit is looked at before a new record is made: a record of size_goal (32 segments) goes beyond it, and is filled again as
    long as transmissions are cut off it."""
    with Connected() as t:
        t.opt(NOTSENT_LOWAT, 1000)
        first = t.send(200000)
        t.swallow()
        with pytest.raises(BlockingIOError):
            t.send(1)
        assert not t.sock.poll() & 4
        assert first == 32000 + 10000
        t.advance(1_010_000_000)


def test_a_link_that_refuses_is_tried_again() -> None:
    with Connected() as t:
        t.stack.link(refuse=True)
        t.send(100)
        t.run("1.100 quiet")
        t.stack.link(refuse=False)
        t.run("1.212 > P. 1(100) ack 1\n1.220 < . 1 ack 101")


# ---- zero copy -------------------------------------------------------------------------------------------------------
def notification(t: Connected) -> tuple[int, int, int, int]:
    """(origin, code, first, last) of the next entry of the error queue."""
    _, control, flags, _ = t.sock.recvmsg(100, 100, 0x2000)
    assert flags & 0x2000
    ((level, kind, data),) = control
    assert (level, kind) == (0, 11)
    errno, origin, typ, code, _, info, last = struct.unpack_from("=IBBBBII", data)
    assert (errno, typ) == (0, 0)
    return origin, code, info, last


def test_zero_copy_sends_are_reported_by_number_when_acknowledged() -> None:
    with Connected() as t:
        t.opt(60, 1, SOL_SOCKET)
        t.opt(NODELAY, 1)
        assert t.send(100, 0x4000000) == 100
        assert t.send(100, 0x4000000) == 100
        t.run("1.000 > P. 1(100) ack 1\n1.000 > P. 101(100) ack 1")
        assert not t.sock.poll() & 8
        with pytest.raises(BlockingIOError):
            t.sock.recvmsg(100, 100, 0x2000)
        t.line("1.010 < . 1 ack 101")
        assert t.sock.poll() & 8
        t.line("1.011 < . 1 ack 201")
        assert notification(t) == (5, 1, 0, 1)
        assert not t.sock.poll() & 8


def test_calls_that_share_a_record_share_a_notification() -> None:
    with Connected() as t:
        t.opt(60, 1, SOL_SOCKET)
        t.opt(CORK, 1)
        for _ in range(3):
            t.send(100, 0x4000000)
        t.opt(CORK, 0)
        t.run("1.000 > P. 1(300) ack 1\n1.010 < . 1 ack 301")
        assert notification(t) == (5, 1, 0, 2)


def test_a_zero_copy_send_that_takes_nothing_has_no_number() -> None:
    with Connected() as t:
        t.opt(60, 1, SOL_SOCKET)
        t.opt(NOTSENT_LOWAT, 1)
        t.line("1.000 < . 1 ack 1 win 0")
        t.send(100, 0x4000000 | MSG_EOR)
        with pytest.raises(BlockingIOError):
            t.send(100000, 0x4000000)
        t.run("1.000 < . 1 ack 1 win 1000\n1.000 > P. 1(100) ack 1\n1.010 < . 1 ack 101")
        assert notification(t) == (5, 1, 0, 0)
        t.send(10, 0x4000000)
        t.run("1.010 > P. 101(10) ack 1\n1.020 < . 1 ack 111")
        assert notification(t) == (5, 1, 1, 1)


def test_zero_copy_needs_the_option() -> None:
    with Connected() as t:
        t.send(100, 0x4000000)
        t.run("1.000 > P. 1(100) ack 1\n1.010 < . 1 ack 101")
        with pytest.raises(BlockingIOError):
            t.sock.recvmsg(100, 100, 0x2000)
