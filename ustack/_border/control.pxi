# Configuration and counters of an Engine: sysctls (numbers; names and strings: ustack/sysctl.py), routes, addresses, nstat, drop
# reasons, events. Plain functions on an Engine, so that the class itself stays readable. Included by _fastpath.pyx.

def sysctl_table_rows():
    """[(name, position, default, low, high), ...] of every numeric sysctl, in the table's order."""
    cdef int i
    return [((<bytes> sysctl_table[i].name).decode(), sysctl_table[i].pos, sysctl_table[i].deflt, sysctl_table[i].lo,
             sysctl_table[i].hi) for i in range(N_SYSCTLS)]


def sysctl_read(Engine engine not None, int row):
    """The value in row `row` of sysctl_table_rows()."""
    cdef int64_t v
    if not 0 <= row < N_SYSCTLS:
        raise IndexError(row)
    acquire_view(engine.e, &engine.s)
    v = (<int64_t*> (<char*> &engine.e.cfg + sysctl_table[row].offset))[0]
    release_view(engine.e, &engine.s)
    return v


def sysctl_write(Engine engine not None, int row, int64_t value):
    """Store a value whose range the caller has checked."""
    if not 0 <= row < N_SYSCTLS:
        raise IndexError(row)
    acquire(engine.e, &engine.s)
    (<int64_t*> (<char*> &engine.e.cfg + sysctl_table[row].offset))[0] = value
    if sysctl_table[row].offset == <size_t> (<char*> &engine.e.cfg.tcp_fastopen_blackhole_timeout_sec - <char*> &engine.e.cfg):
        engine.e.tfo_blackhole_times = 0        # a write forgets the suspicions
    release(engine.e, &engine.s)


def default_cc(Engine engine not None, name=None):
    """tcp_congestion_control: read it, or set it (OSError ENOENT for a name that is not registered)."""
    cdef bytes raw
    cdef int cc
    if name is not None:
        raw = name.encode()
        acquire(engine.e, &engine.s)
        cc = cc_by_name(engine.e, PyBytes_AS_STRING(raw), <uint32_t> len(raw))
        if cc >= 0:
            engine.e.default_cc = <uint8_t> cc
        engine._leave(-2 if cc < 0 else 0, f"no congestion control {name!r} here")
    return (<bytes> cc_name(engine.e, engine.e.default_cc)).decode()


def fastopen_keys(Engine engine not None, primary=None, backup=None):
    """tcp_fastopen_key: (primary, backup) of 16 bytes each or None; given arguments set them."""
    cdef bytes one
    cdef const char* p
    if primary is not None:
        if len(primary) != 16 or (backup is not None and len(backup) != 16):
            raise failure(E_INVAL, "a Fast Open key has 16 bytes")
        one = bytes(primary) + (bytes(backup) if backup is not None else bytes(16))
        p = PyBytes_AS_STRING(one)
        acquire(engine.e, &engine.s)
        memcpy(engine.e.fo_key, p, 16)
        memcpy(engine.e.fo_backup, p + 16, 16)
        engine.e.fo_key_set = 1
        engine.e.fo_has_backup = backup is not None
        release(engine.e, &engine.s)
    if not engine.e.fo_key_set:
        return None, None
    return ((<char*> engine.e.fo_key)[:16], (<char*> engine.e.fo_backup)[:16] if engine.e.fo_has_backup else None)


def reserved_ports(Engine engine not None, ports=None):
    """ip_local_reserved_ports as a sorted list; an iterable sets it."""
    cdef int i
    cdef bytes bits
    if ports is not None:
        table = bytearray(8192)
        for port in ports:
            table[port >> 3] |= 1 << (port & 7)
        bits = bytes(table)
        acquire(engine.e, &engine.s)
        memcpy(engine.e.reserved_ports, PyBytes_AS_STRING(bits), 8192)
        release(engine.e, &engine.s)
    return [i for i in range(65536) if engine.e.reserved_ports[i >> 3] & (1 << (i & 7))]


def ehash_entries(Engine engine not None):
    """Buckets of the connection hash table (fixed at creation)."""
    return engine.e.ehash.mask_full + 1


def set_cookie_phase(Engine engine not None, phase_ns):
    """Shift of the clock that counts the SYN cookie minutes, in ns."""
    acquire(engine.e, &engine.s)
    engine.e.cookie_phase = phase_ns
    release(engine.e, &engine.s)


def set_tick_phase(Engine engine not None, phase_ns):
    """Where between two ticks of the kernel's clock time 0 lies, in ns."""
    acquire(engine.e, &engine.s)
    engine.e.tick_phase = phase_ns
    release(engine.e, &engine.s)


def set_tso(Engine engine not None, uint32_t max_bytes):
    """Largest super-segment the core may build, headers included; 0 = one MSS at a time (`ethtool -K tso off gso off`)."""
    acquire(engine.e, &engine.s)
    engine.e.tso_max = max_bytes
    release(engine.e, &engine.s)


def set_refuse(Engine engine not None, bint refuse):
    """The link takes no frame (a queue of limit 0): every transmission is a local drop, tried again as Linux does."""
    acquire(engine.e, &engine.s)
    engine.e.tx_refuse = refuse
    release(engine.e, &engine.s)


# ---- addresses, routes, link ---------------------------------------------------------------------------------------------------
def change_address(Engine engine not None, op, uint32_t addr, uint8_t plen, bint any_of=False):
    cdef int err
    acquire(engine.e, &engine.s)
    if op == "add":
        err = addr_add(engine.e, addr, plen, any_of)
    else:
        err = addr_del(engine.e, addr, plen)
    engine._leave(err, f"address {op} {dotted(addr)}/{plen}")


def change_route(Engine engine not None, int op, dict fields):
    """One `ip route` command; op: 1 add, 2 change, 3 replace, 4 delete. fields: dst, plen, type and metrics by route_t's names."""
    cdef route_t r
    cdef int err
    memset(&r, 0, sizeof(r))
    known = set(fields)
    r.dst = fields.get("dst", 0)
    r.plen = fields.get("plen", 0)
    r.type = fields.get("type", 0)
    r.src = fields.get("src", 0)
    r.mtu = fields.get("mtu", 0)
    r.mtu_lock = fields.get("mtu_lock", 0)
    r.advmss = fields.get("advmss", 0)
    r.window = fields.get("window", 0)
    r.initcwnd = fields.get("initcwnd", 0)
    r.initrwnd = fields.get("initrwnd", 0)
    r.rto_min_ms = fields.get("rto_min_ms", 0)
    r.rtt_ms = fields.get("rtt_ms", 0)
    r.rttvar_ms = fields.get("rttvar_ms", 0)
    r.ssthresh = fields.get("ssthresh", 0)
    r.cwnd = fields.get("cwnd", 0)
    r.reordering = fields.get("reordering", 0)
    r.hoplimit = fields.get("hoplimit", 0)
    r.quickack = fields.get("quickack", 0)
    r.features = fields.get("features", 0)
    r.fastopen_no_cookie = fields.get("fastopen_no_cookie", 0)
    r.cc = fields.get("cc", 0)
    r.metric_lock = fields.get("metric_lock", 0)
    known -= {"dst", "plen", "type", "src", "mtu", "mtu_lock", "advmss", "window", "initcwnd", "initrwnd", "rto_min_ms", "rtt_ms",
              "rttvar_ms", "ssthresh", "cwnd", "reordering", "hoplimit", "quickack", "features", "fastopen_no_cookie",
              "cc", "metric_lock"}
    if known:
        raise failure(E_INVAL, f"unknown route metrics {sorted(known)}")
    acquire(engine.e, &engine.s)
    err = route_change(engine.e, &r, op)
    engine._leave(err, f"route {dotted(r.dst)}/{r.plen}")


def set_default_route(Engine engine not None, bint on):
    acquire(engine.e, &engine.s)
    route_default(engine.e, on)
    release(engine.e, &engine.s)


def set_mtu(Engine engine not None, uint32_t mtu):
    if not 68 <= mtu <= 65535:
        raise failure(E_INVAL, f"mtu {mtu} is not between 68 and 65535")
    acquire(engine.e, &engine.s)
    link_set_mtu(engine.e, mtu)
    release(engine.e, &engine.s)


def flush_route_cache(Engine engine not None):
    """`ip route flush cache`, net.ipv4.route.flush: forgets the path MTUs that were learned."""
    acquire(engine.e, &engine.s)
    pmtu_flush(engine.e)
    release(engine.e, &engine.s)


def flush_metrics(Engine engine not None):
    """`ip tcp_metrics flush`."""
    acquire(engine.e, &engine.s)
    metrics_flush(engine.e)
    release(engine.e, &engine.s)


def addresses(Engine engine not None):
    """[(address, prefix length, whole prefix is ours), ...]"""
    cdef uint32_t i
    return [(dotted(engine.e.addrs[i].addr), engine.e.addrs[i].plen, bool(engine.e.addrs[i].any_of))
            for i in range(engine.e.n_addrs)]


# ---- counters ------------------------------------------------------------------------------------------------------------------
cdef list MIB_NAMES = [(<bytes> mib_name(i)).decode() for i in range(MIB_COUNT)]
cdef list DROP_NAMES = [(<bytes> drop_name(i)).decode() for i in range(DROP_REASONS)]


def counters(Engine engine not None):
    """Every MIB counter by nstat's name, zeros included, in the kernel's order; the IcmpMsg ones that are not zero."""
    cdef uint64_t copy[MIB_COUNT]
    cdef uint64_t icmp_in[256]
    cdef uint64_t icmp_out[256]
    cdef int i
    acquire_view(engine.e, &engine.s)
    memcpy(copy, engine.e.stats.mib, sizeof(copy))
    memcpy(icmp_in, engine.e.stats.icmp_in_type, sizeof(icmp_in))
    memcpy(icmp_out, engine.e.stats.icmp_out_type, sizeof(icmp_out))
    release_view(engine.e, &engine.s)
    out = {MIB_NAMES[i]: copy[i] for i in range(MIB_COUNT)}
    for i in range(256):
        if icmp_in[i]:
            out[f"IcmpMsgInType{i}"] = icmp_in[i]
    for i in range(256):
        if icmp_out[i]:
            out[f"IcmpMsgOutType{i}"] = icmp_out[i]
    return out


def drop_counters(Engine engine not None):
    """Packets discarded by reason, those that occurred."""
    cdef uint64_t copy[DROP_REASONS]
    cdef int i
    acquire_view(engine.e, &engine.s)
    memcpy(copy, engine.e.stats.drops, sizeof(copy))
    release_view(engine.e, &engine.s)
    return {DROP_NAMES[i]: copy[i] for i in range(DROP_REASONS) if copy[i]}


def drop_reason(int reason):
    """The name of a number that receive() returned."""
    return DROP_NAMES[reason] if 0 <= reason < DROP_REASONS else None


cdef enum:
    N_POOLS = 14

cdef tuple pool_names = ("requests", "sockets", "time_wait", "listeners", "groups", "bind", "send_records", "receive_records", "extensions",
                         "waiters", "fragments", "socket_options", "socket_losses", "congestion")


cdef void pools_of(engine_t* e, pool_t** out) noexcept:
    """The pools whose objects belong to connections, in the order of pool_names."""
    out[0] = &e.req
    out[1] = &e.tcb
    out[2] = &e.tw
    out[3] = &e.lst
    out[4] = &e.grp
    out[5] = &e.bindb
    out[6] = &e.srec
    out[7] = &e.rrec
    out[8] = &e.ext
    out[9] = &e.wait
    out[10] = &e.frag
    out[11] = &e.opt
    out[12] = &e.los
    out[13] = &e.ca


def pool_usage(Engine engine not None):
    """Objects in use per pool, pages charged to sockets, orphans: what must be zero when everything is closed."""
    cdef pool_t* pools[N_POOLS]
    cdef uint32_t used[N_POOLS]
    cdef int64_t pages
    cdef uint32_t orphans
    cdef int i
    acquire_view(engine.e, &engine.s)
    pools_of(engine.e, pools)
    for i in range(N_POOLS):
        used[i] = pools[i].used
    pages = engine.e.mem_pages
    orphans = engine.e.n_orphans
    release_view(engine.e, &engine.s)
    out = {pool_names[i]: used[i] for i in range(N_POOLS)}
    out["memory_pages"] = pages
    out["orphans"] = orphans
    return out


def pool_strides(Engine engine not None):
    """Bytes per object of each pool, by pool_usage's names; "hash_bucket" is one bucket of the connection table."""
    cdef pool_t* pools[N_POOLS]
    cdef int i
    pools_of(engine.e, pools)
    out = {pool_names[i]: pools[i].stride for i in range(N_POOLS)}
    out["hash_bucket"] = sizeof(ref_t)
    return out


def buffer_bytes(Engine engine not None):
    """Bytes of send and receive buffers that sockets hold now."""
    cdef uint32_t i
    cdef uint64_t n = 0
    cdef tcb_t* sk
    acquire(engine.e, &engine.s)
    for i in range(1, engine.e.tcb.high + 1):
        if pool_gen(&engine.e.tcb, i) & 1:
            sk = sk_at(engine.e, i)
            n += sk.snd.size + sk.rcv.size
    release(engine.e, &engine.s)
    return n


# ---- events --------------------------------------------------------------------------------------------------------------------
def set_event_ring(Engine engine not None, uint32_t capacity):
    """Room for `capacity` events (drops, state changes, log lines); 0 = off. Overflow is counted, never blocks."""
    cdef event_t* ring = NULL
    cdef event_t* old
    if capacity:
        ring = <event_t*> calloc(capacity, sizeof(event_t))
        if ring == NULL:
            raise MemoryError
    acquire(engine.e, &engine.s)
    old = engine.e.ev
    engine.e.ev = ring
    engine.e.ev_cap = capacity
    engine.e.ev_head = 0
    engine.e.ev_n = 0
    release(engine.e, &engine.s)
    free(old)


def take_events(Engine engine not None):
    """([(time, kind, arg, a, b, c, flow), ...], lost): everything since the last call. kind: 1 drop, 2 state, 3 log line."""
    cdef event_t* copy
    cdef uint32_t n
    cdef uint32_t i
    cdef uint64_t lost
    cdef list out = []
    acquire(engine.e, &engine.s)
    n = engine.e.ev_n
    lost = engine.e.ev_lost
    copy = <event_t*> malloc((n + 1) * sizeof(event_t))
    if copy != NULL:
        for i in range(n):
            copy[i] = engine.e.ev[(engine.e.ev_head + i) % engine.e.ev_cap]
        engine.e.ev_n = 0
        engine.e.ev_head = 0
        engine.e.ev_lost = 0
    release(engine.e, &engine.s)
    if copy == NULL:
        raise MemoryError
    for i in range(n):
        out.append((copy[i].at, copy[i].kind, copy[i].arg, copy[i].a, copy[i].b, copy[i].c,
                    py_flow(copy[i].flow.laddr, copy[i].flow.lport, copy[i].flow.faddr, copy[i].flow.fport)))
    free(copy)
    return out, lost
