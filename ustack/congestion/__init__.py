"""Congestion controls of your own, in Python, for experiments in virtual time.

    @congestion.register
    class Half(congestion.CongestionControl):
        name = "half"

        def ssthresh(self) -> int:
            return max(self.conn.cwnd // 2, 2)

    sock.setsockopt(IPPROTO_TCP, TCP_CONGESTION, b"half")       # or stack.sysctl["net.ipv4.tcp_congestion_control"] = "half"

A method runs synchronously at the place where Linux calls the function of the same name of struct tcp_congestion_ops, so a stack with a
VirtualClock is needed. Beside an engine thread, which never takes the GIL, choosing such a name is a ValueError: there a congestion control
is C, a cc_ops_t (ustack/core/cc.pxd) given to `Stack.add_congestion_control`. docs/congestion.md describes both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypedDict, TypeVar

from ustack import _fastpath

if TYPE_CHECKING:
    from ustack._fastpath import CcConnection, Engine

__all__ = ["CWND_EVENTS", "STATES", "CongestionControl", "Rate", "names", "register", "unregister"]

STATES = ("Open", "Disorder", "CWR", "Recovery", "Loss")
CWND_EVENTS = ("TX_START", "CWND_RESTART", "COMPLETE_CWR", "LOSS", "ECN_NO_CE", "ECN_IS_CE")
BUILT_IN = frozenset({"reno", "cubic", "bbr"})
OPTIONAL = ("set_state", "cwnd_event", "in_ack_event", "pkts_acked", "min_tso_segs", "cong_control")


class Rate(TypedDict):
    """The delivery rate sample of an ACK: `delivered` packets in `interval_us` (both negative: no sample)."""

    delivered: int
    interval_us: int
    rtt_us: int
    losses: int
    acked_sacked: int
    prior_in_flight: int
    is_app_limited: bool
    is_ack_delayed: bool


class CongestionControl:
    """The base: Reno. One instance per connection; `self.conn` is looked at and changed while a method runs, and raises otherwise.

    A subclass may also define, with keyword-only arguments:

    set_state(*, state)                     the loss state is about to become STATES[state]
    cwnd_event(*, event)                    CWND_EVENTS[event] happened
    in_ack_event(*, flags)                  an ACK came in: bits 1 slow path, 2 window update, 4 ECE
    pkts_acked(*, acked, rtt_us, in_flight)  packets left the retransmission queue; rtt_us -1 = none measured; in_flight in bytes
    min_tso_segs() -> int                   smallest super-segment worth making
    cong_control(*, ack, flag, rate)        sets window and rate by itself on every ACK, instead of cong_avoid and the reduction of
                                            windows in recovery; rate: Rate

    pacing: segments leave at `conn.pacing_rate`. ecn: needs ECN, as dctcp does (docs/congestion.md).

    An exception in a method is raised by the call that drove the stack (inject, run_until, send ...); Reno's answer stands in for the method's.
    """

    name: ClassVar[str] = ""
    pacing: ClassVar[bool] = False
    ecn: ClassVar[bool] = False

    def __init__(self, conn: CcConnection) -> None:
        self.conn = conn

    def init(self) -> None:
        """The connection is established, or the control was chosen on it."""

    def release(self) -> None:
        """The connection ends, or another control was chosen."""

    def ssthresh(self) -> int:
        """The threshold, in packets, at a loss or an ECN mark."""
        return max(self.conn.cwnd >> 1, 2)

    def cong_avoid(self, *, ack: int, acked: int) -> None:
        """`acked` packets were acknowledged outside of a reduction: let the window grow."""
        conn = self.conn
        if not conn.is_cwnd_limited:
            return
        if conn.in_slow_start:
            acked = conn.slow_start(acked)
            if not acked:
                return
        conn.cong_avoid_ai(conn.cwnd, acked)

    def undo_cwnd(self) -> int:
        """The window after a reduction that turned out to be spurious."""
        return max(self.conn.cwnd, self.conn.prior_cwnd)


_registry: dict[str, type[CongestionControl]] = {}
Control = TypeVar("Control", bound=type[CongestionControl])


def register(cls: Control) -> Control:
    """Make a class known by its `name`, as a decorator or a call. ValueError for a name that is not 1 to 15 ASCII characters, or taken."""
    if not (isinstance(cls, type) and issubclass(cls, CongestionControl)):
        raise TypeError(f"{cls!r} is no subclass of CongestionControl")
    if not (1 <= len(cls.name) <= 15 and cls.name.isascii() and cls.name.isprintable() and " " not in cls.name):
        raise ValueError(f"{cls.__name__}.name = {cls.name!r}: 1 to 15 printable ASCII characters")
    if cls.name in BUILT_IN or _registry.get(cls.name, cls) is not cls:
        raise ValueError(f"there is a congestion control {cls.name!r} already")
    _registry[cls.name] = cls
    return cls


def unregister(name: str) -> None:
    """Forget a name; stacks that know it already keep it."""
    _registry.pop(name, None)


def names() -> list[str]:
    """The registered names."""
    return sorted(_registry)


def provide(engine: Engine, name: object) -> None:
    """Somebody chooses a congestion control by this name: if it is a registered class that the engine does not know, make it known.
    ValueError beside an engine thread."""
    text = bytes(name).split(b"\0")[0].decode(errors="replace") if isinstance(name, (bytes, bytearray, memoryview)) else str(name).strip()
    cls = _registry.get(text)
    if cls is None or text in _fastpath.cc_names(engine):
        return
    if _fastpath.has_thread(engine):
        raise ValueError(f"congestion control {text!r} is Python, and the engine thread never takes the GIL: use a stack with a VirtualClock, or "
                         "write it in C as a cc_ops_t (ustack/core/cc.pxd) and give it to Stack.add_congestion_control")
    _fastpath.cc_add_class(engine, cls, [m for m in OPTIONAL if hasattr(cls, m)])

