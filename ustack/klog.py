"""The kernel's log lines about a TCP stack, in its words, through `logging` (logger "ustack.kernel")."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from ustack import _fastpath

if TYPE_CHECKING:
    from ustack._fastpath import Engine

log = logging.getLogger("ustack.kernel")
log.addHandler(logging.NullHandler())      # a log like dmesg: read by those who ask for it

PAGE = 4096
BUCKET = 4                      # bytes of a bucket of the connection table
BIND_ENTRIES = 65536            # one per port


def text_of(line: int, a: int, b: int) -> str:
    """A line by its LOG_* number (core/state.pxd) and arguments."""
    if line in (1, 2):
        bound = socket.inet_ntoa(a.to_bytes(4, "big"))
        what = "Sending cookies" if line == 1 else "Dropping request"
        return f"TCP: request_sock_TCP: Possible SYN flooding on port {bound}:{b}. {what}."
    return f"TCP: tcp_parse_options: Illegal window scaling value {a} > {b} received"


def emit(engine: Engine) -> None:
    """Log what has come since the last call."""
    lines, lost = _fastpath.take_log(engine)
    if lost:
        log.warning("net_ratelimit: %d callbacks suppressed", lost)
    for _at, line, a, b, _flow in lines:
        log.log(logging.WARNING if line != 3 else logging.INFO, text_of(line, a, b))


def hash_tables(engine: Engine) -> None:
    """The two lines about the sizes of the tables, at the start of a stack."""
    entries = _fastpath.ehash_entries(engine)
    size = entries * BUCKET
    order = max(0, (size - 1).bit_length() - PAGE.bit_length() + 1)
    log.info("TCP established hash table entries: %d (order: %d, %d bytes, linear)", entries, order, size)
    log.info("TCP: Hash tables configured (established %d bind %d)", entries, BIND_ENTRIES)
