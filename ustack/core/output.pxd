# What the rest of the core asks of the sender: push, what may wait, FIN, window probes, loss probe; and the names of the files below it
# (layer: above writexmit).
#
# RFC 9293 3.8.6.1 (zero window), 3.6 (FIN), RFC 8985 7.3 (loss probe). Facts J3, J10, J11, J12, K1, K2. Linux: the callers' half of tcp_output.c.
# Whoever is above output cimports everything of the sender from here.
#
# What may wait: a driver in real time, whose frames leave a batch at a time anyway, may hold ACKs that are due at once (engine_t.holds_acks) and sends
# that fill no segment (holds_pushes) until it calls tcp_settle. Meanwhile data takes the ACK along, and a close puts its FIN on the last record.
# In virtual time nothing waits.

from ustack.core.cwndval cimport tcp_cwnd_restart, tcp_init_cwnd, tcp_slow_start_after_idle_check
from ustack.core.mss cimport (
    tcp_current_mss, tcp_mss_clamp, tcp_mss_to_mtu, tcp_mtu_to_mss, tcp_mtup_init, tcp_sync_mss, tcp_xmit_size_goal,
)
from ustack.core.mtuprobe cimport tcp_mtu_probing
from ustack.core.pool cimport pool_gen
from ustack.core.records cimport srec_t
from ustack.core.retrans cimport (
    __tcp_retransmit_skb, tcp_fragment_rtx, tcp_rearm_rto, tcp_retransmit_skb, tcp_rto_delta,
)
from ustack.core.sendq cimport (
    sq_alloc, sq_link_after, sq_new_tail, sq_rtx_next, sq_rtx_tail, sq_split, sq_wq_empty, sq_wq_tail, tcp_check_space, tcp_set_tso_segs,
    tcp_wnd_end,
)
from ustack.core.seqno cimport after, before, between, i64_max, i64_min, u32_min
from ustack.core.skmem cimport tcp_under_memory_pressure
from ustack.core.access cimport sk_at, sk_los, sr_at
from ustack.core.state cimport OWED_MAX, engine_t
from ustack.core.stats cimport MIB_TcpExtTCPLossProbes, MIB_TcpExtTCPWinProbe, mib_inc
from ustack.core.syn cimport tcp_connect, tcp_send_synack
from ustack.core.tcb cimport (
    ICSK_ACK_SCHED, ICSK_TIME_NONE, ICSK_TIME_PROBE0, OWES_ACK, OWES_ALL, OWES_PUSH, OWES_QUICKACK, OWES_UNREAD, TCP_NAGLE_OFF,
    TCP_NAGLE_PUSH, TCP_RTO_MAX_DEFAULT_MS, tcb_t,
)
from ustack.core.types cimport (
    NS_PER_MS, TCP_CLOSE, TH_ACK, TH_FIN, TH_PSH, idx_t, int64_t, ns_t, uint8_t, uint16_t, uint32_t, unlikely,
)
from ustack.core.writexmit cimport (
    tcp_event_new_data_sent, tcp_nagle_check, tcp_schedule_loss_probe, tcp_snd_wnd_test, tcp_write_xmit,
)
from ustack.core.xmit cimport (
    __tcp_send_ack, tcp_acceptable_seq, tcp_reset_xmit_timer_paced, tcp_send_ack, tcp_send_active_reset, tcp_transmit_skb, tcp_ts_of,
    tcp_xmit_probe_skb,
)

cdef enum:
    PROBE0_BASE_NS = 200000000          # TCP_RTO_MIN
    PROBE0_MAX_BACKOFF = 10             # log2(TCP_RTO_MAX / TCP_RTO_MIN) + 1
    RESOURCE_PROBE_INTERVAL_NS = 500000000
    TIMEOUT_MIN_TICKS = 2


# ---- pushing -----------------------------------------------------------------------------------------------------------------------
cdef inline ns_t tcp_rto_max(engine_t* e, const tcb_t* sk) noexcept nogil:
    return <ns_t> (sk.opt.rto_max_ms if sk.opt.rto_max_ms else TCP_RTO_MAX_DEFAULT_MS) * NS_PER_MS


cdef inline ns_t tcp_probe0_base(const tcb_t* sk) noexcept nogil:
    return i64_max(sk.rto, PROBE0_BASE_NS)


cdef inline ns_t tcp_probe0_when(engine_t* e, const tcb_t* sk) noexcept nogil:
    """Distance of the next zero-window probe."""
    return i64_min(tcp_probe0_base(sk) << u32_min(sk.backoff, PROBE0_MAX_BACKOFF), tcp_rto_max(e, sk))


cdef inline void tcp_check_probe_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """Data waits and nothing is out: unless a timer runs, start probing."""
    if sk.packets_out == 0 and sk.icsk_pending == ICSK_TIME_NONE:
        tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_PROBE0, tcp_probe0_base(sk))


cdef inline void __tcp_push_pending_frames(engine_t* e, tcb_t* sk, uint32_t mss, uint32_t nonagle) noexcept nogil:
    if sk.state == TCP_CLOSE:
        return
    if tcp_write_xmit(e, sk, mss, nonagle, 0):
        tcp_check_probe_timer(e, sk)


cdef inline void tcp_push_pending_frames(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.send_head:
        __tcp_push_pending_frames(e, sk, tcp_current_mss(e, sk), sk.nonagle)


cdef inline void tcp_push_one(engine_t* e, tcb_t* sk, uint32_t mss) noexcept nogil:
    """One transmission while send() is still filling the queue."""
    tcp_write_xmit(e, sk, mss, TCP_NAGLE_PUSH, 1)


cdef inline void tcp_data_snd_check(engine_t* e, tcb_t* sk) noexcept nogil:
    """After an ACK: window may have opened, buffer may have become free."""
    tcp_push_pending_frames(e, sk)
    tcp_check_space(e, sk)


# ---- what may wait -------------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_owe(engine_t* e, tcb_t* sk, uint8_t what) noexcept nogil:
    """Let an OWES_* wait for tcp_settle. False: there is no room to remember it."""
    if sk.owes == 0:
        if e.n_owed == OWED_MAX:
            return False
        if e.n_owed == 0:
            e.owed_at = e.now
        e.owed[e.n_owed] = sk.idx
        e.owed_since[e.n_owed] = e.now
        e.n_owed += 1
    sk.owes |= what
    e.owed_what |= what
    return True


cdef inline void tcp_settle_one(engine_t* e, tcb_t* sk, uint8_t what) noexcept nogil:
    """What of it a socket owes, unless something else has done it meanwhile."""
    if sk.copied_seq != sk.rcv_nxt and not what & OWES_UNREAD:
        what &= <uint8_t> ~OWES_QUICKACK
    what &= sk.owes
    sk.owes &= <uint8_t> ~what
    if what & OWES_PUSH:
        tcp_push_pending_frames(e, sk)
    if not sk.ack_pending & ICSK_ACK_SCHED:
        sk.owes &= OWES_PUSH
    elif what & (OWES_ACK | OWES_QUICKACK):
        tcp_send_ack(e, sk)


cdef inline void tcp_settle(engine_t* e, uint8_t what, ns_t wait) noexcept nogil:
    """What of it all of them owe, and everything of those who have owed something for more than wait ns. A socket may be gone by now, its place
    perhaps taken: then that place owes nothing, or is listed itself."""
    cdef uint32_t i
    cdef uint32_t n = e.n_owed
    cdef tcb_t* sk
    e.n_owed = 0
    e.owed_what = 0
    e.owed_at = e.now
    for i in range(n):
        if pool_gen(&e.tcb, e.owed[i]) & 1 == 0:
            continue
        sk = sk_at(e, e.owed[i])
        tcp_settle_one(e, sk, OWES_ALL if e.now - e.owed_since[i] > wait else what)
        if sk.owes:
            e.owed[e.n_owed] = sk.idx
            e.owed_since[e.n_owed] = e.owed_since[i]
            e.n_owed += 1
            e.owed_what |= sk.owes


# ---- FIN ---------------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_send_fin(engine_t* e, tcb_t* sk) noexcept nogil:
    """Queue the FIN: on the last unsent record if there is one, else as a segment of its own (facts K1c)."""
    cdef idx_t i = sq_wq_tail(sk)
    cdef srec_t* r
    if unlikely(i == 0) and tcp_under_memory_pressure(e):
        i = sq_rtx_tail(e, sk)
    if i:
        r = sr_at(e, i)
        r.flags |= TH_FIN
        r.end_seq += 1
        sk.write_seq += 1
        if sq_wq_empty(sk):
            # It rides on data already sent: pretend it went out with it and was lost.
            sk.snd_nxt += 1
            return
    else:
        i = sq_new_tail(e, sk)
        if i == 0:
            return
        r = sr_at(e, i)
        r.flags = TH_ACK | TH_FIN
        r.end_seq += 1
        r.pcount = 1
        sk.write_seq += 1
    __tcp_push_pending_frames(e, sk, tcp_current_mss(e, sk), TCP_NAGLE_OFF)


# ---- window probes -------------------------------------------------------------------------------------------------------------
cdef inline int tcp_write_wakeup(engine_t* e, tcb_t* sk, int mib) noexcept nogil:
    """Make the peer speak: with a piece of data if its window takes any, else with an old sequence number. 0 sent, > 0 local drop, < 0 not."""
    cdef idx_t i = sk.send_head
    cdef srec_t* r
    cdef uint32_t mss
    cdef uint32_t room
    cdef int err
    if sk.state == TCP_CLOSE:
        return -1
    if i == 0 or not before(sr_at(e, i).seq, tcp_wnd_end(sk)):
        if between(sk.snd_up, sk.snd_una + 1, sk.snd_una + 0xffff):
            tcp_xmit_probe_skb(e, sk, True, mib)
        return tcp_xmit_probe_skb(e, sk, False, mib)
    r = sr_at(e, i)
    mss = tcp_current_mss(e, sk)
    room = tcp_wnd_end(sk) - r.seq
    if before(sk.pushed_seq, r.end_seq):
        sk.pushed_seq = r.end_seq
    if room < r.end_seq - r.seq or r.len > mss:
        r.flags |= TH_PSH
        if sq_split(e, sk, i, u32_min(u32_min(room, mss), r.len), mss) == 0:
            return -1
    elif r.pcount == 0:
        tcp_set_tso_segs(r, mss)
    r.flags |= TH_PSH
    err = tcp_transmit_skb(e, sk, i)
    if err == 0:
        tcp_event_new_data_sent(e, sk, i)
    return err


cdef inline ns_t tcp_clamp_probe0_to_user_timeout(engine_t* e, const tcb_t* sk, ns_t when) noexcept nogil:
    cdef ns_t left
    if sk.los.probes_tstamp == 0 or sk.opt.user_timeout_ms == 0:
        return when
    left = <ns_t> sk.opt.user_timeout_ms * NS_PER_MS - i64_max(e.now - sk.los.probes_tstamp, 0)
    return i64_min(i64_max(left, TIMEOUT_MIN_TICKS * e.tick), when)


cdef inline void tcp_send_probe0(engine_t* e, tcb_t* sk) noexcept nogil:
    """Zero-window probe, and the timer for the next (facts J11)."""
    cdef int err = tcp_write_wakeup(e, sk, MIB_TcpExtTCPWinProbe)
    cdef ns_t when
    if sk.packets_out or sq_wq_empty(sk):
        sk.probes_out = 0
        sk.backoff = 0
        if sk.los.probes_tstamp:
            sk_los(e, sk).probes_tstamp = 0
        return
    sk.probes_out += 1
    if err <= 0:
        if sk.backoff < e.cfg.tcp_retries2:
            sk.backoff += 1
        when = tcp_probe0_when(e, sk)
    else:
        when = RESOURCE_PROBE_INTERVAL_NS
    tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_PROBE0, tcp_clamp_probe0_to_user_timeout(e, sk, when))


# ---- tail loss probe -----------------------------------------------------------------------------------------------------------
cdef inline bint loss_probe_again(engine_t* e, tcb_t* sk, uint32_t mss) noexcept nogil:
    """Repeat the last segment that was sent."""
    cdef idx_t i = sq_rtx_tail(e, sk)
    cdef srec_t* r = sr_at(e, i)
    cdef uint32_t pcount = r.pcount
    if pcount > 1 and r.len > (pcount - 1) * mss:
        i = tcp_fragment_rtx(e, sk, i, (pcount - 1) * mss, mss)
        if i == 0:
            return False
    if __tcp_retransmit_skb(e, sk, i, 1) != 0:
        return False
    sk.tlp_retrans = 1
    return True


cdef inline bint loss_probe_send(engine_t* e, tcb_t* sk) noexcept nogil:
    """New data if the peer's window takes it (whatever cwnd says), else the last segment again."""
    cdef uint32_t mss = tcp_current_mss(e, sk)
    cdef uint32_t out = sk.packets_out
    if sk.tlp_high_seq:
        return False                    # one at a time
    sk.tlp_retrans = 0
    if sk.send_head and tcp_snd_wnd_test(sk, sr_at(e, sk.send_head), mss):
        tcp_write_xmit(e, sk, mss, TCP_NAGLE_OFF, 2)
        return sk.packets_out > out
    return loss_probe_again(e, sk, mss)


cdef inline void tcp_send_loss_probe(engine_t* e, tcb_t* sk) noexcept nogil:
    """The loss-probe timer has fired (facts J3); the RTO follows."""
    if sk.packets_out == 0:
        sk.icsk_pending = ICSK_TIME_NONE
        return
    if loss_probe_send(e, sk):
        sk.tlp_high_seq = sk.snd_nxt
        mib_inc(&e.stats, MIB_TcpExtTCPLossProbes)
        sk.icsk_pending = ICSK_TIME_NONE        # so that the RTO counts from now
    tcp_rearm_rto(e, sk)
