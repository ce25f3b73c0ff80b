"""The receive path of one connection: whatever arrives, in any order, cut and repeated at will, comes out as the
stream it was, and the queue's invariants hold after every step."""

import random
from itertools import pairwise

import pytest

from .door import ct

FIN = 0x01
PSH = 0x08
ACK = 0x10
URG = 0x20
PEEK = 0x02
TRUNC = 0x20
EAGAIN = -11
MS = 1_000_000


def stream(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


def drain(bed, sizes=(65536,)) -> bytes:
    out = b""
    i = 0
    while True:
        got = bed.recv(sizes[i % len(sizes)])
        bed.check()
        if isinstance(got, int) or got == b"":
            return out
        out += got
        i += 1


def test_in_order_bytes_merge_into_the_last_record() -> None:
    bed = ct.RcvBed()
    data = stream(120)
    for i in range(4):
        assert bed.segment(1 + 30 * i, data[30 * i: 30 * i + 30]) == 0
        bed.check()
    # 70 bytes of frame leave room for 122 more at no cost
    assert bed.queue(False) == [(1, 121, 832)]
    assert bed.mib(b"TcpExtTCPRcvCoalesce") == 3
    assert bed.recv(7) + bed.recv(1000) == data
    bed.check()
    assert bed.vars()["ring"] == 0 and bed.mem_pages() == 0


@pytest.mark.parametrize(("payload", "truesize"), [(100, 832), (600, 1280), (1460, 2304)])
def test_truesize_by_frame_length(payload: int, truesize: int) -> None:
    bed = ct.RcvBed()
    bed.segment(1, bytes(payload))
    assert bed.queue(False) == [(1, 1 + payload, truesize)]
    bed.check()


def test_a_merged_frame_counts_pages() -> None:
    bed = ct.RcvBed()
    bed.segment(1, bytes(14480), gso=1448)
    # head page 4352, then (14520 - 3712) bytes in pages
    assert bed.queue(False) == [(1, 14481, 4352 + 3 * 4096)]
    assert bed.vars()["rcv_mss"] == 1448
    bed.check()


def test_header_prediction_needs_a_reserve() -> None:
    bed = ct.RcvBed()
    data = stream(1460 * 4)
    hits = []
    for i in range(4):
        bed.segment(1 + 1460 * i, data[1460 * i: 1460 * (i + 1)])
        hits.append(bed.mib(b"TcpExtTCPHPHits"))
    # pages of 4096 for records of 2304: what is left over covers a whole record first at the third
    assert hits == [0, 0, 1, 1]
    bed.check()


@pytest.mark.parametrize("seed", range(40))
def test_any_order_gives_the_stream(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice((200, 3000, 30000))
    data = stream(n, seed)
    bed = ct.RcvBed(sack=rng.random() < 0.8, rcvbuf=rng.choice((0, 0, 200000)))
    cuts = sorted({0, n, *(rng.randrange(n) for _ in range(rng.choice((3, 20, 60))))})
    pieces = list(pairwise(cuts))
    again = [rng.randrange(n) for _ in pieces]
    pieces += [(a, min(n, a + rng.randrange(1, 1 + n // 3))) for a in again]
    got = b""
    for _ in range(12):
        rng.shuffle(pieces)
        for a, b in pieces:
            while a < b:
                step = min(b - a, 1460)
                end = a + step == n
                bed.segment(1 + a, data[a:a + step], flags=ACK | PSH | (FIN if end else 0))
                bed.check()
                a += step
            if rng.random() < 0.2:
                some = bed.recv(rng.choice((1, 10, 5000)), rng.choice((0, 0, 0, PEEK)) and 0)
                got += some if isinstance(some, bytes) else b""
                bed.check()
            if rng.random() < 0.1:
                bed.advance(rng.randrange(60 * MS))
        got += drain(bed, (1, 700, 65536))
        if bed.vars()["rcv_nxt"] == n + 2:
            break
    assert got == data
    assert bed.recv(10) == b""
    assert bed.vars() | {"rmem_alloc": 0, "ring": 0, "fwd_alloc": 0} == bed.vars()
    assert bed.mem_pages() == 0


@pytest.mark.parametrize("seed", range(10))
def test_many_tiny_holes(seed: int) -> None:
    """More segments than Linux's rb-tree would like: order, pruning and collapsing keep the stream."""
    rng = random.Random(seed)
    n = 4000
    data = stream(n, seed)
    bed = ct.RcvBed(rcvbuf=rng.choice((20000, 60000, 400000)))
    order = list(range(1, n, 2))
    rng.shuffle(order)
    for a in order:
        bed.segment(1 + a, data[a:a + 1])
        if rng.random() < 0.02:
            bed.check()
            bed.sent()
    bed.check()
    got = b""
    for a in range(n):
        bed.segment(1 + a, data[a:a + 1])
        if a % 200 == 0:
            more = bed.recv(100000)
            got += more if isinstance(more, bytes) else b""
            bed.check()
            bed.sent()
    for _ in range(3):
        got += drain(bed)
        for a in range(len(got), n, 100):
            bed.segment(1 + a, data[a:a + 100])
    assert got + drain(bed) == data


def test_over_budget_collapses_waste_before_it_drops() -> None:
    """A peer that sends single bytes out of order pays 832 bytes of memory for each."""
    bed = ct.RcvBed(rcvbuf=40000)
    data = stream(3000)
    for a in range(2, 500):
        bed.segment(1 + a, data[a:a + 1], gso=0)
    bed.check()
    v = bed.vars()
    assert v["rmem_alloc"] <= v["rcvbuf"] + 2304
    bed.segment(1, data[:2])
    bed.check()
    assert drain(bed) == data[:bed.vars()["rcv_nxt"] - 1]


def test_collapsing_keeps_bytes_and_saves_memory() -> None:
    bed = ct.RcvBed(rcvbuf=20000)
    data = stream(8000)
    a = 0
    # 10 bytes at a time: a record of 832 holds no more than 152
    while bed.mib(b"TcpExtTCPRcvCollapsed") == 0 and a < 7990:
        before = bed.vars()["rmem_alloc"]
        assert bed.segment(1 + a, data[a:a + 10]) == 0
        bed.check()
        a += 10
    assert bed.mib(b"TcpExtPruneCalled") == 1 and bed.mib(b"TcpExtTCPRcvCollapsed") >= 25
    assert bed.vars()["rmem_alloc"] < before // 3
    assert bed.recv(5) == data[:5]
    assert drain(bed) == data[5:a]


def test_read_flags() -> None:
    bed = ct.RcvBed()
    bed.segment(1, b"abcdefgh")
    assert bed.recv(3, PEEK) == b"abc"
    assert bed.recv(3, PEEK) == b"abc"
    assert len(bed.recv(2, TRUNC)) == 2
    assert bed.recv(0) == b""
    assert bed.recv(100) == b"cdefgh"
    assert bed.recv(1) == EAGAIN
    bed.check()


def test_urgent_byte_leaves_the_stream() -> None:
    bed = ct.RcvBed()
    bed.segment(1, b"hello", flags=ACK | URG, urg=3)
    assert bed.recv(100) == b"he"
    assert bed.recv(1, 1) == b"l"
    assert bed.recv(1, 1) == -22
    assert bed.recv(100) == b"lo"
    bed.segment(6, b"x", flags=ACK | URG, urg=1)
    assert bed.recv(1, 1) == b"x"
    bed.segment(7, b"yz")
    assert bed.recv(100) == b"yz"
    bed.check()
    assert bed.vars()["urg_state"] == 0


def test_sack_blocks_most_recent_first() -> None:
    bed = ct.RcvBed()
    for a in (10, 30, 50, 70, 90):
        bed.segment(a, b"12345")
    assert bed.sacks() == [(90, 95), (70, 75), (50, 55), (30, 35)]
    bed.segment(35, b"12345")
    assert bed.sacks() == [(30, 40), (90, 95), (70, 75), (50, 55)]
    bed.segment(40, bytes(10))
    assert bed.sacks() == [(30, 55), (90, 95), (70, 75)]
    bed.segment(1, bytes(9))
    assert bed.vars()["rcv_nxt"] == 15 and bed.sacks() == [(30, 55), (90, 95), (70, 75)]
    bed.check()


def test_sequence_numbers_may_wrap() -> None:
    """The ring and the tree compare circularly; the peer's ISN lies just below the wrap."""
    bed = ct.RcvBed()
    data = stream(60000)
    base = 2**32 - 20000          # relative to the peer's ISN this is far outside: everything is refused
    assert bed.segment(base, b"x") != 0
    for a in range(0, 60000, 1000):
        bed.segment(1 + a, data[a:a + 1000])
    assert drain(bed) == data[:bed.vars()["rcv_nxt"] - 1]


def test_orphan_gets_reset_and_leaves_nothing() -> None:
    bed = ct.RcvBed()
    bed.segment(1, b"unread")
    bed.segment(20, b"beyond a hole")
    bed.close()
    assert bed.mem_pages() == 0
    assert bed.segment(7, b"more") != 0
