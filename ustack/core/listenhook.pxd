# Hooks on the listen path: the views of a listener, a SYN, a request that hooks.pxd's arguments show (layer above sock, below acceptq).
#
# Each function builds the argument, asks the chain of op-tables and returns the verdict (or leaves it in the argument, where there is
# more to choose). None changes anything by itself: that is left to the place of the decision, which tests engine_t.hooks first.
# The places call listenhook(), all of them: a function with so many callers stays out of line, and what is never asked costs the SYN's path
# neither its size nor the inlining of what follows.
# Callers: bind (select), acceptq, child, connreq, request, user.

from libc.string cimport memset

from ustack.core.hooks cimport (
    hook_accept, hook_accept_t, hook_acceptq, hook_acceptq_t, hook_ack, hook_ack_t, hook_cookie, hook_cookie_t,
    hook_overflow, hook_overflow_t, hook_queue_t, hook_select, hook_select_t, hook_syn, hook_syn_t, hook_synack, hook_synack_t,
)
from ustack.core.records cimport RQ_ACKED, RQ_ECN_OK, RQ_SACK_OK, RQ_WSCALE_OK, listener_t, req_t
from ustack.core.access cimport lst_at, sk_at, sk_fport, sk_handle, sk_lport
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport (
    OPT_MSS, OPT_SACKOK, OPT_TS, OPT_WSCALE, TH_CWR, TH_ECE, flow_t, idx_t, int32_t, seg_t, uint8_t, uint16_t, uint32_t, uint64_t,
)

cdef enum:
    # what is asked; an overflow is asked by its QUEUE_* (hooks.pxd)
    ASK_SYN = 16
    ASK_SYN_OF_TIME_WAIT = 17
    ASK_COOKIE_MAKE = 18
    ASK_COOKIE_CHECK = 19
    ASK_SYNACK = 20
    ASK_ACK = 21
    ASK_ACK_OF_COOKIE = 22
    ASK_ACCEPTQ = 23
    ASK_ACCEPT = 24

cdef struct hook_timer_t:       # of a SYN-ACK: in: tries; out: next_ms
    uint32_t tries
    uint32_t next_ms


# ---- views -----------------------------------------------------------------------------------------------------------------------
cdef inline uint64_t listenhook_handle(engine_t* e, idx_t li) noexcept nogil:
    # Of the listener's socket; 0 once it is closed.
    cdef idx_t sk = lst_at(e, li).sk
    return sk_handle(e, sk_at(e, sk)) if sk != 0 else 0


cdef inline void listenhook_queue_(engine_t* e, idx_t li, hook_queue_t* q) noexcept nogil:
    cdef const listener_t* l = lst_at(e, li)
    q.listener = listenhook_handle(e, li)
    q.qlen = l.qlen
    q.young = l.young
    q.ackq = l.ackq
    q.maxq = l.maxq


cdef inline flow_t listenhook_req_flow_(const req_t* rq) noexcept nogil:
    return flow_t(rq.en.laddr, rq.en.faddr, <uint16_t>(rq.en.ports >> 16), <uint16_t>rq.en.ports)


# ---- SYN -------------------------------------------------------------------------------------------------------------------------
cdef inline void syn_view_(engine_t* e, idx_t li, const seg_t* s, bint time_wait, hook_syn_t* a) noexcept nogil:
    memset(a, 0, sizeof(hook_syn_t))
    a.flow = flow_t(s.dst, s.src, s.dport, s.sport)
    listenhook_queue_(e, li, &a.q)
    a.packet = s.ip
    a.packet_len = s.ip_len
    a.seq = s.seq
    a.window = s.wnd
    a.payload = s.len
    a.opts = s.opts
    a.tsval = s.tsval
    a.peer_mss = s.mss if s.opts & OPT_MSS else 0
    a.peer_wscale = s.wscale
    a.tos = s.tos
    a.ttl = s.ttl
    a.ecn = s.flags & (TH_ECE | TH_CWR) == (TH_ECE | TH_CWR)
    a.time_wait = time_wait
    hook_syn(e.hooks, a)


cdef inline uint8_t overflow_view_(engine_t* e, idx_t li, const seg_t* s, uint8_t queue) noexcept nogil:
    cdef hook_overflow_t a
    memset(&a, 0, sizeof(hook_overflow_t))
    a.flow = flow_t(s.dst, s.src, s.dport, s.sport)
    listenhook_queue_(e, li, &a.q)
    a.queue = queue
    hook_overflow(e.hooks, &a)
    return a.verdict


# ---- cookies -----------------------------------------------------------------------------------------------------------------------
cdef inline void cookie_make_view_(engine_t* e, idx_t li, const seg_t* s, hook_cookie_t* a) noexcept nogil:
    memset(a, 0, sizeof(hook_cookie_t))
    a.flow = flow_t(s.dst, s.src, s.dport, s.sport)
    a.listener = listenhook_handle(e, li)
    a.seq = s.seq
    a.tsval = s.tsval
    a.mss = s.mss if s.opts & OPT_MSS else 536
    a.sack = (s.opts & OPT_SACKOK) != 0
    a.wscale_ok = (s.opts & OPT_WSCALE) != 0
    a.wscale = s.wscale
    a.ecn = s.flags & (TH_ECE | TH_CWR) == (TH_ECE | TH_CWR)
    hook_cookie(e.hooks, a)


cdef inline void cookie_check_view_(engine_t* e, idx_t li, const seg_t* s, hook_cookie_t* a) noexcept nogil:
    memset(a, 0, sizeof(hook_cookie_t))
    a.flow = flow_t(s.dst, s.src, s.dport, s.sport)
    a.listener = listenhook_handle(e, li)
    a.checking = 1
    a.seq = s.seq - 1
    a.cookie = s.ack - 1
    if s.opts & OPT_TS:
        a.tsval = s.tsval
        a.tsecr = s.tsecr
    hook_cookie(e.hooks, a)


cdef inline uint8_t listenhook_cookie_flags(const hook_cookie_t* a) noexcept nogil:
    # RQ_* of the options that a cookie of the hook's own format carries.
    return ((RQ_SACK_OK if a.sack else 0) | (RQ_WSCALE_OK if a.wscale_ok else 0) | (RQ_ECN_OK if a.ecn else 0))


# ---- requests ----------------------------------------------------------------------------------------------------------------------
cdef inline uint8_t synack_view_(engine_t* e, idx_t li, const req_t* rq, hook_timer_t* t) noexcept nogil:
    cdef hook_synack_t a
    memset(&a, 0, sizeof(hook_synack_t))
    a.flow = listenhook_req_flow_(rq)
    listenhook_queue_(e, li, &a.q)
    a.isn = rq.isn
    a.num_timeout = rq.num_timeout
    a.num_retrans = rq.num_retrans
    a.tries = t.tries
    a.acked = (rq.flags & RQ_ACKED) != 0
    hook_synack(e.hooks, &a)
    t.next_ms = a.next_ms
    return a.verdict


cdef inline uint8_t ack_view_(engine_t* e, idx_t li, const req_t* rq, const seg_t* s, bint cookie) noexcept nogil:
    cdef hook_ack_t a
    memset(&a, 0, sizeof(hook_ack_t))
    a.flow = flow_t(s.dst, s.src, s.dport, s.sport)
    listenhook_queue_(e, li, &a.q)
    a.packet = s.ip
    a.packet_len = s.ip_len
    a.isn = s.ack - 1
    a.irs = s.seq - 1
    a.payload = s.len
    a.cookie = cookie
    a.mss = rq.mss
    if not cookie:
        a.irs = rq.risn
        a.num_timeout = rq.num_timeout
        a.num_retrans = rq.num_retrans
    hook_ack(e.hooks, &a)
    return a.verdict


# ---- accept queue --------------------------------------------------------------------------------------------------------------------
cdef inline uint8_t acceptq_view_(engine_t* e, idx_t li, tcb_t* child) noexcept nogil:
    cdef hook_acceptq_t a
    memset(&a, 0, sizeof(hook_acceptq_t))
    a.flow = flow_t(child.en.laddr, child.en.faddr, sk_lport(child), sk_fport(child))
    listenhook_queue_(e, li, &a.q)
    a.handle = sk_handle(e, child)
    hook_acceptq(e.hooks, &a)
    return a.verdict


cdef inline uint8_t accept_view_(engine_t* e, idx_t li, tcb_t* child) noexcept nogil:
    cdef hook_accept_t a
    memset(&a, 0, sizeof(hook_accept_t))
    a.flow = flow_t(child.en.laddr, child.en.faddr, sk_lport(child), sk_fport(child))
    listenhook_queue_(e, li, &a.q)
    a.handle = sk_handle(e, child)
    hook_accept(e.hooks, &a)
    return a.verdict


# ---- SO_REUSEPORT --------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t listenhook_select(engine_t* e, const flow_t* flow, uint32_t h, uint32_t n, uint32_t choice,
                                       uint8_t migrating) noexcept nogil:
    # The position in the group; a choice that is none of it is ignored.
    cdef hook_select_t a
    memset(&a, 0, sizeof(hook_select_t))
    a.flow = flow[0]
    a.hash = h
    a.n = n
    a.choice = <int32_t>choice
    a.migrating = migrating
    hook_select(e.hooks, &a)
    return <uint32_t>a.choice if 0 <= a.choice < <int32_t>n else choice


# ---- the one way in ------------------------------------------------------------------------------------------------------------------
cdef inline uint8_t listenhook(engine_t* e, int what, idx_t li, const seg_t* s, const void* of, void* out) noexcept nogil:
    # what: ASK_*; of: the request or child it is about; out: where there is more to choose than the verdict.
    if what == ASK_SYN or what == ASK_SYN_OF_TIME_WAIT:
        syn_view_(e, li, s, what == ASK_SYN_OF_TIME_WAIT, <hook_syn_t*>out)
    elif what == ASK_COOKIE_MAKE:
        cookie_make_view_(e, li, s, <hook_cookie_t*>out)
    elif what == ASK_COOKIE_CHECK:
        cookie_check_view_(e, li, s, <hook_cookie_t*>out)
    elif what == ASK_ACK or what == ASK_ACK_OF_COOKIE:
        return ack_view_(e, li, <const req_t*>of, s, what == ASK_ACK_OF_COOKIE)
    elif what == ASK_SYNACK:
        return synack_view_(e, li, <const req_t*>of, <hook_timer_t*>out)
    elif what == ASK_ACCEPTQ:
        return acceptq_view_(e, li, <tcb_t*>of)
    elif what == ASK_ACCEPT:
        return accept_view_(e, li, <tcb_t*>of)
    else:
        return overflow_view_(e, li, s, <uint8_t>what)
    return 0
