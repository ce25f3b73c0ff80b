# Impairment of a link: loss, delay, jitter, reordering, duplication, corruption, rate. Included by _fastpath.pyx.
#
# One direction is a queue of packets ordered by the time at which they come out; the draws come from a seeded generator, so a run in virtual
# time is reproducible. The order of decisions is netem's: duplicate, lose, corrupt, then the queue's limit, the rate, the delay. Used by the
# engine thread without the GIL (thread.pxi) and by links in virtual time (class Impairment). A packet is copied once, on the way in.

cdef struct impkt_t:            # a packet on its way
    ns_t due
    uint64_t order              # equal times leave in order of arrival
    uint8_t* data
    uint32_t len
    uint16_t gso_size
    uint8_t csum

cdef struct imdir_t:            # one direction
    double loss
    double duplicate
    double corrupt
    double reorder
    double rate                 # bytes per second, 0 = no limit
    ns_t delay
    ns_t jitter
    ns_t gap                    # how long a reordered packet is held back when there is no delay that it could skip
    uint32_t limit
    uint64_t rng
    ns_t free_at                # when the line has sent what it took
    impkt_t* heap
    uint32_t n
    uint32_t cap
    uint64_t order
    uint64_t c_packets
    uint64_t c_lost
    uint64_t c_duplicated
    uint64_t c_corrupted
    uint64_t c_reordered
    uint64_t c_overflow

cdef enum:
    IM_IN = 0                   # towards the stack
    IM_OUT = 1


cdef inline uint64_t im_random(imdir_t* d) noexcept nogil:
    cdef uint64_t z
    d.rng += 0x9e3779b97f4a7c15ULL
    z = d.rng
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL
    return z ^ (z >> 31)


cdef inline bint im_chance(imdir_t* d, double p) noexcept nogil:
    return p > 0 and <double> (im_random(d) >> 11) < p * 9007199254740992.0


cdef inline bint im_before(const impkt_t* a, const impkt_t* b) noexcept nogil:
    return a.due < b.due or (a.due == b.due and a.order < b.order)


cdef bint im_insert(imdir_t* d, const impkt_t* p) noexcept nogil:
    """Into the heap; False without memory."""
    cdef impkt_t* grown
    cdef uint32_t i
    cdef uint32_t up
    if d.n == d.cap:
        grown = <impkt_t*> realloc(d.heap, (d.cap * 2 if d.cap else 64) * sizeof(impkt_t))
        if grown == NULL:
            return False
        d.heap = grown
        d.cap = d.cap * 2 if d.cap else 64
    i = d.n
    d.n += 1
    while i:
        up = (i - 1) >> 1
        if not im_before(p, &d.heap[up]):
            break
        d.heap[i] = d.heap[up]
        i = up
    d.heap[i] = p[0]
    return True


cdef bint im_pop(imdir_t* d, ns_t now, impkt_t* out) noexcept nogil:
    """The next packet that is due; its data is the caller's to free."""
    cdef impkt_t last
    cdef uint32_t i = 0
    cdef uint32_t child
    if d.n == 0 or d.heap[0].due > now:
        return False
    out[0] = d.heap[0]
    d.n -= 1
    last = d.heap[d.n]
    while True:
        child = 2 * i + 1
        if child >= d.n:
            break
        if child + 1 < d.n and im_before(&d.heap[child + 1], &d.heap[child]):
            child += 1
        if not im_before(&d.heap[child], &last):
            break
        d.heap[i] = d.heap[child]
        i = child
    d.heap[i] = last
    return True


cdef inline ns_t im_next(imdir_t* d) noexcept nogil:
    return d.heap[0].due if d.n else NS_NEVER


cdef void im_flip(imdir_t* d, impkt_t* p) noexcept nogil:
    """Damage one bit, where a checksum can see it: a partial one is completed first."""
    cdef uint32_t bit
    if p.csum == CSUM_PARTIAL and p.len >= 40 and p.data[9] == 6:
        tx_tcp_csum(p.data, p.len)
    p.csum = CSUM_NONE
    bit = <uint32_t> (im_random(d) % (<uint64_t> p.len * 8))
    p.data[bit >> 3] ^= <uint8_t> (1 << (bit & 7))
    d.c_corrupted += 1


cdef ns_t im_due(imdir_t* d, uint32_t len, ns_t now) noexcept nogil:
    """When a packet that arrives now comes out."""
    cdef ns_t at = now
    cdef ns_t spread = 0
    if d.rate > 0:
        at = d.free_at if d.free_at > now else now
        at += <ns_t> (<double> len * 1e9 / d.rate)
        d.free_at = at
    if im_chance(d, d.reorder):
        d.c_reordered += 1
        return at + (0 if d.delay else d.gap)
    if d.jitter:
        spread = <ns_t> (im_random(d) % <uint64_t> (2 * d.jitter + 1)) - d.jitter
    spread += d.delay
    return at + (spread if spread > 0 else 0)


cdef void im_enqueue(imdir_t* d, const uint8_t* data, uint32_t len, uint8_t csum, uint16_t gso_size, ns_t now) noexcept nogil:
    cdef impkt_t p
    if d.n >= d.limit:
        d.c_overflow += 1
        return
    p.data = <uint8_t*> malloc(len)
    if p.data == NULL:
        d.c_overflow += 1
        return
    memcpy(p.data, data, len)
    p.len = len
    p.csum = csum
    p.gso_size = gso_size
    if im_chance(d, d.corrupt):
        im_flip(d, &p)
    p.due = im_due(d, len, now)
    p.order = d.order
    d.order += 1
    if not im_insert(d, &p):
        d.c_overflow += 1
        free(p.data)


cdef void im_push(imdir_t* d, const uint8_t* data, uint32_t len, uint8_t csum, uint16_t gso_size, ns_t now) noexcept nogil:
    """A packet enters; the data is copied."""
    cdef bint twice = im_chance(d, d.duplicate)
    cdef bint lost = im_chance(d, d.loss)
    d.c_packets += 1
    if twice:
        d.c_duplicated += 1
        im_enqueue(d, data, len, csum, gso_size, now)
    if lost:
        d.c_lost += 1
        return
    im_enqueue(d, data, len, csum, gso_size, now)


cdef class Impairment:
    """What ImpairedLink does to packets, both directions. Probabilities 0..1, times in ns, rate in bytes per second (0: no limit).

    direction: "both", "in" (towards the stack) or "out". push() and pop() are for virtual time; a threaded stack works on the queues itself.
    """

    cdef imdir_t d[2]

    def __cinit__(self, *, double loss=0, delay=0, jitter=0, double reorder=0, double duplicate=0, double corrupt=0,
                  double rate=0, limit=10000, seed=0, direction="both", gap=1000000):
        cdef int i
        memset(self.d, 0, sizeof(self.d))
        if direction not in ("both", "in", "out"):
            raise ValueError(f"direction is 'both', 'in' or 'out', not {direction!r}")
        for name, p in (("loss", loss), ("reorder", reorder), ("duplicate", duplicate), ("corrupt", corrupt)):
            if not 0 <= p <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, not {p}")
        if delay < 0 or jitter < 0 or rate < 0 or gap < 0 or limit < 1:
            raise ValueError("delay, jitter, rate and gap are not negative, limit is at least 1")
        for i in range(2):
            self.d[i].rng = (int(seed) * 2 + i) & 0xffffffffffffffff
            self.d[i].limit = limit
            self.d[i].gap = gap
            if direction == "both" or direction == ("in", "out")[i]:
                self.d[i].loss = loss
                self.d[i].duplicate = duplicate
                self.d[i].corrupt = corrupt
                self.d[i].reorder = reorder
                self.d[i].rate = rate
                self.d[i].delay = delay
                self.d[i].jitter = jitter

    def __dealloc__(self):
        cdef int i
        cdef uint32_t k
        for i in range(2):
            for k in range(self.d[i].n):
                free(self.d[i].heap[k].data)
            free(self.d[i].heap)

    def push(self, bint out, packet, now, csum=0, gso_size=0):
        """A packet enters at `now`."""
        cdef Py_buffer view
        PyObject_GetBuffer(packet, &view, PyBUF_SIMPLE)
        im_push(&self.d[out], <const uint8_t*> view.buf, <uint32_t> view.len, csum, gso_size, now)
        PyBuffer_Release(&view)

    def pop(self, bint out, now):
        """(packet, csum, gso_size) of the next packet due at `now`, or None."""
        cdef impkt_t p
        if not im_pop(&self.d[out], now, &p):
            return None
        packet = PyBytes_FromStringAndSize(<char*> p.data, p.len)
        free(p.data)
        return packet, p.csum, p.gso_size

    def next(self, bint out):
        """When the next packet comes out, or None."""
        cdef ns_t t = im_next(&self.d[out])
        return None if t == NS_NEVER else t

    def counters(self):
        """{"in": {...}, "out": {...}}: packets, lost, duplicated, corrupted, reordered, overflow."""
        cdef int i
        out = {}
        for i in range(2):
            out[("in", "out")[i]] = {
                "packets": self.d[i].c_packets, "lost": self.d[i].c_lost, "duplicated": self.d[i].c_duplicated,
                "corrupted": self.d[i].c_corrupted, "reordered": self.d[i].c_reordered, "overflow": self.d[i].c_overflow,
            }
        return out
