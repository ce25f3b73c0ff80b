# Segments and timers of half-open requests, and segments for a listener (layer above input).
#
# RFC 9293 3.10.7.2 and 3.10.7.4 (SYN-RECEIVED), RFC 5961 3, RFC 7323 5; facts B2, B3, B20-B23, sections D and E, A9, A22, N20. Linux:
# tcp_check_req, tcp_child_process, the LISTEN case of tcp_rcv_state_process, reqsk_timer_handler, tcp_req_err.
# The order of the tests is part of the behaviour. A request whose listener has gone is dropped at its next segment (which then starts
# again from the listener table) or timer, unless another member of the listener's group takes it over.
# The options of a segment are parsed, its checksum is good. Every function that discards one returns the reason; 0 = taken.
# Callers: ipin (listen_rcv, request_rcv), icmp (request_icmp), engine (request_timer).

from ustack.core.acceptq cimport acceptq_is_full, acceptq_push, acceptq_remove, listen_drop, req_drop, req_drop_at, req_free, reqq_added, reqq_removed
from ustack.core.auth cimport auth_fault
from ustack.core.bind cimport listener_lookup
from ustack.core.child cimport req_sent_at, req_timeout, tcp_create_child
from ustack.core.connreq cimport COOKIE_NOT_OURS, COOKIE_REFUSED, conn_request, cookie_ack
from ustack.core.hooks cimport (
    HOOK_ACCEPT, HOOK_DROP, HOOK_PARK, HOOK_PASS, HOOK_RESET, HOOK_SKIP, QUEUE_ACCEPT_ACK, SELECT_REQUEST, hooked,
)
from ustack.core.input cimport tcp_rcv_state_process
from ustack.core.ipout cimport ipout_ack_reply, ipout_rst_reply
from ustack.core.listen cimport child_forget_, listener_successor
from ustack.core.listenhook cimport ASK_ACK, ASK_SYNACK, hook_timer_t, listenhook
from ustack.core.paws cimport tcp_ack_rate_limited, tcp_in_window, tcp_paws_reject
from ustack.core.pool cimport pool_is_empty
from ustack.core.records cimport RQ_ACKED, RQ_TSTAMP_OK, listener_t, req_t, reqext_t
from ustack.core.route cimport is_local
from ustack.core.rttmeas cimport tcp_synack_rtt_meas
from ustack.core.seqno cimport after, between, u32_max
from ustack.core.access cimport ext_at, lst_at, req_at, sk_at, sk_los, tcp_clock_ms, tcp_clock_s
from ustack.core.wake cimport sk_data_ready
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpAttemptFails, MIB_TcpExtEmbryonicRsts, MIB_TcpExtOutOfWindowIcmps, MIB_TcpExtPAWSEstab,
    MIB_TcpExtTCPACKSkippedChallenge, MIB_TcpExtTCPACKSkippedSynRecv, MIB_TcpExtTCPChallengeACK,
    MIB_TcpExtTCPDeferAcceptDrop, MIB_TcpExtTCPMigrateReqFailure,
    MIB_TcpExtTCPMigrateReqSuccess, MIB_TcpExtTCPMinTTLDrop, MIB_TcpExtTCPSynRetrans, MIB_TcpExtTCPTimeouts,
    MIB_TcpExtTSEcrRejected, MIB_TcpOutRsts, MIB_TcpOutSegs, MIB_TcpRetransSegs, mib_inc,
)
from ustack.core.synack cimport req_ext, req_ts_off, req_tsval_last, synack_repeat
from ustack.core.tcb cimport SF_REFUSED, tcb_t
from ustack.core.types cimport (
    DROP_HOOK, DROP_ICMP_OOW, DROP_NONE, DROP_NO_SOCKET, DROP_POOL_TCB, DROP_TCP_DEFER_ACCEPT, DROP_TCP_FLAGS,
    DROP_TCP_INVALID_SYN, DROP_TCP_LISTEN_OVERFLOW, DROP_TCP_NO_ROUTE, DROP_TCP_LISTEN_RST, DROP_TCP_MINTTL,
    DROP_TCP_REQ_LIMITED, DROP_TCP_REQ_NOACK, DROP_TCP_REQ_OOW, DROP_TCP_RESET, DROP_TCP_RFC7323_PAWS,
    DROP_TCP_RFC7323_TSECR, NS_PER_MS, NS_PER_SEC, OPT_TS, REF_SHIFT, TCP_SYN_RECV, TH_ACK, TH_FIN, TH_RST, TH_SYN,
    TM_REQ, idx_t, int32_t, ns_t, seg_t, uint8_t, uint16_t, uint32_t, unlikely,
)
from ustack.core.wheel cimport wheel_arm

cdef enum:
    REQ_GO = -1                 # a hook lets the third ACK pass


# ---- common ----------------------------------------------------------------------------------------------------------------------
cdef inline int lst_discard_(engine_t* e, idx_t li, int reason) noexcept nogil:
    # The listener's socket counts a segment that was thrown away on its behalf (ss -m "d").
    cdef listener_t* l = lst_at(e, li)
    l.drops += 1
    if l.sk != 0:
        sk_los(e, sk_at(e, l.sk)).drops += 1
    return reason


cdef inline int child_process_(engine_t* e, tcb_t* parent, tcb_t* child, seg_t* s) noexcept nogil:
    # tcp_child_process: the segment that made the child is its first; the listener is readable once the child has left SYN_RECV.
    cdef uint32_t segs = 1
    cdef int reason
    if unlikely(s.gso_size != 0) and s.len > s.gso_size:
        segs = (s.len + s.gso_size - 1) // s.gso_size
    child.segs_in += segs
    if s.len != 0:
        child.data_segs_in += segs
    reason = tcp_rcv_state_process(e, child, s)
    if hooked(e.hooks) and child.sflags & SF_REFUSED:
        acceptq_remove(e, child)
        child_forget_(e, child)
        return DROP_HOOK
    if child.state != TCP_SYN_RECV:
        sk_data_ready(e, parent)
    return reason


# ---- LISTEN (facts B2, B3) ---------------------------------------------------------------------------------------------------------
cdef inline int listen_ack_(engine_t* e, tcb_t* lsk, seg_t* s) noexcept nogil:
    # ACK set: a returned cookie, or nothing of ours.
    cdef tcb_t* child
    cdef int why = COOKIE_NOT_OURS
    if not s.flags & (TH_SYN | TH_RST):
        child = cookie_ack(e, lsk, s, &why)
        if child != NULL:
            acceptq_push(e, lsk.listener, child)
            return child_process_(e, lsk, child, s)
        if why >= 0:
            return no_child_reason_(e, lsk.listener) if why == DROP_TCP_LISTEN_OVERFLOW else why
    if not s.flags & TH_RST and not is_local(e, s.dst):
        # The reset of a listener to what came by broadcast is counted, though no route leads away from such a source.
        mib_inc(&e.stats, MIB_TcpOutSegs)
        mib_inc(&e.stats, MIB_TcpOutRsts)
    else:
        ipout_rst_reply(e, s)
    if why == COOKIE_REFUSED:
        return DROP_HOOK
    return DROP_TCP_LISTEN_RST if s.flags & TH_RST else DROP_TCP_FLAGS


cdef inline int listen_rcv(engine_t* e, tcb_t* lsk, seg_t* s, uint32_t tw_isn) noexcept nogil:
    # A segment for a listener that belongs to no request. tw_isn: ISN for a SYN that comes out of TIME_WAIT, else 0.
    cdef int reason
    e.rx_listener = lsk.listener
    if s.ttl < lsk.opt.min_ttl:
        mib_inc(&e.stats, MIB_TcpExtTCPMinTTLDrop)
        return lst_discard_(e, lsk.listener, DROP_TCP_MINTTL)
    reason = auth_fault(e, s, False)
    if reason != DROP_NONE:
        return lst_discard_(e, lsk.listener, reason)
    if s.flags & TH_ACK:
        return listen_ack_(e, lsk, s)
    if s.flags & TH_RST:
        return lst_discard_(e, lsk.listener, DROP_TCP_LISTEN_RST)
    if not s.flags & TH_SYN or s.flags & TH_FIN:
        return lst_discard_(e, lsk.listener, DROP_TCP_FLAGS)
    return conn_request(e, lsk, s, tw_isn)


# ---- what a request sends ----------------------------------------------------------------------------------------------------------
cdef inline int req_rtx_synack_(engine_t* e, tcb_t* lsk, req_t* rq) noexcept nogil:
    # tcp_rtx_synack: 0 or -1.
    if synack_repeat(e, lsk, rq) != 0:
        return -1
    mib_inc(&e.stats, MIB_TcpRetransSegs)
    mib_inc(&e.stats, MIB_TcpExtTCPSynRetrans)
    rq.num_retrans += 1         # Linux's is 8 bits too: 256 repetitions are none
    return 0


cdef inline void req_send_ack_(engine_t* e, const req_t* rq, const seg_t* s) noexcept nogil:
    # Facts C10, C12, E6.
    cdef uint32_t tsval = 0
    if rq.ts_recent != 0:
        tsval = tcp_clock_ms(e) + req_ts_off(e, rq)
    ipout_ack_reply(e, s.dst, s.src, s.dport, s.sport, rq.isn + 1, rq.risn + 1, rq.rwnd >> (rq.wscales & 15), tsval,
                    rq.ts_recent, s.tos)


cdef inline bint req_limited_(engine_t* e, req_t* rq, const seg_t* s, int mib, bint data_exempt) noexcept nogil:
    # The ACK limiter of one request (facts E9); its time is kept in the extension, so only offenders need one. Without room for that the
    # answer is withheld.
    cdef reqext_t* x
    if data_exempt and s.seq != s.end_seq and not s.flags & TH_SYN:
        return False
    x = req_ext(e, rq)
    if x == NULL:
        mib_inc(&e.stats, mib)
        return True
    return tcp_ack_rate_limited(e, mib, &x.last_oow_ack)


# ---- segments that hit a request (facts E1) ------------------------------------------------------------------------------------------
cdef inline int req_duplicate_syn_(engine_t* e, tcb_t* lsk, req_t* rq, idx_t ri, const seg_t* s) noexcept nogil:
    # Facts B20: answered again, and the timer starts anew with its present length.
    if req_limited_(e, rq, s, MIB_TcpExtTCPACKSkippedSynRecv, True):
        return DROP_TCP_REQ_LIMITED
    if req_rtx_synack_(e, lsk, rq) != 0:
        return DROP_TCP_NO_ROUTE
    wheel_arm(&e.wheel, (<uint32_t>TM_REQ << REF_SHIFT) | ri, e.now + req_timeout(e, rq, rq.num_timeout))
    return DROP_NONE


cdef inline int req_embryonic_reset_(engine_t* e, idx_t ri, idx_t li, const seg_t* s) noexcept nogil:
    # The request dies at this listener; whoever sent a SYN or an ACK is told.
    if not s.flags & TH_RST:
        ipout_rst_reply(e, s)
    mib_inc(&e.stats, MIB_TcpExtEmbryonicRsts)
    req_drop_at(e, ri, li)
    return DROP_TCP_RESET if s.flags & TH_RST else DROP_TCP_INVALID_SYN


cdef inline int no_child_reason_(engine_t* e, idx_t li) noexcept nogil:
    # Why tcp_create_child made none: the accept queue, the pool of sockets, or no way back to the client.
    if acceptq_is_full(lst_at(e, li)):
        return DROP_TCP_LISTEN_OVERFLOW
    return DROP_POOL_TCB if pool_is_empty(&e.tcb) else DROP_TCP_NO_ROUTE


cdef inline int req_overflow_(engine_t* e, idx_t li, idx_t ri, bint migrated, const seg_t* s, bint reset) noexcept nogil:
    # No room for the child (facts E3); counted by whoever said so. reset: as with tcp_abort_on_overflow.
    cdef int reason = no_child_reason_(e, li)
    if migrated:
        mib_inc(&e.stats, MIB_TcpExtTCPMigrateReqFailure)
    if not e.cfg.tcp_abort_on_overflow and not reset:
        req_at(e, ri).flags |= RQ_ACKED
        return reason
    ipout_rst_reply(e, s)
    mib_inc(&e.stats, MIB_TcpExtEmbryonicRsts)
    req_drop_at(e, ri, li)
    return reason


cdef inline int req_ask_(engine_t* e, tcb_t* lsk, idx_t ri, const seg_t* s) noexcept nogil:
    # The third-ACK hook: REQ_GO, or the segment is settled, for this reason.
    cdef uint8_t verdict = listenhook(e, ASK_ACK, lsk.listener, s, req_at(e, ri), NULL)
    if verdict == HOOK_PARK:
        return DROP_NONE
    if verdict == HOOK_DROP:
        return lst_discard_(e, lsk.listener, DROP_HOOK)
    if verdict == HOOK_RESET:
        req_embryonic_reset_(e, ri, lsk.listener, s)
        return lst_discard_(e, lsk.listener, DROP_HOOK)
    return REQ_GO


cdef inline int req_promote_(engine_t* e, tcb_t* lsk, idx_t ri, seg_t* s, bint saw_ts) noexcept nogil:
    # The third ACK: the request becomes a child (facts E1.10, E1.11). lsk is not the request's own listener after a migration.
    cdef req_t* rq = req_at(e, ri)
    cdef idx_t own = rq.listener
    cdef bint migrated = own != lsk.listener
    cdef bint was_young = rq.num_timeout == 0
    cdef int tos = -1
    cdef ns_t sent = req_sent_at(e, rq)
    cdef bint repeated = rq.num_retrans != 0
    cdef uint8_t room = HOOK_PASS
    cdef int asked
    cdef tcb_t* child
    if hooked(e.hooks):
        asked = req_ask_(e, lsk, ri, s)
        if asked != REQ_GO:
            return asked
        if acceptq_is_full(lst_at(e, lsk.listener)):
            room = listenhook(e, QUEUE_ACCEPT_ACK, lsk.listener, s, NULL, NULL)
    if unlikely(rq.ext != 0) and ext_at(e, rq.ext).has_tos:
        tos = ext_at(e, rq.ext).tos
    child = tcp_create_child(e, lsk, rq, ri, s, tos, room == HOOK_ACCEPT)
    if child == NULL:
        return lst_discard_(e, lsk.listener, req_overflow_(e, lsk.listener, ri, migrated, s, room == HOOK_RESET))
    if saw_ts and not after(s.seq, rq.risn + 1):
        child.ts_recent = s.tsval
    tcp_synack_rtt_meas(e, child, -1 if repeated else (e.now - sent) // 1000)
    req_free(e, ri)
    reqq_removed(e, own, was_young)
    acceptq_push(e, lsk.listener, child)
    if migrated:
        mib_inc(&e.stats, MIB_TcpExtTCPMigrateReqSuccess)
    return child_process_(e, lsk, child, s)


cdef inline int req_out_of_window_(engine_t* e, req_t* rq, const seg_t* s, bint paws, bint tsecr) noexcept nogil:
    # E1.4
    if not s.flags & TH_RST and not req_limited_(e, rq, s, MIB_TcpExtTCPACKSkippedSynRecv, True):
        req_send_ack_(e, rq, s)
    if paws:
        mib_inc(&e.stats, MIB_TcpExtPAWSEstab)
        return DROP_TCP_RFC7323_PAWS
    if tsecr:
        mib_inc(&e.stats, MIB_TcpExtTSEcrRejected)
        return DROP_TCP_RFC7323_TSECR
    return DROP_TCP_REQ_OOW


cdef inline int req_flags_(engine_t* e, tcb_t* lsk, idx_t ri, seg_t* s, bint saw_ts) noexcept nogil:
    # E1.5 to E1.10, for a segment in the window.
    cdef req_t* rq = req_at(e, ri)
    cdef uint32_t flg = s.flags & (TH_RST | TH_SYN | TH_ACK)
    if s.seq == rq.risn:
        flg &= ~<uint32_t>TH_SYN
    if unlikely(flg & TH_RST) and s.seq != rq.risn + 1:
        if not req_limited_(e, rq, s, MIB_TcpExtTCPACKSkippedChallenge, False):
            mib_inc(&e.stats, MIB_TcpExtTCPChallengeACK)
            req_send_ack_(e, rq, s)
        return lst_discard_(e, lsk.listener, DROP_TCP_RESET)
    if flg & (TH_RST | TH_SYN):
        mib_inc(&e.stats, MIB_TcpAttemptFails)
        return lst_discard_(e, lsk.listener, req_embryonic_reset_(e, ri, lsk.listener, s))
    if not flg & TH_ACK:
        return lst_discard_(e, lsk.listener, DROP_TCP_REQ_NOACK)
    if rq.num_timeout < lst_at(e, lsk.listener).defer_accept and s.end_seq == rq.risn + 1:
        rq.flags |= RQ_ACKED
        mib_inc(&e.stats, MIB_TcpExtTCPDeferAcceptDrop)
        return lst_discard_(e, lsk.listener, DROP_TCP_DEFER_ACCEPT)
    return req_promote_(e, lsk, ri, s, saw_ts)


cdef inline int req_check_(engine_t* e, tcb_t* lsk, idx_t ri, seg_t* s) noexcept nogil:
    # tcp_check_req
    cdef req_t* rq = req_at(e, ri)
    cdef uint32_t rnxt = rq.risn + 1
    cdef bint saw_ts = s.opts & OPT_TS and e.cfg.tcp_timestamps
    cdef bint paws = False
    cdef bint tsecr = False
    if saw_ts:
        if s.tsecr != 0 and rq.flags & RQ_TSTAMP_OK:
            tsecr = not between(s.tsecr, rq.tsval_first, req_tsval_last(e, rq))
        paws = tcp_paws_reject(e, rq.ts_recent, tcp_clock_s(e) - req_timeout(e, rq, rq.num_timeout) // NS_PER_SEC, s.tsval,
                               (s.flags & TH_RST) != 0)
    if s.seq == rq.risn and s.flags & (TH_RST | TH_SYN | TH_ACK) == TH_SYN and not paws:
        return lst_discard_(e, lsk.listener, req_duplicate_syn_(e, lsk, rq, ri, s))
    if s.flags & TH_ACK and not s.flags & TH_RST and s.ack != rq.isn + 1:
        return listen_rcv(e, lsk, s, 0)
    if paws or tsecr or not tcp_in_window(s.seq, s.end_seq, rnxt, rnxt + rq.rwnd):
        return lst_discard_(e, lsk.listener, req_out_of_window_(e, rq, s, paws, tsecr))
    return req_flags_(e, lsk, ri, s, saw_ts)


cdef inline int request_rcv(engine_t* e, idx_t ri, seg_t* s) noexcept nogil:
    # A segment whose 4-tuple is a request's.
    cdef req_t* rq = req_at(e, ri)
    cdef idx_t li = rq.listener
    cdef tcb_t* lsk
    cdef int reason
    e.rx_listener = li
    reason = auth_fault(e, s, True)
    if reason != DROP_NONE:
        return lst_discard_(e, li, reason)
    if not lst_at(e, li).listening:
        li = listener_successor(e, li, s.dst, s.src, s.dport, s.sport, SELECT_REQUEST)
        if li == 0:
            req_drop(e, ri)
            lsk = listener_lookup(e, s.dst, s.src, s.dport, s.sport)
            if lsk != NULL:
                return listen_rcv(e, lsk, s, 0)
            ipout_rst_reply(e, s)
            return DROP_NO_SOCKET
    e.rx_listener = li
    return req_check_(e, sk_at(e, lst_at(e, li).sk), ri, s)


# ---- the timer (facts D2-D10) --------------------------------------------------------------------------------------------------------
cdef inline uint32_t synack_retries_(engine_t* e, const tcb_t* lsk, const listener_t* l) noexcept nogil:
    # How many timer ticks a request gets: fewer while more than half of the queue is taken by old ones (facts D5, D6).
    cdef uint32_t n = lsk.opt.syn_retries if lsk.opt.syn_retries != 0 else <uint32_t>e.cfg.tcp_synack_retries
    cdef int32_t young
    if (<uint32_t>l.qlen << 1) > u32_max(8, <uint32_t>l.maxq):
        young = l.young << 1
        while n > 2 and l.qlen >= young:
            n -= 1
            young <<= 1
    return n


cdef inline void req_keep_sent_(engine_t* e, req_t* rq) noexcept nogil:
    # A hook sets the next timeout, so the deadline will no longer tell when the first SYN-ACK was sent.
    cdef ns_t sent = req_sent_at(e, rq)
    cdef reqext_t* x = req_ext(e, rq)
    if x != NULL:
        x.synack_at = sent
        x.hook_timer = 1


cdef inline bint req_tick_(engine_t* e, tcb_t* lsk, listener_t* l, idx_t ri) noexcept nogil:
    # One expiry of the timer for a listener that listens: False = the request is over.
    cdef req_t* rq = req_at(e, ri)
    cdef uint32_t tries = synack_retries_(e, lsk, l)
    cdef uint32_t defer = l.defer_accept
    cdef bint acked = (rq.flags & RQ_ACKED) != 0
    cdef bint expire = rq.num_timeout >= tries
    cdef bint resend = True
    cdef hook_timer_t timer
    cdef uint8_t verdict = HOOK_PASS
    timer.next_ms = 0
    if defer != 0:
        expire = expire and (not acked or rq.num_timeout >= defer)
        resend = not acked or rq.num_timeout >= defer - 1
    mib_inc(&e.stats, MIB_TcpExtTCPTimeouts)
    if hooked(e.hooks):
        timer.tries = tries
        verdict = listenhook(e, ASK_SYNACK, rq.listener, NULL, rq, &timer)
        expire = verdict == HOOK_DROP or (expire and verdict != HOOK_ACCEPT)
        resend = resend and verdict != HOOK_SKIP
        if timer.next_ms != 0:
            req_keep_sent_(e, rq)
    if expire:
        return False
    if resend and req_rtx_synack_(e, lsk, rq) != 0 and not acked:
        return False
    if rq.num_timeout == 0:
        l.young -= 1
    if rq.num_timeout != 255:
        rq.num_timeout += 1
    wheel_arm(&e.wheel, (<uint32_t>TM_REQ << REF_SHIFT) | ri,
              e.now + (<ns_t>timer.next_ms * NS_PER_MS if timer.next_ms != 0 else req_timeout(e, rq, rq.num_timeout)))
    return True


cdef inline void req_move_(engine_t* e, req_t* rq, idx_t to) noexcept nogil:
    # Counted at another listener from now on (A22).
    cdef idx_t frm = rq.listener
    cdef bint young = rq.num_timeout == 0
    rq.listener = <uint16_t>to
    reqq_added(lst_at(e, to))
    if not young:
        lst_at(e, to).young -= 1
    reqq_removed(e, frm, young)


cdef inline void request_timer(engine_t* e, idx_t ri) noexcept nogil:
    # TM_REQ fired: reqsk_timer_handler.
    cdef req_t* rq = req_at(e, ri)
    cdef idx_t li = rq.listener
    cdef bint migrated = False
    cdef bint alive
    if not lst_at(e, li).listening:
        li = listener_successor(e, li, rq.en.laddr, rq.en.faddr, <uint16_t>(rq.en.ports >> 16), <uint16_t>rq.en.ports,
                                SELECT_REQUEST)
        if li == 0:
            req_drop(e, ri)
            return
        req_move_(e, rq, li)
        migrated = True
    alive = req_tick_(e, sk_at(e, lst_at(e, li).sk), lst_at(e, li), ri)
    if migrated:
        mib_inc(&e.stats, MIB_TcpExtTCPMigrateReqSuccess if alive else MIB_TcpExtTCPMigrateReqFailure)
    if not alive:
        req_drop(e, ri)


# ---- ICMP errors (facts N20) -----------------------------------------------------------------------------------------------------------
cdef inline int request_icmp(engine_t* e, idx_t ri, uint32_t seq, bint abort) noexcept nogil:
    # tcp_req_err: an ICMP error quotes our SYN-ACK with this sequence number; abort: it is of a kind that ends the attempt.
    cdef idx_t li = req_at(e, ri).listener
    if seq != req_at(e, ri).isn:
        mib_inc(&e.stats, MIB_TcpExtOutOfWindowIcmps)
        return DROP_ICMP_OOW
    if abort:
        listen_drop(e, li)
        req_drop(e, ri)
    return DROP_NONE
