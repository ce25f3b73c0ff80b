"""The checks that every test gets without asking are themselves awake."""

from __future__ import annotations

import time

import pytest

import ustack
from tests.kit.leaks import left, wind_up
from tests.kit.oracle import decode
from tests.kit.testbed import Testbed


def test_a_sleep_is_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match="virtual time"):
        time.sleep(0)


def test_what_is_open_is_seen_and_wound_up() -> None:
    engine = ustack.Engine("192.0.2.1/24")
    assert not left(engine)
    listener, client = engine.socket(), engine.socket()
    engine.bind(listener, "192.0.2.1", 80)
    engine.listen(listener, 1)
    with pytest.raises(BlockingIOError):
        engine.connect(client, "192.0.2.99", 80)
    open_now = left(engine)
    assert open_now["pool of sockets"] == open_now["sockets"] == 2
    assert open_now["pool of listeners"] == open_now["hashed"] == open_now["timers"] == 1
    wind_up(engine)
    assert not left(engine)


def test_a_connection_and_a_request_are_wound_up() -> None:
    with Testbed() as t:
        t.connect(1000, 0)
        t.line("0.0 1001 < S 0 win 65535 <mss 1460>")
        t.line("0.0 1001 > S. 0 ack 1")
        conn, _ = t.listener.accept()
        conn.send(b"x" * 5000)
        t.stack.take()
        open_now = left(t.stack.engine)
        assert open_now["established"] == 1 and open_now["pool of requests"] == 1 and open_now["memory_pages"] > 0
        conn.detach()
        t.listener.detach()
    wind_up(t.stack.engine)
    assert not left(t.stack.engine)


@pytest.mark.parametrize("at", [0, 2, 8, 10, 12, 24, 34, 36, 41])
def test_scapy_refuses_a_damaged_packet(at: int) -> None:
    engine = ustack.Engine("192.0.2.1/24")
    with pytest.raises(BlockingIOError):
        engine.connect(engine.socket(), "192.0.2.99", 80)
    packet = engine.transmit()[0][1]
    decode(packet)
    damaged = bytearray(packet)
    damaged[at] ^= 1
    with pytest.raises(AssertionError):
        decode(bytes(damaged))
