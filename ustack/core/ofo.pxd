# Segments out of order: the queue beyond the hole, SACK blocks, D-SACK (layer above rcvfin and prune, below dataq).
#
# RFC 2018, RFC 2883, facts J24, J30. Linux: tcp_data_queue_ofo, tcp_ofo_queue, tcp_sack_new_ofo_skb, tcp_sack_remove,
# tcp_dsack_*. Invariants: the queue's records ascend in seq and in end_seq; num_sacks <= 4, the most recent block
# first; blocks are disjoint. Called by dataq and input.

from ustack.core.types cimport (
    DROP_NONE, DROP_PROTO_MEM, DROP_TCP_OFOMERGE, DROP_TCP_OFO_DROP, idx_t, sackblk_t, seg_t, uint32_t,
)
from ustack.core.delack cimport (
    grow_truesize_, inet_csk_schedule_ack, tcp_data_ecn_check, tcp_measure_rcv_mss, tcp_sack_compress_send_ack,
)
from ustack.core.drops cimport sk_drop_late
from ustack.core.ofotree cimport ofo_floor, ofo_link, ofo_unlink
from ustack.core.prune cimport tcp_try_rmem_schedule
from ustack.core.rcvfin cimport tcp_fin
from ustack.core.rcvq cimport (
    rcv_charge, rcv_free_record, rcv_record, rcv_ring_store, rq_append, rr_fill, rr_try_coalesce, seg_truesize,
    tcp_rcv_nxt_update,
)
from ustack.core.rcvwin cimport tcp_grow_window, tcp_rcvbuf_grow
from ustack.core.records cimport rrec_t
from ustack.core.seqno cimport after, before
from ustack.core.access cimport rr_at, sk_los
from ustack.core.wake cimport sk_data_ready
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPDSACKOfoSent, MIB_TcpExtTCPDSACKOldSent, MIB_TcpExtTCPOFODrop, MIB_TcpExtTCPOFOMerge,
    MIB_TcpExtTCPOFOQueue, mib_inc,
)
from ustack.core.tcb cimport SF_ACCEPTED, SF_DEAD, sklos_t, tcb_t

cdef enum:
    TCP_NUM_SACKS = 4
    SACK_BLOCKS_EXPECTED = 2        # a block beyond these must not wait for a compressed ACK


# ---- D-SACK --------------------------------------------------------------------------------------------------------
cdef inline bint tcp_sack_extend(sackblk_t* b, uint32_t seq, uint32_t end_seq) noexcept nogil:
    """Join a range to a block it touches."""
    if after(seq, b.end) or after(b.start, end_seq):
        return False
    if before(seq, b.start):
        b.start = seq
    if after(end_seq, b.end):
        b.end = end_seq
    return True


cdef inline void tcp_dsack_set(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t end_seq) noexcept nogil:
    """Bytes came twice: the next ACK says so."""
    if sk.sack_ok == 0 or not e.cfg.tcp_dsack:
        return
    mib_inc(&e.stats, MIB_TcpExtTCPDSACKOldSent if before(seq, sk.rcv_nxt) else MIB_TcpExtTCPDSACKOfoSent)
    sk.rx_dsack = 1
    sk_los(e, sk).duplicate_sack.start = seq
    sk_los(e, sk).duplicate_sack.end = end_seq


cdef inline void tcp_dsack_extend(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t end_seq) noexcept nogil:
    if sk.rx_dsack:
        tcp_sack_extend(&sk_los(e, sk).duplicate_sack, seq, end_seq)
    else:
        tcp_dsack_set(e, sk, seq, end_seq)


# ---- SACK blocks ---------------------------------------------------------------------------------------------------
cdef inline void sack_drop_(tcb_t* sk, sklos_t* los, int i) noexcept nogil:
    sk.num_sacks -= 1
    while i < sk.num_sacks:
        los.selective_acks[i] = los.selective_acks[i + 1]
        i += 1


cdef inline void sack_maybe_coalesce_(tcb_t* sk, sklos_t* los) noexcept nogil:
    # The first block has grown and may touch others now.
    cdef int i = 1
    while i < sk.num_sacks:
        if tcp_sack_extend(&los.selective_acks[0], los.selective_acks[i].start, los.selective_acks[i].end):
            sack_drop_(sk, los, i)
        else:
            i += 1


cdef inline void sack_to_front_(sklos_t* los, int i, sackblk_t b) noexcept nogil:
    while i > 0:
        los.selective_acks[i] = los.selective_acks[i - 1]
        i -= 1
    los.selective_acks[0] = b


cdef inline void tcp_sack_new_ofo(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t end_seq) noexcept nogil:
    """A range was queued out of order: it extends a block or begins one, which comes first; the oldest is forgotten
    when there are too many."""
    cdef sklos_t* los = sk_los(e, sk)
    cdef int i = 0
    cdef sackblk_t b
    while i < sk.num_sacks:
        if tcp_sack_extend(&los.selective_acks[i], seq, end_seq):
            if i >= SACK_BLOCKS_EXPECTED:
                tcp_sack_compress_send_ack(e, sk)
            sack_to_front_(los, i, los.selective_acks[i])
            if sk.num_sacks > 1:
                sack_maybe_coalesce_(sk, los)
            return
        i += 1
    if i >= SACK_BLOCKS_EXPECTED:
        tcp_sack_compress_send_ack(e, sk)
    if i >= TCP_NUM_SACKS:
        i -= 1
        sk.num_sacks -= 1
    b.start = seq
    b.end = end_seq
    sack_to_front_(los, i, b)
    sk.num_sacks += 1


cdef inline void tcp_sack_remove(engine_t* e, tcb_t* sk) noexcept nogil:
    """rcv_nxt has moved: forget the blocks it has passed."""
    cdef int i = 0
    if sk.ofo_head == 0:
        sk.num_sacks = 0
        return
    while i < sk.num_sacks:
        if before(sk.rcv_nxt, sk.los.selective_acks[i].start):
            i += 1
        else:
            sack_drop_(sk, sk_los(e, sk), i)


# ---- from the queue to the application -----------------------------------------------------------------------------
cdef inline bint tcp_ofo_queue(engine_t* e, tcb_t* sk) noexcept nogil:
    """rcv_nxt has moved: take over what is contiguous now. True: a FIN was among it and sk is gone."""
    cdef uint32_t dsack_high = sk.rcv_nxt
    cdef uint32_t dsack
    cdef idx_t i
    cdef rrec_t* r
    cdef bint fin
    while sk.ofo_head:
        i = sk.ofo_head
        r = rr_at(e, i)
        if after(r.seq, sk.rcv_nxt):
            return False
        if before(r.seq, dsack_high):
            dsack = r.end_seq if before(r.end_seq, dsack_high) else dsack_high
            tcp_dsack_extend(e, sk, r.seq, dsack)
        ofo_unlink(e, sk, i)
        if not after(r.end_seq, sk.rcv_nxt):
            rcv_free_record(e, sk, i)
            sk_los(e, sk).drops += 1
            sk_drop_late(e, sk, DROP_TCP_OFO_DROP)
            continue
        fin = r.fin != 0
        if rr_try_coalesce(e, sk, sk.rq_tail, r):
            tcp_rcv_nxt_update(sk, r.end_seq)
            rcv_free_record(e, sk, i)
        else:
            tcp_rcv_nxt_update(sk, r.end_seq)
            rq_append(e, sk, i)
        if fin:
            return tcp_fin(e, sk)
    return False


# ---- into the queue ------------------------------------------------------------------------------------------------
cdef inline void ofo_merge_right_(engine_t* e, tcb_t* sk, idx_t n) noexcept nogil:
    # Records that n covers go; one that reaches further stays, and the overlap is reported.
    cdef rrec_t* r = rr_at(e, n)
    cdef rrec_t* r1
    cdef idx_t i
    while r.next:
        i = r.next
        r1 = rr_at(e, i)
        if not after(r.end_seq, r1.seq):
            return
        if before(r.end_seq, r1.end_seq):
            tcp_dsack_extend(e, sk, r1.seq, r.end_seq)
            return
        tcp_dsack_extend(e, sk, r1.seq, r1.end_seq)
        ofo_drop_covered_(e, sk, i)


cdef inline void ofo_drop_covered_(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    mib_inc(&e.stats, MIB_TcpExtTCPOFOMerge)
    sk_los(e, sk).drops += 1
    sk_drop_late(e, sk, DROP_TCP_OFOMERGE)
    ofo_unlink(e, sk, i)
    rcv_free_record(e, sk, i)


cdef inline bint ofo_coalesce_(engine_t* e, tcb_t* sk, idx_t to, const seg_t* s) noexcept nogil:
    # Append the segment to the record that ends where it begins.
    cdef rrec_t tmp
    rr_fill(e, &tmp, s)
    if not rr_try_coalesce(e, sk, to, &tmp):
        return False
    rcv_ring_store(sk, s, s.seq, s.seq)
    return True


cdef inline int ofo_place_(engine_t* e, tcb_t* sk, const seg_t* s, idx_t* placed) noexcept nogil:
    # Find the segment's place among the records. *placed: its new record (0: merged into another or nothing new in it).
    cdef idx_t left
    cdef idx_t after_i
    cdef rrec_t* r
    cdef uint32_t start = s.seq
    placed[0] = 0
    if ofo_coalesce_(e, sk, sk.los.ofo_tail, s):
        return DROP_NONE
    left = ofo_floor(e, sk, s.seq)
    after_i = left
    if left:
        r = rr_at(e, left)
        if before(s.seq, r.end_seq):
            if not after(s.end_seq, r.end_seq):
                mib_inc(&e.stats, MIB_TcpExtTCPOFOMerge)
                tcp_dsack_set(e, sk, s.seq, s.end_seq)
                return DROP_TCP_OFOMERGE
            if after(s.seq, r.seq):
                tcp_dsack_set(e, sk, s.seq, r.end_seq)
                start = r.end_seq
                if r.prev and after(rr_at(e, r.prev).end_seq, start):
                    start = rr_at(e, r.prev).end_seq
            else:
                tcp_dsack_extend(e, sk, r.seq, r.end_seq)
                after_i = r.prev
                ofo_drop_covered_(e, sk, left)
        elif ofo_coalesce_(e, sk, left, s):
            return DROP_NONE
    rcv_ring_store(sk, s, s.seq, start)
    placed[0] = rcv_record(e, s)
    ofo_link(e, sk, after_i, placed[0])
    ofo_merge_right_(e, sk, placed[0])
    return DROP_NONE


cdef inline int tcp_data_queue_ofo(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Queue a segment beyond a hole. rcv_prepare has said yes. A drop reason, or 0."""
    cdef idx_t placed
    cdef int reason
    cdef int size = seg_truesize(s)
    tcp_data_ecn_check(e, sk, s)
    if not tcp_try_rmem_schedule(e, sk, s, size):
        mib_inc(&e.stats, MIB_TcpExtTCPOFODrop)
        sk_data_ready(e, sk)
        return DROP_PROTO_MEM
    tcp_measure_rcv_mss(e, sk, s)
    sk.pred_flags = 0
    inet_csk_schedule_ack(sk)
    sk_los(e, sk).rcv_ooopack += (s.len + s.gso_size - 1) // s.gso_size if s.gso_size else 1
    mib_inc(&e.stats, MIB_TcpExtTCPOFOQueue)
    if sk.ofo_head == 0:
        sk.num_sacks = 0
    reason = ofo_place_(e, sk, s, &placed)
    if sk.sack_ok:
        tcp_sack_new_ofo(e, sk, s.seq, s.end_seq)
        # Without SACK the window stays, so that the peer sees plain duplicate ACKs.
        if reason == DROP_NONE:
            tcp_grow_window(e, sk, s.len, size if placed else grow_truesize_(s))
    if placed:
        rcv_charge(sk, size)
    if sk.sflags & SF_ACCEPTED and not sk.sflags & SF_DEAD:
        tcp_rcvbuf_grow(e, sk, sk.rcvq_space)
    return reason
