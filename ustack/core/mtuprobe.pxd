# Path MTU probing: a packet larger than the present MSS finds out whether the path takes it (layer: above xmit, mss; below writexmit).
#
# RFC 4821. Linux: tcp_mtu_probe, tcp_mtu_check_reprobe, tcp_mtu_probing (black holes); success and failure are judged by ack and recovery
# (sk.mtup_probe_seq_start, _end). The search runs between mtup_search_low and mtup_search_high, both MTUs.

from ustack.core.mss cimport tcp_current_mss, tcp_mss_to_mtu, tcp_mtu_to_mss, tcp_sync_mss
from ustack.core.records cimport srec_t
from ustack.core.sendq cimport (
    sq_split, sq_unlink_free, sq_wq_empty, sr_can_merge, tcp_packets_in_flight, tcp_set_tso_segs, tcp_wnd_end,
)
from ustack.core.seqno cimport after, i32_max, i32_min, u32_min
from ustack.core.access cimport sk_los, sr_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport TCP_CA_OPEN, tcb_t
from ustack.core.types cimport NS_PER_SEC, TH_FIN, TH_PSH, idx_t, ns_t, uint16_t, uint32_t, likely
from ustack.core.wire cimport IP_HLEN, TCP_HLEN
from ustack.core.xmit cimport tcp_pacing_check, tcp_transmit_skb


cdef inline void tcp_mtu_check_reprobe(engine_t* e, tcb_t* sk) noexcept nogil:
    """The search is over; after tcp_probe_interval it starts again from what the path was known to take."""
    cdef uint32_t mss
    if e.now - sk.los.mtup_probe_time < <ns_t> e.cfg.tcp_probe_interval * NS_PER_SEC:
        return
    mss = tcp_current_mss(e, sk)
    sk.mtup_probe_size = 0
    sk.mtup_search_high = <uint16_t> (sk.mss_clamp + TCP_HLEN + IP_HLEN)
    sk.mtup_search_low = <uint16_t> tcp_mss_to_mtu(sk, <int> mss)
    sk_los(e, sk).mtup_probe_time = e.now


cdef inline void tcp_mtu_probing(engine_t* e, tcb_t* sk) noexcept nogil:
    """Retransmissions go unanswered: a black hole may be eating large packets. Turn probing on, or halve what is thought safe."""
    cdef int mss
    if not e.cfg.tcp_mtu_probing:
        return
    if not sk.mtup_enabled:
        sk.mtup_enabled = 1
        sk_los(e, sk).mtup_probe_time = e.now
    else:
        mss = tcp_mtu_to_mss(e, sk, sk.mtup_search_low) >> 1
        mss = i32_min(<int> e.cfg.tcp_base_mss, mss)
        mss = i32_max(mss, <int> e.cfg.tcp_mtu_probe_floor)
        mss = i32_max(mss, <int> e.cfg.tcp_min_snd_mss)
        sk.mtup_search_low = <uint16_t> tcp_mss_to_mtu(sk, mss)
    tcp_sync_mss(e, sk, sk.pmtu)


cdef inline bint mtu_probe_coalesce(engine_t* e, tcb_t* sk, uint32_t size) noexcept nogil:
    """Do the first size bytes of the write queue lie in records that may be merged?"""
    cdef idx_t i = sk.send_head
    cdef srec_t* r
    while i:
        r = sr_at(e, i)
        if size <= r.len:
            return True
        if r.next == 0 or r.tstamp_flags or not sr_can_merge(r, sr_at(e, r.next)):
            return False
        size -= r.len
        i = r.next
    return True


cdef inline bint mtu_probe_build(engine_t* e, tcb_t* sk, uint32_t size, uint32_t mss) noexcept nogil:
    """Make the head of the write queue exactly size bytes long, one packet."""
    cdef idx_t i = sk.send_head
    cdef srec_t* r = sr_at(e, i)
    cdef srec_t* b
    cdef idx_t j
    cdef uint32_t n
    while r.len < size:
        j = r.next
        b = sr_at(e, j)
        n = u32_min(b.len, size - r.len)
        r.len += n
        r.end_seq += n
        if n == b.len:
            r.flags |= b.flags
            r.end_seq = b.end_seq
            r.eor = b.eor
            b.len = 0
            sq_unlink_free(e, sk, j)
        else:
            r.flags |= b.flags & ~<uint32_t> (TH_FIN | TH_PSH)
            b.seq += n
            b.len -= n
            tcp_set_tso_segs(b, mss)
    if r.len > size and sq_split(e, sk, i, size, mss) == 0:
        return False
    tcp_set_tso_segs(r, size)
    return True


cdef inline int tcp_mtu_probe(engine_t* e, tcb_t* sk) noexcept nogil:
    """-1: no probe, send as usual; 0: wait for window, then probe; 1: the head of the write queue has been sent as a probe, and the
    caller moves it to the retransmit queue."""
    cdef uint32_t mss
    cdef int size
    cdef uint32_t needed
    cdef int interval
    if (likely(not sk.mtup_enabled) or sk.mtup_probe_size or sk.ca_state != TCP_CA_OPEN or sk.snd_cwnd < 11 or sk.num_sacks
            or sk.rx_dsack):
        return -1
    mss = tcp_current_mss(e, sk)
    size = tcp_mtu_to_mss(e, sk, (sk.mtup_search_high + sk.mtup_search_low) >> 1)
    needed = <uint32_t> size + (sk.reordering + 1) * sk.mss_cache
    interval = <int> sk.mtup_search_high - <int> sk.mtup_search_low
    if size > tcp_mtu_to_mss(e, sk, sk.mtup_search_high) or interval < e.cfg.tcp_probe_threshold:
        tcp_mtu_check_reprobe(e, sk)
        return -1
    if sk.write_seq - sk.snd_nxt < needed or sk.snd_wnd < needed:
        return -1
    if after(sk.snd_nxt + needed, tcp_wnd_end(sk)):
        return 0
    if tcp_packets_in_flight(sk) + 2 > sk.snd_cwnd:
        return 0 if tcp_packets_in_flight(sk) else -1
    if not mtu_probe_coalesce(e, sk, <uint32_t> size) or tcp_pacing_check(e, sk):
        return -1
    if not mtu_probe_build(e, sk, <uint32_t> size, mss):
        return -1
    if tcp_transmit_skb(e, sk, sk.send_head) != 0:
        return -1
    sk.snd_cwnd -= 1                    # the probe takes the place of two packets
    return 1
