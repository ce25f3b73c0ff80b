"""The compiled unit: cdef classes at the border between Python and the core. No protocol logic.

Lock rule: every method takes the engine's mutex (`acquire`), does C work only, and releases it; no Python object is created or
released and the GIL is never taken while it is held. Uncontended, a call keeps the GIL (trylock); contended, it spins for at most 20 us,
then counts itself as a waiter and blocks without the GIL (_border/lock.pxi).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_FromStringAndSize
from libc.math cimport llrint
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.mman cimport munmap

from ustack.core.types cimport (
    CSUM_NONE, CSUM_PARTIAL, CSUM_VERIFIED, E_AGAIN, E_BADF, E_INPROGRESS, E_INTR, E_INVAL, E_NETDOWN, E_NOBUFS,
    E_NOMEM, E_PIPE, KIND_REQ, KIND_TCB, KIND_TW, NS_NEVER, OPT_SACKOK, OPT_TS, OPT_WSCALE, REF_SHIFT, TCP_CLOSE, TCP_LISTEN, TH_CWR, TM_KEEP,
    TM_REQ, TM_RETRANS, TM_TW, flow_t, idx_t, ns_t, ref_t, seg_t,
)
from ustack.core.config cimport N_SYSCTLS, sysctl_table
from ustack.core.cc cimport (
    CC_CAPSULE, CC_F_ECN, CC_F_PACING, CC_NAME_MAX, cc_abi, cc_by_name, cc_name, cc_ops_of, cc_ops_t, cc_register,
)
from ustack.core.cc_reno cimport reno_ssthresh, reno_undo_cwnd
from ustack.core.cwnd cimport (
    ack_sample_t, rate_sample_t, tcp_cong_avoid_ai, tcp_in_slow_start, tcp_is_cwnd_limited, tcp_slow_start,
)
from ustack.core.cc_bbr cimport bbr_get_info
from ustack.core.child cimport req_sent_at
from ustack.core.ehash cimport ehash_lookup, ehash_settle, ehash_walk_some, ustack_peek
from ustack.core.engine cimport (
    engine_batch, engine_crowded, engine_destroy, engine_init, engine_loop, engine_next_bound, engine_next_timeout, engine_params_t, engine_poll,
    engine_prefetch, engine_receive, engine_resume, engine_settle, engine_time, engine_tx_done,
)
from ustack.core.hooks cimport (
    CONN_CWND, CONN_ESTABLISHED, CONN_RETRANS, CONN_RTO, CONN_RTO_FIRED, CONN_SSTHRESH, CONN_STATE, CONN_TOS, HOOKS_CAPSULE,
    HOOKS_VERSION, HOOK_DROP, HOOK_PARK, HOOK_RESET, QUEUE_ACCEPT_ACK, QUEUE_SYN, SYN_EVICT, SYN_ISN, SYN_MSS, SYN_NEEDS_ECN, SYN_RTO,
    SYN_RWND_INIT, SYN_WINDOW, hook_ack_t, hook_acceptq_t, hook_conn_t, hook_cookie_t, hook_drop_t, hook_overflow_t, hook_queue_t,
    hook_select_t, hook_syn_t, hook_synack_t, hooks_t,
)
from ustack.core.listen cimport listener_refuse
from ustack.core.metrics cimport metrics_flush
from ustack.core.pool cimport map_reserve, pool_free, pool_gen, pool_live, pool_t
from ustack.core.records cimport (
    RQ_ACKED, RQ_ECN_OK, RQ_SACK_OK, RQ_TSTAMP_OK, RQ_WSCALE_OK, TXF_CSUM_PARTIAL, WT_WAITING, WT_WOKEN, listener_t,
    req_t, reqext_t, tw_t, txframe_t, waiter_t,
)
from ustack.core.recvmsg cimport tcp_inq, tcp_inq_hint, tcp_recvmsg, tcp_recvmsg_ts
from ustack.core.route cimport addr_add, addr_del, is_local, link_set_mtu, pmtu_flush, route_change, route_default
from ustack.core.sendmsg cimport tcp_sendmsg, tcp_sendmsg_to
from ustack.core.access cimport (
    ext_at, lst_at, ref_idx, ref_kind, req_at, sk_at, sk_ca, sk_fport, sk_handle, sk_lport, sk_opt, tw_at, wait_at,
)
from ustack.core.wake cimport POLLERR, POLLHUP, POLLIN, POLLOUT, sk_wake, waiter_finish
from ustack.core.service cimport (
    SVC_CHARGEN, SVC_CHUNK, SVC_DISCARD, SVC_ECHO, SVC_HTTP, SVC_NONE, service_pump, service_set,
)
from ustack.core.getopt cimport user_getsockopt
from ustack.core.setopt cimport user_setsockopt
from ustack.core.state cimport LOG_RING, engine_t, event_t, route_t
from ustack.core.stats cimport MIB_COUNT, MIB_TcpCurrEstab, drop_name, mib_name
from ustack.core.steer cimport STEER_NOBODY, steer_home, steer_packet
from ustack.core.rtt cimport minmax_get
from ustack.core.sendq cimport tcp_packets_in_flight
from ustack.core.seqno cimport i64_min, u32_max, u32_min
from ustack.core.tcb cimport (
    CC_BBR, CC_USER, CC_USER_MAX, OWES_ACK, OWES_ALL, OWES_PUSH, OWES_UNREAD, SF_ACCEPTED, SF_DEAD, SF_HAS_FD, SF_INQ, SF_IN_READY, SF_TIMESTAMP,
    SF_TIMESTAMPNS, skopt_t, tcb_t,
)
from ustack.core.tcpinfo cimport TCP_INFO_SIZE, sk_get_meminfo, tcp_get_info
from ustack.core.tx cimport (
    TXF_LOCAL, TXF_SENT, tx_batch_done, tx_batch_free, tx_copy_payload, tx_len, tx_payload, tx_segment, tx_segs, tx_swap, tx_tcp_csum, tx_whole, txbatch_t,
)
from ustack.core.types cimport DROP_REASONS, TCP_SYN_SENT, TCP_TIME_WAIT
from ustack.core.user cimport (
    close_is_lingering, user_accept, user_bind, user_close, user_close_finish, user_connect, user_connect_result,
    user_disconnect, user_getpeername, user_getsockname, user_ioctl, user_listen, user_poll, user_shutdown, user_socket,
    user_wait, user_wait_done,
)
from ustack.core.wheel cimport wheel_armed, wheel_count, wheel_deadline
from ustack.core.wire cimport get16, get32, put16, put32, wire_parse_ip, wire_parse_opts, wire_parse_tcp

from ustack.errors import failure

include "_border/lock.pxi"
include "_border/address.pxi"
include "_border/mirror.pxi"
include "_border/hooks.pxi"
include "_border/congestion.pxi"
include "_border/engine.pxi"
include "_border/frames.pxi"
include "_border/control.pxi"
include "_border/views.pxi"
include "_border/impair.pxi"
include "_border/device.pxi"
include "_border/shards.pxi"
include "_border/thread.pxi"
include "_border/sleep.pxi"
include "_border/socket.pxi"
