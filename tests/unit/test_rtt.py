"""RTT and RTO: values recorded from Linux, a model, RFC 6298 as a second opinion; windowed extremes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .door import ct

MS = 1_000_000
SEC = 1_000_000_000


def after_samples(*rtts_us, rto_min_us=200_000):
    """Each sample in a round trip of its own."""
    r = ct.Rtt()
    for i, rtt in enumerate(rtts_us):
        r.sample(rtt, 1000 * i + 1, 1000 * (i + 1), rto_min_us)
    return r


@pytest.mark.parametrize(
    ("rtt_us", "rto_ms"),
    [(0, 200), (1, 204), (144, 204), (155_000, 468), (1_201_000, 3604), (100_000, 300), (66_000, 268)],
)
def test_first_sample(rtt_us, rto_ms):
    """Facts D13: srtt = R, rttvar = R/2, RTO = srtt + max(4 rttvar, 200 ms), rounded up to a 4 ms tick."""
    r = after_samples(rtt_us)
    assert r.state()["srtt_us"] == max(rtt_us * 8, 1)
    assert r.state()["mdev_us"] == rtt_us * 2
    assert r.rto() == rto_ms * MS


def test_ticks_round_up_and_bounds_hold():
    r = after_samples(100_000)
    assert r.rto(tick=1_000_000) == 300 * MS
    assert r.rto(tick=7 * MS) == 301 * MS
    assert r.rto(rto_max=250 * MS) == 250 * MS
    assert after_samples(60_000_000).rto() == 120 * SEC
    assert after_samples(100, rto_min_us=20_000).rto(tick=1, rto_min=20 * MS) == 20_100_000


def test_a_steady_rtt_converges_to_the_floor():
    r = after_samples(*[100_000] * 60)
    state = r.state()
    assert state["srtt_us"] >> 3 == 100_000
    assert state["mdev_us"] < 1000
    assert r.rto() == 300 * MS


def test_variance_rises_at_once_and_falls_slowly():
    quiet = [50_000] * 40
    spike = after_samples(*quiet, 450_000)
    assert spike.rto() >= 500 * MS
    later = after_samples(*quiet, 450_000, *quiet[:4])
    assert 300 * MS < later.rto() < spike.rto()
    assert after_samples(*quiet, 450_000, *quiet, *quiet).rto() == 252 * MS


def test_a_falling_rtt_does_not_raise_the_rto():
    high = [1_000_000] * 60
    assert after_samples(*high, 10_000).rto() <= after_samples(*high).rto() + 4 * MS


def test_within_one_round_trip_the_variance_never_falls():
    r = ct.Rtt()
    r.sample(100_000, 1, 1000)
    r.sample(900_000, 2, 1000)
    peak = r.state()["rttvar_us"]
    for una in range(3, 900, 7):
        r.sample(100_000, una, 1000 + una)
        assert r.state()["rttvar_us"] == peak
    assert r.state()["rtt_seq"] == 1000
    r.sample(100_000, 1001, 5000)
    assert r.state()["rttvar_us"] <= peak
    assert r.state()["rtt_seq"] == 5000


def linux_model(samples, rto_min=200_000):
    """The estimator in exact integers, from the description of its rules."""
    srtt = mdev = mdev_max = rttvar = seq = 0
    for rtt, una, nxt in samples:
        if not srtt:
            srtt, mdev, seq = 8 * rtt, 2 * rtt, nxt
            rttvar = mdev_max = max(mdev, rto_min)
        else:
            err = rtt - srtt // 8
            srtt += err
            gain = abs(err) - mdev // 4
            if err < 0 and gain > 0:
                gain //= 8
            mdev += gain
            if mdev > mdev_max:
                mdev_max = mdev
                rttvar = max(rttvar, mdev)
            if 1 <= (una - seq) % (1 << 32) <= 1 << 31:
                rttvar -= max(rttvar - mdev_max, 0) // 4
                seq, mdev_max = nxt, rto_min
        srtt = max(srtt, 1)
    return {"srtt_us": srtt, "mdev_us": mdev, "mdev_max_us": mdev_max, "rttvar_us": rttvar, "rtt_seq": seq}


steps = st.tuples(st.integers(0, 5_000_000), st.integers(0, 1 << 20), st.integers(0, 1 << 20))


@given(st.lists(steps, max_size=40), st.integers(0, (1 << 32) - 1))
def test_against_the_model(steps, una):
    r, samples = ct.Rtt(), []
    for rtt, acked, flight in steps:
        una = (una + acked) % (1 << 32)
        nxt = (una + flight) % (1 << 32)
        r.sample(rtt, una, nxt)
        samples.append((rtt, una, nxt))
        assert r.rto() >= 200 * MS
    assert not samples or r.state() == linux_model(samples)


def test_close_to_rfc_6298_when_every_sample_is_a_round_trip_and_nothing_is_floored():
    rnd = random.Random(7)
    rtts = [rnd.randint(900_000, 1_100_000) for _ in range(200)]
    srtt, rttvar = rtts[0], rtts[0] / 2
    for rtt in rtts[1:]:
        rttvar += (abs(srtt - rtt) - rttvar) / 4
        srtt += (rtt - srtt) / 8
    r = after_samples(*rtts, rto_min_us=1).state()
    assert abs(r["srtt_us"] / 8 - srtt) < 10
    assert 0.2 * 4 * rttvar < r["rttvar_us"] < 3 * 4 * rttvar


def test_minmax_is_exact_for_monotone_input():
    m = ct.MinMax()
    m.reset(0, 50)
    assert [m.running_min(100, t, 50 - t) for t in range(1, 20)] == [50 - t for t in range(1, 20)]
    assert m.get() == 31


@pytest.mark.parametrize("best", [min, max])
@pytest.mark.parametrize("seed", range(5))
def test_minmax_stays_inside_the_window_and_never_beats_it(best, seed):
    """A sample of the window that no later one beats (an earlier one may have been forgotten)."""
    rnd = random.Random(seed)
    m, t, window, kept = ct.MinMax(), rnd.randrange(1 << 32), 1000, []
    v = rnd.randrange(10_000)
    m.reset(t, v)
    kept.append((t, v))
    for _ in range(3000):
        t += rnd.choice([1, 5, 30, 200, 1500] if seed % 2 else [1, 5, 30])
        v = rnd.randrange(10_000)
        step = m.running_min if best is min else m.running_max
        got = step(window, t % (1 << 32), v)
        kept = [(a, b) for a, b in kept if t - a <= window] + [(t, v)]
        assert got == m.get()
        values = [b for _, b in kept]
        assert got in values
        assert best(values[values.index(got) :]) == got or values.count(got) > 1


def test_minmax_forgets_the_best_when_it_leaves_the_window():
    m = ct.MinMax()
    m.reset(0, 10)
    for t in range(10, 101, 10):
        assert m.running_min(100, t, 20 + t) == 10
    assert m.running_min(100, 101, 200) > 10
    assert m.running_min(100, 500, 300) == 300  # everything expired at once


def test_minmax_keeps_runners_up_from_later_quarters():
    """When the best expires, the second best is from early on, not just what came last."""
    m = ct.MinMax()
    m.reset(0, 10)
    assert [m.running_min(100, t, v) for t, v in ((30, 50), (60, 60), (101, 100))] == [10, 10, 50]
