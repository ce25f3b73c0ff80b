# Several engines behind one device (layer: above ehash and wire, below ipin): which of them a packet belongs to.
#
# Each engine ("shard") of such a group serves one queue of the device, has tables of its own and the same keys and table size. The device's
# steering is a hint only: packets of a flow, ICMP errors about it and fragments may come on any queue. So a packet that the own table
# does not know is offered to the shards that may know it: their bucket of the same hash value is not empty. That one word is read without
# their lock. It may be outdated either way, but not about a flow whose peer has heard of it: its entry was written before the packet that
# the peer answers. A shard that knows nothing passes on; when nobody does, the shard on whose queue the packet came treats it as new.
# Except while cookies are out: then an unknown segment may open a connection, and so may the next one on another queue, so the flow's hash
# chooses one shard for both. (A TUN device learns from what that shard sends and takes the flow's packets there.)
# Fragments are collected by a shard that source, destination and ID choose; the whole datagram is then steered as any packet.
# steer_packet is called by the driver for each packet of a group, steer_whole by ipin. An engine alone (n_shards 0) never gets here.

from ustack.core.ehash cimport ehash_hash, ehash_lookup, ehash_may_have
from ustack.core.state cimport engine_t
from ustack.core.types cimport TH_RST, TH_SYN, int64_t, uint8_t, uint16_t, uint32_t
from ustack.core.wire cimport IP_MF, IP_OFFSET, IPPROTO_ICMP, IPPROTO_TCP, get16, get32

cdef enum:
    STEER_NOBODY = 0xff             # no shard that was not asked yet may know it
    COOKIES_NS = 120000000000       # how long cookies are believed


# ---- recent SYN queue overflows ------------------------------------------------------------------------------------------------------
# A cookie may come back on another queue than it went out on, so every shard believes cookies while one of them sends some.
cdef inline bint steer_cookies_recent(const engine_t* e, int64_t within) noexcept nogil:
    cdef uint32_t i
    for i in range(e.n_shards):
        if e.cookies_at[i] != NULL and e.cookies_at[i][0] > 0 and e.now - e.cookies_at[i][0] <= within:
            return True
    return False


# ---- which shard ------------------------------------------------------------------------------------------------------------------------
cdef inline uint32_t steer_flow_(engine_t* e, uint32_t laddr, uint32_t faddr, uint16_t lport, uint16_t fport,
                                 uint32_t asked) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t hash
    if ehash_lookup(&e.ehash, laddr, faddr, lport, fport) != 0:
        return e.shard
    hash = ehash_hash(&e.ehash, laddr, faddr, <uint32_t> lport << 16 | fport)
    for i in range(e.n_shards):
        if i != e.shard and not asked >> i & 1 and ehash_may_have(e.peers[i], hash):
            return i
    return STEER_NOBODY


cdef inline uint32_t steer_home(engine_t* e, const uint8_t* p, uint32_t n, uint32_t origin) noexcept nogil:
    """Who treats a packet as new that nobody knows (steer_packet has parsed it); origin: on whose queue it came."""
    cdef const uint8_t* t = p + <uint32_t> (p[0] & 15) * 4
    if p[9] != IPPROTO_TCP or t + 14 > p + n or t[13] & (TH_SYN | TH_RST) or not steer_cookies_recent(e, COOKIES_NS):
        return origin
    return (ehash_hash(&e.ehash, get32(p + 16), get32(p + 12), <uint32_t> get16(t + 2) << 16 | get16(t)) >> 24) % e.n_shards


cdef inline bint steer_is_error_(uint8_t type) noexcept nogil:
    return type == 3 or type == 4 or type == 11 or type == 12


cdef inline uint32_t steer_packet(engine_t* e, const uint8_t* p, uint32_t n, uint32_t asked) noexcept nogil:
    """The shard for an IPv4 packet: our own number, another's, or STEER_NOBODY. asked: bit set of the shards that did not know it; one
    that was ours from the start (not TCP, malformed) is never passed on."""
    cdef uint32_t hlen
    cdef const uint8_t* q = p
    cdef bint error = False
    if n < 20 or p[0] >> 4 != 4:
        return e.shard
    hlen = <uint32_t> (p[0] & 15) * 4
    if get16(p + 6) & (IP_MF | IP_OFFSET):
        if asked:
            return e.shard
        return ((get32(p + 12) ^ get32(p + 16)) * 2654435761U + <uint32_t> get16(p + 4) * 40503U >> 16) % e.n_shards
    if p[9] == IPPROTO_ICMP and n >= hlen + 8 + 20 and steer_is_error_(p[hlen]):
        q = p + hlen + 8            # what the error quotes is a packet of ours
        n -= hlen + 8
        hlen = <uint32_t> (q[0] & 15) * 4
        error = True
    if q[9] != IPPROTO_TCP or hlen < 20 or n < hlen + 4:
        return e.shard
    if error:
        return steer_flow_(e, get32(q + 12), get32(q + 16), get16(q + hlen), get16(q + hlen + 2), asked)
    return steer_flow_(e, get32(q + 16), get32(q + 12), get16(q + hlen + 2), get16(q + hlen), asked)


cdef inline bint steer_whole(engine_t* e, const uint8_t* p, uint32_t n) noexcept nogil:
    """A datagram made whole of fragments. True: another shard may know its flow; the driver will find it in e.hand and take it there before
    the next packet."""
    cdef uint32_t to = steer_packet(e, p, n, <uint32_t> 1 << e.shard)
    if to == STEER_NOBODY or to == e.shard:
        return False
    e.hand = p
    e.hand_len = n
    e.hand_to = <uint8_t> to
    return True
