"""Timers that stay in their slots when they are stopped or put off (an engine thread's) send the same packets at the same times."""

import pytest

from tests.kit.pair import MS, Pair, Path, Stream

SEC = 1000 * MS


class Watched(Pair):
    """Keeps what was sent, and when."""

    def __init__(self, *args, **options):
        self.seen = []
        super().__init__(*args, **options)

    def _put(self, to, packet):
        self.seen.append((self.now, to, packet))
        super()._put(to, packet)


def advance(pair, until):
    """All that happens up to that time, and the time itself: what the program does falls on the same times whatever steps lie between."""
    while True:
        pair.flush()
        times = [t for t in (engine.next_timeout() for engine in pair.engines) if t is not None] + [entry[0] for entry in pair.wire[:1]]
        if not times or min(times) > until:
            break
        pair.step()
    pair.now = until
    for engine in pair.engines:
        engine.poll(until)


def talk(seed, path, lazy):
    """Single bytes with pauses in which delayed ACKs and loss probes are due, both ways at once with slow readers, the end."""
    pair = Watched(seed, path, lazy_timers=lazy)
    client, server = pair.connect()
    now = 10 * SEC
    advance(pair, now)
    for round_ in range(4):
        here, there = round_ % 2, 1 - round_ % 2
        pair.engines[here].send((client, server)[here], b"?")
        now += 5 * SEC
        advance(pair, now)
        assert pair.engines[there].recv((client, server)[there], 10) == b"?"
    streams = [Stream(pair, (0, client), (1, server), 60_000, seed), Stream(pair, (1, server), (0, client), 90_000, seed + 1)]
    while not all(stream.eof for stream in streams):
        assert now < 1000 * SEC
        for stream in streams:
            stream.write()
            stream.read()
        now += 7 * MS
        advance(pair, now)
    for engine, handle in zip(pair.engines, (client, server), strict=True):
        engine.close(handle)
    advance(pair, now + 300 * SEC)
    assert [engine.next_timeout() for engine in pair.engines] == [None, None]
    return pair.seen


PATHS = {"clean": Path(), "lossy": Path(loss=0.05, duplicate=0.02), "reordering": Path(delay=20 * MS, jitter=30 * MS, loss=0.02)}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_packets_at_the_same_times(path, seed):
    exact = talk(seed, PATHS[path], lazy=False)
    assert len(exact) > 100
    assert talk(seed, PATHS[path], lazy=True) == exact


def test_an_idle_connection_has_no_timer_left():
    """What stays in the wheel after the last ACK is gone when its time has come."""
    pair = Pair(1, lazy_timers=True)
    client, server = pair.connect()
    pair.engines[0].send(client, b"x")
    pair.run(pair.now + 20 * MS)
    assert pair.engines[1].recv(server, 10) == b"x"
    pair.run(pair.now + SEC)
    assert [engine.next_timeout() for engine in pair.engines] == [None, None]
