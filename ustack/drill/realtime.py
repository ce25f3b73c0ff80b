"""Scripts in real time, over a TUN device in a network namespace of the run's own.

Two stacks can be under test: ustack on its engine thread (`UstackOnTun`, `--time real`), and the kernel of
this machine (`HostKernel`, `--kernel`), which is how a script, and this interpreter, are held against Linux itself.
Both have the shape of `port.StackLike`. The script's peer sits at the device: at the TUN descriptor for the
kernel; for ustack, which holds that descriptor, at a packet socket on the other side of the device.

Packets are read and stamped by a thread; calls that may block have a thread each. Nobody knows here when the
next thing will happen, so `next_timeout` is always a moment away and the interpreter looks again and again.

Who may call it: `namespace` only, in a process that has a namespace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from ustack.drill import codec
from ustack.drill.options import Options, UnsupportedError
from ustack.drill.symbols import errno_name
from ustack.lab.errors import MachineCannot
from ustack.lab.kernel import IFF_NO_PI, IFF_TUN, TUNSETIFF, Namespace

DEVICE = "tun0"
LOOK_AGAIN = 500_000  # ns until the interpreter looks again
TAKES_AT_MOST = 20_000_000  # ns the engine thread may need to take a packet
CALL_SETTLES = 0.002  # s: what a call that blocks needs to be in the kernel
IFF_VNET_HDR, TUNSETOFFLOAD = 0x4000, 0x400454D0
TUN_F_CSUM_TSO4_ECN = 0x01 | 0x02 | 0x08
PACKET_VNET_HDR, SOL_PACKET, SO_TIMESTAMPNS, ETH_P_IP = 15, 263, 35, 0x0800
_VNET = struct.Struct("=BBHHHH")
_NEEDS_CSUM, _GSO_TCPV4 = 1, 1
_EVERY_POLL_BIT = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000
_EDGE = 1 << 31
_LIBC = ctypes.CDLL(None, use_errno=True)

Packet = tuple[int, bytes]


def tun_node() -> str:
    """The TUN driver's node: another one where that is not open to this user."""
    return os.environ.get("USTACK_TUN_NODE", "/dev/net/tun")


class RealClock:
    """Nanoseconds of the monotonic clock; `wall` is what they lack to the wall clock."""

    def __init__(self) -> None:
        self.wall = time.time_ns() - time.monotonic_ns()

    @property
    def now(self) -> int:
        return time.monotonic_ns()


class Call:
    """A call on a thread of its own; shaped as a completion."""

    def __init__(self, method: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.done = False
        self.result: Any = None
        self.errno: str | None = None
        self.at: int | None = None
        self._thread = threading.Thread(target=self._run, args=(method, args), daemon=True)
        self._thread.start()
        self._thread.join(CALL_SETTLES)

    def _run(self, method: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self.result = method(*args)
        except OSError as error:
            self.errno = errno_name(error.errno or 5)
        self.at = time.monotonic_ns()
        self.done = True


# --- the wire ------------------------------------------------------------------------------------------


def _open_checksum(raw: bytes) -> bytes:
    """The packet with only the pseudo header summed up in its TCP checksum, as an offloading sender leaves it."""
    length = len(raw) - 20
    partial = ~codec.checksum(raw[12:20], struct.pack("!BBH", 0, codec.PROTO_TCP, length)) & 0xFFFF
    return raw[:36] + struct.pack("!H", partial) + raw[38:]


def _with_checksum(raw: bytes, start: int, offset: int) -> bytes:
    """What the device would have done: the sum from `start` on, stored at `offset` from there."""
    at = start + offset
    total = codec.checksum(raw[start:])
    return raw[:at] + struct.pack("!H", total) + raw[at + 2:]


def _framed(raw: bytes, gso_size: int) -> bytes:
    if not gso_size:
        return bytes(_VNET.size) + raw
    return _VNET.pack(_NEEDS_CSUM, _GSO_TCPV4, 0, gso_size, 20, 16) + _open_checksum(raw)


def _unframed(frame: bytes) -> bytes:
    flags, _kind, _head, _size, start, offset = _VNET.unpack_from(frame)
    raw = frame[_VNET.size:]
    return _with_checksum(raw, start, offset) if flags & _NEEDS_CSUM else raw


class Wire:
    """Reads packets on a thread, stamps them, keeps them until they are taken."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._got: list[Packet] = []
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._read_all, daemon=True)
        self._thread.start()

    def _read_all(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._stop_read, select.POLLIN)
        while True:
            ready = poller.poll()
            if any(fd == self._stop_read for fd, _ in ready):
                return
            with contextlib.suppress(BlockingIOError):
                while True:
                    at, frame = self._read_one()
                    raw = _unframed(frame)
                    if raw[:1] and raw[0] >> 4 == 4:
                        self._got.append((at, raw))

    def _read_one(self) -> Packet:
        frame = os.read(self._fd, 70_000)
        return time.monotonic_ns(), frame

    def take(self) -> list[Packet]:
        count = len(self._got)
        out = self._got[:count]
        del self._got[:count]
        return out

    def send(self, raw: bytes, gso_size: int) -> None:
        os.write(self._fd, _framed(raw, gso_size))

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join(1)
        os.close(self._stop_read)
        os.close(self._stop_write)


class PacketSocketWire(Wire):
    """At the kernel's side of the device: what the holder of the TUN descriptor wrote, and what it shall read."""

    def __init__(self, device: str, clock: RealClock) -> None:
        self._clock = clock
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self._sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sock.bind((device, ETH_P_IP))
        self._sock.setblocking(False)
        super().__init__(self._sock.fileno())

    def _read_one(self) -> Packet:
        frame, control, _flags, _address = self._sock.recvmsg(70_000, 64)
        seconds, nanos = struct.unpack("=qq", control[0][2])
        return seconds * 10**9 + nanos - self._clock.wall, frame

    def send(self, raw: bytes, gso_size: int) -> None:
        self._sock.send(_framed(raw, gso_size))

    def close(self) -> None:
        super().close()
        self._sock.close()


# --- a stack in real time ------------------------------------------------------------------------------


class RealStack:
    """What both have in common: the clock, the wire, and calls on threads."""

    def __init__(self, wire: Wire, clock: RealClock) -> None:
        self.clock = clock
        self.wire = wire

    def submit(self, sock: Any, op: str, *args: Any) -> Call:
        return Call(getattr(sock, op), args)

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        self.wire.send(packet, gso_size)
        return 0

    def run_until(self, t: int) -> list[Packet]:
        while (left := t - self.clock.now) > 0:
            time.sleep(left / 1e9)
        return self.wire.take()

    def take(self) -> list[Packet]:
        return self.wire.take()

    def next_timeout(self) -> int | None:
        return self.clock.now + LOOK_AGAIN


class HostSysctl(MutableMapping[str, Any]):
    """/proc/sys of this namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __getitem__(self, name: str) -> str:
        return " ".join(self._read(name).split())

    def _read(self, name: str) -> str:
        if name.startswith("/"):
            with open(name) as file:
                return file.read()
        return self._namespace.read_sysctl(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("/"):
            raise UnsupportedError(f"{name} belongs to the whole machine")
        self._namespace.write_sysctl(name, str(value))

    def __delitem__(self, name: str) -> None:
        raise TypeError("a sysctl cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class HostSocket:
    """A socket of the kernel, as the interpreter calls one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poller = select.poll()
        self._poller.register(sock, _EVERY_POLL_BIT)
        self._edges = select.epoll()
        self._edges.register(sock.fileno(), _EVERY_POLL_BIT | _EDGE)
        self._edges.poll(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def close(self) -> None:
        self._edges.close()
        self._sock.close()

    def accept(self) -> tuple[HostSocket, tuple[str, int]]:
        sock, peer = self._sock.accept()
        return HostSocket(sock), peer

    def disconnect(self) -> None:
        # Python has no form for this address.
        _libc("connect", self._sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)

    def listen(self, backlog: int) -> None:
        # Python makes 0 of what is negative.
        _libc("listen", self._sock.fileno(), backlog)

    def getsockopt(self, level: int, name: int, buflen: int) -> bytes:
        if not buflen:
            raise UnsupportedError("getsockopt() with the length 0")
        return self._sock.getsockopt(level, name, buflen)

    def recv(self, size: int, flags: int) -> bytes:
        # Python makes no call for nothing.
        return self._sock.recv(size, flags) if size else self._sock.recvmsg(0, 0, flags)[0]

    def sendto(self, data: bytes, flags: int, address: tuple[str, int]) -> int:
        return self._sock.sendto(data, flags, address)

    def sendmsg(self, data: list[bytes], control: Any, flags: int) -> int:
        return self._sock.sendmsg(data, control, flags)

    def recvmsg(self, size: int, control_size: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return self._sock.recvmsg(size, control_size, flags)

    def ioctl(self, request: int) -> int:
        out = fcntl.ioctl(self._sock, request, bytes(4))
        return int.from_bytes(out, "little", signed=True)

    def poll(self) -> int:
        return next((mask for _, mask in self._poller.poll(0)), 0)

    def wakeups(self) -> int:
        return next((mask for _, mask in self._edges.poll(0)), 0)


def _libc(name: str, *args: Any) -> None:
    """A call past Python's own idea of it."""
    if getattr(_LIBC, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class HostKernel(RealStack):
    """The kernel of this machine, in this process's namespace."""

    def __init__(self, options: Options, congestion: str = "cubic") -> None:
        self.namespace = Namespace()
        try:
            self._tun = os.open(tun_node(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise MachineCannot(f"{tun_node()}: {error.strerror}; load the module tun, or make a node that is writable for you "
                                "and name it in USTACK_TUN_NODE") from error
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(self._tun, TUNSETIFF, DEVICE.encode().ljust(16, b"\0") + struct.pack("=H22x", flags))
        fcntl.ioctl(self._tun, TUNSETOFFLOAD, TUN_F_CSUM_TSO4_ECN)
        self.sysctl = HostSysctl(self.namespace)
        for where in ("all", "default"):
            with contextlib.suppress(OSError):
                self.sysctl[f"net.ipv6.conf.{where}.disable_ipv6"] = "1"
        for name, value in options.sysctl:
            self.sysctl[name] = value
        self._congestion = ""
        try:
            self.sysctl["net.ipv4.tcp_congestion_control"] = congestion
        except OSError:
            self._congestion = f" congctl {congestion}"
        self.namespace.ip(f"link set lo up\naddr add {options.local_ip}/{options.prefix_length()} dev {DEVICE}\n"
                          f"link set {DEVICE} up mtu {options.mtu}\n"
                          f"route add {options.remote_ip}/32 via {options.gateway_ip} dev {DEVICE}{self._congestion}\n")
        super().__init__(Wire(self._tun), RealClock())

    def socket(self) -> HostSocket:
        return HostSocket(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    def nstat(self) -> Mapping[str, int]:
        return self.namespace.counters()

    def ss(self, args: str = "-tan") -> Iterable[Mapping[str, Any]]:
        return self.namespace.ss(args)

    def ss_text(self, args: str = "-tan") -> str:
        return subprocess.run(["ss", *args.split()], capture_output=True, text=True, timeout=20).stdout

    def route(self, text: str) -> None:
        self.namespace.ip(f"route {text}{'' if 'congctl' in text or text.startswith('del') else self._congestion}\n")

    def tcp_metrics_flush(self) -> None:
        self.namespace.ip("tcp_metrics flush all\n")

    def link(self, mtu: int | None = None, *, refuse: bool | None = None, super_segments: bool | None = None) -> None:
        if mtu is not None:
            self.namespace.ip(f"link set {DEVICE} mtu {mtu}\n")
        if refuse is not None:
            _tool("tc", "qdisc", "replace", "dev", DEVICE, "root", "pfifo", *(("limit", "0") if refuse else ()))
        if super_segments is not None:
            state = "on" if super_segments else "off"
            _tool("ethtool", "-K", DEVICE, "tso", state, "gso", state)

    def stop(self) -> None:
        self.wire.close()
        os.close(self._tun)


def _tool(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except FileNotFoundError as error:
        raise UnsupportedError(f"{words[0]} is not installed") from error
    if done.returncode:
        raise UnsupportedError(f"{' '.join(words)}: {done.stderr.strip()}")


class UstackOnTun(RealStack):
    """ustack on its engine thread, the device and nothing else between it and the script."""

    def __init__(self, options: Options) -> None:
        import ustack

        # The device must carry whatever a script injects; the MTU of the run is the stack's.
        try:
            link = ustack.TunLink(DEVICE, path=tun_node(), mtu=65535)
        except OSError as error:
            raise MachineCannot(str(error)) from error
        clock = RealClock()
        wire = PacketSocketWire(DEVICE, clock)
        self._stack = ustack.Stack(link, f"{options.local_ip}/{options.prefix_length()}", sysctl=dict(options.sysctl),
                                   mtu=options.mtu)
        self._stack.route(f"add {options.remote_ip}/32 via {options.gateway_ip} dev {DEVICE}")
        super().__init__(wire, clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        """Returns when the engine thread has taken the packet, as a write to the kernel's device does."""
        before = self._taken()
        super().inject(packet, at, csum, gso_size)
        limit = self.clock.now + TAKES_AT_MOST
        while self._taken() == before and self.clock.now < limit:
            time.sleep(0)
        return 0

    def _taken(self) -> int:
        return self._stack.nstat(zeros=True)["IpInReceives"]

    def link(self, mtu: int | None = None, *, refuse: bool | None = None, super_segments: bool | None = None) -> None:
        if super_segments is False:
            raise UnsupportedError("segmentation offload off, in real time on ustack")
        self._stack.link(mtu=mtu, refuse=refuse)

    def stop(self) -> None:
        self.wire.close()
        self._stack.stop()
