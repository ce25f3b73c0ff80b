# The receive window: what to offer, how it grows, autotuning of the receive buffer (layer: above rcvq).
#
# Facts C8, J25, J26, RFC 9293 3.8.6.2, RFC 7323 2. The buffer is counted in truesize and converted to window by
# scaling_ratio (of 256), which follows the payload/truesize ratio of what arrives. rcv_ssthresh is how much of it one
# dares to offer, window_clamp the top. Invariant: without tcp_shrink_window the right edge rcv_wup + rcv_wnd never
# moves left. Header prediction lives here too (pred_flags), since windows turn it on and off. Called by everything
# that sends or receives.

from ustack.core.types cimport NS_PER_US, TH_ACK, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t, unlikely
from ustack.core.seqno cimport before, i32_max, i32_min, i64_max, i64_min, ilog2_u32, rounddown_u32, u32_max, u32_min
from ustack.core.skmem cimport tcp_under_memory_pressure
from ustack.core.access cimport rr_at, tcp_clock_ms
from ustack.core.wake cimport sk_data_ready
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPFromZeroWindowAdv, MIB_TcpExtTCPToZeroWindowAdv, MIB_TcpExtTCPWantZeroWindowAdv, mib_inc,
)
from ustack.core.tcb cimport ICSK_ACK_NOMEM, MAX_TCP_WINDOW, SF_DONE, SOCK_RCVBUF_LOCK, TCP_INIT_CWND, tcb_t

cdef enum:
    RMEM_TO_WIN_SHIFT = 8
    SOCK_MIN_RCVBUF = 2304
    TCP_MSS_DEFAULT = 536
    TCP_MIN_MSS = 88
    WSCALE_MAX = 14
    MAX_WINDOW16 = 65535


# ---- memory and window ---------------------------------------------------------------------------------------------
cdef inline int64_t tcp_win_from_space(const tcb_t* sk, int64_t space) noexcept nogil:
    return (space * sk.scaling_ratio) >> RMEM_TO_WIN_SHIFT


cdef inline int64_t tcp_space_from_win(const tcb_t* sk, int64_t win) noexcept nogil:
    return (win << RMEM_TO_WIN_SHIFT) // sk.scaling_ratio


cdef inline int32_t tcp_space(const tcb_t* sk) noexcept nogil:
    """Window that the free part of the buffer could hold; negative when it is overcommitted."""
    return <int32_t> tcp_win_from_space(sk, <int64_t> sk.rcvbuf - sk.rmem_alloc)


cdef inline int32_t tcp_full_space(const tcb_t* sk) noexcept nogil:
    return <int32_t> tcp_win_from_space(sk, sk.rcvbuf)


cdef inline uint32_t tcp_receive_window(const tcb_t* sk) noexcept nogil:
    """What is left of the window last offered."""
    cdef int32_t win = <int32_t> (sk.rcv_wup + sk.rcv_wnd - sk.rcv_nxt)
    return <uint32_t> win if win > 0 else 0


cdef inline uint32_t align_up_(uint32_t x, uint8_t shift) noexcept nogil:
    cdef uint32_t m = (<uint32_t> 1 << shift) - 1
    return (x + m) & ~m


cdef inline bint tcp_rmem_pressure(engine_t* e, const tcb_t* sk) noexcept nogil:
    if tcp_under_memory_pressure(e):
        return True
    return sk.rmem_alloc > sk.rcvbuf - (sk.rcvbuf >> 3)


cdef inline bint tcp_epollin_ready(engine_t* e, const tcb_t* sk, int32_t target) noexcept nogil:
    """Is there enough to read to say so? Less than SO_RCVLOWAT is enough when the peer can hardly send more."""
    cdef int32_t avail = <int32_t> (sk.rcv_nxt - sk.copied_seq)
    if avail <= 0:
        return False
    return avail >= target or tcp_rmem_pressure(e, sk) or tcp_receive_window(sk) <= sk.rcv_mss


cdef inline void tcp_data_ready(engine_t* e, tcb_t* sk) noexcept nogil:
    if tcp_epollin_ready(e, sk, sk.opt.rcvlowat) or sk.sflags & SF_DONE:
        sk_data_ready(e, sk)


# ---- header prediction ---------------------------------------------------------------------------------------------
cdef inline void tcp_fast_path_on_raw(tcb_t* sk, uint32_t raw_wnd) noexcept nogil:
    """Expect segments with this header length, ACK only, and this raw window: doff in words << 28 | flags << 16 |
    window."""
    sk.pred_flags = (<uint32_t> sk.tcp_header_len << 26) | (<uint32_t> TH_ACK << 16) | (raw_wnd & 0xffff)


cdef inline void tcp_fast_path_on(tcb_t* sk) noexcept nogil:
    tcp_fast_path_on_raw(sk, sk.snd_wnd >> sk.snd_wscale)


cdef inline void tcp_fast_path_check(engine_t* e, tcb_t* sk) noexcept nogil:
    """Turn prediction on if nothing out of the ordinary is going on."""
    if sk.ofo_head == 0 and sk.rcv_wnd and sk.rmem_alloc < sk.rcvbuf and sk.urg_state == 0:
        tcp_fast_path_on(sk)


# ---- choosing the window -------------------------------------------------------------------------------------------
cdef inline void tcp_select_initial_window(engine_t* e, int64_t space, uint32_t mss, uint32_t* rcv_wnd, uint32_t* clamp,
                                           bint wscale_ok, uint8_t* wscale, uint32_t init_rcv_wnd) noexcept nogil:
    """Window and scale for a SYN or SYN-ACK (facts C8). mss: the advertised one, less 12 with timestamps;
    init_rcv_wnd in segments, 0 = none."""
    cdef uint32_t top = clamp[0] if clamp[0] else <uint32_t> MAX_WINDOW16 << WSCALE_MAX
    cdef uint32_t room = <uint32_t> i64_min(i64_max(space, 0), top)
    cdef uint32_t x
    if room > mss:
        room = rounddown_u32(room, mss)
    rcv_wnd[0] = u32_min(room, MAX_TCP_WINDOW) if e.cfg.tcp_workaround_signed_windows else room
    if unlikely(init_rcv_wnd):
        rcv_wnd[0] = u32_min(rcv_wnd[0], init_rcv_wnd * mss)
    wscale[0] = 0
    if wscale_ok:
        x = <uint32_t> i64_max(i64_max(room, e.cfg.tcp_rmem_max), e.cfg.rmem_max)
        x = u32_min(x, top)
        wscale[0] = <uint8_t> i32_min(i32_max(ilog2_u32(x) - 15, 0), WSCALE_MAX)
    clamp[0] = u32_min(<uint32_t> MAX_WINDOW16 << wscale[0], top)


cdef inline void adjust_rcv_ssthresh_(engine_t* e, tcb_t* sk, uint32_t top) noexcept nogil:
    sk.rcv_ssthresh = u32_min(sk.rcv_ssthresh, top)


cdef inline uint32_t select_window_shrink_(engine_t* e, tcb_t* sk, int32_t mss, int32_t free_space, int32_t allowed,
                                           int32_t full) noexcept nogil:
    # tcp_shrink_window: the window is what fits, always a multiple of the scale unit.
    cdef int32_t unit = 1 << sk.rcv_wscale
    free_space &= ~(unit - 1)
    if free_space < full >> 1:
        sk.ack_quick = 0
        if tcp_under_memory_pressure(e):
            adjust_rcv_ssthresh_(e, sk, 4 * sk.advmss)
        if free_space < allowed >> 4 or free_space < mss or free_space < unit:
            return 0
    if free_space > <int32_t> sk.rcv_ssthresh:
        free_space = <int32_t> align_up_(sk.rcv_ssthresh, sk.rcv_wscale)
    return <uint32_t> free_space


cdef inline uint32_t select_window_round_(tcb_t* sk, int32_t mss, int32_t free_space, int32_t full) noexcept nogil:
    # The offer for this much space: up to the scale unit, or whole segments when there is no scale and it is worth a change.
    cdef int32_t window
    if sk.rcv_wscale:
        return align_up_(<uint32_t> free_space, sk.rcv_wscale)
    window = <int32_t> sk.rcv_wnd
    if window <= free_space - mss or window > free_space:
        window = free_space - free_space % mss
    elif mss == full and free_space > window + (full >> 1):
        window = free_space
    return <uint32_t> window


cdef inline uint32_t __tcp_select_window(engine_t* e, tcb_t* sk) noexcept nogil:
    """What the buffer allows to offer now (facts J25); may be less than what is already offered."""
    cdef int32_t mss = sk.rcv_mss
    cdef int32_t free_space = tcp_space(sk)
    cdef int32_t allowed = tcp_full_space(sk)
    cdef int32_t full = i32_min(<int32_t> sk.window_clamp, allowed)
    if unlikely(mss > full):
        mss = full
        if mss <= 0:
            return 0
    if unlikely(e.cfg.tcp_shrink_window) and sk.rcv_wscale:
        return select_window_shrink_(e, sk, mss, free_space, allowed, full)
    if unlikely(free_space < full >> 1):
        sk.ack_quick = 0
        if tcp_under_memory_pressure(e):
            adjust_rcv_ssthresh_(e, sk, 4 * sk.advmss)
        free_space &= ~((1 << sk.rcv_wscale) - 1)
        if free_space < allowed >> 4 or free_space < mss:
            return 0
    if free_space > <int32_t> sk.rcv_ssthresh:
        free_space = <int32_t> sk.rcv_ssthresh
    return select_window_round_(sk, mss, free_space, full)


cdef inline uint32_t tcp_select_window(engine_t* e, tcb_t* sk) noexcept nogil:
    """The window field of a segment about to leave; the offer is on record afterwards (rcv_wnd, rcv_wup)."""
    cdef uint32_t old = sk.rcv_wnd
    cdef uint32_t cur
    cdef uint32_t win
    if unlikely(sk.ack_pending & ICSK_ACK_NOMEM):
        sk.pred_flags = 0
        sk.rcv_wnd = 0
        sk.rcv_wup = sk.rcv_nxt
        return 0
    cur = tcp_receive_window(sk)
    win = __tcp_select_window(e, sk)
    if unlikely(win < cur) and (not e.cfg.tcp_shrink_window or sk.rcv_wscale == 0):
        if win == 0:
            mib_inc(&e.stats, MIB_TcpExtTCPWantZeroWindowAdv)
        win = align_up_(cur, sk.rcv_wscale)
    sk.rcv_wnd = win
    sk.rcv_wup = sk.rcv_nxt
    if sk.rcv_wscale == 0 and e.cfg.tcp_workaround_signed_windows:
        win = u32_min(win, MAX_TCP_WINDOW)
    else:
        win = u32_min(win, <uint32_t> MAX_WINDOW16 << sk.rcv_wscale)
    win >>= sk.rcv_wscale
    if unlikely(win == 0):
        sk.pred_flags = 0
        if old:
            mib_inc(&e.stats, MIB_TcpExtTCPToZeroWindowAdv)
    elif unlikely(old == 0):
        mib_inc(&e.stats, MIB_TcpExtTCPFromZeroWindowAdv)
    return win


# ---- clamp and growth ----------------------------------------------------------------------------------------------
cdef inline int tcp_set_window_clamp(engine_t* e, tcb_t* sk, int32_t v) noexcept nogil:
    """tcp_set_window_clamp for a value other than 0."""
    cdef uint32_t old = sk.window_clamp
    cdef uint32_t fresh = <uint32_t> i32_max(SOCK_MIN_RCVBUF // 2, v)
    if fresh == old:
        return 0
    sk.window_clamp = fresh
    if fresh < old:
        adjust_rcv_ssthresh_(e, sk, fresh)
    else:
        sk.rcv_ssthresh = u32_max(u32_min(sk.rcv_wnd, fresh), sk.rcv_ssthresh)
    return 0


cdef inline void tcp_initialize_rcv_mss(tcb_t* sk) noexcept nogil:
    """First guess of the peer's segment size: small, so that ACKs are not held back for long."""
    cdef uint32_t hint = u32_min(sk.advmss, sk.mss_cache)
    hint = u32_min(hint, sk.rcv_wnd // 2)
    hint = u32_min(hint, TCP_MSS_DEFAULT)
    sk.rcv_mss = <uint16_t> u32_max(hint, TCP_MIN_MSS)


cdef inline void tcp_init_rcv_space(engine_t* e, tcb_t* sk) noexcept nogil:
    """tcp_init_buffer_space, the receive side: clamp to the buffer, one segment held in reserve, start of autotuning.
    Whoever calls it expands the send buffer (tcp_sndbuf_expand) first."""
    cdef int32_t app = <int32_t> e.cfg.tcp_app_win
    cdef uint32_t maxwin = <uint32_t> tcp_full_space(sk)
    sk.rcvq_time = e.now
    sk.rcvq_seq = sk.copied_seq
    if sk.window_clamp >= maxwin:
        sk.window_clamp = maxwin
        if app and maxwin > 4 * sk.advmss:
            sk.window_clamp = u32_max(maxwin - (maxwin >> app), 4 * sk.advmss)
    if app and sk.window_clamp > 2 * sk.advmss and sk.window_clamp + sk.advmss > maxwin:
        sk.window_clamp = u32_max(2 * sk.advmss, maxwin - sk.advmss)
    sk.rcv_ssthresh = u32_min(sk.rcv_ssthresh, sk.window_clamp)
    sk.snd_cwnd_stamp = e.now
    sk.rcvq_space = u32_min(u32_min(sk.rcv_ssthresh, sk.rcv_wnd), TCP_INIT_CWND * sk.advmss)


cdef inline uint32_t grow_step_(engine_t* e, tcb_t* sk, uint32_t len, int32_t truesize) noexcept nogil:
    # The segment wastes memory: grow only while the window is so small that the waste does not matter.
    cdef int64_t size = tcp_win_from_space(sk, truesize) >> 1
    cdef int64_t window = tcp_win_from_space(sk, e.cfg.tcp_rmem_max) >> 1
    while sk.rcv_ssthresh <= window:
        if size <= len:
            return 2 * <uint32_t> sk.rcv_mss
        size >>= 1
        window >>= 1
    return 0


cdef inline void tcp_grow_window(engine_t* e, tcb_t* sk, uint32_t len, int32_t truesize) noexcept nogil:
    """A segment with len bytes of payload came in: open rcv_ssthresh if memory allows."""
    cdef int32_t room = i32_min(<int32_t> sk.window_clamp, tcp_space(sk)) - <int32_t> sk.rcv_ssthresh
    cdef uint32_t incr
    if room <= 0:
        return
    if tcp_under_memory_pressure(e):
        adjust_rcv_ssthresh_(e, sk, 4 * sk.advmss)
        return
    if tcp_win_from_space(sk, truesize) <= len:
        incr = 2 * sk.advmss
    else:
        incr = grow_step_(e, sk, len, truesize)
    if incr:
        incr = u32_max(incr, 2 * len)
        sk.rcv_ssthresh += u32_min(<uint32_t> room, incr)
        sk.ack_quick |= 1


cdef inline void tcp_clamp_window(engine_t* e, tcb_t* sk) noexcept nogil:
    """The queue has outgrown the buffer: enlarge the buffer if it may, else close the window down to two segments."""
    cdef int32_t top = <int32_t> e.cfg.tcp_rmem_max
    sk.ack_quick = 0
    if (sk.rcvbuf < top and not sk.userlocks & SOCK_RCVBUF_LOCK and not tcp_under_memory_pressure(e)
            and e.mem_pages < e.cfg.tcp_mem_min):
        sk.rcvbuf = i32_min(sk.rmem_alloc, top)
    if sk.rmem_alloc > sk.rcvbuf:
        sk.rcv_ssthresh = u32_min(sk.window_clamp, 2 * sk.advmss)


# ---- round-trip time of the receiver -------------------------------------------------------------------------------
cdef inline void rcv_rtt_update_(tcb_t* sk, uint32_t sample_us, bint from_window) noexcept nogil:
    """rcvrtt_us is eight times the estimate. A smaller sample counts at once; a larger one is smoothed in, unless it
    was taken from the window (then it may include the sender's idle time) or the application lags behind."""
    cdef int64_t m = <int64_t> sample_us << 3
    cdef uint32_t old = sk.rcvrtt_us
    if old == 0 or m < old:
        sk.rcvrtt_us = <uint32_t> m
        return
    if from_window or sk.rcv_nxt != sk.copied_seq:
        return
    sk.rcvrtt_us = old - (old >> 3) + sample_us


cdef inline void tcp_rcv_rtt_measure(engine_t* e, tcb_t* sk) noexcept nogil:
    """Time from offering a window to its being filled."""
    cdef int64_t us
    if sk.rcvrtt_time != 0:
        if before(sk.rcv_nxt, sk.rcvrtt_seq):
            return
        us = (e.now - sk.rcvrtt_time) // NS_PER_US
        rcv_rtt_update_(sk, <uint32_t> i64_max(us, 1), True)
    sk.rcvrtt_seq = sk.rcv_nxt + sk.rcv_wnd
    sk.rcvrtt_time = e.now


cdef inline void tcp_rcv_rtt_measure_ts(engine_t* e, tcb_t* sk, uint32_t seqlen) noexcept nogil:
    """Time since the peer's last echo of our timestamp; full segments only, one sample per echoed value, whole
    milliseconds."""
    cdef uint32_t delta
    if sk.rcv_tsecr == sk.rcvrtt_last_tsecr:
        return
    sk.rcvrtt_last_tsecr = sk.rcv_tsecr
    if seqlen < sk.rcv_mss:
        return
    delta = tcp_clock_ms(e) - sk.rcv_tsecr
    if delta != 0 and delta < 2147483:
        rcv_rtt_update_(sk, delta * 1000, False)


# ---- autotuning ----------------------------------------------------------------------------------------------------
cdef inline void tcp_rcvbuf_grow(engine_t* e, tcb_t* sk, uint32_t newval) noexcept nogil:
    """newval bytes were consumed in one round trip: room for twice that, for the growth of a sender in slow start,
    and for what lies beyond a hole."""
    cdef uint32_t oldval = sk.rcvq_space
    cdef uint32_t rcvwin
    cdef uint64_t grow
    cdef int64_t rcvbuf
    sk.rcvq_space = newval
    if not e.cfg.tcp_moderate_rcvbuf or sk.userlocks & SOCK_RCVBUF_LOCK:
        return
    rcvwin = newval << 1
    if oldval:
        grow = <uint64_t> rcvwin * (newval - oldval) // oldval
        rcvwin += <uint32_t> (grow << 1)
    if sk.los.ofo_tail:
        rcvwin += rr_at(e, sk.los.ofo_tail).end_seq - sk.rcv_nxt
    rcvbuf = i64_min(tcp_space_from_win(sk, rcvwin), e.cfg.tcp_rmem_max)
    if rcvbuf > sk.rcvbuf:
        sk.rcvbuf = <int32_t> rcvbuf
        sk.window_clamp = <uint32_t> tcp_win_from_space(sk, rcvbuf)


cdef inline void tcp_rcv_space_adjust(engine_t* e, tcb_t* sk) noexcept nogil:
    """Called after each copy to the application (dynamic right-sizing)."""
    cdef int64_t us
    cdef int32_t copied
    if sk.rcvrtt_us == 0:
        return
    us = (e.now - sk.rcvq_time) // NS_PER_US
    if us < sk.rcvrtt_us >> 3:
        return
    copied = <int32_t> (sk.copied_seq - sk.rcvq_seq) - <int32_t> (sk.rcv_nxt - sk.copied_seq)
    if copied > <int32_t> sk.rcvq_space:
        tcp_rcvbuf_grow(e, sk, <uint32_t> copied)
    sk.rcvq_seq = sk.copied_seq
    sk.rcvq_time = e.now
