# Growable byte ring addressed by sequence numbers (layer 2).
#
# The byte of sequence number s lies at buf[s & (size - 1)], so neither sending, acknowledging nor receiving out of
# order moves a byte, and what is retransmitted is found without a search. The ring does not know which bytes are
# valid: its owner does (snd_una .. write_seq, copied_seq .. rcv_nxt and the out-of-order ranges) and keeps every span
# within size. A span may run over the wrap of the sequence numbers, since size divides 2^32.
#
# The only malloc of the core, amortised: a ring doubles. A replaced buffer is handed out, not freed, because a frame
# that waits for the device may still point into it; the owner frees it with ring_free when none does. The C library keeps freed
# memory for the process; after every 32 MB of large buffers it is told to give unused pages back to the system.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from ustack.core.seqno cimport ilog2_u32, u32_max, u32_min
from ustack.core.types cimport E_NOMEM, likely, unlikely

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void ustack_free_ring(void *p) {
        static __thread size_t freed;
        size_t n = p ? malloc_usable_size(p) : 0;
        free(p);
        if (n < 32768 || (freed += n) < (32u << 20))
            return;
        freed = 0;
        malloc_trim(0);
    }
    #else
    #define ustack_free_ring(p) free(p)
    #endif
    """
    void ustack_free_ring(void* p) noexcept nogil

cdef enum:
    RING_MIN = 4096
    RING_MAX = 0x40000000

cdef struct ring_t:
    uint8_t* buf
    uint32_t size               # power of two, 0 = no memory


cdef inline void ring_free(void* old) noexcept nogil:
    ustack_free_ring(old)


cdef inline uint32_t ring_round_(uint32_t span) noexcept nogil:
    # Size for a span; 0 if there is none.
    if span > RING_MAX:
        return 0
    return u32_max(RING_MIN, <uint32_t>2 << ilog2_u32(span - 1)) if span > 1 else RING_MIN


cdef inline int ring_resize_(ring_t* r, uint32_t base_seq, uint32_t used_span, uint32_t size,
                             uint8_t** old) noexcept nogil:
    # Moves [base_seq, base_seq + used_span) to a buffer of another size; it must fit in both.
    cdef uint8_t* buf = <uint8_t*>malloc(size)
    cdef uint32_t n
    if buf == NULL:
        return -E_NOMEM
    if unlikely(r.size == 0):
        used_span = 0                   # a SYN counts in the span and has no byte
    while used_span != 0:
        n = u32_min(r.size - (base_seq & (r.size - 1)), size - (base_seq & (size - 1)))
        n = u32_min(n, used_span)
        memcpy(buf + (base_seq & (size - 1)), r.buf + (base_seq & (r.size - 1)), n)
        base_seq += n
        used_span -= n
    old[0] = r.buf
    r.buf = buf
    r.size = size
    return 0


cdef inline int ring_reserve(ring_t* r, uint32_t base_seq, uint32_t used_span, uint32_t need_span,
                             uint8_t** old) noexcept nogil:
    # Makes room for need_span bytes from base_seq on. *old is the replaced buffer or NULL.
    cdef uint32_t size
    old[0] = NULL
    if likely(need_span <= r.size):
        return 0
    size = ring_round_(need_span)
    if size == 0:
        return -E_NOMEM
    return ring_resize_(r, base_seq, used_span, size, old)


cdef inline void ring_release(ring_t* r, uint8_t** old) noexcept nogil:
    old[0] = r.buf
    r.buf = NULL
    r.size = 0


cdef inline uint32_t ring_ranges(const ring_t* r, uint32_t seq, uint32_t n, const uint8_t** p0, uint32_t* l0,
                                 const uint8_t** p1, uint32_t* l1) noexcept nogil:
    # The one or two pieces of memory that hold [seq, seq + n), n <= size. Returns n.
    cdef uint32_t at
    p1[0] = r.buf
    l1[0] = 0
    if n == 0:
        p0[0] = r.buf
        l0[0] = 0
        return 0
    at = seq & (r.size - 1)
    p0[0] = r.buf + at
    l0[0] = u32_min(n, r.size - at)
    l1[0] = n - l0[0]
    return n


cdef inline void ring_write(ring_t* r, uint32_t seq, const uint8_t* p, uint32_t n) noexcept nogil:
    # n <= size
    cdef uint32_t at
    cdef uint32_t first
    if n == 0:
        return
    at = seq & (r.size - 1)
    first = u32_min(n, r.size - at)
    memcpy(r.buf + at, p, first)
    if unlikely(n != first):
        memcpy(r.buf, p + first, n - first)


cdef inline void ring_read(const ring_t* r, uint32_t seq, uint8_t* out, uint32_t n) noexcept nogil:
    # n <= size
    cdef uint32_t at
    cdef uint32_t first
    if n == 0:
        return
    at = seq & (r.size - 1)
    first = u32_min(n, r.size - at)
    memcpy(out, r.buf + at, first)
    if unlikely(n != first):
        memcpy(out + first, r.buf, n - first)
