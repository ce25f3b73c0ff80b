# Fast Open of our own connects: cookie cache, deferred connect, black holes (layer of route).
#
# RFC 7413 4.1, 7.3; Linux: the active half of tcp_fastopen.c. What a connect will put into its SYN stands in an ext record (sk.fo_ext, Linux's
# fastopen_req): fo_len 0 asks for a cookie, FO_NO_OPTION means data without any option, else it is the cookie. Cookies are kept
# with the tcp_metrics. Invariant: sk.fo_ext is taken at connect time and given back by whoever sends the SYN or destroys the socket.
# Callers: connect, output (SYN), input (SYN-ACK), timers (black-hole detection), the end of a socket.

from libc.string cimport memset

from ustack.core.metrics cimport tcp_fastopen_cache_get
from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport reqext_t
from ustack.core.route cimport sk_rt
from ustack.core.seqno cimport u32_min
from ustack.core.access cimport ext_at, sk_opt
from ustack.core.sock cimport tcp_fastopen_active_disable
from ustack.core.state cimport engine_t, route_t
from ustack.core.stats cimport MIB_TcpExtTCPFastOpenActiveFail, mib_inc
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport E_NOBUFS, NS_PER_SEC, idx_t, ns_t, uint8_t, uint16_t, uint32_t

cdef enum:
    TFO_CLIENT_ENABLE = 1
    TFO_CLIENT_NO_COOKIE = 4
    FO_NO_OPTION = 255          # reqext_t.fo_len: no Fast Open option in the SYN
    # tcb.fo_client_fail, as in tcp_info
    TFO_STATUS_UNSPEC = 0
    TFO_COOKIE_UNAVAILABLE = 1
    TFO_DATA_NOT_ACKED = 2
    TFO_SYN_RETRANSMITTED = 3


cdef inline bint tcp_fastopen_active_should_disable(engine_t* e, tcb_t* sk) noexcept nogil:
    cdef ns_t timeout = <ns_t>e.cfg.tcp_fastopen_blackhole_timeout_sec * NS_PER_SEC
    if timeout == 0 or e.tfo_blackhole_times == 0:
        return False
    if e.now < e.tfo_blackhole_at + (timeout << u32_min(e.tfo_blackhole_times - 1, 6)):
        return True
    sk_opt(e, sk).syn_fastopen_ch = 1
    return False


cdef inline void tcp_fastopen_active_detect_blackhole(engine_t* e, tcb_t* sk, bint expired) noexcept nogil:
    # At a retransmission timeout.
    cdef uint32_t timeouts = sk.retransmits
    if (sk.syn_fastopen or sk.syn_data or sk.syn_data_acked) and (timeouts == 2 or (timeouts < 2 and expired)):
        tcp_fastopen_active_disable(e)
        mib_inc(&e.stats, MIB_TcpExtTCPFastOpenActiveFail)


cdef inline bint tcp_fastopen_no_cookie(engine_t* e, tcb_t* sk, uint32_t flag) noexcept nogil:
    cdef const route_t* r = sk_rt(e, sk)
    return (e.cfg.tcp_fastopen & flag) != 0 or sk.fastopen_no_cookie != 0 or (r != NULL and r.fastopen_no_cookie != 0)


cdef inline bint tcp_fastopen_cookie_check(engine_t* e, tcb_t* sk, uint16_t* mss, reqext_t* fo) noexcept nogil:
    # May data ride in the SYN? Fills fo with the option to send; *mss becomes the peer's MSS of last time if known.
    tcp_fastopen_cache_get(e, sk, mss, fo.fo_cookie, &fo.fo_len, &fo.fo_exp)
    if tcp_fastopen_active_should_disable(e, sk):
        fo.fo_len = FO_NO_OPTION
        return False
    if tcp_fastopen_no_cookie(e, sk, TFO_CLIENT_NO_COOKIE):
        fo.fo_len = FO_NO_OPTION
        return True
    if fo.fo_len > 0:
        return True
    sk_opt(e, sk).fo_client_fail = TFO_COOKIE_UNAVAILABLE
    return False


cdef inline reqext_t* fastopen_req_alloc(engine_t* e, tcb_t* sk) noexcept nogil:
    # sk.fo_ext, NULL if there is no memory for it.
    cdef idx_t i
    if sk.opt.fo_ext == 0:
        i = pool_alloc(&e.ext)
        if i == 0:
            return NULL
        sk_opt(e, sk).fo_ext = i
    return ext_at(e, sk.opt.fo_ext)


cdef inline void tcp_free_fastopen_req(engine_t* e, tcb_t* sk) noexcept nogil:
    if sk.opt.fo_ext:
        pool_free(&e.ext, sk.opt.fo_ext)
        sk_opt(e, sk).fo_ext = 0


cdef inline bint tcp_fastopen_defer_connect(engine_t* e, tcb_t* sk, int* err) noexcept nogil:
    # TCP_FASTOPEN_CONNECT: with a cookie at hand the SYN waits for the first data (True). Without, the SYN asks for one.
    cdef reqext_t fo
    cdef reqext_t* req
    cdef uint16_t mss = 0
    if not sk.fastopen_connect or sk.opt.fo_ext:
        return False
    memset(&fo, 0, sizeof(reqext_t))
    if tcp_fastopen_cookie_check(e, sk, &mss, &fo):
        sk.defer_connect = 1
        return True
    req = fastopen_req_alloc(e, sk)
    if req == NULL:
        err[0] = -E_NOBUFS
        return False
    req.fo_len = fo.fo_len
    req.fo_exp = fo.fo_exp
    return False
