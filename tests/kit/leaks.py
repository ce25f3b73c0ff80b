"""Whether a stack in virtual time gives back all it took: the check that every test below interop gets
without asking for it; and scapy decodes every packet that a test takes from a stack.

`Watch` remembers each Stack (and each bare Engine made through ustack.Engine) that a test creates. At the end
every handle that is still open is closed, as a program does that ends, virtual time runs until no timer is
left, with nobody at the other end, and then every pool and every sum must be zero.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from typing import Any

import pytest

import ustack
from tests.kit.oracle import decode
from ustack import Stack, _fastpath
from ustack.drivers.manual import ManualDriver

#: virtual time that the longest-lived thing may take: an orphan with the largest tcp_retries2, and to spare
PATIENCE = 10 * 86400 * 1_000_000_000
#: timers that may fire meanwhile, per engine
TURNS = 200_000


def wind_up(engine: Any) -> None:
    """Close what is open and run the clock until nothing is under way."""
    for handle in _fastpath.handles(engine):
        with contextlib.suppress(OSError):      # closing one may end another
            engine.close(handle)
    end = engine.now + PATIENCE
    for turn in itertools.count():
        engine.transmit()
        due = engine.next_timeout()
        if due is None:
            return
        assert due < end and turn < TURNS, f"timers run for ever: {left(engine)}"
        engine.poll(due)


def left(engine: Any) -> dict[str, int]:
    """What is not zero."""
    counts = {f"pool of {k}": v for k, v in _fastpath.pool_usage(engine).items()}
    counts |= _fastpath.accounting(engine)
    return {k: v for k, v in counts.items() if v}


def decoded(packets: list[Any]) -> list[Any]:
    """The same list, after scapy has agreed with each packet."""
    for packet in packets:
        decode(packet[1])
    return packets


class Watch:
    """The engines of one test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.engines: list[Any] = []
        self.stacks: weakref.WeakSet[Stack] = weakref.WeakSet()
        self.drivers: list[ManualDriver] = []      # of stacks that are garbage before the end, too
        made = _fastpath.Engine
        init, take, run_until = Stack.__init__, Stack.take, Stack.run_until

        def engine(*args: Any, **kw: Any) -> Any:
            new = made(*args, **kw)
            self.engines.append(new)
            return new

        def stack(stack: Stack, *args: Any, **kw: Any) -> None:
            init(stack, *args, **kw)
            if stack.clock is not None:
                self.engines.append(stack.engine)
                self.stacks.add(stack)
                self.drivers.extend(d for d in stack.drivers if isinstance(d, ManualDriver))

        def taken(stack: Stack) -> list[Any]:
            return decoded(take(stack))

        def ran(stack: Stack, t: int) -> list[Any]:
            return decoded(run_until(stack, t))

        patch.setattr(ustack, "Engine", engine)
        patch.setattr(Stack, "take", taken)
        patch.setattr(Stack, "run_until", ran)
        patch.setattr(Stack, "__init__", stack)

    def check(self) -> None:
        for stack in list(self.stacks):
            stack.close()
        for driver in self.drivers:
            driver.cancel()
        for engine in self.engines:
            wind_up(engine)
            assert not left(engine), f"left over after everything was closed: {left(engine)}"

    def forget(self) -> None:
        """The test has failed: say nothing more, but let no socket complain later."""
        for stack in list(self.stacks):
            stack.close()
