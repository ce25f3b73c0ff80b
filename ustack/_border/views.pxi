# Looking at an Engine: dumps for ss, one request, the parser and the hash table themselves. Included by _fastpath.pyx.
#
# A dump copies records under the lock, at most CHUNK of them a lock, and builds Python objects afterwards.

cdef enum:
    CHUNK = 1024

cdef struct snap_t:
    int kind                    # KIND_*, or 9 for a listener, 10 for an unhashed socket
    int timer                   # 0 none, 1 on, 2 keepalive, 3 timewait, 4 persist
    int retrans
    uint32_t gen
    uint32_t index              # of the request or TIME_WAIT record
    ns_t age                    # of a request: since its SYN, -1 = not known
    ns_t expires
    ns_t now
    tcb_t sk
    skopt_t opt
    req_t rq
    tw_t tw
    listener_t l
    uint8_t info[TCP_INFO_SIZE]
    uint8_t mem[36]
    uint8_t has_bbr
    uint32_t bbr[5]             # struct tcp_bbr_info


cdef inline void snap_timer(engine_t* e, snap_t* s, int timer, uint32_t id, int retrans) noexcept nogil:
    s.timer = timer
    s.retrans = retrans
    s.expires = wheel_deadline(&e.wheel, id)


cdef inline void snap_sock(engine_t* e, tcb_t* sk, snap_t* s) noexcept nogil:
    """A full socket with the timer column as inet_diag fills it."""
    cdef uint32_t retrans = (<uint32_t> TM_RETRANS << REF_SHIFT) | sk.idx
    cdef uint32_t keep = (<uint32_t> TM_KEEP << REF_SHIFT) | sk.idx
    s.sk = sk[0]
    s.opt = sk.opt[0]
    s.gen = pool_gen(&e.tcb, sk.idx)
    if sk.state == TCP_LISTEN:
        s.l = lst_at(e, sk.listener)[0]
    tcp_get_info(e, sk, s.info)
    sk_get_meminfo(e, sk, s.mem)
    s.has_bbr = sk.cc == CC_BBR and sk.state < TCP_TIME_WAIT
    memset(s.bbr, 0, sizeof(s.bbr))
    if s.has_bbr and sk.ca_initialized:
        bbr_get_info(sk, s.bbr)
    if sk.icsk_pending == 1 or sk.icsk_pending == 5 or sk.icsk_pending == 6:
        snap_timer(e, s, 1, retrans, sk.retransmits)
    elif sk.icsk_pending == 3:
        snap_timer(e, s, 4, retrans, sk.probes_out)
    elif wheel_armed(&e.wheel, keep):
        snap_timer(e, s, 2, keep, sk.probes_out)


cdef inline void snap_ref(engine_t* e, ref_t ref, snap_t* s) noexcept nogil:
    cdef idx_t i = ref_idx(ref)
    memset(s, 0, sizeof(snap_t))
    s.kind = ref_kind(ref)
    s.now = e.now
    s.index = i
    s.expires = NS_NEVER
    if s.kind == KIND_REQ:
        s.rq = req_at(e, i)[0]
        snap_timer(e, s, 1, (<uint32_t> TM_REQ << REF_SHIFT) | i, s.rq.num_retrans)
        s.l = lst_at(e, s.rq.listener)[0]
        s.age = -1
        if s.l.sk:
            s.age = e.now - req_sent_at(e, req_at(e, i))
    elif s.kind == KIND_TW:
        s.tw = tw_at(e, i)[0]
        snap_timer(e, s, 3, (<uint32_t> TM_TW << REF_SHIFT) | i, 0)
    else:
        snap_sock(e, sk_at(e, i), s)


cdef dict row_base(snap_t* s, str kind, int state, uint32_t laddr, uint32_t faddr, uint32_t ports):
    return {
        "kind": kind, "state": state, "laddr": dotted(laddr), "lport": ports >> 16, "faddr": dotted(faddr),
        "fport": ports & 0xffff, "timer": (None, "on", "keepalive", "timewait", "persist")[s.timer],
        "timer_expires_ns": None if s.expires == NS_NEVER else s.expires - s.now, "retrans": s.retrans, "now": s.now,
    }


cdef str waits_for(snap_t* s):
    """What a request whose third ACK has come is still waiting for."""
    if not s.rq.flags & RQ_ACKED:
        return "ACK"
    return "data" if s.l.defer_accept > s.rq.num_timeout else "accept queue"


cdef dict row_of(engine_t* e, snap_t* s):
    cdef dict d
    if s.kind == KIND_REQ:
        d = row_base(s, "req", 3, s.rq.en.laddr, s.rq.en.faddr, s.rq.en.ports)
        d.update(recvq=0, sendq=0, num_timeout=s.rq.num_timeout, num_retrans=s.rq.num_retrans, young=s.rq.num_timeout == 0,
                 isn=s.rq.isn, client_isn=s.rq.risn, mss=s.rq.mss, rwnd=s.rq.rwnd, snd_wscale=s.rq.wscales >> 4,
                 rcv_wscale=s.rq.wscales & 15, wscale_ok=bool(s.rq.flags & RQ_WSCALE_OK), sack_ok=bool(s.rq.flags & RQ_SACK_OK),
                 tstamp_ok=bool(s.rq.flags & RQ_TSTAMP_OK), ecn_ok=bool(s.rq.flags & RQ_ECN_OK),
                 acked=bool(s.rq.flags & RQ_ACKED), ts_recent=s.rq.ts_recent, listener=s.rq.listener,
                 age_ns=None if s.age < 0 else s.age, waits_for=waits_for(s), listener_open=bool(s.l.listening), id=(<uint64_t> KIND_REQ << 32) | s.index)
        return d
    if s.kind == KIND_TW:
        d = row_base(s, "tw", s.tw.substate, s.tw.en.laddr, s.tw.en.faddr, s.tw.en.ports)
        d.update(recvq=0, sendq=0, rcv_nxt=s.tw.rcv_nxt, snd_nxt=s.tw.snd_nxt, ts_recent=s.tw.ts_recent, id=(<uint64_t> KIND_TW << 32) | s.index)
        return d
    d = row_base(s, "listen" if s.sk.state == TCP_LISTEN else "sock", s.sk.state, s.sk.en.laddr, s.sk.en.faddr, s.sk.en.ports)
    d.update(handle=<uint64_t> s.sk.idx | (<uint64_t> s.gen << 32), info=(<char*> s.info)[:TCP_INFO_SIZE],
             meminfo=(<char*> s.mem)[:36], uid=s.opt.uid, cc=(<bytes> cc_name(e, s.sk.cc)).decode(), dead=bool(s.sk.sflags & SF_DEAD),
             owned=bool(s.sk.sflags & SF_ACCEPTED) and not s.sk.sflags & SF_DEAD, mark=s.opt.mark, tos=s.sk.tos, priority=s.opt.priority,
             shutdown=s.sk.shutdown, userlocks=s.sk.userlocks)
    if s.has_bbr:
        d["bbr"] = (<char*> s.bbr)[:20]
    if s.sk.state == TCP_LISTEN:
        d["laddr"] = dotted(s.sk.rcv_saddr)
        d.update(recvq=s.l.ackq, sendq=s.l.maxq, qlen=s.l.qlen, young=s.l.young, drops=s.l.drops, qlen_max=s.l.qlen_max,
                 ackq_max=s.l.ackq_max, defer_accept=s.l.defer_accept, fastopen_qlen=s.l.fo_qlen,
                 fastopen_max_qlen=s.l.fo_max_qlen, n_syn=s.l.n_syn, n_overflow=s.l.n_overflow,
                 n_cookie_sent=s.l.n_cookie_sent, n_cookie_recv=s.l.n_cookie_recv, n_cookie_fail=s.l.n_cookie_fail,
                 n_reqq_full=s.l.n_reqq_full, n_accepted=s.l.n_accepted,
                 drop_reasons={DROP_NAMES[i]: s.l.drop_by[i] for i in range(DROP_REASONS) if s.l.drop_by[i]})
        return d
    d.update(recvq=<uint32_t> (s.sk.rcv_nxt - s.sk.copied_seq), sendq=<uint32_t> (s.sk.write_seq - s.sk.snd_una),
             nonagle=s.sk.nonagle, ack_pending=s.sk.ack_pending, ack_quick=s.sk.ack_quick, pingpong=s.sk.ack_pingpong,
             snd_nxt=s.sk.snd_nxt, snd_una=s.sk.snd_una, rcv_nxt=s.sk.rcv_nxt, copied_seq=s.sk.copied_seq,
             window_clamp=s.sk.window_clamp, tos=s.sk.tos, syn_fastopen=bool(s.sk.syn_fastopen),
             bound_only=s.sk.state == TCP_CLOSE)
    if s.sk.state == 2 or s.sk.state == 3:
        d["recvq"] = d["recvq"] if s.sk.state == 3 else 0
    return d


def dump(Engine engine not None):
    """One dict per listener, socket, request and TIME_WAIT record: the listeners first, then the hash table in its order."""
    cdef snap_t* snaps = <snap_t*> malloc(CHUNK * sizeof(snap_t))
    cdef list out = []
    cdef uint32_t n
    cdef uint32_t i
    cdef uint32_t budget
    cdef uint32_t bucket = 0
    cdef ref_t pos = 0
    cdef ref_t ref
    cdef idx_t next_listener = 1
    if snaps == NULL:
        raise MemoryError
    try:
        while True:
            n = 0
            budget = CHUNK
            acquire_view(engine.e, &engine.s)
            while next_listener <= engine.e.lst.high and budget and n < CHUNK:
                budget -= 1
                # a free slot has an even generation
                if (pool_gen(&engine.e.lst, next_listener) & 1 and lst_at(engine.e, next_listener).listening
                        and lst_at(engine.e, next_listener).sk):
                    memset(&snaps[n], 0, sizeof(snap_t))
                    snaps[n].kind = KIND_TCB
                    snaps[n].now = engine.e.now
                    snaps[n].expires = NS_NEVER
                    snap_sock(engine.e, sk_at(engine.e, lst_at(engine.e, next_listener).sk), &snaps[n])
                    n += 1
                next_listener += 1
            while next_listener > engine.e.lst.high and n < CHUNK:
                ref = ehash_walk_some(&engine.e.ehash, &bucket, &pos, &budget)
                if ref == 0:
                    break
                snap_ref(engine.e, ref, &snaps[n])
                n += 1
            i = bucket > engine.e.ehash.mask and next_listener > engine.e.lst.high
            release_view(engine.e, &engine.s)
            done = bool(i)
            for i in range(n):
                out.append(row_of(engine.e, &snaps[i]))
            if done:
                return out
    finally:
        free(snaps)


def dump_one(Engine engine not None, uint64_t h):
    """The row of one socket, hashed or not."""
    cdef snap_t s
    cdef tcb_t* sk = engine._enter(h)
    memset(&s, 0, sizeof(s))
    s.kind = KIND_TCB
    s.now = engine.e.now
    s.expires = NS_NEVER
    snap_sock(engine.e, sk, &s)
    engine._leave(0, None)
    return row_of(engine.e, &s)


def handles(Engine engine not None):
    """Every handle that a user holds: made by socket() or given by accept(), not closed yet."""
    cdef idx_t i
    cdef uint32_t n = 0
    cdef tcb_t* sk
    cdef list out = []
    cdef uint64_t* found
    acquire_view(engine.e, &engine.s)
    found = <uint64_t*> malloc((<size_t> engine.e.tcb.used + 1) * sizeof(uint64_t))
    for i in range(1, engine.e.tcb.high + 1 if found != NULL else 1):
        if not pool_live(&engine.e.tcb, i, pool_gen(&engine.e.tcb, i)):
            continue
        sk = sk_at(engine.e, i)
        if sk.sflags & SF_ACCEPTED and not sk.sflags & SF_DEAD:
            found[n] = sk_handle(engine.e, sk)
            n += 1
    release_view(engine.e, &engine.s)
    if found == NULL:
        raise MemoryError
    for i in range(n):
        out.append(found[i])
    free(found)
    return out


def accounting(Engine engine not None):
    """What the engine counts beside its pools; all zero when nothing is open and nothing is under way."""
    cdef engine_t* e = engine.e
    cdef uint32_t hashed
    cdef uint32_t timers
    cdef uint32_t n_sockets
    cdef uint32_t orphans
    cdef uint32_t tw
    cdef uint32_t frag_mem
    cdef int64_t pages
    cdef int64_t established
    acquire_view(e, &engine.s)
    hashed = e.ehash.count
    timers = wheel_count(&e.wheel)
    n_sockets = e.n_sockets
    orphans = e.n_orphans
    tw = e.n_tw
    frag_mem = e.frag_mem
    pages = e.mem_pages
    established = <int64_t> e.stats.mib[MIB_TcpCurrEstab]
    release_view(e, &engine.s)
    return {"hashed": hashed, "timers": timers, "memory_pages": pages, "sockets": n_sockets, "orphans": orphans,
            "time_wait": tw, "fragment_memory": frag_mem, "established": established}


def lookup(Engine engine not None, local, uint16_t lport, foreign, uint16_t fport):
    """What the hash table holds for a 4-tuple: ("request" | "socket" | "time_wait", index), or None."""
    cdef uint32_t a = undotted(local)
    cdef uint32_t b = undotted(foreign)
    cdef ref_t ref
    acquire_view(engine.e, &engine.s)
    ref = ehash_lookup(&engine.e.ehash, a, b, lport, fport)
    release_view(engine.e, &engine.s)
    if ref == 0:
        return None
    return {KIND_REQ: "request", KIND_TCB: "socket", KIND_TW: "time_wait"}[ref_kind(ref)], ref_idx(ref)


def parse(packet):
    """The core's own view of an IPv4/TCP packet as a dict; ValueError with the drop reason if it does not parse."""
    cdef Py_buffer view
    cdef seg_t s
    cdef int reason
    memset(&s, 0, sizeof(s))
    PyObject_GetBuffer(packet, &view, PyBUF_SIMPLE)
    try:
        reason = wire_parse_ip(<const uint8_t*> view.buf, <uint32_t> view.len, &s)
        if reason == 0 and s.proto == 6:
            reason = wire_parse_tcp(&s)
            if reason == 0:
                wire_parse_opts(&s)
        if reason:
            raise ValueError(drop_reason(reason))
        out = {"src": dotted(s.src), "dst": dotted(s.dst), "id": s.ip_id, "tos": s.tos, "ttl": s.ttl, "proto": s.proto,
               "frag": s.frag, "len": s.ip_len}
        if s.proto == 6:
            out.update(sport=s.sport, dport=s.dport, seq=s.seq, ack=s.ack, flags=s.flags, window=s.wnd, urg=s.urg,
                       end_seq=s.end_seq, payload=(<char*> s.data)[:s.len])
            if s.opts & 1:
                out["mss"] = s.mss
            if s.opts & 2:
                out["wscale"] = s.wscale
            if s.opts & 4:
                out["sackok"] = True
            if s.opts & 8:
                out["ts"] = (s.tsval, s.tsecr)
            if s.opts & 16:
                out["sack"] = [(s.sack[i].start, s.sack[i].end) for i in range(s.n_sack)]
            if s.opts & 32:
                out["fastopen"] = (<char*> s.fo_cookie)[:s.fo_len] if s.fo_len else b""
        return out
    finally:
        PyBuffer_Release(&view)
