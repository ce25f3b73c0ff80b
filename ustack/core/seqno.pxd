# Sequence-number comparisons modulo 2^32, and the small integer helpers of the core (layer 1).
#
# RFC 9293 3.4, RFC 1982. Two numbers are comparable while they are less than 2^31 apart; at exactly 2^31 each is
# "before" the other, as in every TCP that compares by signed difference. Sequence numbers are compared here and
# nowhere else: a plain < between two of them is a bug.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define ustack_clz32(x) __builtin_clz(x)
    """
    int ustack_clz32(uint32_t x) noexcept nogil


cdef inline bint before(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b) < 0


cdef inline bint after(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(b - a) < 0


cdef inline bint between(uint32_t s, uint32_t lo, uint32_t hi) noexcept nogil:
    # lo <= s <= hi on the circle; works for spans of up to 2^32 - 1.
    return hi - lo >= s - lo


cdef inline uint32_t u32_min(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint32_t u32_max(uint32_t a, uint32_t b) noexcept nogil:
    return a if a > b else b


cdef inline int32_t i32_min(int32_t a, int32_t b) noexcept nogil:
    return a if a < b else b


cdef inline int32_t i32_max(int32_t a, int32_t b) noexcept nogil:
    return a if a > b else b


cdef inline uint64_t u64_min(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b


cdef inline int64_t i64_min(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef inline int64_t i64_max(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b


cdef inline int ilog2_u32(uint32_t x) noexcept nogil:
    # Floor of log2; 0 for 0, so that callers need no special case.
    return 31 - ustack_clz32(x | 1)


cdef inline uint32_t rounddown_u32(uint32_t x, uint32_t m) noexcept nogil:
    # m != 0
    return x - x % m
