# The text of a segment: urgent pointer, in-order queueing, duplicates, what is out of window (layer above ofo, below
# input).
#
# RFC 9293 3.10.7.4 (sixth and seventh check), RFC 6093, facts J20, J24, J25, J27. Linux: tcp_urg, tcp_data_queue. The
# tests of the sequence number have been made by validate.pxd. Called by input.

from ustack.core.types cimport (
    DROP_NONE, DROP_POOL_RCV, DROP_PROTO_MEM, DROP_TCP_OLD_DATA, DROP_TCP_OVERWINDOW, DROP_TCP_ZEROWINDOW, TH_FIN,
    TH_SYN, TH_URG, int32_t, seg_t, uint32_t, likely, unlikely,
)
from ustack.core.delack cimport TCP_MAX_QUICKACKS, inet_csk_schedule_ack, tcp_enter_quickack_mode, tcp_event_data_recv
from ustack.core.ofo cimport tcp_data_queue_ofo, tcp_dsack_set, tcp_ofo_queue, tcp_sack_remove
from ustack.core.prune cimport tcp_try_rmem_schedule
from ustack.core.rcvfin cimport tcp_fin
from ustack.core.rcvq cimport rcv_prepare, rcv_ring_idle, rq_eat, seg_truesize, tcp_queue_rcv
from ustack.core.rcvwin cimport tcp_data_ready, tcp_fast_path_check, tcp_receive_window
from ustack.core.seqno cimport after, before
from ustack.core.skmem cimport sk_forced_mem_schedule
from ustack.core.access cimport rr_at, sk_los
from ustack.core.wake cimport sk_data_ready
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtDelayedACKLost, MIB_TcpExtTCPRcvQDrop, MIB_TcpExtTCPZeroWindowDrop, mib_inc
from ustack.core.tcb cimport ICSK_ACK_NOMEM, ICSK_ACK_NOW, SF_DEAD, SF_URGINLINE, tcb_t

cdef enum:
    SK_GONE = -1                    # segment consumed, connection over: an orphan's sk has been freed
    # tcb.urg_state
    TCP_URG_NOTYET = 1
    TCP_URG_VALID = 2
    TCP_URG_READ = 4


# ---- urgent data ---------------------------------------------------------------------------------------------------
cdef inline void tcp_check_urg(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """A segment with URG: where is the urgent byte? It is the one before the pointer unless tcp_stdurg."""
    cdef uint32_t ptr = s.urg
    if ptr and not e.cfg.tcp_stdurg:
        ptr -= 1
    ptr += s.seq
    # Read already, received already, or not newer than the one we know.
    if after(sk.copied_seq, ptr) or before(ptr, sk.rcv_nxt):
        return
    if sk.urg_state and not after(ptr, sk.los.urg_seq):
        return
    # A second urgent byte while the first stands next in line: the first leaves the stream as if it had been read.
    if (sk.los.urg_seq == sk.copied_seq and sk.urg_state and not sk.sflags & SF_URGINLINE and sk.copied_seq != sk.rcv_nxt):
        sk.copied_seq += 1
        if sk.rq_head and not before(sk.copied_seq, rr_at(e, sk.rq_head).end_seq):
            rq_eat(e, sk, sk.rq_head)
            rcv_ring_idle(e, sk)
    sk.urg_state = TCP_URG_NOTYET
    sk_los(e, sk).urg_seq = ptr
    sk.pred_flags = 0


cdef inline void tcp_urg(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    cdef uint32_t at
    if unlikely(s.flags & TH_URG):
        tcp_check_urg(e, sk, s)
    if likely(sk.urg_state != TCP_URG_NOTYET):
        return
    at = sk.los.urg_seq - s.seq + s.doff - ((s.flags & TH_SYN) != 0)
    if at < s.doff + s.len:
        sk.urg_byte = s.l4[at]
        sk.urg_state = TCP_URG_VALID
        if not sk.sflags & SF_DEAD:
            sk_data_ready(e, sk)


# ---- text ----------------------------------------------------------------------------------------------------------
cdef inline int out_of_window_(tcb_t* sk, int reason) noexcept nogil:
    tcp_enter_quickack_mode(sk, TCP_MAX_QUICKACKS)
    inet_csk_schedule_ack(sk)
    return reason


cdef inline int queue_and_out_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    # In sequence and in window (a part before rcv_nxt is a duplicate): take it, then what it makes contiguous.
    cdef int32_t size = seg_truesize(s)
    if rcv_prepare(e, sk, s) < 0:
        return DROP_POOL_RCV
    if unlikely(not tcp_try_rmem_schedule(e, sk, s, size)):
        sk.ack_pending |= ICSK_ACK_NOMEM | ICSK_ACK_NOW
        inet_csk_schedule_ack(sk)
        sk_data_ready(e, sk)
        if sk.rq_head and s.len:
            mib_inc(&e.stats, MIB_TcpExtTCPRcvQDrop)
            return DROP_PROTO_MEM
        sk_forced_mem_schedule(e, sk, size)
    tcp_queue_rcv(e, sk, s)
    if s.len:
        tcp_event_data_recv(e, sk, s)
    if s.flags & TH_FIN and tcp_fin(e, sk):
        return SK_GONE
    if unlikely(sk.ofo_head):
        if tcp_ofo_queue(e, sk):
            return SK_GONE
        if sk.ofo_head == 0:
            sk.ack_pending |= ICSK_ACK_NOW
    if sk.num_sacks:
        tcp_sack_remove(e, sk)
    tcp_fast_path_check(e, sk)
    if not sk.sflags & SF_DEAD:
        tcp_data_ready(e, sk)
    return DROP_NONE


cdef inline int data_queue_(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    cdef uint32_t win
    if s.seq == s.end_seq:
        return DROP_NONE
    sk.rx_dsack = 0
    win = tcp_receive_window(sk)
    if s.seq == sk.rcv_nxt:
        # A bare FIN is taken even when the window is closed: it costs nothing and peers would repeat it.
        if win == 0 and not (s.len == 0 and s.flags & TH_FIN):
            mib_inc(&e.stats, MIB_TcpExtTCPZeroWindowDrop)
            return out_of_window_(sk, DROP_TCP_ZEROWINDOW)
        return queue_and_out_(e, sk, s)
    if not after(s.end_seq, sk.rcv_nxt):
        mib_inc(&e.stats, MIB_TcpExtDelayedACKLost)
        tcp_dsack_set(e, sk, s.seq, s.end_seq)
        return out_of_window_(sk, DROP_TCP_OLD_DATA)
    if not before(s.seq, sk.rcv_nxt + win):
        return out_of_window_(sk, DROP_TCP_OVERWINDOW)
    if before(s.seq, sk.rcv_nxt):
        tcp_dsack_set(e, sk, s.seq, sk.rcv_nxt)
        if win == 0:
            mib_inc(&e.stats, MIB_TcpExtTCPZeroWindowDrop)
            return out_of_window_(sk, DROP_TCP_ZEROWINDOW)
        return queue_and_out_(e, sk, s)
    if rcv_prepare(e, sk, s) < 0:
        return DROP_POOL_RCV
    return tcp_data_queue_ofo(e, sk, s)


cdef inline int tcp_data_queue(engine_t* e, tcb_t* sk, const seg_t* s) noexcept nogil:
    """Queue the text of an acceptable segment. 0: consumed; a drop reason, counted for the socket; SK_GONE."""
    cdef int reason = data_queue_(e, sk, s)
    if reason > 0:
        sk_los(e, sk).drops += 1
        rcv_ring_idle(e, sk)               # room may have been made for nothing
    return reason
