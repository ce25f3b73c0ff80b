# The receive queue: records counted by truesize, coalescing, payload in the ring by sequence number (layer: above
# sock).
#
# Facts J30. A record (rrec_t) stands for one of Linux's skbs: how much memory it counts decides windows, pruning and
# merges. The bytes lie in sk.rcv at their own sequence numbers, in-order and out-of-order alike, so moving a record
# between the queues moves no byte. Where records overlap, the byte that counts is that of the record with the lower
# sequence number; whoever stores payload therefore stores only what lies above the end of its predecessor.
# Invariants: rmem_alloc is the sum of truesize over both queues; the ring holds [copied_seq, rcv_ring_span_end); no
# memory when both queues are empty. Receive rings are freed at once: no frame to send ever points into one.

from ustack.core.types cimport E_NOMEM, TH_FIN, TH_SYN, idx_t, int32_t, seg_t, uint32_t, uint8_t, unlikely
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport rrec_t
from ustack.core.ring cimport ring_free, ring_reserve, ring_write
from ustack.core.seqno cimport after
from ustack.core.skmem cimport sk_forced_mem_schedule, sk_mem_charge, sk_mem_uncharge
from ustack.core.access cimport rr_at
from ustack.core.sock cimport sk_purge_recv, sk_rings_idle
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPRcvCoalesce, mib_inc
from ustack.core.tcb cimport SF_NO_RINGS, tcb_t

cdef enum:
    TRUESIZE_HEAD = 832             # sk_buff, shared info and the smallest head
    MAX_SKB_FRAGS = 17
    FRAME_LINEAR_MAX = 4031         # a longer frame has its payload in pages
    FRAME_OVERHEAD = 640            # sk_buff, headroom and shared info beside the area for the frame
    GOOD_LINEAR = 3712              # frame bytes that fit into a page with headroom and shared info


# ---- what a frame counts ---------------------------------------------------------------------------------------------
cdef inline uint32_t head_room_(uint32_t n) noexcept nogil:
    # Payload area of the linear buffer that a frame of n bytes gets.
    if n <= 192:
        return 192
    if n <= 640:
        return 640
    if n <= 1664:
        return 1664
    if n <= GOOD_LINEAR:
        return GOOD_LINEAR
    return 7808


cdef inline int32_t seg_truesize(const seg_t* s) noexcept nogil:
    """Memory that a received frame counts, by its length (IP header included). A long one has its payload in pages, one that a link
    merged from several segments (gso_size) begins with a full page of linear buffer."""
    cdef uint32_t n = s.ip_len
    if n <= FRAME_LINEAR_MAX:
        return <int32_t> (head_room_(n) + FRAME_OVERHEAD)
    if s.gso_size:
        return <int32_t> (GOOD_LINEAR + FRAME_OVERHEAD + (((n - GOOD_LINEAR + 4095) >> 12) << 12))
    return TRUESIZE_HEAD + <int32_t> (((n + 4095) >> 12) << 12)


cdef inline uint8_t page_frags_(uint32_t n) noexcept nogil:
    # Page fragments of n bytes: blocks of up to eight pages.
    cdef uint32_t pages = (n + 4095) >> 12
    cdef uint8_t frags = 0
    cdef uint32_t order = 3
    while pages:
        while order and pages < <uint32_t> 1 << order:
            order -= 1
        pages -= <uint32_t> 1 << order
        frags += 1
    return frags


cdef inline bint seg_in_pages(const seg_t* s) noexcept nogil:
    """All of its payload is in page fragments."""
    return s.ip_len > FRAME_LINEAR_MAX and s.gso_size == 0


cdef inline void rr_fill(engine_t* e, rrec_t* r, const seg_t* s) noexcept nogil:
    """What a record for this segment says; links are not touched."""
    r.seq = s.seq
    r.end_seq = s.end_seq
    r.truesize = seg_truesize(s)
    r.room = head_room_(s.ip_len) - s.ip_len if s.ip_len <= FRAME_LINEAR_MAX else 0
    r.frags = page_frags_(s.ip_len) if seg_in_pages(s) else 0
    r.fin = 1 if s.flags & TH_FIN else 0
    r.tstamp = e.now


cdef inline uint32_t rr_len(const rrec_t* r) noexcept nogil:
    """Payload bytes."""
    return r.end_seq - r.seq - r.fin


# ---- ring ----------------------------------------------------------------------------------------------------------
cdef inline int rcv_ring_room(engine_t* e, tcb_t* sk, uint32_t end) noexcept nogil:
    """Make the ring reach up to sequence number end."""
    cdef uint8_t* old = NULL
    cdef uint32_t used = 0
    cdef int rc
    if sk.rcv.size == 0 or not after(sk.rcv_ring_span_end, sk.copied_seq):
        sk.rcv_ring_span_end = sk.copied_seq
    else:
        used = sk.rcv_ring_span_end - sk.copied_seq
    if not after(end, sk.copied_seq) or sk.sflags & SF_NO_RINGS:
        return 0
    rc = ring_reserve(&sk.rcv, sk.copied_seq, used, end - sk.copied_seq, &old)
    if unlikely(old != NULL):
        ring_free(old)
    return rc


cdef inline void rcv_ring_store(tcb_t* sk, const seg_t* s, uint32_t seq, uint32_t start) noexcept nogil:
    """Write the segment's payload, whose first byte has sequence number seq, from start on. rcv_ring_room has made
    the room."""
    cdef uint32_t end = seq + s.len
    cdef uint32_t skip = 0
    if after(start, seq):
        skip = start - seq
    if skip >= s.len or sk.sflags & SF_NO_RINGS:
        return
    ring_write(&sk.rcv, seq + skip, s.data + skip, s.len - skip)
    if after(end, sk.rcv_ring_span_end):
        sk.rcv_ring_span_end = end


cdef inline void rcv_ring_idle(engine_t* e, tcb_t* sk) noexcept nogil:
    """If both queues are empty the memory may go back."""
    if sk.rq_head == 0 and sk.ofo_head == 0 and sk.rcv.size:
        sk_rings_idle(e, sk)


# ---- records -------------------------------------------------------------------------------------------------------
cdef inline int rcv_prepare(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Can this segment be stored? -E_NOMEM when records or ring memory have run out; nothing has changed then."""
    if e.rrec.used >= e.rrec.cap:
        return -E_NOMEM
    return rcv_ring_room(e, sk, s.seq + ((s.flags & TH_SYN) != 0) + s.len)


cdef inline idx_t rcv_record(engine_t* e, const seg_t* s) noexcept nogil:
    """A record for a segment, in no queue and not charged. rcv_prepare has said yes."""
    cdef idx_t i = pool_alloc(&e.rrec)
    rr_fill(e, rr_at(e, i), s)
    return i


cdef inline void rcv_charge(tcb_t* sk, int32_t truesize) noexcept nogil:
    sk.rmem_alloc += truesize
    sk_mem_charge(sk, truesize)


cdef inline void rcv_uncharge(engine_t* e, tcb_t* sk, int32_t truesize) noexcept nogil:
    sk.rmem_alloc -= truesize
    sk_mem_uncharge(e, sk, truesize)


cdef inline void rcv_free_record(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Free a charged record that is in no queue any more."""
    rcv_uncharge(e, sk, rr_at(e, i).truesize)
    pool_free(&e.rrec, i)


cdef inline void rq_append(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    rr_at(e, i).next = 0
    rr_at(e, i).prev = sk.rq_tail
    if sk.rq_tail:
        rr_at(e, sk.rq_tail).next = i
    else:
        sk.rq_head = i
    sk.rq_tail = i


cdef inline void rq_unlink(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    cdef rrec_t* r = rr_at(e, i)
    if r.prev:
        rr_at(e, r.prev).next = r.next
    else:
        sk.rq_head = r.next
    if r.next:
        rr_at(e, r.next).prev = r.prev
    else:
        sk.rq_tail = r.prev
    r.next = 0
    r.prev = 0


cdef inline void rq_eat(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """tcp_eat_recv_skb: the record has been read."""
    rq_unlink(e, sk, i)
    rcv_free_record(e, sk, i)


# ---- coalescing ----------------------------------------------------------------------------------------------------
cdef inline bint rr_try_coalesce(engine_t* e, tcb_t* sk, idx_t to, const rrec_t* frm) noexcept nogil:
    """tcp_try_coalesce: append a record to another if it is contiguous and fits into its head, or is made of pages.
    What merged charges only its pages; a record that was charged itself is freed by the caller."""
    cdef rrec_t* r
    cdef uint32_t n
    cdef int32_t delta = 0
    if to == 0:
        return False
    r = rr_at(e, to)
    if frm.seq != r.end_seq:
        return False
    n = rr_len(frm)
    if n <= r.room:
        r.room -= n
    elif frm.frags and <int> r.frags + frm.frags <= MAX_SKB_FRAGS:
        delta = frm.truesize - TRUESIZE_HEAD
        r.frags += frm.frags
        r.room = 0
    else:
        return False
    r.truesize += delta
    rcv_charge(sk, delta)
    mib_inc(&e.stats, MIB_TcpExtTCPRcvCoalesce)
    r.end_seq = frm.end_seq
    r.fin |= frm.fin
    r.tstamp = frm.tstamp
    return True


cdef inline void tcp_rcv_nxt_update(tcb_t* sk, uint32_t seq) noexcept nogil:
    sk.bytes_received += seq - sk.rcv_nxt
    sk.rcv_nxt = seq


cdef inline bint tcp_queue_rcv(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Append a segment that begins at or before rcv_nxt. True if it merged into the last record. rcv_prepare has said
    yes."""
    cdef rrec_t tmp
    cdef idx_t i
    rcv_ring_store(sk, s, s.seq, sk.rcv_nxt)
    if sk.rq_tail:
        rr_fill(e, &tmp, s)
        if rr_try_coalesce(e, sk, sk.rq_tail, &tmp):
            tcp_rcv_nxt_update(sk, s.end_seq)
            return True
    tcp_rcv_nxt_update(sk, s.end_seq)
    i = rcv_record(e, s)
    rq_append(e, sk, i)
    rcv_charge(sk, rr_at(e, i).truesize)
    return False


cdef inline void rcv_queue_syn_data(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """tcp_fastopen_add_skb without the FIN: payload of a SYN (or SYN-ACK) that Fast Open accepted. copied_seq and
    rcv_nxt are irs + 1."""
    cdef idx_t i
    cdef rrec_t* r
    cdef uint32_t start = s.seq + 1 if s.flags & TH_SYN else s.seq
    if s.end_seq == sk.rcv_nxt or rcv_prepare(e, sk, s) < 0:
        return
    sk.segs_in = 1
    sk.data_segs_in = 1 if s.len else 0
    rcv_ring_store(sk, s, start, sk.rcv_nxt)
    i = rcv_record(e, s)
    r = rr_at(e, i)
    r.seq = start
    sk_forced_mem_schedule(e, sk, r.truesize)
    rq_append(e, sk, i)
    rcv_charge(sk, r.truesize)
    sk.rcv_nxt = s.end_seq
    sk.syn_data_acked = 1
    sk.bytes_received = s.len


# ---- the end -------------------------------------------------------------------------------------------------------
cdef inline void rcv_queue_purge(engine_t* e, tcb_t* sk) noexcept nogil:
    """Both queues and the ring; sequence variables stay."""
    sk_purge_recv(e, sk)


cdef inline void rcv_queue_flush(engine_t* e, tcb_t* sk) noexcept nogil:
    """What close() throws away: the data in order. What lies beyond a gap stays, and counts against the window."""
    if sk.ofo_head == 0:
        sk_purge_recv(e, sk)
    while sk.rq_head:
        rq_eat(e, sk, sk.rq_head)
