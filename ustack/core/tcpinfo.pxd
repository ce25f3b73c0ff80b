# struct tcp_info of Linux 6.18, 280 bytes, and SO_MEMINFO (layer: top of the core).
#
# The byte layout is the kernel's (little endian on every machine ustack runs on). Facts L4, L5. Read-only.

from libc.string cimport memset

from ustack.core.types cimport (
    NS_PER_MS, NS_PER_US, TCP_LISTEN, int32_t, int64_t, ns_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.cwnd cimport jiffies_at, tcp_jiffies32
from ustack.core.records cimport listener_t
from ustack.core.rtt cimport minmax_get
from ustack.core.seqno cimport i64_min
from ustack.core.access cimport lst_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    CHRONO_BUSY, CHRONO_RWND_LIMITED, CHRONO_SNDBUF_LIMITED, CHRONO_UNSPEC, TCP_ECN_OK, TCP_ECN_SEEN, tcb_t,
)

cdef enum:
    TCP_INFO_SIZE = 280


cdef inline void put_u32(uint8_t* p, uint32_t off, uint64_t v) noexcept nogil:
    (<uint32_t*> (p + off))[0] = <uint32_t> v


cdef inline void put_u64(uint8_t* p, uint32_t off, uint64_t v) noexcept nogil:
    (<uint64_t*> (p + off))[0] = v


cdef inline uint32_t ms_since(engine_t* e, ns_t t) noexcept nogil:
    """Whole milliseconds since t, in the kernel's ticks."""
    return <uint32_t> ((tcp_jiffies32(e) - jiffies_at(e, t)) * <uint64_t> e.tick // 1000000)


cdef inline uint64_t chrono_us(engine_t* e, tcb_t* sk, int chrono) noexcept nogil:
    """Microseconds in whole ticks: the kernel counts these times in jiffies."""
    cdef ns_t total = sk.chrono_stat[chrono - 1]
    if sk.chrono_type == chrono:
        total += <uint32_t> (e.now // NS_PER_MS) - sk.chrono_start
    return <uint64_t> (total * NS_PER_MS // e.tick * e.tick // NS_PER_US)


cdef inline uint64_t delivery_rate(tcb_t* sk) noexcept nogil:
    """bytes/s of the last sample, 0 if there is none."""
    if sk.rate_interval_us == 0:
        return 0
    return <uint64_t> sk.rate_delivered * sk.mss_cache * 1000000 // sk.rate_interval_us


cdef inline void tcp_get_info(engine_t* e, tcb_t* sk, uint8_t* p) noexcept nogil:
    """Fill TCP_INFO_SIZE bytes. On a listener: unacked = accept queue, sacked = its limit (facts L4)."""
    cdef listener_t* l
    cdef uint8_t options = 0
    cdef uint64_t busy
    cdef uint64_t rwnd
    cdef uint64_t sndbuf
    cdef uint32_t rto_min
    memset(p, 0, TCP_INFO_SIZE)
    p[0] = sk.state
    put_u64(p, 104, sk.pacing_rate)
    put_u64(p, 112, sk.opt.max_pacing_rate)
    put_u32(p, 88, sk.reordering)
    put_u32(p, 80, sk.snd_cwnd)
    if sk.state == TCP_LISTEN:
        l = lst_at(e, sk.listener)
        put_u32(p, 24, l.ackq)
        put_u32(p, 28, l.maxq)
        return
    p[1] = sk.ca_state
    p[2] = sk.retransmits
    p[3] = sk.probes_out
    p[4] = sk.backoff
    if sk.tstamp_ok:
        options |= 1
    if sk.sack_ok:
        options |= 2
    if sk.wscale_ok:
        options |= 4
        p[6] = sk.snd_wscale | (sk.rcv_wscale << 4)
    if sk.ecn_flags & TCP_ECN_OK:
        options |= 8
    if sk.ecn_flags & TCP_ECN_SEEN:
        options |= 16
    if sk.syn_data_acked:
        options |= 32
    if sk.opt.is_tfo_child:
        options |= 128
    p[5] = options
    p[7] = sk.rate_app_limited | (sk.opt.fo_client_fail << 1)
    put_u32(p, 8, sk.rto // NS_PER_US)
    put_u32(p, 12, i64_min(sk.ato // NS_PER_US, sk.delack_max_us))
    put_u32(p, 16, sk.mss_cache)
    put_u32(p, 20, sk.rcv_mss)
    put_u32(p, 24, sk.packets_out)
    put_u32(p, 28, sk.sacked_out)
    put_u32(p, 32, sk.lost_out)
    put_u32(p, 36, sk.retrans_out)
    put_u32(p, 44, ms_since(e, sk.lsndtime))
    put_u32(p, 52, ms_since(e, sk.lrcvtime))
    put_u32(p, 56, ms_since(e, sk.rcv_tstamp))
    put_u32(p, 60, sk.pmtu)
    put_u32(p, 64, sk.rcv_ssthresh)
    put_u32(p, 68, sk.rtt.srtt_us >> 3)
    put_u32(p, 72, sk.rtt.mdev_us >> 2)
    put_u32(p, 76, sk.snd_ssthresh)
    put_u32(p, 84, sk.advmss)
    put_u32(p, 92, sk.rcvrtt_us >> 3)
    put_u32(p, 96, sk.rcvq_space)
    put_u32(p, 100, sk.los.total_retrans)
    put_u64(p, 120, sk.bytes_acked)
    put_u64(p, 128, sk.bytes_received)
    put_u32(p, 136, sk.segs_out)
    put_u32(p, 140, sk.segs_in)
    put_u32(p, 144, sk.write_seq - sk.snd_nxt if <int32_t> (sk.write_seq - sk.snd_nxt) > 0 else 0)
    rto_min = minmax_get(&sk.rtt_min)
    put_u32(p, 148, rto_min)
    put_u32(p, 152, sk.data_segs_in)
    put_u32(p, 156, sk.data_segs_out)
    put_u64(p, 160, delivery_rate(sk))
    rwnd = chrono_us(e, sk, CHRONO_RWND_LIMITED)
    sndbuf = chrono_us(e, sk, CHRONO_SNDBUF_LIMITED)
    busy = chrono_us(e, sk, CHRONO_BUSY) + rwnd + sndbuf
    put_u64(p, 168, busy)
    put_u64(p, 176, rwnd)
    put_u64(p, 184, sndbuf)
    put_u32(p, 192, sk.delivered)
    put_u32(p, 196, sk.delivered_ce)
    put_u64(p, 200, sk.bytes_sent)
    put_u64(p, 208, sk.los.bytes_retrans)
    put_u32(p, 216, sk.los.dsack_dups)
    put_u32(p, 220, sk.los.reord_seen)
    put_u32(p, 224, sk.los.rcv_ooopack)
    put_u32(p, 228, sk.snd_wnd)
    put_u32(p, 232, sk.rcv_wnd)
    put_u32(p, 236, sk.los.timeout_rehash)
    (<uint16_t*> (p + 240))[0] = sk.los.total_rto
    (<uint16_t*> (p + 242))[0] = sk.los.total_rto_recoveries
    put_u32(p, 244, sk.los.total_rto_time_ms)
    put_u32(p, 248, sk.los.received_ce)
    put_u32(p, 264, sk.los.received_ecn_bytes[0])
    put_u32(p, 268, sk.los.received_ecn_bytes[1])
    put_u32(p, 272, sk.los.received_ecn_bytes[2])


cdef inline void sk_get_meminfo(engine_t* e, tcb_t* sk, uint8_t* p) noexcept nogil:
    """SO_MEMINFO: nine u32 (RMEM_ALLOC RCVBUF WMEM_ALLOC SNDBUF FWD_ALLOC WMEM_QUEUED OPTMEM BACKLOG DROPS), 36 bytes."""
    memset(p, 0, 36)
    put_u32(p, 0, sk.rmem_alloc)
    put_u32(p, 4, sk.rcvbuf)
    put_u32(p, 12, sk.sndbuf)
    put_u32(p, 16, sk.fwd_alloc)
    put_u32(p, 20, sk.wmem_queued)
    put_u32(p, 32, sk.los.drops)
