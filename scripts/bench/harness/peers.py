"""The peers: how each is started. All serve echo (7), discard (9), chargen (19) and a minimal HTTP (80) on 198.51.100.2.

A mode is what a row wants of the server: "tcp" (as a user would run it), "sleep" (it sleeps whenever it has nothing to do), "spin" (it may use its
core whole), "cookies" (a small backlog, so
that a flood is answered by cookies), "queue" (limits out of the way, so that each SYN gets an entry).
"""

from __future__ import annotations

import abc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import build, net
from .process import Failed, Server, resident, slab_bytes, slab_objects

SERVER_SECONDS = "3600"     # no server outlives this, whatever becomes of the harness


@dataclass
class Machine:
    """The cores: the server has one, whatever it is, and the client the other."""

    server_cpu: int = 0
    client_cpu: int = 1
    ustack: Path | None = None      # None: to be built


class Peer(abc.ABC):
    """One stack. `start` gives a ready server on its wire."""

    name = ""
    title = ""
    version = ""
    modes: tuple[str, ...] = ("tcp", "sleep", "cookies", "queue", "many")
    only: frozenset[str] | None = None      # rows it takes part in; None: all of its modes
    idle_is_free = True             # an idle server takes no CPU; one that does is stopped (SIGSTOP) while others are measured
    stretch = 1.0                   # samples this much longer, where little happens in the usual time
    most_rounds = 99
    most_held = 1_000_000           # connections that can be open at once

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._wire: net.Wire | None = None

    def build(self) -> None:  # noqa: B027 - there may be nothing to make
        """Makes what is needed; Missing or Broken if that cannot be."""

    def make_wire(self) -> net.Wire:
        return net.tun()

    def wire(self) -> net.Wire:
        if self._wire is None:
            self._wire = self.make_wire()
        return self._wire

    @abc.abstractmethod
    def command(self, mode: str) -> list[str]:
        """The server's command line."""

    def env(self) -> Mapping[str, str]:
        return {}

    def prepare(self, mode: str) -> None:  # noqa: B027 - or nothing to prepare
        """What the namespace needs for this mode."""

    def start(self, mode: str) -> Server:
        wire = self.wire()
        self.prepare(mode)
        return Server(wire.inside(wire.server, *self.command(mode)), self.env())

    def half_open(self, server: Server) -> int:
        """Half-open connections of a server that has got nothing but SYNs of new clients; Failed if it does not tell."""
        raise Failed(f"{self.name} does not tell how many half-open connections it has")

    def memory(self, server: Server) -> float:
        """Bytes of memory that its connections are in: the process's, for a stack in user space."""
        return resident(server.pid)

    def pinned(self, *words: str) -> list[str]:
        return ["taskset", "-c", str(self.machine.server_cpu), *words]


class Limit(Peer):
    """What the TUN device allows: a SYN reflector and an ideal TCP, in C."""

    name, title = "limit", "C limit"
    modes = ("tcp", "sleep", "spin", "cookies", "queue", "many", "memory")
    vnet: tuple[str, ...] = ("-V",)

    def build(self) -> None:
        for name in ("reflect", "ideal"):
            build.program(name)

    def command(self, mode: str) -> list[str]:
        common = ["-i", "tun0", "-c", str(self.machine.server_cpu), "-d", SERVER_SECONDS, *self.vnet]
        if mode in ("cookies", "queue", "many"):
            return [build.program("reflect"), *common]
        return [build.program("ideal"), *common, *(["-s"] if mode == "spin" else []), *([] if self.vnet else ["-W", "524288"])]


class PlainLimit(Limit):
    """The same without virtio_net_hdr: what a stack that does not use offload could reach (lwIP, smoltcp, gVisor on TUN, PyTCP)."""

    name, title = "limit-plain", "C limit, no offload"
    vnet = ()


class Kernel(Peer):
    """The kernel's own TCP over a veth pair. In floods its receive work is steered to the server's core, as a stack of its own has it; in the
    other rows it is where veth leaves it, on the sender's core."""

    name, title = "kernel", "Linux over veth"
    most_held = 10_000
    modes = ("tcp", "sleep", "spin", "cookies", "queue", "python", "memory")

    def build(self) -> None:
        build.program("kernel")

    def make_wire(self) -> net.Wire:
        return net.veth()

    def prepare(self, mode: str) -> None:
        wire, flood = self.wire(), mode in ("cookies", "queue", "memory")
        net.steer(wire, self.machine.server_cpu if flood else None)
        many = mode in ("queue", "memory")
        net.sysctl(wire.server, net__ipv4__tcp_syncookies=1, net__core__somaxconn=4194304 if many else 4096,
                   net__ipv4__tcp_max_syn_backlog=4194304 if many else 4096)

    def half_open(self, server: Server) -> int:
        # Not from the counters: a request whose SYN-ACK the device refuses is dropped without one.
        return slab_objects("request_sock_TCP")

    def memory(self, server: Server) -> float:
        return slab_bytes()

    def command(self, mode: str) -> list[str]:
        if mode == "python":
            return self.pinned(sys.executable, str(build.BENCH / "pyserver"), "kernel", "--address", net.SERVER)
        backlog = {"cookies": "128", "queue": "4194304", "memory": "4194304"}.get(mode, "4096")
        return [build.program("kernel"), "-a", net.SERVER, "-B", backlog, "-c", str(self.machine.server_cpu), "-d", SERVER_SECONDS,
                *(["-s"] if mode == "spin" else [])]


class KernelGather(Kernel):
    """The same with a server that puts the answers to pipelined requests into one buffer and sends it once: what a server that knows of batches gets
    from the kernel. For information; the ratios are to the ordinary one, which sends each answer by itself."""

    name, title = "kernel-gather", "Linux over veth, one send per batch"
    modes = ("tcp",)
    only = frozenset({"pipeline-64"})

    def command(self, mode: str) -> list[str]:
        return [*super().command(mode), "-g"]


class Ustack(Peer):
    """ustack on TUN: `ustack serve inetd`, the services built into the engine."""

    name, title = "ustack", "ustack"
    modes = ("tcp", "sleep", "spin", "cookies", "queue", "many", "core", "python", "memory")
    SPIN_US = 100_000

    def build(self) -> None:
        if self.machine.ustack is None:
            self.machine.ustack = build.ustack()
        where = subprocess.run([sys.executable, "-P", "-c", "import ustack._fastpath as f; print(f.__file__)"], capture_output=True, text=True,
                               env={**os.environ, **self.env()}).stdout.strip()
        if not where or self.machine.ustack.resolve() not in Path(where).resolve().parents:
            raise build.Broken(f"ustack is imported from {where or 'nowhere'}, not from {self.machine.ustack}")

    def env(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(self.machine.ustack and self.machine.ustack.resolve())}

    def command(self, mode: str) -> list[str]:
        address = net.SERVER + net.PREFIX
        if mode == "python":
            return self.pinned(sys.executable, str(build.BENCH / "pyserver"), "ustack", "--address", address, "--tun", "tun0")
        words = [sys.executable, "-P", "-m", "ustack", "serve", "inetd", "--tun", "tun0", "--address", address, "--ready-fd", "1", "-q",
                 "--name", self.stack_name()]
        many = mode in ("queue", "many", "memory")
        limit = 4194304 if many else 4096
        words += ["--backlog", "128" if mode == "cookies" else str(limit)]
        for key in ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"):
            words += ["--sysctl", f"{key}={limit}"]
        if mode == "spin":
            words += ["--busy-poll", str(self.SPIN_US)]
        elif mode == "sleep":
            words += ["--busy-poll", "0"]
        return self.pinned(*words)

    def half_open(self, server: Server) -> int:
        command = [sys.executable, "-P", "-m", "ustack", "nstat", "-a", "-j", "-s", "--name", self.stack_name()]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.env()}, check=True)
        counters = json.loads(done.stdout)["kernel"]
        return int(counters["TcpInSegs"] - counters.get("TcpExtListenDrops", 0))

    def stack_name(self) -> str:
        return self.wire().client


class Lwip(Peer):
    """lwIP, raw API on TUN. No segmentation offload, no SYN cookies, a backlog of 255."""

    name, title, version = "lwip", "lwIP", build.LWIP_VERSION
    modes = ("tcp", "sleep", "spin", "cookies", "memory")
    most_held = 900

    def build(self) -> None:
        build.lwip()

    def command(self, mode: str) -> list[str]:
        return [build.lwip(), "-i", "tun0", "-a", net.SERVER, "-g", net.CLIENT, "-c", str(self.machine.server_cpu), "-d", SERVER_SECONDS,
                *(["-s"] if mode == "spin" else [])]


class Smoltcp(Peer):
    """smoltcp on TUN. A socket per connection instead of a listener, no offload. It takes no part in floods: without a backlog it answers a SYN
    for each socket, and all others by RST."""

    name, title = "smoltcp", "smoltcp"
    modes = ("tcp", "sleep", "spin")

    def build(self) -> None:
        build.smoltcp()
        self.version = build.pinned(build.BENCH / "peers" / "smoltcp" / "Cargo.lock", r'name = "smoltcp"\nversion = "([^"]+)"')

    def command(self, mode: str) -> list[str]:
        return self.pinned(build.smoltcp(), "tun0", net.SERVER, *(["spin"] if mode == "spin" else []))


class Netstack(Peer):
    """gVisor's netstack on TUN (fd-based link, no offload there)."""

    name, title = "gvisor", "gVisor netstack"
    modes = ("tcp", "sleep", "cookies", "memory")
    most_held = 10_000

    def build(self) -> None:
        build.netstack()
        self.version = build.pinned(build.BENCH / "peers" / "netstack" / "go.mod", r"gvisor\.dev/gvisor v[\d.]+-(\S+)")

    def command(self, mode: str) -> list[str]:
        return self.pinned(build.netstack(), "-i", "tun0", "-a", net.SERVER, *(["-m", "1024"] if mode == "memory" else []))


class Pytcp(Peer):
    """PyTCP on TAP: pure Python, threads, a 1 ms tick."""

    name, title, version = "pytcp", "PyTCP", build.PYTCP_VERSION
    modes = ("tcp", "sleep", "cookies")
    idle_is_free = False
    stretch = 3.0
    most_rounds = 2

    def build(self) -> None:
        build.pytcp()

    def make_wire(self) -> net.Wire:
        return net.tun("tap")

    def command(self, mode: str) -> list[str]:
        return self.pinned(build.pytcp(), str(build.BENCH / "peers" / "pytcp" / "server.py"), "tap0", net.SERVER + net.PREFIX, net.CLIENT,
                           net.TAP_MAC)


ALL: tuple[type[Peer], ...] = (Limit, PlainLimit, Kernel, KernelGather, Ustack, Lwip, Smoltcp, Netstack, Pytcp)
