# Reading and writing IPv4, TCP and ICMP (layer 2). The only file that knows offsets.
#
# RFC 791, RFC 9293 3.1 and 3.2, RFC 792, RFC 2018 (SACK), RFC 7323 (timestamps, window scale), RFC 7413 (Fast Open).
# Parsing is split where Linux bumps counters between two checks. A parser that returned 0 guarantees that every
# pointer and length it set lies inside the packet; whoever reads a seg_t afterwards need not check again. Values are
# host order in seg_t and network order in the packet; get*/put* are the border. Nothing here decides policy: which
# options a connection honours is the caller's business.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from ustack.core.cksum cimport csum_add, csum_fold, csum_fold_partial, csum_ip_header, csum_pseudo, csum_ranges, ustack_be16, ustack_be32
from ustack.core.types cimport (
    CSUM_NONE, DROP_IP_CSUM, DROP_IP_INHDR, DROP_IP_TRUNCATED, DROP_NONE, DROP_NOT_SPECIFIED, DROP_PKT_TOO_SMALL,
    OPT_AO, OPT_AUTH_BAD, OPT_FASTOPEN, OPT_FO_EXP, OPT_MD5, OPT_MSS, OPT_SACK, OPT_SACKOK, OPT_TS, OPT_WSCALE, TH_FIN, TH_SYN, sackblk_t,
    seg_t)

cdef enum:
    IP_HLEN = 20
    TCP_HLEN = 20
    ICMP_HLEN = 8
    IPPROTO_ICMP = 1
    IPPROTO_TCP = 6
    IPPROTO_UDP = 17
    IP_DF = 0x4000
    IP_MF = 0x2000
    IP_OFFSET = 0x1fff              # in units of 8 bytes
    TCP_MAX_OPT = 40
    TCP_MAX_WSCALE = 14
    FO_COOKIE_MIN = 4
    FO_COOKIE_MAX = 16

# TCP option kinds
cdef enum:
    TOK_EOL = 0
    TOK_NOP = 1
    TOK_MSS = 2
    TOK_WSCALE = 3
    TOK_SACKOK = 4
    TOK_SACK = 5
    TOK_TS = 8
    TOK_MD5 = 19
    TOK_AO = 29
    TCPOLEN_MD5 = 18
    TCPOLEN_AO_HDR = 4
    TOK_FASTOPEN = 34
    TOK_EXP = 254
    TOK_EXP_FASTOPEN = 0xf989       # magic of the experimental form


# An ICMP message, and the packet that an ICMP error quotes.
cdef struct icmp_t:
    uint8_t type
    uint8_t code
    uint16_t check
    uint32_t rest                   # bytes 4..7: id and sequence, MTU, pointer, gateway
    const uint8_t* body
    uint32_t body_len

cdef struct quote_t:
    uint32_t src
    uint32_t dst
    uint8_t proto
    uint8_t tos
    uint16_t frag
    uint32_t ip_hlen
    const uint8_t* l4
    uint32_t l4_len                 # bytes that are really there
    uint16_t sport                  # ports and seq: 0 unless l4_len >= 8
    uint16_t dport
    uint32_t seq


cdef inline uint16_t get16(const uint8_t* p) noexcept nogil:
    cdef uint16_t x
    memcpy(&x, p, 2)
    return ustack_be16(x)


cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    cdef uint32_t x
    memcpy(&x, p, 4)
    return ustack_be32(x)


cdef inline void put16(uint8_t* p, uint32_t v) noexcept nogil:
    cdef uint16_t x = ustack_be16(<uint16_t>v)
    memcpy(p, &x, 2)


cdef inline void put32(uint8_t* p, uint32_t v) noexcept nogil:
    v = ustack_be32(v)
    memcpy(p, &v, 4)


# ---- IPv4 in

cdef inline int wire_parse_ip_head(const uint8_t* p, uint32_t n, seg_t* s) noexcept nogil:
    # First step: length, version, header length. If it fails with ip_hlen != 0, version and ihl were good, and
    # Linux has counted the ECN field by then.
    s.ip = p
    s.ip_len = n
    s.ip_hlen = 0
    s.tos = 0
    if n < IP_HLEN:
        return DROP_PKT_TOO_SMALL
    if p[0] >> 4 != 4 or p[0] & 15 < 5:
        return DROP_IP_INHDR
    s.ip_hlen = <uint32_t>(p[0] & 15) * 4
    s.tos = p[1]
    if s.ip_hlen > n:
        return DROP_PKT_TOO_SMALL
    s.ip_id = get16(p + 4)
    s.frag = get16(p + 6)
    s.ttl = p[8]
    s.proto = p[9]
    s.src = get32(p + 12)
    s.dst = get32(p + 16)
    return DROP_NONE


cdef inline bint wire_ip_csum_ok(const seg_t* s) noexcept nogil:
    return csum_fold(csum_ip_header(s.ip, s.ip_hlen)) == 0


cdef inline int wire_ip_finish(seg_t* s) noexcept nogil:
    # Last step: total length; what lies beyond it is trimmed. Sets l4.
    cdef uint32_t total = get16(s.ip + 2)
    if total > s.ip_len:
        return DROP_IP_TRUNCATED
    if total < s.ip_hlen:
        return DROP_IP_INHDR
    s.ip_len = total
    s.l4 = s.ip + s.ip_hlen
    s.l4_len = total - s.ip_hlen
    return DROP_NONE


cdef inline int wire_parse_ip(const uint8_t* p, uint32_t n, seg_t* s) noexcept nogil:
    # The three steps in one, for callers that count nothing in between.
    cdef int reason = wire_parse_ip_head(p, n, s)
    if reason != DROP_NONE:
        return reason
    if not wire_ip_csum_ok(s):
        return DROP_IP_CSUM
    return wire_ip_finish(s)


# ---- TCP in

cdef inline int wire_parse_tcp(seg_t* s) noexcept nogil:
    # DROP_NOT_SPECIFIED is the data offset below 5, which Linux counts as an error; the others are silent.
    cdef const uint8_t* p = s.l4
    if s.l4_len < TCP_HLEN:
        return DROP_PKT_TOO_SMALL
    s.doff = <uint32_t>(p[12] >> 4) * 4
    if s.doff < TCP_HLEN:
        return DROP_NOT_SPECIFIED
    if s.doff > s.l4_len:
        return DROP_PKT_TOO_SMALL
    s.sport = get16(p)
    s.dport = get16(p + 2)
    s.seq = get32(p + 4)
    s.ack = get32(p + 8)
    s.flags = <uint16_t>((p[12] & 1) << 8 | p[13])
    s.wnd = get16(p + 14)
    s.urg = get16(p + 18)
    s.opt = p + TCP_HLEN
    s.opt_len = s.doff - TCP_HLEN
    s.data = p + s.doff
    s.len = s.l4_len - s.doff
    s.end_seq = s.seq + s.len + ((s.flags & TH_SYN) != 0) + ((s.flags & TH_FIN) != 0)
    return DROP_NONE


cdef inline bint wire_tcp_csum_ok(const seg_t* s) noexcept nogil:
    if s.csum_state != CSUM_NONE:
        return True
    return csum_fold(csum_add(s.l4, s.l4_len, csum_pseudo(s.src, s.dst, s.proto, s.l4_len))) == 0


cdef inline void wire_fastopen_opt_(seg_t* s, const uint8_t* cookie, uint32_t n, uint32_t exp) noexcept nogil:
    # An odd length is as if the option were not there; an even one outside 0, 4..16 also undoes an earlier option.
    if not s.flags & TH_SYN or n & 1:
        return
    s.opts &= ~<uint32_t>(OPT_FASTOPEN | OPT_FO_EXP)
    s.fo_len = 0
    if n == 0 or (FO_COOKIE_MIN <= n <= FO_COOKIE_MAX):
        s.opts |= OPT_FASTOPEN | exp
        s.fo_len = <uint8_t>n
        s.fo_cookie = cookie


cdef inline void wire_sack_opt_(seg_t* s, const uint8_t* p, uint32_t size) noexcept nogil:
    cdef uint32_t i
    if s.flags & TH_SYN or size < 10 or (size - 2) & 7:
        return
    s.n_sack = <uint8_t>((size - 2) >> 3)       # at most 4: an option fits in 40 bytes
    for i in range(s.n_sack):
        s.sack[i].start = get32(p + 2 + 8 * i)
        s.sack[i].end = get32(p + 6 + 8 * i)
    s.opts |= OPT_SACK


cdef inline void wire_auth_opt_(seg_t* s, uint32_t kind, uint32_t size, uint32_t left) noexcept nogil:
    # The kernel's own walk for signatures stops where fewer bytes are left than an MD5 option has; up to there it forgives nothing.
    if left < TCPOLEN_MD5:
        return
    if s.opts & (OPT_MD5 | OPT_AO):
        s.opts |= OPT_AUTH_BAD
    elif kind == TOK_MD5:
        s.opts |= OPT_MD5 if size == TCPOLEN_MD5 else OPT_AUTH_BAD
    else:
        s.opts |= OPT_AO if size > TCPOLEN_AO_HDR else OPT_AUTH_BAD


cdef inline void wire_one_opt_(seg_t* s, const uint8_t* p, uint32_t size, uint32_t left) noexcept nogil:
    # p[0] is the kind, size the whole option, all of it inside the header, of which `left` bytes begin here. A known kind with a wrong
    # length is skipped.
    cdef uint8_t kind = p[0]
    cdef bint syn = (s.flags & TH_SYN) != 0
    if kind == TOK_TS:
        if size == 10:
            s.tsval = get32(p + 2)
            s.tsecr = get32(p + 6)
            s.opts |= OPT_TS
    elif kind == TOK_SACK:
        wire_sack_opt_(s, p, size)
    elif kind == TOK_MSS:
        if size == 4 and syn and get16(p + 2) != 0:
            s.mss = get16(p + 2)
            s.opts |= OPT_MSS
    elif kind == TOK_WSCALE:
        if size == 3 and syn:
            s.wscale = p[2] if p[2] <= TCP_MAX_WSCALE else TCP_MAX_WSCALE
            s.opts |= OPT_WSCALE
    elif kind == TOK_SACKOK:
        if size == 2 and syn:
            s.opts |= OPT_SACKOK
    elif kind == TOK_MD5 or kind == TOK_AO:
        wire_auth_opt_(s, kind, size, left)
    elif kind == TOK_FASTOPEN:
        wire_fastopen_opt_(s, p + 2, size - 2, 0)
    elif kind == TOK_EXP:
        if size >= 4 and get16(p + 2) == TOK_EXP_FASTOPEN:
            wire_fastopen_opt_(s, p + 4, size - 4, OPT_FO_EXP)


cdef inline bint wire_usual_syn_opts_(seg_t* s) noexcept nogil:
    # The options of a SYN in the order of Linux: MSS, SACK-permitted, timestamps, NOP, window scale. False, and nothing set: they are others.
    cdef const uint8_t* p = s.opt
    if s.opt_len != 20 or not s.flags & TH_SYN or get32(p + 4) != 0x0402080a or get32(p) >> 16 != 0x0204 or get32(p + 16) >> 8 != 0x010303:
        return False
    s.mss = get16(p + 2)
    if s.mss == 0:
        return False
    s.tsval = get32(p + 8)
    s.tsecr = get32(p + 12)
    s.wscale = p[19] if p[19] <= TCP_MAX_WSCALE else TCP_MAX_WSCALE
    s.opts = OPT_MSS | OPT_SACKOK | OPT_TS | OPT_WSCALE
    return True


cdef inline void wire_parse_opts(seg_t* s) noexcept nogil:
    # Facts C1, C2, I5. No option causes a drop but signatures (auth.pxd); the last of duplicates wins. Sets opts and what its bits vouch for.
    cdef const uint8_t* p = s.opt
    cdef const uint8_t* end = s.opt + s.opt_len
    cdef uint32_t size
    s.opts = 0
    s.mss = 0
    s.wscale = 0
    s.n_sack = 0
    s.fo_len = 0
    if s.opt_len == 12 and get32(p) == 0x0101080aULL:
        s.tsval = get32(p + 4)
        s.tsecr = get32(p + 8)
        s.opts = OPT_TS
        return
    if wire_usual_syn_opts_(s):
        return
    while p < end:
        if p[0] == TOK_EOL:
            return
        if p[0] == TOK_NOP:
            p += 1
            continue
        if end - p < 2:
            return
        size = p[1]
        if size < 2 or size > <uint32_t>(end - p):
            if end - p >= TCPOLEN_MD5:
                s.opts |= OPT_AUTH_BAD
            return
        wire_one_opt_(s, p, size, <uint32_t>(end - p))
        p += size


# ---- ICMP in

cdef inline int wire_parse_icmp(const seg_t* s, icmp_t* m) noexcept nogil:
    if s.l4_len < ICMP_HLEN:
        return DROP_PKT_TOO_SMALL
    m.type = s.l4[0]
    m.code = s.l4[1]
    m.check = get16(s.l4 + 2)
    m.rest = get32(s.l4 + 4)
    m.body = s.l4 + ICMP_HLEN
    m.body_len = s.l4_len - ICMP_HLEN
    return DROP_NONE


cdef inline bint wire_icmp_csum_ok(const seg_t* s) noexcept nogil:
    return csum_fold(csum_add(s.l4, s.l4_len, 0)) == 0


cdef inline int wire_parse_quote(const uint8_t* p, uint32_t n, quote_t* q) noexcept nogil:
    # The head of a packet of ours inside an ICMP error; its version, checksum and total length are not checked.
    if n < IP_HLEN:
        return DROP_PKT_TOO_SMALL
    if p[0] & 15 < 5:
        return DROP_IP_INHDR
    q.ip_hlen = <uint32_t>(p[0] & 15) * 4
    if q.ip_hlen > n:
        return DROP_PKT_TOO_SMALL
    q.tos = p[1]
    q.frag = get16(p + 6)
    q.proto = p[9]
    q.src = get32(p + 12)
    q.dst = get32(p + 16)
    q.l4 = p + q.ip_hlen
    q.l4_len = n - q.ip_hlen
    q.sport = 0
    q.dport = 0
    q.seq = 0
    if q.l4_len >= 8:
        q.sport = get16(q.l4)
        q.dport = get16(q.l4 + 2)
        q.seq = get32(q.l4 + 4)
    return DROP_NONE


# ---- IPv4 out

cdef inline void wire_ip_csum_set(uint8_t* p) noexcept nogil:
    put16(p + 10, 0)
    put16(p + 10, csum_fold(csum_ip_header(p, <uint32_t>(p[0] & 15) * 4)))


cdef inline uint32_t wire_put_ip_opts(uint8_t* p, uint32_t total_len, uint16_t id, bint df, uint8_t ttl, uint8_t proto,
                                      uint32_t src, uint32_t dst, uint8_t tos, const uint8_t* opts,
                                      uint32_t opt_len) noexcept nogil:
    # opt_len: multiple of 4, at most 40. total_len counts header, options and payload. Returns the header length.
    p[0] = <uint8_t>(0x40 | ((IP_HLEN + opt_len) >> 2))
    p[1] = tos
    put16(p + 2, total_len)
    put16(p + 4, id)
    put16(p + 6, IP_DF if df else 0)
    p[8] = ttl
    p[9] = proto
    put32(p + 12, src)
    put32(p + 16, dst)
    if opt_len != 0:
        memcpy(p + IP_HLEN, opts, opt_len)
    wire_ip_csum_set(p)
    return IP_HLEN + opt_len


cdef inline uint32_t wire_put_ip(uint8_t* p, uint32_t total_len, uint16_t id, bint df, uint8_t ttl, uint8_t proto,
                                 uint32_t src, uint32_t dst, uint8_t tos) noexcept nogil:
    return wire_put_ip_opts(p, total_len, id, df, ttl, proto, src, dst, tos, NULL, 0)


cdef inline void wire_ip_set_frag(uint8_t* p, uint32_t total_len, uint16_t frag) noexcept nogil:
    # Makes a written header the header of one fragment (flags and offset as on the wire).
    put16(p + 2, total_len)
    put16(p + 6, frag)
    wire_ip_csum_set(p)


# ---- TCP out

cdef inline uint32_t wire_put_tcp(uint8_t* p, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack,
                                  uint32_t flags, uint32_t wnd, uint32_t urg, uint32_t doff) noexcept nogil:
    # doff in bytes, options included; they are the caller's to write at p + 20. The checksum is left 0.
    put16(p, sport)
    put16(p + 2, dport)
    put32(p + 4, seq)
    put32(p + 8, ack)
    p[12] = <uint8_t>(doff << 2 | (flags >> 8 & 1))
    p[13] = <uint8_t>flags
    put16(p + 14, wnd)
    put16(p + 16, 0)
    put16(p + 18, urg)
    return TCP_HLEN


cdef inline void wire_put_opts(uint8_t* p, const uint8_t* opts, uint32_t n) noexcept nogil:
    # Options that stand ready; n is a multiple of 4, so that few words are cheaper than a call of memcpy.
    while n != 0:
        n -= 4
        memcpy(p + n, opts + n, 4)


cdef inline void wire_tcp_csum_set(uint8_t* tcp, uint32_t hlen, uint32_t src, uint32_t dst, const uint8_t* p0,
                                   uint32_t l0, const uint8_t* p1, uint32_t l1) noexcept nogil:
    # Full checksum over a header (options included) and a payload in up to two ranges.
    cdef uint64_t sum = csum_pseudo(src, dst, IPPROTO_TCP, hlen + l0 + l1)
    put16(tcp + 16, 0)
    sum = csum_ranges(p0, l0, p1, l1, csum_add(tcp, hlen, sum))
    put16(tcp + 16, csum_fold(sum))


cdef inline void wire_tcp_csum_partial(uint8_t* tcp, uint32_t src, uint32_t dst, uint32_t tcp_len) noexcept nogil:
    # The pseudo-header's sum: whoever takes the frame (CHECKSUM_PARTIAL, vnet_hdr) adds the rest.
    put16(tcp + 16, csum_fold_partial(csum_pseudo(src, dst, IPPROTO_TCP, tcp_len)))


# Options as Linux lays them out, always 32-bit aligned (facts C4). Each returns the bytes written.

cdef inline uint32_t wire_opt_mss(uint8_t* p, uint32_t mss) noexcept nogil:
    put32(p, 0x02040000 | (mss & 0xffff))
    return 4


cdef inline uint32_t wire_opt_ts(uint8_t* p, uint32_t tsval, uint32_t tsecr) noexcept nogil:
    put32(p, 0x0101080a)
    put32(p + 4, tsval)
    put32(p + 8, tsecr)
    return 12


cdef inline uint32_t wire_opt_sackperm_ts(uint8_t* p, uint32_t tsval, uint32_t tsecr) noexcept nogil:
    # SYN and SYN-ACK with both: SACK-permitted takes the place of the two NOPs.
    put32(p, 0x0402080a)
    put32(p + 4, tsval)
    put32(p + 8, tsecr)
    return 12


cdef inline uint32_t wire_opt_sackperm_nop(uint8_t* p) noexcept nogil:
    put32(p, 0x01010402)
    return 4


cdef inline uint32_t wire_opt_wscale_nop(uint8_t* p, uint32_t wscale) noexcept nogil:
    put32(p, 0x01030300 | (wscale & 0xff))
    return 4


cdef inline uint32_t wire_opt_sack(uint8_t* p, const sackblk_t* blocks, uint32_t n) noexcept nogil:
    # 1 <= n <= 4
    cdef uint32_t i
    put32(p, 0x01010500 | (2 + 8 * n))
    for i in range(n):
        put32(p + 4 + 8 * i, blocks[i].start)
        put32(p + 8 + 8 * i, blocks[i].end)
    return 4 + 8 * n


cdef inline uint32_t wire_opt_fastopen_len(uint32_t n, bint exp) noexcept nogil:
    # Bytes that wire_opt_fastopen will take, padding included.
    return (n + (4 if exp else 2) + 3) & ~<uint32_t>3


cdef inline uint32_t wire_opt_fastopen(uint8_t* p, const uint8_t* cookie, uint32_t n, bint exp) noexcept nogil:
    # Cookie of n bytes (0 is the request form), kind 34 or the experimental 254; padded with NOPs.
    cdef uint32_t head = 4 if exp else 2
    cdef uint32_t size = head + n
    p[0] = TOK_EXP if exp else TOK_FASTOPEN
    p[1] = <uint8_t>size
    if exp:
        put16(p + 2, TOK_EXP_FASTOPEN)
    if n != 0:
        memcpy(p + head, cookie, n)
    while size & 3:
        p[size] = TOK_NOP
        size += 1
    return size


# ---- ICMP out

cdef inline uint32_t wire_put_icmp(uint8_t* p, uint8_t type, uint8_t code, uint32_t rest, const uint8_t* body,
                                   uint32_t body_len) noexcept nogil:
    # Header, body and checksum; the body may already stand in its place. Returns the length of the message.
    p[0] = type
    p[1] = code
    put16(p + 2, 0)
    put32(p + 4, rest)
    if body_len != 0 and body != p + ICMP_HLEN:
        memmove(p + ICMP_HLEN, body, body_len)
    put16(p + 2, csum_fold(csum_add(p, ICMP_HLEN + body_len, 0)))
    return ICMP_HLEN + body_len
