# When the receive queue outgrows the buffer: enlarge, collapse, prune (layer above rcvwin).
#
# Linux: tcp_can_ingest, tcp_try_rmem_schedule, tcp_prune_queue, tcp_collapse, tcp_collapse_ofo_queue,
# tcp_prune_ofo_queue. Collapsing packs the payload of several wasteful records into page-sized ones; here no byte
# moves, only the records that count memory are replaced. Invariants as in rcvq.pxd. Called by ofo.pxd and dataq.pxd
# before they queue a segment.

from ustack.core.types cimport DROP_TCP_OFO_QUEUE_PRUNE, idx_t, int32_t, seg_t, uint32_t, likely
from ustack.core.drops cimport sk_drop_late
from ustack.core.ofotree cimport ofo_link, ofo_unlink
from ustack.core.pool cimport pool_alloc
from ustack.core.rcvq cimport rcv_charge, rcv_free_record, rq_unlink, rr_len
from ustack.core.rcvwin cimport adjust_rcv_ssthresh_, tcp_clamp_window, tcp_win_from_space
from ustack.core.records cimport rrec_t
from ustack.core.seqno cimport after, before, u32_min
from ustack.core.skmem cimport sk_rmem_schedule, tcp_under_memory_pressure
from ustack.core.access cimport rr_at, sk_los
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtOfoPruned, MIB_TcpExtPruneCalled, MIB_TcpExtRcvPruned, MIB_TcpExtTCPRcvCollapsed, mib_inc,
)
from ustack.core.tcb cimport tcb_t

cdef enum:
    COLLAPSE_MAX = 3776             # payload of a record made by collapsing: a page less the overhead
    SKB_OVERHEADS = 576             # what such a record counts beside its buffer


cdef inline bint tcp_can_ingest(const tcb_t* sk) noexcept nogil:
    """Is the queue still within the buffer?"""
    return sk.rmem_alloc <= sk.rcvbuf


cdef inline void tcp_sack_reset(tcb_t* sk) noexcept nogil:
    sk.rx_dsack = 0
    sk.num_sacks = 0


# ---- collapsing ----------------------------------------------------------------------------------------------------
cdef inline uint32_t collapsed_head_(uint32_t n) noexcept nogil:
    # Size of the buffer that a record made for n bytes gets.
    if n <= 256:
        return 256
    if n <= 704:
        return 704
    if n <= 1728:
        return 1728
    return COLLAPSE_MAX


cdef inline idx_t collapse_one_(engine_t* e, tcb_t* sk, idx_t i, bint ofo) noexcept nogil:
    # Free a record whose bytes are elsewhere by now; returns the next one.
    cdef idx_t nxt = rr_at(e, i).next
    if ofo:
        ofo_unlink(e, sk, i)
    else:
        rq_unlink(e, sk, i)
    rcv_free_record(e, sk, i)
    mib_inc(&e.stats, MIB_TcpExtTCPRcvCollapsed)
    return nxt


cdef inline idx_t collapse_find_(engine_t* e, tcb_t* sk, bint ofo, idx_t i, idx_t tail, uint32_t* start) noexcept nogil:
    # The first record worth collapsing: wasteful, partly read, or overlapping the next. 0 if there is none.
    cdef rrec_t* r
    cdef idx_t n
    while i and i != tail:
        r = rr_at(e, i)
        n = r.next
        if not before(start[0], r.end_seq):
            i = collapse_one_(e, sk, i, ofo)
            continue
        if not r.fin and (tcp_win_from_space(sk, r.truesize) > rr_len(r) or before(r.seq, start[0])):
            return i
        if n and n != tail and r.end_seq != rr_at(e, n).seq:
            return 0 if r.fin else i
        start[0] = r.end_seq
        i = n
    return 0


cdef inline idx_t collapse_fill_(engine_t* e, tcb_t* sk, bint ofo, idx_t i, idx_t tail, uint32_t* start, uint32_t stop,
                                 uint32_t* end_seq, bint* more) noexcept nogil:
    # Move up to COLLAPSE_MAX bytes from record i on into one new record's account; *end_seq is its end. Returns the next record.
    cdef uint32_t left = u32_min(COLLAPSE_MAX, stop - start[0])
    cdef uint32_t size
    cdef rrec_t* r
    more[0] = True
    while left > 0:
        r = rr_at(e, i)
        if before(start[0], r.end_seq):
            size = u32_min(left, r.end_seq - start[0])
            left -= size
            start[0] += size
            end_seq[0] = start[0]
        if not before(start[0], r.end_seq):
            i = collapse_one_(e, sk, i, ofo)
            if i == 0 or i == tail or rr_at(e, i).fin:
                more[0] = False
                return i
    return i


cdef inline void collapse_put_(engine_t* e, tcb_t* sk, bint ofo, idx_t n, idx_t before_i) noexcept nogil:
    cdef rrec_t* r = rr_at(e, n)
    if ofo:
        ofo_link(e, sk, rr_at(e, before_i).prev if before_i else sk.los.ofo_tail, n)
        return
    r.next = before_i
    r.prev = rr_at(e, before_i).prev if before_i else sk.rq_tail
    if r.prev:
        rr_at(e, r.prev).next = n
    else:
        sk.rq_head = n
    if before_i:
        rr_at(e, before_i).prev = n
    else:
        sk.rq_tail = n


cdef inline void tcp_collapse(engine_t* e, tcb_t* sk, bint ofo, idx_t head, idx_t tail, uint32_t start, uint32_t stop) noexcept nogil:
    """Pack the records from head up to tail (exclusive, 0 = the end), which hold [start, stop), into as few as
    possible."""
    cdef idx_t i = collapse_find_(e, sk, ofo, head, tail, &start)
    cdef idx_t n
    cdef uint32_t room
    cdef rrec_t* r
    cdef bint more = True
    if i == 0:
        return
    while more and before(start, stop):
        n = pool_alloc(&e.rrec)
        if n == 0:
            return
        room = collapsed_head_(u32_min(COLLAPSE_MAX, stop - start))
        r = rr_at(e, n)
        r.seq = start
        r.end_seq = start
        r.truesize = <int32_t> room + SKB_OVERHEADS
        r.tstamp = e.now
        rcv_charge(sk, r.truesize)
        i = collapse_fill_(e, sk, ofo, i, tail, &start, stop, &r.end_seq, &more)
        r.room = room - (r.end_seq - r.seq)
        # A record that was used in part begins where the new one ends.
        if i and before(rr_at(e, i).seq, start):
            collapse_shift_(e, sk, ofo, i, start)
        collapse_put_(e, sk, ofo, n, i)


cdef inline void collapse_shift_(engine_t* e, tcb_t* sk, bint ofo, idx_t i, uint32_t start) noexcept nogil:
    # Its first bytes went into another record; keys of the tree stay distinct and ascending.
    cdef idx_t prev = rr_at(e, i).prev
    if not ofo:
        rr_at(e, i).seq = start
        return
    ofo_unlink(e, sk, i)
    rr_at(e, i).seq = start
    ofo_link(e, sk, prev, i)


cdef inline void tcp_collapse_ofo_queue(engine_t* e, tcb_t* sk) noexcept nogil:
    """Each contiguous run of the out-of-order queue on its own; tiny runs are left alone."""
    cdef idx_t i = sk.ofo_head
    cdef idx_t head
    cdef uint32_t start
    cdef uint32_t end
    cdef int32_t size
    cdef int32_t head_size
    cdef int32_t sum_tiny = 0
    cdef rrec_t* r
    while i:
        head = i
        r = rr_at(e, i)
        start = r.seq
        end = r.end_seq
        size = r.truesize
        head_size = size
        i = r.next
        while i:
            r = rr_at(e, i)
            if after(r.seq, end) or before(r.end_seq, start):
                break
            size += r.truesize
            if after(r.end_seq, end):
                end = r.end_seq
            i = r.next
        if size != head_size or end - start >= COLLAPSE_MAX:
            tcp_collapse(e, sk, True, head, i, start, end)
        else:
            sum_tiny += size
            if sum_tiny > sk.rcvbuf >> 3:
                return


# ---- pruning -------------------------------------------------------------------------------------------------------
cdef inline bint tcp_prune_ofo_queue(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Throw away out-of-order records from the end, an eighth of the buffer at a time, but none before the arriving
    segment."""
    cdef int32_t goal = sk.rcvbuf >> 3
    cdef idx_t i
    cdef bint pruned = False
    while sk.los.ofo_tail:
        i = sk.los.ofo_tail
        if after(s.seq, rr_at(e, i).seq):
            break
        pruned = True
        goal -= rr_at(e, i).truesize
        ofo_unlink(e, sk, i)
        rcv_free_record(e, sk, i)
        sk_los(e, sk).drops += 1
        sk_drop_late(e, sk, DROP_TCP_OFO_QUEUE_PRUNE)
        if sk.los.ofo_tail == 0 or goal <= 0:
            if tcp_can_ingest(sk) and not tcp_under_memory_pressure(e):
                break
            goal = sk.rcvbuf >> 3
    if pruned:
        mib_inc(&e.stats, MIB_TcpExtOfoPruned)
        if sk.sack_ok:
            tcp_sack_reset(sk)
    return pruned


cdef inline bint tcp_prune_queue(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Bring the queue within the buffer, if need be by force. False: it is beyond that and the segment is lost."""
    mib_inc(&e.stats, MIB_TcpExtPruneCalled)
    if not tcp_can_ingest(sk):
        tcp_clamp_window(e, sk)
    elif tcp_under_memory_pressure(e):
        adjust_rcv_ssthresh_(e, sk, 4 * sk.advmss)
    if tcp_can_ingest(sk):
        return True
    tcp_collapse_ofo_queue(e, sk)
    if sk.rq_head:
        tcp_collapse(e, sk, False, sk.rq_head, 0, sk.copied_seq, sk.rcv_nxt)
    if tcp_can_ingest(sk):
        return True
    tcp_prune_ofo_queue(e, sk, s)
    if tcp_can_ingest(sk):
        return True
    mib_inc(&e.stats, MIB_TcpExtRcvPruned)
    sk.pred_flags = 0
    return False


cdef inline bint tcp_try_rmem_schedule(engine_t* e, tcb_t* sk, const seg_t* s, int32_t truesize) noexcept nogil:
    """May the segment be queued? Makes room if it can."""
    if likely(tcp_can_ingest(sk)) and likely(sk_rmem_schedule(e, sk, truesize)):
        return True
    if not tcp_prune_queue(e, sk, s):
        return False
    while not sk_rmem_schedule(e, sk, truesize):
        if not tcp_prune_ofo_queue(e, sk, s):
            return False
    return True
