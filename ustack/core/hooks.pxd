# Hooks: the decisions that an experiment may watch, change or take over (layer 1: plain data, needs types only).
#
# An op-table is a struct of function pointers, any of which may be NULL, and a user pointer. It is written in another extension that
# cimports this file (shipped with the package, as types.pxd is), wrapped in a PyCapsule named HOOKS_CAPSULE and given to
# Engine.set_hooks(); ustack/hooks.py's Python callbacks are such a table too. docs/hooks.md says when each is called.
# Cost: without a table every place tests one pointer (engine_t.hooks). Several tables form a chain; each sees what those before it chose.
#
# Rules for an op: it runs under the engine's lock, without the GIL, in the middle of a decision. It may read its argument and write the
# fields below "out"; it must not keep a pointer from the argument, call the engine, block, or raise. The arguments are small views, not
# the core's records, so that a hook survives changes inside. Units: bytes, nanoseconds, host byte order, unless a name says otherwise.

from ustack.core.types cimport flow_t, int32_t, ns_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    HOOKS_VERSION = 2           # of this file's structs; a table of another version is refused

cdef extern from *:
    """
    #define USTACK_HOOKS_CAPSULE "ustack.core.hooks.hooks_t"
    #define USTACK_UNLIKELY(x) __builtin_expect((x) != 0, 0)
    """
    const char* HOOKS_CAPSULE "USTACK_HOOKS_CAPSULE"
    bint hooked "USTACK_UNLIKELY"(const void*) noexcept nogil

# Verdicts. Not every place knows each; one that it does not know is HOOK_PASS.
cdef enum:
    HOOK_PASS = 0               # as Linux decides
    HOOK_DROP = 1               # discard the segment (DROP_HOOK), or end the request
    HOOK_ACCEPT = 2             # syn, overflow: an ordinary request or child even though a queue is full
    HOOK_COOKIE = 3             # syn, overflow of the SYN queue: answer with a cookie
    HOOK_NO_COOKIE = 4          # syn: never a cookie; a full SYN queue drops
    HOOK_RESET = 5              # ack, established, accept, overflow at the third ACK, drop: answer with a RST
    HOOK_SKIP = 6               # synack: no repetition this time, the timer goes on
    HOOK_FRONT = 7              # acceptq: to the head of the accept queue
    HOOK_PARK = 8               # ack: the segment is kept by the hook, nothing has happened; for drivers

# hook_syn_t.set: which overrides are meant.
cdef enum:
    SYN_ISN = 1
    SYN_MSS = 2
    SYN_WINDOW = 4
    SYN_RWND_INIT = 8
    SYN_RTO = 16
    SYN_NEEDS_ECN = 32
    SYN_EVICT = 64

# hook_conn_t.set
cdef enum:
    CONN_CWND = 1
    CONN_SSTHRESH = 2
    CONN_RTO = 4
    CONN_TOS = 8

# hook_overflow_t.queue
cdef enum:
    QUEUE_SYN = 1
    QUEUE_ACCEPT_SYN = 2        # accept queue, at the SYN
    QUEUE_ACCEPT_ACK = 3        # accept queue, at the third ACK or a cookie's

# hook_select_t.migrating
cdef enum:
    SELECT_LOOKUP = 0
    SELECT_REQUEST = 1          # tcp_migrate_req: a half-open connection whose listener has gone
    SELECT_CHILD = 2            # ... or one that nobody has accepted

# hook_conn_t.what
cdef enum:
    CONN_ESTABLISHED = 1
    CONN_STATE = 2
    CONN_RETRANS = 3
    CONN_RTO_FIRED = 4
    CONN_RTT = 5

cdef struct hook_listen_t:      # listen(): LSM's socket_listen, and TCP_LISTEN_CB if first
    uint64_t handle
    uint32_t addr
    uint16_t port
    uint8_t first               # 0: it listens already, only the limit changes
    int32_t backlog             # clamped by somaxconn
    int err                     # out: errno to refuse with, 0 = go on

cdef struct hook_connect_t:     # connect(): TCP_CONNECT_CB, TIMEOUT_INIT of an active open
    uint64_t handle
    flow_t flow
    int err                     # out: errno to refuse with
    uint32_t rto_ms             # out: first retransmission of the SYN, 0 = 1 s

cdef struct hook_queue_t:       # depths of a listener at the moment of the call
    uint64_t listener           # handle of its socket
    int32_t qlen                # half-open requests
    int32_t young               # of these, never retransmitted
    int32_t ackq                # waiting for accept()
    int32_t maxq                # the limit of both

cdef struct hook_syn_t:         # a SYN for a listener, before any queue is looked at; TIMEOUT_INIT, RWND_INIT, NEEDS_ECN
    flow_t flow
    hook_queue_t q
    const uint8_t* packet       # from the IP header on; valid during the call
    uint32_t packet_len
    uint32_t seq
    uint32_t window
    uint32_t payload
    uint32_t opts               # OPT_*
    uint32_t tsval
    uint16_t peer_mss           # 0 = no option
    uint8_t peer_wscale
    uint8_t tos
    uint8_t ttl
    uint8_t ecn                 # an ECN-setup SYN
    uint8_t time_wait           # takes the place of a TIME_WAIT record
    # out
    uint8_t verdict             # PASS DROP ACCEPT COOKIE NO_COOKIE
    uint8_t needs_ecn
    uint32_t set                # SYN_*
    uint32_t isn
    uint32_t window_out         # receive window offered, bytes
    uint32_t rwnd_init          # receive window in segments, as route initrwnd
    uint32_t rto_ms             # first SYN-ACK timeout; doubles from there
    uint16_t mss                # MSS option of the SYN-ACK
    uint16_t evict_port         # a half-open request of this listener that is to make room
    uint32_t evict_addr

cdef struct hook_overflow_t:    # a queue is full
    flow_t flow
    hook_queue_t q
    uint8_t queue               # QUEUE_*
    uint8_t verdict             # out: PASS ACCEPT, SYN: COOKIE, third ACK: RESET

cdef struct hook_cookie_t:      # a cookie is made for a SYN, or checked when an ACK returns it
    flow_t flow
    uint64_t listener
    uint32_t seq                # the client's initial sequence number, at both times
    uint32_t cookie             # check: what came back (ISN of our SYN-ACK)
    uint32_t tsval
    uint32_t tsecr
    uint8_t checking            # 0 = make, 1 = check
    # make: what the SYN offers; check, out: what the cookie says was agreed
    uint16_t mss
    uint8_t sack
    uint8_t wscale              # the peer's, with wscale_ok
    uint8_t wscale_ok
    uint8_t ecn
    # out
    uint8_t taken               # this hook's own format: use cookie (make) or mss and options (check)
    uint8_t keeps_options       # sack and wscale are in the cookie, so they are agreed even without timestamps
    uint8_t valid               # check: the cookie is good

cdef struct hook_synack_t:      # the timer of a half-open request has fired
    flow_t flow
    hook_queue_t q
    uint32_t isn
    uint32_t num_timeout        # timer expiries before this one
    uint32_t num_retrans
    uint32_t tries              # after this many it ends (tcp_synack_retries, less under load)
    uint8_t acked               # the third ACK was seen and not taken
    # out
    uint8_t verdict             # PASS DROP SKIP ACCEPT (goes on although its tries are used up)
    uint32_t next_ms            # time to the next expiry, 0 = Linux's doubling

cdef struct hook_ack_t:         # the third ACK: every test is passed, no child yet
    flow_t flow
    hook_queue_t q
    const uint8_t* packet
    uint32_t packet_len
    uint32_t isn                # ours
    uint32_t irs                # the client's
    uint32_t payload
    uint32_t num_timeout
    uint32_t num_retrans
    uint16_t mss
    uint8_t cookie              # it returned a SYN cookie
    uint8_t verdict             # out: PASS DROP RESET PARK

cdef struct hook_acceptq_t:     # a child joins the accept queue
    flow_t flow
    hook_queue_t q              # before it joins
    uint64_t handle
    uint8_t verdict             # out: PASS FRONT

cdef struct hook_accept_t:      # accept() is about to take the head of the queue
    flow_t flow
    hook_queue_t q
    uint64_t handle
    uint8_t verdict             # out: PASS RESET (the next one is looked at)

cdef struct hook_conn_t:        # something happened to a connection, see CONN_*
    uint64_t handle
    flow_t flow
    ns_t now
    uint8_t what
    uint8_t passive             # ESTABLISHED: it came through a listener
    uint8_t state
    uint8_t new_state           # STATE: called before it is set
    uint32_t seq                # RETRANS: first byte
    uint32_t segs               # RETRANS: packets
    int32_t err                 # RETRANS: 0, or why it did not leave
    uint32_t retransmits        # RTO: consecutive ones
    uint8_t expired             # RTO: the connection is given up
    uint32_t rtt_us             # RTT: the sample
    uint32_t srtt_us
    uint32_t snd_cwnd
    uint32_t snd_ssthresh
    uint32_t mss
    ns_t rto_now
    # out
    uint8_t verdict             # ESTABLISHED and passive: PASS RESET
    uint32_t set                # CONN_*
    uint32_t cwnd               # packets
    uint32_t ssthresh
    uint32_t rto_ms
    uint8_t tos

cdef struct hook_drop_t:        # a packet was discarded
    uint16_t reason             # DROP_*
    uint64_t listener           # 0 = decided before a listener was found
    flow_t flow
    const uint8_t* packet
    uint32_t packet_len
    uint8_t verdict             # out: PASS RESET (a TCP segment without RST only)

cdef struct hook_select_t:      # which member of an SO_REUSEPORT group gets a segment without a connection, or what a closed member leaves
    flow_t flow
    uint32_t hash               # of the 4-tuple
    uint32_t n                  # members that listen
    int32_t choice              # in: what Linux takes; out: 0 .. n-1
    uint8_t migrating           # SELECT_*

cdef struct hooks_t:
    uint32_t version            # HOOKS_VERSION
    void* user
    void (*listen)(void* user, hook_listen_t* a) noexcept nogil
    void (*connect)(void* user, hook_connect_t* a) noexcept nogil
    void (*syn)(void* user, hook_syn_t* a) noexcept nogil
    void (*overflow)(void* user, hook_overflow_t* a) noexcept nogil
    void (*cookie)(void* user, hook_cookie_t* a) noexcept nogil
    void (*synack)(void* user, hook_synack_t* a) noexcept nogil
    void (*ack)(void* user, hook_ack_t* a) noexcept nogil
    void (*acceptq)(void* user, hook_acceptq_t* a) noexcept nogil
    void (*accept)(void* user, hook_accept_t* a) noexcept nogil
    void (*established)(void* user, hook_conn_t* a) noexcept nogil
    void (*state)(void* user, hook_conn_t* a) noexcept nogil
    void (*retrans)(void* user, hook_conn_t* a) noexcept nogil
    void (*rto)(void* user, hook_conn_t* a) noexcept nogil
    void (*rtt)(void* user, hook_conn_t* a) noexcept nogil
    void (*drop)(void* user, hook_drop_t* a) noexcept nogil
    void (*select)(void* user, hook_select_t* a) noexcept nogil
    hooks_t* next               # the engine's: next table of the chain


# ---- calling the chain; h is engine_t.hooks, not NULL ------------------------------------------------------------------------------
cdef inline void hook_listen(const hooks_t* h, hook_listen_t* a) noexcept nogil:
    # The first refusal ends it.
    while h != NULL and a.err == 0:
        if h.listen != NULL:
            h.listen(h.user, a)
        h = h.next


cdef inline void hook_connect(const hooks_t* h, hook_connect_t* a) noexcept nogil:
    while h != NULL and a.err == 0:
        if h.connect != NULL:
            h.connect(h.user, a)
        h = h.next


cdef inline void hook_syn(const hooks_t* h, hook_syn_t* a) noexcept nogil:
    while h != NULL:
        if h.syn != NULL:
            h.syn(h.user, a)
        h = h.next


cdef inline void hook_overflow(const hooks_t* h, hook_overflow_t* a) noexcept nogil:
    while h != NULL:
        if h.overflow != NULL:
            h.overflow(h.user, a)
        h = h.next


cdef inline void hook_cookie(const hooks_t* h, hook_cookie_t* a) noexcept nogil:
    # The first format that takes it is the only one.
    while h != NULL and not a.taken:
        if h.cookie != NULL:
            h.cookie(h.user, a)
        h = h.next


cdef inline void hook_synack(const hooks_t* h, hook_synack_t* a) noexcept nogil:
    while h != NULL:
        if h.synack != NULL:
            h.synack(h.user, a)
        h = h.next


cdef inline void hook_ack(const hooks_t* h, hook_ack_t* a) noexcept nogil:
    # A verdict ends it: what parks a segment is asked last.
    while h != NULL and a.verdict == HOOK_PASS:
        if h.ack != NULL:
            h.ack(h.user, a)
        h = h.next


cdef inline void hook_acceptq(const hooks_t* h, hook_acceptq_t* a) noexcept nogil:
    while h != NULL:
        if h.acceptq != NULL:
            h.acceptq(h.user, a)
        h = h.next


cdef inline void hook_accept(const hooks_t* h, hook_accept_t* a) noexcept nogil:
    while h != NULL:
        if h.accept != NULL:
            h.accept(h.user, a)
        h = h.next


cdef inline void hook_conn(const hooks_t* h, hook_conn_t* a) noexcept nogil:
    while h != NULL:
        if a.what == CONN_ESTABLISHED:
            if h.established != NULL:
                h.established(h.user, a)
        elif a.what == CONN_STATE:
            if h.state != NULL:
                h.state(h.user, a)
        elif a.what == CONN_RETRANS:
            if h.retrans != NULL:
                h.retrans(h.user, a)
        elif a.what == CONN_RTO_FIRED:
            if h.rto != NULL:
                h.rto(h.user, a)
        elif h.rtt != NULL:
            h.rtt(h.user, a)
        h = h.next


cdef inline void hook_drop(const hooks_t* h, hook_drop_t* a) noexcept nogil:
    while h != NULL:
        if h.drop != NULL:
            h.drop(h.user, a)
        h = h.next


cdef inline void hook_select(const hooks_t* h, hook_select_t* a) noexcept nogil:
    while h != NULL:
        if h.select != NULL:
            h.select(h.user, a)
        h = h.next
