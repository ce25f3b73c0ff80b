"""The event stream of a stack: what was dropped, which socket changed its state, as it happened.

    with stack.events() as stream:
        ...
        for event in stream.take():
            print(event.at, event.kind, event.peer, event.info)

The engine keeps one bounded ring for all streams, and none while nobody listens: then each event costs one branch. Who takes too late loses
the oldest; `lost` counts them.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ustack import _fastpath
from ustack.klog import text_of

if TYPE_CHECKING:
    from ustack._fastpath import Engine

#: EV_* of core/state.pxd
KINDS = {1: "drop", 2: "state", 3: "log", 4: "queued", 5: "retransmit"}


class Event(NamedTuple):
    """One thing that happened.

    at      ns, the engine's time. kind: "drop", "state", "queued" (a connection joined the accept queue), "retransmit", "log".
    local, peer  (address, port). handle: of the socket, None if there is none.
    info    drop: reason, listener (handle or None). state: state, new_state (Linux's numbers). queued: accept_queue (with it), backlog.
            retransmit: seq, segs. log: text.
    shard   number of the queue's engine, which handle and listener are of; 0 with one queue.
    """

    at: int
    kind: str
    local: tuple[str, int]
    peer: tuple[str, int]
    handle: int | None
    info: dict[str, Any]
    shard: int = 0


def _event(row: tuple[int, int, int, int, int, int, tuple[str, int, str, int]], shard: int) -> Event:
    at, number, arg, a, b, c, (laddr, lport, faddr, fport) = row
    kind = KINDS.get(number, str(number))
    handle: int | None = c or None
    info: dict[str, Any] = {}
    if kind == "drop":
        info, handle = {"reason": _fastpath.drop_reason(arg), "listener": c or None}, None
    elif kind == "state":
        info = {"state": a, "new_state": b}
    elif kind == "queued":
        info = {"accept_queue": a, "backlog": b}
    elif kind == "retransmit":
        info = {"seq": a, "segs": b}
    elif kind == "log":
        info = {"text": text_of(arg, a, b)}
    return Event(at, kind, (laddr, lport), (faddr, fport), handle, info, shard)


class _Hub:
    """The streams of one engine; drains its ring into all of them."""

    def __init__(self, engine: Engine, shard: int) -> None:
        self.engine = weakref.ref(engine)
        self.shard = shard
        self.lock = threading.Lock()
        self.streams: list[EventStream] = []

    def resize(self) -> None:
        engine = self.engine()
        if engine is not None:
            _fastpath.set_event_ring(engine, max((s.capacity for s in self.streams), default=0))
            _fastpath.note_events(engine, any(s.note for s in self.streams))

    def drain(self) -> None:
        engine = self.engine()
        if engine is None:
            return
        rows, lost = _fastpath.take_events(engine)
        events = [_event(row, self.shard) for row in rows]
        for stream in self.streams:
            stream.lost += lost + max(0, len(stream._kept) + len(events) - stream.capacity)
            stream._kept.extend(events)


_hubs: weakref.WeakKeyDictionary[Engine, _Hub] = weakref.WeakKeyDictionary()
_hubs_lock = threading.Lock()


class EventStream:
    """Events since it was opened, at most `capacity` of them at a time. A context manager; iterating takes what is there."""

    def __init__(self, hub: _Hub, capacity: int, note: bool) -> None:
        self._hub = hub
        self.capacity = capacity
        self.note = note            # an engine thread tells its notes' thread about events
        self.lost = 0
        self.closed = False
        self._kept: deque[Event] = deque(maxlen=capacity)

    def take(self) -> list[Event]:
        """Everything since the last take, oldest first."""
        with self._hub.lock:
            self._hub.drain()
            out = list(self._kept)
            self._kept.clear()
        return out

    def __iter__(self) -> Any:
        return iter(self.take())

    def close(self) -> None:
        """Stop listening; the last one switches the ring off."""
        with self._hub.lock:
            if self.closed:
                return
            self._hub.drain()
            self.closed = True
            self._hub.streams.remove(self)
            self._hub.resize()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MergedStream:
    """The streams of a stack's engines, one for each queue, as one: in the order of time. Each has room for `capacity` events."""

    def __init__(self, parts: Sequence[EventStream]) -> None:
        self._parts = parts
        self.capacity = parts[0].capacity

    @property
    def lost(self) -> int:
        return sum(part.lost for part in self._parts)

    @property
    def closed(self) -> bool:
        return self._parts[0].closed

    def take(self) -> list[Event]:
        """Everything since the last take, oldest first."""
        return list(heapq.merge(*(part.take() for part in self._parts), key=lambda event: event.at))

    def __iter__(self) -> Any:
        return iter(self.take())

    def close(self) -> None:
        """Stop listening."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> MergedStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_stream(engine: Engine, capacity: int, note: bool = False, shard: int = 0) -> EventStream:
    """A new stream of an engine's events. shard: its number. ValueError for a capacity below 1."""
    if capacity < 1:
        raise ValueError(f"an event stream has room for at least one event, not {capacity}")
    with _hubs_lock:
        hub = _hubs.get(engine)
        if hub is None:
            hub = _hubs[engine] = _Hub(engine, shard)
    stream = EventStream(hub, capacity, note)
    with hub.lock:
        hub.drain()
        hub.streams.append(stream)
        hub.resize()
    return stream
