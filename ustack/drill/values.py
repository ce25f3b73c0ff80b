"""Reading arguments: from expression nodes to numbers, byte strings and structures.

Every reader raises Failure("script", place, ...) when the argument is not what the call takes;
nothing is guessed.
"""

from __future__ import annotations

from ustack.drill import codec, nodes
from ustack.drill.nodes import Syscall, Value
from ustack.drill.state import Failure
from ustack.drill.symbols import SYMBOLS


def is_dots(value: Value) -> bool:
    return isinstance(value, nodes.Dots)


def is_null(value: Value) -> bool:
    """A pointer written as 0 or NULL."""
    return (isinstance(value, nodes.Int) and value.value == 0) or (
        isinstance(value, nodes.Name) and value.name == "NULL")


def number(value: Value) -> int:
    """An integer, a symbol, an OR of those, or htons()/htonl() of one (values stay in host order)."""
    match value:
        case nodes.Int():
            return value.value
        case nodes.Name():
            if value.name in SYMBOLS:
                return SYMBOLS[value.name]
            raise Failure("script", value.pos, f"unknown symbol {value.name}")
        case nodes.Or():
            total = 0
            for part in value.parts:
                total |= number(part)
            return total
        case nodes.CallValue(name="htons" | "htonl" | "_HTONS_" | "_HTONL_", args=(inner,)):
            return number(inner)
    raise Failure("script", value.pos, "a number is needed here")


def pointed_number(value: Value) -> int:
    """`[n]`: a pointer to one integer."""
    if isinstance(value, nodes.Array) and len(value.items) == 1:
        return number(value.items[0])
    raise Failure("script", value.pos, "[value] is needed here")


def array(value: Value) -> tuple[Value, ...]:
    if isinstance(value, nodes.Array):
        return value.items
    raise Failure("script", value.pos, "[...] is needed here")


def struct(value: Value) -> nodes.Struct:
    if isinstance(value, nodes.Struct):
        return value
    raise Failure("script", value.pos, "{...} is needed here")


def member(value: nodes.Struct, *names: str) -> Value:
    """A member that must be there."""
    found = value.get(*names)
    if found is None:
        raise Failure("script", value.pos, f"the structure needs {names[0]}")
    return found


def args(call: Syscall, count: int, *more: int) -> tuple[Value, ...]:
    """The arguments, if there are as many as the call takes."""
    if len(call.args) not in (count, *more):
        raise Failure("script", call.pos, f"{call.name}() takes {count} arguments, not {len(call.args)}")
    return call.args


def socket_address(value: Value, default: tuple[str, int]) -> tuple[str, int]:
    """`...`, or a sockaddr_in structure."""
    if is_dots(value):
        return default
    fields = struct(value)
    host = fields.get("sin_addr")
    port = fields.get("sin_port")
    address = default[0]
    if isinstance(host, nodes.CallValue) and host.name in ("inet_addr",
                                                           "_INET_ADDR_") and len(host.args) == 1 \
            and isinstance(host.args[0], nodes.Text):
        address = host.args[0].value.decode("ascii", "replace")
        try:
            codec.address(address)
        except ValueError as error:
            raise Failure("script", host.pos, str(error)) from None
    elif host is not None and not is_dots(host):
        raise Failure("script", host.pos, 'inet_addr("a.b.c.d") is needed here')
    return address, default[1] if port is None or is_dots(port) else number(port)


def iovec_lengths(value: Value) -> list[int]:
    """`[{..., n}, ...]` to the lengths."""
    lengths = []
    for item in array(value):
        fields = struct(item)
        by_name = fields.get("iov_len")
        if by_name is None and len(fields.members) == 2 and fields.members[1].name is None:
            by_name = fields.members[1].value
        if by_name is None:
            raise Failure("script", fields.pos, "{..., length} is needed here")
        lengths.append(number(by_name))
    return lengths
