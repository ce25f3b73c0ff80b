"""The replay of one scenario: steps in order, on a stack whose clock the replay moves.

Between two steps the clock runs from timer to timer, so that every instant at which a timer fires is seen:
packets that come out then were sent by a timer, and a reading (counters, socket table) shortly after may
differ from the kernel's, whose timers are late. Packets that come out of a driving step are answers to it.
Expectations are compared when their step is reached, packets when the stack sends them, and what is missing
at the end.

All differences are collected; the earliest in recorded time is the one that is told. A scenario ends early
only when an injected packet cannot be made, because the packet its numbers come from has not been sent.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import calls as application
from . import packet as wire
from . import table, target
from .calls import Calls, Outcome, Pending
from .counters import Counters
from .match import Emission, Fault, Matcher
from .readings import Readings
from .recording import (
    AddressStep,
    CallStep,
    CountersStep,
    FormatError,
    LinkStep,
    PacketStep,
    Recording,
    RouteStep,
    Scenario,
    Step,
    SysctlGetStep,
    SysctlStep,
    TableStep,
    TcpInfoStep,
    TextStep,
    ns,
)
from .report import Difference, Result, differs, passed, skipped
from .symbols import Numbers, Ports, Unresolved, rewrite
from .target import SetupError, Target
from .timing import lateness, may_fall_after, still_unread
from .values import BadValue
from .varies import SPREAD, Variation

Trace = list[tuple[TcpInfoStep, dict[str, int]]]
Builder = Callable[[Recording, Scenario, int], Target]
PORTABLE = ("net.ipv4.tcp_", "net.ipv4.icmp_", "net.ipv4.ip_", "net.ipv4.ipfrag_", "net.core.somaxconn")
MACHINE = ("net.ipv4.tcp_ehash_entries", "net.ipv4.tcp_available_congestion_control",
           "net.ipv4.tcp_allowed_congestion_control")
STUCK = 200_000
TICK_SHIFTS = (0.0, -0.0001, 0.0001, -0.0003, 0.0003)


class Stop(Exception):
    """The rest of the scenario cannot be replayed."""


class Run:
    """One scenario on one stack."""

    def __init__(self, scenario: Scenario, stack: Target) -> None:
        self.scenario = scenario
        self.stack = stack
        self.now = 0
        self.found: list[Difference] = []
        self.numbers = Numbers()
        self.ports = Ports()
        self.variation = Variation(scenario)
        packets = [s for s in scenario.packets() if s.injected or self.variation.expects(s)]
        cookies = bool(scenario.counters_total.get("TcpExtSyncookiesSent"))
        self.matcher = Matcher(packets, self.numbers, cookies, self._packet_fault, self.variation)
        self.calls = Calls(stack, list(scenario.calls()), self.ports)
        self.infos = Readings(scenario, self.calls.info)
        self.counters = Counters(stack.nstat, self.variation.ignored_counters())
        self.sent: list[Emission] = []
        self.fired: list[int] = []
        self.tables: dict[str, list[tuple[int, list[dict[str, Any]]]]] = {}
        self.late_errors: list[tuple[str, int, Step]] = []
        self.agenda = self._agenda()
        self.readings = [(t, s) for t, s, _ in self.agenda if isinstance(s, (CountersStep, TableStep))]
        self.reading_times = [t for t, _ in self.readings]

    def _agenda(self) -> list[tuple[int, Step, bool]]:
        """(time, step, repeated): the steps, and the last of each folded run of socket tables."""
        items = [(s.at, s, False) for s in self.scenario.timed_steps()]
        items += [(ns(s.t_last), s, True) for s in self.scenario.timed_steps()
                  if isinstance(s, TableStep) and s.t_last > s.t]
        return sorted(items, key=lambda i: (i[0], i[1].index))

    def differ(self, step: Step | None, what: str, expected: str, got: str, *, t: float | None = None,
               detail: str = "") -> None:
        when = step.t if step is not None and t is None else (t or 0.0)
        where = step.title() if step is not None else f"at {when:.6f} s"
        self.found.append(Difference(when, where, what, expected, got, detail))

    def _packet_fault(self, step: PacketStep | None, e: Emission | None, fault: Fault) -> None:
        detail = ""
        if step is not None:
            detail += f"expected  {wire.describe(step.packet)}\n"
        if e is not None:
            detail += f"got       {wire.describe(e.raw)} at {e.at / 1e9:.6f} s"
        t = None if step is not None or e is None else e.at / 1e9
        self.differ(step, fault.what, fault.expected, fault.got, t=t, detail=detail)

    # ---- the clock

    def advance(self, until: int) -> None:
        """Run the clock, stopping at every instant where a timer fires."""
        for _ in range(STUCK):
            due = self.stack.next_timeout()
            poll = self.calls.deadline()
            stop = min((t for t in (due, poll) if t is not None), default=until + 1)
            if stop > until:
                break
            self._fire(max(stop, self.now))
        else:
            raise Stop(f"the stack's timers do not come to rest at {self.now / 1e9:.6f} s")
        self._collect(self.stack.run_until(until), None, -1)
        self.now = max(self.now, until)
        self._returns(by_timer=True)

    def _fire(self, at: int) -> None:
        near = self._near(at)
        before = self.counters.now() if any(isinstance(s, CountersStep) for s in near) else None
        for s in near:
            if isinstance(s, TableStep):
                own, _ = table.split_pipe(s.args)
                self.tables.setdefault(s.args, []).append((at, self.stack.ss(own)))
        self.infos.fires(at)
        self._collect(self.stack.run_until(at), None, -1)
        self.infos.fired(at)
        self.now = at
        self.fired.append(at)
        if before is not None:
            self.counters.fired(at, before)
        self._returns(by_timer=True)

    def _near(self, at: int) -> list[Step]:
        """Readings to come that a timer firing now throws doubt on."""
        first = bisect.bisect_left(self.reading_times, at)
        last = bisect.bisect_right(self.reading_times, at + lateness(0, at))
        return [s for _, s in self.readings[first:last]]

    def _collect(self, packets: Sequence[tuple[int, bytes]], trigger: str | None, step: int) -> None:
        for at, raw in packets:
            e = Emission(at, self.ports.to_recording(raw) if self.ports else raw, trigger, step)
            self.sent.append(e)
            if not self.variation.diverts(e):
                self.matcher.emitted(e)

    def _returns(self, by_timer: bool) -> None:
        for pending, outcome in self.calls.finished(self.now):
            at = pending.completion.at if pending.completion.at is not None else self.now
            self._compare_call(pending.step, outcome)
            fault = application.end_fault(pending.step, pending.since, at, by_timer)
            if fault:
                self.differ(pending.step, *fault)

    # ---- steps

    def run(self, hurry: bool = False) -> Result:
        """Play all of it; in a hurry, up to the first difference."""
        try:
            for at, step, repeated in self.agenda:
                self.advance(at)
                if hurry and self.found:
                    break
                self._do(step, repeated)
            self.advance(ns(self.scenario.t_end))
            self._settle()
        except Unresolved as e:
            self.differ(step, "injected packet", f"p{e.p} sent by the stack before", "no such packet")
        except Stop as e:
            self.differ(None, "replay", "an end", str(e), t=self.now / 1e9)
        else:
            self._finish()
        return self._verdict()

    def _do(self, step: Step, repeated: bool) -> None:
        if not isinstance(step, (TcpInfoStep, PacketStep)) or (isinstance(step, PacketStep) and step.injected):
            self._settle()
        match step:
            case PacketStep():
                if step.injected:
                    self._inject(step)
            case CallStep():
                self._call(step)
            case SysctlStep() | LinkStep() | AddressStep() | RouteStep():
                self._configure(step)
            case CountersStep():
                for name, want, have in self.counters.mark(step):
                    self.differ(step, name, f"{want:+d}", f"{have:+d}")
            case TableStep():
                self._table(step)
            case TextStep():
                text = self.stack.ss_text(step.args) if step.command == "ss" else self.stack.netstat(step.args)
                fault = table.text_fault(step.text, text)
                if fault:
                    self.differ(step, *fault)
            case TcpInfoStep():
                self._tcp_info(step)
            case SysctlGetStep():
                self._sysctl_get(step)

    def _answers(self, step: Step) -> None:
        """Packets and returns that a driving step brought about."""
        self._collect(self.stack.take(), step.title(), step.index)
        self._returns(by_timer=False)

    def _inject(self, step: PacketStep) -> None:
        raw = rewrite(step, self.numbers, self.ports)
        self.numbers.injected(step.p, raw)
        self.matcher.injected(step, self.now)
        self.stack.inject(raw)
        self._answers(step)

    def _configure(self, step: Step) -> None:
        try:
            target.apply(self.stack, step)
            got = None
        except KeyError:
            got = "ENOENT"
        except OSError as e:
            got = application.errno_name(e.errno)
        want = step.errno if isinstance(step, SysctlStep) else None
        if got != want:
            self.differ(step, target.step_words(step), want or "success", got or "success")
        self._answers(step)

    def _call(self, step: CallStep) -> None:
        try:
            outcome = self.calls.perform(step, self.now)
        except application.NoSocket:
            return
        except (BadValue, KeyError, TypeError) as e:
            raise FormatError(f"{self.scenario.id}: {step.title()}: {e}") from e
        if isinstance(outcome, Pending):
            if step.t_end is None:
                want = step.errno or str(step.result)
                self.differ(step, "result", f"{want} at once", "the call waits")
            self._answers(step)
            return
        self._compare_call(step, outcome)
        if step.t_end is not None:
            fault = application.end_fault(step, self.now, self.now, False)
            if fault:
                self.differ(step, *fault)
        self._answers(step)

    def _compare_call(self, step: CallStep, outcome: Outcome) -> None:
        fault = application.result_fault(step, outcome)
        if fault and not self._late_error(step, outcome):
            self.differ(step, *fault)
        elif not fault and step.has_readback and step.errno is None:
            have = self.calls.readback(step)
            if have != step.readback:
                self.differ(step, "readback", str(step.readback), str(have))

    def _late_error(self, step: CallStep, outcome: Outcome) -> bool:
        """A SO_ERROR shown one reading early, the kernel's timer being late; the recorded one follows."""
        if step.call != "getsockopt":
            return False
        if not isinstance(outcome.value, dict) or not isinstance(step.result, dict):
            return False
        have, want = outcome.value.get("value"), step.result.get("value")
        if have and not want and self.fired and self.fired[-1] + lateness(0, self.fired[-1]) >= self.now:
            self.late_errors.append((step.sock or "", have, step))
            return True
        if want and not have:
            for item in self.late_errors:
                if item[:2] == (step.sock or "", want):
                    self.late_errors.remove(item)
                    return True
        return False

    def _table(self, step: TableStep) -> None:
        own, commands = table.split_pipe(step.args)
        have = self._left(self.stack.ss(own), commands)
        raw = step.rows[0].get("raw") if step.rows else None
        if raw is not None or isinstance(have, str):
            want = raw if raw is not None else str(len(step.rows))
            text = have if isinstance(have, str) else "\n".join(table.row_text(r) for r in have)
            if text.split() != want.split():
                self.differ(step, "output", want, text)
            return
        before = [self._left(rows, commands) for at, rows in self.tables.get(step.args, [])
                  if at + lateness(0, at) >= self.now]
        recorded = [s.packet for s in self.scenario.packets() if not s.injected and s.at <= self.now]
        sent = [e.raw for e in self.sent]
        vary = self.variation.rows
        fault = table.table_fault(vary(step.rows, recorded), vary(have, sent),
                                  [vary(t, sent) for t in before if not isinstance(t, str)], self.now)
        if fault:
            self.differ(step, *fault)

    def _left(self, rows: list[dict[str, Any]], commands: list[str]) -> list[dict[str, Any]] | str:
        named = [dict(r, local=self.ports.recorded_text(r["local"])) for r in rows] if self.ports else rows
        try:
            return table.piped(named, commands)  # type: ignore[return-value]
        except ValueError as e:
            raise FormatError(f"{self.scenario.id}: {e}") from e

    def _tcp_info(self, step: TcpInfoStep) -> None:
        raw = self.calls.last_info(step.sock)
        if raw:
            self.infos.compare(step, raw)

    def _settle(self) -> None:
        for held in self.infos.settled():
            self.differ(held.step, *held.fault)

    def _sysctl_get(self, step: SysctlGetStep) -> None:
        try:
            have = str(self.stack.sysctl[step.name])
        except (KeyError, OSError):
            have = "no such sysctl"
        if have.split() != step.value.split():
            self.differ(step, f"sysctl {step.name}", step.value, have)

    # ---- the end

    def defaults(self) -> None:
        """The sysctls of a fresh namespace, where the scenario lists them."""
        listed = self.scenario.checks.get("sysctl")
        if not isinstance(listed, dict):
            return
        for name, value in listed.items():
            if name in MACHINE:
                continue
            try:
                have = str(self.stack.sysctl[name])
            except (KeyError, OSError):
                if name.startswith(PORTABLE):
                    self.differ(None, f"sysctl {name}", str(value), "no such sysctl")
                continue
            if have.split() != str(value).split():
                self.differ(None, f"sysctl {name}", str(value), have)

    def _finish(self) -> None:
        end = ns(self.scenario.t_end)
        for flow in self.matcher.flows.values():
            if flow.diverged or self.variation.is_loose(flow.key):
                continue
            for missing in flow.expected[len(flow.got):][:1]:
                self.differ(missing, "packet", wire.describe(missing.packet), "nothing")
            for e in flow.got[len(flow.expected):][:1]:
                if e.trigger is None and may_fall_after(e.at, end, flow.events):
                    continue
                if e.trigger is not None and still_unread(e.at, end):
                    continue
                why = f"a timer at {e.at / 1e9:.6f} s" if e.trigger is None else e.trigger
                self.differ(None, "packet", f"nothing more to {flow.label}",
                            f"{wire.describe(e.raw)}, caused by {why}", t=e.at / 1e9)
        for pending in self.calls.pending:
            if pending.step.t_end is not None:
                self.differ(pending.step, "return", f"at {pending.step.t_end:.6f} s", "the call still waits")
        for sock, value, step in self.late_errors:
            self.differ(step, f"SO_ERROR of {sock}", "0", str(value))
        for t, what, expected, got in self.variation.finish(self.matcher):
            self.differ(None, what, expected, got, t=t)

    def _verdict(self) -> Result:
        s = self.scenario
        if not self.found:
            return passed(s.id, s.section)
        result = differs(s.id, s.section, self.found)
        first = result.differences[0]
        accepted = first.what == "result" and ", accept(" in first.where
        other_listener = SPREAD in self.variation.kinds and accepted
        if self.variation.unclear or other_listener:
            return skipped(s.id, s.section, f"runs of the kernel differ here ({s.varies}); {result.reason}")
        return result


def replay(recording: Recording, scenario: Scenario, builder: Builder = target.build) -> Result:
    """Replay one scenario on a stack made by `builder`.

    Two things of the kernel cannot be read to the last bit: its tick (the instant is measured, but an event next to it may fall on either
    side) and its random numbers. A scenario that tells its tick, or `draws`, is equal if it is for one tick close by and one seed."""
    return replay_trace(recording, scenario, builder)[0]


def replay_trace(recording: Recording, scenario: Scenario, builder: Builder = target.build) -> tuple[Result, Trace]:
    """`replay`, and each TCP_INFO of the recording with the stack's beside it."""
    first: tuple[Result, Trace] | None = None
    shifts = TICK_SHIFTS[1:] if scenario.tick_at is not None else ()
    for seed, shift in [*((seed, 0.0) for seed in range(scenario.draws)), *((0, shift) for shift in shifts)]:
        both = _replay(recording, _shifted(scenario, shift), builder, seed, hurry=first is not None)
        if both[0].verdict == "pass":
            return both
        first = first or both
    assert first is not None
    return first


def _shifted(scenario: Scenario, shift: float) -> Scenario:
    return replace(scenario, tick_at=scenario.tick_at + shift) if scenario.tick_at is not None and shift else scenario


def _replay(recording: Recording, scenario: Scenario, builder: Builder, seed: int, hurry: bool) -> tuple[Result, Trace]:
    try:
        stack = builder(recording, scenario, seed)
    except SetupError as e:
        return differs(scenario.id, scenario.section,
                       [Difference(0.0, "setup", "configuration", "success", str(e))]), []
    run = Run(scenario, stack)
    run.defaults()
    return run.run(hurry), run.infos.seen
