# Local ports and listeners: bind conflicts, automatic ports, the listener table, SO_REUSEPORT groups (layer above sock).
#
# Facts A4, A5, A13-A21. Linux counterparts: inet_csk_get_port, inet_csk_bind_conflict, inet_csk_find_open_port, inet_inherit_port,
# __inet_lookup_listener, reuseport_add_sock / _detach_sock / _select_sock.
# Every port in use has one bucket (e.bhash[port]); its owners are sockets in any state and TIME_WAIT records, so a child or a
# TIME_WAIT keeps a port busy. A bucket whose owners all got the port from connect() (n_bound == 0) may be shared by further
# connect() calls as long as the 4-tuples differ.
# Listeners hang in e.lhash by (address, port); address 0 is the wildcard. A group holds the listening members in order of
# listen(); a member that closes while tcp_migrate_req is on stays behind as "closed", so that its requests find the others.
# Callers: user (bind, listen), connect, child (inherit), listen, ipin (look-up).

from ustack.core.hooks cimport SELECT_LOOKUP, hooked
from ustack.core.listenhook cimport listenhook_select
from ustack.core.pool cimport pool_alloc, pool_at
from ustack.core.records cimport GROUP_MAX, bindb_t, group_t, listener_t, tw_t
from ustack.core.siphash cimport prng_below, siphash_u64x2
from ustack.core.access cimport grp_at, lst_at, ref_idx, ref_kind, ref_of, sk_at, sk_fport, sk_lport, sk_set_ports, tw_at
from ustack.core.sock cimport group_leave
from ustack.core.state cimport LHASH, engine_t
from ustack.core.tcb cimport SF_REUSEADDR, SF_REUSEPORT, SOCK_CONNECT_BIND, tcb_t
from ustack.core.types cimport (
    E_ADDRINUSE, E_NOBUFS, KIND_TCB, KIND_TW, TCP_LISTEN, flow_t, idx_t, ref_t, uint8_t, uint16_t, uint32_t, uint64_t,
)

cdef enum:
    TW_REUSEADDR = 1            # tw_t.reuse
    TW_REUSEPORT = 2
    TW_CONNECT_BIND = 4


# ---- buckets -------------------------------------------------------------------------------------------------------------------
cdef inline bindb_t* bind_bucket(engine_t* e, uint16_t port) noexcept nogil:
    # NULL if nobody owns the port.
    cdef idx_t i = e.bhash[port]
    return <bindb_t*>pool_at(&e.bindb, i) if i != 0 else NULL


cdef inline idx_t bind_bucket_make_(engine_t* e, uint16_t port) noexcept nogil:
    # 0 if the pool is exhausted.
    cdef idx_t i = e.bhash[port]
    if i == 0:
        i = pool_alloc(&e.bindb)
        if i != 0:
            (<bindb_t*>pool_at(&e.bindb, i)).port = port
            e.bhash[port] = i
    return i


cdef inline void bind_push_(engine_t* e, bindb_t* b, ref_t owner, ref_t* next) noexcept nogil:
    # The newest owner goes to the head.
    next[0] = b.owners
    if b.owners != 0:
        if ref_kind(b.owners) == KIND_TCB:
            sk_at(e, ref_idx(b.owners)).bind_prev = owner
        else:
            tw_at(e, ref_idx(b.owners)).bind_prev = owner
    b.owners = owner
    b.n += 1


cdef inline int bind_own(engine_t* e, tcb_t* sk, uint16_t port) noexcept nogil:
    # Makes the socket an owner of the port, without any test. sk.userlocks says whether it is connect()'s choice.
    cdef idx_t i = bind_bucket_make_(e, port)
    cdef bindb_t* b
    if i == 0:
        return -E_NOBUFS
    b = <bindb_t*>pool_at(&e.bindb, i)
    bind_push_(e, b, ref_of(KIND_TCB, sk.idx), &sk.bind_next)
    sk.bind = i
    if not sk.userlocks & SOCK_CONNECT_BIND:
        b.n_bound += 1
    return 0


cdef inline void bind_own_tw(engine_t* e, tw_t* tw, idx_t tw_idx, idx_t bucket) noexcept nogil:
    # A TIME_WAIT record holds the port of the socket that it replaces. tw.reuse is set.
    cdef bindb_t* b
    if bucket == 0:
        return
    b = <bindb_t*>pool_at(&e.bindb, bucket)
    bind_push_(e, b, ref_of(KIND_TW, tw_idx), &tw.bind_next)
    tw.bind = bucket
    if not tw.reuse & TW_CONNECT_BIND:
        b.n_bound += 1


# ---- conflicts (facts A13-A17) -------------------------------------------------------------------------------------------------
cdef inline bint rcv_saddr_equal(uint32_t a, uint32_t b) noexcept nogil:
    return a == 0 or b == 0 or a == b


cdef inline bint bind_conflict_one_(tcb_t* sk, bint reuse2, bint listen2, bint port_ok, bint relax,
                                    bint reuseport_ok) noexcept nogil:
    # Does an owner of an overlapping address forbid sk the port? port_ok: both have SO_REUSEPORT and the same user (a
    # TIME_WAIT record's user is not asked).
    if sk.sflags & SF_REUSEADDR and reuse2 and not listen2:
        return not relax or (not reuseport_ok and port_ok)
    return not (reuseport_ok and port_ok)


cdef inline bint bind_conflict(engine_t* e, tcb_t* sk, bindb_t* b, bint relax, bint reuseport_ok) noexcept nogil:
    # relax: the user named the port, so SO_REUSEADDR counts. reuseport_ok: SO_REUSEPORT may share it.
    cdef ref_t r = b.owners
    cdef tcb_t* sk2
    cdef tw_t* tw
    cdef bint rp = (sk.sflags & SF_REUSEPORT) != 0
    while r != 0:
        if ref_kind(r) == KIND_TCB:
            sk2 = sk_at(e, ref_idx(r))
            if sk2 != sk and rcv_saddr_equal(sk.rcv_saddr, sk2.rcv_saddr) and bind_conflict_one_(
                    sk, (sk2.sflags & SF_REUSEADDR) != 0, sk2.state == TCP_LISTEN,
                    rp and sk2.sflags & SF_REUSEPORT, relax, reuseport_ok):
                return True
            r = sk2.bind_next
        else:
            tw = tw_at(e, ref_idx(r))
            if rcv_saddr_equal(sk.rcv_saddr, tw.en.laddr) and bind_conflict_one_(
                    sk, (tw.reuse & TW_REUSEADDR) != 0, False, rp and tw.reuse & TW_REUSEPORT, relax, reuseport_ok):
                return True
            r = tw.bind_next
    return False


# ---- automatic ports -----------------------------------------------------------------------------------------------------------
cdef inline bint port_is_reserved(engine_t* e, uint32_t port) noexcept nogil:
    return (e.reserved_ports[port >> 3] >> (port & 7)) & 1


cdef inline bint bind_port_free_(engine_t* e, tcb_t* sk, uint16_t port, bint relax) noexcept nogil:
    cdef bindb_t* b
    if port_is_reserved(e, port):
        return False
    b = bind_bucket(e, port)
    return b == NULL or not bind_conflict(e, sk, b, relax, False)


cdef inline uint16_t bind_scan_(engine_t* e, tcb_t* sk, uint32_t low, uint32_t high, bint relax) noexcept nogil:
    # A free port in [low, high), 0 if there is none. Starts at a random one and takes the parity that connect() avoids first.
    cdef uint32_t remaining = high - low
    cdef uint32_t offset
    cdef uint32_t port
    cdef uint32_t i
    cdef int _parity
    if remaining > 1:
        remaining &= ~<uint32_t>1
    offset = prng_below(&e.prng, remaining) | 1
    for _parity in range(2):
        port = low + offset
        i = 0
        while i < remaining:
            if port >= high:
                port -= remaining
            if bind_port_free_(e, sk, <uint16_t>port, relax):
                return <uint16_t>port
            i += 2
            port += 2
        offset -= 1
    return 0


cdef inline uint16_t bind_find_open_port(engine_t* e, tcb_t* sk) noexcept nogil:
    # With SO_REUSEADDR the lower half of the range is tried first, and what it could share is left for connect().
    cdef uint32_t low = <uint32_t>e.cfg.ip_local_port_range_low
    cdef uint32_t high = <uint32_t>e.cfg.ip_local_port_range_high + 1
    cdef uint32_t middle = low + (((high - low) >> 2) << 1)
    cdef uint16_t port = 0
    cdef int relax
    for relax in range(2 if e.cfg.ip_autobind_reuse else 1):
        if sk.sflags & SF_REUSEADDR and high - low >= 4:
            port = bind_scan_(e, sk, low, middle, relax)
            if port == 0:
                port = bind_scan_(e, sk, middle, high, relax)
        else:
            port = bind_scan_(e, sk, low, high, relax)
        if port != 0:
            return port
    return 0


cdef inline bint reuseport_match_(engine_t* e, const bindb_t* b, tcb_t* sk) noexcept nogil:
    # sk_reuseport_match: who has the user and the address of the bucket's last SO_REUSEPORT owner shares the port untested, whatever options
    # the owners have changed since. A member of a group (it has listened) is tested.
    if not b.fastreuseport or not sk.sflags & SF_REUSEPORT:
        return False
    if sk.listener != 0 and lst_at(e, sk.listener).group != 0:
        return False
    return b.fast_rcv_saddr == 0 or b.fast_rcv_saddr == sk.rcv_saddr


cdef inline void bind_update_fastreuse_(engine_t* e, bindb_t* b, tcb_t* sk) noexcept nogil:
    # inet_csk_update_fastreuse. Its counterpart for SO_REUSEADDR never comes to hold in 6.18.
    if not sk.sflags & SF_REUSEPORT:
        b.fastreuseport = 0
    elif not reuseport_match_(e, b, sk):
        b.fastreuseport = 1
        b.fast_rcv_saddr = sk.rcv_saddr


cdef inline int bind_get_port(engine_t* e, tcb_t* sk, uint16_t port) noexcept nogil:
    # Takes the port for sk.rcv_saddr (0: an automatic one) or tests it again at listen(). Sets the local port of sk.
    cdef bindb_t* b
    cdef int err
    if port == 0:
        port = bind_find_open_port(e, sk)
        if port == 0:
            return -E_ADDRINUSE
    else:
        b = bind_bucket(e, port)
        if b != NULL and not reuseport_match_(e, b, sk) and bind_conflict(e, sk, b, True, True):
            return -E_ADDRINUSE
    if sk.bind == 0:
        err = bind_own(e, sk, port)
        if err != 0:
            return err
    bind_update_fastreuse_(e, bind_bucket(e, port), sk)
    sk_set_ports(sk, port, sk_fport(sk))
    return 0


cdef inline int bind_inherit(engine_t* e, tcb_t* child, tcb_t* parent) noexcept nogil:
    # A child owns its listener's port. The parent may have been shut down (and its port be given back) while half-open requests
    # went on; the port is then taken by its number.
    return bind_own(e, child, sk_lport(parent))


# ---- connect(): sharing a port -------------------------------------------------------------------------------------------------
cdef inline bint bind_connect_may_share(engine_t* e, uint16_t port) noexcept nogil:
    # May connect() choose this port, given a unique 4-tuple? Not while a socket has it by bind().
    cdef bindb_t* b = bind_bucket(e, port)
    return b == NULL or b.n_bound == 0


cdef inline int bind_connect_own(engine_t* e, tcb_t* sk, uint16_t port) noexcept nogil:
    # connect() has chosen the port; the 4-tuple is unique.
    sk.userlocks |= SOCK_CONNECT_BIND
    sk_set_ports(sk, port, sk_fport(sk))
    return bind_own(e, sk, port)


# ---- SO_REUSEPORT groups (facts A19-A22) ---------------------------------------------------------------------------------------
cdef inline idx_t group_find_(engine_t* e, tcb_t* sk) noexcept nogil:
    # The group of listeners with the same address, port and user; 0 = none yet.
    cdef idx_t i = e.lhash[lhash_slot(sk.rcv_saddr, sk_lport(sk))]
    cdef listener_t* l
    while i != 0:
        l = lst_at(e, i)
        if l.group != 0 and l.laddr == sk.rcv_saddr and l.lport == sk_lport(sk):
            return l.group
        i = l.hash_next
    return 0


cdef inline int group_join(engine_t* e, tcb_t* sk, idx_t li) noexcept nogil:
    cdef listener_t* l = lst_at(e, li)
    cdef group_t* g
    cdef idx_t gi = group_find_(e, sk)
    if l.group != 0 and l.group != gi:
        group_leave(e, li)
    if gi == 0:
        gi = pool_alloc(&e.grp)
        if gi == 0:
            return -E_NOBUFS
        g = grp_at(e, gi)
        g.last_overflow = -1
    g = grp_at(e, gi)
    if g.n >= GROUP_MAX:
        return -E_NOBUFS
    if l.group_closed:
        g.n_closed -= 1
        l.group_closed = 0
    g.members[g.n] = <uint16_t>li
    g.n += 1
    l.group = gi
    return 0


cdef inline void group_stop(engine_t* e, idx_t li) noexcept nogil:
    # The member stops listening. With tcp_migrate_req it stays in the group as closed.
    cdef listener_t* l = lst_at(e, li)
    cdef group_t* g
    cdef uint32_t i
    if l.group == 0:
        return
    if not e.cfg.tcp_migrate_req:
        group_leave(e, li)
        return
    g = grp_at(e, l.group)
    for i in range(g.n):
        if g.members[i] == li:
            g.members[i] = g.members[g.n - 1]
            g.n -= 1
            g.n_closed += 1
            l.group_closed = 1
            return


cdef inline uint32_t group_choice_(const group_t* g, uint32_t h) noexcept nogil:
    return <uint32_t>((<uint64_t>h * g.n) >> 32)


cdef inline idx_t group_select_(const group_t* g, uint32_t h) noexcept nogil:
    return g.members[group_choice_(g, h)]


cdef inline uint32_t reuse_hash(engine_t* e, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport) noexcept nogil:
    return <uint32_t>siphash_u64x2(e.key_reuse[0], e.key_reuse[1], laddr | (<uint64_t>faddr << 32),
                                   (<uint64_t>lport << 16) | fport)


cdef inline idx_t group_ask_(engine_t* e, const group_t* g, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport,
                             uint8_t migrating) noexcept nogil:
    # As a reuseport BPF program (SELECT_OR_MIGRATE): it sees the hash and names a member. migrating: SELECT_*.
    cdef flow_t flow = flow_t(laddr, faddr, lport, fport)
    cdef uint32_t h = reuse_hash(e, laddr, faddr, lport, fport)
    return g.members[listenhook_select(e, &flow, h, g.n, group_choice_(g, h), migrating)]


cdef inline idx_t group_other_member(engine_t* e, idx_t li, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport,
                                     uint8_t what) noexcept nogil:
    # The listening member that takes over from a closed one, 0 if there is none (A22). what: SELECT_REQUEST or SELECT_CHILD.
    cdef listener_t* l = lst_at(e, li)
    cdef group_t* g
    if l.group == 0:
        return 0
    g = grp_at(e, l.group)
    if g.n == 0 or not e.cfg.tcp_migrate_req:
        return 0
    if hooked(e.hooks):
        return group_ask_(e, g, laddr, faddr, lport, fport, what)
    return group_select_(g, reuse_hash(e, laddr, faddr, lport, fport))


# ---- the listener table ----------------------------------------------------------------------------------------------------------
cdef inline uint32_t lhash_slot(uint32_t laddr, uint16_t lport) noexcept nogil:
    return <uint32_t>(((laddr ^ (<uint32_t>lport << 16) ^ lport) * <uint32_t>0x9e3779b1ULL) >> 8) & (LHASH - 1)


cdef inline int listener_hash(engine_t* e, tcb_t* sk, idx_t li) noexcept nogil:
    # A socket starts to listen. The newest of equals is found first, as in Linux.
    cdef listener_t* l = lst_at(e, li)
    cdef uint32_t slot = lhash_slot(sk.rcv_saddr, sk_lport(sk))
    cdef int err
    if sk.sflags & SF_REUSEPORT:
        err = group_join(e, sk, li)
        if err != 0:
            return err
    l.laddr = sk.rcv_saddr
    l.lport = sk_lport(sk)
    l.hash_next = e.lhash[slot]
    e.lhash[slot] = li
    l.listening = 1
    return 0


cdef inline void listener_unhash(engine_t* e, idx_t li) noexcept nogil:
    cdef listener_t* l = lst_at(e, li)
    cdef idx_t* link = &e.lhash[lhash_slot(l.laddr, l.lport)]
    if not l.listening:
        return
    while link[0] != 0 and link[0] != li:
        link = &lst_at(e, link[0]).hash_next
    if link[0] == li:
        link[0] = l.hash_next
    l.hash_next = 0
    l.listening = 0
    group_stop(e, li)


cdef inline idx_t listener_find_(engine_t* e, uint32_t addr, uint32_t laddr, uint32_t faddr, uint16_t lport,
                                 uint16_t fport) noexcept nogil:
    cdef idx_t i = e.lhash[lhash_slot(addr, lport)]
    cdef listener_t* l
    cdef group_t* g
    while i != 0:
        l = lst_at(e, i)
        if l.laddr == addr and l.lport == lport:
            if l.group == 0:
                return i
            g = grp_at(e, l.group)
            if hooked(e.hooks):
                return group_ask_(e, g, laddr, faddr, lport, fport, SELECT_LOOKUP)
            return group_select_(g, reuse_hash(e, laddr, faddr, lport, fport)) if g.n > 1 else i
        i = l.hash_next
    return 0


cdef inline tcb_t* listener_lookup(engine_t* e, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport) noexcept nogil:
    # The listener for a segment to laddr:lport, NULL = none. A specific address beats the wildcard (A18); within a group the
    # 4-tuple decides (A19).
    cdef idx_t i = listener_find_(e, laddr, laddr, faddr, lport, fport)
    if i == 0:
        i = listener_find_(e, 0, laddr, faddr, lport, fport)
    return sk_at(e, lst_at(e, i).sk) if i != 0 else NULL
