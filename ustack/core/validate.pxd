# Is an arriving segment acceptable to a connection? (layer above challenge and rcvfin, below input)
#
# RFC 9293 3.10.7.4 (first to fourth check), RFC 7323 5 (PAWS), RFC 5961, facts J20-J22. Linux: tcp_validate_incoming,
# tcp_sequence, tcp_disordered_ack_check, tcp_reset_check, tcp_send_dupack. The order of the tests is Linux's: it
# decides which answer and which counter a segment gets that fails several. Called by input for every segment that
# header prediction did not take.

from ustack.core.types cimport (
    DROP_NONE, DROP_TCP_INVALID_END_SEQUENCE, DROP_TCP_INVALID_SEQUENCE, DROP_TCP_INVALID_SYN, DROP_TCP_OLD_SEQUENCE,
    DROP_TCP_RESET, DROP_TCP_RFC7323_PAWS, DROP_TCP_RFC7323_PAWS_ACK, NS_PER_SEC, OPT_SACK, OPT_TS, TCP_CLOSE_WAIT,
    TCP_CLOSING, TCP_ESTABLISHED, TCP_LAST_ACK, TCP_SYN_RECV, TH_ACK, TH_FIN, TH_RST, TH_SYN, int32_t, seg_t,
    uint32_t,
)
from ustack.core.challenge cimport tcp_send_challenge_ack
from ustack.core.dataq cimport SK_GONE
from ustack.core.delack cimport TCP_MAX_QUICKACKS, tcp_enter_quickack_mode
from ustack.core.ofo cimport tcp_dsack_set
from ustack.core.output cimport tcp_send_ack
from ustack.core.paws cimport tcp_oow_rate_limited, tcp_paws_check
from ustack.core.rcvfin cimport tcp_reset
from ustack.core.rcvwin cimport tcp_receive_window
from ustack.core.seqno cimport after, before
from ustack.core.access cimport sk_los, tcp_clock_s
from ustack.core.sock cimport tcp_fastopen_active_disable
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtBeyondWindow, MIB_TcpExtDelayedACKLost, MIB_TcpExtPAWSEstab, MIB_TcpExtPAWSOldAck,
    MIB_TcpExtTCPACKSkippedPAWS, MIB_TcpExtTCPACKSkippedSeq, MIB_TcpExtTCPSYNChallenge, MIB_TcpInErrs, mib_inc,
)
from ustack.core.tcb cimport SF_ACCEPTED, SF_DEAD, tcb_t
from ustack.core.wire cimport wire_parse_opts

cdef enum:
    TCP_PAWS_WINDOW = 1             # a timestamp may be this much older
    TSVAL_PER_SEC = 1200            # the fastest clock to expect of a peer


# ---- options -------------------------------------------------------------------------------------------------------
cdef inline void sk_take_tstamp_(tcb_t* sk, const seg_t* s) noexcept nogil:
    sk.saw_tstamp = 1
    sk.rcv_tsval = s.tsval
    sk.rcv_tsecr = s.tsecr - sk.ts_offset if s.tsecr else 0


cdef inline void tcp_fast_parse_options(tcb_t* sk, seg_t* s) noexcept nogil:
    """Options of a segment of a connection; what was not agreed on is ignored."""
    sk.saw_tstamp = 0
    if s.opt_len == 0:
        s.opts = 0
        s.n_sack = 0
        return
    wire_parse_opts(s)
    if s.opts & OPT_TS and sk.tstamp_ok:
        sk_take_tstamp_(sk, s)
    if s.opts & OPT_SACK and sk.sack_ok == 0:
        s.opts &= ~<uint32_t> OPT_SACK
        s.n_sack = 0


cdef inline void tcp_store_ts_recent(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.ts_recent = sk.rcv_tsval
    sk.ts_recent_stamp = tcp_clock_s(e)


# ---- tests ---------------------------------------------------------------------------------------------------------
cdef inline bint tcp_may_update_window(const tcb_t* sk, uint32_t ack, uint32_t ack_seq, uint32_t nwin) noexcept nogil:
    """RFC 9293: SND.WL1 and SND.WL2; a larger or zero window in a segment of the same number counts too."""
    return (after(ack, sk.snd_una) or after(ack_seq, sk.snd_wl1)
            or (ack_seq == sk.snd_wl1 and (nwin > sk.snd_wnd or nwin == 0)))


cdef inline int tcp_disordered_ack_check(const tcb_t* sk, const seg_t* s) noexcept nogil:
    """A segment failed PAWS. 0: a pure ACK that tells nothing new and is only slightly late, take it; else the reason
    to drop it."""
    if not s.flags & TH_ACK or s.seq != s.end_seq:
        return DROP_TCP_RFC7323_PAWS
    if s.seq != sk.rcv_nxt:
        return DROP_TCP_RFC7323_PAWS_ACK if before(s.seq, sk.rcv_nxt) else DROP_TCP_RFC7323_PAWS
    if s.ack != sk.snd_una or tcp_may_update_window(sk, s.ack, s.seq, s.wnd << sk.snd_wscale):
        return DROP_TCP_RFC7323_PAWS
    if <int32_t> (sk.ts_recent - sk.rcv_tsval) > <int32_t> (sk.rto * TSVAL_PER_SEC // NS_PER_SEC):
        return DROP_TCP_RFC7323_PAWS
    return DROP_NONE


cdef inline int tcp_sequence(const tcb_t* sk, const seg_t* s) noexcept nogil:
    """RFC 9293's first check, in Linux's form: not wholly before the last ACK sent, and within the right edge; what
    reaches over the edge only with a FIN is taken, with data only while nothing is queued."""
    cdef uint32_t edge
    if before(s.end_seq, sk.rcv_wup):
        return DROP_TCP_OLD_SEQUENCE
    edge = sk.rcv_nxt + tcp_receive_window(sk)
    if not after(s.end_seq, edge):
        return DROP_NONE
    if not after(s.end_seq - ((s.flags & TH_FIN) != 0), edge):
        return DROP_NONE
    if after(s.seq, edge):
        return DROP_TCP_INVALID_SEQUENCE
    if sk.rq_head:
        return DROP_TCP_INVALID_END_SEQUENCE
    return DROP_NONE


cdef inline bint tcp_reset_check(const tcb_t* sk, const seg_t* s) noexcept nogil:
    """Some send RST with the number of their FIN."""
    return s.seq == sk.rcv_nxt - 1 and (sk.state == TCP_CLOSE_WAIT or sk.state == TCP_LAST_ACK or sk.state == TCP_CLOSING)


cdef inline bint rst_matches_(const tcb_t* sk, const seg_t* s) noexcept nogil:
    # RFC 5961 3.2: exactly the next number, or where a peer that lost our ACKs believes it is.
    cdef uint32_t edge
    cdef int i
    if s.seq == sk.rcv_nxt or tcp_reset_check(sk, s):
        return True
    if sk.sack_ok == 0 or sk.num_sacks == 0:
        return False
    edge = sk.los.selective_acks[0].end
    for i in range(1, sk.num_sacks):
        if after(sk.los.selective_acks[i].end, edge):
            edge = sk.los.selective_acks[i].end
    return s.seq == edge


# ---- answers -------------------------------------------------------------------------------------------------------
cdef inline void tcp_send_dupack(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """A segment was not acceptable: say what is expected; old data means that ACKs get lost."""
    if s.end_seq != s.seq and before(s.seq, sk.rcv_nxt):
        mib_inc(&e.stats, MIB_TcpExtDelayedACKLost)
        tcp_enter_quickack_mode(sk, TCP_MAX_QUICKACKS)
        if sk.sack_ok and e.cfg.tcp_dsack:
            tcp_dsack_set(e, sk, s.seq, sk.rcv_nxt if after(s.end_seq, sk.rcv_nxt) else s.end_seq)
    tcp_send_ack(e, sk)


cdef inline int sk_drop_(engine_t* e, tcb_t* sk, int reason) noexcept nogil:
    # Counted for the socket too (ss -m "d").
    sk_los(e, sk).drops += 1
    return reason


cdef inline int syn_challenge_(engine_t* e, tcb_t* sk, bint syn_inerr) noexcept nogil:
    if syn_inerr:
        mib_inc(&e.stats, MIB_TcpInErrs)
    mib_inc(&e.stats, MIB_TcpExtTCPSYNChallenge)
    tcp_send_challenge_ack(e, sk)
    return sk_drop_(e, sk, DROP_TCP_INVALID_SYN)


cdef inline int do_reset_(engine_t* e, tcb_t* sk) noexcept nogil:
    tcp_reset(e, sk)
    return SK_GONE


cdef inline int paws_fail_(engine_t* e, tcb_t* sk, const seg_t* s, int reason) noexcept nogil:
    if reason == DROP_TCP_RFC7323_PAWS_ACK:
        mib_inc(&e.stats, MIB_TcpExtPAWSOldAck)
        return sk_drop_(e, sk, reason)
    mib_inc(&e.stats, MIB_TcpExtPAWSEstab)
    if not tcp_oow_rate_limited(e, s, MIB_TcpExtTCPACKSkippedPAWS, &sk_los(e, sk).last_oow_ack):
        tcp_send_dupack(e, sk, s)
    return sk_drop_(e, sk, reason)


cdef inline int sequence_fail_(engine_t* e, tcb_t* sk, const seg_t* s, int reason, bint syn_inerr) noexcept nogil:
    if s.flags & TH_RST:
        if tcp_reset_check(sk, s):
            return do_reset_(e, sk)
        return sk_drop_(e, sk, reason)
    if s.flags & TH_SYN:
        return syn_challenge_(e, sk, syn_inerr)
    if reason != DROP_TCP_OLD_SEQUENCE:
        mib_inc(&e.stats, MIB_TcpExtBeyondWindow)
    if not tcp_oow_rate_limited(e, s, MIB_TcpExtTCPACKSkippedSeq, &sk_los(e, sk).last_oow_ack):
        tcp_send_dupack(e, sk, s)
    return sk_drop_(e, sk, reason)


cdef inline int rst_in_window_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    if rst_matches_(sk, s):
        return do_reset_(e, sk)
    if sk.syn_fastopen and sk.data_segs_in == 0 and sk.state == TCP_ESTABLISHED:
        tcp_fastopen_active_disable(e)
    tcp_send_challenge_ack(e, sk)
    return sk_drop_(e, sk, DROP_TCP_RESET)


cdef inline bint syn_crossed_(const tcb_t* sk, const seg_t* s) noexcept nogil:
    # The SYN-ACK of a simultaneous open completes it.
    return (sk.state == TCP_SYN_RECV and sk.sflags & SF_ACCEPTED and not sk.sflags & SF_DEAD and s.flags & TH_ACK
            and s.seq + 1 == s.end_seq and s.seq + 1 == sk.rcv_nxt and s.ack == sk.snd_nxt)


cdef inline int tcp_validate_incoming(engine_t* e, tcb_t* sk, seg_t* s, bint syn_inerr) noexcept nogil:
    """0: acceptable, options parsed. Else the drop reason (what was to be answered has been), or SK_GONE after a
    reset."""
    cdef int reason
    tcp_fast_parse_options(sk, s)
    if sk.saw_tstamp and not tcp_paws_check(e, sk.ts_recent, sk.ts_recent_stamp, sk.rcv_tsval, TCP_PAWS_WINDOW):
        reason = tcp_disordered_ack_check(sk, s)
        if reason != DROP_NONE and not s.flags & TH_RST:
            if s.flags & TH_SYN:
                return syn_challenge_(e, sk, syn_inerr)
            return paws_fail_(e, sk, s, reason)
    reason = tcp_sequence(sk, s)
    if reason != DROP_NONE:
        return sequence_fail_(e, sk, s, reason, syn_inerr)
    if s.flags & TH_RST:
        return rst_in_window_(e, sk, s)
    if s.flags & TH_SYN and not syn_crossed_(sk, s):
        return syn_challenge_(e, sk, syn_inerr)
    return DROP_NONE
