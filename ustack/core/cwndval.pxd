# Is the congestion window used? Initial window, restart after idle, decay while the application is the limit (layer: above cc, sendq).
#
# RFC 5681 4.1, RFC 7661. Linux: tcp_init_cwnd, tcp_cwnd_restart, tcp_slow_start_after_idle_check, tcp_cwnd_validate. Congestion controls that set
# the window by themselves (cong_control) are left alone.

from ustack.core.cc cimport cc_cwnd_event, cc_has_cong_control
from ustack.core.cwnd cimport CA_EVENT_CWND_RESTART, tcp_current_ssthresh, tcp_is_cwnd_limited
from ustack.core.route cimport sk_rt
from ustack.core.sendq cimport sq_wq_empty, tcp_chrono_start
from ustack.core.seqno cimport before, u32_max, u32_min
from ustack.core.state cimport engine_t, route_t
from ustack.core.tcb cimport CHRONO_SNDBUF_LIMITED, SF_ACCEPTED, SF_DEAD, SF_NOSPACE, TCP_CA_OPEN, TCP_INIT_CWND, tcb_t
from ustack.core.types cimport TCP_CLOSE_WAIT, TCP_ESTABLISHED, ns_t, uint8_t, uint32_t, unlikely


cdef inline uint32_t tcp_init_cwnd(engine_t* e, const tcb_t* sk) noexcept nogil:
    """Initial window in packets: the route's, or 10."""
    cdef const route_t* rt = sk_rt(e, <tcb_t*> sk)
    cdef uint32_t cwnd = rt.initcwnd if rt != NULL else 0
    return u32_min(cwnd if cwnd else TCP_INIT_CWND, sk.snd_cwnd_clamp)


cdef inline void tcp_cwnd_restart(engine_t* e, tcb_t* sk, ns_t idle) noexcept nogil:
    """The window halves for every RTO of idleness, down to the initial one."""
    cdef uint32_t cwnd = sk.snd_cwnd
    cdef uint32_t restart = u32_min(tcp_init_cwnd(e, sk), cwnd)
    cc_cwnd_event(e, sk, CA_EVENT_CWND_RESTART)
    sk.snd_ssthresh = tcp_current_ssthresh(sk)
    idle -= sk.rto
    while idle > 0 and cwnd > restart:
        cwnd >>= 1
        idle -= sk.rto
    sk.snd_cwnd = u32_max(cwnd, restart)
    sk.snd_cwnd_stamp = e.now
    sk.snd_cwnd_used = 0


cdef inline void tcp_slow_start_after_idle_check(engine_t* e, tcb_t* sk) noexcept nogil:
    """New data is about to be queued."""
    cdef ns_t idle
    if not e.cfg.tcp_slow_start_after_idle or sk.packets_out or cc_has_cong_control(e, sk):
        return
    idle = e.now - sk.lsndtime
    if idle > sk.rto:
        tcp_cwnd_restart(e, sk, idle)


cdef inline void tcp_cwnd_application_limited(engine_t* e, tcb_t* sk) noexcept nogil:
    """A whole RTO without using the window: come half way down to what was used."""
    cdef uint32_t used
    if sk.ca_state == TCP_CA_OPEN and sk.sflags & (SF_DEAD | SF_NOSPACE | SF_ACCEPTED) == SF_ACCEPTED:
        used = u32_max(sk.snd_cwnd_used, tcp_init_cwnd(e, sk))
        if used < sk.snd_cwnd:
            sk.snd_ssthresh = tcp_current_ssthresh(sk)
            sk.snd_cwnd = (sk.snd_cwnd + used) >> 1
        sk.snd_cwnd_used = 0
    sk.snd_cwnd_stamp = e.now


cdef inline void tcp_cwnd_validate(engine_t* e, tcb_t* sk, bint is_cwnd_limited) noexcept nogil:
    """After sending: remember whether the window was the limit in this round trip, else the most packets that were out."""
    if (not before(sk.snd_una, sk.cwnd_usage_seq) or is_cwnd_limited
            or (not sk.is_cwnd_limited and sk.packets_out > sk.max_packets_out)):
        sk.is_cwnd_limited = is_cwnd_limited
        sk.max_packets_out = sk.packets_out
        sk.cwnd_usage_seq = sk.snd_nxt
    if tcp_is_cwnd_limited(sk):
        sk.snd_cwnd_used = 0
        sk.snd_cwnd_stamp = e.now
        return
    if sk.packets_out > sk.snd_cwnd_used:
        sk.snd_cwnd_used = sk.packets_out
    if e.cfg.tcp_slow_start_after_idle and unlikely(e.now - sk.snd_cwnd_stamp >= sk.rto) and not cc_has_cong_control(e, sk):
        tcp_cwnd_application_limited(e, sk)
    # All is sent and yet the application found the buffer full: the buffer is the limit.
    if (sq_wq_empty(sk) and unlikely(sk.sflags & SF_NOSPACE) and not sk.sflags & SF_DEAD
            and (sk.state == TCP_ESTABLISHED or sk.state == TCP_CLOSE_WAIT)):
        tcp_chrono_start(e, sk, CHRONO_SNDBUF_LIMITED)
