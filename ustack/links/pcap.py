"""PcapLink: packets from a capture file into the stack, the stack's packets into another.

    PcapLink("in.pcapng", "out.pcap")

In virtual time the packets come at the file's times, counted from the moment of attaching; a threaded stack gets them in real time, `speed`
times as fast (0: at once). Reads pcap (micro- and nanoseconds, both byte orders) and pcapng; writes pcap with nanoseconds and raw IP.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ustack.links.base import Link, Packets, Port

if TYPE_CHECKING:
    from ustack.stack import Stack

LINKTYPE_RAW = 101
MAGIC_US, MAGIC_NS, MAGIC_NG = 0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A
BYTE_ORDER = 0x1A2B3C4D
#: bytes in front of the IP header and where the Ethernet type stands, by link type
_HEADERS: dict[int, tuple[int, int | None]] = {
    101: (0, None), 228: (0, None), 12: (0, None), 14: (0, None), 0: (4, None), 108: (4, None), 1: (14, 12), 113: (16, 14),
    276: (20, 0),
}


def read_packets(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(time in ns, IPv4 packet) of each IPv4 packet in a pcap or pcapng file. ValueError if it is neither."""
    head = file.read(4)
    for order in "<", ">":
        magic = struct.unpack(order + "I", head)[0] if len(head) == 4 else 0
        if magic in (MAGIC_US, MAGIC_NS):
            yield from _read_pcap(file, order, 1 if magic == MAGIC_NS else 1000)
            return
    if head == struct.pack("<I", MAGIC_NG):
        yield from _read_pcapng(file)
        return
    raise ValueError("not a pcap or pcapng file")


def _ip(linktype: int, frame: bytes) -> bytes | None:
    """The IPv4 packet in a captured frame."""
    if linktype not in _HEADERS:
        raise ValueError(f"link type {linktype} is not understood (raw IP, Ethernet, cooked and null are)")
    offset, kind = _HEADERS[linktype]
    if kind is not None:
        ethertype = int.from_bytes(frame[kind:kind + 2], "big")
        if ethertype == 0x8100 and linktype == 1:
            ethertype = int.from_bytes(frame[16:18], "big")
            offset += 4
        if ethertype != 0x0800:
            return None
    packet = frame[offset:]
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    return packet[:int.from_bytes(packet[2:4], "big") or None]


def _read_pcap(file: BinaryIO, order: str, scale: int) -> Iterator[tuple[int, bytes]]:
    header = file.read(20)
    if len(header) < 20:
        raise ValueError("the pcap header is cut off")
    linktype = struct.unpack(order + "HHiIII", header)[5] & 0x0FFFFFFF
    while len(record := file.read(16)) == 16:
        seconds, fraction, captured, _ = struct.unpack(order + "IIII", record)
        frame = file.read(captured)
        if len(frame) < captured:
            return
        packet = _ip(linktype, frame)
        if packet is not None:
            yield seconds * 1_000_000_000 + fraction * scale, packet


def _read_pcapng(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    order = "<"
    interfaces: list[tuple[int, int, int]] = []
    kind = MAGIC_NG
    first = True
    while True:
        if not first:
            raw = file.read(4)
            if len(raw) < 4:
                return
            kind = struct.unpack(order + "I", raw)[0]
        length_raw = file.read(4)
        if len(length_raw) < 4:
            return
        if kind == MAGIC_NG:
            magic = file.read(4)
            order = "<" if magic == struct.pack("<I", BYTE_ORDER) else ">"
            interfaces = []
            length = struct.unpack(order + "I", length_raw)[0]
            file.read(max(length - 12, 0))
            first = False
            continue
        length = struct.unpack(order + "I", length_raw)[0]
        if length < 12:
            raise ValueError("a pcapng block of impossible length")
        body = file.read(length - 12)
        file.read(4)
        if kind == 1:
            interfaces.append(_interface(order, body))
        elif kind == 6 and len(body) >= 20:
            number, high, low, captured = struct.unpack(order + "IIII", body[:16])
            linktype, units, offset = interfaces[number]
            packet = _ip(linktype, body[20:20 + captured])
            if packet is not None:
                yield offset + (high << 32 | low) * 1_000_000_000 // units, packet


def _interface(order: str, body: bytes) -> tuple[int, int, int]:
    """(link type, time units per second, offset in ns) of an interface description block."""
    linktype = struct.unpack(order + "H", body[:2])[0]
    units, offset = 1_000_000, 0
    rest = body[8:]
    while len(rest) >= 4:
        code, size = struct.unpack(order + "HH", rest[:4])
        value = rest[4:4 + size]
        rest = rest[4 + (size + 3) // 4 * 4:]
        if code == 0:
            break
        if code == 9:
            units = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == 14:
            offset = struct.unpack(order + "q", value)[0] * 1_000_000_000
    return linktype, units, offset


class PcapWriter:
    """A pcap file of raw IP packets with nanoseconds."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115  (closed by close())
        self._file.write(struct.pack("<IHHiIII", MAGIC_NS, 2, 4, 0, 0, 262144, LINKTYPE_RAW))

    def write(self, at: int, packet: bytes) -> None:
        self._file.write(struct.pack("<IIII", at // 1_000_000_000, at % 1_000_000_000, len(packet), len(packet)) + packet)

    def close(self) -> None:
        self._file.close()


class PcapLink(Link):
    """read: the file to inject, write: the file to make; either may be None.

    everything    inject packets for other addresses too (a capture holds both directions; by default only packets to the stack go in).
    write_in      the injected packets stand in the written file as well.
    start         seconds after attaching at which the file begins, e.g. to have a listener by then.
    done          set when the last packet has been injected.
    """

    def __init__(self, read: str | os.PathLike[str] | None = None, write: str | os.PathLike[str] | None = None, *, speed: float = 1,
                 everything: bool = False, write_in: bool = False, start: float = 0, mtu: int | None = None) -> None:
        if speed < 0:
            raise ValueError("speed is a factor, 0 means at once")
        self.mtu = mtu
        self.done = threading.Event()
        self._speed = speed
        self._everything = everything
        self._write_in = write_in
        self._file: BinaryIO | None = None if read is None else Path(read).open("rb")  # noqa: SIM115
        self._writer = None if write is None else PcapWriter(write)
        self._source: Iterator[tuple[int, bytes]] = iter(())
        self._next: tuple[int, bytes] | None = None
        self._start = round(start * 1e9)
        self._first: int | None = None
        self._accept: Callable[[bytes], bool] = lambda packet: True
        self._driver: Packets | None = None
        self._fd = -1
        self._pump: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wall = 0
        if self._file is not None:
            self._source = read_packets(self._file)

    # ---- the source ----------------------------------------------------------------------------------------------------------
    def _begin(self, stack: Stack, now: int, wall: int) -> None:
        from ustack import _fastpath

        self._start, self._wall = now + self._start, wall
        nets = [ipaddress.ip_network(f"{addr}/{plen if whole else 32}", strict=False)
                for addr, plen, whole in _fastpath.addresses(stack.engine)]
        if not self._everything:
            self._accept = lambda packet: any(ipaddress.IPv4Address(packet[16:20]) in net for net in nets)
        self._advance()

    def _advance(self) -> None:
        for stamp, packet in self._source:
            if self._first is None:
                self._first = stamp
            if self._accept(packet):
                delay = round((stamp - self._first) / self._speed) if self._speed else 0
                self._next = self._start + max(delay, 0), packet
                return
        self._next = None
        self.done.set()

    def _record(self, at: int, packet: bytes) -> None:
        if self._writer is not None:
            self._writer.write(at + self._wall, packet)

    # ---- virtual time --------------------------------------------------------------------------------------------------------
    def attach_manual(self, stack: Stack, driver: Packets) -> None:
        self._driver = driver
        driver.set_sink(self._record)
        self._begin(stack, driver.clock.now, driver.clock.wall)
        driver.clock.attach(self)

    def next_timeout(self) -> int | None:
        return None if self._next is None or self._driver is None else max(self._next[0], self._driver.clock.now)

    def fire(self) -> None:
        assert self._driver is not None
        while self._next is not None and self._next[0] <= self._driver.clock.now:
            packet = self._next[1]
            self._advance()
            if self._write_in:
                self._record(self._driver.clock.now, packet)
            self._driver.inject(packet)

    # ---- threaded ------------------------------------------------------------------------------------------------------------
    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self._pump = theirs
        self._begin(stack, time.monotonic_ns(), time.time_ns() - time.monotonic_ns())
        self._thread = threading.Thread(target=self._run, args=(theirs,), name=f"ustack {stack.name} pcap", daemon=True)
        self._thread.start()
        self._fd = ours.detach()
        return Port(self._fd)

    def _run(self, end: socket.socket) -> None:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        while True:
            wait = None
            if self._next is not None:
                wait = max(self._next[0] - time.monotonic_ns(), 0) / 1e6
            poll.poll(wait)
            try:
                with contextlib.suppress(BlockingIOError):
                    while packet := end.recv(65536):
                        self._record(time.monotonic_ns(), packet)
                    return
                self._inject_due(end)
            except OSError:
                return

    def _inject_due(self, end: socket.socket) -> None:
        while self._next is not None and self._next[0] <= time.monotonic_ns():
            try:
                end.send(self._next[1])
            except BlockingIOError:
                select.select([], [end], [], 0.01)
                return
            if self._write_in:
                self._record(time.monotonic_ns(), self._next[1])
            self._advance()

    # ---- end -----------------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        if self._pump is not None:
            self._pump.close()
            self._pump = None
        if self._driver is not None:
            self._driver.set_sink(None)
            self._driver.clock.detach(self)
            self._driver = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def after_fork(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def counters(self) -> dict[str, Any]:
        return {"done": self.done.is_set()}
