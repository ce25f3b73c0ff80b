# A listener's two queues as Linux keeps them: counters of half-open requests and the FIFO of accepted connections (layer above bind).
#
# Facts 0.1, 0.2, G1, G2, L1. Linux: struct request_sock_queue, reqsk_queue_added / _removed, inet_csk_reqsk_queue_drop,
# sk_acceptq_added / _removed, tcp_listendrop. The half-open requests themselves lie in the hash table only; a request names its
# listener record, which therefore outlives the socket until its last request is gone.
# Invariants: l.reqs is the number of requests that name l; l.qlen is the same and l.young those of them whose timer never fired, but for requests
# that a segment brought to another listener and that died there: those are taken from the other one's counters, which may fall below 0 (and
# below 0 is "full", as Linux compares without sign). l.ackq is the length of the FIFO.
# Callers: child, fastopen, listen, request, reqtimer.

from ustack.core.ehash cimport ehash_remove
from ustack.core.hooks cimport HOOK_FRONT, hooked
from ustack.core.listenhook cimport ASK_ACCEPTQ, listenhook
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport listener_t, req_t
from ustack.core.access cimport lst_at, ref_of, req_at, sk_at, sk_fport, sk_handle, sk_los, sk_lport
from ustack.core.sock cimport lst_put
from ustack.core.wake cimport ev_push
from ustack.core.state cimport EV_QUEUED, engine_t, event_t
from ustack.core.stats cimport MIB_TcpExtListenDrops, MIB_TcpExtListenOverflows, mib_inc
from ustack.core.tcb cimport SF_IN_ACCEPTQ, tcb_t
from ustack.core.types cimport KIND_REQ, REF_SHIFT, TM_REQ, flow_t, idx_t, uint32_t
from ustack.core.wheel cimport wheel_disarm


# ---- the record ------------------------------------------------------------------------------------------------------------------
cdef inline idx_t lst_get(engine_t* e, tcb_t* sk) noexcept nogil:
    # The listener record of a socket, made if it has none; 0 if there are no more.
    cdef idx_t li = sk.listener
    if li != 0:
        return li
    li = pool_alloc(&e.lst)
    if li == 0:
        return 0
    lst_at(e, li).sk = sk.idx
    lst_at(e, li).last_overflow = -1
    sk.listener = li
    return li


# ---- what is full, what is lost (facts 0.2, L1) --------------------------------------------------------------------------------------
cdef inline bint reqq_is_full(const listener_t* l) noexcept nogil:
    return <uint32_t>l.qlen > <uint32_t>l.maxq


cdef inline bint acceptq_is_full(const listener_t* l) noexcept nogil:
    return l.ackq > l.maxq


cdef inline void listen_drop(engine_t* e, idx_t li) noexcept nogil:
    # tcp_listendrop
    cdef listener_t* l = lst_at(e, li)
    l.drops += 1
    if l.sk != 0:
        sk_los(e, sk_at(e, l.sk)).drops += 1
    mib_inc(&e.stats, MIB_TcpExtListenDrops)


cdef inline void listen_overflow(engine_t* e, idx_t li) noexcept nogil:
    lst_at(e, li).n_overflow += 1
    mib_inc(&e.stats, MIB_TcpExtListenOverflows)
    listen_drop(e, li)


# ---- half-open requests --------------------------------------------------------------------------------------------------------------
cdef inline void reqq_added(listener_t* l) noexcept nogil:
    l.young += 1
    l.qlen += 1
    l.reqs += 1
    if l.qlen > l.qlen_max:
        l.qlen_max = l.qlen


cdef inline void reqq_removed_at(engine_t* e, idx_t li, idx_t at, bint was_young) noexcept nogil:
    # A request that names li is gone; at is the listener whose counters it is taken from.
    cdef listener_t* l = lst_at(e, at)
    if was_young:
        l.young -= 1
    l.qlen -= 1
    l = lst_at(e, li)
    l.reqs -= 1
    if l.sk == 0:
        lst_put(e, li)


cdef inline void reqq_removed(engine_t* e, idx_t li, bint was_young) noexcept nogil:
    reqq_removed_at(e, li, li, was_young)


cdef inline void req_free(engine_t* e, idx_t ri) noexcept nogil:
    # The record and its extension; the request is in no table any more.
    cdef req_t* rq = req_at(e, ri)
    wheel_disarm(&e.wheel, (<uint32_t>TM_REQ << REF_SHIFT) | ri)
    if rq.ext != 0:
        pool_free(&e.ext, rq.ext)
    pool_free(&e.req, ri)


cdef inline void req_drop_at(engine_t* e, idx_t ri, idx_t at) noexcept nogil:
    # inet_csk_reqsk_queue_drop: out of the table, out of the counters of this listener, freed.
    cdef req_t* rq = req_at(e, ri)
    cdef idx_t li = rq.listener
    cdef bint was_young = rq.num_timeout == 0
    ehash_remove(&e.ehash, ref_of(KIND_REQ, ri))
    req_free(e, ri)
    reqq_removed_at(e, li, at, was_young)


cdef inline void req_drop(engine_t* e, idx_t ri) noexcept nogil:
    req_drop_at(e, ri, req_at(e, ri).listener)


# ---- accept FIFO ---------------------------------------------------------------------------------------------------------------------
cdef inline void acceptq_push(engine_t* e, idx_t li, tcb_t* child) noexcept nogil:
    cdef listener_t* l = lst_at(e, li)
    cdef event_t* ev
    child.acc_next = 0
    child.listener = li
    child.sflags |= SF_IN_ACCEPTQ
    if hooked(e.hooks) and listenhook(e, ASK_ACCEPTQ, li, NULL, child, NULL) == HOOK_FRONT and l.acc_head != 0:
        child.acc_next = l.acc_head
        l.acc_head = child.idx
    elif l.acc_tail != 0:
        sk_at(e, l.acc_tail).acc_next = child.idx
        l.acc_tail = child.idx
    else:
        l.acc_head = child.idx
        l.acc_tail = child.idx
    l.ackq += 1
    if l.ackq > l.ackq_max:
        l.ackq_max = l.ackq
    ev = ev_push(e, EV_QUEUED, 0)
    if ev != NULL:
        ev.a = <uint32_t>l.ackq
        ev.b = <uint32_t>l.maxq
        ev.c = sk_handle(e, child)
        ev.flow = flow_t(child.en.laddr, child.en.faddr, sk_lport(child), sk_fport(child))


cdef inline void acceptq_remove(engine_t* e, tcb_t* child) noexcept nogil:
    # A child that a hook refused leaves the queue wherever it stands.
    cdef listener_t* l = lst_at(e, child.listener)
    cdef idx_t* link = &l.acc_head
    cdef idx_t last = 0
    while link[0] != 0 and link[0] != child.idx:
        last = link[0]
        link = &sk_at(e, last).acc_next
    if link[0] == 0:
        return
    link[0] = child.acc_next
    if l.acc_tail == child.idx:
        l.acc_tail = last
    l.ackq -= 1
    child.listener = 0
    child.sflags &= ~<uint32_t>SF_IN_ACCEPTQ


cdef inline tcb_t* acceptq_pop(engine_t* e, idx_t li) noexcept nogil:
    # The oldest child, NULL if there is none. It is nobody's child from now on.
    cdef listener_t* l = lst_at(e, li)
    cdef tcb_t* child
    if l.acc_head == 0:
        return NULL
    child = sk_at(e, l.acc_head)
    l.acc_head = child.acc_next
    if l.acc_head == 0:
        l.acc_tail = 0
    l.ackq -= 1
    child.listener = 0
    child.sflags &= ~<uint32_t>SF_IN_ACCEPTQ
    return child
