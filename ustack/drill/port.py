"""The stack as the interpreter sees it: the part of `ustack.Stack` it uses, and how one is made.

`StackLike` and `SocketLike` are the public interface of the manual driver and nothing more, so a
fake of thirty lines can stand in for the stack in a test.  Times are integer nanoseconds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from ustack.drill.options import Options
from ustack.drill.symbols import errno_name

# The wall clock of a run: any fixed moment does, a fixed one keeps runs repeatable.
WALL_AT_START_NS = 1_700_000_000_000_000_000


class CompletionLike(Protocol):
    """A submitted call: `errno` is a name or None, `at` the time of completion."""

    @property
    def done(self) -> bool: ...
    @property
    def result(self) -> Any: ...
    @property
    def errno(self) -> str | None: ...
    @property
    def at(self) -> int | None: ...


class SocketLike(Protocol):
    """`ustack.Socket`, the calls that never block."""

    def bind(self, address: tuple[str, int]) -> None: ...
    def listen(self, backlog: int) -> None: ...
    def shutdown(self, how: int) -> None: ...
    def setblocking(self, flag: bool) -> None: ...
    def setsockopt(self, level: int, name: int, value: int | bytes) -> None: ...
    def getsockopt(self, level: int, name: int, buflen: int) -> bytes | int: ...
    def poll(self) -> int: ...
    def ioctl(self, request: int) -> int: ...
    def wakeups(self) -> int: ...


class StackLike(Protocol):
    @property
    def clock(self) -> Any: ...
    @property
    def sysctl(self) -> MutableMapping[str, Any]: ...
    def socket(self) -> Any: ...
    def submit(self, sock: Any, op: str, *args: Any) -> CompletionLike: ...
    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> Any: ...
    def run_until(self, t: int) -> Iterable[tuple[Any, ...]]: ...
    def take(self) -> Iterable[tuple[Any, ...]]: ...
    def next_timeout(self) -> int | None: ...
    def nstat(self) -> Mapping[str, int]: ...
    def ss(self, args: str = "-tan") -> Iterable[Mapping[str, Any]]: ...
    def ss_text(self, args: str = "-tan") -> str: ...
    def route(self, text: str) -> Any: ...
    def link(self, mtu: int | None = None, *, refuse: bool | None = None,
             super_segments: bool | None = None) -> Any: ...
    def tcp_metrics_flush(self) -> Any: ...
    def stop(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Emitted:
    """One packet that left the stack; a super-segment is one packet."""

    at: int
    raw: bytes


StackFactory = Callable[[Options], StackLike]


def make_stack(options: Options) -> StackLike:
    """A fresh stack in virtual time with the addresses of the run."""
    import ustack

    stack: StackLike = ustack.Stack(
        None, f"{options.local_ip}/{options.prefix_length()}",
        clock=ustack.VirtualClock(wall=WALL_AT_START_NS),
        seed=options.seed, mtu=options.mtu, sysctl=dict(options.sysctl))
    stack.route(f"add {options.remote_ip}/32 via {options.gateway_ip} dev tun0")
    stack.link(super_segments=True)
    return stack


@dataclass(slots=True)
class Done:
    """A call that completed at once; shaped as a completion."""

    at: int
    result: Any = None
    errno: str | None = None
    done: bool = True


class Port:
    """The stack, its clock as script time, and the packets that came out and were not looked at yet."""

    def __init__(self, stack: StackLike) -> None:
        self.stack = stack  # its clock.now is nanoseconds, and it is a VirtualClock
        self._zero: int = stack.clock.now
        self._out: list[Emitted] = []
        self._offloads = {"tso": True, "gso": True}
        self.log: Callable[[int, bytes, bool], None] = lambda at, raw, inbound: None

    # -- time (script time: nanoseconds since the start of the script)
    def start(self) -> None:
        """Script time begins now."""
        self._zero = self.stack.clock.now
        self._collect(self.stack.take())

    @property
    def now(self) -> int:
        return int(self.stack.clock.now) - self._zero

    def script_time(self, stack_time: int) -> int:
        return stack_time - self._zero

    def wall_to_script(self, wall_ns: int) -> int:
        """A time of the stack's real-time clock (SCM_TIMESTAMPING)."""
        return wall_ns - int(self.stack.clock.wall) - self._zero

    def next_timeout(self) -> int | None:
        at = self.stack.next_timeout()
        return None if at is None else max(at - self._zero, self.now)

    def run_until(self, t: int) -> None:
        self._collect(self.stack.run_until(t + self._zero))

    # -- packets
    def inject(self, raw: bytes, gso_size: int) -> None:
        self.log(self.now, raw, True)
        self.stack.inject(raw, gso_size=gso_size)
        self._collect(self.stack.take())

    def emitted(self) -> list[Emitted]:
        """Everything that left since the last call."""
        self._collect(self.stack.take())
        out, self._out = self._out, []
        return out

    def _collect(self, packets: Iterable[tuple[Any, ...]]) -> None:
        for at, raw, *_gso_size in packets:
            self.log(at - self._zero, bytes(raw), False)
            self._out.append(Emitted(at - self._zero, bytes(raw)))

    def set_offload(self, feature: str, on: bool) -> None:
        """ethtool -K: super-segments reach the device only while both tso and gso are on."""
        self._offloads[feature] = on
        self.stack.link(super_segments=all(self._offloads.values()))

    # -- looking
    def queues(self, sock: Any) -> dict[str, int]:
        """A listener's queues by `ss`, and by the stack's own view where it has one."""
        number = sock.getsockname()[1]
        end = f":{number}"
        listening = [row for row in self.stack.ss("-tln") if str(row["local"]).endswith(end)]
        half_open = [row for row in self.stack.ss("-tn state syn-recv") if str(row["local"]).endswith(end)]
        out = {"syn": len(half_open), "accept": sum(int(row["recvq"]) for row in listening),
               "limit": max((int(row["sendq"]) for row in listening), default=0)}
        requests = getattr(self.stack, "requests", None)
        if requests is not None:
            out["young"] = sum(bool(row["young"]) for row in requests(sock))
        return out

    # -- calls
    def submit(self, sock: Any, op: str, *args: Any) -> CompletionLike:
        """Start a call that may block; nothing is raised, an error is the completion's errno."""
        return self.stack.submit(sock, op, *args)

    def at_once(self, call: Callable[..., Any], *args: Any) -> Done:
        """A call that cannot block."""
        try:
            return Done(self.stack.clock.now, call(*args))
        except OSError as error:
            return Done(self.stack.clock.now, None, errno_name(error.errno or errno.EIO))
