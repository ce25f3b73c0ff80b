# Numbers that only we can make: initial sequence numbers, timestamp offsets, SYN cookies (layer above sock).
#
# RFC 6528 (ISN), RFC 4987 3.6 (SYN cookies), facts B10, H5, section F. One 64-bit hash of the 4-tuple gives both the ISN's
# constant part and the timestamp offset (facts 0.7), so neither is stored with a half-open request. A cookie puts the epoch
# (one minute) and an index into a table of four MSS values into the ISN; what else is needed later goes into the low six bits of
# our TSval, which the peer echoes.
# Invariant: a cookie that cookie_make gave out is accepted by cookie_check of any engine with the same key_cookie and wall
# clock, in the same or the next epoch, and never afterwards.
# Callers: request, fastopen, connect (ISN only).

from ustack.core.cksum cimport ustack_be16, ustack_be32
from ustack.core.records cimport RQ_ECN_OK, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_TS_OFF, RQ_WSCALE_OK, listener_t, req_t
from ustack.core.siphash cimport siphash_u32x4, siphash_u64_u32
from ustack.core.access cimport grp_at, wall_ns
from ustack.core.state cimport engine_t
from ustack.core.steer cimport steer_cookies_recent
from ustack.core.types cimport NS_PER_SEC, OPT_TS, ns_t, seg_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    COOKIE_BITS = 24
    COOKIE_MASK = 0xffffff
    COOKIE_MAX_AGE = 2          # epochs: the current and the one before
    COOKIE_MSS = 4
    COOKIE_PERIOD_S = 60
    COOKIE_VALID_S = 120
    TS_OPT_BITS = 6             # low bits of the TSval of a cookie SYN-ACK
    TS_OPT_WSCALE_MASK = 0xf
    TS_OPT_SACK = 0x10
    TS_OPT_ECN = 0x20

cdef extern from *:
    """
    static const unsigned short ustack_msstab[4] = { 536, 1300, 1440, 1460 };
    """
    const uint16_t msstab "ustack_msstab"[4]


# ---- ISN and timestamp offset --------------------------------------------------------------------------------------------------
cdef inline uint64_t tuple_secret(engine_t* e, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport) noexcept nogil:
    return siphash_u64_u32(e.key_isn[0], e.key_isn[1], laddr | (<uint64_t>faddr << 32), <uint32_t>lport << 16 | fport)


cdef inline uint32_t secret_isn(engine_t* e, uint64_t h) noexcept nogil:
    # Grows by one every 64 ns.
    return <uint32_t>h + <uint32_t>(wall_ns(e) >> 6)


cdef inline uint32_t secret_ts_off(engine_t* e, uint64_t h) noexcept nogil:
    return <uint32_t>(h >> 32) if e.cfg.tcp_timestamps == 1 else 0


# ---- when cookies are believed (facts F6) ----------------------------------------------------------------------------------------
cdef inline ns_t* overflow_stamp_(engine_t* e, listener_t* l) noexcept nogil:
    # Shared by a reuseport group: the ACK may be given to another member than the SYN.
    if l.group != 0:
        return &grp_at(e, l.group).last_overflow
    return &l.last_overflow


cdef inline void synq_overflow(engine_t* e, listener_t* l) noexcept nogil:
    # A cookie is being issued.
    cdef ns_t* stamp = overflow_stamp_(e, l)
    if stamp[0] < 0 or e.now > stamp[0] + NS_PER_SEC:
        stamp[0] = e.now
        e.cookies_stamp = e.now


cdef inline bint synq_recent_overflow(engine_t* e, listener_t* l) noexcept nogil:
    cdef ns_t stamp = overflow_stamp_(e, l)[0]
    if stamp >= 0 and e.now <= stamp + COOKIE_VALID_S * NS_PER_SEC:
        return True
    return e.n_shards != 0 and steer_cookies_recent(e, COOKIE_VALID_S * NS_PER_SEC)


# ---- the cookie ------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t cookie_epoch(engine_t* e) noexcept nogil:
    return <uint32_t>((wall_ns(e) + <uint64_t>e.cookie_phase) // (COOKIE_PERIOD_S * <uint64_t>NS_PER_SEC))


cdef inline uint32_t cookie_hash_(engine_t* e, const seg_t* s, uint32_t count, int key) noexcept nogil:
    # The words as Linux feeds them: address and port fields as a little-endian machine loads them.
    cdef uint32_t ports = (<uint32_t>ustack_be16(s.sport) << 16) + ustack_be16(s.dport)
    return <uint32_t>siphash_u32x4(e.key_cookie[key][0], e.key_cookie[key][1], ustack_be32(s.src), ustack_be32(s.dst),
                                   ports, count)


cdef inline uint32_t cookie_make(engine_t* e, const seg_t* s, uint16_t* mss) noexcept nogil:
    # The ISN for a SYN; *mss is lowered to the value that the cookie can carry (facts F1, F2).
    cdef uint32_t count = cookie_epoch(e)
    cdef uint32_t i = COOKIE_MSS - 1
    while i != 0 and mss[0] < msstab[i]:
        i -= 1
    mss[0] = msstab[i]
    return (cookie_hash_(e, s, 0, 0) + s.seq + (count << COOKIE_BITS)
            + ((cookie_hash_(e, s, count, 1) + i) & COOKIE_MASK))


cdef inline uint16_t cookie_check(engine_t* e, const seg_t* s) noexcept nogil:
    # The MSS in the cookie that an ACK returns, 0 if it is none of ours or too old (facts F3).
    cdef uint32_t count = cookie_epoch(e)
    cdef uint32_t cookie = s.ack - 1 - (cookie_hash_(e, s, 0, 0) + (s.seq - 1))
    cdef uint32_t age = (count - (cookie >> COOKIE_BITS)) & (0xffffffffUL >> COOKIE_BITS)
    cdef uint32_t i
    if age >= COOKIE_MAX_AGE:
        return 0
    i = (cookie - cookie_hash_(e, s, count - age, 1)) & COOKIE_MASK
    return msstab[i] if i < COOKIE_MSS else 0


# ---- options in the timestamp (facts F4, F5) ---------------------------------------------------------------------------------------
cdef inline uint32_t cookie_tsval(engine_t* e, const req_t* rq) noexcept nogil:
    # TSval without offset: the latest time not after now whose low bits hold the options.
    cdef uint64_t now_ms = wall_ns(e) // 1000000
    cdef uint64_t ts = (now_ms >> TS_OPT_BITS) << TS_OPT_BITS
    ts |= (rq.wscales >> 4) if rq.flags & RQ_WSCALE_OK else TS_OPT_WSCALE_MASK
    if rq.flags & RQ_SACK_OK:
        ts |= TS_OPT_SACK
    if rq.flags & RQ_ECN_OK:
        ts |= TS_OPT_ECN
    if ts > now_ms:
        ts -= 1 << TS_OPT_BITS
    return <uint32_t>ts


cdef inline bint cookie_options(engine_t* e, const seg_t* s, uint32_t ts_off, uint8_t* flags, uint8_t* snd_wscale) noexcept nogil:
    # What the echoed TSval says was agreed, as RQ_* flags. False: an option that is switched off by now; the ACK is refused.
    cdef uint32_t echo
    flags[0] = 0
    snd_wscale[0] = 0
    if not s.opts & OPT_TS or not e.cfg.tcp_timestamps:
        return True
    echo = s.tsecr - ts_off if s.tsecr != 0 else 0
    flags[0] = RQ_TSTAMP_OK | RQ_TS_OFF if s.tsecr != 0 and e.cfg.tcp_timestamps == 1 else RQ_TSTAMP_OK
    if echo & TS_OPT_ECN:
        flags[0] |= RQ_ECN_OK
    if echo & TS_OPT_SACK:
        flags[0] |= RQ_SACK_OK
        if not e.cfg.tcp_sack:
            return False
    if echo & TS_OPT_WSCALE_MASK == TS_OPT_WSCALE_MASK:
        return True
    flags[0] |= RQ_WSCALE_OK
    snd_wscale[0] = echo & TS_OPT_WSCALE_MASK
    return e.cfg.tcp_window_scaling != 0
