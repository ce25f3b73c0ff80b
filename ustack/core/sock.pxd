# Sockets as objects: allocation, state changes, timers, bind buckets, the end of a socket (layer 6).
#
# The lowest layer that acts on a tcb_t. Linux counterparts: tcp_init_sock, tcp_set_state, tcp_done, inet_csk_destroy_sock,
# inet_csk_reset_xmit_timer. Invariants:
# - sk.state changes only through sk_set_state (CurrEstab, EstabResets and the hash follow it);
# - a socket whose user is gone (SF_DEAD) is freed by sk_destroy, once it is in CLOSE;
# - ring memory is never freed here, it goes to the garbage list: a frame may still point into it.

from ustack.core.types cimport (
    KIND_TCB, NS_PER_SEC, REF_SHIFT, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV, TCP_SYN_SENT,
    TM_COMPACK, TM_DELACK, TM_KEEP, TM_PACE, TM_RETRANS, flow_t, idx_t, ns_t, ref_t, seg_t, uint32_t, uint64_t,
    uint8_t, likely, unlikely,
)
from ustack.core.access cimport (
    ext_at, grp_at, lst_at, ref_idx, ref_kind, ref_of, rr_at, sk_at, sk_fport, sk_handle, sk_los, sk_los_put, sk_lport, sk_opt, sk_set_cc,
    sr_at, tw_at,
)
from ustack.core.connhook cimport connhook_state
from ustack.core.ehash cimport ehash_remove
from ustack.core.hooks cimport hooked
from ustack.core.pool cimport pool_alloc, pool_at, pool_free, pool_gen
from ustack.core.records cimport WT_WOKEN, bindb_t, group_t, listener_t, reqext_t, tw_t
from ustack.core.ring cimport ring_release
from ustack.core.rtt cimport minmax_reset
from ustack.core.skmem cimport sk_mem_uncharge
from ustack.core.state cimport EV_STATE, RINGS_KEPT, engine_t, event_t
from ustack.core.stats cimport MIB_TcpAttemptFails, MIB_TcpCurrEstab, MIB_TcpEstabResets, MIB_TcpExtTCPFastOpenBlackhole, mib_dec, mib_inc
from ustack.core.tcb cimport (
    ICSK_TIME_NONE, SF_ACCEPTED, SF_DEAD, SF_IN_EHASH, SF_IN_READY, SOCK_BINDPORT_LOCK, SOCK_CONNECT_BIND, SS_UNCONNECTED,
    TCP_INFINITE_SSTHRESH, TCP_INIT_CWND, TCP_RTO_MAX_DEFAULT_MS, sklos_t, skopt_t, tcb_t,
)
from ustack.core.wake cimport ev_push, garbage_put, sk_state_change, waiter_finish
from ustack.core.wheel cimport tnode_t, wheel_arm, wheel_disarm, wheel_put_off


cdef enum:
    SHUTDOWN_MASK = 3
    KEPT_ONE = 0x8000           # bytes of empty rings that one socket may keep
    KEPT_BYTES = 0x80000        # ... and all together


# ---- segments in -------------------------------------------------------------------------------------------------------------
cdef inline void tcp_segs_in(tcb_t* sk, const seg_t* s) noexcept nogil:
    """Count a received segment; one that the link merged counts as what came over the wire."""
    cdef uint32_t n = 1
    if unlikely(s.gso_size != 0) and s.len > s.gso_size:
        n = (s.len + s.gso_size - 1) // s.gso_size
    sk.segs_in += n
    if s.len != 0:
        sk.data_segs_in += n


# ---- timers ------------------------------------------------------------------------------------------------------------------
cdef inline void timer_put_(engine_t* e, uint32_t id, tnode_t* node, ns_t deadline) noexcept nogil:
    if e.lazy_timers:
        wheel_put_off(&e.wheel, id, node, deadline)
    else:
        wheel_arm(&e.wheel, id, deadline)


cdef inline void timer_stop_(engine_t* e, uint32_t id) noexcept nogil:
    # Most of these timers are stopped long before they are due, and armed again soon. With lazy_timers one stays where it is: it is put off next
    # time, or fires and finds nothing to do.
    if not e.lazy_timers:
        wheel_disarm(&e.wheel, id)


cdef inline void tcp_reset_xmit_timer(engine_t* e, tcb_t* sk, uint8_t what, ns_t when) noexcept nogil:
    """Arm the retransmission timer for purpose `what` in `when` ns, at most tcp_rto_max."""
    cdef ns_t top = (<ns_t> sk.opt.rto_max_ms if sk.opt.rto_max_ms else TCP_RTO_MAX_DEFAULT_MS) * 1000000
    if when > top:
        when = top
    sk.icsk_pending = what
    timer_put_(e, (TM_RETRANS << REF_SHIFT) | sk.idx, &sk.tm_retrans, e.now + when)


cdef inline void tcp_clear_retrans_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.icsk_pending = ICSK_TIME_NONE
    timer_stop_(e, (TM_RETRANS << REF_SHIFT) | sk.idx)


cdef inline uint32_t sk_pace_id(const tcb_t* sk) noexcept nogil:
    """Id of the pacing timer; to arm it the socket needs a record of its own (sk_los)."""
    return (<uint32_t> TM_PACE << REF_SHIFT) | sk.los.idx


cdef inline uint32_t sk_compack_id(const tcb_t* sk) noexcept nogil:
    """As sk_pace_id, of the timer of compressed ACKs."""
    return (<uint32_t> TM_COMPACK << REF_SHIFT) | sk.los.idx


cdef inline void sk_reset_delack(engine_t* e, tcb_t* sk, ns_t deadline) noexcept nogil:
    timer_put_(e, (TM_DELACK << REF_SHIFT) | sk.idx, &sk.tm_delack, deadline)


cdef inline void sk_clear_delack(engine_t* e, tcb_t* sk) noexcept nogil:
    timer_stop_(e, (TM_DELACK << REF_SHIFT) | sk.idx)


cdef inline void sk_reset_keepalive(engine_t* e, tcb_t* sk, ns_t length) noexcept nogil:
    wheel_arm(&e.wheel, (TM_KEEP << REF_SHIFT) | sk.idx, e.now + length)


cdef inline void sk_delete_keepalive(engine_t* e, tcb_t* sk) noexcept nogil:
    wheel_disarm(&e.wheel, (TM_KEEP << REF_SHIFT) | sk.idx)


cdef inline void tcp_clear_xmit_timers(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.los.idx:
        wheel_disarm(&e.wheel, sk_pace_id(sk))
        wheel_disarm(&e.wheel, sk_compack_id(sk))
    tcp_clear_retrans_timer(e, sk)
    wheel_disarm(&e.wheel, (TM_RETRANS << REF_SHIFT) | sk.idx)
    sk.ack_pending = 0
    sk_clear_delack(e, sk)
    wheel_disarm(&e.wheel, (TM_DELACK << REF_SHIFT) | sk.idx)
    sk_delete_keepalive(e, sk)


# ---- bind buckets: leaving one (entering: bind.pxd) ----------------------------------------------------------------------------
cdef inline void bind_unlink_ref(engine_t* e, ref_t prev, ref_t nxt, bindb_t* b) noexcept nogil:
    if prev == 0:
        b.owners = nxt
    elif ref_kind(prev) == KIND_TCB:
        sk_at(e, ref_idx(prev)).bind_next = nxt
    else:
        tw_at(e, ref_idx(prev)).bind_next = nxt
    if nxt != 0:
        if ref_kind(nxt) == KIND_TCB:
            sk_at(e, ref_idx(nxt)).bind_prev = prev
        else:
            tw_at(e, ref_idx(nxt)).bind_prev = prev


cdef inline void bind_drop_owner(engine_t* e, idx_t bucket, bint by_connect) noexcept nogil:
    cdef bindb_t* b = <bindb_t*> pool_at(&e.bindb, bucket)
    b.n -= 1
    if not by_connect:
        b.n_bound -= 1
    if b.n == 0:
        e.bhash[b.port] = 0
        pool_free(&e.bindb, bucket)


cdef inline void bind_put(engine_t* e, tcb_t* sk) noexcept nogil:
    """inet_put_port: the socket no longer owns its port."""
    cdef idx_t bucket = sk.bind
    if bucket == 0:
        return
    bind_unlink_ref(e, sk.bind_prev, sk.bind_next, <bindb_t*> pool_at(&e.bindb, bucket))
    sk.bind = 0
    sk.bind_next = 0
    sk.bind_prev = 0
    bind_drop_owner(e, bucket, (sk.userlocks & SOCK_CONNECT_BIND) != 0)
    sk.userlocks &= ~SOCK_CONNECT_BIND


cdef inline void bind_put_tw(engine_t* e, tw_t* tw) noexcept nogil:
    cdef idx_t bucket = tw.bind
    if bucket == 0:
        return
    bind_unlink_ref(e, tw.bind_prev, tw.bind_next, <bindb_t*> pool_at(&e.bindb, bucket))
    tw.bind = 0
    tw.bind_next = 0
    tw.bind_prev = 0
    bind_drop_owner(e, bucket, (tw.reuse & 4) != 0)


# ---- states ------------------------------------------------------------------------------------------------------------------
cdef inline void sk_unhash(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.sflags & SF_IN_EHASH:
        ehash_remove(&e.ehash, ref_of(KIND_TCB, sk.idx))
        sk.sflags &= ~<uint32_t> SF_IN_EHASH


cdef inline void sk_set_state(engine_t* e, tcb_t* sk, uint8_t state) noexcept nogil:
    """tcp_set_state: CurrEstab = sockets in ESTABLISHED or CLOSE_WAIT (facts K9); CLOSE leaves the hash and an automatic port."""
    cdef uint8_t old = sk.state
    cdef event_t* ev
    cdef bint was = old == TCP_ESTABLISHED or old == TCP_CLOSE_WAIT
    cdef bint now_in = state == TCP_ESTABLISHED or state == TCP_CLOSE_WAIT
    if hooked(e.hooks):
        connhook_state(e, sk, state)
    if state == TCP_CLOSE:
        if was:
            mib_inc(&e.stats, MIB_TcpEstabResets)
        sk_unhash(e, sk)
        if sk.bind and not sk.userlocks & SOCK_BINDPORT_LOCK:
            bind_put(e, sk)
    if now_in and not was:
        mib_inc(&e.stats, MIB_TcpCurrEstab)
    elif was and not now_in:
        mib_dec(&e.stats, MIB_TcpCurrEstab)
    sk.state = state
    ev = ev_push(e, EV_STATE, 0)
    if ev != NULL:
        ev.a = old
        ev.b = state
        ev.c = sk_handle(e, sk)
        ev.flow = flow_t(sk.en.laddr, sk.en.faddr, sk_lport(sk), sk_fport(sk))


# ---- queues ------------------------------------------------------------------------------------------------------------------
cdef inline void sk_zc_free(engine_t* e, idx_t i) noexcept nogil:
    """A record with a zero-copy notification goes and nobody is left to be told."""
    if i:
        ext_at(e, i).zc_refs -= 1
        if ext_at(e, i).zc_refs == 0:
            pool_free(&e.ext, i)


cdef inline void sk_purge_send(engine_t* e, tcb_t* sk) noexcept nogil:
    """Drop every send record and the ring. Counters of outstanding packets are the caller's matter (tcp_write_queue_purge)."""
    cdef idx_t i = sk.sq_head
    cdef idx_t nxt
    cdef uint8_t* old = NULL
    while i:
        nxt = sr_at(e, i).next
        sk_zc_free(e, sr_at(e, i).zc)
        pool_free(&e.srec, i)
        i = nxt
    sk.sq_head = 0
    sk.sq_tail = 0
    sk.send_head = 0
    sk.ts_head = 0
    sk.ts_tail = 0
    sk.highest_sack = 0
    sk.retrans_hint = 0
    sk_mem_uncharge(e, sk, <int> sk.wmem_queued)
    sk.wmem_queued = 0
    ring_release(&sk.snd, &old)
    garbage_put(e, old)


cdef inline void sk_purge_recv(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef idx_t i = sk.rq_head
    cdef idx_t nxt
    cdef int _k
    cdef uint8_t* old = NULL
    for _k in range(2):
        while i:
            nxt = rr_at(e, i).next
            pool_free(&e.rrec, i)
            i = nxt
        i = sk.ofo_head
        sk.ofo_head = 0
    sk.rq_head = 0
    sk.rq_tail = 0
    sk.ofo_head = 0
    if sk.los.ofo_tail:
        sk_los(e, sk).ofo_tail = 0
        sk_los(e, sk).ofo_root = 0
    sk_mem_uncharge(e, sk, sk.rmem_alloc)
    sk.rmem_alloc = 0
    ring_release(&sk.rcv, &old)
    garbage_put(e, old)


# ---- empty buffers ---------------------------------------------------------------------------------------------------------------
cdef inline void sk_rings_release(engine_t* e, tcb_t* sk) noexcept nogil:
    """Give back the rings that hold nothing."""
    cdef uint8_t* old = NULL
    if sk.sq_head == 0 and sk.snd.size:
        ring_release(&sk.snd, &old)
        garbage_put(e, old)
    if sk.rq_head == 0 and sk.ofo_head == 0 and sk.rcv.size:
        ring_release(&sk.rcv, &old)
        garbage_put(e, old)


cdef inline void sk_kept_drop_(engine_t* e) noexcept nogil:
    # The oldest entry, which may name a socket that is gone or another one by now: then that loses its empty rings early.
    cdef uint32_t at = (e.kept_at - e.kept_n) % RINGS_KEPT
    cdef idx_t i = e.kept[at]
    e.kept_n -= 1
    e.kept_bytes -= e.kept_size[at]
    if pool_gen(&e.tcb, i) & 1:
        sk_at(e, i).rings_kept = 0
        sk_rings_release(e, sk_at(e, i))


cdef inline void sk_rings_idle(engine_t* e, tcb_t* sk) noexcept nogil:
    """A queue has become empty. Small rings stay with the RINGS_KEPT sockets that came to this last, KEPT_BYTES in all: a busy connection
    does not pay for memory at each request, an idle one holds none."""
    cdef uint32_t size = sk.snd.size + sk.rcv.size
    if size > KEPT_ONE:
        sk_rings_release(e, sk)
        return
    if likely(sk.rings_kept):
        return
    while e.kept_n == RINGS_KEPT or e.kept_bytes + size > KEPT_BYTES:
        sk_kept_drop_(e)
    e.kept[e.kept_at % RINGS_KEPT] = sk.idx
    e.kept_size[e.kept_at % RINGS_KEPT] = size
    e.kept_at += 1
    e.kept_n += 1
    e.kept_bytes += size
    sk.rings_kept = 1


# ---- birth and death -----------------------------------------------------------------------------------------------------------
cdef inline tcb_t* sk_alloc(engine_t* e) noexcept nogil:
    """A socket with the defaults of tcp_init_sock, state CLOSE, or NULL if the pool is exhausted."""
    cdef idx_t i = pool_alloc(&e.tcb)
    cdef tcb_t* sk
    if i == 0:
        return NULL
    sk = sk_at(e, i)
    sk.idx = i
    sk.state = TCP_CLOSE
    sk.rcvbuf = <int> e.cfg.tcp_rmem_def
    sk.sndbuf = <int> e.cfg.tcp_wmem_def
    sk.opt = <skopt_t*> pool_at(&e.opt, 0)
    sk.los = <sklos_t*> pool_at(&e.los, 0)
    sk.pacing_rate = <uint64_t> -1
    sk.pmtudisc = 0 if e.cfg.ip_no_pmtu_disc else 1      # IP_PMTUDISC_DONT / WANT
    sk.rto = NS_PER_SEC
    sk.rto_min_us = <uint32_t> e.cfg.tcp_rto_min_us
    sk.delack_max_us = 200000
    sk.rtt.mdev_us = 1000000
    minmax_reset(&sk.rtt_min, <uint32_t> (e.now // 1000000), 0xffffffffUL)
    sk.snd_cwnd = TCP_INIT_CWND
    sk.app_limited = 0xffffffffUL
    sk.rate_app_limited = 1
    sk.snd_ssthresh = TCP_INFINITE_SSTHRESH
    sk.snd_cwnd_clamp = 0xffffffffUL
    sk.mss_cache = 536
    sk.reordering = <uint32_t> e.cfg.tcp_reordering
    sk.rack_reo_wnd_steps = 1
    sk.scaling_ratio = 128
    sk_set_cc(e, sk, e.default_cc)
    sk.sock_state = SS_UNCONNECTED
    e.n_sockets += 1
    return sk


# ---- listener records: giving back (making one: acceptq.pxd) ---------------------------------------------------------------------
cdef inline void group_leave(engine_t* e, idx_t li) noexcept nogil:
    """Out of the SO_REUSEPORT group altogether; the last member takes the free place (facts A20)."""
    cdef listener_t* l = lst_at(e, li)
    cdef group_t* g
    cdef uint32_t i
    if l.group == 0:
        return
    g = grp_at(e, l.group)
    if l.group_closed:
        g.n_closed -= 1
    else:
        for i in range(g.n):
            if g.members[i] == li:
                g.members[i] = g.members[g.n - 1]
                g.n -= 1
                break
    if g.n == 0 and g.n_closed == 0:
        pool_free(&e.grp, l.group)
    l.group = 0
    l.group_closed = 0


cdef inline void lst_put(engine_t* e, idx_t li) noexcept nogil:
    """Free the record if neither a socket nor a request nor a Fast Open child in SYN_RECV needs it."""
    cdef listener_t* l = lst_at(e, li)
    if l.sk != 0 or l.reqs != 0 or l.fo_qlen != 0:
        return
    group_leave(e, li)
    if e.rx_listener == li:
        e.rx_listener = 0
    pool_free(&e.lst, li)


# ---- Fast Open of our own connects: black holes ----------------------------------------------------------------------------------
cdef inline void tcp_fastopen_active_disable(engine_t* e) noexcept nogil:
    """A middlebox seems to swallow Fast Open: none for a while, longer with each time (fastopen_client.pxd)."""
    if e.cfg.tcp_fastopen_blackhole_timeout_sec == 0:
        return
    e.tfo_blackhole_at = e.now
    e.tfo_blackhole_times += 1
    mib_inc(&e.stats, MIB_TcpExtTCPFastOpenBlackhole)


cdef inline void tcp_fastopen_active_disable_ofo_check(engine_t* e, tcb_t* sk) noexcept nogil:
    """At the end of a socket that used Fast Open. Nothing came but a FIN out of order: the data got lost on the way. Data came, after an
    earlier suspicion: it was unfounded. A connection to ourselves (route 0xffff) proves nothing."""
    if not sk.syn_fastopen:
        return
    if sk.data_segs_in == 0:
        if sk.ofo_head and rr_at(e, sk.ofo_head).next == 0 and rr_at(e, sk.ofo_head).fin:
            tcp_fastopen_active_disable(e)
    elif sk.opt.syn_fastopen_ch and sk.rt != 0xffff:
        e.tfo_blackhole_times = 0


cdef inline void sk_free(engine_t* e, tcb_t* sk) noexcept nogil:
    """Give everything back. The handle becomes stale; waiters see a wake-up and find EBADF."""
    cdef idx_t i
    cdef tcb_t* other
    tcp_clear_xmit_timers(e, sk)
    sk_unhash(e, sk)
    bind_put(e, sk)
    sk_purge_send(e, sk)
    tcp_fastopen_active_disable_ofo_check(e, sk)
    sk_purge_recv(e, sk)
    while unlikely(sk.waiters):
        waiter_finish(e, sk.waiters, WT_WOKEN)
    if sk.sflags & SF_IN_READY:
        i = e.ready
        if i == sk.idx:
            e.ready = sk.ready_next
        else:
            other = sk_at(e, i)
            while other.ready_next and other.ready_next != sk.idx:
                other = sk_at(e, other.ready_next)
            other.ready_next = sk.ready_next
    fastopen_remove(e, sk, False)
    if sk.listener and lst_at(e, sk.listener).sk == sk.idx:
        lst_at(e, sk.listener).sk = 0
        lst_put(e, sk.listener)
    if sk.opt.fo_ext:
        pool_free(&e.ext, sk.opt.fo_ext)
    if sk.opt.saved_syn:
        pool_free(&e.ext, sk.opt.saved_syn)
    if sk.opt.ip_opt:
        pool_free(&e.ext, sk.opt.ip_opt)
    if sk.opt.fo_keys:
        pool_free(&e.ext, sk.opt.fo_keys)
    while unlikely(sk.opt.errq_head):
        i = ext_at(e, sk.opt.errq_head).next
        pool_free(&e.ext, sk.opt.errq_head)
        sk_opt(e, sk).errq_head = i
    sk_los_put(e, sk)
    if sk.opt.idx:
        pool_free(&e.opt, sk.opt.idx)
    sk_set_cc(e, sk, 0)
    e.n_sockets -= 1
    pool_free(&e.tcb, sk.idx)


cdef inline void sk_orphan(engine_t* e, tcb_t* sk) noexcept nogil:
    """The user is gone; the socket lives on until its protocol is done."""
    if not sk.sflags & SF_DEAD:
        sk.sflags |= SF_DEAD
        e.n_orphans += 1


cdef inline void sk_destroy(engine_t* e, tcb_t* sk) noexcept nogil:
    """inet_csk_destroy_sock: the end of an orphan in CLOSE."""
    if sk.sflags & SF_DEAD:
        e.n_orphans -= 1
    sk_free(e, sk)


cdef inline void fastopen_remove(engine_t* e, tcb_t* sk, bint reset) noexcept nogil:
    """reqsk_fastopen_remove: a Fast Open child leaves SYN_RECV and gives its queue slot back; one that was accepted and then
    reset holds the slot for 60 s more (facts I12)."""
    cdef idx_t x = sk.fastopen_rsk
    cdef idx_t li
    cdef listener_t* l
    cdef reqext_t* ext
    if x == 0:
        return
    sk.fastopen_rsk = 0
    if sk.opt.fo_listener == 0:
        pool_free(&e.ext, x)
        return
    li = sk.opt.fo_listener
    l = lst_at(e, li)
    sk_opt(e, sk).fo_listener = 0
    l.fo_qlen -= 1
    if not reset or not l.listening or not sk.sflags & SF_ACCEPTED:
        pool_free(&e.ext, x)
        if l.sk == 0:
            lst_put(e, li)
        return
    ext = ext_at(e, x)
    ext.next = 0
    ext.expires = e.now + 60 * NS_PER_SEC
    if l.fo_rskq_tail:
        ext_at(e, l.fo_rskq_tail).next = x
    else:
        l.fo_rskq_head = x
    l.fo_rskq_tail = x
    l.fo_qlen += 1


cdef inline void tcp_done(engine_t* e, tcb_t* sk) noexcept nogil:
    """The connection is over: CLOSE, timers off, users told; an orphan is freed (sk is invalid afterwards if SF_DEAD was set)."""
    if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
        mib_inc(&e.stats, MIB_TcpAttemptFails)
    sk_set_state(e, sk, TCP_CLOSE)
    tcp_clear_xmit_timers(e, sk)
    fastopen_remove(e, sk, False)
    sk.shutdown = SHUTDOWN_MASK
    if sk.sflags & SF_DEAD:
        sk_destroy(e, sk)
    else:
        sk_state_change(e, sk)
