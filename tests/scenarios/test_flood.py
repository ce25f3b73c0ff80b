"""Honest clients through a SYN flood: with cookies they come through, without them they do not, and the counters tell which it was.

The flood comes from 203.0.113.0/24 and never answers. The honest clients are a second stack on a cable: kernel-like, with SYN retransmissions.
Everything runs in virtual time.
"""

from __future__ import annotations

import pytest
from scapy.all import IP, TCP

from ustack import MemoryLink, Stack, VirtualClock

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
MS = 1_000_000
SECOND = 1000 * MS
BACKLOG = 16


class Flood:
    """A participant of the clock that sends a SYN from a client never seen, at a fixed rate, until `end`."""

    def __init__(self, stack: Stack, clock: VirtualClock, every: int, end: int) -> None:
        self.stack, self.clock, self.every, self.end = stack, clock, every, end
        self.at = clock.now
        self.sent = 0
        clock.attach(self)

    def next_timeout(self) -> int | None:
        return self.at if self.at < self.end else None

    def fire(self) -> None:
        n = self.sent
        syn = IP(src=f"203.0.113.{n % 254 + 1}", dst=SERVER, id=n) / TCP(
            sport=1024 + n // 254, dport=80, seq=n * 7919, ack=n * 31337 % 2**32, flags="S", window=512)
        self.stack.inject(bytes(syn))
        self.sent += 1
        self.at += self.every


class Lab:
    def __init__(self, cookies: int) -> None:
        self.clock = VirtualClock(wall=1_700_000_000 * SECOND)
        left, right = MemoryLink.pair()
        sysctl = {"net.ipv4.tcp_syncookies": cookies}
        self.server = Stack(left, f"{SERVER}/24", clock=self.clock, seed=1, sysctl=sysctl)
        self.client = Stack(right, f"{CLIENT}/24", clock=self.clock, seed=2)
        self.listener = self.server.create_server((SERVER, 80), backlog=BACKLOG)
        self.listener.settimeout(1)

    def visit(self, patience: float) -> bool:
        """One honest client: connect, ask, be answered."""
        try:
            conn = self.client.create_connection((SERVER, 80), timeout=patience)
        except TimeoutError:
            return False
        with conn:
            conn.sendall(b"GET")
            served, peer = self.listener.accept()
            with served:
                assert peer == conn.getsockname()
                assert served.recv(100) == b"GET"
                served.sendall(b"a page")
            assert conn.recv(100) == b"a page"
        return True

    def counts(self, *names: str) -> list[int]:
        nstat = self.server.nstat(zeros=True)
        return [nstat["TcpExt" + name] for name in names]


def test_with_cookies_every_honest_client_comes_through() -> None:
    lab = Lab(cookies=1)
    flood = Flood(lab.server, lab.clock, 2 * MS, 3 * SECOND)
    lab.clock.advance(100 * MS)
    assert len(lab.server.requests(lab.listener)) == BACKLOG + 1
    visits = 0
    while lab.clock.now < 2 * SECOND:
        assert lab.visit(patience=0.5), f"visit {visits} failed"
        visits += 1
        lab.clock.advance(lab.clock.now + 100 * MS)
    assert visits >= 18
    sent, received, failed, do_cookies, drop = lab.counts(
        "SyncookiesSent", "SyncookiesRecv", "SyncookiesFailed", "TCPReqQFullDoCookies", "TCPReqQFullDrop")
    assert received == visits
    assert sent == do_cookies == flood.sent + visits - (BACKLOG + 1)
    assert (failed, drop) == (0, 0)
    assert lab.counts("ListenOverflows", "ListenDrops") == [0, 0]
    assert lab.server.drops() == {}


def test_without_cookies_none_does_until_the_flood_has_gone() -> None:
    lab = Lab(cookies=0)
    flood = Flood(lab.server, lab.clock, 2 * MS, 8 * SECOND)
    lab.clock.advance(100 * MS)
    assert len(lab.server.requests(lab.listener)) == BACKLOG + 1
    while lab.clock.now < 6 * SECOND:
        assert not lab.visit(patience=1.5)
    assert lab.counts("SyncookiesSent", "SyncookiesRecv", "TCPReqQFullDoCookies", "ListenOverflows") == [0, 0, 0, 0]
    full, drops = lab.counts("TCPReqQFullDrop", "ListenDrops")
    assert full == drops == lab.server.drops()["TCP_REQQFULL_DROP"] > flood.sent - (BACKLOG + 1)
    lab.clock.advance(80 * SECOND)              # the last request dies 63 s after its SYN
    assert lab.server.requests(lab.listener) == []
    assert lab.visit(patience=1)


@pytest.mark.parametrize("cookies", [0, 1])
def test_a_full_accept_queue_is_another_matter(cookies: int) -> None:
    """Facts A3, B6: listen(n) without accept takes n + 1, then SYNs are dropped whatever tcp_syncookies says, and as overflows."""
    lab = Lab(cookies)
    clients = [lab.client.create_connection((SERVER, 80), timeout=1) for _ in range(BACKLOG + 1)]
    lab.clock.advance(lab.clock.now)            # the last ACK is on the cable
    row = lab.server.ss("-ltn")[0]
    assert (row["recvq"], row["sendq"]) == (BACKLOG + 1, BACKLOG)
    assert lab.counts("ListenOverflows", "ListenDrops") == [0, 0]
    assert not lab.visit(patience=0.9)          # one SYN
    assert lab.counts("ListenOverflows", "ListenDrops", "TCPReqQFullDoCookies", "TCPReqQFullDrop") == [1, 1, 0, 0]
    assert lab.server.drops() == {"TCP_LISTEN_OVERFLOW": 1}
    lab.listener.accept()[0].close()
    last = lab.client.create_connection((SERVER, 80), timeout=1)
    assert lab.counts("ListenOverflows", "ListenDrops") == [1, 1]
    for sock in (*clients, last):
        sock.close()


@pytest.mark.parametrize("ack", [1, 0x12345678, 2**32 - 1])
def test_junk_in_the_ack_field_of_a_syn_is_no_matter(ack: int) -> None:
    """hping3 fills the field although the flag is clear; RFC 9293 3.10.7.2 looks at the flag."""
    lab = Lab(1)
    lab.client.stop()
    answers: list[bytes] = []
    lab.server._driver.set_sink(lambda at, packet: answers.append(packet))
    syn = IP(src=CLIENT, dst=SERVER) / TCP(sport=2345, dport=80, seq=99, ack=ack, flags="S", window=512)
    assert lab.server.inject(bytes(syn)) == 0
    tcp = IP(answers[0])[TCP]
    assert (str(tcp.flags), tcp.ack, tcp.dport) == ("SA", 100, 2345)
