# Congestion control: choice, dispatch, and what all of them share (layer: above cc_reno, cc_cubic, cc_bbr and rate; below output).
#
# Linux counterparts: tcp_cong.c (choice and registration), struct tcp_congestion_ops, and the parts of tcp_input.c that only cut the
# window: tcp_set_ca_state, tcp_init_cwnd_reduction, tcp_cwnd_reduction (PRR, RFC 6937), tcp_enter_cwr. tcb.cc selects the module; the
# three built in are called inline, CC_USER and above go through a C op-table of engine.cc_user (cc_ops_t; ssthresh, undo_cwnd and one of
# cong_avoid and cong_control are needed, any other function may be NULL; cong_control replaces cong_avoid and all reductions).
# sock.sk_ca is the module's own between cc_init and cc_release.

from libc.string cimport strlen, strncmp

from ustack.core.access cimport sk_ca_clear, sk_set_cc
from ustack.core.types cimport E_EXIST, E_INVAL, E_NOENT, E_NOSPC, TCP_CLOSE, TCP_LISTEN, uint8_t, uint32_t, uint64_t, likely, unlikely
from ustack.core.cc_bbr cimport (
    bbr_cong_control, bbr_cwnd_event, bbr_init, bbr_min_tso_segs, bbr_set_state, bbr_ssthresh, bbr_undo_cwnd,
)
from ustack.core.cc_cubic cimport (
    cubic_cong_avoid, cubic_cwnd_event, cubic_init, cubic_pkts_acked, cubic_set_state, cubic_ssthresh,
)
from ustack.core.cc_reno cimport reno_cong_avoid, reno_ssthresh, reno_undo_cwnd
from ustack.core.cwnd cimport CA_EVENT_COMPLETE_CWR, ack_sample_t, rate_sample_t
from ustack.core.sendq cimport tcp_packets_in_flight
from ustack.core.seqno cimport i32_max, i32_min
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    CC_BBR, CC_CUBIC, CC_RENO, CC_USER, CC_USER_MAX, TCP_CA_CWR, TCP_CA_OPEN, TCP_ECN_OK, TCP_ECN_QUEUE_CWR, TCP_INFINITE_SSTHRESH, tcb_t,
)

cdef extern from *:
    """
    #define USTACK_CC_CAPSULE "ustack.core.cc.cc_ops_t"
    """
    const char* CC_CAPSULE "USTACK_CC_CAPSULE"

cdef struct cc_ops_t:
    const char* name            # at most 15 bytes
    uint32_t abi                # cc_abi(): of the headers that its functions were compiled with
    uint32_t flags              # CC_F_*
    void (*init)(engine_t*, tcb_t*) noexcept nogil
    void (*release)(engine_t*, tcb_t*) noexcept nogil
    uint32_t (*ssthresh)(engine_t*, tcb_t*) noexcept nogil
    void (*cong_avoid)(engine_t*, tcb_t*, uint32_t ack, uint32_t acked) noexcept nogil
    void (*set_state)(engine_t*, tcb_t*, uint8_t state) noexcept nogil
    void (*cwnd_event)(engine_t*, tcb_t*, int event) noexcept nogil
    void (*in_ack_event)(engine_t*, tcb_t*, uint32_t flags) noexcept nogil
    void (*pkts_acked)(engine_t*, tcb_t*, const ack_sample_t*) noexcept nogil
    uint32_t (*min_tso_segs)(engine_t*, tcb_t*) noexcept nogil
    void (*cong_control)(engine_t*, tcb_t*, uint32_t ack, uint32_t flag, const rate_sample_t*) noexcept nogil
    uint32_t (*undo_cwnd)(engine_t*, tcb_t*) noexcept nogil

cdef enum:
    CC_F_PACING = 1             # needs pacing
    CC_F_ECN = 2                # needs ECN, as dctcp does: see cc_needs_ecn
    CC_NAME_MAX = 16


cdef inline uint32_t cc_abi() noexcept nogil:
    """Functions of another build see the socket elsewhere, so a table tells the sizes it was compiled with."""
    return <uint32_t> (sizeof(tcb_t) << 16) ^ <uint32_t> (sizeof(engine_t) << 4) ^ <uint32_t> sizeof(cc_ops_t)


cdef inline const cc_ops_t* cc_ops_of(engine_t* e, uint8_t cc) noexcept nogil:
    """The table of CC_USER and above; never NULL for a socket's."""
    return <const cc_ops_t*> e.cc_user[cc - CC_USER]


# ---- choice ------------------------------------------------------------------------------------------------------------------------
cdef inline const char* cc_name(engine_t* e, uint8_t cc) noexcept nogil:
    if cc == CC_RENO:
        return "reno"
    if cc == CC_CUBIC:
        return "cubic"
    if cc == CC_BBR:
        return "bbr"
    if cc < CC_USER + CC_USER_MAX and e.cc_user[cc - CC_USER] != NULL:
        return cc_ops_of(e, cc).name
    return ""


cdef inline int cc_by_name(engine_t* e, const char* name, uint32_t n) noexcept nogil:
    """CC_* of a name of at most n bytes (it may end earlier with a NUL), or -ENOENT."""
    cdef uint8_t cc
    cdef const char* known
    cdef size_t size
    if n > CC_NAME_MAX - 1:
        n = CC_NAME_MAX - 1
    for cc in range(CC_USER + CC_USER_MAX):
        known = cc_name(e, cc)
        size = strlen(known)
        if size != 0 and size <= n and strncmp(known, name, n) == 0:
            return cc
    return -E_NOENT


cdef inline bint cc_needs_ecn(engine_t* e, uint8_t cc) noexcept nogil:
    """tcp_ca_needs_ecn, of CC_*: ECN is asked for and agreed to whatever tcp_ecn says, and every segment is ECT(0)."""
    return cc >= CC_USER and (cc_ops_of(e, cc).flags & CC_F_ECN) != 0


cdef inline void cc_mark_ect(engine_t* e, tcb_t* sk) noexcept nogil:
    """INET_ECN_xmit or _dontxmit, for a socket that has got a module."""
    sk.tos = <uint8_t> ((sk.tos & ~3) | (2 if cc_needs_ecn(e, sk.cc) else 0))


cdef inline void cc_init(engine_t* e, tcb_t* sk) noexcept nogil:
    """tcp_init_congestion_control: the module starts on a connection."""
    cdef const cc_ops_t* ops
    sk.prior_ssthresh = 0
    if likely(sk.cc == CC_CUBIC):
        cubic_init(e, sk)
    elif sk.cc == CC_BBR:
        bbr_init(e, sk)
    elif sk.cc >= CC_USER:
        ops = cc_ops_of(e, sk.cc)
        if ops.flags & CC_F_PACING:
            sk.pacing_needed = 1
        if ops.init != NULL:
            ops.init(e, sk)
    cc_mark_ect(e, sk)
    if not sk.ecn_flags & TCP_ECN_OK:
        sk.tos &= ~<uint8_t> 3          # not agreed: in Linux the module's own init sees to that, as dctcp's does
    sk.ca_initialized = 1


cdef inline void cc_release(engine_t* e, tcb_t* sk) noexcept nogil:
    """tcp_cleanup_congestion_control."""
    if sk.ca_initialized and sk.cc >= CC_USER and cc_ops_of(e, sk.cc).release != NULL:
        cc_ops_of(e, sk.cc).release(e, sk)
    sk_ca_clear(sk)
    sk.ca_initialized = 0


cdef inline int cc_register(engine_t* e, const cc_ops_t* ops) noexcept nogil:
    """CC_* of a new module; the table stays the caller's and must outlive the engine. -EINVAL, -EEXIST or -ENOSPC."""
    cdef uint8_t i
    if ops.abi != cc_abi() or ops.name == NULL or ops.name[0] == 0 or strlen(ops.name) >= CC_NAME_MAX:
        return -E_INVAL
    if ops.ssthresh == NULL or ops.undo_cwnd == NULL or (ops.cong_avoid == NULL and ops.cong_control == NULL):
        return -E_INVAL
    if cc_by_name(e, ops.name, CC_NAME_MAX) >= 0:
        return -E_EXIST
    for i in range(CC_USER_MAX):
        if e.cc_user[i] == NULL:
            e.cc_user[i] = <const void*> ops
            e.cc_gone = <void*> &cc_release
            return CC_USER + i
    return -E_NOSPC


cdef inline int cc_assign(engine_t* e, tcb_t* sk, uint8_t cc) noexcept nogil:
    """TCP_CONGESTION: change the module, at once if a connection is under way."""
    sk.cc_user = 1
    if sk.cc == cc:
        return 0
    cc_release(e, sk)
    sk_set_cc(e, sk, cc)
    cc_mark_ect(e, sk)
    if sk.state != TCP_CLOSE and sk.state != TCP_LISTEN:
        cc_init(e, sk)
    return 0


cdef inline void cc_inherit(engine_t* e, tcb_t* child, uint8_t route_cc) noexcept nogil:
    """tcp_ca_openreq_child: the route's choice (CC_* + 1, 0 = none), else the listener's if it was set by the user, else the default."""
    if unlikely(route_cc != 0):
        sk_set_cc(e, child, route_cc - 1)
        child.cc_user = 1
    elif not child.cc_user:
        sk_set_cc(e, child, e.default_cc)
    child.ca_initialized = 0
    child.ca_state = TCP_CA_OPEN


# ---- dispatch ----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t cc_ssthresh(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.cc == CC_CUBIC:
        return cubic_ssthresh(e, sk)
    if sk.cc == CC_BBR:
        return bbr_ssthresh(sk)
    if sk.cc >= CC_USER:
        return cc_ops_of(e, sk.cc).ssthresh(e, sk)
    return reno_ssthresh(sk)


cdef inline void cc_cong_avoid(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t acked) noexcept nogil:
    if likely(sk.cc == CC_CUBIC):
        cubic_cong_avoid(e, sk, acked)
    elif sk.cc >= CC_USER:
        if cc_ops_of(e, sk.cc).cong_avoid != NULL:
            cc_ops_of(e, sk.cc).cong_avoid(e, sk, ack, acked)
    else:
        reno_cong_avoid(sk, acked)
    sk.snd_cwnd_stamp = e.now


cdef inline bint cc_has_cong_control(engine_t* e, tcb_t* sk) noexcept nogil:
    """Does the module set window and rate by itself?"""
    if unlikely(sk.cc >= CC_USER):
        return cc_ops_of(e, sk.cc).cong_control != NULL
    return sk.cc == CC_BBR


cdef inline void cc_cong_control(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t flag, const rate_sample_t* rs) noexcept nogil:
    if sk.cc == CC_BBR:
        bbr_cong_control(e, sk, rs)
    else:
        cc_ops_of(e, sk.cc).cong_control(e, sk, ack, flag, rs)


cdef inline void cc_set_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept nogil:
    if sk.cc == CC_CUBIC:
        cubic_set_state(e, sk, state)
    elif sk.cc == CC_BBR:
        bbr_set_state(e, sk, state)
    elif sk.cc >= CC_USER and cc_ops_of(e, sk.cc).set_state != NULL:
        cc_ops_of(e, sk.cc).set_state(e, sk, state)


cdef inline void cc_cwnd_event(engine_t* e, tcb_t* sk, int event) noexcept nogil:
    if likely(sk.cc == CC_CUBIC):
        cubic_cwnd_event(e, sk, event)
    elif sk.cc == CC_BBR:
        bbr_cwnd_event(e, sk, event)
    elif sk.cc >= CC_USER and cc_ops_of(e, sk.cc).cwnd_event != NULL:
        cc_ops_of(e, sk.cc).cwnd_event(e, sk, event)


cdef inline void cc_in_ack_event(engine_t* e, tcb_t* sk, uint32_t flags) noexcept nogil:
    if unlikely(sk.cc >= CC_USER) and cc_ops_of(e, sk.cc).in_ack_event != NULL:
        cc_ops_of(e, sk.cc).in_ack_event(e, sk, flags)


cdef inline void cc_pkts_acked(engine_t* e, tcb_t* sk, const ack_sample_t* sample) noexcept nogil:
    if likely(sk.cc == CC_CUBIC):
        cubic_pkts_acked(e, sk, sample.rtt_us)
    elif sk.cc >= CC_USER and cc_ops_of(e, sk.cc).pkts_acked != NULL:
        cc_ops_of(e, sk.cc).pkts_acked(e, sk, sample)


cdef inline uint32_t cc_undo_cwnd(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.cc == CC_BBR:
        return bbr_undo_cwnd(sk)
    if sk.cc >= CC_USER:
        return cc_ops_of(e, sk.cc).undo_cwnd(e, sk)
    return reno_undo_cwnd(sk)


cdef inline uint32_t cc_min_tso_segs(engine_t* e, tcb_t* sk) noexcept nogil:
    """Smallest super-segment worth making, for tso_autosize."""
    if sk.cc == CC_BBR:
        return bbr_min_tso_segs(sk)
    if sk.cc >= CC_USER and cc_ops_of(e, sk.cc).min_tso_segs != NULL:
        return cc_ops_of(e, sk.cc).min_tso_segs(e, sk)
    return <uint32_t> e.cfg.tcp_min_tso_segs


# ---- states and reductions -----------------------------------------------------------------------------------------------------------
cdef inline void tcp_set_ca_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept nogil:
    cc_set_state(e, sk, state)
    sk.ca_state = state


cdef inline void tcp_ecn_queue_cwr(tcb_t* sk) noexcept nogil:
    if sk.ecn_flags & TCP_ECN_OK:
        sk.ecn_flags |= TCP_ECN_QUEUE_CWR


cdef inline void tcp_ecn_withdraw_cwr(tcb_t* sk) noexcept nogil:
    sk.ecn_flags &= ~<uint8_t> TCP_ECN_QUEUE_CWR


cdef inline void tcp_init_cwnd_reduction(engine_t* e, tcb_t* sk) noexcept nogil:
    """Start of CWR or Recovery: ssthresh is set, cwnd follows step by step (tcp_cwnd_reduction)."""
    sk.high_seq = sk.snd_nxt
    sk.tlp_high_seq = 0
    sk.snd_cwnd_cnt = 0
    sk.prior_cwnd = sk.snd_cwnd
    sk.prr_delivered = 0
    sk.prr_out = 0
    sk.snd_ssthresh = cc_ssthresh(e, sk)
    tcp_ecn_queue_cwr(sk)


cdef inline void tcp_cwnd_reduction(tcb_t* sk, int newly_acked_sacked, int newly_lost, bint snd_una_advanced) noexcept nogil:
    """Proportional Rate Reduction: above ssthresh send ssthresh/prior_cwnd of what is delivered; below it, grow back to ssthresh by slow
    start as long as no further loss shows. The first transmission of a recovery is always allowed."""
    cdef int sndcnt
    cdef int delta = <int> sk.snd_ssthresh - <int> tcp_packets_in_flight(sk)
    cdef uint64_t dividend
    if newly_acked_sacked <= 0 or sk.prior_cwnd == 0:
        return
    sk.prr_delivered += <uint32_t> newly_acked_sacked
    if delta < 0:
        dividend = <uint64_t> sk.snd_ssthresh * sk.prr_delivered + sk.prior_cwnd - 1
        sndcnt = <int> (<uint32_t> (dividend // sk.prior_cwnd) - sk.prr_out)
    else:
        sndcnt = i32_max(<int> (sk.prr_delivered - sk.prr_out), newly_acked_sacked)
        if snd_una_advanced and newly_lost == 0:
            sndcnt += 1
        sndcnt = i32_min(delta, sndcnt)
    sndcnt = i32_max(sndcnt, 0 if sk.prr_out else 1)
    sk.snd_cwnd = tcp_packets_in_flight(sk) + <uint32_t> sndcnt


cdef inline void tcp_end_cwnd_reduction(engine_t* e, tcb_t* sk) noexcept nogil:
    """cwnd arrives at ssthresh, unless the reduction was undone or the module does it all by itself."""
    if cc_has_cong_control(e, sk):
        return
    if sk.snd_ssthresh < TCP_INFINITE_SSTHRESH and (sk.ca_state == TCP_CA_CWR or sk.undo_marker):
        sk.snd_cwnd = sk.snd_ssthresh
        sk.snd_cwnd_stamp = e.now
    cc_cwnd_event(e, sk, CA_EVENT_COMPLETE_CWR)


cdef inline void tcp_enter_cwr(engine_t* e, tcb_t* sk) noexcept nogil:
    """Reduce the window without loss: ECE, or the device refused a packet. For good: there is nothing to undo."""
    sk.prior_ssthresh = 0
    if sk.ca_state < TCP_CA_CWR:
        sk.undo_marker = 0
        tcp_init_cwnd_reduction(e, sk)
        tcp_set_ca_state(e, sk, TCP_CA_CWR)
