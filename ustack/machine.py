"""What this machine allows: can a stack run on a device here, in which of the ways, and what is missing for the others.

Each check is tried for real in a child process, in namespaces of its own, and leaves nothing behind. Used by `ustack doctor`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CHILD = """
import ctypes, fcntl, os, struct, sys
flags, path = int(sys.argv[1]), sys.argv[2]
uid, gid = os.getuid(), os.getgid()
if flags and ctypes.CDLL(None, use_errno=True).unshare(flags):
    sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
try:
    if flags & 0x10000000:
        open("/proc/self/setgroups", "w").write("deny")
        open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
        open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
    if path:
        fd = os.open(path, os.O_RDWR)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"ustackdoc%d", 0x1001))
except OSError as exc:
    sys.exit(f"{exc.filename or 'TUNSETIFF'}: {exc.strerror}")
"""
_NEWNET, _NEWUSER = 0x40000000, 0x10000000


@dataclass(frozen=True)
class Finding:
    """What was tried, whether it works, what was seen; fix: what to do if it does not. runs: a way to run a stack on a device."""

    what: str
    ok: bool
    seen: str
    fix: str = ""
    runs: bool = False


def _try(flags: int, path: str) -> str | None:
    """None, or why it does not work."""
    try:
        done = subprocess.run([sys.executable, "-c", _CHILD, str(flags), path], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


def _finding(what: str, why: str | None, good: str, fix: str, runs: bool = False) -> Finding:
    return Finding(what, why is None, good if why is None else why, "" if why is None else fix, runs)


def _python() -> Finding:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11) and sys.platform == "linux"
    fix = "" if ok else "Linux with Python 3.11 or newer"
    return Finding("Linux and Python", ok, f"{platform.system()} {platform.release()}, Python {version}", fix)


def _node(tun: str) -> Finding:
    if not os.path.exists(tun):
        return Finding("TUN node", False, f"there is no {tun}",
                       f"modprobe tun, or mkdir -p /dev/net && mknod {tun} c 10 200; in a container: --device {tun}")
    if not os.access(tun, os.R_OK | os.W_OK):
        return Finding("TUN node", False, f"{tun} is not open to you", f"as root, once: chmod 666 {tun}")
    return Finding("TUN node", True, f"{tun} can be opened")


def _privileged(tun: str) -> Finding:
    fix = ("run as root, or setcap cap_net_admin+ep on the Python binary, or let root make the device for you: "
           "ip tuntap add mode tun user $USER name ustack0; ip link set ustack0 up")
    return _finding("TUN device as you are", _try(_NEWNET, tun), "devices and network namespaces can be made (CAP_NET_ADMIN, CAP_SYS_ADMIN)",
                    fix if os.path.exists(tun) else "make the TUN node first", runs=True)


def _sysctl(name: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/" + name).read_text().strip()
    return None


def _userns(tun: str) -> Finding:
    why = _try(_NEWUSER | _NEWNET, tun)
    fix = "the kernel or the container forbids user namespaces: run as root"
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        fix = "as root: sysctl kernel.unprivileged_userns_clone=1"
    elif _sysctl("user/max_user_namespaces") == "0":
        fix = "as root: sysctl user.max_user_namespaces=15000"
    elif _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns for this Python"
    elif why is not None and tun in why:
        fix = f"as root, once: chmod 666 {tun}" if os.path.exists(tun) else "make the TUN node first"
    return _finding("TUN device without root", why, "user namespaces with a network of their own (unshare -Urn) can make TUN devices", fix, runs=True)


def _raw() -> Finding:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as exc:
        return Finding("raw interface", False, f"AF_PACKET: {exc.strerror}", "run as root, or setcap cap_net_raw+ep on the Python binary (for --raw)")
    return Finding("raw interface", True, "AF_PACKET sockets can be opened (ustack serve --raw IFNAME)")


def _tools() -> Finding:
    missing = [t for t in ("ip", "ss") if shutil.which(t) is None]
    if missing:
        return Finding("tools", False, f"missing: {', '.join(missing)}", "apt-get install iproute2 (for netns/up and ustack diff)")
    return Finding("tools", True, "ip and ss are there (netns/up, ustack diff)")


def _control() -> Finding:
    from ustack.control import folder, stacks

    place = folder()
    upper = place if place.exists() else place.parent
    if not os.access(upper, os.W_OK):
        return Finding("control sockets", False, f"{upper} is not writable", "set XDG_RUNTIME_DIR to a folder of yours")
    running = stacks()
    return Finding("control sockets", True, f"{place}" + (f"; running: {', '.join(running)}" if running else "; no stack is running"))


def examine(tun: str = "/dev/net/tun") -> list[Finding]:
    """All checks in their order."""
    checks: list[Callable[[], Finding]] = [_python, lambda: _node(tun), lambda: _privileged(tun), lambda: _userns(tun), _raw, _tools, _control]
    return [check() for check in checks]


def can_run(findings: list[Finding]) -> bool:
    """Is there a way to put a stack on a device here?"""
    return any(f.ok and f.runs for f in findings)


def as_dict(finding: Finding) -> dict[str, Any]:
    return asdict(finding)
