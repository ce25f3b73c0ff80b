# Reassembly of IPv4 fragments (layer above icmp).
#
# RFC 791 3.2, RFC 815's job, RFC 1122 3.3.2, RFC 5722's answer to overlaps, RFC 3168 5.3; Linux: ip_fragment.c, inet_fragment.c;
# facts N7. A datagram is known by source, destination, id and protocol. Payload goes at once to its place in the slot's area;
# what is there is a sorted list of runs. A run grows only at the end of the datagram, as Linux's do, which decides what counts as a
# duplicate (inside one run: ignored) and what as an overlap (all else: the whole datagram is dropped).
# Area of slot i: FRAG_ROOM bytes in front for the header, 64 KiB of payload, then the runs as pairs of uint16.
# Callers: ipin (ip_defrag), engine (ip_expire).

from libc.string cimport memcpy, memmove, memset

from ustack.core.drops cimport drop_late
from ustack.core.icmp cimport ICMP_EXC_FRAGTIME, ICMP_TIME_EXCEEDED, icmp_send
from ustack.core.ipopt cimport ip_options_compile
from ustack.core.pool cimport pool_alloc, pool_at, pool_free
from ustack.core.route cimport route_input
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.state cimport FRAG_HASH, RTF_LOCAL, engine_t, frag_t
from ustack.core.stats cimport (
    MIB_IpExtReasmOverlaps, MIB_IpReasmFails, MIB_IpReasmOKs, MIB_IpReasmReqds, MIB_IpReasmTimeout, mib_inc,
)
from ustack.core.types cimport (
    CSUM_NONE, DROP_DUP_FRAG, DROP_FRAG_MEMORY, DROP_FRAG_OVERLAP, DROP_FRAG_REASM_TIMEOUT, DROP_FRAG_TOO_FAR, DROP_NOT_SPECIFIED, NS_PER_SEC,
    REF_SHIFT, TM_FRAG, flow_t, idx_t, ns_t, seg_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.wheel cimport wheel_arm, wheel_disarm
from ustack.core.wire cimport IP_DF, IP_MF, IP_OFFSET, put16, wire_ip_csum_set, wire_parse_ip, wire_parse_ip_head

cdef enum:
    FRAG_ROOM = 64
    FRAG_PAYLOAD = 65536
    FRAG_RUNS = 8192
    FRAG_SLOT = 98368           # FRAG_ROOM + FRAG_PAYLOAD + 4 * FRAG_RUNS
    FRAG_QUEUE_SIZE = 216       # what Linux counts for the queue itself
    FRAG_FIRST_IN = 1
    FRAG_LAST_IN = 2
    FRAG_PENDING = -1           # ip_defrag: the fragment is kept, nothing to deliver yet

cdef struct frun_t:
    uint16_t start
    uint16_t end


cdef inline uint8_t* frag_payload_(engine_t* e, idx_t i) noexcept nogil:
    return e.frag_area + <size_t>i * FRAG_SLOT + FRAG_ROOM


cdef inline frun_t* frag_runs_(engine_t* e, idx_t i) noexcept nogil:
    return <frun_t*>(frag_payload_(e, i) + FRAG_PAYLOAD)


cdef inline uint32_t frag_slot_(uint32_t src, uint32_t dst, uint16_t id) noexcept nogil:
    return ((src ^ (dst << 7) ^ id) * <uint32_t>0x9e3779b1ULL) >> 26


cdef inline uint32_t frag_truesize_(uint32_t n) noexcept nogil:
    # Memory that a received packet of n bytes counts for (facts J30).
    if n <= 192:
        return 832
    if n <= 640:
        return 1280
    if n <= 1664:
        return 2304
    if n <= 3712:
        return 4352
    if n <= 4030:
        return 8448
    return 832 + ((n + 4095) & ~<uint32_t>4095)


cdef inline void frag_kill(engine_t* e, idx_t i) noexcept nogil:
    cdef frag_t* q = <frag_t*>pool_at(&e.frag, i)
    cdef idx_t* link = &e.frag_hash[frag_slot_(q.src, q.dst, q.id)]
    while link[0] != 0 and link[0] != i:
        link = &(<frag_t*>pool_at(&e.frag, link[0])).next
    if link[0] == i:
        link[0] = q.next
    e.frag_mem -= q.truesize
    wheel_disarm(&e.wheel, (<uint32_t> TM_FRAG << REF_SHIFT) | i)
    pool_free(&e.frag, i)


cdef inline void frag_discard_(engine_t* e, frag_t* q, int reason) noexcept nogil:
    # What has been kept of a datagram goes.
    cdef flow_t flow = flow_t(q.dst, q.src, 0, 0)
    while q.kept != 0:
        drop_late(e, &flow, reason)
        q.kept -= 1


cdef inline idx_t frag_find_(engine_t* e, const seg_t* s) noexcept nogil:
    # The datagram of a fragment, made if it is the first; 0 if memory is short.
    cdef idx_t* head = &e.frag_hash[frag_slot_(s.src, s.dst, s.ip_id)]
    cdef idx_t i = head[0]
    cdef frag_t* q
    if e.cfg.ipfrag_high_thresh == 0 or e.frag_mem > e.cfg.ipfrag_high_thresh:
        return 0
    while i != 0:
        q = <frag_t*>pool_at(&e.frag, i)
        if q.src == s.src and q.dst == s.dst and q.id == s.ip_id and q.proto == s.proto:
            return i
        i = q.next
    i = pool_alloc(&e.frag)
    if i == 0:
        return 0
    q = <frag_t*>pool_at(&e.frag, i)
    q.src = s.src
    q.dst = s.dst
    q.id = s.ip_id
    q.proto = s.proto
    q.truesize = FRAG_QUEUE_SIZE
    q.next = head[0]
    head[0] = i
    e.frag_mem += q.truesize
    wheel_arm(&e.wheel, (<uint32_t> TM_FRAG << REF_SHIFT) | i, e.now + <ns_t>e.cfg.ipfrag_time * NS_PER_SEC)
    return i


cdef inline void frag_reinit_if_far_(engine_t* e, frag_t* q, idx_t i) noexcept nogil:
    # More than max_dist fragments of this source have passed since the last one of this datagram: its id has been used again,
    # so what there is belongs to another datagram.
    cdef uint32_t* rid = &e.frag_rid[(q.src * <uint32_t>0x9e3779b1ULL) >> 26]
    cdef uint32_t before
    if e.cfg.ipfrag_max_dist == 0:
        return
    before = q.rid
    rid[0] += 1
    q.rid = rid[0]
    if q.n == 0 or q.rid - before <= <uint32_t>e.cfg.ipfrag_max_dist:
        return
    mib_inc(&e.stats, MIB_IpReasmFails)
    frag_discard_(e, q, DROP_FRAG_TOO_FAR)
    wheel_arm(&e.wheel, (<uint32_t> TM_FRAG << REF_SHIFT) | i, e.now + <ns_t>e.cfg.ipfrag_time * NS_PER_SEC)
    e.frag_mem -= q.truesize - FRAG_QUEUE_SIZE
    q.truesize = FRAG_QUEUE_SIZE
    q.flags = 0
    q.total = 0
    q.have = 0
    q.n = 0
    q.ecn = 0


cdef inline int frag_insert_(frag_t* q, frun_t* runs, uint32_t start, uint32_t end) noexcept nogil:
    # Enters the range into the runs. 0, DROP_DUP_FRAG or DROP_FRAG_OVERLAP.
    cdef uint32_t lo = 0
    cdef uint32_t hi = q.n
    cdef uint32_t mid
    if q.n != 0 and runs[q.n - 1].end < end:
        if start < runs[q.n - 1].end:
            return DROP_FRAG_OVERLAP
        if start == runs[q.n - 1].end:
            runs[q.n - 1].end = <uint16_t>end
            return 0
        lo = q.n
    while lo < hi:
        mid = (lo + hi) >> 1
        if end <= runs[mid].start:
            hi = mid
        elif start >= runs[mid].end:
            lo = mid + 1
        elif start >= runs[mid].start and end <= runs[mid].end:
            return DROP_DUP_FRAG
        else:
            return DROP_FRAG_OVERLAP
    if q.n == FRAG_RUNS:
        return DROP_FRAG_OVERLAP
    memmove(&runs[lo + 1], &runs[lo], (q.n - lo) * sizeof(frun_t))
    runs[lo].start = <uint16_t>start
    runs[lo].end = <uint16_t>end
    q.n += 1
    return 0


cdef inline int frag_ecn_(uint8_t seen) noexcept nogil:
    # Bits of the ECN fields seen -> what the whole gets on top: 0, 3 (CE), or -1: Not-ECT mixed with others is not possible.
    if seen & 1 and seen != 1:
        return -1
    return 3 if seen & 8 and seen != 8 else 0


cdef inline int frag_reasm_(engine_t* e, idx_t i, seg_t* s) noexcept nogil:
    # All is there: s becomes the whole datagram, which lies in the slot's area until the next packet is received.
    cdef frag_t* q = <frag_t*>pool_at(&e.frag, i)
    cdef int ecn = frag_ecn_(q.ecn)
    cdef uint8_t* ip = frag_payload_(e, i) - q.hdr_len
    cdef uint32_t len = q.hdr_len + q.total
    if ecn < 0 or len > 65535:
        mib_inc(&e.stats, MIB_IpReasmFails)
        frag_kill(e, i)
        return DROP_NOT_SPECIFIED
    memcpy(ip, q.hdr, q.hdr_len)
    ip[1] |= <uint8_t>ecn
    put16(ip + 2, len)
    put16(ip + 6, IP_DF if q.max_df_size == q.max_size else 0)
    wire_ip_csum_set(ip)
    mib_inc(&e.stats, MIB_IpReasmOKs)
    frag_kill(e, i)
    s.csum_state = CSUM_NONE
    return wire_parse_ip(ip, len, s)


cdef inline int frag_span_(frag_t* q, const seg_t* s, uint32_t start, uint32_t* end) noexcept nogil:
    # Where the fragment ends, and what that says about the length of the whole. False: it contradicts the others.
    end[0] = start + s.l4_len
    if not s.frag & IP_MF:
        if end[0] < q.total or (q.flags & FRAG_LAST_IN and end[0] != q.total):
            return False
        q.flags |= FRAG_LAST_IN
        q.total = end[0]
    else:
        end[0] &= ~<uint32_t>7
        if end[0] > q.total:
            if q.flags & FRAG_LAST_IN:
                return False
            q.total = end[0]
    return end[0] != start


cdef inline int ip_defrag(engine_t* e, seg_t* s) noexcept nogil:
    # One fragment. FRAG_PENDING: kept. 0: s is now the whole datagram. Else the reason to drop it.
    cdef uint32_t start = <uint32_t>(s.frag & IP_OFFSET) << 3
    cdef uint32_t end
    cdef uint32_t size
    cdef frag_t* q
    cdef int reason
    cdef idx_t i
    mib_inc(&e.stats, MIB_IpReasmReqds)
    i = frag_find_(e, s)
    if i == 0:
        mib_inc(&e.stats, MIB_IpReasmFails)
        return DROP_FRAG_MEMORY
    q = <frag_t*>pool_at(&e.frag, i)
    frag_reinit_if_far_(e, q, i)
    reason = DROP_NOT_SPECIFIED
    if frag_span_(q, s, start, &end):
        reason = frag_insert_(q, frag_runs_(e, i), start, u32_min(end, FRAG_PAYLOAD - 1))
        if reason == DROP_DUP_FRAG:
            return reason
        if reason == DROP_FRAG_OVERLAP:
            mib_inc(&e.stats, MIB_IpExtReasmOverlaps)
    if reason != 0:
        frag_discard_(e, q, reason)
        frag_kill(e, i)
        mib_inc(&e.stats, MIB_IpReasmFails)
        return reason
    # What reaches beyond the longest datagram is kept in the books alone: the whole will be too long.
    memcpy(frag_payload_(e, i) + start, s.l4, u32_min(end, FRAG_PAYLOAD - 1) - start)
    q.have += end - start
    q.kept += 1
    q.ecn |= <uint8_t>(1 << (s.tos & 3))
    size = frag_truesize_(s.ip_len)
    q.truesize += size
    e.frag_mem += size
    if start == 0:
        q.flags |= FRAG_FIRST_IN
        q.hdr_len = s.ip_hlen
        q.first_len = end
        memcpy(q.hdr, s.ip, s.ip_hlen)
    size = end - start + s.ip_hlen
    q.max_size = u32_max(q.max_size, size)
    if s.frag & IP_DF:
        q.max_df_size = u32_max(q.max_df_size, size)
    if q.flags == FRAG_FIRST_IN | FRAG_LAST_IN and q.have == q.total:
        return frag_reasm_(e, i, s)
    return FRAG_PENDING


cdef inline void ip_expire(engine_t* e, idx_t i) noexcept nogil:
    # TM_FRAG: the rest did not come in time. The sender hears of it if the first fragment is here to be quoted.
    cdef frag_t* q = <frag_t*>pool_at(&e.frag, i)
    cdef uint8_t* ip = frag_payload_(e, i) - q.hdr_len
    cdef uint32_t len = q.hdr_len + q.first_len
    cdef bint first = (q.flags & FRAG_FIRST_IN) != 0
    cdef seg_t s
    cdef int type
    if first:
        memcpy(ip, q.hdr, q.hdr_len)
    frag_discard_(e, q, DROP_FRAG_REASM_TIMEOUT)
    frag_kill(e, i)
    mib_inc(&e.stats, MIB_IpReasmFails)
    mib_inc(&e.stats, MIB_IpReasmTimeout)
    if not first:
        return
    memset(&s, 0, sizeof(seg_t))
    wire_parse_ip_head(ip, len, &s)
    s.l4 = ip + s.ip_hlen
    s.l4_len = len - s.ip_hlen
    if route_input(e, s.src, s.dst, &type) != 0 or type != RTF_LOCAL:
        return
    ip_options_compile(e, &s, s.dst)
    icmp_send(e, &s, type, ICMP_TIME_EXCEEDED, ICMP_EXC_FRAGTIME, 0)
