"""Sysctls by their Linux names: text in, text out, as /proc/sys has them.

Names: `net.ipv4.tcp_syncookies`, `net/ipv4/tcp_syncookies` or `/proc/sys/net/ipv4/tcp_syncookies`. The numeric ones live in the core's table
(core/config.pxd: defaults, ranges); this file adds the string-valued and read-only ones. Errors are the kernel's: ENOENT for an unknown name,
EINVAL for a value out of range, EPERM for a read-only one. `net.ipv6.*` writes are accepted and do nothing (ustack has no IPv6).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING

from ustack import _fastpath
from ustack.errors import failure

if TYPE_CHECKING:
    from ustack._fastpath import Engine

_PORT_RANGE = "net.ipv4.ip_local_port_range"
_ROWS: dict[str, list[tuple[int, int, int]]] = {}
for _i, (_name, _pos, _default, _low, _high) in enumerate(_fastpath.sysctl_table_rows()):
    _ROWS.setdefault(_name, []).append((_i, _low, _high))

#: written as one byte in the kernel: a write of several numbers, or of text, is EINVAL
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
    words = text.split("-")
    if len(words) != 4 or not all(re.fullmatch(r"[0-9a-fA-F]{1,8}", w) for w in words):
        raise failure(errno.EINVAL, f"a Fast Open key reads xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx, not {text!r}")
    return b"".join(int(w, 16).to_bytes(4, "little") for w in words)


def _key_get(engine: Engine) -> str:
    primary, backup = _fastpath.fastopen_keys(engine)
    text = _format_key(primary or bytes(16))
    return f"{text},{_format_key(backup)}" if backup else text


def _key_set(engine: Engine, value: str) -> None:
    primary, _, backup = value.strip().partition(",")
    _fastpath.fastopen_keys(engine, _parse_key(primary), _parse_key(backup) if backup else None)


def _ports_get(engine: Engine) -> str:
    ports = _fastpath.reserved_ports(engine)
    runs: list[list[int]] = []
    for port in ports:
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _ports_set(engine: Engine, value: str) -> None:
    ports: set[int] = set()
    for part in filter(None, value.strip().split(",")):
        low, _, high = part.partition("-")
        try:
            a, b = int(low), int(high or low)
        except ValueError:
            raise failure(errno.EINVAL, f"{part!r} is not a port or a range of ports") from None
        if not 0 <= a <= b <= 65535:
            raise failure(errno.EINVAL, f"{part!r} is not a port or a range of ports")
        ports.update(range(a, b + 1))
    _fastpath.reserved_ports(engine, ports)


def _cc_set(engine: Engine, value: str) -> None:
    _fastpath.default_cc(engine, value.strip())


_BUILT_IN_CC = "reno cubic bbr"

_TEXT: dict[str, tuple[Callable[[Engine], str], Callable[[Engine, str], None] | None]] = {
    "net.ipv4.tcp_congestion_control": (lambda e: _fastpath.default_cc(e), _cc_set),
    "net.ipv4.tcp_available_congestion_control": (lambda e: _BUILT_IN_CC, None),
    "net.ipv4.tcp_allowed_congestion_control": (lambda e: _BUILT_IN_CC, lambda e, v: None),
    "net.ipv4.tcp_fastopen_key": (_key_get, _key_set),
    "net.ipv4.ip_local_reserved_ports": (_ports_get, _ports_set),
    "net.ipv4.tcp_ehash_entries": (lambda e: str(_fastpath.ehash_entries(e)), None),
}


def sysctl_get(engine: Engine, name: str) -> str:
    """The value as text, several numbers separated by tabs. OSError(ENOENT) for an unknown name."""
    key = canonical(name)
    if key in _TEXT:
        return _TEXT[key][0](engine)
    if key in _ROWS:
        return "\t".join(str(_fastpath.sysctl_read(engine, row)) for row, _, _ in _ROWS[key])
    raise failure(errno.ENOENT, f"sysctl {name}")


def _numbers(key: str, value: object) -> list[int]:
    """As many numbers as the sysctl has; what stands behind them is not looked at."""
    words = re.split(r"[\s,]+", str(value).strip()) if not isinstance(value, (tuple, list)) else [str(v) for v in value]
    try:
        return [int(w, 0) for w in words[:len(_ROWS[key])] if w != ""]
    except ValueError:
        raise failure(errno.EINVAL, f"sysctl {key} takes a number, not {value!r}") from None


def _check_port_range(engine: Engine, numbers: list[int]) -> None:
    """The range must not be empty nor reach below the unprivileged ports."""
    low = numbers[0]
    high = numbers[1] if len(numbers) > 1 else int(sysctl_get(engine, _PORT_RANGE).split()[1])
    if high < low or low < int(sysctl_get(engine, "net.ipv4.ip_unprivileged_port_start")):
        raise failure(errno.EINVAL, f"{low} to {high} is no range of unprivileged ports")


def sysctl_set(engine: Engine, name: str, value: object) -> None:
    """Write a value: an int, a bool, a sequence, or text as one would echo it into /proc/sys."""
    key = canonical(name)
    if key.startswith("net.ipv6."):
        return
    if key in _TEXT:
        setter = _TEXT[key][1]
        if setter is None:
            raise failure(errno.EPERM, f"sysctl {name} is read-only")
        setter(engine, str(value))
        return
    if key not in _ROWS:
        raise failure(errno.ENOENT, f"sysctl {name}")
    if isinstance(value, bool):
        value = int(value)
    numbers = _numbers(key, value)
    rows = _ROWS[key]
    if not numbers:
        raise failure(errno.EINVAL, f"sysctl {name} takes {len(rows)} number(s), not {value!r}")
    for n, (_, low, high) in zip(numbers, rows, strict=False):
        if not low <= n <= high:
            raise failure(errno.EINVAL, f"sysctl {name}: {n} is not between {low} and {high}")
    if key == _PORT_RANGE:
        _check_port_range(engine, numbers)
    for n, (row, _, _) in zip(numbers, rows, strict=False):
        _fastpath.sysctl_write(engine, row, n)


def sysctl_names() -> list[str]:
    """Every name, sorted."""
    return sorted([*_ROWS, *_TEXT])


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
        return isinstance(name, str) and (canonical(name) in _ROWS or canonical(name) in _TEXT)

    def __iter__(self) -> Iterator[str]:
        return iter(sysctl_names())

    def __len__(self) -> int:
        return len(_ROWS) + len(_TEXT)
