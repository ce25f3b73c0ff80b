"""Corners of the SYN's way into a listener that the other files leave out: segments for a Fast Open child in SYN_RECV, the
Fast Open slots, what a SYN cookie's answer and its child take from the SYN, the child's first state (facts section C, E, F, I)."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from scapy.all import IP, TCP, IPOption  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed
from tests.states.test_fastopen_server import ANSWER, BASE, GOOD, KEY, KEYS, MODE, fo, server

COOKIES, REFLECT = "net.ipv4.tcp_syncookies", "net.ipv4.tcp_reflect_tos"
SAVE_SYN, SAVED_SYN, IP_TOS, TCP_INFO, CONGESTION = 27, 28, 1, 11, 13
LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
FIRST = "count TCPFastOpenPassive+1 PassiveOpens+1"


def child(t: Testbed) -> None:
    """A Fast Open child in SYN_RECV with 5 bytes of data, its counters taken."""
    t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6\n{FIRST}")


# ---- segments for a Fast Open child in SYN_RECV: tcp_check_req with its own request ---------------------------------------------------
def test_an_inexact_rst_is_challenged() -> None:
    """E1.6, C12: RFC 5961 holds for the request of a Fast Open child too; at most once in tcp_invalid_ratelimit."""
    with server() as t:
        child(t)
        t.run("""
            0.1 < R 7 tos 0x48
            0.1 > . 1 ack 6 win 63 tos 0x48 id 0 <nop,nop,TS 100 1000>
            count TCPChallengeACK+1
            0.2 < R 8
            0.599 < R 5006
            count TCPACKSkippedChallenge+2
            0.6 < R 7
            0.6 > . 1 ack 6 win 63
            count TCPChallengeACK+1
        """)
        assert t.half_open() == 1
        t.line("0.7 < R 6")
        t.line("count AttemptFails+2")
        assert t.half_open() == 0


def test_a_segment_outside_the_window_is_answered() -> None:
    """E1.3: ACK from the request, rate-limited unless there is data in it; a RST is discarded without a word."""
    with server() as t:
        child(t)
        t.run("""
            0.1 < . 80000 ack 1 <nop,nop,TS 1001 0>
            0.1 > . 1 ack 6 win 63 <nop,nop,TS 100 1000>
            0.2 < . 80000 ack 1 <nop,nop,TS 1001 0>
            count TCPACKSkippedSynRecv+1
            0.3 < P. 80000(3) ack 1 <nop,nop,TS 1001 0>
            0.3 > . 1 ack 6
            0.7 < R 80000
            0.8 quiet
            count
        """)
        assert t.half_open() == 1
        t.line("0.9 < R 6")


def test_the_window_of_a_fast_open_child_ends_at_its_offer() -> None:
    """E1.3: rcv_nxt + min(rsk_rcv_wnd, 65535), here 6 + 65160."""
    with server() as t:
        child(t)
        t.run("0.1 < R 65165\n0.1 > . 1 ack 6\ncount TCPChallengeACK+1")
        t.run("0.2 < R 65167\n0.3 quiet\ncount")
        t.line("0.9 < R 6")


def test_an_old_timestamp_is_answered_and_counted() -> None:
    """E1.2, E1.3: PAWS against the SYN's TSval; a RST that fails it gets no answer (it passes only 60 s later)."""
    with server() as t:
        child(t)
        t.run("0.1 < . 6 ack 1 <nop,nop,TS 999 0>\n0.1 > . 1 ack 6 win 63 <nop,nop,TS 100 1000>\ncount PAWSEstab+1")
        t.run("0.2 < . 6 ack 1 <nop,nop,TS 999 0>\ncount PAWSEstab+1 TCPACKSkippedSynRecv+1")
        t.run("0.9 < R 6 <nop,nop,TS 999 0>\ncount PAWSEstab+1")
        assert t.half_open() == 1
        t.run("0.9 < R 6\n3.5 quiet\ncount AttemptFails+2")


def test_old_timestamps_do_not_count_where_they_are_off() -> None:
    with server(sysctl={"net.ipv4.tcp_timestamps": 0}) as t:
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6\n{FIRST}")
        t.line("0.1 < . 6 ack 1 <nop,nop,TS 999 0> ! taken")
        assert len(t.rows("ESTAB")) == 1
        t.line("0.2 < R 6")


def test_a_syn_inside_the_window_is_reset() -> None:
    """E1.7: counted as a failed attempt; the child of a Fast Open SYN stays."""
    with server() as t:
        child(t)
        t.run("0.1 < S 7 <nop,nop,TS 1001 0>\n0.1 > R. =0 ack 8\ncount AttemptFails+1 OutRsts+1")
        assert t.half_open() == 1
        t.run("0.2 < . 6 ack 1 <nop,nop,TS 1001 0> ! taken")
        assert len(t.rows("ESTAB")) == 1
        t.line("0.3 < R 6")


def test_duplicate_syns_get_one_answer_in_half_a_second() -> None:
    """I11, E1.1: the SYN-ACK's repetition is under tcp_invalid_ratelimit."""
    with server() as t:
        child(t)
        t.run(f"""
            0.1 < S 0(5) {fo()}
            0.1 > S. 0 ack 6
            0.2 < S 0(5) {fo()}
            0.599 < S 0 <{BASE}>
            count TCPACKSkippedSynRecv+2 RetransSegs+1 TCPSynRetrans+1
            0.6 < S 0 <{BASE}>
            0.6 > S. 0 ack 6
            count RetransSegs+1 TCPSynRetrans+1
        """)
        conn, _ = t.listener.accept()
        t.line("0.7 < . 6 ack 1 <nop,nop,TS 1001 0> ! taken")
        assert struct.unpack_from("<I", conn.getsockopt(6, TCP_INFO, 280), 100)[0] == 2     # tcpi_total_retrans
        t.line("0.8 < R 6")


def test_a_segment_without_ack_is_dropped() -> None:
    with server() as t:
        child(t)
        t.run("0.1 < P 6(3) <nop,nop,TS 1001 0>\n0.2 quiet\ncount")
        t.line("0.3 < R 6")


def test_the_childs_syn_ack_agrees_on_what_the_syn_offered() -> None:
    """C4, C16: each option only if offered, ECE for an ECN-setup SYN, in the repetition too."""
    with server() as t:
        for port, (offer, flags, answer) in enumerate([
            ("mss 1460", "S", "mss 1460"),
            ("mss 1460,nop,nop,sackOK", "S", "mss 1460,nop,nop,sackOK"),
            ("mss 1460,nop,ws 3", "SEW", "mss 1460,nop,ws 10"),
            ("mss 1460,nop,nop,TS 1000 0", "S", "mss 1460,nop,nop,TS 0 1000"),
        ], 2000):
            out = flags.replace("EW", ".E") if "E" in flags else "S."
            t.run(f"0.0 {port} < {flags} 0(5) <{offer},fo {GOOD},nop,nop>\n0.0 {port} > {out} 0 ack 6 <{answer}>")
        for port in range(2000, 2004):
            t.line(f"1.0 {port} > S.{'E' if port == 2002 else ''} 0 ack 6")
            t.line(f"1.0 {port} < R 6")


def test_the_syn_acks_round_trip_is_the_childs_first_sample() -> None:
    """E9: only where the SYN-ACK was not repeated (Karn)."""
    with server() as t:
        t.run(f"0.5 < S 0(5) <mss 1460,fo {GOOD},nop,nop>\n0.5 > S. 0 ack 6\n0.8 < . 6 ack 1 ! taken")
        conn, _ = t.listener.accept()
        assert struct.unpack_from("<I", conn.getsockopt(6, TCP_INFO, 280), 68)[0] == 300_000     # tcpi_rtt
        t.line("0.9 < R 6")


# ---- Fast Open slots -------------------------------------------------------------------------------------------------------------------
def test_each_held_slot_has_its_own_end() -> None:
    """I6.2, I12: the oldest slot held after a RST is given away first, each 60 s after its RST, one per SYN."""
    with server(2) as t:
        keep = []
        for port, at in ((1000, 0), (1001, 10)):
            t.run(f"{at}.0 {port} < S 0(5) {fo()}\n{at}.0 {port} > S. 0 ack 6")
            keep.append(t.listener.accept())
            t.line(f"{at}.5 {port} < R 6")
        t.run(f"60.49 1002 < S 0(5) {fo()}\n60.49 1002 > S. 0 ack 1\n60.49 1002 < R 1")
        assert t.stack.nstat()["TcpExtTCPFastOpenListenOverflow"] == 1
        t.run(f"60.5 1003 < S 0(5) {fo()}\n60.5 1003 > S. 0 ack 6")
        t.run(f"60.5 1004 < S 0(5) {fo()}\n60.5 1004 > S. 0 ack 1\n60.5 1004 < R 1")
        assert t.stack.nstat()["TcpExtTCPFastOpenListenOverflow"] == 2
        for at in (61.5, 63.5, 67.5):
            t.line(f"{at} 1003 > S. 0 ack 6")
        t.run(f"70.5 1005 < S 0(5) {fo()}\n70.5 1005 > S. 0 ack 6")
        assert t.stack.nstat()["TcpExtTCPFastOpenPassive"] == 4
        t.run("70.5 1003 < R 6\n70.5 1005 < R 6")
        for conn, _ in keep:
            conn.close()


def held(t: Testbed, at: str, port: int, keep: list[Any]) -> None:
    """A Fast Open child that is accepted and reset at once: its slot is held."""
    t.run(f"{at} {port} < S 0(5) {fo()}\n{at} {port} > S. 0 ack 6")
    keep.append(t.listener.accept())
    t.line(f"{at} {port} < R 6")


def test_a_slot_is_held_again_and_again() -> None:
    """I12: the list of held slots is empty in between."""
    with server(1) as t:
        keep: list[Any] = []
        for n in range(3):
            held(t, f"{60 * n}.0", 1000 + n, keep)
            assert t.stack.nstat().get("TcpExtTCPFastOpenListenOverflow", 0) == 0
        t.run(f"179.9 1009 < S 0(5) {fo()}\n179.9 1009 > S. 0 ack 1\n179.9 1009 < R 1")
        assert t.stack.nstat()["TcpExtTCPFastOpenListenOverflow"] == 1


def test_a_slot_is_held_behind_another() -> None:
    """I12: first held, first given away, whatever came in between."""
    with server(2) as t:
        keep: list[Any] = []
        held(t, "0.0", 1000, keep)
        held(t, "10.0", 1001, keep)
        held(t, "60.0", 1002, keep)
        held(t, "70.0", 1003, keep)
        held(t, "120.0", 1004, keep)
        assert t.stack.nstat().get("TcpExtTCPFastOpenListenOverflow", 0) == 0
        t.run(f"129.9 1009 < S 0(5) {fo()}\n129.9 1009 > S. 0 ack 1\n129.9 1009 < R 1")
        assert t.stack.nstat()["TcpExtTCPFastOpenListenOverflow"] == 1


def test_as_many_children_in_syn_recv_as_the_queue_is_long() -> None:
    """I6.2: a slot is free again when its child is established."""
    with server(2) as t:
        for port in (1000, 1001):
            t.run(f"0.0 {port} < S 0(5) {fo()}\n0.0 {port} > S. 0 ack 6")
        t.run(f"0.0 1002 < S 0(5) {fo()}\n0.0 1002 > S. 0 ack 1 {ANSWER}\n0.0 1002 < R 1")
        assert t.stack.nstat()["TcpExtTCPFastOpenListenOverflow"] == 1
        t.line("0.1 1000 < . 6 ack 1 <nop,nop,TS 1001 0> ! taken")
        t.run(f"0.1 1003 < S 0(5) {fo()}\n0.1 1003 > S. 0 ack 6")
        for port in (1000, 1001, 1003):
            t.line(f"0.2 {port} < R 6")


# ---- what a cookie's answer and its child take from the SYN ----------------------------------------------------------------------------
@pytest.mark.parametrize("cookies", [1, 2])
@pytest.mark.parametrize(
    ("reflect", "syn", "listener", "answered"),
    [(1, 0x4B, 0, 0x48), (1, 0xFF, 0x04, 0xFC), (1, 0x48, 0x04, 0x48), (1, 0, 0x10, 0), (0, 0x48, 0x10, 0x10), (0, 0x48, 0, 0)],
)
def test_tos_of_the_answer_and_the_child(cookies: int, reflect: int, syn: int, listener: int, answered: int) -> None:
    """C11: (SYN TOS & 0xfc) | (listener TOS & 3) with tcp_reflect_tos, also out of a cookie; the child of a cookie keeps its ACK's TOS."""
    with Testbed(sysctl={COOKIES: cookies, REFLECT: reflect}) as t:
        t.listener.setsockopt(0, IP_TOS, listener)
        t.run(f"0.0 < S 0 tos {syn} {LINUX}\n0.0 > S. 0 ack 1 tos {answered}")
        ack = syn if cookies == 1 else 0x20
        t.line(f"0.1 < . 1 ack 1 tos {ack} <nop,nop,TS 1001 0> ! taken")
        conn, _ = t.listener.accept()
        kept = answered if cookies == 1 else 0x20 if reflect else listener
        assert conn.getsockopt(0, IP_TOS) == kept
        conn.send(b"x")
        t.run(f"0.1 > P. 1(1) ack 1 tos {kept}\n0.2 < R 1")


def test_reflection_is_decided_at_each_syn_ack() -> None:
    """C11: tcp_reflect_tos counts when a SYN-ACK is sent; what is kept of the SYN for another end does not change the TOS."""
    with Testbed(sysctl={REFLECT: 1}) as t:
        t.listener.setsockopt(0, IP_TOS, 0x10)
        t.listener.setsockopt(6, SAVE_SYN, 1)
        t.run(f"0.0 < S 0 tos 0x10 {LINUX}\n0.0 > S. 0 ack 1 tos 0x10")
        t.run(f"0.0 1001 < S 0 tos 0x48 {LINUX}\n0.0 1001 > S. 0 ack 1 tos 0x48")
        t.stack.sysctl[REFLECT] = 0
        t.run("1.0 > S. 0 ack 1 tos 0x10\n1.0 1001 > S. 0 ack 1 tos 0x10")
        t.run("1.1 < R 1\n1.1 1001 < R 1")


@pytest.mark.parametrize(("echo", "good"), [(127_000, True), (127_001, False), (0, True), (63_000, True), (-1, False)])
def test_the_echo_of_any_syn_ack_is_good_however_long_it_took(echo: int, good: bool) -> None:
    """E5: TSecr from the first to the last TSval, 127 s apart here."""
    with Testbed(sysctl={"net.ipv4.tcp_synack_retries": 9}) as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
        for at in (1, 3, 7, 15, 31, 63, 127):
            t.line(f"{at}.0 > S. 0 ack 1 <mss 1460,sackOK,TS {1000 * at} 1000,nop,ws 10>")
        t.line(f"128.0 < . 1 ack 1 <nop,nop,TS 1001 {echo}>")
        assert len(t.rows("ESTAB")) == good
        t.swallow()
        t.line("129.0 < R 1")


def test_a_cookies_child_takes_the_ip_options_of_the_ack() -> None:
    """C13, F8: the SYN's are echoed and forgotten."""
    route = IPOption(bytes([7, 7, 4]) + bytes(4) + b"\x00")
    with Testbed(sysctl={COOKIES: 2}) as t:
        t.run("0.0 < S 0 <mss 1460>\n0.0 > S. 0 ack 1")
        isn = t.flow(1000).stack_isn or 0
        t.inject(bytes(
            IP(src=t.peer, dst=t.server, options=[route])
            / TCP(sport=1000, dport=80, flags="PA", seq=10001, ack=(isn + 1) % 2**32) / b"hello"
        ), 0)
        t.collect()
        reply = t.flow(1000).out.pop()[1]
        assert reply[TCP].ack == 10006
        assert bytes(reply)[20:28].hex() == "070708c000020100"
        t.line("0.1 < R 6")


def test_a_child_writes_the_time_anew_into_its_ip_options() -> None:
    """C13, N2: the timestamp that the SYN-ACK echoed stands in each packet of the connection with the time of that packet."""
    stamp = IPOption(bytes([68, 12, 5, 0]) + bytes(8))
    with Testbed() as t:
        t.inject(bytes(IP(src=t.peer, dst=t.server, options=[stamp]) / TCP(sport=1000, dport=80, flags="S", seq=10000, options=[("MSS", 1460)])), 0)
        t.collect()
        first = t.flow(1000).out.pop()[1]
        t.flow(1000).stack_isn = first[TCP].seq
        t.line("0.5 < P. 1(5) ack 1")
        t.collect()
        reply = t.flow(1000).out.pop()[1]
        then, now = (struct.unpack("!I", bytes(p)[28:32])[0] for p in (first, reply))
        assert (reply[TCP].ack, now - then) == (10006, 500)
        t.line("0.6 < R 6")


@pytest.mark.parametrize(("sysctl", "at_syn", "at_ack", "ecn"), [
    (0, True, True, True), (0, True, False, False), (2, False, False, True), (0, False, False, False), (0, False, True, False),
])
def test_ecn_of_a_cookie_is_allowed_again_at_the_ack(sysctl: int, at_syn: bool, at_ack: bool, ecn: bool) -> None:
    """C16, F5: tcp_ecn or the route's feature ecn, at the SYN and at the ACK."""
    with Testbed(default_route=False, sysctl={COOKIES: 2, "net.ipv4.tcp_ecn": sysctl}) as t:
        route = "change 192.0.2.0/24 dev tun0 advmss 1400"
        t.stack.route(route + (" features ecn" if at_syn else ""))
        t.run(f"0.0 < SEW 0 {LINUX}\n0.0 > S.{'E' if at_syn or sysctl else ''} 0 ack 1")
        t.stack.route(route + (" features ecn" if at_ack else ""))
        t.line("0.0 < . 1 ack 1 <nop,nop,TS 1000 0> ! taken")
        conn, _ = t.listener.accept()
        assert bool(conn.getsockopt(6, TCP_INFO, 280)[5] & 8) == ecn
        t.line("0.1 < R 1")


def test_ecn_of_a_cookie_without_timestamps_is_lost() -> None:
    """B12, F4: nothing carries it."""
    with Testbed(sysctl={COOKIES: 2}) as t:
        t.run("0.0 < SEW 0 <mss 1460>\n0.0 > S. 0 ack 1")


def test_a_cookie_syn_without_a_route_is_a_listen_drop() -> None:
    """B9"""
    with Testbed(default_route=False, sysctl={COOKIES: 2}) as t:
        t.peer = "203.0.113.9"
        t.run("0.0 < S 0 <mss 1460> ! TCP_NO_ROUTE\n0.1 quiet")
        t.line("count TCPReqQFullDoCookies+1 OutNoRoutes+1 ListenDrops+1")


# ---- what a request keeps, what its child gets -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("option", [LINUX, "<mss 1460>", "<mss 1460,nop,ws 0>"])
def test_an_ordinary_request_is_one_record(option: str) -> None:
    """C8: the window and its clamp follow from scale and 16 bits; nothing else is kept."""
    with Testbed() as t:
        before = t.stack.pools()
        t.run(f"0.0 < S 0 {option}\n0.0 > S. 0 ack 1")
        after = t.stack.pools()
        assert {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k, 0)} == {"requests": 1}
        t.line("0.1 < R 1")


def test_each_child_keeps_its_own_syn() -> None:
    """TCP_SAVE_SYN: the copy goes from the request to the child, and lives as long as the child or until it is read."""
    with Testbed() as t:
        t.listener.setsockopt(6, SAVE_SYN, 1)
        children: list[Any] = []
        for port in (1000, 1001, 1002):
            t.run(f"0.0 {port} < S 0 tos {port & 3} {LINUX}\n0.0 {port} > S. 0 ack 1")
            t.line(f"0.0 {port} < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
            children.append((port, t.listener.accept()[0]))
        for port, conn in children:
            saved = IP(conn.getsockopt(6, SAVED_SYN, 200))
            assert (saved[TCP].sport, saved.tos) == (port, port & 3)
            t.line(f"0.1 {port} < R 1")


def test_a_saved_syn_belongs_to_one_child_only() -> None:
    """TCP_SAVE_SYN: what has been read is given back once, and the next SYN does not meet it."""
    with Testbed() as t:
        t.listener.setsockopt(6, SAVE_SYN, 1)
        before = t.stack.pools().get("extensions", 0)
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1\n0.0 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        conn, _ = t.listener.accept()
        assert t.stack.pools().get("extensions", 0) == before + 1
        t.line("0.1 < R 1")
        conn.close()
        assert t.stack.pools().get("extensions", 0) == before


def test_how_long_ago_a_new_child_was_active() -> None:
    """L6: both clocks of tcp_info start with the child."""
    with Testbed() as t:
        t.run(f"0.5 < S 0 {LINUX}\n0.5 > S. 0 ack 1\n0.7 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        conn, _ = t.listener.accept()
        t.advance(2_000_000_000)
        info = conn.getsockopt(6, TCP_INFO, 280)
        sent, _, received = struct.unpack_from("<III", info, 44)      # tcpi_last_data_sent, .._ack_sent, .._data_recv
        assert (sent, received) == (1300, 1300)
        t.line("2.0 < R 1")


@pytest.mark.parametrize(("chosen", "kept"), [(None, b"reno"), (b"cubic", b"cubic")])
def test_congestion_control_of_a_child(chosen: bytes | None, kept: bytes) -> None:
    """A12: the listener's only where a user chose it; else what is the stack's default by now."""
    with Testbed(sysctl={"net.ipv4.tcp_congestion_control": "cubic"}) as t:
        if chosen:
            t.listener.setsockopt(6, CONGESTION, chosen)
        t.stack.sysctl["net.ipv4.tcp_congestion_control"] = "reno"
        t.connect(1000, 0.0)
        conn, _ = t.listener.accept()
        assert conn.getsockopt(6, CONGESTION, 16).rstrip(b"\0") == kept
        t.line("0.1 < R 1")


@pytest.mark.parametrize(("level", "name", "value"), [(0, 10, 3), (0, 2, 33), (6, 45, 48_000), (6, 46, 32_000), (6, 1, 1), (1, 9, 1)])
def test_options_of_the_listener_are_the_childs(level: int, name: int, value: int) -> None:
    """A12: IP_MTU_DISCOVER, IP_TTL, TCP_RTO_MIN_US, TCP_DELACK_MAX_US, TCP_NODELAY, SO_KEEPALIVE as at the third ACK."""
    with Testbed() as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
        t.listener.setsockopt(level, name, value)
        t.line("0.1 < . 1 ack 1 <nop,nop,TS 1001 0> ! taken")
        t.listener.setsockopt(level, name, {33: 44, 3: 2, 1: 0}.get(value, 100_000))
        conn, _ = t.listener.accept()
        assert conn.getsockopt(level, name) == value
        t.line("0.2 < R 1")


def test_the_way_back_is_gone_at_the_third_ack() -> None:
    """B9 once more, for the child: no child, counted as a packet without a route and lost at the listener."""
    with Testbed(default_route=False) as t:
        t.peer = "203.0.113.9"
        t.stack.route("add 203.0.113.0/24 dev tun0")
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1")
        t.stack.route("del 203.0.113.0/24")
        t.line("count")
        t.line("0.1 < . 1 ack 1 <nop,nop,TS 1001 0>")
        assert t.stack.nstat()["IpOutNoRoutes"] == 1 and t.stack.nstat()["TcpExtListenDrops"] == 1
        assert t.stack.pools()["requests"] == 1
        t.line("0.2 < R 1")


@pytest.mark.parametrize(
    ("mode", "locked", "df"), [(0, False, 0), (1, False, 1), (2, False, 1), (3, False, 0), (1, True, 0), (2, True, 1), (3, True, 0)]
)
def test_dont_fragment_of_a_syn_ack(mode: int, locked: bool, df: int) -> None:
    """C11: DF for IP_PMTUDISC_DO, for IP_PMTUDISC_WANT unless the route's MTU is locked, and for 68 bytes or fewer; ID 0 with DF only."""
    with Testbed(default_route=False) as t:
        if locked:
            t.stack.route("change 192.0.2.0/24 dev tun0 mtu lock 1000")
        t.listener.setsockopt(0, 10, mode)
        route = bytes([7, 11, 4]) + bytes(8) + b"\x00"
        for port, options, want in ((1000, [], 1), (1001, [IPOption(route)], df)):
            t.inject(bytes(
                IP(src=t.peer, dst=t.server, options=options)
                / TCP(sport=port, dport=80, flags="S", seq=10000, options=t.options(LINUX[1:-1], t.flow(port), True, True))
            ), 0)
            t.collect()
            answer = t.flow(port).out.pop()[1]
            assert (int(answer.flags.DF), answer.id == 0) == (want, bool(want))
            assert answer.len == 60 + (12 if options else 0)
            t.flow(port).stack_isn = answer[TCP].seq
            t.line(f"0.0 {port} < R 1")


def test_a_window_scale_of_14_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """C1: only more than 14 is told, and only in a window scale option."""
    caplog.set_level("INFO", "ustack.kernel")
    with Testbed() as t:
        for port, options in enumerate(["mss 1460,nop,ws 14", "nop,ws 14,mss 65535", "253:0f0f0f,nop,ws 14", "3:0fff,ws 14,nop"], 2000):
            t.line(f"0.0 {port} < S 0 <{options}>")
        t.swallow()
        assert not [r for r in caplog.records if "window scaling" in r.message]


# ---- Fast Open: who needs a cookie, and whose --------------------------------------------------------------------------------------
def test_a_syn_with_neither_data_nor_option_is_ordinary() -> None:
    """I6.1: even where no cookie is required."""
    with server(mode=0x203) as t:
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1 {ANSWER}\ncount")
        t.line("0.1 < R 1")


def test_a_stack_without_a_key_makes_its_own() -> None:
    """I3: a random key at the first use of TCP_FASTOPEN; the cookie given out is taken back."""
    cookies = set()
    for seed in (1, 2):
        with Testbed(sysctl={MODE: 3}, seed=seed) as t:
            t.listener.setsockopt(6, 23, 5)
            t.listener.setsockopt(6, 23, 6)
            t.line(f"0.0 < S 0 <{BASE},34:,nop,nop>")
            t.collect()
            answer = t.flow(1000).out.pop()[1]
            given = bytes(answer[TCP])[-10:-2].hex()        # behind kind and length, before two NOPs
            cookies.add(given)
            t.flow(1000).stack_isn = answer[TCP].seq
            t.line("0.0 < R 1")
            t.run(f"0.0 1001 < S 0(5) {fo(given)}\n0.0 1001 > S. 0 ack 6\n0.0 1001 < R 6")
    assert len(cookies) == 2


def test_a_listeners_backup_key() -> None:
    """I3, I6.5: of the listener's two keys the second still opens, and the client learns the first one's cookie."""
    other = "11121314-15161718-191a1b1c-1d1e1f20"

    def raw(key: str) -> bytes:
        return b"".join(bytes.fromhex(w)[::-1] for w in key.split("-"))

    with server(key=other) as t:
        t.listener.setsockopt(6, 33, raw(other) + raw(KEY))
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6\ncount TCPFastOpenPassive+1 TCPFastOpenPassiveAltKey+1 PassiveOpens+1")
        t.line("0.1 < R 6")
        assert KEYS in t.stack.sysctl


def test_the_window_of_a_fast_open_syn() -> None:
    """I8: unscaled; PSH is forced when more than half of it has been written."""
    with server() as t:
        t.run(f"0.0 < S 0(5) win 4000 {fo()}\n0.0 > S. 0 ack 6")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 6000)
        t.run("0.0 > . 1(1448) ack 6\n0.0 > P. 1449(1448) ack 6\n0.1 quiet\n0.1 < R 6")


@pytest.mark.parametrize(("route", "segments"), [("initcwnd 3", 3), ("advmss 1460", 10)])
def test_the_first_window_of_a_fast_open_child(route: str, segments: int) -> None:
    """I8: the route's initcwnd, 10 without, before the handshake is over."""
    with server(default_route=False) as t:
        t.stack.route(f"change 192.0.2.0/24 dev tun0 {route}")
        t.run(f"0.0 < S 0(5) {fo()}\n0.0 > S. 0 ack 6")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 30_000)
        t.collect()
        assert [len(p[TCP].payload) for _, p in t.flow(1000).out] == [1448] * segments
        t.swallow()
        t.line("0.1 < R 6")


def test_the_listener_wakes_up_for_a_fast_open_child() -> None:
    """I7: accept() returns at the SYN, so who waits for it is told then."""
    with server() as t:
        t.listener.wakeups()
        child(t)
        assert t.listener.wakeups() & 1 and t.listener.poll() & 1
        t.line("0.1 < R 6")


# ---- hooks: what a choice costs, and a choice not to ---------------------------------------------------------------------------------
def test_a_hooks_drop_of_a_syn_is_a_listen_drop() -> None:
    with Testbed() as t:
        t.stack.on("syn", lambda view: "drop")
        t.run(f"0.0 < S 0 {LINUX} ! HOOK\n0.1 quiet\ncount ListenDrops+1")


def test_needs_ecn_may_be_denied() -> None:
    with Testbed() as t:
        t.stack.on("syn", lambda view: setattr(view, "needs_ecn", False))
        t.run(f"0.0 < S 0 {LINUX}\n0.0 > S. 0 ack 1 tos 0\n0.1 < R 1")
