# The five sans-I/O calls: creation, packets in, timers, frames out (top layer of the core).
#
# No descriptor, clock, thread or source of randomness: time and seed are arguments. A driver calls, under its lock,
#   engine_receive ...          for each packet of a batch (engine_batch around it: ACKs shared)
#   engine_poll                 at engine_next_timeout, or when convenient
#   user calls (user.pxd ...)   after engine_time; then engine_loop
# and takes e.tx[0 .. e.tx_n) each time (tx.pxd), then engine_tx_done. Every key and every random choice derives from the one seed, so
# equal seeds and equal calls give equal packets. Pools are no-reserve mappings: a large cap costs address space only.
# Timers run with e.now = now, in order of their deadlines; a driver of virtual time stops at each deadline.

from libc.stdlib cimport free
from libc.string cimport memset
from posix.mman cimport munmap

from ustack.core.config cimport config_defaults
from ustack.core.ehash cimport ehash_crowded, ehash_destroy, ehash_init, ehash_prefetch, ehash_prefetch_next, ehash_prefetch_node, ehash_register
from ustack.core.frag cimport FRAG_SLOT, ip_expire
from ustack.core.hooks cimport HOOK_RESET, hook_drop, hook_drop_t, hooked
from ustack.core.ipin cimport FROM_ECHO, FROM_LINK, FROM_SELF, ip_rcv, tcp_v4_resume
from ustack.core.ipout cimport ipout_rst_reply
from ustack.core.listenhook cimport listenhook_handle
from ustack.core.pool cimport map_reserve, pool_at, pool_destroy, pool_init, pool_init_gen, pool_t
from ustack.core.records cimport bindb_t, group_t, listener_t, req_t, reqext_t, rrec_t, srec_t, tw_t, txframe_t, waiter_t
from ustack.core.request cimport request_timer
from ustack.core.route cimport is_broadcast
from ustack.core.siphash cimport prng_seed, prng_u64, siphash, siphash_u64x1
from ustack.core.access cimport lst_at, sk_at, sk_of_los, skopt_defaults
from ustack.core.wake cimport ev_push, garbage_collect, waiter_timeout
from ustack.core.state cimport EV_DROP, PORT_PERTURB, engine_t, event_t, frag_t, metrics_t, pmtu_t
from ustack.core.stats cimport drop_inc
from ustack.core.tcb cimport CA_EXT_WORDS, CC_CUBIC, sklos_t, skopt_t, tcb_t
from ustack.core.delack cimport tcp_delack_timer
from ustack.core.output cimport tcp_settle
from ustack.core.timers cimport tcp_compack_timer, tcp_keepalive_timer, tcp_pace_timer, tcp_write_timer
from ustack.core.timewait cimport tw_timer
from ustack.core.tx cimport TXF_LOCAL, tx_len, tx_reset, tx_whole
from ustack.core.types cimport (
    CSUM_VERIFIED, DROP_NONE, E_NOMEM, KIND_REQ, KIND_TCB, KIND_TW, NS_PER_SEC, REF_MASK, REF_SHIFT, TICK_NS, TM_COMPACK,
    TM_DELACK, TM_FRAG, TM_KEEP, TM_PACE, TM_REQ, TM_RETRANS, TM_TW, TM_WAITER, TH_RST, flow_t, idx_t, ns_t, seg_t,
    uint8_t, uint16_t, uint32_t, uint64_t, likely, unlikely,
)
from ustack.core.wheel cimport wheel_count, wheel_destroy, wheel_init, wheel_next, wheel_next_bound, wheel_pop, wheel_register
from ustack.core.wire cimport IPPROTO_TCP, get16, get32, wire_parse_ip, wire_parse_tcp

cdef enum:
    TXF_ECHOED = 4              # a broadcast that we have heard ourselves
    TXF_GONE = 8                # taken back by engine_loop
    LOOP_BUF = 65536
    LOOP_MAX = 65536            # packets to ourselves in one call; the rest waits for the next
    DEF_MTU = 1500
    DEF_TSO_MAX = 65536
    DEF_EHASH = 1048576         # a million half-open connections find chains of one or two
    DEF_REQ = 4194304
    DEF_TCB = 1048576
    DEF_TW = 1048576
    DEF_LISTENERS = 65535       # req_t names its listener in 16 bits
    DEF_GROUPS = 4096
    DEF_REC = 4194304
    DEF_EXT = 262144
    DEF_WAITERS = 1048576
    DEF_FRAGS = 4096
    DEF_CACHE = 65536           # pmtu, metrics
    PORTS = 65536

cdef struct engine_params_t:    # 0 = default
    const uint8_t* seed
    uint32_t seed_len
    ns_t now
    ns_t wall_offset
    ns_t cookie_phase
    uint32_t mtu
    uint32_t ehash_entries
    uint32_t max_req
    uint32_t max_tcb
    uint32_t max_tw
    uint32_t max_listeners
    uint32_t max_srec
    uint32_t max_rrec
    uint32_t max_ext
    uint32_t max_waiters


# ---- creation and end --------------------------------------------------------------------------------------------------------
cdef inline uint32_t or_default_(uint32_t v, uint32_t deflt) noexcept nogil:
    return v if v != 0 else deflt


cdef inline void engine_keys_(engine_t* e, const uint8_t* seed, uint32_t n) noexcept nogil:
    # Each key is a separate output of a function of the whole seed.
    cdef uint64_t a = siphash(0x656e67696e65ULL, 1, seed, n)
    cdef uint64_t b = siphash(0x656e67696e65ULL, 2, seed, n)
    cdef int i
    for i in range(2):
        e.key_ehash[i] = siphash_u64x1(a, b, 10 + i)
        e.key_isn[i] = siphash_u64x1(a, b, 20 + i)
        e.key_cookie[0][i] = siphash_u64x1(a, b, 30 + i)
        e.key_cookie[1][i] = siphash_u64x1(a, b, 32 + i)
        e.key_reuse[i] = siphash_u64x1(a, b, 40 + i)
        e.key_port[i] = siphash_u64x1(a, b, 50 + i)
    prng_seed(&e.prng, seed, n)
    for i in range(PORT_PERTURB):
        e.port_perturb[i] = <uint32_t>prng_u64(&e.prng)
    e.ip_id = <uint16_t>prng_u64(&e.prng)


cdef inline int engine_pools_(engine_t* e, const engine_params_t* p) noexcept nogil:
    cdef int rc = 0
    rc |= pool_init(&e.req, or_default_(p.max_req, DEF_REQ), sizeof(req_t))
    rc |= pool_init_gen(&e.tcb, or_default_(p.max_tcb, DEF_TCB), sizeof(tcb_t))
    rc |= pool_init(&e.tw, or_default_(p.max_tw, DEF_TW), sizeof(tw_t))
    rc |= pool_init_gen(&e.lst, or_default_(p.max_listeners, DEF_LISTENERS), sizeof(listener_t))
    rc |= pool_init(&e.grp, DEF_GROUPS, sizeof(group_t))
    rc |= pool_init(&e.bindb, PORTS, sizeof(bindb_t))
    rc |= pool_init(&e.srec, or_default_(p.max_srec, DEF_REC), sizeof(srec_t))
    rc |= pool_init(&e.rrec, or_default_(p.max_rrec, DEF_REC), sizeof(rrec_t))
    rc |= pool_init(&e.ext, or_default_(p.max_ext, DEF_EXT), sizeof(reqext_t))
    rc |= pool_init(&e.opt, e.tcb.cap, sizeof(skopt_t))         # as many as sockets: taking one never fails
    rc |= pool_init(&e.los, e.tcb.cap, sizeof(sklos_t))
    rc |= pool_init(&e.ca, e.tcb.cap, CA_EXT_WORDS * sizeof(uint64_t))
    rc |= pool_init_gen(&e.wait, or_default_(p.max_waiters, DEF_WAITERS), sizeof(waiter_t))
    rc |= pool_init(&e.frag, DEF_FRAGS, sizeof(frag_t))
    rc |= pool_init(&e.pmtu, DEF_CACHE, sizeof(pmtu_t))
    rc |= pool_init(&e.metrics, DEF_CACHE, sizeof(metrics_t))
    if rc == 0:
        skopt_defaults(<skopt_t*>pool_at(&e.opt, 0))
    e.frag_area = <uint8_t*>map_reserve(<size_t>(DEF_FRAGS + 1) * FRAG_SLOT)
    e.loop_buf = <uint8_t*>map_reserve(LOOP_BUF)
    return -E_NOMEM if rc != 0 or e.frag_area == NULL or e.loop_buf == NULL else 0


cdef inline void engine_register_(engine_t* e) noexcept nogil:
    # Tells the hash table and the wheel where the nodes are.
    cdef req_t* req = <req_t*>pool_at(&e.req, 0)
    cdef tcb_t* sk = <tcb_t*>pool_at(&e.tcb, 0)
    cdef tw_t* tw = <tw_t*>pool_at(&e.tw, 0)
    cdef sklos_t* los = <sklos_t*>pool_at(&e.los, 0)
    ehash_register(&e.ehash, KIND_REQ, &req.en, sizeof(req_t))
    ehash_register(&e.ehash, KIND_TCB, &sk.en, sizeof(tcb_t))
    ehash_register(&e.ehash, KIND_TW, &tw.en, sizeof(tw_t))
    wheel_register(&e.wheel, TM_REQ, &req.timer, sizeof(req_t))
    wheel_register(&e.wheel, TM_TW, &tw.timer, sizeof(tw_t))
    wheel_register(&e.wheel, TM_RETRANS, &sk.tm_retrans, sizeof(tcb_t))
    wheel_register(&e.wheel, TM_DELACK, &sk.tm_delack, sizeof(tcb_t))
    wheel_register(&e.wheel, TM_KEEP, &sk.tm_keep, sizeof(tcb_t))
    wheel_register(&e.wheel, TM_PACE, &los.tm_pace, sizeof(sklos_t))
    wheel_register(&e.wheel, TM_COMPACK, &los.tm_compack, sizeof(sklos_t))
    wheel_register(&e.wheel, TM_FRAG, &(<frag_t*>pool_at(&e.frag, 0)).timer, sizeof(frag_t))
    wheel_register(&e.wheel, TM_WAITER, &(<waiter_t*>pool_at(&e.wait, 0)).timer, sizeof(waiter_t))


cdef inline void engine_destroy(engine_t* e) noexcept nogil:
    # No frame may be outstanding. Rings of live sockets go with their pools' owner: each is freed here. Harmless twice.
    cdef uint32_t i
    cdef tcb_t* sk
    if e.tcb.base != NULL:
        for i in range(1, e.tcb.high + 1):
            if e.tcb.gens[i] & 1:
                sk = sk_at(e, i)
                free(sk.snd.buf)
                free(sk.rcv.buf)
    garbage_collect(e)
    free(<void*>e.garbage)
    free(e.tx)
    free(e.tx_arena)
    free(e.ev)
    ehash_destroy(&e.ehash)
    wheel_destroy(&e.wheel)
    pool_destroy(&e.req)
    pool_destroy(&e.tcb)
    pool_destroy(&e.tw)
    pool_destroy(&e.lst)
    pool_destroy(&e.grp)
    pool_destroy(&e.bindb)
    pool_destroy(&e.srec)
    pool_destroy(&e.rrec)
    pool_destroy(&e.ext)
    pool_destroy(&e.opt)
    pool_destroy(&e.los)
    pool_destroy(&e.ca)
    pool_destroy(&e.wait)
    pool_destroy(&e.frag)
    pool_destroy(&e.pmtu)
    pool_destroy(&e.metrics)
    if e.frag_area != NULL:
        munmap(e.frag_area, <size_t>(DEF_FRAGS + 1) * FRAG_SLOT)
    if e.loop_buf != NULL:
        munmap(e.loop_buf, LOOP_BUF)
    memset(e, 0, sizeof(engine_t))


cdef inline int engine_init(engine_t* e, const engine_params_t* p) noexcept nogil:
    # e: memory that will not move, whatever it holds. 0 or -errno (then nothing is left allocated). Addresses and routes are
    # the caller's to add (route.pxd); e.now starts at p.now.
    cdef int rc
    memset(e, 0, sizeof(engine_t))
    e.now = p.now
    e.wall_offset = p.wall_offset
    e.cookie_phase = p.cookie_phase
    e.tick = TICK_NS
    config_defaults(&e.cfg)
    e.default_cc = CC_CUBIC
    e.mtu = or_default_(p.mtu, DEF_MTU)
    e.tso_max = DEF_TSO_MAX
    e.rt_gen = 1
    e.icmp_global_last = p.now - NS_PER_SEC
    engine_keys_(e, p.seed, p.seed_len)
    wheel_init(&e.wheel, p.now)
    rc = engine_pools_(e, p)
    if rc == 0:
        rc = ehash_init(&e.ehash, or_default_(p.ehash_entries, DEF_EHASH), e.key_ehash[0], e.key_ehash[1])
    if rc != 0:
        engine_destroy(e)
        return rc
    engine_register_(e)
    return 0


# ---- packets -----------------------------------------------------------------------------------------------------------------
cdef inline void engine_time(engine_t* e, ns_t now) noexcept nogil:
    # The time of the call that follows; it never goes back.
    if now > e.now:
        e.now = now


cdef inline void engine_flow_(const uint8_t* p, uint32_t n, flow_t* f) noexcept nogil:
    # The 4-tuple of a packet, as far as it has one.
    cdef uint32_t hlen
    if n < 20:
        return
    f.faddr = get32(p + 12)
    f.laddr = get32(p + 16)
    hlen = <uint32_t>(p[0] & 15) << 2
    if hlen >= 20 and n >= hlen + 4 and p[9] == IPPROTO_TCP:
        f.fport = get16(p + hlen)
        f.lport = get16(p + hlen + 2)


cdef inline void engine_drop_hook_(engine_t* e, const uint8_t* p, uint32_t n, int reason) noexcept nogil:
    # A drop hook may have a segment answered with a RST.
    cdef hook_drop_t a
    cdef seg_t s
    memset(&a, 0, sizeof(hook_drop_t))
    a.reason = <uint16_t>reason
    a.listener = listenhook_handle(e, e.rx_listener) if e.rx_listener != 0 else 0
    a.packet = p
    a.packet_len = n
    engine_flow_(p, n, &a.flow)
    hook_drop(e.hooks, &a)
    if a.verdict != HOOK_RESET:
        return
    memset(&s, 0, sizeof(seg_t))
    if wire_parse_ip(p, n, &s) == DROP_NONE and s.proto == IPPROTO_TCP and wire_parse_tcp(&s) == DROP_NONE and not s.flags & TH_RST:
        ipout_rst_reply(e, &s)


cdef inline void engine_drop_(engine_t* e, const uint8_t* p, uint32_t n, int reason) noexcept nogil:
    cdef event_t* ev
    drop_inc(&e.stats, reason)
    if e.rx_listener != 0:
        lst_at(e, e.rx_listener).drop_by[reason] += 1
    ev = ev_push(e, EV_DROP, <uint16_t>reason)
    if ev != NULL:
        engine_flow_(p, n, &ev.flow)
        ev.c = listenhook_handle(e, e.rx_listener) if e.rx_listener != 0 else 0
    if hooked(e.hooks):
        engine_drop_hook_(e, p, n, reason)


cdef inline int engine_take_(engine_t* e, const uint8_t* p, uint32_t n, uint8_t csum, uint32_t gso_size, int origin) noexcept nogil:
    cdef int reason
    e.rx_listener = 0
    reason = ip_rcv(e, p, n, csum, gso_size, origin)
    if unlikely(reason != DROP_NONE):
        engine_drop_(e, p, n, reason)
    return reason


cdef inline void engine_loop(engine_t* e) noexcept nogil:
    # What we have sent to ourselves comes back: frames to our own addresses never reach the link, broadcasts are heard as well.
    cdef uint32_t i = 0
    cdef uint32_t kept = 0
    cdef uint32_t budget = LOOP_MAX
    cdef txframe_t* f
    cdef uint32_t n
    if likely(e.tx_local == 0):
        return
    e.tx_local = 0
    while i < e.tx_n and budget != 0:
        f = &e.tx[i]
        i += 1
        if tx_len(f) > LOOP_BUF:
            continue                    # no IP packet is that long
        if f.flags & TXF_LOCAL:
            n = tx_whole(f, e.loop_buf)
            f.flags |= TXF_GONE
            budget -= 1
            engine_take_(e, e.loop_buf, n, CSUM_VERIFIED, f.gso_size, FROM_SELF)
        elif not f.flags & TXF_ECHOED and is_broadcast(e, get32(f.hdr + 16)):
            n = tx_whole(f, e.loop_buf)
            f.flags |= TXF_ECHOED
            budget -= 1
            engine_take_(e, e.loop_buf, n, CSUM_VERIFIED, 0, FROM_ECHO)
    if budget == 0:
        e.tx_local = 1
    for i in range(e.tx_n):
        if not e.tx[i].flags & TXF_GONE:
            if kept != i:
                e.tx[kept] = e.tx[i]
            kept += 1
    e.tx_n = kept


cdef inline int engine_receive(engine_t* e, const uint8_t* p, uint32_t n, uint8_t csum, uint32_t gso_size, ns_t now) noexcept nogil:
    # One IP packet from the link: 0 = taken, else the reason it was dropped (already counted).
    cdef int reason
    engine_time(e, now)
    reason = engine_take_(e, p, n, csum, gso_size, FROM_LINK)
    engine_loop(e)
    return reason


cdef inline void engine_batch(engine_t* e, bint begin) noexcept nogil:
    # Around the packets of a batch and what is served at once (service_pump): ACKs due meanwhile wait for engine_settle. Optional.
    e.holds_acks = begin
    e.holds_pushes = 0


cdef inline void engine_settle(engine_t* e, uint8_t what, ns_t wait) noexcept nogil:
    # Of what was held (engine_batch, holds_pushes) these OWES_* go out, as far as nothing else has taken them along; all that has waited so long.
    if e.owed_what & what or (e.n_owed and e.now - e.owed_at > wait):
        tcp_settle(e, what, wait)


cdef inline int engine_resume(engine_t* e, const uint8_t* p, uint32_t n) noexcept nogil:
    # A TCP packet that an ack hook parked goes on. As engine_receive; e.now is the time.
    cdef int reason
    e.rx_listener = 0
    reason = tcp_v4_resume(e, p, n)
    if reason != DROP_NONE:
        engine_drop_(e, p, n, reason)
    engine_loop(e)
    return reason


cdef inline void engine_prefetch(engine_t* e, const uint8_t* p, uint32_t n, int stage) noexcept nogil:
    # A hint before a batch: call it for each packet with stage 0, then with 1, then, if engine_crowded, with 2; then receive them. With many
    # connections nearly all of a packet's time is waiting for the table's bucket and the entries behind it; in a batch the waits overlap.
    if n < 40 or p[0] != 0x45 or p[9] != IPPROTO_TCP:
        return
    if stage == 0:
        ehash_prefetch(&e.ehash, get32(p + 16), get32(p + 12), get16(p + 22), get16(p + 20))
    elif stage == 1:
        ehash_prefetch_node(&e.ehash, get32(p + 16), get32(p + 12), get16(p + 22), get16(p + 20))
    else:
        ehash_prefetch_next(&e.ehash, get32(p + 16), get32(p + 12), get16(p + 22), get16(p + 20))


cdef inline bint engine_crowded(const engine_t* e) noexcept nogil:
    return ehash_crowded(&e.ehash)


# ---- timers ------------------------------------------------------------------------------------------------------------------
cdef inline void engine_fire_(engine_t* e, uint32_t id) noexcept nogil:
    cdef uint32_t kind = id >> REF_SHIFT
    cdef idx_t i = id & REF_MASK
    if kind == TM_REQ:
        request_timer(e, i)
    elif kind == TM_TW:
        tw_timer(e, i)
    elif kind == TM_RETRANS:
        tcp_write_timer(e, sk_at(e, i))
    elif kind == TM_DELACK:
        tcp_delack_timer(e, sk_at(e, i))
    elif kind == TM_KEEP:
        tcp_keepalive_timer(e, sk_at(e, i))
    elif kind == TM_PACE:
        tcp_pace_timer(e, sk_of_los(e, i))
    elif kind == TM_COMPACK:
        tcp_compack_timer(e, sk_of_los(e, i))
    elif kind == TM_FRAG:
        ip_expire(e, i)
    elif kind == TM_WAITER:
        waiter_timeout(e, i)


cdef inline uint32_t engine_poll(engine_t* e, ns_t now) noexcept nogil:
    # Runs the timers that are due at now and were armed before the call; returns how many.
    cdef uint32_t budget = wheel_count(&e.wheel)
    cdef uint32_t fired = 0
    cdef uint32_t id
    engine_time(e, now)
    while fired < budget:
        id = wheel_pop(&e.wheel, e.now)
        if id == 0:
            break
        engine_fire_(e, id)
        fired += 1
    engine_loop(e)
    return fired


cdef inline ns_t engine_next_timeout(engine_t* e) noexcept nogil:
    # The exact time of the next timer, NS_NEVER if there is none; with lazy_timers maybe somewhat earlier.
    return wheel_next_bound(&e.wheel) if e.lazy_timers else wheel_next(&e.wheel)


cdef inline ns_t engine_next_bound(engine_t* e) noexcept nogil:
    # As engine_next_timeout or somewhat earlier, without a search.
    return wheel_next_bound(&e.wheel)


# ---- frames ------------------------------------------------------------------------------------------------------------------
cdef inline void engine_tx_done(engine_t* e) noexcept nogil:
    # The driver has written or copied e.tx[0 .. e.tx_n) under the lock: forget them and free what they pointed to.
    tx_reset(e)
    garbage_collect(e)
