# What earlier connections taught about a peer: the tcp_metrics cache (layer of route).
#
# Linux counterpart: tcp_metrics.c. One entry per (our address, peer address): RTT and its deviation (in the fixed point of
# rtt_t), ssthresh, cwnd, reordering, and the Fast Open cookie of the peer as a server. Seeded from the route's metrics when made
# and again after an hour. Read when a connection is set up, written when it ends in order; a non-zero RTT makes the peer "proven"
# (facts B11). 0 = not set.

from libc.string cimport memcpy, memset

from ustack.core.pool cimport pool_alloc, pool_at, pool_free
from ustack.core.route cimport route_find_, rt_entry, sk_route, sk_rto_min
from ustack.core.seqno cimport i64_max, u32_max
from ustack.core.state cimport METRICS_HASH, engine_t, metrics_t, route_t
from ustack.core.tcb cimport TCP_CA_OPEN, TCP_INFINITE_SSTHRESH, tcb_t
from ustack.core.types cimport NS_PER_SEC, int32_t, idx_t, ns_t, uint8_t, uint16_t, uint32_t

cdef enum:
    TCPM_RTT = 1                # bits of metrics_t.lock and route_t.metric_lock
    TCPM_RTTVAR = 2
    TCPM_SSTHRESH = 4
    TCPM_CWND = 8
    TCPM_REORDERING = 16
    TCPM_DEPTH = 5              # entries of one chain before the oldest is taken over
    TCP_TIMEOUT_FALLBACK_US = 3000000

cdef extern from *:
    """
    #define USTACK_METRICS_TIMEOUT (3600LL * 1000000000LL)
    """
    const ns_t METRICS_TIMEOUT "USTACK_METRICS_TIMEOUT"


cdef inline uint32_t metrics_slot_(uint32_t src, uint32_t dst) noexcept nogil:
    return ((src ^ dst) * <uint32_t>0x9e3779b1ULL) >> 24


cdef inline void metrics_suck_(engine_t* e, metrics_t* m) noexcept nogil:
    # Take over the metrics of the route, if there is one.
    cdef uint16_t rt
    cdef const route_t* r
    m.stamp = e.now
    if route_find_(e, m.dst, &rt) != 0:
        return
    r = rt_entry(e, rt)
    if r == NULL:
        return
    m.lock = r.metric_lock
    m.rtt_us = r.rtt_ms * 1000
    m.rttvar_us = r.rttvar_ms * 1000
    m.ssthresh = r.ssthresh
    m.cwnd = r.cwnd
    m.reordering = r.reordering


cdef inline metrics_t* metrics_find(engine_t* e, uint32_t src, uint32_t dst) noexcept nogil:
    cdef idx_t i = e.metrics_hash[metrics_slot_(src, dst)]
    cdef metrics_t* m
    while i != 0:
        m = <metrics_t*>pool_at(&e.metrics, i)
        if m.src == src and m.dst == dst:
            if e.now - m.stamp > METRICS_TIMEOUT:
                metrics_suck_(e, m)
            return m
        i = m.next
    return NULL


cdef inline metrics_t* metrics_make(engine_t* e, uint32_t src, uint32_t dst) noexcept nogil:
    # The entry, made if need be. A crowded chain, or an exhausted pool, gives its oldest entry away.
    cdef idx_t* link = &e.metrics_hash[metrics_slot_(src, dst)]
    cdef metrics_t* m = metrics_find(e, src, dst)
    cdef metrics_t* oldest = NULL
    cdef uint32_t depth = 0
    cdef idx_t next
    cdef idx_t i = link[0]
    if m != NULL:
        return m
    while i != 0:
        m = <metrics_t*>pool_at(&e.metrics, i)
        if oldest == NULL or m.stamp < oldest.stamp:
            oldest = m
        depth += 1
        i = m.next
    i = pool_alloc(&e.metrics) if depth <= TCPM_DEPTH else 0
    if i != 0:
        m = <metrics_t*>pool_at(&e.metrics, i)
        m.next = link[0]
        link[0] = i
    elif oldest != NULL:
        m = oldest
        next = m.next
        memset(m, 0, sizeof(metrics_t))
        m.next = next
    else:
        return NULL
    m.src = src
    m.dst = dst
    metrics_suck_(e, m)
    return m


cdef inline void metrics_flush(engine_t* e) noexcept nogil:
    # `ip tcp_metrics flush`
    cdef int h
    cdef idx_t i
    cdef idx_t next
    for h in range(METRICS_HASH):
        i = e.metrics_hash[h]
        while i != 0:
            next = (<metrics_t*>pool_at(&e.metrics, i)).next
            pool_free(&e.metrics, i)
            i = next
        e.metrics_hash[h] = 0


cdef inline bint tcp_peer_is_proven(engine_t* e, uint32_t saddr, uint32_t daddr) noexcept nogil:
    cdef metrics_t* m = metrics_find(e, saddr, daddr)
    return m != NULL and m.rtt_us != 0


cdef inline void tcp_init_metrics(engine_t* e, tcb_t* sk) noexcept nogil:
    # At the end of the handshake. Seeds the first RTO only, not the estimator; without any sample the RTO is 3 s (facts D13).
    cdef metrics_t* m = NULL
    cdef uint32_t crtt = 0
    cdef ns_t t
    sk.snd_ssthresh = TCP_INFINITE_SSTHRESH
    if sk_route(e, sk) == 0:
        m = metrics_find(e, sk.en.laddr, sk.en.faddr)
    if m != NULL:
        if m.lock & TCPM_CWND:
            sk.snd_cwnd_clamp = m.cwnd
        if not e.cfg.tcp_no_ssthresh_metrics_save and m.ssthresh != 0:
            sk.snd_ssthresh = m.ssthresh
            if sk.snd_ssthresh > sk.snd_cwnd_clamp:
                sk.snd_ssthresh = sk.snd_cwnd_clamp
        if m.reordering != 0:
            sk.reordering = m.reordering
        crtt = m.rtt_us
    if crtt > sk.rtt.srtt_us:
        t = <ns_t>crtt * 1000 // (8 * e.tick)       # in ticks, rounded down
        t *= e.tick
        sk.rto = t + i64_max(2 * t, sk_rto_min(e, sk))
    elif sk.rtt.srtt_us == 0:
        sk.rtt.rttvar_us = TCP_TIMEOUT_FALLBACK_US
        sk.rtt.mdev_max_us = TCP_TIMEOUT_FALLBACK_US
        sk.rtt.mdev_us = TCP_TIMEOUT_FALLBACK_US
        sk.rto = 3 * NS_PER_SEC


cdef inline void metrics_cwnd_(engine_t* e, tcb_t* sk, metrics_t* m) noexcept nogil:
    # ssthresh, cwnd and reordering, by how far the connection had come.
    cdef bint save_ssthresh = not e.cfg.tcp_no_ssthresh_metrics_save and not m.lock & TCPM_SSTHRESH
    cdef bint save_cwnd = not m.lock & TCPM_CWND
    if sk.snd_ssthresh >= TCP_INFINITE_SSTHRESH:
        if save_ssthresh and m.ssthresh != 0 and sk.snd_cwnd >> 1 > m.ssthresh:
            m.ssthresh = sk.snd_cwnd >> 1
        if save_cwnd and sk.snd_cwnd > m.cwnd:
            m.cwnd = sk.snd_cwnd
    elif sk.snd_cwnd >= sk.snd_ssthresh and sk.ca_state == TCP_CA_OPEN:
        if save_ssthresh:
            m.ssthresh = u32_max(sk.snd_cwnd >> 1, sk.snd_ssthresh)
        if save_cwnd:
            m.cwnd = (m.cwnd + sk.snd_cwnd) >> 1
    else:
        if save_cwnd:
            m.cwnd = (m.cwnd + sk.snd_ssthresh) >> 1
        if save_ssthresh and m.ssthresh != 0 and sk.snd_ssthresh > m.ssthresh:
            m.ssthresh = sk.snd_ssthresh
        if not m.lock & TCPM_REORDERING and m.reordering < sk.reordering and \
                sk.reordering != <uint32_t>e.cfg.tcp_reordering:
            m.reordering = sk.reordering


cdef inline void tcp_update_metrics(engine_t* e, tcb_t* sk) noexcept nogil:
    # At the orderly end of a connection.
    cdef metrics_t* m
    cdef int32_t diff
    cdef uint32_t dev
    if e.cfg.tcp_no_metrics_save or sk_route(e, sk) != 0:
        return
    if sk.backoff or sk.rtt.srtt_us == 0:
        m = metrics_find(e, sk.en.laddr, sk.en.faddr)
        if m != NULL and not m.lock & TCPM_RTT:
            m.rtt_us = 0
        return
    m = metrics_make(e, sk.en.laddr, sk.en.faddr)
    if m == NULL:
        return
    diff = <int32_t>(m.rtt_us - sk.rtt.srtt_us)
    if not m.lock & TCPM_RTT:
        if diff <= 0:
            m.rtt_us = sk.rtt.srtt_us
        else:
            m.rtt_us -= <uint32_t>(diff >> 3)
    if not m.lock & TCPM_RTTVAR:
        dev = u32_max(<uint32_t>((diff if diff >= 0 else -diff) >> 1), sk.rtt.mdev_us)
        if dev >= m.rttvar_us:
            m.rttvar_us = dev
        else:
            m.rttvar_us -= (m.rttvar_us - dev) >> 2
    metrics_cwnd_(e, sk, m)
    m.stamp = e.now


# ---- Fast Open cookies of servers --------------------------------------------------------------------------------------------
cdef inline void tcp_fastopen_cache_get(engine_t* e, tcb_t* sk, uint16_t* mss, uint8_t* cookie, uint8_t* fo_len,
                                        uint8_t* fo_exp) noexcept nogil:
    # cookie has room for 16 bytes; *mss stays as it is if none is known.
    cdef metrics_t* m = metrics_find(e, sk.en.laddr, sk.en.faddr)
    fo_len[0] = 0
    fo_exp[0] = 0
    if m == NULL:
        return
    if m.fo_mss != 0:
        mss[0] = m.fo_mss
    memcpy(cookie, m.fo_cookie, 16)
    fo_len[0] = m.fo_len
    fo_exp[0] = m.fo_exp
    if m.fo_len == 0 and m.fo_try_exp == 1:
        fo_exp[0] = 1


cdef inline void tcp_fastopen_cache_set(engine_t* e, tcb_t* sk, uint16_t mss, const uint8_t* cookie, uint8_t fo_len, uint8_t fo_exp,
                                        bint syn_lost, uint8_t try_exp) noexcept nogil:
    cdef metrics_t* m
    if sk_route(e, sk) != 0:
        return
    m = metrics_make(e, sk.en.laddr, sk.en.faddr)
    if m == NULL:
        return
    if mss != 0:
        m.fo_mss = mss
    if fo_len != 0:
        memset(m.fo_cookie, 0, 16)
        memcpy(m.fo_cookie, cookie, fo_len)
        m.fo_len = fo_len
        m.fo_exp = fo_exp
    elif try_exp > m.fo_try_exp and m.fo_len == 0 and not m.fo_exp:
        m.fo_try_exp = try_exp
    if syn_lost:
        m.fo_syn_loss += 1
        m.fo_last_syn_loss = e.now
    else:
        m.fo_syn_loss = 0
