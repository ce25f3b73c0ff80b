"""The command line of `ss`: options, state filter, filter expression (iproute2 6.1's language).

    ss [OPTIONS] [state STATE]... [exclude STATE]... [EXPRESSION]

An expression is made of `src|dst [=] ADDRESS[/LEN][:PORT]`, `sport|dport [OP] [:]PORT`, `dev`, `fwmark`, `autobound`, `not`, parentheses, `and`
(which may be left out) and `or`. As in ss the operators have no precedence: `a or b and c` is `(a or b) and c`; src and dst know `=` only; a port
may be a name of /etc/services. Families that a stack does not have (udp, unix, ...) are understood and have no sockets.
"""

from __future__ import annotations

import ipaddress
import operator
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Test = Callable[[Row], bool]

CLOSE, LISTEN, SYN_RECV, NEW_SYN_RECV, TIME_WAIT = 7, 10, 3, 12, 6
ALL = frozenset(range(1, 12))
CONNECTED = ALL - {LISTEN, CLOSE, TIME_WAIT, SYN_RECV}
_STATES = {
    "established": 1, "syn-sent": 2, "syn-recv": 3, "syn-rcv": 3, "fin-wait-1": 4, "fin-wait-2": 5, "time-wait": 6, "unconnected": 7, "close": 7,
    "closed": 7, "close-wait": 8, "last-ack": 9, "listening": 10, "closing": 11,
}
_GROUPS = {
    "all": ALL, "connected": ALL - {LISTEN, CLOSE}, "synchronized": ALL - {LISTEN, CLOSE, 2}, "bucket": frozenset({SYN_RECV, TIME_WAIT}),
    "big": ALL - {SYN_RECV, TIME_WAIT},
}
_LONG = {
    "numeric": "n", "resolve": "r", "all": "a", "listening": "l", "options": "o", "extended": "e", "memory": "m", "processes": "p", "threads": "T",
    "info": "i", "summary": "s", "bpf": "b", "ipv4": "4", "ipv6": "6", "packet": "0", "tcp": "t", "mptcp": "M", "sctp": "S", "udp": "u",
    "dccp": "d", "raw": "w", "unix": "x", "no-header": "H", "oneline": "O", "family": "f", "query": "A", "socket": "A", "filter": "F",
    "tipc": "tipc", "vsock": "vsock", "xdp": "xdp", "tos": "tos", "cgroup": "cgroup", "version": "V",
}
_PLAIN = frozenset("nralompTisb")
_FAMILIES = {
    "u": ("udp",), "d": ("dccp",), "w": ("raw",), "S": ("sctp",), "M": ("mptcp",), "0": ("packet_raw", "packet_dgram"), "tipc": ("tipc",),
    "xdp": ("xdp",), "x": ("unix_dgram", "unix_stream", "unix_seqpacket"), "vsock": ("vsock_stream", "vsock_dgram"),
}
_QUERIES = frozenset({"all", "inet", "tcp", "mptcp", "udp", "raw", "unix", "unix_dgram", "unix_stream", "unix_seqpacket", "packet", "packet_raw",
                      "packet_dgram", "netlink", "dccp", "sctp", "vsock_stream", "vsock_dgram", "tipc", "xdp"})
_USUAL = {"udp": frozenset({1}), "raw": frozenset({1}), **dict.fromkeys(("packet_raw", "packet_dgram", "netlink", "xdp"), frozenset({CLOSE}))}
_INET = frozenset({"tcp", "udp", "raw", "mptcp", "dccp", "sctp"})


class UsageError(ValueError):
    """The words are not ss's."""


@dataclass
class Query:
    """What the words of the command line ask for. `flags`: the letters given (and `tos`, `cgroup`)."""

    flags: set[str] = field(default_factory=set)
    states: frozenset[int] = frozenset()
    test: Test | None = None
    tables: set[str] = field(default_factory=set)
    ipv4: bool = True

    @property
    def has_tcp(self) -> bool:
        return self.ipv4 and (not self.tables or "tcp" in self.tables)

    @property
    def shows_netid(self) -> bool:
        """The column of the socket's kind is left out when one kind was asked for."""
        return len(self.tables) != 1

    @property
    def shows_state(self) -> bool:
        return len(self.states) > 1

    @property
    def shows_options(self) -> bool:
        """Timers, and what was negotiated among the words of -i."""
        return bool(self.flags & {"o", "e", "b"})

    def wants(self, row: Row) -> bool:
        state = SYN_RECV if row["state"] == NEW_SYN_RECV else row["state"]
        return self.has_tcp and state in self.states and (self.test is None or self.test(row))


def parse(args: str | Sequence[str]) -> Query:
    """The words of an ss command line. UsageError for what ss does not know either."""
    words = shlex.split(args) if isinstance(args, str) else list(args)
    query = Query()
    rest = list(_options(words, query))
    at = 0
    chosen: frozenset[int] | None = None
    while at < len(rest) and rest[at] in ("state", "exclude", "excl"):
        if at + 1 == len(rest):
            raise UsageError(f"ss: {rest[at]} needs the name of a state")
        states = _state(rest[at + 1])
        if rest[at] == "state":
            chosen = (chosen or frozenset()) | states
        else:
            chosen = (ALL if chosen is None else chosen) - states
        at += 2
    if chosen is not None:
        query.states = chosen
    elif not query.flags & {"a", "l"}:
        query.states = frozenset().union(*(_USUAL.get(t, CONNECTED) for t in query.tables or {"tcp"}))
    words = [w for part in rest[at:] for w in part.split()]
    if words:
        # The kernel filters, and ss does again what came: their ideas of "autobound" differ, and both must hold.
        query.test = _both(_Expression(words, _port_not_chosen).whole(), _Expression(words, _port_is_ephemeral).whole())
    return query


def _state(word: str) -> frozenset[int]:
    low = word.lower()
    if low in _GROUPS:
        return _GROUPS[low]
    if low in _STATES:
        return frozenset({_STATES[low]})
    raise UsageError(f"ss: wrong state name: {word}")


# ---- options -----------------------------------------------------------------------------------------------------------------------


def _options(words: Sequence[str], query: Query) -> Iterator[str]:
    """Takes the options out, wherever they stand, and yields the other words."""
    left = iter(words)
    for word in left:
        if word == "--":
            yield from left
        elif word.startswith("--"):
            name, eq, value = word[2:].partition("=")
            letter = _LONG.get(name) or _abbreviated(name)
            if letter in ("f", "A", "F"):
                _valued(query, letter, value if eq else next(left, None))
            else:
                _flag(query, letter)
        elif word.startswith("-") and len(word) > 1:
            for i, letter in enumerate(word[1:], 2):
                if letter in "fAF":
                    _valued(query, letter, word[i:] or next(left, None))
                    break
                _flag(query, letter)
        else:
            yield word


def _abbreviated(name: str) -> str:
    found = {v for k, v in _LONG.items() if k.startswith(name)}
    if len(found) != 1:
        raise UsageError(f"ss: unrecognized option '--{name}'")
    return found.pop()


def _flag(query: Query, letter: str) -> None:
    if letter == "a":
        query.states = ALL
    elif letter == "l":
        query.states = frozenset({LISTEN, CLOSE})
    elif letter == "t":
        query.tables.add("tcp")
    elif letter == "6":
        query.ipv4 = False
    elif letter in _FAMILIES:
        query.tables.update(_FAMILIES[letter])
    elif letter not in _PLAIN and letter not in ("4", "e", "H", "O", "V", "tos", "cgroup"):
        raise UsageError(f"ss: invalid option -- '{letter}'")
    query.flags.add(letter)


def _valued(query: Query, letter: str, value: str | None) -> None:
    if value is None:
        raise UsageError(f"ss: option requires an argument -- '{letter}'")
    if letter == "F":
        raise UsageError("ss: filters from a file are not read: write the expression")
    if letter == "f":
        if value not in ("inet", "inet6", "link", "unix", "netlink", "vsock", "tipc", "xdp"):
            raise UsageError(f'ss: "{value}" is invalid family')
        query.ipv4 = value == "inet"
        return
    for name in value.split(","):
        if name not in _QUERIES:
            raise UsageError(f'ss: "{name}" is illegal socket table id')
        query.tables |= _INET if name == "inet" else _QUERIES - {"all", "inet"} if name == "all" else {name}


# ---- filter expressions --------------------------------------------------------------------------------------------------------------

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    word: test for words, test in (
        ("= == eq", operator.eq), ("!= ne neq", operator.ne), ("> gt", operator.gt), ("< lt", operator.lt),
        (">= ge geq", operator.ge), ("<= le leq", operator.le)) for word in words.split()
}
_AND, _OR, _NOT = ("and", "&", "&&"), ("or", "|", "||"), ("not", "!")
_BINDPORT_LOCK = 8
_EPHEMERAL = range(32768, 61000)


def _port_not_chosen(row: Row) -> bool:
    return not row.get("userlocks", 0) & _BINDPORT_LOCK


def _port_is_ephemeral(row: Row) -> bool:
    return row["lport"] in _EPHEMERAL


class _Expression:
    """Recursive descent over the words."""

    def __init__(self, words: list[str], autobound: Test) -> None:
        self._words = words
        self._autobound = autobound
        self._at = 0

    def whole(self) -> Test:
        test = self._list()
        if self._at < len(self._words):
            raise _syntax()
        return test

    def _peek(self) -> str | None:
        return self._words[self._at] if self._at < len(self._words) else None

    def _take(self) -> str:
        word = self._peek()
        if word is None:
            raise _syntax()
        self._at += 1
        return word

    def _list(self) -> Test:
        test = self._one()
        while (word := self._peek()) not in (None, ")"):
            either = word in _OR
            if either or word in _AND:
                self._at += 1
            test = _either(test, self._one()) if either else _both(test, self._one())
        return test

    def _one(self) -> Test:
        word = self._take()
        if word in _NOT:
            inner = self._one()
            return lambda row: not inner(row)
        if word == "(":
            test = self._list()
            if self._take() != ")":
                raise _syntax()
            return test
        if word in ("sport", "dport"):
            return self._port("lport" if word == "sport" else "fport")
        if word in ("src", "dst"):
            return self._place("l" if word == "src" else "f")
        if word == "autobound":
            return self._autobound
        if word == "dev":
            differs = self._operator() is operator.ne
            self._take()
            return lambda row: differs              # no socket of a stack is bound to a device
        if word == "fwmark":
            return self._mark()
        if word == "cgroup":
            raise UsageError("ss: sockets of a stack are not filtered by cgroup")
        _address(word)
        raise _syntax()

    def _operator(self) -> Callable[[int, int], bool]:
        word = self._peek()
        if word is None:
            raise _syntax()
        if word in _OPERATORS:
            self._at += 1
            return _OPERATORS[word]
        return operator.eq

    def _port(self, key: str) -> Test:
        compare = self._operator()
        wanted = _port(self._take().removeprefix(":"))
        return lambda row: wanted is None or compare(row[key], wanted)

    def _place(self, side: str) -> Test:
        if self._operator() is not operator.eq:
            raise _syntax()
        host, colon, port = self._take().rpartition(":")
        if not colon:
            host, port = port, ""
        network = _address(host)
        wanted = _port(port)
        addr_key, port_key = side + "addr", side + "port"

        def test(row: Row) -> bool:
            if wanted is not None and row[port_key] != wanted:
                return False
            return network is None or ipaddress.IPv4Address(row[addr_key]) in network
        return test

    def _mark(self) -> Test:
        differs = self._operator() is operator.ne
        text, _, mask_text = self._take().partition("/")
        try:
            value, mask = int(text, 0), int(mask_text, 0) if mask_text else 0xFFFFFFFF
        except ValueError:
            raise _syntax() from None
        return lambda row: (row.get("mark", 0) & mask == value) is not differs


def _syntax() -> UsageError:
    return UsageError('ss: bison bellows (while parsing filter): "syntax error!" Sorry.')


def _both(a: Test, b: Test) -> Test:
    return lambda row: a(row) and b(row)


def _either(a: Test, b: Test) -> Test:
    return lambda row: a(row) or b(row)


def _port(text: str) -> int | None:
    """None: any."""
    if text in ("", "*"):
        return None
    try:
        return int(text, 0)
    except ValueError:
        try:
            return socket.getservbyname(text)
        except OSError:
            raise UsageError(f'Error: "{text}" does not look like a port.') from None


def _address(text: str) -> ipaddress.IPv4Network | None:
    """None: any. As for `ip`, missing numbers at the end are zero."""
    if text in ("", "*", "any", "all", "default"):
        return None
    host, slash, plen = text.removeprefix("inet:").partition("/")
    numbers = host.split(".")
    try:
        if not 1 <= len(numbers) <= 4:
            raise ValueError(host)
        full = ".".join(str(int(n)) for n in numbers) + ".0" * (4 - len(numbers))
        return ipaddress.IPv4Network(f"{full}/{plen if slash else 32}", strict=False)
    except ValueError:
        raise UsageError(f'Error: an inet prefix is expected rather than "{text}".') from None
