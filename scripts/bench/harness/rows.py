"""What is measured. A row says how one sample of a peer is taken and what must hold of the medians.

Each sample has `value` (the figure of the row) and, where they apply, `cpu_ns` (CPU time of the server's process per operation; on veth the
kernel's work is mostly in soft interrupts and is not in it), `lost` (the share of the time that server and client waited for a core, or the host
took one away: over NOISY the sample counts only if there are too few better ones), p50 and p99 in microseconds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import build, net
from .peers import Peer
from .process import Failed, Holder, Server, client, scheduled, stolen

Sample = dict[str, float]

MANY = 1_000_000            # half-open connections of the `many` row
BURST = 50_000              # SYNs of which the cost is taken at few and at many half-open connections
FEW = 1_000
# A SYN-ACK is sent again after 1, 3, 7, 15 and 31 s, and the entry goes after 63 s: none is sent between 7 s after the last SYN and 15 s after the
# first, nor between 15 and 31 s, nor between 31 and 63 s.
QUIET = ((7.3, 14.8), (15.3, 30.8), (31.3, 62.0))
QUIET_NEEDED_S = 2.5
FILL_MOST_S = 28
VETH_PER_S = 50_000
FEW_PER_S = 20_000
BESIDE_SHARE = 0.8
DEEP_QUEUE = 50_000         # packets
IDLE_AFTER_S, IDLE_SECONDS = 1.0, 2.0
SPARE_FILES = 64
FLOOD_SECONDS = 0.7         # under 1 s, so no SYN-ACK of this flood is sent again while it is counted
SETTLE_S = 0.05
FREED_S = 0.3               # what the kernel frees after a grace period is free


@dataclass
class Plan:
    """How long a sample takes; --quick shortens it."""

    seconds: float = 0.7
    many: int = MANY
    hold: int = 100_000
    quick: bool = False         # one round of the rows that take long


@dataclass(frozen=True)
class Row:
    """unit: of the value; better: "more" or "less"; to_limit, to_kernel: what the ratio of the medians must reach."""

    name: str
    title: str
    unit: str
    take: Callable[[Peer, Server, Plan], Sample]
    mode: str = "tcp"
    better: str = "more"
    to_limit: float | None = None
    to_kernel: float | None = None
    most: float | None = None               # the value itself must not exceed this
    without: frozenset[str] = frozenset()   # peers that cannot run it or have no such thing
    rounds: int | None = None               # fewer than the others, because one takes long
    keeps: bool = False                     # the server is as good as new afterwards and may serve the next sample


def run_client(peer: Peer, server: Server, *words: str, cpu: int | None = None, timeout: float = 60) -> Sample:
    """A client on the client's core; adds the server's CPU seconds (`cpu_s`) and the share lost to others (`lost`)."""
    wire = peer.wire()
    ran, waited = scheduled(server.pid)
    away, start = stolen(), time.monotonic()
    values = client(wire.inside(wire.client, *words, "-c", str(peer.machine.client_cpu if cpu is None else cpu)), timeout)
    wall = time.monotonic() - start
    ran_after, waited_after = scheduled(server.pid)
    if not server.alive():
        raise Failed(f"{peer.name} ended: {server.errors()}")
    waited = 0.0 if cpu == peer.machine.server_cpu else waited_after - waited + values.get("waited_s", 0.0)
    return {**values, "cpu_s": ran_after - ran, "lost": (waited + stolen() - away) / wall}


# ---- SYNs ---------------------------------------------------------------------------------------------------------------------
def flood(peer: Peer, server: Server, seconds: float, *, first: int = 0, count: int = 0, rate: float = 0) -> Sample:
    """SYNs from clients number `first` on, and what the server answered: value per second, cpu_ns per answer."""
    words = [build.program("flood"), "-t", net.SERVER, "-d", str(seconds), "-o", str(first)]
    words += ["-n", str(count)] if count else []
    words += ["-r", f"{rate:.0f}"] if rate else []
    before = peer.wire().packets_sent(server.pid)
    got = run_client(peer, server, *words)
    time.sleep(SETTLE_S)
    answered = peer.wire().packets_sent(server.pid) - before
    return {"value": answered / got["seconds"], "answered": answered, "sent": got["sent"], "offered_per_s": got["per_s"], "lost": got["lost"],
            "cpu_ns": got["cpu_s"] * 1e9 / answered if answered else 0.0}


def take_flood(peer: Peer, server: Server, plan: Plan) -> Sample:
    return flood(peer, server, min(plan.seconds, FLOOD_SECONDS))


def fill(peer: Peer, server: Server, first: int, target: int, least: int | None = None) -> int:
    """Half-open connections until there are `target`, from clients number `first` on; the first client not used. Lossless where the queue can be
    made long enough: what goes out at once fits in it, and is waited for. Failed if they do not come to `least` (default: target) in time."""
    wire, end = peer.wire(), time.monotonic() + FILL_MOST_S
    chunk, rate = (DEEP_QUEUE * 4 // 5, 0) if wire.sent == "rx" else (BURST, VETH_PER_S)
    wire.queue(DEEP_QUEUE)
    half_open = peer.half_open(server)
    while half_open < target and time.monotonic() < end:
        last = first + target - half_open
        while first < last and time.monotonic() < end:
            n = min(chunk, last - first)
            taken = wire.packets_taken(server.pid) + n
            flood(peer, server, 10, first=first, count=n, rate=rate)
            first += n
            while wire.packets_taken(server.pid) < taken and time.monotonic() < end and not rate:
                time.sleep(0.002)
        half_open = peer.half_open(server)
    wire.queue()
    if half_open < (target if least is None else least):
        raise Failed(f"{peer.name}: {half_open:,} half-open connections instead of {target:,}")
    return first


def take_many(peer: Peer, server: Server, plan: Plan) -> Sample:
    """A flood on top of `plan.many` half-open connections; cpu_ns per SYN of a burst at few and at many of them (few_ns, many_ns)."""
    if peer.name.startswith("limit"):
        return take_flood(peer, server, plan)
    flood(peer, server, 10, count=FEW, rate=FEW_PER_S)
    few = flood(peer, server, 10, first=FEW, count=BURST)
    start = time.monotonic()
    unused = fill(peer, server, FEW + BURST, plan.many)
    last = time.monotonic()
    quiet_from = next(after for after, before in QUIET if last - start + after < before - QUIET_NEEDED_S)
    time.sleep(max(0.0, last + quiet_from - time.monotonic()))
    burst = flood(peer, server, 10, first=unused, count=BURST)
    out = flood(peer, server, FLOOD_SECONDS, first=unused + BURST)
    out.update(few_ns=few["cpu_ns"], many_ns=burst["cpu_ns"], growth=burst["cpu_ns"] / few["cpu_ns"])
    return out


def take_core(peer: Peer, server: Server, plan: Plan) -> Sample:
    """Without device and system calls: the core's CPU time per SYN on top of `plan.many` half-open connections; growth: against a thousand."""
    assert peer.machine.ustack is not None
    words = [sys.executable, str(build.BENCH / "syn"), "-j", "--repeat", "1", "--build", str(peer.machine.ustack.resolve()), str(FEW), str(plan.many)]
    done = subprocess.run(["taskset", "-c", str(peer.machine.server_cpu), *words], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{peer.name}: {done.stderr.strip()[-300:]}")
    few, many = (json.loads(line) for line in done.stdout.splitlines())
    return {"value": many["ns"], "few_ns": few["ns"], "growth": many["ns"] / few["ns"], "cookie_ns": many["cookie_ns"]}


def take_beside_flood(peer: Peer, server: Server, plan: Plan) -> Sample:
    """connect() of an honest client, again and again, while a flood is answered by cookies: as fast as the server answers without the device's
    queue running over, since what is lost there never reaches it. Both share the client's core, so the honest client goes first there."""
    wire, cpu = peer.wire(), str(peer.machine.client_cpu)
    rate = BESIDE_SHARE * flood(peer, server, plan.seconds / 2)["value"]
    words = [build.program("flood"), "-t", net.SERVER, "-d", str(plan.seconds + 0.6), "-r", f"{rate:.0f}", "-c", cpu]
    flooding = subprocess.Popen(wire.inside(wire.client, *words), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        got = run_client(peer, server, "chrt", "-f", "1", build.program("load"), "probe", "-t", net.SERVER, "-d", str(plan.seconds))
    finally:
        flooding.wait()
    if "p99_us" not in got:
        raise Failed(f"{peer.name}: no connect() succeeded: {got}")
    return {"value": got["p99_us"], "flood_per_s": rate, **{k: got[k] for k in ("p50_us", "p99_us", "failed", "connects")}}


# ---- connections, requests, bulk, round trips ---------------------------------------------------------------------------------
def load(work: str, *words: str, spin: bool = False, same_core: bool = False) -> Callable[[Peer, Server, Plan], Sample]:
    """One run of the load program."""
    def take(peer: Peer, server: Server, plan: Plan) -> Sample:
        cpu = peer.machine.server_cpu if same_core else None
        seconds = plan.seconds * peer.stretch
        got = run_client(peer, server, build.program("load"), work, "-t", net.SERVER, "-d", str(seconds), *words,
                         *(["-s"] if spin else []), cpu=cpu)
        value = got.get("mb_per_s", got.get("per_s", 0.0))
        done = got["bytes"] if "bytes" in got else value * seconds
        out = {"value": value, "lost": got["lost"], "cpu_ns": got["cpu_s"] * 1e9 / max(done, 1)}
        out.update({k: got[k] for k in ("p50_us", "p99_us", "failed", "retransmitted") if k in got})
        return out
    return take


def echo(*, spin: bool = False, same_core: bool = False) -> Callable[[Peer, Server, Plan], Sample]:
    inner = load("echo", spin=spin, same_core=same_core)

    def take(peer: Peer, server: Server, plan: Plan) -> Sample:
        got = inner(peer, server, plan)
        if "p50_us" not in got:
            raise Failed(f"{peer.name}: no round trips: {got}")
        return {**got, "value": got["p50_us"]}
    return take


# ---- memory -------------------------------------------------------------------------------------------------------------------
def take_half_open_bytes(peer: Peer, server: Server, plan: Plan) -> Sample:
    """Per half-open connection: what the process, or the kernel's caches, grew by, divided by how many there are in the end. On veth some SYNs
    are lost, and the kernel frees a request whose SYN-ACK was refused a little later: there half of what was asked for is enough."""
    more = plan.many if peer.name == "ustack" else BURST
    flood(peer, server, 10, count=BURST // 2)
    time.sleep(FREED_S)
    before, had = peer.memory(server), peer.half_open(server)
    enough = more // 2 if peer.wire().sent == "tx" else more
    fill(peer, server, BURST, had + more, least=had + enough)
    time.sleep(FREED_S)
    after, have = peer.memory(server), peer.half_open(server)
    if have - had < enough:
        raise Failed(f"{peer.name}: {have - had:,} more half-open connections instead of {more:,}")
    return {"value": (after - before) / (have - had), "half_open": have}


def hold(peer: Peer, n: int) -> list[Holder]:
    """n connections, held by as many processes as the limit of open files asks for."""
    wire = peer.wire()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
    parts = [most] * (n // most) + ([n % most] if n % most else [])
    holders: list[Holder] = []
    for part in parts:
        words = [build.program("load"), "hold", "-t", net.SERVER, "-C", str(part), "-w", "30", "-c", str(peer.machine.client_cpu)]
        try:
            holders.append(Holder(wire.inside(wire.client, *words)))
        except Failed:
            for one in holders:
                one.stop()
            raise
    return holders


def take_connection_bytes(peer: Peer, server: Server, plan: Plan) -> Sample:
    """Per idle established connection: what the process grew by, or what the server says if its pools are static. The kernel has both ends in
    it, so half of what it takes. Also the CPU share of the idle server."""
    n = min(plan.hold, peer.most_held)
    before = peer.memory(server)
    holders = hold(peer, n)
    try:
        time.sleep(SETTLE_S)
        got, after = sum(h.values["open"] for h in holders), peer.memory(server)
        time.sleep(IDLE_AFTER_S)        # what follows a connection's birth is over
        ran, _ = scheduled(server.pid)
        time.sleep(IDLE_SECONDS)
        idle = (scheduled(server.pid)[0] - ran) / IDLE_SECONDS
    finally:
        for one in holders:
            one.stop()
        time.sleep(IDLE_AFTER_S)
    if got < n * 0.99:
        raise Failed(f"{peer.name}: {got} connections instead of {n}")
    each = server.connection_bytes or (after - before) / got / (2 if peer.name == "kernel" else 1)
    return {"value": each, "connections": got, "idle_cpu_percent": 100 * idle}


ROWS: tuple[Row, ...] = (
    Row("syn-cookies", "SYNs answered with cookies", "SYN-ACK/s", take_flood, mode="cookies", to_limit=0.85, to_kernel=1.4),
    Row("syn-queue", "SYNs answered with request entries", "SYN-ACK/s", take_flood, mode="queue"),
    Row("syn-many", "SYNs answered, one million half-open", "SYN-ACK/s", take_many, mode="many", to_limit=0.75, rounds=3),
    Row("syn-core", "CPU time of a SYN in memory, one million half-open", "ns", take_core, mode="core", better="less", most=250, rounds=3),
    Row("connect-1", "connections/s, one at a time", "1/s", load("connect"), keeps=True),
    Row("connect-64", "connections/s, 64 at a time", "1/s", load("connect", "-C", "64"), keeps=True, to_limit=0.8, to_kernel=1.6),
    Row("request-1", "requests/s, one connection", "1/s", load("request"), keeps=True),
    Row("request-64", "requests/s, 64 connections", "1/s", load("request", "-C", "64"), keeps=True, to_limit=0.85, to_kernel=1.15),
    Row("pipeline-64", "requests/s, 64 connections, 16 in flight", "1/s", load("request", "-C", "64", "-P", "16"), keeps=True, to_limit=0.8,
        to_kernel=1.8),
    Row("bulk-in", "bulk into the server", "MB/s", load("up"), keeps=True, to_limit=0.85, to_kernel=1.0),
    Row("bulk-out", "bulk out of the server", "MB/s", load("down"), keeps=True, to_limit=0.85, to_kernel=1.0),
    Row("echo-default", "1-byte round trip, two cores, servers as they come", "us p50", echo(), better="less", keeps=True),
    Row("echo", "1-byte round trip, two cores, sleeping", "us p50", echo(), mode="sleep", better="less", keeps=True, to_limit=1.1, to_kernel=1.0),
    Row("echo-one-core", "1-byte round trip, one core", "us p50", echo(same_core=True), better="less", keeps=True, to_limit=1.1, to_kernel=1.0),
    Row("echo-spin", "1-byte round trip, two cores, both spinning", "us p50", echo(spin=True), mode="spin", better="less", to_limit=1.1,
        to_kernel=1.0),
    Row("flood-connect", "connect() of an honest client beside a flood at 80 % of the full rate", "us p99", take_beside_flood, mode="cookies",
        better="less", most=5000, without=frozenset({"limit", "limit-plain", "lwip", "gvisor", "pytcp"})),
    Row("memory-half-open", "memory of a half-open connection", "bytes", take_half_open_bytes, mode="memory", better="less", most=96, rounds=1,
        without=frozenset({"limit", "limit-plain", "lwip", "gvisor"})),
    Row("memory-connection", "memory of an idle established connection", "bytes", take_connection_bytes, mode="memory", better="less", most=1024,
        rounds=1),
    Row("python", "the same threaded Python server, connections/s", "1/s", load("connect", "-C", "64"), mode="python", to_kernel=1.0),
)
