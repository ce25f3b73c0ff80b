# Active open: source address, port, initial sequence number, SYN (layer above output).
#
# RFC 9293 3.10.1, RFC 6056 (ports), RFC 6191 (reuse of TIME_WAIT); facts H11. Linux: tcp_v4_connect, __inet_hash_connect,
# __inet_check_established, tcp_twsk_unique. Automatic ports: the search starts at a point that depends on the destination and moves
# on with each connect; ports of the range's even half come first (bind() takes the odd ones). A port may be shared with other
# connects as long as the 4-tuple is unique; the hash table decides that, and the socket is in it before the SYN is sent.
# Callers: user (connect), sendmsg (Fast Open).

from ustack.core.bind cimport bind_connect_may_share, bind_connect_own, port_is_reserved
from ustack.core.cookies cimport secret_isn, secret_ts_off, tuple_secret
from ustack.core.ehash cimport ehash_insert, ehash_lookup, ehash_remove, enode_set
from ustack.core.fastopen_client cimport tcp_fastopen_defer_connect
from ustack.core.records cimport tw_t
from ustack.core.route cimport LOOPBACK_ADDR, ipv4_is_loopback, is_local, route_lookup, route_result_t, sk_route
from ustack.core.seqno cimport u32_max
from ustack.core.siphash cimport prng_below, prng_u64, siphash_u64x2
from ustack.core.access cimport ref_idx, ref_kind, ref_of, sk_lport, sk_set_ports, tcp_clock_ms, tw_at
from ustack.core.sock cimport sk_set_state
from ustack.core.state cimport PORT_PERTURB, RTF_BROADCAST, RTF_MULTICAST, engine_t
from ustack.core.stats cimport MIB_IpOutNoRoutes, MIB_TcpExtTWRecycled, mib_inc
from ustack.core.syn cimport tcp_connect
from ustack.core.tcb cimport SF_IN_EHASH, SOCK_BINDADDR_LOCK, tcb_t
from ustack.core.timewait cimport tw_kill
from ustack.core.types cimport (
    E_ADDRNOTAVAIL, E_INVAL, E_NETUNREACH, E_NOBUFS, KIND_TCB, KIND_TW, TCP_CLOSE, TCP_FIN_WAIT2, TCP_SYN_SENT, idx_t, int32_t, ref_t,
    uint16_t, uint32_t, uint64_t,
)


cdef inline bint tcp_twsk_unique(engine_t* e, tcb_t* sk, tw_t* tw, bint automatic) noexcept nogil:
    # May a new connection take the place of this TIME_WAIT record? Only if timestamps tell old segments from new ones; with an
    # automatic port tcp_tw_reuse has a say too. On success the socket goes on from the record's numbers.
    cdef uint32_t reuse = <uint32_t>e.cfg.tcp_tw_reuse
    cdef uint32_t seq
    if tw.substate == TCP_FIN_WAIT2:
        reuse = 0
    if reuse == 2 and not (ipv4_is_loopback(tw.en.faddr) or ipv4_is_loopback(tw.en.laddr)):
        reuse = 0
    if tw.ts_recent_stamp == 0:
        return False
    if automatic:
        if not reuse:
            return False
        if <int32_t>(tcp_clock_ms(e) - (tw.entry_stamp_ms + <uint32_t>e.cfg.tcp_tw_reuse_delay)) < 0:
            return False
    seq = tw.snd_nxt + 65535 + 2
    sk.write_seq = seq if seq != 0 else 1
    sk.ts_recent = tw.ts_recent
    sk.ts_recent_stamp = tw.ts_recent_stamp
    return True


cdef inline bint check_established(engine_t* e, tcb_t* sk, uint16_t lport, uint16_t fport, bint automatic) noexcept nogil:
    # Puts the socket into the hash with this local port if its 4-tuple is unique.
    cdef ref_t have = ehash_lookup(&e.ehash, sk.en.laddr, sk.en.faddr, lport, fport)
    if have != 0:
        if ref_kind(have) != KIND_TW or not tcp_twsk_unique(e, sk, tw_at(e, ref_idx(have)), automatic):
            return False
        mib_inc(&e.stats, MIB_TcpExtTWRecycled)
        tw_kill(e, ref_idx(have))
    enode_set(&sk.en, sk.en.laddr, sk.en.faddr, lport, fport)
    if not ehash_insert(&e.ehash, ref_of(KIND_TCB, sk.idx)):
        return False
    sk.sflags |= SF_IN_EHASH
    return True


cdef inline bint connect_try_port_(engine_t* e, tcb_t* sk, uint32_t port, uint16_t fport) noexcept nogil:
    if port_is_reserved(e, port) or not bind_connect_may_share(e, <uint16_t>port):
        return False
    return check_established(e, sk, <uint16_t>port, fport, True)


cdef inline int inet_hash_connect(engine_t* e, tcb_t* sk, uint16_t fport) noexcept nogil:
    # Chooses the local port, unless bind() has, and hashes the socket.
    cdef uint32_t low = <uint32_t>e.cfg.ip_local_port_range_low
    cdef uint32_t high = <uint32_t>e.cfg.ip_local_port_range_high + 1
    cdef uint32_t remaining = high - low
    cdef uint64_t h
    cdef uint32_t* perturb
    cdef uint32_t offset
    cdef uint32_t port
    cdef uint32_t i
    cdef int _parity
    if sk.bind:
        return 0 if check_established(e, sk, sk_lport(sk), fport, False) else -E_ADDRNOTAVAIL
    if remaining > 1:
        remaining &= ~<uint32_t>1
    h = siphash_u64x2(e.key_port[0], e.key_port[1], sk.en.laddr | (<uint64_t>sk.en.faddr << 32), fport)
    perturb = &e.port_perturb[h % PORT_PERTURB]
    offset = ((perturb[0] + <uint32_t>(h >> 32)) % remaining) & ~<uint32_t>1
    for _parity in range(2):
        port = low + offset
        i = 0
        while i < remaining:
            if port >= high:
                port -= remaining
            if connect_try_port_(e, sk, port, fport):
                perturb[0] += u32_max(i, prng_below(&e.prng, 8) * 2) + 2
                if bind_connect_own(e, sk, <uint16_t>port) == 0:
                    return 0
                ehash_remove(&e.ehash, ref_of(KIND_TCB, sk.idx))
                sk.sflags &= ~<uint32_t>SF_IN_EHASH
                sk_set_ports(sk, 0, fport)
                return -E_NOBUFS
            i += 2
            port += 2
        offset += 1
        if remaining <= 1:
            break
    return -E_ADDRNOTAVAIL


cdef inline void connect_undo_(engine_t* e, tcb_t* sk) noexcept nogil:
    # Back to CLOSE; an automatic port and address are given back. The user's port and address stay.
    sk_set_state(e, sk, TCP_CLOSE)
    if not sk.userlocks & SOCK_BINDADDR_LOCK:
        sk.rcv_saddr = 0
        sk.en.laddr = 0
    sk_set_ports(sk, sk_lport(sk) if sk.bind else 0, 0)


cdef inline int tcp_v4_connect(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    # 0 when the SYN is out (or waits for data: sk.defer_connect), else -errno with the socket in CLOSE.
    cdef route_result_t rt
    cdef uint64_t h
    cdef int err
    if addr == 0:
        addr = sk.en.laddr if sk.en.laddr != 0 else LOOPBACK_ADDR
    err = route_lookup(e, sk.en.laddr, addr, &rt) if sk.en.laddr == 0 or is_local(e, sk.en.laddr) else -E_INVAL
    if err != 0:
        if err == -E_NETUNREACH:
            mib_inc(&e.stats, MIB_IpOutNoRoutes)
        return err
    if rt.type == RTF_MULTICAST or rt.type == RTF_BROADCAST:
        return -E_NETUNREACH
    if sk.en.laddr == 0:
        sk.en.laddr = rt.src
    sk.rcv_saddr = sk.en.laddr
    if sk.ts_recent_stamp and sk.en.faddr != addr:
        sk.ts_recent = 0
        sk.ts_recent_stamp = 0
        sk.write_seq = 0
    sk.en.faddr = addr
    sk_set_ports(sk, sk_lport(sk), port)
    sk.ext_hdr_len = 0
    sk.mss_clamp = 536
    sk_set_state(e, sk, TCP_SYN_SENT)
    err = inet_hash_connect(e, sk, port)
    if err == 0:
        sk.rt_gen = 0
        err = sk_route(e, sk)
    if err != 0:
        connect_undo_(e, sk)
        return err
    h = tuple_secret(e, sk.en.laddr, addr, sk_lport(sk), port)
    if sk.write_seq == 0:
        sk.write_seq = secret_isn(e, h)
    sk.ts_offset = secret_ts_off(e, h)
    sk.inet_id = <uint16_t>prng_u64(&e.prng)
    if tcp_fastopen_defer_connect(e, sk, &err):
        return 0
    if err == 0:
        err = tcp_connect(e, sk)
    if err != 0:
        connect_undo_(e, sk)
    return err
