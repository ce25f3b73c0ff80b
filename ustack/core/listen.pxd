# The life of a listener: listen(), accept(), close; moving what it leaves behind to another member of its group (layer above output).
#
# Facts A1-A12, A20-A22, G1-G3. Linux: inet_csk_listen_start, inet_csk_listen_stop, inet_csk_accept, reuseport_migrate_sock.
# A listener record is made by the first listen() and belongs to the socket until that is freed; half-open requests may keep it
# longer. Closing resets the connections nobody has accepted, at once; requests are left alone and find out at their next timer
# or segment (A9).
# Callers: user; request and reqtimer (migration).

from libc.string cimport memcpy

from ustack.core.acceptq cimport acceptq_pop, acceptq_push, lst_get
from ustack.core.bind cimport bind_get_port, group_other_member, listener_hash, listener_unhash
from ustack.core.hooks cimport SELECT_CHILD
from ustack.core.pool cimport pool_free
from ustack.core.records cimport listener_t, reqext_t
from ustack.core.access cimport ext_at, lst_at, sk_at, sk_lport, sk_opt
from ustack.core.sock cimport sk_destroy, sk_orphan, sk_set_state
from ustack.core.wake cimport sk_data_ready
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPMigrateReqFailure, MIB_TcpExtTCPMigrateReqSuccess, mib_inc
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport (
    E_NOBUFS, TCP_CLOSE, TCP_LISTEN, idx_t, int32_t, uint8_t, uint16_t, uint32_t,
)
from ustack.core.xmit cimport tcp_send_active_reset


# ---- listen() --------------------------------------------------------------------------------------------------------------------
cdef inline void listener_options_(engine_t* e, const tcb_t* sk, listener_t* l) noexcept nogil:
    # What setsockopt stored on the socket while it was not listening.
    cdef const reqext_t* keys
    l.defer_accept = sk.defer_accept
    l.fo_max_qlen = sk.opt.fo_qlen_set
    l.fo_key_set = sk.opt.fo_keys != 0
    if sk.opt.fo_keys != 0:
        keys = ext_at(e, sk.opt.fo_keys)
        memcpy(l.fo_key, keys.fo_cookie, 16)
        l.fo_has_backup = keys.saved_syn_len != 0
        if l.fo_has_backup:
            memcpy(l.fo_backup, keys.saved_syn, 16)


cdef inline int listen_start(engine_t* e, tcb_t* sk, int32_t backlog) noexcept nogil:
    # A socket in CLOSE begins to listen with the clamped backlog. The port is taken, or tested again, since LISTEN changes what
    # SO_REUSEADDR permits (A5); on failure nothing has changed.
    cdef idx_t li = lst_get(e, sk)
    cdef int err
    if li == 0:
        return -E_NOBUFS
    sk.ack_pingpong = 0
    err = bind_get_port(e, sk, sk_lport(sk))
    if err != 0:
        return err
    lst_at(e, li).maxq = backlog
    listener_options_(e, sk, lst_at(e, li))
    err = listener_hash(e, sk, li)
    if err != 0:
        return err
    sk_set_state(e, sk, TCP_LISTEN)
    return 0


# ---- accept() --------------------------------------------------------------------------------------------------------------------
cdef inline idx_t accept_pop(engine_t* e, tcb_t* lsk) noexcept nogil:
    # The child that has waited longest, dead or alive (G2); 0 if there is none.
    cdef tcb_t* child = acceptq_pop(e, lsk.listener)
    if child == NULL:
        return 0
    lst_at(e, lsk.listener).n_accepted += 1
    return child.idx


# ---- migration -------------------------------------------------------------------------------------------------------------------
cdef inline idx_t listener_successor(engine_t* e, idx_t li, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport,
                                     uint8_t what) noexcept nogil:
    # reuseport_migrate_sock: who takes over a request or child (SELECT_*) of a listener that is gone, 0 = nobody. A listener that never
    # was in a group fails silently.
    cdef idx_t to
    if lst_at(e, li).group == 0:
        return 0
    to = group_other_member(e, li, laddr, faddr, lport, fport, what)
    if to == 0:
        mib_inc(&e.stats, MIB_TcpExtTCPMigrateReqFailure)
    return to


cdef inline void child_migrate_(engine_t* e, tcb_t* child, idx_t frm, idx_t to) noexcept nogil:
    if child.opt.fo_listener == frm:
        lst_at(e, frm).fo_qlen -= 1
        lst_at(e, to).fo_qlen += 1
        sk_opt(e, child).fo_listener = to
    acceptq_push(e, to, child)
    mib_inc(&e.stats, MIB_TcpExtTCPMigrateReqSuccess)
    sk_data_ready(e, sk_at(e, lst_at(e, to).sk))


# ---- close -----------------------------------------------------------------------------------------------------------------------
cdef inline void child_forget_(engine_t* e, tcb_t* child) noexcept nogil:
    # inet_child_forget: an active reset, then nothing is left of the child (A8). Nobody had it, so it has sent no FIN: it is in SYN_RECV,
    # ESTABLISHED or CLOSE_WAIT, or dead.
    if child.state != TCP_CLOSE:
        sk_set_state(e, child, TCP_CLOSE)
        tcp_send_active_reset(e, child)
    sk_orphan(e, child)
    sk_destroy(e, child)


cdef inline void listener_refuse(engine_t* e, tcb_t* lsk) noexcept nogil:
    # The connection at the head of the accept queue is reset instead of accepted.
    cdef tcb_t* child = acceptq_pop(e, lsk.listener)
    if child != NULL:
        child_forget_(e, child)


cdef inline void listen_stop(engine_t* e, tcb_t* sk) noexcept nogil:
    # The listener leaves LISTEN, by close() or shutdown(). Its record stays with the socket: a later listen() finds the requests again.
    cdef idx_t li = sk.listener
    cdef listener_t* l = lst_at(e, li)
    cdef tcb_t* child
    cdef idx_t to
    cdef idx_t x
    listener_unhash(e, li)
    sk_set_state(e, sk, TCP_CLOSE)
    while True:
        child = acceptq_pop(e, li)
        if child == NULL:
            break
        to = listener_successor(e, li, child.en.laddr, child.en.faddr, <uint16_t>(child.en.ports >> 16), <uint16_t>child.en.ports,
                                SELECT_CHILD)
        if to != 0:
            child_migrate_(e, child, li, to)
        else:
            child_forget_(e, child)
    while l.fo_rskq_head != 0:
        x = l.fo_rskq_head
        l.fo_rskq_head = ext_at(e, x).next
        pool_free(&e.ext, x)
        l.fo_qlen -= 1
    l.fo_rskq_tail = 0
