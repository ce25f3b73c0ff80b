"""Reassembly (facts N7, N8)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, Raw, raw  # type: ignore[attr-defined]

from tests.kit.testbed import Testbed

PEER, SERVER = "192.0.2.2", "192.0.2.1"
SECOND = 1_000_000_000


@pytest.fixture
def bed() -> Iterator[Testbed]:
    t = Testbed()
    yield t
    t.stack.close()


def counters(bed: Testbed) -> dict[str, int]:
    """Reasm* and Frag* so far."""
    return {k: v for k, v in bed.stack.nstat().items() if "Reasm" in k or "Frag" in k}


def echo(size: int = 3000, ident: int = 7, **kw: Any) -> bytes:
    return raw(IP(src=PEER, dst=SERVER, id=ident, **kw) / ICMP(type=8, id=1) / Raw(random.Random(size).randbytes(size)))


def piece(packet: bytes, start: int, end: int | None = None, more: bool | None = None, **kw: Any) -> bytes:
    """Payload bytes start..end of a packet as a fragment; more: the MF bit, by default true but at the end."""
    whole = IP(packet)
    payload = packet[20:]
    data = payload[start:end]
    last = end is None or end >= len(payload)
    flags = ("MF" if (not last if more is None else more) else "") + ("+DF" if kw.pop("df", False) else "")
    return raw(
        IP(src=whole.src, dst=whole.dst, id=whole.id, proto=whole.proto, frag=start // 8, flags=flags.strip("+") or 0, **kw)
        / Raw(data)
    )


def cut(packet: bytes, *at: int) -> list[bytes]:
    edges = [0, *at, len(packet) - 20]
    return [piece(packet, a, b) for a, b in itertools.pairwise(edges)]


def answers(bed: Testbed) -> list[bytes]:
    """Echo replies that came out, each put together from its fragments."""
    parts: dict[int, dict[int, bytes]] = {}
    for _, packet in bed.stack.take():
        p = IP(packet)
        parts.setdefault(p.id, {})[p.frag * 8] = packet[20:]
    return [b"".join(v[k] for k in sorted(v)) for v in parts.values()]


def test_in_order(bed: Testbed) -> None:
    request = echo()
    reasons = [bed.inject(p) for p in cut(request, 1480, 2960)]
    assert reasons == [0, 0, 0]
    (reply,) = answers(bed)
    assert reply[8:] == request[28:]
    assert counters(bed) == {"IpReasmReqds": 3, "IpReasmOKs": 1, "IpFragOKs": 1, "IpFragCreates": 3}


@pytest.mark.parametrize("seed", range(20))
def test_any_order_any_cut(bed: Testbed, seed: int) -> None:
    r = random.Random(seed)
    size = r.choice([9, 100, 1500, 9000, 65000])
    request = echo(size)
    n = r.randrange(1, 40)
    pieces = cut(request, *sorted({8 * r.randrange(1, (size + 8) // 8 + 1) for _ in range(n)} - {size + 8}))
    r.shuffle(pieces)
    for p in pieces:
        bed.inject(p)
    (reply,) = answers(bed)
    assert reply[8:] == request[28:]


def test_a_syn_in_eight_byte_pieces(bed: Testbed) -> None:
    syn = raw(IP(src=PEER, dst=SERVER, id=9) / TCP(sport=1000, dport=80, flags="S", options=[("MSS", 1460)]))
    for p in cut(syn, 8, 16):
        bed.inject(p)
    ((_, out),) = bed.stack.take()
    assert IP(out)[TCP].flags == "SA"
    assert bed.stack.nstat()["TcpInSegs"] == 1


def test_duplicates_are_ignored(bed: Testbed) -> None:
    request = echo(100)
    first, last = cut(request, 64)
    for p in (first, first, last):
        bed.inject(p)
    assert len(answers(bed)) == 1
    assert bed.stack.drops() == {"DUP_FRAG": 1}
    assert counters(bed) == {"IpReasmReqds": 3, "IpReasmOKs": 1}


def test_a_part_of_a_run_is_a_duplicate_too(bed: Testbed) -> None:
    request = echo(200)
    for p in (piece(request, 0, 64), piece(request, 64, 128), piece(request, 32, 96), piece(request, 128)):
        bed.inject(p)
    assert len(answers(bed)) == 1
    assert bed.stack.drops() == {"DUP_FRAG": 1}


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 64), (56, 128)],
        [(64, 128), (0, 72)],
        [(64, 128), (56, 136)],
        [(0, 64), (64, 128), (120, 136)],
        [(0, 64), (128, 192), (56, 136)],
    ],
)
def test_overlaps_kill_the_datagram(bed: Testbed, spans: list[tuple[int, int]]) -> None:
    request = echo(200)
    for a, b in spans:
        bed.inject(piece(request, a, b))
    assert counters(bed) == {"IpReasmReqds": len(spans), "IpReasmFails": 1, "IpExtReasmOverlaps": 1}
    assert bed.stack.drops() == {"FRAG_OVERLAP": len(spans)}, "what had been kept goes for the same reason"
    assert bed.stack.next_timeout() is None
    for p in cut(request, 64):      # the datagram can be sent again
        bed.inject(p)
    assert len(answers(bed)) == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [(8, 64, False), (64, 128, True)],      # beyond the end
        [(8, 64, False), (16, 32, False)],      # another end
        [(64, 128, True), (8, 64, False)],      # the end before what is there
        [(0, 0, True)],                         # nothing
        [(0, 7, True)],                         # less than the unit
    ],
)
def test_contradictions_kill_the_datagram(bed: Testbed, pieces: list[tuple[int, int, bool]]) -> None:
    request = echo(200)
    for a, b, more in pieces:
        bed.inject(piece(request, a, b, more))
    assert counters(bed) == {"IpReasmReqds": len(pieces), "IpReasmFails": 1}
    assert bed.stack.next_timeout() is None


def test_odd_length_is_cut_to_the_unit(bed: Testbed) -> None:
    request = echo(100)
    bed.inject(piece(request, 0, 70, True))
    bed.inject(piece(request, 72))
    assert answers(bed) == []
    bed.inject(piece(request, 64, 72))
    assert len(answers(bed)) == 1


def test_beyond_64_kib(bed: Testbed) -> None:
    request = echo(200)
    bed.inject(piece(request, 0, 64))
    whole = IP(request)
    bed.inject(raw(IP(src=whole.src, dst=whole.dst, id=whole.id, proto=1, frag=8189) / Raw(b"x" * 100)))
    assert "IpReasmFails" not in counters(bed)          # kept: only the whole is too long, and not yet there
    bed.inject(piece(request, 64))
    assert counters(bed)["IpReasmFails"] == 1           # another end than the one that came first
    assert answers(bed) == []


def test_key_is_source_destination_id_protocol(bed: Testbed) -> None:
    request = echo(100)
    first, last = cut(request, 64)
    bed.inject(first)
    other = IP(last)
    for change in ({"src": "192.0.2.3"}, {"id": 8}, {"proto": 17}):
        changed = other.copy()
        for k, v in change.items():
            setattr(changed, k, v)
        del changed.chksum
        bed.inject(raw(changed))
    assert answers(bed) == []
    bed.inject(last)
    assert len(answers(bed)) == 1


@pytest.mark.parametrize("with_first", [True, False])
def test_timeout(bed: Testbed, with_first: bool) -> None:
    request = echo(1000)
    fragment = piece(request, 0, 512) if with_first else piece(request, 512)
    bed.inject(fragment)
    assert bed.stack.run_until(30 * SECOND - 1) == []
    out = bed.stack.run_until(30 * SECOND)
    assert counters(bed) == {"IpReasmReqds": 1, "IpReasmFails": 1, "IpReasmTimeout": 1}
    if not with_first:
        assert out == []
        return
    ((at, answer),) = out
    assert at == 30 * SECOND
    assert (answer[20], answer[21]) == (11, 1)
    assert answer[28:] == fragment


@pytest.mark.parametrize(
    ("tos", "sum_"),
    [((2, 2, 2), 2), ((2, 3, 2), 3), ((1, 3, 3), 3), ((3, 3, 3), 3), ((2, 1, 2), 2), ((0, 2, 2), None), ((0, 0, 3), None)],
)
def test_ecn_of_the_pieces(bed: Testbed, tos: tuple[int, int, int], sum_: int | None) -> None:
    syn = raw(IP(src=PEER, dst=SERVER, id=9) / TCP(sport=1000, dport=80, flags="S", options=[("MSS", 1460)]))
    for t, (a, b) in zip(tos, [(0, 8), (8, 16), (16, None)], strict=True):
        bed.inject(piece(syn, a, b, tos=t))
    assert (len(bed.stack.take()) == 1) == (sum_ is not None)
    assert counters(bed).get("IpReasmFails", 0) == (sum_ is None)


def test_max_dist(bed: Testbed) -> None:
    """Too many other fragments of the source in between: the id has come round, the old pieces are thrown away."""
    request = echo(100)
    first, last = cut(request, 64)
    bed.inject(first)
    for i in range(64):
        bed.inject(piece(echo(100, ident=100 + i), 0, 64))
    bed.inject(last)
    assert answers(bed) == []
    assert counters(bed)["IpReasmFails"] == 1
    bed.inject(first)
    assert len(answers(bed)) == 1


def test_memory_limit() -> None:
    bed = Testbed(backlog=None, sysctl={"net.ipv4.ipfrag_low_thresh": 0, "net.ipv4.ipfrag_high_thresh": 10000, "net.ipv4.ipfrag_max_dist": 0})
    for i in range(20):
        bed.inject(piece(echo(100, ident=i), 0, 64))
    assert bed.stack.drops()["FRAG_MEMORY"] == 10
    assert counters(bed) == {"IpReasmReqds": 20, "IpReasmFails": 10}
    bed.stack.run_until(31 * SECOND)
    bed.inject(piece(echo(100, ident=50), 0, 64))
    assert bed.stack.drops()["FRAG_MEMORY"] == 10
    bed.stack.close()


def test_more_datagrams_than_slots(bed: Testbed) -> None:
    bed.stack.sysctl["net.ipv4.ipfrag_high_thresh"] = 1 << 30
    first = bytearray(piece(echo(16, ident=0), 0, 8))
    checksum = int.from_bytes(first[10:12], "big")
    for i in range(5000):
        first[4:6] = i.to_bytes(2, "big")
        first[10:12] = ((checksum - i) % 0xFFFF).to_bytes(2, "big")
        assert bed.inject(bytes(first)) in (0, 20)
    assert bed.stack.drops()["FRAG_MEMORY"] == 5000 - 4096
