# When to acknowledge: quick, delayed, compressed (layer above output, below input).
#
# RFC 9293 3.8.6.3, RFC 5681 4.2, facts J23, J24. The delayed-ACK engine estimates the gap between data segments
# (ato); quick counts ACKs still to be sent at once; pingpong means that our own data will carry the ACKs. Duplicate
# ACKs for segments out of order are sent at once three times per hole, then compressed by a timer. Jiffies of Linux
# are ticks of e.tick here: ato is a whole number of them. Invariant: while ICSK_ACK_TIMER is set TM_DELACK is
# armed (with engine_t.lazy_timers sometimes when it is not, too). Called by input and its parts, recvmsg, the engine's timer dispatch.
#
# A driver in real time may say that packets come in batches (engine_batch): an ACK that is due at once then waits for engine_settle, so the
# segments of a batch share one, and an answer carries it. Segments out of order are acknowledged one by one always. Without engine_batch
# (virtual time, replay, drill, Engine) there is no such thing.

from ustack.core.cc cimport cc_cwnd_event, cc_needs_ecn
from ustack.core.cwnd cimport CA_EVENT_ECN_IS_CE, CA_EVENT_ECN_NO_CE
from ustack.core.types cimport (
    REF_SHIFT, TCP_CLOSE, TCP_LISTEN, TH_FIN, TH_PSH, TH_SYN, TH_URG, TM_DELACK, int64_t, ns_t, seg_t, uint16_t,
    uint32_t, uint8_t, likely,
)
from ustack.core.output cimport tcp_owe, tcp_send_ack
from ustack.core.rcvq cimport TRUESIZE_HEAD, seg_in_pages, seg_truesize
from ustack.core.rcvwin cimport (
    RMEM_TO_WIN_SHIFT, TCP_MIN_MSS, TCP_MSS_DEFAULT, __tcp_select_window, tcp_full_space, tcp_grow_window,
    tcp_rcv_rtt_measure, tcp_set_window_clamp,
)
from ustack.core.route cimport sk_rt, sk_rto_min
from ustack.core.seqno cimport i64_max, i64_min, u32_min
from ustack.core.access cimport jiffies_down, jiffies_up, sk_los
from ustack.core.sock cimport sk_compack_id, sk_reset_delack
from ustack.core.state cimport engine_t, route_t
from ustack.core.stats cimport MIB_TcpExtDelayedACKs, MIB_TcpExtTCPAckCompressed, mib_add, mib_inc
from ustack.core.tcb cimport (
    ICSK_ACK_NOW, ICSK_ACK_PUSHED, ICSK_ACK_PUSHED2, ICSK_ACK_SCHED, ICSK_ACK_TIMER, OWES_ACK, OWES_QUICKACK, TCP_ECN_DEMAND_CWR,
    TCP_ECN_OK, TCP_ECN_SEEN, sklos_t, tcb_t,
)
from ustack.core.wheel cimport wheel_arm, wheel_armed, wheel_deadline, wheel_disarm

cdef enum:
    TCP_MAX_QUICKACKS = 16
    TCP_FASTRETRANS_THRESH = 3
    ATO_MIN_NS = 40000000           # TCP_ATO_MIN and TCP_DELACK_MIN
    DELACK_MAX_NS = 200000000       # TCP_DELACK_MAX
    DELACK_SLOW_NS = 500000000


# ---- quick and interactive mode ------------------------------------------------------------------------------------
cdef inline bint inet_csk_ack_scheduled(const tcb_t* sk) noexcept nogil:
    return (sk.ack_pending & ICSK_ACK_SCHED) != 0


cdef inline void inet_csk_schedule_ack(tcb_t* sk) noexcept nogil:
    sk.ack_pending |= ICSK_ACK_SCHED


cdef inline bint inet_csk_in_pingpong_mode(engine_t* e, const tcb_t* sk) noexcept nogil:
    return sk.ack_pingpong >= e.cfg.tcp_pingpong_thresh


cdef inline void inet_csk_enter_pingpong_mode(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.ack_pingpong = <uint8_t> e.cfg.tcp_pingpong_thresh


cdef inline void inet_csk_exit_pingpong_mode(tcb_t* sk) noexcept nogil:
    sk.ack_pingpong = 0


cdef inline void tcp_incr_quickack(tcb_t* sk, uint32_t top) noexcept nogil:
    cdef uint32_t n = sk.rcv_wnd // (2 * <uint32_t> sk.rcv_mss) if sk.rcv_mss else 0
    if n == 0:
        n = 2
    n = u32_min(n, top)
    if n > sk.ack_quick:
        sk.ack_quick = <uint8_t> n


cdef inline void tcp_enter_quickack_mode(tcb_t* sk, uint32_t top) noexcept nogil:
    tcp_incr_quickack(sk, top)
    inet_csk_exit_pingpong_mode(sk)
    sk.ato = ATO_MIN_NS


cdef inline bint tcp_in_quickack_mode(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef const route_t* r = sk_rt(e, sk)
    if r != NULL and r.quickack:
        return True
    return sk.ack_quick and not inet_csk_in_pingpong_mode(e, sk)


# ---- what data tells -----------------------------------------------------------------------------------------------
cdef inline void rescale_(engine_t* e, tcb_t* sk, uint32_t payload, uint32_t truesize) noexcept nogil:
    # The peer's segment size is new: payload per byte of memory decides how much window the buffer is worth.
    cdef uint32_t ratio = (payload << RMEM_TO_WIN_SHIFT) // truesize
    cdef uint8_t old = sk.scaling_ratio
    sk.scaling_ratio = <uint8_t> (ratio if ratio & 0xff else 1)
    if old != sk.scaling_ratio:
        tcp_set_window_clamp(e, sk, tcp_full_space(sk))
        if sk.window_clamp < sk.rcvq_space:
            sk.rcvq_space = sk.window_clamp


cdef inline void tcp_measure_rcv_mss(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Estimate the peer's segment size from what arrives; small or pushed segments mark the end of a burst."""
    cdef uint32_t last = sk.last_seg_size
    cdef uint32_t n = s.gso_size if s.gso_size else s.len
    sk.last_seg_size = 0
    if n >= sk.rcv_mss:
        if n != sk.rcv_mss:
            rescale_(e, sk, s.len, <uint32_t> seg_truesize(s))
        sk.rcv_mss = <uint16_t> u32_min(n, sk.advmss)
        if s.flags & TH_PSH:
            sk.ack_pending |= ICSK_ACK_PUSHED
        return
    n += s.doff                         # SACK blocks come and go: header and payload together are what stays
    if n >= TCP_MSS_DEFAULT + 20 or (n >= TCP_MIN_MSS + 20 and not s.flags & (TH_FIN | TH_URG | TH_SYN | TH_PSH)):
        n -= sk.tcp_header_len
        sk.last_seg_size = <uint16_t> n
        if n == last:
            sk.rcv_mss = <uint16_t> n
            return
    if sk.ack_pending & ICSK_ACK_PUSHED:
        sk.ack_pending |= ICSK_ACK_PUSHED2
    sk.ack_pending |= ICSK_ACK_PUSHED


cdef inline void tcp_data_ecn_check(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """RFC 3168 6.1.3 (facts J13): congestion experienced is echoed until the peer answers with CWR. A congestion control that needs ECN is told
    of every mark."""
    cdef uint32_t ecn = s.tos & 3
    if likely(not sk.ecn_flags & TCP_ECN_OK):
        return
    if ecn == 0:
        # No mark on a connection that had some: probably a retransmission, the peer is waiting for this ACK.
        if sk.ecn_flags & TCP_ECN_SEEN:
            tcp_enter_quickack_mode(sk, 2)
        return
    if cc_needs_ecn(e, sk.cc):
        cc_cwnd_event(e, sk, CA_EVENT_ECN_IS_CE if ecn == 3 else CA_EVENT_ECN_NO_CE)
    if ecn == 3 and not sk.ecn_flags & TCP_ECN_DEMAND_CWR:
        # The peer's window may be down to one segment soon: no delay.
        tcp_enter_quickack_mode(sk, 2)
        sk.ecn_flags |= TCP_ECN_DEMAND_CWR
    sk.ecn_flags |= TCP_ECN_SEEN


cdef inline void ato_update_(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef ns_t m
    if sk.ato == 0:
        tcp_incr_quickack(sk, TCP_MAX_QUICKACKS)
        sk.ato = ATO_MIN_NS
        return
    m = jiffies_down(e, e.now - sk.lrcvtime)
    if m <= ATO_MIN_NS // 2:
        sk.ato = jiffies_down(e, sk.ato // 2) + ATO_MIN_NS // 2
    elif m < sk.ato:
        sk.ato = i64_min(jiffies_down(e, sk.ato // 2) + m, sk.rto)
    elif m > sk.rto:
        # The sender has been idle and starts again with a small window.
        tcp_incr_quickack(sk, TCP_MAX_QUICKACKS)


cdef inline void tcp_event_data_recv(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Payload has been queued in order."""
    inet_csk_schedule_ack(sk)
    tcp_measure_rcv_mss(e, sk, s)
    tcp_rcv_rtt_measure(e, sk)
    ato_update_(e, sk)
    sk.lrcvtime = e.now
    tcp_data_ecn_check(e, sk, s)
    if s.len >= 128:
        tcp_grow_window(e, sk, s.len, grow_truesize_(s))


cdef inline int grow_truesize_(const seg_t* s) noexcept nogil:
    # The head of a frame whose payload is all in pages does not count against growth.
    cdef int size = seg_truesize(s)
    if seg_in_pages(s) and size - TRUESIZE_HEAD >= <int> s.len:
        return size - TRUESIZE_HEAD
    return size


# ---- sending the ACK -----------------------------------------------------------------------------------------------
cdef inline ns_t tcp_delack_max(engine_t* e, const tcb_t* sk) noexcept nogil:
    """A tick less than the peer's smallest retransmission timeout."""
    return i64_min(<ns_t> sk.delack_max_us * 1000, i64_max(sk_rto_min(e, sk), 2 * e.tick) - e.tick)


cdef inline void tcp_send_delayed_ack(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef ns_t ato = sk.ato
    cdef ns_t top
    cdef ns_t when
    cdef ns_t armed
    if ato > ATO_MIN_NS:
        top = DELACK_SLOW_NS
        if inet_csk_in_pingpong_mode(e, sk) or sk.ack_pending & ICSK_ACK_PUSHED:
            top = DELACK_MAX_NS
        if sk.rtt.srtt_us:
            top = i64_min(top, i64_max(jiffies_up(e, <ns_t> (sk.rtt.srtt_us >> 3) * 1000), ATO_MIN_NS))
        ato = i64_min(ato, top)
    ato = i64_min(ato, tcp_delack_max(e, sk))
    # No estimate yet (a FIN without data before it): Linux's timer fires at its next tick, after whatever happens now.
    when = e.now + (ato if ato else e.tick >> 2)
    if sk.ack_pending & ICSK_ACK_TIMER:
        armed = wheel_deadline(&e.wheel, (<uint32_t> TM_DELACK << REF_SHIFT) | sk.idx)
        if armed <= e.now + jiffies_down(e, ato >> 2):
            tcp_send_ack(e, sk)
            return
        when = i64_min(when, armed)
    sk.ack_pending |= ICSK_ACK_SCHED | ICSK_ACK_TIMER
    sk_reset_delack(e, sk, when)


cdef inline void compress_ack_(engine_t* e, tcb_t* sk) noexcept nogil:
    # A duplicate ACK that may wait for the next: one per 5 % of the round trip.
    cdef uint32_t rtt = sk.rcvrtt_us
    cdef ns_t delay
    sk.compressed_ack += 1
    if wheel_armed(&e.wheel, sk_compack_id(sk)):
        return
    if sk.rtt.srtt_us and sk.rtt.srtt_us < rtt:
        rtt = sk.rtt.srtt_us
    delay = i64_min(e.cfg.tcp_comp_sack_delay_ns, <ns_t> rtt * 125 // 20)
    sk_los(e, sk)
    wheel_arm(&e.wheel, sk_compack_id(sk), e.now + delay)


cdef inline void tcp_ack_at_once(engine_t* e, tcb_t* sk, uint8_t what) noexcept nogil:
    """Now, or when the batch is settled."""
    if not (e.holds_acks and sk.ofo_head == 0 and sk.rx_dsack == 0 and tcp_owe(e, sk, what)):
        tcp_send_ack(e, sk)


cdef inline void __tcp_ack_snd_check(engine_t* e, tcb_t* sk, bint ofo_possible) noexcept nogil:
    """An ACK is due: now, after ato, or together with others."""
    cdef sklos_t* los
    if ((sk.rcv_nxt - sk.rcv_wup > sk.rcv_mss
            and (<int64_t> <uint32_t> (sk.rcv_nxt - sk.copied_seq) < sk.opt.rcvlowat or __tcp_select_window(e, sk) >= sk.rcv_wnd))
            or sk.ack_pending & ICSK_ACK_NOW):
        tcp_ack_at_once(e, sk, OWES_ACK)
        return
    if tcp_in_quickack_mode(e, sk):
        tcp_ack_at_once(e, sk, OWES_QUICKACK)
        return
    if not ofo_possible or sk.ofo_head == 0:
        tcp_send_delayed_ack(e, sk)
        return
    if sk.sack_ok == 0 or sk.compressed_ack >= e.cfg.tcp_comp_sack_nr:
        tcp_send_ack(e, sk)
        return
    los = sk_los(e, sk)
    if los.compressed_ack_rcv_nxt != sk.rcv_nxt:
        los.compressed_ack_rcv_nxt = sk.rcv_nxt
        los.dup_ack_counter = 0
    if los.dup_ack_counter < TCP_FASTRETRANS_THRESH:
        los.dup_ack_counter += 1
        tcp_send_ack(e, sk)
        return
    compress_ack_(e, sk)


cdef inline void tcp_ack_snd_check(engine_t* e, tcb_t* sk) noexcept nogil:
    if inet_csk_ack_scheduled(sk):
        __tcp_ack_snd_check(e, sk, True)


cdef inline void tcp_sack_compress_send_ack(engine_t* e, tcb_t* sk) noexcept nogil:
    """Compressed ACKs cannot wait: SACK blocks would be lost with them."""
    if sk.compressed_ack == 0:
        return
    wheel_disarm(&e.wheel, sk_compack_id(sk))
    mib_add(&e.stats, MIB_TcpExtTCPAckCompressed, sk.compressed_ack - 1)
    sk.compressed_ack = 0
    tcp_send_ack(e, sk)


# ---- timers --------------------------------------------------------------------------------------------------------
cdef inline void tcp_delack_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """TM_DELACK fired."""
    if sk.state == TCP_CLOSE or sk.state == TCP_LISTEN or not sk.ack_pending & ICSK_ACK_TIMER:
        return
    if sk.compressed_ack:
        tcp_sack_compress_send_ack(e, sk)
        return
    sk.ack_pending &= <uint8_t> ~ICSK_ACK_TIMER
    if not inet_csk_ack_scheduled(sk):
        return
    if not inet_csk_in_pingpong_mode(e, sk):
        sk.ato = i64_min(sk.ato * 2, sk.rto)
    else:
        inet_csk_exit_pingpong_mode(sk)
        sk.ato = ATO_MIN_NS
    tcp_send_ack(e, sk)
    mib_inc(&e.stats, MIB_TcpExtDelayedACKs)
