"""What the replay needs of a stack in virtual time, and how it makes one for a scenario.

The protocols say exactly which part of the public API is used (manual driver), so a stand-in for tests has
to offer no more. `build()` makes a stack as section 6 of the format asks: address, MTU and routes of the
setup steps, the defaults of a fresh namespace, the setup sysctls, the TCP Fast Open key, the phase of the
cookie epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, cast

from .recording import (
    AddressStep,
    LinkStep,
    Recording,
    RemarkStep,
    RouteStep,
    Scenario,
    Step,
    SysctlStep,
    ns,
)

COOKIE_EPOCH_NS = 60_000_000_000
TICK_NS = 4_000_000
FROM_MEMORY = ("net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_max_tw_buckets", "net.ipv4.tcp_max_orphans",
               "net.ipv4.tcp_mem")
"""Defaults that a kernel computes from its memory: taken over from the recording's machine."""


class Completion(Protocol):
    done: bool
    result: Any
    errno: str | int | None
    at: int | None


class Target(Protocol):
    """A stack with a virtual clock."""

    sysctl: MutableMapping[str, Any]

    def socket(self, family: int = ..., type: int = ..., proto: int = ...) -> Any: ...
    def inject(self, packet: bytes, at: int | None = None) -> Any: ...
    def run_until(self, t: int) -> list[tuple[int, bytes]]: ...
    def take(self) -> list[tuple[int, bytes]]: ...
    def next_timeout(self) -> int | None: ...
    def submit(self, sock: Any, op: str, *args: Any) -> Completion: ...
    def nstat(self) -> Mapping[str, int]: ...
    def ss(self, args: str = ...) -> list[dict[str, Any]]: ...
    def ss_text(self, args: str) -> str: ...
    def netstat(self, args: str) -> str: ...
    def route(self, text: str) -> Any: ...
    def address(self, op: str, text: str) -> Any: ...
    def link(self, *, mtu: int) -> Any: ...
    def set_tick_phase(self, phase_ns: int) -> None: ...


class SetupError(RuntimeError):
    """The stack refused a part of the configuration."""


def ignored_sysctl(name: str) -> bool:
    """IPv6 is not there and needs no switching off."""
    return name.startswith("net.ipv6.")


def apply(stack: Target, step: Step) -> None:
    """Carry out a configuration step; OSError as the stack gives it."""
    match step:
        case SysctlStep():
            if not ignored_sysctl(step.name):
                stack.sysctl[step.name] = step.value
        case LinkStep():
            if step.mtu is not None:
                stack.link(mtu=step.mtu)
        case AddressStep():
            stack.address(step.op, step.words)
        case RouteStep():
            stack.route(step.words)
        case RemarkStep():
            pass
        case _:
            raise SetupError(f"{step.title()}: not a configuration step")


def cookie_phase(scenario: Scenario) -> int:
    """Nanoseconds by which the cookie epoch is ahead at time 0, so that it turns when the recording's did."""
    if not scenario.cookie_minute_at:
        return 0
    return -ns(scenario.cookie_minute_at[0]) % COOKIE_EPOCH_NS


def build(recording: Recording, scenario: Scenario, seed: int = 0) -> Target:
    """A new stack, configured as the scenario begins."""
    from .. import Stack, VirtualClock

    setup = [s for s in scenario.setup_steps() if not isinstance(s, RemarkStep)]
    first = next((s for s in setup if isinstance(s, AddressStep)), None)
    if first is None:
        raise SetupError("the scenario sets no address up")
    mtu = next((s.mtu for s in setup if isinstance(s, LinkStep) and s.mtu), None)
    stack: Target = cast(Target, Stack(None, first.words.split()[0], clock=VirtualClock(), seed=seed, mtu=mtu,
                                       default_route=False, cookie_phase_ns=cookie_phase(scenario)))
    values = dict(memory_defaults(recording))
    if scenario.tfo_key and not any(isinstance(s, SysctlStep) and s.name.endswith("tcp_fastopen_key")
                                    for s in scenario.steps):
        values["net.ipv4.tcp_fastopen_key"] = scenario.tfo_key
    for name, value in values.items():
        with contextlib.suppress(KeyError, OSError):
            stack.sysctl[name] = value
    if scenario.tick_at is not None:
        stack.set_tick_phase(-ns(scenario.tick_at) % TICK_NS)
    for step in setup:
        if step is first or (isinstance(step, LinkStep) and step.mtu == mtu):
            continue
        try:
            apply(stack, step)
        except (OSError, KeyError, ValueError) as e:
            raise SetupError(f"{step.title()}: {step_words(step)}: {e}") from e
    return stack


def step_words(step: Step) -> str:
    match step:
        case SysctlStep():
            return f"sysctl {step.name}={step.value}"
        case LinkStep():
            return f"link {step.device} mtu {step.mtu}"
        case AddressStep():
            return f"address {step.op} {step.words}"
        case RouteStep():
            return f"route {step.words}"
        case _:
            return step.title()


def memory_defaults(recording: Recording) -> dict[str, str]:
    """The recording machine's values of the sysctls that depend on memory."""
    values = {k: str(v) for k, v in recording.meta.get("global_sysctls", {}).items()}
    for scenario in recording.scenarios:
        values |= {k: str(v) for k, v in scenario.checks.get("sysctl", {}).items() if k in FROM_MEMORY}
    return values
