"""Random segments, calls and time at one connection: nothing breaks, whatever the state (run it under the sanitizers)."""

import random

import pytest

from .door import ct

MS = 1_000_000
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))
USUAL = (ACK, ACK, ACK, ACK | PSH, ACK | PSH, ACK | FIN, ACK | URG)
RARE = (0, SYN, RST, FIN, SYN | ACK, RST | ACK, SYN | FIN, ACK | ECE, ACK | CWR, 0xFF)
TS_OPT = b"\x01\x01\x08\x0a"


def some_segment(rng: random.Random, bed, closed: bool, last: dict) -> None:
    v = last if closed else bed.vars()
    last.update(v)
    seq = v["rcv_nxt"] + rng.choice((0, 0, 0, 0, -1, 1, -50, 50, 1460, v["rcv_wnd"], v["rcv_wnd"] + 1, 70000))
    snd_nxt = last["snd_nxt"] if closed else bed.snd_nxt()
    last["snd_nxt"] = snd_nxt
    ack = snd_nxt + rng.choice((0, 0, 0, -1, 1, -100, 100000, -100000))
    flags = rng.choice(USUAL if rng.random() < 0.9 else RARE)
    size = rng.choice((0, 0, 1, 10, 200, 1460))
    opts = b"" if rng.random() < 0.9 else rng.randbytes(4 * rng.randrange(1, 10))
    gso = 0
    if size == 1460 and rng.random() < 0.1:
        size, gso = 8760, 1460
    bed.segment(seq % 2**32, bytes(size), flags=flags, ack=ack % 2**32, urg=rng.choice((0, 1, 5, 2000)), opts=opts,
                gso=gso, wnd=rng.choice((0, 1, 500, 65535)))


@pytest.mark.parametrize("seed", range(60))
def test_anything(seed: int) -> None:
    rng = random.Random(seed)
    bed = ct.RcvBed(rcvbuf=rng.choice((0, 0, 4000, 30000)), sack=rng.random() < 0.7, wscale=rng.random() < 0.7,
                    shrink_window=rng.random() < 0.3, stdurg=rng.random() < 0.3)
    closed = False
    last: dict = {}
    for _ in range(400):
        act = rng.random()
        if closed or act < 0.75:
            some_segment(rng, bed, closed, last)
        elif act < 0.83:
            bed.recv(rng.choice((0, 1, 100, 5000)), rng.choice((0, 0, 0, 1, 2, 0x20)))
        elif act < 0.89:
            bed.send(bytes(rng.choice((1, 100, 5000))))
        elif act < 0.90:
            bed.shutdown(rng.randrange(3))
        elif act < 0.905:
            last.update(bed.vars(), snd_nxt=bed.snd_nxt())
            bed.close()
            closed = True
        if rng.random() < 0.2:
            bed.advance(rng.choice((1, 40, 250, 5000, 70000)) * MS)
        bed.check()
        if rng.random() < 0.3:
            bed.sent()
    if not closed:
        bed.close()
    bed.stop()
    bed.sent()
    for _ in range(20):
        bed.advance(400_000 * MS)
    bed.sent()
    assert bed.mem_pages() == 0
    assert bed.sockets() == 0
