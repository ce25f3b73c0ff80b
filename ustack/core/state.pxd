# The engine struct: pools, tables, keys, counters put together (layer 5). No logic.
#
# One engine = one stack = one "network namespace". Every function above this layer takes `engine_t* e` first. e.now is the time of the
# call in progress (set by engine.pxd from the driver's argument, never decreasing); nothing below reads a clock. All access under the
# driver's lock.

from ustack.core.types cimport (
    idx_t, int16_t, int32_t, int64_t, ns_t, ref_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.config cimport config_t
from ustack.core.ehash cimport ehash_t
from ustack.core.hooks cimport hooks_t
from ustack.core.pool cimport pool_t
from ustack.core.records cimport txframe_t
from ustack.core.siphash cimport prng_t
from ustack.core.stats cimport stats_t
from ustack.core.types cimport flow_t
from ustack.core.wheel cimport tnode_t, wheel_t

cdef enum:
    MAX_ADDR = 64               # local addresses
    MAX_ROUTE = 256             # route entries
    LHASH = 4096                # listener table buckets (power of two)
    BHASH = 65536               # bind table: one bucket list head per port
    PMTU_HASH = 256
    METRICS_HASH = 256
    FRAG_HASH = 64
    PORT_PERTURB = 256
    MAX_SHARDS = 16             # engines behind one device
    OWED_MAX = 256              # sockets whose ACKs and small sends wait
    RINGS_KEPT = 128
    DST_MEMO = 64
    RTF_LOCAL = 1               # route types, as the destination of a packet of ours or of an incoming one
    RTF_UNICAST = 2
    RTF_BROADCAST = 3
    RTF_MULTICAST = 4
    RTF_UNREACHABLE = 5
    RTF_BLACKHOLE = 6
    RTF_PROHIBIT = 7
    RTF_NONE = 8                # no route

cdef struct addr_t:             # a local address
    uint32_t addr
    uint8_t plen
    uint8_t any_of              # the whole prefix is ours

cdef struct dst_t:              # what an address is to us, remembered (route.pxd, dst_of)
    uint32_t addr
    uint32_t gen                # rt_gen of which it holds; 0: free
    int16_t err                 # of the search for a route, -errno
    uint16_t rt                 # as tcb.rt
    uint8_t kind                # DST_*

cdef struct route_t:            # one FIB entry with its metrics; 0 = not set
    uint32_t dst
    uint8_t plen
    uint8_t type                # RTF_*
    uint8_t used
    uint8_t mtu_lock
    uint8_t quickack
    uint8_t features            # bit 0 ecn, bit 1 tcp_usec_ts
    uint8_t fastopen_no_cookie
    uint8_t cc                  # CC_* + 1, 0 = none
    uint8_t metric_lock         # TCPM_* of the metrics marked "lock" (metrics.pxd)
    uint32_t src                # preferred source
    uint32_t mtu
    uint32_t advmss
    uint32_t window
    uint32_t initcwnd
    uint32_t initrwnd
    uint32_t rto_min_ms
    uint32_t rtt_ms
    uint32_t rttvar_ms
    uint32_t ssthresh
    uint32_t cwnd
    uint32_t reordering
    uint32_t hoplimit

cdef struct pmtu_t:             # learned path MTU of one destination
    idx_t next
    uint32_t dst
    uint32_t mtu
    uint8_t locked
    ns_t expires

cdef struct metrics_t:          # tcp_metrics entry of one (source, destination) pair
    idx_t next
    uint32_t src
    uint32_t dst
    uint32_t rtt_us             # 0 = not set
    uint32_t rttvar_us
    uint32_t ssthresh
    uint32_t cwnd
    uint32_t reordering
    uint8_t lock
    uint8_t fo_len              # Fast Open cookie of this destination
    uint8_t fo_exp
    uint8_t fo_try_exp
    uint8_t fo_cookie[16]
    uint16_t fo_mss
    uint16_t fo_syn_loss
    ns_t fo_last_syn_loss
    ns_t stamp

cdef struct frag_t:             # one datagram in reassembly; its bytes and runs lie in e.frag_area, see frag.pxd
    idx_t next
    uint32_t src
    uint32_t dst
    uint16_t id
    uint8_t proto
    uint8_t flags
    tnode_t timer
    uint32_t total              # end of the furthest fragment; the payload's length once the last one is in
    uint32_t have               # bytes present
    uint32_t n                  # runs, sorted by offset
    uint32_t rid                # fragments of this source seen when ours was last touched (max_dist)
    uint8_t hdr[60]             # IP header of the first fragment
    uint32_t hdr_len
    uint32_t first_len          # payload of the first fragment
    uint8_t ecn
    uint32_t max_size           # largest fragment
    uint32_t max_df_size        # largest one with DF
    uint32_t truesize
    uint32_t kept               # fragments in it

cdef struct ipopt_t:            # IP options of the packet in process, as the receiver has filled them in; see ipopt.pxd
    uint8_t data[40]
    uint8_t len                 # 0 = none
    uint8_t rr                  # offset + 1 of the option in data, 0 = none
    uint8_t ts
    uint8_t srr
    uint8_t cipso
    uint8_t rr_needaddr
    uint8_t ts_needaddr
    uint8_t ts_needtime

cdef struct bucket_t:           # a token bucket of the ICMP limiter, per destination
    uint32_t dst
    ns_t last
    int64_t credit_ns

cdef struct event_t:            # what happened, for those who listen (bounded ring)
    ns_t at
    uint16_t kind
    uint16_t arg
    uint32_t a
    uint32_t b
    uint64_t c
    flow_t flow

cdef enum:
    EV_DROP = 1                 # arg = reason, c = handle of the listener that decided, 0 = none did
    EV_STATE = 2                # a = old, b = new, c = handle
    EV_LOG = 3                  # a kernel log line: arg = which (LOG_*), a/b arguments
    EV_QUEUED = 4               # a connection joined an accept queue: a = its length now, b = limit, c = handle
    EV_RETRANS = 5              # a = first sequence number, b = packets, c = handle
    LOG_SYN_FLOOD_COOKIES = 1   # a = bound address, b = port
    LOG_SYN_FLOOD_DROP = 2
    LOG_WSCALE_TOO_BIG = 3      # flow = peer, a = value, b = 14
    LOG_RING = 16               # lines kept until the driver fetches them

cdef struct engine_t:
    # time
    ns_t now
    ns_t wall_offset            # now + wall_offset = wall clock: ISN, TSval, cookie epoch, SO_TIMESTAMPING
    ns_t tick                   # rounding of RTO, TLP, RACK and delayed-ACK lengths (one jiffy, default 4 ms)
    ns_t tick_phase             # added to a time before its ticks are counted: where between two ticks time 0 lies
    ns_t cookie_phase           # added to the wall clock before the cookie minute is counted
    # configuration
    config_t cfg
    uint8_t default_cc          # tcp_congestion_control, CC_*
    const void* cc_user[8]      # cc_ops_t (cc.pxd) of CC_USER .. CC_USER + CC_USER_MAX - 1, NULL = none
    void* doorbell              # doorbell_t (xmit.pxd) of a driver that wants the first frame of its turn at once, if it has payload; NULL: of none
    void* doorbell_arg
    void* cc_gone               # cc_release, set by the first of them, for sk_set_cc below it
    uint8_t tx_refuse           # the link takes no frame: every transmission is a local drop (a queue of limit 0)
    uint32_t mtu                # of the link
    uint32_t tso_max            # largest super-segment's payload + headers (65536), 0 = no TSO (ethtool tso off gso off)
    addr_t addrs[MAX_ADDR]
    uint32_t n_addrs
    route_t routes[MAX_ROUTE]
    uint32_t n_routes
    uint32_t rt_gen             # bumped by every change of routes, MTU, addresses
    dst_t dst_memo[DST_MEMO]
    # keys, all from the seed
    uint64_t key_ehash[2]
    uint64_t key_isn[2]
    uint64_t key_cookie[2][2]
    uint64_t key_reuse[2]
    uint8_t fo_key[16]          # tcp_fastopen_key in its wire order (words little endian as I4)
    uint8_t fo_backup[16]
    uint8_t fo_key_set
    uint8_t fo_has_backup
    prng_t prng
    # tables
    ehash_t ehash
    wheel_t wheel
    pool_t req
    pool_t tcb
    pool_t tw
    pool_t lst                  # listener_t
    pool_t grp                  # group_t
    pool_t bindb
    pool_t srec
    pool_t rrec
    pool_t ext                  # reqext_t
    pool_t opt                  # skopt_t
    pool_t los                  # sklos_t
    pool_t ca                   # CA_EXT_WORDS words of a congestion control
    pool_t wait                 # waiter_t
    pool_t frag
    pool_t pmtu
    pool_t metrics
    idx_t lhash[LHASH]
    idx_t bhash[BHASH]
    idx_t pmtu_hash[PMTU_HASH]
    idx_t metrics_hash[METRICS_HASH]
    idx_t frag_hash[FRAG_HASH]
    uint32_t frag_mem
    uint8_t* frag_area          # no-reserve mapping: payload and runs of each frag slot
    uint32_t frag_rid[FRAG_HASH]    # fragments seen per source (hashed)
    ipopt_t ipopt               # of the packet in process
    uint32_t port_perturb[PORT_PERTURB]     # connect(): where the search for a port begins, per destination (hashed)
    uint64_t key_port[2]        # ... and the key of that hash
    uint8_t reserved_ports[8192]
    # global accounting
    int64_t mem_pages           # tcp_mem in pages
    uint8_t mem_pressure        # above tcp_mem's second value, until below the first
    uint32_t n_orphans
    uint32_t n_tw
    uint32_t n_sockets
    ns_t challenge_epoch        # second of the global challenge-ACK limiter
    uint32_t challenge_count
    bucket_t icmp_buckets[256]
    ns_t icmp_global_last
    int64_t icmp_global_credit
    uint16_t ip_id              # of packets without a socket (ICMP)
    # Fast Open client black hole
    ns_t tfo_blackhole_at
    uint32_t tfo_blackhole_times
    const uint8_t* fo_data      # data of the send call in progress that opens a connection (syn.pxd)
    uint32_t fo_size
    uint32_t fo_copied          # of these, what went into the SYN
    idx_t fo_zc                 # and its zero-copy notification
    # cubic module parameters live in cfg
    # out: frames to send
    txframe_t* tx
    uint32_t tx_n
    uint32_t tx_cap
    uint32_t tx_local           # frames put since the last engine_loop that come back to ourselves
    uint8_t* loop_buf           # one packet on its way back
    uint8_t* tx_arena           # payload bytes that are in no ring (ICMP); reset when the frames are taken
    uint32_t tx_arena_n
    uint32_t tx_arena_cap
    # ring memory replaced or released while a frame may still point into it; freed by the driver thread after its writes
    void** garbage
    uint32_t garbage_n
    uint32_t garbage_cap
    # several engines behind one device (steer.pxd); all zero for one alone
    uint32_t n_shards
    uint8_t shard               # our number
    ehash_t* peers[MAX_SHARDS]  # everybody's tables: buckets may be looked at without the lock
    ns_t cookies_stamp          # latest SYN queue overflow of any listener of ours
    const ns_t* cookies_at[MAX_SHARDS]      # everybody's
    const uint8_t* hand         # a datagram that belongs to shard hand_to, for the driver; NULL: none
    uint32_t hand_len
    uint8_t hand_to
    uint8_t lazy_timers         # a driver in real time: retransmission and delayed-ACK timers that are stopped or put off stay in their slots (sock.pxd)
    # sockets whose ACK or small send waits for more to come (output.pxd: tcp_owe, tcp_settle)
    uint8_t holds_acks          # an ACK that is due at once waits
    uint8_t holds_pushes        # a send that fills no segment does
    uint8_t owed_what           # OWES_* of all of them
    uint32_t n_owed
    ns_t owed_at                # when they were last looked through
    idx_t owed[OWED_MAX]
    ns_t owed_since[OWED_MAX]
    # sockets whose empty rings have not been given back yet: a queue of kept_n, the next place is kept_at (modulo RINGS_KEPT, a power of two)
    idx_t kept[RINGS_KEPT]
    uint32_t kept_size[RINGS_KEPT]
    uint32_t kept_at
    uint32_t kept_n
    uint32_t kept_bytes
    # out: what happened
    idx_t ready                 # sockets with wake-ups the driver has not looked at
    uint32_t n_services         # listeners that the engine serves itself: 0 costs one branch
    idx_t woken                 # waiters that were released, for the driver (linked by waiter_t.next)
    event_t* ev
    uint32_t ev_cap             # 0 = nobody listens: one branch
    uint32_t ev_head
    uint32_t ev_n
    uint64_t ev_lost
    event_t log[LOG_RING]       # log lines; they are rare, so they are kept whether or not somebody listens
    uint32_t log_n
    uint64_t log_lost
    ns_t log_epoch              # net_ratelimit: LOG_BURST lines in LOG_INTERVAL
    uint32_t log_count
    const hooks_t* hooks        # chain of op-tables, NULL = none: one branch
    uint32_t connect_rto_ms     # what a connect hook chose for the SYN of this call
    idx_t rx_listener           # of the packet in process: the listener that decides about it, 0 = none
    stats_t stats
