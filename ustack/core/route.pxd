# Routes: where a packet goes, which of our addresses it leaves from, how large it may be (layer above sock).
#
# RFC 1122 3.3.1, RFC 1191; facts B9, B32, C7, N3, N24. One link. A FIB entry is a prefix with metrics (e.routes, 0 = metric not
# set); the longest prefix wins, among equal ones the one entered last. An address brings its connected prefix as an entry of its own.
# Every change bumps e.rt_gen; a socket caches the number of its entry and looks again when the generation differs (sk_route).
# A learned path MTU is an exception of one destination beside the table (e.pmtu), with a life time.
# What an address is to us is asked several times for one packet, so the latest answers are remembered (dst_of), as long as rt_gen stands.
# Invariant: sk.rt is 0 (no route), entry + 1, or RT_LOCAL for an address of our own (loopback inside the stack).
# Callers: everything that sends; ipin for the classification of what arrives; the border for changes.

from libc.string cimport memset

from ustack.core.pool cimport pool_alloc, pool_at, pool_free
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.access cimport jiffies_up
from ustack.core.state cimport (
    MAX_ADDR, MAX_ROUTE, PMTU_HASH, RTF_BLACKHOLE, RTF_BROADCAST, RTF_LOCAL, RTF_MULTICAST, RTF_NONE, RTF_PROHIBIT, RTF_UNICAST,
    RTF_UNREACHABLE, addr_t, dst_t, engine_t, pmtu_t, route_t,
)
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport (
    DROP_IP_INADDRERRORS, DROP_IP_INVALID_DEST, DROP_IP_INVALID_SOURCE, DROP_IP_LOCAL_SOURCE, E_ACCES, E_ADDRNOTAVAIL,
    E_HOSTUNREACH, E_INVAL, E_NETUNREACH, E_NOBUFS, E_NOENT, NS_PER_MS, NS_PER_SEC, idx_t, int16_t, ns_t, uint8_t,
    uint16_t, uint32_t, likely, unlikely,
)

cdef enum:
    LOOPBACK_ADDR = 0x7f000001
    RT_LOCAL = 0xffff
    IPV4_MAX_PMTU = 65535
    LOOPBACK_MTU = IPV4_MAX_PMTU        # the device has 65536, but no packet is larger than this
    E_EXIST = 17
    E_SRCH = 3
    ROUTE_ADD = 1               # EEXIST if the prefix has an entry
    ROUTE_CHANGE = 2            # replaces all metrics, ENOENT if there is none
    ROUTE_REPLACE = 3
    ROUTE_DEL = 4
    PMTU_DEPTH = 5              # exceptions of one hash chain; the oldest makes room
    IP_PMTUDISC_DONT = 0
    IP_PMTUDISC_WANT = 1
    IP_PMTUDISC_DO = 2
    IP_PMTUDISC_PROBE = 3
    IP_PMTUDISC_INTERFACE = 4
    IP_PMTUDISC_OMIT = 5
    RTAX_FEATURE_ECN = 1
    DST_OWN = 1                 # an address configured on the link
    DST_LOOPBACK = 2            # 127/8
    DST_LOCAL = 3               # one or the other
    DST_BROADCAST = 4
    DST_MULTICAST = 8

cdef struct route_result_t:
    int type                    # RTF_*
    uint16_t rt                 # as tcb.rt
    uint8_t mtu_locked
    uint32_t src                # source address: the one asked for, else the entry's, else our first
    uint32_t mtu
    uint32_t advmss
    const route_t* entry        # metrics; NULL for a local destination


cdef inline uint32_t plen_mask(uint32_t plen) noexcept nogil:
    return <uint32_t>(0xffffffffULL << (32 - plen)) if plen != 0 else 0


cdef inline bint ipv4_is_multicast(uint32_t a) noexcept nogil:
    return a >> 28 == 14


cdef inline bint ipv4_is_lbcast(uint32_t a) noexcept nogil:
    return a == <uint32_t>0xffffffffULL


cdef inline bint ipv4_is_loopback(uint32_t a) noexcept nogil:
    return a >> 24 == 127


cdef inline bint is_own_address(engine_t* e, uint32_t addr) noexcept nogil:
    # An address configured on the link (127/8 is not).
    cdef uint32_t i
    for i in range(e.n_addrs):
        if addr == e.addrs[i].addr:
            return True
        if e.addrs[i].any_of and (addr ^ e.addrs[i].addr) & plen_mask(e.addrs[i].plen) == 0:
            return True
    return False


cdef inline bint is_local(engine_t* e, uint32_t addr) noexcept nogil:
    return is_own_address(e, addr) or ipv4_is_loopback(addr)


cdef inline bint is_broadcast(engine_t* e, uint32_t addr) noexcept nogil:
    # 255.255.255.255 or the all-ones host of a connected subnet. The all-zeros host is none (facts N3).
    cdef uint32_t i
    cdef uint32_t mask
    if ipv4_is_lbcast(addr):
        return True
    for i in range(e.n_addrs):
        if e.addrs[i].plen < 31 and not e.addrs[i].any_of:
            mask = plen_mask(e.addrs[i].plen)
            if addr == (e.addrs[i].addr | ~mask):
                return True
    return False


# ---- the table ---------------------------------------------------------------------------------------------------------------
cdef inline route_t* fib_find(engine_t* e, uint32_t dst, uint32_t plen) noexcept nogil:
    # The entry of exactly this prefix.
    cdef uint32_t i
    for i in range(e.n_routes):
        if e.routes[i].used and e.routes[i].plen == plen and e.routes[i].dst == dst:
            return &e.routes[i]
    return NULL


cdef inline route_t* fib_lookup(engine_t* e, uint32_t dst) noexcept nogil:
    # Longest prefix; NULL if none covers dst.
    cdef uint32_t i
    cdef route_t* r
    cdef route_t* best = NULL
    for i in range(e.n_routes):
        r = &e.routes[i]
        if r.used and (dst ^ r.dst) & plen_mask(r.plen) == 0 and (best == NULL or r.plen > best.plen):
            best = r
    return best


cdef inline int fib_errno_(const route_t* r) noexcept nogil:
    # What a search ends with that found r.
    if r == NULL:
        return -E_NETUNREACH
    if r.type == RTF_UNREACHABLE:
        return -E_HOSTUNREACH
    if r.type == RTF_PROHIBIT:
        return -E_ACCES
    if r.type == RTF_BLACKHOLE:
        return -E_INVAL
    return 0


cdef inline void dst_learn_(engine_t* e, dst_t* d, uint32_t addr) noexcept nogil:
    cdef const route_t* r
    d.addr = addr
    d.gen = e.rt_gen
    d.kind = 0
    if is_own_address(e, addr):
        d.kind |= DST_OWN
    if ipv4_is_loopback(addr):
        d.kind |= DST_LOOPBACK
    if is_broadcast(e, addr):
        d.kind |= DST_BROADCAST
    if ipv4_is_multicast(addr):
        d.kind |= DST_MULTICAST
    d.err = 0
    d.rt = RT_LOCAL
    if unlikely(d.kind & DST_LOCAL):
        return
    r = fib_lookup(e, addr)
    d.err = <int16_t>fib_errno_(r)
    d.rt = <uint16_t>(r - &e.routes[0] + 1) if d.err == 0 else 0


cdef inline const dst_t* dst_of(engine_t* e, uint32_t addr) noexcept nogil:
    # What addr is to us, and the route to it. Valid until the next call. Under the engine's lock only.
    cdef dst_t* d = &e.dst_memo[(addr * <uint32_t>0x9e3779b1ULL) >> 26]
    if unlikely(d.addr != addr) or unlikely(d.gen != e.rt_gen):
        dst_learn_(e, d, addr)
    return d


cdef inline int dst_type_(uint32_t addr, uint8_t kind) noexcept nogil:
    if kind & DST_MULTICAST:
        return RTF_MULTICAST
    if addr == 0 or kind & DST_BROADCAST:
        return RTF_BROADCAST
    if kind & DST_LOCAL:
        return RTF_LOCAL
    return RTF_UNICAST


cdef inline int inet_addr_type(engine_t* e, uint32_t addr) noexcept nogil:
    # What an address is to us, as bind() and the input path ask: RTF_LOCAL, _BROADCAST, _MULTICAST or _UNICAST.
    return dst_type_(addr, dst_of(e, addr).kind)


cdef inline bint route_is_bindable(engine_t* e, uint32_t addr) noexcept nogil:
    # May bind() take this address? Any, one of ours, or a group or broadcast address.
    return addr == 0 or inet_addr_type(e, addr) != RTF_UNICAST


cdef inline route_t* fib_new(engine_t* e) noexcept nogil:
    cdef uint32_t i
    for i in range(e.n_routes):
        if not e.routes[i].used:
            return &e.routes[i]
    if e.n_routes == MAX_ROUTE:
        return NULL
    e.n_routes += 1
    return &e.routes[e.n_routes - 1]


cdef inline int route_change(engine_t* e, const route_t* r, int op) noexcept nogil:
    # One `ip route` command: ROUTE_*. The caller fills dst, plen, type and the metrics it names; all others become unset.
    cdef uint32_t dst = r.dst & plen_mask(r.plen)
    cdef route_t* have
    if r.plen > 32:
        return -E_INVAL
    have = fib_find(e, dst, r.plen)
    if op == ROUTE_ADD and have != NULL:
        return -E_EXIST
    if op == ROUTE_CHANGE and have == NULL:
        return -E_NOENT
    if op == ROUTE_DEL and have == NULL:
        return -E_SRCH
    e.rt_gen += 1
    if op == ROUTE_DEL:
        memset(have, 0, sizeof(route_t))
        return 0
    if have == NULL:
        have = fib_new(e)
        if have == NULL:
            return -E_NOBUFS
    have[0] = r[0]
    have.dst = dst
    have.used = 1
    if have.type == 0:
        have.type = RTF_UNICAST
    return 0


cdef inline void route_default(engine_t* e, bint on) noexcept nogil:
    # A default route out of the link, without metrics: every unicast destination is reachable.
    cdef route_t r
    memset(&r, 0, sizeof(route_t))
    r.type = RTF_UNICAST
    route_change(e, &r, ROUTE_REPLACE if on else ROUTE_DEL)


cdef inline uint32_t addr_source_(const addr_t* a) noexcept nogil:
    # What goes out comes from this address: of a whole prefix, the first host if the network itself was named.
    if a.any_of and a.plen < 31 and a.addr & ~plen_mask(a.plen) == 0:
        return a.addr + 1
    return a.addr


cdef inline void route_connect_(engine_t* e, const addr_t* a) noexcept nogil:
    # The connected prefix of an address, if it has none yet.
    cdef route_t r
    if a.plen == 32 or fib_find(e, a.addr & plen_mask(a.plen), a.plen) != NULL:
        return
    memset(&r, 0, sizeof(route_t))
    r.dst = a.addr & plen_mask(a.plen)
    r.plen = a.plen
    r.type = RTF_UNICAST
    r.src = addr_source_(a)
    route_change(e, &r, ROUTE_ADD)


cdef inline int addr_add(engine_t* e, uint32_t addr, uint8_t plen, bint any_of) noexcept nogil:
    cdef uint32_t i
    cdef addr_t* a
    if plen > 32 or addr == 0 or ipv4_is_multicast(addr) or ipv4_is_lbcast(addr):
        return -E_INVAL
    for i in range(e.n_addrs):
        if e.addrs[i].addr == addr and e.addrs[i].plen == plen:
            return -E_EXIST
    if e.n_addrs == MAX_ADDR:
        return -E_NOBUFS
    a = &e.addrs[e.n_addrs]
    a.addr = addr
    a.plen = plen
    a.any_of = any_of
    e.n_addrs += 1
    e.rt_gen += 1
    route_connect_(e, a)
    return 0


cdef inline int addr_del(engine_t* e, uint32_t addr, uint8_t plen) noexcept nogil:
    # Takes the address and its connected prefix away; another address of the same prefix takes the prefix over.
    cdef uint32_t i
    cdef uint32_t at = MAX_ADDR
    cdef uint32_t gone
    cdef route_t* r
    for i in range(e.n_addrs):
        if e.addrs[i].addr == addr and e.addrs[i].plen == plen:
            at = i
    if at == MAX_ADDR:
        return -E_ADDRNOTAVAIL
    gone = addr_source_(&e.addrs[at])
    for i in range(at + 1, e.n_addrs):
        e.addrs[i - 1] = e.addrs[i]
    e.n_addrs -= 1
    e.rt_gen += 1
    r = fib_find(e, addr & plen_mask(plen), plen)
    if r != NULL and r.src == gone:
        memset(r, 0, sizeof(route_t))
    for i in range(e.n_addrs):
        route_connect_(e, &e.addrs[i])
    return 0


# ---- learned path MTU --------------------------------------------------------------------------------------------------------
cdef inline uint32_t pmtu_slot_(uint32_t dst) noexcept nogil:
    return (dst * <uint32_t>0x9e3779b1ULL) >> 24


cdef inline pmtu_t* pmtu_find(engine_t* e, uint32_t dst) noexcept nogil:
    # The live exception of a destination, or NULL.
    cdef idx_t i
    cdef pmtu_t* p
    if likely(e.pmtu.used == 0):
        return NULL
    i = e.pmtu_hash[pmtu_slot_(dst)]
    while i != 0:
        p = <pmtu_t*>pool_at(&e.pmtu, i)
        if p.dst == dst:
            return p if e.now < p.expires else NULL
        i = p.next
    return NULL


cdef inline pmtu_t* pmtu_make_(engine_t* e, uint32_t dst) noexcept nogil:
    # The record of a destination, new or old. A chain is kept short by taking over its oldest record.
    cdef idx_t* link = &e.pmtu_hash[pmtu_slot_(dst)]
    cdef idx_t i = link[0]
    cdef pmtu_t* p
    cdef pmtu_t* oldest = NULL
    cdef uint32_t depth = 0
    while i != 0:
        p = <pmtu_t*>pool_at(&e.pmtu, i)
        if p.dst == dst:
            return p
        if oldest == NULL or p.expires < oldest.expires:
            oldest = p
        depth += 1
        i = p.next
    if depth <= PMTU_DEPTH:
        i = pool_alloc(&e.pmtu)
        if i != 0:
            p = <pmtu_t*>pool_at(&e.pmtu, i)
            p.next = link[0]
            p.dst = dst
            link[0] = i
            return p
    if oldest != NULL:
        oldest.dst = dst
        oldest.mtu = 0
        oldest.locked = 0
        oldest.expires = 0
    return oldest


cdef inline void pmtu_flush(engine_t* e) noexcept nogil:
    # `ip route flush cache`: every learned path MTU is forgotten; sockets look up their route again.
    cdef int h
    cdef idx_t i
    cdef idx_t next
    for h in range(PMTU_HASH):
        i = e.pmtu_hash[h]
        while i != 0:
            next = (<pmtu_t*>pool_at(&e.pmtu, i)).next
            pool_free(&e.pmtu, i)
            i = next
        e.pmtu_hash[h] = 0
    e.rt_gen += 1


cdef inline uint32_t entry_mtu_(engine_t* e, const route_t* r, uint32_t dst, bint* locked) noexcept nogil:
    # Effective MTU towards dst: exception, else the entry's metric, else the link's.
    cdef pmtu_t* p
    locked[0] = r != NULL and r.mtu_lock
    if r == NULL:
        return LOOPBACK_MTU
    p = pmtu_find(e, dst)
    if p != NULL:
        locked[0] = locked[0] or p.locked
        return u32_min(p.mtu, IPV4_MAX_PMTU)
    if r.mtu != 0:
        return u32_min(r.mtu, IPV4_MAX_PMTU)
    return u32_min(e.mtu, IPV4_MAX_PMTU)


cdef inline void pmtu_update(engine_t* e, uint32_t dst, uint32_t mtu) noexcept nogil:
    # Somebody says that dst takes packets of at most mtu bytes (facts N24). Never raises; below min_pmtu the value is not
    # believed: min_pmtu then, and DF is given up ("lock").
    cdef bint locked
    cdef const route_t* r = fib_lookup(e, dst)
    cdef uint32_t old
    cdef bint lock = False
    cdef pmtu_t* p
    cdef ns_t life = <ns_t>e.cfg.route_mtu_expires * NS_PER_SEC
    if r == NULL or is_local(e, dst):
        return
    old = entry_mtu_(e, r, dst, &locked)
    if locked or old < mtu:
        return
    if mtu < e.cfg.route_min_pmtu:
        lock = True
        mtu = u32_min(old, <uint32_t>e.cfg.route_min_pmtu)
    p = pmtu_find(e, dst)
    if p != NULL and p.mtu == mtu and not lock and e.now < p.expires - life / 2:
        return
    p = pmtu_make_(e, dst)
    if p == NULL:
        return
    p.mtu = mtu
    p.locked = lock
    p.expires = e.now + life


cdef inline void link_set_mtu(engine_t* e, uint32_t mtu) noexcept nogil:
    # The link's MTU changed: exceptions that followed the old value, or exceed the new one, follow. No route is out of date by
    # that: who asks for an MTU is told the new one at once.
    cdef int h
    cdef idx_t i
    cdef pmtu_t* p
    for h in range(PMTU_HASH):
        i = e.pmtu_hash[h]
        while i != 0:
            p = <pmtu_t*>pool_at(&e.pmtu, i)
            if p.locked:
                if mtu <= p.mtu:
                    p.mtu = mtu
                    p.locked = 0
            elif mtu < p.mtu or p.mtu == e.mtu:
                p.mtu = mtu
            i = p.next
    e.mtu = mtu


# ---- output ------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t route_advmss(engine_t* e, const route_t* r, uint32_t mtu) noexcept nogil:
    # MSS to announce (facts C7): the metric, else what fits into the MTU, at least min_adv_mss.
    if r != NULL and r.advmss != 0:
        return r.advmss
    mtu = mtu - 40 if mtu > 40 else 0
    return u32_min(u32_max(mtu, <uint32_t>e.cfg.route_min_adv_mss), IPV4_MAX_PMTU - 40)


cdef inline uint32_t first_address(engine_t* e) noexcept nogil:
    return addr_source_(&e.addrs[0]) if e.n_addrs != 0 else 0


cdef inline uint32_t local_source_(engine_t* e, uint32_t addr) noexcept nogil:
    # From where we talk to an address of our own: the first of its subnet, 127.0.0.1 for all of 127/8.
    cdef uint32_t i
    for i in range(e.n_addrs):
        if (addr ^ e.addrs[i].addr) & plen_mask(e.addrs[i].plen) == 0:
            return addr if e.addrs[i].any_of else e.addrs[i].addr
    return LOOPBACK_ADDR if ipv4_is_loopback(addr) else addr


cdef inline int route_find_(engine_t* e, uint32_t daddr, uint16_t* rt) noexcept nogil:
    # The entry for a destination of ours, as tcb.rt; 0 or -errno.
    cdef const dst_t* d = dst_of(e, daddr)
    rt[0] = d.rt
    return d.err


cdef inline const route_t* rt_entry(engine_t* e, uint16_t rt) noexcept nogil:
    # Metrics behind a tcb.rt; NULL for none and for loopback.
    return &e.routes[rt - 1] if rt != 0 and rt != RT_LOCAL else NULL


cdef inline int route_lookup(engine_t* e, uint32_t saddr, uint32_t daddr, route_result_t* out) noexcept nogil:
    # Route of a packet to be sent; saddr 0 = choose one. 0 or -errno, out is filled in both cases.
    cdef bint locked
    cdef const dst_t* d = dst_of(e, daddr)
    memset(out, 0, sizeof(route_result_t))
    out.type = RTF_NONE
    out.rt = d.rt
    if d.err != 0:
        return d.err
    out.entry = rt_entry(e, out.rt)
    out.type = dst_type_(daddr, d.kind)
    out.mtu = entry_mtu_(e, out.entry, daddr, &locked)
    out.mtu_locked = locked
    out.advmss = route_advmss(e, out.entry, out.mtu)
    if saddr != 0:
        out.src = saddr
    elif out.rt == RT_LOCAL:
        out.src = local_source_(e, daddr)
    elif out.entry.src != 0:
        out.src = out.entry.src
    else:
        out.src = first_address(e)
    return 0


cdef inline int sk_route(engine_t* e, tcb_t* sk) noexcept nogil:
    # Makes sk.rt current. 0 or -errno (then sk.rt is 0 and the search is repeated at the next call).
    cdef int rc
    if likely(sk.rt_gen == e.rt_gen) and likely(sk.rt != 0):
        return 0
    rc = route_find_(e, sk.en.faddr, &sk.rt)
    if rc == 0 and sk.en.laddr != 0 and not is_local(e, sk.en.laddr):
        sk.rt = 0
        rc = -E_INVAL           # our address was taken away
    sk.rt_gen = e.rt_gen
    return rc


cdef inline const route_t* sk_rt(engine_t* e, const tcb_t* sk) noexcept nogil:
    # The metrics of the socket's route as last looked up; NULL = none (no route, loopback).
    return rt_entry(e, sk.rt)


cdef inline uint32_t route_mtu(engine_t* e, tcb_t* sk) noexcept nogil:
    # dst_mtu(): what fits now, exceptions and their expiry included. Keeps sk.pmtu_locked true to it.
    cdef bint locked
    cdef uint32_t mtu = entry_mtu_(e, rt_entry(e, sk.rt), sk.en.faddr, &locked)
    sk.pmtu_locked = locked
    return mtu


cdef inline uint32_t sk_advmss(engine_t* e, tcb_t* sk) noexcept nogil:
    return route_advmss(e, sk_rt(e, sk), route_mtu(e, sk))


cdef inline ns_t sk_rto_min(engine_t* e, const tcb_t* sk) noexcept nogil:
    # tcp_rto_min, in whole ticks: the route's word counts more than the socket's.
    cdef const route_t* r = sk_rt(e, sk)
    return jiffies_up(e, <ns_t>r.rto_min_ms * NS_PER_MS if r != NULL and r.rto_min_ms != 0 else <ns_t>sk.rto_min_us * 1000)


cdef inline bint sk_dont_fragment(engine_t* e, tcb_t* sk) noexcept nogil:
    # Does the socket set DF?
    if sk.pmtudisc == IP_PMTUDISC_DO:
        return True
    if sk.pmtudisc != IP_PMTUDISC_WANT:
        return False
    route_mtu(e, sk)
    return not sk.pmtu_locked


# ---- input -------------------------------------------------------------------------------------------------------------------
cdef inline int route_input(engine_t* e, uint32_t src, uint32_t dst, int* type) noexcept nogil:
    # What an arriving packet is to us (facts N3, B32). 0 and *type = RTF_LOCAL, _BROADCAST or _MULTICAST; else the reason to drop
    # it. Only DROP_IP_INADDRERRORS has a counter, which the caller bumps. rp_filter is off.
    cdef uint8_t kind
    type[0] = RTF_NONE
    if ipv4_is_multicast(dst):
        if ipv4_is_multicast(src) or ipv4_is_lbcast(src) or ipv4_is_loopback(src):
            return DROP_IP_INVALID_SOURCE
        if src == 0:
            if dst >> 8 != 0xe00000:
                return DROP_IP_INVALID_SOURCE
        elif is_own_address(e, src):
            return DROP_IP_LOCAL_SOURCE
        if dst != <uint32_t>0xe0000001ULL:      # only all-hosts has a member here
            return DROP_IP_INVALID_DEST
        type[0] = RTF_MULTICAST
        return 0
    if ipv4_is_multicast(src) or ipv4_is_lbcast(src):
        return DROP_IP_INVALID_SOURCE
    if not ipv4_is_lbcast(dst) and (src != 0 or dst != 0):
        if src == 0:
            return DROP_IP_INVALID_SOURCE
        if dst == 0 or ipv4_is_loopback(dst):
            return DROP_IP_INVALID_DEST
        if ipv4_is_loopback(src):
            return DROP_IP_INVALID_SOURCE
        kind = dst_of(e, dst).kind
        if kind & DST_OWN:
            if dst_of(e, src).kind & DST_OWN:
                return DROP_IP_LOCAL_SOURCE
            type[0] = RTF_LOCAL
            return 0
        if not kind & DST_BROADCAST:
            return DROP_IP_INADDRERRORS
    if ipv4_is_loopback(src):
        return DROP_IP_INVALID_SOURCE
    if src != 0 and is_own_address(e, src):
        return DROP_IP_LOCAL_SOURCE
    type[0] = RTF_BROADCAST
    return 0
