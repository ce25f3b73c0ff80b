"""A stack behind the calls of packetdrill's plug-in interface: every call by name, results and errnos as Linux's.

packetdrill can drive a stack that is not the kernel's through a shared object: the socket calls (numbers in, a result or
-errno out), `netdev_send` and `netdev_receive` for packets, `usleep` and `gettimeofday_usecs` for time. This is the Python
half of such an object: it needs nothing but the public manual driver (inject, run_until, submit, raw option bytes, a virtual
clock). packetdrill makes a blocking call on a thread of its own while its main thread moves the time: so may the user here.

    python examples/packetdrill_plugin.py        # one connection, played by hand
"""

from __future__ import annotations

import errno
import struct
import threading
from typing import Any

import ustack

SO_ERROR, SOL_SOCKET, F_GETFL, F_SETFL, O_RDWR, O_NONBLOCK, SOCK_NONBLOCK, AF_UNSPEC, FIONBIO = 4, 1, 3, 4, 2, 0o4000, 0o4000, 0, 0x5421
POLLNVAL, POLLERR, POLLHUP = 0x20, 0x8, 0x10
POLL_EVERY = 1_000_000  # ns of virtual time between two looks of a poll() that waits
GIVE_UP = 10.0  # s of real time that a blocked call waits for the other thread to move the clock


class PacketdrillInterface:
    """Calls return what the C functions return: a number, or -errno; what they write through pointers comes beside it."""

    def __init__(self, local: str = "192.168.0.1/16", remote: str = "192.0.2.1/32", gateway: str = "192.168.0.2", wall_ns: int = 0) -> None:
        self.clock = ustack.VirtualClock(wall=wall_ns)
        self.stack = ustack.Stack(None, local, clock=self.clock, seed=0)
        self.stack.route(f"add {remote} via {gateway} dev tun0")
        self._fds: dict[int, Any] = {}
        self._nonblocking: dict[int, bool] = {}
        self._moved = threading.Condition()
        self._emitted: list[tuple[int, bytes]] = []

    def free(self) -> None:
        self.stack.stop()

    # -- time and packets
    def gettimeofday_usecs(self) -> int:
        return (self.clock.wall + self.clock.now) // 1000

    def usleep(self, usecs: int) -> int:
        """Time passes: timers fire, packets go out, blocked calls of other threads go on."""
        with self._moved:
            self._emitted += self.stack.run_until(self.clock.now + usecs * 1000)
            self._moved.notify_all()
        return 0

    def netdev_send(self, packet: bytes) -> int:
        """A packet comes in from the network."""
        with self._moved:
            self.stack.inject(packet)
            self._moved.notify_all()
        return 0

    def netdev_receive(self, patience_usecs: int = 10_000_000) -> tuple[int, bytes, int]:
        """(0, the next packet of the stack, the time at which it went out in us); the clock runs until there is one."""
        with self._moved:
            self._emitted += self.stack.take()
            limit = self.clock.now + patience_usecs * 1000
            while not self._emitted:
                due = self.stack.next_timeout()
                if due is None or due > limit:
                    return -errno.ETIMEDOUT, b"", self.gettimeofday_usecs()
                self._emitted += self.stack.run_until(due)
                self._moved.notify_all()
            at, packet = self._emitted.pop(0)
        return 0, packet, (self.clock.wall + at) // 1000

    # -- calls that may block
    def _call(self, fd: int, op: str, *args: Any) -> Any:
        """The result, or -errno. While it blocks another thread moves the clock."""
        sock = self._fds.get(fd)
        if sock is None:
            return -errno.EBADF
        with self._moved:
            done = self.stack.submit(sock, op, *args)
            if not self._moved.wait_for(lambda: done.done, GIVE_UP):
                return -errno.EINTR
        if done.errno is not None:
            return -getattr(errno, done.errno)
        return done.result

    def accept(self, fd: int) -> tuple[int, tuple[str, int] | None]:
        result = self._call(fd, "accept")
        return (result, None) if isinstance(result, int) else (self._open(result[0]), result[1])

    def connect(self, fd: int, family: int, address: tuple[str, int]) -> int:
        result = self._call(fd, "disconnect") if family == AF_UNSPEC else self._call(fd, "connect", address)
        return result or 0

    def recv(self, fd: int, count: int, flags: int = 0) -> tuple[int, bytes]:
        result = self._call(fd, "recv", count, flags)
        return (result, b"") if isinstance(result, int) else (len(result), result)

    def read(self, fd: int, count: int) -> tuple[int, bytes]:
        return self.recv(fd, count) if count else (0, b"")

    recvfrom = recv

    def recvmsg(self, fd: int, count: int, control_size: int, flags: int = 0) -> tuple[int, bytes, list[tuple[int, int, bytes]], int]:
        result = self._call(fd, "recvmsg", count, control_size, flags)
        return (result, b"", [], 0) if isinstance(result, int) else (len(result[0]), result[0], result[1], result[2])

    def send(self, fd: int, data: bytes, flags: int = 0) -> int:
        return int(self._call(fd, "send", data, flags))

    def write(self, fd: int, data: bytes) -> int:
        return self.send(fd, data)

    def sendto(self, fd: int, data: bytes, flags: int, address: tuple[str, int]) -> int:
        return int(self._call(fd, "sendto", data, flags, address))

    def sendmsg(self, fd: int, buffers: list[bytes], control: list[tuple[int, int, bytes]], flags: int) -> int:
        return int(self._call(fd, "sendmsg", buffers, control, flags))

    def close(self, fd: int) -> int:
        result = self._call(fd, "close")
        if fd in self._fds:
            del self._fds[fd], self._nonblocking[fd]
        return result or 0

    def poll(self, fds: list[tuple[int, int]], timeout_ms: int) -> tuple[int, list[int]]:
        """(how many are ready, revents of each). It waits by looking, in virtual time."""
        end = None if timeout_ms < 0 else self.clock.now + timeout_ms * 1_000_000
        while True:
            masks = [self._fds[fd].poll() & (events | POLLERR | POLLHUP) if fd in self._fds else POLLNVAL for fd, events in fds]
            ready = sum(map(bool, masks))
            if ready or (end is not None and self.clock.now >= end):
                return ready, masks
            self.usleep(POLL_EVERY // 1000 if end is None else max(min(POLL_EVERY, end - self.clock.now) // 1000, 1))

    # -- calls that never block
    def _now(self, fd: int, call: str, *args: Any) -> Any:
        sock = self._fds.get(fd)
        if sock is None:
            return -errno.EBADF
        try:
            result = getattr(sock, call)(*args)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0 if result is None else result

    def _open(self, sock: Any, nonblocking: bool = False) -> int:
        fd = next(n for n in range(3, len(self._fds) + 4) if n not in self._fds)
        sock.setblocking(not nonblocking)
        self._fds[fd], self._nonblocking[fd] = sock, nonblocking
        return fd

    def socket(self, domain: int, kind: int, protocol: int) -> int:
        try:
            return self._open(self.stack.socket(domain, kind & 0xF, protocol), bool(kind & SOCK_NONBLOCK))
        except OSError as error:
            return -(error.errno or errno.EIO)

    def bind(self, fd: int, address: tuple[str, int]) -> int:
        return int(self._now(fd, "bind", address))

    def listen(self, fd: int, backlog: int) -> int:
        return int(self._now(fd, "listen", backlog))

    def shutdown(self, fd: int, how: int) -> int:
        return int(self._now(fd, "shutdown", how))

    def setsockopt(self, fd: int, level: int, name: int, value: bytes) -> int:
        return int(self._now(fd, "setsockopt", level, name, value))

    def getsockopt(self, fd: int, level: int, name: int, size: int) -> tuple[int, bytes]:
        """The kernel's own bytes, struct tcp_info included."""
        result = self._now(fd, "getsockopt", level, name, size)
        return (result, b"") if isinstance(result, int) else (0, bytes(result))

    def fcntl(self, fd: int, command: int, argument: int = 0) -> int:
        if fd not in self._fds:
            return -errno.EBADF
        if command == F_GETFL:
            return O_RDWR | (O_NONBLOCK if self._nonblocking[fd] else 0)
        if command != F_SETFL:
            return -errno.EINVAL
        self._nonblocking[fd] = bool(argument & O_NONBLOCK)
        return int(self._now(fd, "setblocking", not self._nonblocking[fd]))

    def ioctl(self, fd: int, request: int, argument: int = 0) -> tuple[int, int]:
        if request == FIONBIO:
            return self.fcntl(fd, F_SETFL, O_NONBLOCK if argument else 0), argument
        result = self._now(fd, "ioctl", request)
        return (0, result) if result >= 0 else (result, 0)


def segment(flags: int, seq: int, ack: int, payload: bytes = b"", win: int = 30000) -> bytes:
    """A packet from 192.0.2.1:4000 to 192.168.0.1:8080."""
    def total(data: bytes) -> int:
        value = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
        while value >> 16:
            value = (value & 0xFFFF) + (value >> 16)
        return ~value & 0xFFFF

    ends = bytes([192, 0, 2, 1, 192, 168, 0, 1])
    tcp = struct.pack("!HHIIHHHH", 4000, 8080, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 12 | flags, win, 0, 0) + payload
    tcp = tcp[:16] + struct.pack("!H", total(ends + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends
    return head[:10] + struct.pack("!H", total(head)) + head[12:] + tcp


def main() -> None:
    plug = PacketdrillInterface()
    listener = plug.socket(2, 1 | SOCK_NONBLOCK, 6)
    print("bind", plug.bind(listener, ("192.168.0.1", 8080)), "listen", plug.listen(listener, 1), "accept", plug.accept(listener))
    plug.netdev_send(segment(0x02, 0, 0))
    _, synack, at = plug.netdev_receive()
    isn = int.from_bytes(synack[24:28], "big")
    print(f"SYN-ACK at {at} us")
    plug.usleep(100_000)
    plug.netdev_send(segment(0x18, 1, isn + 1, b"hello"))
    conn, peer = plug.accept(listener)
    print("accept", conn, peer, "read", plug.read(conn, 100), "write", plug.write(conn, b"good bye"))
    print("options", len(plug.getsockopt(conn, 6, 11, 280)[1]), "bytes of tcp_info; close", plug.close(conn))
    plug.free()


if __name__ == "__main__":
    main()
