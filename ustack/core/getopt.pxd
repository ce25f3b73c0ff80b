# getsockopt: numbers and layouts of Linux (layer: top of the core).
#
# Values are the kernel's byte layouts, cut to the caller's length as the kernel cuts them. Called by the border under the lock; returns 0 or -errno.

from libc.string cimport memcpy, memset, strlen

from ustack.core.types cimport (
    E_INVAL, E_NOPROTOOPT, E_NOTCONN, NS_NEVER, NS_PER_SEC, TCP_CLOSE, TCP_LISTEN, int32_t, int64_t, ns_t, uint32_t, uint64_t, uint8_t,
)
from ustack.core.access cimport ext_at, lst_at, sk_handle, sk_opt
from ustack.core.cc cimport cc_name
from ustack.core.pool cimport pool_free
from ustack.core.records cimport reqext_t
from ustack.core.route cimport route_mtu
from ustack.core.setopt cimport SOL_IP, SOL_SOCKET, SOL_TCP, TCP_RTO_MAX_SEC
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    SF_BROADCAST, SF_DEBUG, SF_DONTROUTE, SF_FREEBIND, SF_INQ, SF_KEEPOPEN, SF_LINGER, SF_RECVERR, SF_RECVTOS, SF_REUSEADDR, SF_REUSEPORT,
    SF_TIMESTAMP, SF_TIMESTAMPNS, SF_URGINLINE, SF_ZEROCOPY, TCP_NAGLE_CORK, TCP_NAGLE_OFF, TCP_RTO_MAX_DEFAULT_MS,
    tcb_t,
)
from ustack.core.tcpinfo cimport TCP_INFO_SIZE, sk_get_meminfo, tcp_get_info


cdef inline int32_t retrans_to_secs(uint8_t n) noexcept nogil:
    cdef int32_t period = 0
    cdef int32_t timeout = 1
    while n:
        period += timeout
        timeout <<= 1
        if timeout > TCP_RTO_MAX_SEC:
            timeout = TCP_RTO_MAX_SEC
        n -= 1
    return period


cdef inline int put_int(uint8_t* out, uint32_t* n, int32_t v) noexcept nogil:
    if n[0] > 4:
        n[0] = 4
    memcpy(out, &v, n[0])
    return 0


cdef inline int put_timeval(uint8_t* out, uint32_t* n, ns_t t) noexcept nogil:
    cdef int64_t tv[2]
    tv[0] = 0
    tv[1] = 0
    if t != NS_NEVER:
        tv[0] = t // NS_PER_SEC
        tv[1] = (t % NS_PER_SEC) // 1000
    if n[0] > 16:
        n[0] = 16
    memcpy(out, tv, n[0])
    return 0


cdef inline int get_sol_socket(engine_t* e, tcb_t* sk, int name, uint8_t* out, uint32_t* n) noexcept nogil:
    cdef int32_t v = 0
    cdef int32_t pair[2]
    cdef uint64_t u
    if name == 2:
        v = (sk.sflags & SF_REUSEADDR) != 0
    elif name == 15:
        v = (sk.sflags & SF_REUSEPORT) != 0
    elif name == 3:
        v = 1                                       # SOCK_STREAM
    elif name == 4:                                 # SO_ERROR: hard error, else the soft one; reading clears both
        v = sk.sk_err
        sk.sk_err = 0
        if v == 0:
            v = sk.sk_err_soft
            sk.sk_err_soft = 0
    elif name == 7:
        v = sk.sndbuf
    elif name == 8:
        v = sk.rcvbuf
    elif name == 9:
        v = (sk.sflags & SF_KEEPOPEN) != 0
    elif name == 10:
        v = (sk.sflags & SF_URGINLINE) != 0
    elif name == 12:
        v = sk.opt.priority
    elif name == 13:
        pair[0] = (sk.sflags & SF_LINGER) != 0
        pair[1] = <int32_t> sk.opt.linger_s
        if n[0] > 8:
            n[0] = 8
        memcpy(out, pair, n[0])
        return 0
    elif name == 18:
        v = sk.opt.rcvlowat
    elif name == 19:
        v = 1
    elif name == 20 or name == 66:
        return put_timeval(out, n, sk.opt.rcvtimeo)
    elif name == 21 or name == 67:
        return put_timeval(out, n, sk.opt.sndtimeo)
    elif name == 6:
        v = (sk.sflags & SF_BROADCAST) != 0
    elif name == 5:
        v = (sk.sflags & SF_DONTROUTE) != 0
    elif name == 1:
        v = (sk.sflags & SF_DEBUG) != 0
    elif name == 29 or name == 63:
        v = (sk.sflags & SF_TIMESTAMP) != 0
    elif name == 35 or name == 64:
        v = (sk.sflags & SF_TIMESTAMPNS) != 0
    elif name == 37 or name == 65:
        v = sk.opt.tsflags
    elif name == 30:
        v = sk.state == TCP_LISTEN
    elif name == 36:
        v = sk.opt.mark
    elif name == 38:
        v = 6                                       # IPPROTO_TCP
    elif name == 39:
        v = 2                                       # AF_INET
    elif name == 47:
        u = sk.opt.max_pacing_rate
        if n[0] >= 8:
            n[0] = 8
            memcpy(out, &u, 8)
            return 0
        v = <int32_t> (u if u < 0xffffffffUL else 0xffffffffUL)
    elif name == 49:
        if sk.opt.incoming_cpu2:
            v = sk.opt.incoming_cpu2 - 2
        else:
            v = 0 if sk.segs_in != 0 and sk.state != TCP_LISTEN else -1
    elif name == 55:
        if n[0] > 36:
            n[0] = 36
        return get_meminfo_part(e, sk, out, n[0])
    elif name == 57:
        u = sk_handle(e, sk)
        if n[0] < 8:
            return -E_INVAL
        n[0] = 8
        memcpy(out, &u, 8)
        return 0
    elif name == 60:
        v = (sk.sflags & SF_ZEROCOPY) != 0
    elif name in (11, 14, 16, 40, 41, 43, 44, 45, 46, 69, 70, 74):
        v = 0
    else:
        return -E_NOPROTOOPT
    return put_int(out, n, v)


cdef inline int get_meminfo_part(engine_t* e, tcb_t* sk, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint8_t whole[36]
    sk_get_meminfo(e, sk, whole)
    memcpy(out, whole, n)
    return 0


cdef inline int get_sol_ip(engine_t* e, tcb_t* sk, int name, uint8_t* out, uint32_t* n) noexcept nogil:
    cdef int32_t v = 0
    if name == 1:
        v = sk.tos
    elif name == 2:
        v = sk.ttl if sk.ttl else <int32_t> e.cfg.ip_default_ttl
    elif name == 10:
        v = sk.pmtudisc
    elif name == 11:
        v = (sk.sflags & SF_RECVERR) != 0
    elif name == 13:
        v = (sk.sflags & SF_RECVTOS) != 0
    elif name == 14:                                # IP_MTU
        if sk.rt == 0 or sk.state == TCP_LISTEN:
            return -E_NOTCONN
        v = <int32_t> route_mtu(e, sk) if sk.rt_gen == e.rt_gen else sk.pmtu     # the route as it was looked up last
    elif name == 15:
        v = (sk.sflags & SF_FREEBIND) != 0
    elif name == 21:
        v = sk.opt.min_ttl
    elif name == 4:                                 # IP_OPTIONS: none
        n[0] = 0
        return 0
    elif name == 8:
        v = sk.opt.pktinfo
    elif name == 12:
        v = sk.opt.recvttl
    elif name in (6, 7, 19, 22, 23, 24, 33, 34, 50):
        v = 0
    else:
        return -E_NOPROTOOPT
    if n[0] < 4 and n[0] > 0 and v >= 0 and v <= 255:
        out[0] = <uint8_t> v
        n[0] = 1
        return 0
    return put_int(out, n, v)


cdef inline int get_saved_syn(engine_t* e, tcb_t* sk, uint8_t* out, uint32_t* n) noexcept nogil:
    """TCP_SAVED_SYN: read once; a buffer that is too small is EINVAL and tells the length."""
    cdef reqext_t* ext
    if sk.opt.saved_syn == 0:
        n[0] = 0
        return 0
    ext = ext_at(e, sk.opt.saved_syn)
    if n[0] < ext.saved_syn_len:
        n[0] = ext.saved_syn_len
        return -E_INVAL
    n[0] = ext.saved_syn_len
    memcpy(out, ext.saved_syn, ext.saved_syn_len)
    pool_free(&e.ext, sk.opt.saved_syn)
    sk_opt(e, sk).saved_syn = 0
    return 0


cdef inline int get_tcp_blob(engine_t* e, tcb_t* sk, int name, uint8_t* out, uint32_t* n) noexcept nogil:
    cdef uint8_t info[TCP_INFO_SIZE]
    cdef const char* text
    cdef uint32_t size
    if name == 11:                                  # TCP_INFO
        tcp_get_info(e, sk, info)
        if n[0] > TCP_INFO_SIZE:
            n[0] = TCP_INFO_SIZE
        memcpy(out, info, n[0])
        return 0
    if name == 13:                                  # TCP_CONGESTION: 16 bytes, zero padded
        text = cc_name(e, sk.cc)
        size = <uint32_t> strlen(text)
        if n[0] > 16:
            n[0] = 16
        memset(out, 0, n[0])
        memcpy(out, text, size if size < n[0] else n[0])
        return 0
    if name == 28:
        return get_saved_syn(e, sk, out, n)
    if name == 33:                                  # TCP_FASTOPEN_KEY
        return get_fastopen_key(e, sk, out, n)
    return -E_NOPROTOOPT


cdef inline int get_fastopen_key(engine_t* e, tcb_t* sk, uint8_t* out, uint32_t* n) noexcept nogil:
    # The keys of this listener only: those of the stack are not shown.
    cdef uint8_t both[32]
    cdef uint32_t size = 0
    cdef reqext_t* ext
    memset(both, 0, 32)
    if sk.opt.fo_keys:
        ext = ext_at(e, sk.opt.fo_keys)
        memcpy(both, ext.fo_cookie, 16)
        size = 16
        if ext.saved_syn_len:
            memcpy(both + 16, ext.saved_syn, 16)
            size = 32
    if n[0] > size:
        n[0] = size
    memcpy(out, both, n[0])
    return 0


cdef inline int get_sol_tcp(engine_t* e, tcb_t* sk, int name, uint8_t* out, uint32_t* n) noexcept nogil:
    cdef int32_t v = 0
    if name in (11, 13, 28, 33):
        return get_tcp_blob(e, sk, name, out, n)
    if name == 1:
        v = (sk.nonagle & TCP_NAGLE_OFF) != 0
    elif name == 2:
        v = sk.mss_cache
        if sk.opt.user_mss and (sk.state == TCP_CLOSE or sk.state == TCP_LISTEN):
            v = sk.opt.user_mss
    elif name == 3:
        v = (sk.nonagle & TCP_NAGLE_CORK) != 0
    elif name == 4:
        v = sk.opt.keepalive_time_s if sk.opt.keepalive_time_s else <int32_t> e.cfg.tcp_keepalive_time
    elif name == 5:
        v = sk.opt.keepalive_intvl_s if sk.opt.keepalive_intvl_s else <int32_t> e.cfg.tcp_keepalive_intvl
    elif name == 6:
        v = sk.opt.keepalive_probes if sk.opt.keepalive_probes else <int32_t> e.cfg.tcp_keepalive_probes
    elif name == 7:
        v = sk.opt.syn_retries if sk.opt.syn_retries else <int32_t> e.cfg.tcp_syn_retries
    elif name == 8:
        v = sk.opt.linger2_s
        if v == 0:
            v = <int32_t> e.cfg.tcp_fin_timeout
    elif name == 9:
        v = retrans_to_secs(sk.defer_accept)
    elif name == 10:
        v = sk.window_clamp
    elif name == 12:
        v = sk.ack_pingpong < e.cfg.tcp_pingpong_thresh
    elif name == 16:
        v = sk.opt.thin_lto
    elif name == 17 or name == 19 or name == 37:
        v = 0
    elif name == 18:
        v = sk.opt.user_timeout_ms
    elif name == 23:
        v = lst_at(e, sk.listener).fo_max_qlen if sk.state == TCP_LISTEN else sk.opt.fo_qlen_set
    elif name == 24:                                # TCP_TIMESTAMP
        v = <int32_t> (<uint32_t> (e.now // 1000000) + sk.ts_offset)
    elif name == 25:
        v = sk.opt.notsent_lowat
    elif name == 27:
        v = sk.opt.save_syn
    elif name == 30:
        v = sk.fastopen_connect
    elif name == 34:
        v = sk.fastopen_no_cookie
    elif name == 36:
        v = (sk.sflags & SF_INQ) != 0
    elif name == 43:                                # TCP_IS_MPTCP
        v = 0
    elif name == 44:
        v = sk.opt.rto_max_ms if sk.opt.rto_max_ms else TCP_RTO_MAX_DEFAULT_MS
    elif name == 45:
        v = <int32_t> sk.rto_min_us
    elif name == 46:
        v = <int32_t> sk.delack_max_us
    else:
        return -E_NOPROTOOPT
    return put_int(out, n, v)


cdef inline int user_getsockopt(engine_t* e, tcb_t* sk, int level, int name, uint8_t* out, uint32_t* n) noexcept nogil:
    """n: in the room in out, out the bytes written."""
    if level == SOL_SOCKET:
        return get_sol_socket(e, sk, name, out, n)
    if level == SOL_TCP:
        return get_sol_tcp(e, sk, name, out, n)
    if level == SOL_IP:
        return get_sol_ip(e, sk, name, out, n)
    return -E_NOPROTOOPT
