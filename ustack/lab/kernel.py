"""The host's kernel in a network namespace of its own: TUN device, addresses, routes, sysctls, counters, socket
table.

The namespace belongs to the process (unshare), so it goes when the process makes the next one or ends,
however it ends; nothing has a name and nothing outside is touched. Layout as in the recordings: tun0 without
packet information, MTU 1500, the kernel is 192.0.2.1/24, clients are 192.0.2.2 and 198.51.100.0/24, IPv6 off.
Cubic comes from the sysctl or, where the kernel refuses that inside a namespace, from the routes' `congctl`.

Who may call it: `bench` only, in a worker process of `run`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from ..replay.counters import LEFT_OUT as TOTALS
from . import errors

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SERVER, SUBNET, FAR = "192.0.2.1", "192.0.2.0/24", "198.51.100.0/24"
STATES = {"syn-recv": "SYN-RECV", "established": "ESTAB", "listening": "LISTEN", "time-wait": "TIME-WAIT", "fin-wait-2": "FIN-WAIT-2"}
SNMP_FILES = ("snmp", "netstat")
LEFT_OUT = TOTALS | {"IpDefaultTTL", "IpForwarding", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn"}
_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Namespaces of this process's own; MachineCannot where that is forbidden."""
    if _libc.unshare(flags):
        raise errors.MachineCannot(f"no namespace of its own: {os.strerror(ctypes.get_errno())}; run as root, "
                                   "or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)")


def become_root() -> None:
    """Without root: a user namespace in which this process is root. Once per process."""
    if os.geteuid() == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _run(words: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=20)
    except FileNotFoundError as e:
        package = "net-tools" if words[0] == "netstat" else "iproute2"
        raise errors.MachineCannot(f"{words[0]} is not installed (Debian: apt-get install {package})") from e


class Namespace:
    """What can be asked of and told to the network namespace this thread is in."""

    def ip(self, batch: str) -> None:
        """Commands of `ip`, one a line."""
        done = _run(["ip", "-batch", "-"], batch)
        if done.returncode:
            raise errors.ScenarioError(f"ip: {batch.strip()}: {done.stderr.strip()}")

    def write_sysctl(self, name: str, value: str) -> None:
        with open("/proc/sys/" + name.replace(".", "/"), "w") as f:
            f.write(value)

    def read_sysctl(self, name: str) -> str:
        return Path("/proc/sys/" + name.replace(".", "/")).read_text().strip()

    def counters(self) -> dict[str, int]:
        """All MIB counters, by nstat's names."""
        out: dict[str, int] = {}
        for name in SNMP_FILES:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()
            for keys, values in zip(lines[::2], lines[1::2], strict=True):
                prefix, _, names = keys.partition(":")
                _, _, numbers = values.partition(":")
                for key, number in zip(names.split(), numbers.split(), strict=True):
                    if prefix + key not in LEFT_OUT:
                        out[prefix + key] = int(number)
        return out

    def text(self, command: str, args: str) -> str:
        """What `ss ARGS` or `netstat ARGS` prints."""
        done = _run([command, *shlex.split(args)])
        if done.returncode:
            raise errors.ScenarioError(f"{command} {args}: {done.stderr.strip()}")
        return done.stdout

    def ss(self, args: str) -> list[dict[str, Any]]:
        """The socket table as rows."""
        words = args.split()
        only = [STATES.get(words[words.index("state") + 1], "")] if "state" in words else []
        rows: list[dict[str, Any]] = []
        for line in self.text("ss", f"-H {args}").splitlines():
            if line[:1] in "\t " and rows:
                rows[-1]["info"] = (rows[-1].get("info", "") + " " + line.strip()).strip()
                continue
            state, recvq, sendq, local, peer, *rest = only + line.split()
            row: dict[str, Any] = {"state": state, "recvq": int(recvq), "sendq": int(sendq), "local": local, "peer": peer}
            if rest:
                row["info"] = " ".join(rest)
            rows.append(row)
        return rows


class Kernel(Namespace):
    """One fresh namespace. `setup_steps` tells what was set up, in the words of a recording."""

    def __init__(self, congestion: str = "cubic", tun_node: str = "/dev/net/tun") -> None:
        unshare(CLONE_NEWNET)
        self.congestion = congestion
        try:
            self.fd = os.open(tun_node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            raise errors.MachineCannot(f"{tun_node}: {e.strerror}; load the module tun, or make it writable for you") from e
        ifr = b"tun0".ljust(16, b"\0") + (IFF_TUN | IFF_NO_PI).to_bytes(2, "little") + b"\0" * 22
        fcntl.ioctl(self.fd, TUNSETIFF, ifr)
        self.by_route = False
        with contextlib.suppress(OSError):
            self.write_sysctl("net.ipv6.conf.all.disable_ipv6", "1")
            self.write_sysctl("net.ipv6.conf.default.disable_ipv6", "1")
        try:
            self.write_sysctl("net.ipv4.tcp_congestion_control", congestion)
        except OSError:
            self.by_route = True
        self.ip("link set lo up\naddr add 192.0.2.1/24 brd 192.0.2.255 dev tun0\nlink set tun0 up mtu 1500\n"
                f"route add {FAR} dev tun0{self._cc()}\n")
        if self.by_route:
            self.ip(f"route change {SUBNET} dev tun0 proto kernel scope link src {SERVER}{self._cc()}\n")
        self.setup_steps: list[dict[str, Any]] = [
            {"t": 0.0, "setup": True, "sysctl": "net.ipv6.conf.all.disable_ipv6", "value": "1"},
            {"t": 0.0, "setup": True, "sysctl": "net.ipv6.conf.default.disable_ipv6", "value": "1"},
            {"t": 0.0, "setup": True, "sysctl": "net.ipv4.tcp_congestion_control", "value": congestion},
            {"t": 0.0, "setup": True, "link": "lo", "up": True},
            {"t": 0.0, "setup": True, "addr": "192.0.2.1/24 brd 192.0.2.255 dev tun0", "op": "add"},
            {"t": 0.0, "setup": True, "link": "tun0", "mtu": 1500, "up": True},
            {"t": 0.0, "setup": True, "route": f"add {FAR} dev tun0"},
        ]

    def close(self) -> None:
        os.close(self.fd)

    def _cc(self) -> str:
        return f" congctl {self.congestion}" if self.by_route else ""

    def route(self, words: str) -> None:
        """`words` of `ip route`; the congestion control that the tool adds to its routes stays."""
        extra = self._cc() if "congctl" not in words and not words.startswith("del") else ""
        if words.startswith(("change", "replace")) and SUBNET in words and " src " not in words:
            extra = f" proto kernel scope link src {SERVER}{extra}"
        self.ip(f"route {words}{extra}\n")
