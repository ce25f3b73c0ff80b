"""What Socket and Stack need of a driver, and what all drivers do alike: pollable descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Protocol, TypeVar, overload

from ustack import _fastpath

T = TypeVar("T")
R = TypeVar("R")


class Driver(Protocol):
    """Turns the crank of one engine."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    @overload
    def call(self, attempt: Callable[[], T], finish: None = None) -> T: ...

    @overload
    def call(self, attempt: Callable[[], T], finish: Callable[[T], R]) -> R: ...

    def now_ns(self) -> int:
        """The time deadlines are counted from."""
        ...

    def before_call(self) -> None:
        """A call that cannot block is about to be made."""
        ...

    def kick(self) -> None:
        """It was made: what it sent may go out."""
        ...

    def make_fd(self, handle: int) -> int: ...

    def drop_fd(self, handle: int) -> None: ...


def make_mirror(engine: _fastpath.Engine, handle: int) -> int:
    """One end of a socket pair that shows the socket's readiness."""
    user, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (user, peer):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    try:
        _fastpath.mirror_add(engine, handle, user.fileno(), peer.fileno())
    except BaseException:
        user.close()
        peer.close()
        raise
    peer.detach()
    return user.detach()


def drop_mirror(engine: _fastpath.Engine, handle: int) -> None:
    """Close both ends."""
    for fd in _fastpath.mirror_remove(engine, handle) or ():
        with contextlib.suppress(OSError):
            os.close(fd)
