# The receive side of one connection inside a whole engine: segments in, reads out, and the invariants of rcvq.pxd, ofotree.pxd and skmem.pxd checked
# after any of it. Included by _ctest.pyx.

cdef extern from *:
    """
    #define RCV_LADDR 0xc0000201u
    #define RCV_FADDR 0xc0000202u
    """
    const uint32_t RCV_LADDR
    const uint32_t RCV_FADDR

RCV_PEER_ISN = 1000


cdef class RcvBed:
    """192.0.2.1:80 with one accepted connection from 192.0.2.2:1000."""

    cdef engine_t* e
    cdef tcb_t* lsk
    cdef tcb_t* sk
    cdef public int64_t now
    cdef uint32_t isn

    def __cinit__(self, *, int rcvbuf=0, bint sack=True, bint wscale=True, **sysctl):
        cdef eng.engine_params_t p
        cdef tcb_t* lsk
        cdef ty.idx_t child = 0
        memset(&p, 0, sizeof(p))
        p.seed = <const uint8_t*> b"rcv"
        p.seed_len = 3
        p.mtu = 1500
        self.now = 1000000
        p.now = self.now
        self.e = <engine_t*> calloc(1, sizeof(engine_t))
        assert eng.engine_init(self.e, &p) == 0
        self.e.addrs[0].addr = RCV_LADDR
        self.e.addrs[0].plen = 24
        self.e.n_addrs = 1
        self.e.rt_gen += 1
        route.route_default(self.e, True)
        self.e.cfg.tcp_shrink_window = sysctl.get("shrink_window", 0)
        self.e.cfg.tcp_dsack = sysctl.get("dsack", 1)
        self.e.cfg.tcp_stdurg = sysctl.get("stdurg", 0)
        lsk = user.user_socket(self.e)
        self.lsk = lsk
        assert user.user_bind(self.e, lsk, 0, 80) == 0
        if rcvbuf:
            lsk.rcvbuf = rcvbuf
            lsk.userlocks |= 2
        assert user.user_listen(self.e, lsk, 5) == 0
        opts = b"\x02\x04\x05\xb4" + (b"\x04\x02\x01\x01" if sack else b"") + (b"\x01\x03\x03\x07" if wscale else b"")
        self.segment(0, b"", flags=0x02, opts=opts, ack=0)
        assert self.e.tx_n == 1
        self.isn = wi.get32(&self.e.tx[0].hdr[24])
        self.segment(1, b"")
        assert user.user_accept(self.e, lsk, &child) == 0
        self.sk = access.sk_at(self.e, child)
        self.sk.sflags |= 0x200
        eng.engine_tx_done(self.e)

    def __dealloc__(self):
        if self.e != NULL:
            eng.engine_destroy(self.e)
            free(self.e)

    def segment(self, uint32_t seq, bytes data, *, uint16_t flags=0x10, bytes opts=b"", ack=1, uint16_t urg=0,
                uint32_t gso=0, uint16_t wnd=65535):
        """A segment of the peer; seq is relative to its ISN, ack to ours. Returns the drop reason."""
        cdef uint32_t doff = 20 + <uint32_t> len(opts)
        cdef uint32_t total = 20 + doff + <uint32_t> len(data)
        cdef uint8_t* p = <uint8_t*> malloc(total)
        cdef int reason
        wi.wire_put_ip(p, total, 0, True, 64, 6, RCV_FADDR, RCV_LADDR, 0)
        wi.wire_put_tcp(p + 20, 1000, 80, <uint32_t> RCV_PEER_ISN + seq, <uint32_t> (self.isn + <uint32_t> ack) if flags & 0x10 else 0,
                        flags, wnd, urg, doff)
        memcpy(p + 40, <const uint8_t*> opts, len(opts))
        memcpy(p + 20 + doff, <const uint8_t*> data, len(data))
        reason = eng.engine_receive(self.e, p, total, ty.CSUM_VERIFIED, gso, self.now)
        free(p)
        return reason

    def advance(self, int64_t ns):
        """Let time pass, with its timers."""
        self.now += ns
        eng.engine_poll(self.e, self.now)

    def recv(self, size_t n, uint32_t flags=0):
        """Bytes, or the negative errno."""
        cdef uint8_t* out = <uint8_t*> malloc(n + 1)
        cdef int64_t got = recvmsg.tcp_recvmsg(self.e, self.sk, out, n, flags)
        result = (<char*> out)[:got] if got >= 0 else got
        free(out)
        return result

    def close(self):
        cdef ty.ns_t wait = user.user_close(self.e, self.sk)
        user.user_close_finish(self.e, self.sk)
        self.sk = NULL
        return wait

    def stop(self):
        """Close the listener; unaccepted children go with it."""
        user.user_close(self.e, self.lsk)
        user.user_close_finish(self.e, self.lsk)

    def sent(self):
        """[(flags, seq, ack, window, options)] of what was sent since the last call."""
        cdef uint32_t i
        cdef uint8_t* h
        cdef list out = []
        for i in range(self.e.tx_n):
            h = self.e.tx[i].hdr
            out.append((h[33], wi.get32(h + 24) - self.isn & 0xffffffff, wi.get32(h + 28) - <uint32_t> RCV_PEER_ISN, wi.get16(h + 34),
                        (<const char*> h)[40:self.e.tx[i].hlen]))
        eng.engine_tx_done(self.e)
        return out

    def mib(self, bytes name):
        cdef int i
        for i in range(st.MIB_COUNT):
            if <bytes> st.mib_name(i) == name:
                return self.e.stats.mib[i]
        raise KeyError(name)

    def mem_pages(self):
        return self.e.mem_pages

    def vars(self):
        cdef tcb_t* k = self.sk
        return {"state": k.state, "rcv_nxt": k.rcv_nxt - <uint32_t> RCV_PEER_ISN, "copied_seq": k.copied_seq - <uint32_t> RCV_PEER_ISN,
                "rmem_alloc": k.rmem_alloc, "fwd_alloc": k.fwd_alloc, "rcvbuf": k.rcvbuf, "rcv_wnd": k.rcv_wnd,
                "ring": k.rcv.size if k.rq_head or k.ofo_head or not k.rings_kept else 0,
                "rcv_ssthresh": k.rcv_ssthresh, "window_clamp": k.window_clamp, "scaling_ratio": k.scaling_ratio,
                "rcv_mss": k.rcv_mss, "quick": k.ack_quick, "ato": k.ato, "pred_flags": k.pred_flags, "urg_state": k.urg_state,
                "rcvq_space": k.rcvq_space, "rcvrtt_us": k.rcvrtt_us, "num_sacks": k.num_sacks}

    def sacks(self):
        cdef int i
        cdef tcb_t* k = self.sk
        return [(k.los.selective_acks[i].start - <uint32_t> RCV_PEER_ISN, k.los.selective_acks[i].end - <uint32_t> RCV_PEER_ISN)
                for i in range(k.num_sacks)]

    def queue(self, bint ofo):
        """[(seq, end_seq, truesize)] of the receive or the out-of-order queue."""
        cdef ty.idx_t i = self.sk.ofo_head if ofo else self.sk.rq_head
        cdef rec.rrec_t* r
        cdef list out = []
        while i:
            r = access.rr_at(self.e, i)
            out.append((r.seq - <uint32_t> RCV_PEER_ISN, r.end_seq - <uint32_t> RCV_PEER_ISN, r.truesize))
            i = r.next
        return out

    cdef int tree(self, ty.idx_t i, list out) except -1:
        cdef rec.rrec_t* r
        if i == 0:
            return 0
        r = access.rr_at(self.e, i)
        for child in (r.left, r.right):
            assert child == 0 or ofot.ofo_prio_(child) <= ofot.ofo_prio_(i), "heap order of the tree"
        self.tree(r.left, out)
        out.append(i)
        return self.tree(r.right, out)

    def check(self):
        """The invariants; AssertionError names the broken one."""
        cdef tcb_t* k = self.sk
        cdef ty.idx_t i
        cdef ty.idx_t prev
        cdef rec.rrec_t* r
        cdef int64_t total = 0
        cdef uint32_t end = 0
        cdef list order = []
        if k == NULL:
            return
        for head, tail in ((k.rq_head, k.rq_tail), (k.ofo_head, k.los.ofo_tail)):
            i = head
            prev = 0
            while i:
                r = access.rr_at(self.e, i)
                assert r.prev == prev, "list backward"
                total += r.truesize
                assert sq.before(r.seq, r.end_seq), "empty record"
                if prev and head == k.ofo_head:         # the receive queue is in order of arrival
                    assert sq.before(access.rr_at(self.e, prev).seq, r.seq), "list order"
                prev = i
                i = r.next
            assert prev == tail, "tail"
        assert total == k.rmem_alloc, f"rmem_alloc {k.rmem_alloc}, records {total}"
        i = k.ofo_head
        while i:
            order.append(i)
            assert sq.after(access.rr_at(self.e, i).seq, k.rcv_nxt), "out-of-order record at or before rcv_nxt"
            i = access.rr_at(self.e, i).next
        seen = []
        self.tree(k.los.ofo_root, seen)
        assert seen == order, "tree and list differ"
        if k.rq_tail:
            assert access.rr_at(self.e, k.rq_tail).end_seq == k.rcv_nxt, "queue does not end at rcv_nxt"
            end = k.rcv_nxt
        if k.ofo_head:
            end = access.rr_at(self.e, k.los.ofo_tail).end_seq
        if end:
            assert end - k.copied_seq <= k.rcv.size + 1, "ring too small"
        elif k.rq_head == 0:
            assert k.rcv.size == 0 or k.rings_kept, "ring of empty queues"
        # As in Linux it may be overdrawn when freeing a record returns pages that were reserved for the next.
        assert -70000 < k.fwd_alloc < 4096 * 4, f"fwd_alloc {k.fwd_alloc}"
        assert (k.fwd_alloc + k.rmem_alloc + <int64_t> k.wmem_queued) % 4096 == 0, "charges and pages"
        assert self.e.n_sockets > 2 or self.e.mem_pages * 4096 == k.fwd_alloc + k.rmem_alloc + <int64_t> k.wmem_queued, "pages of the stack"
        assert k.num_sacks <= 4
        for i in range(k.num_sacks):
            assert sq.before(k.los.selective_acks[i].start, k.los.selective_acks[i].end), "SACK block"

    def shutdown(self, int how):
        return user.user_shutdown(self.e, self.sk, how)

    def send(self, bytes data):
        return sendmsg.tcp_sendmsg(self.e, self.sk, <const uint8_t*> data, len(data), 0)

    def snd_nxt(self):
        return self.sk.snd_nxt - self.isn

    def sockets(self):
        return self.e.n_sockets
