# SACK and D-SACK: what an incoming SACK option says about the records in flight (layer: above loss, below recovery).
#
# RFC 2018, 2883, 6675. Linux: tcp_sacktag_write_queue and what it calls. Records are split where a SACK block ends inside them, at
# whole packets of the record's MSS; a SACKed record takes in its SACKed neighbour, so that the list stays short however the peer
# acknowledges. Blocks that were seen on the last ACK are skipped (tcb.recv_sack_cache). Sets marks, counters and FLAG_* only.
# Invariant: highest_sack is the record just above the highest SACKed one (0 = none: SND.NXT), meaningful while sacked_out != 0.
# Caller: ack.

from ustack.core.types cimport idx_t, int32_t, ns_t, sackblk_t, seg_t, uint8_t, uint16_t, uint32_t
from ustack.core.cwnd cimport rate_sample_t
from ustack.core.loss cimport SR_ANY_RETRANS, tcp_check_sack_reordering, tcp_highest_sack_seq, tcp_rack_advance, tcp_skb_seglen
from ustack.core.mss cimport TCP_MIN_GSO_SIZE
from ustack.core.rate cimport tcp_rate_skb_delivered
from ustack.core.records cimport SR_EVER_RETRANS, SR_LOST, SR_RETRANS, SR_SACKED, SR_TAGBITS, srec_t
from ustack.core.retrans cimport tcp_fragment_rtx
from ustack.core.sendq cimport sq_rtx_head, sq_rtx_next, sq_ts_unlink, sq_unlink_free, sr_can_merge
from ustack.core.seqno cimport after, before, i32_max
from ustack.core.access cimport sk_los, sr_at
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPDSACKIgnoredDubious, MIB_TcpExtTCPDSACKIgnoredNoUndo, MIB_TcpExtTCPDSACKIgnoredOld, MIB_TcpExtTCPDSACKOfoRecv,
    MIB_TcpExtTCPDSACKRecv, MIB_TcpExtTCPDSACKRecvSegs, MIB_TcpExtTCPSACKDiscard, MIB_TcpExtTCPSackMerged, MIB_TcpExtTCPSackShiftFallback,
    MIB_TcpExtTCPSackShifted, mib_add, mib_inc,
)
from ustack.core.tcb cimport TCP_CA_LOSS, sklos_t, tcb_t
from ustack.core.types cimport TH_FIN

cdef enum:
    # what an ACK brought; passed along tcp_ack
    FLAG_DATA = 0x01                # the segment carried data
    FLAG_WIN_UPDATE = 0x02
    FLAG_DATA_ACKED = 0x04          # acknowledged new data
    FLAG_RETRANS_DATA_ACKED = 0x08  # some of it had been retransmitted
    FLAG_SYN_ACKED = 0x10
    FLAG_DATA_SACKED = 0x20         # new SACK
    FLAG_ECE = 0x40
    FLAG_LOST_RETRANS = 0x80        # a retransmission was lost
    FLAG_SLOWPATH = 0x100           # checks the window field
    FLAG_ORIG_SACK_ACKED = 0x200    # never retransmitted data below high_seq was (s)acked
    FLAG_SND_UNA_ADVANCED = 0x400
    FLAG_DSACKING_ACK = 0x800       # carried a D-SACK
    FLAG_SET_XMIT_TIMER = 0x1000    # restart TLP or RTO
    FLAG_SACK_RENEGING = 0x2000     # SND.UNA stands at a SACKed record
    FLAG_UPDATE_TS_RECENT = 0x4000
    FLAG_NO_CHALLENGE_ACK = 0x8000
    FLAG_ACK_MAYBE_DELAYED = 0x10000
    FLAG_DSACK_TLP = 0x20000        # the D-SACK is about the loss probe
    FLAG_ACKED = 0x14               # DATA_ACKED | SYN_ACKED
    FLAG_NOT_DUP = 0x17             # DATA | WIN_UPDATE | ACKED
    FLAG_CA_ALERT = 0x860           # DATA_SACKED | ECE | DSACKING_ACK
    FLAG_FORWARD_PROGRESS = 0x34    # ACKED | DATA_SACKED

    SACK_CACHE = 4
    TCP_DSACK_SEEN = 4              # bit of sack_ok

cdef struct sack_state_t:           # of one ACK
    uint32_t reord                  # lowest never retransmitted sequence newly (s)acked out of order
    bint has_sackt
    ns_t first_sackt                # send times of the first and last record newly SACKed, never retransmitted
    ns_t last_sackt
    rate_sample_t* rate
    int flag
    uint32_t sack_delivered         # packets delivered by SACK or D-SACK


cdef inline void tcp_advance_highest_sack(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    sk.highest_sack = sq_rtx_next(e, sk, i)


# ---- D-SACK ------------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_dsack_seen(engine_t* e, tcb_t* sk, uint32_t start, uint32_t end, sack_state_t* state) noexcept nogil:
    """A D-SACK for this range: how many packets were delivered twice, 0 if it cannot be true."""
    cdef uint32_t n = end - start
    cdef uint32_t dup_segs = 1
    if not before(start, end) or n > sk.max_window:
        return 0
    if n > sk.mss_cache:
        dup_segs = (n + sk.mss_cache - 1) // sk.mss_cache
    elif sk.tlp_high_seq and sk.tlp_high_seq == end:
        state.flag |= FLAG_DSACK_TLP
    sk_los(e, sk).dsack_dups += dup_segs
    if sk.los.dsack_dups > sk.los.total_retrans:
        return 0                    # the network duplicated it, not we
    sk.sack_ok |= TCP_DSACK_SEEN
    # RACK's window grows only for retransmissions that reordering may have caused; a probe is caused by a timer.
    if sk.los.reord_seen and not state.flag & FLAG_DSACK_TLP:
        sk.rack_dsack_seen = 1
    state.flag |= FLAG_DSACKING_ACK
    state.sack_delivered += dup_segs
    return dup_segs


cdef inline bint tcp_check_dsack(engine_t* e, tcb_t* sk, const seg_t* s, uint32_t prior_snd_una, sack_state_t* state) noexcept nogil:
    """Is the first block a D-SACK: below the ACK, or inside the second block?"""
    cdef uint32_t start = s.sack[0].start
    cdef uint32_t end = s.sack[0].end
    cdef uint32_t dup_segs
    if before(start, s.ack):
        mib_inc(&e.stats, MIB_TcpExtTCPDSACKRecv)
    elif s.n_sack > 1 and not after(end, s.sack[1].end) and not before(start, s.sack[1].start):
        mib_inc(&e.stats, MIB_TcpExtTCPDSACKOfoRecv)
    else:
        return False
    dup_segs = tcp_dsack_seen(e, sk, start, end, state)
    if dup_segs == 0:
        mib_inc(&e.stats, MIB_TcpExtTCPDSACKIgnoredDubious)
        return False
    mib_add(&e.stats, MIB_TcpExtTCPDSACKRecvSegs, dup_segs)
    # The records are gone already: count by bytes.
    if sk.undo_marker and sk.undo_retrans > 0 and not after(end, prior_snd_una) and after(end, sk.undo_marker):
        sk.undo_retrans = i32_max(0, sk.undo_retrans - <int32_t> dup_segs)
    return True


cdef inline bint tcp_is_sackblock_valid(tcb_t* sk, bint is_dsack, uint32_t start, uint32_t end) noexcept nogil:
    """Inside what is outstanding; a D-SACK may lie below, back to where undoing is still possible."""
    if after(end, sk.snd_nxt) or not before(start, end) or not before(start, sk.snd_nxt):
        return False
    if after(start, sk.snd_una):
        return True
    if not is_dsack or sk.undo_marker == 0:
        return False
    if after(end, sk.snd_una):
        return False
    if not before(start, sk.undo_marker):
        return True
    if not after(end, sk.undo_marker):
        return False
    return not before(start, end - sk.max_window)


# ---- one record ----------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_sacktag_new(engine_t* e, tcb_t* sk, sack_state_t* state, uint8_t* sacked, uint32_t start, uint32_t end,
                                 uint32_t pcount, ns_t xmit_time) noexcept nogil:
    """[start, end) is SACKed for the first time."""
    tcp_rack_advance(e, sk, sacked[0], end, xmit_time)
    if sacked[0] & SR_RETRANS:
        # Without the lost mark the retransmission is believed to be still under way.
        if sacked[0] & SR_LOST:
            sacked[0] &= ~<uint8_t> (SR_LOST | SR_RETRANS)
            sk.lost_out -= pcount
            sk.retrans_out -= pcount
    else:
        if not sacked[0] & SR_ANY_RETRANS:
            # It filled a hole that was never retransmitted: reordering.
            if before(start, tcp_highest_sack_seq(e, sk)) and before(start, state.reord):
                state.reord = start
            if not after(end, sk.high_seq):
                state.flag |= FLAG_ORIG_SACK_ACKED
            if not state.has_sackt:
                state.first_sackt = xmit_time
                state.has_sackt = True
            state.last_sackt = xmit_time
        if sacked[0] & SR_LOST:
            sacked[0] &= ~<uint8_t> SR_LOST
            sk.lost_out -= pcount
    sacked[0] |= SR_SACKED
    state.flag |= FLAG_DATA_SACKED
    sk.sacked_out += pcount
    state.sack_delivered += pcount


cdef inline uint8_t tcp_sacktag_one(engine_t* e, tcb_t* sk, sack_state_t* state, uint8_t sacked, uint32_t start, uint32_t end,
                                    bint dup_sack, uint32_t pcount, ns_t xmit_time) noexcept nogil:
    """Account for [start, end) of a record with these marks; returns the new marks."""
    if dup_sack and sacked & SR_ANY_RETRANS:
        if sk.undo_marker and sk.undo_retrans > 0 and after(end, sk.undo_marker):
            sk.undo_retrans = i32_max(0, sk.undo_retrans - <int32_t> pcount)
        if sacked & SR_SACKED and before(start, state.reord):
            state.reord = start
    if not after(end, sk.snd_una):
        return sacked
    if not sacked & SR_SACKED:
        tcp_sacktag_new(e, sk, state, &sacked, start, end, pcount, xmit_time)
    # A redundant retransmission has arrived: it is no longer under way.
    if dup_sack and sacked & SR_RETRANS:
        sacked &= ~<uint8_t> SR_RETRANS
        sk.retrans_out -= pcount
    return sacked


cdef inline int tcp_match_skb_to_sack(engine_t* e, tcb_t* sk, idx_t i, uint32_t start, uint32_t end) noexcept nogil:
    """Does the block cover the record? One of several packets is first cut where the block begins or ends, at a multiple of its MSS: a
    packet that is covered in part is not SACKed. 1, 0, or < 0 if the walk must stop."""
    cdef srec_t* r = sr_at(e, i)
    cdef bint in_sack = not after(start, r.seq) and not before(end, r.end_seq)
    cdef uint32_t mss
    cdef uint32_t n
    cdef uint32_t whole
    if r.pcount <= 1 or in_sack or not after(r.end_seq, start):
        return in_sack
    mss = r.gso_size
    in_sack = not after(start, r.seq)
    if not in_sack:
        n = start - r.seq
        if n < mss:
            n = mss
    else:
        n = end - r.seq
        if n < mss:
            return -1
    if n > mss:
        whole = n // mss * mss
        if not in_sack and whole < n:
            whole += mss
        n = whole
    if n >= r.len and not in_sack:
        return 0
    if tcp_fragment_rtx(e, sk, i, n, mss) == 0:
        return -1
    return in_sack


# ---- merging with the SACKed record before it --------------------------------------------------------------------------------------
cdef inline bint tcp_shifted_skb(engine_t* e, tcb_t* sk, idx_t pi, idx_t i, sack_state_t* state, uint32_t pcount, uint32_t shifted,
                                 uint32_t mss, bint dup_sack) noexcept nogil:
    """The first `shifted` bytes of a record go over to the SACKed one before it. True: that was all of it, the record is gone."""
    cdef srec_t* p = sr_at(e, pi)
    cdef srec_t* r = sr_at(e, i)
    tcp_sacktag_one(e, sk, state, r.sacked, r.seq, r.seq + shifted, dup_sack, pcount, r.tx_time)
    tcp_rate_skb_delivered(sk, r, state.rate)
    p.end_seq += shifted
    p.len += shifted
    r.seq += shifted
    r.len -= shifted
    p.pcount += <uint16_t> pcount
    r.pcount -= <uint16_t> pcount
    if p.gso_size == 0:
        p.gso_size = <uint16_t> mss
    if r.pcount <= 1:
        r.gso_size = 0
    p.sacked |= r.sacked & SR_EVER_RETRANS
    if r.len > 0:
        mib_inc(&e.stats, MIB_TcpExtTCPSackShifted)
        return False
    if sk.retrans_hint == i:
        sk.retrans_hint = pi
    p.flags |= r.flags
    p.eor = r.eor
    if r.flags & TH_FIN:
        p.end_seq += 1
    if sk.highest_sack == i:
        tcp_advance_highest_sack(e, sk, i)
    if r.tstamp_flags:
        p.tstamp_flags |= r.tstamp_flags
        p.tskey = r.tskey
    p.rate_valid = 0
    sq_unlink_free(e, sk, i)
    mib_inc(&e.stats, MIB_TcpExtTCPSackMerged)
    return True


cdef inline bint tcp_skb_can_shift(const srec_t* to, const srec_t* r, uint32_t pcount, uint32_t n) noexcept nogil:
    """Limits of one record: sizes that still fit their fields."""
    return to.len + n < 65535 * TCP_MIN_GSO_SIZE and <uint32_t> to.pcount + pcount <= 65535


cdef inline int tcp_shift_len(const srec_t* p, const srec_t* r, uint32_t start, uint32_t end, uint32_t* pcount, uint32_t* mss) noexcept nogil:
    """How many bytes of r the block [start, end) lets shift into p: > 0, 0 if the record is left as it is, < 0 to go the ordinary way."""
    cdef uint32_t n
    if not after(start, r.seq) and not before(end, r.end_seq):
        pcount[0] = r.pcount
        mss[0] = tcp_skb_seglen(r)
        return <int> r.len if mss[0] == tcp_skb_seglen(p) else -1
    if not after(r.end_seq, start) or r.pcount <= 1:
        return 0
    if after(start, r.seq):
        return -1
    n = end - r.seq
    mss[0] = r.gso_size
    if mss[0] != tcp_skb_seglen(p):
        return -1
    if n < mss[0]:
        return 0
    pcount[0] = n // mss[0]
    return <int> (pcount[0] * mss[0])


cdef inline idx_t tcp_shift_skb_data(engine_t* e, tcb_t* sk, idx_t i, sack_state_t* state, uint32_t start, uint32_t end,
                                     bint dup_sack) noexcept nogil:
    """Try to merge what the block covers into the SACKed record before it. Returns the record to go on from (i itself: nothing to
    do here), or 0 to go the ordinary way."""
    cdef srec_t* r = sr_at(e, i)
    cdef srec_t* p = NULL
    cdef idx_t pi = r.prev
    cdef idx_t ni
    cdef uint32_t pcount = 0
    cdef uint32_t mss = 0
    cdef int n = -1
    if pi != 0 and (dup_sack or r.sacked & (SR_LOST | SR_RETRANS) != SR_RETRANS) and r.len != 0 and after(r.end_seq, sk.snd_una):
        p = sr_at(e, pi)
        if p.sacked & SR_TAGBITS == SR_SACKED and sr_can_merge(p, r):
            n = tcp_shift_len(p, r, start, end, &pcount, &mss)
            if n == 0:
                return i
    if n < 0 or not after(r.seq + <uint32_t> n, sk.snd_una) or not tcp_skb_can_shift(p, r, pcount, <uint32_t> n):
        mib_inc(&e.stats, MIB_TcpExtTCPSackShiftFallback)
        return 0
    if not tcp_shifted_skb(e, sk, pi, i, state, pcount, <uint32_t> n, mss, dup_sack):
        return pi
    # The hole between two SACKed records is gone: they become one.
    ni = sq_rtx_next(e, sk, pi)
    if ni == 0:
        return pi
    r = sr_at(e, ni)
    if (r.len != 0 and r.sacked & SR_TAGBITS == SR_SACKED and mss == tcp_skb_seglen(r) and sr_can_merge(p, r)
            and tcp_skb_can_shift(p, r, r.pcount, r.len)):
        tcp_shifted_skb(e, sk, pi, ni, state, r.pcount, r.len, mss, False)
    return pi


# ---- walks -----------------------------------------------------------------------------------------------------------------------------
cdef inline idx_t tcp_sacktag_walk(engine_t* e, tcb_t* sk, idx_t i, const sackblk_t* next_dup, sack_state_t* state, uint32_t start,
                                   uint32_t end, bint dup_sack_in) noexcept nogil:
    """Tag the records from i on that [start, end) covers; returns where the walk ended. next_dup: a D-SACK inside the block."""
    cdef idx_t tmp
    cdef int in_sack
    cdef bint dup_sack
    cdef srec_t* r
    while i:
        r = sr_at(e, i)
        in_sack = 0
        dup_sack = dup_sack_in
        if not before(r.seq, end):
            break
        if next_dup != NULL and before(r.seq, next_dup.end):
            in_sack = tcp_match_skb_to_sack(e, sk, i, next_dup.start, next_dup.end)
            if in_sack > 0:
                dup_sack = True
        if in_sack <= 0:
            tmp = tcp_shift_skb_data(e, sk, i, state, start, end, dup_sack)
            if tmp != 0 and tmp != i:
                i = sq_rtx_next(e, sk, tmp)
                continue
            in_sack = 0 if tmp != 0 else tcp_match_skb_to_sack(e, sk, i, start, end)
        if in_sack < 0:
            break
        if in_sack:
            r.sacked = tcp_sacktag_one(e, sk, state, r.sacked, r.seq, r.end_seq, dup_sack, r.pcount, r.tx_time)
            tcp_rate_skb_delivered(sk, r, state.rate)
            if r.sacked & SR_SACKED:
                sq_ts_unlink(e, sk, r)
            if not before(r.seq, tcp_highest_sack_seq(e, sk)):
                tcp_advance_highest_sack(e, sk, i)
        i = sq_rtx_next(e, sk, i)
    return i


cdef inline idx_t tcp_sacktag_skip(engine_t* e, tcb_t* sk, idx_t i, uint32_t seq) noexcept nogil:
    """The record that holds seq: at i if that lies above it already, else the first whose end is beyond seq; 0 if there is none."""
    if i != 0 and after(sr_at(e, i).seq, seq):
        return i
    if i == 0:
        i = sq_rtx_head(sk)
    while i != 0 and not before(seq, sr_at(e, i).end_seq):
        i = sq_rtx_next(e, sk, i)
    if i != 0 and before(seq, sr_at(e, i).seq):
        return 0
    return i


cdef inline idx_t tcp_maybe_skipping_dsack(engine_t* e, tcb_t* sk, idx_t i, const sackblk_t* next_dup, sack_state_t* state,
                                           uint32_t skip_to) noexcept nogil:
    """Before [.., skip_to) is skipped: a D-SACK that lies there must not be missed."""
    if next_dup != NULL and before(next_dup.start, skip_to):
        i = tcp_sacktag_skip(e, sk, i, next_dup.start)
        i = tcp_sacktag_walk(e, sk, i, NULL, state, next_dup.start, next_dup.end, True)
    return i


# ---- the option ------------------------------------------------------------------------------------------------------------------------
cdef inline int tcp_sack_blocks_in(engine_t* e, tcb_t* sk, const seg_t* s, uint32_t prior_snd_una, bint found_dup, sackblk_t* sp,
                                   int* first) noexcept nogil:
    """The valid blocks of the option in sequence order; first: where the option's first block ended up, -1 if it was dropped."""
    cdef int i
    cdef int j
    cdef int used = 0
    cdef bint dup
    cdef sackblk_t t
    first[0] = 0
    for i in range(s.n_sack):
        dup = i == 0 and found_dup
        sp[used] = s.sack[i]
        if not tcp_is_sackblock_valid(sk, dup, sp[used].start, sp[used].end):
            if dup:
                mib_inc(&e.stats, MIB_TcpExtTCPDSACKIgnoredOld if sk.undo_marker else MIB_TcpExtTCPDSACKIgnoredNoUndo)
            elif s.ack != sk.snd_una and not after(sp[used].end, sk.snd_una):
                continue                # an old ACK overtaken by a later one
            else:
                mib_inc(&e.stats, MIB_TcpExtTCPSACKDiscard)
            if i == 0:
                first[0] = -1
            continue
        if not after(sp[used].end, prior_snd_una):
            if i == 0:
                first[0] = -1
            continue
        used += 1
    for i in range(used - 1, 0, -1):
        for j in range(i):
            if after(sp[j].start, sp[j + 1].start):
                t = sp[j]
                sp[j] = sp[j + 1]
                sp[j + 1] = t
                if j == first[0]:
                    first[0] = j + 1
    return used


cdef inline void tcp_sacktag_blocks(engine_t* e, tcb_t* sk, const sackblk_t* sp, int used, int dup_at, sack_state_t* state) noexcept nogil:
    """Tag block after block in one pass over the queue. dup_at: which of them is a D-SACK, -1 = none. Of a block that overlaps one of
    the last ACK only what lies before and behind that is walked."""
    cdef const sackblk_t* next_dup
    cdef const sackblk_t* cache
    cdef uint32_t start
    cdef uint32_t end
    cdef idx_t i = 0
    cdef int k = 0
    cdef int c = 0 if sk.sacked_out else SACK_CACHE
    while c < SACK_CACHE and sk.los.recv_sack_cache[c].start == 0 and sk.los.recv_sack_cache[c].end == 0:
        c += 1
    while k < used:
        start = sp[k].start
        end = sp[k].end
        next_dup = &sp[k + 1] if k + 1 == dup_at else NULL
        while c < SACK_CACHE and not before(start, sk.los.recv_sack_cache[c].end):
            c += 1
        if c < SACK_CACHE and k != dup_at and after(end, sk.los.recv_sack_cache[c].start):
            cache = &sk.los.recv_sack_cache[c]
            if before(start, cache.start):
                i = tcp_sacktag_skip(e, sk, i, start)
                i = tcp_sacktag_walk(e, sk, i, next_dup, state, start, cache.start, False)
            if not after(end, cache.end):
                k += 1
                continue
            i = tcp_maybe_skipping_dsack(e, sk, i, next_dup, state, cache.end)
            c += 1
            if tcp_highest_sack_seq(e, sk) != cache.end:
                i = tcp_sacktag_skip(e, sk, i, cache.end)
                continue
            i = sk.highest_sack
            if i == 0:
                break
        else:
            if not before(start, tcp_highest_sack_seq(e, sk)):
                i = sk.highest_sack
                if i == 0:
                    break
            i = tcp_sacktag_skip(e, sk, i, start)
        i = tcp_sacktag_walk(e, sk, i, next_dup, state, start, end, k == dup_at)
        k += 1


cdef inline int tcp_sacktag_write_queue(engine_t* e, tcb_t* sk, const seg_t* s, uint32_t prior_snd_una, sack_state_t* state) noexcept nogil:
    """Take in the SACK option of an ACK. Returns FLAG_* to add."""
    cdef sackblk_t sp[SACK_CACHE]
    cdef sklos_t* los
    cdef bint found_dup
    cdef int used
    cdef int first
    cdef int i
    state.flag = 0
    state.reord = sk.snd_nxt
    if sk.sacked_out == 0:
        sk.highest_sack = sq_rtx_head(sk)
    found_dup = tcp_check_dsack(e, sk, s, prior_snd_una, state)
    if before(s.ack, prior_snd_una - sk.max_window):
        return 0                        # from another age
    if sk.packets_out == 0:
        return state.flag
    used = tcp_sack_blocks_in(e, sk, s, prior_snd_una, found_dup, sp, &first)
    tcp_sacktag_blocks(e, sk, sp, used, first if found_dup else -1, state)
    los = sk_los(e, sk)
    for i in range(SACK_CACHE):
        if i < SACK_CACHE - used:
            los.recv_sack_cache[i].start = 0
            los.recv_sack_cache[i].end = 0
        else:
            los.recv_sack_cache[i] = sp[i - (SACK_CACHE - used)]
    if sk.ca_state != TCP_CA_LOSS or sk.undo_marker:
        tcp_check_sack_reordering(e, sk, state.reord, False)
    return state.flag
