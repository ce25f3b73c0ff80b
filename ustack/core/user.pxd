# What the user's calls do: socket, bind, listen, accept, connect, shutdown, close, poll, ioctl, names (layer: top of the core).
#
# Never blocks: where Linux would sleep the function returns -E_AGAIN or -E_INPROGRESS and the driver waits (waiter_t) and calls again.
# Order of checks and errno values are those of Linux's inet_* / tcp_* functions (facts A, G, K). Called by the border under the lock.

from libc.string cimport memset

from ustack.core.types cimport (
    E_ADDRNOTAVAIL, E_AGAIN, E_ALREADY, E_CONNABORTED, E_INPROGRESS, E_INVAL, E_ISCONN, E_NOBUFS, E_NOMEM, E_NOTCONN,
    E_CONNRESET, NS_NEVER, NS_PER_MS, NS_PER_SEC, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
    TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TM_WAITER, REF_SHIFT, flow_t, idx_t, int32_t, int64_t, ns_t, uint8_t,
    uint16_t, uint32_t, uint64_t,
)
from ustack.core.bind cimport bind_get_port
from ustack.core.cc cimport cc_mark_ect, cc_release
from ustack.core.connect cimport tcp_v4_connect
from ustack.core.fastopen cimport fastopen_init_key_once
from ustack.core.hooks cimport HOOK_RESET, hook_connect, hook_connect_t, hook_listen, hook_listen_t, hooked
from ustack.core.listen cimport accept_pop, listen_start, listen_stop, listener_refuse
from ustack.core.listenhook cimport ASK_ACCEPT, listenhook
from ustack.core.output cimport tcp_send_active_reset, tcp_send_fin, tcp_settle_one
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.rcvq cimport rcv_queue_flush, rcv_queue_purge
from ustack.core.recvmsg cimport tcp_inq
from ustack.core.records cimport WT_WAITING, listener_t, waiter_t
from ustack.core.route cimport route_is_bindable
from ustack.core.rtt cimport minmax_reset
from ustack.core.seqno cimport before
from ustack.core.sendq cimport tcp_write_queue_purge
from ustack.core.access cimport ext_at, lst_at, sk_at, sk_fport, sk_handle, sk_los, sk_los_put, sk_lport, sk_opt, sk_set_ports, wait_at
from ustack.core.sock cimport (
    SHUTDOWN_MASK, fastopen_remove, sk_alloc, sk_destroy, sk_orphan, sk_reset_keepalive, sk_set_state, tcp_clear_xmit_timers,
    tcp_fastopen_active_disable_ofo_check,
)
from ustack.core.wake cimport (
    POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, POLLRDNORM, POLLWRNORM, sk_error_report, sk_state_change, sk_stream_is_writeable,
    waiter_unlink,
)
from ustack.core.state cimport engine_t
from ustack.core.stats cimport (
    MIB_TcpExtTCPAbortOnClose, MIB_TcpExtTCPAbortOnData, MIB_TcpExtTCPAbortOnLinger, MIB_TcpExtTCPAbortOnMemory, mib_inc,
)
from ustack.core.tcb cimport (
    RCV_SHUTDOWN, SEND_SHUTDOWN, SF_ACCEPTED, SF_DEAD, SF_DONE, SF_FREEBIND, SF_LINGER, SF_NOSPACE, SF_URGINLINE,
    OWES_PUSH, SOCK_BINDADDR_LOCK, SOCK_BINDPORT_LOCK, SS_CONNECTED, SS_CONNECTING, SS_DISCONNECTING, SS_UNCONNECTED, TCP_INFINITE_SSTHRESH,
    TCP_INIT_CWND, TCP_RTO_MAX_DEFAULT_MS, tcb_t,
)
from ustack.core.timewait cimport tcp_fin_time, tcp_time_wait
from ustack.core.wheel cimport wheel_arm

cdef enum:
    SHUT_RD = 0
    SHUT_WR = 1
    SHUT_RDWR = 2
    SIOCINQ = 0x541b
    SIOCOUTQ = 0x5411
    SIOCOUTQNSD = 0x894b
    SIOCATMARK = 0x8905
    TFO_SERVER_ENABLE = 2
    TFO_SERVER_WO_SOCKOPT1 = 0x400


# ---- socket, bind, listen, accept ----------------------------------------------------------------------------------------------
cdef inline tcb_t* user_socket(engine_t* e) noexcept nogil:
    """A new socket in CLOSE, owned by the user; NULL when the pool is exhausted (ENOBUFS)."""
    cdef tcb_t* sk = sk_alloc(e)
    if sk != NULL:
        sk.sflags |= SF_ACCEPTED
        if e.cfg.tcp_rto_max_ms != TCP_RTO_MAX_DEFAULT_MS:
            sk_opt(e, sk).rto_max_ms = <uint32_t> e.cfg.tcp_rto_max_ms
        cc_mark_ect(e, sk)
    return sk


cdef inline int user_bind(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    """inet_bind: EADDRNOTAVAIL for an address that is not ours, EINVAL if bound or not in CLOSE, EADDRINUSE by facts A13-A17."""
    cdef int err
    if not (sk.sflags & SF_FREEBIND or e.cfg.ip_nonlocal_bind or route_is_bindable(e, addr)):
        return -E_ADDRNOTAVAIL
    if sk.state != TCP_CLOSE or sk.bind:
        return -E_INVAL
    sk.rcv_saddr = addr
    sk.en.laddr = addr
    err = bind_get_port(e, sk, port)
    if err:
        sk.rcv_saddr = 0
        sk.en.laddr = 0
        return err
    if addr:
        sk.userlocks |= SOCK_BINDADDR_LOCK
    if port:
        sk.userlocks |= SOCK_BINDPORT_LOCK
    sk_set_ports(sk, sk_lport(sk), 0)
    return 0


cdef inline int user_listen_hook_(engine_t* e, tcb_t* sk, int32_t backlog) noexcept nogil:
    cdef hook_listen_t a
    memset(&a, 0, sizeof(hook_listen_t))
    a.handle = sk_handle(e, sk)
    a.addr = sk.rcv_saddr
    a.port = sk_lport(sk)
    a.first = sk.state != TCP_LISTEN
    a.backlog = backlog
    hook_listen(e.hooks, &a)
    return -a.err if a.err > 0 else 0


cdef inline int user_listen(engine_t* e, tcb_t* sk, int64_t backlog) noexcept nogil:
    """inet_listen (facts A1-A5): the backlog as unsigned, clamped by somaxconn now; on a listener only the limit changes."""
    cdef uint32_t n = <uint32_t> <int32_t> backlog
    cdef int err
    if n > <uint32_t> e.cfg.somaxconn:
        n = <uint32_t> e.cfg.somaxconn
    if sk.sock_state != SS_UNCONNECTED:
        return -E_INVAL
    if sk.state != TCP_CLOSE and sk.state != TCP_LISTEN:
        return -E_INVAL
    if hooked(e.hooks):
        err = user_listen_hook_(e, sk, <int32_t> n)
        if err:
            return err
    if sk.state == TCP_LISTEN:
        lst_at(e, sk.listener).maxq = <int32_t> n
        return 0
    if (e.cfg.tcp_fastopen & TFO_SERVER_WO_SOCKOPT1 and e.cfg.tcp_fastopen & TFO_SERVER_ENABLE
            and sk.opt.fo_qlen_set == 0):
        sk_opt(e, sk).fo_qlen_set = n
        fastopen_init_key_once(e)
    return listen_start(e, sk, <int32_t> n)


cdef inline void user_accept_hook_(engine_t* e, tcb_t* lsk) noexcept nogil:
    """Connections at the head of the queue that a hook refuses are reset."""
    cdef idx_t head = lst_at(e, lsk.listener).acc_head
    while head != 0 and listenhook(e, ASK_ACCEPT, lsk.listener, NULL, sk_at(e, head), NULL) == HOOK_RESET:
        listener_refuse(e, lsk)
        head = lst_at(e, lsk.listener).acc_head


cdef inline int user_accept(engine_t* e, tcb_t* lsk, idx_t* child) noexcept nogil:
    """inet_csk_accept (facts G3): EINVAL if not listening, EAGAIN on an empty queue; a child that died in the queue is returned all the same."""
    cdef idx_t i
    cdef tcb_t* sk
    if lsk.state != TCP_LISTEN:
        return -E_INVAL
    if hooked(e.hooks):
        user_accept_hook_(e, lsk)
    i = accept_pop(e, lsk)
    if i == 0:
        return -E_AGAIN
    sk = sk_at(e, i)
    sk.sflags |= SF_ACCEPTED
    sk.sock_state = SS_CONNECTED
    child[0] = i
    return 0


# ---- errors --------------------------------------------------------------------------------------------------------------------
cdef inline int sock_error(tcb_t* sk) noexcept nogil:
    """The pending error as -errno, cleared."""
    cdef int err = sk.sk_err
    sk.sk_err = 0
    return -err


# ---- disconnect ------------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_need_reset(uint8_t state) noexcept nogil:
    return (state == TCP_ESTABLISHED or state == TCP_CLOSE_WAIT or state == TCP_FIN_WAIT1 or state == TCP_FIN_WAIT2
            or state == TCP_SYN_RECV)


cdef inline void tcp_forget_connection(engine_t* e, tcb_t* sk) noexcept nogil:
    """The part of tcp_disconnect that puts the RFC variables back, so that the socket can connect or listen again. sk_drops stays."""
    cdef uint32_t drops = sk.los.drops
    sk.sk_err_soft = 0
    sk.shutdown = 0
    sk.sflags &= ~<uint32_t> SF_DONE
    sk.rtt.srtt_us = 0
    sk.rtt.mdev_us = 1000000
    sk.rcvrtt_us = 0
    sk.write_seq += sk.max_window + 2
    if sk.write_seq == 0:
        sk.write_seq = 1
    sk.backoff = 0
    sk.snd_cwnd = TCP_INIT_CWND
    sk.probes_out = 0
    sk.rto = NS_PER_SEC
    sk.rto_min_us = <uint32_t> e.cfg.tcp_rto_min_us
    sk.snd_ssthresh = TCP_INFINITE_SSTHRESH
    sk.snd_cwnd_cnt = 0
    sk.is_cwnd_limited = 0
    sk.max_packets_out = 0
    sk.window_clamp = 0
    sk.delivered = 0
    sk.delivered_ce = 0
    cc_release(e, sk)
    sk.ca_initialized = 0
    sk.ca_state = 0
    sk.is_sack_reneg = 0
    sk.retransmits = 0
    sk.retrans_stamp = 0
    sk.undo_marker = 0
    sk.ack_pending = 0
    sk.ack_quick = 0
    sk.ack_pingpong = 0
    sk.ato = 0
    sk.rcv_mss = 88
    sk.tstamp_ok = 0
    sk.wscale_ok = 0
    sk.sack_ok = 0
    sk.snd_wscale = 0
    sk.rcv_wscale = 0
    sk.num_sacks = 0
    sk_los_put(e, sk)
    if drops != 0:
        sk_los(e, sk).drops = drops
    sk.rx_dsack = 0
    sk.saw_tstamp = 0
    sk.ts_recent = 0
    sk.ts_recent_stamp = 0
    sk.ecn_flags = 0
    sk.rt = 0
    sk.rt_gen = 0
    sk.pmtu = 0
    sk.packets_out = 0
    sk.sacked_out = 0
    sk.lost_out = 0
    sk.retrans_out = 0
    sk.bytes_sent = 0
    sk.bytes_acked = 0
    sk.bytes_received = 0
    sk.segs_in = 0
    sk.segs_out = 0
    sk.data_segs_in = 0
    sk.data_segs_out = 0
    sk.app_limited = 0xffffffffUL
    sk.rack_mstamp_us = 0
    sk.rack_advanced = 0
    sk.rack_reo_wnd_steps = 1
    sk.rack_reo_wnd_persist = 0
    sk.rack_dsack_seen = 0
    sk.syn_data = 0
    sk.syn_fastopen = 0
    sk.syn_data_acked = 0
    sk.tlp_high_seq = 0
    if sk.opt.user_mss != 0:
        sk_opt(e, sk).user_mss = 0
    minmax_reset(&sk.rtt_min, <uint32_t> (e.now // NS_PER_MS), 0xffffffffUL)


cdef inline int tcp_disconnect(engine_t* e, tcb_t* sk) noexcept nogil:
    """connect(AF_UNSPEC), close with a zero linger, shutdown(RD) of a listener: abort, then an unconnected socket again."""
    cdef uint8_t old = sk.state
    if old == TCP_LISTEN:
        listen_stop(e, sk)
        lst_at(e, sk.listener).last_overflow = -1
    if old != TCP_CLOSE:
        tcp_settle_one(e, sk, OWES_PUSH)
        if tcp_need_reset(old):
            tcp_send_active_reset(e, sk)
            sk.sk_err = E_CONNRESET
        elif (old == TCP_LAST_ACK or old == TCP_CLOSING) and sk.snd_nxt != sk.write_seq:
            tcp_send_active_reset(e, sk)
            sk.sk_err = E_CONNRESET
        elif old == TCP_SYN_SENT:
            sk.sk_err = E_CONNRESET
        if sk.state != TCP_CLOSE:
            sk_set_state(e, sk, TCP_CLOSE)
    tcp_clear_xmit_timers(e, sk)
    tcp_fastopen_active_disable_ofo_check(e, sk)
    rcv_queue_purge(e, sk)
    sk.copied_seq = sk.rcv_nxt
    sk.urg_state = 0
    tcp_write_queue_purge(e, sk)
    fastopen_remove(e, sk, False)
    sk_set_ports(sk, sk_lport(sk) if sk.bind else 0, 0)
    sk.en.faddr = 0
    if not sk.userlocks & SOCK_BINDADDR_LOCK:
        sk.en.laddr = 0
        sk.rcv_saddr = 0
    tcp_forget_connection(e, sk)
    sk_error_report(e, sk)
    return 0


# ---- connect ---------------------------------------------------------------------------------------------------------------------
cdef inline int user_connect_result(engine_t* e, tcb_t* sk, int pending) noexcept nogil:
    """The second half of inet_stream_connect, for a socket in SS_CONNECTING: `pending` while the handshake runs, else 0 or the error."""
    cdef int err
    if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
        return pending
    if sk.state == TCP_CLOSE:
        err = sock_error(sk)
        if err == 0:
            err = -E_CONNABORTED
        sk.sock_state = SS_UNCONNECTED
        tcp_disconnect(e, sk)
        return err
    sk.sock_state = SS_CONNECTED
    return 0


cdef inline int user_connect_hook_(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    cdef hook_connect_t a
    memset(&a, 0, sizeof(hook_connect_t))
    a.handle = sk_handle(e, sk)
    a.flow = flow_t(sk.rcv_saddr, addr, sk_lport(sk), port)
    hook_connect(e.hooks, &a)
    if a.rto_ms != 0:
        e.connect_rto_ms = a.rto_ms
    return -a.err if a.err > 0 else 0


cdef inline int user_connect(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    """inet_stream_connect. -E_INPROGRESS: the SYN is out; wait for a state change and call user_connect_result."""
    cdef int err
    if sk.sock_state == SS_CONNECTED:
        return -E_ISCONN
    if sk.sock_state == SS_CONNECTING:
        if sk.defer_connect:
            return -E_ISCONN
        return user_connect_result(e, sk, -E_ALREADY)
    if sk.sock_state != SS_UNCONNECTED:
        return -E_INVAL
    if sk.state != TCP_CLOSE:
        return -E_ISCONN
    if hooked(e.hooks):
        err = user_connect_hook_(e, sk, addr, port)
        if err:
            return err
    err = tcp_v4_connect(e, sk, addr, port)
    if err < 0:
        return err
    sk.sock_state = SS_CONNECTING
    if sk.defer_connect:
        return 0
    return user_connect_result(e, sk, -E_INPROGRESS)


cdef inline int user_disconnect(engine_t* e, tcb_t* sk) noexcept nogil:
    """connect() to AF_UNSPEC."""
    cdef int err = tcp_disconnect(e, sk)
    sk.sock_state = SS_DISCONNECTING if err else SS_UNCONNECTED
    return err


# ---- shutdown, close -------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_close_state(engine_t* e, tcb_t* sk) noexcept nogil:
    """The state after our side closes (RFC 9293 3.10.4); True if a FIN is to be sent."""
    cdef uint8_t s = sk.state
    if s == TCP_ESTABLISHED or s == TCP_SYN_RECV:
        sk_set_state(e, sk, TCP_FIN_WAIT1)
        return True
    if s == TCP_CLOSE_WAIT:
        sk_set_state(e, sk, TCP_LAST_ACK)
        return True
    if s == TCP_SYN_SENT:
        sk_set_state(e, sk, TCP_CLOSE)
    return False


cdef inline int user_shutdown(engine_t* e, tcb_t* sk, int how) noexcept nogil:
    """inet_shutdown (facts A10, K2)."""
    cdef int err = 0
    cdef uint8_t s
    if how < 0 or how > 2:
        return -E_INVAL
    how += 1
    if sk.sock_state == SS_CONNECTING:
        if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV or sk.state == TCP_CLOSE:
            sk.sock_state = SS_DISCONNECTING
        else:
            sk.sock_state = SS_CONNECTED
    s = sk.state
    if s == TCP_CLOSE:
        # Kept all the same: a later connect() or listen(), and that listener's children, are shut down from the start.
        sk.shutdown |= <uint8_t> how
        err = -E_NOTCONN
    elif s == TCP_LISTEN or s == TCP_SYN_SENT:
        if s == TCP_SYN_SENT or how & RCV_SHUTDOWN:
            err = tcp_disconnect(e, sk)
            sk.sock_state = SS_DISCONNECTING if err else SS_UNCONNECTED
    else:
        sk.shutdown |= <uint8_t> how
        # In SYN_RECV (a Fast Open child) the FIN waits for the handshake's end.
        if how & SEND_SHUTDOWN and (s == TCP_ESTABLISHED or s == TCP_CLOSE_WAIT):
            if tcp_close_state(e, sk):
                tcp_send_fin(e, sk)
    sk_state_change(e, sk)
    return err


cdef inline bint close_is_lingering(tcb_t* sk) noexcept nogil:
    return sk.state == TCP_FIN_WAIT1 or sk.state == TCP_CLOSING or sk.state == TCP_LAST_ACK


cdef inline ns_t user_close(engine_t* e, tcb_t* sk) noexcept nogil:
    """First half of tcp_close (facts K1, A8). Returns 0 when the caller should go on with user_close_finish at once, else the
    nanoseconds that SO_LINGER allows it to wait for close_is_lingering to become false before it does."""
    cdef bint unread
    cdef uint32_t inq_end
    sk.shutdown = SHUTDOWN_MASK
    if sk.state == TCP_LISTEN:
        listen_stop(e, sk)
        if sk.state != TCP_CLOSE:
            sk_set_state(e, sk, TCP_CLOSE)
        return 0
    # A received FIN alone does not count as unread data.
    inq_end = sk.rcv_nxt
    if sk.sflags & SF_DONE and sk.copied_seq != sk.rcv_nxt:
        inq_end -= 1
    unread = sk.rq_head != 0 and before(sk.copied_seq, inq_end)
    rcv_queue_flush(e, sk)
    if sk.state == TCP_CLOSE:
        return 0
    if unread:
        mib_inc(&e.stats, MIB_TcpExtTCPAbortOnClose)
        tcp_settle_one(e, sk, OWES_PUSH)
        sk_set_state(e, sk, TCP_CLOSE)
        tcp_send_active_reset(e, sk)
    elif sk.sflags & SF_LINGER and sk.opt.linger_s == 0:
        tcp_disconnect(e, sk)
        mib_inc(&e.stats, MIB_TcpExtTCPAbortOnData)
    elif tcp_close_state(e, sk):
        tcp_send_fin(e, sk)
    if sk.sflags & SF_LINGER and sk.opt.linger_s and close_is_lingering(sk):
        return <ns_t> sk.opt.linger_s * NS_PER_SEC
    return 0


cdef inline void user_close_finish(engine_t* e, tcb_t* sk) noexcept nogil:
    """Second half of tcp_close: the handle dies, the protocol goes on without a user (facts H7, H10). sk is invalid afterwards."""
    cdef ns_t tmo
    sk_orphan(e, sk)
    if sk.state == TCP_FIN_WAIT2:
        if sk.opt.linger2_s < 0:
            sk_set_state(e, sk, TCP_CLOSE)
            tcp_send_active_reset(e, sk)
            mib_inc(&e.stats, MIB_TcpExtTCPAbortOnLinger)
        else:
            tmo = tcp_fin_time(e, sk)
            if tmo > 60 * NS_PER_SEC:
                sk_reset_keepalive(e, sk, tmo - 60 * NS_PER_SEC)
            else:
                tcp_time_wait(e, sk, TCP_FIN_WAIT2, tmo)
                return
    if sk.state != TCP_CLOSE and <int64_t> e.n_orphans > e.cfg.tcp_max_orphans:
        sk_set_state(e, sk, TCP_CLOSE)
        tcp_send_active_reset(e, sk)
        mib_inc(&e.stats, MIB_TcpExtTCPAbortOnMemory)
    if sk.state == TCP_CLOSE:
        fastopen_remove(e, sk, False)
        sk_destroy(e, sk)


# ---- poll, ioctl, names ------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_stream_is_readable(engine_t* e, tcb_t* sk, int32_t target) noexcept nogil:
    cdef int32_t avail = <int32_t> (sk.rcv_nxt - sk.copied_seq)
    cdef int32_t win
    if avail <= 0:
        return False
    if avail >= target:
        return True
    win = <int32_t> (sk.rcv_wup + sk.rcv_wnd - sk.rcv_nxt)
    return win <= <int32_t> sk.rcv_mss


cdef inline uint32_t user_poll(engine_t* e, tcb_t* sk) noexcept nogil:
    """tcp_poll's mask (facts G4, G8)."""
    cdef uint32_t mask = 0
    cdef int32_t target = sk.opt.rcvlowat
    cdef listener_t* l
    if sk.state == TCP_LISTEN:
        l = lst_at(e, sk.listener)
        return POLLIN | POLLRDNORM if l.acc_head else 0
    if sk.shutdown == SHUTDOWN_MASK or sk.state == TCP_CLOSE:
        mask |= POLLHUP
    if sk.shutdown & RCV_SHUTDOWN:
        mask |= POLLIN | POLLRDNORM | POLLRDHUP
    if sk.state != TCP_SYN_SENT and (sk.state != TCP_SYN_RECV or sk.fastopen_rsk):
        if sk.urg_state and sk.los.urg_seq == sk.copied_seq and not sk.sflags & SF_URGINLINE:
            target += 1
        if tcp_stream_is_readable(e, sk, target):
            mask |= POLLIN | POLLRDNORM
        if not sk.shutdown & SEND_SHUTDOWN:
            if sk_stream_is_writeable(e, sk):
                mask |= POLLOUT | POLLWRNORM
            else:
                sk.sflags |= SF_NOSPACE
        else:
            mask |= POLLOUT | POLLWRNORM
        if sk.urg_state & 2:                        # TCP_URG_VALID
            mask |= POLLPRI
    elif sk.state == TCP_SYN_SENT and sk.defer_connect:
        mask |= POLLOUT | POLLWRNORM
    if sk.sk_err or sk.opt.errq_head:
        mask |= POLLERR
    return mask


cdef inline int64_t user_ioctl(engine_t* e, tcb_t* sk, uint32_t request) noexcept nogil:
    """tcp_ioctl: the value, or -errno."""
    if request == SIOCATMARK:
        return 1 if sk.urg_state and sk.los.urg_seq == sk.copied_seq else 0
    if sk.state == TCP_LISTEN:
        return -E_INVAL
    if request == SIOCINQ:
        return tcp_inq(e, sk)
    if sk.state == TCP_SYN_SENT or sk.state == TCP_SYN_RECV:
        return 0
    if request == SIOCOUTQ:
        return <int64_t> <uint32_t> (sk.write_seq - sk.snd_una)
    if request == SIOCOUTQNSD:
        return <int64_t> <uint32_t> (sk.write_seq - sk.snd_nxt)
    return -25                                      # ENOTTY


cdef inline int user_getpeername(engine_t* e, tcb_t* sk, uint32_t* addr, uint16_t* port) noexcept nogil:
    if sk_fport(sk) == 0 or sk.state == TCP_CLOSE or sk.state == TCP_SYN_SENT:
        return -E_NOTCONN
    addr[0] = sk.en.faddr
    port[0] = sk_fport(sk)
    return 0


cdef inline void user_getsockname(engine_t* e, tcb_t* sk, uint32_t* addr, uint16_t* port) noexcept nogil:
    addr[0] = sk.rcv_saddr if sk.rcv_saddr else sk.en.laddr
    port[0] = sk_lport(sk)


# ---- blocked calls -----------------------------------------------------------------------------------------------------------------
cdef inline idx_t user_wait(engine_t* e, tcb_t* sk, uint32_t events, bint exclusive, ns_t deadline, void* word,
                            uint64_t tag) noexcept nogil:
    """Queue a blocked call behind the others of this socket: released by a wake-up with one of events (poll bits), or at the
    deadline (NS_NEVER: none). Returns the waiter or 0 (pool exhausted). The driver frees it with user_wait_done."""
    cdef idx_t i = pool_alloc(&e.wait)
    cdef idx_t last
    cdef waiter_t* w
    if i == 0:
        return 0
    w = wait_at(e, i)
    w.sk = sk.idx
    w.events = events
    w.exclusive = exclusive
    w.state = WT_WAITING
    w.word = word
    w.tag = tag
    if sk.waiters == 0:
        sk.waiters = i
    else:
        last = sk.waiters
        while wait_at(e, last).next:
            last = wait_at(e, last).next
        wait_at(e, last).next = i
        w.prev = last
    if deadline != NS_NEVER:
        wheel_arm(&e.wheel, (<uint32_t> TM_WAITER << REF_SHIFT) | i, deadline)
    return i


cdef inline void user_wait_done(engine_t* e, idx_t i) noexcept nogil:
    """The call is over (released, timed out or interrupted): the waiter goes back to the pool. It must be off engine.woken."""
    waiter_unlink(e, wait_at(e, i), i)
    pool_free(&e.wait, i)
