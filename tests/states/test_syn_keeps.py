"""What a listener keeps of a SYN beside the request: the SYN itself, IP options (facts C11, C13; TCP_SAVE_SYN)."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from scapy.all import IP, TCP, IPOption

from tests.kit.testbed import Testbed

SAVE_SYN, SAVED_SYN = 27, 28


def exchange(t: Testbed, options: bytes, **ip: Any) -> tuple[bytes, Any]:
    """Injects a SYN with IP options at the current time; the packet and the SYN-ACK, if one came."""
    syn = bytes(
        IP(src=t.peer, dst=t.server, options=[IPOption(options)] if options else [], **ip)
        / TCP(sport=1000, dport=80, flags="S", seq=10000, options=[("MSS", 1460)])
    )
    t.inject(syn, t.clock.now)
    t.collect()
    out = t.flow(1000).out
    return syn, out.pop(0)[1] if out else None


@pytest.mark.parametrize("cookies", [1, 2])
def test_record_route_is_echoed_and_filled(cookies: int) -> None:
    """Ours is entered on arrival and again on departure; what no longer fits stays out."""
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": cookies}) as t:
        _, answer = exchange(t, bytes([7, 11, 4]) + bytes(8) + b"\x00")
        assert bytes(answer)[20:32].hex() == "070b0cc0000201c000020100"
        assert answer[TCP].flags == "SA" and answer.ihl == 8
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": cookies}) as t:
        _, answer = exchange(t, bytes([7, 7, 4]) + bytes(4) + b"\x00")
        assert bytes(answer)[20:28].hex() == "070708c000020100"


def test_the_childs_packets_carry_the_options_too() -> None:
    with Testbed() as t:
        _, answer = exchange(t, bytes([7, 7, 4]) + bytes(4) + b"\x00")
        t.flow(1000).stack_isn = answer[TCP].seq
        t.line("0.1 < P. 1(5) ack 1")
        t.collect()
        reply = t.flow(1000).out.pop()[1]
        assert bytes(reply)[20:28].hex() == "070708c000020100" and reply[TCP].ack == 10006
        conn, _ = t.listener.accept()
        assert conn.getsockopt(6, 2) == 1452
        t.line("0.1 < R 6")


def test_timestamps_are_written_anew_in_each_repetition() -> None:
    with Testbed() as t:
        _, answer = exchange(t, bytes([68, 12, 5, 0]) + bytes(8))
        first = bytes(answer)[20:32]
        assert first[:4].hex() == "440c0d00"
        arrived, sent = struct.unpack("!II", first[4:])
        assert arrived == sent == 1_700_000_000_000 % 86_400_000
        t.advance(10**9)
        again = bytes(t.flow(1000).out.pop()[1])[20:32]
        assert again[:8] == first[:8] and struct.unpack("!I", again[8:])[0] == sent + 1000


@pytest.mark.parametrize("options", [bytes([1, 1, 1, 0]), bytes([148, 4, 0, 0]), bytes([153, 4, 0, 0])])
def test_other_options_are_ignored(options: bytes) -> None:
    with Testbed() as t:
        _, answer = exchange(t, options)
        assert answer.ihl == 5 and answer[TCP].flags == "SA"


def test_a_source_route_is_refused() -> None:
    with Testbed() as t:
        _, answer = exchange(t, bytes([131, 7, 4, 192, 0, 2, 9, 0]))
        assert answer is None


@pytest.mark.parametrize("route", [b"", bytes([7, 7, 4]) + bytes(4) + b"\x00"])
@pytest.mark.parametrize("reflect", [0, 1])
def test_saved_syn(route: bytes, reflect: int) -> None:
    """IP and TCP headers, a recorded route as the receiver has filled it in; readable once."""
    with Testbed(sysctl={"net.ipv4.tcp_reflect_tos": reflect}) as t:
        t.listener.setsockopt(6, SAVE_SYN, 1)
        syn, answer = exchange(t, route, tos=0x48)
        assert answer.tos == 0x48 * reflect
        t.flow(1000).stack_isn = answer[TCP].seq
        t.line("0.1 < . 1 ack 1")
        conn, _ = t.listener.accept()
        filled = bytes([7, 7, 8, 192, 0, 2, 1, 0]) if route else b""
        assert conn.getsockopt(6, SAVED_SYN, 200) == syn[:20] + filled + syn[20 + len(route):]
        assert conn.getsockopt(6, SAVED_SYN, 200) == b""
        assert conn.getsockopt(0, 1) == 0x48 * reflect
        t.line("0.1 < R 1")
