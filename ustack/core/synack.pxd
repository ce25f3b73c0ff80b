# The SYN-ACK: its window, its options, its bytes (layer above ipout and cookies).
#
# RFC 9293 3.10.7.2, RFC 7323 2.2 and 3.2, RFC 3168 6.1.1, RFC 7413 3.1; facts C3-C16. Linux: tcp_openreq_init_rwin,
# tcp_synack_options, tcp_make_synack, tcp_v4_send_synack, tcp_ecn_create_request.
# Both senders of a SYN-ACK, a request and a Fast Open child, fill a synack_t; synack_emit turns it into a frame.
# Invariant: whatever is agreed in a SYN-ACK follows from the request alone, so that each repetition is the same but for TSval.
# Callers: request, reqtimer, fastopen, timers (through fastopen).

from ustack.core.cc cimport cc_needs_ecn
from ustack.core.cookies cimport secret_ts_off, tuple_secret
from ustack.core.ipopt cimport inet_current_timestamp
from ustack.core.ipout cimport ipout_tcp
from ustack.core.pool cimport pool_alloc
from ustack.core.rcvwin cimport tcp_select_initial_window
from ustack.core.records cimport (
    RQ_ECN_ECT0, RQ_ECN_OK, RQ_NO_TIMER, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_TS_OFF, RQ_WSCALE_OK, req_t, reqext_t,
)
from ustack.core.route cimport (
    IP_PMTUDISC_DO, IP_PMTUDISC_WANT, RTAX_FEATURE_ECN, is_local, route_lookup, route_result_t, route_t,
)
from ustack.core.seqno cimport u32_min
from ustack.core.siphash cimport prng_u64
from ustack.core.access cimport ext_at, tcp_clock_ms
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_IpOutNoRoutes, MIB_TcpOutSegs, mib_inc
from ustack.core.tcb cimport SOCK_RCVBUF_LOCK, tcb_t
from ustack.core.types cimport (
    E_NOBUFS, TH_ACK, TH_CWR, TH_ECE, TH_SYN, flow_t, int16_t, int64_t, seg_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.wire cimport (
    IP_HLEN, TCP_HLEN, TCP_MAX_OPT, put32, wire_opt_fastopen, wire_opt_fastopen_len, wire_opt_mss, wire_opt_sackperm_nop,
    wire_opt_sackperm_ts, wire_opt_ts, wire_opt_wscale_nop,
)

cdef enum:
    IPV4_MIN_MTU = 68

cdef struct synack_t:
    flow_t flow
    uint32_t seq
    uint32_t ack
    uint32_t tsval
    uint32_t tsecr
    uint16_t wnd
    uint16_t mss
    uint8_t flags               # RQ_*: which options, ECE
    uint8_t wscale              # ours
    uint8_t tos
    uint8_t ttl
    uint8_t no_df
    uint8_t fo_exp
    int16_t fo_len              # -1: no Fast Open option
    uint8_t ipopt_len
    const uint8_t* fo_cookie
    const uint8_t* ipopt


# ---- what a request agrees on ----------------------------------------------------------------------------------------------------
cdef inline reqext_t* req_ext(engine_t* e, req_t* rq) noexcept nogil:
    # The request's extension, taken now if it has none; NULL if the pool is exhausted or the request lives on the stack.
    if rq.ext == 0:
        if rq.flags & RQ_NO_TIMER:
            return NULL
        rq.ext = pool_alloc(&e.ext)
        if rq.ext == 0:
            return NULL
    return ext_at(e, rq.ext)


cdef inline uint32_t req_rwnd(engine_t* e, const req_t* rq) noexcept nogil:
    # rsk_rcv_wnd. Only values of 65,535 and more need the extension.
    if rq.rwnd == 0xffff and rq.ext != 0 and ext_at(e, rq.ext).rwnd != 0:
        return ext_at(e, rq.ext).rwnd
    return rq.rwnd


cdef inline uint32_t req_window_clamp(engine_t* e, const req_t* rq) noexcept nogil:
    # rsk_window_clamp: without a user's or a route's limit it follows from our scale.
    if rq.ext != 0 and ext_at(e, rq.ext).window_clamp != 0:
        return ext_at(e, rq.ext).window_clamp
    return <uint32_t>65535 << (rq.wscales & 15)


cdef inline uint32_t synack_mss(tcb_t* sk, uint32_t advmss) noexcept nogil:
    # tcp_mss_clamp (facts C7)
    return sk.opt.user_mss if sk.opt.user_mss != 0 and sk.opt.user_mss < advmss else advmss


cdef inline void req_init_window(engine_t* e, tcb_t* lsk, req_t* rq, const route_result_t* rt, uint32_t mss, uint32_t rwnd_init) noexcept nogil:
    # tcp_openreq_init_rwin (facts C8); mss is what a full segment of the peer will carry. rwnd_init: window in segments (RWND_INIT), 0 = the
    # route's. Sets rwnd, our scale, the clamp.
    cdef uint32_t full = <uint32_t>((<int64_t>lsk.rcvbuf * lsk.scaling_ratio) >> 8)
    cdef uint32_t clamp = lsk.window_clamp
    cdef uint32_t rwnd = 0
    cdef uint32_t initrwnd = rwnd_init
    cdef uint8_t wscale = 0
    cdef reqext_t* x
    if rt.entry != NULL:
        if initrwnd == 0:
            initrwnd = rt.entry.initrwnd
        if clamp == 0:
            clamp = rt.entry.window
    if lsk.userlocks & SOCK_RCVBUF_LOCK and (clamp == 0 or clamp > full):
        clamp = full
    tcp_select_initial_window(e, full, mss, &rwnd, &clamp, (rq.flags & RQ_WSCALE_OK) != 0, &wscale, initrwnd)
    rq.rwnd = <uint16_t>u32_min(rwnd, 0xffff)
    rq.wscales = (rq.wscales & 0xf0) | wscale
    if rwnd > 0xffff or clamp != <uint32_t>65535 << wscale:
        x = req_ext(e, rq)
        if x != NULL:
            x.rwnd = rwnd
            x.window_clamp = clamp


cdef inline bint synack_wants_ecn(engine_t* e, const tcb_t* lsk, const seg_t* s, const route_t* rt) noexcept nogil:
    # tcp_ecn_create_request (facts C16): an ECN-setup SYN, itself not ECT unless a reserved bit shows that ECT is meant. Always if the
    # congestion control of the listener or of the route needs it.
    cdef bint allowed = e.cfg.tcp_ecn != 0 or (rt != NULL and rt.features & RTAX_FEATURE_ECN)
    if s.flags & (TH_ECE | TH_CWR) != (TH_ECE | TH_CWR):
        return False
    if cc_needs_ecn(e, lsk.cc) or (rt != NULL and rt.cc != 0 and cc_needs_ecn(e, rt.cc - 1)):
        return True
    return allowed and (s.tos & 3 == 0 or s.l4[12] & 0x0f)


# ---- bytes -----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t synack_options_(const synack_t* a, uint8_t* p) noexcept nogil:
    # Facts C4: MSS, SACK-permitted in the place of timestamp's padding, window scale, Fast Open cookie if it still fits.
    cdef uint32_t n = wire_opt_mss(p, a.mss)
    if a.flags & RQ_TSTAMP_OK:
        if a.flags & RQ_SACK_OK:
            n += wire_opt_sackperm_ts(p + n, a.tsval, a.tsecr)
        else:
            n += wire_opt_ts(p + n, a.tsval, a.tsecr)
    elif a.flags & RQ_SACK_OK:
        n += wire_opt_sackperm_nop(p + n)
    if a.flags & RQ_WSCALE_OK:
        n += wire_opt_wscale_nop(p + n, a.wscale)
    if a.fo_len >= 0 and n + wire_opt_fastopen_len(a.fo_len, a.fo_exp) <= TCP_MAX_OPT:
        n += wire_opt_fastopen(p + n, a.fo_cookie, a.fo_len, a.fo_exp)
    return n


cdef inline int synack_emit(engine_t* e, const synack_t* a) noexcept nogil:
    # One frame; 0, or -errno if there is no room for it. OutSegs counts it in any case, as tcp_make_synack does.
    cdef uint8_t opts[40]
    cdef uint32_t n = synack_options_(a, opts)
    cdef uint32_t total = IP_HLEN + a.ipopt_len + TCP_HLEN + n
    cdef bint df = not a.no_df or total <= IPV4_MIN_MTU
    mib_inc(&e.stats, MIB_TcpOutSegs)
    if e.tx_refuse:
        return -E_NOBUFS
    return ipout_tcp(e, a.flow.laddr, a.flow.faddr, a.flow.lport, a.flow.fport, a.seq, a.ack,
                     TH_SYN | TH_ACK | (TH_ECE if a.flags & RQ_ECN_OK else 0), a.wnd, opts, n,
                     0 if df else <uint16_t>prng_u64(&e.prng), df, a.ttl, a.tos, a.ipopt, a.ipopt_len)


cdef inline void synack_ip_(engine_t* e, tcb_t* sk, const route_result_t* rt, synack_t* a) noexcept nogil:
    # What the IP header takes from the socket that sends: the listener or the Fast Open child (facts C11).
    a.tos = sk.tos
    a.ttl = sk.ttl
    if a.ttl == 0:
        a.ttl = <uint8_t>(rt.entry.hoplimit if rt.entry != NULL and rt.entry.hoplimit != 0 else e.cfg.ip_default_ttl)
    a.no_df = not (sk.pmtudisc == IP_PMTUDISC_DO or (sk.pmtudisc == IP_PMTUDISC_WANT and not rt.mtu_locked))
    a.mss = <uint16_t>synack_mss(sk, rt.advmss)
    a.fo_len = -1
    a.ipopt_len = 0


cdef inline void synack_ext_(engine_t* e, tcb_t* sk, reqext_t* x, synack_t* a) noexcept nogil:
    # Echoed IP options and the reflected TOS (facts C11, C13), the MSS that a hook chose.
    if x.ipopt_len != 0:
        if x.ipopt_time != 0:
            put32(&x.ipopt[x.ipopt_time], inet_current_timestamp(e))
        a.ipopt = x.ipopt
        a.ipopt_len = x.ipopt_len
    if x.hook_mss != 0:
        a.mss = x.hook_mss
    if x.has_tos and e.cfg.tcp_reflect_tos:
        a.tos = (x.tos & 0xfc) | (sk.tos & 3)


cdef inline uint32_t tsval_never_0_(uint32_t tsval) noexcept nogil:
    # 0 means "none sent yet" in the request.
    return tsval if tsval != 0 else 0xffffffffUL


cdef inline uint32_t req_tsval_(engine_t* e, req_t* rq, uint32_t ts_off) noexcept nogil:
    # The TSval of a SYN-ACK sent now; first and last are kept for the check of the peer's echo (facts E5).
    cdef uint32_t tsval = tcp_clock_ms(e) + ts_off
    cdef uint32_t span
    cdef reqext_t* x
    if rq.tsval_first == 0:
        rq.tsval_first = tsval_never_0_(tsval)
        return rq.tsval_first
    span = tsval - rq.tsval_first
    rq.tsval_span = <uint16_t>u32_min(span, 0xffff)
    if span >= 0xffff:
        x = req_ext(e, rq)
        if x != NULL:
            x.tsval_last = tsval
    return tsval


cdef inline uint32_t req_tsval_last(engine_t* e, const req_t* rq) noexcept nogil:
    if rq.tsval_span == 0xffff and rq.ext != 0:
        return ext_at(e, rq.ext).tsval_last
    return rq.tsval_first + rq.tsval_span


cdef inline void req_flow(const req_t* rq, flow_t* f) noexcept nogil:
    f.laddr = rq.en.laddr
    f.faddr = rq.en.faddr
    f.lport = <uint16_t>(rq.en.ports >> 16)
    f.fport = <uint16_t>rq.en.ports


cdef inline void synack_of_req(engine_t* e, tcb_t* lsk, req_t* rq, const route_result_t* rt, synack_t* a) noexcept nogil:
    # All but TSval and a Fast Open option.
    req_flow(rq, &a.flow)
    a.seq = rq.isn
    a.ack = rq.risn + 1
    a.wnd = rq.rwnd
    a.flags = rq.flags
    a.wscale = rq.wscales & 15
    a.tsecr = rq.ts_recent
    synack_ip_(e, lsk, rt, a)
    if rq.ext != 0:
        synack_ext_(e, lsk, ext_at(e, rq.ext), a)
    if rq.flags & RQ_ECN_ECT0:
        a.tos |= 2                      # IP_TOS has no ECN bits


cdef inline uint32_t req_ts_off(engine_t* e, const req_t* rq) noexcept nogil:
    # Decided when the SYN came: tcp_timestamps may have changed since.
    if not rq.flags & RQ_TS_OFF:
        return 0
    return <uint32_t>(tuple_secret(e, rq.en.laddr, rq.en.faddr, <uint16_t>(rq.en.ports >> 16), <uint16_t>rq.en.ports) >> 32)


cdef inline int synack_repeat(engine_t* e, tcb_t* lsk, req_t* rq) noexcept nogil:
    # A SYN-ACK of a request that has sent one before. 0 or -1.
    cdef route_result_t rt
    cdef synack_t a
    if not is_local(e, rq.en.laddr):        # the address was taken away
        mib_inc(&e.stats, MIB_IpOutNoRoutes)
        return -1
    if synack_route(e, rq.en.laddr, rq.en.faddr, &rt) != 0:
        return -1
    synack_of_req(e, lsk, rq, &rt, &a)
    if rq.flags & RQ_TSTAMP_OK:
        a.tsval = req_tsval_(e, rq, req_ts_off(e, rq))
    return synack_emit(e, &a)


cdef inline int synack_route(engine_t* e, uint32_t laddr, uint32_t faddr, route_result_t* rt) noexcept nogil:
    # inet_csk_route_req: 0, or -1 counted as a packet without a route.
    if route_lookup(e, laddr, faddr, rt) == 0:
        return 0
    mib_inc(&e.stats, MIB_IpOutNoRoutes)
    return -1
