"""How an engine thread goes to sleep: at once where packets come alone, shortly later where that saves sleeps. Pings over a socket pair."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from ustack import MemoryLink, Stack
from ustack.links.base import Link, Port

A, B = "192.0.2.1", "192.0.2.2"
PINGS = 200
TRIES = 20          # fruitless tries that a new thread has


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


def ping(number: int) -> bytes:
    icmp = struct.pack("!BBHHH", 8, 0, 0, 1, number)
    icmp = struct.pack("!BBHHH", 8, 0, checksum(icmp), 1, number)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, number, 0, 64, 1, 0, socket.inet_aton(B), socket.inet_aton(A))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + icmp


class Pinged:
    """A stack and the raw other end of its link."""

    def __init__(self, stack: Stack, wire: socket.socket) -> None:
        self.stack = stack
        self.wire = wire

    def ping(self, times: int, apart: float = 0) -> dict[str, int]:
        """So many pings, each when the one before is answered; the loop's counters afterwards."""
        for number in range(times):
            self.wire.send(ping(number))
            assert self.wire.recv(100)[20] == 0
            if apart:
                threading.Event().wait(apart)
        return self.stack.drivers[0].counters()     # type: ignore[attr-defined]


def pinged(busy_poll_us: float | None) -> Iterator[Pinged]:
    near, far = MemoryLink.pair()
    with Stack(near, f"{A}/24", busy_poll_us=busy_poll_us) as stack:
        assert far._socket is not None
        with far._socket as wire:
            wire.settimeout(10)
            yield Pinged(stack, wire)


@pytest.fixture
def default() -> Iterator[Pinged]:
    yield from pinged(None)


@pytest.fixture
def hurried() -> Iterator[Pinged]:
    yield from pinged(0)


def test_busy_poll_of_0_sleeps_after_each_packet_without_another_turn(hurried: Pinged) -> None:
    counters = hurried.ping(PINGS)
    assert counters["lingered"] == 0
    assert counters["rx_packets"] == counters["tx_packets"] == PINGS
    # Learned: a turn that finds nothing follows a lone packet only now and then.
    assert counters["turns"] < 1.5 * PINGS, counters


def test_several_packets_at_once_are_all_answered_by_a_thread_that_expects_one(hurried: Pinged) -> None:
    hurried.ping(20)
    for number in range(40):
        hurried.wire.send(ping(number))
    assert [hurried.wire.recv(100)[26:28] for _ in range(40)] == [struct.pack("!H", n) for n in range(40)]
    hurried.ping(20)


def test_by_default_the_thread_reads_on_before_it_sleeps(default: Pinged) -> None:
    assert default.ping(5)["lingered"] > 0


def test_reading_on_that_finds_nothing_ends(default: Pinged) -> None:
    """It is paid from the sleeps that it saves: 2 ms between packets save none."""
    counters = default.ping(3 * TRIES, apart=0.002)
    assert 0 < counters["lingered"] <= TRIES + 5 + 2 * counters["saved_sleeps"], counters
    assert counters["sleeps"] >= TRIES


class Cable(Link):
    """One end of a socket pair that carries what a TUN device with offload does."""

    mtu = 1500

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        return Port(self._end.fileno(), vnet=True, gso=True)

    def close(self) -> None:
        self._end.close()


def test_a_polling_thread_writes_the_answer_to_a_lone_packet_early_and_once() -> None:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
    with Stack(Cable(pair[0]), f"{A}/24", busy_poll_us=100_000) as server, Stack(Cable(pair[1]), f"{B}/24") as client:
        listener = server.create_server((A, 7))
        listener.serve("echo")
        with client.create_connection((A, 7), timeout=20) as sock:
            for number in range(300):
                text = struct.pack("!I", number) * (1 + 7 * number % 700)   # up to 2,800 bytes: long answers are not written early
                sock.sendall(text)
                back = b""
                while len(back) < len(text):
                    more = sock.recv(65536)
                    assert more
                    back += more
                assert back == text
        counters = server.drivers[0].counters()     # type: ignore[attr-defined]
        assert 50 < counters["early"] < counters["tx_packets"] - 30, counters
        seen = client.nstat()
        assert not seen.get("TcpExtTCPOFOQueue") and not seen.get("TcpExtDelayedACKLost"), seen
        assert not server.nstat().get("TcpRetransSegs")
