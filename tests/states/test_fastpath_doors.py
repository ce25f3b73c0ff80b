"""What ustack._fastpath gives Python of the fast path itself: parse() and Engine.lookup() are the packet path's functions, and
handles are checked whatever number comes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import IP, TCP, Raw

import ustack
from tests.kit.testbed import PEER, SERVER, Testbed

FLOW = (SERVER, 80, PEER, 1000)


# ---- lookup -----------------------------------------------------------------------------------------------
def test_lookup_follows_a_connection_through_the_table() -> None:
    with Testbed() as t:
        engine = t.stack.engine
        assert engine.lookup(FLOW) is None
        t.run("""
            0 < S 0 win 65535 <mss 1460>
            0 > S. 0 ack 1
        """)
        kind, request = engine.lookup(FLOW)
        assert kind == "request" and request
        assert engine.lookup((SERVER, 80, PEER, 1001)) is None
        assert engine.lookup((PEER, 1000, SERVER, 80)) is None
        t.line("0 < . 1 ack 1")
        kind, index = engine.lookup(FLOW)
        assert kind == "socket"
        conn, _ = t.listener.accept()
        assert conn.handle & 0xFFFFFFFF == index, "the index is the handle's"
        conn.close()
        t.run("""
            0 > F. 1 ack 1
            0 < F. 1 ack 2
            0 > . 2 ack 2
        """)
        assert engine.lookup(FLOW)[0] == "time_wait"
        t.line("70 quiet")
        assert engine.lookup(FLOW) is None


def test_lookup_refuses_what_is_no_flow() -> None:
    engine = ustack.Engine("192.0.2.1/24")
    for flow in ((SERVER, 80, PEER, 65536), (SERVER, -1, PEER, 1)):
        with pytest.raises(OverflowError):
            engine.lookup(flow)
    with pytest.raises(OSError):
        engine.lookup(("192.0.2", 80, PEER, 1))


# ---- parse ------------------------------------------------------------------------------------------------
def test_parse_sees_what_scapy_wrote() -> None:
    packet = IP(src=PEER, dst=SERVER, id=77, tos=8, ttl=9) / TCP(
        sport=5, dport=80, seq=1000, ack=2000, flags="PA", window=300, urgptr=4,
        options=[("MSS", 1234), ("SAckOK", b""), ("Timestamp", (11, 22)), ("NOP", None), ("WScale", 6)]) / Raw(b"hello")
    seen = ustack.parse(bytes(packet))
    assert seen == {
        "src": PEER, "dst": SERVER, "id": 77, "tos": 8, "ttl": 9, "proto": 6, "frag": 0, "len": len(packet), "sport": 5, "dport": 80,
        "seq": 1000, "ack": 2000, "flags": 0x18, "window": 300, "urg": 4, "end_seq": 1005, "payload": b"hello", **(
            {"ts": (11, 22)})}, "MSS, window scale and SACK-permitted belong to a SYN only"
    packet[TCP].flags = "S"
    seen = ustack.parse(bytes(packet.__class__(bytes(packet))))
    assert (seen["mss"], seen["wscale"], seen["sackok"], seen["ts"], seen["end_seq"]) == (1234, 6, True, (11, 22), 1006)


def cut(n: int) -> Callable[[bytes], bytes]:
    return lambda packet: packet[:n]


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda packet: packet[:at] + value + packet[at + len(value):]


@pytest.mark.parametrize("damage", [cut(0), cut(19), cut(20), cut(39), cut(43), put(0, b"\x65"), put(0, b"\x44"), put(2, b"\0\x10"),
                                    put(2, b"\xff\xff"), put(32, b"\x40"), put(32, b"\xf0")])
def test_parse_and_receive_refuse_for_the_same_reason(damage: Callable[[bytes], bytes]) -> None:
    """receive() also verifies checksums, so the damaged header gets a right one."""
    packet = bytes(IP(src=PEER, dst=SERVER) / TCP(sport=5, dport=80, flags="S", options=[("MSS", 1460)]))
    packet = bytearray(damage(packet))
    if len(packet) >= 20:
        packet[10:12] = b"\0\0"
        total = sum(int.from_bytes(packet[i : i + 2], "big") for i in range(0, (packet[0] & 15) * 4, 2))
        packet[10:12] = ((total & 0xFFFF) + (total >> 16) ^ 0xFFFF).to_bytes(2, "big")
    with pytest.raises(ValueError) as caught:
        ustack.parse(bytes(packet))
    engine = ustack.Engine("192.0.2.1/24")
    reason = ustack._fastpath.drop_reason(engine.receive(bytes(packet), 0, csum=2))
    assert {reason, str(caught.value)} in ({reason}, {"NOT_SPECIFIED", "PKT_TOO_SMALL"})


# ---- handles ----------------------------------------------------------------------------------------------
CALLS: dict[str, Callable[[ustack.Engine, int], object]] = {
    "bind": lambda e, h: e.bind(h, "", 0),
    "listen": lambda e, h: e.listen(h, 1),
    "accept": lambda e, h: e.accept(h),
    "connect": lambda e, h: e.connect(h, PEER, 9),
    "connect_result": lambda e, h: e.connect_result(h),
    "disconnect": lambda e, h: e.disconnect(h),
    "send": lambda e, h: e.send(h, b"x"),
    "recv": lambda e, h: e.recv(h, 10),
    "recv (much)": lambda e, h: e.recv(h, 100_000),
    "recv_into": lambda e, h: e.recv_into(h, bytearray(10)),
    "recv_stamped": lambda e, h: e.recv_stamped(h, bytearray(10)),
    "send_fastopen": lambda e, h: e.send_fastopen(h, b"x", 0x20000000, PEER, 9),
    "take_error": lambda e, h: e.take_error(h),
    "shutdown": lambda e, h: e.shutdown(h, 2),
    "setsockopt": lambda e, h: e.setsockopt(h, 1, 2, 1),
    "getsockopt": lambda e, h: e.getsockopt(h, 1, 2),
    "getsockname": lambda e, h: e.getsockname(h),
    "getpeername": lambda e, h: e.getpeername(h),
    "poll_mask": lambda e, h: e.poll_mask(h),
    "wakeups": lambda e, h: e.wakeups(h),
    "ioctl": lambda e, h: e.ioctl(h, 0x541B),
    "state": lambda e, h: e.state(h),
    "timeouts": lambda e, h: e.timeouts(h),
    "lingering": lambda e, h: e.lingering(h),
    "wait": lambda e, h: e.wait(h, 1),
    "dump_one": lambda e, h: ustack._fastpath.dump_one(e, h),
    "close": lambda e, h: e.close(h),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_stale_handle_is_ebadf(name: str) -> None:
    """Of a closed socket, and still when another socket has taken its slot."""
    engine = ustack.Engine("192.0.2.1/24")
    old = engine.socket()
    engine.close(old)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            CALLS[name](engine, old)
        assert caught.value.errno == errno.EBADF
        new = engine.socket()
        assert new != old and new & 0xFFFFFFFF == old & 0xFFFFFFFF, "the slot is used again at once"
        engine.close(new)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(CALLS)), st.integers(0, 2**64 - 1) | st.builds(
    lambda i, g: i | g << 32, st.integers(0, 40), st.integers(0, 5)))
def test_no_number_at_all_is_taken_for_a_handle(name: str, handle: int) -> None:
    engine = ustack.Engine("192.0.2.1/24")
    live = [engine.socket() for _ in range(3)]
    if handle in live:
        return
    with pytest.raises(OSError) as caught:
        CALLS[name](engine, handle)
    assert caught.value.errno == errno.EBADF
