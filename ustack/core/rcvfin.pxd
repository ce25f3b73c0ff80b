# The peer ends the connection: FIN and RST (layer above timewait, below ofo and input).
#
# RFC 9293 3.10.7.4 (eighth check) and 3.5.3, facts K2-K8. Linux: tcp_fin, tcp_reset. Both may end the socket: what
# returns True has freed an orphan, and its sk must not be touched any more. Called by ofo, dataq and input.

from ustack.core.types cimport (
    E_CONNREFUSED, E_CONNRESET, E_PIPE, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1,
    TCP_FIN_WAIT2, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT, idx_t, int32_t, uint8_t,
)
from ustack.core.delack cimport inet_csk_enter_pingpong_mode, inet_csk_schedule_ack
from ustack.core.ofotree cimport ofo_unlink
from ustack.core.output cimport tcp_send_ack
from ustack.core.prune cimport tcp_sack_reset
from ustack.core.rcvq cimport rcv_free_record
from ustack.core.sendq cimport tcp_write_queue_purge
from ustack.core.sock cimport sk_set_state, tcp_done
from ustack.core.wake cimport sk_error_report, sk_state_change
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport RCV_SHUTDOWN, SF_DEAD, SF_DONE, tcb_t
from ustack.core.timewait cimport tcp_time_wait


cdef inline void ofo_purge(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef idx_t i
    while sk.los.ofo_tail:
        i = sk.los.ofo_tail
        ofo_unlink(e, sk, i)
        rcv_free_record(e, sk, i)


cdef inline bint tcp_fin(engine_t* e, tcb_t* sk) noexcept nogil:
    """rcv_nxt has passed a FIN. True: sk is gone."""
    cdef uint8_t state = sk.state
    cdef bint dead = (sk.sflags & SF_DEAD) != 0
    inet_csk_schedule_ack(sk)
    sk.shutdown |= RCV_SHUTDOWN
    sk.sflags |= SF_DONE
    if state == TCP_SYN_RECV or state == TCP_ESTABLISHED:
        sk_set_state(e, sk, TCP_CLOSE_WAIT)
        inet_csk_enter_pingpong_mode(e, sk)
    elif state == TCP_FIN_WAIT1:
        tcp_send_ack(e, sk)
        sk_set_state(e, sk, TCP_CLOSING)
    elif state == TCP_FIN_WAIT2:
        tcp_send_ack(e, sk)
        tcp_time_wait(e, sk, TCP_TIME_WAIT, 0)
        if dead:
            return True
    # What lies beyond a FIN is dropped.
    ofo_purge(e, sk)
    if sk.sack_ok:
        tcp_sack_reset(sk)
    if not dead:
        sk_state_change(e, sk)
    return False


cdef inline bint tcp_done_with_error(engine_t* e, tcb_t* sk, int32_t err) noexcept nogil:
    """The connection fails. True: sk is gone."""
    cdef bint dead = (sk.sflags & SF_DEAD) != 0
    sk.sk_err = err
    tcp_write_queue_purge(e, sk)
    tcp_done(e, sk)
    if not dead:
        sk_error_report(e, sk)
    return dead


cdef inline bint tcp_reset(engine_t* e, tcb_t* sk) noexcept nogil:
    """A valid RST: the error is what a read or write will return. True: sk is gone."""
    cdef int32_t err = E_CONNRESET
    if sk.state == TCP_CLOSE:
        return False
    if sk.state == TCP_SYN_SENT:
        err = E_CONNREFUSED
    elif sk.state == TCP_CLOSE_WAIT:
        err = E_PIPE
    return tcp_done_with_error(e, sk, err)
