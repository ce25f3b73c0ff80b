# One hash table by 4-tuple for half-open, established and TIME_WAIT objects (layer 3).
#
# As in Linux, a half-open request lives in the same table as the connections (facts 0.1). A bucket is a chain of ref_t
# through the enode_t that each object embeds; the table itself is one array of heads, of a size fixed at creation, of which the
# first EHASH_FEW serve until there are twice as many entries: a stack with few connections touches few pages. New entries go to
# the head. The hash is keyed, so chains cannot be grown on purpose. Invariant: two entries with an equal 4-tuple exist only if
# ehash_insert_force put the second one there; a look-up then finds the newer.
#
# A flow's hash is needed several times for one packet (two prefetches, look-up, insertion), so the latest ones are remembered (memo).

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport munmap

from ustack.core.pool cimport map_reserve, map_reserve_huge, ustack_prefetch
from ustack.core.seqno cimport ilog2_u32, u32_min
from ustack.core.siphash cimport flow_hash
from ustack.core.types cimport E_INVAL, E_NOMEM, REF_MASK, REF_SHIFT, ref_t

cdef extern from *:
    """
    #define ustack_peek(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    """
    uint32_t ustack_peek(const uint32_t* p) noexcept nogil

cdef enum:
    EHASH_KINDS = 16
    EHASH_MAX = 0x8000000       # buckets
    EHASH_FEW = 0x10000
    EHASH_MEMO_BITS = 9
    EHASH_MEMO = 512            # eight places a flow of a batch, so that few share one

cdef struct enode_t:
    ref_t next
    uint32_t laddr
    uint32_t faddr
    uint32_t ports              # lport << 16 | fport

cdef struct ehash_memo_t:
    uint32_t laddr
    uint32_t faddr
    uint32_t ports
    uint32_t hash

cdef struct ehash_t:
    ref_t* bucket
    uint32_t mask               # buckets in use - 1
    uint32_t mask_full          # ... once there are more than 2 * EHASH_FEW entries
    uint32_t count
    uint64_t k0
    uint64_t k1
    uint8_t* base[EHASH_KINDS]
    size_t stride[EHASH_KINDS]
    ehash_memo_t memo[EHASH_MEMO]


cdef inline int ehash_init(ehash_t* h, uint32_t entries, uint64_t k0, uint64_t k1) noexcept nogil:
    # entries is rounded up to a power of two.
    cdef uint32_t i
    memset(h, 0, sizeof(ehash_t))
    if entries == 0 or entries > EHASH_MAX:
        return -E_INVAL
    h.mask_full = (<uint32_t>2 << ilog2_u32(entries - 1)) - 1 if entries > 1 else 0
    h.mask = u32_min(h.mask_full, EHASH_FEW - 1)
    h.bucket = <ref_t*>map_reserve((<size_t>h.mask + 1) * sizeof(ref_t))
    if h.bucket == NULL:
        return -E_NOMEM
    h.k0 = k0
    h.k1 = k1
    for i in range(<uint32_t>EHASH_MEMO):           # the flow that the zeroed places name
        h.memo[i].hash = flow_hash(0, 0, 0, 0, k0, k1)
    return 0


cdef inline void ehash_destroy(ehash_t* h) noexcept nogil:
    if h.bucket != NULL:
        munmap(h.bucket, (<size_t>h.mask + 1) * sizeof(ref_t))
    memset(h, 0, sizeof(ehash_t))


cdef inline void ehash_register(ehash_t* h, int kind, void* node_of_slot0, size_t stride) noexcept nogil:
    h.base[kind] = <uint8_t*>node_of_slot0
    h.stride[kind] = stride


cdef inline enode_t* ehash_node(ehash_t* h, ref_t ref) noexcept nogil:
    cdef uint32_t kind = ref >> REF_SHIFT
    return <enode_t*>(h.base[kind] + <size_t>(ref & REF_MASK) * h.stride[kind])


cdef inline void enode_set(enode_t* node, uint32_t laddr, uint32_t faddr, uint16_t lport,
                           uint16_t fport) noexcept nogil:
    node.laddr = laddr
    node.faddr = faddr
    node.ports = <uint32_t>lport << 16 | fport


cdef inline uint32_t ehash_hash(ehash_t* h, uint32_t laddr, uint32_t faddr, uint32_t ports) noexcept nogil:
    cdef ehash_memo_t* m = &h.memo[((faddr ^ ports) * 2654435761U) >> (32 - EHASH_MEMO_BITS)]
    if m.ports != ports or m.faddr != faddr or m.laddr != laddr:
        m.laddr = laddr
        m.faddr = faddr
        m.ports = ports
        m.hash = flow_hash(laddr, faddr, <uint16_t>(ports >> 16), <uint16_t>ports, h.k0, h.k1)
    return m.hash


cdef inline ref_t* ehash_bucket_(ehash_t* h, uint32_t laddr, uint32_t faddr, uint32_t ports) noexcept nogil:
    return &h.bucket[ehash_hash(h, laddr, faddr, ports) & h.mask]


cdef inline ref_t ehash_find_(ehash_t* h, ref_t ref, uint32_t laddr, uint32_t faddr, uint32_t ports) noexcept nogil:
    cdef enode_t* node
    while ref != 0:
        node = ehash_node(h, ref)
        if node.ports == ports and node.faddr == faddr and node.laddr == laddr:
            return ref
        ref = node.next
    return 0


cdef inline ref_t ehash_lookup(ehash_t* h, uint32_t laddr, uint32_t faddr, uint16_t lport,
                               uint16_t fport) noexcept nogil:
    cdef uint32_t ports = <uint32_t>lport << 16 | fport
    return ehash_find_(h, ehash_bucket_(h, laddr, faddr, ports)[0], laddr, faddr, ports)


cdef inline bint ehash_may_have(const ehash_t* h, uint32_t hash) noexcept nogil:
    # Without h's lock: is there anything in the bucket of a flow with this hash? h has been through ehash_settle.
    return ustack_peek(&h.bucket[hash & h.mask]) != 0


cdef inline void ehash_prefetch(ehash_t* h, uint32_t laddr, uint32_t faddr, uint16_t lport,
                                uint16_t fport) noexcept nogil:
    # A batch calls this for all its packets, then ehash_prefetch_node for all, and then looks them up.
    ustack_prefetch(ehash_bucket_(h, laddr, faddr, <uint32_t>lport << 16 | fport))


cdef inline void ehash_prefetch_node(ehash_t* h, uint32_t laddr, uint32_t faddr, uint16_t lport,
                                     uint16_t fport) noexcept nogil:
    cdef ref_t ref = ehash_bucket_(h, laddr, faddr, <uint32_t>lport << 16 | fport)[0]
    if ref != 0:
        ustack_prefetch(ehash_node(h, ref))


cdef inline void ehash_prefetch_next(ehash_t* h, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport) noexcept nogil:
    # A third round, for a table so full that chains of two are common (ehash_crowded).
    cdef ref_t ref = ehash_bucket_(h, laddr, faddr, <uint32_t>lport << 16 | fport)[0]
    if ref != 0:
        ref = ehash_node(h, ref).next
        if ref != 0:
            ustack_prefetch(ehash_node(h, ref))


cdef inline bint ehash_crowded(const ehash_t* h) noexcept nogil:
    return h.count > h.mask >> 2


cdef inline void ehash_spread_(ehash_t* h) noexcept nogil:
    # From the few buckets to all, once; a chain's order stays. A walk that is under way may see an entry twice, and misses none: entries
    # only move to higher buckets. Without memory the few go on.
    cdef uint32_t i
    cdef uint32_t few = h.mask + 1
    cdef ref_t* old = h.bucket
    cdef ref_t* bucket = <ref_t*>map_reserve_huge((<size_t>h.mask_full + 1) * sizeof(ref_t))
    cdef ref_t ref
    cdef ref_t back
    cdef ref_t nxt
    cdef enode_t* node
    if bucket == NULL:
        return
    h.bucket = bucket
    h.mask = h.mask_full
    for i in range(few):
        ref = old[i]
        back = 0
        while ref != 0:                     # the chain reversed
            node = ehash_node(h, ref)
            nxt = node.next
            node.next = back
            back = ref
            ref = nxt
        while back != 0:
            node = ehash_node(h, back)
            nxt = node.next
            bucket = ehash_bucket_(h, node.laddr, node.faddr, node.ports)
            node.next = bucket[0]
            bucket[0] = back
            back = nxt
    munmap(old, <size_t>few * sizeof(ref_t))


cdef inline bint ehash_settle(ehash_t* h) noexcept nogil:
    # All buckets from now on, so that the array never moves. False without memory.
    if h.mask != h.mask_full:
        ehash_spread_(h)
    return h.mask == h.mask_full


cdef inline void ehash_push_(ehash_t* h, ref_t* bucket, ref_t ref, enode_t* node) noexcept nogil:
    node.next = bucket[0]
    bucket[0] = ref
    h.count += 1
    if h.mask != h.mask_full and h.count > 2 * (h.mask + 1):
        ehash_spread_(h)


cdef inline bint ehash_insert(ehash_t* h, ref_t ref) noexcept nogil:
    # The node's 4-tuple is set. False, and nothing done, if an equal one is there (facts B16).
    cdef enode_t* node = ehash_node(h, ref)
    cdef ref_t* bucket = ehash_bucket_(h, node.laddr, node.faddr, node.ports)
    if ehash_find_(h, bucket[0], node.laddr, node.faddr, node.ports) != 0:
        return False
    ehash_push_(h, bucket, ref, node)
    return True


cdef inline void ehash_insert_force(ehash_t* h, ref_t ref) noexcept nogil:
    cdef enode_t* node = ehash_node(h, ref)
    ehash_push_(h, ehash_bucket_(h, node.laddr, node.faddr, node.ports), ref, node)


cdef inline ref_t* ehash_link_(ehash_t* h, ref_t ref) noexcept nogil:
    # The link that points to an entry, NULL if it is not in the table.
    cdef enode_t* node = ehash_node(h, ref)
    cdef ref_t* link = ehash_bucket_(h, node.laddr, node.faddr, node.ports)
    while link[0] != 0:
        if link[0] == ref:
            return link
        link = &ehash_node(h, link[0]).next
    return NULL


cdef inline bint ehash_remove(ehash_t* h, ref_t ref) noexcept nogil:
    # False if it was not in the table.
    cdef ref_t* link = ehash_link_(h, ref)
    cdef enode_t* node = ehash_node(h, ref)
    if link == NULL:
        return False
    link[0] = node.next
    node.next = 0
    h.count -= 1
    return True


cdef inline bint ehash_replace(ehash_t* h, ref_t old, ref_t new) noexcept nogil:
    # new, with the same 4-tuple, takes old's place in the chain. False if old was not in the table.
    cdef ref_t* link = ehash_link_(h, old)
    cdef enode_t* node = ehash_node(h, old)
    if link == NULL:
        return False
    ehash_node(h, new).next = node.next
    link[0] = new
    node.next = 0
    return True


cdef inline ref_t ehash_walk_some(ehash_t* h, uint32_t* bucket, ref_t* pos, uint32_t* budget) noexcept nogil:
    # As ehash_walk, looking at no more than *budget buckets and entries. 0 with *bucket <= mask: the budget is spent.
    cdef ref_t ref
    while bucket[0] <= h.mask:
        ref = h.bucket[bucket[0]]
        while pos[0] != 0 and ref != 0 and ref != pos[0]:
            ref = ehash_node(h, ref).next
        if pos[0] != 0 and ref != 0:
            ref = ehash_node(h, ref).next
        elif pos[0] != 0:
            ref = h.bucket[bucket[0]]
        if budget[0] == 0:
            return 0
        budget[0] -= 1
        pos[0] = ref
        if ref != 0:
            return ref
        bucket[0] += 1
    return 0


cdef inline ref_t ehash_walk(ehash_t* h, uint32_t* bucket, ref_t* pos) noexcept nogil:
    # Next entry of a walk that starts with both at 0; 0 at the end. The table may change between two calls, and the
    # entry returned last may be gone: its bucket is then read again from the head, so an entry can come twice but one
    # that stays is never left out, and removing each entry as it comes is fine.
    cdef uint32_t budget = 0xffffffffULL
    return ehash_walk_some(h, bucket, pos, &budget)
