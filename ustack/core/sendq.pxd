# The send queue: records over the send ring, memory accounting, chronographs (layer: above sock).
#
# One list of srec_t by sequence number holds Linux's write queue and retransmit queue: the records before sk.send_head have been
# sent, those from it on have not. The list of sent, not SACKed records by time of transmission is RACK's. A record's payload is
# the bytes of the send ring at its own sequence numbers, so splitting, merging and trimming records never move a byte.
# Facts J29. Invariants:
# - records are contiguous: next.seq == end_seq; the last one's end_seq is write_seq;
# - the ring holds the bytes from snd_una (or the SYN before them) to write_seq;
# - wmem_queued is the sum of SR_TRUESIZE + payload of all records;
# - r.sent <=> r stands before send_head; r.on_ts implies r.sent.
# Used by everything that sends or acknowledges; knows nothing of segments on the wire.

from ustack.core.types cimport (
    E_NOMEM, NS_PER_MS, TH_ACK, TH_FIN, TH_PSH, TH_SYN, idx_t, int32_t, int64_t, ns_t, uint8_t, uint16_t, uint32_t,
    uint64_t, likely,
)
from ustack.core.errq cimport zc_attach, zc_put
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport SR_LOST, SR_RETRANS, SR_SACKED, srec_t
from ustack.core.ring cimport ring_reserve, ring_write
from ustack.core.seqno cimport before, u32_max, u32_min
from ustack.core.skmem cimport sk_forced_mem_schedule, sk_mem_charge, sk_mem_uncharge
from ustack.core.access cimport sr_at
from ustack.core.sock cimport sk_purge_send
from ustack.core.wake cimport garbage_put, sk_stream_is_writeable, sk_write_space
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    CC_BBR, CHRONO_BUSY, CHRONO_SNDBUF_LIMITED, CHRONO_UNSPEC, SF_DEAD, SF_NO_RINGS, SF_NOSPACE, SOCK_SNDBUF_LOCK, TCP_INIT_CWND, tcb_t,
)

cdef enum:
    SR_TRUESIZE = 832               # what a record counts against sndbuf beside its payload
    SKB_OVERHEAD = 256              # sizeof(sk_buff), rounded
    SHINFO_SIZE = 320               # sizeof(skb_shared_info), rounded
    MAX_TCP_HEADER = 256
    GSO_LEGACY_MAX_SIZE = 65536
    SOCK_MIN_SNDBUF = 4608
    TCPHDR_NEVER_FIRST = TH_FIN | TH_PSH    # flags that a split leaves to the second part


# ---- reading the queue -------------------------------------------------------------------------------------------------------
cdef inline bint tcp_is_sack(const tcb_t* sk) noexcept nogil:
    return sk.sack_ok != 0


cdef inline uint32_t tcp_left_out(const tcb_t* sk) noexcept nogil:
    return sk.sacked_out + sk.lost_out


cdef inline uint32_t tcp_packets_in_flight(const tcb_t* sk) noexcept nogil:
    return sk.packets_out - tcp_left_out(sk) + sk.retrans_out


cdef inline uint32_t tcp_wnd_end(const tcb_t* sk) noexcept nogil:
    return sk.snd_una + sk.snd_wnd


cdef inline bint tcp_urg_mode(const tcb_t* sk) noexcept nogil:
    return sk.snd_una != sk.snd_up


cdef inline bint sq_wq_empty(const tcb_t* sk) noexcept nogil:
    return sk.send_head == 0


cdef inline bint sq_empty(const tcb_t* sk) noexcept nogil:
    return sk.sq_head == 0


cdef inline idx_t sq_rtx_head(const tcb_t* sk) noexcept nogil:
    """Oldest record sent and not acknowledged, 0 if there is none."""
    return sk.sq_head if sk.sq_head != sk.send_head else 0


cdef inline idx_t sq_rtx_tail(engine_t* e, const tcb_t* sk) noexcept nogil:
    return sr_at(e, sk.send_head).prev if sk.send_head else sk.sq_tail


cdef inline idx_t sq_wq_tail(const tcb_t* sk) noexcept nogil:
    """Last record not yet sent, 0 if all have been."""
    return sk.sq_tail if sk.send_head else 0


cdef inline idx_t sq_rtx_next(engine_t* e, const tcb_t* sk, idx_t i) noexcept nogil:
    """The next record of the retransmit queue, 0 at its end."""
    i = sr_at(e, i).next
    return i if i != sk.send_head else 0


cdef inline uint32_t sr_payload_seq(const srec_t* r) noexcept nogil:
    return r.seq + 1 if r.flags & TH_SYN else r.seq


cdef inline bint sr_can_collapse_to(const srec_t* r) noexcept nogil:
    return r.eor == 0


cdef inline bint sr_can_merge(const srec_t* to, const srec_t* r) noexcept nogil:
    """May the bytes of r go over to the record before it? Zero-copy data stays where it is."""
    return to.eor == 0 and to.zc == 0 and r.zc == 0


cdef inline void tcp_set_tso_segs(srec_t* r, uint32_t mss) noexcept nogil:
    """How many packets of mss the record makes (tcp_set_skb_tso_segs)."""
    if r.len <= mss:
        r.gso_size = 0
        r.pcount = 1
    else:
        r.gso_size = <uint16_t> mss
        r.pcount = <uint16_t> ((r.len + mss - 1) / mss)


# ---- chronographs: what limits the sender (tcpi_busy_time, rwnd_limited, sndbuf_limited) -------------------------------------------
cdef inline void tcp_chrono_set(engine_t* e, tcb_t* sk, uint8_t which) noexcept nogil:
    if sk.chrono_type > CHRONO_UNSPEC:
        sk.chrono_stat[sk.chrono_type - 1] += <uint32_t> (e.now // NS_PER_MS) - sk.chrono_start
    sk.chrono_start = <uint32_t> (e.now // NS_PER_MS)
    sk.chrono_type = which


cdef inline void tcp_chrono_start(engine_t* e, tcb_t* sk, uint8_t which) noexcept nogil:
    """The more interesting condition wins over a running lesser one."""
    if which > sk.chrono_type:
        tcp_chrono_set(e, sk, which)


cdef inline void tcp_chrono_stop(engine_t* e, tcb_t* sk, uint8_t which) noexcept nogil:
    if sq_empty(sk):
        tcp_chrono_set(e, sk, CHRONO_UNSPEC)
    elif which == sk.chrono_type:
        tcp_chrono_set(e, sk, CHRONO_BUSY)


# ---- list of sent records by time --------------------------------------------------------------------------------------------
cdef inline void sq_ts_unlink(engine_t* e, tcb_t* sk, srec_t* r) noexcept nogil:
    if not r.on_ts:
        return
    if r.ts_prev:
        sr_at(e, r.ts_prev).ts_next = r.ts_next
    else:
        sk.ts_head = r.ts_next
    if r.ts_next:
        sr_at(e, r.ts_next).ts_prev = r.ts_prev
    else:
        sk.ts_tail = r.ts_prev
    r.ts_next = 0
    r.ts_prev = 0
    r.on_ts = 0


cdef inline void sq_ts_insert_after(engine_t* e, tcb_t* sk, idx_t at, idx_t i) noexcept nogil:
    """Link i behind `at` (0: in front)."""
    cdef srec_t* r = sr_at(e, i)
    r.ts_prev = at
    if at:
        r.ts_next = sr_at(e, at).ts_next
        sr_at(e, at).ts_next = i
    else:
        r.ts_next = sk.ts_head
        sk.ts_head = i
    if r.ts_next:
        sr_at(e, r.ts_next).ts_prev = i
    else:
        sk.ts_tail = i
    r.on_ts = 1


cdef inline void sq_ts_to_tail(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """The record has just been (re)transmitted."""
    sq_ts_unlink(e, sk, sr_at(e, i))
    sq_ts_insert_after(e, sk, sk.ts_tail, i)


# ---- linking -------------------------------------------------------------------------------------------------------------------
cdef inline void sq_link_after(engine_t* e, tcb_t* sk, idx_t at, idx_t i) noexcept nogil:
    """By sequence, behind `at` (0: in front). send_head is the caller's matter."""
    cdef srec_t* r = sr_at(e, i)
    r.prev = at
    if at:
        r.next = sr_at(e, at).next
        sr_at(e, at).next = i
    else:
        r.next = sk.sq_head
        sk.sq_head = i
    if r.next:
        sr_at(e, r.next).prev = i
    else:
        sk.sq_tail = i


cdef inline void sq_free_unlinked(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    cdef uint32_t size = SR_TRUESIZE + sr_at(e, i).len
    if sr_at(e, i).zc:
        zc_put(e, sk, sr_at(e, i).zc)
    sk.wmem_queued -= size
    sk_mem_uncharge(e, sk, <int32_t> size)
    pool_free(&e.srec, i)


cdef inline void sq_unlink_free(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Remove a record and what it holds of sndbuf. Packet counters are the caller's matter."""
    cdef srec_t* r = sr_at(e, i)
    sq_ts_unlink(e, sk, r)
    if r.prev:
        sr_at(e, r.prev).next = r.next
    else:
        sk.sq_head = r.next
    if r.next:
        sr_at(e, r.next).prev = r.prev
    else:
        sk.sq_tail = r.prev
    if sk.send_head == i:
        sk.send_head = r.next
    if sk.highest_sack == i:
        sk.highest_sack = r.next if r.next != sk.send_head else 0
    if sk.retrans_hint == i:
        sk.retrans_hint = 0
    sq_free_unlinked(e, sk, i)


cdef inline void sq_charge_record(engine_t* e, tcb_t* sk) noexcept nogil:
    sk_forced_mem_schedule(e, sk, SR_TRUESIZE)
    sk_mem_charge(sk, SR_TRUESIZE)
    sk.wmem_queued += SR_TRUESIZE


cdef inline idx_t sq_alloc(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t flags) noexcept nogil:
    """An empty record, not linked, counted against sndbuf; 0 if the pool is exhausted."""
    cdef idx_t i = pool_alloc(&e.srec)
    cdef srec_t* r
    if i == 0:
        return 0
    r = sr_at(e, i)
    r.seq = seq
    r.end_seq = seq
    r.flags = <uint16_t> flags
    sq_charge_record(e, sk)
    return i


cdef inline idx_t sq_new_tail(engine_t* e, tcb_t* sk) noexcept nogil:
    """An empty record at the end of the write queue (the queue part of tcp_skb_entail); 0 if there is no memory."""
    cdef idx_t i = sq_alloc(e, sk, sk.write_seq, TH_ACK)
    if i == 0:
        return 0
    sq_link_after(e, sk, sk.sq_tail, i)
    if sk.send_head == 0:
        sk.send_head = i
        tcp_chrono_start(e, sk, CHRONO_BUSY)
    return i


cdef inline void sq_mark_sent(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """The head of the write queue becomes the tail of the retransmit queue."""
    cdef srec_t* r = sr_at(e, i)
    r.sent = 1
    sk.send_head = r.next
    if sk.highest_sack == 0:
        sk.highest_sack = i


# ---- payload -------------------------------------------------------------------------------------------------------------------
cdef inline int sq_store_(engine_t* e, tcb_t* sk, const uint8_t* p, uint32_t n) noexcept nogil:
    # The bytes at write_seq into the ring.
    cdef uint8_t* old = NULL
    cdef uint32_t base = sk.snd_una if sk.snd.size else sk.write_seq       # no memory yet: a SYN may be out, but no byte
    cdef uint32_t used = sk.write_seq - base
    if ring_reserve(&sk.snd, base, used, used + n, &old) != 0:
        return -E_NOMEM
    garbage_put(e, old)
    ring_write(&sk.snd, sk.write_seq, p, n)
    return 0


cdef inline int sq_append(engine_t* e, tcb_t* sk, idx_t i, const uint8_t* p, uint32_t n) noexcept nogil:
    """n more bytes of payload at the end of the queue, in its last record. 0 or -E_NOMEM (nothing changed)."""
    cdef srec_t* r = sr_at(e, i)
    if not sk.sflags & SF_NO_RINGS and sq_store_(e, sk, p, n) != 0:
        return -E_NOMEM
    r.len += n
    r.end_seq += n
    r.pcount = 0
    sk.write_seq += n
    sk.wmem_queued += n
    sk_forced_mem_schedule(e, sk, <int32_t> n)
    sk_mem_charge(sk, <int32_t> n)
    return 0


cdef inline void sq_trim_head(engine_t* e, tcb_t* sk, idx_t i, uint32_t n) noexcept nogil:
    """The first n bytes of payload are acknowledged (tcp_trim_head)."""
    cdef srec_t* r = sr_at(e, i)
    r.seq += n
    r.len -= n
    sk.wmem_queued -= n
    sk_mem_uncharge(e, sk, <int32_t> n)
    if r.pcount > 1:
        tcp_set_tso_segs(r, r.gso_size)


# ---- splitting -----------------------------------------------------------------------------------------------------------------
cdef inline void tcp_adjust_pcount(engine_t* e, tcb_t* sk, const srec_t* r, int32_t decr) noexcept nogil:
    """A sent record now counts decr packets less."""
    sk.packets_out -= <uint32_t> decr
    if r.sacked & SR_SACKED:
        sk.sacked_out -= <uint32_t> decr
    if r.sacked & SR_RETRANS:
        sk.retrans_out -= <uint32_t> decr
    if r.sacked & SR_LOST:
        sk.lost_out -= <uint32_t> decr
    # Without SACK sacked_out counts duplicate ACKs, of no record in particular.
    if not tcp_is_sack(sk) and decr > 0:
        sk.sacked_out -= u32_min(sk.sacked_out, <uint32_t> decr)


cdef inline void sr_split_tstamp(srec_t* a, srec_t* b) noexcept nogil:
    """A requested transmit timestamp stays with the byte it was asked for."""
    if a.tstamp_flags and not before(a.tskey, b.seq):
        b.tstamp_flags = a.tstamp_flags
        b.tskey = a.tskey
        a.tstamp_flags = 0
        a.tskey = 0


cdef inline idx_t sq_split(engine_t* e, tcb_t* sk, idx_t i, uint32_t n, uint32_t mss) noexcept nogil:
    """Cut a record after n bytes of payload (tcp_fragment, tso_fragment). PSH, FIN and EOR go to the second part; packet counts
    of a sent record are adjusted. Returns the second part, 0 if the pool is exhausted."""
    cdef srec_t* r = sr_at(e, i)
    cdef srec_t* b
    cdef int32_t old = r.pcount
    cdef int32_t diff
    cdef idx_t j = pool_alloc(&e.srec)
    if j == 0:
        return 0
    b = sr_at(e, j)
    sq_charge_record(e, sk)
    b.seq = sr_payload_seq(r) + n
    b.end_seq = r.end_seq
    b.len = r.len - n
    r.len = n
    r.end_seq = b.seq
    b.flags = r.flags & ~<uint32_t> TH_SYN
    r.flags &= ~<uint32_t> TCPHDR_NEVER_FIRST
    b.sacked = r.sacked
    b.eor = r.eor
    r.eor = 0
    b.tx_time = r.tx_time
    b.first_tx = r.first_tx
    b.delivered_time = r.delivered_time
    b.delivered = r.delivered
    b.delivered_ce = r.delivered_ce
    b.in_flight = r.in_flight
    b.app_limited = r.app_limited
    b.rate_valid = r.rate_valid
    b.sent = r.sent
    zc_attach(e, b, r.zc)
    sr_split_tstamp(r, b)
    tcp_set_tso_segs(r, mss)
    tcp_set_tso_segs(b, mss)
    if not before(sk.snd_nxt, b.end_seq):
        diff = old - <int32_t> r.pcount - <int32_t> b.pcount
        if diff:
            tcp_adjust_pcount(e, sk, r, diff)
    sq_link_after(e, sk, i, j)
    if r.on_ts:
        sq_ts_insert_after(e, sk, i, j)
    return j


cdef inline bint sq_too_big(engine_t* e, const tcb_t* sk, idx_t i) noexcept nogil:
    """Splitting sent records is refused once an attacker has made the queue hold far more memory than sndbuf."""
    cdef int64_t limit = <int64_t> sk.sndbuf + 2 * (GSO_LEGACY_MAX_SIZE + SKB_OVERHEAD + SHINFO_SIZE)
    return <int64_t> (sk.wmem_queued >> 1) > limit and i != sq_rtx_head(sk) and i != sq_rtx_tail(e, sk)


# ---- the whole queue -------------------------------------------------------------------------------------------------------------
cdef inline void tcp_write_queue_purge(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef idx_t i = sk.sq_head
    tcp_chrono_stop(e, sk, CHRONO_BUSY)
    while i:
        if sr_at(e, i).zc:
            zc_put(e, sk, sr_at(e, i).zc)
            sr_at(e, i).zc = 0
        i = sr_at(e, i).next
    sk_purge_send(e, sk)
    sk.packets_out = 0
    sk.backoff = 0


# ---- send buffer -----------------------------------------------------------------------------------------------------------------
cdef inline uint32_t roundup_pow2(uint32_t x) noexcept nogil:
    cdef uint32_t p = 1
    while p < x:
        p <<= 1
    return p


cdef inline void tcp_sndbuf_expand(engine_t* e, tcb_t* sk) noexcept nogil:
    """Room for twice the congestion window (BBR: three times), counted in skbs of one segment each."""
    cdef uint32_t per_mss = u32_max(sk.mss_clamp, sk.mss_cache) + MAX_TCP_HEADER + SHINFO_SIZE
    cdef uint32_t nr_segs = u32_max(u32_max(TCP_INIT_CWND, sk.snd_cwnd), sk.reordering + 1)
    cdef int64_t sndmem
    per_mss = roundup_pow2(per_mss) + SKB_OVERHEAD
    sndmem = <int64_t> (3 if sk.cc == CC_BBR else 2) * nr_segs * per_mss
    if sk.sndbuf < sndmem:
        sk.sndbuf = <int32_t> (sndmem if sndmem < e.cfg.tcp_wmem_max else e.cfg.tcp_wmem_max)


cdef inline bint tcp_should_expand_sndbuf(engine_t* e, const tcb_t* sk) noexcept nogil:
    if sk.userlocks & SOCK_SNDBUF_LOCK:
        return False
    return tcp_packets_in_flight(sk) < sk.snd_cwnd


cdef inline void sk_stream_write_space(engine_t* e, tcb_t* sk) noexcept nogil:
    """Wake writers, once a third of the buffer is free."""
    if sk_stream_is_writeable(e, sk) and not sk.sflags & SF_DEAD:
        sk.sflags &= ~<uint32_t> SF_NOSPACE
        sk_write_space(e, sk)


cdef inline void tcp_check_space(engine_t* e, tcb_t* sk) noexcept nogil:
    """Memory or window was freed: if a writer waits, grow the buffer and let it go on."""
    if likely(not sk.sflags & SF_NOSPACE) or sk.sflags & SF_DEAD:
        return
    if tcp_should_expand_sndbuf(e, sk):
        tcp_sndbuf_expand(e, sk)
        sk.snd_cwnd_stamp = e.now
    sk_stream_write_space(e, sk)
    if not sk.sflags & SF_NOSPACE:
        tcp_chrono_stop(e, sk, CHRONO_SNDBUF_LIMITED)
