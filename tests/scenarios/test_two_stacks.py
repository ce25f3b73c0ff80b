"""Two engines over a bad path: what one writes the other reads, whatever the options; nothing is left over."""

from __future__ import annotations

import random

import pytest

from tests.kit.pair import MS, Pair, Path, Stream
from ustack._fastpath import dump

SOL_SOCKET, SO_SNDBUF, SO_RCVBUF, SO_MAX_PACING_RATE, SO_MEMINFO = 1, 7, 8, 47, 55
IPPROTO_TCP, TCP_NODELAY = 6, 1


def bad_path(rng: random.Random) -> Path:
    return Path(
        delay=rng.choice((0, 1, 5, 50)) * MS,
        jitter=rng.choice((0, 0, 3, 30)) * MS,
        loss=rng.choice((0, 0, 0.01, 0.1, 0.2)),
        duplicate=rng.choice((0, 0, 0.05)),
        corrupt=rng.choice((0, 0, 0.02)),
        mtu=rng.choice((1500, 1500, 576, 9000, 296)),
    )


def settings(rng: random.Random, path: Path) -> dict[str, object]:
    return {
        "net.ipv4.tcp_sack": rng.choice((1, 1, 0)),
        "net.ipv4.tcp_timestamps": rng.choice((1, 1, 0)),
        "net.ipv4.tcp_window_scaling": rng.choice((1, 1, 0)),
        "net.ipv4.tcp_congestion_control": rng.choice(("cubic", "reno", "bbr")),
        "net.ipv4.tcp_ecn": rng.choice((2, 1)),
        # with much loss it would take the path for a black hole and come down to 48 bytes a segment
        "net.ipv4.tcp_mtu_probing": rng.choice((0, 1, 2)) if path.loss < 0.1 else 0,
        "net.ipv4.tcp_thin_linear_timeouts": rng.choice((0, 1)),
        "net.ipv4.tcp_notsent_lowat": rng.choice((4294967295, 16384)),
        "net.ipv4.tcp_syn_retries": 20,
        "net.ipv4.tcp_synack_retries": 20,
        "net.ipv4.tcp_retries2": 40,
    }


def tune(rng: random.Random, pair: Pair, ends: list[tuple[int, int]]) -> None:
    for i, handle in ends:
        engine = pair.engines[i]
        if rng.random() < 0.3:
            engine.setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, 1)
        if rng.random() < 0.2:
            engine.setsockopt(handle, SOL_SOCKET, SO_SNDBUF, rng.choice((2000, 20000)))
        if rng.random() < 0.2:
            engine.setsockopt(handle, SOL_SOCKET, SO_RCVBUF, rng.choice((2000, 20000)))
        if rng.random() < 0.1:
            engine.setsockopt(handle, SOL_SOCKET, SO_MAX_PACING_RATE, rng.choice((50000, 5000000)))


def drive(pair: Pair, streams: list[Stream]) -> None:
    """Until both directions are read to their ends."""

    def progress() -> list[tuple[int, int, bool]]:
        return [(s.at, s.got, s.eof) for s in streams]

    while not all(s.eof for s in streams):
        for s in streams:
            s.write()
            s.read()
        pair.flush()
        before = progress()
        if pair.step():
            continue
        for s in streams * 50:  # a reader stops now and then with data left
            s.write()
            s.read()
        assert progress() != before, f"stuck at {pair.now / 1e9} s: {before}"


@pytest.mark.parametrize("seed", range(24))
def test_what_is_written_is_read(seed: int) -> None:
    rng = random.Random(seed)
    path = bad_path(rng)
    pair = Pair(seed, path, settings(rng, path))
    client, server = pair.connect(limit=600_000 * MS)
    ends = [(0, client), (1, server)]
    tune(rng, pair, ends)
    streams = [
        Stream(pair, ends[0], ends[1], rng.choice((10, 1000, 60000)), seed * 2 + 1),
        Stream(pair, ends[1], ends[0], rng.choice((10, 1000, 60000)), seed * 2),
    ]
    drive(pair, streams)
    for i, handle in ends:
        pair.engines[i].close(handle)
    pair.run(pair.now + 300_000 * MS)
    for engine in pair.engines:
        assert not dump(engine), "records are left over"
        assert engine.nstat().get("TcpCurrEstab", 0) == 0
