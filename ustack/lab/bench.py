"""One scenario played on the kernel, each step written down in the format of recordings.

One thread reads the TUN device between all steps; what the kernel answers at once is there when `write`
returns, so it is read before the next step. Blocking calls run on threads of their own; their results are
written into the step that stands where they were entered.

Invariant: `steps` is in time order and complete: nothing is done to the kernel but through methods of this
class. `disturbed` is the longest time by which this process was late (the machine was busy), `behind` the longest
that a packet took to come in after its time was written down, for `run` to decide whether to record again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from ..observe import tcp_info
from ..replay import packet as wire
from ..replay import values
from ..replay.calls import FLAG_BITS
from . import errors, options
from .kernel import Kernel
from .symbols import Key, Symbols, key_of

QUIET = 0.0012
LATE = 0.004
TICK, TICK_SAMPLES = 0.004, 5
CLOCK_MONOTONIC_COARSE = 6
_libc = ctypes.CDLL(None, use_errno=True)

Observer = Callable[[int, wire.Packet], None]


class Bench:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.steps: list[dict[str, Any]] = list(kernel.setup_steps)
        self.symbols = Symbols()
        self.sockets: dict[str, socket.socket] = {}
        self.bound: set[str] = set()
        self.observers: dict[Key, Observer] = {}
        self.last_error = ""
        self.disturbed = 0.0
        self.behind = 0.0
        self.quick = False
        self._packets = 0
        self._threads: list[threading.Thread] = []
        self._base = kernel.counters()
        self._poll = select.poll()
        self._poll.register(kernel.fd, select.POLLIN)
        self._start = time.monotonic()

    # ---- time

    def now(self) -> float:
        return round(time.monotonic() - self._start, 6)

    def tick_at(self) -> float:
        """The phase of the kernel's tick: when one was, in seconds of this scenario from 0 to one tick. CUBIC and BBR count in ticks."""
        best, at = TICK, 0.0
        for _ in range(TICK_SAMPLES):
            before, seen = time.clock_gettime(CLOCK_MONOTONIC_COARSE), 0.0
            while time.clock_gettime(CLOCK_MONOTONIC_COARSE) == before:
                seen = time.monotonic()
            gap = time.monotonic() - seen
            if gap < best:
                best, at = gap, seen + gap / 2
        return round((at - self._start) % TICK, 6)

    def _step(self, **members: Any) -> dict[str, Any]:
        step = {"t": self.now(), **members}
        self.steps.append(step)
        return step

    def wait(self, seconds: float) -> None:
        """Read the device for this long."""
        self.wait_until(self.now() + seconds)

    def wait_until(self, t: float) -> None:
        while True:
            left = t - self.now()
            if left <= 0:
                break
            if self._poll.poll(left * 1000):
                self._drain()
        self.disturbed = max(self.disturbed, self.now() - t)
        self._drain()

    def settle(self) -> None:
        """Take what the last step brought about."""
        self._drain()
        while not self.quick and self._poll.poll(QUIET * 1000):
            self._drain()

    def _drain(self) -> None:
        while True:
            try:
                raw = os.read(self.kernel.fd, 65536)
            except BlockingIOError:
                return
            self._emitted(raw)

    # ---- packets

    def _emitted(self, raw: bytes) -> None:
        packet = wire.parse(raw)
        if packet is None:
            return
        p = self._packets
        self._packets += 1
        sym = self.symbols.emitted(p, packet)
        self._step(dir="<", p=p, desc=wire.describe(raw), hex=raw.hex(), sym=sym)
        if packet.tcp:
            observer = self.observers.get(key_of(packet, False))
            if observer:
                observer(p, packet)

    def inject(self, raw: bytes, sym: dict[str, Any] | None = None) -> int:
        """One packet to the kernel, as it stands; returns its number."""
        self._drain()
        p = self._packets
        self._packets += 1
        packet = wire.parse(raw)
        if packet is not None:
            self.symbols.injected(p, packet)
        step = self._step(dir=">", p=p, desc=wire.describe(raw), hex=raw.hex())
        if sym:
            step["sym"] = sym
        try:
            os.write(self.kernel.fd, raw)
        except OSError as e:
            raise errors.ScenarioError(f"the TUN device refuses the packet: {e.strerror}") from e
        self.behind = max(self.behind, self.now() - step["t"])
        self.disturbed = max(self.disturbed, self.now() - step["t"] - LATE)
        self.settle()
        return p

    # ---- configuration

    def sysctl(self, name: str, value: str) -> None:
        step = self._step(sysctl=name, value=value)
        try:
            self.kernel.write_sysctl(name, value)
        except OSError as e:
            step["errno"] = options.errno_name(e)
        self.settle()

    def sysctl_get(self, name: str) -> None:
        self._step(sysctl_get=name, value=self.kernel.read_sysctl(name))

    def route(self, words: str) -> None:
        self._step(route=words)
        self.kernel.route(words)
        self.settle()

    def link(self, mtu: int) -> None:
        self._step(link="tun0", mtu=mtu)
        self.kernel.ip(f"link set tun0 mtu {mtu}\n")
        self.settle()

    def address(self, op: str, words: str) -> None:
        self._step(addr=words, op=op)
        self.kernel.ip(f"addr {op} {words}\n")
        self.settle()

    def note(self, text: str) -> None:
        self._step(note=text)

    # ---- views

    def mark(self, label: str) -> None:
        self._drain()
        now = self.kernel.counters()
        delta = {k: v - self._base.get(k, 0) for k, v in now.items() if v != self._base.get(k, 0)}
        self._base = now
        self._step(counters=delta, label=label)

    def ss(self, args: str) -> None:
        self._drain()
        step = self._step(ss=args, rows=[])
        step["rows"] = self.kernel.ss(args)
        self._drain()

    def text(self, command: str, args: str) -> None:
        """The bytes that ss or netstat prints."""
        self._drain()
        step = self._step(**{f"{command}_text": args}, text="")
        step["text"] = self.kernel.text(command, args)
        self._drain()

    # ---- calls

    def _socket(self, name: str) -> socket.socket:
        if name not in self.sockets:
            raise errors.ScenarioError(f"there is no socket {name}")
        return self.sockets[name]

    def _call(self, call: str, sock: str | None, args: dict[str, Any], act: Callable[[], Any], new: str | None = None,
              wait: bool = True) -> dict[str, Any]:
        """Write a call down and make it; with `wait` false on a thread of its own."""
        self._drain()
        step: dict[str, Any] = {"t": self.now(), "call": call}
        if sock is not None:
            step["sock"] = sock
        step |= {"args": args, "result": None}
        if new:
            step["new"] = new
        self.steps.append(step)

        def run() -> None:
            try:
                step["result"] = act()
            except OSError as e:
                step["result"], step["errno"] = -1, options.errno_name(e)
                step.pop("new", None)
            end = self.now()
            if not wait:
                step["t_end"] = end

        if wait:
            run()
            end = self.now()
            self.disturbed = max(self.disturbed, end - step["t"] - LATE)
            self.settle()
        else:
            thread = threading.Thread(target=run, daemon=True)
            self._threads.append(thread)
            thread.start()
            self.wait(QUIET)
        self.last_error = step.get("errno", "")
        return step

    def join(self, limit: float = 30) -> None:
        """Until all blocked calls have returned."""
        end = self.now() + limit
        while any(t.is_alive() for t in self._threads):
            if self.now() > end:
                raise errors.ScenarioError("a blocked call does not return")
            self.wait(0.002)
        self._threads.clear()

    def socket(self, name: str) -> None:
        def act() -> str:
            sock = self.sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            if self.kernel.by_route:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.kernel.congestion.encode())
            return "fd"

        self._call("socket", None, {"family": "AF_INET", "type": "SOCK_STREAM", "proto": 0}, act, new=name)

    def setsockopt(self, name: str, option: str, value: Any) -> None:
        sock = self._socket(name)
        level_name, level, number = options.option(option)
        args = {"level": level_name, "name": option, "level_num": level, "name_num": number, "value": value}

        def act() -> int:
            sock.setsockopt(level, number, values.option_in(value))
            return 0

        step = self._call("setsockopt", name, args, act)
        size = values.option_size(value)
        if "errno" not in step and size:
            with contextlib.suppress(OSError):
                raw = sock.getsockopt(level, number, size)
                step["readback"] = values.option_out(raw, value)

    def getsockopt(self, name: str, option: str, buflen: int = 4) -> None:
        sock = self._socket(name)
        level_name, level, number = options.option(option)
        args = {"level": level_name, "name": option, "level_num": level, "name_num": number, "buflen": buflen}

        def act() -> dict[str, Any]:
            raw = sock.getsockopt(level, number, buflen)
            if option == "TCP_INFO":
                return {"len": len(raw), "hex": raw.hex()}
            if len(raw) != 4:
                return {"value": {"hex": raw.hex(), "len": len(raw)}}
            value = struct.unpack("i", raw)[0]
            if option == "SO_ERROR":
                return {"value": value, "errno": options.errno_text(value)}
            return {"value": value}

        step = self._call("getsockopt", name, args, act)
        if option == "TCP_INFO" and "errno" not in step:
            self._step(tcp_info=tcp_info.decode(bytes.fromhex(step["result"]["hex"])), sock=name)

    def bind(self, name: str, addr: str) -> None:
        sock, place = self._socket(name), options.address(addr)

        def act() -> int:
            sock.bind(place)
            self.bound.add(name)
            return 0

        self._call("bind", name, {"addr": options.place(place)}, act)

    def listen(self, name: str, backlog: int) -> None:
        """Straight to the C library: Python clamps negative backlogs."""
        sock = self._socket(name)

        def act() -> int:
            if _libc.listen(sock.fileno(), ctypes.c_int(backlog)):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            return 0

        step = self._call("listen", name, {"backlog": backlog}, act)
        if name not in self.bound and "errno" not in step:
            self.getsockname(name)

    def setblocking(self, name: str, blocking: bool) -> None:
        sock = self._socket(name)

        def act() -> int:
            sock.setblocking(blocking)
            return 0

        self._call("setblocking", name, {"blocking": blocking}, act)

    def accept(self, name: str, new: str, wait: bool = True) -> bool:
        sock = self._socket(name)

        def act() -> dict[str, str]:
            fd, peer = sock._accept()  # type: ignore[attr-defined]
            self.sockets[new] = socket.socket(fileno=fd)
            return {"peer": options.place(peer)}

        return "errno" not in self._call("accept", name, {"flags": []}, act, new=new, wait=wait)

    def connect(self, name: str, addr: str) -> None:
        sock, place = self._socket(name), options.address(addr)

        def act() -> int:
            sock.connect(place)
            return 0

        self._call("connect", name, {"addr": addr}, act)

    def recv(self, name: str, size: int, flags: list[str], wait: bool = True) -> None:
        sock, bits = self._socket(name), sum(FLAG_BITS[f] for f in flags)
        args: dict[str, Any] = {"len": size, "flags": flags}
        self._call("recv", name, args, lambda: options.payload_form(sock.recv(size, bits)), wait=wait)

    def send(self, name: str, data: bytes, flags: list[str], wait: bool = True) -> None:
        sock, bits = self._socket(name), sum(FLAG_BITS[f] for f in flags)
        args = options.payload_form(data, exact=True) | {"flags": flags}
        self._call("send", name, args, lambda: sock.send(data, bits | FLAG_BITS["MSG_NOSIGNAL"]), wait=wait)

    def shutdown(self, name: str, how: str) -> None:
        sock = self._socket(name)

        def act() -> int:
            sock.shutdown(getattr(socket, how))
            return 0

        self._call("shutdown", name, {"how": how}, act)

    def getsockname(self, name: str) -> None:
        sock = self._socket(name)
        self._call("getsockname", name, {}, lambda: options.place(sock.getsockname()))

    def getpeername(self, name: str) -> None:
        sock = self._socket(name)
        self._call("getpeername", name, {}, lambda: options.place(sock.getpeername()))

    def close(self, name: str, wait: bool = True) -> None:
        sock = self._socket(name)
        fd = sock.detach()
        del self.sockets[name]

        def act() -> int:
            if _libc.close(fd):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            return 0

        self._call("close", name, {}, act, wait=wait)

    def poll(self, names: list[str], events: list[str]) -> None:
        fds = [{"sock": n, "events": events} for n in names]
        poller, by_fd = select.poll(), {}
        for n in names:
            sock = self._socket(n)
            by_fd[sock.fileno()] = n
            poller.register(sock.fileno(), values.mask_in(events))

        def act() -> list[dict[str, Any]]:
            return [{"sock": by_fd[fd], "revents": values.mask_out(mask)} for fd, mask in poller.poll(0)]

        self._call("poll", None, {"fds": fds, "timeout_ms": 0}, act)

    # ---- the end

    def finish(self) -> None:
        self.join()
        self.settle()
        self.mark("end")

    def dispose(self) -> None:
        for sock in self.sockets.values():
            with contextlib.suppress(OSError):
                sock.close()
        self.kernel.close()
