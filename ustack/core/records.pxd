# The small records of the core (layer 3): half-open requests, TIME_WAIT, listeners, bind buckets, send and receive records,
# waiters, transmit frames. Plain structs that live in pools; no logic.
#
# Index 0 of every pool is "none". A record that sits in the hash table embeds an enode_t, one that can time out a tnode_t
# (ehash.pxd, wheel.pxd resolve ids to nodes by kind and index).

from ustack.core.types cimport (
    DROP_REASONS, idx_t, int16_t, int32_t, int64_t, ns_t, ref_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from ustack.core.ehash cimport enode_t
from ustack.core.wheel cimport tnode_t


# ---- half-open ---------------------------------------------------------------------------------------------------------------
cdef enum:
    RQ_TSTAMP_OK = 1
    RQ_SACK_OK = 2
    RQ_WSCALE_OK = 4
    RQ_ECN_OK = 8
    RQ_ACKED = 16               # third ACK seen but not taken (queue full, defer accept)
    RQ_ECN_ECT0 = 32            # SYN-ACK goes out as ECT(0) (hook NEEDS_ECN); never set by Linux's defaults
    RQ_NO_TIMER = 64            # lives on the caller's stack only (cookie)
    RQ_TS_OFF = 128             # its TSvals have the 4-tuple's offset: tcp_timestamps was 1 when the SYN came

cdef struct req_t:              # 64 bytes: a flood allocates nothing else
    enode_t en                  # 16: hash chain and 4-tuple
    tnode_t timer               # 16: SYN-ACK retransmission
    uint32_t isn                # snt_isn
    uint32_t risn               # rcv_isn, the client's
    uint32_t ts_recent
    uint32_t tsval_first        # TSval of the first SYN-ACK
    uint16_t tsval_span         # last TSval sent minus first (0xffff: see ext)
    uint16_t rwnd               # rsk_rcv_wnd (0xffff: see ext if there is one)
    uint16_t mss                # peer's MSS (min with TCP_MAXSEG)
    uint16_t listener           # listener pool index; the slot stays taken until its reqs is 0
    uint8_t num_timeout
    uint8_t num_retrans
    uint8_t flags               # RQ_*
    uint8_t wscales             # snd_wscale (the peer's) << 4 | rcv_wscale (ours)
    idx_t ext                   # reqext_t, taken on need

cdef struct reqext_t:           # what few requests need; also the record of error queues and held Fast Open slots
    idx_t next
    ns_t expires                # Fast Open slot held after a RST
    ns_t last_oow_ack           # ACK limiter (facts E9), 0 = never
    uint32_t rwnd
    uint32_t tsval_last
    uint32_t window_clamp
    uint8_t tos                 # tcp_reflect_tos
    uint8_t has_tos
    uint8_t saved_syn_len       # TCP_SAVE_SYN: IP + TCP headers
    uint8_t ipopt_len           # IP options to echo (facts C13)
    uint8_t ipopt_time          # offset of a time in ipopt that each packet writes anew, 0 = none
    uint8_t ipopt[40]
    uint8_t saved_syn[120]
    uint32_t hook_rto_ms        # TIMEOUT_INIT hook, 0 = default
    uint16_t hook_mss           # MSS of the SYN-ACK chosen by a hook, 0 = default
    uint8_t hook_timer          # a hook has chosen a timeout: synack_at tells when the first SYN-ACK was sent
    uint32_t rcv_nxt            # Fast Open: risn + 1 + payload
    uint32_t ts_recent          # Fast Open: TSval of the SYN
    uint8_t num_timeout         # Fast Open: as in req_t
    uint8_t num_retrans
    ns_t synack_at              # Fast Open, hook_timer: first SYN-ACK sent
    uint8_t fo_cookie[16]       # cookie to send in the SYN-ACK
    uint8_t fo_len              # 0 = none
    uint8_t fo_exp
    uint8_t ee_origin           # error queue: sock_extended_err
    uint8_t ee_type
    uint8_t ee_code
    uint32_t ee_errno
    uint32_t ee_info
    uint32_t ee_data
    ns_t ee_time                # wall clock, for SCM_TIMESTAMPING
    uint32_t zc_refs            # zero copy: records and calls that still hold the notification
    uint32_t zc_len             # calls it speaks for, the first is ee_info
    uint32_t zc_bytes
    uint8_t zc_copied           # a link has taken a copy

# ---- TIME_WAIT ---------------------------------------------------------------------------------------------------------------
cdef struct tw_t:
    enode_t en
    tnode_t timer
    uint32_t rcv_nxt
    uint32_t snd_nxt
    uint32_t rcv_wnd
    uint32_t ts_recent
    uint32_t ts_offset
    int64_t ts_recent_stamp     # seconds, 0 = none
    ns_t last_oow_ack
    idx_t bind                  # bind bucket
    ref_t bind_next             # owners of the bucket
    ref_t bind_prev
    uint8_t substate            # TCP_TIME_WAIT or TCP_FIN_WAIT2
    uint8_t rcv_wscale
    uint8_t tos
    uint8_t reuse               # of the socket it came from: bit 0 SO_REUSEADDR, 1 SO_REUSEPORT, 2 port chosen by connect()
    uint32_t entry_stamp_ms     # tw_reuse delay

# ---- listeners ---------------------------------------------------------------------------------------------------------------
cdef struct listener_t:
    idx_t sk                    # the listening socket (tcb); 0 once it is closed and only requests keep the slot
    idx_t hash_next             # listener table chain
    uint32_t laddr              # 0 = any
    uint16_t lport
    uint8_t listening           # in LISTEN now
    uint8_t warned              # "Possible SYN flooding" printed
    int32_t qlen                # half-open requests as Linux counts them (acceptq.pxd)
    int32_t young               # of these, never retransmitted by timer
    int32_t reqs                # requests that name this record
    int32_t ackq                # sk_ack_backlog
    int32_t maxq                # sk_max_ack_backlog
    idx_t acc_head              # accept FIFO of tcbs, linked by tcb.acc_next
    idx_t acc_tail
    uint32_t defer_accept       # rskq_defer_accept (D of facts D8), 0 = off
    ns_t last_overflow          # last cookie issue, -1 = never; shared in a reuseport group (then of the group's record)
    idx_t group                 # reuseport group record, 0 = none
    uint8_t group_closed        # in the group as a closed member (tcp_migrate_req)
    uint32_t fo_max_qlen        # Fast Open
    int32_t fo_qlen
    idx_t fo_rskq_head          # RST-held Fast Open slots (FIFO of (expiry)), see fastopen.pxd
    idx_t fo_rskq_tail
    uint8_t fo_key_set          # TCP_FASTOPEN_KEY on this listener
    uint8_t fo_has_backup
    uint8_t fo_key[16]
    uint8_t fo_backup[16]
    uint64_t drops              # sk_drops
    uint64_t drop_by[DROP_REASONS]      # packets it discarded, by reason
    uint64_t n_syn              # per-listener counters that Linux does not have
    uint64_t n_overflow
    uint64_t n_cookie_sent
    uint64_t n_cookie_recv
    uint64_t n_cookie_fail
    uint64_t n_reqq_full
    uint64_t n_accepted
    int32_t qlen_max            # high-water marks
    int32_t ackq_max

cdef enum:
    GROUP_MAX = 1024

cdef struct group_t:            # SO_REUSEPORT group: members in order of listen()
    uint16_t n
    uint16_t n_closed           # members that no longer listen and whose requests may migrate
    ns_t last_overflow
    uint16_t members[GROUP_MAX]

# ---- bind buckets ------------------------------------------------------------------------------------------------------------
cdef struct bindb_t:            # one per port in use
    uint16_t port
    ref_t owners                # KIND_TCB / KIND_TW, linked by their bind_next / bind_prev
    uint32_t n
    uint32_t n_bound            # owners that did not get the port from connect()
    uint8_t fastreuseport       # the last to come had SO_REUSEPORT; all have one user
    uint32_t fast_rcv_saddr     # of the first of its kind

# ---- records of the data path ------------------------------------------------------------------------------------------------
cdef enum:
    SR_SACKED = 1               # sacked bits as Linux's TCPCB_*
    SR_RETRANS = 2
    SR_LOST = 4
    SR_TAGBITS = 7
    SR_EVER_RETRANS = 0x80
    SR_REPAIRED = 0x10

cdef struct srec_t:             # send record, Linux's skb in the write or retransmit queue (facts J29)
    idx_t next                  # by sequence
    idx_t prev
    idx_t ts_next               # by time of (re)transmission: RACK's order; only while sent and not acked/sacked
    idx_t ts_prev
    uint32_t seq
    uint32_t end_seq            # payload + SYN + FIN
    uint16_t flags              # TH_*
    uint8_t sacked              # SR_*
    uint8_t eor                 # MSG_EOR: nothing may be appended
    uint16_t pcount             # gso_segs
    uint16_t gso_size           # mss it was cut for (0: not set)
    ns_t tx_time                # last (re)transmission; 0 = never sent
    ns_t first_tx               # delivery rate snapshot
    ns_t delivered_time
    uint32_t delivered
    uint32_t delivered_ce
    uint32_t in_flight          # bytes or packets in flight at send (Linux tx.in_flight)
    uint8_t on_ts               # linked in the time list
    uint8_t app_limited
    uint8_t rate_valid          # first_tx .. delivered_ce hold a snapshot that no sample has used up
    uint8_t tstamp_flags        # SO_TIMESTAMPING requests (bits: SCHED, SW, ACK)
    uint8_t sent                # in the retransmit queue
    uint32_t tskey
    idx_t zc                    # zero-copy notification (ext record) its bytes belong to, 0 = none: such records are never merged
    uint32_t len                # payload bytes

cdef struct rrec_t:             # receive record, Linux's skb in the receive or out-of-order queue (facts J30)
    idx_t next
    idx_t prev
    uint32_t seq
    uint32_t end_seq            # FIN counts
    int32_t truesize
    uint32_t room               # bytes that may still merge into it at no cost
    uint8_t fin
    uint8_t frags               # page fragments of a frame too large for a linear buffer
    uint8_t pad[2]
    idx_t left                  # out-of-order tree (ofotree.pxd)
    idx_t right
    ns_t tstamp                 # arrival, for SO_TIMESTAMPING

# ---- blocked calls -----------------------------------------------------------------------------------------------------------
cdef enum:
    WT_WAITING = 1
    WT_WOKEN = 2
    WT_TIMEDOUT = 3

cdef struct waiter_t:
    idx_t next                  # waiters of one socket, in order of arrival
    idx_t prev
    idx_t sk
    uint32_t events             # poll mask waited for (ERR and HUP always count)
    tnode_t timer               # deadline
    uint8_t state               # WT_*
    uint8_t exclusive           # wake one, not all (accept)
    uint8_t pad[6]
    void* word                  # what the driver's blocked call sleeps on, or NULL (manual driver polls state)
    uint64_t tag                # the driver's own

# ---- frames to send ----------------------------------------------------------------------------------------------------------
cdef enum:
    TX_HDR_MAX = 160            # IP with options (60) + TCP with options (60), or an ICMP error whole quote via p0
    TXF_CSUM_PARTIAL = 1        # TCP checksum holds the pseudo-header sum only: the taker must finish it

cdef struct txframe_t:          # a header and up to two ranges of payload; gso_size != 0: a super-segment
    ns_t at
    uint32_t hlen
    uint32_t l0
    uint32_t l1
    uint16_t gso_size
    uint16_t flags              # TXF_*
    const uint8_t* p0
    const uint8_t* p1
    uint8_t front[24]           # the driver's: what the link wants in front of the header, so that both go out in one piece
    uint8_t hdr[TX_HDR_MAX]
