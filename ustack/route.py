"""The words of `ip route` and `ip addr`, as far as a stack with one link needs them."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from ustack.errors import failure

_OPS = {"add": 1, "append": 1, "change": 2, "replace": 3, "del": 4, "delete": 4}
_TYPES = {"local": 1, "unicast": 2, "broadcast": 3, "multicast": 4, "unreachable": 5, "blackhole": 6, "prohibit": 7}
_NUMBERS = {
    "mtu": "mtu", "advmss": "advmss", "window": "window", "initcwnd": "initcwnd", "initrwnd": "initrwnd", "ssthresh": "ssthresh",
    "cwnd": "cwnd", "reordering": "reordering", "hoplimit": "hoplimit", "quickack": "quickack",
    "fastopen_no_cookie": "fastopen_no_cookie",
}
_LOCKS = {"rtt": 1, "rttvar": 2, "ssthresh": 4, "cwnd": 8, "reordering": 16}
_TIMES = {"rto_min": "rto_min_ms", "rtt": "rtt_ms", "rttvar": "rttvar_ms"}
_IGNORED = {"dev", "via", "proto", "scope", "metric", "table", "pref", "preference", "tos", "src_port"}
_FEATURES = {"ecn": 1, "tcp_usec_ts": 2}


def _address(text: str) -> int:
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isdigit() and int(p) <= 255 for p in parts):
        raise failure(errno.EINVAL, f"{text!r} is not an IPv4 address")
    value = 0
    for part in parts:
        value = value << 8 | int(part)
    return value


def _prefix(text: str) -> tuple[int, int]:
    if text == "default":
        return 0, 0
    host, _, length = text.partition("/")
    plen = int(length) if length.isdigit() else 32
    if plen > 32:
        raise failure(errno.EINVAL, f"{text!r}: a prefix length is at most 32")
    return _address(host), plen


def _milliseconds(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)?", text)
    if match is None:
        raise failure(errno.EINVAL, f"{text!r} is not a time")
    scale = {"us": 0.001, "ms": 1, "s": 1000, None: 1}[match[2]]
    return round(float(match[1]) * scale)


def parse_address(text: str) -> tuple[int, int]:
    """(address, prefix length) of "192.0.2.3/24 dev tun0"."""
    return _prefix(text.split()[0])


def parse_route(command: str, controls: Sequence[str] = ("reno", "cubic", "bbr")) -> tuple[int, dict[str, int]]:
    """(operation, fields for the core) of `ip route`'s words after "route"; OSError(EINVAL) names the word not understood. controls: the
    congestion controls that congctl may name, in the engine's order."""
    words = command.split()
    if not words or words[0] not in _OPS:
        raise failure(errno.EINVAL, f"{command!r}: a route command begins with add, change, replace or del")
    op = _OPS[words.pop(0)]
    fields: dict[str, int] = {}
    if words and words[0] in _TYPES:
        fields["type"] = _TYPES[words.pop(0)]
    if words and words[0] == "to":
        words.pop(0)
    if not words:
        raise failure(errno.EINVAL, f"{command!r}: which prefix?")
    fields["dst"], fields["plen"] = _prefix(words.pop(0))
    while words:
        word = words.pop(0)
        if word == "onlink":
            continue
        if not words:
            raise failure(errno.EINVAL, f"{command!r}: {word!r} wants a value")
        value = words.pop(0)
        if word in _IGNORED:
            continue
        locked = value == "lock" and bool(words)
        if locked:
            value = words.pop(0)
            if word in _LOCKS:
                fields["metric_lock"] = fields.get("metric_lock", 0) | _LOCKS[word]
        if word in _NUMBERS and value.isdigit():
            fields[_NUMBERS[word]] = int(value)
            if word == "mtu" and locked:
                fields["mtu_lock"] = 1
        elif word in _TIMES:
            fields[_TIMES[word]] = _milliseconds(value)
        elif word == "src":
            fields["src"] = _address(value)
        elif word == "features" and value in _FEATURES:
            fields["features"] = fields.get("features", 0) | _FEATURES[value]
        elif word == "congctl" and value in controls:
            fields["cc"] = controls.index(value) + 1
        else:
            raise failure(errno.EINVAL, f"{command!r}: {word!r} {value!r} is not understood")
    return op, fields
