"""A listening socket of a stack with several queues: a twin of it on every shard, which the program sees as one listener.

Limits, queues and counters of a listener are per shard: each twin has the backlog of its own. accept() takes from any, in turns.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, Any, NoReturn

from ustack import _fastpath
from ustack.errors import failure

if TYPE_CHECKING:
    from ustack._socket import Address, Socket

_POLLIN = 1


class Twins:
    """The listeners of one Socket on all shards of its stack; the first is the Socket's own."""

    def __init__(self, sock: Socket, options: list[tuple[int, int, Any]]) -> None:
        """Bind twins on the other shards to the same address, with the same options."""
        self._stack = sock._stack
        self.places: list[tuple[_fastpath.Engine, int]] = [(sock._engine, sock.handle)]
        self._next = 0
        self._fds: list[int] = []
        self._epoll: select.epoll | None = None
        host, port = sock.getsockname()
        for engine in self._stack.engines[1:]:
            handle = engine.socket()
            self.places.append((engine, handle))
            for level, name, value in options:
                engine.setsockopt(handle, level, name, value)
            engine.bind(handle, "" if host == "0.0.0.0" else host, port)

    def listen(self, backlog: int) -> None:
        for engine, handle in self.places[1:]:
            engine.listen(handle, backlog)

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        for engine, handle in self.places[1:]:
            engine.setsockopt(handle, level, name, value)

    def serve(self, kind: str | None) -> None:
        for engine, handle in self.places:
            engine.set_service(handle, kind)

    def poll_mask(self) -> int:
        mask = 0
        for engine, handle in self.places:
            mask |= engine.poll_mask(handle)
        return mask

    # ---- accept --------------------------------------------------------------------------------------------------------------
    def try_accept(self) -> tuple[int, int, Address] | None:
        """(shard, handle, peer) of a connection, None if there is none."""
        n = len(self.places)
        first = self._next
        for k in range(n):
            i = (first + k) % n
            engine, handle = self.places[i]
            try:
                child, peer = engine.accept(handle)
            except BlockingIOError:
                continue
            self._next = (i + 1) % n
            return i, child, peer
        return None

    def accept(self, sock: Socket) -> tuple[int, int, Address]:
        """As Socket.accept, from any shard."""
        deadline: tuple[int | None, bool] | None = None
        while True:
            found = self.try_accept()
            if found is not None:
                return found
            if sock.gettimeout() == 0:
                raise failure(11, None)
            deadline = deadline or sock._deadline(True)
            woken = _fastpath.block_any(self.places, _POLLIN, deadline[0])
            if woken < 0:
                self._expired(deadline[1])
            self._next = woken

    @staticmethod
    def _expired(pythons: bool) -> NoReturn:
        if pythons:
            raise TimeoutError("timed out")
        raise failure(11, None)

    # ---- descriptor, end -----------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """A descriptor that polls readable while any twin has a connection."""
        if self._epoll is None:
            self._epoll = select.epoll()
            for driver, (_, handle) in zip(self._stack.drivers, self.places, strict=True):
                fd = driver.make_fd(handle)
                self._fds.append(fd)
                self._epoll.register(fd, select.EPOLLIN)
        return self._epoll.fileno()

    def close(self) -> None:
        """All twins but the Socket's own, and the descriptors."""
        if self._epoll is not None:
            self._epoll.close()
            for driver, (_, handle) in zip(self._stack.drivers, self.places, strict=True):
                driver.drop_fd(handle)
            for fd in self._fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._epoll = None
            self._fds.clear()
        for engine, handle in self.places[1:]:
            with contextlib.suppress(OSError):
                engine.close(handle)
