"""The event loop: runs a script against a stack in virtual time.

Rules of the language description, sections 2 to 4.  For each event the clock is brought to its time
(for an outbound packet: until a packet is there), then the event is carried out and compared.  The
interpreter is never looser than the reference: where the description leaves a choice it takes the
stricter one, and says so at the place.

One blocking call at most is in flight; the stack completes it while the clock runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from ustack.drill import codec, pyblock
from ustack.drill.commands import UNKNOWN_QDISC, Commands
from ustack.drill.nodes import (
    Action,
    Code,
    Command,
    Direction,
    Event,
    IcmpPacket,
    Label,
    Pos,
    Script,
    Syscall,
    TcpPacket,
    UdpPacket,
    When,
)
from ustack.drill.options import Options, UnsupportedError
from ustack.drill.packets import (
    Difference,
    Flow,
    Part,
    build_icmp,
    build_tcp,
    compare_icmp,
    compare_tcp,
    continues,
    is_ours,
    live_text,
    script_text,
)
from ustack.drill.port import Emitted, Port, StackLike
from ustack.drill.report import Row
from ustack.drill.shell import Shell
from ustack.drill.state import Failure, World
from ustack.drill.symbols import ERRNO
from ustack.drill.syscalls import Returned, Started, Syscalls
from ustack.drill.values import is_dots, number

SECOND = 1_000_000_000
PACKET_PATIENCE = 2 * SECOND  # how long after its time an outbound packet is waited for
CALL_PATIENCE = 1 * SECOND  # how long a call waits for a blocking one in flight
CALL_TIME = 1_000  # what a call takes at the least: round trips that no kernel would measure as equal must not tie
UNDECLARED_PATIENCE = 600 * SECOND  # a call that blocks without being written as a blocking one
_SPIN_LIMIT = 100_000


@dataclass(slots=True)
class InFlight:
    call: Syscall
    started: Started
    until: int | None  # when it must return, script time
    row: int  # its line in the ladder


@dataclass(frozen=True, slots=True)
class Nominal:
    """The times an event was written for, resolved to script time."""

    at: int
    end: int | None
    any: bool
    inbound: bool


@dataclass(frozen=True, slots=True)
class Match:
    """An outbound line that matched, for tools that change scripts."""

    event: int
    packets: tuple[codec.Packet, ...]


class Interpreter:
    def __init__(self, script: Script, options: Options, stack: StackLike,
                 on_event: Callable[[Event], None] | None = None) -> None:
        self.script, self.options = script, options
        self.port = Port(stack)
        self.world = World(options)
        self.calls = Syscalls(self.world, self.port, self.waiting)
        self.shell = Shell(Commands(self.port))
        self.on_event = on_event or (lambda event: None)
        self.queue: deque[Emitted] = deque()
        self.in_flight: InFlight | None = None
        self.previous: Nominal | None = None
        self.blocks: list[pyblock.Block] = []
        self._notes: list[Row] = []
        self.matches: list[Match] = []
        self.warnings: list[str] = []
        self.printed = ""

    # -- the run
    def run(self) -> None:
        """Failure, UnsupportedError, or nothing when the script holds."""
        for command in (self.script.init, *(e.action for e in self.script.events), self.script.cleanup):
            if isinstance(command, Command):
                self.shell.check(command.text)
        if self.script.init is not None:
            self._command(self.script.init)
        try:
            self.port.start()
            for index, event in enumerate(self.script.events):
                self.on_event(event)
                self._event(index, event)
            self._finish()
        except BaseException:
            self._clean_up(after_failure=True)
            raise
        self._clean_up(after_failure=False)

    def _clean_up(self, after_failure: bool) -> None:
        """The cleanup command; it must not hide why the script failed."""
        if self.script.cleanup is None:
            return
        try:
            self._command(self.script.cleanup)
        except (Failure, UnsupportedError):
            if not after_failure:
                raise

    def _event(self, index: int, event: Event) -> None:
        nominal = self._resolve(event)
        action = event.action
        if isinstance(action, (TcpPacket, IcmpPacket)) and action.direction is Direction.OUTBOUND:
            try:
                self._expect(index, action, nominal)
            except Failure as failure:
                self._forgive("packet", failure)
        elif isinstance(action, UdpPacket):
            raise UnsupportedError(f"{action.pos}: UDP packets are not built")
        else:
            if nominal.at > self.port.now:
                self._advance(nominal.at)
            self._check_time(nominal, self.port.now, event.pos, "this event")
            self._act(action, nominal)
            if isinstance(action, Syscall):
                self._advance(self.port.now + CALL_TIME)
        self._collect()
        self.previous = replace(nominal, at=self.port.now) if nominal.any else nominal

    def _act(self, action: Action, nominal: Nominal) -> None:
        match action:
            case TcpPacket() | IcmpPacket():
                self._inject(action)
            case Syscall():
                self._syscall(action, nominal)
            case Command():
                self._row("*", f"`{' '.join(action.text.split())}`", action.pos)
                self._command(action)
            case Code():
                self._snapshot(action)

    def _resolve(self, event: Event) -> Nominal:
        """Relative times count from now; from the line before if both are inbound packets."""
        action, time = event.action, event.time
        inbound = isinstance(action, (TcpPacket, IcmpPacket)) and action.direction is Direction.INBOUND
        base = 0
        if time.when is not When.ABSOLUTE:
            base = self.port.now
            if inbound and self.previous is not None and self.previous.inbound:
                base = self.previous.at
        end = None if time.end is None else base + time.end
        return Nominal(base + time.at, end, time.when is When.ANY, inbound)

    # -- time
    def _tolerance(self, at: int, base: int) -> int:
        share = int((at - base) * self.options.tolerance_percent / 100)
        return max(self.options.tolerance_usecs * 1000, share)

    def _check_time(self, nominal: Nominal, actual: int, pos: Pos, what: str) -> None:
        if nominal.any:
            return
        base = self.previous.at if self.previous is not None else 0
        tolerance = self._tolerance(nominal.at, base)
        end = nominal.at if nominal.end is None else nominal.end
        if not nominal.at - tolerance <= actual <= end + tolerance:
            wanted = f"{nominal.at / 1e9:.6f} s" if nominal.end is None else \
                f"{nominal.at / 1e9:.6f} to {nominal.end / 1e9:.6f} s"
            raise Failure("time", pos, f"{what} came at another time",
                          f"{wanted} (tolerance {tolerance / 1e9:.6f} s)", f"{actual / 1e9:.6f} s")

    def _next_stop(self, limit: int) -> int:
        """The next moment, up to the limit, at which something can happen."""
        stop = limit
        timeout = self.port.next_timeout()
        if timeout is not None:
            stop = min(stop, timeout)
        if self.in_flight is not None:
            deadline = getattr(self.in_flight.started.completion, "deadline", None)
            if deadline is not None:
                stop = min(stop, self.port.script_time(deadline))
        return max(stop, self.port.now)

    def _step(self, limit: int) -> None:
        """Run to the next moment at which something can happen, at most to the limit."""
        self.port.run_until(self._next_stop(limit))
        self._collect()
        self._reap()

    def _advance(self, t: int) -> None:
        """Bring the clock to t.  A waiter of the interpreter's own looks after every step."""
        spins = 0
        while self.in_flight is not None and self.in_flight.started.look is not None and self.port.now < t:
            before = self.port.now
            self._step(t)
            spins = self._count_spin(before, spins)
        self.port.run_until(t)
        self._collect()
        self._reap()

    def _count_spin(self, before: int, spins: int) -> int:
        spins = spins + 1 if self.port.now == before else 0
        if spins > _SPIN_LIMIT:
            raise Failure("script", self._last_pos(),
                          f"the stack's timers do not advance at {before / 1e9:.6f} s")
        return spins

    def _wait(self, done: Callable[[], bool], limit: int) -> bool:
        """Step until done() or the limit is reached; whether it is done."""
        spins = 0
        while not done() and self.port.now < limit:
            before = self.port.now
            self._step(limit)
            spins = self._count_spin(before, spins)
        return done()

    # -- packets
    def _collect(self) -> None:
        for emitted in self.port.emitted():
            self.queue.append(emitted)
            self._notes.append(Row(emitted.at, ">", "", raw=emitted.raw, flow=self.world.under_test))

    def _inject(self, packet: TcpPacket | IcmpPacket) -> None:
        tcp = packet if isinstance(packet, TcpPacket) else None
        flows = [self.world.flow_for_inbound(tcp, packet.pos)] if packet.who is None else \
            self.world.clients_for_inbound(packet.who, packet)
        for flow in flows:
            self._inject_one(packet, flow)

    def _inject_one(self, packet: TcpPacket | IcmpPacket, flow: Flow) -> None:
        try:
            raw, gso_size = (build_icmp(packet, flow), 0) if isinstance(packet, IcmpPacket) else \
                build_tcp(packet, flow, self.options)
        except Difference as difference:
            raise Failure("packet", packet.pos, difference.what, difference.expected,
                          difference.got) from None
        self._row("<", script_text(packet), packet.pos, flow)
        self.port.inject(raw, gso_size)
        self._collect()
        self._reap()

    def _next_ours(self, flow: Flow, icmp: bool = False) -> codec.Packet | None:
        """The next queued packet of the flow. Others are not looked at, but kept where flows have names."""
        others: deque[Emitted] = deque()
        found: codec.Packet | None = None
        while self.queue and found is None:
            emitted = self.queue.popleft()
            live = codec.decode(emitted.raw)
            if not self._belongs_elsewhere(flow, live) and is_ours(flow, live, icmp):
                self._taken_at = emitted.at
                found = live
            elif self.script.extended:
                others.append(emitted)
        self.queue.extendleft(reversed(others))
        return found

    def waiting(self, flows: list[Flow]) -> str | None:
        """The first packet of these flows that no line has taken yet, in words."""
        ends = {(flow.local, flow.remote): flow for flow in flows}
        for emitted in self.queue:
            live = codec.decode(emitted.raw)
            if live.tcp is not None:
                flow = ends.get(((live.src, live.tcp.sport), (live.dst, live.tcp.dport)))
                if flow is not None:
                    return live_text(live, flow)
        return None

    def _belongs_elsewhere(self, flow: Flow, live: codec.Packet) -> bool:
        """Is it of a connection that the script knows, but not of this one? A connect() would take any SYN."""
        if live.tcp is None:
            return False
        ends = (live.src, live.tcp.sport), (live.dst, live.tcp.dport)
        return any((other.local, other.remote) == ends for other in self.world.flows if other is not flow)

    def _sniff(self, flow: Flow, limit: int, icmp: bool = False) -> codec.Packet | None:
        """Wait for a packet of the flow, until the limit."""
        spins = 0
        while True:
            live = self._next_ours(flow, icmp)
            if live is not None or self.port.now >= limit:
                return live
            before = self.port.now
            self._step(limit)
            spins = self._count_spin(before, spins)

    def _expect(self, index: int, packet: TcpPacket | IcmpPacket, nominal: Nominal) -> None:
        tcp = packet if isinstance(packet, TcpPacket) else None
        if packet.who is None:
            self._expect_of(self.world.flow_for_outbound(tcp, packet.pos), index, packet, nominal)
        elif packet.who.count is None:
            self._expect_of(self.world.clients(packet.who)[0], index, packet, nominal)
        else:
            self._expect_of_some(packet.who, index, packet, nominal)

    def _expect_of_some(self, who: Label, index: int, packet: TcpPacket | IcmpPacket, nominal: Nominal) -> None:
        """As many connections of a group as the line says get the packet, each once, and no other of the group does."""
        group = self.world.clients(Label(who.pos, who.name, count=self.world.size_of(who)))
        wanted = who.count or 0
        limit = max(nominal.at, nominal.end or 0) + PACKET_PATIENCE
        self._wait(lambda: len(self._with_packets(group)) >= wanted, limit)
        lucky = self._with_packets(group)
        if len(lucky) != wanted:
            raise Failure("packet", packet.pos, "another number of the group's connections got a packet", str(wanted), str(len(lucky)))
        for flow in lucky:
            self._expect_of(flow, index, packet, nominal)

    def _with_packets(self, group: list[Flow]) -> list[Flow]:
        """Those of the group for which a packet waits."""
        ends = {(flow.local, flow.remote): flow for flow in group}
        out: dict[int, Flow] = {}
        for emitted in self.queue:
            live = codec.decode(emitted.raw)
            if live.tcp is not None:
                flow = ends.get(((live.src, live.tcp.sport), (live.dst, live.tcp.dport)))
                if flow is not None:
                    out[id(flow)] = flow
        return list(out.values())

    def _expect_of(self, flow: Flow, index: int, packet: TcpPacket | IcmpPacket, nominal: Nominal) -> None:
        tcp = packet if isinstance(packet, TcpPacket) else None
        limit = max(nominal.at, nominal.end or 0) + PACKET_PATIENCE
        live = self._sniff(flow, limit, tcp is None)
        if live is None:
            raise Failure("packet", packet.pos, f"no packet came until {limit / 1e9:.6f} s",
                          script_text(packet),
                          "nothing")
        taken = [live]
        try:
            if tcp is not None:
                self._compare_parts(tcp, flow, nominal, limit, taken)
            elif isinstance(packet, IcmpPacket):
                compare_icmp(packet, live)
                self._check_time(nominal, self._taken_at, packet.pos, "the packet")
        except Difference as difference:
            raise Failure("packet", packet.pos, f"the packet differs: {difference}", script_text(packet),
                          " + ".join(live_text(one, flow) for one in taken)) from None
        self.matches.append(Match(index, tuple(taken)))

    def _compare_parts(self, packet: TcpPacket, flow: Flow, nominal: Nominal, limit: int,
                       taken: list[codec.Packet]) -> None:
        """One live packet, or consecutive ones that add up to the script's."""
        live = taken[0]
        if live.tcp is not None:
            self.world.learn_isn(flow, packet, live.tcp.seq)
        size = total = live.payload_length
        whole = total >= packet.length or not total or self.options.strict_segments
        compare_tcp(packet, live, flow, self.options, Part(0, True, whole))
        self._check_time(nominal, self._taken_at, packet.pos, "the packet")
        while not whole:
            following = self._sniff(flow, limit)
            if following is None or not continues(taken[-1], following, size):
                if following is not None:
                    taken.append(following)
                raise Difference("payload length", packet.length, total)
            taken.append(following)
            offset, total = total, total + following.payload_length
            whole = total >= packet.length
            compare_tcp(packet, following, flow, self.options, Part(offset, False, whole))
            self._check_time(nominal, self._taken_at, packet.pos, "a part of the packet")
        if total != packet.length:
            raise Difference("payload length", packet.length, total)

    # -- calls
    def _syscall(self, call: Syscall, nominal: Nominal) -> None:
        row = len(self._notes)
        self._row("*", f"{call.name}(...)", call.pos)
        if self.in_flight is not None:
            flying = self.in_flight
            if not self._wait(lambda: self.in_flight is None, self.port.now + CALL_PATIENCE):
                raise Failure("syscall", flying.call.pos,
                              f"{flying.call.name}() is still blocked when the next call "
                                                         "is made")
        started = self.calls.start(call)
        self._collect()
        flight = InFlight(call, started, None if call.lasts is None else nominal.at + call.lasts, row)
        until = flight.until
        if not started.completion.done and until is None:
            self._wait_undeclared(flight)
        self.in_flight = flight
        self._reap()

    def _wait_undeclared(self, flight: InFlight) -> None:
        """The reference would sit in the call; whatever comes after is late then and fails by its time."""
        started = flight.started

        def done() -> bool:
            if started.look is not None:
                started.look()
            return started.completion.done

        self.in_flight = None
        limit = self.port.now + UNDECLARED_PATIENCE
        while not done() and self.port.now < limit:
            deadline = getattr(started.completion, "deadline", None)
            stops = [s for s in (self.port.next_timeout(), None if deadline is None
                                 else self.port.script_time(deadline)) if s is not None]
            if not stops:
                break
            self.port.run_until(min(max(min(stops), self.port.now), limit))
            self._collect()
        if not done():
            raise Failure("syscall", flight.call.pos,
                          f"{flight.call.name}() blocks for ever, and is not written as a "
                                                      "blocking call (start...end)")

    def _reap(self) -> None:
        """Look whether the call in flight has returned, and judge it."""
        flight = self.in_flight
        if flight is None:
            return
        if flight.started.look is not None:
            flight.started.look()
        if not flight.started.completion.done:
            return
        self.in_flight = None
        at = flight.started.completion.at
        returned_at = self.port.now if at is None else self.port.script_time(at)
        try:
            returned = flight.started.finish(flight.started.completion)
            self._note_return(flight, returned, returned_at)
            self._judge(flight.call, returned)
            if flight.until is not None:
                self._check_return_time(flight, returned_at)
        except Failure as failure:
            self._forgive("syscall", failure)

    def _note_return(self, flight: InFlight, returned: Returned, at: int) -> None:
        """The ladder's line of the call gets its result; a call that blocked has a line for its return."""
        row = self._notes[flight.row]
        text = f"{flight.call.name}(...) = {returned}"
        if at - row.at > CALL_PATIENCE // 1000:
            self._notes.append(Row(at, "*", f"{text} returned", flight.call.pos))
        else:
            self._notes[flight.row] = replace(row, text=text)

    def _check_return_time(self, flight: InFlight, returned_at: int) -> None:
        assert flight.until is not None
        # The share is measured from the latest event, not from the call's start: the stricter reading.
        base = self.previous.at if self.previous is not None else 0
        tolerance = self._tolerance(flight.until, min(base, flight.until))
        if abs(returned_at - flight.until) > tolerance:
            raise Failure("time", flight.call.pos, f"{flight.call.name}() returned at another time",
                          f"{flight.until / 1e9:.6f} s (tolerance {tolerance / 1e9:.6f} s)",
                          f"{returned_at / 1e9:.6f} s")

    def _judge(self, call: Syscall, returned: Returned) -> None:
        got = str(returned)
        if is_dots(call.result):
            return
        wanted = number(call.result)
        text = str(wanted) + (f" {call.errno}" if call.errno else "")
        if wanted != returned.value:
            raise Failure("syscall", call.pos, f"{call.name}() returned another value", text, got)
        if call.errno is not None and (returned.errno is None or ERRNO[call.errno] != ERRNO[returned.errno]):
            raise Failure("syscall", call.pos, f"{call.name}() failed with another error", text, got)

    # -- commands and code
    def _command(self, command: Command) -> None:
        result = self.shell.run(command.text)
        if result.status and UNKNOWN_QDISC in result.err:
            raise UnsupportedError(f"{command.pos}: {UNKNOWN_QDISC} ({' '.join(command.text.split())})")
        if result.status:
            said = (result.err or result.out).strip().splitlines()
            raise Failure("command", command.pos, f"the command failed with status {result.status}"
                          + (f": {said[-1]}" if said else ""), "", " ".join(command.text.split()))

    def _snapshot(self, code: Code) -> None:
        sock = self.world.code_socket()
        if sock is None:
            raise Failure("code", code.pos, "no socket is open for this block to look at")
        self.blocks.append(pyblock.snapshot(code, sock))

    # -- the end
    def _finish(self) -> None:
        flight = self.in_flight
        if flight is not None:
            limit = max(self.port.now, flight.until or 0) + CALL_PATIENCE
            if not self._wait(lambda: self.in_flight is None, limit):
                raise Failure("syscall", flight.call.pos,
                              f"{flight.call.name}() has not returned when the script ends")
        if self.options.strict and self.world.under_test is not None:
            surplus = self._next_ours(self.world.under_test)
            if surplus is not None:
                raise Failure("packet", self._last_pos(), "a packet is left over after the last line",
                              "nothing",
                              live_text(surplus, self.world.under_test))
        self.printed = pyblock.run_blocks(self.blocks, self.script.path)

    def _forgive(self, kind: str, failure: Failure) -> None:
        """--non_fatal: a failure of this kind becomes a warning."""
        if failure.kind == "script" or kind not in self.options.non_fatal:
            raise failure
        self.warnings.append(f"line {failure.pos.line}: {failure.message}")

    def _last_pos(self) -> Pos:
        return self.script.events[-1].pos

    def _row(self, mark: str, text: str, pos: Pos, flow: Flow | None = None) -> None:
        self._notes.append(Row(self.port.now, mark, text, pos, flow=flow))

    @property
    def rows(self) -> list[Row]:
        """The exchange so far.  Emitted packets become text only now, when their flow is known best."""
        ends = {(flow.local, flow.remote): flow for flow in self.world.flows if flow.known()}
        return [self._told(row, ends) for row in self._notes]

    @staticmethod
    def _told(row: Row, ends: dict[tuple[tuple[str, int], tuple[str, int]], Flow]) -> Row:
        flow, text = row.flow, row.text
        if row.raw is not None:
            live = codec.decode(row.raw)
            if live.tcp is not None:
                flow = ends.get(((live.src, live.tcp.sport), (live.dst, live.tcp.dport)), flow)
            text = live_text(live, flow)
        return replace(row, text=f"{flow.name} {text}" if flow is not None and flow.name else text)
