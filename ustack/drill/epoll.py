"""epoll over the poll masks and wake-ups of the stack's sockets.

Linux's rule: a watch is put on the ready list when it is added or modified while ready, and by each
wake-up of the socket that matches its events; epoll_wait() looks at the real mask of those on the
list and takes an edge-triggered one off.  So EPOLLET fires on each wake-up, not on each change of a
bit.  Wake-ups are read with `Socket.wakeups()`: the poll bits of all wake-ups since it was last asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ustack.drill.symbols import SYMBOLS

_ALWAYS = SYMBOLS["EPOLLERR"] | SYMBOLS["EPOLLHUP"]
_ET, _ONESHOT = SYMBOLS["EPOLLET"], SYMBOLS["EPOLLONESHOT"]
_BITS = 0xFFFF


@dataclass(slots=True)
class Watch:
    """`data` is what comes back with the event."""

    sock: Any
    events: int
    data: int
    ready: bool = False
    armed: bool = True

    @property
    def interest(self) -> int:
        return (self.events & _BITS | _ALWAYS) if self.armed else 0


Watches = dict[int, Watch]


def notice(sets: Iterable[Watches]) -> None:
    """Bring the wake-ups since the last call to all watches; before every look and every change."""
    seen: dict[int, int] = {}
    for watches in sets:
        for watch in watches.values():
            if id(watch.sock) not in seen:
                seen[id(watch.sock)] = watch.sock.wakeups()
            if seen[id(watch.sock)] & watch.interest:
                watch.ready = True


def control(watches: Watches, op: int, fd: int, sock: Any, events: int, data: int) -> str | None:
    """epoll_ctl(); the errno name, or None."""
    match op:
        case 1:
            if fd in watches:
                return "EEXIST"
            watches[fd] = Watch(sock, events, data)
        case 2:
            return None if watches.pop(fd, None) is not None else "ENOENT"
        case 3:
            if fd not in watches:
                return "ENOENT"
            watches[fd] = Watch(sock, events, data)
        case _:
            return "EINVAL"
    watch = watches[fd]
    watch.ready = bool(sock.poll() & watch.interest)
    return None


def ready(watches: Watches, limit: int) -> list[tuple[int, int]]:
    """What epoll_wait() would return now: (events, data) of at most `limit` watches."""
    out: list[tuple[int, int]] = []
    for watch in watches.values():
        mask = watch.sock.poll() & watch.interest
        if not watch.events & _ET:
            watch.ready = bool(mask)
        if not watch.ready or len(out) >= limit:
            continue
        if not mask:
            watch.ready = False
            continue
        out.append((mask, watch.data))
        if watch.events & _ONESHOT:
            watch.armed = False
        watch.ready = not watch.events & _ET and watch.armed
    return out
