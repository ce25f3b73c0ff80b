# IP options of what arrives, and their echo in what answers (layer of route).
#
# RFC 791 3.1, RFC 1122 3.2.1.8; Linux: ip_options_compile, ip_options_echo, ip_options_build; facts N2, C13. The receiver checks all options,
# writes its own address and the time into record route and timestamp, and keeps the result in e.ipopt for as long as the packet is
# in process. A reply (ICMP, SYN-ACK) echoes record route, timestamp and a security label. Nothing else acts on options.
# Callers: ipin compiles each packet (also those without options); icmp and request echo.

from libc.string cimport memcpy, memset

from ustack.core.records cimport reqext_t
from ustack.core.route cimport inet_addr_type
from ustack.core.access cimport wall_ns
from ustack.core.state cimport RTF_UNICAST, engine_t, ipopt_t
from ustack.core.types cimport seg_t, uint8_t, uint32_t
from ustack.core.wire cimport IP_HLEN, get32, put32

cdef enum:
    IPOPT_END = 0
    IPOPT_NOOP = 1
    IPOPT_RR = 7
    IPOPT_TIMESTAMP = 68
    IPOPT_LSRR = 131
    IPOPT_CIPSO = 134
    IPOPT_SSRR = 137
    IPOPT_RA = 148
    IPOPT_TS_TSONLY = 0
    IPOPT_TS_TSANDADDR = 1
    IPOPT_TS_PRESPEC = 3


cdef inline uint32_t inet_current_timestamp(engine_t* e) noexcept nogil:
    # Milliseconds since midnight UTC.
    return <uint32_t>((wall_ns(e) // 1000000) % 86400000ULL)


cdef inline int ipopt_route_(ipopt_t* o, uint32_t i, uint32_t n) noexcept nogil:
    # LSRR, SSRR. Returns -1, or the offset of what is wrong.
    if n < 3:
        return i + 1
    if o.data[i + 2] < 4:
        return i + 2
    if o.srr:
        return i
    o.srr = <uint8_t>(i + 1)
    return -1


cdef inline int ipopt_rr_(ipopt_t* o, uint32_t i, uint32_t n, uint32_t our_addr) noexcept nogil:
    cdef uint8_t* p = &o.data[i]
    if o.rr:
        return i
    if n < 3:
        return i + 1
    if p[2] < 4:
        return i + 2
    if p[2] <= n:
        if p[2] + 3 > <int>n:
            return i + 2
        put32(p + p[2] - 1, our_addr)
        p[2] += 4
        o.rr_needaddr = 1
    o.rr = <uint8_t>(i + 1)
    return -1


cdef inline int ipopt_ts_(engine_t* e, ipopt_t* o, uint32_t i, uint32_t n, uint32_t our_addr) noexcept nogil:
    cdef uint8_t* p = &o.data[i]
    cdef uint8_t* when = NULL
    cdef uint32_t kind
    if o.ts:
        return i
    if n < 4:
        return i + 1
    if p[2] < 5:
        return i + 2
    kind = p[3] & 15
    if p[2] <= n:
        if p[2] + 3 > <int>n:
            return i + 2
        if kind == IPOPT_TS_TSONLY:
            when = p + p[2] - 1
            o.ts_needtime = 1
            p[2] += 4
        elif kind == IPOPT_TS_TSANDADDR:
            if p[2] + 7 > <int>n:
                return i + 2
            put32(p + p[2] - 1, our_addr)
            when = p + p[2] + 3
            o.ts_needaddr = 1
            o.ts_needtime = 1
            p[2] += 8
        elif kind == IPOPT_TS_PRESPEC:
            if p[2] + 7 > <int>n:
                return i + 2
            if inet_addr_type(e, get32(p + p[2] - 1)) != RTF_UNICAST:
                when = p + p[2] + 3
                o.ts_needtime = 1
                p[2] += 8
        if when != NULL:
            put32(when, inet_current_timestamp(e))
    elif kind != IPOPT_TS_PRESPEC:
        if p[3] >> 4 == 15:
            return i + 3
        p[3] += 16
    o.ts = <uint8_t>(i + 1)
    return -1


cdef inline int ip_options_compile(engine_t* e, const seg_t* s, uint32_t our_addr) noexcept nogil:
    # Fills e.ipopt from the packet. -1, or the offset in the IP header of the byte that is wrong (ICMP's pointer).
    cdef ipopt_t* o = &e.ipopt
    cdef uint32_t i = 0
    cdef uint32_t n
    cdef int bad
    o.len = 0
    if s.ip_hlen == IP_HLEN:
        return -1
    memset(o, 0, sizeof(ipopt_t))
    o.len = <uint8_t>(s.ip_hlen - IP_HLEN)
    memcpy(o.data, s.ip + IP_HLEN, o.len)
    while i < o.len:
        if o.data[i] == IPOPT_END:
            memset(&o.data[i], IPOPT_END, o.len - i)
            return -1
        if o.data[i] == IPOPT_NOOP:
            i += 1
            continue
        if o.len - i < 2:
            return IP_HLEN + i
        n = o.data[i + 1]
        if n < 2 or n > o.len - i:
            return IP_HLEN + i
        bad = -1
        if o.data[i] == IPOPT_LSRR or o.data[i] == IPOPT_SSRR:
            bad = ipopt_route_(o, i, n)
        elif o.data[i] == IPOPT_RR:
            bad = ipopt_rr_(o, i, n, our_addr)
        elif o.data[i] == IPOPT_TIMESTAMP:
            bad = ipopt_ts_(e, o, i, n, our_addr)
        elif o.data[i] == IPOPT_RA and n < 4:
            bad = i + 1
        elif o.data[i] == IPOPT_CIPSO:          # a label: too short, or of a domain (DOI) that nobody has configured
            bad = i + 1 if n < 8 else i + 2
            o.cipso = <uint8_t>(i + 1)
        if bad >= 0:
            return IP_HLEN + bad
        i += n
    return -1


cdef inline int ipopt_echo_rr_(const ipopt_t* o, uint8_t* d, uint32_t our_addr) noexcept nogil:
    # Bytes written at d, -1 if the option makes no sense.
    cdef const uint8_t* p = &o.data[o.rr - 1]
    cdef int n = p[1]
    cdef int at = p[2]
    memcpy(d, p, n)
    if o.rr_needaddr and at <= n:
        if at + 3 > n:
            return -1
        put32(d + at - 1, our_addr)
        d[2] = <uint8_t>(at + 4)
    return n


cdef inline int ipopt_echo_ts_(engine_t* e, const ipopt_t* o, uint8_t* d, uint32_t our_addr) noexcept nogil:
    cdef const uint8_t* p = &o.data[o.ts - 1]
    cdef int n = p[1]
    cdef int at = p[2]
    cdef bint fill = False
    memcpy(d, p, n)
    if at > n:
        return n
    if o.ts_needaddr:
        if at + 3 > n:
            return -1
        put32(d + at - 1, our_addr)
        at += 4
    if o.ts_needtime:
        if at + 3 > n:
            return -1
        if d[3] & 15 != IPOPT_TS_PRESPEC:
            fill = True
            at += 4
        elif at + 7 <= n and inet_addr_type(e, get32(d + at - 1)) != RTF_UNICAST:
            fill = True
            at += 8
        if fill:
            put32(d + at - 5, inet_current_timestamp(e))
    d[2] = <uint8_t>at
    return n


cdef inline int ip_options_echo(engine_t* e, uint32_t our_addr, uint8_t* out) noexcept nogil:
    # Options of the reply to the packet in process, at most 40 bytes at out, padded; the length, 0 = none, -1 = do not reply.
    cdef const ipopt_t* o = &e.ipopt
    cdef int len = 0
    cdef int n
    if o.len == 0:
        return 0
    if o.rr:
        n = ipopt_echo_rr_(o, out, our_addr)
        if n < 0:
            return -1
        len += n
    if o.ts:
        n = ipopt_echo_ts_(e, o, out + len, our_addr)
        if n < 0:
            return -1
        len += n
    if o.cipso:
        n = o.data[o.cipso]
        if len + n > 40:
            return -1
        memcpy(out + len, &o.data[o.cipso - 1], n)
        len += n
    while len & 3:
        out[len] = IPOPT_END
        len += 1
    return len


cdef inline void ip_options_keep(engine_t* e, const uint8_t* opts, int n, reqext_t* x) noexcept nogil:
    # Keeps an echo (n > 0 bytes) for all packets of a connection; a timestamp we wrote into it is written anew each time.
    cdef int at = 0
    memcpy(x.ipopt, opts, n)
    x.ipopt_len = <uint8_t>n
    x.ipopt_time = 0
    if e.ipopt.ts == 0 or not e.ipopt.ts_needtime:
        return
    if e.ipopt.rr:
        at = e.ipopt.data[e.ipopt.rr]
    # The echo moved the pointer beyond what the option had on arrival: its last four bytes are our time.
    if opts[at + 2] > e.ipopt.data[e.ipopt.ts + 1] + (4 if e.ipopt.ts_needaddr else 0):
        x.ipopt_time = <uint8_t>(at + opts[at + 2] - 5)
