# Keyed hashing and the core's seeded random numbers (layer 1).
#
# SipHash-2-4 (Aumasson, Bernstein 2012) for what a peer can see or probe: ISNs, cookies, Fast Open, timestamp offsets.
# SipHash-1-3 for hash tables, where only the distribution is exposed. xoshiro256** (Blackman, Vigna) for random
# choices inside the core; it is seeded from the engine's one seed, and nothing that must be secret comes out of it.
# The integer forms equal siphash() over the little-endian bytes of their arguments.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef struct sip_t:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3

cdef struct prng_t:
    uint64_t s[4]


cdef inline uint64_t rotl64(uint64_t x, int n) noexcept nogil:
    return (x << n) | (x >> (64 - n))


cdef inline void sip_init(sip_t* s, uint64_t k0, uint64_t k1) noexcept nogil:
    s.v0 = k0 ^ 0x736f6d6570736575ULL
    s.v1 = k1 ^ 0x646f72616e646f6dULL
    s.v2 = k0 ^ 0x6c7967656e657261ULL
    s.v3 = k1 ^ 0x7465646279746573ULL


cdef extern from *:
    """
    /* A macro: as a function gcc keeps it out of line, and the four words go through memory in every round. */
    #define ustack_rotl(x, n) ((x) << (n) | (x) >> (64 - (n)))
    #define ustack_sip_round(s) do { \\
        (s)->v0 += (s)->v1;                             (s)->v2 += (s)->v3; \\
        (s)->v1 = ustack_rotl((s)->v1, 13) ^ (s)->v0;   (s)->v3 = ustack_rotl((s)->v3, 16) ^ (s)->v2; \\
        (s)->v0 = ustack_rotl((s)->v0, 32); \\
        (s)->v2 += (s)->v1;                             (s)->v0 += (s)->v3; \\
        (s)->v1 = ustack_rotl((s)->v1, 17) ^ (s)->v2;   (s)->v3 = ustack_rotl((s)->v3, 21) ^ (s)->v0; \\
        (s)->v2 = ustack_rotl((s)->v2, 32); \\
    } while (0)
    #define ustack_sip_word(s, m) do { \\
        (s)->v3 ^= (m); ustack_sip_round(s); ustack_sip_round(s); (s)->v0 ^= (m); \\
    } while (0)
    """
    void sip_round "ustack_sip_round"(sip_t* s) noexcept nogil
    void sip_word "ustack_sip_word"(sip_t* s, uint64_t m) noexcept nogil


cdef inline uint64_t sip_close_(sip_t* s) noexcept nogil:
    s.v2 ^= 0xff
    sip_round(s)
    sip_round(s)
    sip_round(s)
    sip_round(s)
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef inline uint64_t sip_finish(sip_t* s, uint64_t last) noexcept nogil:
    # last: the remaining 0..7 bytes with the message length in the top byte.
    sip_word(s, last)
    return sip_close_(s)


cdef inline uint64_t sip_load(const uint8_t* p, size_t n) noexcept nogil:
    # n <= 8 bytes, little endian
    cdef uint64_t x = 0
    cdef size_t i
    for i in range(n):
        x |= <uint64_t>p[i] << (8 * i)
    return x


cdef inline uint64_t siphash(uint64_t k0, uint64_t k1, const uint8_t* p, size_t n) noexcept nogil:
    cdef sip_t s
    cdef size_t i = 0
    sip_init(&s, k0, k1)
    while i + 8 <= n:
        sip_word(&s, sip_load(p + i, 8))
        i += 8
    return sip_finish(&s, sip_load(p + i, n - i) | (<uint64_t>n << 56))


cdef inline uint64_t siphash_u64x1(uint64_t k0, uint64_t k1, uint64_t a) noexcept nogil:
    cdef sip_t s
    sip_init(&s, k0, k1)
    sip_word(&s, a)
    return sip_finish(&s, <uint64_t>8 << 56)


cdef inline uint64_t siphash_u64x2(uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) noexcept nogil:
    cdef sip_t s
    sip_init(&s, k0, k1)
    sip_word(&s, a)
    sip_word(&s, b)
    return sip_finish(&s, <uint64_t>16 << 56)


cdef inline uint64_t siphash_u64_u32(uint64_t k0, uint64_t k1, uint64_t a, uint32_t b) noexcept nogil:
    cdef sip_t s
    cdef uint64_t last = b | (<uint64_t>12 << 56)
    sip_init(&s, k0, k1)
    sip_word(&s, a)
    return sip_finish(&s, last)


cdef inline uint64_t siphash_u64x3(uint64_t k0, uint64_t k1, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef sip_t s
    sip_init(&s, k0, k1)
    sip_word(&s, a)
    sip_word(&s, b)
    sip_word(&s, c)
    return sip_finish(&s, <uint64_t>24 << 56)


cdef inline uint64_t siphash_u32x4(uint64_t k0, uint64_t k1, uint32_t a, uint32_t b, uint32_t c,
                                   uint32_t d) noexcept nogil:
    return siphash_u64x2(k0, k1, a | (<uint64_t>b << 32), c | (<uint64_t>d << 32))


cdef inline uint32_t flow_hash(uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport,
                               uint64_t k0, uint64_t k1) noexcept nogil:
    # SipHash-1-3 of the twelve bytes of a 4-tuple. All 32 bits are good; tables use the low ones.
    cdef sip_t s
    cdef uint64_t a = laddr | (<uint64_t>faddr << 32)
    cdef uint64_t b = fport | (<uint64_t>lport << 16) | (<uint64_t>12 << 56)
    cdef uint64_t h
    sip_init(&s, k0, k1)
    s.v3 ^= a
    sip_round(&s)
    s.v0 ^= a
    s.v3 ^= b
    sip_round(&s)
    s.v0 ^= b
    s.v2 ^= 0xff
    sip_round(&s)
    sip_round(&s)
    sip_round(&s)
    h = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    return <uint32_t>(h ^ (h >> 32))


cdef inline void prng_seed(prng_t* r, const uint8_t* seed, size_t n) noexcept nogil:
    # Any length of seed. The state cannot become all zero, where the generator would stay.
    cdef int i
    for i in range(4):
        r.s[i] = siphash(<uint64_t>i, 0x75737461636bULL, seed, n)
    if (r.s[0] | r.s[1] | r.s[2] | r.s[3]) == 0:
        r.s[0] = 1


cdef inline uint64_t prng_u64(prng_t* r) noexcept nogil:
    cdef uint64_t result = rotl64(r.s[1] * 5, 7) * 9
    cdef uint64_t t = r.s[1] << 17
    r.s[2] ^= r.s[0]
    r.s[3] ^= r.s[1]
    r.s[1] ^= r.s[2]
    r.s[0] ^= r.s[3]
    r.s[2] ^= t
    r.s[3] = rotl64(r.s[3], 45)
    return result


cdef inline uint32_t prng_below(prng_t* r, uint32_t n) noexcept nogil:
    # Uniform in 0 .. n-1 without bias (Lemire 2019); 0 for n == 0.
    cdef uint64_t m = (prng_u64(r) >> 32) * n
    cdef uint32_t floor
    if <uint32_t>m < n:
        floor = (0 - n) % n
        while <uint32_t>m < floor:
            m = (prng_u64(r) >> 32) * n
    return <uint32_t>(m >> 32)
