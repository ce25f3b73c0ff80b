# The socket that a finished handshake makes (layer above mss and rcvwin, below input).
#
# Facts A12, A16, B8, C17, C18, D11, E1.10, E8, L6. Linux: tcp_create_openreq_child, inet_csk_clone_lock, tcp_v4_syn_recv_sock,
# tcp_ca_openreq_child. The child takes its options from the listener at this moment, its connection from the request, and the request's
# place in the hash table, so that the 4-tuple is never absent. It is in SYN_RECV; the segment that made it is processed next.
# The request itself, its counters and the accept queue are the caller's matter.
# Callers: request (third ACK, cookie), fastopen (SYN).

from ustack.core.acceptq cimport acceptq_is_full, listen_drop, listen_overflow
from ustack.core.bind cimport bind_inherit
from ustack.core.cc cimport cc_inherit
from ustack.core.ehash cimport ehash_insert, ehash_replace
from ustack.core.mss cimport tcp_mss_clamp, tcp_sync_mss
from ustack.core.rcvwin cimport tcp_initialize_rcv_mss
from ustack.core.pool cimport pool_alloc
from ustack.core.records cimport RQ_ECN_OK, RQ_NO_TIMER, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_WSCALE_OK, req_t, reqext_t
from ustack.core.route cimport route_mtu, sk_advmss, sk_route, sk_rt
from ustack.core.seqno cimport i64_min, u32_min
from ustack.core.siphash cimport prng_u64
from ustack.core.access cimport ext_at, lst_at, ref_of, sk_los, sk_opt, sk_opt_inherit, sk_set_cc, tcp_clock_ms, tcp_clock_s, wall_ns
from ustack.core.sock cimport sk_alloc, sk_free, sk_reset_keepalive, sk_set_state
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_IpOutNoRoutes, MIB_TcpAttemptFails, MIB_TcpPassiveOpens, mib_inc
from ustack.core.synack cimport req_rwnd, req_ts_off, req_window_clamp
from ustack.core.tcb cimport (
    SF_BROADCAST, SF_DEBUG, SF_DONTROUTE, SF_FREEBIND, SF_INQ, SF_IN_EHASH, SF_KEEPOPEN, SF_LINGER, SF_NO_CHECK_TX,
    SF_OOO_INLINE, SF_RECVERR, SF_RECVTOS, SF_REUSEADDR, SF_REUSEPORT, SF_RXSTAMP, SF_SAVE_SYN, SF_TIMESTAMP,
    SF_TIMESTAMPING, SF_TIMESTAMPNS, SF_TRANSPARENT, SF_URGINLINE, SF_ZEROCOPY, SOCK_BINDPORT_LOCK, TCP_ECN_OK,
    TCP_RTO_MAX_DEFAULT_MS, tcb_t,
)
from ustack.core.types cimport (
    KIND_REQ, KIND_TCB, NS_PER_MS, NS_PER_SEC, TCP_SYN_RECV, idx_t, ns_t, seg_t, uint8_t, uint16_t, uint32_t,
    unlikely,
)

cdef enum:
    TCP_HEADER_LEN = 20
    TCPOLEN_TS_ALIGNED = 12
    TCP_MSS_DEFAULT = 536
    SF_INHERITED = (SF_REUSEADDR | SF_REUSEPORT | SF_KEEPOPEN | SF_LINGER | SF_URGINLINE | SF_FREEBIND | SF_RECVERR
                    | SF_TRANSPARENT | SF_SAVE_SYN | SF_OOO_INLINE | SF_TIMESTAMPING | SF_RXSTAMP | SF_INQ | SF_ZEROCOPY
                    | SF_NO_CHECK_TX | SF_BROADCAST | SF_DONTROUTE | SF_DEBUG | SF_RECVTOS | SF_TIMESTAMP | SF_TIMESTAMPNS)


# ---- when the request's first SYN-ACK was sent -----------------------------------------------------------------------------------
cdef inline ns_t req_timeout(engine_t* e, const req_t* rq, uint32_t n) noexcept nogil:
    # Length of the n-th wait for the third ACK (facts D1): 1 s doubled n times, at most 120 s, whatever tcp_rto_max_ms says.
    cdef ns_t first = NS_PER_SEC
    if unlikely(rq.ext != 0) and ext_at(e, rq.ext).hook_rto_ms != 0:
        first = <ns_t>ext_at(e, rq.ext).hook_rto_ms * NS_PER_MS
    return i64_min(first << (n if n < 24 else 24), <ns_t>TCP_RTO_MAX_DEFAULT_MS * NS_PER_MS)


cdef inline ns_t req_sent_at(engine_t* e, const req_t* rq) noexcept nogil:
    # The request keeps no time: its timer's deadline less the waits so far tells it, until a duplicate SYN restarts the timer. With
    # timestamps the first TSval tells it to the millisecond, where a later one has been sent.
    cdef uint32_t i
    cdef ns_t t = rq.timer.deadline
    cdef uint32_t ago_ms
    if unlikely(rq.ext != 0) and ext_at(e, rq.ext).hook_timer:
        return ext_at(e, rq.ext).synack_at
    if rq.flags & RQ_TSTAMP_OK and rq.tsval_span != 0:
        ago_ms = tcp_clock_ms(e) - (rq.tsval_first - req_ts_off(e, rq))
        return <ns_t>(wall_ns(e) // 1000000 - ago_ms) * NS_PER_MS - e.wall_offset
    for i in range(<uint32_t>rq.num_timeout + 1):
        t -= req_timeout(e, rq, i)
    return t


# ---- the parts of a child ----------------------------------------------------------------------------------------------------------
cdef inline void child_inherit_options_(engine_t* e, tcb_t* c, const tcb_t* lsk) noexcept nogil:
    # What the user set on the listener (facts A12).
    c.sflags |= lsk.sflags & <uint32_t>SF_INHERITED
    c.userlocks = lsk.userlocks & ~SOCK_BINDPORT_LOCK
    c.nonagle = lsk.nonagle
    c.rcvbuf = lsk.rcvbuf
    c.sndbuf = lsk.sndbuf
    c.tos = lsk.tos
    c.ack_pingpong = lsk.ack_pingpong       # TCP_QUICKACK
    c.ttl = lsk.ttl
    c.pmtudisc = lsk.pmtudisc
    sk_set_cc(e, c, lsk.cc)
    c.cc_user = lsk.cc_user
    c.rto_min_us = lsk.rto_min_us
    c.delack_max_us = lsk.delack_max_us
    c.shutdown = lsk.shutdown
    c.scaling_ratio = lsk.scaling_ratio
    sk_opt_inherit(e, c, lsk)


cdef inline void child_sequence_(engine_t* e, tcb_t* c, const req_t* rq, const seg_t* s) noexcept nogil:
    # tcp_create_openreq_child: both sides' sequence variables, windows, options agreed.
    c.irs = rq.risn
    c.iss = rq.isn
    c.rcv_wup = rq.risn + 1
    c.copied_seq = rq.risn + 1
    c.rcv_nxt = rq.risn + 1
    c.rcv_ring_span_end = rq.risn + 1
    c.segs_in = 1
    c.snd_una = rq.isn + 1
    c.snd_nxt = rq.isn + 1
    c.snd_sml = rq.isn + 1
    c.snd_up = rq.isn + 1
    c.write_seq = rq.isn + 1
    c.pushed_seq = rq.isn + 1
    c.snd_wl1 = rq.risn
    c.lrcvtime = e.now
    c.lsndtime = e.now
    c.tstamp_ok = (rq.flags & RQ_TSTAMP_OK) != 0
    c.sack_ok = (rq.flags & RQ_SACK_OK) != 0
    c.wscale_ok = (rq.flags & RQ_WSCALE_OK) != 0
    c.rcv_wnd = req_rwnd(e, rq)
    c.rcv_ssthresh = c.rcv_wnd
    c.window_clamp = req_window_clamp(e, rq)
    if c.wscale_ok:
        c.snd_wscale = rq.wscales >> 4
        c.rcv_wscale = rq.wscales & 15
    c.snd_wnd = s.wnd << c.snd_wscale
    c.max_window = c.snd_wnd
    c.tcp_header_len = TCP_HEADER_LEN
    if c.tstamp_ok:
        c.ts_recent = rq.ts_recent
        c.ts_recent_stamp = tcp_clock_s(e)
        c.ts_offset = req_ts_off(e, rq)
        c.tcp_header_len += TCPOLEN_TS_ALIGNED
    if s.doff + s.len >= TCP_MSS_DEFAULT + <uint32_t>c.tcp_header_len:
        c.last_seg_size = <uint16_t>u32_min(s.doff + s.len - c.tcp_header_len, 65535)
    c.mss_clamp = rq.mss
    c.ecn_flags = TCP_ECN_OK if rq.flags & RQ_ECN_OK else 0


cdef inline void child_retransmits_(engine_t* e, tcb_t* c, const req_t* rq) noexcept nogil:
    # Facts D11: more than one lost SYN-ACK costs the initial window, unless the timestamp shows that none was lost.
    if rq.num_retrans != 0:
        sk_los(e, c).total_retrans = rq.num_retrans
    if rq.num_timeout == 0 or rq.flags & RQ_NO_TIMER:
        return
    sk_los(e, c).total_rto = rq.num_timeout
    c.undo_marker = rq.isn
    c.retrans_stamp = req_sent_at(e, rq)
    sk_los(e, c).total_rto_time_ms = <uint32_t>((e.now - c.retrans_stamp) // NS_PER_MS)
    sk_los(e, c).total_rto_recoveries = 1


cdef inline int child_route_(engine_t* e, tcb_t* c, tcb_t* lsk, int syn_tos) noexcept nogil:
    # Route, congestion control, MSS. 0 or -errno.
    cdef int rc = sk_route(e, c)
    if unlikely(rc != 0):
        mib_inc(&e.stats, MIB_IpOutNoRoutes)
        return rc
    if syn_tos >= 0 and e.cfg.tcp_reflect_tos:
        c.tos = <uint8_t>syn_tos
    c.tos &= 0xfc                       # ECT is set again when the connection uses ECN
    c.inet_id = <uint16_t>prng_u64(&e.prng)
    cc_inherit(e, c, sk_rt(e, c).cc if sk_rt(e, c) != NULL else 0)
    tcp_sync_mss(e, c, route_mtu(e, c))
    c.advmss = tcp_mss_clamp(lsk, sk_advmss(e, c))
    tcp_initialize_rcv_mss(c)
    return 0


cdef inline bint child_hash_(engine_t* e, tcb_t* c, idx_t ri) noexcept nogil:
    # Into the request's place, or (cookie, Fast Open) into the table if the 4-tuple is free.
    cdef bint done
    if ri != 0:
        done = ehash_replace(&e.ehash, ref_of(KIND_REQ, ri), ref_of(KIND_TCB, c.idx))
    else:
        done = ehash_insert(&e.ehash, ref_of(KIND_TCB, c.idx))
    if done:
        c.sflags |= SF_IN_EHASH
    return done


cdef inline void child_ip_options_(engine_t* e, tcb_t* c, const req_t* rq) noexcept nogil:
    # What the SYN-ACK echoed of the SYN's IP options stands in every packet of the connection. Without memory: none.
    cdef reqext_t* x
    cdef reqext_t* y
    if rq.ext == 0 or ext_at(e, rq.ext).ipopt_len == 0:
        return
    sk_opt(e, c).ip_opt = pool_alloc(&e.ext)
    if c.opt.ip_opt == 0:
        return
    x = ext_at(e, rq.ext)
    y = ext_at(e, c.opt.ip_opt)
    y.ipopt = x.ipopt
    y.ipopt_len = x.ipopt_len
    y.ipopt_time = x.ipopt_time
    c.ext_hdr_len = x.ipopt_len


cdef inline tcb_t* tcp_create_child(engine_t* e, tcb_t* lsk, req_t* rq, idx_t ri, const seg_t* s, int syn_tos, bint force) noexcept nogil:
    # tcp_v4_syn_recv_sock: a child of lsk in SYN_RECV, hashed, owning the port; NULL if the accept queue is full or something is
    # short, which is then counted. ri: the request's index, 0 if it is in no table. syn_tos: of the SYN, -1 = do not reflect. force: a hook
    # makes room in a full accept queue.
    cdef idx_t li = lsk.listener
    cdef tcb_t* c
    if acceptq_is_full(lst_at(e, li)) and not force:
        listen_overflow(e, li)
        return NULL
    c = sk_alloc(e)
    if c == NULL:
        listen_drop(e, li)
        return NULL
    child_inherit_options_(e, c, lsk)
    c.en = rq.en
    c.rcv_saddr = rq.en.laddr
    sk_set_state(e, c, TCP_SYN_RECV)
    child_sequence_(e, c, rq, s)
    child_retransmits_(e, c, rq)
    child_ip_options_(e, c, rq)
    mib_inc(&e.stats, MIB_TcpPassiveOpens)
    if child_route_(e, c, lsk, syn_tos) != 0 or bind_inherit(e, c, lsk) != 0:
        mib_inc(&e.stats, MIB_TcpAttemptFails)
        sk_free(e, c)
        listen_drop(e, li)
        return NULL
    if not child_hash_(e, c, ri):
        sk_free(e, c)
        listen_drop(e, li)
        return NULL
    if unlikely(rq.ext != 0) and ext_at(e, rq.ext).hook_mss != 0:
        c.advmss = u32_min(c.advmss, ext_at(e, rq.ext).hook_mss)
    if unlikely(c.sflags & SF_KEEPOPEN):
        sk_reset_keepalive(e, c, (c.opt.keepalive_time_s if c.opt.keepalive_time_s != 0 else e.cfg.tcp_keepalive_time) * NS_PER_SEC)
    if rq.ext != 0 and ext_at(e, rq.ext).saved_syn_len != 0:
        sk_opt(e, c).saved_syn = rq.ext
        rq.ext = 0
    return c
