# setsockopt: numbers, layouts, ranges and effects of Linux (layer: top of the core).
#
# Values are the kernel's byte layouts. What Linux has and ustack does not model answers as documented in docs/linux-parity.md.
# Called by the border under the lock; returns 0 or -errno.

from libc.string cimport memcpy

from ustack.core.types cimport (
    E_DOM, E_INVAL, E_NOENT, E_NOMEM, E_NOPROTOOPT, E_OPNOTSUPP, E_PERM, NS_NEVER, NS_PER_MS, NS_PER_SEC, TCP_CLOSE, TCP_CLOSE_WAIT,
    TCP_ESTABLISHED, TCP_LISTEN, int16_t, int32_t, int64_t, ns_t, uint32_t, uint64_t, uint8_t,
)
from ustack.core.access cimport ext_at, jiffies_up, lst_at, sk_opt
from ustack.core.cc cimport cc_assign, cc_by_name
from ustack.core.fastopen cimport fastopen_init_key_once
from ustack.core.output cimport tcp_push_pending_frames
from ustack.core.pool cimport pool_alloc
from ustack.core.rcvwin cimport tcp_space_from_win
from ustack.core.records cimport listener_t, reqext_t
from ustack.core.recvmsg cimport tcp_cleanup_rbuf
from ustack.core.sock cimport sk_delete_keepalive, sk_reset_keepalive
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    ICSK_ACK_PUSHED, ICSK_ACK_SCHED, SF_BROADCAST, SF_DEBUG, SF_DONTROUTE, SF_FREEBIND, SF_INQ, SF_KEEPOPEN, SF_LINGER, SF_NOSPACE,
    SF_RECVERR, SF_RECVTOS, SF_REUSEADDR, SF_REUSEPORT, SF_TIMESTAMP, SF_TIMESTAMPING, SF_TIMESTAMPNS, SF_URGINLINE, SF_ZEROCOPY,
    SOCK_RCVBUF_LOCK, SOCK_SNDBUF_LOCK, TCP_NAGLE_CORK, TCP_NAGLE_OFF, TCP_NAGLE_PUSH, tcb_t,
)
from ustack.core.timers cimport keepalive_time_elapsed, keepalive_time_when
from ustack.core.wake cimport sk_data_ready, sk_stream_is_writeable, sk_write_space


cdef enum:
    SOL_IP = 0
    SOL_SOCKET = 1
    SOL_TCP = 6
    TCP_RTO_MAX_SEC = 120
    SOCK_MIN_RCVBUF = 2304
    SOCK_MIN_SNDBUF = 4608


cdef inline int32_t get_int(const uint8_t* val) noexcept nogil:
    cdef int32_t v
    memcpy(&v, val, 4)
    return v


cdef inline void flag_set(tcb_t* sk, uint32_t flag, bint on) noexcept nogil:
    if on:
        sk.sflags |= flag
    else:
        sk.sflags &= ~flag


# ---- conversions ---------------------------------------------------------------------------------------------------------------
cdef inline uint8_t secs_to_retrans(int32_t seconds) noexcept nogil:
    """TCP_DEFER_ACCEPT's seconds as a number of SYN-ACK timer ticks: 1 + 2 + 4 ... each capped at 120 s (facts D8)."""
    cdef uint8_t n = 0
    cdef int32_t period = 1
    cdef int32_t timeout = 1
    if seconds <= 0:
        return 0
    n = 1
    while seconds > period and n < 255:
        n += 1
        timeout <<= 1
        if timeout > TCP_RTO_MAX_SEC:
            timeout = TCP_RTO_MAX_SEC
        period += timeout
    return n


cdef inline int timeval_set(ns_t* t, const uint8_t* val, uint32_t n) noexcept nogil:
    cdef int64_t tv[2]
    if n < 16:
        return -E_INVAL
    memcpy(tv, val, 16)
    if tv[1] < 0 or tv[1] >= 1000000:
        return -E_DOM
    if tv[0] < 0:
        t[0] = 0
    elif tv[0] == 0 and tv[1] == 0:
        t[0] = NS_NEVER
    elif tv[0] > 4000000000LL:
        t[0] = NS_NEVER
    else:
        t[0] = tv[0] * NS_PER_SEC + tv[1] * 1000
    return 0


# ---- SOL_SOCKET ------------------------------------------------------------------------------------------------------------------
cdef inline void set_keepalive(engine_t* e, tcb_t* sk, bint on) noexcept nogil:
    cdef bint was = (sk.sflags & SF_KEEPOPEN) != 0
    if sk.state != TCP_CLOSE and sk.state != TCP_LISTEN:
        if on and not was:
            sk_reset_keepalive(e, sk, keepalive_time_when(e, sk))
        elif not on:
            sk_delete_keepalive(e, sk)
    flag_set(sk, SF_KEEPOPEN, on)


cdef inline int set_rcvlowat(engine_t* e, tcb_t* sk, int32_t v) noexcept nogil:
    """tcp_set_rcvlowat: capped by half the buffer that is possible; an unlocked buffer grows to hold it."""
    cdef int64_t cap
    cdef int64_t space
    if v < 0:
        v = 0x7fffffff
    cap = sk.rcvbuf >> 1 if sk.userlocks & SOCK_RCVBUF_LOCK else e.cfg.tcp_rmem_max >> 1
    if v > cap:
        v = <int32_t> cap
    sk_opt(e, sk).rcvlowat = v if v else 1
    if <int32_t> (sk.rcv_nxt - sk.copied_seq) >= sk.opt.rcvlowat and sk.rq_head:
        sk_data_ready(e, sk)
    if sk.userlocks & SOCK_RCVBUF_LOCK:
        return 0
    space = tcp_space_from_win(sk, v)
    if space > sk.rcvbuf:
        sk.rcvbuf = <int32_t> space
        if sk.window_clamp and sk.window_clamp < <uint32_t> v:
            sk.window_clamp = v
    return 0


cdef inline int set_sol_socket(engine_t* e, tcb_t* sk, int name, const uint8_t* val, uint32_t n) noexcept nogil:
    cdef int32_t v
    cdef uint64_t rate
    if n < 4:
        return -E_INVAL
    v = get_int(val)
    if name == 2:                                   # SO_REUSEADDR
        flag_set(sk, SF_REUSEADDR, v != 0)
    elif name == 15:                                # SO_REUSEPORT
        flag_set(sk, SF_REUSEPORT, v != 0)
    elif name == 7 or name == 32:                   # SO_SNDBUF, SO_SNDBUFFORCE
        if name == 7 and v > e.cfg.wmem_max:
            v = <int32_t> e.cfg.wmem_max
        if v < 0:
            v = 0 if name == 32 else <int32_t> e.cfg.wmem_max
        if v > 0x3fffffff:
            v = 0x3fffffff
        sk.userlocks |= SOCK_SNDBUF_LOCK
        sk.sndbuf = v * 2 if v * 2 > SOCK_MIN_SNDBUF else SOCK_MIN_SNDBUF
        if sk.sflags & SF_NOSPACE and sk_stream_is_writeable(e, sk):
            sk.sflags &= ~<uint32_t> SF_NOSPACE
            sk_write_space(e, sk)
    elif name == 8 or name == 33:                   # SO_RCVBUF, SO_RCVBUFFORCE
        if name == 8 and (v > e.cfg.rmem_max or v < 0):
            v = <int32_t> e.cfg.rmem_max
        if v < 0:
            v = 0
        if v > 0x3fffffff:
            v = 0x3fffffff
        sk.userlocks |= SOCK_RCVBUF_LOCK
        sk.rcvbuf = v * 2 if v * 2 > SOCK_MIN_RCVBUF else SOCK_MIN_RCVBUF
    elif name == 9:                                 # SO_KEEPALIVE
        set_keepalive(e, sk, v != 0)
    elif name == 10:                                # SO_OOBINLINE
        flag_set(sk, SF_URGINLINE, v != 0)
    elif name == 12:                                # SO_PRIORITY
        sk_opt(e, sk).priority = v
    elif name == 13:                                # SO_LINGER
        if n < 8:
            return -E_INVAL
        flag_set(sk, SF_LINGER, v != 0)
        if v:
            v = get_int(val + 4)
            sk_opt(e, sk).linger_s = <uint32_t> v
    elif name == 18:                                # SO_RCVLOWAT
        return set_rcvlowat(e, sk, v)
    elif name == 20 or name == 66:                  # SO_RCVTIMEO
        return timeval_set(&sk_opt(e, sk).rcvtimeo, val, n)
    elif name == 21 or name == 67:                  # SO_SNDTIMEO
        return timeval_set(&sk_opt(e, sk).sndtimeo, val, n)
    elif name == 6:                                 # SO_BROADCAST
        flag_set(sk, SF_BROADCAST, v != 0)
    elif name == 5:                                 # SO_DONTROUTE
        flag_set(sk, SF_DONTROUTE, v != 0)
    elif name == 1:                                 # SO_DEBUG
        flag_set(sk, SF_DEBUG, v != 0)
    elif name == 29 or name == 63:                  # SO_TIMESTAMP
        flag_set(sk, SF_TIMESTAMP, v != 0)
    elif name == 35 or name == 64:                  # SO_TIMESTAMPNS
        flag_set(sk, SF_TIMESTAMPNS, v != 0)
    elif name == 37 or name == 65:                  # SO_TIMESTAMPING
        if v & ~0x7ffff or v & ((1 << 16) | 128) == 1 << 16:     # OPT_ID_TCP says how OPT_ID counts
            return -E_INVAL
        if v & 128 and not sk.opt.tsflags & 128:        # OPT_ID: keys count from here (OPT_ID_TCP: from write_seq)
            if sk.state == TCP_CLOSE or sk.state == TCP_LISTEN:
                return -E_INVAL
            sk_opt(e, sk).tskey = sk.write_seq if v & (1 << 16) else sk.snd_una
        sk_opt(e, sk).tsflags = v
        flag_set(sk, SF_TIMESTAMPING, v != 0)
    elif name == 36:                                # SO_MARK
        sk_opt(e, sk).mark = v
    elif name == 47:                                # SO_MAX_PACING_RATE
        rate = <uint32_t> v
        if n >= 8:
            memcpy(&rate, val, 8)
        elif rate == 0xffffffffUL:
            rate = <uint64_t> -1
        if rate != <uint64_t> -1:
            sk.pacing_needed = 1
        sk_opt(e, sk).max_pacing_rate = rate
        if sk.pacing_rate > rate:
            sk.pacing_rate = rate
    elif name == 60:                                # SO_ZEROCOPY
        if v < 0 or v > 1:
            return -E_INVAL
        flag_set(sk, SF_ZEROCOPY, v != 0)
    elif name in (3, 4, 30, 38, 39, 17, 55, 57):    # read only
        return -E_NOPROTOOPT
    elif name == 49:                                # SO_INCOMING_CPU: kept; there is one CPU as far as a socket can tell
        sk_opt(e, sk).incoming_cpu2 = <int16_t> (v + 2)
    elif name in (11, 14, 16, 19, 40, 41, 43, 44, 45, 46, 69, 70, 74):
        return -E_NOPROTOOPT if name == 19 else 0   # accepted, no effect here (SO_NO_CHECK, SO_BUSY_POLL ...)
    else:
        return -E_NOPROTOOPT
    return 0


# ---- SOL_IP ------------------------------------------------------------------------------------------------------------------------
cdef inline int set_sol_ip(engine_t* e, tcb_t* sk, int name, const uint8_t* val, uint32_t n) noexcept nogil:
    cdef int32_t v
    if n >= 4:
        v = get_int(val)
    elif n >= 1:
        v = val[0]
    else:
        v = 0
    if name == 1:                                   # IP_TOS: the ECN bits stay TCP's
        sk.tos = <uint8_t> ((v & 0xfc) | (sk.tos & 3))
    elif name == 2:                                 # IP_TTL
        if n < 1 or (v != -1 and (v < 1 or v > 255)):
            return -E_INVAL
        sk.ttl = 0 if v == -1 else <uint8_t> v
    elif name == 10:                                # IP_MTU_DISCOVER
        if v < 0 or v > 5:
            return -E_INVAL
        sk.pmtudisc = <uint8_t> v
    elif name == 11:
        flag_set(sk, SF_RECVERR, v != 0)
    elif name == 13:
        flag_set(sk, SF_RECVTOS, v != 0)
    elif name == 15:
        if n < 1:
            return -E_INVAL
        flag_set(sk, SF_FREEBIND, v != 0)
    elif name == 21:                                # IP_MINTTL
        if n < 1 or v < 0 or v > 255:
            return -E_INVAL
        sk_opt(e, sk).min_ttl = <uint8_t> v
    elif name == 8:
        sk_opt(e, sk).pktinfo = v != 0
    elif name == 12:
        sk_opt(e, sk).recvttl = v != 0
    elif name in (6, 7, 19, 22, 23, 24, 33, 34, 50):
        return 0                                    # accepted, no effect on TCP here
    else:
        return -E_NOPROTOOPT
    return 0


# ---- SOL_TCP -----------------------------------------------------------------------------------------------------------------------
cdef inline int set_quickack(engine_t* e, tcb_t* sk, int32_t v) noexcept nogil:
    if v == 0:
        sk.ack_pingpong = <uint8_t> e.cfg.tcp_pingpong_thresh
        return 0
    sk.ack_pingpong = 0
    if (sk.state == TCP_ESTABLISHED or sk.state == TCP_CLOSE_WAIT) and sk.ack_pending & ICSK_ACK_SCHED:
        sk.ack_pending |= ICSK_ACK_PUSHED
        tcp_cleanup_rbuf(e, sk, 1)
        if not v & 1:
            sk.ack_pingpong = <uint8_t> e.cfg.tcp_pingpong_thresh
    return 0


cdef inline int set_window_clamp(tcb_t* sk, int32_t v) noexcept nogil:
    cdef uint32_t old = sk.window_clamp
    cdef uint32_t fresh
    if v == 0:
        if sk.state != TCP_CLOSE:
            return -E_INVAL
        sk.window_clamp = 0
        return 0
    fresh = <uint32_t> v if v > SOCK_MIN_RCVBUF // 2 else SOCK_MIN_RCVBUF // 2
    sk.window_clamp = fresh
    if sk.state == TCP_CLOSE or sk.state == TCP_LISTEN or fresh == old:
        return 0
    if fresh < old:
        if sk.rcv_ssthresh > fresh:
            sk.rcv_ssthresh = fresh
    else:
        fresh = sk.rcv_wnd if sk.rcv_wnd < fresh else fresh
        if fresh > sk.rcv_ssthresh:
            sk.rcv_ssthresh = fresh
    return 0


cdef inline int set_fastopen(engine_t* e, tcb_t* sk, int32_t v) noexcept nogil:
    cdef uint32_t qlen
    if v < 0 or (sk.state != TCP_CLOSE and sk.state != TCP_LISTEN):
        return -E_INVAL
    fastopen_init_key_once(e)
    qlen = <uint32_t> v if v < e.cfg.somaxconn else <uint32_t> e.cfg.somaxconn
    sk_opt(e, sk).fo_qlen_set = qlen
    if sk.state == TCP_LISTEN:
        lst_at(e, sk.listener).fo_max_qlen = qlen
    return 0


cdef inline int set_fastopen_key(engine_t* e, tcb_t* sk, const uint8_t* val, uint32_t n) noexcept nogil:
    """TCP_FASTOPEN_KEY: 16 bytes, or 32 with a backup key (facts I3)."""
    cdef reqext_t* ext
    cdef listener_t* l
    if n != 16 and n != 32:
        return -E_INVAL
    if sk.opt.fo_keys == 0:
        sk_opt(e, sk).fo_keys = pool_alloc(&e.ext)
        if sk.opt.fo_keys == 0:
            return -E_NOMEM
    ext = ext_at(e, sk.opt.fo_keys)
    memcpy(ext.fo_cookie, val, 16)
    ext.saved_syn_len = n == 32
    if n == 32:
        memcpy(ext.saved_syn, val + 16, 16)
    if sk.state == TCP_LISTEN:
        l = lst_at(e, sk.listener)
        l.fo_key_set = 1
        memcpy(l.fo_key, val, 16)
        l.fo_has_backup = n == 32
        if n == 32:
            memcpy(l.fo_backup, val + 16, 16)
    return 0


cdef inline int set_keepidle(engine_t* e, tcb_t* sk, int32_t v) noexcept nogil:
    cdef ns_t elapsed
    if v < 1 or v > 32767:
        return -E_INVAL
    sk_opt(e, sk).keepalive_time_s = v
    if sk.sflags & SF_KEEPOPEN and sk.state != TCP_CLOSE and sk.state != TCP_LISTEN:
        elapsed = keepalive_time_elapsed(e, sk)
        sk_reset_keepalive(e, sk, v * NS_PER_SEC - elapsed if v * NS_PER_SEC > elapsed else 0)
    return 0


cdef inline int set_cork_nodelay(engine_t* e, tcb_t* sk, int name, bint on) noexcept nogil:
    if name == 1:                                   # TCP_NODELAY
        if on:
            sk.nonagle |= TCP_NAGLE_OFF | TCP_NAGLE_PUSH
            tcp_push_pending_frames(e, sk)
        else:
            sk.nonagle &= ~<uint8_t> TCP_NAGLE_OFF
    elif on:                                        # TCP_CORK
        sk.nonagle |= TCP_NAGLE_CORK
    else:
        sk.nonagle &= ~<uint8_t> TCP_NAGLE_CORK
        if sk.nonagle & TCP_NAGLE_OFF:
            sk.nonagle |= TCP_NAGLE_PUSH
        tcp_push_pending_frames(e, sk)
    return 0


cdef inline int set_ticks_us_(engine_t* e, int v, uint32_t* into) noexcept nogil:
    # TCP_RTO_MIN_US, TCP_DELACK_MAX_US: whole ticks, two at least, 200 ms at most.
    cdef ns_t t = jiffies_up(e, <ns_t> v * 1000)
    if v < 0 or t < 2 * e.tick or t > 200 * NS_PER_MS:
        return -E_INVAL
    into[0] = <uint32_t> (t // 1000)
    return 0


cdef inline int set_small_tcp(engine_t* e, tcb_t* sk, int name, int32_t v) noexcept nogil:
    """The options that only store a number within a range."""
    if name == 2:                                   # TCP_MAXSEG
        if v and (v < 88 or v > 32767):
            return -E_INVAL
        sk_opt(e, sk).user_mss = <uint32_t> v
    elif name == 5:                                 # TCP_KEEPINTVL
        if v < 1 or v > 32767:
            return -E_INVAL
        sk_opt(e, sk).keepalive_intvl_s = v
    elif name == 6:                                 # TCP_KEEPCNT
        if v < 1 or v > 127:
            return -E_INVAL
        sk_opt(e, sk).keepalive_probes = <uint8_t> v
    elif name == 7:                                 # TCP_SYNCNT
        if v < 1 or v > 127:
            return -E_INVAL
        sk_opt(e, sk).syn_retries = <uint8_t> v
    elif name == 8:                                 # TCP_LINGER2
        sk_opt(e, sk).linger2_s = -1 if v < 0 else (v if v < 120 else 120)
    elif name == 9:                                 # TCP_DEFER_ACCEPT
        sk.defer_accept = secs_to_retrans(v)
        if sk.state == TCP_LISTEN:
            lst_at(e, sk.listener).defer_accept = sk.defer_accept
    elif name == 16:                                # TCP_THIN_LINEAR_TIMEOUTS
        if v < 0 or v > 1:
            return -E_INVAL
        sk_opt(e, sk).thin_lto = <uint8_t> v
    elif name == 17:                                # TCP_THIN_DUPACK: gone since 4.x, range checked
        if v < 0 or v > 1:
            return -E_INVAL
    elif name == 18:                                # TCP_USER_TIMEOUT
        if v < 0:
            return -E_INVAL
        sk_opt(e, sk).user_timeout_ms = v
    elif name == 27:                                # TCP_SAVE_SYN
        if v < 0 or v > 2:
            return -E_INVAL
        sk_opt(e, sk).save_syn = <uint8_t> v
    elif name == 30:                                # TCP_FASTOPEN_CONNECT
        if v < 0 or v > 1:
            return -E_INVAL
        if not e.cfg.tcp_fastopen & 1:
            return -E_OPNOTSUPP
        if sk.state != TCP_CLOSE:
            return -E_INVAL
        sk.fastopen_connect = <uint8_t> v
    elif name == 34:                                # TCP_FASTOPEN_NO_COOKIE
        if v < 0 or v > 1 or (sk.state != TCP_CLOSE and sk.state != TCP_LISTEN):
            return -E_INVAL
        sk.fastopen_no_cookie = <uint8_t> v
    elif name == 36:                                # TCP_INQ
        if v < 0 or v > 1:
            return -E_INVAL
        flag_set(sk, SF_INQ, v != 0)
    elif name == 44:                                # TCP_RTO_MAX_MS
        if v < 1000 or v > 120000:
            return -E_INVAL
        sk_opt(e, sk).rto_max_ms = v
    elif name == 45:                                # TCP_RTO_MIN_US
        return set_ticks_us_(e, v, &sk.rto_min_us)
    elif name == 46:                                # TCP_DELACK_MAX_US
        return set_ticks_us_(e, v, &sk.delack_max_us)
    elif name in (19, 20, 21, 22, 29):              # TCP_REPAIR and its kin
        return -E_PERM
    elif name in (14, 31, 32, 38, 39, 40, 41, 42):  # MD5 and AO keys, ULP: not modelled
        return -E_NOPROTOOPT
    elif name == 37:                                # TCP_TX_DELAY
        return 0
    else:
        return -E_NOPROTOOPT
    return 0


cdef inline int set_sol_tcp(engine_t* e, tcb_t* sk, int name, const uint8_t* val, uint32_t n) noexcept nogil:
    cdef int32_t v
    cdef int cc
    if name == 13:                                  # TCP_CONGESTION: a name
        if n < 1:
            return -E_INVAL
        cc = cc_by_name(e, <const char*> val, n)
        if cc < 0:
            return -E_NOENT
        return cc_assign(e, sk, <uint8_t> cc)
    if name == 33:
        return set_fastopen_key(e, sk, val, n)
    if n < 4:
        return -E_INVAL
    v = get_int(val)
    if name == 1 or name == 3:
        return set_cork_nodelay(e, sk, name, v != 0)
    if name == 4:
        return set_keepidle(e, sk, v)
    if name == 10:
        return set_window_clamp(sk, v)
    if name == 12:
        return set_quickack(e, sk, v)
    if name == 23:
        return set_fastopen(e, sk, v)
    if name == 25:                                  # TCP_NOTSENT_LOWAT
        sk_opt(e, sk).notsent_lowat = <uint32_t> v
        if sk.sflags & SF_NOSPACE and sk_stream_is_writeable(e, sk):
            sk.sflags &= ~<uint32_t> SF_NOSPACE
            sk_write_space(e, sk)
        return 0
    return set_small_tcp(e, sk, name, v)


# ---- the two calls -----------------------------------------------------------------------------------------------------------------
cdef inline int user_setsockopt(engine_t* e, tcb_t* sk, int level, int name, const uint8_t* val, uint32_t n) noexcept nogil:
    if level == SOL_SOCKET:
        return set_sol_socket(e, sk, name, val, n)
    if level == SOL_TCP:
        return set_sol_tcp(e, sk, name, val, n)
    if level == SOL_IP:
        return set_sol_ip(e, sk, name, val, n)
    return -E_NOPROTOOPT
