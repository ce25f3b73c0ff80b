"""Congestion control: reno, cubic, bbr, PRR, choice by name. Expected values come from the RFCs' formulas."""

import random

import pytest

from .door import ct

MS = 1_000_000
SEC = 1_000_000_000
OPEN, DISORDER, CWR, RECOVERY, LOSS = range(5)
TX_START = 0


def round_trips(cc, n, rtt_ms, start=0, on_round=None):
    """n round trips in which the whole window is acknowledged, packet by packet, evenly over the RTT."""
    now = start
    una = 1
    for r in range(n):
        cwnd = cc.get()["cwnd"]
        cc.set(snd_nxt=una + 2 * cwnd)
        for i in range(cwnd):
            una += 1
            cc.set(now=now + rtt_ms * MS * (i + 1) // cwnd, snd_una=una)
            cc.ack(1, rtt_ms * 1000)
        now += rtt_ms * MS
        if on_round:
            on_round(r, now)
    return now


# ---- names


@pytest.mark.parametrize("name", ["reno", "cubic", "bbr", "own"])
def test_a_module_is_chosen_by_its_name(name):
    assert ct.Cc(name).name() == name


def test_a_module_of_the_users_own_is_asked_through_its_table() -> None:
    cc = ct.Cc("own").set(cwnd=30)
    assert cc.get()["pacing_needed"] == 1
    cc.ack(10)
    assert cc.get()["cwnd"] == 31
    cc.cut()
    assert cc.get()["cwnd"] == cc.get()["ssthresh"] == 15
    assert cc.undo() == 31


# ---- reno


def test_reno_doubles_in_slow_start_and_adds_one_per_round_after_it():
    cc = ct.Cc("reno")
    cc.set(ssthresh=40)
    seen = []
    round_trips(cc, 5, 100, on_round=lambda r, now: seen.append(cc.get()["cwnd"]))
    assert seen == [20, 40, 41, 42, 43]


def test_slow_start_hands_the_rest_of_a_large_ack_to_congestion_avoidance():
    cc = ct.Cc("reno")
    cc.set(cwnd=9, ssthresh=10)
    cc.ack(11)
    assert cc.get()["cwnd"] == 11
    assert cc.get()["cnt"] == 0


def test_a_window_that_is_not_the_limit_does_not_grow():
    cc = ct.Cc("reno")
    cc.set(cwnd=20, ssthresh=10, limited=0)
    cc.ack(20)
    assert cc.get()["cwnd"] == 20
    cc.set(ssthresh=1000, max_packets_out=10)
    cc.ack(5)
    assert cc.get()["cwnd"] == 20, "slow start: at most twice what was in flight"
    cc.set(max_packets_out=11)
    cc.ack(5)
    assert cc.get()["cwnd"] == 25


def test_credits_of_a_larger_window_become_one_packet():
    cc = ct.Cc("reno")
    cc.set(cwnd=100, ssthresh=2)
    cc.ack(60)
    cc.set(cwnd=10)
    cc.ack(1)
    assert cc.get() | {"cwnd": 11, "cnt": 1} == cc.get()


@pytest.mark.parametrize(("cwnd", "ssthresh"), [(100, 50), (5, 2), (3, 2), (2, 2), (1, 2)])
def test_reno_halves(cwnd, ssthresh):
    cc = ct.Cc("reno").set(cwnd=cwnd)
    cc.cut()
    assert cc.get()["ssthresh"] == ssthresh
    assert cc.undo() == max(cwnd, ssthresh)


def test_the_clamp_holds():
    cc = ct.Cc("reno").set(clamp=12)
    cc.ack(10)
    assert cc.get()["cwnd"] == 12


# ---- cubic


def test_cubic_root_is_as_far_off_as_the_kernels():
    """Values worked out by hand from the kernel's steps (start value, one Newton step, times 341/1024), and its bound of 0.2 % on average."""
    unit = (1 << 40) // 410
    assert [ct.cubic_root(unit * n) for n in (1, 2, 3, 14, 50, 100, 300, 1000)] == [1388, 1750, 2003, 3347, 5120, 6451, 9294, 13897]
    rng = random.Random(1)
    off = []
    for _ in range(2000):
        a = rng.randrange(1 << 30, 1 << 62)
        off.append(abs(ct.cubic_root(a) / a ** (1 / 3) - 1))
    assert max(off) < 0.01 and sum(off) / len(off) < 0.002


def test_cubic_decreases_by_beta_and_lowers_w_max_when_it_loses_ground():
    cc = ct.Cc("cubic").set(cwnd=100)
    cc.cut()
    assert cc.get()["ssthresh"] == 100 * 717 // 1024
    assert cc.cubic()["w_max"] == 100
    cc.set(cwnd=80)
    cc.cut()
    assert cc.cubic()["w_max"] == 80 * (1024 + 717) // 2048
    cc.set(cwnd=60, cubic_fast_convergence=0)
    cc.cut()
    assert cc.cubic()["w_max"] == 60


@pytest.mark.parametrize(("w_max", "rtt"), [(100, 100), (400, 40), (1000, 100), (50, 200)])
def test_cubic_follows_its_curve(w_max, rtt):
    """Window after each round trip against C (t - K)^3 + W_max, aimed one RTT ahead (RFC 9438 4.2)."""
    cc = ct.Cc("cubic", now=SEC).set(cwnd=w_max, cubic_tcp_friendliness=0, ssthresh=10)
    cc.cut()
    beta = 717 / 1024
    c = 410 / 1024
    k = (w_max * (1 - beta) / c) ** (1 / 3)
    off = []

    def check(r, now):
        t = (now - start) / SEC
        off.append(cc.get()["cwnd"] - (c * (t + rtt / 1000 - k) ** 3 + w_max))

    start = 2 * SEC
    round_trips(cc, int(1.6 * k / (rtt / 1000)), rtt, start=start, on_round=check)
    assert abs(cc.cubic()["k"] / 1024 - k) < 0.02 * k
    # The window lags behind its target by what it has to grow in one round trip.
    assert min(off) > -0.12 * w_max
    assert max(off) < 0.02 * w_max + 1


def test_cubic_is_never_slower_than_reno():
    """Short round trips: the friendly region. Average growth 3 (1 - beta) / (1 + beta) packets per RTT."""
    cc = ct.Cc("cubic", now=SEC).set(cwnd=100, ssthresh=10)
    cc.cut()
    before = cc.get()["cwnd"]
    round_trips(cc, 40, 4, start=2 * SEC)
    assert cc.get()["cwnd"] - before == pytest.approx(40 * 3 * 0.3 / 1.7, abs=3)


def test_cubic_grows_at_most_by_half_per_round():
    cc = ct.Cc("cubic", now=SEC).set(cwnd=20, ssthresh=10)
    cc.cut()
    cc.set(cwnd=10, now=100 * SEC)
    for _ in range(5):
        before = cc.get()["cwnd"]
        for _ in range(before):
            cc.ack(1, 100000)
        assert cc.get()["cwnd"] <= before * 3 // 2


def test_before_the_first_loss_cubic_grows_by_a_twentieth():
    cc = ct.Cc("cubic", now=SEC).set(cwnd=200, ssthresh=100)
    round_trips(cc, 1, 100, start=2 * SEC)
    assert cc.get()["cwnd"] == 210


def test_an_idle_time_is_cut_out_of_the_curve():
    cc = ct.Cc("cubic", now=SEC).set(cwnd=100, ssthresh=10)
    cc.cut()
    now = round_trips(cc, 5, 100, start=2 * SEC)
    epoch = cc.cubic()["epoch"]
    cc.set(lsndtime=now, now=now + 10 * SEC)
    cc.event(TX_START)
    assert cc.cubic()["epoch"] - epoch == 2500


def test_a_timeout_forgets_the_curve():
    cc = ct.Cc("cubic").set(cwnd=100)
    cc.cut()
    cc.state(LOSS)
    assert cc.cubic()["w_max"] == 0


def test_hystart_leaves_slow_start_when_an_ack_train_lasts_half_an_rtt():
    cc = ct.Cc("cubic", now=SEC)
    rtt = 50_000
    now = SEC
    una = 1
    for _ in range(8):
        cwnd = cc.get()["cwnd"]
        cc.set(snd_nxt=una + cwnd, srtt_us=rtt)
        for i in range(cwnd):
            una += 1
            # 1 ms between ACKs: the bottleneck passes a packet per ms, so 25 packets fill half the pipe.
            cc.set(now=now + i * MS, snd_una=una)
            cc.ack(1, rtt)
        if cc.cubic()["found"]:
            break
        now += max(rtt * 1000, cwnd * MS)
    assert cc.mib("TcpExtTCPHystartTrainDetect") == 1
    assert cc.mib("TcpExtTCPHystartTrainCwnd") == cc.get()["ssthresh"]
    assert 40 <= cc.get()["ssthresh"] <= 80


def test_hystart_leaves_slow_start_when_the_delay_rises():
    cc = ct.Cc("cubic", now=SEC).set(cwnd=16, cubic_hystart_detect=2)
    una = 1
    for rtt in (40_000, 41_000, 46_000):
        cwnd = cc.get()["cwnd"]
        cc.set(snd_nxt=una + 2 * cwnd)
        for _ in range(cwnd):
            una += 1
            cc.set(snd_una=una)
            cc.ack(1, rtt)
    assert cc.mib("TcpExtTCPHystartDelayDetect") == 1
    assert cc.mib("TcpExtTCPHystartTrainDetect") == 0
    assert cc.get()["ssthresh"] == cc.mib("TcpExtTCPHystartDelayCwnd")


def test_hystart_can_be_off():
    cc = ct.Cc("cubic", now=SEC).set(cwnd=16, cubic_hystart=0)
    for rtt in (40_000, 90_000, 200_000):
        for _ in range(cc.get()["cwnd"]):
            cc.ack(1, rtt)
    assert cc.get()["cwnd"] == 128


# ---- proportional rate reduction (RFC 6937)


def prr(cwnd=20, module="reno"):
    cc = ct.Cc(module).set(cwnd=cwnd, ssthresh=1000, packets_out=cwnd)
    cc.set(sacked_out=1, lost_out=1)
    cc.enter_cwr()
    cc.state(RECOVERY)
    return cc


def test_prr_always_allows_the_first_retransmission():
    cc = prr()
    cc.set(lost_out=0, sacked_out=1)
    cc.reduce(1, lost=1)
    assert cc.get()["cwnd"] == cc.get()["in_flight"] + 1


def test_prr_sends_half_of_what_is_delivered_above_ssthresh():
    """cwnd 20 to ssthresh 10: after n deliveries ceil(n * 10 / 20) packets may have been sent."""
    cc = prr(cwnd=20)
    sent = 0
    for n in range(1, 12):
        cc.set(sacked_out=1 + n, retrans_out=sent, prr_out=sent, lost_out=1)
        cc.reduce(1)
        sent += cc.get()["cwnd"] - cc.get()["in_flight"]
        assert sent == (n + 1) // 2


def test_prr_grows_back_to_ssthresh_when_too_much_was_lost():
    cc = ct.Cc("reno").set(cwnd=20, ssthresh=1000, packets_out=20, lost_out=15, sacked_out=3)
    cc.enter_cwr()
    assert cc.get()["ssthresh"] == 10
    cc.reduce(1, lost=0, advanced=True)
    assert cc.get()["cwnd"] == cc.get()["in_flight"] + 2, "slow start: one more than was delivered"
    cc = ct.Cc("reno").set(cwnd=20, ssthresh=1000, packets_out=20, lost_out=15, sacked_out=3)
    cc.enter_cwr()
    cc.reduce(1, lost=2, advanced=True)
    assert cc.get()["cwnd"] == cc.get()["in_flight"] + 1, "packet conservation while losses go on"


def test_a_reduction_ends_at_ssthresh():
    cc = ct.Cc("reno").set(cwnd=20, packets_out=20)
    cc.enter_cwr()
    cc.end_reduction()
    assert cc.get()["cwnd"] == cc.get()["ssthresh"] == 10


# ---- pacing rate (facts J29)


def test_the_pacing_rate_is_twice_the_window_per_rtt_in_slow_start():
    cc = ct.Cc("reno").set(srtt_us=10_000, cwnd=10, ssthresh=10_000)
    cc.ack(0)
    assert cc.get()["pacing"] == 2 * 1448 * 10 * 100
    cc.set(ssthresh=15)
    cc.ack(0)
    assert cc.get()["pacing"] == 12 * 1448 * 10 * 100 // 10


# ---- bbr


def bbr_path(rate_pkts_ms, rtt_us, rounds, cc=None, start=SEC):
    """A path without queue: every round delivers min(cwnd, rate * rtt) packets in one RTT."""
    cc = cc or ct.Cc("bbr", now=start)
    now = start
    delivered = 0
    modes = []
    for _ in range(rounds):
        g = cc.get()
        n = min(g["cwnd"], rate_pkts_ms * rtt_us // 1000)
        prior = delivered
        delivered += n
        now += rtt_us * 1000
        cc.set(now=now, delivered=delivered, delivered_mstamp=now, packets_out=n, srtt_us=rtt_us)
        cc.sample(n, rtt_us, rtt_us, prior_delivered=prior)
        modes.append(cc.bbr()["mode"])
    return cc, modes


def test_bbr_finds_the_bandwidth_and_leaves_startup():
    cc, modes = bbr_path(rate_pkts_ms=10, rtt_us=20_000, rounds=20)
    assert modes[0] == 0
    assert modes[-1] == 2, "probing the bandwidth"
    b = cc.bbr()
    assert b["full"] == 1
    assert b["min_rtt_us"] == 20_000
    assert b["bw"] / 2**24 == pytest.approx(10 / 1000, rel=1e-3)
    # cwnd: twice the bandwidth-delay product of 200 packets, and a whole flight per ACK counts as aggregation
    assert 400 <= cc.get()["cwnd"] <= 660
    assert cc.get()["pacing_needed"] == 1


def test_bbr_paces_at_its_gain_less_a_margin():
    cc, _ = bbr_path(rate_pkts_ms=10, rtt_us=20_000, rounds=20)
    b = cc.bbr()
    rate = 10_000 * 1448 * b["pacing_gain"] / 256 * 0.99
    assert cc.get()["pacing"] == pytest.approx(rate, rel=1e-3)


def test_bbr_cycles_through_its_gains():
    cc, _ = bbr_path(rate_pkts_ms=10, rtt_us=20_000, rounds=20)
    seen = set()
    now = SEC + 20 * 20_000_000
    delivered = 10**6
    for _ in range(30):
        now += 21_000_000
        cc.set(now=now, delivered=delivered + 200, delivered_mstamp=now, packets_out=1000)
        cc.sample(200, 20_000, 20_000, prior_delivered=delivered)
        delivered += 200
        seen.add((cc.bbr()["phase"], cc.bbr()["pacing_gain"]))
    assert {g for _, g in seen} == {320, 192, 256}
    assert {p for p, _ in seen} == set(range(8))


def test_bbr_probes_the_rtt_after_ten_seconds():
    cc, _ = bbr_path(rate_pkts_ms=10, rtt_us=20_000, rounds=20)
    now = SEC + 20 * 20_000_000 + 11 * SEC
    cc.set(now=now, delivered=10**6, delivered_mstamp=now, packets_out=100)
    cc.sample(100, 20_000, 25_000, prior_delivered=10**6 - 100)
    assert cc.bbr()["mode"] == 3
    assert cc.get()["cwnd"] == 4
    cc.set(packets_out=4, now=now + 20 * MS, delivered=10**6 + 4, delivered_mstamp=now + 20 * MS)
    cc.sample(4, 20_000, 20_000, prior_delivered=10**6)
    cc.set(now=now + 250 * MS, delivered=10**6 + 8, delivered_mstamp=now + 250 * MS)
    cc.sample(4, 20_000, 20_000, prior_delivered=10**6 + 4)
    assert cc.bbr()["mode"] == 2
    assert cc.get()["cwnd"] > 100, "the window from before comes back"


def test_bbr_keeps_its_rate_over_a_loss():
    cc, _ = bbr_path(rate_pkts_ms=10, rtt_us=20_000, rounds=20)
    cwnd = cc.get()["cwnd"]
    before = cc.bbr()["bw"]
    cc.cut()
    cc.state(RECOVERY)
    cc.set(cwnd=cwnd, packets_out=200, delivered=10**6, delivered_mstamp=2 * SEC, now=2 * SEC)
    cc.sample(10, 1_000, 20_000, prior_delivered=10**6 - 10, losses=5)
    assert cc.bbr()["bw"] >= before
    cc.state(OPEN)
    cc.sample(10, 1_000, 20_000, prior_delivered=10**6)
    assert cc.get()["cwnd"] == pytest.approx(cwnd, abs=20)
