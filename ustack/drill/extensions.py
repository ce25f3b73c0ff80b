"""Calls that packetdrill does not have: what a listener's queues hold, and that nobody was answered.

Only in scripts with the option line `--ustack_extensions`; the language of clients by name stands in docs/drill.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ustack.drill import nodes, values
from ustack.drill.nodes import Syscall
from ustack.drill.packets import Flow
from ustack.drill.port import Done, Port
from ustack.drill.state import Failure, World

NAMES = frozenset({"queue", "silent"})
_MEMBERS = ("syn", "young", "accept", "limit")


def queue(call: Syscall, sock: Any, port: Port) -> Done:
    """`queue(fd, {syn=N, young=N, accept=N, limit=N}) = 0`: any of them; half-open connections, those of them whose SYN-ACK was sent
    once, connections that wait for accept(), and the backlog."""
    have = port.queues(sock)
    for item in values.struct(values.args(call, 2)[1]).members:
        if item.name not in _MEMBERS:
            raise Failure("script", item.pos, f"a queue has {', '.join(_MEMBERS)}, not {item.name}")
        got = have.get(item.name)
        if got is not None and got != values.number(item.value):
            raise Failure("syscall", item.pos, f"the listener's {item.name} is another", str(values.number(item.value)), _words(have))
    return Done(port.stack.clock.now, 0)


def _words(have: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={number}" for name, number in have.items())


def silent(call: Syscall, world: World, waiting: Callable[[list[Flow]], str | None], port: Port) -> Done:
    """`silent(@label, ...) = 0`: no packet to these clients that a line has not taken."""
    for value in call.args:
        if not isinstance(value, nodes.Label):
            raise Failure("script", value.pos, "@label is needed here")
        whole = value
        if value.index is None and value.count is None:
            whole = nodes.Label(value.pos, value.name, count=max(world.size_of(value), 1))
        got = waiting(world.clients(whole))
        if got is not None:
            raise Failure("packet", value.pos, f"{value} got a packet", "nothing", got)
    return Done(port.stack.clock.now, 0)
