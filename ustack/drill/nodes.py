"""The syntax tree of a packetdrill script.

Plain frozen dataclasses; every node that a message may have to point at carries its place in the
source.  Times are integer nanoseconds of script time.  Nothing here knows about the stack.

May be imported by everything in ustack.drill; imports nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Pos:
    """A place in the script: both numbers count from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


# --- values of system call arguments ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dots:
    """`...`: do not care, or the default."""

    pos: Pos


@dataclass(frozen=True, slots=True)
class Int:
    pos: Pos
    value: int


@dataclass(frozen=True, slots=True)
class Name:
    """A symbol (`O_RDWR`) or, as a member's left side, the member's name."""

    pos: Pos
    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """One string or several adjacent ones; `prefix` when `...` follows."""

    pos: Pos
    value: bytes
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Or:
    pos: Pos
    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Array:
    pos: Pos
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class CallValue:
    """`htons(8080)`, or `msg_iov(2)` on the left of a member."""

    pos: Pos
    name: str
    args: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """`name=value`, `name(arg)=value` or a bare value (name None)."""

    pos: Pos
    name: str | None
    arg: Value | None
    value: Value


@dataclass(frozen=True, slots=True)
class Struct:
    pos: Pos
    members: tuple[Member, ...]

    def get(self, *names: str) -> Value | None:
        for member in self.members:
            if member.name in names:
                return member.value
        return None


@dataclass(frozen=True, slots=True)
class Label:
    """`@name`, `@name.index` (from 1) or `@name*count`: client connections by name, our extension of the language."""

    pos: Pos
    name: str
    index: int | None = None
    count: int | None = None

    def __str__(self) -> str:
        return f"@{self.name}" + ("" if self.index is None else f".{self.index}") + ("" if self.count is None else f"*{self.count}")


Value = Dots | Int | Name | Text | Or | Array | CallValue | Struct | Label


# --- packets -----------------------------------------------------------------------------------------


class Direction(Enum):
    INBOUND = "<"
    OUTBOUND = ">"


@dataclass(frozen=True, slots=True)
class IpInfo:
    """What stood in `[...]` before the flags; None = not said."""

    ecn: str | None = None
    tos: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class TcpOption:
    """One TCP option as written.

    name: mss wscale sackOK nop eol TS sack FO FOEXP md5 ECN
    a, b: mss/wscale value; TS val and ecr
    blocks: SACK edges, script sequence space
    data: cookie or digest bytes
    counters: AccECN counters in the order written, as (name, value)
    """

    pos: Pos
    name: str
    a: int = 0
    b: int = 0
    blocks: tuple[tuple[int, int], ...] = ()
    data: bytes = b""
    counters: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpPacket:
    """flags: nine bits, FIN in bit 0 up to AE in bit 8.  options None = `<...>`, not compared."""

    pos: Pos
    direction: Direction
    ip: IpInfo
    ports: tuple[int, int] | None
    flags: int
    start: int
    end: int
    length: int
    ack: int | None
    win: int | None
    urg: int
    options: tuple[TcpOption, ...] | None
    who: Label | None = None


@dataclass(frozen=True, slots=True)
class IcmpPacket:
    """`icmp TYPE [CODE] [id N] [mtu N] [[start:end(len)]]`; type and code are still words."""

    pos: Pos
    direction: Direction
    ip: IpInfo
    type: str
    code: str | None
    ident: int | None
    mtu: int | None
    quoted: tuple[int, int] | None
    who: Label | None = None


@dataclass(frozen=True, slots=True)
class UdpPacket:
    pos: Pos
    direction: Direction
    ip: IpInfo
    length: int


Packet = TcpPacket | IcmpPacket | UdpPacket


# --- events ------------------------------------------------------------------------------------------


class When(Enum):
    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Time:
    """`end` is the far end of a range (`a~b`) on the same base as `at`."""

    pos: Pos
    when: When
    at: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Syscall:
    """`lasts`: for a blocking call, how long after its start it must return."""

    pos: Pos
    name: str
    args: tuple[Value, ...]
    result: Value
    errno: str | None
    lasts: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    pos: Pos
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    pos: Pos
    text: str


Action = Packet | Syscall | Command | Code


@dataclass(frozen=True, slots=True)
class Event:
    time: Time
    action: Action

    @property
    def pos(self) -> Pos:
        return self.time.pos


@dataclass(frozen=True, slots=True)
class OptionLine:
    pos: Pos
    name: str
    value: str | None


EXTENSIONS = "ustack_extensions"  # the option line without which they are mistakes


@dataclass(frozen=True)
class Script:
    path: str
    options: tuple[OptionLine, ...]
    init: Command | None
    events: tuple[Event, ...]
    cleanup: Command | None
    lines: tuple[str, ...] = field(default=(), repr=False)

    @property
    def extended(self) -> bool:
        """Whether the script may use what packetdrill does not have."""
        return any(line.name == EXTENSIONS for line in self.options)

    def line_text(self, pos: Pos) -> str:
        """The source line of a place, for messages."""
        return self.lines[pos.line - 1].strip() if 0 < pos.line <= len(self.lines) else ""
