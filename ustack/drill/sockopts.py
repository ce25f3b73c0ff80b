"""The values of setsockopt() and getsockopt(): integers, strings, struct linger, struct timeval."""

from __future__ import annotations

import struct

from ustack.drill import nodes, values
from ustack.drill.nodes import Syscall, Value
from ustack.drill.state import Failure

_LONGEST = 65_536  # of an option's value: the kernel reads no more of any

# Structures by the names of their members, in the order of Linux's layout (64 bit).
_LAYOUTS: dict[frozenset[str], tuple[str, tuple[str, ...]]] = {
    frozenset({"onoff", "linger"}): ("=ii", ("onoff", "linger")),
    frozenset({"l_onoff", "l_linger"}): ("=ii", ("l_onoff", "l_linger")),
    frozenset({"tv_sec", "tv_usec"}): ("=qq", ("tv_sec", "tv_usec")),
}


def encode(value: Value, size: int) -> bytes | None:
    """The bytes the kernel would read; None for a null pointer with a length."""
    if values.is_null(value) and size > 0:
        return None
    if size < 0:
        raise Failure("script", value.pos, f"{size} is not a length")
    match value:
        case nodes.Text():
            raw = value.value
        case nodes.Struct():
            raw = _pack(value)
        case nodes.Array(items=(nodes.Struct() as inner,)):
            raw = _pack(inner)
        case nodes.Array():
            raw = struct.pack("=I", values.pointed_number(value) & 0xFFFFFFFF)
        case _:
            raise Failure("script", value.pos, "an option's value is [n], a string or a structure")
    return raw[:size].ljust(min(size, _LONGEST), b"\0")


def _pack(value: nodes.Struct) -> bytes:
    layout = _LAYOUTS.get(frozenset(m.name or "" for m in value.members))
    if layout is None:
        raise Failure("script", value.pos, "no structure of a socket option has these members")
    form, names = layout
    return struct.pack(form, *(values.number(values.member(value, name)) for name in names))


def check(call: Syscall, wanted: Value, got: bytes | int, size: int) -> None:
    """Compare what getsockopt() gave; the returned length must be the one asked for."""
    raw = struct.pack("=i", got) if isinstance(got, int) else bytes(got)
    if len(raw) != size:
        raise Failure("syscall", call.args[4].pos, "getsockopt() returned another length", str(size),
                      str(len(raw)))
    if values.is_dots(wanted) or (isinstance(wanted, nodes.Array) and wanted.items
                                  and values.is_dots(wanted.items[0])):
        return
    if isinstance(wanted, (nodes.Text, nodes.Struct)):
        expected = encode(wanted, size)
        prefix = isinstance(wanted, nodes.Text) and wanted.prefix
        if not (raw.startswith(wanted.value) if prefix and isinstance(wanted, nodes.Text)
                else raw == expected):
            raise Failure("syscall", wanted.pos, "getsockopt() gave another value", repr(expected), repr(raw))
        return
    number = values.pointed_number(wanted)
    value = int.from_bytes(raw[:4], "little", signed=True)
    if (number - value) & 0xFFFFFFFF:
        raise Failure("syscall", wanted.pos, "getsockopt() gave another value", str(number), str(value))
