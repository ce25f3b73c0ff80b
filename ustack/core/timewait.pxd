# TIME_WAIT and the FIN_WAIT2 of orphans as small records (layer above ipout, below input).
#
# RFC 9293 3.10.7.4, RFC 6191, RFC 7323 5, RFC 1337; facts section H. Linux: tcp_time_wait, tcp_timewait_state_process, inet_twsk_*.
# A record takes the socket's place in the hash table and in the bind bucket, so the 4-tuple and the port stay taken.
# tw_process decides and changes the record's own state; the packets that follow from the decision are sent by the caller.
# Callers: input, user, timers (tcp_time_wait); ipin (tw_process, tw_ack, tw_kill); engine (tw_timer); connect (tw_kill).

from ustack.core.bind cimport TW_CONNECT_BIND, TW_REUSEADDR, TW_REUSEPORT, bind_own_tw
from ustack.core.ehash cimport ehash_insert_force, ehash_remove, ehash_replace
from ustack.core.ipout cimport ipout_ack_reply
from ustack.core.metrics cimport tcp_update_metrics
from ustack.core.paws cimport tcp_in_window, tcp_oow_rate_limited, tcp_paws_reject
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.rcvwin cimport tcp_receive_window
from ustack.core.records cimport tw_t
from ustack.core.seqno cimport after, before
from ustack.core.access cimport ref_of, tcp_clock_ms, tcp_clock_s, tw_at
from ustack.core.sock cimport bind_put_tw, tcp_done
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtPAWSTimewait, MIB_TcpExtTCPACKSkippedFinWait2, MIB_TcpExtTCPACKSkippedTimeWait, MIB_TcpExtTCPTimeWaitOverflow,
    MIB_TcpExtTW, MIB_TcpExtTWKilled, mib_inc,
)
from ustack.core.tcb cimport SF_IN_EHASH, SF_REUSEADDR, SF_REUSEPORT, SOCK_CONNECT_BIND, tcb_t
from ustack.core.types cimport (
    KIND_TCB, KIND_TW, NS_PER_SEC, OPT_TS, REF_SHIFT, TCP_FIN_WAIT2, TCP_TIME_WAIT, TH_ACK, TH_FIN, TH_RST, TH_SYN,
    TM_TW, idx_t, int32_t, int64_t, ns_t, seg_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.wheel cimport wheel_arm, wheel_disarm

cdef enum:
    TCP_TIMEWAIT_S = 60
    # what tw_process decides
    TW_SUCCESS = 0              # nothing to send
    TW_RST = 1                  # answer with a stateless RST, then tw_kill
    TW_ACK = 2                  # tw_ack
    TW_SYN = 3                  # a listener may take the SYN with *tw_isn: tw_kill, else as TW_ACK


cdef inline ns_t tcp_fin_time(engine_t* e, tcb_t* sk) noexcept nogil:
    # How long an orphan stays in FIN_WAIT2: TCP_LINGER2 or tcp_fin_timeout, at least 3.5 RTO.
    cdef ns_t t = <ns_t>(sk.opt.linger2_s if sk.opt.linger2_s != 0 else e.cfg.tcp_fin_timeout) * NS_PER_SEC
    cdef ns_t floor = (sk.rto << 2) - (sk.rto >> 1)
    return t if t > floor else floor


# ---- creation and end --------------------------------------------------------------------------------------------------------------
cdef inline void tw_arm_(engine_t* e, idx_t i, ns_t length) noexcept nogil:
    wheel_arm(&e.wheel, (<uint32_t>TM_TW << REF_SHIFT) | i, e.now + length)


cdef inline void tw_kill(engine_t* e, idx_t i) noexcept nogil:
    # inet_twsk_deschedule_put: the record is gone, 4-tuple and port are free.
    wheel_disarm(&e.wheel, (<uint32_t>TM_TW << REF_SHIFT) | i)
    ehash_remove(&e.ehash, ref_of(KIND_TW, i))
    bind_put_tw(e, tw_at(e, i))
    pool_free(&e.tw, i)
    e.n_tw -= 1


cdef inline void tw_timer(engine_t* e, idx_t i) noexcept nogil:
    # TM_TW fired.
    tw_kill(e, i)


cdef inline void tw_fill_(engine_t* e, tw_t* tw, tcb_t* sk, int state) noexcept nogil:
    tw.en = sk.en
    tw.substate = <uint8_t>state
    tw.rcv_nxt = sk.rcv_nxt
    tw.snd_nxt = sk.snd_nxt
    tw.rcv_wnd = tcp_receive_window(sk)
    tw.rcv_wscale = sk.rcv_wscale
    tw.ts_recent = sk.ts_recent
    tw.ts_recent_stamp = sk.ts_recent_stamp
    tw.ts_offset = sk.ts_offset
    tw.entry_stamp_ms = tcp_clock_ms(e)
    tw.tos = sk.tos
    if sk.sflags & SF_REUSEADDR:
        tw.reuse |= TW_REUSEADDR
    if sk.sflags & SF_REUSEPORT:
        tw.reuse |= TW_REUSEPORT
    if sk.userlocks & SOCK_CONNECT_BIND:
        tw.reuse |= TW_CONNECT_BIND


cdef inline void tcp_time_wait(engine_t* e, tcb_t* sk, int state, ns_t timeo) noexcept nogil:
    # The socket becomes a record in `state` (TIME_WAIT, or FIN_WAIT2 for timeo) and is done; without room for a record it is
    # just done (facts H2, H3). sk may be gone afterwards.
    cdef ns_t rto = (sk.rto << 2) - (sk.rto >> 1)
    cdef idx_t i = 0
    cdef tw_t* tw
    if <int64_t>e.n_tw < e.cfg.tcp_max_tw_buckets:
        i = pool_alloc(&e.tw)
    if i == 0:
        mib_inc(&e.stats, MIB_TcpExtTCPTimeWaitOverflow)
    else:
        e.n_tw += 1
        tw = tw_at(e, i)
        tw_fill_(e, tw, sk, state)
        if timeo < rto:
            timeo = rto
        if state == TCP_TIME_WAIT:
            timeo = TCP_TIMEWAIT_S * NS_PER_SEC
        mib_inc(&e.stats, MIB_TcpExtTWKilled if timeo <= 4 * NS_PER_SEC else MIB_TcpExtTW)
        bind_own_tw(e, tw, i, sk.bind)
        if sk.sflags & SF_IN_EHASH and ehash_replace(&e.ehash, ref_of(KIND_TCB, sk.idx), ref_of(KIND_TW, i)):
            sk.sflags &= ~<uint32_t>SF_IN_EHASH
        else:
            ehash_insert_force(&e.ehash, ref_of(KIND_TW, i))
        tw_arm_(e, i, timeo)
    tcp_update_metrics(e, sk)
    tcp_done(e, sk)


# ---- segments ------------------------------------------------------------------------------------------------------------------------
cdef inline int tw_oow_(engine_t* e, tw_t* tw, const seg_t* s, int mib) noexcept nogil:
    return TW_SUCCESS if tcp_oow_rate_limited(e, s, mib, &tw.last_oow_ack) else TW_ACK


cdef inline int tw_fin_wait2_(engine_t* e, idx_t i, tw_t* tw, const seg_t* s, bint saw_ts, bint paws) noexcept nogil:
    # Facts H8: the tests of the full state machine, for a connection that nobody reads any more.
    if paws or not tcp_in_window(s.seq, s.end_seq, tw.rcv_nxt, tw.rcv_nxt + tw.rcv_wnd):
        return tw_oow_(e, tw, s, MIB_TcpExtTCPACKSkippedFinWait2)
    if s.flags & TH_RST:
        tw_kill(e, i)
        return TW_SUCCESS
    if s.flags & TH_SYN and not before(s.seq, tw.rcv_nxt):
        return TW_RST
    if not s.flags & TH_ACK or not after(s.end_seq, tw.rcv_nxt) or s.end_seq == s.seq:
        return TW_SUCCESS
    if not s.flags & TH_FIN or s.end_seq != tw.rcv_nxt + 1:
        return TW_RST
    tw.substate = TCP_TIME_WAIT
    tw.rcv_nxt = s.end_seq
    if saw_ts:
        tw.entry_stamp_ms = tcp_clock_ms(e)
        tw.ts_recent = s.tsval
        tw.ts_recent_stamp = tcp_clock_s(e)
    tw_arm_(e, i, TCP_TIMEWAIT_S * NS_PER_SEC)
    return TW_ACK


cdef inline int tw_process(engine_t* e, idx_t i, seg_t* s, uint32_t* tw_isn) noexcept nogil:
    # TW_*; the record may be gone after TW_SUCCESS. Facts H4 in their order. The segment's options are parsed.
    cdef tw_t* tw = tw_at(e, i)
    cdef bint saw_ts = False
    cdef bint paws = False
    cdef uint32_t isn
    if s.opts & OPT_TS and tw.ts_recent_stamp != 0 and e.cfg.tcp_timestamps:
        saw_ts = True
        paws = tcp_paws_reject(e, tw.ts_recent, tw.ts_recent_stamp, s.tsval, (s.flags & TH_RST) != 0)
    if tw.substate == TCP_FIN_WAIT2:
        return tw_fin_wait2_(e, i, tw, s, saw_ts, paws)
    if not paws and s.seq == tw.rcv_nxt and (s.seq == s.end_seq or s.flags & TH_RST):
        if s.flags & TH_RST:
            if not e.cfg.tcp_rfc1337:
                tw_kill(e, i)
                return TW_SUCCESS
        else:
            tw_arm_(e, i, TCP_TIMEWAIT_S * NS_PER_SEC)
        if saw_ts:
            tw.ts_recent = s.tsval
            tw.ts_recent_stamp = tcp_clock_s(e)
        return TW_SUCCESS
    if s.flags & (TH_SYN | TH_RST | TH_ACK) == TH_SYN and not paws and (
            after(s.seq, tw.rcv_nxt) or (saw_ts and <int32_t>(tw.ts_recent - s.tsval) < 0)):
        isn = tw.snd_nxt + 65535 + 2
        tw_isn[0] = isn if isn != 0 else 1
        return TW_SYN
    if paws:
        mib_inc(&e.stats, MIB_TcpExtPAWSTimewait)
    if s.flags & TH_RST:
        return TW_SUCCESS
    # An ACK-less SYN may be an old duplicate: it does not prolong the state.
    if paws or s.flags & TH_ACK:
        tw_arm_(e, i, TCP_TIMEWAIT_S * NS_PER_SEC)
    return tw_oow_(e, tw, s, MIB_TcpExtTCPACKSkippedTimeWait)


cdef inline void tw_ack(engine_t* e, idx_t i) noexcept nogil:
    # tcp_v4_timewait_ack (facts H6)
    cdef tw_t* tw = tw_at(e, i)
    ipout_ack_reply(e, tw.en.laddr, tw.en.faddr, <uint16_t>(tw.en.ports >> 16), <uint16_t>tw.en.ports, tw.snd_nxt, tw.rcv_nxt,
                    tw.rcv_wnd >> tw.rcv_wscale, tcp_clock_ms(e) + tw.ts_offset, tw.ts_recent, tw.tos)
