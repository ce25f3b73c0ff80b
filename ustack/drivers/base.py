"""What Socket and Stack need of a driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, overload

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
