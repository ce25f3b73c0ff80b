# A SYN for a listener: the half-open request, the SYN cookie, the Fast Open child (layer above input).
#
# RFC 9293 3.10.7.2, RFC 4987, RFC 7413; facts section B, C1, C2, C16, F. Linux: tcp_v4_conn_request, tcp_conn_request, tcp_openreq_init,
# tcp_syn_flood_action, cookie_v4_check. The order of the tests in conn_request is part of the behaviour: each has its counter.
# A request is one 64-byte record and costs one hash insertion and one timer; an extension is taken only for what few need.
# A cookie SYN stores nothing: its request lives on the stack. Every function that discards returns the reason.
# Callers: request.

from libc.string cimport memcpy, memset

from ustack.core.acceptq cimport (
    acceptq_is_full, acceptq_push, listen_drop, listen_overflow, req_drop, req_free, reqq_added, reqq_is_full,
)
from ustack.core.cookies cimport (
    cookie_check, cookie_make, cookie_options, cookie_tsval, secret_isn, secret_ts_off, synq_overflow, synq_recent_overflow,
    tuple_secret,
)
from ustack.core.child cimport req_timeout, tcp_create_child
from ustack.core.ehash cimport ehash_insert, ehash_lookup, enode_set
from ustack.core.fastopen cimport fastopen_option, fastopen_synack, fastopen_try, foc_t, synack_fastopen
from ustack.core.hooks cimport (
    HOOK_ACCEPT, HOOK_COOKIE, HOOK_DROP, HOOK_NO_COOKIE, HOOK_PARK, HOOK_PASS, HOOK_RESET, QUEUE_ACCEPT_ACK, QUEUE_ACCEPT_SYN, QUEUE_SYN,
    SYN_EVICT, SYN_ISN, SYN_MSS, SYN_NEEDS_ECN, SYN_RTO, SYN_RWND_INIT, SYN_WINDOW, hook_cookie_t, hook_syn_t, hooked,
)
from ustack.core.ipopt cimport ip_options_echo, ip_options_keep
from ustack.core.listen cimport child_forget_
from ustack.core.listenhook cimport (
    ASK_ACK_OF_COOKIE, ASK_COOKIE_CHECK, ASK_COOKIE_MAKE, ASK_SYN, ASK_SYN_OF_TIME_WAIT, listenhook, listenhook_cookie_flags,
)
from ustack.core.metrics cimport tcp_peer_is_proven
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport (
    RQ_ECN_ECT0, RQ_ECN_OK, RQ_NO_TIMER, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_TS_OFF, RQ_WSCALE_OK, listener_t, req_t, reqext_t,
)
from ustack.core.route cimport RTAX_FEATURE_ECN, route_lookup, route_result_t
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.access cimport lst_at, ref_idx, ref_kind, ref_of, req_at
from ustack.core.wake cimport log_done, log_push, sk_data_ready
from ustack.core.state cimport LOG_SYN_FLOOD_COOKIES, LOG_SYN_FLOOD_DROP, LOG_WSCALE_TOO_BIG, RTF_LOCAL, engine_t, event_t
from ustack.core.stats cimport (
    MIB_TcpExtSyncookiesFailed, MIB_TcpExtSyncookiesRecv, MIB_TcpExtSyncookiesSent, MIB_TcpExtTCPReqQFullDoCookies,
    MIB_TcpExtTCPReqQFullDrop, mib_inc,
)
from ustack.core.synack cimport (
    req_ext, req_init_window, req_tsval_, synack_emit, synack_mss, synack_of_req, synack_route, synack_t, synack_wants_ecn,
)
from ustack.core.tcb cimport SF_REFUSED, tcb_t
from ustack.core.types cimport (
    DROP_HOOK, DROP_NONE, DROP_NOT_SPECIFIED, DROP_POOL_REQ, DROP_TCP_LISTEN_BCAST, DROP_TCP_LISTEN_OVERFLOW,
    DROP_TCP_NO_ROUTE, DROP_TCP_REQQFULL_DROP, DROP_TCP_SYN_BACKLOG_RESERVE, KIND_REQ, OPT_MSS, OPT_SACKOK, OPT_TS,
    OPT_WSCALE, REF_SHIFT, TM_REQ, flow_t, idx_t, int32_t, ref_t, seg_t, uint8_t, uint16_t, uint32_t, uint64_t,
    unlikely,
)
from ustack.core.wheel cimport wheel_arm
from ustack.core.wire cimport IP_HLEN, TCP_MAX_WSCALE, TOK_NOP, TOK_WSCALE

cdef enum:
    TCP_MSS_DEFAULT = 536
    # what cookie_ack says where it makes no child, beside a drop reason
    COOKIE_NOT_OURS = -1
    COOKIE_REFUSED = -2         # by a hook, which wants a RST


# ---- what the SYN says (facts C1, C2, B8) ------------------------------------------------------------------------------------------
cdef inline void log_wscale_(engine_t* e, const seg_t* s) noexcept nogil:
    # One log line for a window scale above 14; the parser has cut it.
    cdef uint32_t i = 0
    cdef event_t* ev
    while i + 2 < s.opt_len and s.opt[i] != 0:
        if s.opt[i] == TOK_WSCALE and s.opt[i + 1] == 3 and s.opt[i + 2] > TCP_MAX_WSCALE:
            ev = log_push(e, LOG_WSCALE_TOO_BIG)
            if ev != NULL:
                ev.a = s.opt[i + 2]
                ev.b = TCP_MAX_WSCALE
                ev.flow = flow_t(s.dst, s.src, s.dport, s.sport)
                log_done(e, ev)
        i += 1 if s.opt[i] == TOK_NOP else u32_max(s.opt[i + 1], 2)


cdef inline void req_parse_(engine_t* e, const tcb_t* lsk, const seg_t* s, req_t* rq, bint cookie) noexcept nogil:
    # tcp_parse_options + tcp_openreq_init. A cookie carries options in its timestamp; without one only the MSS is kept.
    cdef uint8_t flags = 0
    if s.opts & OPT_TS and e.cfg.tcp_timestamps:
        flags |= RQ_TSTAMP_OK | RQ_TS_OFF if e.cfg.tcp_timestamps == 1 else RQ_TSTAMP_OK
        rq.ts_recent = s.tsval
    if not cookie or flags:
        if s.opts & OPT_SACKOK and e.cfg.tcp_sack:
            flags |= RQ_SACK_OK
        if s.opts & OPT_WSCALE and e.cfg.tcp_window_scaling:
            flags |= RQ_WSCALE_OK
            rq.wscales = <uint8_t>(s.wscale << 4)
    if unlikely(s.wscale == TCP_MAX_WSCALE) and flags & RQ_WSCALE_OK:
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
    cdef int n = ip_options_echo(e, s.dst, echo)
    cdef bint tos = ((s.tos | lsk.tos) & 0xfc) != 0         # tcp_reflect_tos may be set later
    cdef bint save = lsk.opt.save_syn != 0
    cdef reqext_t* x
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
        memcpy(x.saved_syn, s.ip, IP_HLEN)
        memcpy(x.saved_syn + IP_HLEN, e.ipopt.data, s.ip_hlen - IP_HLEN)    # as the receiver has filled them in
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
        ev = log_push(e, LOG_SYN_FLOOD_COOKIES if cookies else LOG_SYN_FLOOD_DROP)
        if ev != NULL:
            ev.a = lsk.rcv_saddr
            ev.b = l.lport
            log_done(e, ev)
    return cookies


cdef inline bint syn_backlog_reserved_(engine_t* e, const listener_t* l, const seg_t* s) noexcept nogil:
    # Facts B11: without cookies the last quarter of tcp_max_syn_backlog is for peers that have shown to be alive.
    cdef int32_t top = <int32_t>e.cfg.tcp_max_syn_backlog
    return top - l.qlen < (top >> 2) and not tcp_peer_is_proven(e, s.dst, s.src)


# ---- what a hook chooses -------------------------------------------------------------------------------------------------------------
cdef inline void hook_evict_(engine_t* e, idx_t li, const seg_t* s, const hook_syn_t* hk) noexcept nogil:
    # An own backlog policy: another half-open request of this listener makes room.
    cdef ref_t ref = ehash_lookup(&e.ehash, s.dst, hk.evict_addr, s.dport, hk.evict_port)
    if ref != 0 and ref_kind(ref) == KIND_REQ and req_at(e, ref_idx(ref)).listener == li:
        req_drop(e, ref_idx(ref))


cdef inline int hook_queue_full_(engine_t* e, tcb_t* lsk, listener_t* l, const seg_t* s, const hook_syn_t* hk, bint fresh,
                                 bint* want_cookie) noexcept nogil:
    # The test of the SYN queue (B5) where a hook has a say. fresh: the SYN does not come out of TIME_WAIT.
    cdef bint full = fresh and reqq_is_full(l)
    cdef uint8_t verdict = hk.verdict
    want_cookie[0] = verdict == HOOK_COOKIE
    if verdict == HOOK_ACCEPT or verdict == HOOK_COOKIE:
        return DROP_NONE
    if full and verdict == HOOK_PASS:
        verdict = listenhook(e, QUEUE_SYN, lsk.listener, s, NULL, NULL)
        want_cookie[0] = verdict == HOOK_COOKIE
        if verdict == HOOK_ACCEPT or verdict == HOOK_COOKIE:
            return DROP_NONE
    if verdict == HOOK_NO_COOKIE:
        if not full:
            return DROP_NONE
        mib_inc(&e.stats, MIB_TcpExtTCPReqQFullDrop)
        l.n_reqq_full += 1
    elif not full and not (fresh and e.cfg.tcp_syncookies == 2):
        return DROP_NONE
    elif verdict != HOOK_DROP:
        want_cookie[0] = syn_flood_action_(e, lsk, l)
        if want_cookie[0]:
            return DROP_NONE
    listen_drop(e, lsk.listener)
    return DROP_HOOK if verdict == HOOK_DROP else DROP_TCP_REQQFULL_DROP


cdef inline bint hook_takes_overflow_(engine_t* e, tcb_t* lsk, const seg_t* s, uint8_t queue) noexcept nogil:
    return hooked(e.hooks) and listenhook(e, queue, lsk.listener, s, NULL, NULL) == HOOK_ACCEPT


cdef inline void hook_window_(engine_t* e, req_t* rq, const hook_syn_t* hk) noexcept nogil:
    # The window offered, in bytes, whatever the buffer says.
    cdef reqext_t* x
    rq.rwnd = <uint16_t>u32_min(hk.window_out, 0xffff)
    if hk.window_out >= 0xffff or rq.ext != 0:
        x = req_ext(e, rq)
        if x != NULL:
            x.rwnd = hk.window_out


cdef inline void hook_ecn_(const hook_syn_t* hk, req_t* rq) noexcept nogil:
    # NEEDS_ECN: agreed with whoever asks for it, and the SYN-ACK itself is ECT(0).
    if hk.set & SYN_NEEDS_ECN and hk.needs_ecn:
        rq.flags |= RQ_ECN_ECT0 | (RQ_ECN_OK if hk.ecn else 0)


cdef inline void hook_request_(engine_t* e, req_t* rq, const hook_syn_t* hk) noexcept nogil:
    # What the request of a SYN takes from the hook; each later SYN-ACK follows from it.
    cdef reqext_t* x
    if hk.set & SYN_ISN:
        rq.isn = hk.isn
    if hk.set & SYN_WINDOW:
        hook_window_(e, rq, hk)
    if hk.set & (SYN_RTO | SYN_MSS):
        x = req_ext(e, rq)
        if x != NULL:
            x.hook_rto_ms = hk.rto_ms if hk.set & SYN_RTO else 0
            x.hook_mss = hk.mss if hk.set & SYN_MSS else 0


cdef inline uint32_t hook_rwnd_init_(const hook_syn_t* hk) noexcept nogil:
    return hk.rwnd_init if hk != NULL and hk.set & SYN_RWND_INIT else 0


# ---- SYN -------------------------------------------------------------------------------------------------------------------------
cdef inline int cookie_syn_(engine_t* e, tcb_t* lsk, listener_t* l, const seg_t* s, const hook_syn_t* hk) noexcept nogil:
    # A SYN answered out of nothing (facts F1-F4, B13): the request exists for the length of this call.
    cdef req_t rq
    cdef route_result_t rt
    cdef synack_t a
    cdef hook_cookie_t ck
    cdef uint8_t echo[40]
    cdef int n
    memset(&rq, 0, sizeof(req_t))
    rq.flags = RQ_NO_TIMER
    ck.taken = 0
    if hooked(e.hooks):
        listenhook(e, ASK_COOKIE_MAKE, lsk.listener, s, NULL, &ck)
    req_parse_(e, lsk, s, &rq, not (ck.taken and ck.keeps_options))
    if synack_route(e, s.dst, s.src, &rt) != 0:
        listen_drop(e, lsk.listener)
        return DROP_TCP_NO_ROUTE
    if rq.flags & RQ_TSTAMP_OK and synack_wants_ecn(e, lsk, s, rt.entry):
        rq.flags |= RQ_ECN_OK
    synq_overflow(e, l)
    mib_inc(&e.stats, MIB_TcpExtSyncookiesSent)
    l.n_cookie_sent += 1
    if ck.taken:
        rq.isn = ck.cookie
    else:
        rq.isn = cookie_make(e, s, &rq.mss)
    req_init_window(e, lsk, &rq, &rt, synack_mss(lsk, rt.advmss) - (12 if rq.flags & RQ_TSTAMP_OK else 0), hook_rwnd_init_(hk))
    if unlikely(hk != NULL):
        hook_ecn_(hk, &rq)
        if hk.set & SYN_WINDOW:
            hook_window_(e, &rq, hk)
    synack_of_req(e, lsk, &rq, &rt, &a)
    if unlikely(hk != NULL) and hk.set & SYN_MSS:
        a.mss = hk.mss
    if unlikely(e.cfg.tcp_reflect_tos):
        a.tos = (s.tos & 0xfc) | (lsk.tos & 3)
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
    wheel_arm(&e.wheel, (<uint32_t>TM_REQ << REF_SHIFT) | ri, e.now + req_timeout(e, rq, 0))
    reqq_added(lst_at(e, rq.listener))
    synack_of_req(e, lsk, rq, rt, &a)
    if rq.flags & RQ_TSTAMP_OK:
        a.tsval = req_tsval_(e, rq, ts_off)
    synack_fastopen(&a, foc)
    synack_emit(e, &a)
    return DROP_NONE


cdef inline int req_admit_(engine_t* e, tcb_t* lsk, idx_t ri, const seg_t* s, uint32_t tw_isn, const hook_syn_t* hk) noexcept nogil:
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
    if (tw_isn == 0 and e.cfg.tcp_syncookies == 0 and syn_backlog_reserved_(e, l, s)
            and not (hk != NULL and hk.verdict == HOOK_ACCEPT)):
        return DROP_TCP_SYN_BACKLOG_RESERVE
    h = tuple_secret(e, s.dst, s.src, s.dport, s.sport)
    ts_off = secret_ts_off(e, h)
    rq.isn = tw_isn if tw_isn != 0 else secret_isn(e, h)
    if synack_wants_ecn(e, lsk, s, rt.entry):
        rq.flags |= RQ_ECN_OK
    if unlikely(hk != NULL):
        hook_ecn_(hk, rq)
    req_init_window(e, lsk, rq, &rt, synack_mss(lsk, rt.advmss) - (12 if rq.flags & RQ_TSTAMP_OK else 0), hook_rwnd_init_(hk))
    req_keep_(e, lsk, s, rq)
    if unlikely(hk != NULL):
        hook_request_(e, rq, hk)
    fastopen_option(s, &foc)
    child = fastopen_try(e, lsk, rq, s, rt.entry, s.tos, &foc)
    if child == NULL:
        return req_hash_and_send_(e, lsk, ri, &rt, ts_off, &foc)
    req_free(e, ri)
    if child.sflags & SF_REFUSED:
        child_forget_(e, child)
        return DROP_HOOK
    fastopen_synack(e, child, &foc)
    acceptq_push(e, lsk.listener, child)
    sk_data_ready(e, lsk)
    return DROP_NONE


cdef inline int conn_request_(engine_t* e, tcb_t* lsk, const seg_t* s, uint32_t tw_isn, const hook_syn_t* hk) noexcept nogil:
    # From the SYN queue on (B5-B17). hk: what a hook chose, NULL = no hook.
    cdef idx_t li = lsk.listener
    cdef listener_t* l = lst_at(e, li)
    cdef bint want_cookie = False
    cdef idx_t ri
    cdef int reason
    if hk != NULL:
        reason = hook_queue_full_(e, lsk, l, s, hk, tw_isn == 0, &want_cookie)
        if reason != DROP_NONE:
            return reason
    elif tw_isn == 0 and (e.cfg.tcp_syncookies == 2 or reqq_is_full(l)):
        want_cookie = syn_flood_action_(e, lsk, l)
        if not want_cookie:
            listen_drop(e, li)
            return DROP_TCP_REQQFULL_DROP
    if acceptq_is_full(l) and (hk == NULL or hk.verdict != HOOK_ACCEPT) and not hook_takes_overflow_(e, lsk, s, QUEUE_ACCEPT_SYN):
        listen_overflow(e, li)
        return DROP_TCP_LISTEN_OVERFLOW
    if want_cookie:
        return cookie_syn_(e, lsk, l, s, hk)
    ri = pool_alloc(&e.req)
    if ri == 0:
        listen_drop(e, li)
        return DROP_POOL_REQ
    reason = req_admit_(e, lsk, ri, s, tw_isn, hk)
    if reason == DROP_TCP_NO_ROUTE or reason == DROP_TCP_SYN_BACKLOG_RESERVE:
        req_free(e, ri)
        listen_drop(e, li)
    return reason


cdef inline bint hook_syn_ask_(engine_t* e, idx_t li, const seg_t* s, bint time_wait, hook_syn_t* hk) noexcept nogil:
    # False: the hook drops the SYN.
    listenhook(e, ASK_SYN_OF_TIME_WAIT if time_wait else ASK_SYN, li, s, NULL, hk)
    if hk.set & SYN_EVICT:
        hook_evict_(e, li, s, hk)
    if hk.verdict == HOOK_DROP:
        listen_drop(e, li)
        return False
    return True


cdef inline int conn_request(engine_t* e, tcb_t* lsk, const seg_t* s, uint32_t tw_isn) noexcept nogil:
    # tcp_v4_conn_request: a SYN without FIN, RST, ACK; its options are parsed. tw_isn: it comes out of TIME_WAIT, 0 = it does not.
    cdef hook_syn_t hk
    cdef hook_syn_t* chosen = NULL
    lst_at(e, lsk.listener).n_syn += 1
    if s.dst_type != RTF_LOCAL:
        listen_drop(e, lsk.listener)
        return DROP_TCP_LISTEN_BCAST
    if hooked(e.hooks):
        if not hook_syn_ask_(e, lsk.listener, s, tw_isn != 0, &hk):
            return DROP_HOOK
        chosen = &hk
    return conn_request_(e, lsk, s, tw_isn, chosen)


# ---- the ACK that returns a cookie (facts F5-F13) ------------------------------------------------------------------------------------
cdef inline uint16_t cookie_mss_(engine_t* e, tcb_t* lsk, const seg_t* s, hook_cookie_t* ck) noexcept nogil:
    # The MSS in a returned cookie, 0 if it is none of ours; a hook's own format comes first.
    ck.taken = 0
    if hooked(e.hooks):
        listenhook(e, ASK_COOKIE_CHECK, lsk.listener, s, NULL, ck)
        if ck.taken:
            return ck.mss if ck.valid else 0
    return cookie_check(e, s)


cdef inline int cookie_ask_(engine_t* e, tcb_t* lsk, const seg_t* s, uint16_t mss, bint* parked) noexcept nogil:
    # The third-ACK hook for a good cookie: DROP_NONE = go on, else what cookie_ack says.
    cdef req_t rq
    cdef uint8_t verdict
    rq.mss = mss
    verdict = listenhook(e, ASK_ACK_OF_COOKIE, lsk.listener, s, &rq, NULL)
    parked[0] = verdict == HOOK_PARK
    if verdict == HOOK_RESET:
        return COOKIE_REFUSED
    return DROP_HOOK if verdict == HOOK_DROP else DROP_NONE


cdef inline tcb_t* cookie_ack(engine_t* e, tcb_t* lsk, const seg_t* s, int* why) noexcept nogil:
    # cookie_v4_check: the child, or NULL and *why: COOKIE_NOT_OURS (the listener resets), COOKIE_REFUSED, or the drop reason, which is
    # DROP_NONE if a hook keeps the segment.
    cdef listener_t* l = lst_at(e, lsk.listener)
    cdef req_t rq
    cdef hook_cookie_t ck
    cdef tcb_t* child
    cdef route_result_t rt
    cdef uint16_t mss
    cdef int asked = DROP_NONE
    cdef bint parked = False
    cdef bint force = False
    cdef uint8_t flags
    cdef uint8_t wscale
    cdef uint8_t echo[40]
    cdef reqext_t* x
    cdef int n
    why[0] = COOKIE_NOT_OURS
    if not (e.cfg.tcp_syncookies or hooked(e.hooks)) or not synq_recent_overflow(e, l):
        return NULL
    mss = cookie_mss_(e, lsk, s, &ck)
    if mss == 0:
        mib_inc(&e.stats, MIB_TcpExtSyncookiesFailed)
        l.n_cookie_fail += 1
        return NULL
    if hooked(e.hooks):
        asked = cookie_ask_(e, lsk, s, mss, &parked)
        if parked:
            why[0] = DROP_NONE
            return NULL
    mib_inc(&e.stats, MIB_TcpExtSyncookiesRecv)
    l.n_cookie_recv += 1
    if not cookie_options(e, s, secret_ts_off(e, tuple_secret(e, s.dst, s.src, s.dport, s.sport)), &flags, &wscale):
        return NULL
    if ck.taken and ck.keeps_options:
        flags = (flags & RQ_TSTAMP_OK) | listenhook_cookie_flags(&ck)
        wscale = ck.wscale
    why[0] = asked if asked != DROP_NONE else DROP_TCP_LISTEN_OVERFLOW
    if asked != DROP_NONE:
        return NULL
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
    req_init_window(e, lsk, &rq, &rt, mss, 0)
    n = ip_options_echo(e, s.dst, echo)
    if n > 0:
        x = req_ext(e, &rq)             # the ACK's own IP options: the SYN's are forgotten
        if x != NULL:
            ip_options_keep(e, echo, n, x)
    if acceptq_is_full(l):
        force = hook_takes_overflow_(e, lsk, s, QUEUE_ACCEPT_ACK)
    child = tcp_create_child(e, lsk, &rq, 0, s, s.tos, force)
    if rq.ext != 0:
        pool_free(&e.ext, rq.ext)
    return child
