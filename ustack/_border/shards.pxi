# Several engine threads behind one device: the way of a packet from the shard that read it to the shard that owns its flow. Included by
# _fastpath.pyx; which shard that is decides core/steer.pxd.
#
# Each shard has an inbox: a list under a mutex of its own, which is the last in the order of locks (it is taken under an engine's lock,
# nothing is taken under it). A packet is copied into its message, since the reader's buffer is used again. A full inbox drops, as a full device queue
# would. Whoever puts a message wakes the owner, after its own lock is free.

cdef enum:
    MAX_GROUP = 16
    INBOX_MAX = 16384           # messages
    INBOX_BYTES = 32 << 20

cdef struct msg_t:
    msg_t* next
    uint32_t len
    uint32_t asked              # bit set of shards that do not know the flow
    uint16_t gso_size
    uint8_t csum
    uint8_t origin              # on whose queue it came
    uint8_t settled             # no further look-up: it is for the receiver
    uint8_t data[1]

cdef struct inbox_t:
    pthread_mutex_t mu
    msg_t* head
    msg_t* tail
    int n                       # read without the mutex too: is there something?
    size_t bytes
    uint64_t total
    uint64_t dropped

cdef struct group_t:
    uint32_t n
    engine_t* e[MAX_GROUP]
    shared_t* s[MAX_GROUP]
    inbox_t inbox[MAX_GROUP]


cdef bint inbox_put(group_t* g, uint32_t to, msg_t* m) noexcept nogil:
    """False: full, the message is gone."""
    cdef inbox_t* b = &g.inbox[to]
    m.next = NULL
    pthread_mutex_lock(&b.mu)
    if b.n >= INBOX_MAX or b.bytes + m.len > INBOX_BYTES:
        b.dropped += 1
        pthread_mutex_unlock(&b.mu)
        free(m)
        return False
    if b.tail != NULL:
        b.tail.next = m
    else:
        b.head = m
    b.tail = m
    b.bytes += m.len
    b.total += 1
    atomic_add(&b.n, 1)
    pthread_mutex_unlock(&b.mu)
    return True


cdef msg_t* inbox_take(inbox_t* b) noexcept nogil:
    """All messages, oldest first."""
    cdef msg_t* m
    if atomic_load(&b.n) == 0:
        return NULL
    pthread_mutex_lock(&b.mu)
    m = b.head
    b.head = NULL
    b.tail = NULL
    b.bytes = 0
    atomic_swap(&b.n, 0)
    pthread_mutex_unlock(&b.mu)
    return m


cdef uint32_t shard_pass(group_t* g, uint32_t to, const uint8_t* p, uint32_t n, uint8_t csum, uint16_t gso_size, uint32_t asked,
                         uint32_t origin, bint settled) noexcept nogil:
    """Copy a packet into shard to's inbox. Returns its bit, for shards_wake."""
    cdef msg_t* m = <msg_t*> malloc(sizeof(msg_t) + n)
    if m == NULL:
        return 0
    m.len = n
    m.asked = asked
    m.gso_size = gso_size
    m.csum = csum
    m.origin = <uint8_t> origin
    m.settled = settled
    memcpy(m.data, p, n)
    return <uint32_t> 1 << to if inbox_put(g, to, m) else 0


cdef void shards_wake(group_t* g, uint32_t who) noexcept nogil:
    """End the sleep of the shards of a bit set. No lock is held."""
    cdef uint64_t one = 1
    cdef uint32_t i
    for i in range(g.n):
        if who >> i & 1 and atomic_swap(&g.s[i].sleeping, 0):
            sys_write(g.s[i].wake_fd, <const uint8_t*> &one, 8)


cdef uint32_t shard_receive(group_t* g, engine_t* e, const uint8_t* p, uint32_t n, uint8_t csum, uint16_t gso_size, uint32_t asked,
                            uint32_t origin, bint settled, ns_t now) noexcept nogil:
    """A packet for this shard or another one, under the engine's lock. Returns the shards to wake."""
    cdef uint32_t self = e.shard
    cdef uint32_t to = self if settled else steer_packet(e, p, n, asked)
    cdef uint32_t wake = 0
    if to == STEER_NOBODY:
        to = steer_home(e, p, n, origin)
        settled = True
    elif to != self and asked == 0 and get16(p + 6) & 0x3fff:
        settled = True              # a fragment, to where it is collected
    if to != self:
        return shard_pass(g, to, p, n, csum, gso_size, asked | <uint32_t> 1 << self, origin, settled)
    engine_receive(e, p, n, csum, gso_size, now)
    if e.hand != NULL:
        wake = shard_pass(g, e.hand_to, e.hand, e.hand_len, CSUM_NONE, 0, <uint32_t> 1 << self, self, False)
        e.hand = NULL
    return wake


cdef class Shards:
    """The engines of one stack, one per queue of its device. They must have been made with one seed and one size of the connection table."""

    cdef group_t* g
    cdef readonly tuple engines

    def __cinit__(self, engines):
        cdef Engine one
        cdef uint32_t i
        cdef uint32_t k
        self.engines = tuple(engines)
        if not 1 <= len(self.engines) <= MAX_GROUP:
            raise ValueError(f"from 1 to {MAX_GROUP} queues, not {len(self.engines)}")
        self.g = <group_t*> calloc(1, sizeof(group_t))
        if self.g == NULL:
            raise MemoryError
        for one in self.engines:
            i = self.g.n
            self.g.e[i] = one.e
            self.g.s[i] = &one.s
            pthread_mutex_init(&self.g.inbox[i].mu, NULL)
            self.g.n += 1
            if not ehash_settle(&one.e.ehash):      # the others will read it without the lock
                raise MemoryError
            if memcmp(one.e.key_ehash, self.g.e[0].key_ehash, 16) != 0 or one.e.ehash.mask != self.g.e[0].ehash.mask:
                raise ValueError("shards share one seed and one ehash_entries")
        for i in range(self.g.n):
            for k in range(self.g.n):
                self.g.e[i].peers[k] = &self.g.e[k].ehash
                self.g.e[i].cookies_at[k] = &self.g.e[k].cookies_stamp
            self.g.e[i].shard = <uint8_t> i
            self.g.e[i].n_shards = self.g.n

    def __dealloc__(self):
        cdef uint32_t i
        cdef msg_t* m
        cdef msg_t* after
        if self.g == NULL:
            return
        for i in range(self.g.n):
            self.g.e[i].n_shards = 0
            m = self.g.inbox[i].head
            while m != NULL:
                after = m.next
                free(m)
                m = after
            pthread_mutex_destroy(&self.g.inbox[i].mu)
        free(self.g)

    def counters(self):
        """Packets passed to each shard by the others, and of these dropped because its inbox was full: [(passed, dropped), ...]."""
        return [(self.g.inbox[i].total, self.g.inbox[i].dropped) for i in range(self.g.n)]
