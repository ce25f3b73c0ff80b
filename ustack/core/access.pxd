# Sockets and their records: from index to pointer, the records that few sockets have, clocks derived from e.now (layer 5).
#
# Nothing here changes a socket's state. Called by every file above; the objects' life is sock.pxd's and acceptq.pxd's.

from libc.string cimport memcmp, memcpy, memset

from ustack.core.types cimport NS_NEVER, REF_MASK, REF_SHIFT, idx_t, int64_t, ns_t, ref_t, uint16_t, uint32_t, uint64_t, uint8_t, TICK_NS, likely, unlikely
from ustack.core.pool cimport pool_alloc, pool_at, pool_free, pool_gen, pool_index
from ustack.core.records cimport group_t, listener_t, req_t, reqext_t, rrec_t, srec_t, tw_t, waiter_t
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport CA_EXT_WORDS, CA_PRIV_WORDS, CC_BBR, sklos_t, skopt_t, tcb_t


# ---- accessors ---------------------------------------------------------------------------------------------------------------
# As pool_at, with a stride that the compiler knows.
cdef inline tcb_t* sk_at(engine_t* e, idx_t i) noexcept nogil:
    return <tcb_t*> e.tcb.base + i


cdef inline srec_t* sr_at(engine_t* e, idx_t i) noexcept nogil:
    return <srec_t*> e.srec.base + i


cdef inline rrec_t* rr_at(engine_t* e, idx_t i) noexcept nogil:
    return <rrec_t*> e.rrec.base + i


cdef inline req_t* req_at(engine_t* e, idx_t i) noexcept nogil:
    return <req_t*> e.req.base + i


cdef inline tw_t* tw_at(engine_t* e, idx_t i) noexcept nogil:
    return <tw_t*> e.tw.base + i


cdef inline listener_t* lst_at(engine_t* e, idx_t i) noexcept nogil:
    return <listener_t*> e.lst.base + i


cdef inline group_t* grp_at(engine_t* e, idx_t i) noexcept nogil:
    return <group_t*> e.grp.base + i


cdef inline reqext_t* ext_at(engine_t* e, idx_t i) noexcept nogil:
    return <reqext_t*> e.ext.base + i


cdef inline waiter_t* wait_at(engine_t* e, idx_t i) noexcept nogil:
    return <waiter_t*> e.wait.base + i


cdef inline ref_t ref_of(uint32_t kind, idx_t i) noexcept nogil:
    return (kind << REF_SHIFT) | i


cdef inline uint32_t ref_kind(ref_t r) noexcept nogil:
    return r >> REF_SHIFT


cdef inline idx_t ref_idx(ref_t r) noexcept nogil:
    return r & REF_MASK


cdef inline uint64_t sk_handle(engine_t* e, tcb_t* sk) noexcept nogil:
    """What leaves the engine: index and generation."""
    return <uint64_t> sk.idx | (<uint64_t> pool_gen(&e.tcb, sk.idx) << 32)


cdef inline uint16_t sk_lport(tcb_t* sk) noexcept nogil:
    return <uint16_t> (sk.en.ports >> 16)


cdef inline uint16_t sk_fport(tcb_t* sk) noexcept nogil:
    return <uint16_t> (sk.en.ports & 0xffff)


cdef inline void sk_set_ports(tcb_t* sk, uint16_t lport, uint16_t fport) noexcept nogil:
    sk.en.ports = (<uint32_t> lport << 16) | fport


# ---- records that few sockets have (tcb.pxd) -----------------------------------------------------------------------------------
cdef inline void skopt_defaults(skopt_t* o) noexcept nogil:
    memset(o, 0, sizeof(skopt_t))
    o.rcvtimeo = NS_NEVER
    o.sndtimeo = NS_NEVER
    o.max_pacing_rate = <uint64_t> -1
    o.rcvlowat = 1


cdef inline skopt_t* sk_opt(engine_t* e, tcb_t* sk) noexcept nogil:
    """The socket's own options record, to write to; taken with the defaults at the first use. There are as many as sockets."""
    cdef idx_t i
    cdef skopt_t* o
    if sk.opt.idx == 0:
        i = pool_alloc(&e.opt)
        o = <skopt_t*> pool_at(&e.opt, i)
        o[0] = sk.opt[0]
        o.idx = i
        sk.opt = o
    return <skopt_t*> sk.opt


cdef inline sklos_t* sk_los(engine_t* e, tcb_t* sk) noexcept nogil:
    """The socket's own record of what loss and reordering leave behind, to write to."""
    cdef idx_t i
    cdef sklos_t* o
    if sk.los.idx == 0:
        i = pool_alloc(&e.los)
        o = <sklos_t*> pool_at(&e.los, i)
        o.idx = i
        o.sk = sk.idx
        sk.los = o
    return <sklos_t*> sk.los


cdef inline void sk_los_put(engine_t* e, tcb_t* sk) noexcept nogil:
    """Give it back; its timers are off."""
    if sk.los.idx:
        pool_free(&e.los, sk.los.idx)
        sk.los = <sklos_t*> pool_at(&e.los, 0)


cdef inline tcb_t* sk_of_los(engine_t* e, idx_t i) noexcept nogil:
    return sk_at(e, (<sklos_t*> pool_at(&e.los, i)).sk)


cdef inline void sk_opt_inherit(engine_t* e, tcb_t* child, const tcb_t* lsk) noexcept nogil:
    """What was set on a listener, on its child. Costs nothing if it is all as by default."""
    cdef skopt_t* o
    cdef size_t head = <size_t> (<const uint8_t*> &lsk.opt.errq_head - <const uint8_t*> &lsk.opt.uid)
    if lsk.opt.idx == 0 or memcmp(&lsk.opt.uid, &child.opt.uid, head) == 0:
        return
    o = sk_opt(e, child)
    memcpy(&o.uid, &lsk.opt.uid, head)


cdef inline uint64_t* sk_ca(tcb_t* sk) noexcept nogil:
    """Private state of the socket's congestion control: CA_PRIV_WORDS words, or CA_EXT_WORDS of those that take a record."""
    return <uint64_t*> sk.ca_priv[0] if sk.cc >= CC_BBR else sk.ca_priv


cdef inline void sk_ca_clear(tcb_t* sk) noexcept nogil:
    memset(sk_ca(sk), 0, (CA_EXT_WORDS if sk.cc >= CC_BBR else CA_PRIV_WORDS) * sizeof(uint64_t))


ctypedef void (*cc_gone_t)(engine_t*, tcb_t*) noexcept nogil


cdef inline void sk_set_cc(engine_t* e, tcb_t* sk, uint8_t cc) noexcept nogil:
    """Change tcb.cc, and the private state with it; the new one is zero. A registered module that still works here is released."""
    if sk.ca_initialized and unlikely(e.cc_gone != NULL):
        (<cc_gone_t> e.cc_gone)(e, sk)
    if sk.cc >= CC_BBR:
        pool_free(&e.ca, pool_index(&e.ca, <void*> sk.ca_priv[0]))
    sk.cc = cc
    memset(sk.ca_priv, 0, CA_PRIV_WORDS * sizeof(uint64_t))
    if cc >= CC_BBR:
        sk.ca_priv[0] = <uint64_t> pool_at(&e.ca, pool_alloc(&e.ca))


# ---- clocks derived from e.now -----------------------------------------------------------------------------------------------
cdef inline ns_t jiffies_down(engine_t* e, ns_t d) noexcept nogil:
    """A duration in whole ticks. By the usual tick without a division."""
    if likely(e.tick == TICK_NS):
        return d // TICK_NS * TICK_NS
    return d // e.tick * e.tick


cdef inline ns_t jiffies_up(engine_t* e, ns_t d) noexcept nogil:
    """A duration rounded up to the tick, as usecs_to_jiffies does."""
    return jiffies_down(e, d + e.tick - 1)


cdef inline uint64_t wall_ns(engine_t* e) noexcept nogil:
    return <uint64_t> (e.now + e.wall_offset)


cdef inline uint32_t tcp_clock_ms(engine_t* e) noexcept nogil:
    """The 1 kHz TSval clock, without the connection's offset (facts C6)."""
    return <uint32_t> (wall_ns(e) // 1000000)


cdef inline int64_t tcp_clock_s(engine_t* e) noexcept nogil:
    """Seconds, for ts_recent_stamp; never 0, which means "none" there."""
    return <int64_t> (wall_ns(e) // 1000000000ULL) + 1
