# TCP Fast Open, server side (layer above child and ack, below input).
#
# RFC 7413; facts section I. Linux: tcp_try_fastopen, tcp_fastopen_queue_check, tcp_fastopen_create_child, the fastopen cases of
# tcp_check_req, tcp_rtx_synack. A valid cookie turns the SYN itself into a child that is queued for accept() at once; what the handshake
# still needs of the request is kept in an extension record (tcb.fastopen_rsk) until the child leaves SYN_RECV (sock.fastopen_remove).
# Invariant: l.fo_qlen counts the children in SYN_RECV plus the slots held after a RST.
# Callers: request (SYN), input (segments for a child in SYN_RECV), timers (SYN-ACK repetition), user and sockopt (keys).

from libc.string cimport memcmp, memcpy

from ustack.core.ack cimport tcp_init_transfer
from ustack.core.child cimport req_timeout, tcp_create_child
from ustack.core.ipout cimport ipout_ack_reply, ipout_rst_reply
from ustack.core.paws cimport tcp_ack_rate_limited, tcp_in_window, tcp_oow_rate_limited, tcp_paws_reject
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.rcvq cimport rcv_queue_syn_data
from ustack.core.records cimport RQ_ECN_OK, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_WSCALE_OK, listener_t, req_t, reqext_t
from ustack.core.route cimport route_result_t, route_t
from ustack.core.seqno cimport i64_min, u32_min
from ustack.core.siphash cimport siphash, siphash_u64x1
from ustack.core.access cimport ext_at, lst_at, sk_fport, sk_los, sk_lport, sk_opt, tcp_clock_ms, tcp_clock_s
from ustack.core.sock cimport fastopen_remove, tcp_reset_xmit_timer
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpAttemptFails, MIB_TcpExtPAWSEstab, MIB_TcpExtTCPACKSkippedChallenge, MIB_TcpExtTCPACKSkippedSynRecv,
    MIB_TcpExtTCPChallengeACK, MIB_TcpExtTCPFastOpenCookieReqd, MIB_TcpExtTCPFastOpenListenOverflow, MIB_TcpExtTCPFastOpenPassive,
    MIB_TcpExtTCPFastOpenPassiveAltKey, MIB_TcpExtTCPFastOpenPassiveFail, MIB_TcpExtTCPSynRetrans, MIB_TcpRetransSegs, mib_inc,
)
from ustack.core.synack cimport req_rwnd, synack_emit, synack_ip_, synack_route, synack_t
from ustack.core.tcb cimport ICSK_TIME_RETRANS, TCP_ECN_OK, TCP_RTO_MAX_DEFAULT_MS, tcb_t
from ustack.core.types cimport (
    NS_PER_MS, NS_PER_SEC, OPT_FASTOPEN, OPT_FO_EXP, OPT_TS, TH_ACK, TH_RST, TH_SYN, idx_t, int16_t, int64_t, ns_t, seg_t,
    uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.wire cimport put32

cdef enum:
    TFO_SERVER_ENABLE = 2
    TFO_SERVER_COOKIE_NOT_REQD = 0x200
    TFO_COOKIE_LEN = 8
    # what fastopen_check_req decides
    FO_DISCARD = 0              # drop the segment
    FO_PASS = 1                 # go on with it in the child
    FO_RESET = 2                # a valid RST: the slot is released, the caller does tcp_reset

cdef struct foc_t:              # Fast Open option of a SYN, then of its SYN-ACK
    int16_t len                 # -1 = none, 0 = request
    uint8_t exp
    uint8_t val[16]


# ---- keys and cookies (facts I3, I4) ---------------------------------------------------------------------------------------------
cdef inline void fastopen_init_key_once(engine_t* e) noexcept nogil:
    # A random key for the stack, at the first use of TCP_FASTOPEN, unless one was set.
    cdef int i
    cdef uint64_t half
    if e.fo_key_set:
        return
    for i in range(2):
        half = siphash_u64x1(e.key_cookie[0][0], e.key_cookie[1][1], 0x74666f6b6579ULL + i)
        memcpy(&e.fo_key[8 * i], &half, 8)
    e.fo_key_set = 1


cdef inline uint64_t key_half_(const uint8_t* p) noexcept nogil:
    return (<uint64_t>p[7] << 56 | <uint64_t>p[6] << 48 | <uint64_t>p[5] << 40 | <uint64_t>p[4] << 32
            | <uint64_t>p[3] << 24 | <uint64_t>p[2] << 16 | <uint64_t>p[1] << 8 | p[0])


cdef inline void fastopen_cookie(const uint8_t* key, uint32_t client, uint32_t server, uint8_t* out) noexcept nogil:
    cdef uint8_t addrs[8]
    cdef uint64_t h
    cdef int i
    put32(addrs, client)
    put32(addrs + 4, server)
    h = siphash(key_half_(key), key_half_(key + 8), addrs, 8)
    for i in range(8):
        out[i] = <uint8_t>(h >> (8 * i))


cdef inline const uint8_t* fastopen_key_(engine_t* e, const listener_t* l, bint backup) noexcept nogil:
    # The listener's own keys come before the stack's; NULL = there is none.
    if l.fo_key_set:
        if not backup:
            return &l.fo_key[0]
        if not l.fo_has_backup:
            return NULL
        return &l.fo_backup[0]
    if not e.fo_key_set or (backup and not e.fo_has_backup):
        return NULL
    return &e.fo_backup[0] if backup else &e.fo_key[0]


cdef inline int fastopen_match_(engine_t* e, const listener_t* l, const seg_t* s, const foc_t* got, foc_t* primary) noexcept nogil:
    # 1 or 2: the cookie is of the primary or the backup key; 0: of none. *primary, none so far, becomes what the client should have.
    cdef uint8_t other[16]
    cdef const uint8_t* key = fastopen_key_(e, l, False)
    if key == NULL:
        return 0
    primary.len = TFO_COOKIE_LEN
    fastopen_cookie(key, s.src, s.dst, primary.val)
    if got.len == TFO_COOKIE_LEN and memcmp(primary.val, got.val, TFO_COOKIE_LEN) == 0:
        return 1
    key = fastopen_key_(e, l, True)
    if key == NULL or got.len != TFO_COOKIE_LEN:
        return 0
    fastopen_cookie(key, s.src, s.dst, other)
    return 2 if memcmp(other, got.val, TFO_COOKIE_LEN) == 0 else 0


cdef inline void fastopen_option(const seg_t* s, foc_t* foc) noexcept nogil:
    # The option as the SYN carried it (s.opts parsed).
    foc.len = -1
    foc.exp = 0
    if s.opts & OPT_FASTOPEN:
        foc.len = s.fo_len
        foc.exp = (s.opts & OPT_FO_EXP) != 0
        if s.fo_len != 0:
            memcpy(foc.val, s.fo_cookie, s.fo_len)


# ---- the child -------------------------------------------------------------------------------------------------------------------
cdef inline bint fastopen_queue_check_(engine_t* e, listener_t* l) noexcept nogil:
    # Room for one more child in SYN_RECV? The oldest held slot is freed when its time is over (facts I6.2).
    cdef idx_t x
    if l.fo_max_qlen == 0:
        return False
    if l.fo_qlen < <int>l.fo_max_qlen:
        return True
    x = l.fo_rskq_head
    if x == 0 or ext_at(e, x).expires > e.now:
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenListenOverflow)
        return False
    l.fo_rskq_head = ext_at(e, x).next
    if l.fo_rskq_head == 0:
        l.fo_rskq_tail = 0
    l.fo_qlen -= 1
    pool_free(&e.ext, x)
    return True


cdef inline tcb_t* fastopen_create_child_(engine_t* e, tcb_t* lsk, req_t* rq, const seg_t* s, int syn_tos) noexcept nogil:
    # tcp_fastopen_create_child: NULL if there is no room for it.
    cdef idx_t x = pool_alloc(&e.ext)
    cdef reqext_t* ext
    cdef tcb_t* c
    if x == 0:
        return NULL
    c = tcp_create_child(e, lsk, rq, 0, s, syn_tos, False)
    if c == NULL:
        pool_free(&e.ext, x)
        return NULL
    ext = ext_at(e, x)
    ext.rwnd = req_rwnd(e, rq)
    ext.ts_recent = rq.ts_recent
    ext.synack_at = e.now
    c.fastopen_rsk = x
    sk_opt(e, c).fo_listener = lsk.listener
    sk_opt(e, c).is_tfo_child = 1
    lst_at(e, lsk.listener).fo_qlen += 1
    c.snd_wnd = s.wnd                   # the window of a SYN is never scaled
    c.max_window = c.snd_wnd
    tcp_reset_xmit_timer(e, c, ICSK_TIME_RETRANS, req_timeout(e, rq, 0))
    tcp_init_transfer(e, c, True)
    rcv_queue_syn_data(e, c, s)
    ext.rcv_nxt = c.rcv_nxt
    c.rcv_wup = c.rcv_nxt
    return c


cdef inline tcb_t* fastopen_try(engine_t* e, tcb_t* lsk, req_t* rq, const seg_t* s, const route_t* rt, int syn_tos,
                                foc_t* foc) noexcept nogil:
    # tcp_try_fastopen (facts I6): the child if the SYN is accepted. *foc: the SYN's option, becomes that of the SYN-ACK.
    cdef listener_t* l = lst_at(e, lsk.listener)
    cdef int64_t mode = e.cfg.tcp_fastopen
    cdef tcb_t* c
    cdef foc_t fresh
    cdef int match = 0
    cdef bint free = (mode & TFO_SERVER_COOKIE_NOT_REQD or lsk.fastopen_no_cookie
                      or (rt != NULL and rt.fastopen_no_cookie))
    fresh.len = -1
    if foc.len == 0:
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenCookieReqd)
    if not mode & TFO_SERVER_ENABLE or (s.end_seq == s.seq + 1 and foc.len < 0) or not fastopen_queue_check_(e, l):
        foc.len = -1
        return NULL
    if not free:
        match = fastopen_match_(e, l, s, foc, &fresh)
        if foc.len < 0:
            fresh.len = -1
        elif foc.len > 0 and match == 0:
            mib_inc(&e.stats, MIB_TcpExtTCPFastOpenPassiveFail)
    if free or match != 0:
        c = fastopen_create_child_(e, lsk, rq, s, syn_tos)
        if c != NULL:
            mib_inc(&e.stats, MIB_TcpExtTCPFastOpenPassive)
            if match == 2:
                mib_inc(&e.stats, MIB_TcpExtTCPFastOpenPassiveAltKey)
                fresh.exp = foc.exp
                foc[0] = fresh
            else:
                foc.len = -1
            return c
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenPassiveFail)
    fresh.exp = foc.exp
    foc[0] = fresh
    return NULL


# ---- the option in a SYN-ACK ---------------------------------------------------------------------------------------------------------
cdef inline void synack_fastopen(synack_t* a, const foc_t* foc) noexcept nogil:
    # *a has none so far.
    a.fo_len = foc.len
    a.fo_exp = foc.exp
    a.fo_cookie = &foc.val[0]


# ---- the child's SYN-ACK -----------------------------------------------------------------------------------------------------------
cdef inline int fastopen_synack(engine_t* e, tcb_t* c, const foc_t* foc) noexcept nogil:
    # 0 or -1. foc NULL: no Fast Open option (a repetition).
    cdef reqext_t* ext = ext_at(e, c.fastopen_rsk)
    cdef route_result_t rt
    cdef synack_t a
    if synack_route(e, c.en.laddr, c.en.faddr, &rt) != 0:
        return -1
    synack_ip_(e, c, &rt, &a)
    a.flow.laddr = c.en.laddr
    a.flow.faddr = c.en.faddr
    a.flow.lport = sk_lport(c)
    a.flow.fport = sk_fport(c)
    a.seq = c.iss
    a.ack = ext.rcv_nxt
    a.wnd = <uint16_t>u32_min(ext.rwnd, 65535)
    a.wscale = c.rcv_wscale
    a.tsval = tcp_clock_ms(e) + c.ts_offset
    a.tsecr = ext.ts_recent
    a.flags = ((RQ_TSTAMP_OK if c.tstamp_ok else 0) | (RQ_SACK_OK if c.sack_ok else 0)
               | (RQ_WSCALE_OK if c.wscale_ok else 0) | (RQ_ECN_OK if c.ecn_flags & TCP_ECN_OK else 0))
    if foc != NULL:
        synack_fastopen(&a, foc)
    return synack_emit(e, &a)


cdef inline int fastopen_rtx_synack(engine_t* e, tcb_t* c) noexcept nogil:
    # tcp_rtx_synack for a child in SYN_RECV.
    if fastopen_synack(e, c, NULL) != 0:
        return -1
    mib_inc(&e.stats, MIB_TcpRetransSegs)
    mib_inc(&e.stats, MIB_TcpExtTCPSynRetrans)
    sk_los(e, c).total_retrans += 1
    ext_at(e, c.fastopen_rsk).num_retrans += 1
    return 0


# ---- segments for a child in SYN_RECV ------------------------------------------------------------------------------------------------
cdef inline void fastopen_send_ack_(engine_t* e, tcb_t* c, const reqext_t* ext, const seg_t* s) noexcept nogil:
    ipout_ack_reply(e, c.en.laddr, c.en.faddr, sk_lport(c), sk_fport(c), c.snd_nxt, ext.rcv_nxt,
                    u32_min(ext.rwnd, 65535) >> c.rcv_wscale, tcp_clock_ms(e) + c.ts_offset, ext.ts_recent, s.tos)


cdef inline int fastopen_check_req(engine_t* e, tcb_t* c, seg_t* s) noexcept nogil:
    # tcp_check_req for the child itself: FO_*. The ACK number is the child's own matter. The segment's options are parsed.
    cdef reqext_t* ext = ext_at(e, c.fastopen_rsk)
    cdef uint32_t flg = s.flags & (TH_RST | TH_SYN | TH_ACK)
    cdef ns_t waited = i64_min(NS_PER_SEC << (ext.num_timeout if ext.num_timeout < 24 else 24), <ns_t>TCP_RTO_MAX_DEFAULT_MS * NS_PER_MS)
    cdef bint paws = False
    if s.opts & OPT_TS and e.cfg.tcp_timestamps:
        paws = tcp_paws_reject(e, ext.ts_recent, tcp_clock_s(e) - waited // NS_PER_SEC, s.tsval, (s.flags & TH_RST) != 0)
    if s.seq == c.irs and flg == TH_SYN and not paws:
        if not tcp_oow_rate_limited(e, s, MIB_TcpExtTCPACKSkippedSynRecv, &ext.last_oow_ack):
            fastopen_rtx_synack(e, c)
        return FO_DISCARD
    if paws or not tcp_in_window(s.seq, s.end_seq, ext.rcv_nxt, ext.rcv_nxt + u32_min(ext.rwnd, 65535)):
        if not flg & TH_RST and not tcp_oow_rate_limited(e, s, MIB_TcpExtTCPACKSkippedSynRecv, &ext.last_oow_ack):
            fastopen_send_ack_(e, c, ext, s)
        if paws:
            mib_inc(&e.stats, MIB_TcpExtPAWSEstab)
        return FO_DISCARD
    if s.seq == c.irs:
        flg &= ~<uint32_t>TH_SYN
    if flg & TH_RST and s.seq != ext.rcv_nxt:
        if not tcp_ack_rate_limited(e, MIB_TcpExtTCPACKSkippedChallenge, &ext.last_oow_ack):
            mib_inc(&e.stats, MIB_TcpExtTCPChallengeACK)
            fastopen_send_ack_(e, c, ext, s)
        return FO_DISCARD
    if flg & (TH_RST | TH_SYN):
        mib_inc(&e.stats, MIB_TcpAttemptFails)
        if not flg & TH_RST:
            ipout_rst_reply(e, s)
            return FO_DISCARD
        fastopen_remove(e, c, True)
        return FO_RESET
    return FO_PASS if flg & TH_ACK else FO_DISCARD


cdef inline int64_t fastopen_synack_rtt_us(engine_t* e, const tcb_t* c) noexcept nogil:
    # Time from the only SYN-ACK to now; -1 if c is no Fast Open child in SYN_RECV or its SYN-ACK was repeated.
    cdef const reqext_t* ext
    if c.fastopen_rsk == 0:
        return -1
    ext = ext_at(e, c.fastopen_rsk)
    return (e.now - ext.synack_at) // 1000 if ext.num_retrans == 0 else -1
