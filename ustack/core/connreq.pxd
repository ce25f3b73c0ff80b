# A SYN for a listener: the half-open request, the SYN cookie, the Fast Open child (layer above input).
#
# RFC 9293 3.10.7.2, RFC 4987, RFC 7413; facts section B, C1, C2, C16, F. Linux: tcp_v4_conn_request, tcp_conn_request, tcp_openreq_init,
# tcp_syn_flood_action, cookie_v4_check. The order of the tests in conn_request is part of the behaviour: each has its counter.
# A request is one 64-byte record and costs one hash insertion and one timer; an extension is taken only for what few need.
# A cookie SYN stores nothing: its request lives on the stack. Every function that discards returns the reason.
# Callers: request.

from libc.string cimport memcpy, memset

from ustack.core.acceptq cimport (
    acceptq_is_full, acceptq_push, listen_drop, listen_overflow, req_free, reqq_added, reqq_is_full,
)
from ustack.core.cookies cimport (
    cookie_check, cookie_make, cookie_options, cookie_tsval, secret_isn, secret_ts_off, synq_overflow, synq_recent_overflow,
    tuple_secret,
)
from ustack.core.child cimport req_timeout, tcp_create_child
from ustack.core.ehash cimport ehash_insert, enode_set
from ustack.core.fastopen cimport fastopen_option, fastopen_synack, fastopen_try, foc_t
from ustack.core.ipopt cimport ip_options_echo, ip_options_keep
from ustack.core.metrics cimport tcp_peer_is_proven
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport RQ_ECN_OK, RQ_NO_TIMER, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_WSCALE_OK, listener_t, req_t, reqext_t
from ustack.core.route cimport RTAX_FEATURE_ECN, ipv4_is_multicast, is_broadcast, route_lookup, route_result_t
from ustack.core.seqno cimport u32_max
from ustack.core.sock cimport ev_push, lst_at, ref_of, req_at, sk_data_ready
from ustack.core.state cimport EV_LOG, LOG_SYN_FLOOD_COOKIES, LOG_SYN_FLOOD_DROP, LOG_WSCALE_TOO_BIG, engine_t, event_t
from ustack.core.stats cimport (
    MIB_TcpExtSyncookiesFailed, MIB_TcpExtSyncookiesRecv, MIB_TcpExtSyncookiesSent, MIB_TcpExtTCPReqQFullDoCookies,
    MIB_TcpExtTCPReqQFullDrop, mib_inc,
)
from ustack.core.synack cimport (
    req_ext, req_init_window, req_tsval_, synack_emit, synack_mss, synack_of_req, synack_route, synack_t, synack_wants_ecn,
)
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport (
    DROP_NONE, DROP_NOT_SPECIFIED, DROP_POOL_REQ, DROP_TCP_LISTEN_BCAST, DROP_TCP_LISTEN_OVERFLOW, DROP_TCP_NO_ROUTE,
    DROP_TCP_REQQFULL_DROP, DROP_TCP_SYN_BACKLOG_RESERVE, KIND_REQ, OPT_MSS, OPT_SACKOK, OPT_TS, OPT_WSCALE, REF_SHIFT,
    TM_REQ, flow_t, idx_t, int32_t, seg_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.wheel cimport wheel_arm
from ustack.core.wire cimport TCP_MAX_WSCALE, TOK_NOP, TOK_WSCALE

cdef enum:
    TCP_MSS_DEFAULT = 536


# ---- what the SYN says (facts C1, C2, B8) ------------------------------------------------------------------------------------------
cdef inline void log_wscale_(engine_t* e, const seg_t* s) noexcept nogil:
    # One log line for a window scale above 14; the parser has cut it.
    cdef uint32_t i = 0
    cdef event_t* ev
    while i + 2 < s.opt_len and s.opt[i] != 0:
        if s.opt[i] == TOK_WSCALE and s.opt[i + 1] == 3 and s.opt[i + 2] > TCP_MAX_WSCALE:
            ev = ev_push(e, EV_LOG, LOG_WSCALE_TOO_BIG)
            if ev != NULL:
                ev.a = s.opt[i + 2]
                ev.b = TCP_MAX_WSCALE
                ev.flow = flow_t(s.dst, s.src, s.dport, s.sport)
        i += 1 if s.opt[i] == TOK_NOP else u32_max(s.opt[i + 1], 2)


cdef inline void req_parse_(engine_t* e, const tcb_t* lsk, const seg_t* s, req_t* rq, bint cookie) noexcept nogil:
    # tcp_parse_options + tcp_openreq_init. A cookie carries options in its timestamp; without one only the MSS is kept.
    cdef uint8_t flags = 0
    if s.opts & OPT_TS and e.cfg.tcp_timestamps:
        flags |= RQ_TSTAMP_OK
        rq.ts_recent = s.tsval
    if not cookie or flags:
        if s.opts & OPT_SACKOK and e.cfg.tcp_sack:
            flags |= RQ_SACK_OK
        if s.opts & OPT_WSCALE and e.cfg.tcp_window_scaling:
            flags |= RQ_WSCALE_OK
            rq.wscales = <uint8_t>(s.wscale << 4)
    if s.wscale == TCP_MAX_WSCALE and flags & RQ_WSCALE_OK and e.ev_cap != 0:
        log_wscale_(e, s)
    rq.flags |= flags
    rq.mss = TCP_MSS_DEFAULT
    if s.opts & OPT_MSS:
        rq.mss = <uint16_t>synack_mss(<tcb_t*>lsk, s.mss)
    enode_set(&rq.en, s.dst, s.src, s.dport, s.sport)
    rq.risn = s.seq


cdef inline void req_keep_(engine_t* e, tcb_t* lsk, const seg_t* s, req_t* rq) noexcept nogil:
    # What few requests need: IP options to echo (C13), the SYN's TOS (C11), the SYN itself (TCP_SAVE_SYN).
    cdef uint8_t echo[40]
    cdef int n = 0
    cdef bint tos = e.cfg.tcp_reflect_tos and (s.tos ^ lsk.tos) & 0xfc
    cdef bint save = lsk.opt.save_syn != 0
    cdef reqext_t* x
    if s.ip_hlen > 20:
        n = ip_options_echo(e, s.dst, echo)
    if n <= 0 and not tos and not save:
        return
    x = req_ext(e, rq)
    if x == NULL:
        return
    if n > 0:
        ip_options_keep(e, echo, n, x)
    if tos:
        x.tos = s.tos
        x.has_tos = 1
    if save:
        x.saved_syn_len = <uint8_t>(s.ip_hlen + s.doff)
        memcpy(x.saved_syn, s.ip, s.ip_hlen)
        memcpy(x.saved_syn + s.ip_hlen, s.l4, s.doff)


# ---- queue full ------------------------------------------------------------------------------------------------------------------
cdef inline bint syn_flood_action_(engine_t* e, tcb_t* lsk, listener_t* l) noexcept nogil:
    # tcp_syn_flood_action: True = answer with a cookie. One log line per listener (facts B5).
    cdef bint cookies = e.cfg.tcp_syncookies != 0
    cdef event_t* ev
    mib_inc(&e.stats, MIB_TcpExtTCPReqQFullDoCookies if cookies else MIB_TcpExtTCPReqQFullDrop)
    l.n_reqq_full += 1
    if e.cfg.tcp_syncookies != 2 and not l.warned:
        l.warned = 1
        ev = ev_push(e, EV_LOG, LOG_SYN_FLOOD_COOKIES if cookies else LOG_SYN_FLOOD_DROP)
        if ev != NULL:
            ev.a = lsk.rcv_saddr
            ev.b = l.lport
    return cookies


cdef inline bint syn_backlog_reserved_(engine_t* e, const listener_t* l, const seg_t* s) noexcept nogil:
    # Facts B11: without cookies the last quarter of tcp_max_syn_backlog is for peers that have shown to be alive.
    cdef int32_t top = <int32_t>e.cfg.tcp_max_syn_backlog
    return top - l.qlen < (top >> 2) and not tcp_peer_is_proven(e, s.dst, s.src)


# ---- SYN -------------------------------------------------------------------------------------------------------------------------
cdef inline int cookie_syn_(engine_t* e, tcb_t* lsk, listener_t* l, const seg_t* s) noexcept nogil:
    # A SYN answered out of nothing (facts F1-F4, B13): the request exists for the length of this call.
    cdef req_t rq
    cdef route_result_t rt
    cdef synack_t a
    cdef uint8_t echo[40]
    cdef int n = 0
    memset(&rq, 0, sizeof(req_t))
    rq.flags = RQ_NO_TIMER
    req_parse_(e, lsk, s, &rq, True)
    if synack_route(e, s.dst, s.src, &rt) != 0:
        listen_drop(e, lsk.listener)
        return DROP_TCP_NO_ROUTE
    if rq.flags & RQ_TSTAMP_OK and synack_wants_ecn(e, s, rt.entry):
        rq.flags |= RQ_ECN_OK
    synq_overflow(e, l)
    mib_inc(&e.stats, MIB_TcpExtSyncookiesSent)
    l.n_cookie_sent += 1
    rq.isn = cookie_make(e, s, &rq.mss)
    req_init_window(e, lsk, &rq, &rt, synack_mss(lsk, rt.advmss) - (12 if rq.flags & RQ_TSTAMP_OK else 0))
    synack_of_req(e, lsk, &rq, &rt, &a)
    if e.cfg.tcp_reflect_tos:
        a.tos = (s.tos & 0xfc) | (lsk.tos & 3)
    if s.ip_hlen > 20:
        n = ip_options_echo(e, s.dst, echo)
    if n > 0:
        a.ipopt = echo
        a.ipopt_len = <uint8_t>n
    if rq.flags & RQ_TSTAMP_OK:
        a.tsval = cookie_tsval(e, &rq) + secret_ts_off(e, tuple_secret(e, s.dst, s.src, s.dport, s.sport))
    synack_emit(e, &a)
    return DROP_NONE


cdef inline int req_hash_and_send_(engine_t* e, tcb_t* lsk, idx_t ri, const route_result_t* rt, uint32_t ts_off,
                                   const foc_t* foc) noexcept nogil:
    # The ordinary end (facts B16, B17): into the table, timer armed, counted; only then the SYN-ACK, whose loss does not matter.
    cdef req_t* rq = req_at(e, ri)
    cdef synack_t a
    if not ehash_insert(&e.ehash, ref_of(KIND_REQ, ri)):
        req_free(e, ri)
        return DROP_NOT_SPECIFIED
    wheel_arm(&e.wheel, (<uint32_t>TM_REQ << REF_SHIFT) | ri, e.now + req_timeout(e, lsk, rq, 0))
    reqq_added(lst_at(e, rq.listener))
    synack_of_req(e, lsk, rq, rt, &a)
    if rq.flags & RQ_TSTAMP_OK:
        a.tsval = req_tsval_(e, rq, ts_off)
    if foc.len >= 0:
        a.fo_len = foc.len
        a.fo_exp = foc.exp
        a.fo_cookie = &foc.val[0]
    synack_emit(e, &a)
    return DROP_NONE


cdef inline int req_admit_(engine_t* e, tcb_t* lsk, idx_t ri, const seg_t* s, uint32_t tw_isn) noexcept nogil:
    # The second half of tcp_conn_request, from the route on (B9-B17), for a SYN that gets no cookie. The record is allocated.
    cdef listener_t* l = lst_at(e, lsk.listener)
    cdef req_t* rq = req_at(e, ri)
    cdef route_result_t rt
    cdef foc_t foc
    cdef tcb_t* child
    cdef uint64_t h
    cdef uint32_t ts_off
    req_parse_(e, lsk, s, rq, False)
    rq.listener = <uint16_t>lsk.listener
    if synack_route(e, s.dst, s.src, &rt) != 0:
        return DROP_TCP_NO_ROUTE
    if tw_isn == 0 and e.cfg.tcp_syncookies == 0 and syn_backlog_reserved_(e, l, s):
        return DROP_TCP_SYN_BACKLOG_RESERVE
    h = tuple_secret(e, s.dst, s.src, s.dport, s.sport)
    ts_off = secret_ts_off(e, h)
    rq.isn = tw_isn if tw_isn != 0 else secret_isn(e, h)
    if synack_wants_ecn(e, s, rt.entry):
        rq.flags |= RQ_ECN_OK
    req_init_window(e, lsk, rq, &rt, synack_mss(lsk, rt.advmss) - (12 if rq.flags & RQ_TSTAMP_OK else 0))
    req_keep_(e, lsk, s, rq)
    fastopen_option(s, &foc)
    child = fastopen_try(e, lsk, rq, s, rt.entry, s.tos, &foc)
    if child == NULL:
        return req_hash_and_send_(e, lsk, ri, &rt, ts_off, &foc)
    req_free(e, ri)
    fastopen_synack(e, child, &foc)
    acceptq_push(e, lsk.listener, child)
    sk_data_ready(e, lsk)
    return DROP_NONE


cdef inline int conn_request(engine_t* e, tcb_t* lsk, const seg_t* s, uint32_t tw_isn) noexcept nogil:
    # tcp_v4_conn_request: a SYN without FIN, RST, ACK; its options are parsed. tw_isn: it comes out of TIME_WAIT, 0 = it does not.
    cdef idx_t li = lsk.listener
    cdef listener_t* l = lst_at(e, li)
    cdef bint want_cookie = False
    cdef idx_t ri
    cdef int reason
    l.n_syn += 1
    if ipv4_is_multicast(s.dst) or is_broadcast(e, s.dst):
        listen_drop(e, li)
        return DROP_TCP_LISTEN_BCAST
    if tw_isn == 0 and (e.cfg.tcp_syncookies == 2 or reqq_is_full(l)):
        want_cookie = syn_flood_action_(e, lsk, l)
        if not want_cookie:
            listen_drop(e, li)
            return DROP_TCP_REQQFULL_DROP
    if acceptq_is_full(l):
        listen_overflow(e, li)
        return DROP_TCP_LISTEN_OVERFLOW
    if want_cookie:
        return cookie_syn_(e, lsk, l, s)
    ri = pool_alloc(&e.req)
    if ri == 0:
        listen_drop(e, li)
        return DROP_POOL_REQ
    reason = req_admit_(e, lsk, ri, s, tw_isn)
    if reason == DROP_TCP_NO_ROUTE or reason == DROP_TCP_SYN_BACKLOG_RESERVE:
        req_free(e, ri)
        listen_drop(e, li)
    return reason


# ---- the ACK that returns a cookie (facts F5-F13) ------------------------------------------------------------------------------------
cdef inline tcb_t* cookie_ack(engine_t* e, tcb_t* lsk, const seg_t* s, bint* mine) noexcept nogil:
    # cookie_v4_check: *mine = False: no cookie of ours, the listener resets. Else the child, or NULL if there is no room for one.
    cdef listener_t* l = lst_at(e, lsk.listener)
    cdef req_t rq
    cdef tcb_t* child
    cdef route_result_t rt
    cdef uint16_t mss
    cdef uint8_t flags
    cdef uint8_t wscale
    cdef uint8_t echo[40]
    cdef reqext_t* x
    cdef int n
    mine[0] = False
    if not e.cfg.tcp_syncookies or not synq_recent_overflow(e, l):
        return NULL
    mss = cookie_check(e, s)
    if mss == 0:
        mib_inc(&e.stats, MIB_TcpExtSyncookiesFailed)
        l.n_cookie_fail += 1
        return NULL
    mib_inc(&e.stats, MIB_TcpExtSyncookiesRecv)
    l.n_cookie_recv += 1
    if not cookie_options(e, s, secret_ts_off(e, tuple_secret(e, s.dst, s.src, s.dport, s.sport)), &flags, &wscale):
        return NULL
    mine[0] = True
    if route_lookup(e, s.dst, s.src, &rt) != 0:
        return NULL
    memset(&rq, 0, sizeof(req_t))
    enode_set(&rq.en, s.dst, s.src, s.dport, s.sport)
    rq.flags = flags
    if not (e.cfg.tcp_ecn or (rt.entry != NULL and rt.entry.features & RTAX_FEATURE_ECN)):
        rq.flags &= ~RQ_ECN_OK
    rq.risn = s.seq - 1
    rq.isn = s.ack - 1
    rq.mss = mss
    rq.listener = <uint16_t>lsk.listener
    rq.wscales = <uint8_t>(wscale << 4)
    if flags & RQ_TSTAMP_OK:
        rq.ts_recent = s.tsval
    req_init_window(e, lsk, &rq, &rt, mss)
    n = ip_options_echo(e, s.dst, echo) if s.ip_hlen > 20 else 0
    if n > 0:
        x = req_ext(e, &rq)             # the ACK's own IP options: the SYN's are forgotten
        if x != NULL:
            ip_options_keep(e, echo, n, x)
    child = tcp_create_child(e, lsk, &rq, 0, s, s.tos)
    if rq.ext != 0:
        pool_free(&e.ext, rq.ext)
    return child
