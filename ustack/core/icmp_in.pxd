# ICMP in: echo, timestamps, and errors about packets of ours (layer above timers).
#
# RFC 792, RFC 1122 3.2.2 and 4.2.3.9, RFC 5927 (quoted sequence number must be in flight), RFC 1191, RFC 6069; Linux: icmp_rcv, tcp_v4_err,
# tcp_v4_mtu_reduced, tcp_ld_RTO_revert; facts N10-N12, N20-N26. An error never kills a synchronized connection; it is remembered (sk_err_soft) and
# reported if the connection later times out.
# Caller: ipin.

from ustack.core.ehash cimport ehash_lookup
from ustack.core.errq cimport SO_EE_ORIGIN_ICMP, errq_put
from ustack.core.icmp cimport (
    ICMP_ADDRESS, ICMP_ADDRESSREPLY, ICMP_DEST_UNREACH, ICMP_ECHO, ICMP_ECHOREPLY, ICMP_EXC_FRAGTIME, ICMP_EXT_ECHO,
    ICMP_EXT_ECHOREPLY, ICMP_FRAG_NEEDED, ICMP_HOST_UNREACH, ICMP_NET_UNREACH, ICMP_PARAMETERPROB, ICMP_REDIRECT, ICMP_SOURCE_QUENCH,
    ICMP_TIME_EXCEEDED, ICMP_TIMESTAMP, ICMP_TIMESTAMPREPLY, NR_ICMP_TYPES, NR_ICMP_UNREACH, icmp_reply,
)
from ustack.core.ipopt cimport inet_current_timestamp
from ustack.core.mss cimport tcp_sync_mss
from ustack.core.output cimport tcp_rto_max
from ustack.core.rcvfin cimport tcp_done_with_error
from ustack.core.recovery cimport tcp_simple_retransmit
from ustack.core.records cimport reqext_t
from ustack.core.request cimport request_icmp
from ustack.core.route cimport (
    IP_PMTUDISC_DONT, IP_PMTUDISC_INTERFACE, IP_PMTUDISC_OMIT, is_broadcast, pmtu_update, route_mtu,
    sk_dont_fragment, sk_route, sk_rto_min,
)
from ustack.core.rtt cimport rtt_rto
from ustack.core.seqno cimport between, i64_min
from ustack.core.access cimport ref_idx, ref_kind, sk_at, sr_at
from ustack.core.sock cimport tcp_reset_xmit_timer
from ustack.core.wake cimport sk_error_report
from ustack.core.state cimport RTF_LOCAL, engine_t
from ustack.core.stats cimport (
    MIB_IcmpInAddrMaskReps, MIB_IcmpInAddrMasks, MIB_IcmpInCsumErrors, MIB_IcmpInDestUnreachs, MIB_IcmpInEchoReps, MIB_IcmpInEchos,
    MIB_IcmpInErrors, MIB_IcmpInMsgs, MIB_IcmpInParmProbs, MIB_IcmpInRedirects, MIB_IcmpInSrcQuenchs, MIB_IcmpInTimeExcds,
    MIB_IcmpInTimestampReps, MIB_IcmpInTimestamps, MIB_TcpExtOutOfWindowIcmps, MIB_TcpExtTCPMinTTLDrop, mib_inc,
)
from ustack.core.tcb cimport ICSK_TIME_RETRANS, SF_ACCEPTED, SF_RECVERR, tcb_t
from ustack.core.timers cimport tcp_retransmit_timer
from ustack.core.types cimport (
    DROP_ICMP_CSUM, DROP_ICMP_INVALID, DROP_ICMP_NO_SOCKET, DROP_ICMP_OOW, DROP_NONE, DROP_TCP_MINTTL, E_HOSTDOWN, E_HOSTUNREACH,
    E_MSGSIZE, E_NETUNREACH, E_NONET, E_NOPROTOOPT, E_OPNOTSUPP, E_CONNREFUSED, E_PROTO, KIND_REQ, KIND_TW, NS_PER_SEC, TCP_CLOSE, TCP_LISTEN,
    TCP_SYN_RECV, TCP_SYN_SENT, ns_t, ref_t, seg_t, uint8_t, uint32_t,
)
from ustack.core.wire cimport (
    IP_HLEN, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, get32, icmp_t, put32, quote_t, wire_icmp_csum_ok, wire_parse_icmp, wire_parse_quote,
)

cdef enum:
    IPPROTO_UDPLITE = 136
    IPPROTO_RAW = 255


cdef inline int icmp_err_errno(uint8_t code) noexcept nogil:
    # errno of destination unreachable, by code (facts N22)
    if code == 1 or code == 10 or code >= 12:
        return E_HOSTUNREACH
    if code == 2:
        return E_NOPROTOOPT
    if code == 3:
        return E_CONNREFUSED
    if code == 4:
        return E_MSGSIZE
    if code == 5:
        return E_OPNOTSUPP
    if code == 7:
        return E_HOSTDOWN
    if code == 8:
        return E_NONET
    return E_NETUNREACH


# ---- what an error does to a socket ------------------------------------------------------------------------------------------
cdef inline void tcp_v4_mtu_reduced(engine_t* e, tcb_t* sk, uint32_t mtu) noexcept nogil:
    # Path MTU discovery (facts N24): remember, and if it concerns what is in flight, cut it anew and send it at once.
    cdef uint32_t now_mtu
    if sk_route(e, sk) != 0:
        return
    pmtu_update(e, sk.en.faddr, mtu)
    now_mtu = route_mtu(e, sk)
    if mtu < now_mtu and sk_dont_fragment(e, sk):
        sk.sk_err_soft = E_MSGSIZE
    if sk.pmtudisc == IP_PMTUDISC_DONT or sk.pmtudisc == IP_PMTUDISC_INTERFACE or sk.pmtudisc == IP_PMTUDISC_OMIT:
        return
    if sk.pmtu > now_mtu:
        tcp_sync_mss(e, sk, now_mtu)
        tcp_simple_retransmit(e, sk)


cdef inline void tcp_ld_RTO_revert(engine_t* e, tcb_t* sk, uint32_t seq) noexcept nogil:
    # RFC 6069: the route was down, not congested; take one step of backoff back.
    cdef ns_t rto_max = tcp_rto_max(e, sk)
    cdef ns_t passed
    if seq != sk.snd_una or sk.retransmits == 0 or sk.backoff == 0 or sk.sq_head == 0:
        return
    sk.backoff -= 1
    sk.rto = rtt_rto(&sk.rtt, e.tick, sk_rto_min(e, sk), rto_max) if sk.rtt.srtt_us != 0 else NS_PER_SEC
    sk.rto = i64_min(sk.rto << sk.backoff, rto_max)
    passed = e.now - sr_at(e, sk.sq_head).tx_time
    passed = (passed + e.tick - 1) // e.tick * e.tick
    if sk.rto > passed:
        tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, sk.rto - passed)
    else:
        tcp_retransmit_timer(e, sk)


cdef inline void icmp_abort_connect_(engine_t* e, tcb_t* sk, int err, const icmp_t* m, uint32_t info) noexcept nogil:
    # SYN_SENT, or SYN_RECV of a simultaneous open or of a Fast Open child that nobody has accepted: the attempt fails.
    cdef reqext_t* x = errq_put(e, sk, err, SO_EE_ORIGIN_ICMP, info, 0)
    if x != NULL:
        x.ee_type = m.type
        x.ee_code = m.code
    tcp_done_with_error(e, sk, err)


cdef inline int tcp_v4_err_sk_(engine_t* e, tcb_t* sk, const icmp_t* m, const quote_t* q, uint32_t info) noexcept nogil:
    cdef int err
    cdef bint fastopen = sk.fastopen_rsk != 0
    if m.type == ICMP_PARAMETERPROB:
        err = E_PROTO
    elif m.type == ICMP_TIME_EXCEEDED:
        err = E_HOSTUNREACH
    elif m.type == ICMP_DEST_UNREACH and m.code <= NR_ICMP_UNREACH:
        if m.code == ICMP_FRAG_NEEDED:
            if sk.state != TCP_LISTEN:
                tcp_v4_mtu_reduced(e, sk, info)
            return DROP_NONE
        err = icmp_err_errno(m.code)
        if not fastopen and (m.code == ICMP_NET_UNREACH or m.code == ICMP_HOST_UNREACH):
            tcp_ld_RTO_revert(e, sk, q.seq)
    else:
        return DROP_NONE
    if (sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV) and not (fastopen and sk.sflags & SF_ACCEPTED):
        icmp_abort_connect_(e, sk, err, m, info)
        return DROP_NONE
    if sk.sflags & SF_RECVERR:
        sk.sk_err = err
        sk_error_report(e, sk)
    else:
        sk.sk_err_soft = err
    return DROP_NONE


cdef inline int tcp_v4_err(engine_t* e, const seg_t* s, const icmp_t* m, const quote_t* q, uint32_t info) noexcept nogil:
    # An error that quotes a segment of ours.
    cdef ref_t ref = ehash_lookup(&e.ehash, q.src, q.dst, q.sport, q.dport)
    cdef tcb_t* sk
    cdef bint abort
    if ref == 0:
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_NO_SOCKET
    if ref_kind(ref) == KIND_TW:
        return DROP_NONE
    if ref_kind(ref) == KIND_REQ:
        abort = m.type == ICMP_PARAMETERPROB or m.type == ICMP_TIME_EXCEEDED or (
            m.type == ICMP_DEST_UNREACH and (m.code == ICMP_NET_UNREACH or m.code == ICMP_HOST_UNREACH))
        return request_icmp(e, ref_idx(ref), q.seq, abort)
    sk = sk_at(e, ref_idx(ref))
    if sk.state == TCP_CLOSE:
        return DROP_NONE
    if s.ttl < sk.opt.min_ttl:
        mib_inc(&e.stats, MIB_TcpExtTCPMinTTLDrop)
        return DROP_TCP_MINTTL
    if sk.state != TCP_LISTEN and not between(q.seq, sk.iss if sk.fastopen_rsk != 0 else sk.snd_una, sk.snd_nxt):
        mib_inc(&e.stats, MIB_TcpExtOutOfWindowIcmps)
        return DROP_ICMP_OOW
    return tcp_v4_err_sk_(e, sk, m, q, info)


# ---- messages ----------------------------------------------------------------------------------------------------------------
cdef inline int icmp_error_in_(engine_t* e, const seg_t* s, const icmp_t* m, uint32_t info) noexcept nogil:
    # Hands an error to the protocol of the packet it quotes, if eight bytes of that are there.
    cdef quote_t q
    if m.body_len < IP_HLEN or wire_parse_quote(m.body, m.body_len, &q) != 0 or q.l4_len < 8:
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_INVALID
    if not e.cfg.icmp_ignore_bogus_error_responses and m.type != ICMP_REDIRECT and is_broadcast(e, q.dst):
        return DROP_ICMP_INVALID
    if q.proto == IPPROTO_TCP:
        return tcp_v4_err(e, s, m, &q, info)
    if q.proto == IPPROTO_ICMP:
        if q.l4[0] == ICMP_ECHOREPLY and m.type == ICMP_DEST_UNREACH and m.code == ICMP_FRAG_NEEDED:
            pmtu_update(e, q.dst, info)
        return DROP_NONE
    if q.proto == IPPROTO_UDP or q.proto == IPPROTO_UDPLITE or q.proto == IPPROTO_RAW:
        mib_inc(&e.stats, MIB_IcmpInErrors)     # protocols that look for a socket
    return DROP_ICMP_NO_SOCKET


cdef inline int icmp_unreach_(engine_t* e, const seg_t* s, const icmp_t* m) noexcept nogil:
    cdef uint32_t info = 0
    if m.body_len < IP_HLEN or m.body[0] & 15 < 5:
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_INVALID
    if m.type == ICMP_DEST_UNREACH:
        if m.code & 15 == ICMP_FRAG_NEEDED:
            if e.cfg.ip_no_pmtu_disc == 2:
                return DROP_NONE
            if e.cfg.ip_no_pmtu_disc == 0 or e.cfg.ip_no_pmtu_disc == 3:
                info = m.rest & 0xffff
        if m.code > NR_ICMP_UNREACH:
            return DROP_ICMP_INVALID
    elif m.type == ICMP_PARAMETERPROB:
        info = m.rest >> 24
    elif m.type == ICMP_TIME_EXCEEDED and m.code == ICMP_EXC_FRAGTIME:
        return DROP_NONE
    return icmp_error_in_(e, s, m, info)


cdef inline int icmp_timestamp_(engine_t* e, const seg_t* s, const icmp_t* m, int dst_type) noexcept nogil:
    cdef uint8_t times[12]
    if m.body_len < 4:
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_INVALID
    put32(times, get32(m.body))
    put32(times + 4, inet_current_timestamp(e))
    put32(times + 8, inet_current_timestamp(e))
    icmp_reply(e, s, dst_type, ICMP_TIMESTAMPREPLY, 0, m.rest, times, 12)
    return DROP_NONE


cdef inline void icmp_in_count(engine_t* e, uint8_t type) noexcept nogil:
    e.stats.icmp_in_type[type] += 1
    if type == ICMP_ECHOREPLY:
        mib_inc(&e.stats, MIB_IcmpInEchoReps)
    elif type == ICMP_DEST_UNREACH:
        mib_inc(&e.stats, MIB_IcmpInDestUnreachs)
    elif type == ICMP_SOURCE_QUENCH:
        mib_inc(&e.stats, MIB_IcmpInSrcQuenchs)
    elif type == ICMP_REDIRECT:
        mib_inc(&e.stats, MIB_IcmpInRedirects)
    elif type == ICMP_ECHO:
        mib_inc(&e.stats, MIB_IcmpInEchos)
    elif type == ICMP_TIME_EXCEEDED:
        mib_inc(&e.stats, MIB_IcmpInTimeExcds)
    elif type == ICMP_PARAMETERPROB:
        mib_inc(&e.stats, MIB_IcmpInParmProbs)
    elif type == ICMP_TIMESTAMP:
        mib_inc(&e.stats, MIB_IcmpInTimestamps)
    elif type == ICMP_TIMESTAMPREPLY:
        mib_inc(&e.stats, MIB_IcmpInTimestampReps)
    elif type == ICMP_ADDRESS:
        mib_inc(&e.stats, MIB_IcmpInAddrMasks)
    elif type == ICMP_ADDRESSREPLY:
        mib_inc(&e.stats, MIB_IcmpInAddrMaskReps)


cdef inline int icmp_bcast_ok_(engine_t* e, uint8_t type) noexcept nogil:
    # May this type come by broadcast or multicast?
    if type == ICMP_ECHO or type == ICMP_TIMESTAMP:
        return not e.cfg.icmp_echo_ignore_broadcasts
    return type == ICMP_ADDRESS or type == ICMP_ADDRESSREPLY


cdef inline int icmp_dispatch_(engine_t* e, const seg_t* s, const icmp_t* m, int dst_type) noexcept nogil:
    if m.type == ICMP_ECHO:
        if not e.cfg.icmp_echo_ignore_all:
            icmp_reply(e, s, dst_type, ICMP_ECHOREPLY, m.code, m.rest, m.body, m.body_len)
    elif m.type == ICMP_TIMESTAMP:
        return icmp_timestamp_(e, s, m, dst_type)
    elif m.type == ICMP_DEST_UNREACH or m.type == ICMP_SOURCE_QUENCH or m.type == ICMP_TIME_EXCEEDED or \
            m.type == ICMP_PARAMETERPROB:
        return icmp_unreach_(e, s, m)
    elif m.type == ICMP_REDIRECT:
        return icmp_error_in_(e, s, m, m.rest)
    return DROP_NONE


cdef inline int icmp_rcv(engine_t* e, const seg_t* s, int dst_type) noexcept nogil:
    # One ICMP message; dst_type is RTF_LOCAL, _BROADCAST or _MULTICAST. Returns the reason it was dropped, 0 = taken.
    cdef icmp_t m
    mib_inc(&e.stats, MIB_IcmpInMsgs)
    if not wire_icmp_csum_ok(s):
        mib_inc(&e.stats, MIB_IcmpInCsumErrors)
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_CSUM
    if wire_parse_icmp(s, &m) != 0:
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_INVALID
    icmp_in_count(e, m.type)
    if m.type == ICMP_EXT_ECHO:
        return DROP_NONE            # probes are off (icmp_echo_enable_probe)
    if (m.type > NR_ICMP_TYPES and m.type != ICMP_EXT_ECHOREPLY) or (dst_type != RTF_LOCAL and not icmp_bcast_ok_(e, m.type)):
        mib_inc(&e.stats, MIB_IcmpInErrors)
        return DROP_ICMP_INVALID
    return icmp_dispatch_(e, s, &m, dst_type)
