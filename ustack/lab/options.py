"""Names and value forms of socket options, errnos, addresses and payloads, as recordings write them."""

from __future__ import annotations

import errno as errnos
import hashlib
import socket
from itertools import groupby
from typing import Any

from . import errors

LEVELS = {"SO_": ("SOL_SOCKET", 1), "IP_": ("IPPROTO_IP", 0), "TCP_": ("IPPROTO_TCP", 6)}
NUMBERS = {
    "SO_ACCEPTCONN": 30, "SO_ERROR": 4, "SO_LINGER": 13, "SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21, "SO_RCVLOWAT": 18, "SO_OOBINLINE": 10,
    "SO_SNDBUF": 7, "SO_RCVBUF": 8, "SO_SNDBUFFORCE": 32, "SO_RCVBUFFORCE": 33, "SO_TIMESTAMP": 29, "SO_BUSY_POLL": 46,
    "SO_ZEROCOPY": 60, "SO_TYPE": 3, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "IP_PKTINFO": 8, "IP_RECVTTL": 12, "IP_RECVTOS": 13, "TCP_REPAIR": 19,
    "SO_MAX_PACING_RATE": 47, "SO_INCOMING_CPU": 49, "SO_REUSEPORT": 15, "SO_MEMINFO": 55,
    "IP_TOS": 1, "IP_TTL": 2, "IP_RECVERR": 11, "IP_MTU_DISCOVER": 10, "IP_MTU": 14, "IP_MINTTL": 21, "IP_FREEBIND": 15,
    "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_CORK": 3, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_SYNCNT": 7,
    "TCP_LINGER2": 8, "TCP_DEFER_ACCEPT": 9, "TCP_WINDOW_CLAMP": 10, "TCP_INFO": 11, "TCP_QUICKACK": 12, "TCP_CONGESTION": 13,
    "TCP_USER_TIMEOUT": 18, "TCP_FASTOPEN": 23, "TCP_TIMESTAMP": 24, "TCP_NOTSENT_LOWAT": 25, "TCP_SAVE_SYN": 27, "TCP_SAVED_SYN": 28,
    "TCP_FASTOPEN_KEY": 33, "TCP_FASTOPEN_NO_COOKIE": 34, "TCP_INQ": 36, "TCP_RTO_MAX_MS": 44, "TCP_RTO_MIN_US": 45, "TCP_DELACK_MAX_US": 46,
}
RUNS, HEX_LIMIT = 12, 96


def option(name: str) -> tuple[str, int, int]:
    """(level's name, level, number) of an option."""
    for prefix, (level_name, level) in LEVELS.items():
        if name.startswith(prefix):
            number = NUMBERS.get(name, getattr(socket, name, None))
            if number is not None:
                return level_name, level, int(number)
    raise errors.ScenarioError(f"unknown socket option {name}")


def value(text: str) -> Any:
    """The value of an option as a scenario writes it: 5, hex:00ff, "cubic", linger 1/0 as onoff/seconds, 0.2s as a timeout."""
    if text.startswith("hex:"):
        return {"hex": text[4:]}
    if text.endswith("s") and text[:-1].replace(".", "", 1).isdigit():
        whole = float(text[:-1])
        return {"sec": int(whole), "usec": round((whole - int(whole)) * 1_000_000)}
    if "/" in text:
        onoff, linger = text.split("/")
        return {"onoff": int(onoff), "linger": int(linger)}
    try:
        return int(text, 0)
    except ValueError:
        return {"hex": text.encode().hex(), "len": 16}


def errno_text(code: int) -> str | None:
    return errnos.errorcode.get(code, str(code)) if code else None


def errno_name(e: OSError) -> str:
    return errno_text(e.errno or 0) or "EIO"


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "0.0.0.0", int(port)


def place(addr: tuple[str, int]) -> str:
    return f"{addr[0]}:{addr[1]}"


def payload_form(data: bytes, exact: bool = False) -> dict[str, Any]:
    if not data:
        return {"len": 0, "hex": ""}
    if len(set(data)) == 1 and len(data) > 1:
        return {"len": len(data), "repeat": f"{data[0]:02x}"}
    if len(data) <= HEX_LIMIT:
        return {"len": len(data), "hex": data.hex()}
    runs = [[f"{byte:02x}", sum(1 for _ in same)] for byte, same in groupby(data)]
    if len(runs) <= RUNS:
        return {"len": len(data), "runs": runs}
    if exact:
        return {"len": len(data), "hex": data.hex()}
    return {"len": len(data), "first": data[:16].hex(), "sha256": hashlib.sha256(data).hexdigest()}
