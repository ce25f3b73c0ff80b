# One transmission of one segment of a connected socket: options, header, what is noted about it (layer: above mss, ipout, rcvwin, cc, rate).
#
# RFC 9293 3.1 and 3.8.6, RFC 7323, RFC 2018, RFC 3168, RFC 7413 (option in the SYN). Facts C3, C4, C6, E8, J13, J14, J24, K7, L1.
# Linux: __tcp_transmit_skb and what it calls, tcp_send_ack, tcp_send_active_reset, tcp_xmit_probe_skb. A frame's payload is the
# send ring itself. Every segment of a socket passes through tcp_transmit_skb_: an ACK that was due is thereby sent, the delayed-ACK timer off.
# Returns: 0 sent; > 0 refused by the link (local drop, the caller tries again later); < 0 -errno.

from libc.string cimport memset

from ustack.core.cc cimport cc_cwnd_event, cc_needs_ecn, tcp_enter_cwr
from ustack.core.cwnd cimport CA_EVENT_TX_START
from ustack.core.txstamp cimport tcp_sent_tstamp
from ustack.core.ipopt cimport inet_current_timestamp
from ustack.core.ipout cimport INET_ECN_ECT_0, INET_ECN_MASK, ipout_frame
from ustack.core.fastopen_client cimport FO_NO_OPTION
from ustack.core.mss cimport (
    TCPOLEN_TSTAMP_ALIGNED, tcp_mss_clamp, tcp_sack_blocks,
)
from ustack.core.pattern cimport pattern_at
from ustack.core.rate cimport tcp_rate_skb_sent
from ustack.core.rcvwin cimport tcp_select_window
from ustack.core.records cimport TXF_CSUM_PARTIAL, reqext_t, srec_t, txframe_t
from ustack.core.ring cimport ring_ranges
from ustack.core.route cimport sk_advmss, sk_dont_fragment, sk_route, sk_rt
from ustack.core.sendq cimport sq_ts_to_tail, sr_payload_seq, tcp_packets_in_flight, tcp_urg_mode, tcp_wnd_end
from ustack.core.seqno cimport after, before, u32_min
from ustack.core.access cimport ext_at, jiffies_up, sk_fport, sk_los, sk_lport, sk_opt, sr_at
from ustack.core.sock cimport sk_clear_delack, sk_compack_id, sk_pace_id, tcp_reset_xmit_timer
from ustack.core.state cimport engine_t, route_t
from ustack.core.stats cimport (
    MIB_IpOutNoRoutes, MIB_TcpExtTCPAbortFailed, MIB_TcpExtTCPAckCompressed, MIB_TcpOutRsts, MIB_TcpOutSegs, mib_add, mib_inc,
)
from ustack.core.tcb cimport (
    ICSK_ACK_SCHED, MAX_TCP_OPTION_SPACE, SF_NO_RINGS, TCP_ECN_DEMAND_CWR, TCP_ECN_OK, TCP_ECN_QUEUE_CWR, tcb_t,
)
from ustack.core.types cimport (
    E_HOSTUNREACH, E_NOBUFS, NS_PER_MS, NS_PER_SEC, TCP_CLOSE, TH_ACK, TH_CWR, TH_ECE, TH_FIN, TH_PSH, TH_RST, TH_SYN,
    TH_URG, idx_t, int64_t, ns_t, sackblk_t, uint8_t, uint16_t, uint32_t, uint64_t, likely, unlikely,
)
from ustack.core.wheel cimport wheel_arm, wheel_armed, wheel_disarm
from ustack.core.wire cimport (
    IPPROTO_TCP, TCP_HLEN, put32, wire_opt_fastopen, wire_opt_fastopen_len, wire_opt_mss, wire_opt_sack, wire_opt_sackperm_nop,
    wire_opt_sackperm_ts, wire_opt_ts, wire_opt_wscale_nop, wire_put_opts, wire_put_tcp, wire_tcp_csum_partial,
)

cdef enum:
    TCP_ATO_MIN_NS = 40000000
    PACING_FREE_SEGS = 10           # the first segments of a connection are not paced


# A driver that is given a frame before its turn is over may write it then (and sets TXF_SENT), or leave it for later.
ctypedef void (*doorbell_t)(engine_t*, txframe_t*) noexcept nogil


# ---- clocks ----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_ts_of(engine_t* e, ns_t t) noexcept nogil:
    """The 1 kHz TSval clock (without the connection's offset) at time t."""
    return <uint32_t> (<uint64_t> (t + e.wall_offset) // NS_PER_MS)


cdef inline bint sk_paced(const tcb_t* sk) noexcept nogil:
    """Is the socket paced at all (facts J9)? Asked for by bbr or SO_MAX_PACING_RATE, and then for good."""
    return sk.pacing_needed != 0


cdef inline ns_t tcp_pacing_delay(engine_t* e, const tcb_t* sk) noexcept nogil:
    """What timers that count from a departure must add: packets sent now leave later."""
    return jiffies_up(e, sk.tcp_wstamp - e.now) if sk.tcp_wstamp > e.now else 0


cdef inline void tcp_reset_xmit_timer_paced(engine_t* e, tcb_t* sk, uint8_t what, ns_t when) noexcept nogil:
    tcp_reset_xmit_timer(e, sk, what, when + tcp_pacing_delay(e, sk))


# ---- what sending means for other parts of the socket --------------------------------------------------------------------------
cdef inline void tcp_dec_quickack_mode(tcb_t* sk) noexcept nogil:
    """Quick ACKs are used up by ACKs that acknowledge something; leaving the mode brings ato back to its minimum."""
    cdef uint8_t pkts = 1 if sk.ack_pending & ICSK_ACK_SCHED else 0
    if sk.ack_quick == 0:
        return
    if pkts >= sk.ack_quick:
        sk.ack_quick = 0
        sk.ato = TCP_ATO_MIN_NS
    else:
        sk.ack_quick -= pkts


cdef inline void tcp_event_ack_sent(engine_t* e, tcb_t* sk, uint32_t rcv_nxt) noexcept nogil:
    if unlikely(sk.compressed_ack):
        mib_add(&e.stats, MIB_TcpExtTCPAckCompressed, sk.compressed_ack)
        sk.compressed_ack = 0
        wheel_disarm(&e.wheel, sk_compack_id(sk))
    if rcv_nxt != sk.rcv_nxt:
        return
    tcp_dec_quickack_mode(sk)
    sk.ack_pending = 0
    sk_clear_delack(e, sk)


cdef inline void tcp_event_data_sent(engine_t* e, tcb_t* sk) noexcept nogil:
    """Data within ato of the last data received is a reply: pingpong (facts J23e)."""
    if tcp_packets_in_flight(sk) == 0:
        cc_cwnd_event(e, sk, CA_EVENT_TX_START)
    sk.lsndtime = e.now
    if e.now - sk.lrcvtime < sk.ato and sk.ack_pingpong < 255:
        sk.ack_pingpong += 1


# ---- options -------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_advertise_mss(engine_t* e, tcb_t* sk) noexcept nogil:
    """MSS option of our SYN: what the route says now, if that is less than at the connect."""
    cdef uint32_t metric = sk_advmss(e, sk)
    if metric < sk.advmss:
        sk.advmss = metric
    return sk.advmss


cdef inline uint32_t tcp_syn_options(engine_t* e, tcb_t* sk, ns_t stamp, uint8_t* p) noexcept nogil:
    """Options of a SYN, or of the SYN-ACK of a simultaneous open (facts C4). At most 40 bytes; returns how many."""
    cdef uint32_t n = wire_opt_mss(p, tcp_advertise_mss(e, sk))
    cdef uint32_t tsval = tcp_ts_of(e, stamp) + sk.ts_offset
    cdef reqext_t* fo
    if e.cfg.tcp_timestamps:
        if e.cfg.tcp_sack:
            n += wire_opt_sackperm_ts(p + n, tsval, sk.ts_recent)
        else:
            n += wire_opt_ts(p + n, tsval, sk.ts_recent)
    elif e.cfg.tcp_sack:
        n += wire_opt_sackperm_nop(p + n)
    if e.cfg.tcp_window_scaling:
        n += wire_opt_wscale_nop(p + n, sk.rcv_wscale)
    if sk.opt.fo_ext:
        fo = ext_at(e, sk.opt.fo_ext)
        if fo.fo_len != FO_NO_OPTION and n + wire_opt_fastopen_len(fo.fo_len, fo.fo_exp) <= MAX_TCP_OPTION_SPACE:
            n += wire_opt_fastopen(p + n, fo.fo_cookie, fo.fo_len, fo.fo_exp)
            sk.syn_fastopen = 1
            sk_opt(e, sk).syn_fastopen_exp = 1 if fo.fo_exp else 0
    return n


cdef inline uint32_t tcp_established_options(engine_t* e, tcb_t* sk, ns_t stamp, uint8_t* p) noexcept nogil:
    """Timestamps, then SACK with a D-SACK first (facts J24). A D-SACK is sent once."""
    cdef sackblk_t blocks[5]
    cdef uint32_t n = 0
    cdef uint32_t k
    cdef uint32_t i = 0
    cdef uint32_t j
    if sk.tstamp_ok:
        n = wire_opt_ts(p, tcp_ts_of(e, stamp) + sk.ts_offset, sk.ts_recent)
    k = tcp_sack_blocks(sk, n)
    if k == 0:
        return n
    if sk.rx_dsack:
        blocks[0] = sk.los.duplicate_sack
        i = 1
    for j in range(sk.num_sacks):
        blocks[i + j] = sk.los.selective_acks[j]
    sk.rx_dsack = 0
    return n + wire_opt_sack(p + n, blocks, k)


# ---- flags -----------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_ecn_send(engine_t* e, tcb_t* sk, const srec_t* r) noexcept nogil:
    """ECN of a segment without SYN (facts J13): new data is ECT(0) and carries a CWR that is due; everything else is Not-ECT, unless the
    congestion control needs ECN. The codepoint stays in sk.tos, as getsockopt shows. Returns flags to add."""
    cdef uint32_t flags = 0
    if likely(not sk.ecn_flags & TCP_ECN_OK):
        return 0
    if r.len and not before(r.seq, sk.snd_nxt):
        sk.tos = (sk.tos & ~<uint8_t> INET_ECN_MASK) | INET_ECN_ECT_0
        if sk.ecn_flags & TCP_ECN_QUEUE_CWR:
            sk.ecn_flags &= ~<uint8_t> TCP_ECN_QUEUE_CWR
            flags = TH_CWR
    elif not cc_needs_ecn(e, sk.cc):
        sk.tos &= ~<uint8_t> INET_ECN_MASK
    if sk.ecn_flags & TCP_ECN_DEMAND_CWR:
        flags |= TH_ECE
    return flags


cdef inline uint32_t tcp_urg_of(const tcb_t* sk, const srec_t* r) noexcept nogil:
    """Urgent pointer of the segment, 0 for none. A byte further away than the field reaches is announced as 0xffff."""
    if likely(not tcp_urg_mode(sk)) or not before(r.seq, sk.snd_up):
        return 0
    if before(sk.snd_up, r.seq + 0x10000):
        return sk.snd_up - r.seq
    if after(r.seq + 0xffff, sk.snd_nxt):
        return 0xffff
    return 0


# ---- the transmission --------------------------------------------------------------------------------------------------------
cdef inline uint8_t sk_out_ttl(engine_t* e, const tcb_t* sk) noexcept nogil:
    cdef const route_t* rt = sk_rt(e, <tcb_t*> sk)
    if sk.ttl:
        return sk.ttl
    if rt != NULL and unlikely(rt.hoplimit):
        return <uint8_t> rt.hoplimit
    return <uint8_t> e.cfg.ip_default_ttl


cdef inline int tcp_queue_xmit(engine_t* e, tcb_t* sk, const srec_t* r, uint32_t flags, uint32_t ack, uint32_t wnd, uint32_t urg,
                               const uint8_t* opts, uint32_t optlen) noexcept nogil:
    """The IP half (ip_queue_xmit): route, IP header, TCP header, ranges of the ring."""
    cdef txframe_t* f
    cdef uint8_t* p
    cdef uint32_t doff = TCP_HLEN + optlen
    cdef reqext_t* x = NULL
    if unlikely(sk_route(e, sk) != 0):
        mib_inc(&e.stats, MIB_IpOutNoRoutes)
        return -E_HOSTUNREACH
    if unlikely(e.tx_refuse):
        return 1
    if unlikely(sk.opt.ip_opt):
        x = ext_at(e, sk.opt.ip_opt)
        if x.ipopt_time:
            put32(&x.ipopt[x.ipopt_time], inet_current_timestamp(e))
    f = ipout_frame(e, sk.en.laddr, sk.en.faddr, doff + r.len, sk.inet_id, sk_dont_fragment(e, sk), sk_out_ttl(e, sk), IPPROTO_TCP,
                    sk.tos, &x.ipopt[0] if x != NULL else NULL, sk.ext_hdr_len)
    if unlikely(f == NULL):
        return -E_NOBUFS
    sk.inet_id += r.pcount
    p = f.hdr + f.hlen
    wire_put_tcp(p, sk_lport(sk), sk_fport(sk), r.seq, ack, flags, wnd, urg, doff)
    wire_put_opts(p + TCP_HLEN, opts, optlen)
    wire_tcp_csum_partial(p, sk.en.laddr, sk.en.faddr, doff + r.len)
    f.hlen += doff
    f.flags |= TXF_CSUM_PARTIAL
    if r.len:
        if unlikely(sk.sflags & SF_NO_RINGS):
            f.p0 = pattern_at(sr_payload_seq(r) - sk.iss - 1)
            f.l0 = r.len
        else:
            ring_ranges(&sk.snd, sr_payload_seq(r), r.len, &f.p0, &f.l0, &f.p1, &f.l1)
        if r.pcount > 1:
            f.gso_size = r.gso_size
        if unlikely(e.doorbell != NULL) and e.tx_n == 1:
            (<doorbell_t> e.doorbell)(e, f)
    return 0


cdef inline void tcp_update_after_send(engine_t* e, tcb_t* sk, srec_t* r, idx_t i, ns_t prior_wstamp) noexcept nogil:
    """The record now is the one sent last; a paced socket may send the next one when this one's time has passed."""
    cdef uint64_t cost
    cdef uint64_t credit
    if unlikely(sk_paced(sk)) and sk.pacing_rate != <uint64_t> -1 and sk.pacing_rate != 0 and sk.data_segs_out >= PACING_FREE_SEGS:
        cost = <uint64_t> r.len * <uint64_t> NS_PER_SEC // sk.pacing_rate
        credit = <uint64_t> (sk.tcp_wstamp - prior_wstamp)
        # A timer that came late is made good, by at most half the cost.
        cost -= cost >> 1 if cost >> 1 < credit else credit
        sk.tcp_wstamp += <ns_t> cost
    sq_ts_to_tail(e, sk, i)


cdef inline int tcp_transmit_skb_(engine_t* e, tcb_t* sk, srec_t* r, idx_t i, uint32_t rcv_nxt) noexcept nogil:
    """Send a record's segment. i is its index; 0 for a segment that stands in no queue (ACK, RST, probe)."""
    cdef uint8_t opts[MAX_TCP_OPTION_SPACE]
    cdef ns_t prior_wstamp = sk.tcp_wstamp
    cdef uint32_t flags = r.flags
    cdef uint32_t optlen
    cdef uint32_t urg
    cdef uint32_t wnd
    cdef int err
    if e.now > sk.tcp_wstamp:
        sk.tcp_wstamp = e.now
    r.tx_time = sk.tcp_wstamp
    urg = tcp_urg_of(sk, r)
    if unlikely(urg):
        flags |= TH_URG
    if unlikely(flags & TH_SYN):
        optlen = tcp_syn_options(e, sk, r.tx_time, opts)
        wnd = u32_min(sk.rcv_wnd, 65535)
    else:
        if r.pcount > 1:
            flags |= TH_PSH
        wnd = tcp_select_window(e, sk)
        flags |= tcp_ecn_send(e, sk, r)
        optlen = tcp_established_options(e, sk, r.tx_time, opts)
    if flags & TH_ACK:
        tcp_event_ack_sent(e, sk, rcv_nxt)
    if r.len:
        tcp_event_data_sent(e, sk)
        sk.data_segs_out += r.pcount
        sk.bytes_sent += r.len
    if after(r.end_seq, sk.snd_nxt) or r.seq == r.end_seq:
        mib_add(&e.stats, MIB_TcpOutSegs, r.pcount)
    sk.segs_out += r.pcount
    err = tcp_queue_xmit(e, sk, r, flags, rcv_nxt, wnd, urg, opts, optlen)
    if unlikely(err > 0):
        tcp_enter_cwr(e, sk)
    if err == 0 and i:
        if unlikely(r.tstamp_flags):
            tcp_sent_tstamp(e, sk, r)
        if unlikely(r.zc):
            ext_at(e, r.zc).zc_copied = 1
        tcp_update_after_send(e, sk, r, i, prior_wstamp)
        tcp_rate_skb_sent(e, sk, r)
    return err


cdef inline int tcp_transmit_skb(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Send the segment of a queued record, for the first time or again."""
    return tcp_transmit_skb_(e, sk, sr_at(e, i), i, sk.rcv_nxt)


# ---- segments outside the queue ------------------------------------------------------------------------------------------------
cdef inline uint32_t tcp_acceptable_seq(const tcb_t* sk) noexcept nogil:
    """SND.NXT, or the right edge if the peer took back window beyond what scaling rounds off."""
    cdef uint32_t edge = tcp_wnd_end(sk)
    if not before(edge, sk.snd_nxt) or (sk.wscale_ok and sk.snd_nxt - edge < <uint32_t> 1 << sk.rcv_wscale):
        return sk.snd_nxt
    return edge


cdef inline int tcp_send_control(engine_t* e, tcb_t* sk, uint32_t seq, uint32_t flags, uint32_t rcv_nxt) noexcept nogil:
    """A segment without data that is not queued."""
    cdef srec_t r
    memset(&r, 0, sizeof(srec_t))
    r.seq = seq
    r.end_seq = seq
    r.flags = <uint16_t> flags
    r.pcount = 1
    return tcp_transmit_skb_(e, sk, &r, 0, rcv_nxt)


cdef inline void __tcp_send_ack(engine_t* e, tcb_t* sk, uint32_t rcv_nxt) noexcept nogil:
    """An ACK at once. rcv_nxt differs from sk.rcv_nxt only where a congestion control reflects ECN marks of earlier data."""
    if sk.state == TCP_CLOSE:
        return
    tcp_send_control(e, sk, tcp_acceptable_seq(sk), TH_ACK, rcv_nxt)


cdef inline void tcp_send_ack(engine_t* e, tcb_t* sk) noexcept nogil:
    __tcp_send_ack(e, sk, sk.rcv_nxt)


cdef inline void tcp_send_active_reset(engine_t* e, tcb_t* sk) noexcept nogil:
    """RST|ACK out of the connection's own state (facts K7); changes no state."""
    mib_inc(&e.stats, MIB_TcpOutRsts)
    if tcp_send_control(e, sk, tcp_acceptable_seq(sk), TH_ACK | TH_RST, sk.rcv_nxt) != 0:
        mib_inc(&e.stats, MIB_TcpExtTCPAbortFailed)


cdef inline int tcp_xmit_probe_skb(engine_t* e, tcb_t* sk, bint urgent, int mib) noexcept nogil:
    """A pure ACK with an old sequence number, which the peer must answer (facts J11, J12)."""
    mib_inc(&e.stats, mib)
    return tcp_send_control(e, sk, sk.snd_una if urgent else sk.snd_una - 1, TH_ACK, sk.rcv_nxt)


# ---- pacing --------------------------------------------------------------------------------------------------------------------------
cdef inline bint tcp_pacing_check(engine_t* e, tcb_t* sk) noexcept nogil:
    """Must the next transmission wait for its time? Then the pacing timer is on."""
    if not sk.pacing_needed or sk.tcp_wstamp <= e.now:
        return False
    if not wheel_armed(&e.wheel, sk_pace_id(sk)):
        sk_los(e, sk)
        wheel_arm(&e.wheel, sk_pace_id(sk), sk.tcp_wstamp)
    return True
