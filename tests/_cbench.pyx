# Test-only timing loops in compiled code (built with USTACK_BENCH=1, never shipped): what a SYN costs the core at a
# given number of half-open connections. Only engine calls stand between two readings of the thread's CPU clock; packets
# are written before, frames are dropped after.
#
# A round is what the engine thread does with a batch: prefetch and engine_receive for each packet, engine_poll, the
# next deadline, and the frames are taken.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ustack.core.cksum cimport csum_add, csum_fold, csum_pseudo
from ustack.core.engine cimport (
    engine_destroy, engine_init, engine_next_timeout, engine_params_t, engine_poll, engine_prefetch, engine_receive,
    engine_time,
)
from ustack.core.route cimport addr_add, route_default
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t
from ustack.core.tx cimport tx_batch_done, tx_batch_free, tx_swap, txbatch_t
from ustack.core.types cimport CSUM_NONE
from ustack.core.user cimport user_bind, user_listen, user_socket
from ustack.core.wire cimport put16, put32

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
        # A stack that has run for a while has touched every page of its table.
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
                engine_time(self.e, self.e.now + k * STEP_NS)
                for i in range(k):
                    engine_prefetch(self.e, packets + i * LEN, LEN, False)
                for i in range(k):
                    engine_prefetch(self.e, packets + i * LEN, LEN, True)
                for i in range(k):
                    engine_receive(self.e, packets + i * LEN, LEN, CSUM_NONE, 0, self.e.now)
                engine_poll(self.e, self.e.now)
                engine_next_timeout(self.e)
                tx_swap(self.e, &self.batch)
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
