# Packets out that need no socket's state: IP and TCP headers, stateless RST and ACK, whole messages of other protocols (layer: above tx, route).
#
# RFC 791, RFC 9293 3.5.2 (resets), facts B30, C10-C15, H6, K7, N9, N11. The output counters of IP (OutRequests, OutTransmits, OutOctets) are
# bumped here, once per frame: Linux counts a super-segment once. Counters of TCP are bumped where the text says so.
# Called by everyone who sends; connected sockets come through xmit.pxd, which uses ipout_frame.

from libc.string cimport memcpy, memset

from ustack.core.auth cimport auth_forbids_reset
from ustack.core.cksum cimport csum_fold_partial, csum_pseudo
from ustack.core.ipopt cimport ip_options_echo
from ustack.core.records cimport TXF_CSUM_PARTIAL, txframe_t
from ustack.core.route cimport DST_BROADCAST, DST_LOCAL, DST_MULTICAST, dst_of, is_local, route_lookup, route_result_t
from ustack.core.seqno cimport u32_min
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_IpExtOutBcastOctets, MIB_IpExtOutBcastPkts, MIB_IpExtOutMcastOctets, MIB_IpExtOutMcastPkts, MIB_IpExtOutOctets, MIB_IpFragCreates, MIB_IpFragOKs,
    MIB_IpOutDiscards, MIB_IpOutRequests, MIB_IpOutTransmits, MIB_TcpOutRsts, MIB_TcpOutSegs, mib_add, mib_inc,
)
from ustack.core.tx cimport TXF_LOCAL, tx_arena, tx_frame
from ustack.core.types cimport (
    E_HOSTUNREACH, E_INVAL, E_NOBUFS, TH_ACK, TH_FIN, TH_RST, TH_SYN, seg_t, uint8_t, uint16_t, uint32_t, uint64_t,
    unlikely,
)
from ustack.core.wire cimport (
    IP_HLEN, IP_MF, IPPROTO_TCP, TCP_HLEN, put16, wire_ip_set_frag, wire_opt_ts, wire_put_ip_opts, wire_put_opts, wire_put_tcp, wire_tcp_csum_partial,
)

cdef enum:
    INET_ECN_MASK = 3
    INET_ECN_ECT_0 = 2


# ---- common ----------------------------------------------------------------------------------------------------------------------
cdef inline void ipout_count(engine_t* e, txframe_t* f, uint8_t kind, uint32_t len) noexcept nogil:
    """One packet has left IP (ip_output) for a destination of this kind (DST_*)."""
    if unlikely(kind & DST_LOCAL):
        f.flags = TXF_LOCAL
        e.tx_local += 1
    mib_inc(&e.stats, MIB_IpOutTransmits)
    mib_add(&e.stats, MIB_IpExtOutOctets, len)
    if kind & DST_MULTICAST:
        mib_inc(&e.stats, MIB_IpExtOutMcastPkts)
        mib_add(&e.stats, MIB_IpExtOutMcastOctets, len)
    elif unlikely(kind & DST_BROADCAST):
        e.tx_local += 1         # heard by ourselves too, see engine_loop
        mib_inc(&e.stats, MIB_IpExtOutBcastPkts)
        mib_add(&e.stats, MIB_IpExtOutBcastOctets, len)


cdef inline txframe_t* ipout_frame(engine_t* e, uint32_t saddr, uint32_t daddr, uint32_t len, uint16_t id, bint df, uint8_t ttl,
                                   uint8_t proto, uint8_t tos, const uint8_t* ipopts, uint32_t ipoptlen) noexcept nogil:
    """A frame with its IP header written and counted; len is what follows the header. NULL: no memory, counted as OutDiscards."""
    cdef txframe_t* f
    cdef uint32_t total = IP_HLEN + ipoptlen + len
    mib_inc(&e.stats, MIB_IpOutRequests)
    f = tx_frame(e)
    if f == NULL:
        mib_inc(&e.stats, MIB_IpOutDiscards)
        return NULL
    f.hlen = wire_put_ip_opts(f.hdr, total, id, df, ttl, proto, saddr, daddr, tos, ipopts, ipoptlen)
    ipout_count(e, f, dst_of(e, daddr).kind, total)
    return f


# ---- TCP without a connected socket ------------------------------------------------------------------------------------------------
cdef inline int ipout_tcp(engine_t* e, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack,
                          uint32_t flags, uint32_t wnd, const uint8_t* opts, uint32_t optlen, uint16_t id, bint df, uint8_t ttl,
                          uint8_t tos, const uint8_t* ipopts, uint32_t ipoptlen) noexcept nogil:
    """A segment without payload, header and options as given (optlen: multiple of 4). The caller has found a route. 0 or -E_NOBUFS."""
    cdef uint32_t doff = TCP_HLEN + optlen
    cdef txframe_t* f = ipout_frame(e, saddr, daddr, doff, id, df, ttl, IPPROTO_TCP, tos, ipopts, ipoptlen)
    cdef uint8_t* p
    if f == NULL:
        return -E_NOBUFS
    p = f.hdr + f.hlen
    wire_put_tcp(p, sport, dport, seq, ack, flags, wnd, 0, doff)
    wire_put_opts(p + TCP_HLEN, opts, optlen)
    wire_tcp_csum_partial(p, saddr, daddr, doff)
    f.hlen += doff
    f.flags |= TXF_CSUM_PARTIAL
    return 0


cdef inline int ipout_reply_(engine_t* e, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack,
                             uint32_t flags, uint32_t wnd, const uint8_t* opts, uint32_t optlen, uint8_t tos) noexcept nogil:
    # ip_send_unicast_reply: its own route lookup, TTL of the system, ID 0, DF, ECN bits clear; IP options of the packet in process are echoed.
    cdef route_result_t rt
    cdef uint8_t echo[40]
    cdef int n = ip_options_echo(e, saddr, echo)
    if n < 0:
        return -E_INVAL
    if route_lookup(e, saddr, daddr, &rt) != 0:
        return -E_HOSTUNREACH               # without a count, unlike what a socket sends
    return ipout_tcp(e, saddr, daddr, sport, dport, seq, ack, flags, wnd, opts, optlen, 0, True,
                     <uint8_t> (rt.entry.hoplimit if rt.entry != NULL and rt.entry.hoplimit else e.cfg.ip_default_ttl),
                     <uint8_t> (tos & ~INET_ECN_MASK), echo, <uint32_t> n)


cdef inline void ipout_rst_reply(engine_t* e, const seg_t* s) noexcept nogil:
    """The stateless RST (facts B30): never in answer to a RST or to a signed segment, nor to what was not sent to an address of ours."""
    if s.flags & TH_RST or auth_forbids_reset(s) or not is_local(e, s.dst):
        return
    if s.flags & TH_ACK:
        ipout_reply_(e, s.dst, s.src, s.dport, s.sport, s.ack, 0, TH_RST, 0, NULL, 0, s.tos)
    else:
        ipout_reply_(e, s.dst, s.src, s.dport, s.sport, 0,
                     s.seq + ((s.flags & TH_SYN) != 0) + ((s.flags & TH_FIN) != 0) + s.len,
                     TH_RST | TH_ACK, 0, NULL, 0, s.tos)
    mib_inc(&e.stats, MIB_TcpOutSegs)
    mib_inc(&e.stats, MIB_TcpOutRsts)


cdef inline void ipout_ack_reply(engine_t* e, uint32_t saddr, uint32_t daddr, uint16_t sport, uint16_t dport, uint32_t seq,
                                 uint32_t ack, uint32_t wnd, uint32_t tsval, uint32_t tsecr, uint8_t tos) noexcept nogil:
    """A bare ACK of a request or a TIME_WAIT record (facts C10, C12, E6, H6): saddr and sport are ours, wnd is the field itself;
    timestamps iff tsecr != 0."""
    cdef uint8_t opts[12]
    cdef uint32_t n = 0
    if tsecr:
        n = wire_opt_ts(opts, tsval, tsecr)
    ipout_reply_(e, saddr, daddr, sport, dport, seq, ack, TH_ACK, wnd, opts, n, tos)
    mib_inc(&e.stats, MIB_TcpOutSegs)


# ---- other protocols -----------------------------------------------------------------------------------------------------------------
cdef inline uint16_t ipout_id(engine_t* e) noexcept nogil:
    """IP ID of a packet that belongs to no connection and may be fragmented; never 0."""
    e.ip_id += 1
    if e.ip_id == 0:
        e.ip_id = 1
    return e.ip_id


cdef inline uint8_t* ipout_buffer(engine_t* e, uint32_t n) noexcept nogil:
    """Room for a message that ipout_raw will send, NULL without memory."""
    return tx_arena(e, n)


cdef inline void ipopts_for_fragment(uint8_t* p, uint32_t n) noexcept nogil:
    """Options without the copy bit become NOPs in all fragments but the first."""
    cdef uint32_t i = 0
    cdef uint32_t size
    while i < n:
        if p[i] == 0:
            return
        if p[i] == 1:
            i += 1
            continue
        size = p[i + 1] if i + 1 < n else 0
        if size < 2 or size > n - i:
            return
        if not p[i] & 0x80:
            memset(p + i, 1, size)
        i += size


cdef inline int ipout_raw(engine_t* e, uint32_t saddr, uint32_t daddr, uint8_t proto, uint8_t tos, uint8_t ttl, bint df, uint16_t id,
                          uint32_t mtu, const uint8_t* msg, uint32_t n, const uint8_t* ipopts, uint32_t ipoptlen) noexcept nogil:
    """Send a message that lies in ipout_buffer memory; what exceeds mtu is fragmented (facts N9). 0 or -E_NOBUFS."""
    cdef uint8_t later[40]
    cdef uint8_t kind = dst_of(e, daddr).kind
    cdef uint32_t room
    cdef uint32_t off = 0
    cdef uint32_t k
    cdef uint32_t created = 0
    cdef txframe_t* f
    if IP_HLEN + ipoptlen + n <= mtu:
        f = ipout_frame(e, saddr, daddr, n, id, df, ttl, proto, tos, ipopts, ipoptlen)
        if f == NULL:
            return -E_NOBUFS
        f.p0 = msg
        f.l0 = n
        return 0
    mib_inc(&e.stats, MIB_IpOutRequests)
    if ipoptlen:
        memcpy(later, ipopts, ipoptlen)
        ipopts_for_fragment(later, ipoptlen)
    room = (mtu - IP_HLEN - ipoptlen) & ~<uint32_t> 7
    while off < n:
        k = u32_min(room, n - off)
        f = tx_frame(e)
        if f == NULL:
            mib_inc(&e.stats, MIB_IpOutDiscards)
            return -E_NOBUFS
        f.hlen = wire_put_ip_opts(f.hdr, IP_HLEN + ipoptlen + k, id, df, ttl, proto, saddr, daddr, tos,
                                  <const uint8_t*> &later[0] if off else ipopts, ipoptlen)
        wire_ip_set_frag(f.hdr, f.hlen + k, <uint16_t> ((off >> 3) | (IP_MF if off + k < n else 0)))
        f.p0 = msg + off
        f.l0 = k
        ipout_count(e, f, kind, f.hlen + k)
        off += k
        created += 1
    mib_inc(&e.stats, MIB_IpFragOKs)
    mib_add(&e.stats, MIB_IpFragCreates, created)
    return 0
