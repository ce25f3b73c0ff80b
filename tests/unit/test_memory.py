"""What a connection costs in memory: sizes of the records, which of them an ordinary connection takes, and that buffers come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ustack
from tests.kit.pair import Pair
from tests.kit.pair import Path as Wire
from ustack import _fastpath

TOP = Path(__file__).parents[2]
MS = 1_000_000
RARE = ("socket_options", "socket_losses", "congestion", "extensions")


def used(engine: ustack.Engine) -> dict[str, int]:
    return {name: n for name, n in _fastpath.pool_usage(engine).items() if n}


def send_all(pair: Pair, src: int, handle: int, dst: int, peer: int, data: bytes) -> None:
    """Data over one direction, read to the end."""
    at, got = 0, bytearray()

    def step() -> bool:
        nonlocal at
        while at < len(data):
            try:
                at += pair.engines[src].send(handle, data[at:])
            except BlockingIOError:
                break
        try:
            while True:
                got.extend(pair.engines[dst].recv(peer, 65536))
        except BlockingIOError:
            pass
        return len(got) == len(data)

    assert pair.run(pair.now + 60_000 * MS, step)
    assert got == data
    pair.run(pair.now + 1000 * MS)


def test_sizes() -> None:
    strides = _fastpath.pool_strides(ustack.Engine("192.0.2.1/24"))
    assert strides["sockets"] % 64 == 0, "slots begin on cache lines"
    assert strides["sockets"] + strides["hash_bucket"] <= 840
    assert strides["sockets"] + strides["socket_losses"] < 1280, "even after losses"
    assert strides["requests"] + strides["hash_bucket"] <= 96
    assert strides["time_wait"] <= 128


def test_an_ordinary_connection_is_one_record() -> None:
    pair = Pair(1)
    client, server = pair.connect()
    send_all(pair, 0, client, 1, server, b"q" * 10_000)
    send_all(pair, 1, server, 0, client, b"a" * 10_000)
    assert used(pair.engines[0]).keys() <= {"sockets", "bind"}
    assert used(pair.engines[1]).keys() <= {"sockets", "bind"}


def test_losses_and_options_take_records_and_give_them_back() -> None:
    pair = Pair(2, Wire(loss=0.1, jitter=3 * MS), {"net.ipv4.tcp_congestion_control": "bbr"})
    a, b = pair.engines
    client, server = pair.connect()
    a.setsockopt(client, 1, 13, b"\1\0\0\0\5\0\0\0")                  # SO_LINGER
    send_all(pair, 0, client, 1, server, bytes(300_000))
    assert used(a)["socket_losses"] == used(b)["socket_losses"] == used(a)["socket_options"] == 1
    assert used(a)["congestion"] == 1
    a.setsockopt(client, 6, 13, b"cubic")
    assert "congestion" not in used(a)
    assert a.getsockopt(client, 1, 55, 36)[32:] != bytes(4)            # SO_MEMINFO: it has discarded segments, and
    a.disconnect(client)
    assert used(a)["socket_losses"] == 1                                # sk_drops is of the socket, not of the connection
    assert a.getsockopt(client, 1, 13, 8) == b"\1\0\0\0\5\0\0\0", "options stay"
    for engine, handle in ((a, client), (b, server)):
        engine.close(handle)
    pair.run(pair.now + 300_000 * MS)
    assert not used(a) and not used(b)


def test_options_of_a_listener_go_to_its_children_only_if_set() -> None:
    for option in (None, (6, 18, 7000)):                                # TCP_USER_TIMEOUT
        a, b = (ustack.Engine(f"192.0.2.{i}/24", seed=i) for i in (1, 2))
        listener = b.socket()
        b.bind(listener, "192.0.2.2", 80)
        if option:
            b.setsockopt(listener, *option)
        b.setsockopt(listener, 6, 23, 5)                                # TCP_FASTOPEN: the listener's own affair
        b.listen(listener, 5)
        client = a.socket()
        with pytest.raises(BlockingIOError):
            a.connect(client, "192.0.2.2", 80)
        for _ in range(2):
            for src, dst in ((a, b), (b, a)):
                for _, packet in src.transmit():
                    dst.receive(packet, 0)
        child = b.accept(listener)[0]
        assert int.from_bytes(b.getsockopt(child, 6, 18), "little") == (7000 if option else 0)
        assert used(b)["socket_options"] == (2 if option else 1)
        for engine, handle in ((a, client), (b, child), (b, listener)):
            engine.close(handle)


def test_buffers_grow_and_shrink() -> None:
    pair = Pair(3, Wire(delay=20 * MS))
    a, b = pair.engines
    client, server = pair.connect()
    assert _fastpath.buffer_bytes(a) == _fastpath.buffer_bytes(b) == 0
    a.send(client, bytes(200_000))
    assert _fastpath.buffer_bytes(a) >= 65536
    pair.run(pair.now + 1000 * MS)
    assert _fastpath.buffer_bytes(a) == 0, "all is acknowledged"
    assert _fastpath.buffer_bytes(b) >= 65536, "nobody has read"
    while len(b.recv(server, 65536)) == 65536:
        pass
    assert _fastpath.buffer_bytes(b) == 0
    a.close(client)
    b.close(server)


def test_small_buffers_stay_with_the_few_sockets_used_last() -> None:
    pair = Pair(4)
    a, b = pair.engines
    listener = b.socket()
    b.bind(listener, "192.0.2.2", 81)
    b.listen(listener, 300)
    handles = []
    for _ in range(300):
        client = a.socket()
        with pytest.raises(BlockingIOError):
            a.connect(client, "192.0.2.2", 81)
        pair.run(pair.now + 100 * MS)
        server = b.accept(listener)[0]
        handles.append((client, server))
        a.send(client, b"x" * 3000)
        pair.run(pair.now + 100 * MS)
        assert len(b.recv(server, 5000)) == 3000
    assert 4096 <= _fastpath.buffer_bytes(a) <= 1 << 19
    assert 4096 <= _fastpath.buffer_bytes(b) <= 1 << 19
    for client, server in handles:
        a.close(client)
        b.close(server)
    b.close(listener)
    pair.run(pair.now + 300_000 * MS)
    assert _fastpath.buffer_bytes(a) == _fastpath.buffer_bytes(b) == 0


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's shadow is resident too")
def test_the_resident_set() -> None:
    """As the system sees it. The half-open entries are just so many that the hash table has spread over all its buckets."""
    script = TOP / "scripts" / "bench" / "memory"
    run = subprocess.run([sys.executable, str(script), "--json", "--half-open", "140000"], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    assert result["half_open_bytes"] <= 100, "entries, and the whole table just spread"
    assert result["established_bytes"] < 1024
    assert result["after_echo_bytes"] < 1024
    assert result["burst_mb"] > 60 and result["after_burst_mb"] < 40, "at most 32 MB wait to be given back"
