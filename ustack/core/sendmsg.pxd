# send(): bytes into records, records on their way (layer: above connect and output).
#
# Facts J10, J29, A4 (errors); RFC 7413 4.2 (data with connect). Linux: tcp_sendmsg_locked, tcp_push, tcp_sendmsg_fastopen. Never blocks: what does
# not fit is left to the caller, who waits for POLLOUT and calls again with the rest. A record is filled up to size_goal; sndbuf
# and the not-sent limit are looked at only before a new record is made, hence the partial results.

from ustack.core.connect cimport tcp_v4_connect
from ustack.core.cwndval cimport tcp_slow_start_after_idle_check
from ustack.core.errq cimport zc_abort, zc_attach, zc_begin, zc_put
from ustack.core.fastopen_client cimport TFO_CLIENT_ENABLE, fastopen_req_alloc, tcp_free_fastopen_req
from ustack.core.mss cimport tcp_current_mss, tcp_xmit_size_goal
from ustack.core.output cimport __tcp_push_pending_frames, tcp_owe, tcp_push_one
from ustack.core.rate cimport tcp_rate_check_app_limited
from ustack.core.records cimport srec_t
from ustack.core.sendq cimport (
    sq_append, sq_empty, sq_new_tail, sq_unlink_free, sq_wq_empty, sq_wq_tail, tcp_chrono_stop,
)
from ustack.core.seqno cimport after, i64_max, i64_min, u32_min
from ustack.core.skmem cimport sk_forced_mem_schedule, sk_wmem_schedule
from ustack.core.access cimport sk_lport, sk_set_ports, sr_at
from ustack.core.sock cimport sk_set_state
from ustack.core.wake cimport sk_stream_memory_free, sk_write_space
from ustack.core.state cimport engine_t
from ustack.core.syn cimport tcp_connect
from ustack.core.tcb cimport (
    CHRONO_BUSY, CHRONO_SNDBUF_LIMITED, OWES_PUSH, SEND_SHUTDOWN, SF_NOSPACE, SF_ZEROCOPY, SS_CONNECTED, SS_CONNECTING, SS_UNCONNECTED,
    TCP_NAGLE_CORK, TCP_NAGLE_PUSH, tcb_t,
)
from ustack.core.txstamp cimport tcp_tx_timestamp
from ustack.core.types cimport (
    E_AGAIN, E_ALREADY, E_CONNABORTED, E_INPROGRESS, E_INVAL, E_ISCONN, E_NOBUFS, E_OPNOTSUPP, E_PIPE, MSG_EOR,
    MSG_FASTOPEN, MSG_MORE, MSG_OOB, MSG_ZEROCOPY, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV,
    TCP_SYN_SENT, TH_PSH, idx_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, unlikely,
)

cdef enum:
    FULL_SEGMENT_QUEUE = 832        # truesize of an empty record


# ---- pushing -----------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_mark_push(tcb_t* sk, srec_t* r) noexcept nogil:
    r.flags |= TH_PSH
    sk.pushed_seq = sk.write_seq


cdef inline bint forced_push(const tcb_t* sk) noexcept nogil:
    """More than half of the peer's largest window has gone by without PSH."""
    return after(sk.write_seq, sk.pushed_seq + (sk.max_window >> 1))


cdef inline void tcp_push(engine_t* e, tcb_t* sk, uint32_t flags, uint32_t mss, uint32_t nonagle) noexcept nogil:
    """End of a send call: the last record gets PSH unless more is announced, and what may go goes."""
    cdef idx_t i = sq_wq_tail(sk)
    if i == 0:
        return
    if not flags & MSG_MORE or forced_push(sk):
        tcp_mark_push(sk, sr_at(e, i))
    if flags & MSG_OOB:
        sk.snd_up = sk.write_seq
    elif e.holds_pushes and not flags & MSG_MORE and i == sk.send_head and sr_at(e, i).len < mss and nonagle == sk.nonagle and tcp_owe(e, sk, OWES_PUSH):
        return
    __tcp_push_pending_frames(e, sk, mss, TCP_NAGLE_CORK if flags & MSG_MORE else nonagle)


# ---- records -----------------------------------------------------------------------------------------------------------------------
cdef inline void tcp_remove_empty_skb(engine_t* e, tcb_t* sk) noexcept nogil:
    """A record was made and then nothing could be put into it."""
    cdef idx_t i = sq_wq_tail(sk)
    if i and sr_at(e, i).seq == sr_at(e, i).end_seq:
        sq_unlink_free(e, sk, i)
        if sq_wq_empty(sk):
            tcp_chrono_stop(e, sk, CHRONO_BUSY)


cdef inline idx_t send_new_record(engine_t* e, tcb_t* sk) noexcept nogil:
    """0: no room in the buffer, or no memory. The first record of an idle socket is made under any memory pressure."""
    cdef idx_t i
    if unlikely(not sk_stream_memory_free(e, sk, 0)):
        return 0
    if not sq_empty(sk) and not sk_wmem_schedule(e, sk, FULL_SEGMENT_QUEUE):
        return 0
    i = sq_new_tail(e, sk)
    if i:
        sk.nonagle &= ~<uint8_t> TCP_NAGLE_PUSH
        tcp_slow_start_after_idle_check(e, sk)
    return i


cdef inline uint32_t tcp_wmem_schedule(engine_t* e, tcb_t* sk, uint32_t n) noexcept nogil:
    """How much of n may be charged; a socket below its minimum gets that much always."""
    cdef int64_t left
    if sk_wmem_schedule(e, sk, <int32_t> n):
        return n
    left = e.cfg.tcp_wmem_min - <int64_t> sk.wmem_queued
    if left > 0:
        sk_forced_mem_schedule(e, sk, <int32_t> i64_min(left, n))
    return <uint32_t> i64_min(n, i64_max(sk.fwd_alloc, 0))


cdef inline int64_t send_fill(engine_t* e, tcb_t* sk, const uint8_t* p, int64_t n, uint32_t flags, uint32_t mss,
                              uint32_t size_goal, idx_t zc) noexcept nogil:
    """Put as much of p into records as fits, sending on the way as Linux does. Returns how much."""
    cdef int64_t copied = 0
    cdef int64_t room
    cdef uint32_t k
    cdef idx_t i
    cdef srec_t* r
    while copied < n:
        i = sq_wq_tail(sk)
        room = <int64_t> size_goal - sr_at(e, i).len if i else 0
        if room > 0 and zc and sr_at(e, i).zc and unlikely(sr_at(e, i).zc != zc):
            tcp_mark_push(sk, sr_at(e, i))      # a record holds one notification
            room = 0
        if room <= 0 or sr_at(e, i).eor:
            i = send_new_record(e, sk)
            if i == 0:
                return copied
            room = size_goal
        r = sr_at(e, i)
        k = tcp_wmem_schedule(e, sk, <uint32_t> i64_min(room, n - copied))
        if k == 0 or sq_append(e, sk, i, p + copied, k) != 0:
            return copied
        zc_attach(e, r, zc)
        if copied == 0:
            r.flags &= ~<uint32_t> TH_PSH
        copied += k
        if copied == n:
            if flags & MSG_EOR:
                r.eor = 1
        elif r.len >= size_goal and not flags & MSG_OOB:
            if forced_push(sk):
                tcp_mark_push(sk, r)
                __tcp_push_pending_frames(e, sk, mss, TCP_NAGLE_PUSH)
            elif i == sk.send_head:
                tcp_push_one(e, sk, mss)
    return copied


# ---- data with the SYN -------------------------------------------------------------------------------------------------------------
cdef inline int fastopen_start(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    """The connect of a send call. 0, -E_INPROGRESS (SYN sent) or another error."""
    cdef int err
    if sk.defer_connect:
        err = tcp_connect(e, sk)
        if err:
            sk_set_state(e, sk, TCP_CLOSE)
            sk_set_ports(sk, sk_lport(sk), 0)
            return err
    elif sk.sock_state == SS_CONNECTED:
        return -E_ISCONN
    elif sk.sock_state == SS_CONNECTING:
        # A connection that is made since then is simply used; nobody has asked for its outcome yet.
        if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
            return -E_ALREADY
    elif sk.sock_state != SS_UNCONNECTED or port == 0:
        return -E_INVAL
    else:
        if sk.state != TCP_CLOSE:
            return -E_ISCONN
        err = tcp_v4_connect(e, sk, addr, port)
        if err:
            return err
        sk.sock_state = SS_CONNECTING
    if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
        return -E_INPROGRESS
    if sk.state == TCP_CLOSE:
        err = -sk.sk_err if sk.sk_err else -E_CONNABORTED
        sk.sk_err = 0
        sk.sock_state = SS_UNCONNECTED
        return err
    sk.sock_state = SS_CONNECTED
    return 0


cdef inline int tcp_sendmsg_fastopen(engine_t* e, tcb_t* sk, const uint8_t* p, int64_t n, uint32_t addr, uint16_t port,
                                     uint32_t* copied) noexcept nogil:
    """MSG_FASTOPEN, or the first data after a deferred connect. *copied: what the SYN carries."""
    cdef int err
    copied[0] = 0
    if not e.cfg.tcp_fastopen & TFO_CLIENT_ENABLE:
        return -E_OPNOTSUPP
    if sk.opt.fo_ext:
        return -E_ALREADY
    if fastopen_req_alloc(e, sk) == NULL:
        return -E_NOBUFS
    e.fo_data = p
    e.fo_size = <uint32_t> i64_min(n, 65535)
    e.fo_copied = 0
    err = fastopen_start(e, sk, addr, port)
    copied[0] = e.fo_copied
    e.fo_data = NULL
    e.fo_size = 0
    e.fo_copied = 0
    tcp_free_fastopen_req(e, sk)
    sk.defer_connect = 0
    return err


# ---- the call ----------------------------------------------------------------------------------------------------------------------
cdef inline int64_t send_error(engine_t* e, tcb_t* sk, int err) noexcept nogil:
    """sk_stream_error: a pending error of the socket stands for EPIPE."""
    if err == -E_PIPE and sk.sk_err:
        err = -sk.sk_err
        sk.sk_err = 0
    if err == -E_AGAIN and sq_empty(sk):
        # No ACK will free anything: whoever polls for edges must be told.
        sk_write_space(e, sk)
        tcp_chrono_stop(e, sk, CHRONO_SNDBUF_LIMITED)
    return err


cdef inline int send_ready(tcb_t* sk) noexcept nogil:
    """sk_stream_wait_connect and the shutdown test: 0, -E_AGAIN (handshake under way), or the error."""
    cdef int err
    if sk.state != TCP_ESTABLISHED and sk.state != TCP_CLOSE_WAIT and not (sk.state == TCP_SYN_RECV and sk.fastopen_rsk):
        if sk.sk_err:
            err = -sk.sk_err
            sk.sk_err = 0
            return err
        return -E_AGAIN if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV else -E_PIPE
    if sk.sk_err or sk.shutdown & SEND_SHUTDOWN:
        return -E_PIPE
    return 0


cdef inline int64_t send_data(engine_t* e, tcb_t* sk, const uint8_t* p, int64_t n, uint32_t flags, uint32_t addr, uint16_t port,
                              idx_t zc) noexcept nogil:
    """The call without its bookkeeping of zero copy."""
    cdef uint32_t copied_syn = 0
    cdef uint32_t mss
    cdef uint32_t goal
    cdef int64_t copied
    cdef int err
    if unlikely(flags & MSG_FASTOPEN) or unlikely(sk.defer_connect):
        e.fo_zc = zc
        err = tcp_sendmsg_fastopen(e, sk, p, n, addr, port, &copied_syn)
        if err == -E_INPROGRESS and copied_syn > 0:
            return copied_syn
        if err:
            return send_error(e, sk, err)
    tcp_rate_check_app_limited(e, sk)
    err = send_ready(sk)
    if err:
        return copied_syn if copied_syn else send_error(e, sk, err)
    mss = tcp_current_mss(e, sk)
    goal = tcp_xmit_size_goal(sk, mss, not flags & MSG_OOB)
    copied = send_fill(e, sk, p + copied_syn, n - copied_syn, flags, mss, goal, zc)
    if copied < n - copied_syn:
        sk.sflags |= SF_NOSPACE
        tcp_remove_empty_skb(e, sk)
        if copied:
            tcp_push(e, sk, flags & ~<uint32_t> MSG_MORE, mss, TCP_NAGLE_PUSH)
        elif copied_syn == 0:
            return send_error(e, sk, -E_AGAIN)
    if copied:
        tcp_tx_timestamp(e, sk)
        tcp_push(e, sk, flags, mss, sk.nonagle)
    return copied + copied_syn


cdef inline int64_t tcp_sendmsg_to(engine_t* e, tcb_t* sk, const uint8_t* p, int64_t n, uint32_t flags, uint32_t addr,
                                   uint16_t port) noexcept nogil:
    """send() and sendto(); the address matters only with MSG_FASTOPEN. Bytes taken, or -errno."""
    cdef idx_t zc
    cdef int64_t rc
    if n == 0 or not (flags & MSG_ZEROCOPY and sk.sflags & SF_ZEROCOPY):
        return send_data(e, sk, p, n, flags, addr, port, 0)
    zc = zc_begin(e, sk, <uint32_t> n, sr_at(e, sk.sq_tail).zc if sk.send_head else 0)
    if zc == 0:
        return -E_NOBUFS
    rc = send_data(e, sk, p, n, flags, addr, port, zc)
    if rc < 0:
        zc_abort(e, sk, zc)
    else:
        zc_put(e, sk, zc)
    return rc


cdef inline int64_t tcp_sendmsg(engine_t* e, tcb_t* sk, const uint8_t* p, size_t n, uint32_t flags) noexcept nogil:
    return tcp_sendmsg_to(e, sk, p, <int64_t> n, flags, 0, 0)
