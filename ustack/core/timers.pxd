# What the timers of a connected socket do: retransmission, zero-window probe, keepalive, pacing, compressed ACK (layer: above recovery, output).
#
# RFC 6298, RFC 1122 4.2.3.6 (keepalive), RFC 5482 (user timeout), RFC 7413 A.3. Facts J4-J6, J11, J12, I10, H7, H10. Linux: tcp_timer.c. Called by the
# engine when a timer of kind TM_RETRANS, TM_KEEP, TM_PACE, TM_COMPACK fires; e.now is its deadline. The socket may be gone when
# they return (an orphan that gave up): the caller must not look at it again.

from ustack.core.connhook cimport connhook_rto
from ustack.core.fastopen cimport fastopen_rtx_synack
from ustack.core.fastopen_client cimport tcp_fastopen_active_detect_blackhole
from ustack.core.hooks cimport hooked
from ustack.core.mtuprobe cimport tcp_mtu_probing
from ustack.core.output cimport (
    RESOURCE_PROBE_INTERVAL_NS, tcp_current_mss, tcp_retransmit_skb, tcp_rto_max, tcp_send_ack, tcp_send_active_reset, tcp_send_loss_probe,
    tcp_send_probe0, tcp_write_wakeup, tcp_write_xmit,
)
from ustack.core.records cimport reqext_t
from ustack.core.recovery cimport tcp_enter_loss, tcp_rack_reo_timeout, tcp_xmit_retransmit_queue
from ustack.core.route cimport sk_rto_min
from ustack.core.rtt cimport rtt_rto
from ustack.core.sendq cimport (
    SOCK_MIN_SNDBUF, sq_rtx_head, sq_wq_empty, tcp_is_sack, tcp_packets_in_flight, tcp_write_queue_purge,
)
from ustack.core.seqno cimport i64_max, i64_min, ilog2_u32
from ustack.core.access cimport ext_at, jiffies_up, sk_los, sr_at
from ustack.core.sock cimport sk_reset_keepalive, tcp_done, tcp_reset_xmit_timer
from ustack.core.wake cimport sk_error_report
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPAbortOnMemory, MIB_TcpExtTCPAbortOnTimeout, MIB_TcpExtTCPKeepAlive, MIB_TcpExtTCPLossFailures,
    MIB_TcpExtTCPRenoFailures, MIB_TcpExtTCPRenoRecoveryFail, MIB_TcpExtTCPSackFailures, MIB_TcpExtTCPSackRecoveryFail,
    MIB_TcpExtTCPTimeouts, MIB_TcpExtTcpTimeoutRehash, mib_inc,
)
from ustack.core.tcb cimport (
    ICSK_TIME_LOSS_PROBE, ICSK_TIME_NONE, ICSK_TIME_PROBE0, ICSK_TIME_REO_TIMEOUT, ICSK_TIME_RETRANS, SF_DEAD, SF_KEEPOPEN,
    TCP_CA_DISORDER, TCP_CA_LOSS, TCP_CA_RECOVERY, TCP_INFINITE_SSTHRESH, tcb_t,
)
from ustack.core.timewait cimport tcp_fin_time, tcp_time_wait
from ustack.core.types cimport (
    E_TIMEDOUT, NS_PER_MS, NS_PER_SEC, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
    TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, idx_t, int64_t, ns_t, uint8_t, uint32_t,
)
from ustack.core.xmit cimport tcp_ts_of

cdef enum:
    RTO_BASE_MS = 200                   # TCP_RTO_MIN: base of the give-up model, whatever tcp_rto_min_us says
    SYN_RTO_BASE_MS = 1000
    THIN_LINEAR_RETRIES = 6
    THIN_PACKETS = 4
    ORPHAN_RETRIES = 8
    TIMEWAIT_S = 60


# ---- giving up -----------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_in_handshake(const tcb_t* sk) noexcept nogil:
    return sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV


cdef inline void tcp_write_err(engine_t* e, tcb_t* sk) noexcept nogil:
    """The peer does not answer: what ICMP told meanwhile, or ETIMEDOUT. Nothing is sent."""
    cdef bint dead = (sk.sflags & SF_DEAD) != 0
    mib_inc(&e.stats, MIB_TcpExtTCPAbortOnTimeout)
    sk.sk_err = sk.sk_err_soft if sk.sk_err_soft else E_TIMEDOUT
    tcp_write_queue_purge(e, sk)
    tcp_done(e, sk)
    if not dead:
        sk_error_report(e, sk)


cdef inline int tcp_orphan_retries(engine_t* e, const tcb_t* sk, bint alive) noexcept nogil:
    cdef int n = <int> e.cfg.tcp_orphan_retries
    if sk.sk_err_soft and not alive:
        n = 0
    if n == 0 and alive:
        n = ORPHAN_RETRIES
    return n


cdef inline bint tcp_out_of_resources(engine_t* e, tcb_t* sk, bint do_reset) noexcept nogil:
    """Too many orphans, or no memory (facts H10): this one ends. Idle ones and those with ICMP errors go first."""
    cdef int shift = 0
    if e.now - sk.lsndtime > 2 * tcp_rto_max(e, sk) or not do_reset:
        shift += 1
    if sk.sk_err_soft:
        shift += 1
    if (<int64_t> e.n_orphans << shift <= e.cfg.tcp_max_orphans
            and not (sk.wmem_queued > SOCK_MIN_SNDBUF and e.mem_pages > e.cfg.tcp_mem_max)):
        return False
    if e.now - sk.lsndtime <= TIMEWAIT_S * NS_PER_SEC or (sk.snd_wnd == 0 and sk.packets_out == 0):
        do_reset = True
    if do_reset:
        tcp_send_active_reset(e, sk)
    mib_inc(&e.stats, MIB_TcpExtTCPAbortOnMemory)
    tcp_done(e, sk)
    return True


cdef inline int64_t tcp_model_timeout_ms(engine_t* e, const tcb_t* sk, int boundary, int64_t base_ms) noexcept nogil:
    """How long `boundary` retransmissions take with doubling from base up to the cap (facts J5)."""
    cdef int64_t top = tcp_rto_max(e, sk) // NS_PER_MS
    cdef int linear = ilog2_u32(<uint32_t> (top // base_ms))
    if boundary <= linear:
        return ((<int64_t> 2 << boundary) - 1) * base_ms
    return ((<int64_t> 2 << linear) - 1) * base_ms + (boundary - linear) * top


cdef inline bint retransmits_timed_out(engine_t* e, const tcb_t* sk, int boundary, int64_t timeout_ms) noexcept nogil:
    """Have retransmissions gone on for as long as `boundary` of them should take, or for timeout_ms if that is not 0?"""
    if sk.retransmits == 0:
        return False
    if timeout_ms == 0:
        timeout_ms = tcp_model_timeout_ms(e, sk, boundary, SYN_RTO_BASE_MS if tcp_in_handshake(sk) else RTO_BASE_MS)
    return <int64_t> <int> (tcp_ts_of(e, e.now) - tcp_ts_of(e, sk.retrans_stamp)) >= timeout_ms


cdef inline bint orphan_gives_up(engine_t* e, tcb_t* sk, int* retry_until) noexcept nogil:
    """An orphan tries less long. True: it is gone."""
    cdef bint alive = sk.rto < tcp_rto_max(e, sk)
    retry_until[0] = tcp_orphan_retries(e, sk, alive)
    return tcp_out_of_resources(e, sk, alive or not retransmits_timed_out(e, sk, retry_until[0], 0))


cdef inline bint tcp_write_timeout(engine_t* e, tcb_t* sk) noexcept nogil:
    """Is it enough? True: the connection is over."""
    cdef bint expired = False
    cdef int retry_until
    if tcp_in_handshake(sk):
        retry_until = sk.opt.syn_retries if sk.opt.syn_retries else <int> e.cfg.tcp_syn_retries
        expired = sk.retransmits >= retry_until + (<int> e.cfg.tcp_syn_linear_timeouts if sk.state == TCP_SYN_SENT else 0)
    else:
        if retransmits_timed_out(e, sk, <int> e.cfg.tcp_retries1, 0):
            tcp_mtu_probing(e, sk)
            sk.rt = 0
        retry_until = <int> e.cfg.tcp_retries2
        if sk.sflags & SF_DEAD and orphan_gives_up(e, sk, &retry_until):
            return True
    if not expired:
        expired = retransmits_timed_out(e, sk, retry_until, sk.opt.user_timeout_ms)
    tcp_fastopen_active_detect_blackhole(e, sk, expired)
    if hooked(e.hooks):
        connhook_rto(e, sk, expired)
    if expired:
        tcp_write_err(e, sk)
        return True
    sk_los(e, sk).timeout_rehash += 1
    mib_inc(&e.stats, MIB_TcpExtTcpTimeoutRehash)
    return False


# ---- retransmission timer --------------------------------------------------------------------------------------------------------
cdef inline bint tcp_rtx_probe0_timed_out(engine_t* e, const tcb_t* sk, ns_t since_first) noexcept nogil:
    """The peer has shrunk its window to nothing: it may do so for long, as long as it speaks."""
    cdef ns_t timeout = 2 * tcp_rto_max(e, sk)
    cdef ns_t user = <ns_t> sk.opt.user_timeout_ms * NS_PER_MS
    if user:
        if since_first > user:
            return True
        timeout = i64_min(timeout, user)
    return e.now - sk.rcv_tstamp > timeout and since_first > timeout


cdef inline ns_t tcp_clamp_rto_to_user_timeout(engine_t* e, const tcb_t* sk) noexcept nogil:
    cdef int64_t left
    if sk.opt.user_timeout_ms == 0:
        return sk.rto
    left = <int64_t> sk.opt.user_timeout_ms - <int> (tcp_ts_of(e, e.now) - tcp_ts_of(e, sk.retrans_stamp))
    if left <= 0:
        return e.tick
    return i64_min(sk.rto, jiffies_up(e, left * NS_PER_MS))


cdef inline void tcp_update_rto_stats(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.retransmits == 0:
        sk_los(e, sk).total_rto_recoveries += 1
        sk_los(e, sk).rto_stamp = e.now
    sk.retransmits += 1
    sk_los(e, sk).total_rto += 1


cdef inline void count_first_timeout(engine_t* e, tcb_t* sk) noexcept nogil:
    """Which way of recovering has just failed?"""
    cdef bint sack = tcp_is_sack(sk)
    if sk.ca_state == TCP_CA_RECOVERY:
        mib_inc(&e.stats, MIB_TcpExtTCPSackRecoveryFail if sack else MIB_TcpExtTCPRenoRecoveryFail)
    elif sk.ca_state == TCP_CA_LOSS:
        mib_inc(&e.stats, MIB_TcpExtTCPLossFailures)
    elif sk.ca_state == TCP_CA_DISORDER or sk.sacked_out:
        mib_inc(&e.stats, MIB_TcpExtTCPSackFailures if sack else MIB_TcpExtTCPRenoFailures)


cdef inline bint tcp_stream_is_thin(const tcb_t* sk) noexcept nogil:
    return sk.packets_out < THIN_PACKETS and sk.snd_ssthresh < TCP_INFINITE_SSTHRESH


cdef inline void rto_backoff(engine_t* e, tcb_t* sk) noexcept nogil:
    """Double the RTO; not for thin streams that ask for it, and not for the first SYNs."""
    cdef ns_t top = tcp_rto_max(e, sk)
    if (sk.state == TCP_ESTABLISHED and (sk.opt.thin_lto or e.cfg.tcp_thin_linear_timeouts) and tcp_stream_is_thin(sk)
            and sk.retransmits <= THIN_LINEAR_RETRIES):
        sk.backoff = 0
        sk.rto = rtt_rto(&sk.rtt, e.tick, sk_rto_min(e, sk), top)
    elif sk.state != TCP_SYN_SENT or sk.los.total_rto > e.cfg.tcp_syn_linear_timeouts:
        sk.backoff += 1
        sk.rto = i64_min(sk.rto << 1, top)
    tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, tcp_clamp_rto_to_user_timeout(e, sk))
    if retransmits_timed_out(e, sk, <int> e.cfg.tcp_retries1 + 1, 0):
        sk.rt = 0


cdef inline void tcp_retransmit_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """The RTO (facts J4): loss state, head again, twice the wait."""
    cdef idx_t head
    cdef ns_t first
    if sk.fastopen_rsk:
        tcp_fastopen_synack_rto(e, sk)
        return
    head = sq_rtx_head(sk)
    if sk.packets_out == 0 or head == 0:
        return
    if sk.snd_wnd == 0 and not sk.sflags & SF_DEAD and not tcp_in_handshake(sk):
        first = sk.retrans_stamp if sk.retrans_stamp else sr_at(e, head).tx_time
        if tcp_rtx_probe0_timed_out(e, sk, e.now - first):
            tcp_write_err(e, sk)
            return
        tcp_enter_loss(e, sk)
        tcp_retransmit_skb(e, sk, head, 1)
        sk.rt = 0
        rto_backoff(e, sk)
        return
    mib_inc(&e.stats, MIB_TcpExtTCPTimeouts)
    if tcp_write_timeout(e, sk):
        return
    if sk.retransmits == 0:
        count_first_timeout(e, sk)
    tcp_enter_loss(e, sk)
    tcp_update_rto_stats(e, sk)
    if tcp_retransmit_skb(e, sk, sq_rtx_head(sk), 1) > 0:
        tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, RESOURCE_PROBE_INTERVAL_NS)
        return
    rto_backoff(e, sk)


cdef inline void tcp_fastopen_synack_rto(engine_t* e, tcb_t* sk) noexcept nogil:
    """The SYN-ACK of a Fast Open child (facts I10): one try more than others get, since the application may hold it already."""
    cdef int limit = sk.opt.syn_retries if sk.opt.syn_retries else <int> e.cfg.tcp_synack_retries + 1
    cdef reqext_t* ext = ext_at(e, sk.fastopen_rsk)
    mib_inc(&e.stats, MIB_TcpExtTCPTimeouts)
    if ext.num_timeout >= limit:
        tcp_write_err(e, sk)
        return
    if sk.retransmits == 1:
        tcp_enter_loss(e, sk)
    fastopen_rtx_synack(e, sk)
    ext.num_timeout += 1
    tcp_update_rto_stats(e, sk)
    if sk.retrans_stamp == 0:
        sk.retrans_stamp = e.now
    tcp_reset_xmit_timer(e, sk, ICSK_TIME_RETRANS, <ns_t> NS_PER_SEC << ext.num_timeout)


# ---- zero-window probe timer -----------------------------------------------------------------------------------------------------
cdef inline void tcp_probe_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """Probing goes on for ever as long as the peer answers; an orphan, or a user timeout, ends it (facts J11)."""
    cdef int max_probes = <int> e.cfg.tcp_retries2
    cdef bint alive
    if sk.packets_out or sq_wq_empty(sk):
        sk.probes_out = 0
        if sk.los.probes_tstamp:
            sk_los(e, sk).probes_tstamp = 0
        return
    if sk.los.probes_tstamp == 0:
        sk_los(e, sk).probes_tstamp = e.now if e.now else 1
    elif sk.opt.user_timeout_ms and e.now - sk.los.probes_tstamp >= <ns_t> sk.opt.user_timeout_ms * NS_PER_MS:
        tcp_write_err(e, sk)
        return
    if sk.sflags & SF_DEAD:
        alive = i64_min(sk.rto << sk.backoff if sk.backoff < 20 else tcp_rto_max(e, sk), tcp_rto_max(e, sk)) < tcp_rto_max(e, sk)
        max_probes = tcp_orphan_retries(e, sk, alive)
        if not alive and sk.backoff >= max_probes:
            tcp_write_err(e, sk)
            return
        if tcp_out_of_resources(e, sk, True):
            return
    if sk.probes_out >= max_probes:
        tcp_write_err(e, sk)
    else:
        tcp_send_probe0(e, sk)


cdef inline void tcp_write_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """TM_RETRANS has fired: what it was armed for stands in sk.icsk_pending."""
    cdef uint8_t what = sk.icsk_pending
    if sk.state == TCP_CLOSE or sk.state == TCP_LISTEN or what == ICSK_TIME_NONE:
        return
    if what == ICSK_TIME_REO_TIMEOUT:
        tcp_rack_reo_timeout(e, sk)
    elif what == ICSK_TIME_LOSS_PROBE:
        tcp_send_loss_probe(e, sk)
    elif what == ICSK_TIME_RETRANS:
        sk.icsk_pending = ICSK_TIME_NONE
        tcp_retransmit_timer(e, sk)
    elif what == ICSK_TIME_PROBE0:
        sk.icsk_pending = ICSK_TIME_NONE
        tcp_probe_timer(e, sk)


# ---- keepalive timer -------------------------------------------------------------------------------------------------------------
cdef inline ns_t keepalive_time_when(engine_t* e, const tcb_t* sk) noexcept nogil:
    return <ns_t> (sk.opt.keepalive_time_s if sk.opt.keepalive_time_s else e.cfg.tcp_keepalive_time) * NS_PER_SEC


cdef inline ns_t keepalive_intvl_when(engine_t* e, const tcb_t* sk) noexcept nogil:
    return <ns_t> (sk.opt.keepalive_intvl_s if sk.opt.keepalive_intvl_s else e.cfg.tcp_keepalive_intvl) * NS_PER_SEC


cdef inline int keepalive_probes(engine_t* e, const tcb_t* sk) noexcept nogil:
    return sk.opt.keepalive_probes if sk.opt.keepalive_probes else <int> e.cfg.tcp_keepalive_probes


cdef inline ns_t keepalive_time_elapsed(engine_t* e, const tcb_t* sk) noexcept nogil:
    """Since the peer was last heard."""
    return i64_min(e.now - sk.lrcvtime, e.now - sk.rcv_tstamp)


cdef inline bint keepalive_expired(engine_t* e, const tcb_t* sk, ns_t elapsed) noexcept nogil:
    if sk.opt.user_timeout_ms:
        return elapsed >= <ns_t> sk.opt.user_timeout_ms * NS_PER_MS and sk.probes_out > 0
    return sk.probes_out >= keepalive_probes(e, sk)


cdef inline bint finwait2_over(engine_t* e, tcb_t* sk) noexcept nogil:
    """An orphan in FIN_WAIT2 has outlived what exceeds the TIME_WAIT length (facts H7): the rest is a record's."""
    cdef ns_t rest
    if sk.opt.linger2_s >= 0:
        rest = tcp_fin_time(e, sk) - TIMEWAIT_S * NS_PER_SEC
        if rest > 0:
            tcp_time_wait(e, sk, TCP_FIN_WAIT2, rest)
            return True
    tcp_send_active_reset(e, sk)
    tcp_done(e, sk)
    return True


cdef inline void tcp_keepalive_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef ns_t elapsed
    if sk.state == TCP_LISTEN:
        return
    if sk.state == TCP_FIN_WAIT2 and sk.sflags & SF_DEAD:
        finwait2_over(e, sk)
        return
    if not sk.sflags & SF_KEEPOPEN or sk.state == TCP_CLOSE or sk.state == TCP_SYN_SENT:
        return
    elapsed = keepalive_time_when(e, sk)
    if sk.packets_out == 0 and sq_wq_empty(sk):
        elapsed = keepalive_time_elapsed(e, sk)
        if elapsed < keepalive_time_when(e, sk):
            elapsed = keepalive_time_when(e, sk) - elapsed
        elif keepalive_expired(e, sk, elapsed):
            tcp_send_active_reset(e, sk)
            tcp_write_err(e, sk)
            return
        elif tcp_write_wakeup(e, sk, MIB_TcpExtTCPKeepAlive) <= 0:
            sk.probes_out += 1
            elapsed = keepalive_intvl_when(e, sk)
        else:
            elapsed = RESOURCE_PROBE_INTERVAL_NS
    sk_reset_keepalive(e, sk, elapsed)


# ---- pacing, compressed ACK --------------------------------------------------------------------------------------------------------
cdef inline void tcp_pace_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """The time of the next packet has come."""
    if not (sk.state == TCP_ESTABLISHED or sk.state == TCP_FIN_WAIT1 or sk.state == TCP_CLOSING or sk.state == TCP_CLOSE_WAIT
            or sk.state == TCP_LAST_ACK):
        return
    if sk.lost_out > sk.retrans_out and sk.snd_cwnd > tcp_packets_in_flight(sk):
        tcp_xmit_retransmit_queue(e, sk)
    tcp_write_xmit(e, sk, tcp_current_mss(e, sk), sk.nonagle, 0)


cdef inline void tcp_compack_timer(engine_t* e, tcb_t* sk) noexcept nogil:
    """ACKs were held back while holes were being filled (facts J24): one for all."""
    if sk.compressed_ack:
        sk.compressed_ack -= 1          # the one sent now is none that was saved
        tcp_send_ack(e, sk)
