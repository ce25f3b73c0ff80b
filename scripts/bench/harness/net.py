"""Namespaces for the measurements. Only documentation addresses (RFC 5737); nothing outside the namespaces is touched, and all is removed at
the end, also after a failure or a signal; what a killed run left behind is removed by the next one.

The server is always 198.51.100.2, the client 198.51.100.1; a flood comes from 203.0.113.0/24 (answers end in a blackhole route on the client's
side), connections from 192.0.2.0/24 (local there).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

SERVER, CLIENT, PREFIX = "198.51.100.2", "198.51.100.1", "/24"
FLOOD, SOURCES = "203.0.113.0/24", "192.0.2.0/24"
TX_QUEUE = 1000
TAP_MAC = "02:00:00:00:00:02"
_NAME = re.compile(r"ubench-(\d+)-\d+")
_numbers = itertools.count()
_made: list[str] = []


def _run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def ip(namespace: str, *words: str) -> str:
    """`ip` in a namespace."""
    return _run("ip", "-n", namespace, *words)


def sysctl(namespace: str, **values: object) -> None:
    """Sets sysctls of a namespace; __ stands for a dot. What this kernel does not have or does not permit there is left as it is."""
    for name, value in values.items():
        _run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"{name.replace('__', '.')}={value}", check=False)


def _namespace() -> str:
    name = f"ubench-{os.getpid()}-{next(_numbers)}"
    _made.append(name)
    _run("ip", "netns", "add", name)
    ip(name, "link", "set", "lo", "up")
    sysctl(name, net__ipv6__conf__all__disable_ipv6=1, net__ipv6__conf__default__disable_ipv6=1, net__ipv4__conf__all__rp_filter=0,
           net__ipv4__conf__default__rp_filter=0, net__ipv4__tcp_congestion_control="reno", net__ipv4__ip_local_port_range="1024 65535")
    return name


def _delete(namespace: str) -> None:
    """With what still runs in it: a signal may have come between the start of a process and the note of it."""
    for pid in _run("ip", "netns", "pids", namespace, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "del", namespace, check=False)


def remove_all() -> None:
    """Removes every namespace of this run."""
    while _made:
        _delete(_made.pop())


def _ended(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def guard() -> None:
    """To be called once: removal at exit and on signals, and of what runs that were killed have left."""
    atexit.register(remove_all)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    for namespace in json.loads(_run("ip", "-j", "netns", "list") or "[]"):
        match = _NAME.fullmatch(namespace["name"])
        if match and not os.path.exists(f"/proc/{match[1]}"):
            _delete(namespace["name"])


def _client_side(namespace: str) -> None:
    ip(namespace, "route", "add", "blackhole", FLOOD)
    ip(namespace, "route", "add", "local", SOURCES, "dev", "lo")


@dataclass
class Wire:
    """Where a peer's server and its client run, and the device whose counters say what the server has sent."""

    client: str
    server: str
    device: str
    sent: str       # "rx": the device is the kernel's side of a TUN; "tx": it is the server's own

    def inside(self, namespace: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", namespace, *words]

    def packets_sent(self, pid: int) -> int:
        """Packets the server has put on the wire; pid: a process in the server's namespace."""
        return self._packets(pid)[self.sent == "tx"]

    def packets_taken(self, pid: int) -> int:
        """Packets the server has taken from the wire; what waits in the device's queue is not among them."""
        return self._packets(pid)[self.sent == "rx"]

    def _packets(self, pid: int) -> tuple[int, int]:
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == self.device:
                return int(figures.split()[1]), int(figures.split()[9])
        raise RuntimeError(f"no device {self.device}")

    def queue(self, packets: int = TX_QUEUE) -> None:
        """Sets the length of the device's queue: what a TUN device holds for the stack to read."""
        ip(self.client, "link", "set", self.device, "txqueuelen", str(packets))

    def remove(self) -> None:
        for name in {self.client, self.server}:
            with contextlib.suppress(ValueError):
                _made.remove(name)
            _delete(name)


def tun(mode: str = "tun") -> Wire:
    """A namespace with the client in it and a TUN (or TAP) device for the stack."""
    name, device = _namespace(), mode + "0"
    ip(name, "tuntap", "add", "dev", device, "mode", mode)
    ip(name, "link", "set", device, "mtu", "1500", "txqueuelen", str(TX_QUEUE), "up")
    ip(name, "addr", "add", CLIENT + PREFIX, "dev", device)
    if mode == "tap":
        ip(name, "neigh", "replace", SERVER, "lladdr", TAP_MAC, "dev", device, "nud", "permanent")
    _client_side(name)
    return Wire(name, name, device, "rx")


def veth() -> Wire:
    """Two namespaces joined by a veth pair: the kernel is the server."""
    client, server = _namespace(), _namespace()
    ip(client, "link", "add", "veth0", "mtu", "1500", "type", "veth", "peer", "name", "veth0", "netns", server)
    macs = {}
    for name, address in ((client, CLIENT), (server, SERVER)):
        ip(name, "addr", "add", address + PREFIX, "dev", "veth0")
        ip(name, "link", "set", "veth0", "up")
        macs[address] = json.loads(ip(name, "-j", "link", "show", "veth0"))[0]["address"]
    ip(client, "neigh", "replace", SERVER, "lladdr", macs[SERVER], "dev", "veth0", "nud", "permanent")
    ip(server, "neigh", "replace", CLIENT, "lladdr", macs[CLIENT], "dev", "veth0", "nud", "permanent")
    _client_side(client)
    for prefix in (FLOOD, SOURCES):
        ip(server, "route", "add", prefix, "via", CLIENT)
    return Wire(client, server, "veth0", "tx")


def steer(wire: Wire, cpu: int | None) -> None:
    """Receive packet steering of the veth server: its protocol work on this core (None: on the sender's)."""
    mask = 0 if cpu is None else 1 << cpu
    _run(*wire.inside(wire.server, "sh", "-c", f"echo {mask:x} > /sys/class/net/{wire.device}/queues/rx-0/rps_cpus"))
