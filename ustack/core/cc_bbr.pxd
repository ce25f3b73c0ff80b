# Congestion control "bbr", version 1 (layer: above cwnd, below cc).
#
# draft-cardwell-iccrg-bbr-congestion-control-00; Linux counterpart: tcp_bbr.c. A model of the path (windowed maximum of the delivery
# rate, windowed minimum of the RTT) sets the pacing rate and the window; loss does so only through the policer estimate and one
# round of packet conservation. Rates are packets per microsecond << 24, gains are << 8. Paces by itself: cc sets
# tcb.pacing_needed. Private state is a record of its own (sock.sk_ca); times are ticks (tcp_jiffies32) or microseconds.

from libc.string cimport memset

from ustack.core.access cimport sk_ca
from ustack.core.types cimport NS_PER_MS, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ustack.core.cwnd cimport (
    CA_EVENT_TX_START, rate_sample_t, tcp_hz, tcp_jiffies32, tcp_min_rtt, tcp_mstamp, tcp_stamp_us_delta, us_of,
)
from ustack.core.rtt cimport minmax_get, minmax_reset, minmax_running_max, minmax_t
from ustack.core.sendq cimport tcp_packets_in_flight
from ustack.core.seqno cimport after, before, i32_max, u32_max, u32_min, u64_min
from ustack.core.siphash cimport prng_below
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    TCP_CA_LOSS, TCP_CA_OPEN, TCP_CA_RECOVERY, TCP_INFINITE_SSTHRESH, TCP_INIT_CWND, tcb_t,
)

cdef enum:
    BBR_STARTUP = 0             # fill the pipe
    BBR_DRAIN = 1               # empty the queue that filling made
    BBR_PROBE_BW = 2            # cycle around the estimated rate
    BBR_PROBE_RTT = 3           # cut in-flight to 4 packets to see the bare RTT

    BBR_BW_SHIFT = 24
    BBR_BW_UNIT = 16777216
    BBR_SHIFT = 8
    BBR_UNIT = 256
    BBR_CYCLE_LEN = 8
    BBR_BW_RTTS = 10            # window of the rate filter, round trips
    BBR_MIN_RTT_WIN_SEC = 10
    BBR_PROBE_RTT_MS = 200
    BBR_MIN_TSO_RATE = 1200000  # bit/s below which single packets are sent
    BBR_PACING_MARGIN_PERCENT = 1
    BBR_HIGH_GAIN = 739         # 2/ln 2
    BBR_DRAIN_GAIN = 88         # its inverse
    BBR_CWND_GAIN = 512
    BBR_CYCLE_RAND = 7
    BBR_CWND_MIN_TARGET = 4
    BBR_FULL_BW_THRESH = 320    # the rate must grow by a quarter
    BBR_FULL_BW_CNT = 3         # or the pipe is full after this many rounds
    BBR_LT_INTVL_MIN_RTTS = 4   # policer: sampling intervals of 4 to 16 rounds
    BBR_LT_LOSS_THRESH = 50     # with a loss rate of 20 %
    BBR_LT_BW_RATIO = 32        # whose rates differ by an eighth at most
    BBR_LT_BW_DIFF = 500        # or by 4 kbit/s
    BBR_LT_BW_MAX_RTTS = 48
    BBR_EXTRA_ACKED_GAIN = 256
    BBR_EXTRA_ACKED_WIN_RTTS = 5
    BBR_ACK_EPOCH_RESET = 1048576
    BBR_ACK_EPOCH_MAX = 1048575
    BBR_EXTRA_ACKED_MAX_US = 100000

cdef struct bbr_t:              # CA_EXT_WORDS words
    uint64_t cycle_mstamp       # us: begin of this phase of the gain cycle
    uint64_t ack_epoch_mstamp
    uint32_t min_rtt_us
    uint32_t min_rtt_stamp      # tick
    uint32_t probe_rtt_done_stamp
    uint32_t rtt_cnt            # rounds so far
    uint32_t next_rtt_delivered  # the round ends when what was sent now is delivered
    uint32_t lt_bw
    uint32_t lt_last_delivered
    uint32_t lt_last_stamp      # ms
    uint32_t lt_last_lost
    uint32_t prior_cwnd         # before recovery or PROBE_RTT
    uint32_t full_bw
    uint32_t ack_epoch_acked
    minmax_t bw
    uint16_t pacing_gain
    uint16_t cwnd_gain
    uint16_t extra_acked[2]
    uint8_t mode
    uint8_t prev_ca_state
    uint8_t packet_conservation
    uint8_t round_start
    uint8_t idle_restart
    uint8_t probe_rtt_round_done
    uint8_t lt_is_sampling
    uint8_t lt_rtt_cnt
    uint8_t lt_use_bw
    uint8_t full_bw_reached
    uint8_t full_bw_cnt
    uint8_t cycle_idx
    uint8_t has_seen_rtt
    uint8_t extra_acked_win_rtts
    uint8_t extra_acked_win_idx


cdef inline bbr_t* bbr_of(tcb_t* sk) noexcept nogil:
    return <bbr_t*> sk_ca(sk)


# ---- the model's values ------------------------------------------------------------------------------------------------------------
cdef inline uint32_t bbr_max_bw(bbr_t* b) noexcept nogil:
    return minmax_get(&b.bw)


cdef inline uint32_t bbr_bw(bbr_t* b) noexcept nogil:
    return b.lt_bw if b.lt_use_bw else bbr_max_bw(b)


cdef inline uint64_t bbr_bytes_per_sec(tcb_t* sk, uint64_t rate, uint32_t gain) noexcept nogil:
    """A little less than the estimate, so that no queue forms by rounding."""
    rate *= sk.mss_cache
    rate *= gain
    rate >>= BBR_SHIFT
    rate *= 1000000 // 100 * (100 - BBR_PACING_MARGIN_PERCENT)
    return rate >> BBR_BW_SHIFT


cdef inline uint64_t bbr_pacing_of(tcb_t* sk, uint64_t bw, uint32_t gain) noexcept nogil:
    return u64_min(bbr_bytes_per_sec(sk, bw, gain), sk.opt.max_pacing_rate)


cdef inline void bbr_init_pacing_rate(tcb_t* sk) noexcept nogil:
    """Before any rate sample: high gain on a window per RTT, 1 ms if none is known."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t rtt_us = 1000
    if sk.rtt.srtt_us:
        rtt_us = u32_max(sk.rtt.srtt_us >> 3, 1)
        b.has_seen_rtt = 1
    sk.pacing_rate = bbr_pacing_of(sk, <uint64_t> sk.snd_cwnd * BBR_BW_UNIT // rtt_us, BBR_HIGH_GAIN)


cdef inline void bbr_set_pacing_rate(tcb_t* sk, uint32_t bw, uint32_t gain) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    cdef uint64_t rate = bbr_pacing_of(sk, bw, gain)
    if not b.has_seen_rtt and sk.rtt.srtt_us:
        bbr_init_pacing_rate(sk)
    if b.full_bw_reached or rate > sk.pacing_rate:
        sk.pacing_rate = rate


cdef inline uint32_t bbr_min_tso_segs(tcb_t* sk) noexcept nogil:
    return 1 if sk.pacing_rate < (BBR_MIN_TSO_RATE >> 3) else 2


cdef inline uint32_t bbr_tso_segs_goal(tcb_t* sk) noexcept nogil:
    """Packets of one super-segment at the pacing rate: about 1 ms of data."""
    cdef uint32_t bytes = <uint32_t> u64_min(sk.pacing_rate >> 10, 65536 - 1 - 320)
    return u32_min(u32_max(bytes // sk.mss_cache, bbr_min_tso_segs(sk)), 0x7f)


cdef inline uint32_t bbr_bdp(bbr_t* b, uint32_t bw, uint32_t gain) noexcept nogil:
    """Packets of the bandwidth-delay product times gain, rounded up."""
    cdef uint64_t w
    if b.min_rtt_us == 0xffffffffULL:
        return TCP_INIT_CWND
    w = <uint64_t> bw * b.min_rtt_us
    return <uint32_t> ((((w * gain) >> BBR_SHIFT) + BBR_BW_UNIT - 1) >> BBR_BW_SHIFT)


cdef inline uint32_t bbr_quantization_budget(tcb_t* sk, uint32_t cwnd) noexcept nogil:
    """Room for super-segments under way in both hosts and for delayed ACKs."""
    cdef bbr_t* b = bbr_of(sk)
    cwnd += 3 * bbr_tso_segs_goal(sk)
    cwnd = (cwnd + 1) & ~<uint32_t> 1
    if b.mode == BBR_PROBE_BW and b.cycle_idx == 0:
        cwnd += 2
    return cwnd


cdef inline uint32_t bbr_inflight(tcb_t* sk, uint32_t bw, uint32_t gain) noexcept nogil:
    return bbr_quantization_budget(sk, bbr_bdp(bbr_of(sk), bw, gain))


cdef inline uint32_t bbr_packets_in_net_at_edt(engine_t* e, tcb_t* sk, uint32_t inflight_now) noexcept nogil:
    """In flight when the next paced packet may leave."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint64_t interval_us = 0
    cdef uint32_t delivered
    if sk.tcp_wstamp > e.now:
        interval_us = <uint64_t> (sk.tcp_wstamp - e.now) // 1000
    delivered = <uint32_t> ((<uint64_t> bbr_bw(b) * interval_us) >> BBR_BW_SHIFT)
    if b.pacing_gain > BBR_UNIT:
        inflight_now += bbr_tso_segs_goal(sk)
    return 0 if delivered >= inflight_now else inflight_now - delivered


cdef inline uint32_t bbr_ack_aggregation_cwnd(bbr_t* b) noexcept nogil:
    """Window for ACKs that come late and many at a time, at most 100 ms of data."""
    cdef uint32_t top
    if not b.full_bw_reached:
        return 0
    top = <uint32_t> (<uint64_t> bbr_bw(b) * BBR_EXTRA_ACKED_MAX_US // BBR_BW_UNIT)
    return u32_min((BBR_EXTRA_ACKED_GAIN * u32_max(b.extra_acked[0], b.extra_acked[1])) >> BBR_SHIFT, top)


# ---- the window ------------------------------------------------------------------------------------------------------------------
cdef inline void bbr_save_cwnd(tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    if b.prev_ca_state < TCP_CA_RECOVERY and b.mode != BBR_PROBE_RTT:
        b.prior_cwnd = sk.snd_cwnd
    else:
        b.prior_cwnd = u32_max(b.prior_cwnd, sk.snd_cwnd)


cdef inline bint bbr_recover_or_restore(tcb_t* sk, const rate_sample_t* rs, uint32_t acked, uint32_t* new_cwnd) noexcept nogil:
    """Loss takes packets away; the first round of Recovery keeps in-flight as it is; leaving it brings the old window back."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint8_t prev = b.prev_ca_state
    cdef uint8_t state = sk.ca_state
    cdef uint32_t cwnd = sk.snd_cwnd
    if rs.losses > 0:
        cwnd = <uint32_t> i32_max(<int32_t> cwnd - rs.losses, 1)
    if state == TCP_CA_RECOVERY and prev != TCP_CA_RECOVERY:
        b.packet_conservation = 1
        b.next_rtt_delivered = sk.delivered
        cwnd = tcp_packets_in_flight(sk) + acked
    elif prev >= TCP_CA_RECOVERY and state < TCP_CA_RECOVERY:
        cwnd = u32_max(cwnd, b.prior_cwnd)
        b.packet_conservation = 0
    b.prev_ca_state = state
    if b.packet_conservation:
        new_cwnd[0] = u32_max(cwnd, tcp_packets_in_flight(sk) + acked)
        return True
    new_cwnd[0] = cwnd
    return False


cdef inline void bbr_set_cwnd(tcb_t* sk, const rate_sample_t* rs, uint32_t acked, uint32_t bw, uint32_t gain) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t cwnd = sk.snd_cwnd
    cdef uint32_t target
    if acked and not bbr_recover_or_restore(sk, rs, acked, &cwnd):
        target = bbr_quantization_budget(sk, bbr_bdp(b, bw, gain) + bbr_ack_aggregation_cwnd(b))
        if b.full_bw_reached:
            cwnd = u32_min(cwnd + acked, target)
        elif cwnd < target or sk.delivered < TCP_INIT_CWND:
            cwnd = cwnd + acked
        cwnd = u32_max(cwnd, BBR_CWND_MIN_TARGET)
    sk.snd_cwnd = u32_min(cwnd, sk.snd_cwnd_clamp)
    if b.mode == BBR_PROBE_RTT:
        sk.snd_cwnd = u32_min(sk.snd_cwnd, BBR_CWND_MIN_TARGET)


# ---- the gain cycle ----------------------------------------------------------------------------------------------------------------
cdef inline uint16_t bbr_cycle_gain(uint8_t idx) noexcept nogil:
    if idx == 0:
        return BBR_UNIT * 5 // 4
    return BBR_UNIT * 3 // 4 if idx == 1 else BBR_UNIT


cdef inline bint bbr_is_next_phase(engine_t* e, tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    """A phase lasts a minimum RTT; probing up until it shows (in flight or by loss), draining no longer than needed."""
    cdef bbr_t* b = bbr_of(sk)
    cdef bint full = tcp_stamp_us_delta(us_of(sk.delivered_mstamp), b.cycle_mstamp) > b.min_rtt_us
    cdef uint32_t inflight
    if b.pacing_gain == BBR_UNIT:
        return full
    inflight = bbr_packets_in_net_at_edt(e, sk, rs.prior_in_flight)
    if b.pacing_gain > BBR_UNIT:
        return full and (rs.losses != 0 or inflight >= bbr_inflight(sk, bbr_max_bw(b), b.pacing_gain))
    return full or inflight <= bbr_inflight(sk, bbr_max_bw(b), BBR_UNIT)


cdef inline void bbr_advance_cycle(tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    b.cycle_idx = (b.cycle_idx + 1) & (BBR_CYCLE_LEN - 1)
    b.cycle_mstamp = us_of(sk.delivered_mstamp)


cdef inline void bbr_reset_probe_bw(engine_t* e, tcb_t* sk) noexcept nogil:
    """Enter the cycle at a random phase, but not the draining one."""
    cdef bbr_t* b = bbr_of(sk)
    b.mode = BBR_PROBE_BW
    b.cycle_idx = <uint8_t> (BBR_CYCLE_LEN - 1 - prng_below(&e.prng, BBR_CYCLE_RAND))
    bbr_advance_cycle(sk)


cdef inline void bbr_reset_mode(engine_t* e, tcb_t* sk) noexcept nogil:
    if bbr_of(sk).full_bw_reached:
        bbr_reset_probe_bw(e, sk)
    else:
        bbr_of(sk).mode = BBR_STARTUP


# ---- policers: a long-term rate ------------------------------------------------------------------------------------------------------
cdef inline void bbr_lt_reset_interval(tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    b.lt_last_stamp = <uint32_t> (us_of(sk.delivered_mstamp) // 1000)
    b.lt_last_delivered = sk.delivered
    b.lt_last_lost = sk.lost
    b.lt_rtt_cnt = 0


cdef inline void bbr_lt_reset(tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    b.lt_bw = 0
    b.lt_use_bw = 0
    b.lt_is_sampling = 0
    bbr_lt_reset_interval(sk)


cdef inline void bbr_lt_interval_done(tcb_t* sk, uint32_t bw) noexcept nogil:
    """Two lossy intervals with nearly the same rate: a policer, and this is its rate."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t diff
    if b.lt_bw:
        diff = bw - b.lt_bw if bw > b.lt_bw else b.lt_bw - bw
        if (<uint64_t> diff * BBR_UNIT <= <uint64_t> BBR_LT_BW_RATIO * b.lt_bw
                or bbr_bytes_per_sec(sk, diff, BBR_UNIT) <= BBR_LT_BW_DIFF):
            b.lt_bw = <uint32_t> ((<uint64_t> bw + b.lt_bw) >> 1)
            b.lt_use_bw = 1
            b.pacing_gain = BBR_UNIT
            b.lt_rtt_cnt = 0
            return
    b.lt_bw = bw
    bbr_lt_reset_interval(sk)


cdef inline bint bbr_lt_gate(engine_t* e, tcb_t* sk, bint losses, bint app_limited) noexcept nogil:
    """Is there an interval, of a proper length and ended by a loss, to be looked at?"""
    cdef bbr_t* b = bbr_of(sk)
    if b.lt_use_bw:
        if b.mode == BBR_PROBE_BW and b.round_start:
            b.lt_rtt_cnt += 1
            if b.lt_rtt_cnt >= BBR_LT_BW_MAX_RTTS:
                bbr_lt_reset(sk)
                bbr_reset_probe_bw(e, sk)
        return False
    if not b.lt_is_sampling:
        if not losses:
            return False
        bbr_lt_reset_interval(sk)
        b.lt_is_sampling = 1
    if app_limited:
        bbr_lt_reset(sk)
        return False
    if b.round_start:
        b.lt_rtt_cnt += 1
    if b.lt_rtt_cnt < BBR_LT_INTVL_MIN_RTTS:
        return False
    if b.lt_rtt_cnt > 4 * BBR_LT_INTVL_MIN_RTTS:
        bbr_lt_reset(sk)
        return False
    return losses


cdef inline void bbr_lt_sampling(engine_t* e, tcb_t* sk, bint losses, bint app_limited) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t lost
    cdef uint32_t delivered
    cdef uint32_t t
    if not bbr_lt_gate(e, sk, losses, app_limited):
        return
    lost = sk.lost - b.lt_last_lost
    delivered = sk.delivered - b.lt_last_delivered
    if delivered == 0 or (lost << BBR_SHIFT) < BBR_LT_LOSS_THRESH * delivered:
        return
    t = <uint32_t> (us_of(sk.delivered_mstamp) // 1000) - b.lt_last_stamp
    if <int32_t> t < 1:
        return
    if t >= 0xffffffffULL // 1000:
        bbr_lt_reset(sk)
        return
    bbr_lt_interval_done(sk, <uint32_t> (<uint64_t> delivered * BBR_BW_UNIT // (t * 1000)))


# ---- the model's updates ---------------------------------------------------------------------------------------------------------------
cdef inline void bbr_update_bw(engine_t* e, tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    """Count rounds, feed the rate filter; a sample of an application-limited flight counts only if it is higher."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t bw
    b.round_start = 0
    if rs.delivered < 0 or rs.interval_us <= 0:
        return
    if not before(rs.prior_delivered, b.next_rtt_delivered):
        b.next_rtt_delivered = sk.delivered
        b.rtt_cnt += 1
        b.round_start = 1
        b.packet_conservation = 0
    bbr_lt_sampling(e, sk, rs.losses != 0, rs.is_app_limited)
    bw = <uint32_t> (<uint64_t> rs.delivered * BBR_BW_UNIT // <uint64_t> rs.interval_us)
    if not rs.is_app_limited or bw >= bbr_max_bw(b):
        minmax_running_max(&b.bw, BBR_BW_RTTS, b.rtt_cnt, bw)


cdef inline void bbr_update_ack_aggregation(tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    """Largest excess of what was ACKed over what the rate explains, over the last 5 to 10 rounds."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t expected
    cdef uint32_t extra
    if rs.acked_sacked == 0 or rs.delivered < 0 or rs.interval_us <= 0:
        return
    if b.round_start:
        b.extra_acked_win_rtts += 1
        if b.extra_acked_win_rtts >= BBR_EXTRA_ACKED_WIN_RTTS:
            b.extra_acked_win_rtts = 0
            b.extra_acked_win_idx ^= 1
            b.extra_acked[b.extra_acked_win_idx] = 0
    expected = <uint32_t> (<uint64_t> bbr_bw(b) * tcp_stamp_us_delta(us_of(sk.delivered_mstamp), b.ack_epoch_mstamp) // BBR_BW_UNIT)
    if b.ack_epoch_acked <= expected or b.ack_epoch_acked + rs.acked_sacked >= BBR_ACK_EPOCH_RESET:
        b.ack_epoch_acked = 0
        b.ack_epoch_mstamp = us_of(sk.delivered_mstamp)
        expected = 0
    b.ack_epoch_acked = u32_min(BBR_ACK_EPOCH_MAX, b.ack_epoch_acked + rs.acked_sacked)
    extra = u32_min(b.ack_epoch_acked - expected, sk.snd_cwnd)
    if extra > b.extra_acked[b.extra_acked_win_idx]:
        b.extra_acked[b.extra_acked_win_idx] = <uint16_t> extra


cdef inline void bbr_check_full_bw(bbr_t* b, const rate_sample_t* rs) noexcept nogil:
    cdef uint64_t thresh
    if b.full_bw_reached or not b.round_start or rs.is_app_limited:
        return
    thresh = (<uint64_t> b.full_bw * BBR_FULL_BW_THRESH) >> BBR_SHIFT
    if bbr_max_bw(b) >= thresh:
        b.full_bw = bbr_max_bw(b)
        b.full_bw_cnt = 0
        return
    b.full_bw_cnt += 1
    b.full_bw_reached = b.full_bw_cnt >= BBR_FULL_BW_CNT


cdef inline void bbr_check_drain(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    if b.mode == BBR_STARTUP and b.full_bw_reached:
        b.mode = BBR_DRAIN
        sk.snd_ssthresh = bbr_inflight(sk, bbr_max_bw(b), BBR_UNIT)
    if (b.mode == BBR_DRAIN
            and bbr_packets_in_net_at_edt(e, sk, tcp_packets_in_flight(sk)) <= bbr_inflight(sk, bbr_max_bw(b), BBR_UNIT)):
        bbr_reset_probe_bw(e, sk)


cdef inline void bbr_check_probe_rtt_done(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    if b.probe_rtt_done_stamp == 0 or not after(tcp_jiffies32(e), b.probe_rtt_done_stamp):
        return
    b.min_rtt_stamp = tcp_jiffies32(e)
    sk.snd_cwnd = u32_max(sk.snd_cwnd, b.prior_cwnd)
    bbr_reset_mode(e, sk)


cdef inline void bbr_probe_rtt(engine_t* e, tcb_t* sk) noexcept nogil:
    """In PROBE_RTT: its samples must not lower the rate; 200 ms and a round at 4 packets, then back."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t mark = sk.delivered + tcp_packets_in_flight(sk)
    sk.app_limited = mark if mark else 1
    if b.probe_rtt_done_stamp == 0 and tcp_packets_in_flight(sk) <= BBR_CWND_MIN_TARGET:
        b.probe_rtt_done_stamp = tcp_jiffies32(e) + <uint32_t> ((BBR_PROBE_RTT_MS * <int64_t> NS_PER_MS + e.tick - 1) // e.tick)
        b.probe_rtt_round_done = 0
        b.next_rtt_delivered = sk.delivered
    elif b.probe_rtt_done_stamp:
        if b.round_start:
            b.probe_rtt_round_done = 1
        if b.probe_rtt_round_done:
            bbr_check_probe_rtt_done(e, sk)


cdef inline void bbr_update_min_rtt(engine_t* e, tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t now = tcp_jiffies32(e)
    cdef bint expired = after(now, b.min_rtt_stamp + BBR_MIN_RTT_WIN_SEC * tcp_hz(e))
    if rs.rtt_us >= 0 and (rs.rtt_us < <int64_t> b.min_rtt_us or (expired and not rs.is_ack_delayed)):
        b.min_rtt_us = <uint32_t> rs.rtt_us
        b.min_rtt_stamp = now
    if expired and not b.idle_restart and b.mode != BBR_PROBE_RTT:
        bbr_save_cwnd(sk)
        b.mode = BBR_PROBE_RTT
        b.probe_rtt_done_stamp = 0
    if b.mode == BBR_PROBE_RTT:
        bbr_probe_rtt(e, sk)
    if rs.delivered > 0:
        b.idle_restart = 0


cdef inline void bbr_update_gains(bbr_t* b) noexcept nogil:
    b.cwnd_gain = BBR_HIGH_GAIN
    if b.mode == BBR_STARTUP:
        b.pacing_gain = BBR_HIGH_GAIN
    elif b.mode == BBR_DRAIN:
        b.pacing_gain = BBR_DRAIN_GAIN
    elif b.mode == BBR_PROBE_BW:
        b.pacing_gain = BBR_UNIT if b.lt_use_bw else bbr_cycle_gain(b.cycle_idx)
        b.cwnd_gain = BBR_CWND_GAIN
    else:
        b.pacing_gain = BBR_UNIT
        b.cwnd_gain = BBR_UNIT


# ---- hooks ---------------------------------------------------------------------------------------------------------------------------
cdef inline void bbr_cong_control(engine_t* e, tcb_t* sk, const rate_sample_t* rs) noexcept nogil:
    """Each ACK: model, then rate and window from it."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint32_t bw
    bbr_update_bw(e, sk, rs)
    bbr_update_ack_aggregation(sk, rs)
    if b.mode == BBR_PROBE_BW and bbr_is_next_phase(e, sk, rs):
        bbr_advance_cycle(sk)
    bbr_check_full_bw(b, rs)
    bbr_check_drain(e, sk)
    bbr_update_min_rtt(e, sk, rs)
    bbr_update_gains(b)
    bw = bbr_bw(b)
    bbr_set_pacing_rate(sk, bw, b.pacing_gain)
    bbr_set_cwnd(sk, rs, rs.acked_sacked, bw, b.cwnd_gain)


cdef inline void bbr_init(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    memset(b, 0, sizeof(bbr_t))
    sk.snd_ssthresh = TCP_INFINITE_SSTHRESH
    b.next_rtt_delivered = sk.delivered
    b.prev_ca_state = TCP_CA_OPEN
    b.min_rtt_us = tcp_min_rtt(sk)
    b.min_rtt_stamp = tcp_jiffies32(e)
    minmax_reset(&b.bw, 0, 0)
    bbr_init_pacing_rate(sk)
    bbr_lt_reset(sk)
    b.ack_epoch_mstamp = tcp_mstamp(e)
    sk.pacing_needed = 1


cdef inline void bbr_cwnd_event(engine_t* e, tcb_t* sk, int event) noexcept nogil:
    """Restart from idle: at the estimated rate, without a burst."""
    cdef bbr_t* b = bbr_of(sk)
    if event != CA_EVENT_TX_START or sk.app_limited == 0:
        return
    b.idle_restart = 1
    b.ack_epoch_mstamp = tcp_mstamp(e)
    b.ack_epoch_acked = 0
    if b.mode == BBR_PROBE_BW:
        bbr_set_pacing_rate(sk, bbr_bw(b), BBR_UNIT)
    elif b.mode == BBR_PROBE_RTT:
        bbr_check_probe_rtt_done(e, sk)


cdef inline uint32_t bbr_ssthresh(tcb_t* sk) noexcept nogil:
    """Entering recovery: remember the window, leave ssthresh alone."""
    bbr_save_cwnd(sk)
    return sk.snd_ssthresh


cdef inline uint32_t bbr_undo_cwnd(tcb_t* sk) noexcept nogil:
    cdef bbr_t* b = bbr_of(sk)
    b.full_bw = 0
    b.full_bw_cnt = 0
    bbr_lt_reset(sk)
    return sk.snd_cwnd


cdef inline void bbr_set_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept nogil:
    """A timeout ends the round and counts as a loss for the policer estimate."""
    cdef bbr_t* b = bbr_of(sk)
    if state != TCP_CA_LOSS:
        return
    b.prev_ca_state = TCP_CA_LOSS
    b.full_bw = 0
    b.round_start = 1
    bbr_lt_sampling(e, sk, True, False)


# ---- for views -------------------------------------------------------------------------------------------------------------------
cdef inline void bbr_get_info(tcb_t* sk, uint32_t* out) noexcept nogil:
    """struct tcp_bbr_info: bandwidth in bytes/s (low, high word), smallest RTT in us, gains (256 = 1)."""
    cdef bbr_t* b = bbr_of(sk)
    cdef uint64_t bw = (<uint64_t> bbr_bw(b) * sk.mss_cache * 1000000ULL) >> BBR_BW_SHIFT
    out[0] = <uint32_t> bw
    out[1] = <uint32_t> (bw >> 32)
    out[2] = b.min_rtt_us
    out[3] = b.pacing_gain
    out[4] = b.cwnd_gain
