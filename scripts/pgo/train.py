#!/usr/bin/env python3
"""What the compiler is shown of a running ustack in a profile-guided build (scripts/pgo/build.py): the work of a server, ten seconds of it.

usage: scripts/pgo/train.py [--scale X] [--build DIR] [-v]

Two stacks in this process, joined by a socket pair that carries virtio_net_hdr as a TUN device does: one serves (the built-in services, then
threads of Python), the other is its clients. Floods are written into the pair by hand. No root, no network, no namespace. Every answer is
looked at: an instrumented build that does not work fails here. What runs for longer counts for more, so the parts take about as long as each
other; a path that is rare in service (loss, resets, a full queue) is met, but seldom.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def _stand_in() -> None:
    """Where a wheel is built there are the build's requirements only; no TUN device is opened here, so a stand-in for its package will do."""
    try:
        import pytun_pmd3  # noqa: F401
    except ImportError:
        package, linux = types.ModuleType("pytun_pmd3"), types.ModuleType("pytun_pmd3.linux")
        vars(package).update(TunTapDevice=object, linux=linux)
        vars(linux).update(IFF_TUN=0, IFF_NO_PI=0, IFF_VNET_HDR=0, IFF_MULTI_QUEUE=0)
        sys.modules.update({"pytun_pmd3": package, "pytun_pmd3.linux": linux})


_stand_in()

import ustack  # noqa: E402
from ustack.links.base import Link, Port  # noqa: E402

SERVER, CLIENT = "198.51.100.2", "198.51.100.1"
PORTS = {"echo": 7, "discard": 9, "chargen": 19, "http": 80}
PATIENCE = 60           # seconds after which a call fails the training
QUEUE = 1 << 20
UNLIMITED = {"net.core.somaxconn": QUEUE, "net.ipv4.tcp_max_syn_backlog": QUEUE}
REQUEST = b"GET / HTTP/1.1\r\nHost: 198.51.100.2\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: 198.51.100.2\r\nConnection: close\r\n\r\n"
BODY = b"hello, world!\n"
PYTHON_ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 14\r\n\r\n" + BODY


# ---- the wire ---------------------------------------------------------------------------------------------------------------------------
class Cable(Link):
    """One end of a socket pair that carries what a TUN device with offload does: virtio_net_hdr, super-segments, open checksums."""

    mtu = 1500

    def __init__(self, end: socket.socket, offload: bool) -> None:
        self._end = end
        self._offload = offload

    def open(self, stack: ustack.Stack, *, offload: bool = True) -> Port:
        return Port(self._end.fileno(), vnet=True, gso=offload and self._offload)

    def close(self) -> None:
        self._end.close()


def ends() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    return pair


@contextlib.contextmanager
def stacks(*, offload: bool = True, loss: float = 0, **options: Any) -> Iterator[tuple[ustack.Stack, ustack.Stack]]:
    """(server, client); options: of both."""
    left, right = (Cable(end, offload and not loss) for end in ends())
    server: Link = ustack.ImpairedLink(left, loss=loss, delay=0.0005, reorder=loss, duplicate=loss / 4, seed=1) if loss else left
    with ustack.Stack(server, f"{SERVER}/24", **options) as a, ustack.Stack(right, f"{CLIENT}/24", **options) as b:
        yield a, b


@contextlib.contextmanager
def inetd(stack: ustack.Stack, backlog: int = 4096) -> Iterator[None]:
    """The services built into the engine, as `ustack serve inetd` has them."""
    with contextlib.ExitStack() as listeners:
        for kind, port in PORTS.items():
            listeners.enter_context(stack.create_server((SERVER, port), backlog=backlog)).serve(kind)
        yield


def at_once(works: list[Callable[[], None]]) -> None:
    """Each in a thread of its own; the first failure is raised."""
    failures: list[BaseException] = []

    def one(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=one, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        if thread.is_alive():
            raise TimeoutError(f"{works} did not end")
    if failures:
        raise failures[0]


# ---- clients ----------------------------------------------------------------------------------------------------------------------------
def connect(stack: ustack.Stack, kind: str) -> ustack.Socket:
    return stack.create_connection((SERVER, PORTS[kind]), timeout=PATIENCE)


def until(sock: ustack.Socket, size: int) -> bytes:
    """So many bytes."""
    got = bytearray()
    while len(got) < size:
        more = sock.recv(65536)
        if not more:
            raise EOFError(f"the stream ended after {len(got)} of {size} bytes")
        got += more
    return bytes(got)


def echoes(stack: ustack.Stack, times: int, text: bytes = b"x") -> None:
    with connect(stack, "echo") as sock:
        for _ in range(times):
            sock.sendall(text)
            assert until(sock, len(text)) == text


def keep_alive(stack: ustack.Stack, times: int, pipelined: int = 1) -> None:
    with connect(stack, "http") as sock:
        sock.sendall(REQUEST)
        answer = sock.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(BODY)
        for _ in range(times):
            sock.sendall(REQUEST * pipelined)
            assert until(sock, len(answer) * pipelined) == answer * pipelined


def visits(stack: ustack.Stack, times: int) -> None:
    """Whole connections: connect, request, answer, end."""
    for _ in range(times):
        with connect(stack, "http") as sock:
            sock.sendall(LAST_REQUEST)
            got = bytearray()
            while more := sock.recv(4096):
                got += more
            assert got.endswith(BODY)


def bulk_in(stack: ustack.Stack, blocks: int, size: int = 262144) -> None:
    block = bytes(size)
    with connect(stack, "discard") as sock:
        for _ in range(blocks):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def bulk_out(stack: ustack.Stack, size: int) -> None:
    buffer = bytearray(262144)
    with connect(stack, "chargen") as sock:
        while size > 0:
            n = sock.recv_into(buffer)
            assert n
            size -= n


def bulk_echo(stack: ustack.Stack, size: int) -> None:
    """Both ways at once: what comes back is what went."""
    blob = os.urandom(size)
    with connect(stack, "echo") as sock:
        sender = threading.Thread(target=sock.sendall, args=(blob,), daemon=True)
        sender.start()
        assert until(sock, size) == blob
        sender.join()


def many(stack: ustack.Stack, connections: int, times: int) -> None:
    """Many connections open at once, a byte over each in turn."""
    socks = [connect(stack, "echo") for _ in range(connections)]
    for _ in range(times):
        for sock in socks:
            sock.sendall(b"x")
        for sock in socks:
            assert sock.recv(10) == b"x"
    for sock in socks:
        sock.close()


# ---- parts: the built-in services ---------------------------------------------------------------------------------------------------------
def memory(n: Callable[[int], int]) -> None:
    """The engine's rounds without a device (tests/_cbench.pyx), if they are built: they get a profile of their own."""
    try:
        c = importlib.import_module("tests._cbench")
    except ImportError:
        return
    for backlog in (QUEUE, 64):
        flood = c.Flood(backlog=backlog)
        flood.counted(n(60000), True)
        flood.counted(n(120000))
        flood.syns(n(120000))
        flood.expire()
    stream: dict[str, Any] = {kind: c.Stream(kind) for kind in PORTS}
    visited = c.Stream("http")
    for warm in (True, False):
        stream["echo"].requests(n(60000), warm, b"x")
        stream["http"].requests(n(60000), warm)
        visited.visits(n(20000), warm)
        stream["chargen"].acks(n(60000), warm)
        stream["discard"].data(n(4000), 1448, 16, warm)
        stream["discard"].data(n(4000), 63712, 1, warm)


def services(n: Callable[[int], int], **options: Any) -> None:
    """Small things over few connections, then over many."""
    with stacks(sysctl=UNLIMITED, **options) as (a, b), inetd(a):
        echoes(b, n(10000))
        keep_alive(b, n(6000))
        keep_alive(b, n(300), 64)
        at_once([lambda: echoes(b, n(3000), b"x" * 64) for _ in range(4)])
        visits(b, n(1500))
        at_once([lambda: visits(b, n(500)) for _ in range(4)])
        many(b, n(400), 6)


def bulk(n: Callable[[int], int]) -> None:
    """Bulk in and out, with super-segments and without."""
    for offload in (True, False):
        with stacks(offload=offload) as (a, b), inetd(a):
            bulk_in(b, n(400 if offload else 60))
            bulk_out(b, n(400 if offload else 60) << 18)
            bulk_echo(b, n(64 if offload else 16) << 18)
            at_once([lambda: bulk_out(b, n(20) << 18) for _ in range(4)])


def lossy(n: Callable[[int], int]) -> None:
    """Loss, reordering and duplicates: short, so that these paths are not cold but no more."""
    with stacks(loss=0.01) as (a, b), inetd(a):
        at_once([lambda: bulk_in(b, n(6)), lambda: bulk_out(b, n(12) << 17), lambda: echoes(b, n(150)), lambda: keep_alive(b, n(150))])


# ---- parts: floods --------------------------------------------------------------------------------------------------------------------------
def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def packet(source: bytes, port: int, seq: int, ack: int, flags: int, options: bytes) -> bytes:
    """A segment without data to the HTTP port, behind an empty virtio_net_hdr."""
    to = socket.inet_aton(SERVER)
    size = 40 + len(options)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0x4000, 64, 6, 0, source, to)
    tcp = struct.pack("!HHIIBBHHH", port, 80, seq, ack, (20 + len(options)) << 2, flags, 64240, 0, 0) + options
    over = checksum(source + to + struct.pack("!HH", 6, size - 20) + tcp)
    return bytes(10) + ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:] + tcp[:16] + over.to_bytes(2, "big") + tcp[18:]


def syn(number: int) -> bytes:
    options = struct.pack("!BBHBBBBIIBBBB", 2, 4, 1460, 4, 2, 8, 10, 1000 + number, 0, 1, 3, 3, 7)
    source = bytes((198, 19, number >> 22 & 255, number >> 14 & 255))
    return packet(source, 1024 + (number & 16383) * 3, number * 2654435761 & 0xFFFFFFFF, 0, 2, options)


def third(answer: bytes) -> bytes | None:
    """The ACK to a SYN-ACK."""
    if answer[10 + 33] != 0x12:
        return None
    source, port = answer[10 + 16:10 + 20], int.from_bytes(answer[10 + 22:10 + 24], "big")
    seq, ack = struct.unpack_from("!II", answer, 10 + 24)
    options = answer[10 + 40:]
    at = options.find(b"\x08\x0a")
    stamps = struct.pack("!BBBBI4s", 1, 1, 8, 10, 2000, options[at + 2:at + 6]) if at >= 0 else b""
    return packet(source, port, ack, (seq + 1) & 0xFFFFFFFF, 16, stamps)


def flood(n: Callable[[int], int], backlog: int) -> None:
    """SYNs of ever new clients, of which one in 16 goes on to a connection; then the first retransmissions of the SYN-ACKs."""
    ours, theirs = ends()
    with ours, ustack.Stack(Cable(theirs, True), f"{SERVER}/24", sysctl=UNLIMITED) as stack, inetd(stack, backlog):
        waiter = selectors.DefaultSelector()
        waiter.register(ours, selectors.EVENT_READ)
        answers, sent, wanted = 0, 0, n(60000)
        end = time.monotonic() + PATIENCE
        while (sent < wanted or answers < wanted / 4) and time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                for _ in range(min(64, wanted - sent)):
                    ours.send(syn(sent))
                    sent += 1
            waiter.select(0.001)
            with contextlib.suppress(BlockingIOError):
                while True:
                    answer = ours.recv(2048)
                    answers += 1
                    if answers % 16 == 0 and (ack := third(answer)) is not None:
                        ours.send(ack)
        assert answers >= wanted / 4, f"{answers} answers to {sent} SYNs"
        if wanted >= 10000:
            time.sleep(1.2)
    waiter.close()


# ---- parts: a server in Python ------------------------------------------------------------------------------------------------------------
def answer(conn: Any) -> None:
    with conn, contextlib.suppress(OSError):
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            more = conn.recv(4096)
            if not more:
                return
            request += more
        conn.sendall(PYTHON_ANSWER)


def accepting(listener: Any) -> None:
    """A thread per connection, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=answer, args=(conn,), daemon=True).start()


def sending_back(listener: Any) -> None:
    """One thread and a selector, until the listener is closed."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    with contextlib.suppress(OSError, ValueError):
        while listener.fileno() >= 0:
            for key, _ in selector.select(0.1):
                if key.fileobj is listener:
                    conn, _ = listener.accept()
                    conn.setblocking(False)
                    selector.register(conn, selectors.EVENT_READ)
                elif data := key.fileobj.recv(4096):
                    key.fileobj.send(data)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    selector.close()


def python(n: Callable[[int], int]) -> None:
    """A threaded server and one with a selector, of Python, on kernel-like sockets."""
    with stacks(sysctl=UNLIMITED) as (a, b):
        listener = a.create_server((SERVER, PORTS["http"]), backlog=4096)
        polled = a.create_server((SERVER, PORTS["echo"]), backlog=4096)
        threads = [threading.Thread(target=accepting, args=(listener,), daemon=True),
                   threading.Thread(target=sending_back, args=(polled,), daemon=True)]
        for thread in threads:
            thread.start()
        visits(b, n(500))
        at_once([lambda: visits(b, n(400)) for _ in range(8)])
        at_once([lambda: echoes(b, n(300)) for _ in range(2)])
        listener.close()
        polled.close()
        for thread in threads:
            thread.join(PATIENCE)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Server and clients on one core: engine threads let users' threads run first, which read and write the link themselves."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def shared(n: Callable[[int], int]) -> None:
    """The Python server and the built-in services on one core."""
    with one_core():
        python(n)
        services(lambda size: n(size // 4))


PARTS: dict[str, Callable[[Callable[[int], int]], None]] = {
    "memory": memory,
    "services": services,
    "busy poll": lambda n: services(lambda size: n(size // 4), busy_poll_us=200),
    "bulk": bulk,
    "flood, entries": lambda n: flood(n, QUEUE),
    "flood, cookies": lambda n: flood(n, 128),
    "python": python,
    "one core": shared,
    "loss": lossy,
}


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--scale", type=float, default=1, metavar="X", help="so much of everything (default: 1)")
    ask.add_argument("--build", type=Path, metavar="DIR", help="fail if ustack is imported from elsewhere")
    ask.add_argument("-v", dest="verbose", action="store_true", help="seconds of each part")
    args = ask.parse_args()
    place = Path(ustack._fastpath.__file__).resolve()
    if args.build is not None and args.build.resolve() not in place.parents:
        print(f"train: ustack is imported from {place.parent}, not from {args.build}", file=sys.stderr)
        return 2
    for name, part in PARTS.items():
        start = time.monotonic()
        part(lambda size: max(int(size * args.scale), 1))
        if args.verbose:
            print(f"{time.monotonic() - start:6.2f} s  {name}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
