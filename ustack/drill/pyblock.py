"""`%{ python }%` blocks: a snapshot when the event comes, the code after the script has ended.

All blocks of a script share one namespace and run in order, each after the assignment of its own
snapshot's values (language description, section 5).  The code never sees the live stack.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass, field
from typing import Any

from ustack.drill.nodes import Code
from ustack.drill.port import SocketLike
from ustack.drill.state import Failure
from ustack.drill.symbols import PYTHON_NAMES, SYMBOLS
from ustack.observe import tcp_info

_MEMINFO = ("RMEM_ALLOC", "RCVBUF", "WMEM_ALLOC", "SNDBUF", "FWD_ALLOC", "WMEM_QUEUED", "OPTMEM", "BACKLOG",
            "DROPS")
_BBR = ("bbr_bw_lo", "bbr_bw_hi", "bbr_min_rtt", "bbr_pacing_gain", "bbr_cwnd_gain")
_VEGAS = ("vegas_enabled", "vegas_rttcnt", "vegas_rtt", "vegas_minrtt")


@dataclass(frozen=True, slots=True)
class Block:
    """A block and the values it will see."""

    code: Code
    values: dict[str, int] = field(default_factory=dict)


def tcp_info_values(raw: bytes) -> dict[str, int]:
    """`tcpi_*` of struct tcp_info, with the kernel's names: without the unit."""
    return {"tcpi_" + re.sub("_(us|ms)$", "", name): value for name, value in tcp_info.decode(raw).items()}


def _cc_values(sock: SocketLike) -> dict[str, int]:
    """What the congestion control reports about itself, if it does."""
    name = _raw(sock, "TCP_CONGESTION", 16).split(b"\0")[0]
    raw = _raw(sock, "TCP_CC_INFO", 20)
    if name == b"bbr" and len(raw) >= 20:
        return dict(zip(_BBR, struct.unpack_from("=5I", raw), strict=True))
    if name == b"vegas" and len(raw) >= 16:
        return dict(zip(_VEGAS, struct.unpack_from("=4I", raw), strict=True))
    if name == b"dctcp" and len(raw) >= 16:
        names = ("dctcp_enabled", "dctcp_ce_state", "dctcp_alpha", "dctcp_ab_ecn", "dctcp_ab_tot")
        return dict(zip(names, struct.unpack_from("=2H3I", raw), strict=True))
    return {}


def _raw(sock: SocketLike, name: str, size: int) -> bytes:
    level = SYMBOLS["SOL_SOCKET" if name.startswith("SO_") else "SOL_TCP"]
    try:
        value = sock.getsockopt(level, SYMBOLS[name], size)
    except OSError:
        return b""
    return value.to_bytes(4, "little", signed=True) if isinstance(value, int) else bytes(value)


def snapshot(code: Code, sock: SocketLike) -> Block:
    """Take the values of this moment."""
    info = _raw(sock, "TCP_INFO", tcp_info.SIZE)
    if not info:
        raise Failure("code", code.pos, "the socket gives no TCP_INFO")
    values = tcp_info_values(info) | _cc_values(sock)
    memory = _raw(sock, "SO_MEMINFO", 4 * len(_MEMINFO))
    if len(memory) >= 4 * len(_MEMINFO):
        numbers = struct.unpack_from(f"={len(_MEMINFO)}I", memory)
        values |= {f"SK_MEMINFO_{name}": number for name, number in zip(_MEMINFO, numbers, strict=True)}
    return Block(code, values)


def run_blocks(blocks: list[Block], path: str) -> str:
    """Run them all; Failure at the first that raises.  Returns what they printed."""
    namespace: dict[str, Any] = {"__name__": "__main__", **PYTHON_NAMES}
    printed = io.StringIO()
    for block in blocks:
        namespace |= block.values
        namespace |= {"_file": path, "_line": block.code.pos.line}
        try:
            # The newline is for code whose last line ends with a backslash.
            compiled = compile(block.code.text + "\n\n", f"{path}:{block.code.pos.line}", "exec")
            with contextlib.redirect_stdout(printed):
                exec(compiled, namespace)
        except (Exception, SystemExit) as error:
            raise Failure("code", block.code.pos, _told(error), _first_line(block.code.text, error)) from None
    return printed.getvalue()


def _told(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return f"the assertion does not hold: got {error}" if str(error) else "the assertion does not hold"
    return f"the code raised {type(error).__name__}: {error}"


def _first_line(text: str, error: BaseException) -> str:
    """The line of the block that raised."""
    trace = error.__traceback__
    number = 1
    while trace is not None:
        number = trace.tb_lineno
        trace = trace.tb_next
    lines = text.split("\n")
    return lines[min(number, len(lines)) - 1].strip().rstrip("\\").strip()


