# ICMP out: errors, replies, the rate limits (layer above ipout).
#
# RFC 792, RFC 1122 3.2.2, RFC 1812 4.3.2.8 (limits); Linux: icmp_send, icmp_reply, icmp_global_allow, inet_peer_xrlim_allow; facts N4, N11-N13. An
# error quotes the packet that caused it, up to 576 bytes in all, and is never sent about an ICMP error, a fragment but the first, or
# what came by broadcast. Two limits hold for the types in icmp_ratemask: a bucket per destination (one error costs icmp_ratelimit,
# six fit) and a bucket of the whole engine. Both count in ticks, as Linux does.
# Callers: icmp_in (replies), frag and ipin (errors).

from libc.string cimport memcpy

from ustack.core.ipopt cimport ip_options_echo
from ustack.core.ipout cimport ipout_buffer, ipout_id, ipout_raw
from ustack.core.route cimport RT_LOCAL, route_lookup, route_result_t
from ustack.core.seqno cimport i64_min, u32_min
from ustack.core.siphash cimport prng_below
from ustack.core.state cimport RTF_BROADCAST, RTF_LOCAL, RTF_MULTICAST, bucket_t, engine_t
from ustack.core.stats cimport (
    MIB_IcmpOutAddrMaskReps, MIB_IcmpOutAddrMasks, MIB_IcmpOutDestUnreachs, MIB_IcmpOutEchoReps, MIB_IcmpOutEchos, MIB_IcmpOutMsgs,
    MIB_IcmpOutParmProbs, MIB_IcmpOutRateLimitGlobal, MIB_IcmpOutRateLimitHost, MIB_IcmpOutRedirects, MIB_IcmpOutSrcQuenchs,
    MIB_IcmpOutTimeExcds, MIB_IcmpOutTimestampReps, MIB_IcmpOutTimestamps, mib_inc,
)
from ustack.core.types cimport NS_PER_MS, NS_PER_SEC, int64_t, ns_t, seg_t, uint8_t, uint32_t
from ustack.core.wire cimport ICMP_HLEN, IP_HLEN, IP_OFFSET, IPPROTO_ICMP, wire_put_icmp

cdef enum:
    ICMP_ECHOREPLY = 0
    ICMP_DEST_UNREACH = 3
    ICMP_SOURCE_QUENCH = 4
    ICMP_REDIRECT = 5
    ICMP_ECHO = 8
    ICMP_TIME_EXCEEDED = 11
    ICMP_PARAMETERPROB = 12
    ICMP_TIMESTAMP = 13
    ICMP_TIMESTAMPREPLY = 14
    ICMP_ADDRESS = 17
    ICMP_ADDRESSREPLY = 18
    NR_ICMP_TYPES = 18
    ICMP_EXT_ECHO = 42
    ICMP_EXT_ECHOREPLY = 43
    ICMP_NET_UNREACH = 0
    ICMP_HOST_UNREACH = 1
    ICMP_PROT_UNREACH = 2
    ICMP_PORT_UNREACH = 3
    ICMP_FRAG_NEEDED = 4
    NR_ICMP_UNREACH = 15
    ICMP_EXC_FRAGTIME = 1
    XRLIM_BURST_FACTOR = 6
    ICMP_BUCKET_WAYS = 4
    ICMP_MAX_ERROR = 576


cdef inline bint icmp_is_error(uint8_t type) noexcept nogil:
    # What no error answers: errors, and all types that mean nothing here (1, 2, 6, 7, 9, 10).
    return type <= ICMP_PARAMETERPROB and type != ICMP_ECHOREPLY and type != ICMP_ECHO


# ---- limits ------------------------------------------------------------------------------------------------------------------
cdef inline bint icmp_global_allow_(engine_t* e) noexcept nogil:
    cdef ns_t now = e.now // e.tick * e.tick
    cdef ns_t delta
    cdef int64_t add
    if e.icmp_global_credit > 0:
        return True
    delta = i64_min(now - e.icmp_global_last, NS_PER_SEC)
    if delta < NS_PER_SEC // 50:
        return False
    add = e.cfg.icmp_msgs_per_sec * (delta // e.tick) // (NS_PER_SEC // e.tick)
    if add == 0:
        return False
    e.icmp_global_last = now
    e.icmp_global_credit = i64_min(e.icmp_global_credit + add, e.cfg.icmp_msgs_burst)
    return True


cdef inline bint icmp_global_allow(engine_t* e, uint8_t type, uint8_t code, bint* limited) noexcept nogil:
    # First limit. *limited: the second one applies too.
    limited[0] = False
    if type > NR_ICMP_TYPES or (type == ICMP_DEST_UNREACH and code == ICMP_FRAG_NEEDED):
        return True
    if not (e.cfg.icmp_ratemask >> type) & 1:
        return True
    if icmp_global_allow_(e):
        limited[0] = True
        return True
    mib_inc(&e.stats, MIB_IcmpOutRateLimitGlobal)
    return False


cdef inline bucket_t* icmp_bucket_(engine_t* e, uint32_t dst) noexcept nogil:
    # The destination's bucket; a new destination gets a full one, in place of the one of its set that has rested longest.
    cdef uint32_t at = ((dst * <uint32_t>0x9e3779b1ULL) >> 24) & ~<uint32_t>(ICMP_BUCKET_WAYS - 1)
    cdef bucket_t* b
    cdef bucket_t* oldest = &e.icmp_buckets[at]
    cdef int i
    for i in range(ICMP_BUCKET_WAYS):
        b = &e.icmp_buckets[at + i]
        if b.dst == dst:
            return b
        if b.dst == 0:
            oldest = b
            break
        if b.last < oldest.last:
            oldest = b
    oldest.dst = dst
    oldest.credit_ns = 0
    oldest.last = e.now // e.tick * e.tick - 60 * NS_PER_SEC
    return oldest


cdef inline bint icmp_xrlim_allow(engine_t* e, const route_result_t* rt, uint32_t dst, bint limited) noexcept nogil:
    # Second limit, after the route of the reply is known.
    cdef ns_t now = e.now // e.tick * e.tick
    cdef ns_t cost = e.cfg.icmp_ratelimit * NS_PER_MS
    cdef uint32_t spent
    cdef bucket_t* b
    if not limited:
        return True
    if rt.rt != RT_LOCAL:
        b = icmp_bucket_(e, dst)
        b.credit_ns = i64_min(b.credit_ns + now - b.last, XRLIM_BURST_FACTOR * cost)
        b.last = now
        if b.credit_ns < cost:
            mib_inc(&e.stats, MIB_IcmpOutRateLimitHost)
            return False
        b.credit_ns -= cost
    spent = prng_below(&e.prng, 3)      # a random price hides the state of the global bucket from a prober
    e.icmp_global_credit -= spent
    return True


# ---- sending -----------------------------------------------------------------------------------------------------------------
cdef inline void icmp_out_count(engine_t* e, uint8_t type) noexcept nogil:
    mib_inc(&e.stats, MIB_IcmpOutMsgs)
    e.stats.icmp_out_type[type] += 1
    if type == ICMP_ECHOREPLY:
        mib_inc(&e.stats, MIB_IcmpOutEchoReps)
    elif type == ICMP_DEST_UNREACH:
        mib_inc(&e.stats, MIB_IcmpOutDestUnreachs)
    elif type == ICMP_SOURCE_QUENCH:
        mib_inc(&e.stats, MIB_IcmpOutSrcQuenchs)
    elif type == ICMP_REDIRECT:
        mib_inc(&e.stats, MIB_IcmpOutRedirects)
    elif type == ICMP_ECHO:
        mib_inc(&e.stats, MIB_IcmpOutEchos)
    elif type == ICMP_TIME_EXCEEDED:
        mib_inc(&e.stats, MIB_IcmpOutTimeExcds)
    elif type == ICMP_PARAMETERPROB:
        mib_inc(&e.stats, MIB_IcmpOutParmProbs)
    elif type == ICMP_TIMESTAMP:
        mib_inc(&e.stats, MIB_IcmpOutTimestamps)
    elif type == ICMP_TIMESTAMPREPLY:
        mib_inc(&e.stats, MIB_IcmpOutTimestampReps)
    elif type == ICMP_ADDRESS:
        mib_inc(&e.stats, MIB_IcmpOutAddrMasks)
    elif type == ICMP_ADDRESSREPLY:
        mib_inc(&e.stats, MIB_IcmpOutAddrMaskReps)


cdef inline void icmp_push_(engine_t* e, const route_result_t* rt, uint32_t daddr, uint8_t tos, uint8_t counted_type,
                            const uint8_t* msg, uint32_t n, const uint8_t* opts, uint32_t optlen) noexcept nogil:
    cdef uint32_t ttl = <uint32_t>e.cfg.ip_default_ttl
    if rt.entry != NULL and rt.entry.hoplimit != 0:
        ttl = rt.entry.hoplimit
    icmp_out_count(e, counted_type)
    ipout_raw(e, rt.src, daddr, IPPROTO_ICMP, tos, <uint8_t>ttl, False, ipout_id(e), rt.mtu, msg, n, opts, optlen)


cdef inline void icmp_reply(engine_t* e, const seg_t* s, int dst_type, uint8_t type, uint8_t code, uint32_t rest,
                            const uint8_t* body, uint32_t body_len) noexcept nogil:
    # Echo and timestamp replies. All are counted as type 0, as Linux does (facts N12).
    cdef route_result_t rt
    cdef uint8_t opts[40]
    cdef int optlen = ip_options_echo(e, s.dst, opts)
    cdef bint limited
    cdef uint8_t* msg
    if optlen < 0 or not icmp_global_allow(e, type, code, &limited):
        return
    if route_lookup(e, s.dst if dst_type == RTF_LOCAL else 0, s.src, &rt) != 0:
        return
    if not icmp_xrlim_allow(e, &rt, s.src, limited):
        return
    msg = ipout_buffer(e, ICMP_HLEN + body_len)
    if msg == NULL:
        return
    wire_put_icmp(msg, type, code, rest, body, body_len)
    icmp_push_(e, &rt, s.src, s.tos, ICMP_ECHOREPLY, msg, ICMP_HLEN + body_len, opts, optlen)


cdef inline bint icmp_may_complain_(const seg_t* s, int dst_type, uint8_t type) noexcept nogil:
    if dst_type == RTF_BROADCAST or dst_type == RTF_MULTICAST or s.frag & IP_OFFSET:
        return False
    if icmp_is_error(type) and s.proto == IPPROTO_ICMP:
        if s.ip_len <= s.ip_hlen:
            return False
        if s.ip[s.ip_hlen] > NR_ICMP_TYPES or icmp_is_error(s.ip[s.ip_hlen]):
            return False
    return True


cdef inline void icmp_send(engine_t* e, const seg_t* s, int dst_type, uint8_t type, uint8_t code, uint32_t info) noexcept nogil:
    # An error about packet s, whose destination was of dst_type (RTF_*). info: bytes 4..7 of the message.
    cdef route_result_t rt
    cdef uint8_t opts[40]
    cdef int optlen
    cdef bint limited
    cdef uint32_t room
    cdef uint8_t* msg
    cdef uint32_t ours = s.dst if dst_type == RTF_LOCAL else 0     # else the route's own source
    if not icmp_may_complain_(s, dst_type, type) or not icmp_global_allow(e, type, code, &limited):
        return
    if route_lookup(e, ours, s.src, &rt) != 0:
        return
    optlen = ip_options_echo(e, rt.src, opts)
    if optlen < 0:
        return
    if not icmp_xrlim_allow(e, &rt, s.src, limited):
        return
    room = u32_min(rt.mtu, ICMP_MAX_ERROR)
    if room <= 2 * IP_HLEN + ICMP_HLEN + <uint32_t>optlen:
        return
    room = u32_min(room - IP_HLEN - ICMP_HLEN - optlen, s.ip_len)
    msg = ipout_buffer(e, ICMP_HLEN + room)
    if msg == NULL:
        return
    memcpy(msg + ICMP_HLEN, s.ip, room)
    if e.ipopt.len != 0 and room >= IP_HLEN + <uint32_t>e.ipopt.len:
        memcpy(msg + ICMP_HLEN + IP_HLEN, e.ipopt.data, e.ipopt.len)    # as far as we had filled them in
    wire_put_icmp(msg, type, code, info, msg + ICMP_HLEN, room)
    icmp_push_(e, &rt, s.src, (s.tos & 0x1e) | 0xc0 if icmp_is_error(type) else s.tos, type, msg, ICMP_HLEN + room, opts, optlen)
