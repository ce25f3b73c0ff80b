# Congestion control "cubic" (layer: above cwnd, below cc).
#
# RFC 9438, with HyStart (ACK train and delay increase) for leaving slow start. Linux counterpart: tcp_cubic.c; the module's parameters are
# the cubic_* fields of the configuration. The window follows W(t) = C (t - K)^3 + W_max with time in units of 1/1024 s and the kernel's
# truncations; `cnt` is the number of ACKed packets per packet of growth. K comes from the kernel's approximate cube root (up to 0.2 % off),
# since the ACK at which the window grows depends on it.
# Private state lives in tcb.ca_priv; times are ticks (tcp_jiffies32) or microseconds, both modulo 2^32.

from libc.string cimport memset

from ustack.core.types cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, likely
from ustack.core.cwnd cimport (
    CA_EVENT_TX_START, jiffies_at, tcp_cong_avoid_ai, tcp_hz, tcp_in_slow_start, tcp_is_cwnd_limited, tcp_jiffies32, tcp_mstamp, tcp_slow_start,
)
from ustack.core.seqno cimport after, u32_max, u32_min, u64_min
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPHystartDelayCwnd, MIB_TcpExtTCPHystartDelayDetect, MIB_TcpExtTCPHystartTrainCwnd, MIB_TcpExtTCPHystartTrainDetect,
    mib_add, mib_inc,
)
from ustack.core.tcb cimport TCP_CA_LOSS, tcb_t

cdef enum:
    CUBIC_BETA_SCALE = 1024     # beta is in these units
    CUBIC_HZ = 10               # 2^10 units of K and t per second
    CUBIC_C = 410               # C * 1024: ten times bic_scale's default; the kernel fixes it when the module is loaded
    HYSTART_ACK_TRAIN = 1       # bits of cubic_hystart_detect
    HYSTART_DELAY = 2
    HYSTART_MIN_SAMPLES = 8
    HYSTART_DELAY_MIN = 4000    # us
    HYSTART_DELAY_MAX = 16000

cdef extern from *:
    """
    /* 64 times the cube root of 8 .. 63, as the kernel rounds it. */
    static const unsigned char ustack_cubic_start[56] = {
        123, 129, 134, 138, 143, 147, 151, 156, 157, 161, 164, 168, 170, 173, 176, 179, 181, 185, 187, 190, 192, 194, 197, 199, 200, 202, 204, 206,
        209, 211, 213, 215, 217, 219, 221, 222, 224, 225, 227, 229, 231, 232, 234, 236, 237, 239, 240, 242, 244, 245, 246, 248, 250, 251, 252, 254};
    """
    const uint8_t cubic_start "ustack_cubic_start"[56]
    int clz64 "__builtin_clzll"(unsigned long long) noexcept nogil

cdef struct cubic_t:
    uint32_t cnt                # grow by one packet per cnt ACKed
    uint32_t last_max_cwnd      # W_max
    uint32_t last_cwnd          # cwnd and tick of the last computation
    uint32_t last_time
    uint32_t origin_point       # where the cubic curve is flat
    uint32_t k                  # time from the epoch's start to there, 1/1024 s
    uint32_t delay_min          # us, 0 = none yet
    uint32_t epoch_start        # tick, 0 = begins with the next ACK
    uint32_t ack_cnt            # for the Reno-friendly estimate
    uint32_t tcp_cwnd           # what Reno would have
    # HyStart: kept across a reset
    uint32_t round_start        # us
    uint32_t end_seq            # the round ends when this is acknowledged
    uint32_t last_ack           # us, last ACK of the train
    uint32_t curr_rtt           # minimum of this round, us
    uint8_t sample_cnt
    uint8_t found               # slow start's exit has been found


cdef inline cubic_t* cubic_of(tcb_t* sk) noexcept nogil:
    return <cubic_t*> sk.ca_priv


cdef inline uint32_t cubic_root(uint64_t a) noexcept nogil:
    """Cube root of a >= 64 as the kernel computes it: the leading 4 to 6 bits select a start value, one Newton step follows, and the
    division by 3 is a multiplication by 341/1024."""
    cdef uint32_t bits = 64 - <uint32_t> clz64(a)
    cdef uint32_t b = ((bits * 84) >> 8) - 1
    cdef uint64_t x = (<uint64_t> (cubic_start[(a >> (3 * b)) - 8] + 10) << b) >> 6
    x = 2 * x + a // (x * (x - 1))
    return <uint32_t> ((x * 341) >> 10)


# ---- state ---------------------------------------------------------------------------------------------------------------------
cdef inline void cubic_reset(cubic_t* ca) noexcept nogil:
    memset(ca, 0, <size_t> (<char*> &ca.round_start - <char*> ca))
    ca.found = 0


cdef inline void cubic_hystart_reset(engine_t* e, tcb_t* sk) noexcept nogil:
    """A new round."""
    cdef cubic_t* ca = cubic_of(sk)
    ca.round_start = <uint32_t> tcp_mstamp(e)
    ca.last_ack = ca.round_start
    ca.end_seq = sk.snd_nxt
    ca.curr_rtt = 0xffffffffULL
    ca.sample_cnt = 0


cdef inline void cubic_init(engine_t* e, tcb_t* sk) noexcept nogil:
    cubic_reset(cubic_of(sk))
    if e.cfg.cubic_hystart:
        cubic_hystart_reset(e, sk)
    elif e.cfg.cubic_initial_ssthresh:
        sk.snd_ssthresh = <uint32_t> e.cfg.cubic_initial_ssthresh


cdef inline void cubic_cwnd_event(engine_t* e, tcb_t* sk, int event) noexcept nogil:
    """Sending again after an application pause: the pause is cut out of the curve's time."""
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t now
    cdef int32_t delta
    if event != CA_EVENT_TX_START:
        return
    now = tcp_jiffies32(e)
    delta = <int32_t> (now - jiffies_at(e, sk.lsndtime))
    if ca.epoch_start and delta > 0:
        ca.epoch_start += <uint32_t> delta
        if after(ca.epoch_start, now):
            ca.epoch_start = now


cdef inline void cubic_set_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept nogil:
    if state == TCP_CA_LOSS:
        cubic_reset(cubic_of(sk))
        cubic_hystart_reset(e, sk)


# ---- the window ------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t cubic_ssthresh(engine_t* e, tcb_t* sk) noexcept nogil:
    """Multiplicative decrease by beta; with fast convergence W_max is lowered further if the flow lost ground."""
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t beta = <uint32_t> e.cfg.cubic_beta
    ca.epoch_start = 0
    if sk.snd_cwnd < ca.last_max_cwnd and e.cfg.cubic_fast_convergence:
        ca.last_max_cwnd = (sk.snd_cwnd * (CUBIC_BETA_SCALE + beta)) // (2 * CUBIC_BETA_SCALE)
    else:
        ca.last_max_cwnd = sk.snd_cwnd
    return u32_max((sk.snd_cwnd * beta) // CUBIC_BETA_SCALE, 2)


cdef inline void cubic_epoch(cubic_t* ca, uint32_t cwnd, uint32_t acked, uint32_t now) noexcept nogil:
    """The first ACK of an epoch fixes the curve: its flat point and how far away it is."""
    ca.epoch_start = now
    ca.ack_cnt = acked
    ca.tcp_cwnd = cwnd
    if ca.last_max_cwnd <= cwnd:
        ca.k = 0
        ca.origin_point = cwnd
        return
    ca.k = cubic_root((<uint64_t> 1 << (10 + 3 * CUBIC_HZ)) // CUBIC_C * (ca.last_max_cwnd - cwnd))
    ca.origin_point = ca.last_max_cwnd


cdef inline uint32_t cubic_count(engine_t* e, cubic_t* ca, uint32_t cwnd, uint32_t now) noexcept nogil:
    """cnt by the curve: aim at where it is one minimum RTT from now."""
    cdef uint64_t hz = tcp_hz(e)
    cdef uint64_t t = now - ca.epoch_start
    cdef uint64_t offs
    cdef uint64_t delta
    cdef uint32_t target
    cdef uint32_t cnt
    t += (ca.delay_min * <uint64_t> 1000 + e.tick - 1) // <uint64_t> e.tick
    t = (t << CUBIC_HZ) // hz
    offs = ca.k - t if t < ca.k else t - ca.k
    delta = (<uint64_t> CUBIC_C * offs * offs * offs) >> (10 + 3 * CUBIC_HZ)
    if t < ca.k:
        target = ca.origin_point - <uint32_t> delta
    else:
        target = ca.origin_point + <uint32_t> delta
    if target > cwnd:
        cnt = cwnd // (target - cwnd)
    else:
        cnt = 100 * cwnd
    # No loss seen yet, so W_max is unknown: at least 5 % a round trip.
    if ca.last_max_cwnd == 0 and cnt > 20:
        cnt = 20
    return cnt


cdef inline void cubic_friendly(cubic_t* ca, uint32_t cwnd) noexcept nogil:
    """Never slower than Reno with the same beta: 8 * (1 + beta) / (3 * (1 - beta)) eighths of a window of ACKs per packet. The kernel
    derives that scale when the module is loaded, so from the default beta."""
    cdef uint32_t scale = 8 * (CUBIC_BETA_SCALE + 717) // 3 // (CUBIC_BETA_SCALE - 717)
    cdef uint32_t delta = (cwnd * scale) >> 3
    cdef uint32_t steps
    if delta == 0:
        return
    if ca.ack_cnt > delta:
        steps = (ca.ack_cnt - 1) // delta
        ca.ack_cnt -= steps * delta
        ca.tcp_cwnd += steps
    if ca.tcp_cwnd > cwnd:
        ca.cnt = u32_min(ca.cnt, cwnd // (ca.tcp_cwnd - cwnd))


cdef inline void cubic_update(engine_t* e, tcb_t* sk, uint32_t acked) noexcept nogil:
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t cwnd = sk.snd_cwnd
    cdef uint32_t now = tcp_jiffies32(e)
    ca.ack_cnt += acked
    if ca.last_cwnd == cwnd and <int32_t> (now - ca.last_time) <= <int32_t> (tcp_hz(e) // 32):
        return
    # The curve moves once a tick at most; a new epoch is computed at once.
    if ca.epoch_start == 0 or now != ca.last_time:
        ca.last_cwnd = cwnd
        ca.last_time = now
        if ca.epoch_start == 0:
            cubic_epoch(ca, cwnd, acked, now)
        ca.cnt = cubic_count(e, ca, cwnd, now)
    if e.cfg.cubic_tcp_friendliness:
        cubic_friendly(ca, cwnd)
    ca.cnt = u32_max(ca.cnt, 2)         # at most 1.5 times per round trip


cdef inline void cubic_cong_avoid(engine_t* e, tcb_t* sk, uint32_t acked) noexcept nogil:
    if not tcp_is_cwnd_limited(sk):
        return
    if tcp_in_slow_start(sk):
        acked = tcp_slow_start(sk, acked)
        if acked == 0:
            return
    cubic_update(e, sk, acked)
    tcp_cong_avoid_ai(sk, cubic_of(sk).cnt, acked)


# ---- HyStart -----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t cubic_hystart_ack_delay(engine_t* e, tcb_t* sk) noexcept nogil:
    """Allowance for GRO and TSO at the receiver: the time of four of our largest packets at the pacing rate, at most 1 ms."""
    cdef uint64_t gso = e.tso_max - 321 if e.tso_max > 321 else 0
    if sk.pacing_rate == 0:
        return 0
    return <uint32_t> u64_min(1000, gso * 4 * 1000000 // sk.pacing_rate)


cdef inline void cubic_hystart_train(engine_t* e, tcb_t* sk) noexcept nogil:
    """ACKs that follow one another closely for longer than half the minimum RTT: the pipe is full."""
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t now = <uint32_t> tcp_mstamp(e)
    cdef uint32_t threshold
    if <int32_t> (now - ca.last_ack) > <int32_t> e.cfg.cubic_hystart_ack_delta_us:
        return
    ca.last_ack = now
    threshold = ca.delay_min + cubic_hystart_ack_delay(e, sk)
    if not sk.pacing_needed:
        threshold >>= 1             # pacing would have spread the train over up to half an RTT
    if <int32_t> (now - ca.round_start) > <int64_t> threshold:
        ca.found = 1
        mib_inc(&e.stats, MIB_TcpExtTCPHystartTrainDetect)
        mib_add(&e.stats, MIB_TcpExtTCPHystartTrainCwnd, sk.snd_cwnd)
        sk.snd_ssthresh = sk.snd_cwnd


cdef inline void cubic_hystart_delay(engine_t* e, tcb_t* sk, uint32_t delay) noexcept nogil:
    """The round's minimum RTT has risen by more than an eighth (4 to 16 ms): a queue builds up."""
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t thresh
    ca.curr_rtt = u32_min(ca.curr_rtt, delay)
    if ca.sample_cnt < HYSTART_MIN_SAMPLES:
        ca.sample_cnt += 1
        return
    thresh = u32_min(u32_max(ca.delay_min >> 3, HYSTART_DELAY_MIN), HYSTART_DELAY_MAX)
    if ca.curr_rtt > ca.delay_min + thresh:
        ca.found = 1
        mib_inc(&e.stats, MIB_TcpExtTCPHystartDelayDetect)
        mib_add(&e.stats, MIB_TcpExtTCPHystartDelayCwnd, sk.snd_cwnd)
        sk.snd_ssthresh = sk.snd_cwnd


cdef inline void cubic_pkts_acked(engine_t* e, tcb_t* sk, int64_t rtt_us) noexcept nogil:
    cdef cubic_t* ca = cubic_of(sk)
    cdef uint32_t delay
    if rtt_us < 0:
        return
    # Samples right after a reduction still show the queue that caused it.
    if ca.epoch_start and <int32_t> (tcp_jiffies32(e) - ca.epoch_start) < <int32_t> tcp_hz(e):
        return
    delay = <uint32_t> rtt_us if rtt_us else 1
    if ca.delay_min == 0 or ca.delay_min > delay:
        ca.delay_min = delay
    if ca.found or not tcp_in_slow_start(sk) or not e.cfg.cubic_hystart:
        return
    if after(sk.snd_una, ca.end_seq):
        cubic_hystart_reset(e, sk)
    if likely(sk.snd_cwnd < <uint32_t> e.cfg.cubic_hystart_low_window):
        return
    if e.cfg.cubic_hystart_detect & HYSTART_ACK_TRAIN:
        cubic_hystart_train(e, sk)
    if e.cfg.cubic_hystart_detect & HYSTART_DELAY:
        cubic_hystart_delay(e, sk, delay)
