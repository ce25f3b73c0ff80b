# Packets through a file descriptor, without the GIL: TUN devices, packet sockets, socket pairs. Included by _fastpath.pyx.
#
# The descriptor is non-blocking. One read() or write() is one packet, in front of it what the kind of link adds: a virtio_net_hdr (vnet)
# with checksum and segmentation state, an Ethernet header (ether). Called by whoever holds the link (loop_t.drive). ARP (RFC 826) is done
# here, because it belongs to the link: it answers for the stack's addresses, learns from requests, replies and received packets, and holds
# one packet per unresolved neighbour.

#
# System calls are made without the C library's wrappers: in a program with threads those are cancellation points, which costs 5 % of
# a small packet. They return -errno.

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    static inline long ustack_call3(long nr, long a, long b, long c) {
    #if defined(__x86_64__)
      long r;
      __asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
      return r;
    #else
      long r = syscall(nr, a, b, c);
      return r < 0 ? -errno : r;
    #endif
    }
    #define ustack_read(fd, p, n) ustack_call3(SYS_read, fd, (long)(p), (long)(n))
    #define ustack_write(fd, p, n) ustack_call3(SYS_write, fd, (long)(p), (long)(n))
    #define ustack_writev(fd, v, n) ustack_call3(SYS_writev, fd, (long)(v), n)
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t sys_read "ustack_read"(int, void*, size_t) nogil
    ssize_t sys_write "ustack_write"(int, const void*, size_t) nogil
    ssize_t sys_writev "ustack_writev"(int, const iovec*, int) nogil

cdef extern from "<errno.h>" nogil:
    int errno

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd*, unsigned long, int)

cdef enum:
    BATCH = 64                  # packets read before the lock is taken
    RX_MAX = 65536 + 64         # the longest packet with everything in front of it
    RX_BUFFER = 4 * RX_MAX      # bytes of a batch: what was read must still be in the cache when the engine copies it
    SMALL = 2048                # a packet up to this length is made contiguous: cheaper than a vector
    VNET_LEN = 10
    ETH_LEN = 14
    VNET_NEEDS_CSUM = 1         # virtio_net_hdr.flags
    VNET_DATA_VALID = 2
    VNET_GSO_TCPV4 = 1          # virtio_net_hdr.gso_type
    VNET_GSO_ECN = 0x80
    ARP_SLOTS = 1024
    ARP_WAYS = 4
    E_WOULDBLOCK = 11

cdef struct vnet_t:             # struct virtio_net_hdr, native byte order
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef struct rxpkt_t:            # a packet of the batch
    uint8_t* p
    uint32_t len
    uint16_t gso_size
    uint8_t csum

cdef struct arp_t:              # a neighbour
    uint32_t ip
    uint8_t mac[6]
    uint8_t known
    ns_t stamp                  # learned, or last asked
    uint8_t* held               # one packet that waits for the answer
    uint32_t held_len

cdef struct dev_t:
    int fd                      # -1: none
    bint ether
    bint vnet
    bint gso                    # super-segments and open checksums may go out (needs vnet)
    int failed                  # errno that ended reading
    uint32_t net                # ether: the on-link prefix; others go through gateway (0: everything is on link)
    uint32_t mask
    uint32_t gateway
    uint8_t mac[6]
    arp_t* arp
    uint8_t* rx
    uint8_t* seg                # one outgoing packet
    rxpkt_t pkts[BATCH]
    uint32_t quota              # packets of the next batch
    bint hasty                  # do not wait for room: set full instead
    bint full
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t tx_errors
    uint64_t tx_dropped         # the link was full


cdef int dev_init(dev_t* d) noexcept nogil:
    d.quota = 1
    d.rx = <uint8_t*> malloc(RX_BUFFER)
    d.seg = <uint8_t*> malloc(RX_MAX)
    if d.ether:
        d.arp = <arp_t*> calloc(ARP_SLOTS, sizeof(arp_t))
    if d.rx == NULL or d.seg == NULL or (d.ether and d.arp == NULL):
        return -E_NOMEM
    return 0


cdef void dev_free(dev_t* d) noexcept nogil:
    cdef uint32_t i
    free(d.rx)
    free(d.seg)
    if d.arp != NULL:
        for i in range(<uint32_t> ARP_SLOTS):
            free(d.arp[i].held)
    free(d.arp)


# ---- raw writes ------------------------------------------------------------------------------------------------------------------
cdef bint dev_full(dev_t* d) noexcept nogil:
    """The link refused: a full socket pair is waited for shortly. True: it has room now."""
    cdef pollfd p
    if d.hasty:
        d.full = True
        return False
    p.fd = d.fd
    p.events = 4
    return c_poll(&p, 1, 2) > 0


cdef inline void dev_count(dev_t* d, ssize_t rc, size_t len) noexcept nogil:
    """rc: of the write. A full device drops."""
    if d.full:
        return
    if rc >= 0:
        d.tx_packets += 1
        d.tx_bytes += len
    elif rc == -E_WOULDBLOCK or rc == -E_NOBUFS:
        d.tx_dropped += 1
    else:
        d.tx_errors += 1


cdef inline void dev_write(dev_t* d, const uint8_t* p, size_t len) noexcept nogil:
    """One packet out."""
    cdef ssize_t rc = sys_write(d.fd, p, len)
    if rc == -E_WOULDBLOCK and dev_full(d):
        rc = sys_write(d.fd, p, len)
    dev_count(d, rc, len)


cdef void dev_writev(dev_t* d, iovec* v, int n, size_t len) noexcept nogil:
    """One packet out, of several pieces."""
    cdef ssize_t rc = sys_writev(d.fd, v, n)
    if rc == -E_WOULDBLOCK and dev_full(d):
        rc = sys_writev(d.fd, v, n)
    dev_count(d, rc, len)


# ---- ARP -------------------------------------------------------------------------------------------------------------------------
cdef arp_t* arp_find(dev_t* d, uint32_t ip, bint make) noexcept nogil:
    """The neighbour's slot; with make the oldest of its set is given away if it has none."""
    cdef uint32_t base = (ip * 2654435761U >> 20) & (ARP_SLOTS - ARP_WAYS)
    cdef arp_t* a
    cdef arp_t* oldest = &d.arp[base]
    cdef uint32_t i
    for i in range(<uint32_t> ARP_WAYS):
        a = &d.arp[base + i]
        if a.ip == ip:
            return a
        if a.stamp < oldest.stamp:
            oldest = a
    if not make:
        return NULL
    free(oldest.held)
    memset(oldest, 0, sizeof(arp_t))
    oldest.ip = ip
    return oldest


cdef void arp_send(dev_t* d, uint16_t op, const uint8_t* dst, uint32_t src_ip, const uint8_t* target, uint32_t target_ip) noexcept nogil:
    cdef uint8_t buf[VNET_LEN + 60]
    cdef uint8_t* p = buf + VNET_LEN
    cdef iovec v
    memset(buf, 0, sizeof(buf))
    memcpy(p, dst, 6)
    memcpy(p + 6, d.mac, 6)
    put16(p + 12, 0x806)
    put16(p + 14, 1)
    put16(p + 16, 0x800)
    p[18] = 6
    p[19] = 4
    put16(p + 20, op)
    memcpy(p + 22, d.mac, 6)
    put32(p + 28, src_ip)
    memcpy(p + 32, target, 6)
    put32(p + 38, target_ip)
    v.iov_base = p - (VNET_LEN if d.vnet else 0)
    v.iov_len = 60 + (VNET_LEN if d.vnet else 0)
    dev_writev(d, &v, 1, v.iov_len)


cdef void arp_learn(dev_t* d, uint32_t ip, const uint8_t* mac, bint make, ns_t now) noexcept nogil:
    cdef arp_t* a = arp_find(d, ip, make)
    cdef iovec v
    if a == NULL or ip == 0 or mac[0] & 1:
        return
    memcpy(a.mac, mac, 6)
    a.known = 1
    a.stamp = now
    if a.held != NULL:
        memcpy(a.held + (VNET_LEN if d.vnet else 0), mac, 6)
        v.iov_base = a.held
        v.iov_len = a.held_len
        dev_writev(d, &v, 1, v.iov_len)
        free(a.held)
        a.held = NULL


cdef void arp_receive(dev_t* d, engine_t* e, const uint8_t* p, uint32_t n, ns_t now) noexcept nogil:
    """p: an Ethernet frame of type ARP. Reads the stack's addresses, which is safe without the lock: they are plain words."""
    cdef uint32_t src
    cdef uint32_t dst
    cdef bint ours
    if n < 42 or get16(p + 14) != 1 or get16(p + 16) != 0x800 or p[18] != 6 or p[19] != 4:
        return
    src = get32(p + 28)
    dst = get32(p + 38)
    ours = is_local(e, dst)
    arp_learn(d, src, p + 22, ours, now)
    if ours and get16(p + 20) == 1 and not is_local(e, src):
        arp_send(d, 2, p + 22, dst, p + 22, src)


cdef bint ether_resolve(dev_t* d, engine_t* e, uint32_t src, uint32_t dst, uint8_t* mac, arp_t** waits, ns_t now) noexcept nogil:
    """The MAC to send to; if it is not known yet, asks (once a second) and says where the packet waits."""
    cdef arp_t* a
    waits[0] = NULL
    if dst == 0xffffffffU:
        memset(mac, 0xff, 6)
        return True
    if d.gateway != 0 and (dst & d.mask) != d.net:
        dst = d.gateway
    a = arp_find(d, dst, True)
    if a.known:
        memcpy(mac, a.mac, 6)
        return True
    waits[0] = a
    memset(mac, 0, 6)
    if a.stamp == 0 or now - a.stamp >= 1000000000:
        a.stamp = now
        memset(mac, 0xff, 6)
        arp_send(d, 1, mac, src, NULL_MAC, dst)
    return False


cdef uint8_t[6] NULL_MAC


cdef void arp_hold(dev_t* d, arp_t* a, const iovec* v, int n, size_t len) noexcept nogil:
    cdef uint8_t* p = <uint8_t*> malloc(len)
    cdef int i
    free(a.held)
    a.held = p
    a.held_len = <uint32_t> len
    if p == NULL:
        return
    for i in range(n):
        memcpy(p, v[i].iov_base, v[i].iov_len)
        p += v[i].iov_len


# ---- packets out -----------------------------------------------------------------------------------------------------------------
cdef void dev_send(dev_t* d, engine_t* e, iovec* v, int n, vnet_t* vnet, uint32_t src, uint32_t dst, ns_t now) noexcept nogil:
    """v[2 ..] is the IP packet; the two places in front take what the link adds."""
    cdef uint8_t eth[ETH_LEN]
    cdef int first = 2
    cdef int i
    cdef size_t len = 0
    cdef arp_t* waits = NULL
    cdef bint known = True
    if d.ether:
        known = ether_resolve(d, e, src, dst, eth, &waits, now)
        memcpy(eth + 6, d.mac, 6)
        put16(eth + 12, 0x800)
        first = 1
        v[1].iov_base = eth
        v[1].iov_len = ETH_LEN
    if d.vnet:
        first -= 1
        if d.ether and vnet.flags:
            vnet.csum_start += ETH_LEN
            vnet.hdr_len += ETH_LEN
        v[first].iov_base = vnet
        v[first].iov_len = VNET_LEN
    for i in range(first, n):
        len += v[i].iov_len
    if known:
        dev_writev(d, v + first, n - first, len)
    elif waits != NULL:
        arp_hold(d, waits, v + first, n - first, len)


cdef void dev_send_packet(dev_t* d, engine_t* e, uint8_t* p, uint32_t n, ns_t now) noexcept nogil:
    """A complete packet with full checksums."""
    cdef iovec v[3]
    cdef vnet_t vnet
    memset(&vnet, 0, sizeof(vnet))
    v[2].iov_base = p
    v[2].iov_len = n
    dev_send(d, e, v, 3, &vnet, get32(p + 12), get32(p + 16), now)


cdef inline void dev_vnet_of(const txframe_t* f, vnet_t* h) noexcept nogil:
    """What the device has to finish: the checksum, and the cutting of a super-segment."""
    cdef uint32_t ihl
    memset(h, 0, sizeof(vnet_t))
    if not f.flags & TXF_CSUM_PARTIAL:
        return
    ihl = <uint32_t> (f.hdr[0] & 15) * 4
    h.flags = VNET_NEEDS_CSUM
    h.csum_start = <uint16_t> ihl
    h.csum_offset = 16
    h.hdr_len = <uint16_t> f.hlen
    if f.gso_size and tx_payload(f) > f.gso_size:
        h.gso_type = VNET_GSO_TCPV4
        if f.hdr[ihl + 13] & TH_CWR:
            h.gso_type |= VNET_GSO_ECN
        h.gso_size = f.gso_size


cdef inline bint dev_send_small(dev_t* d, txframe_t* f) noexcept nogil:
    """A short frame to a TUN device, in one piece: the virtio_net_hdr right in front of the header, the payload copied behind it. False:
    not of this kind."""
    cdef uint32_t n = tx_payload(f)
    cdef uint8_t* p
    if d.ether or n > SMALL:
        return False
    if n == 0:
        p = f.hdr - VNET_LEN
    else:
        p = d.seg
        memcpy(p + VNET_LEN, f.hdr, f.hlen)
        tx_copy_payload(f, 0, n, p + VNET_LEN + f.hlen)
    dev_vnet_of(f, <vnet_t*> p)
    dev_write(d, p, VNET_LEN + f.hlen + n)
    return True


cdef void dev_send_frame(dev_t* d, engine_t* e, txframe_t* f, ns_t now) noexcept nogil:
    """A frame of the core: as it is to a link with offload, in packets with full checksums to others."""
    cdef iovec v[5]
    cdef vnet_t vnet
    cdef uint32_t i
    cdef uint32_t n
    cdef int k = 3
    if not d.gso:
        for i in range(tx_segs(f)):
            n = tx_segment(f, i, d.seg)
            dev_send_packet(d, e, d.seg, n, now)
        return
    if dev_send_small(d, f):
        return
    dev_vnet_of(f, &vnet)
    v[2].iov_base = f.hdr
    v[2].iov_len = f.hlen
    if f.l0:
        v[k].iov_base = <void*> f.p0
        v[k].iov_len = f.l0
        k += 1
    if f.l1:
        v[k].iov_base = <void*> f.p1
        v[k].iov_len = f.l1
        k += 1
    dev_send(d, e, v, k, &vnet, get32(f.hdr + 12), get32(f.hdr + 16), now)


# ---- packets in ------------------------------------------------------------------------------------------------------------------
cdef bint dev_strip(dev_t* d, engine_t* e, rxpkt_t* out, uint8_t* p, uint32_t n, ns_t now) noexcept nogil:
    """Take off what the link put in front; False: not an IPv4 packet (ARP has been answered)."""
    cdef vnet_t* vnet
    out.csum = CSUM_NONE
    out.gso_size = 0
    if d.vnet:
        if n < VNET_LEN:
            return False
        vnet = <vnet_t*> p
        if vnet.flags & VNET_NEEDS_CSUM:
            out.csum = CSUM_PARTIAL
        elif vnet.flags & VNET_DATA_VALID:
            out.csum = CSUM_VERIFIED
        if vnet.gso_type & ~VNET_GSO_ECN == VNET_GSO_TCPV4:
            out.gso_size = vnet.gso_size
        p += VNET_LEN
        n -= VNET_LEN
    if d.ether:
        if n < ETH_LEN:
            return False
        if get16(p + 12) == 0x806:
            arp_receive(d, e, p, n, now)
            return False
        if get16(p + 12) != 0x800 or n < ETH_LEN + 20:
            return False
        if p[0] & 1 == 0:
            arp_learn(d, get32(p + ETH_LEN + 12), p + 6, True, now)
        p += ETH_LEN
        n -= ETH_LEN
    out.p = p
    out.len = n
    return True


cdef uint32_t dev_read_batch(dev_t* d, engine_t* e, ns_t now) noexcept nogil:
    """Read until the descriptor is empty or the batch full; the packets are in d.pkts. The batch grows while packets keep coming and
    shrinks to what came when they do not, so that a lone packet costs no read that finds nothing before it is answered."""
    cdef uint32_t n = 0
    cdef uint32_t top = d.quota
    cdef size_t used = 0
    cdef ssize_t got
    if d.fd < 0 or d.failed:
        return 0
    while True:
        if n >= top or used + RX_MAX > RX_BUFFER:
            d.quota = top * 4 if top * 4 < BATCH else <uint32_t> BATCH
            return n
        got = sys_read(d.fd, d.rx + used, RX_MAX)
        if got <= 0:
            if got == 0:
                d.failed = E_PIPE
            elif got != -E_WOULDBLOCK and got != -E_INTR and got != -E_NETDOWN:
                d.failed = <int> -got
            d.quota = n if n else 1
            return n
        d.rx_packets += 1
        d.rx_bytes += <size_t> got
        if dev_strip(d, e, &d.pkts[n], d.rx + used, <uint32_t> got, now):
            n += 1
            used += (<size_t> got + 63) & ~<size_t> 63
