# Reading: recv() with its flags, the urgent byte, window updates after a read (layer above output, rcvq, prune).
#
# RFC 9293 3.9.1.3, 3.8.6.2.2, RFC 6093, facts G5, G8, J25, J27, K8. Linux: tcp_recvmsg, tcp_recv_urg,
# tcp_cleanup_rbuf, tcp_inq. Never blocks: where Linux would sleep the call returns what it has or -E_AGAIN and the
# driver, having waited, calls again with the rest (MSG_WAITALL too is the driver's). Called by user and the border
# under the lock.

from ustack.core.types cimport (
    E_AGAIN, E_INVAL, E_NOTCONN, TCP_CLOSE, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, idx_t, int64_t, ns_t, uint32_t,
    uint8_t, unlikely,
)
from ustack.core.dataq cimport TCP_URG_READ, TCP_URG_VALID
from ustack.core.delack cimport inet_csk_ack_scheduled, inet_csk_in_pingpong_mode, tcp_ack_at_once
from ustack.core.rcvq cimport rcv_ring_idle, rq_eat, rr_len
from ustack.core.rcvwin cimport __tcp_select_window, tcp_fast_path_check, tcp_rcv_space_adjust, tcp_receive_window
from ustack.core.records cimport rrec_t
from ustack.core.ring cimport ring_read
from ustack.core.seqno cimport after, before
from ustack.core.access cimport rr_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport ICSK_ACK_PUSHED, ICSK_ACK_PUSHED2, OWES_ACK, OWES_QUICKACK, RCV_SHUTDOWN, SF_DONE, SF_URGINLINE, tcb_t
from ustack.core.xmit cimport tcp_send_ack

cdef enum:
    # flags of recv() as Linux numbers them
    MSG_OOB = 0x1
    MSG_PEEK = 0x2
    MSG_TRUNC = 0x20
    MSG_DONTWAIT = 0x40
    MSG_WAITALL = 0x100

cdef struct recv_t:                 # one read in progress
    uint8_t* out                    # NULL with MSG_TRUNC: the bytes are thrown away
    size_t left
    int64_t copied
    uint32_t seq                    # next to read
    uint8_t peek
    uint8_t done                    # a FIN was reached
    ns_t tstamp                     # arrival of the last record read from, 0 = none


# ---- window updates ------------------------------------------------------------------------------------------------
cdef inline bint read_acks_(engine_t* e, const tcb_t* sk, int64_t copied) noexcept nogil:
    # An ACK is pending; does this read release it?
    if not inet_csk_ack_scheduled(sk):
        return False
    if sk.rcv_nxt - sk.rcv_wup > sk.rcv_mss:
        return True
    # The reader has emptied the queue and the peer had pushed: it may be waiting for this ACK.
    if copied <= 0 or sk.rmem_alloc != 0:
        return False
    return (sk.ack_pending & ICSK_ACK_PUSHED2) != 0 or (
        (sk.ack_pending & ICSK_ACK_PUSHED) != 0 and not inet_csk_in_pingpong_mode(e, sk))


cdef inline void tcp_cleanup_rbuf(engine_t* e, tcb_t* sk, int64_t copied) noexcept nogil:
    """After a read of `copied` bytes (or an error): send the ACK or window update that it makes due."""
    cdef uint32_t open
    cdef uint32_t fresh
    if read_acks_(e, sk, copied):
        tcp_ack_at_once(e, sk, OWES_ACK if sk.rcv_nxt - sk.rcv_wup > sk.rcv_mss else OWES_QUICKACK)
    elif copied > 0 and not sk.shutdown & RCV_SHUTDOWN:
        open = tcp_receive_window(sk)
        if 2 * open <= sk.window_clamp:
            fresh = __tcp_select_window(e, sk)
            if fresh != 0 and fresh >= 2 * open:
                tcp_send_ack(e, sk)


# ---- urgent byte ---------------------------------------------------------------------------------------------------
cdef inline int64_t tcp_recv_urg(tcb_t* sk, uint8_t* out, size_t n, uint32_t flags) noexcept nogil:
    """MSG_OOB. Never waits."""
    if sk.sflags & SF_URGINLINE or sk.urg_state == 0 or sk.urg_state == TCP_URG_READ:
        return -E_INVAL
    if sk.state == TCP_CLOSE and not sk.sflags & SF_DONE:
        return -E_NOTCONN
    if sk.urg_state == TCP_URG_VALID:
        if not flags & MSG_PEEK:
            sk.urg_state = TCP_URG_READ
        if n == 0:
            return 0
        if not flags & MSG_TRUNC:
            out[0] = sk.urg_byte
        return 1
    if sk.state == TCP_CLOSE or sk.shutdown & RCV_SHUTDOWN:
        return 0
    return -E_AGAIN


# ---- the read loop -------------------------------------------------------------------------------------------------
cdef inline void recv_advance_(tcb_t* sk, recv_t* r, uint32_t n) noexcept nogil:
    r.seq += n
    if not r.peek:
        sk.copied_seq += n


cdef inline idx_t recv_find_(engine_t* e, tcb_t* sk, recv_t* r) noexcept nogil:
    # The record that holds the next byte, 0 if it has not come. Sets r.done when a FIN is next.
    cdef idx_t i = sk.rq_head
    cdef rrec_t* rec
    while i:
        rec = rr_at(e, i)
        if before(r.seq, rec.seq):
            return 0
        if r.seq - rec.seq < rr_len(rec):
            return i
        if rec.fin:
            r.done = 1
            return i
        i = rec.next
    return 0


cdef inline void recv_copy_(engine_t* e, tcb_t* sk, recv_t* r, uint32_t n) noexcept nogil:
    if r.out != NULL:
        ring_read(&sk.rcv, r.seq, r.out, n)
        r.out += n
    recv_advance_(sk, r, n)
    r.copied += n
    r.left -= n
    tcp_rcv_space_adjust(e, sk)


cdef inline void recv_record_(engine_t* e, tcb_t* sk, recv_t* r, idx_t i) noexcept nogil:
    # Read from one record, up to its end or the urgent mark.
    cdef rrec_t* rec = rr_at(e, i)
    cdef uint32_t used = rr_len(rec) - (r.seq - rec.seq)
    cdef uint32_t mark
    if r.left < used:
        used = <uint32_t> r.left
    if unlikely(sk.urg_state):
        mark = sk.los.urg_seq - r.seq
        if mark < used:
            if mark:
                used = mark
            elif not sk.sflags & SF_URGINLINE:
                recv_advance_(sk, r, 1)         # the urgent byte is not part of the stream
                used -= 1
    if used:
        recv_copy_(e, sk, r, used)
    if unlikely(sk.urg_state) and after(sk.copied_seq, sk.los.urg_seq):
        sk.urg_state = 0
        tcp_fast_path_check(e, sk)
    r.tstamp = rec.tstamp
    if r.seq - rec.seq < rr_len(rec):
        return
    if rec.fin:
        r.done = 1
        return
    if not r.peek:
        rq_eat(e, sk, i)


cdef inline int64_t recv_nothing_(tcb_t* sk) noexcept nogil:
    # Nothing to read: end of stream, error, or wait.
    cdef int64_t err
    if sk.sflags & SF_DONE:
        return 0
    if sk.sk_err:
        err = -sk.sk_err
        sk.sk_err = 0
        return err
    if sk.shutdown & RCV_SHUTDOWN:
        return 0
    if sk.state == TCP_CLOSE:
        return -E_NOTCONN
    return -E_AGAIN


cdef inline int64_t recv_loop_(engine_t* e, tcb_t* sk, recv_t* r) noexcept nogil:
    cdef idx_t i
    while True:
        if unlikely(sk.urg_state) and sk.los.urg_seq == r.seq and r.copied:
            return r.copied
        i = recv_find_(e, sk, r)
        if i == 0:
            return r.copied if r.copied else recv_nothing_(sk)
        if not r.done:
            recv_record_(e, sk, r, i)
        if r.done:
            recv_advance_(sk, r, 1)             # the FIN counts one
            if not r.peek:
                rq_eat(e, sk, i)
            return r.copied
        if r.left == 0:
            return r.copied


cdef inline int64_t tcp_recvmsg(engine_t* e, tcb_t* sk, uint8_t* out, size_t n, uint32_t flags) noexcept nogil:
    """Bytes read; 0 at the end of the stream; -E_AGAIN when there is nothing yet; -errno."""
    cdef ns_t tstamp
    return tcp_recvmsg_ts(e, sk, out, n, flags, 0, &tstamp)


cdef inline int64_t tcp_recvmsg_ts(engine_t* e, tcb_t* sk, uint8_t* out, size_t n, uint32_t flags, uint32_t peek_off,
                                   ns_t* tstamp) noexcept nogil:
    """As tcp_recvmsg; *tstamp becomes the arrival time of the last record read from (0: none), for receive
    timestamps. peek_off: with MSG_PEEK, how much to skip."""
    cdef recv_t r
    cdef int64_t got
    tstamp[0] = 0
    if sk.state == TCP_LISTEN:
        return -E_NOTCONN
    if flags & MSG_OOB:
        return tcp_recv_urg(sk, out, n, flags)
    r.out = NULL if flags & MSG_TRUNC else out
    r.left = n
    r.copied = 0
    r.peek = (flags & MSG_PEEK) != 0
    r.seq = sk.copied_seq + (peek_off if r.peek else 0)
    r.done = 0
    r.tstamp = 0
    got = recv_loop_(e, sk, &r)
    tstamp[0] = r.tstamp
    tcp_cleanup_rbuf(e, sk, got)
    rcv_ring_idle(e, sk)
    return got


cdef inline uint32_t tcp_recv_look(const tcb_t* sk, const uint8_t** p) noexcept nogil:
    """How many bytes lie at *p, the next to be read, for a reader inside the engine that takes them with tcp_recvmsg(MSG_TRUNC) afterwards.
    0: ask tcp_recvmsg (nothing there, an urgent mark, or the ring's end in between)."""
    cdef uint32_t n = sk.rcv_nxt - sk.copied_seq
    cdef uint32_t at
    if unlikely(n == 0) or unlikely(sk.urg_state) or unlikely(sk.rcv.size == 0):
        return 0
    if sk.sflags & SF_DONE:
        n -= 1
    at = sk.copied_seq & (sk.rcv.size - 1)
    p[0] = sk.rcv.buf + at
    return n if n <= sk.rcv.size - at else 0


cdef inline bint tcp_recv_drained(const tcb_t* sk) noexcept nogil:
    """Would a read find nothing, not even an end or an error?"""
    return sk.rcv_nxt == sk.copied_seq and not sk.sflags & SF_DONE and sk.sk_err == 0


# ---- how much there is ---------------------------------------------------------------------------------------------
cdef inline int64_t tcp_inq(engine_t* e, tcb_t* sk) noexcept nogil:
    """SIOCINQ: bytes that can be read up to the urgent mark."""
    cdef uint32_t n
    if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
        return 0
    if (sk.sflags & SF_URGINLINE or sk.urg_state == 0 or before(sk.los.urg_seq, sk.copied_seq)
            or not before(sk.los.urg_seq, sk.rcv_nxt)):
        n = sk.rcv_nxt - sk.copied_seq
        if n and sk.sflags & SF_DONE:
            n -= 1
        return n
    return <uint32_t> (sk.los.urg_seq - sk.copied_seq)


cdef inline int64_t tcp_inq_hint(const tcb_t* sk) noexcept nogil:
    """TCP_CM_INQ: bytes still to be read; 1 when there is only the end of the stream."""
    cdef uint32_t n = sk.rcv_nxt - sk.copied_seq
    return 1 if n == 0 and sk.sflags & SF_DONE else n
