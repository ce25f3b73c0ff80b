"""Hooks: Python functions at the decisions of a stack, as BPF's sock_ops has them in the kernel, and further.

    hook = stack.on("syn", choose)          # or @stack.on("syn"); engine.on() for a bare Engine
    ...
    hook.remove()

    def choose(syn):
        syn.rto_ms = 3000                   # settings of the argument: what the decision is to use
        if syn.qlen > 100:
            return "drop"                   # a verdict; None: as Linux decides

The argument is a view: its attributes tell what is known at this moment, the settings (SETTINGS of each class below) may be assigned, the
rest may not. Without an engine thread (a VirtualClock, or an Engine) every hook is synchronous. Beside an engine thread, hooks of user calls
(listen, connect, accept) are called in the user's thread, `established` in two phases on a thread of its own, `state`, `queued` and
`drop` afterwards, without a say; the others, per packet, raise ValueError and name the C op-table's op instead (docs/hooks.md).

A function that raises, or chooses what cannot be, is reported once (logger "ustack.hooks", with the traceback), counted in Hook.errors
and called no more; the decision goes on without it.
"""

from __future__ import annotations

import errno
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from ustack import _fastpath

if TYPE_CHECKING:
    from ustack._fastpath import Engine
    from ustack.events import Event, EventStream

log = logging.getLogger("ustack.hooks")

Address = tuple[str, int]
_U16, _U32 = (0, 0xFFFF), (0, 0xFFFFFFFF)
_MS = (1, 0xFFFFFFFF // 1000)

# verdicts of core/hooks.pxd
_DROP, _ACCEPT, _COOKIE, _NO_COOKIE, _RESET, _SKIP, _FRONT = range(1, 8)


class View:
    """What a hook is told and what it may choose. All views: local and peer are (address, port) of the connection; shard: the number of the
    queue's engine, which handles and listeners are of (0 with one queue)."""

    SETTINGS: ClassVar[dict[str, Any]] = {}         # name: (low, high), or bool, or a function that checks
    VERDICTS: ClassVar[dict[str, int]] = {}
    local: Address
    peer: Address
    shard: int

    def __init__(self, fields: dict[str, Any], asynchronous: bool = False) -> None:
        self.__dict__.update(fields)
        self.__dict__["verdict"] = 0
        self.__dict__["chosen"] = {}
        self.__dict__["asynchronous"] = asynchronous

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.SETTINGS:
            can = ", ".join(self.SETTINGS) or "nothing"
            raise AttributeError(f"{type(self).__name__}.{name} is not a hook's to choose; it can set {can}")
        if self.asynchronous:
            raise AttributeError(f"{type(self).__name__} is reported after the fact beside an engine thread: nothing can be chosen any more")
        rule = self.SETTINGS[name]
        if value is None:
            self.chosen.pop(name, None)
            return
        if rule is bool:
            value = bool(value)
        elif isinstance(rule, tuple):
            if not isinstance(value, int) or not rule[0] <= value <= rule[1]:
                raise ValueError(f"{type(self).__name__}.{name} = {value!r}: not an int from {rule[0]} to {rule[1]}")
        else:
            rule(value)
        self.chosen[name] = value

    def __getattr__(self, name: str) -> Any:
        if name in type(self).SETTINGS:
            return self.__dict__["chosen"].get(name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def decide(self, answer: Any) -> None:
        """Take the value that a hook function returned."""
        if answer is None:
            return
        if self.asynchronous:
            raise ValueError(f"{type(self).__name__} is reported after the fact beside an engine thread: {answer!r} comes too late")
        if not isinstance(answer, str) or answer not in self.VERDICTS:
            raise ValueError(f"{answer!r} is no verdict of {type(self).__name__}: {', '.join(map(repr, self.VERDICTS)) or 'it has none'}, or None")
        self.__dict__["verdict"] = self.VERDICTS[answer]

    def __repr__(self) -> str:
        hidden = ("packet", "chosen", "verdict", "asynchronous")
        return f"<{type(self).__name__} {' '.join(f'{k}={v!r}' for k, v in self.__dict__.items() if k not in hidden)}>"


class _Call(View):
    """A call of the user; an errno (or its name) as the verdict refuses it with that OSError."""

    handle: int

    def decide(self, answer: Any) -> None:
        if answer is None or answer == 0:
            return
        number = getattr(errno, answer, None) if isinstance(answer, str) else answer
        if not isinstance(number, int) or number not in errno.errorcode:
            raise ValueError(f"{answer!r} is no errno of {type(self).__name__}: a number or a name such as 'EPERM', or None")
        self.__dict__["verdict"] = number


class Listen(_Call):
    """listen(): LSM's socket_listen; `first`: the socket does not listen yet (TCP_LISTEN_CB). `local` as bound. There is no peer."""

    first: bool
    backlog: int


class Connect(_Call):
    """connect(), before anything is sent (TCP_CONNECT_CB). rto_ms: first retransmission of the SYN (TIMEOUT_INIT)."""

    SETTINGS: ClassVar[dict[str, Any]] = {"rto_ms": _MS}


class _Queue(View):
    """The depths of the listener: qlen half-open (young: never retransmitted), accept_queue, and backlog, the limit of both."""

    listener: int
    qlen: int
    young: int
    accept_queue: int
    backlog: int


def _flow(value: Any) -> None:
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int) and 0 < value[1] < 65536):
        raise ValueError(f"evict = {value!r}: not the (address, port) of a half-open connection's peer")


class Syn(_Queue):
    """A SYN for a listener, before any queue is looked at.

    "drop"; "accept": an ordinary request even if a queue is full; "cookie": a SYN cookie; "no_cookie": never one.
    isn; mss and window (bytes) of the SYN-ACK; rwnd_init (segments); rto_ms: first SYN-ACK timeout; needs_ecn: ECT(0) on the SYN-ACK;
    evict: (address, port) of the peer of another half-open connection of this listener, which makes room.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {
        "isn": _U32, "mss": (1, 0xFFFF), "window": (0, 0x3FFFFFFF), "rwnd_init": (1, 0xFFFF), "rto_ms": _MS, "needs_ecn": bool, "evict": _flow,
    }
    VERDICTS: ClassVar[dict[str, int]] = {"drop": _DROP, "accept": _ACCEPT, "cookie": _COOKIE, "no_cookie": _NO_COOKIE}
    packet: bytes
    seq: int
    peer_window: int
    payload: int
    peer_mss: int | None
    peer_wscale: int | None
    sack_ok: bool
    tsval: int | None
    tos: int
    ttl: int
    ecn: bool
    time_wait: bool


class ReusePort(View):
    """A segment without a connection and an SO_REUSEPORT group of `members`: Linux takes number `default`; set `member`. migrating: with
    tcp_migrate_req, the "request" or unaccepted "connection" of a closed member that another one takes over; else None."""

    SETTINGS: ClassVar[dict[str, Any]] = {"member": (0, 1023)}
    hash: int
    members: int
    default: int
    migrating: str | None


class Overflow(_Queue):
    """A queue ("syn", "accept") is full, at a "syn" or at the third "ack". "accept" all the same; syn queue: "cookie", "drop"; third ACK: "reset"."""

    VERDICTS: ClassVar[dict[str, int]] = {"accept": _ACCEPT, "cookie": _COOKIE, "drop": _DROP, "reset": _RESET}
    queue: str
    at: str


class CookieMake(View):
    """A cookie is needed for a SYN that offers mss, sack, wscale (None: no option), ecn. Set cookie (32 bits, becomes the ISN); keeps_options: it
    carries sack and wscale too, so that they hold without timestamps."""

    SETTINGS: ClassVar[dict[str, Any]] = {"cookie": _U32, "keeps_options": bool}
    listener: int
    seq: int
    tsval: int
    mss: int
    sack: bool
    wscale: int | None
    ecn: bool


class CookieCheck(View):
    """An ACK returns `cookie`; `seq` is the client's initial sequence number. "drop": it is bad. Set mss (it is good), with keeps_options also
    sack, wscale, ecn. Neither: Linux's format is tried."""

    SETTINGS: ClassVar[dict[str, Any]] = {"mss": (1, 0xFFFF), "keeps_options": bool, "sack": bool, "wscale": (0, 14), "ecn": bool}
    VERDICTS: ClassVar[dict[str, int]] = {"drop": _DROP}
    listener: int
    seq: int
    cookie: int
    tsval: int
    tsecr: int


class SynAck(_Queue):
    """The timer of a half-open connection has fired. "drop": it ends; "skip": nothing is sent this time; "accept": it goes on beyond `tries`.
    next_ms: the wait after this one."""

    SETTINGS: ClassVar[dict[str, Any]] = {"next_ms": _MS}
    VERDICTS: ClassVar[dict[str, int]] = {"drop": _DROP, "skip": _SKIP, "accept": _ACCEPT}
    isn: int
    num_timeout: int
    num_retrans: int
    tries: int
    acked: bool


class Ack(_Queue):
    """The third ACK, all tests passed, no connection yet; `cookie`: it returned one. "drop": ignore it; "reset": refuse."""

    VERDICTS: ClassVar[dict[str, int]] = {"drop": _DROP, "reset": _RESET}
    packet: bytes
    isn: int
    client_isn: int
    payload: int
    num_timeout: int
    num_retrans: int
    mss: int
    cookie: bool


class Queued(_Queue):
    """A connection joins the accept queue. "front": it is accepted next."""

    VERDICTS: ClassVar[dict[str, int]] = {"front": _FRONT}
    handle: int


class Accept(_Queue):
    """accept() is about to return this connection. "reset": it is refused, and the next one looked at."""

    VERDICTS: ClassVar[dict[str, int]] = {"reset": _RESET}
    handle: int


class _Connection(View):
    """A socket's numbers at this moment, and what may be set: cwnd, ssthresh (packets), rto_ms, tos."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "cwnd": (1, 0x7FFFFFFF), "ssthresh": (2, 0x7FFFFFFF), "rto_ms": _MS, "tos": (0, 255),
    }
    handle: int
    state: int
    cwnd_now: int
    ssthresh_now: int
    srtt_us: int
    mss: int
    rto_now_ms: int


class Established(_Connection):
    """The handshake is over: a passive connection is still in SYN_RECV. "reset": a passive one is refused, and never accepted. Beside an
    engine thread it is asked at the third ACK, and the socket (handle) does not exist yet; active connections are not asked there."""

    VERDICTS: ClassVar[dict[str, int]] = {"reset": _RESET}
    passive: bool


class State(_Connection):
    """A socket's state changes from `state` to `new_state` (Linux's numbers)."""

    new_state: int


class Retransmit(_Connection):
    """A segment was sent again: `segs` packets from `seq` on; err: 0, or why it did not leave."""

    seq: int
    segs: int
    err: int


class Rto(_Connection):
    """The retransmission timer has fired for the (retransmits + 1)-th time; expired: the connection is given up."""

    retransmits: int
    expired: bool


class Rtt(_Connection):
    """A round-trip sample was taken; srtt_us and rto_now_ms contain it."""

    rtt_us: int


class Drop(View):
    """A packet was discarded for `reason` (as in stack.drops()); listener: handle of the one that decided, or None. "reset": answer with a RST."""

    VERDICTS: ClassVar[dict[str, int]] = {"reset": _RESET}
    reason: str
    listener: int | None
    packet: bytes


class _Kind:
    def __init__(self, view: type[View], bit: int, op: str, beside_thread: str) -> None:
        self.view = view
        self.bit = bit                      # OP_* of _border/hooks.pxi
        self.op = op                        # of hooks_t, for those who need it in C
        self.beside_thread = beside_thread  # "call", "two-phase", "event", or "" = not in Python


_TWO_PHASE_BIT = 8192
HOOKS: dict[str, _Kind] = {
    "listen": _Kind(Listen, 0, "listen", "call"),
    "connect": _Kind(Connect, 0, "connect", "call"),
    "accept": _Kind(Accept, 0, "accept", "call"),
    "syn": _Kind(Syn, 1, "syn", ""),
    "reuseport": _Kind(ReusePort, 2, "select", ""),
    "overflow": _Kind(Overflow, 4, "overflow", ""),
    "cookie_make": _Kind(CookieMake, 8, "cookie", ""),
    "cookie_check": _Kind(CookieCheck, 8, "cookie", ""),
    "synack": _Kind(SynAck, 16, "synack", ""),
    "ack": _Kind(Ack, 32, "ack", ""),
    "established": _Kind(Established, 64, "established", "two-phase"),
    "queued": _Kind(Queued, 128, "acceptq", "event"),
    "state": _Kind(State, 256, "state", "event"),
    "retransmit": _Kind(Retransmit, 512, "retrans", ""),
    "rto": _Kind(Rto, 1024, "rto", ""),
    "rtt": _Kind(Rtt, 2048, "rtt", ""),
    "drop": _Kind(Drop, 4096, "drop", "event"),
}


class Hook:
    """One installed function. calls and errors count; enabled turns False when it is removed or has raised."""

    def __init__(self, owner: HookSet, name: str, function: Callable[[Any], Any]) -> None:
        self._owner = weakref.ref(owner)
        self.name = name
        self.function = function
        self.enabled = True
        self.calls = 0
        self.errors = 0

    def __call__(self, view: Any) -> Any:
        return self.function(view)

    def remove(self) -> None:
        """Take it away. Idempotent; allowed inside the hook itself."""
        self.enabled = False
        owner = self._owner()
        if owner is not None:
            owner.drop(self)

    def __repr__(self) -> str:
        return f"<Hook {self.name} {self.function!r} calls={self.calls} errors={self.errors}{'' if self.enabled else ' off'}>"


class HookSet:
    """The Python hooks of one engine (made by Engine.on()). Those of a stack's engines, one for each queue, share their functions."""

    def __init__(self, engine: Engine, shard: int, shards: list[HookSet]) -> None:
        """shard: its number. shards: the HookSets of the stack, which this one joins."""
        self._engine = weakref.ref(engine)
        self.shard = shard
        self._shards = shards
        self.threaded = _fastpath.has_thread(engine)
        self.hooks: dict[str, list[Hook]] = shards[0].hooks if shards else {}
        self._stream: EventStream | None = None
        shards.append(self)

    # ---- registering -------------------------------------------------------------------------------------------------------
    def on(self, name: str, function: Callable[[Any], Any] | None = None) -> Any:
        """Install function at hook `name`; without one, return a decorator."""
        kind = HOOKS.get(name)
        if kind is None:
            raise ValueError(f"no hook {name!r}: {', '.join(HOOKS)}")
        if self.threaded and not kind.beside_thread:
            raise ValueError(
                f"hook {name!r} is called per packet, and a Python function there would make every packet wait for the GIL beside an engine "
                f"thread: use the op {kind.op!r} of a C op-table (hooks_t in ustack/core/hooks.pxd, Engine.set_hooks), or a VirtualClock"
            )
        if function is None:
            return lambda given: self.on(name, given)
        if not callable(function):
            raise TypeError(f"a hook is a function, not {type(function).__name__}")
        hook = Hook(self, name, function)
        self.hooks.setdefault(name, []).append(hook)
        try:
            self._apply_all()
        except BaseException:
            self.hooks[name].remove(hook)
            raise
        return hook

    def drop(self, hook: Hook) -> None:
        """Hook.remove()."""
        if hook in self.hooks.get(hook.name, ()):
            self.hooks[hook.name].remove(hook)
        try:
            self._apply_all()
        except RuntimeError:
            pass                    # inside a hook: its op is still called, and finds nobody

    def clear(self) -> None:
        """Every hook goes: the stack has stopped."""
        self.hooks.clear()
        for one in self._shards:
            if one._stream is not None:
                one._stream.close()
                one._stream = None

    def _apply_all(self) -> None:
        for one in self._shards:
            one._apply()

    def _apply(self) -> None:
        engine = self._engine()
        if engine is None:
            return
        mask = 0
        events = False
        for name in self.hooks:
            if self.active(name):
                kind = HOOKS[name]
                if not self.threaded:
                    mask |= kind.bit
                elif kind.beside_thread == "two-phase":
                    mask |= _TWO_PHASE_BIT
                events = events or (self.threaded and kind.beside_thread == "event")
        _fastpath.hooks_enable(engine, mask)
        if events and self._stream is None:
            from ustack.events import open_stream

            self._stream = open_stream(engine, 65536, note=True, shard=self.shard)
        elif not events and self._stream is not None:
            self._stream.close()
            self._stream = None

    def active(self, name: str) -> bool:
        """Is there anybody to ask? About listen() on the first shard only: the others' listeners are its twins."""
        if name == "listen" and self.shard:
            return False
        return any(hook.enabled for hook in self.hooks.get(name, ()))

    # ---- calling -----------------------------------------------------------------------------------------------------------
    def run(self, name: str, fields: dict[str, Any], asynchronous: bool = False) -> View | None:
        """Show a view to every function of this hook, in the order of on(); None if there is none."""
        hooks = self.hooks.get(name)
        if not hooks:
            return None
        view = HOOKS[name].view({**fields, "shard": self.shard}, asynchronous)
        for hook in list(hooks):
            if not hook.enabled:
                continue
            hook.calls += 1
            before = (view.__dict__["verdict"], dict(view.chosen))
            try:
                view.decide(hook.function(view))
            except Exception:
                hook.errors += 1
                hook.enabled = False
                view.__dict__["verdict"], view.__dict__["chosen"] = before
                log.exception("hook %r (%r) raised and is off from now on", name, hook.function)
        return view

    def interrupted(self, exc: BaseException) -> None:
        """Ctrl-C in a synchronous hook: the core cannot be left in the middle, so the main thread gets it afterwards."""
        import _thread

        if isinstance(exc, KeyboardInterrupt):
            _thread.interrupt_main()
        else:
            log.error("a hook was left by %r", exc)

    def pump(self) -> None:
        """Beside an engine thread: what has happened since, for the hooks that are told afterwards."""
        stream = self._stream
        if stream is None:
            return
        for event in stream.take():
            if self.active(event.kind):
                self.run(event.kind, _fields_of(event), asynchronous=True)


def _fields_of(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = {"at": event.at, "local": event.local, "peer": event.peer, "handle": event.handle}
    fields.update(event.info)
    return fields
