# Hooks on a connection: the view of a socket that hook_conn_t shows, and what a hook may set on it (layer between tcb and sock).
#
# Moments are those of BPF sock_ops: PASSIVE_ / ACTIVE_ESTABLISHED_CB (tcp_init_transfer), STATE_CB (tcp_set_state, before the change),
# RETRANS_CB (after the transmission), RTO_CB (tcp_write_timeout), RTT_CB (after the estimator). See hooks.pxd for the rules, docs/hooks.md.
# Callers: sock (state), ack (established), retrans, timers (rto), rttmeas (rtt); each tests engine_t.hooks first.

from libc.string cimport memset

from ustack.core.hooks cimport (
    CONN_CWND, CONN_ESTABLISHED, CONN_RETRANS, CONN_RTO, CONN_RTO_FIRED, CONN_RTT, CONN_SSTHRESH, CONN_STATE, CONN_TOS,
    HOOK_RESET, hook_conn, hook_conn_t,
)
from ustack.core.pool cimport pool_gen
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport SF_REFUSED, tcb_t
from ustack.core.types cimport NS_PER_MS, flow_t, ns_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef inline void connhook_fill_(engine_t* e, const tcb_t* sk, uint8_t what, hook_conn_t* a) noexcept nogil:
    memset(a, 0, sizeof(hook_conn_t))
    a.what = what
    a.now = e.now
    a.handle = <uint64_t>sk.idx | (<uint64_t>pool_gen(&e.tcb, sk.idx) << 32)
    a.flow = flow_t(sk.en.laddr, sk.en.faddr, <uint16_t>(sk.en.ports >> 16), <uint16_t>sk.en.ports)
    a.state = sk.state
    a.new_state = sk.state
    a.srtt_us = sk.rtt.srtt_us >> 3
    a.snd_cwnd = sk.snd_cwnd
    a.snd_ssthresh = sk.snd_ssthresh
    a.mss = sk.mss_cache
    a.rto_now = sk.rto
    a.retransmits = sk.retransmits


cdef inline void connhook_apply_(tcb_t* sk, const hook_conn_t* a) noexcept nogil:
    if a.set & CONN_CWND and a.cwnd != 0:
        sk.snd_cwnd = a.cwnd
    if a.set & CONN_SSTHRESH:
        sk.snd_ssthresh = a.ssthresh
    if a.set & CONN_RTO and a.rto_ms != 0:
        sk.rto = <ns_t>a.rto_ms * NS_PER_MS
    if a.set & CONN_TOS:
        sk.tos = (a.tos & 0xfc) | (sk.tos & 3)


cdef inline void connhook_ask_(engine_t* e, tcb_t* sk, hook_conn_t* a) noexcept nogil:
    # The chain sees the view; what it has set takes effect.
    hook_conn(e.hooks, a)
    connhook_apply_(sk, a)


cdef inline void connhook_established(engine_t* e, tcb_t* sk, bint passive) noexcept nogil:
    # A refusal is carried out by whoever made the child (SF_REFUSED).
    cdef hook_conn_t a
    connhook_fill_(e, sk, CONN_ESTABLISHED, &a)
    a.passive = passive
    connhook_ask_(e, sk, &a)
    if passive and a.verdict == HOOK_RESET:
        sk.sflags |= <uint32_t>SF_REFUSED


cdef inline void connhook_state(engine_t* e, tcb_t* sk, uint8_t new_state) noexcept nogil:
    cdef hook_conn_t a
    connhook_fill_(e, sk, CONN_STATE, &a)
    a.new_state = new_state
    connhook_ask_(e, sk, &a)


cdef inline void connhook_retrans(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t segs, int err) noexcept nogil:
    cdef hook_conn_t a
    connhook_fill_(e, sk, CONN_RETRANS, &a)
    a.seq = seq
    a.segs = segs
    a.err = err
    connhook_ask_(e, sk, &a)


cdef inline void connhook_rto(engine_t* e, tcb_t* sk, bint expired) noexcept nogil:
    cdef hook_conn_t a
    connhook_fill_(e, sk, CONN_RTO_FIRED, &a)
    a.expired = expired
    connhook_ask_(e, sk, &a)


cdef inline void connhook_rtt(engine_t* e, tcb_t* sk, uint32_t rtt_us) noexcept nogil:
    cdef hook_conn_t a
    connhook_fill_(e, sk, CONN_RTT, &a)
    a.rtt_us = rtt_us
    connhook_ask_(e, sk, &a)
