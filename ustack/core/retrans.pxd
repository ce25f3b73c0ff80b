# Retransmission of a record: trimming, cutting to the present MSS, merging small neighbours, the copy on the wire (layer: above xmit).
#
# RFC 9293 3.8.1, RFC 3168 6.1.1.1 (ECN fallback of a SYN). Facts J4, K1c, L1. Linux: __tcp_retransmit_skb, tcp_retransmit_skb,
# tcp_retrans_try_collapse, tcp_fragment, tcp_rearm_rto. What is to be retransmitted, and when, is decided by recovery, timers and tlp.

from ustack.core.connhook cimport connhook_retrans
from ustack.core.hooks cimport hooked
from ustack.core.mss cimport TCP_MIN_GSO_SIZE, tcp_current_mss
from ustack.core.records cimport SR_EVER_RETRANS, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.route cimport sk_route
from ustack.core.sendq cimport (
    sq_rtx_head, sq_rtx_next, sq_split, sq_too_big, sq_trim_head, sq_unlink_free, sr_can_collapse_to, sr_can_merge, tcp_adjust_pcount,
    tcp_set_tso_segs, tcp_wnd_end,
)
from ustack.core.seqno cimport after, before, i64_max, u32_min
from ustack.core.access cimport jiffies_up, sk_fport, sk_handle, sk_los, sk_lport, sr_at
from ustack.core.sock cimport tcp_clear_retrans_timer
from ustack.core.wake cimport ev_push
from ustack.core.state cimport EV_RETRANS, engine_t, event_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPRetransFail, MIB_TcpExtTCPSynRetrans, MIB_TcpExtTCPWqueueTooBig, MIB_TcpRetransSegs, mib_add, mib_inc,
)
from ustack.core.tcb cimport ICSK_TIME_LOSS_PROBE, ICSK_TIME_REO_TIMEOUT, ICSK_TIME_RETRANS, tcb_t
from ustack.core.types cimport (
    E_AGAIN, E_BUSY, E_HOSTUNREACH, E_INVAL, E_NOMEM, TH_CWR, TH_ECE, TH_SYN, flow_t, idx_t, int32_t, int64_t, ns_t, uint32_t,
)
from ustack.core.xmit cimport tcp_reset_xmit_timer_paced, tcp_transmit_skb

cdef enum:
    TH_SYN_ECN = TH_SYN | TH_ECE | TH_CWR


# ---- the retransmission timer --------------------------------------------------------------------------------------------------
cdef inline ns_t tcp_rto_delta(engine_t* e, const tcb_t* sk) noexcept nogil:
    """Time until the RTO counted from the transmission of the head of the queue; may be negative."""
    cdef idx_t head = sq_rtx_head(sk)
    if head == 0:
        return sk.rto
    return sr_at(e, head).tx_time + sk.rto - e.now


cdef inline void tcp_rearm_rto(engine_t* e, tcb_t* sk) noexcept nogil:
    """Restart the RTO after an ACK or a first transmission. What a loss probe or the reordering timer has used up of it counts."""
    cdef ns_t rto = sk.rto
    if sk.fastopen_rsk:
        return                          # the timer belongs to the SYN-ACK
    if sk.packets_out == 0:
        tcp_clear_retrans_timer(e, sk)
        return
    if sk.icsk_pending == ICSK_TIME_REO_TIMEOUT or sk.icsk_pending == ICSK_TIME_LOSS_PROBE:
        rto = jiffies_up(e, i64_max(tcp_rto_delta(e, sk), 1000))
    tcp_reset_xmit_timer_paced(e, sk, ICSK_TIME_RETRANS, rto)


# ---- cutting and merging ---------------------------------------------------------------------------------------------------------
cdef inline idx_t tcp_fragment_rtx(engine_t* e, tcb_t* sk, idx_t i, uint32_t n, uint32_t mss) noexcept nogil:
    """Cut a record of the retransmit queue; 0 if it may not be cut or there is no memory."""
    if sq_too_big(e, sk, i):
        mib_inc(&e.stats, MIB_TcpExtTCPWqueueTooBig)
        return 0
    return sq_split(e, sk, i, n, mss)


cdef inline void tcp_collapse_retrans(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Merge the next record into this one: both are single packets."""
    cdef srec_t* r = sr_at(e, i)
    cdef idx_t j = r.next
    cdef srec_t* b = sr_at(e, j)
    cdef uint32_t n = b.len
    if sk.highest_sack == j:
        sk.highest_sack = i
    if sk.retrans_hint == j:
        sk.retrans_hint = i
    r.end_seq = b.end_seq
    r.len += n
    r.flags |= b.flags
    r.sacked |= b.sacked & SR_EVER_RETRANS
    r.eor = b.eor
    if b.tstamp_flags:
        r.tstamp_flags |= b.tstamp_flags
        r.tskey = b.tskey
    tcp_adjust_pcount(e, sk, b, b.pcount)
    b.len = 0                           # its payload is counted with r now
    sq_unlink_free(e, sk, j)


cdef inline bint tcp_can_collapse(const srec_t* r) noexcept nogil:
    return r.pcount <= 1 and not r.sacked & SR_SACKED


cdef inline void tcp_retrans_try_collapse(engine_t* e, tcb_t* sk, idx_t i, int64_t space) noexcept nogil:
    """A retransmission smaller than a segment takes following small records along, as far as they fit."""
    cdef srec_t* r = sr_at(e, i)
    cdef srec_t* b
    cdef idx_t j
    if not e.cfg.tcp_retrans_collapse or r.flags & TH_SYN or not tcp_can_collapse(r) or not sr_can_collapse_to(r):
        return
    space -= r.len
    while True:
        j = sq_rtx_next(e, sk, i)
        if j == 0:
            return
        b = sr_at(e, j)
        if not tcp_can_collapse(b) or not sr_can_merge(r, b):
            return
        space -= b.len
        if space < 0 or after(b.end_seq, tcp_wnd_end(sk)) or r.len + b.len >= 65535 * TCP_MIN_GSO_SIZE:
            return
        tcp_collapse_retrans(e, sk, i)


# ---- the retransmission --------------------------------------------------------------------------------------------------------
cdef inline int retrans_trim(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Leave out what has been acknowledged of it meanwhile."""
    cdef srec_t* r = sr_at(e, i)
    if before(r.seq, sk.snd_una) and r.flags & TH_SYN:
        r.flags &= ~<uint32_t> TH_SYN
        r.seq += 1
    if before(r.seq, sk.snd_una):
        if before(r.end_seq, sk.snd_una):
            return -E_INVAL
        sq_trim_head(e, sk, i, u32_min(sk.snd_una - r.seq, r.len))
    return 0


cdef inline int retrans_resize(engine_t* e, tcb_t* sk, idx_t i, uint32_t segs, uint32_t mss) noexcept nogil:
    """Make it at most segs packets of mss that fit into the peer's window. A closed window lets the head through, as a probe."""
    cdef srec_t* r = sr_at(e, i)
    cdef int32_t avail = <int32_t> (tcp_wnd_end(sk) - r.seq)
    cdef int32_t diff
    cdef int64_t n = <int64_t> mss * segs
    if avail <= 0:
        if r.seq != sk.snd_una:
            return -E_AGAIN
        avail = <int32_t> mss
    if n > avail:
        n = avail - avail % <int32_t> mss
        if n == 0:
            n = avail
    if r.len > n:
        return 0 if tcp_fragment_rtx(e, sk, i, <uint32_t> n, mss) else -E_NOMEM
    diff = r.pcount
    tcp_set_tso_segs(r, mss)
    diff -= r.pcount
    if diff:
        tcp_adjust_pcount(e, sk, r, diff)
    if avail > <int32_t> mss:
        avail = <int32_t> mss
    if <int32_t> r.len < avail:
        tcp_retrans_try_collapse(e, sk, i, avail)
    return 0


cdef inline int __tcp_retransmit_skb(engine_t* e, tcb_t* sk, idx_t i, uint32_t segs) noexcept nogil:
    """Send a record again, at most segs packets of it (the rest becomes a record of its own). 0 sent, > 0 local drop, < 0 -errno."""
    cdef srec_t* r = sr_at(e, i)
    cdef event_t* ev
    cdef int err
    sk.mtup_probe_size = 0              # what became of an MTU probe cannot be told any more
    err = retrans_trim(e, sk, i)
    if err:
        return err
    if sk_route(e, sk) != 0:
        return -E_HOSTUNREACH
    err = retrans_resize(e, sk, i, segs, tcp_current_mss(e, sk))
    if err:
        return err
    if r.flags & TH_SYN_ECN == TH_SYN_ECN and e.cfg.tcp_ecn_fallback:
        r.flags &= ~<uint32_t> (TH_ECE | TH_CWR)
    segs = r.pcount
    mib_add(&e.stats, MIB_TcpRetransSegs, segs)
    if r.flags & TH_SYN:
        mib_inc(&e.stats, MIB_TcpExtTCPSynRetrans)
    sk_los(e, sk).total_retrans += segs
    sk_los(e, sk).bytes_retrans += r.len
    err = tcp_transmit_skb(e, sk, i)
    if err != 0 and err != -E_BUSY:
        mib_add(&e.stats, MIB_TcpExtTCPRetransFail, segs)
    # Marked even if it did not leave: no RTT sample may come of it.
    r.sacked |= SR_EVER_RETRANS
    ev = ev_push(e, EV_RETRANS, 0)
    if ev != NULL:
        ev.a = r.seq
        ev.b = segs
        ev.c = sk_handle(e, sk)
        ev.flow = flow_t(sk.en.laddr, sk.en.faddr, sk_lport(sk), sk_fport(sk))
    if hooked(e.hooks):
        connhook_retrans(e, sk, r.seq, segs, err)
    return err


cdef inline int tcp_retransmit_skb(engine_t* e, tcb_t* sk, idx_t i, uint32_t segs) noexcept nogil:
    """As __tcp_retransmit_skb, with the bookkeeping of loss recovery."""
    cdef srec_t* r = sr_at(e, i)
    cdef int err = __tcp_retransmit_skb(e, sk, i, segs)
    if err == 0:
        r.sacked |= SR_RETRANS
        sk.retrans_out += r.pcount
    if sk.retrans_stamp == 0:
        sk.retrans_stamp = r.tx_time
    if sk.undo_retrans < 0:
        sk.undo_retrans = 0
    sk.undo_retrans += r.pcount
    return err
