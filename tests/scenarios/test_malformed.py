"""Truncated, malformed, mutated and random packets, into connections in every state, with every kind of metadata: nothing crashes,
nothing is left over, and the engine goes on serving.

Two ways: valid frames damaged by a seeded generator (tests/kit/zoo.py), many per seed, and hypothesis, which looks for the smallest packet that
upsets something. Under scripts/sanitize a read past a packet's end is a failure, because every packet is a heap block of its own size.
USTACK_FUZZ=N runs N seeds instead of a few.
"""

from __future__ import annotations

import contextlib
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ustack
from tests.kit.leaks import wind_up
from tests.kit.oracle import decode
from tests.kit.zoo import ACK, MS, PEER, SYN, SYN_OPTIONS, Zoo, ip, reseal, tcp

CSUMS = (0, 1, 2)
GSO_SIZES = (0, 1, 8, 536, 1448, 65535)
SEEDS = int(os.environ.get("USTACK_FUZZ", "6"))
EXPECTED = {
    "idle": "ESTABLISHED", "unread": "ESTABLISHED", "hole": "ESTABLISHED", "in flight": "ESTABLISHED", "no window": "ESTABLISHED",
    "urgent": "ESTABLISHED", "FIN_WAIT1": "FIN_WAIT1", "FIN_WAIT2": "FIN_WAIT2", "FIN_WAIT2 without a user": "time_wait",
    "CLOSING": "CLOSING", "TIME_WAIT": "time_wait", "CLOSE_WAIT": "CLOSE_WAIT", "LAST_ACK": "LAST_ACK", "LISTEN": "none",
    "request": "request", "Fast Open child": "SYN_RECV", "SYN_SENT": "SYN_SENT", "crossed SYNs": "SYN_RECV", "closed port": "none",
}


def exact(packet: bytes) -> bytearray:
    """A heap block of exactly this size."""
    return bytearray(packet)


def still_serves(zoo: Zoo) -> None:
    """A new client is answered, whatever came before."""
    fresh = ustack._fastpath.pool_usage(zoo.engine)["requests"]
    zoo.sent.clear()
    zoo.put(tcp(60000, 80, 1, 0, SYN, options=SYN_OPTIONS))
    assert zoo.sent and zoo.sent[-1][33] & (SYN | ACK) == SYN | ACK, (zoo.engine.nstat(), fresh)


def test_every_state_is_there() -> None:
    zoo = Zoo(0)
    assert {name: zoo.state(name) for name in zoo.animals} == EXPECTED


def use(zoo: Zoo) -> None:
    """What an application does meanwhile."""
    r, engine = zoo.random, zoo.engine
    handles = ustack._fastpath.handles(engine)
    with contextlib.suppress(OSError):
        h = r.choice(handles)
        what = r.randrange(8)
        if what < 2:
            engine.recv(h, r.choice([1, 5000]), r.choice([0, 2]))
        elif what < 4:
            engine.send(h, bytes(r.choice([1, 3000, 100_000])), r.choice([0, 0x8000, 1]))
        elif what == 4:
            engine.accept(zoo.listener)
        elif what == 5:
            engine.getsockopt(h, 6, 11, 280)
        elif h != zoo.listener and len(handles) > 12:
            engine.close(h) if what == 6 else engine.shutdown(h, r.randrange(3))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_damaged_frames_in_every_state(seed: int) -> None:
    small = {"send_records": 64, "receive_records": 64, "extensions": 8, "requests": 40, "sockets": 60, "time_wait": 8}
    zoo = Zoo(seed, limits=small if seed % 3 == 2 else None)
    r = zoo.random
    animals = list(zoo.animals.values())
    for n in range(2500):
        a = r.choice(animals)
        if r.random() < 0.15:
            packet = zoo.error()
        elif r.random() < 0.03:
            packet = r.randbytes(r.choice([0, 1, 19, 20, 21, 39, 40, 60, 1500]))
        else:
            packet = r.choice(list(zoo.frames(a)))
        if r.random() < 0.9:
            packet = zoo.mutate(packet)
        zoo.put(exact(packet), r.choice(CSUMS), r.choice(GSO_SIZES))
        if n % 5 == 0:
            use(zoo)
        if n % 10 == 0:
            zoo.now += r.choice([0, MS, 40 * MS, 200 * MS, 3000 * MS])
            zoo.engine.poll(zoo.now)
            zoo.look()
            for sent in zoo.sent[-3:]:
                decode(sent)
        if a.ack == 0 and r.random() < 0.1:
            animals = list(zoo.animals.values())
    if seed % 3 != 2:
        with contextlib.suppress(OSError):
            while True:
                zoo.engine.close(zoo.engine.accept(zoo.listener)[0])
        zoo.now += 100_000 * MS
        zoo.engine.poll(zoo.now)
        zoo.look()
        still_serves(zoo)


def test_every_frame_cut_at_every_byte_with_every_meta() -> None:
    zoo = Zoo(1)
    for a in list(zoo.animals.values()):
        for frame in (zoo.frame(a, ACK, b"x" * 20), zoo.frame(a, SYN, options=SYN_OPTIONS)):
            for n in range(len(frame)):
                for sealed, csum, gso_size in itertools.product((False, True), CSUMS, (0, 1, 1448)):
                    cut = frame[:n]
                    if sealed and n >= 20:          # the header tells the length that is there
                        cut = reseal(cut[:2] + n.to_bytes(2, "big") + cut[4:])
                    reason = zoo.put(exact(cut), csum, gso_size)
                    assert reason or n >= 40, "a packet without a whole TCP header was taken"
        zoo.now += 1000 * MS
        zoo.engine.poll(zoo.now)
        zoo.look()
    still_serves(zoo)


@pytest.mark.parametrize("size", [20, 40, 1500, 9000, 65535, 65536, 70000, 200000])
@pytest.mark.parametrize("gso_size", GSO_SIZES)
def test_any_size(size: int, gso_size: int) -> None:
    """IPv4 says its length in 16 bits; a device may hand over what it likes."""
    zoo = Zoo(2)
    a = zoo.animals["idle"]
    packet = zoo.frame(a, ACK, bytes(size - 52) if size > 52 else b"")[:size]
    for csum in CSUMS:
        zoo.put(exact(packet), csum, gso_size)
        zoo.put(exact(reseal(packet[:2] + b"\xff\xff" + packet[4:])), csum, gso_size)
    still_serves(zoo)


META = {"csum": st.sampled_from(CSUMS), "gso_size": st.sampled_from(GSO_SIZES) | st.integers(0, 65535)}


@settings(max_examples=300, deadline=None)
@given(packet=st.binary(max_size=120), sealed=st.booleans(), **META)
def test_no_bytes_at_all_upset_the_engine(packet: bytes, sealed: bool, csum: int, gso_size: int) -> None:
    engine = ustack.Engine("192.0.2.1/24")
    engine.receive(exact(reseal(packet) if sealed else packet), 0, csum, gso_size)
    wind_up(engine)


@settings(max_examples=200, deadline=None)
@given(which=st.integers(0, 10**6), kind=st.integers(0, 14), edits=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=6),
       cut=st.integers(0, 90) | st.none(), sealed=st.booleans(), **META)
def test_no_edit_of_a_frame_upsets_a_connection(which: int, kind: int, edits: list[tuple[int, int]], cut: int | None, sealed: bool,
                                                csum: int, gso_size: int) -> None:
    zoo = Zoo(3)
    animals = list(zoo.animals.values())
    packet = bytearray(list(zoo.frames(animals[which % len(animals)]))[kind][:cut])
    for at, value in edits:
        if at < len(packet):
            packet[at] = value
    zoo.put(exact(reseal(bytes(packet)) if sealed else bytes(packet)), csum, gso_size)
    still_serves(zoo)
    wind_up(zoo.engine)


@settings(max_examples=200, deadline=None)
@given(proto=st.sampled_from([1, 2, 6, 17]) | st.integers(0, 255), payload=st.binary(max_size=80), options=st.binary(max_size=40),
       frag=st.integers(0, 65535), src=st.sampled_from([PEER, 0, 0xFFFFFFFF, 0x7F000001, 0xE0000001, 0xC0000201, 0xC00002FF]), **META)
def test_no_protocol_and_no_options_upset_the_engine(proto: int, payload: bytes, options: bytes, frag: int, src: int, csum: int,
                                                     gso_size: int) -> None:
    engine = ustack.Engine("192.0.2.1/24")
    options += bytes(-len(options) % 4)
    for _ in range(2):
        engine.receive(exact(ip(payload, proto, src=src, frag=frag, options=options)), 0, csum, gso_size)
    for _, packet in engine.transmit():
        decode(packet)
    wind_up(engine)
