"""The `--name=value` settings of a run: defaults, the script's own option lines, the command line.

One table (`SETTINGS`) says which names exist and how their values are read; the command line's
options are made from the same table, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ustack.drill.codec import address
from ustack.drill.nodes import EXTENSIONS, OptionLine, Script
from ustack.drill.parse import ScriptSyntaxError
from ustack.drill.source import parse_define


def _flag(text: str | None) -> bool:
    if text not in (None, "", "0", "1", "true", "false"):
        raise ValueError(f"not yes or no: {text!r}")
    return text not in ("0", "false")


def _number(low: int, high: int) -> Callable[[str | None], int]:
    def read(text: str | None) -> int:
        value = int(text or "", 0)
        if not low <= value <= high:
            raise ValueError(f"{value} is not within {low}..{high}")
        return value
    return read


def _percent(text: str | None) -> float:
    value = float(text or "")
    if not 0 <= value <= 100:
        raise ValueError(f"{value} is not a percentage")
    return value


def _ipv4(text: str | None) -> str:
    address(text or "")
    return text or ""


def _ip_version(text: str | None) -> str:
    if text not in ("ipv4", "ipv4-mapped-ipv6", "ipv6"):
        raise ValueError(f"not an IP version: {text!r}")
    return text


def _non_fatal(text: str | None) -> frozenset[str]:
    kinds = frozenset((text or "").split(","))
    if not kinds <= {"packet", "syscall"}:
        raise ValueError(f"only packet and syscall can be non-fatal, not {text!r}")
    return kinds


@dataclass(frozen=True, slots=True)
class Options:
    """Field names are the option names; times in microseconds as they are written."""

    ip_version: str = "ipv4"
    local_ip: str = "192.168.0.1"
    remote_ip: str = "192.0.2.1"
    gateway_ip: str = "192.168.0.2"
    netmask_ip: str = "255.255.0.0"
    bind_port: int = 8080
    connect_port: int = 8080
    mtu: int = 1500
    mss: int = 0
    speed: int = 0
    tolerance_usecs: int = 4000
    tolerance_percent: float = 12.5
    tcp_ts_tick_usecs: int = 0
    tcp_ts_ecr_scaled: bool = False
    strict_segments: bool = False
    send_omit_free: bool = False        # no effect: the interpreter keeps no buffer of what it sends
    non_fatal: frozenset[str] = field(default_factory=frozenset)
    ustack_extensions: bool = False
    # Not of the language: what only the command line has.
    strict: bool = False
    sysctl: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def prefix_length(self) -> int:
        bits = int.from_bytes(address(self.netmask_ip), "big")
        return bits.bit_count()


SETTINGS: dict[str, Callable[[str | None], Any]] = {
    "ip_version": _ip_version,
    "local_ip": _ipv4,
    "remote_ip": _ipv4,
    "gateway_ip": _ipv4,
    "netmask_ip": _ipv4,
    "bind_port": _number(1, 65535),
    "connect_port": _number(1, 65535),
    "mtu": _number(68, 65535),
    "mss": _number(0, 65495),
    "speed": _number(0, 1 << 31),
    "tolerance_usecs": _number(1, 1 << 31),
    "tolerance_percent": _percent,
    "tcp_ts_tick_usecs": _number(0, 1_000_000),
    "tcp_ts_ecr_scaled": _flag,
    "strict_segments": _flag,
    "send_omit_free": _flag,
    "non_fatal": _non_fatal,
    EXTENSIONS: _flag,
}
FLAGS = frozenset(name for name, read in SETTINGS.items() if read is _flag)

# Settings of the reference tool that mean nothing on virtual time and an in-process stack.
_IGNORED = frozenset({"verbose", "debug", "dry_run", "no_cleanup", "define", "no_send_omit_free"})
# Features of the reference tool that are not built: a script that asks for them is skipped.
_NOT_BUILT = frozenset({"udp_encapsulation", "tcp_md5_secret", "mptcp", "wire_client", "wire_server"})

assert SETTINGS.keys() <= {f.name for f in fields(Options)}


class UnsupportedError(Exception):
    """The script asks for something this interpreter does not have: skipped, never passed."""


def read_setting(name: str, value: str | None) -> Any:
    """The value of one setting as written; ValueError if it does not fit."""
    return SETTINGS[name](value)


def merge(script: Script, base: Options, command_line: Mapping[str, Any]) -> Options:
    """Defaults, then the script's lines, then the command line (which wins)."""
    found: dict[str, Any] = {}
    for line in script.options:
        _read_line(script.path, line, found)
    options = replace(base, **{**found, **command_line})
    if options.ip_version != "ipv4":
        raise UnsupportedError(f"--ip_version={options.ip_version}: only IPv4 is built")
    return options


def _read_line(path: str, line: OptionLine, found: dict[str, Any]) -> None:
    if line.name in _NOT_BUILT:
        raise UnsupportedError(f"--{line.name} is not built")
    try:
        if line.name == "define":
            parse_define(line.value or "")
        elif line.name in SETTINGS:
            found[line.name] = read_setting(line.name, line.value)
        elif line.name not in _IGNORED:
            raise ValueError("no such option")
    except ValueError as error:
        raise ScriptSyntaxError(path, line.pos, f"--{line.name}: {error}") from None
