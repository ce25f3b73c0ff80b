"""MemoryLink: a cable between two stacks of this process.

    a, b = MemoryLink.pair()

Two stacks in virtual time must share one VirtualClock; what one sends arrives at the other at the same virtual time, in order. Two threaded
stacks are joined by a socket pair. A lone MemoryLink() has nothing at its other end: packets to it are gone, and it is good for a
stack that talks to itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from ustack.links.base import Link, Packets, Port

if TYPE_CHECKING:
    from ustack.clock import VirtualClock
    from ustack.stack import Stack

_BUFFER = 8 << 20


class MemoryLink(Link):
    """One end of a cable; made by pair()."""

    def __init__(self, mtu: int | None = None) -> None:
        self.mtu = mtu
        self.peer: MemoryLink | None = None
        self._socket: socket.socket | None = None
        self._fd = -1
        self._driver: Packets | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()

    @classmethod
    def pair(cls, mtu: int | None = None) -> tuple[MemoryLink, MemoryLink]:
        """Both ends."""
        a, b = cls(mtu), cls(mtu)
        a.peer, b.peer = b, a
        return a, b

    # ---- threaded ----------------------------------------------------------------------------------------------------------
    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        if self._fd >= 0 or self._driver is not None:
            raise ValueError("this end of the MemoryLink already has a stack")
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (ours, theirs):
                end.setblocking(False)
                # As much as the system allows; what does not fit waits a moment, then is lost as on a full device.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            if self.peer is None:
                theirs.close()
            else:
                self.peer._socket = theirs
            self._socket = ours
        self._fd, self._socket = self._socket.detach(), None
        return Port(self._fd)

    # ---- virtual time ------------------------------------------------------------------------------------------------------
    def attach_manual(self, stack: Stack, driver: Packets) -> None:
        if self._driver is not None or self._fd >= 0:
            raise ValueError("this end of the MemoryLink already has a stack")
        other = None if self.peer is None else self.peer._driver
        if other is not None and other.clock is not driver.clock:
            raise ValueError("two stacks on one MemoryLink share one VirtualClock")
        self._driver = driver
        driver.set_sink(self._send)
        driver.clock.attach(self)

    @property
    def clock(self) -> VirtualClock:
        assert self._driver is not None
        return self._driver.clock

    def _send(self, at: int, packet: bytes) -> None:
        if self.peer is not None and self.peer._driver is not None:
            self.peer._waiting.append((max(at, self.clock.now), packet))

    def next_timeout(self) -> int | None:
        return self._waiting[0][0] if self._waiting else None

    def fire(self) -> None:
        """Deliver what has arrived."""
        assert self._driver is not None
        while self._waiting and self._waiting[0][0] <= self.clock.now:
            self._driver.inject(self._waiting.popleft()[1])

    # ---- end ---------------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        if self._driver is not None:
            self._driver.set_sink(None)
            self._driver.clock.detach(self)
            self._driver = None
        self._waiting.clear()

    def counters(self) -> dict[str, Any]:
        return {"waiting": len(self._waiting)}
