# Sending new data: how much of the write queue may go now, and in which packets (layer: above xmit, cwndval).
#
# RFC 9293 3.8.6.2.1 (silly window), RFC 896 with Minshall's variant (Nagle), RFC 5681 (cwnd), RFC 8985 7 (arming the loss probe).
# Facts J1, J3, J9, J10, J29. Linux: tcp_write_xmit and its tests, tcp_tso_should_defer, tcp_schedule_loss_probe, tcp_event_new_data_sent, tcp_push*.
# Order of the tests is Linux's: pacing, congestion window, growth of the record, peer's window, Nagle or deferral, split.

from ustack.core.cc cimport cc_min_tso_segs
from ustack.core.cwnd cimport tcp_in_cwnd_reduction
from ustack.core.cwndval cimport tcp_cwnd_validate
from ustack.core.mss cimport tcp_mss_to_mtu, tcp_tso_segs
from ustack.core.mtuprobe cimport tcp_mtu_probe
from ustack.core.records cimport srec_t
from ustack.core.retrans cimport tcp_rearm_rto, tcp_rto_delta
from ustack.core.route cimport sk_rto_min
from ustack.core.sendq cimport (
    sq_mark_sent, sq_rtx_head, sq_split, sq_unlink_free, sq_wq_empty, sr_can_merge, tcp_check_space, tcp_chrono_start,
    tcp_chrono_stop, tcp_is_sack, tcp_packets_in_flight, tcp_set_tso_segs, tcp_urg_mode, tcp_wnd_end,
)
from ustack.core.seqno cimport after, i64_min, u32_max, u32_min
from ustack.core.access cimport jiffies_up, sk_los, sr_at
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPOrigDataSent, mib_add
from ustack.core.tcb cimport (
    CHRONO_RWND_LIMITED, ICSK_TIME_LOSS_PROBE, TCP_CA_CWR, TCP_CA_OPEN, TCP_CA_RECOVERY, TCP_NAGLE_CORK,
    TCP_NAGLE_PUSH, tcb_t,
)
from ustack.core.types cimport (
    NS_PER_MS, NS_PER_SEC, NS_PER_US, TH_FIN, idx_t, ns_t, uint16_t, uint32_t, likely, unlikely,
)
from ustack.core.xmit cimport tcp_pacing_check, tcp_reset_xmit_timer_paced, tcp_transmit_skb

cdef enum:
    TCP_TIMEOUT_MIN_NS = 2000000        # least distance of a loss probe from the expected ACK
    TSO_DEFER_MAX_NS = 1000000
    TSO_MAX_DEFERRED_SEGS = 3


# ---- Nagle -------------------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_minshall_check(const tcb_t* sk) noexcept nogil:
    """Is a small packet of ours still out?"""
    return after(sk.snd_sml, sk.snd_una) and not after(sk.snd_sml, sk.snd_nxt)


cdef inline bint tcp_nagle_check(bint partial, const tcb_t* sk, uint32_t nonagle) noexcept nogil:
    """Must a partial segment wait?"""
    return partial and ((nonagle & TCP_NAGLE_CORK) != 0
                        or (nonagle == 0 and sk.packets_out != 0 and tcp_minshall_check(sk)))


cdef inline bint tcp_nagle_test(const tcb_t* sk, const srec_t* r, uint32_t mss, uint32_t nonagle) noexcept nogil:
    """May a record of one segment go?"""
    if nonagle & TCP_NAGLE_PUSH:
        return True
    if tcp_urg_mode(sk) or r.flags & TH_FIN:
        return True
    return not tcp_nagle_check(r.len < mss, sk, nonagle)


# ---- windows -----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_cwnd_test(const tcb_t* sk) noexcept nogil:
    """Segments the congestion window allows now, at most half of it, so that two transmissions are in flight."""
    cdef uint32_t in_flight = tcp_packets_in_flight(sk)
    if in_flight >= sk.snd_cwnd:
        return 0
    return u32_min(u32_max(sk.snd_cwnd >> 1, 1), sk.snd_cwnd - in_flight)


cdef inline bint tcp_snd_wnd_test(const tcb_t* sk, const srec_t* r, uint32_t mss) noexcept nogil:
    """Does the first segment of the record fit into the peer's window?"""
    cdef uint32_t end = r.seq + mss if r.len > mss else r.end_seq
    return not after(end, tcp_wnd_end(sk))


cdef inline uint32_t tcp_mss_split_point(const tcb_t* sk, const srec_t* r, idx_t i, uint32_t mss, uint32_t max_segs,
                                         uint32_t nonagle) noexcept nogil:
    """How many bytes of the record go into this transmission: whole segments, and the odd rest if Nagle lets it."""
    cdef uint32_t window = tcp_wnd_end(sk) - r.seq
    cdef uint32_t max_len = mss * max_segs
    cdef uint32_t needed
    cdef uint32_t partial
    if max_len <= window and i != sk.sq_tail:
        return max_len
    needed = u32_min(r.len, window)
    if max_len <= needed:
        return max_len
    partial = needed % mss
    if tcp_nagle_check(partial != 0, sk, nonagle):
        return needed - partial
    return needed


cdef inline bint tso_wait_for_ack(engine_t* e, const tcb_t* sk) noexcept nogil:
    """Is the next ACK so near that waiting for it costs little: at most 1 ms or half a round trip?"""
    cdef ns_t srtt = <ns_t> (NS_PER_US >> 3) * sk.rtt.srtt_us
    cdef idx_t head = sq_rtx_head(sk)
    if head == 0:
        return False
    return sr_at(e, head).tx_time + srtt - e.now <= i64_min(srtt >> 1, TSO_DEFER_MAX_NS)


cdef inline bint tcp_tso_should_defer(engine_t* e, tcb_t* sk, const srec_t* r, idx_t i, bint* is_cwnd_limited,
                                      bint* is_rwnd_limited, uint32_t max_segs) noexcept nogil:
    """Wait for a larger transmission? Only if more window or more data is to be expected soon."""
    cdef uint32_t send_win
    cdef uint32_t cong_win
    cdef uint32_t limit
    cdef uint32_t chunk
    if sk.ca_state >= TCP_CA_RECOVERY or e.now - sk.tcp_wstamp > NS_PER_MS:
        return False
    send_win = tcp_wnd_end(sk) - r.seq
    cong_win = (sk.snd_cwnd - tcp_packets_in_flight(sk)) * sk.mss_cache
    limit = u32_min(send_win, cong_win)
    if limit >= max_segs * sk.mss_cache or (i != sk.sq_tail and limit >= r.len):
        return False
    if e.cfg.tcp_tso_win_divisor:
        chunk = u32_min(sk.snd_wnd, sk.snd_cwnd * sk.mss_cache)
        if limit >= chunk / <uint32_t> e.cfg.tcp_tso_win_divisor:
            return False
    elif limit > TSO_MAX_DEFERRED_SEGS * sk.mss_cache:
        return False
    if not tso_wait_for_ack(e, sk):
        return False
    if cong_win < send_win:
        if cong_win <= r.len:
            is_cwnd_limited[0] = True
            return True
    elif send_win <= r.len:
        is_rwnd_limited[0] = True
        return True
    return not (r.flags & TH_FIN or r.eor)


# ---- after a transmission ----------------------------------------------------------------------------------------------------------
cdef inline void tcp_event_new_data_sent(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """The head of the write queue has been sent for the first time."""
    cdef srec_t* r = sr_at(e, i)
    cdef uint32_t prior = sk.packets_out
    sk.snd_nxt = r.end_seq
    sq_mark_sent(e, sk, i)
    sk.packets_out += r.pcount
    if prior == 0 or sk.icsk_pending == ICSK_TIME_LOSS_PROBE:
        tcp_rearm_rto(e, sk)
    mib_add(&e.stats, MIB_TcpExtTCPOrigDataSent, r.pcount)
    tcp_check_space(e, sk)


cdef inline void tcp_minshall_update(tcb_t* sk, uint32_t mss, const srec_t* r) noexcept nogil:
    if r.len < r.pcount * mss:
        sk.snd_sml = r.end_seq


cdef inline bint tcp_schedule_loss_probe(engine_t* e, tcb_t* sk, bint advancing_rto) noexcept nogil:
    """Arm the timer for a tail loss probe instead of the RTO (facts J3): 2 * SRTT, and RTO_min more if a delayed ACK may hold back the
    only packet; never later than the RTO."""
    cdef ns_t timeout
    cdef ns_t rto
    if sk.fastopen_rsk:
        return False
    if ((e.cfg.tcp_early_retrans != 3 and e.cfg.tcp_early_retrans != 4) or sk.packets_out == 0 or not tcp_is_sack(sk)
            or (sk.ca_state != TCP_CA_OPEN and sk.ca_state != TCP_CA_CWR)):
        return False
    if likely(sk.rtt.srtt_us):
        timeout = <ns_t> (sk.rtt.srtt_us >> 2) * NS_PER_US
        timeout += sk_rto_min(e, sk) if sk.packets_out == 1 else TCP_TIMEOUT_MIN_NS
    else:
        timeout = NS_PER_SEC
    rto = sk.rto if advancing_rto else tcp_rto_delta(e, sk)
    if rto > 0:
        timeout = i64_min(timeout, rto)
    tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_LOSS_PROBE, jiffies_up(e, timeout))
    return True


# ---- the loop ----------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_grow_skb(engine_t* e, tcb_t* sk, idx_t i, uint32_t amount) noexcept nogil:
    """A record too short for what may be sent takes over bytes of the next one."""
    cdef srec_t* r = sr_at(e, i)
    cdef idx_t j = r.next
    cdef srec_t* b
    cdef uint32_t n
    if likely(j == 0):
        return
    b = sr_at(e, j)
    if not sr_can_merge(r, b):
        return
    n = u32_min(amount, b.len)
    if n == 0:
        return
    r.len += n
    r.end_seq += n
    b.seq += n
    b.len -= n
    if b.len == 0:
        r.end_seq = b.end_seq
        r.flags |= b.flags
        r.eor = b.eor
        if b.tstamp_flags:
            r.tstamp_flags |= b.tstamp_flags
            r.tskey = b.tskey
        sq_unlink_free(e, sk, j)


cdef inline void mtu_probe_sent(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef srec_t* r = sr_at(e, sk.send_head)
    tcp_event_new_data_sent(e, sk, sk.send_head)
    sk.mtup_probe_size = <uint16_t> tcp_mss_to_mtu(sk, <int> r.len)
    sk_los(e, sk).mtup_probe_seq_start = r.seq
    sk_los(e, sk).mtup_probe_seq_end = r.end_seq


cdef inline bint xmit_prepare(engine_t* e, tcb_t* sk, idx_t i, uint32_t mss, uint32_t nonagle, int push_one, uint32_t quota,
                              uint32_t max_segs, bint* is_cwnd_limited, bint* is_rwnd_limited) noexcept nogil:
    """The head of the write queue, cut to what may be sent now; False: nothing may."""
    cdef srec_t* r = sr_at(e, i)
    cdef uint32_t limit = mss
    if quota * mss > r.len:
        tcp_grow_skb(e, sk, i, quota * mss - r.len)
    tcp_set_tso_segs(r, mss)
    if not tcp_snd_wnd_test(sk, r, mss):
        is_rwnd_limited[0] = True
        return False
    if r.pcount == 1:
        if not tcp_nagle_test(sk, r, mss, nonagle if i == sk.sq_tail else <uint32_t> TCP_NAGLE_PUSH):
            return False
    else:
        if not push_one and tcp_tso_should_defer(e, sk, r, i, is_cwnd_limited, is_rwnd_limited, max_segs):
            return False
        if not tcp_urg_mode(sk):
            limit = tcp_mss_split_point(sk, r, i, mss, quota, nonagle)
    if r.len > limit and sq_split(e, sk, i, limit, mss) == 0:
        return False
    return r.end_seq != r.seq


cdef inline bint tcp_write_xmit(engine_t* e, tcb_t* sk, uint32_t mss, uint32_t nonagle, int push_one) noexcept nogil:
    """Send what may be sent. push_one: 0 all, 1 one transmission, 2 one even beyond the congestion window (loss probe). True: data waits,
    nothing is out, so no ACK will come: the caller must see to a zero-window probe."""
    cdef bint is_cwnd_limited = False
    cdef bint is_rwnd_limited = False
    cdef uint32_t max_segs
    cdef uint32_t quota
    cdef uint32_t sent = 0
    cdef idx_t i
    cdef int rc
    if not push_one:
        rc = tcp_mtu_probe(e, sk)
        if rc == 0:
            return False
        if rc > 0:
            mtu_probe_sent(e, sk)
            sent = 1
    max_segs = tcp_tso_segs(e, sk, mss, cc_min_tso_segs(e, sk))
    while True:
        i = sk.send_head
        if i == 0 or tcp_pacing_check(e, sk):
            break
        quota = tcp_cwnd_test(sk)
        if quota == 0:
            if push_one != 2:
                break
            quota = 1
        if not xmit_prepare(e, sk, i, mss, nonagle, push_one, u32_min(quota, max_segs), max_segs, &is_cwnd_limited,
                            &is_rwnd_limited):
            break
        if tcp_transmit_skb(e, sk, i) != 0:
            break
        tcp_event_new_data_sent(e, sk, i)
        tcp_minshall_update(sk, mss, sr_at(e, i))
        sent += sr_at(e, i).pcount
        if push_one:
            break
    return xmit_done(e, sk, sent, is_cwnd_limited, is_rwnd_limited, push_one)


cdef inline bint xmit_done(engine_t* e, tcb_t* sk, uint32_t sent, bint is_cwnd_limited, bint is_rwnd_limited,
                           int push_one) noexcept nogil:
    if unlikely(is_rwnd_limited):
        tcp_chrono_start(e, sk, CHRONO_RWND_LIMITED)
    else:
        tcp_chrono_stop(e, sk, CHRONO_RWND_LIMITED)
    is_cwnd_limited = is_cwnd_limited or tcp_packets_in_flight(sk) >= sk.snd_cwnd
    if sent or is_cwnd_limited:
        tcp_cwnd_validate(e, sk, is_cwnd_limited)
    if sent:
        if tcp_in_cwnd_reduction(sk):
            sk.prr_out += sent
        if push_one != 2:
            tcp_schedule_loss_probe(e, sk, False)
        return False
    return sk.packets_out == 0 and not sq_wq_empty(sk)
