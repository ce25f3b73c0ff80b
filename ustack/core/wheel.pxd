# Hierarchical timing wheel that fires at exact nanoseconds (layer 2).
#
# Arm and disarm cost O(1); a timer moves at most once per level before it fires. What the wheel promises: timers
# come out ordered by (deadline, order of arming) whatever slots they lay in, and wheel_next is the exact earliest
# deadline. The slots must not show.
#
# How: time is cut into ticks of 2^14 ns; the cursor is a tick. A timer whose tick is at or before the cursor is in the
# due list, sorted. Every other timer is in the slot (level, index) given by the highest group of six bits in
# which its tick differs from the cursor (or, put off by wheel_put_off, in an earlier one), so equal deadlines always
# share a slot and appending keeps their order. Moving the cursor into a slot spreads it over the levels below; a slot of level 0 is sorted into the due list.
# Invariants: all indices in use at a level are above the cursor's own index at that level, hence the lowest
# non-empty level and its lowest index hold the earliest timers; the cursor moves only while the due list is empty.
#
# Nodes are embedded in pool objects and linked by timer id (kind << 28 | index). Lists are circular through sentinels,
# which are nodes of kind 0 in the wheel itself: a wheel_t must not move after wheel_init.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ustack.core.types cimport NS_NEVER, REF_MASK, REF_SHIFT, ns_t

cdef enum:
    WHEEL_TICK_SHIFT = 14
    WHEEL_BITS = 6
    WHEEL_SLOTS = 64
    WHEEL_LEVELS = 9            # 14 + 9 * 6 bits cover every positive ns_t
    WHEEL_DUE = 577             # sentinel of the due list; slots are 1 .. 576
    WHEEL_SENTINELS = 578
    WHEEL_KINDS = 16
    WHEEL_RUNS = 32             # merge sort: run i holds 2^i nodes

cdef extern from *:
    """
    #define ustack_clz64(x) __builtin_clzll(x)
    #define ustack_ctz64(x) __builtin_ctzll(x)
    """
    int ustack_clz64(uint64_t x) noexcept nogil
    int ustack_ctz64(uint64_t x) noexcept nogil


cdef struct tnode_t:
    # All zero: not armed. In a sentinel, deadline is the slot's earliest deadline, or -1 if that is not known.
    uint32_t next
    uint32_t prev
    ns_t deadline


cdef struct wheel_t:
    uint8_t* base[WHEEL_KINDS]
    size_t stride[WHEEL_KINDS]
    int64_t cursor
    uint32_t count
    uint32_t levels                     # bit l: level l has a timer
    uint64_t used[WHEEL_LEVELS]         # bit i: slot i of the level has a timer
    tnode_t sentinel[WHEEL_SENTINELS]


cdef inline tnode_t* wheel_node(wheel_t* w, uint32_t id) noexcept nogil:
    cdef uint32_t kind = id >> REF_SHIFT
    return <tnode_t*>(w.base[kind] + <size_t>(id & REF_MASK) * w.stride[kind])


cdef inline int wheel_init(wheel_t* w, ns_t now) noexcept nogil:
    cdef int i
    memset(w, 0, sizeof(wheel_t))
    w.base[0] = <uint8_t*>&w.sentinel[0]
    w.stride[0] = sizeof(tnode_t)
    for i in range(1, WHEEL_SENTINELS):
        w.sentinel[i].next = <uint32_t>i
        w.sentinel[i].prev = <uint32_t>i
    w.cursor = now >> WHEEL_TICK_SHIFT if now > 0 else 0
    return 0


cdef inline void wheel_destroy(wheel_t* w) noexcept nogil:
    memset(w, 0, sizeof(wheel_t))


cdef inline void wheel_register(wheel_t* w, int kind, void* node_of_slot0, size_t stride) noexcept nogil:
    # kind is 1..15
    w.base[kind] = <uint8_t*>node_of_slot0
    w.stride[kind] = stride


cdef inline uint32_t wheel_count(wheel_t* w) noexcept nogil:
    return w.count


cdef inline bint wheel_armed(wheel_t* w, uint32_t id) noexcept nogil:
    return wheel_node(w, id).next != 0


cdef inline ns_t wheel_deadline(wheel_t* w, uint32_t id) noexcept nogil:
    cdef tnode_t* node = wheel_node(w, id)
    return node.deadline if node.next != 0 else NS_NEVER


cdef inline void wheel_link_(wheel_t* w, uint32_t after, uint32_t id, tnode_t* node) noexcept nogil:
    cdef tnode_t* prev = wheel_node(w, after)
    node.prev = after
    node.next = prev.next
    wheel_node(w, prev.next).prev = id
    prev.next = id


cdef inline uint32_t wheel_slot_(wheel_t* w, ns_t deadline) noexcept nogil:
    # Sentinel of the list that a timer with this deadline belongs to.
    cdef int64_t tick = deadline >> WHEEL_TICK_SHIFT
    cdef uint32_t level
    if tick <= w.cursor:
        return WHEEL_DUE
    level = <uint32_t>(63 - ustack_clz64(<uint64_t>(tick ^ w.cursor))) // WHEEL_BITS
    return 1 + level * WHEEL_SLOTS + (<uint32_t>(tick >> (level * WHEEL_BITS)) & (WHEEL_SLOTS - 1))


cdef inline void wheel_mark_empty_(wheel_t* w, uint32_t slot) noexcept nogil:
    cdef uint32_t level = (slot - 1) >> WHEEL_BITS
    w.used[level] &= ~(<uint64_t>1 << ((slot - 1) & (WHEEL_SLOTS - 1)))
    if w.used[level] == 0:
        w.levels &= ~(<uint32_t>1 << level)


cdef inline void wheel_append_(wheel_t* w, uint32_t slot, uint32_t id, tnode_t* node) noexcept nogil:
    cdef tnode_t* head = &w.sentinel[slot]
    cdef uint32_t level = (slot - 1) >> WHEEL_BITS
    if head.next == slot:
        w.used[level] |= <uint64_t>1 << ((slot - 1) & (WHEEL_SLOTS - 1))
        w.levels |= <uint32_t>1 << level
        head.deadline = node.deadline
    elif node.deadline < head.deadline:     # not so while it is -1, unknown
        head.deadline = node.deadline
    wheel_link_(w, head.prev, id, node)


cdef inline void wheel_insert_due_(wheel_t* w, uint32_t id, tnode_t* node) noexcept nogil:
    # Both ends are the common places: most late timers are later than all others, those in the past earlier.
    cdef tnode_t* due = &w.sentinel[WHEEL_DUE]
    cdef uint32_t at = due.prev
    if due.next != WHEEL_DUE and node.deadline < wheel_node(w, due.next).deadline:
        at = WHEEL_DUE
    while at != WHEEL_DUE and wheel_node(w, at).deadline > node.deadline:
        at = wheel_node(w, at).prev
    wheel_link_(w, at, id, node)


cdef inline void wheel_unlink_(wheel_t* w, tnode_t* node) noexcept nogil:
    cdef uint32_t slot
    wheel_node(w, node.prev).next = node.next
    wheel_node(w, node.next).prev = node.prev
    if node.next == node.prev and node.next < WHEEL_SENTINELS:
        if node.next != WHEEL_DUE:              # it was alone
            wheel_mark_empty_(w, node.next)
    else:
        slot = wheel_slot_(w, node.deadline)
        if slot != WHEEL_DUE and w.sentinel[slot].deadline == node.deadline:
            w.sentinel[slot].deadline = -1
    node.next = 0
    node.prev = 0
    w.count -= 1


cdef inline void wheel_disarm(wheel_t* w, uint32_t id) noexcept nogil:
    cdef tnode_t* node = wheel_node(w, id)
    if node.next != 0:
        wheel_unlink_(w, node)


cdef inline void wheel_move_last_(tnode_t* head, uint32_t slot, tnode_t* node, ns_t deadline) noexcept nogil:
    # A new deadline in the same slot for the timer at its end: a loss probe in place of the retransmission, an interval begun anew.
    if node.prev == slot or deadline < head.deadline:
        head.deadline = deadline
    elif head.deadline == node.deadline:
        head.deadline = -1
    node.deadline = deadline


cdef inline void wheel_arm(wheel_t* w, uint32_t id, ns_t deadline) noexcept nogil:
    # Arming again counts as a new arming: among equal deadlines the timer goes to the end.
    cdef tnode_t* node = wheel_node(w, id)
    cdef uint32_t slot = wheel_slot_(w, deadline)
    if node.next == slot and slot != WHEEL_DUE:
        wheel_move_last_(&w.sentinel[slot], slot, node, deadline)
        return
    if node.next != 0:
        wheel_unlink_(w, node)
    node.deadline = deadline
    w.count += 1
    if slot == WHEEL_DUE:
        wheel_insert_due_(w, id, node)
    else:
        wheel_append_(w, slot, id, node)


cdef inline void wheel_put_off(wheel_t* w, uint32_t id, tnode_t* node, ns_t deadline) noexcept nogil:
    # As wheel_arm, for a driver in real time: a timer that is armed for no later stays in the slot where it is, and goes on from there when its
    # time comes. Then wheel_next is no more than a bound, and among equal deadlines any may be first.
    if node.next != 0 and deadline >= node.deadline and node.deadline >> WHEEL_TICK_SHIFT > w.cursor:
        node.deadline = deadline
    else:
        wheel_arm(w, id, deadline)


cdef inline uint32_t wheel_merge_(wheel_t* w, uint32_t a, uint32_t b) noexcept nogil:
    # Merges two sorted chains (linked by next, ended by 0); a's nodes were armed before b's.
    cdef uint32_t first = 0
    cdef uint32_t* link = &first
    cdef tnode_t* na = wheel_node(w, a)
    cdef tnode_t* nb = wheel_node(w, b)
    while True:
        if nb.deadline < na.deadline:
            link[0] = b
            link = &nb.next
            b = nb.next
            if b == 0:
                link[0] = a
                return first
            nb = wheel_node(w, b)
        else:
            link[0] = a
            link = &na.next
            a = na.next
            if a == 0:
                link[0] = b
                return first
            na = wheel_node(w, a)


cdef inline uint32_t wheel_sort_(wheel_t* w, uint32_t chain) noexcept nogil:
    # Stable bottom-up merge sort of a chain. Later runs are always the second argument of a merge.
    cdef uint32_t runs[WHEEL_RUNS]
    cdef uint32_t id
    cdef uint32_t i
    cdef uint32_t top = 0
    cdef tnode_t* node
    while chain != 0:
        id = chain
        node = wheel_node(w, id)
        chain = node.next
        node.next = 0
        i = 0
        while i < top and runs[i] != 0:
            id = wheel_merge_(w, runs[i], id)
            runs[i] = 0
            i += 1
        if i == top:
            top += 1
        runs[i] = id
    id = 0
    for i in range(top):
        if runs[i] != 0:
            id = runs[i] if id == 0 else wheel_merge_(w, runs[i], id)
    return id


cdef inline void wheel_enter_(wheel_t* w, uint32_t slot) noexcept nogil:
    # Empties a slot whose first tick the cursor has just reached: timers of that tick go to the (empty) due list,
    # the others to lower levels.
    cdef tnode_t* head = &w.sentinel[slot]
    cdef tnode_t* node
    cdef uint32_t id = head.next
    cdef uint32_t next
    cdef uint32_t to
    cdef uint32_t chain = 0
    cdef uint32_t* link = &chain
    head.next = slot
    head.prev = slot
    wheel_mark_empty_(w, slot)
    while id != slot:
        node = wheel_node(w, id)
        next = node.next
        to = wheel_slot_(w, node.deadline)
        if to == WHEEL_DUE:
            link[0] = id
            link = &node.next
        else:
            wheel_append_(w, to, id, node)
        id = next
    link[0] = 0
    id = wheel_sort_(w, chain)
    while id != 0:
        node = wheel_node(w, id)
        next = node.next
        wheel_link_(w, w.sentinel[WHEEL_DUE].prev, id, node)
        id = next


cdef inline uint32_t wheel_first_slot_(wheel_t* w) noexcept nogil:
    # The slot with the earliest timers; w.levels must not be 0.
    cdef uint32_t level = <uint32_t>ustack_ctz64(w.levels)
    return 1 + level * WHEEL_SLOTS + <uint32_t>ustack_ctz64(w.used[level])


cdef inline int64_t wheel_slot_tick_(wheel_t* w, uint32_t slot) noexcept nogil:
    # First tick of a slot.
    cdef uint32_t shift = ((slot - 1) >> WHEEL_BITS) * WHEEL_BITS
    cdef int64_t above = w.cursor >> shift >> WHEEL_BITS << WHEEL_BITS
    return (above | ((slot - 1) & (WHEEL_SLOTS - 1))) << shift


cdef inline ns_t wheel_next(wheel_t* w) noexcept nogil:
    # The exact earliest deadline, NS_NEVER if nothing is armed. Looks through one slot, and only if the timer that was
    # earliest there has gone since the last look.
    cdef tnode_t* head
    cdef tnode_t* node
    cdef uint32_t slot
    cdef uint32_t id
    cdef ns_t least = NS_NEVER
    if w.sentinel[WHEEL_DUE].next != WHEEL_DUE:
        return wheel_node(w, w.sentinel[WHEEL_DUE].next).deadline
    if w.levels == 0:
        return NS_NEVER
    slot = wheel_first_slot_(w)
    head = &w.sentinel[slot]
    if head.deadline < 0:
        id = head.next
        while id != slot:
            node = wheel_node(w, id)
            if node.deadline < least:
                least = node.deadline
            id = node.next
        head.deadline = least
    return head.deadline


cdef inline ns_t wheel_next_bound(wheel_t* w) noexcept nogil:
    # No later than wheel_next, never a search: for a driver that may wake up early a few times rather than look
    # through a crowded slot.
    cdef uint32_t slot
    if w.sentinel[WHEEL_DUE].next != WHEEL_DUE:
        return wheel_node(w, w.sentinel[WHEEL_DUE].next).deadline
    if w.levels == 0:
        return NS_NEVER
    slot = wheel_first_slot_(w)
    if w.sentinel[slot].deadline >= 0:
        return w.sentinel[slot].deadline
    return wheel_slot_tick_(w, slot) << WHEEL_TICK_SHIFT


cdef inline uint32_t wheel_pop(wheel_t* w, ns_t now) noexcept nogil:
    # Next due timer (deadline <= now), disarmed; 0 when there is none. Arming from within the loop of pops is fine.
    cdef int64_t tick = now >> WHEEL_TICK_SHIFT
    cdef int64_t start
    cdef uint32_t slot
    cdef uint32_t id
    cdef tnode_t* node
    while True:
        id = w.sentinel[WHEEL_DUE].next
        if id != WHEEL_DUE:
            node = wheel_node(w, id)
            if node.deadline > now:
                return 0
            wheel_unlink_(w, node)
            return id
        if tick <= w.cursor:
            return 0
        if w.levels == 0:
            w.cursor = tick
            return 0
        slot = wheel_first_slot_(w)
        start = wheel_slot_tick_(w, slot)
        if start > tick:
            # Follow the time without entering a slot: later arms then find finer slots.
            w.cursor = tick
            return 0
        w.cursor = start
        wheel_enter_(w, slot)
