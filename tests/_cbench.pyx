# Test-only timing loops in compiled code (built with USTACK_BENCH=1, never shipped): what a SYN costs the core at a
# given number of half-open connections. Only engine calls stand between two readings of the thread's CPU clock; packets
# are written before, frames are dropped after.
#
# A round is what the engine thread does with a batch: prefetch and engine_receive for each packet, engine_poll, the
# services, the next deadline, and the frames are taken. Rounds whose instructions are counted (scripts/bench/instructions: a profiler that
# collects inside `counted_round` only) and those that warm up before are the same code under two names.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ustack.core.cksum cimport csum_add, csum_fold, csum_pseudo
from ustack.core.engine cimport (
    engine_batch, engine_crowded, engine_destroy, engine_init, engine_next_timeout, engine_params_t, engine_poll, engine_prefetch, engine_receive,
    engine_settle, engine_time,
)
from ustack.core.route cimport addr_add, route_default
from ustack.core.service cimport SVC_CHUNK, SVC_CHARGEN, SVC_DISCARD, SVC_ECHO, SVC_HTTP, service_pump, service_set
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport OWES_ALL, tcb_t
from ustack.core.tx cimport tx_batch_done, tx_batch_free, tx_swap, txbatch_t
from ustack.core.types cimport CSUM_NONE, CSUM_PARTIAL, TH_ACK, TH_FIN, TH_PSH
from ustack.core.user cimport user_bind, user_listen, user_socket
from ustack.core.wire cimport get32, put16, put32

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    const int CLOCK_THREAD_CPUTIME_ID

cdef enum:
    LEN = 60                    # IP 20, TCP 20, options 20: MSS, SACK-permitted, timestamps, window scale
    BATCH = 64                  # as the engine thread reads
    SERVER = 0xc6120002         # 198.18.0.2
    STEP_NS = 500               # virtual time between two SYNs
    HEAD = 52                   # IP 20, TCP 20, timestamps 12
    SEGMENT = 1448
    FRAME = HEAD + SEGMENT


cdef extern from *:
    """
    #ifdef __OPTIMIZE__
    enum { ustack_optimized = 1 };
    #else
    enum { ustack_optimized = 0 };
    #endif
    #ifdef USTACK_PGO
    enum { ustack_profiled = 1 };
    #else
    enum { ustack_profiled = 0 };
    #endif
    /* A function as a value that the compiler knows nothing about: it cannot be inlined. */
    static void *ustack_opaque(void *p) { __asm__ volatile("" : "+r"(p)); return p; }
    """
    const int ustack_optimized
    const int ustack_profiled
    void* ustack_opaque(void*) noexcept nogil

ctypedef void (*round_f)(engine_t*, const uint8_t*, uint32_t, uint32_t, uint8_t, uint32_t, txbatch_t*, uint8_t*) noexcept nogil

SERVICES = {"chargen": SVC_CHARGEN, "discard": SVC_DISCARD, "echo": SVC_ECHO, "http": SVC_HTTP}
REQUEST = b"GET / HTTP/1.1\r\nHost: 198.18.0.2\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: 198.18.0.2\r\nConnection: close\r\n\r\n"

OPTIMIZED = bool(ustack_optimized)      # counts and times of an -O0 build say nothing
PROFILED = bool(ustack_profiled)        # those of a USTACK_PGO=1 build hang on its training run


cdef inline int64_t cpu_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts)
    return <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec


cdef void write_syn(uint8_t* p, uint64_t n) noexcept nogil:
    # The n-th client's SYN: spread one to one over 2^14 addresses from 198.19.0.0 on and 2^16 ports.
    cdef uint64_t x = (n * 0x5851f42d4c957f2dULL + 1) & 0x3fffffffULL
    cdef uint32_t src = 0xc6130000U + (<uint32_t>(x >> 16) & 0x3fff)
    memset(p, 0, LEN)
    p[0] = 0x45
    put16(p + 2, LEN)
    p[6] = 0x40
    p[8] = 64
    p[9] = 6
    put32(p + 12, src)
    put32(p + 16, SERVER)
    put16(p + 10, csum_fold(csum_add(p, 20, 0)))
    put16(p + 20, <uint16_t>(x & 0xffff))
    put16(p + 22, 80)
    put32(p + 24, <uint32_t>(n * 2654435761U))
    p[32] = 0xa0
    p[33] = 2
    put16(p + 34, 64240)
    put32(p + 40, 0x020405b4)
    put32(p + 44, 0x0402080a)
    put32(p + 48, <uint32_t>(1000 + n))
    put32(p + 56, 0x01030307)
    put16(p + 36, csum_fold(csum_add(p + 20, LEN - 20, csum_pseudo(src, SERVER, 6, LEN - 20))))


cdef inline void round_(engine_t* e, const uint8_t* packets, uint32_t size, uint32_t n, uint8_t csum, uint32_t gso_size, txbatch_t* batch,
                        uint8_t* scratch) noexcept nogil:
    # n packets of `size` bytes; scratch: of the services, NULL without. The frames are in the batch afterwards.
    cdef uint32_t i
    engine_time(e, e.now + n * STEP_NS)
    engine_batch(e, True)
    for i in range(n):
        engine_prefetch(e, packets + i * size, size, 0)
    for i in range(n):
        engine_prefetch(e, packets + i * size, size, 1)
    if engine_crowded(e):
        for i in range(n):
            engine_prefetch(e, packets + i * size, size, 2)
    for i in range(n):
        engine_receive(e, packets + i * size, size, csum, gso_size, e.now)
    engine_poll(e, e.now)
    if scratch != NULL:
        service_pump(e, scratch)
    engine_batch(e, False)
    engine_settle(e, OWES_ALL, 0)
    engine_next_timeout(e)
    tx_swap(e, batch)


cdef void counted_round(engine_t* e, const uint8_t* packets, uint32_t size, uint32_t n, uint8_t csum, uint32_t gso_size, txbatch_t* batch,
                        uint8_t* scratch) noexcept nogil:
    round_(e, packets, size, n, csum, gso_size, batch, scratch)


cdef void warm_round(engine_t* e, const uint8_t* packets, uint32_t size, uint32_t n, uint8_t csum, uint32_t gso_size, txbatch_t* batch,
                     uint8_t* scratch) noexcept nogil:
    round_(e, packets, size, n, csum, gso_size, batch, scratch)


cdef class Flood:
    # An engine with one listener that a flood of SYNs from ever new clients fills.
    cdef engine_t* e
    cdef txbatch_t batch
    cdef uint64_t sent
    cdef readonly int64_t ns
    cdef readonly uint64_t answers

    def __cinit__(self, uint32_t ehash_entries=0, int64_t backlog=0x7fffffff, int64_t syncookies=1,
                  int64_t max_syn_backlog=0x7fffffff):
        cdef engine_params_t p
        cdef tcb_t* sk
        cdef uint32_t i
        memset(&p, 0, sizeof(p))
        p.seed = <const uint8_t*>b"bench"
        p.seed_len = 5
        p.ehash_entries = ehash_entries
        self.e = <engine_t*>calloc(1, sizeof(engine_t))
        if self.e == NULL or engine_init(self.e, &p) != 0:
            raise MemoryError
        self.e.cfg.somaxconn = 0x7fffffff
        self.e.cfg.tcp_max_syn_backlog = 0x7fffffff
        route_default(self.e, True)
        addr_add(self.e, SERVER, 24, False)
        # A stack that has run for a while has touched every page of its first, small table; the whole one is made when it is needed.
        for i in range(0, self.e.ehash.mask + 1, 512):
            self.e.ehash.bucket[i] = 0
        sk = user_socket(self.e)
        if sk == NULL or user_bind(self.e, sk, 0, 80) != 0 or user_listen(self.e, sk, backlog) != 0:
            raise RuntimeError("no listener")

    def __dealloc__(self):
        if self.e != NULL:
            tx_batch_free(&self.batch)
            engine_destroy(self.e)
            free(self.e)

    def half_open(self):
        return self.e.req.used

    def mib(self, int i):
        return self.e.stats.mib[i]

    def syns(self, uint64_t n):
        # n SYNs in batches; self.ns: CPU time inside the engine. Returns it per SYN.
        cdef uint8_t* packets = <uint8_t*>malloc(BATCH * LEN)
        cdef uint32_t i
        cdef uint32_t k
        cdef int64_t start
        cdef int64_t spent = 0
        cdef uint64_t left = n
        if packets == NULL:
            raise MemoryError
        with nogil:
            while left != 0:
                k = BATCH if left > BATCH else <uint32_t>left
                for i in range(k):
                    write_syn(packets + i * LEN, self.sent + i)
                start = cpu_ns()
                round_(self.e, packets, LEN, k, CSUM_NONE, 0, &self.batch, NULL)
                self.answers += self.batch.n
                tx_batch_done(&self.batch)
                spent += cpu_ns() - start
                self.sent += k
                left -= k
        free(packets)
        self.ns = spent
        return <double>spent / n if n else 0.0

    def expire(self):
        # Runs the clock to the next deadline and on by what all first retransmissions take: (timers run, CPU ns each).
        cdef int64_t start
        cdef int64_t spent = 0
        cdef uint64_t fired = 0
        cdef uint32_t n
        with nogil:
            engine_time(self.e, engine_next_timeout(self.e))
            while True:
                start = cpu_ns()
                n = engine_poll(self.e, self.e.now)
                engine_next_timeout(self.e)
                tx_swap(self.e, &self.batch)
                tx_batch_done(&self.batch)
                spent += cpu_ns() - start
                if n == 0 and engine_next_timeout(self.e) - self.e.now > 100000000:
                    break
                fired += n
                engine_time(self.e, self.e.now + BATCH * STEP_NS)
        return fired, (<double>spent / fired if fired else 0.0)

    def counted(self, uint64_t n, bint warm=False):
        # n SYNs in counted (or warm-up) rounds.
        cdef round_f run = <round_f>ustack_opaque(<void*>warm_round if warm else <void*>counted_round)
        cdef uint8_t* packets = <uint8_t*>malloc(BATCH * LEN)
        cdef uint32_t i
        cdef uint32_t k
        if packets == NULL:
            raise MemoryError
        with nogil:
            while n != 0:
                k = BATCH if n > BATCH else <uint32_t>n
                for i in range(k):
                    write_syn(packets + i * LEN, self.sent + i)
                run(self.e, packets, LEN, k, CSUM_NONE, 0, &self.batch, NULL)
                self.answers += self.batch.n
                tx_batch_done(&self.batch)
                self.sent += k
                n -= k
        free(packets)


cdef class Stream:
    # One connection to a service of the engine, the client's packets written by hand: data into discard, ACKs of what chargen sends, requests.
    cdef engine_t* e
    cdef txbatch_t batch
    cdef uint8_t* scratch
    cdef uint8_t* packets
    cdef uint64_t who           # the client's number
    cdef uint32_t seq           # the client's
    cdef uint32_t ack
    cdef uint32_t unacked       # payload seen and not yet acknowledged
    cdef readonly uint64_t frames
    cdef readonly uint64_t bytes

    def __cinit__(self, service):
        cdef engine_params_t p
        cdef tcb_t* sk
        memset(&p, 0, sizeof(p))
        p.seed = <const uint8_t*>b"bench"
        p.seed_len = 5
        p.ehash_entries = 1024
        self.e = <engine_t*>calloc(1, sizeof(engine_t))
        self.scratch = <uint8_t*>malloc(SVC_CHUNK)
        self.packets = <uint8_t*>calloc(BATCH, FRAME)
        if self.e == NULL or self.scratch == NULL or self.packets == NULL or engine_init(self.e, &p) != 0:
            raise MemoryError
        route_default(self.e, True)
        addr_add(self.e, SERVER, 24, False)
        sk = user_socket(self.e)
        if sk == NULL or user_bind(self.e, sk, 0, 80) != 0 or user_listen(self.e, sk, 16) != 0:
            raise RuntimeError("no listener")
        self.e.lazy_timers = 1
        service_set(self.e, sk, SERVICES[service])
        if not self.connect(warm_round):
            raise RuntimeError("no SYN-ACK")

    def __dealloc__(self):
        if self.e != NULL:
            tx_batch_free(&self.batch)
            engine_destroy(self.e)
            free(self.e)
        free(self.scratch)
        free(self.packets)

    cdef bint connect(self, round_f run) noexcept nogil:
        # The next client's handshake.
        self.who += 1
        write_syn(self.packets, self.who)
        self.seq = get32(self.packets + 24) + 1
        run(self.e, self.packets, LEN, 1, CSUM_NONE, 0, &self.batch, self.scratch)
        if self.batch.n != 1:
            return False
        self.ack = get32(self.batch.tx[0].hdr + 24) + 1
        tx_batch_done(&self.batch)
        self.packet(self.packets, TH_ACK, 0)
        run(self.e, self.packets, HEAD, 1, CSUM_PARTIAL, 0, &self.batch, self.scratch)
        self.take()
        return True

    cdef void packet(self, uint8_t* p, uint8_t flags, uint32_t payload) noexcept nogil:
        # The client's next packet at p, with timestamps as in its SYN.
        write_syn(p, self.who)
        put16(p + 2, <uint16_t>(HEAD + payload))
        put16(p + 10, 0)
        put16(p + 10, csum_fold(csum_add(p, 20, 0)))
        put32(p + 24, self.seq)
        put32(p + 28, self.ack)
        p[32] = 0x80
        p[33] = flags
        put16(p + 34, 0xffff)
        put32(p + 40, 0x0101080a)
        put32(p + 44, <uint32_t>(1000 + self.who + self.e.now // 1000000))
        put32(p + 48, 0)
        self.seq += payload

    cdef void take(self) noexcept nogil:
        # Reads the frames of a round.
        cdef uint32_t i
        for i in range(self.batch.n):
            self.unacked += self.batch.tx[i].l0 + self.batch.tx[i].l1
        self.frames += self.batch.n
        tx_batch_done(&self.batch)

    def data(self, uint32_t n, uint32_t payload, uint32_t at_once, bint warm=False):
        # n rounds of at_once data packets; a payload above one segment is a super-segment.
        cdef round_f run = <round_f>ustack_opaque(<void*>warm_round if warm else <void*>counted_round)
        cdef uint32_t i
        cdef uint32_t gso_size = SEGMENT if payload > SEGMENT else 0
        assert at_once * (HEAD + payload) <= BATCH * FRAME and HEAD + payload < 65536
        with nogil:
            while n != 0:
                for i in range(at_once):
                    self.packet(self.packets + i * (HEAD + payload), TH_ACK | TH_PSH, payload)
                run(self.e, self.packets, HEAD + payload, at_once, CSUM_PARTIAL, gso_size, &self.batch, self.scratch)
                self.take()
                self.bytes += at_once * payload
                n -= 1

    def requests(self, uint32_t n, bint warm=False, bytes text=REQUEST):
        # n requests over the kept connection, one a round; each acknowledges the answer before it.
        cdef round_f run = <round_f>ustack_opaque(<void*>warm_round if warm else <void*>counted_round)
        cdef uint32_t size = <uint32_t>len(text)
        cdef const uint8_t* p = text
        cdef uint32_t unanswered = 0
        with nogil:
            while n != 0:
                self.ack += self.unacked
                self.bytes += self.unacked
                self.unacked = 0
                self.packet(self.packets, TH_ACK | TH_PSH, size)
                memcpy(self.packets + HEAD, p, size)
                run(self.e, self.packets, HEAD + size, 1, CSUM_PARTIAL, 0, &self.batch, self.scratch)
                self.take()
                unanswered += self.unacked == 0
                n -= 1
        assert unanswered == 0, "requests without an answer"

    def visits(self, uint32_t n, bint warm=False):
        # n clients one after another: connect, one request, its answer with the FIN, the client's FIN.
        cdef round_f run = <round_f>ustack_opaque(<void*>warm_round if warm else <void*>counted_round)
        cdef bytes text = LAST_REQUEST
        cdef uint32_t size = <uint32_t>len(text)
        cdef const uint8_t* p = text
        cdef uint64_t frames = self.frames
        with nogil:
            for _ in range(n):
                self.unacked = 0
                if not self.connect(run):
                    break
                self.packet(self.packets, TH_ACK | TH_PSH, size)
                memcpy(self.packets + HEAD, p, size)
                run(self.e, self.packets, HEAD + size, 1, CSUM_PARTIAL, 0, &self.batch, self.scratch)
                self.take()
                self.ack += self.unacked + 1
                self.packet(self.packets, TH_ACK | TH_FIN, 0)
                run(self.e, self.packets, HEAD, 1, CSUM_PARTIAL, 0, &self.batch, self.scratch)
                self.take()
        assert self.frames - frames == 2 * n, "not an answer with a FIN, and an ACK"

    def acks(self, uint32_t n, bint warm=False):
        # n ACKs, each of two segments, in rounds of as many as there is data for.
        cdef round_f run = <round_f>ustack_opaque(<void*>warm_round if warm else <void*>counted_round)
        cdef uint32_t k
        cdef uint64_t empty = 0
        with nogil:
            while n != 0 and empty < 1000:
                k = 0
                while k < n and k < BATCH and self.unacked >= 2 * SEGMENT:
                    self.ack += 2 * SEGMENT
                    self.unacked -= 2 * SEGMENT
                    self.bytes += 2 * SEGMENT
                    self.packet(self.packets + k * HEAD, TH_ACK, 0)
                    k += 1
                empty += k == 0
                run(self.e, self.packets, HEAD, k, CSUM_PARTIAL, 0, &self.batch, self.scratch)
                self.take()
                n -= k
        assert n == 0, "the service sends no more"
