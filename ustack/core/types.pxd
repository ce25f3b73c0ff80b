# Fixed-width types and the vocabulary of the core (layer 0).
#
# Everything here is plain data: integer types, references, the flow key, the view of a received segment, states,
# flags, drop reasons and errno values. No function, no dependency. Addresses and ports are host byte order
# everywhere in the core; only wire.pxd knows the order on the wire.

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Which way a branch goes nearly always: what is rare then lies beside the path of an ordinary packet, not between its instructions. The
# path is as long as a core's instruction cache, so what lies between costs time though it is never run. (Macros of every Cython module.)
cdef extern from *:
    bint likely(bint) noexcept nogil
    bint unlikely(bint) noexcept nogil

ctypedef int64_t ns_t           # a time or a duration in nanoseconds; times are monotonic, given by the driver
ctypedef uint32_t idx_t         # index into a pool; 0 is "none" (slot 0 of a pool is never handed out)
ctypedef uint32_t ref_t         # a typed index: kind << 28 | index; 0 is "none"

cdef enum:
    REF_SHIFT = 28
    REF_MASK = 0x0fffffff

# What a ref_t in the hash table can point to.
cdef enum:
    KIND_NONE = 0
    KIND_REQ = 1                # half-open request
    KIND_TCB = 2                # full socket
    KIND_TW = 3                 # TIME_WAIT (or FIN_WAIT2 orphan) record

# Timer kinds: a timer id is kind << 28 | index of the object that holds the node.
cdef enum:
    TM_NONE = 0
    TM_REQ = 1                  # SYN-ACK timer of a request
    TM_TW = 2                   # end of TIME_WAIT
    TM_RETRANS = 3              # tcb: RTO, loss probe, reordering timer or zero-window probe, see tcb.icsk_pending
    TM_DELACK = 4               # tcb: delayed ACK
    TM_KEEP = 5                 # tcb: keepalive, FIN_WAIT2 of an orphan, SYN-ACK of a Fast Open child
    TM_PACE = 6                 # tcb: pacing release
    TM_COMPACK = 7              # tcb: compressed (SACK) ACK release
    TM_FRAG = 8                 # fragment queue expiry
    TM_WAITER = 9               # deadline of a blocked call

cdef enum:
    TICK_NS = 4000000           # the usual engine_t.tick: HZ=250
    NS_PER_MS = 1000000
    NS_PER_US = 1000

cdef extern from *:
    """
    #define USTACK_NS_NEVER INT64_MAX
    #define USTACK_NS_PER_SEC 1000000000LL
    """
    const ns_t NS_NEVER "USTACK_NS_NEVER"
    const ns_t NS_PER_SEC "USTACK_NS_PER_SEC"

# TCP header flags as they stand in bytes 12/13 of the header (AE is bit 8).
cdef enum:
    TH_FIN = 0x001
    TH_SYN = 0x002
    TH_RST = 0x004
    TH_PSH = 0x008
    TH_ACK = 0x010
    TH_URG = 0x020
    TH_ECE = 0x040
    TH_CWR = 0x080
    TH_AE = 0x100

# Linux's state numbers (tcpi_state).
cdef enum:
    TCP_ESTABLISHED = 1
    TCP_SYN_SENT = 2
    TCP_SYN_RECV = 3
    TCP_FIN_WAIT1 = 4
    TCP_FIN_WAIT2 = 5
    TCP_TIME_WAIT = 6
    TCP_CLOSE = 7
    TCP_CLOSE_WAIT = 8
    TCP_LAST_ACK = 9
    TCP_LISTEN = 10
    TCP_CLOSING = 11

cdef enum:
    CSUM_NONE = 0               # full checksum in the packet: verify it
    CSUM_PARTIAL = 1            # checksum left to hardware that was never there (vnet_hdr, veth): valid by definition
    CSUM_VERIFIED = 2           # someone below has verified it

cdef struct flow_t:
    uint32_t laddr              # ours
    uint32_t faddr              # the peer's
    uint16_t lport
    uint16_t fport

# Which options a segment carried.
cdef enum:
    OPT_MSS = 1
    OPT_WSCALE = 2
    OPT_SACKOK = 4
    OPT_TS = 8
    OPT_SACK = 16
    OPT_FASTOPEN = 32           # a valid Fast Open option (request or cookie)
    OPT_MD5 = 64
    OPT_FO_EXP = 128            # the Fast Open option came as kind 254 with magic F989
    OPT_AO = 256
    OPT_AUTH_BAD = 512          # the walk that looks for signatures found options it cannot read, or two signatures

cdef struct sackblk_t:
    uint32_t start
    uint32_t end

# A received IPv4 packet and, for TCP, its segment. Pointers point into the driver's frame and are valid for the
# duration of receive() only. Filled by wire.pxd.
cdef struct seg_t:
    const uint8_t* ip           # first byte of the IP header
    uint32_t ip_len             # total length (after trimming what lies beyond it)
    uint32_t ip_hlen
    uint32_t src
    uint32_t dst
    uint16_t ip_id
    uint16_t frag               # flags and offset field as on the wire (host order)
    uint8_t tos
    uint8_t ttl
    uint8_t proto
    uint8_t csum_state          # CSUM_*
    uint8_t dst_type            # RTF_*: what the destination is to us
    const uint8_t* l4           # first byte after the IP header
    uint32_t l4_len
    # TCP
    uint16_t sport              # the peer's port
    uint16_t dport              # ours
    uint32_t seq
    uint32_t end_seq            # seq + SYN + FIN + len
    uint32_t ack
    uint32_t wnd                # raw 16-bit window field
    uint16_t urg
    uint16_t flags              # TH_*
    uint32_t doff               # header length in bytes
    const uint8_t* opt          # option bytes
    uint32_t opt_len
    const uint8_t* data
    uint32_t len                # payload bytes
    uint32_t gso_size           # payload bytes per wire segment when the link merged several (0: one segment)
    # options, after wire_parse_opts
    uint32_t opts               # OPT_* bits
    uint16_t mss
    uint8_t wscale
    uint8_t n_sack
    uint8_t fo_len              # bytes of Fast Open cookie, 0 = request form
    const uint8_t* fo_cookie
    uint32_t tsval
    uint32_t tsecr
    sackblk_t sack[4]

# Flags of send and receive calls.
cdef enum:
    MSG_OOB = 0x1
    MSG_PEEK = 0x2
    MSG_DONTROUTE = 0x4
    MSG_CTRUNC = 0x8
    MSG_TRUNC = 0x20
    MSG_DONTWAIT = 0x40
    MSG_EOR = 0x80
    MSG_WAITALL = 0x100
    MSG_ERRQUEUE = 0x2000
    MSG_NOSIGNAL = 0x4000
    MSG_MORE = 0x8000
    MSG_ZEROCOPY = 0x4000000
    MSG_FASTOPEN = 0x20000000

# Errno values of Linux (x86 and ARM agree on these). The core returns them negated.
cdef enum:
    E_PERM = 1
    E_NOENT = 2
    E_INTR = 4
    E_BADF = 9
    E_AGAIN = 11
    E_NOMEM = 12
    E_ACCES = 13
    E_FAULT = 14
    E_BUSY = 16
    E_EXIST = 17
    E_INVAL = 22
    E_NOSPC = 28
    E_PIPE = 32
    E_DOM = 33
    E_NONET = 64
    E_PROTO = 71
    E_MSGSIZE = 90
    E_NOPROTOOPT = 92
    E_OPNOTSUPP = 95
    E_ADDRINUSE = 98
    E_ADDRNOTAVAIL = 99
    E_NETDOWN = 100
    E_NETUNREACH = 101
    E_CONNABORTED = 103
    E_CONNRESET = 104
    E_NOBUFS = 105
    E_ISCONN = 106
    E_NOTCONN = 107
    E_TIMEDOUT = 110
    E_CONNREFUSED = 111
    E_HOSTDOWN = 112
    E_HOSTUNREACH = 113
    E_ALREADY = 114
    E_INPROGRESS = 115

# Why a packet was discarded: exactly one reason per discarded packet, counted per stack (stats.drops) and per listener.
# Linux's names (enum skb_drop_reason) where the kernel has one; append only, the names live in stats.pxd.
cdef enum:
    DROP_NONE = 0
    DROP_NOT_SPECIFIED = 1
    DROP_NO_SOCKET = 2
    DROP_PKT_TOO_SMALL = 3
    DROP_TCP_CSUM = 4
    DROP_SOCKET_FILTER = 5
    DROP_IP_CSUM = 6
    DROP_IP_INHDR = 7
    DROP_IP_TRUNCATED = 8               # ours: total length beyond the bytes present
    DROP_IP_RPFILTER = 9
    DROP_IP_INVALID_SOURCE = 10         # martian source
    DROP_IP_INVALID_DEST = 11           # martian destination
    DROP_IP_LOCAL_SOURCE = 12           # our own address as source
    DROP_IP_INADDRERRORS = 13           # not for us and no forwarding
    DROP_IP_NOPROTO = 14
    DROP_IP_SOURCE_ROUTE = 15           # ours: LSRR/SSRR not accepted
    DROP_UDP_NO_PORT = 16               # ours
    DROP_FRAG_REASM_TIMEOUT = 17
    DROP_FRAG_TOO_FAR = 18
    DROP_FRAG_OVERLAP = 19              # ours
    DROP_FRAG_MEMORY = 20               # ours
    DROP_DUP_FRAG = 21
    DROP_TCP_MINTTL = 22
    DROP_TCP_MD5UNEXPECTED = 23
    DROP_TCP_FLAGS = 24                 # no acceptable flag combination for the state
    DROP_TCP_LISTEN_RST = 25            # ours: RST to a listener
    DROP_TCP_LISTEN_OVERFLOW = 26       # accept queue full
    DROP_TCP_REQQFULL_DROP = 27         # request queue full, cookies off
    DROP_TCP_SYN_BACKLOG_RESERVE = 28   # ours: last quarter of tcp_max_syn_backlog kept for proven peers
    DROP_TCP_LISTEN_BCAST = 29          # ours: SYN to a broadcast or multicast address
    DROP_TCP_NO_ROUTE = 30              # ours: no route back to the client
    DROP_TCP_DEFER_ACCEPT = 31          # ours: bare ACK held back
    DROP_TCP_REQ_OOW = 32               # ours: segment outside the request's window
    DROP_TCP_REQ_NOACK = 33             # ours: segment without ACK for a request
    DROP_TCP_REQ_LIMITED = 34           # ours: repeated SYN of a request, sooner than tcp_invalid_ratelimit allows an answer
    DROP_TCP_TW = 35                    # ours: absorbed by a TIME_WAIT record
    DROP_TCP_CLOSE = 36
    DROP_TCP_ZEROWINDOW = 37
    DROP_TCP_OLD_DATA = 38
    DROP_TCP_OVERWINDOW = 39
    DROP_TCP_OFOMERGE = 40
    DROP_TCP_RFC7323_PAWS = 41
    DROP_TCP_RFC7323_PAWS_ACK = 42
    DROP_TCP_RFC7323_TSECR = 43
    DROP_TCP_OLD_SEQUENCE = 44
    DROP_TCP_INVALID_SEQUENCE = 45
    DROP_TCP_INVALID_END_SEQUENCE = 46
    DROP_TCP_RESET = 47
    DROP_TCP_INVALID_SYN = 48
    DROP_TCP_INVALID_ACK_SEQUENCE = 49
    DROP_TCP_TOO_OLD_ACK = 50
    DROP_TCP_ACK_UNSENT_DATA = 51
    DROP_TCP_OFO_QUEUE_PRUNE = 52
    DROP_TCP_OFO_DROP = 53
    DROP_TCP_ABORT_ON_DATA = 54
    DROP_TCP_FASTOPEN = 55
    DROP_TCP_OLD_ACK = 56
    DROP_ICMP_CSUM = 57
    DROP_ICMP_INVALID = 58              # ours: too short, unknown type, broadcast echo
    DROP_ICMP_NO_SOCKET = 59            # ours: error that quotes no connection of ours
    DROP_ICMP_OOW = 60                  # ours: quoted sequence number outside the window
    DROP_POOL_REQ = 61                  # ours: no free half-open record
    DROP_POOL_TCB = 62                  # ours: no free socket
    DROP_POOL_RCV = 63                  # ours: no receive record or buffer memory
    DROP_HOOK = 64                      # ours: a hook said drop
    DROP_PROTO_MEM = 65
    DROP_SOCKET_RCVBUFF = 66
    DROP_TCP_AUTH_HDR = 67
    DROP_TCP_AOFAILURE = 68
    DROP_REASONS = 69
