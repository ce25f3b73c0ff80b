"""One end of a simulated connection: an application that writes, reads, pauses, sets options and ends as its random plan says.

It checks each byte it reads against what the other end was to send, so a lost, invented, doubled or reordered byte is found where it shows.
"""

from __future__ import annotations

import errno
import random
import socket as std
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ustack._socket import Socket
    from ustack.clock import VirtualClock
    from ustack.sim.plan import Plan

MS = 1_000_000
SIOCOUTQ = 0x5411
SO_MAX_PACING_RATE, TCP_NOTSENT_LOWAT, MSG_EOR = 47, 25, 0x80
CLOSED = 7
#: how an end finishes: politely, or in ways that may reset the other end
POLITE, ABORT, EARLY = "polite", "abort", "early"


class Mismatch(AssertionError):
    """The stream is not what was sent."""


def stream(seed: int, size: int) -> bytes:
    """The bytes that one end sends."""
    return random.Random(seed).randbytes(size)


class Peer:
    """Drives one non-blocking socket. `step` does what can be done now and tells whether anything happened."""

    def __init__(self, name: str, sock: Socket, clock: VirtualClock, rng: random.Random, out: bytes, expected: bytes, plan: Plan) -> None:
        self.name = name
        self.sock = sock
        self.clock = clock
        self.rng = rng
        self.out = out
        self.expected = expected
        self.sent = 0
        self.got = 0
        self.plan = plan
        self.to: tuple[str, int] | None = None      # whom to connect to when wake has come
        self.wake = 0                       # virtual time before which this end does nothing
        self.ending = rng.choices([POLITE, ABORT, EARLY], [8, 1, 1])[0]
        self.stop_at = rng.randrange(len(expected) + 1) if self.ending != POLITE and expected else len(expected)
        self.shut = False
        self.eof = False
        self.error: int | None = None
        self.done = False
        self.connected = False
        sock.setblocking(False)
        self._options()

    def begin(self, to: tuple[str, int], after: int) -> None:
        """Connect, at once or later."""
        self.to = to
        self.wake = self.clock.now + after
        if after == 0:
            self.step()

    def _options(self) -> None:
        rng, sock = self.rng, self.sock
        if rng.random() < 0.4:
            sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        if rng.random() < 0.15:
            sock.setsockopt(std.IPPROTO_TCP, std.TCP_CORK, 1)
        if rng.random() < 0.2:
            sock.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, rng.choice([2048, 8192, 65536]))
        if rng.random() < 0.2:
            self._receive_buffer()
        if rng.random() < 0.1:
            sock.setsockopt(std.IPPROTO_TCP, std.TCP_WINDOW_CLAMP, rng.choice([1500, 5000, 20000]))
        if rng.random() < 0.1:
            sock.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
            # So many probes that they outlast a pause: while a window is withdrawn no answer to them counts, as on Linux.
            for option, value in ((std.TCP_KEEPIDLE, rng.choice([1, 5])), (std.TCP_KEEPINTVL, rng.choice([1, 3])), (std.TCP_KEEPCNT, 120)):
                sock.setsockopt(std.IPPROTO_TCP, option, value)
        if self.plan.urgent:
            sock.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        if rng.random() < 0.05:
            sock.setsockopt(std.IPPROTO_TCP, TCP_NOTSENT_LOWAT, rng.choice([1, 20000]))
        if rng.random() < 0.05:
            sock.setsockopt(std.SOL_SOCKET, SO_MAX_PACING_RATE, rng.choice([20_000, 1_000_000]))

    def _receive_buffer(self) -> None:
        # Not below two segments: by Linux's window rules (facts J25) such a window can close for good.
        self.sock.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, max(self.rng.choice([2048, 8192, 65536]), 2 * self.plan.mtu))

    @property
    def rude(self) -> bool:
        """May this end reset the connection or leave data unread?"""
        return self.ending != POLITE

    def step(self) -> bool:
        if self.done or self.clock.now < self.wake:
            return False
        try:
            if self.to is not None:
                return self._open()
            return self._connect() if not self.connected else self._work()
        except BlockingIOError:
            return False
        except OSError as exc:
            self.error = exc.errno
            self._end()
            return True

    def _open(self) -> bool:
        to, self.to = self.to, None
        assert to is not None
        if self.plan.fastopen and self.out and self.rng.random() < 0.6:
            self.sent = self.sock.sendto(self.out[: self.rng.choice([1, 500, 5000])], std.MSG_FASTOPEN, to)
        else:
            self.sock.connect(to)
            self.connected = True
        return True

    def _connect(self) -> bool:
        if not self.sock.poll() & 0x4:
            return False
        code = self.sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        self.connected = True
        return True

    def _work(self) -> bool:
        moved = False
        if self.sent < len(self.out):
            moved = self._write() or moved
        elif not self.shut and self.ending != ABORT:
            self.sock.setsockopt(std.IPPROTO_TCP, std.TCP_CORK, 0)
            self.sock.shutdown(std.SHUT_WR)
            self.shut = moved = True
        if not self.eof and not self.done:
            moved = self._read() or moved
        if self.ending != POLITE and self.got >= self.stop_at and self.sent >= len(self.out) // 2:
            self._end()
            return True
        if self.eof and (self.shut or self.ending == ABORT) and not (self.plan.orphans_may_die and self._in_flight()):
            self._end()
            return True
        if moved and self.rng.random() < 0.1:
            self.wake = self.clock.now + self.rng.choice([MS // 10, MS, 30 * MS, 400 * MS, 3000 * MS, 30_000 * MS if self.plan.slow else MS])
            self._change_mind()
        return moved

    def _change_mind(self) -> None:
        """Options that change in the middle of a transfer."""
        what = self.rng.randrange(12)
        if what == 0:
            self._receive_buffer()
        elif what == 1:
            self.sock.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, self.rng.choice([2048, 8192, 65536]))
        elif what == 2:
            self.sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, self.rng.choice([0, 1]))
        elif what == 3:
            self.sock.setsockopt(std.IPPROTO_TCP, std.TCP_CORK, self.rng.choice([0, 1]))
        elif what == 4:
            self.sock.setsockopt(std.IPPROTO_TCP, std.TCP_QUICKACK, self.rng.choice([0, 1]))
        elif what == 5:
            self.sock.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 300)

    def _in_flight(self) -> bool:
        """Is something sent not acknowledged yet, on a connection that still lives?"""
        return self.sock.ioctl(SIOCOUTQ) > 0 and self.sock._engine.state(self.sock.handle) != CLOSED

    def _write(self) -> bool:
        size = self.rng.choice([1, 17, 500, 1448, 5000, 60000])
        flags = self.rng.choices([0, std.MSG_MORE, MSG_EOR, std.MSG_OOB if self.plan.urgent else 0], [16, 2, 1, 1])[0]
        try:
            self.sent += self.sock.send(self.out[self.sent : self.sent + size], flags)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno == errno.EPIPE and self.error is None:
                self.error = exc.errno
                self._end()
                return True
            raise
        return True

    def _read(self) -> bool:
        size = self.rng.choice([1, 100, 4000, 65536])
        seen = b""
        try:
            if self.rng.random() < 0.1:
                seen = self.sock.recv(self.rng.choice([1, size]), std.MSG_PEEK)
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        if data[: len(seen)] != seen and not self.plan.urgent:          # a read ends at the urgent mark, a look ahead may not
            raise Mismatch(f"{self.name}: what was read at {self.got} is not what was seen there before")
        if data != self.expected[self.got : self.got + len(data)]:
            raise Mismatch(f"{self.name}: {len(data)} bytes at {self.got} of {len(self.expected)} are not those that were sent")
        if not data:
            self.eof = True
        self.got += len(data)
        return True

    def _end(self) -> None:
        if self.ending == ABORT and self.error is None:
            self.sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.done = True

    def __repr__(self) -> str:
        return (f"<{self.name}: sent {self.sent}/{len(self.out)}, got {self.got}/{len(self.expected)}, {self.ending}"
                f"{', eof' if self.eof else ''}{f', error {errno.errorcode.get(self.error)}' if self.error else ''}"
                f"{', done' if self.done else ''}>")
