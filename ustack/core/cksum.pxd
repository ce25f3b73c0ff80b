# Internet checksum: RFC 1071 (layer 1).
#
# A partial sum is 64 bits wide, counts with end-around carry, and is made of words as they lie in memory (the
# one's complement sum does not depend on byte order until it is folded). csum_fold turns it into the number that
# is written with put16. A range that starts at an odd offset of the packet is summed with csum_add_odd.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define ustack_be16(x) __builtin_bswap16(x)
    #define ustack_be32(x) __builtin_bswap32(x)
    #else
    #define ustack_be16(x) (x)
    #define ustack_be32(x) (x)
    #endif
    """
    uint16_t ustack_be16(uint16_t x) noexcept nogil
    uint32_t ustack_be32(uint32_t x) noexcept nogil


cdef inline uint64_t csum_combine(uint64_t a, uint64_t b) noexcept nogil:
    a += b
    return a + (a < b)


cdef inline uint64_t csum_load64_(const uint8_t* p) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, p, 8)
    return x


cdef inline uint64_t csum_add(const uint8_t* p, size_t n, uint64_t sum) noexcept nogil:
    # p[0] lies at an even offset of what is summed; an odd last byte is padded with zero. Four sums run side by side
    # so that the carry chains overlap.
    cdef uint64_t a = 0
    cdef uint64_t b = 0
    cdef uint64_t c = 0
    cdef uint32_t w32
    cdef uint16_t w16
    while n >= 32:
        sum = csum_combine(sum, csum_load64_(p))
        a = csum_combine(a, csum_load64_(p + 8))
        b = csum_combine(b, csum_load64_(p + 16))
        c = csum_combine(c, csum_load64_(p + 24))
        p += 32
        n -= 32
    while n >= 8:
        sum = csum_combine(sum, csum_load64_(p))
        p += 8
        n -= 8
    if n & 4:
        memcpy(&w32, p, 4)
        a = csum_combine(a, w32)
        p += 4
    if n & 2:
        memcpy(&w16, p, 2)
        b = csum_combine(b, w16)
        p += 2
    if n & 1:
        w16 = 0
        memcpy(&w16, p, 1)
        c = csum_combine(c, w16)
    return csum_combine(csum_combine(sum, a), csum_combine(b, c))


cdef inline uint64_t csum_ip_header(const uint8_t* p, uint32_t n) noexcept nogil:
    # As csum_add over n bytes, at least 20 and a multiple of 4: too few words for a carry.
    cdef uint32_t w[5]
    memcpy(w, p, 20)
    return csum_add(p + 20, n - 20, <uint64_t>w[0] + w[1] + w[2] + w[3] + w[4]) if n != 20 else <uint64_t>w[0] + w[1] + w[2] + w[3] + w[4]


cdef inline uint16_t csum_fold16_(uint64_t sum) noexcept nogil:
    # Folded, not complemented, in memory order.
    sum = (sum & 0xffffffffULL) + (sum >> 32)
    sum = (sum & 0xffffffffULL) + (sum >> 32)
    sum = (sum & 0xffff) + (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16)
    return <uint16_t>sum


cdef inline uint64_t csum_add_odd(const uint8_t* p, size_t n, uint64_t sum) noexcept nogil:
    # As csum_add for a range whose first byte lies at an odd offset.
    cdef uint16_t s = csum_fold16_(csum_add(p, n, 0))
    return csum_combine(sum, <uint16_t>((s << 8) | (s >> 8)))


cdef inline uint64_t csum_ranges(const uint8_t* p0, size_t l0, const uint8_t* p1, size_t l1,
                                 uint64_t start) noexcept nogil:
    # Two consecutive ranges, as a ring gives them; the first starts at an even offset.
    start = csum_add(p0, l0, start)
    if l1 == 0:
        return start
    if l0 & 1:
        return csum_add_odd(p1, l1, start)
    return csum_add(p1, l1, start)


cdef inline uint16_t csum_fold(uint64_t sum) noexcept nogil:
    # The checksum, complemented, host order: 0 when what was summed held a correct one.
    return <uint16_t>~ustack_be16(csum_fold16_(sum))


cdef inline uint16_t csum_fold_partial(uint64_t sum) noexcept nogil:
    # Host order, not complemented: what hardware expects in the field of a partial checksum.
    return ustack_be16(csum_fold16_(sum))


cdef inline uint64_t csum_pseudo(uint32_t src, uint32_t dst, uint8_t proto, uint32_t n) noexcept nogil:
    # Partial sum of the IPv4 pseudo-header; n is the length of the upper-layer packet, below 65,536.
    return <uint64_t>ustack_be32(src) + ustack_be32(dst) + ustack_be16(proto) + ustack_be16(<uint16_t>n)
