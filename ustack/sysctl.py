"""Sysctls by their Linux names: text in, text out, as /proc/sys has them.

Names: `net.ipv4.tcp_syncookies`, `net/ipv4/tcp_syncookies` or `/proc/sys/net/ipv4/tcp_syncookies`. The numeric ones live in the core's table
(core/config.pxd: defaults, ranges); this file adds the string-valued and read-only ones and reads text as the kernel does: numbers in base 10, 0x
or 0, apart by white space; what stands behind the last one wanted is not looked at; of several numbers the good ones before a bad one are
stored; an empty write does nothing. Errors are the kernel's: ENOENT for an unknown name, EINVAL for a value out of range, EACCES for a read-only
one. `net.ipv6.*` writes are accepted and do nothing (ustack has no IPv6); what decides nothing here is kept (ustack/_sysctl_inert.py).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING

from ustack import _fastpath, _sysctl_inert, congestion
from ustack.errors import failure

if TYPE_CHECKING:
    from ustack._fastpath import Engine

_PORT_RANGE = "net.ipv4.ip_local_port_range"
_UNPRIVILEGED = "net.ipv4.ip_unprivileged_port_start"
_FRAG_HIGH, _FRAG_LOW = "net.ipv4.ipfrag_high_thresh", "net.ipv4.ipfrag_low_thresh"
#: milliseconds that the kernel stores in ticks of 4 ms, rounded up
_IN_TICKS = frozenset({"net.ipv4.icmp_ratelimit", "net.ipv4.tcp_invalid_ratelimit"})
_TICK_MS = 4
_NUMBER = re.compile(r"\s*(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?=[ \t\n]|$)")
_ROWS: dict[str, list[tuple[int, int, int]]] = {}
for _i, (_name, _pos, _default, _low, _high) in enumerate(_fastpath.sysctl_table_rows()):
    _ROWS.setdefault(_name, []).append((_i, _low, _high))

_DEVICE = re.compile(r"^net\.ipv4\.conf\.(?!all\.|default\.)[^.]+\.")


def canonical(name: str) -> str:
    """`net.ipv4.x` for any of the spellings; a device's conf.<dev> entry is the default's."""
    name = name.strip()
    if name.startswith("/proc/sys/"):
        name = name[len("/proc/sys/") :]
    if not name.startswith("/sys/"):
        name = name.replace("/", ".")
    return _DEVICE.sub("net.ipv4.conf.default.", name)


def _format_key(key: bytes) -> str:
    words = [int.from_bytes(key[i : i + 4], "little") for i in range(0, 16, 4)]
    return "-".join(f"{w:08x}" for w in words)


def _parse_key(text: str) -> bytes:
    found = re.match(r"([0-9a-fA-F]+)-([0-9a-fA-F]+)-([0-9a-fA-F]+)-([0-9a-fA-F]+)", text)
    if not found:
        raise failure(errno.EINVAL, f"a Fast Open key reads xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx, not {text!r}")
    return b"".join((int(w, 16) & 0xFFFFFFFF).to_bytes(4, "little") for w in found.groups())


def _key_get(engine: Engine) -> str:
    primary, backup = _fastpath.fastopen_keys(engine)
    text = _format_key(primary or bytes(16))
    return f"{text},{_format_key(backup)}" if backup else text


def _key_set(engine: Engine, value: str) -> None:
    primary, comma, backup = value.strip().partition(",")
    _fastpath.fastopen_keys(engine, _parse_key(primary), _parse_key(backup) if comma else None)


def _ports_get(engine: Engine) -> str:
    ports = _fastpath.reserved_ports(engine)
    runs: list[list[int]] = []
    for port in ports:
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _port(text: str) -> int:
    found = _NUMBER.fullmatch(text)
    if not found or found[1] or text[:1].isspace() or _decimal(found[2]) > 65535:
        raise failure(errno.EINVAL, f"{text!r} is not a port")
    return _decimal(found[2])


def _ports_set(engine: Engine, value: str) -> None:
    """A comma-separated list of ports and ranges; an empty line clears it."""
    ports: set[int] = set()
    parts = re.split("[,\n]", value)
    if not parts[-1]:
        parts.pop()
    for part in parts if value != "\n" else []:
        low, dash, high = part.partition("-")
        a = _port(low)
        b = _port(high) if dash else a
        if a > b:
            raise failure(errno.EINVAL, f"{part!r} is not a range of ports")
        ports.update(range(a, b + 1))
    _fastpath.reserved_ports(engine, ports)


def _cc_set(engine: Engine, value: str) -> None:
    congestion.provide(engine, value)
    _fastpath.default_cc(engine, value.partition("\n")[0])


def _cc_names(engine: Engine) -> str:
    """In the kernel's order, which is that of registration: bbr before cubic."""
    names = _fastpath.cc_names(engine)
    return " ".join(["reno", "bbr", "cubic", *names[3:]])


_TEXT: dict[str, tuple[Callable[[Engine], str], Callable[[Engine, str], None] | None]] = {
    "net.ipv4.tcp_congestion_control": (lambda e: _fastpath.default_cc(e), _cc_set),
    "net.ipv4.tcp_available_congestion_control": (_cc_names, None),
    "net.ipv4.tcp_allowed_congestion_control": (_cc_names, lambda e, v: None),
    "net.ipv4.tcp_fastopen_key": (_key_get, _key_set),
    "net.ipv4.ip_local_reserved_ports": (_ports_get, _ports_set),
    "net.ipv4.tcp_ehash_entries": (lambda e: str(_fastpath.ehash_entries(e)), None),
}


SWITCHES: dict[str, Callable[[Engine], None]] = {"net.ipv4.route.flush": _fastpath.flush_route_cache}      # written to, never read


def sysctl_get(engine: Engine, name: str) -> str:
    """The value as text, several numbers separated by tabs. OSError(ENOENT) for an unknown name, EACCES for one that can only be written."""
    key = canonical(name)
    if key in SWITCHES:
        raise failure(errno.EACCES, f"sysctl {name} is write-only")
    if key in _TEXT:
        return _TEXT[key][0](engine)
    if key in _ROWS:
        return "\t".join(str(_fastpath.sysctl_read(engine, row)) for row, _, _ in _ROWS[key])
    if key in _sysctl_inert.DEFAULTS:
        return _sysctl_inert.read(engine, key)
    raise failure(errno.ENOENT, f"sysctl {name}")


def _decimal(digits: str) -> int:
    """Base 10, 16 (0x) or 8 (0), as C reads them."""
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    return int(digits, 8 if digits.startswith("0") else 10)


def _numbers(text: str, wanted: int) -> tuple[list[int], bool]:
    """The numbers at the beginning, at most `wanted`; whether something else stood where one was wanted."""
    out: list[int] = []
    at = 0
    while len(out) < wanted:
        found = _NUMBER.match(text, at)
        if not found:
            return out, not out or bool(text[at:].strip())
        out.append(_decimal(found[2]) * (-1 if found[1] else 1))
        at = found.end()
    return out, False


def _check_pairs(engine: Engine, key: str, numbers: list[int]) -> None:
    """Values that are bound to another sysctl's."""
    def now(name: str, position: int = 0) -> int:
        return int(sysctl_get(engine, name).split()[position])

    if key == _PORT_RANGE:
        low, high = numbers[0], numbers[1] if len(numbers) > 1 else now(key, 1)
        if high < low or low < now(_UNPRIVILEGED):
            raise failure(errno.EINVAL, f"{low} to {high} is no range of unprivileged ports")
    elif key == _UNPRIVILEGED and numbers[0] > now(_PORT_RANGE):
        raise failure(errno.EINVAL, f"{numbers[0]} lies within {_PORT_RANGE}")
    elif (key == _FRAG_HIGH and numbers[0] < now(_FRAG_LOW)) or (key == _FRAG_LOW and numbers[0] > now(_FRAG_HIGH)):
        raise failure(errno.EINVAL, f"{_FRAG_LOW} must not exceed {_FRAG_HIGH}")


def _set_numbers(engine: Engine, key: str, text: str) -> None:
    rows = _ROWS[key]
    numbers, bad = _numbers(text, len(rows))
    good = 0
    for n, (_, low, high) in zip(numbers, rows, strict=False):
        if not low <= n <= high:
            break
        good += 1
    failed = bad or good < len(numbers)
    if failed and key == _PORT_RANGE:
        good = 0
    if good:
        _check_pairs(engine, key, numbers)
    for n, (row, _, _) in zip(numbers[:good], rows, strict=False):
        _fastpath.sysctl_write(engine, row, -(-n // _TICK_MS) * _TICK_MS if key in _IN_TICKS else n)
    if failed:
        ranges = ", ".join(f"{low} to {high}" for _, low, high in rows)
        raise failure(errno.EINVAL, f"sysctl {key} takes {len(rows)} number(s), {ranges}, not {text!r}")


def sysctl_set(engine: Engine, name: str, value: object) -> None:
    """Write a value: an int, a bool, a sequence, or text as one would write it into /proc/sys."""
    key = canonical(name)
    if key.startswith("net.ipv6."):
        return
    if isinstance(value, bool):
        value = int(value)
    text = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    if key in _TEXT:
        setter = _TEXT[key][1]
        if setter is None:
            raise failure(errno.EACCES, f"sysctl {name} is read-only")
        if text:
            setter(engine, text)
    elif key in _ROWS:
        if text:
            _set_numbers(engine, key, text)
    elif key in _sysctl_inert.DEFAULTS:
        if key in _sysctl_inert.READ_ONLY:
            raise failure(errno.EACCES, f"sysctl {name} is read-only")
        numbers, bad = _numbers(text, 2)
        if bad and text:
            raise failure(errno.EINVAL, f"sysctl {key} takes a number, not {text!r}")
        _sysctl_inert.write(engine, key, numbers)
    elif key in SWITCHES:
        SWITCHES[key](engine)
    else:
        raise failure(errno.ENOENT, f"sysctl {name}")


def sysctl_names() -> list[str]:
    """Every name that can be read, sorted."""
    return sorted([*_ROWS, *_TEXT, *_sysctl_inert.DEFAULTS])


class Sysctl(MutableMapping[str, str]):
    """`stack.sysctl`: a mapping of Linux names to text."""

    def __init__(self, *engines: Engine) -> None:
        self._engines = engines         # all alike; a write goes to each

    def __getitem__(self, name: str) -> str:
        return sysctl_get(self._engines[0], name)

    def __setitem__(self, name: str, value: object) -> None:
        for engine in self._engines:
            sysctl_set(engine, name, value)

    def __delitem__(self, name: str) -> None:
        raise failure(errno.EPERM, "sysctls cannot be deleted")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonical(name) in _ROWS.keys() | _TEXT.keys() | _sysctl_inert.DEFAULTS.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(sysctl_names())

    def __len__(self) -> int:
        return len(sysctl_names())
