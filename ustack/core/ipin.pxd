# IPv4 and TCP input up to the decision who gets the segment (layer below engine).
#
# RFC 791, RFC 1122 3.2.1, RFC 9293 3.10.7.1; Linux: ip_rcv_core, ip_rcv_finish, ip_local_deliver, tcp_v4_rcv, tcp_v4_do_rcv; facts N1-N8, B0-B2,
# B30-B33. Counters are bumped in the kernel's order, between the checks. Everything that a handler wants to read of the packet stands
# in one seg_t; TCP options are parsed once, here. Each function returns the reason why the packet was dropped, 0 if it was taken.
# Caller: engine.

from libc.string cimport memset

from ustack.core.auth cimport auth_fault
from ustack.core.bind cimport listener_lookup
from ustack.core.cksum cimport csum_add, csum_fold, csum_pseudo
from ustack.core.ehash cimport ehash_lookup
from ustack.core.frag cimport FRAG_PENDING, ip_defrag
from ustack.core.icmp cimport ICMP_DEST_UNREACH, ICMP_PARAMETERPROB, ICMP_PORT_UNREACH, ICMP_PROT_UNREACH, icmp_send
from ustack.core.icmp_in cimport icmp_rcv
from ustack.core.input cimport tcp_rcv_established, tcp_rcv_state_process
from ustack.core.ipopt cimport ip_options_compile
from ustack.core.ipout cimport ipout_rst_reply
from ustack.core.request cimport listen_rcv, request_rcv
from ustack.core.route cimport inet_addr_type, route_input, route_lookup, route_result_t
from ustack.core.access cimport ref_idx, ref_kind, sk_at, sk_los
from ustack.core.sock cimport tcp_segs_in
from ustack.core.state cimport RTF_BROADCAST, RTF_LOCAL, RTF_MULTICAST, engine_t
from ustack.core.steer cimport steer_whole
from ustack.core.stats cimport (
    MIB_IpExtInBcastOctets, MIB_IpExtInBcastPkts, MIB_IpExtInCEPkts, MIB_IpExtInCsumErrors, MIB_IpExtInECT0Pkts,
    MIB_IpExtInECT1Pkts, MIB_IpExtInMcastOctets, MIB_IpExtInMcastPkts, MIB_IpExtInNoECTPkts, MIB_IpExtInOctets,
    MIB_IpExtInTruncatedPkts, MIB_IpInAddrErrors, MIB_IpInDelivers, MIB_IpInHdrErrors, MIB_IpInReceives, MIB_IpInUnknownProtos,
    MIB_TcpExtTCPMinTTLDrop, MIB_TcpInCsumErrors, MIB_TcpInErrs, MIB_TcpInSegs, MIB_UdpIgnoredMulti,
    MIB_UdpInCsumErrors, MIB_UdpInErrors, MIB_UdpNoPorts, mib_add, mib_inc,
)
from ustack.core.tcb cimport tcb_t
from ustack.core.timewait cimport TW_ACK, TW_RST, TW_SYN, tw_ack, tw_kill, tw_process
from ustack.core.types cimport (
    CSUM_NONE, CSUM_VERIFIED, DROP_IP_CSUM, DROP_IP_INADDRERRORS, DROP_IP_INHDR, DROP_IP_NOPROTO,
    DROP_IP_SOURCE_ROUTE, DROP_IP_TRUNCATED, DROP_NONE, DROP_NOT_SPECIFIED, DROP_NO_SOCKET, DROP_PKT_TOO_SMALL,
    DROP_TCP_CSUM, DROP_TCP_MINTTL, DROP_TCP_TW, DROP_UDP_NO_PORT, KIND_REQ, KIND_TCB, KIND_TW, TCP_ESTABLISHED,
    idx_t, ref_t, seg_t, uint8_t, uint16_t, uint32_t, likely, unlikely,
)
from ustack.core.wire cimport (
    IP_MF, IP_OFFSET, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, get16, wire_ip_csum_ok, wire_ip_finish, wire_parse_ip, wire_parse_ip_head, wire_parse_opts,
    wire_parse_tcp, wire_tcp_csum_ok,
)

cdef enum:
    IPPROTO_IGMP = 2
    UDP_HLEN = 8
    CHECKSUM_BREAK = 76         # a longer segment's checksum is verified late
    # where a packet comes from
    FROM_LINK = 0
    FROM_SELF = 1               # sent by us to an address of ours
    FROM_ECHO = 2               # our own broadcast, heard by ourselves


# ---- TCP ---------------------------------------------------------------------------------------------------------------------
cdef inline int tcp_sock_gate_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # What a connection asks before it looks at a segment: IP_MINTTL, and no signature, as no socket has a key.
    cdef int reason
    if s.ttl < sk.opt.min_ttl:
        mib_inc(&e.stats, MIB_TcpExtTCPMinTTLDrop)
        sk_los(e, sk).drops += 1
        return DROP_TCP_MINTTL
    reason = auth_fault(e, s, False)
    if reason != DROP_NONE:
        sk_los(e, sk).drops += 1
    return reason


cdef inline int tcp_sock_rcv_(engine_t* e, tcb_t* sk, seg_t* s) noexcept nogil:
    cdef int reason = tcp_sock_gate_(e, sk, s)
    if reason != DROP_NONE:
        return reason
    tcp_segs_in(sk, s)
    if sk.state == TCP_ESTABLISHED:
        return tcp_rcv_established(e, sk, s)
    return tcp_rcv_state_process(e, sk, s)


cdef inline int tcp_tw_rcv_(engine_t* e, idx_t tw, seg_t* s) noexcept nogil:
    cdef uint32_t isn = 0
    cdef int verdict = tw_process(e, tw, s, &isn)
    cdef tcb_t* lsk
    if verdict == TW_SYN:
        lsk = listener_lookup(e, s.dst, s.src, s.dport, s.sport)
        if lsk != NULL:
            tw_kill(e, tw)
            return listen_rcv(e, lsk, s, isn)
        verdict = TW_ACK
    if verdict == TW_ACK:
        tw_ack(e, tw)
    elif verdict == TW_RST:
        ipout_rst_reply(e, s)
        tw_kill(e, tw)
    return DROP_TCP_TW


cdef inline int tcp_csum_error_(engine_t* e, seg_t* s) noexcept nogil:
    # Linux checks short segments first of all, long ones only when the connection has counted them.
    cdef ref_t ref
    cdef tcb_t* sk
    mib_inc(&e.stats, MIB_TcpInCsumErrors)
    mib_inc(&e.stats, MIB_TcpInErrs)
    if s.l4_len > CHECKSUM_BREAK:
        ref = ehash_lookup(&e.ehash, s.dst, s.src, s.dport, s.sport)
        if ref != 0 and ref_kind(ref) == KIND_TCB:
            sk = sk_at(e, ref_idx(ref))
            if s.ttl >= sk.opt.min_ttl:
                tcp_segs_in(sk, s)
    return DROP_TCP_CSUM


cdef inline int tcp_v4_rcv(engine_t* e, seg_t* s) noexcept nogil:
    cdef int reason
    mib_inc(&e.stats, MIB_TcpInSegs)
    reason = wire_parse_tcp(s)
    if unlikely(reason != DROP_NONE):
        if reason == DROP_NOT_SPECIFIED:        # data offset below 5
            mib_inc(&e.stats, MIB_TcpInErrs)
            return DROP_PKT_TOO_SMALL
        return reason
    if unlikely(not wire_tcp_csum_ok(s)):
        return tcp_csum_error_(e, s)
    wire_parse_opts(s)
    return tcp_demux_(e, s)


cdef inline int tcp_demux_(engine_t* e, seg_t* s) noexcept nogil:
    # A good segment goes to the request, connection or TIME_WAIT record of its 4-tuple, or to a listener.
    cdef ref_t ref
    cdef tcb_t* lsk
    ref = ehash_lookup(&e.ehash, s.dst, s.src, s.dport, s.sport)
    if ref != 0 and ref_kind(ref) == KIND_REQ:
        return request_rcv(e, ref_idx(ref), s)
    if ref != 0 and ref_kind(ref) == KIND_TW:
        return tcp_tw_rcv_(e, ref_idx(ref), s)
    if ref != 0:
        return tcp_sock_rcv_(e, sk_at(e, ref_idx(ref)), s)
    lsk = listener_lookup(e, s.dst, s.src, s.dport, s.sport)
    if lsk != NULL:
        return listen_rcv(e, lsk, s, 0)
    ipout_rst_reply(e, s)
    return DROP_NO_SOCKET


cdef inline int tcp_v4_resume(engine_t* e, const uint8_t* p, uint32_t n) noexcept nogil:
    # A segment that a hook has parked: it is counted and checked already, and goes on where it was stopped.
    cdef seg_t s
    cdef int reason
    memset(&s, 0, sizeof(seg_t))
    s.csum_state = CSUM_VERIFIED
    reason = wire_parse_ip(p, n, &s)
    if reason == DROP_NONE:
        reason = wire_parse_tcp(&s)
    if reason != DROP_NONE:
        return reason
    s.dst_type = <uint8_t>inet_addr_type(e, s.dst)
    e.ipopt.len = 0
    wire_parse_opts(&s)
    return tcp_demux_(e, &s)


# ---- UDP and the rest: nobody listens ----------------------------------------------------------------------------------------
cdef inline int udp_rcv(engine_t* e, const seg_t* s, int dst_type) noexcept nogil:
    cdef uint32_t len
    if s.l4_len < UDP_HLEN:
        mib_inc(&e.stats, MIB_UdpInErrors)
        return DROP_PKT_TOO_SMALL
    len = get16(s.l4 + 4)
    if len < UDP_HLEN or len > s.l4_len:
        mib_inc(&e.stats, MIB_UdpInErrors)
        return DROP_PKT_TOO_SMALL
    if dst_type != RTF_LOCAL:
        mib_inc(&e.stats, MIB_UdpIgnoredMulti)
        return DROP_UDP_NO_PORT
    if get16(s.l4 + 6) != 0 and s.csum_state == CSUM_NONE:
        if csum_fold(csum_add(s.l4, len, csum_pseudo(s.src, s.dst, IPPROTO_UDP, len))) != 0:
            mib_inc(&e.stats, MIB_UdpInCsumErrors)
            mib_inc(&e.stats, MIB_UdpInErrors)
            return DROP_UDP_NO_PORT
    mib_inc(&e.stats, MIB_UdpNoPorts)
    icmp_send(e, s, dst_type, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, 0)
    return DROP_UDP_NO_PORT


cdef inline int ip_deliver_(engine_t* e, seg_t* s, int dst_type, int origin) noexcept nogil:
    # To the protocol's handler.
    if likely(s.proto == IPPROTO_TCP):
        mib_inc(&e.stats, MIB_IpInDelivers)
        return tcp_v4_rcv(e, s) if origin != FROM_ECHO else DROP_NOT_SPECIFIED
    if s.proto == IPPROTO_ICMP:
        mib_inc(&e.stats, MIB_IpInDelivers)
        return icmp_rcv(e, s, dst_type)
    if s.proto == IPPROTO_UDP:
        mib_inc(&e.stats, MIB_IpInDelivers)
        return udp_rcv(e, s, dst_type)
    if s.proto == IPPROTO_IGMP:
        mib_inc(&e.stats, MIB_IpInDelivers)
        return DROP_NONE
    mib_inc(&e.stats, MIB_IpInUnknownProtos)
    icmp_send(e, s, dst_type, ICMP_DEST_UNREACH, ICMP_PROT_UNREACH, 0)
    return DROP_IP_NOPROTO


# ---- IP ----------------------------------------------------------------------------------------------------------------------
cdef inline void ip_count_ecn_(engine_t* e, const seg_t* s) noexcept nogil:
    cdef uint32_t segs = 1
    cdef int ecn = s.tos & 3
    if s.gso_size != 0:
        segs = (s.ip_len + s.gso_size - 1) // s.gso_size
    if likely(ecn == 0):
        mib_add(&e.stats, MIB_IpExtInNoECTPkts, segs)
    elif ecn == 1:
        mib_add(&e.stats, MIB_IpExtInECT1Pkts, segs)
    elif ecn == 2:
        mib_add(&e.stats, MIB_IpExtInECT0Pkts, segs)
    else:
        mib_add(&e.stats, MIB_IpExtInCEPkts, segs)


cdef inline int ip_rcv_core(engine_t* e, const uint8_t* p, uint32_t n, seg_t* s) noexcept nogil:
    # The header's own validity (facts N1).
    cdef int reason
    mib_inc(&e.stats, MIB_IpInReceives)
    mib_add(&e.stats, MIB_IpExtInOctets, n)
    reason = wire_parse_ip_head(p, n, s)
    if s.ip_hlen != 0:
        ip_count_ecn_(e, s)
    if reason == DROP_NONE and unlikely(not wire_ip_csum_ok(s)):
        mib_inc(&e.stats, MIB_IpExtInCsumErrors)
        reason = DROP_IP_CSUM
    if reason == DROP_NONE:
        reason = wire_ip_finish(s)
        if reason == DROP_IP_TRUNCATED:
            mib_inc(&e.stats, MIB_IpExtInTruncatedPkts)
            return reason
    if unlikely(reason != DROP_NONE):
        mib_inc(&e.stats, MIB_IpInHdrErrors)
    return reason


cdef inline int ip_rcv_options(engine_t* e, const seg_t* s, int dst_type) noexcept nogil:
    # Facts N2, C13. A source route is taken only if it ends here.
    cdef uint32_t ours = s.dst
    cdef route_result_t rt
    cdef const uint8_t* srr
    cdef int bad
    if dst_type != RTF_LOCAL:
        ours = rt.src if route_lookup(e, 0, s.src, &rt) == 0 else 0
    bad = ip_options_compile(e, s, ours)
    if bad >= 0:
        icmp_send(e, s, dst_type, ICMP_PARAMETERPROB, 0, <uint32_t>bad << 24)
        mib_inc(&e.stats, MIB_IpInHdrErrors)
        return DROP_IP_INHDR
    if e.ipopt.srr:
        if not e.cfg.conf_all_accept_source_route or not e.cfg.conf_default_accept_source_route or dst_type != RTF_LOCAL:
            return DROP_IP_SOURCE_ROUTE
        srr = &e.ipopt.data[e.ipopt.srr - 1]
        if srr[2] <= srr[1]:
            mib_inc(&e.stats, MIB_IpInAddrErrors)
            return DROP_IP_INADDRERRORS
    return DROP_NONE


cdef inline int ip_rcv(engine_t* e, const uint8_t* p, uint32_t n, uint8_t csum_state, uint32_t gso_size, int origin) noexcept nogil:
    # One packet. origin: FROM_*.
    cdef seg_t s
    cdef int type
    cdef int reason
    cdef int routed = DROP_NONE
    memset(&s, 0, sizeof(seg_t))
    s.csum_state = csum_state
    s.gso_size = gso_size
    reason = ip_rcv_core(e, p, n, &s)
    if unlikely(reason != DROP_NONE):
        return reason
    if origin == FROM_LINK:
        routed = route_input(e, s.src, s.dst, &type)
        if unlikely(routed != DROP_NONE) and routed != DROP_IP_INADDRERRORS:
            return routed
    else:
        type = inet_addr_type(e, s.dst)
    s.dst_type = <uint8_t>type
    e.ipopt.len = 0
    if unlikely(s.ip_hlen != 20):
        reason = ip_rcv_options(e, &s, type)
        if reason != DROP_NONE:
            return reason
    if unlikely(routed != DROP_NONE):       # to be forwarded, had it not been for us: known only behind the options
        mib_inc(&e.stats, MIB_IpInAddrErrors)
        return routed
    if unlikely(type == RTF_MULTICAST):
        mib_inc(&e.stats, MIB_IpExtInMcastPkts)
        mib_add(&e.stats, MIB_IpExtInMcastOctets, s.ip_len)
    elif type == RTF_BROADCAST:
        mib_inc(&e.stats, MIB_IpExtInBcastPkts)
        mib_add(&e.stats, MIB_IpExtInBcastOctets, s.ip_len)
    if unlikely(s.frag & (IP_MF | IP_OFFSET)):
        reason = ip_defrag(e, &s)
        if reason != 0:
            return DROP_NONE if reason == FRAG_PENDING else reason
        if e.n_shards and steer_whole(e, s.ip, s.ip_len):
            return DROP_NONE
    return ip_deliver_(e, &s, type, origin)
