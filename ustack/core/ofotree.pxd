# The out-of-order queue of a socket: a list of receive records by sequence number with a search tree over it (layer:
# above sock).
#
# A peer may send thousands of tiny segments with gaps between them; a search along the list would let it buy
# quadratic work. The tree is a treap whose priorities are a hash of the record's index, so that the depth does not
# depend on the order of arrival. Invariants: sequence numbers of records are distinct and, like their end_seq, ascend
# along the list; the tree holds exactly the records of the list. Used by rcvq.pxd and ofo.pxd only.

from ustack.core.types cimport idx_t, uint32_t
from ustack.core.records cimport rrec_t
from ustack.core.seqno cimport before
from ustack.core.access cimport rr_at, sk_los
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t


cdef inline uint32_t ofo_prio_(idx_t i) noexcept nogil:
    return <uint32_t> (i * 2654435761ULL)


cdef inline idx_t ofo_floor(engine_t* e, tcb_t* sk, uint32_t seq) noexcept nogil:
    """The last record that begins at or before seq, 0 if all begin after it."""
    cdef idx_t i = sk.los.ofo_root
    cdef idx_t best = 0
    cdef rrec_t* r
    while i:
        r = rr_at(e, i)
        if before(seq, r.seq):
            i = r.left
        else:
            best = i
            i = r.right
    return best


cdef inline void ofo_tree_insert_(engine_t* e, tcb_t* sk, idx_t n) noexcept nogil:
    cdef rrec_t* node = rr_at(e, n)
    cdef rrec_t* r
    cdef idx_t* link = &sk_los(e, sk).ofo_root
    cdef idx_t* lo = &node.left
    cdef idx_t* hi = &node.right
    cdef idx_t t
    while link[0] and ofo_prio_(link[0]) >= ofo_prio_(n):
        r = rr_at(e, link[0])
        link = &r.left if before(node.seq, r.seq) else &r.right
    t = link[0]
    link[0] = n
    while t:                            # split what hung there around the new node
        r = rr_at(e, t)
        if before(r.seq, node.seq):
            lo[0] = t
            lo = &r.right
            t = r.right
        else:
            hi[0] = t
            hi = &r.left
            t = r.left
    lo[0] = 0
    hi[0] = 0


cdef inline void ofo_tree_remove_(engine_t* e, tcb_t* sk, idx_t n) noexcept nogil:
    cdef rrec_t* node = rr_at(e, n)
    cdef rrec_t* r
    cdef idx_t* link = &sk_los(e, sk).ofo_root
    cdef idx_t lo = node.left
    cdef idx_t hi = node.right
    while link[0] != n:
        r = rr_at(e, link[0])
        link = &r.left if before(node.seq, r.seq) else &r.right
    while lo and hi:                    # merge the two subtrees into its place
        if ofo_prio_(lo) >= ofo_prio_(hi):
            link[0] = lo
            link = &rr_at(e, lo).right
            lo = link[0]
        else:
            link[0] = hi
            link = &rr_at(e, hi).left
            hi = link[0]
    link[0] = lo if lo else hi


cdef inline void ofo_link(engine_t* e, tcb_t* sk, idx_t after, idx_t n) noexcept nogil:
    """Put record n behind record `after` (0: at the head)."""
    cdef rrec_t* node = rr_at(e, n)
    node.prev = after
    node.next = rr_at(e, after).next if after else sk.ofo_head
    if after:
        rr_at(e, after).next = n
    else:
        sk.ofo_head = n
    if node.next:
        rr_at(e, node.next).prev = n
    else:
        sk_los(e, sk).ofo_tail = n
    ofo_tree_insert_(e, sk, n)


cdef inline void ofo_unlink(engine_t* e, tcb_t* sk, idx_t n) noexcept nogil:
    cdef rrec_t* node = rr_at(e, n)
    ofo_tree_remove_(e, sk, n)
    if node.prev:
        rr_at(e, node.prev).next = node.next
    else:
        sk.ofo_head = node.next
    if node.next:
        rr_at(e, node.next).prev = node.prev
    else:
        sk_los(e, sk).ofo_tail = node.prev
    node.next = 0
    node.prev = 0
