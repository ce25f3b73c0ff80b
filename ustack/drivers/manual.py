"""The manual driver: virtual time, no thread, no device. Replay, drill, simulations and tests stand on it.

The caller moves the clock (`run_until`, `inject`, or a blocking call that runs it); timers fire exactly at their deadlines, every packet carries
the time at which the core sent it. Blocked calls are waiters in the engine, so their order and deadlines are virtual too. May be called from
several threads: one lock around each step.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ustack import _fastpath, klog
from ustack.clock import VirtualClock
from ustack.drivers.base import drop_mirror, make_mirror
from ustack.errors import failure

if TYPE_CHECKING:
    from ustack._fastpath import Engine

WAITING, WOKEN, TIMED_OUT = 1, 2, 3

#: a wait of one operation: (handle, poll mask that ends it, deadline or None, wake one only)
Wait = tuple[int, int, "int | None", bool]


class WouldBlock(Exception):
    """Raised by an attempt that has to wait first; carries the wait, and what to do when its deadline passes (default: EAGAIN)."""

    def __init__(self, wait: Wait, on_timeout: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.wait = wait
        self.on_timeout = on_timeout


class Captured(Exception):
    """Ends a Socket method whose blocking attempt `submit` has taken over."""


class Completion:
    """The outcome of `stack.submit`: done, result, errno (name or None), at (virtual ns at which it completed)."""

    def __init__(self, driver: ManualDriver, attempt: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> None:
        self._driver = driver
        self._attempt = attempt
        self._map = finish
        self._waiter: int | None = None
        self._on_timeout: Callable[[], Any] | None = None
        self.done = False
        self.result: Any = None
        self.errno: str | None = None
        self.exception: BaseException | None = None
        self.at: int | None = None

    def _finish(self, result: Any = None, exception: BaseException | None = None) -> None:
        if exception is None and self._map is not None:
            try:
                result = self._map(result)
            except OSError as exc:
                exception = exc
        self.done = True
        self.result = result if exception is None else None
        self.exception = exception
        if isinstance(exception, OSError) and exception.errno is not None:
            self.errno = errno.errorcode.get(exception.errno, str(exception.errno))
        self.at = self._driver.clock.now

    def _try(self) -> None:
        """One attempt; completes, or queues the wait it asks for."""
        try:
            self._finish(self._attempt())
        except WouldBlock as block:
            handle, mask, deadline, exclusive = block.wait
            self._on_timeout = block.on_timeout
            waiter = self._driver.engine.wait(handle, mask, deadline, exclusive)
            if waiter == 0:
                self._try()
            else:
                self._waiter = waiter
        except OSError as exc:
            self._finish(exception=exc)

    def _step(self) -> bool:
        """Look at the wait; True if it ended."""
        if self.done or self._waiter is None:
            return False
        state = self._driver.engine.wait_state(self._waiter)
        if state == WAITING:
            return False
        self._driver.engine.wait_done(self._waiter)
        self._waiter = None
        if state == WOKEN:
            self._try()
            return True
        try:
            if self._on_timeout is None:
                raise failure(errno.EAGAIN, None)
            self._finish(self._on_timeout())
        except OSError as exc:
            self._finish(exception=exc)
        return True

    def cancel(self) -> None:
        """Give the wait up (EINTR)."""
        if not self.done:
            if self._waiter is not None:
                self._driver.engine.wait_done(self._waiter)
                self._waiter = None
            self._finish(exception=InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))

    def get(self) -> Any:
        """The result, or the exception raised."""
        if not self.done:
            raise RuntimeError("not completed yet: run the clock on")
        if self.exception is not None:
            raise self.exception
        return self.result


class ManualDriver:
    """Turns the crank of one engine; a participant of its clock."""

    def __init__(self, engine: Engine, clock: VirtualClock) -> None:
        self.engine = engine
        self.clock = clock
        self.gso = False            # hand out super-segments: (at, packet, gso_size) instead of (at, packet)
        self._lock = threading.RLock()
        self._out: list[Any] = []
        self._pending: list[Completion] = []
        self._sink: Callable[[int, bytes], None] | None = None
        self._capture: list[Completion] | None = None
        clock.attach(self)

    # ---- packets -----------------------------------------------------------------------------------------------------------
    def collect(self) -> None:
        """Move what the engine sent to the outbox (or the link), then let blocked calls that were woken go on."""
        with self._lock:
            progress = True
            while progress:
                progress = False
                frames = self.engine.transmit_gso() if self.gso else self.engine.transmit()
                if self._sink is None:
                    self._out.extend(frames)
                else:
                    for frame in frames:
                        self._sink(frame[0], frame[1])
                for completion in list(self._pending):
                    progress = completion._step() or progress
                self._pending = [c for c in self._pending if not c.done]
            _fastpath.show_ready(self.engine)
            _fastpath.cc_raise(self.engine)
            if _fastpath.log_waits(self.engine):
                klog.emit(self.engine)

    def take(self) -> list[Any]:
        """Every packet since the last take, oldest first."""
        with self._lock:
            self.collect()
            out, self._out = self._out, []
            return out

    def set_sink(self, sink: Callable[[int, bytes], None] | None) -> None:
        """Hand every packet to `sink(at, packet)` instead of the outbox: how a link attaches."""
        self._sink = sink

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int:
        """One packet from the network; runs the clock to `at` first. Returns the drop reason, 0 = taken."""
        with self._lock:
            if at is not None:
                self.clock.advance(at)
            reason = self.engine.receive(packet, self.clock.now, csum, gso_size)
            self.collect()
            return reason

    # ---- time --------------------------------------------------------------------------------------------------------------
    def next_timeout(self) -> int | None:
        return self.engine.next_timeout()

    def fire(self) -> None:
        with self._lock:
            self.engine.poll(self.clock.now)
            self.collect()

    # ---- calls -------------------------------------------------------------------------------------------------------------
    def begin(self, attempt: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> Completion:
        """Start an attempt; if it has to wait it stays pending and completes while the clock runs."""
        with self._lock:
            self.engine.advance(self.clock.now)
            completion = Completion(self, attempt, finish)
            completion._try()
            if not completion.done:
                self._pending.append(completion)
            self.collect()
            return completion

    def submit(self, method: Callable[[], Any]) -> Completion:
        """Run a Socket method; where it would block, its attempt becomes a completion instead of running the clock."""
        with self._lock:
            self.engine.advance(self.clock.now)
            self._capture = []
            try:
                result, error = method(), None
            except Captured:
                return self._capture[0]
            except OSError as exc:
                result, error = None, exc
            finally:
                self._capture = None
            done = Completion(self, lambda: None)
            done._finish(result, error)
            self.collect()
            return done

    def call(self, attempt: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> Any:
        """A plain call; where it blocks, the clock runs until it completes. RuntimeError if nothing can ever happen."""
        completion = self.begin(attempt, finish)
        if self._capture is not None and not completion.done:
            self._capture.append(completion)
            raise Captured
        while not completion.done:
            if not self.clock.step():
                completion.cancel()
                self._pending = [c for c in self._pending if not c.done]
                raise RuntimeError(
                    "this call would block for ever: no timer is armed and no packet is on its way "
                    "(use a timeout, submit(), or inject what it waits for)"
                )
        return completion.get()

    def now_ns(self) -> int:
        """The time deadlines are counted from."""
        return self.clock.now

    def kick(self) -> None:
        """A call that cannot block was made: hand out what it sent."""
        self.collect()

    def before_call(self) -> None:
        self.engine.advance(self.clock.now)

    def make_fd(self, handle: int) -> int:
        """A descriptor that polls as the socket does at the present virtual time."""
        return make_mirror(self.engine, handle)

    def drop_fd(self, handle: int) -> None:
        drop_mirror(self.engine, handle)

    def start(self) -> None:
        pass

    def cancel(self) -> None:
        """Give up every call that still waits (EINTR)."""
        with self._lock:
            for completion in self._pending:
                completion.cancel()
            self._pending.clear()

    def stop(self) -> None:
        with self._lock:
            self.cancel()
            self.collect()
        self.clock.detach(self)
