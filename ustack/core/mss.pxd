# How large a packet may be: MSS and MTU, size of TCP options, size of a record, packets per transmission (layer: above route, sendq).
#
# RFC 9293 3.7, RFC 6691, RFC 8899 and RFC 4821 (search bounds only; the probe itself is output.pxd's). Facts C17, N24, J29.
# Linux: tcp_mtu_to_mss, tcp_sync_mss, tcp_current_mss, tcp_established_options (sizes), tcp_xmit_size_goal, tcp_tso_autosize.
# sk.mss_cache counts on sk.tcp_header_len (the options of every segment); tcp_current_mss corrects it for SACK blocks.

from ustack.core.route cimport RT_LOCAL, route_mtu
from ustack.core.seqno cimport u32_max, u32_min
from ustack.core.access cimport sk_los
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport MAX_TCP_OPTION_SPACE, tcb_t
from ustack.core.types cimport uint8_t, uint16_t, uint32_t, uint64_t, likely, unlikely
from ustack.core.wire cimport IP_HLEN, TCP_HLEN

cdef enum:
    TCPOLEN_TSTAMP_ALIGNED = 12
    TCPOLEN_SACK_BASE_ALIGNED = 4
    TCPOLEN_SACK_PERBLOCK = 8
    TCP_MSS_DEFAULT = 536
    SK_GSO_MAX_SIZE = 65215         # 65536 less room for headers
    SK_PACING_SHIFT = 10
    TCP_MIN_GSO_SIZE = 8


# ---- MTU and MSS ---------------------------------------------------------------------------------------------------------------
cdef inline int int_max_(int x, int lo) noexcept nogil:
    return x if x > lo else lo


cdef inline uint32_t tcp_mss_clamp(const tcb_t* sk, uint32_t mss) noexcept nogil:
    """Never above what TCP_MAXSEG allows."""
    return sk.opt.user_mss if sk.opt.user_mss and sk.opt.user_mss < mss else mss


cdef inline int mtu_to_mss_plain(engine_t* e, const tcb_t* sk, int pmtu) noexcept nogil:
    """MSS for segments without options, not below tcp_min_snd_mss (__tcp_mtu_to_mss)."""
    cdef int mss = pmtu - IP_HLEN - TCP_HLEN
    if mss > sk.mss_clamp:
        mss = sk.mss_clamp
    mss -= sk.ext_hdr_len
    return int_max_(mss, <int> e.cfg.tcp_min_snd_mss)


cdef inline int tcp_mtu_to_mss(engine_t* e, const tcb_t* sk, int pmtu) noexcept nogil:
    return mtu_to_mss_plain(e, sk, pmtu) - (<int> sk.tcp_header_len - TCP_HLEN)


cdef inline int tcp_mss_to_mtu(const tcb_t* sk, int mss) noexcept nogil:
    return mss + sk.tcp_header_len + sk.ext_hdr_len + IP_HLEN


cdef inline uint32_t tcp_bound_to_half_wnd(const tcb_t* sk, uint32_t size) noexcept nogil:
    """No packet of more than half the largest window the peer ever offered, unless that is tiny."""
    cdef uint32_t cutoff = sk.max_window
    cdef int low = 68 - <int> sk.tcp_header_len
    if cutoff > TCP_MSS_DEFAULT:
        cutoff >>= 1
    if cutoff and size > cutoff:
        return <uint32_t> int_max_(<int> cutoff, low)
    return size


cdef inline void tcp_mtup_init(engine_t* e, tcb_t* sk) noexcept nogil:
    sk.mtup_enabled = e.cfg.tcp_mtu_probing > 1
    sk.mtup_search_high = <uint16_t> (sk.mss_clamp + TCP_HLEN + IP_HLEN)
    sk.mtup_search_low = <uint16_t> tcp_mss_to_mtu(sk, <int> e.cfg.tcp_base_mss)
    sk.mtup_probe_size = 0
    if sk.mtup_enabled:
        sk_los(e, sk).mtup_probe_time = e.now


cdef inline uint32_t tcp_sync_mss(engine_t* e, tcb_t* sk, uint32_t pmtu) noexcept nogil:
    """The path's MTU is pmtu: recompute the cached MSS."""
    cdef uint32_t mss
    cdef uint32_t probed
    if unlikely(sk.mtup_search_high > pmtu):
        sk.mtup_search_high = <uint16_t> pmtu
    mss = tcp_bound_to_half_wnd(sk, <uint32_t> tcp_mtu_to_mss(e, sk, <int> pmtu))
    sk.pmtu = <uint16_t> pmtu
    if unlikely(sk.mtup_enabled):
        probed = <uint32_t> tcp_mtu_to_mss(e, sk, sk.mtup_search_low)
        mss = u32_min(mss, probed)
    sk.mss_cache = mss
    return mss


# ---- options of an ordinary segment ----------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_sack_blocks(const tcb_t* sk, uint32_t used) noexcept nogil:
    """How many SACK blocks go into a segment whose other options take `used` bytes."""
    cdef uint32_t n = <uint32_t> sk.num_sacks + (1 if sk.rx_dsack else 0)
    cdef uint32_t room = MAX_TCP_OPTION_SPACE - used
    if likely(n == 0) or room < TCPOLEN_SACK_BASE_ALIGNED + TCPOLEN_SACK_PERBLOCK:
        return 0
    return u32_min(n, (room - TCPOLEN_SACK_BASE_ALIGNED) / TCPOLEN_SACK_PERBLOCK)


cdef inline uint32_t tcp_established_optlen(const tcb_t* sk) noexcept nogil:
    cdef uint32_t size = TCPOLEN_TSTAMP_ALIGNED if sk.tstamp_ok else 0
    cdef uint32_t n = tcp_sack_blocks(sk, size)
    if n:
        size += TCPOLEN_SACK_BASE_ALIGNED + n * TCPOLEN_SACK_PERBLOCK
    return size


cdef inline uint32_t tcp_current_mss(engine_t* e, tcb_t* sk) noexcept nogil:
    """Payload of a full segment sent now: the MTU may have changed, and SACK blocks take room. A route that is out of date is not looked
    up again here, that happens with the next transmission; the link's MTU is known at once."""
    cdef uint32_t mss = sk.mss_cache
    cdef uint32_t mtu = sk.pmtu
    cdef uint32_t header
    if sk.rt != 0:
        if sk.rt_gen == e.rt_gen:
            mtu = route_mtu(e, sk)
        elif sk.rt != RT_LOCAL:
            mtu = u32_min(mtu, e.mtu)
        if unlikely(mtu != sk.pmtu):
            mss = tcp_sync_mss(e, sk, mtu)
    header = tcp_established_optlen(sk) + TCP_HLEN
    if header != sk.tcp_header_len:
        mss -= header - sk.tcp_header_len
    return mss


# ---- sizes of records and transmissions --------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_xmit_size_goal(tcb_t* sk, uint32_t mss, bint large_allowed) noexcept nogil:
    """How far send() fills a record (facts J29)."""
    cdef uint32_t goal
    cdef uint32_t bound
    if not large_allowed:
        return mss
    bound = tcp_bound_to_half_wnd(sk, SK_GSO_MAX_SIZE)
    goal = sk.xmit_size_goal_segs * mss
    if bound < goal or bound >= goal + mss:
        sk.xmit_size_goal_segs = <uint16_t> u32_min(bound / mss, 65535)
        goal = sk.xmit_size_goal_segs * mss
    return u32_max(goal, mss)


cdef inline uint32_t tcp_tso_segs(engine_t* e, const tcb_t* sk, uint32_t mss, uint32_t min_segs) noexcept nogil:
    """Most segments in one transmission: about a millisecond's worth at the pacing rate, more on short paths, at least min_segs."""
    cdef uint64_t bytes = sk.pacing_rate >> SK_PACING_SHIFT
    cdef uint32_t shift = sk.rtt_min.s[0].v >> e.cfg.tcp_tso_rtt_log
    if shift < 32:
        bytes += <uint64_t> SK_GSO_MAX_SIZE >> shift
    if bytes > SK_GSO_MAX_SIZE:
        bytes = SK_GSO_MAX_SIZE
    # Two segments of a huge MSS (loopback) would not fit into one IP packet.
    if min_segs > 1 and <uint64_t> min_segs * mss > SK_GSO_MAX_SIZE:
        min_segs = 1
    return u32_min(u32_max(<uint32_t> (bytes / mss), min_segs), 65535)
