"""Stack: an engine, a link and a driver; the object users hold.

`Stack(link, address)` runs at once on an engine thread; `Stack(link, address, clock=VirtualClock())` is driven by hand in virtual time.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ustack import _fastpath, congestion, klog
from ustack._socket import Socket, _pair
from ustack.clock import VirtualClock
from ustack.drivers.manual import Completion, ManualDriver
from ustack.errors import failure
from ustack.events import EventStream, MergedStream, open_stream
from ustack.route import parse_address, parse_route
from ustack.sysctl import Sysctl

if TYPE_CHECKING:
    from ustack.drivers.base import Driver
    from ustack.links.base import Link

_names = itertools.count()


class Stack:
    """A TCP/IPv4 stack.

    link     a Link (TunLink, RawLink, MemoryLink, ...); None with a VirtualClock: packets go through inject() and run_until().
    address  "a.b.c.d/len", several of them, or a whole prefix ("192.0.2.0/24": every address of it is ours).
    sysctl   {"net.ipv4.tcp_syncookies": 2, ...}: the stack's own, by Linux names.
    seed     int or bytes: all randomness (ISN, cookies, ports, hash keys); default: os.urandom, or a constant in virtual time.
    clock    a VirtualClock for the manual driver. mtu: the link's, default 1500. ehash_entries: buckets of the connection table.
    queues   engine threads, one per queue of the link (default: as many as the link has). Each is a stack of its own with the same keys
             ("shard"): connections belong to the shard on whose queue they came, those the program opens to the first. Limits, accept
             queues, caches and counters are per shard; a listener is one on each, accept() takes from any.
    busy_poll_us  read on for so long after a packet before an engine thread sleeps, while packets come that close together. 0: never.
             Default: 50 us at most, and only while that costs no more CPU time than the sleeps that it saves.
    parity   never share an ACK between the segments of a batch (on an engine thread; in virtual time nothing is ever shared).
    default_route  every unicast destination is reachable through the link; False: only prefixes of addresses and routes added.
    """

    def __init__(self, link: Link | None, address: str | Iterable[str], *, sysctl: Mapping[str, object] | None = None,
                 seed: int | bytes | None = None, name: str | None = None, clock: VirtualClock | None = None,
                 ehash_entries: int | None = None, mtu: int | None = None, wall_offset_ns: int | None = None,
                 cookie_phase_ns: int = 0, default_route: bool = True, limits: Mapping[str, int] | None = None,
                 queues: int | None = None, busy_poll_us: float | None = None, parity: bool = False) -> None:
        self.name = name or f"stack{next(_names)}"
        self.stopped = False
        self.default_timeout: float | None = None
        if isinstance(address, str):
            address = [address]
        addresses = list(address)
        for one in addresses:
            ipaddress.IPv4Interface(one)
        self.clock = clock
        self.tap: Any = None
        if mtu is None:
            mtu = link.mtu if link is not None and link.mtu else 1500
        if seed is None and clock is None:
            seed = os.urandom(32)
        if wall_offset_ns is None:
            wall_offset_ns = clock.wall if clock is not None else _wall_offset()
        if queues is None:
            queues = link.queues if link is not None and clock is None else 1
        self.engines = [_fastpath.Engine(
            addresses, sysctl=sysctl, seed=seed, wall_offset_ns=wall_offset_ns, now=0 if clock is not None else time.monotonic_ns(),
            ehash_entries=ehash_entries or 0, mtu=mtu, cookie_phase_ns=cookie_phase_ns, default_route=default_route,
            limits=dict(limits) if limits else None, lazy_timers=clock is None,
        ) for _ in range(queues)]
        self.engine = self.engines[0]
        self.sysctl = Sysctl(*self.engines)
        self.link_device = link
        self.drivers: list[Driver]
        self.shards: _fastpath.Shards | None = None
        if clock is not None:
            if queues != 1:
                raise ValueError("a stack in virtual time has one queue")
            self._by_hand = ManualDriver(self.engine, clock)
            self.drivers = [self._by_hand]
            if link is not None:
                link.attach_manual(self, self._by_hand)
        else:
            if link is None:
                raise ValueError("a stack without a VirtualClock needs a link: TunLink(name), RawLink(ifname), MemoryLink() ...")
            from ustack.drivers.threaded import ThreadedDriver

            ports = link.open_queues(self, queues)
            shards = self.shards = _fastpath.Shards(self.engines) if queues > 1 else None
            self.drivers = [ThreadedDriver(self, engine, link, port, number=i, shards=shards, coalesce=not parity, busy_poll_us=busy_poll_us)
                            for i, (engine, port) in enumerate(zip(self.engines, ports, strict=True))]
        self._driver = self.drivers[0]
        for driver in self.drivers:
            driver.start()
        klog.hash_tables(self.engine)

    # ---- sockets -----------------------------------------------------------------------------------------------------------
    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> Socket:
        """A TCP socket of this stack; arguments as socket.socket (AF_INET, SOCK_STREAM)."""
        self._alive()
        if family != 2:
            raise failure(errno.EAFNOSUPPORT, "ustack speaks IPv4 only")
        if type & 0xF != 1 or proto not in (0, 6):
            raise failure(errno.EPROTONOSUPPORT, "ustack speaks TCP only")
        sock = Socket(self)
        if type & 0x800:
            sock.setblocking(False)
        return sock

    def create_server(self, address: Any, *, backlog: int | None = None, reuse_port: bool = False) -> Socket:
        """Bind and listen, SO_REUSEADDR set, as socket.create_server. backlog None: somaxconn or 128, the smaller."""
        sock = self.socket()
        try:
            sock.setsockopt(1, 2, 1)
            if reuse_port:
                sock.setsockopt(1, 15, 1)
            sock.bind(_pair(address))
            sock.listen(min(128, int(self.sysctl["net.core.somaxconn"])) if backlog is None else backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def create_connection(self, address: Any, timeout: float | None = None, source_address: Any = None) -> Socket:
        """Connect to (host, port), as socket.create_connection."""
        sock = self.socket()
        try:
            if timeout is not None:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    # ---- views -------------------------------------------------------------------------------------------------------------
    def nstat(self, zeros: bool = False) -> dict[str, int]:
        """The MIB counters by nstat's names, in the kernel's order; zeros on request."""
        counters = _summed(_fastpath.counters(e) for e in self.engines)
        return counters if zeros else {k: v for k, v in counters.items() if v}

    def drops(self, listener: Socket | None = None) -> dict[str, int]:
        """Packets discarded, by reason (Linux's names where the kernel has one); of one listener: those it decided about."""
        if listener is None:
            return _summed(_fastpath.drop_counters(e) for e in self.engines)
        return _summed(_fastpath.listener_drops(engine, handle) for engine, handle in listener.places())

    def events(self, capacity: int = 65536) -> EventStream | MergedStream:
        """A stream of what happens from now on: drops, state changes, accept queues, retransmissions, log lines (ustack/events.py).
        Without one the engine keeps no events. capacity: how many may wait, of each queue; the oldest are lost, and counted."""
        parts = [open_stream(engine, capacity, shard=i) for i, engine in enumerate(self.engines)]
        return parts[0] if len(parts) == 1 else MergedStream(parts)

    def ss(self, args: str | Sequence[str] = "-tan") -> list[dict[str, Any]]:
        """The rows of `ss ARGS`: {"state", "recvq", "sendq", "local", "peer", "info"}."""
        from ustack.observe import ss

        return ss.rows(self.dump(), args, self.where())

    def ss_text(self, args: str | Sequence[str] = "-tan", width: int | None = None) -> str:
        """What `ss ARGS` prints, byte for byte. width: columns of the terminal; None: stdout is no terminal."""
        from ustack.observe import ss

        query = ss.parse(args)
        head = ss.summary(self.dump(), self.n_sockets()) if "s" in query.flags else ""
        if head and not query.tables:
            return head
        return head + ss.print_cells(self.ss_cells(args), query, width)

    def ss_cells(self, args: str | Sequence[str] = "-tan") -> list[list[str]]:
        """The cells of ss's table before they are laid out in columns (ustack.observe.ss.print_cells)."""
        from ustack.observe import ss

        return ss.cells(self.dump(), ss.parse(args), self.where())

    def netstat(self, args: str = "-s") -> str:
        """What net-tools' `netstat ARGS` prints: statistics (-s) or sockets (-antp, -l, -e, -o)."""
        from ustack.observe import netstat

        flags = netstat.parse(args)
        if "s" in flags:
            return netstat.statistics(netstat.counters(self), flags)
        table = [] if flags & {"u", "w"} and "t" not in flags else self.dump()
        return netstat.sockets(table, flags, self.where()) + ("" if flags & {"t", "u", "w", "4"} else netstat.unix_sockets(flags))

    def n_sockets(self) -> int:
        """TCP sockets there are, unbound ones and orphans too; no half-open connections, no TIME_WAIT."""
        return sum(int(_fastpath.accounting(engine)["sockets"]) for engine in self.engines)

    def where(self) -> Any:
        """This process and the ephemeral ports, as ss's words need them (ustack.observe.ss.Where)."""
        from ustack.observe.ss import Where

        low, high = self.sysctl["net.ipv4.ip_local_port_range"].split()
        return Where.here((int(low), int(high)))

    def requests(self, listener: Socket | None = None) -> list[dict[str, Any]]:
        """Every half-open connection (of one listener), the oldest first.

        local, peer          (address, port)
        age_ns               since its SYN; None when its listener is closed. Without timestamps a repeated SYN makes it younger.
        num_retrans          SYN-ACKs sent again; num_timeout: those by the timer
        timer_expires_ns     until the timer fires next
        young                never retransmitted by the timer
        waits_for            "ACK"; when the third ACK has come: "data" (TCP_DEFER_ACCEPT) or "accept queue" (it was full)
        mss, wscale, sack, timestamps, ecn    the client's options: wscale (the client's, ours) or None
        isn, client_isn, rwnd                 ours, the client's, our window
        """
        from ustack.observe.queues import requests

        place = None if listener is None else listener.getsockname()
        return requests(self.dump(), place)

    def queues(self) -> list[dict[str, Any]]:
        """Every listener with its two queues, their limits, high-water marks and counters (ustack/observe/queues.py)."""
        from ustack.observe.queues import queues

        return queues(self.dump())

    def dump(self) -> list[dict[str, Any]]:
        """Every listener, socket, half-open connection and TIME_WAIT record with its raw fields; with several queues also "shard": (number, of)."""
        found: list[dict[str, Any]] = []
        for i, (driver, engine) in enumerate(zip(self.drivers, self.engines, strict=True)):
            driver.before_call()
            rows = _fastpath.dump(engine)
            if len(self.engines) > 1:
                for row in rows:
                    row["shard"] = i, len(self.engines)
            found += rows
        return found

    def pools(self) -> dict[str, int]:
        """Objects in use per pool; what a leak check compares."""
        return _summed(_fastpath.pool_usage(e) for e in self.engines)

    # ---- hooks -------------------------------------------------------------------------------------------------------------
    def on(self, name: str, function: Callable[[Any], Any] | None = None) -> Any:
        """Call function(view) at the decision `name` (ustack/hooks.py, docs/hooks.md); returns a Hook with .remove(). Without a function: a
        decorator. ValueError for a hook that needs C beside an engine thread. With several queues: at each of them."""
        if self.engine.hookset is None:
            _fastpath.share_hooks(self.engines)
        return self.engine.on(name, function)

    def set_hooks(self, capsule: object) -> None:
        """Install a C op-table (a PyCapsule of hooks_t, core/hooks.pxd), or None for none. With several queues each engine thread calls it."""
        for engine in self.engines:
            engine.set_hooks(capsule)

    def add_congestion_control(self, capsule: object) -> None:
        """Register a congestion control in C (a PyCapsule of cc_ops_t, core/cc.pxd, docs/congestion.md): its name can then be chosen as a
        built-in's. ValueError for another capsule; OSError(EINVAL, EEXIST, ENOSPC) for a table that will not do. For Python see
        ustack.congestion."""
        for engine in self.engines:
            _fastpath.cc_add_table(engine, capsule)

    def bring_notes(self, engine: _fastpath.Engine) -> None:
        """Log lines, parked connections and late hooks: what the core leaves for Python. The driver's matter; one thread for each engine, so that
        what was parked goes on in its order."""
        klog.emit(engine)
        if engine.hookset is not None and engine.hookset.threaded:
            engine.hookset.pump()
            _fastpath.resume_parked(engine)

    # ---- configuration -----------------------------------------------------------------------------------------------------
    def route(self, command: str) -> None:
        """Words of `ip route`: "add 198.51.100.0/24 dev tun0 advmss 700", "change ... mtu lock 1300", "del ...", "flush cache" (forget the
        path MTUs that ICMP has told)."""
        if command.split() == ["flush", "cache"]:
            self.sysctl["net.ipv4.route.flush"] = 1
            return
        for name in re.findall(r"\bcongctl (?:lock )?(\S+)", command):
            congestion.provide(self.engine, name)
        op, fields = parse_route(command, _fastpath.cc_names(self.engine))
        for engine in self.engines:
            _fastpath.change_route(engine, op, fields)

    def address(self, op: str, text: str) -> None:
        """Words of `ip addr`: address("add", "192.0.2.3/24 dev tun0"), address("del", ...)."""
        addr, plen = parse_address(text)
        for engine in self.engines:
            _fastpath.change_address(engine, op, addr, plen)

    def tcp_metrics_flush(self) -> None:
        """`ip tcp_metrics flush`."""
        for engine in self.engines:
            _fastpath.flush_metrics(engine)

    def link(self, mtu: int | None = None, *, refuse: bool | None = None, super_segments: bool | None = None) -> None:
        """Words of `ip link set`: a new MTU takes effect at once, as on a device.

        refuse          the device queue takes no packet (`tc qdisc ... pfifo limit 0`).
        super_segments  manual driver: hand out (time, packet, gso_size) as the core made them, uncut.
        """
        if mtu is not None:
            for engine in self.engines:
                _fastpath.set_mtu(engine, mtu)
        if refuse is not None:
            for engine in self.engines:
                _fastpath.set_refuse(engine, refuse)
        if super_segments is not None:
            self._manual().gso = super_segments

    def set_cookie_phase(self, phase_ns: int) -> None:
        """Shift the minutes in which SYN cookies age, in ns."""
        for engine in self.engines:
            _fastpath.set_cookie_phase(engine, phase_ns)

    def set_tick_phase(self, phase_ns: int) -> None:
        """How long before virtual time 0 the last tick (4 ms) was, in ns: what CUBIC and BBR count in ticks depends on it."""
        for engine in self.engines:
            _fastpath.set_tick_phase(engine, phase_ns)

    # ---- the manual driver ---------------------------------------------------------------------------------------------------
    def _manual(self) -> ManualDriver:
        if self.clock is None:
            raise RuntimeError("only a stack with a VirtualClock is driven by hand; this one runs on its engine thread")
        return self._by_hand

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        """One packet from the network at virtual time `at` (ns; default now). Returns the drop reason's number, 0 = taken."""
        return self._manual().inject(packet, at, csum, gso_size)

    def run_until(self, t: int) -> list[Any]:
        """Fire every timer up to and including t; [(time, packet), ...] of all that was sent since the last take."""
        driver = self._manual()
        driver.clock.advance(t)
        return driver.take()

    def take(self) -> list[Any]:
        """What was sent since the last take, without moving the clock."""
        return self._manual().take()

    def next_timeout(self) -> int | None:
        """Virtual time of the next timer of this stack, or None."""
        return self._manual().next_timeout()

    def submit(self, sock: Any, op: str, *args: Any, **kwargs: Any) -> Completion:
        """Start sock.op(*args); if it would block it completes while the clock runs: Completion(done, result, errno, at)."""
        return self._manual().submit(lambda: getattr(sock, op)(*args, **kwargs))

    # ---- used by Socket ------------------------------------------------------------------------------------------------------
    def _alive(self) -> None:
        if self.stopped:
            raise failure(errno.EBADF, "the stack was stopped")

    # ---- end -----------------------------------------------------------------------------------------------------------------
    def stop(self) -> None:
        """End the engine thread and the link; connections die without a word. Idempotent."""
        if self.stopped:
            return
        self.stopped = True
        for driver in self.drivers:
            driver.stop()
        if self.engine.hookset is not None:
            self.engine.hookset.clear()
        if self.link_device is not None:
            self.link_device.close()

    close = stop

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "clock", None) is None and not getattr(self, "stopped", True) and hasattr(self, "drivers"):
            _warn(f"unstopped {self!r}", ResourceWarning, source=self)
            with contextlib.suppress(Exception):
                self.stop()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<ustack.Stack {self.name}{' (stopped)' if self.stopped else ''}>"


def _summed(tables: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counters of all shards together."""
    total: dict[str, int] = {}
    for table in tables:
        for name, count in table.items():
            total[name] = total.get(name, 0) + count
    return total


def _wall_offset() -> int:
    """What added to the monotonic clock gives the wall clock."""
    return time.time_ns() - time.monotonic_ns()
