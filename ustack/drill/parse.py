"""From text to the syntax tree, with every mistake told by line and column.

The grammar does the tokens and the shape; this file does what a grammar cannot: sizes, sums
(`start:end(len)`), and the rules that depend on the direction of a packet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.tree import Meta

from ustack.drill import nodes
from ustack.drill.codec import encode_options
from ustack.drill.nodes import Direction, Pos, When
from ustack.drill.source import DEFAULT_DEFINES, DEFINE_LINE, Source, parse_define

TCP_FLAGS = {"F": 0x001, "S": 0x002, "R": 0x004, "P": 0x008, ".": 0x010, "U": 0x020, "E": 0x040, "W": 0x080,
             "A": 0x100}
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\", '"': b'"', "a": b"\a", "b": b"\b",
            "f": b"\f", "v": b"\v"}
_DEFINE = re.compile(r"^[ \t]*" + DEFINE_LINE, re.M)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)|([^\\]+)", re.S)
_LABEL = re.compile(r"@([A-Za-z_][A-Za-z0-9_]*)(?:\.([0-9]+)|\*([0-9]+))?")
_LATEST = 10**6 * 10**9  # ns: eleven days
_MOST_CLIENTS = 20_000  # fresh ports are from a range not much larger
_TERMINAL_WORDS = {
    "INT": "an integer", "FLOAT": "a number", "HEX": "a hexadecimal number", "WORD": "a name",
    "FLAGS": "TCP flags", "BACKTICK": "a `command`", "CODE": "%{ code }%", "STAR": "'*'", "LT": "'<'",
                   "GT": "'>'",
    "PLUS": "'+'", "ELLIPSIS": "'...'", "OPTION": "--option", "$END": "the end of the file",
                   "STRING": "a string",
    "NOTE": "a (note)", "HEXDATA": "hexadecimal bytes", "LSQB": "'['", "RSQB": "']'", "LPAR": "'('",
                   "RPAR": "')'",
    "LBRACE": "'{'", "RBRACE": "'}'", "COMMA": "','", "COLON": "':'", "EQUAL": "'='", "VBAR": "'|'",
                   "TILDE": "'~'",
    "ECN_WORD": "an ECN word", "LABEL": "a @label", "COUNTER": "an ECN counter",
}


class ScriptSyntaxError(Exception):
    """The text is not a script; `pos` says where."""

    def __init__(self, path: str, pos: Pos, message: str) -> None:
        super().__init__(f"{path}:{pos}: {message}")
        self.path, self.pos, self.message = path, pos, message


class _Reject(Exception):
    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset, self.message = offset, message


@functools.cache
def _parser() -> Lark:
    text = resources.files("ustack.drill").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=True)


def nanoseconds(text: str, offset: int = 0) -> int:
    """Seconds as written to integer nanoseconds, exactly."""
    value = Decimal(text) * 1_000_000_000
    if value != int(value):
        raise _Reject(offset, f"the time {text} is finer than a nanosecond")
    if not 0 <= value <= _LATEST:
        raise _Reject(offset, f"the time {text} is negative" if value < 0 else f"the time {text} is beyond {_LATEST // 10**9} s")
    return int(value)


def parse_flags(word: str) -> int:
    """Letters, the dot and the AccECN digit to nine flag bits; ValueError for a letter said twice."""
    if word == "-":
        return 0
    bits = 0
    for letter in word.rstrip("01234567"):
        if bits & TCP_FLAGS[letter]:
            raise ValueError(f"the flag {letter!r} stands twice in {word!r}")
        bits |= TCP_FLAGS[letter]
    digits = word[len(word.rstrip("01234567")):]
    if len(digits) > 1 or (digits and bits & 0x1C0):
        raise ValueError(f"the flags {word!r} say the ECN bits twice")
    return bits | (int(digits) << 6 if digits else 0)


def flags_text(bits: int) -> str:
    """The way back, for reports: letters in the usual order."""
    text = "".join(letter for letter in "SFRPEWAU" if bits & TCP_FLAGS[letter])
    return (text + ("." if bits & 0x10 else "")) or "-"


def _unquoted(value: str) -> str:
    """An option's value without quotes around the whole of it."""
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1]
    return value[1:-1] if quoted else value


def _unescape(token: Token) -> bytes:
    out = b""
    for match in _ESCAPE.finditer(token[1:-1]):
        escape, plain = match.groups()
        if plain is not None:
            out += plain.encode("utf-8")
        elif escape[0] == "x" and len(escape) == 3:
            out += bytes([int(escape[1:], 16)])
        elif escape in _ESCAPES:
            out += _ESCAPES[escape]
        else:
            raise _Reject(token.start_pos or 0, f"unknown escape \\{escape} in a string")
    return out


class _Builder:
    """Tree to nodes: the method of a rule gets its place and its children: Tokens, nodes, or None where an optional part is missing."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.labels: list[nodes.Label] = []
        self._methods: dict[str, Callable[[Meta, list[Any]], Any]] = {}

    def build(self, tree: Tree[Token]) -> Any:
        """From the leaves up.  (lark's own Transformer wraps every method anew at every node.)"""
        children = [self.build(child) if isinstance(child, Tree) else child for child in tree.children]
        method = self._methods.get(tree.data)
        if method is None:
            method = self._methods[tree.data] = getattr(self, tree.data)
        return method(tree.meta, children)

    # -- helpers
    def pos(self, at: Meta | Token) -> Pos:
        return self.source.place(at.start_pos or 0)

    @staticmethod
    def number_of(token: Token, low: int, high: int, what: str) -> int:
        value = int(token, 0) if token.lower().startswith(("0x", "-0x")) else int(token)
        if not low <= value <= high:
            raise _Reject(token.start_pos or 0, f"{what} {value} is not within {low}..{high}")
        return value

    def u32(self, token: Token, what: str) -> int:
        return self.number_of(token, 0, 0xFFFFFFFF, what)

    # -- values
    def integer(self, meta: Meta, c: list[Token]) -> nodes.Int:
        return nodes.Int(self.pos(meta), int(c[0], 16) if c[0][:2].lower() == "0x" else int(c[0]))

    def name(self, meta: Meta, c: list[Token]) -> nodes.Name:
        return nodes.Name(self.pos(meta), str(c[0]))

    def dots(self, meta: Meta, c: list[Token]) -> nodes.Dots:
        return nodes.Dots(self.pos(meta))

    def label(self, meta: Meta, c: list[Token]) -> nodes.Label:
        token = c[0]
        match = _LABEL.fullmatch(token)
        assert match is not None
        name, index, count = match.groups()
        label = nodes.Label(self.pos(token), name, int(index) if index else None, int(count) if count else None)
        if 0 in (label.index, label.count) or max(label.index or 1, label.count or 1) > _MOST_CLIENTS:
            raise _Reject(token.start_pos or 0, f"clients are counted from 1 to {_MOST_CLIENTS}")
        self.labels.append(label)
        return label

    def text(self, meta: Meta, c: list[Token]) -> nodes.Text:
        return nodes.Text(self.pos(meta), b"".join(map(_unescape, c)))

    def text_prefix(self, meta: Meta, c: list[Token]) -> nodes.Text:
        return nodes.Text(self.pos(meta), b"".join(map(_unescape, c[:-1])), prefix=True)

    def either(self, meta: Meta, c: list[nodes.Value]) -> nodes.Or:
        return nodes.Or(self.pos(meta), tuple(c))

    def values(self, meta: Meta, c: list[nodes.Value]) -> tuple[nodes.Value, ...]:
        return tuple(c)

    def array(self, meta: Meta, c: list[Any]) -> nodes.Array:
        return nodes.Array(self.pos(meta), c[0] or ())

    def call(self, meta: Meta, c: list[Any]) -> nodes.CallValue:
        return nodes.CallValue(self.pos(meta), str(c[0]), c[1] or ())

    def member(self, meta: Meta, c: list[Any]) -> nodes.Member:
        left, right = c
        if right is None:
            return nodes.Member(self.pos(meta), None, None, left)
        if isinstance(left, nodes.Name):
            return nodes.Member(self.pos(meta), left.name, None, right)
        if isinstance(left, nodes.CallValue) and len(left.args) == 1:
            return nodes.Member(self.pos(meta), left.name, left.args[0], right)
        raise _Reject(meta.start_pos, "the left side of '=' must be a member's name")

    def members(self, meta: Meta, c: list[nodes.Member]) -> tuple[nodes.Member, ...]:
        return tuple(c)

    def struct(self, meta: Meta, c: list[Any]) -> nodes.Struct:
        return nodes.Struct(self.pos(meta), c[0] or ())

    # -- system calls
    def result(self, meta: Meta, c: list[Token]) -> nodes.Value:
        token = c[0]
        if token.type in ("INT", "HEX"):
            return self.integer(meta, c)
        return self.dots(meta, c) if token.type == "ELLIPSIS" else self.name(meta, c)

    def syscall(self, meta: Meta, c: list[Any]) -> nodes.Syscall:
        name, args, result, errno, _note = c
        if errno is not None and not re.fullmatch(r"E[A-Z0-9]+", errno):
            raise _Reject(errno.start_pos, f"expected an errno name or the next event, not {errno!s}")
        return nodes.Syscall(self.pos(meta), str(name), args or (), result, str(errno) if errno else None)

    # -- packets
    def direction(self, meta: Meta, c: list[Token]) -> Direction:
        return Direction(str(c[0]))

    def ip_ecn(self, meta: Meta, c: list[Token]) -> tuple[str, str]:
        return "ecn", str(c[0])

    def ip_tos(self, meta: Meta, c: list[Token]) -> tuple[str, int]:
        return "tos", self.number_of(c[0], 0, 255, "tos")

    def ip_ttl(self, meta: Meta, c: list[Token]) -> tuple[str, int]:
        return "ttl", self.number_of(c[0], 0, 255, "ttl")

    def ip_info(self, meta: Meta, c: list[tuple[str, Any]]) -> nodes.IpInfo:
        fields = dict(c)
        if len(fields) < len(c) or {"ecn", "tos"} <= fields.keys():
            raise _Reject(meta.start_pos, "a field of the IP header is said twice")
        return nodes.IpInfo(**fields)

    def ports(self, meta: Meta, c: list[Token]) -> tuple[int, int]:
        return self.number_of(c[0], 0, 65535, "port"), self.number_of(c[2], 0, 65535, "port")

    def seq(self, meta: Meta, c: list[Token]) -> tuple[int, int, int]:
        start, end = self.u32(c[0], "sequence number"), self.u32(c[1], "sequence number")
        length = self.number_of(c[2], 0, 65535, "length")
        if (start + length) & 0xFFFFFFFF != end:
            raise _Reject(meta.start_pos, f"{start} + {length} is {start + length}, not {end}")
        return start, end, length

    def ack(self, meta: Meta, c: list[Token]) -> int:
        return self.u32(c[0], "acknowledgement number")

    def win(self, meta: Meta, c: list[Token]) -> int:
        return self.number_of(c[0], 0, 65535, "window")

    def urg(self, meta: Meta, c: list[Token]) -> int:
        return self.number_of(c[0], 0, 65535, "urgent pointer")

    def ident(self, meta: Meta, c: list[Token]) -> int:
        return self.number_of(c[0], 0, 65535, "id")

    def mtu(self, meta: Meta, c: list[Token]) -> int:
        return self.number_of(c[0], 0, 65535, "mtu")

    def quoted(self, meta: Meta, c: list[tuple[int, int, int]]) -> tuple[int, int]:
        return c[0][0], c[0][2]

    def options_unchecked(self, meta: Meta, c: list[Any]) -> str:
        return "unchecked"

    def options_listed(self, meta: Meta, c: list[Any]) -> tuple[nodes.TcpOption, ...]:
        return tuple(o for o in c if isinstance(o, nodes.TcpOption))

    def opt_mss(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "mss", a=self.number_of(c[0], 0, 65535, "mss"))

    def opt_wscale(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "wscale", a=self.number_of(c[0], 0, 255, "wscale"))

    def opt_sackok(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "sackOK")

    def opt_nop(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "nop")

    def opt_eol(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "eol")

    def opt_ts(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "TS", a=self.u32(c[0], "TS val"), b=self.u32(c[1], "TS ecr"))

    def opt_sack(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        edges = [self.u32(t, "SACK edge") for t in c]
        return nodes.TcpOption(self.pos(meta), "sack",
                               blocks=tuple(zip(edges[::2], edges[1::2], strict=True)))

    def opt_fo(self, meta: Meta, c: list[Token | None]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "FO", data=bytes.fromhex(c[0] or ""))

    def opt_foexp(self, meta: Meta, c: list[Token | None]) -> nodes.TcpOption:
        return nodes.TcpOption(self.pos(meta), "FOEXP", data=bytes.fromhex(c[0] or ""))

    def opt_md5(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        if len(c[0]) != 32:
            raise _Reject(meta.start_pos, "an MD5 digest has 16 bytes")
        return nodes.TcpOption(self.pos(meta), "md5", data=bytes.fromhex(c[0]))

    def opt_ecn(self, meta: Meta, c: list[Token]) -> nodes.TcpOption:
        names = [str(n) for n in c[::2]]
        if tuple(names) not in {o[:n] for o in (("e0b", "ceb", "e1b"), ("e1b", "ceb", "e0b"))
                                for n in (1, 2, 3)}:
            raise _Reject(meta.start_pos, "AccECN counters come as e0b [ceb [e1b]] or e1b [ceb [e0b]]")
        counts = [self.number_of(v, 0, 0xFFFFFF, "counter") for v in c[1::2]]
        return nodes.TcpOption(self.pos(meta), "ECN", counters=tuple(zip(names, counts, strict=True)))

    def tcp(self, meta: Meta, c: list[Any]) -> nodes.TcpPacket:
        who, direction, ip, ports, flags, (start, end, length), ack, win, urg, options = c
        outbound = direction is Direction.OUTBOUND
        if win is None and not outbound:
            raise _Reject(flags.start_pos, "an inbound packet needs 'win N'")
        if options == "unchecked" and not outbound:
            raise _Reject(flags.start_pos, "<...> has no meaning for an inbound packet")
        if ip is not None and ip.ecn == "ect01" and not outbound:
            raise _Reject(flags.start_pos, "ect01 has no meaning for an inbound packet")
        size = len(encode_options(options)) if isinstance(options, tuple) else 0
        if size % 4 or size > 40:
            raise _Reject(flags.start_pos,
                          f"the options come to {size} bytes: at most 40 and a multiple of 4")
        try:
            bits = parse_flags(flags)
        except ValueError as error:
            raise _Reject(flags.start_pos, str(error)) from None
        return nodes.TcpPacket(self.pos(meta), direction, ip or nodes.IpInfo(), ports, bits, start, end,
                               length,
                               ack, win, urg or 0, None if options == "unchecked" else options or (),
                               None if who is None else self.label(meta, [who]))

    def icmp(self, meta: Meta, c: list[Any]) -> nodes.IcmpPacket:
        who, direction, ip, kind, code, ident, mtu, quoted = c
        return nodes.IcmpPacket(self.pos(meta), direction, ip or nodes.IpInfo(), str(kind),
                                str(code) if code else None, ident, mtu, quoted,
                                None if who is None else self.label(meta, [who]))

    def udp(self, meta: Meta, c: list[Any]) -> nodes.UdpPacket:
        return nodes.UdpPacket(self.pos(meta), c[1], c[2] or nodes.IpInfo(),
                               self.number_of(c[3], 0, 65507, "length"))

    # -- events
    def number(self, meta: Meta, c: list[Token]) -> int:
        return nanoseconds(c[0], c[0].start_pos or 0)

    def absolute(self, meta: Meta, c: list[int]) -> nodes.Time:
        return nodes.Time(self.pos(meta), When.ABSOLUTE, c[0])

    def relative(self, meta: Meta, c: list[int]) -> nodes.Time:
        return nodes.Time(self.pos(meta), When.RELATIVE, c[0])

    def absolute_range(self, meta: Meta, c: list[int]) -> nodes.Time:
        return self.range_of(meta, When.ABSOLUTE, c)

    def relative_range(self, meta: Meta, c: list[int]) -> nodes.Time:
        return self.range_of(meta, When.RELATIVE, c)

    def range_of(self, meta: Meta, when: When, c: list[int]) -> nodes.Time:
        if c[1] < c[0]:
            raise _Reject(meta.start_pos, "the time range ends before it begins")
        return nodes.Time(self.pos(meta), when, c[0], c[1])

    def any_time(self, meta: Meta, c: list[Token]) -> nodes.Time:
        return nodes.Time(self.pos(meta), When.ANY)

    def command(self, meta: Meta, c: list[Token]) -> nodes.Command:
        return nodes.Command(self.pos(meta), str(c[0])[1:-1])

    def code(self, meta: Meta, c: list[Token]) -> nodes.Code:
        return nodes.Code(self.pos(meta), str(c[0])[2:-2].strip())

    def plain_event(self, meta: Meta, c: list[Any]) -> nodes.Event:
        time, action = c
        outbound = getattr(action, "direction", None) is Direction.OUTBOUND
        if not outbound and time.when is When.ANY:
            raise _Reject(meta.start_pos, "'*' is for outbound packets only")
        if not outbound and time.end is not None:
            raise _Reject(meta.start_pos, "a time range is for outbound packets only")
        return nodes.Event(time, action)

    def blocking_event(self, meta: Meta, c: list[Any]) -> nodes.Event:
        time, _dots, until, call = c
        if time.when is When.ANY or time.end is not None:
            raise _Reject(meta.start_pos, "a blocking call needs one start time")
        if until < time.at:
            raise _Reject(meta.start_pos, "a blocking call ends before it begins")
        return nodes.Event(time, replace(call, lasts=until - time.at))

    def start(self, meta: Meta, c: list[Any]) -> nodes.Script:
        options = []
        while isinstance(c[0], Token):
            name, equals, value = c[0][2:].partition("=")
            options.append(nodes.OptionLine(self.pos(c.pop(0)), name, _unquoted(value) if equals else None))
        events = tuple(c[1:-1])
        self.check_times(events)
        if self.labels and all(line.name != nodes.EXTENSIONS for line in options):
            raise _Misplaced(self.labels[0].pos, f"a label needs the option line --{nodes.EXTENSIONS}")
        return nodes.Script("", tuple(options), c[0], events, c[-1], self.source.lines)

    def check_times(self, events: tuple[nodes.Event, ...]) -> None:
        first = events[0].time
        if first.when is When.ANY or first.at != 0:
            raise _Misplaced(first.pos, "the first event must be at time 0")
        last = 0
        for event in events:
            if event.time.when is When.ABSOLUTE:
                if event.time.at < last:
                    raise _Misplaced(event.pos, "the time goes backwards")
                last = event.time.at


class _Misplaced(Exception):
    def __init__(self, pos: Pos, message: str) -> None:
        super().__init__(message)
        self.pos, self.message = pos, message


def _explain(error: UnexpectedInput, source: Source) -> str:
    if isinstance(error, UnexpectedToken):
        found = "the end of the file" if error.token.type == "$END" else repr(str(error.token))
        wanted = set(error.accepts or error.expected)
    else:
        assert isinstance(error, UnexpectedCharacters)
        word = re.match(r"\S+|.", source.text[error.pos_in_stream:], re.DOTALL)
        found = repr(word[0][:20] if word else "")
        wanted = set(error.allowed or ())
    words = sorted(_TERMINAL_WORDS.get(w, repr(w.lower())) for w in wanted if w not in ("WS", "COMMENT"))
    return f"unexpected {found}; expected {' or '.join(words[:8])}{' ...' if len(words) > 8 else ''}"


def parse_text(text: str, path: str = "<script>", defines: Mapping[str, str] | None = None) -> nodes.Script:
    """Parse one script; `defines` are the command line's, stronger than the script's and the defaults."""
    # Option lines may define words too, so they are looked at before the real parse.
    merged = dict(DEFAULT_DEFINES)
    for match in _DEFINE.finditer(text):
        try:
            merged.update([parse_define(_unquoted(match[1]))])
        except ValueError as error:
            raise ScriptSyntaxError(path, Source(text, {}).place(match.start()), str(error)) from None
    source = Source(text, {**merged, **(defines or {})})
    try:
        script: nodes.Script = _Builder(source).build(_parser().parse(source.text))
    except UnexpectedInput as error:
        offset = error.pos_in_stream
        if offset is None or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
            offset = len(source.text)
        raise ScriptSyntaxError(path, source.place(offset), _explain(error, source)) from None
    except _Reject as cause:
        raise ScriptSyntaxError(path, source.place(cause.offset), cause.message) from None
    except _Misplaced as cause:
        raise ScriptSyntaxError(path, cause.pos, cause.message) from None
    return nodes.Script(path, script.options, script.init, script.events, script.cleanup, script.lines)


def parse_file(path: str, defines: Mapping[str, str] | None = None) -> nodes.Script:
    """Parse a file; OSError if it cannot be read."""
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return parse_text(stream.read(), path, defines)
