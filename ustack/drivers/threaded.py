"""The threaded driver: an engine thread that never takes the GIL, and users' calls that block on futexes.

The thread is a daemon, so that a program that forgets stop() still ends: an atexit hook stops every stack. After a fork the child's engines
are dead (every call is EBADF) and their link descriptors closed; the parent's are untouched.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ustack import _fastpath
from ustack.drivers.base import drop_mirror, make_mirror
from ustack.drivers.manual import WouldBlock
from ustack.errors import failure

if TYPE_CHECKING:
    from ustack.links.base import Link, Port
    from ustack.stack import Stack

log = logging.getLogger("ustack")
_running: weakref.WeakSet[ThreadedDriver] = weakref.WeakSet()
_forking: list[ThreadedDriver] = []


class ThreadedDriver:
    """Runs one engine against one link in real time."""

    def __init__(self, stack: Stack, engine: _fastpath.Engine, link: Link, port: Port, *, number: int = 0,
                 shards: _fastpath.Shards | None = None, coalesce: bool = True, busy_poll_us: float | None = None) -> None:
        self.engine = engine
        self.link = link
        self._stack = weakref.ref(stack)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop = _fastpath.Loop(
            engine, port.fd, self._wake, kind=port.kind, vnet=port.vnet, gso=port.gso, mac=port.mac,
            network=port.network, gateway=port.gateway, stages=tuple(port.stages), coalesce=coalesce, shards=shards,
            busy_poll_ns=None if busy_poll_us is None else round(busy_poll_us * 1000),
        )
        self._thread = threading.Thread(target=self.loop.run, name=f"ustack {stack.name}" + (f"/{number}" if shards else ""), daemon=True)
        self._dead = False
        self._note = os.eventfd(0, os.EFD_CLOEXEC)
        self._notes = threading.Thread(target=_bring_notes, args=(self._note, weakref.ref(stack), weakref.ref(engine)),
                                       name=f"ustack notes {stack.name}", daemon=True)

    # ---- life --------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        # The thread inherits the mask: no signal is ever handled there, so a blocked main thread gets its EINTR.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
            self._notes.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _fastpath.set_note_fd(self.engine, self._note)
        _running.add(self)

    def stop(self) -> None:
        """What is queued is written, then the thread ends; blocked calls come back with EBADF."""
        if self._dead:
            return
        self._dead = True
        _running.discard(self)
        self.loop.stop()
        self._thread.join()
        _fastpath.kill(self.engine)
        os.close(self._wake)
        os.eventfd_write(self._note, NOTES_END)
        if self._notes is not threading.current_thread():
            self._notes.join()

    def _after_fork(self) -> None:
        """In the child."""
        self._dead = True
        with contextlib.suppress(OSError):
            os.close(self._wake)
        with contextlib.suppress(OSError):
            os.close(self._note)
        with contextlib.suppress(OSError):
            self.link.after_fork()
        stack = self._stack()
        if stack is not None:
            stack.stopped = True

    # ---- calls -------------------------------------------------------------------------------------------------------------
    def call(self, attempt: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> Any:
        """Make attempts until one does not block. The sleep ends at a wake-up, at the deadline, or by a signal's exception."""
        while True:
            try:
                result = attempt()
                break
            except WouldBlock as block:
                handle, mask, deadline, exclusive = block.wait
                on_timeout = block.on_timeout
            if not _fastpath.block(self.engine, handle, mask, deadline, exclusive):
                if on_timeout is None:
                    raise failure(errno.EAGAIN, None)
                result = on_timeout()
                break
        return result if finish is None else finish(result)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def before_call(self) -> None:
        """The engine reads the clock itself."""

    def kick(self) -> None:
        """The engine wakes its thread itself."""

    # ---- descriptors ---------------------------------------------------------------------------------------------------------
    def make_fd(self, handle: int) -> int:
        """A descriptor that polls as the socket does."""
        return make_mirror(self.engine, handle)

    def drop_fd(self, handle: int) -> None:
        drop_mirror(self.engine, handle)

    def counters(self) -> dict[str, Any]:
        """Packets and bytes of the link, turns and sleeps of the loop."""
        return self.loop.counters()


NOTES_END = 1 << 32


def _bring_notes(fd: int, stack_ref: weakref.ref[Stack], engine_ref: weakref.ref[_fastpath.Engine]) -> None:
    """The thread that brings to Python what the engine thread, which has no GIL, leaves: it sleeps on its eventfd, which it closes."""
    while os.eventfd_read(fd) < NOTES_END:
        stack, engine = stack_ref(), engine_ref()
        if stack is not None and engine is not None and not stack.stopped:
            try:
                stack.bring_notes(engine)
            except Exception:
                log.exception("notes of %r", stack)
        del stack, engine
    os.close(fd)


# ---- the process: exit and fork ------------------------------------------------------------------------------------------------
def _stop_all() -> None:
    for driver in list(_running):
        stack = driver._stack()
        if stack is not None:
            stack.stop()
        else:
            driver.stop()


def _before_fork() -> None:
    _forking[:] = list(_running)
    for driver in _forking:
        _fastpath.fork_before(driver.engine)


def _after_fork_in_parent() -> None:
    for driver in _forking:
        _fastpath.fork_after(driver.engine, False)
    _forking.clear()


def _after_fork_in_child() -> None:
    for driver in _forking:
        _fastpath.fork_after(driver.engine, True)
        driver._after_fork()
    _forking.clear()
    _running.clear()


atexit.register(_stop_all)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
