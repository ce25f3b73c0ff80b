# Test-only door to the leaf functions of ustack/core (built with USTACK_CTEST=1, never shipped).
#
# One Python function or class per group of leaf functions, no logic of its own: packets are copied to blocks of their
# exact size, so that AddressSanitizer sees a read past the end, and results come back as plain ints, bytes and dicts.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cimport ustack.core.access as access
cimport ustack.core.cc as cc
cimport ustack.core.cc_bbr as bbr
cimport ustack.core.cc_cubic as cub
cimport ustack.core.cksum as ck
cimport ustack.core.cwnd as cw
cimport ustack.core.ehash as eh
cimport ustack.core.engine as eng
cimport ustack.core.ofotree as ofot
cimport ustack.core.pool as po
cimport ustack.core.recvmsg as recvmsg
cimport ustack.core.ring as ri
cimport ustack.core.route as route
cimport ustack.core.rtt as rt
cimport ustack.core.sendmsg as sendmsg
cimport ustack.core.sendq as send
cimport ustack.core.seqno as sq
cimport ustack.core.siphash as sh
cimport ustack.core.records as rec
cimport ustack.core.stats as st
cimport ustack.core.tx as tx
cimport ustack.core.types as ty
cimport ustack.core.user as user
cimport ustack.core.wheel as wh
cimport ustack.core.wire as wi
from ustack.core.config cimport config_defaults
from ustack.core.siphash cimport prng_seed
from ustack.core.state cimport engine_t
from ustack.core.access cimport skopt_defaults
from ustack.core.tcb cimport CA_EXT_WORDS, CC_BBR, skopt_t, tcb_t

NS_NEVER = ty.NS_NEVER
DROP_REASONS = ty.DROP_REASONS
KIND_REQ = ty.KIND_REQ
KIND_TCB = ty.KIND_TCB
KIND_TW = ty.KIND_TW
CSUM_NONE = ty.CSUM_NONE
CSUM_PARTIAL = ty.CSUM_PARTIAL
CSUM_VERIFIED = ty.CSUM_VERIFIED
OPT = {"mss": ty.OPT_MSS, "wscale": ty.OPT_WSCALE, "sackok": ty.OPT_SACKOK, "ts": ty.OPT_TS, "sack": ty.OPT_SACK,
       "fastopen": ty.OPT_FASTOPEN, "md5": ty.OPT_MD5, "fo_exp": ty.OPT_FO_EXP}


cdef class Block:
    # A copy of some bytes in a heap block of exactly their size, after `skew` bytes to try other alignments.
    cdef uint8_t* mem
    cdef uint8_t* p
    cdef Py_ssize_t n

    def __cinit__(self, data, int skew=0):
        cdef bytes raw = bytes(data)
        self.n = len(raw)
        self.mem = <uint8_t*>malloc(<size_t>(skew + self.n))
        if self.mem == NULL:
            raise MemoryError
        self.p = self.mem + skew
        memcpy(self.p, <const char*>raw, <size_t>self.n)

    def __dealloc__(self):
        free(self.mem)

    cdef bytes get(self):
        return PyBytes_FromStringAndSize(<char*>self.p, self.n)


# ---- seqno

def before(uint32_t a, uint32_t b):
    return sq.before(a, b)


def after(uint32_t a, uint32_t b):
    return sq.after(a, b)


def between(uint32_t s, uint32_t lo, uint32_t hi):
    return sq.between(s, lo, hi)


def minmax_all(int64_t a, int64_t b):
    # (min, max) on the low bits of two values, by type name.
    return {
        "u32": (sq.u32_min(<uint32_t>a, <uint32_t>b), sq.u32_max(<uint32_t>a, <uint32_t>b)),
        "i32": (sq.i32_min(<int>a, <int>b), sq.i32_max(<int>a, <int>b)),
        "i64": (sq.i64_min(a, b), sq.i64_max(a, b)),
    }


def ilog2_u32(uint32_t x):
    return sq.ilog2_u32(x)


def rounddown_u32(uint32_t x, uint32_t m):
    return sq.rounddown_u32(x, m)


# ---- stats

def mib_names():
    return [st.mib_name(i).decode() for i in range(st.MIB_COUNT)]


def drop_names():
    return [st.drop_name(i).decode() for i in range(ty.DROP_REASONS)]


def name_outside(int i):
    return st.mib_name(i) == NULL, st.drop_name(i) == NULL


def mib_known():
    # A few numbers as the core sees them, to compare with positions in mib_names().
    return {"IpInReceives": st.MIB_IpInReceives, "TcpInSegs": st.MIB_TcpInSegs, "TcpCurrEstab": st.MIB_TcpCurrEstab,
            "TcpExtListenDrops": st.MIB_TcpExtListenDrops, "IpExtReasmOverlaps": st.MIB_IpExtReasmOverlaps,
            "UdpLiteMemErrors": st.MIB_UdpLiteMemErrors, "IcmpInMsgs": st.MIB_IcmpInMsgs,
            "TcpExtTCPAODroppedIcmps": st.MIB_TcpExtTCPAODroppedIcmps}


cdef class Stats:
    cdef st.stats_t s

    def inc(self, int i):
        st.mib_inc(&self.s, i)

    def dec(self, int i):
        st.mib_dec(&self.s, i)

    def add(self, int i, int64_t n):
        st.mib_add(&self.s, i, n)

    def drop(self, int reason):
        st.drop_inc(&self.s, reason)

    def mib(self):
        return [self.s.mib[i] for i in range(st.MIB_COUNT)]

    def drops(self):
        return [self.s.drops[i] for i in range(ty.DROP_REASONS)]


# ---- pool

cdef class Pool:
    cdef po.pool_t p
    cdef readonly int rc

    def __cinit__(self, uint32_t cap, uint32_t stride, bint gen=False):
        self.rc = po.pool_init_gen(&self.p, cap, stride) if gen else po.pool_init(&self.p, cap, stride)

    def __dealloc__(self):
        po.pool_destroy(&self.p)

    def destroy(self):
        po.pool_destroy(&self.p)

    def alloc(self):
        return po.pool_alloc(&self.p)

    def free(self, uint32_t i):
        po.pool_free(&self.p, i)

    def gen(self, uint32_t i):
        return po.pool_gen(&self.p, i)

    def live(self, uint32_t i, uint32_t gen):
        return po.pool_live(&self.p, i, gen)

    def fill(self, uint32_t i, uint8_t value):
        memset(po.pool_at(&self.p, i), value, self.p.stride)

    def get(self, uint32_t i):
        return PyBytes_FromStringAndSize(<char*>po.pool_at(&self.p, i), self.p.stride)

    def address(self, uint32_t i):
        return <size_t>po.pool_at(&self.p, i)

    @property
    def used(self):
        return self.p.used

    @property
    def high(self):
        return self.p.high


# ---- wheel

cdef struct timers_t:
    # An object with three timers of different kinds at different offsets, as a socket has them.
    uint32_t before
    wh.tnode_t a
    wh.tnode_t b
    uint64_t between
    wh.tnode_t c


cdef class Wheel:
    # Timers are (kind 1..3, index 1..n).
    cdef wh.wheel_t* w
    cdef timers_t* objects
    cdef uint32_t n

    def __cinit__(self, int64_t now, uint32_t n):
        self.n = n
        self.w = <wh.wheel_t*>malloc(sizeof(wh.wheel_t))
        self.objects = <timers_t*>calloc(n + 1, sizeof(timers_t))
        if self.w == NULL or self.objects == NULL:
            raise MemoryError
        wh.wheel_init(self.w, now)
        wh.wheel_register(self.w, 1, &self.objects[0].a, sizeof(timers_t))
        wh.wheel_register(self.w, 2, &self.objects[0].b, sizeof(timers_t))
        wh.wheel_register(self.w, 3, &self.objects[0].c, sizeof(timers_t))

    def __dealloc__(self):
        if self.w != NULL:
            wh.wheel_destroy(self.w)
        free(self.w)
        free(self.objects)

    cdef uint32_t id(self, int kind, uint32_t i) except 0:
        if not 1 <= kind <= 3 or not 1 <= i <= self.n:
            raise IndexError
        return <uint32_t>kind << ty.REF_SHIFT | i

    def arm(self, int kind, uint32_t i, int64_t deadline):
        wh.wheel_arm(self.w, self.id(kind, i), deadline)

    def put_off(self, int kind, uint32_t i, int64_t deadline):
        cdef uint32_t id = self.id(kind, i)
        wh.wheel_put_off(self.w, id, wh.wheel_node(self.w, id), deadline)

    def disarm(self, int kind, uint32_t i):
        wh.wheel_disarm(self.w, self.id(kind, i))

    def armed(self, int kind, uint32_t i):
        return wh.wheel_armed(self.w, self.id(kind, i))

    def deadline(self, int kind, uint32_t i):
        return wh.wheel_deadline(self.w, self.id(kind, i))

    def next(self):
        return wh.wheel_next(self.w)

    def next_bound(self):
        return wh.wheel_next_bound(self.w)

    def pop(self, int64_t now):
        cdef uint32_t id = wh.wheel_pop(self.w, now)
        return (id >> ty.REF_SHIFT, id & ty.REF_MASK) if id else None

    def count(self):
        return wh.wheel_count(self.w)


# ---- siphash

def siphash(uint64_t k0, uint64_t k1, data):
    cdef Block b = Block(data)
    return sh.siphash(k0, k1, b.p, <size_t>b.n)


def siphash_u64(uint64_t k0, uint64_t k1, *words):
    if len(words) == 1:
        return sh.siphash_u64x1(k0, k1, words[0])
    if len(words) == 2:
        return sh.siphash_u64x2(k0, k1, words[0], words[1])
    return sh.siphash_u64x3(k0, k1, words[0], words[1], words[2])


def siphash_u32x4(uint64_t k0, uint64_t k1, uint32_t a, uint32_t b, uint32_t c, uint32_t d):
    return sh.siphash_u32x4(k0, k1, a, b, c, d)


def flow_hash(uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport, uint64_t k0, uint64_t k1):
    return sh.flow_hash(laddr, faddr, lport, fport, k0, k1)


cdef class Prng:
    cdef sh.prng_t r

    def __cinit__(self, seed):
        cdef Block b = Block(seed)
        sh.prng_seed(&self.r, b.p, <size_t>b.n)

    def set_state(self, a, b, c, d):
        self.r.s[0], self.r.s[1], self.r.s[2], self.r.s[3] = a, b, c, d

    def u64(self):
        return sh.prng_u64(&self.r)

    def below(self, uint32_t n):
        return sh.prng_below(&self.r, n)


# ---- cksum

def checksum(data, int skew=0, int split=-1, uint64_t start=0):
    # Of one range, or of two that meet at `split`.
    cdef Block b = Block(data, skew)
    cdef Block c
    if split < 0:
        return ck.csum_fold(ck.csum_add(b.p, <size_t>b.n, start))
    c = Block(data[split:])
    return ck.csum_fold(ck.csum_ranges(b.p, <size_t>split, c.p, <size_t>c.n, start))


def pseudo_checksum(uint32_t src, uint32_t dst, uint8_t proto, data):
    cdef Block b = Block(data)
    return ck.csum_fold(ck.csum_add(b.p, <size_t>b.n, ck.csum_pseudo(src, dst, proto, <uint32_t>b.n)))


def pseudo_partial(uint32_t src, uint32_t dst, uint8_t proto, uint32_t n):
    return ck.csum_fold_partial(ck.csum_pseudo(src, dst, proto, n))


# ---- wire

cdef dict ip_dict(ty.seg_t* s):
    return {"ip_len": s.ip_len, "ip_hlen": s.ip_hlen, "src": s.src, "dst": s.dst, "ip_id": s.ip_id, "frag": s.frag,
            "tos": s.tos, "ttl": s.ttl, "proto": s.proto, "l4": s.l4 - s.ip, "l4_len": s.l4_len}


cdef dict tcp_dict(ty.seg_t* s):
    return {"sport": s.sport, "dport": s.dport, "seq": s.seq, "end_seq": s.end_seq, "ack": s.ack, "wnd": s.wnd,
            "urg": s.urg, "flags": s.flags, "doff": s.doff, "len": s.len, "data": PyBytes_FromStringAndSize(
                <char*>s.data, s.len), "csum_ok": wi.wire_tcp_csum_ok(s)}


cdef dict opts_dict(ty.seg_t* s):
    out = {"opts": s.opts}
    if s.opts & ty.OPT_MSS:
        out["mss"] = s.mss
    if s.opts & ty.OPT_WSCALE:
        out["wscale"] = s.wscale
    if s.opts & ty.OPT_TS:
        out["ts"] = (s.tsval, s.tsecr)
    if s.opts & ty.OPT_SACK:
        out["sack"] = [(s.sack[i].start, s.sack[i].end) for i in range(s.n_sack)]
    if s.opts & ty.OPT_FASTOPEN:
        out["cookie"] = PyBytes_FromStringAndSize(<char*>s.fo_cookie, s.fo_len)
    return out


def parse_ip(data):
    # (reason, fields) of the three steps in one.
    cdef Block b = Block(data)
    cdef ty.seg_t s
    memset(&s, 0, sizeof(s))
    cdef int reason = wi.wire_parse_ip(b.p, <uint32_t>b.n, &s)
    return reason, ip_dict(&s) if reason == 0 else {}


def parse_ip_head(data):
    # (reason, ip_hlen, tos, header checksum right): what the caller knows after the first step.
    cdef Block b = Block(data)
    cdef ty.seg_t s
    memset(&s, 0, sizeof(s))
    cdef int reason = wi.wire_parse_ip_head(b.p, <uint32_t>b.n, &s)
    return reason, s.ip_hlen, s.tos, wi.wire_ip_csum_ok(&s) if reason == 0 else None


def parse_tcp(data, int csum_state=0, bint opts=True):
    # (reason, fields) of a whole IPv4 packet with TCP inside.
    cdef Block b = Block(data)
    cdef ty.seg_t s
    memset(&s, 0, sizeof(s))
    cdef int reason = wi.wire_parse_ip(b.p, <uint32_t>b.n, &s)
    s.csum_state = <uint8_t>csum_state
    if reason == 0:
        reason = wi.wire_parse_tcp(&s)
    if reason:
        return reason, {}
    out = ip_dict(&s)
    out.update(tcp_dict(&s))
    if opts:
        wi.wire_parse_opts(&s)
        out.update(opts_dict(&s))
    return reason, out


def parse_opts(raw, uint16_t flags):
    # The option walk alone over a block of exactly the option bytes; every field it does not vouch for starts as junk.
    cdef Block b = Block(raw)
    cdef ty.seg_t s
    memset(&s, 0xa5, sizeof(s))
    s.opt = b.p
    s.opt_len = <uint32_t>b.n
    s.flags = flags
    wi.wire_parse_opts(&s)
    return opts_dict(&s)


def parse_icmp(data):
    cdef Block b = Block(data)
    cdef ty.seg_t s
    cdef wi.icmp_t m
    memset(&s, 0, sizeof(s))
    cdef int reason = wi.wire_parse_ip(b.p, <uint32_t>b.n, &s)
    if reason == 0:
        reason = wi.wire_parse_icmp(&s, &m)
    if reason:
        return reason, {}
    return reason, {"type": m.type, "code": m.code, "check": m.check, "rest": m.rest,
                    "body": PyBytes_FromStringAndSize(<char*>m.body, m.body_len),
                    "csum_ok": wi.wire_icmp_csum_ok(&s)}


def parse_quote(data):
    cdef Block b = Block(data)
    cdef wi.quote_t q
    cdef int reason = wi.wire_parse_quote(b.p, <uint32_t>b.n, &q)
    if reason:
        return reason, {}
    return reason, {"src": q.src, "dst": q.dst, "proto": q.proto, "tos": q.tos, "frag": q.frag, "ip_hlen": q.ip_hlen,
                    "l4_len": q.l4_len, "sport": q.sport, "dport": q.dport, "seq": q.seq}


def put_ip(uint32_t total_len, uint16_t id, bint df, uint8_t ttl, uint8_t proto, uint32_t src, uint32_t dst,
           uint8_t tos, bytes opts=b""):
    cdef Block b = Block(b"\xff" * (20 + len(opts)))
    cdef uint32_t n
    if opts:
        n = wi.wire_put_ip_opts(b.p, total_len, id, df, ttl, proto, src, dst, tos, opts, <uint32_t>len(opts))
    else:
        n = wi.wire_put_ip(b.p, total_len, id, df, ttl, proto, src, dst, tos)
    assert n == b.n
    return b.get()


def ip_set_frag(header, uint32_t total_len, uint16_t frag):
    cdef Block b = Block(header)
    wi.wire_ip_set_frag(b.p, total_len, frag)
    return b.get()


def put_tcp(uint32_t src, uint32_t dst, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack, uint32_t flags,
            uint32_t wnd, uint32_t urg, bytes opts=b"", bytes payload=b"", int split=0, bint partial=False):
    # The TCP segment with its checksum, computed over the payload in two ranges that meet at `split`.
    cdef uint32_t hlen = 20 + <uint32_t>len(opts)
    cdef Block b = Block(b"\xff" * 20 + opts)
    cdef Block p0 = Block(payload[:split])
    cdef Block p1 = Block(payload[split:])
    assert wi.wire_put_tcp(b.p, sport, dport, seq, ack, flags, wnd, urg, hlen) == 20
    if partial:
        wi.wire_tcp_csum_partial(b.p, src, dst, hlen + <uint32_t>len(payload))
    else:
        wi.wire_tcp_csum_set(b.p, hlen, src, dst, p0.p, <uint32_t>p0.n, p1.p, <uint32_t>p1.n)
    return b.get() + payload


cdef bytes filled(uint8_t* p, uint32_t n):
    assert n <= 40
    return PyBytes_FromStringAndSize(<char*>p, n)


def opt_mss(uint32_t mss):
    cdef uint8_t p[40]
    return filled(p, wi.wire_opt_mss(p, mss))


def opt_ts(uint32_t tsval, uint32_t tsecr, bint sackperm=False):
    cdef uint8_t p[40]
    return filled(p, wi.wire_opt_sackperm_ts(p, tsval, tsecr) if sackperm else wi.wire_opt_ts(p, tsval, tsecr))


def opt_sackperm_nop():
    cdef uint8_t p[40]
    return filled(p, wi.wire_opt_sackperm_nop(p))


def opt_wscale_nop(uint32_t wscale):
    cdef uint8_t p[40]
    return filled(p, wi.wire_opt_wscale_nop(p, wscale))


def opt_sack(blocks):
    cdef uint8_t p[40]
    cdef ty.sackblk_t b[4]
    for i, (start, end) in enumerate(blocks):
        b[i].start = start
        b[i].end = end
    return filled(p, wi.wire_opt_sack(p, b, <uint32_t>len(blocks)))


def opt_fastopen(bytes cookie, bint exp):
    cdef uint8_t p[40]
    cdef uint32_t n = wi.wire_opt_fastopen(p, cookie, <uint32_t>len(cookie), exp)
    assert n == wi.wire_opt_fastopen_len(<uint32_t>len(cookie), exp)
    return filled(p, n)


def put_icmp(uint8_t type, uint8_t code, uint32_t rest, bytes body, bint in_place=False):
    cdef Block b = Block(b"\xff" * 8 + (body if in_place else b"\xff" * len(body)))
    cdef const char* outside = body
    cdef const uint8_t* from_ = <const uint8_t*>b.p + 8 if in_place else <const uint8_t*>outside
    assert wi.wire_put_icmp(b.p, type, code, rest, from_, <uint32_t>len(body)) == b.n
    return b.get()


# ---- rtt

cdef class Rtt:
    cdef rt.rtt_t r

    def sample(self, int64_t rtt_us, uint32_t snd_una, uint32_t snd_nxt, uint32_t rto_min_us=200000):
        rt.rtt_sample(&self.r, rtt_us, snd_una, snd_nxt, rto_min_us)

    def rto(self, int64_t tick=4000000, int64_t rto_min=200000000, int64_t rto_max=120000000000):
        return rt.rtt_rto(&self.r, tick, rto_min, rto_max)

    def state(self):
        return {"srtt_us": self.r.srtt_us, "mdev_us": self.r.mdev_us, "mdev_max_us": self.r.mdev_max_us,
                "rttvar_us": self.r.rttvar_us, "rtt_seq": self.r.rtt_seq}


cdef class MinMax:
    cdef rt.minmax_t m

    def reset(self, uint32_t t, uint32_t v):
        return rt.minmax_reset(&self.m, t, v)

    def running_min(self, uint32_t win, uint32_t t, uint32_t v):
        return rt.minmax_running_min(&self.m, win, t, v)

    def running_max(self, uint32_t win, uint32_t t, uint32_t v):
        return rt.minmax_running_max(&self.m, win, t, v)

    def get(self):
        return rt.minmax_get(&self.m)


# ---- ring

cdef class Ring:
    cdef ri.ring_t r

    def __dealloc__(self):
        ri.ring_free(self.r.buf)

    @property
    def size(self):
        return self.r.size

    def reserve(self, uint32_t base, uint32_t used, uint32_t need):
        # (status, the old buffer was handed out)
        cdef uint8_t* old = <uint8_t*>1
        cdef int rc = ri.ring_reserve(&self.r, base, used, need, &old)
        ri.ring_free(old)
        return rc, old != NULL

    def release(self):
        cdef uint8_t* old = <uint8_t*>1
        ri.ring_release(&self.r, &old)
        ri.ring_free(old)
        return old != NULL

    def write(self, uint32_t seq, data):
        cdef Block b = Block(data)
        assert <uint32_t>b.n <= self.r.size
        ri.ring_write(&self.r, seq, b.p, <uint32_t>b.n)

    def read(self, uint32_t seq, uint32_t n):
        cdef Block b = Block(b"\0" * n)
        ri.ring_read(&self.r, seq, b.p, n)
        return b.get()

    def ranges(self, uint32_t seq, uint32_t n):
        cdef const uint8_t* p0
        cdef const uint8_t* p1
        cdef uint32_t l0
        cdef uint32_t l1
        assert ri.ring_ranges(&self.r, seq, n, &p0, &l0, &p1, &l1) == n
        return PyBytes_FromStringAndSize(<char*>p0, l0), PyBytes_FromStringAndSize(<char*>p1, l1)


# ---- ehash

cdef struct small_t:
    eh.enode_t node
    uint32_t x

cdef struct large_t:
    uint64_t x[5]
    eh.enode_t node


cdef class EHash:
    # Entries are (kind, index 1..n); requests and TIME_WAIT are small, sockets large with the node further in.
    cdef eh.ehash_t h
    cdef small_t* reqs
    cdef large_t* tcbs
    cdef small_t* tws
    cdef uint32_t n
    cdef readonly int rc

    def __cinit__(self, uint32_t buckets, uint64_t k0, uint64_t k1, uint32_t n):
        self.n = n
        self.reqs = <small_t*>calloc(n + 1, sizeof(small_t))
        self.tcbs = <large_t*>calloc(n + 1, sizeof(large_t))
        self.tws = <small_t*>calloc(n + 1, sizeof(small_t))
        if self.reqs == NULL or self.tcbs == NULL or self.tws == NULL:
            raise MemoryError
        self.rc = eh.ehash_init(&self.h, buckets, k0, k1)
        eh.ehash_register(&self.h, ty.KIND_REQ, &self.reqs[0].node, sizeof(small_t))
        eh.ehash_register(&self.h, ty.KIND_TCB, &self.tcbs[0].node, sizeof(large_t))
        eh.ehash_register(&self.h, ty.KIND_TW, &self.tws[0].node, sizeof(small_t))

    def __dealloc__(self):
        eh.ehash_destroy(&self.h)
        free(self.reqs)
        free(self.tcbs)
        free(self.tws)

    cdef uint32_t ref(self, entry) except 0:
        cdef int kind = entry[0]
        cdef uint32_t i = entry[1]
        if not 1 <= kind <= 3 or not 1 <= i <= self.n:
            raise IndexError
        return <uint32_t>kind << ty.REF_SHIFT | i

    cdef entry(self, uint32_t ref):
        return (ref >> ty.REF_SHIFT, ref & ty.REF_MASK) if ref else None

    def set(self, entry, flow):
        eh.enode_set(eh.ehash_node(&self.h, self.ref(entry)), flow[0], flow[1], flow[2], flow[3])

    def insert(self, entry):
        return eh.ehash_insert(&self.h, self.ref(entry))

    def insert_force(self, entry):
        eh.ehash_insert_force(&self.h, self.ref(entry))

    def remove(self, entry):
        return eh.ehash_remove(&self.h, self.ref(entry))

    def replace(self, old, new):
        return eh.ehash_replace(&self.h, self.ref(old), self.ref(new))

    def lookup(self, flow):
        eh.ehash_prefetch(&self.h, flow[0], flow[1], flow[2], flow[3])
        eh.ehash_prefetch_node(&self.h, flow[0], flow[1], flow[2], flow[3])
        return self.entry(eh.ehash_lookup(&self.h, flow[0], flow[1], flow[2], flow[3]))

    @property
    def count(self):
        return self.h.count

    @property
    def buckets(self):
        return self.h.mask_full + 1

    def walk(self, uint32_t bucket, pos):
        # One step: (entry or None, bucket, pos) with pos to be passed on.
        cdef uint32_t at = pos
        ref = eh.ehash_walk(&self.h, &bucket, &at)
        return self.entry(ref), bucket, at

    def walk_some(self, uint32_t bucket, pos, uint32_t budget):
        cdef uint32_t at = pos
        ref = eh.ehash_walk_some(&self.h, &bucket, &at, &budget)
        return self.entry(ref), bucket, at, budget


# ---- tx

def tx_cut(hdr, payload, int split, int gso_size, bint partial=True):
    # The packets of one frame whose payload lies in two ranges, cut at split; and the frame as a whole.
    cdef rec.txframe_t f
    cdef Block h = Block(hdr)
    cdef Block a = Block(payload[:split])
    cdef Block b = Block(payload[split:])
    cdef Block out
    cdef uint32_t i
    memset(&f, 0, sizeof(rec.txframe_t))
    memcpy(f.hdr, h.p, <size_t>h.n)
    f.hlen = <uint32_t>h.n
    f.p0 = a.p
    f.l0 = <uint32_t>a.n
    f.p1 = b.p
    f.l1 = <uint32_t>b.n
    f.gso_size = <uint16_t>gso_size
    f.flags = rec.TXF_CSUM_PARTIAL if partial else 0
    packets = []
    for i in range(tx.tx_segs(&f)):
        out = Block(bytes(tx.tx_seg_len(&f, i)))
        assert tx.tx_segment(&f, i, out.p) == out.n
        packets.append(out.get())
    out = Block(bytes(tx.tx_len(&f)))
    assert tx.tx_whole(&f, out.p) == out.n
    return packets, out.get()


# ---- congestion control: an engine and a socket that nothing is connected to
# A module of the user's own: halves at once, adds a packet per ACK.
cdef uint32_t own_ssthresh(engine_t* e, tcb_t* sk) noexcept nogil:
    return sk.snd_cwnd // 2


cdef void own_cong_avoid(engine_t* e, tcb_t* sk, uint32_t ack, uint32_t acked) noexcept nogil:
    sk.snd_cwnd += 1


cdef uint32_t own_undo(engine_t* e, tcb_t* sk) noexcept nogil:
    return sk.prior_cwnd


cdef cc.cc_ops_t own_ops
own_ops.name = "own"
own_ops.flags = cc.CC_F_PACING
own_ops.ssthresh = own_ssthresh
own_ops.cong_avoid = own_cong_avoid
own_ops.undo_cwnd = own_undo


cdef class Cc:
    # name: reno, cubic, bbr, own. Fields of the socket and parameters of the configuration by name; now in ns.
    cdef engine_t* e
    cdef tcb_t* sk
    cdef skopt_t opt
    cdef uint64_t ca_ext[CA_EXT_WORDS]

    def __cinit__(self, str name, int64_t now=0, int64_t tick=4000000, uint32_t mss=1448):
        cdef bytes raw = name.encode()
        self.e = <engine_t*>calloc(1, sizeof(engine_t))
        self.sk = <tcb_t*>calloc(1, sizeof(tcb_t))
        if self.e == NULL or self.sk == NULL:
            raise MemoryError
        config_defaults(&self.e.cfg)
        self.e.tick = tick
        self.e.now = now
        self.e.tso_max = 65536
        prng_seed(&self.e.prng, <const uint8_t*>b"seed", 4)
        self.e.cc_user[0] = &own_ops
        skopt_defaults(&self.opt)
        self.sk.opt = &self.opt
        self.sk.cc = <uint8_t>cc.cc_by_name(self.e, raw, <uint32_t>len(raw))
        if self.sk.cc >= CC_BBR:
            self.sk.ca_priv[0] = <uint64_t>&self.ca_ext[0]
        self.sk.snd_cwnd = 10
        self.sk.snd_ssthresh = 0x7fffffff
        self.sk.snd_cwnd_clamp = 0xffffffffULL
        self.sk.mss_cache = mss
        self.sk.is_cwnd_limited = 1
        rt.minmax_reset(&self.sk.rtt_min, 0, 0xffffffffULL)
        cc.cc_init(self.e, self.sk)

    def __dealloc__(self):
        free(self.e)
        free(self.sk)

    def name(self):
        return cc.cc_name(self.e, self.sk.cc).decode()

    def set(self, **values):
        for k, v in values.items():
            if k == "now": self.e.now = v
            elif k == "cwnd": self.sk.snd_cwnd = v
            elif k == "ssthresh": self.sk.snd_ssthresh = v
            elif k == "prior_cwnd": self.sk.prior_cwnd = v
            elif k == "limited": self.sk.is_cwnd_limited = v
            elif k == "max_packets_out": self.sk.max_packets_out = v
            elif k == "packets_out": self.sk.packets_out = v
            elif k == "sacked_out": self.sk.sacked_out = v
            elif k == "lost_out": self.sk.lost_out = v
            elif k == "retrans_out": self.sk.retrans_out = v
            elif k == "prr_out": self.sk.prr_out = v
            elif k == "clamp": self.sk.snd_cwnd_clamp = v
            elif k == "srtt_us": self.sk.rtt.srtt_us = v << 3
            elif k == "snd_una": self.sk.snd_una = v
            elif k == "snd_nxt": self.sk.snd_nxt = v
            elif k == "lsndtime": self.sk.lsndtime = v
            elif k == "delivered": self.sk.delivered = v
            elif k == "delivered_mstamp": self.sk.delivered_mstamp = v
            elif k == "lost": self.sk.lost = v
            elif k == "app_limited": self.sk.app_limited = v
            elif k == "ca_state": self.sk.ca_state = v
            elif k == "cubic_beta": self.e.cfg.cubic_beta = v
            elif k == "cubic_hystart": self.e.cfg.cubic_hystart = v
            elif k == "cubic_tcp_friendliness": self.e.cfg.cubic_tcp_friendliness = v
            elif k == "cubic_fast_convergence": self.e.cfg.cubic_fast_convergence = v
            elif k == "cubic_hystart_detect": self.e.cfg.cubic_hystart_detect = v
            else: raise KeyError(k)
        return self

    def get(self):
        return {"cwnd": self.sk.snd_cwnd, "ssthresh": self.sk.snd_ssthresh, "cnt": self.sk.snd_cwnd_cnt,
                "pacing": self.sk.pacing_rate, "in_flight": send.tcp_packets_in_flight(self.sk),
                "pacing_needed": self.sk.pacing_needed, "prr_out": self.sk.prr_out}

    def cubic(self):
        cdef cub.cubic_t* c = cub.cubic_of(self.sk)
        return {"k": c.k, "origin": c.origin_point, "w_max": c.last_max_cwnd, "cnt": c.cnt, "tcp_cwnd": c.tcp_cwnd,
                "delay_min": c.delay_min, "found": c.found, "epoch": c.epoch_start}

    def bbr(self):
        cdef bbr.bbr_t* b = bbr.bbr_of(self.sk)
        return {"mode": b.mode, "bw": bbr.bbr_max_bw(b), "full": b.full_bw_reached, "rounds": b.rtt_cnt,
                "pacing_gain": b.pacing_gain, "cwnd_gain": b.cwnd_gain, "min_rtt_us": b.min_rtt_us, "phase": b.cycle_idx}

    def mib(self, str name):
        cdef int i
        for i in range(st.MIB_COUNT):
            if st.mib_name(i).decode() == name:
                return self.e.stats.mib[i]
        raise KeyError(name)

    def ack(self, uint32_t acked, int64_t rtt_us=-1):
        # What tcp_ack does outside a reduction.
        cdef cw.ack_sample_t s
        s.pkts_acked = acked
        s.rtt_us = rtt_us
        s.in_flight = 0
        cc.cc_pkts_acked(self.e, self.sk, &s)
        cc.cc_cong_avoid(self.e, self.sk, 0, acked)
        cw.tcp_update_pacing_rate(self.e, self.sk)

    def sample(self, uint32_t delivered, int64_t interval_us, int64_t rtt_us, uint32_t prior_delivered=0, int losses=0,
               bint app_limited=False):
        cdef cw.rate_sample_t rs
        memset(&rs, 0, sizeof(cw.rate_sample_t))
        rs.delivered = <int>delivered
        rs.interval_us = interval_us
        rs.rtt_us = rtt_us
        rs.prior_delivered = prior_delivered
        rs.acked_sacked = delivered
        rs.losses = losses
        rs.is_app_limited = app_limited
        rs.prior_in_flight = send.tcp_packets_in_flight(self.sk)
        cc.cc_cong_control(self.e, self.sk, 0, 0, &rs)

    def cut(self):
        # Start of a reduction that ends at once, as after an ECE.
        self.sk.snd_ssthresh = cc.cc_ssthresh(self.e, self.sk)
        self.sk.prior_cwnd = self.sk.snd_cwnd
        self.sk.snd_cwnd = self.sk.snd_ssthresh

    def enter_cwr(self):
        cc.tcp_enter_cwr(self.e, self.sk)

    def reduce(self, int delivered, int lost=0, bint advanced=False):
        cc.tcp_cwnd_reduction(self.sk, delivered, lost, advanced)

    def end_reduction(self):
        cc.tcp_end_cwnd_reduction(self.e, self.sk)

    def undo(self):
        return cc.cc_undo_cwnd(self.e, self.sk)

    def state(self, int ca):
        cc.tcp_set_ca_state(self.e, self.sk, <uint8_t>ca)

    def event(self, int which):
        cc.cc_cwnd_event(self.e, self.sk, which)


def cubic_root(uint64_t a):
    return cub.cubic_root(a)


# ---- planted bugs: scripts/sanitize --prove shows that each of them ends the run

def plant_shift(uint32_t bits):
    # Shifts an int out of its width.
    cdef int one = 1
    return one << bits


def plant_overrun(uint32_t at):
    # Reads a heap block of 8 bytes at `at`.
    cdef Block b = Block(bytes(8))
    return b.p[at]


def plant_stale():
    # Reads a pool slot that was given back.
    cdef Pool p = Pool(4, 64)
    cdef uint32_t i = po.pool_alloc(&p.p)
    cdef uint8_t* slot = <uint8_t*>po.pool_at(&p.p, i)
    po.pool_free(&p.p, i)
    return slot[8]


include "_ctest_rcv.pxi"
