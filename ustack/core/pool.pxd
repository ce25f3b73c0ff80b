# Fixed pools of equal slots, addressed by index (layer 2).
#
# A pool is one no-reserve mapping: addresses never change and memory is used only where a slot was touched. Slot 0 is
# never handed out, so index 0 means "none". Freed slots form a LIFO list threaded through their first four bytes;
# a slot comes out zeroed. Invariants: used <= high <= cap; every index in 1..high is either live or on the free list.
#
# What leaves the engine is index + generation: a pool made with pool_init_gen counts a generation per slot, odd while
# the slot is live and even while it is free, so that a stale handle never matches. Plain pools have no such array.
# Under AddressSanitizer a free slot is poisoned: any use after pool_free is reported.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from ustack.core.types cimport E_INVAL, E_NOMEM, REF_MASK, idx_t

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    #ifdef USTACK_ASAN
    #include <sanitizer/asan_interface.h>
    #define ustack_poison(p, n) __asan_poison_memory_region((p), (n))
    #define ustack_unpoison(p, n) __asan_unpoison_memory_region((p), (n))
    #else
    #define ustack_poison(p, n) ((void)(p), (void)(n))
    #define ustack_unpoison(p, n) ((void)(p), (void)(n))
    #endif
    /* gcc drops calls of functions that do nothing but prefetch; the empty statement keeps them. */
    #define ustack_prefetch(p) do { __builtin_prefetch(p); __asm__ volatile("" : : "r"(p)); } while (0)
    #ifdef MADV_HUGEPAGE
    #define ustack_huge_pages(p, n) ((void)madvise((p), (n), MADV_HUGEPAGE))
    #else
    #define ustack_huge_pages(p, n) ((void)(p), (void)(n))
    #endif
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #define ustack_populate(p, n) ((void)madvise((p), (n), MADV_POPULATE_WRITE))
    #ifndef ustack_assert
    #include <assert.h>
    #define ustack_assert(c) assert(c)
    #endif
    """
    const int MAP_NORESERVE
    void ustack_poison(void* p, size_t n) noexcept nogil
    void ustack_unpoison(void* p, size_t n) noexcept nogil
    void ustack_assert(bint c) noexcept nogil
    void ustack_prefetch(const void* p) noexcept nogil
    void ustack_huge_pages(void* p, size_t n) noexcept nogil
    void ustack_populate(void* p, size_t n) noexcept nogil


cdef enum:
    POOL_STEP = 0x10000         # bytes of a growing pool whose pages are asked for at once


cdef struct pool_t:
    uint8_t* base
    size_t ready                # bytes of base that have pages, as far as growth has asked for them
    uint32_t* gens              # NULL in a plain pool
    uint32_t stride
    uint32_t cap                # slots that can be live at once
    uint32_t used
    uint32_t high               # highest index ever handed out
    uint32_t free_head


cdef inline void* map_reserve(size_t n) noexcept nogil:
    # Zeroed address space that costs memory only where it is written; NULL if there is none.
    cdef void* p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == <void*>-1 else p


cdef inline void* map_reserve_huge(size_t n) noexcept nogil:
    # As map_reserve, for tables that are read at random places: in large pages, if the system has any, most reads find their
    # address translation cached.
    cdef void* p = map_reserve(n)
    if p != NULL:
        ustack_huge_pages(p, n)
    return p


cdef inline int pool_init(pool_t* pool, uint32_t cap, uint32_t stride) noexcept nogil:
    memset(pool, 0, sizeof(pool_t))
    if cap == 0 or cap > REF_MASK or stride < sizeof(uint32_t):
        return -E_INVAL
    pool.base = <uint8_t*>map_reserve((<size_t>cap + 1) * stride)
    if pool.base == NULL:
        return -E_NOMEM
    pool.cap = cap
    pool.stride = stride
    return 0


cdef inline void pool_destroy(pool_t* pool) noexcept nogil:
    # Harmless on a pool that is zeroed or whose init failed.
    if pool.base != NULL:
        ustack_unpoison(pool.base, (<size_t>pool.high + 1) * pool.stride)
        munmap(pool.base, (<size_t>pool.cap + 1) * pool.stride)
    if pool.gens != NULL:
        munmap(pool.gens, (<size_t>pool.cap + 1) * sizeof(uint32_t))
    memset(pool, 0, sizeof(pool_t))


cdef inline int pool_init_gen(pool_t* pool, uint32_t cap, uint32_t stride) noexcept nogil:
    # A pool whose slots carry a generation, for objects whose handles leave the engine.
    cdef int rc = pool_init(pool, cap, stride)
    if rc != 0:
        return rc
    pool.gens = <uint32_t*>map_reserve((<size_t>cap + 1) * sizeof(uint32_t))
    if pool.gens == NULL:
        pool_destroy(pool)
        return -E_NOMEM
    return 0


cdef inline void* pool_at(pool_t* pool, idx_t i) noexcept nogil:
    return pool.base + <size_t>i * pool.stride


cdef inline idx_t pool_index(pool_t* pool, const void* p) noexcept nogil:
    # The slot that starts at p.
    return <idx_t>(<size_t>(<const uint8_t*>p - pool.base) // pool.stride)


cdef inline uint32_t pool_gen(pool_t* pool, idx_t i) noexcept nogil:
    # Generation to hand out with the index; 0 in a plain pool.
    return pool.gens[i] if pool.gens != NULL else 0


cdef inline bint pool_live(pool_t* pool, idx_t i, uint32_t gen) noexcept nogil:
    # Is this handle (which may come from anywhere) a live object? Pools with generations only.
    if i == 0 or i > pool.high or pool.gens == NULL:
        return False
    return (gen & 1) != 0 and pool.gens[i] == gen


cdef inline bint pool_is_empty(const pool_t* pool) noexcept nogil:
    # Will pool_alloc return 0?
    return pool.used == pool.cap


cdef inline void pool_grow_(pool_t* pool) noexcept nogil:
    # The next slot lies beyond what has pages. A pool that has grown past its first step gets a step of pages at once, which is cheaper than a
    # fault a page; where the system cannot do it, the faults come one by one.
    cdef size_t end = (<size_t>pool.cap + 1) * pool.stride
    if pool.ready != 0 and pool.ready + 2 * POOL_STEP <= end:
        ustack_populate(pool.base + pool.ready, POOL_STEP)
    pool.ready += POOL_STEP


cdef inline idx_t pool_alloc(pool_t* pool) noexcept nogil:
    # 0 when exhausted.
    cdef uint32_t i = pool.free_head
    cdef void* p
    if i != 0:
        p = pool_at(pool, i)
        ustack_unpoison(p, pool.stride)
        pool.free_head = (<uint32_t*>p)[0]
        ustack_prefetch(pool_at(pool, pool.free_head))
        memset(p, 0, pool.stride)
    elif pool.high < pool.cap:
        pool.high += 1
        i = pool.high               # never touched: the mapping is zero there
        if (<size_t>i + 1) * pool.stride > pool.ready:
            pool_grow_(pool)
    else:
        return 0
    pool.used += 1
    if pool.gens != NULL:
        pool.gens[i] += 1
    return i


cdef inline void pool_free(pool_t* pool, idx_t i) noexcept nogil:
    cdef void* p = pool_at(pool, i)
    ustack_assert(i != 0 and i <= pool.high and pool.used != 0)
    if pool.gens != NULL:
        ustack_assert((pool.gens[i] & 1) != 0)
        pool.gens[i] += 1
    (<uint32_t*>p)[0] = pool.free_head
    pool.free_head = i
    pool.used -= 1
    ustack_poison(p, pool.stride)
