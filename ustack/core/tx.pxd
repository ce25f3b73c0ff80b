# Frames to send: the engine's output queue, and software segmentation (layer: above sock).
#
# A frame is a ready header (IP + TCP, or a whole small packet) and up to two ranges of payload that lie elsewhere: in a send ring,
# or in the arena for packets that belong to no connection. Nothing is copied until the taker writes the frame out. The queue
# is one growable array: no allocation per packet. A frame with gso_size is one super-segment as Linux hands it to the device; a
# taker without segmentation offload cuts it with tx_segment by Linux's software GSO rules: IP IDs count up, sequence numbers advance, PSH and
# FIN only on the last packet, CWR only on the first.
# TCP frames carry TXF_CSUM_PARTIAL: the checksum field holds the pseudo-header's sum (CHECKSUM_PARTIAL); tx_segment and
# tx_whole write the full one.
# The payload stays valid until the taker is done: rings and arenas that are replaced meanwhile go to the garbage list. A taker that writes without
# the lock takes the whole batch with tx_swap and gives it back with tx_batch_done.

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from ustack.core.cksum cimport csum_add, csum_fold, csum_pseudo
from ustack.core.records cimport TXF_CSUM_PARTIAL, txframe_t
from ustack.core.ring cimport ring_free
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.wake cimport garbage_put
from ustack.core.state cimport engine_t
from ustack.core.types cimport E_NOMEM, TH_CWR, TH_FIN, TH_PSH, idx_t, uint8_t, uint16_t, uint32_t, unlikely
from ustack.core.wire cimport get16, get32, put16, put32, wire_ip_csum_set

cdef enum:
    TXF_SENT = 16               # the driver has written it already (engine_t.doorbell)
    TXF_LOCAL = 2               # the destination is one of our own addresses: loops back, never reaches the link
    TX_MIN_FRAMES = 64
    TX_MIN_ARENA = 16384

cdef struct txbatch_t:          # what a taker holds while it writes outside the lock; all zero at first
    txframe_t* tx
    uint32_t n
    uint32_t cap
    uint8_t* arena
    uint32_t arena_n
    uint32_t arena_cap
    void** garbage
    uint32_t garbage_n
    uint32_t garbage_cap


# ---- putting ---------------------------------------------------------------------------------------------------------------------
cdef inline txframe_t* tx_frame(engine_t* e) noexcept nogil:
    """A fresh frame at the end of the queue, all but hdr zeroed; NULL without memory. Valid until the next tx_frame."""
    cdef txframe_t* grown
    cdef txframe_t* f
    cdef uint32_t cap
    if unlikely(e.tx_n == e.tx_cap):
        cap = e.tx_cap * 2 if e.tx_cap else TX_MIN_FRAMES
        grown = <txframe_t*> realloc(e.tx, cap * sizeof(txframe_t))
        if grown == NULL:
            return NULL
        e.tx = grown
        e.tx_cap = cap
    f = &e.tx[e.tx_n]
    e.tx_n += 1
    f.at = e.now
    f.hlen = 0
    f.l0 = 0
    f.l1 = 0
    f.gso_size = 0
    f.flags = 0
    f.p0 = NULL
    f.p1 = NULL
    return f


cdef inline uint8_t* tx_arena(engine_t* e, uint32_t n) noexcept nogil:
    """n bytes for payload that is in no ring, valid as long as the frames of this batch; NULL without memory."""
    cdef uint32_t cap
    cdef uint8_t* block
    if e.tx_arena_cap - e.tx_arena_n < n:
        cap = u32_max(u32_max(TX_MIN_ARENA, e.tx_arena_cap * 2), n)
        block = <uint8_t*> malloc(cap)
        if block == NULL:
            return NULL
        garbage_put(e, e.tx_arena)
        e.tx_arena = block
        e.tx_arena_cap = cap
        e.tx_arena_n = 0
    block = e.tx_arena + e.tx_arena_n
    e.tx_arena_n += n
    return block


# ---- looking at a frame ------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tx_payload(const txframe_t* f) noexcept nogil:
    return f.l0 + f.l1


cdef inline uint32_t tx_len(const txframe_t* f) noexcept nogil:
    return f.hlen + f.l0 + f.l1


cdef inline uint32_t tx_segs(const txframe_t* f) noexcept nogil:
    """Packets on the wire."""
    cdef uint32_t n = f.l0 + f.l1
    if f.gso_size == 0 or n <= f.gso_size:
        return 1
    return (n + f.gso_size - 1) / f.gso_size


cdef inline uint32_t tx_seg_len(const txframe_t* f, uint32_t i) noexcept nogil:
    """Bytes of packet i, headers included."""
    cdef uint32_t n = f.l0 + f.l1
    if f.gso_size == 0 or n <= f.gso_size:
        return f.hlen + n
    return f.hlen + u32_min(n - i * f.gso_size, f.gso_size)


cdef inline void tx_copy_payload(const txframe_t* f, uint32_t off, uint32_t n, uint8_t* out) noexcept nogil:
    cdef uint32_t k
    if off < f.l0:
        k = u32_min(n, f.l0 - off)
        memcpy(out, f.p0 + off, k)
        out += k
        off += k
        n -= k
    if n:
        memcpy(out, f.p1 + (off - f.l0), n)


cdef inline void tx_tcp_csum(uint8_t* p, uint32_t len) noexcept nogil:
    """Write the full TCP checksum of a complete packet."""
    cdef uint32_t ihl = <uint32_t> (p[0] & 15) * 4
    put16(p + ihl + 16, 0)
    put16(p + ihl + 16,
          csum_fold(csum_add(p + ihl, len - ihl, csum_pseudo(get32(p + 12), get32(p + 16), p[9], len - ihl))))


# ---- writing out -------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tx_whole(const txframe_t* f, uint8_t* out) noexcept nogil:
    """The frame as one packet (a super-segment stays one), checksum complete. out: tx_len(f) bytes."""
    cdef uint32_t len = tx_len(f)
    memcpy(out, f.hdr, f.hlen)
    tx_copy_payload(f, 0, f.l0 + f.l1, out + f.hlen)
    if f.flags & TXF_CSUM_PARTIAL:
        tx_tcp_csum(out, len)
    return len


cdef inline uint32_t tx_segment(const txframe_t* f, uint32_t i, uint8_t* out) noexcept nogil:
    """Packet i of tx_segs(f). out: tx_seg_len(f, i) bytes. Returns its length."""
    cdef uint32_t total = f.l0 + f.l1
    cdef uint32_t off
    cdef uint32_t n
    cdef uint32_t ihl
    cdef uint32_t len
    if f.gso_size == 0 or total <= f.gso_size:
        return tx_whole(f, out)
    off = i * f.gso_size
    n = u32_min(total - off, f.gso_size)
    len = f.hlen + n
    memcpy(out, f.hdr, f.hlen)
    tx_copy_payload(f, off, n, out + f.hlen)
    put16(out + 2, len)
    put16(out + 4, get16(out + 4) + i)
    wire_ip_csum_set(out)
    ihl = <uint32_t> (out[0] & 15) * 4
    put32(out + ihl + 4, get32(out + ihl + 4) + off)
    if off + n < total:
        out[ihl + 13] &= ~<uint8_t> (TH_PSH | TH_FIN)
    if i:
        out[ihl + 13] &= ~<uint8_t> TH_CWR
    tx_tcp_csum(out, len)
    return len


# ---- taking ------------------------------------------------------------------------------------------------------------------------
cdef inline void tx_reset(engine_t* e) noexcept nogil:
    """The frames have been written, under the lock. The garbage list is the caller's matter (garbage_collect)."""
    e.tx_n = 0
    e.tx_arena_n = 0


cdef inline void tx_swap(engine_t* e, txbatch_t* b) noexcept nogil:
    """Exchange the engine's full queue with an empty batch: the taker may then unlock and write."""
    cdef txbatch_t was = b[0]
    b.tx = e.tx
    b.n = e.tx_n
    b.cap = e.tx_cap
    b.arena = e.tx_arena
    b.arena_n = e.tx_arena_n
    b.arena_cap = e.tx_arena_cap
    b.garbage = e.garbage
    b.garbage_n = e.garbage_n
    b.garbage_cap = e.garbage_cap
    e.tx = was.tx
    e.tx_n = was.n
    e.tx_cap = was.cap
    e.tx_arena = was.arena
    e.tx_arena_n = was.arena_n
    e.tx_arena_cap = was.arena_cap
    e.garbage = was.garbage
    e.garbage_n = was.garbage_n
    e.garbage_cap = was.garbage_cap


cdef inline void tx_batch_done(txbatch_t* b) noexcept nogil:
    """All frames of the batch are written: it is empty again, its garbage freed. Needs no lock."""
    cdef uint32_t i
    for i in range(b.garbage_n):
        ring_free(b.garbage[i])
    b.garbage_n = 0
    b.n = 0
    b.arena_n = 0


cdef inline void tx_batch_free(txbatch_t* b) noexcept nogil:
    tx_batch_done(b)
    free(b.tx)
    free(b.arena)
    free(<void*> b.garbage)
    memset(b, 0, sizeof(txbatch_t))
