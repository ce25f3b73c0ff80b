"""Errors as Python programs know them: OSError (and its automatic subclasses) with Linux's errno and a sentence on what to do."""

from __future__ import annotations

import errno
import os

_HINTS: dict[int, str] = {
    errno.EBADF: "this socket is closed, or its stack was stopped",
    errno.EADDRINUSE: "the port is taken: close its owner, choose another port, or set SO_REUSEADDR / SO_REUSEPORT on both sockets",
    errno.EADDRNOTAVAIL: "not an address of this stack: give it to Stack(...) or stack.address('add', ...), or bind to 0.0.0.0",
    errno.ENETUNREACH: "no route: add one with stack.route('add ...')",
    errno.EINVAL: "not valid for this socket in its present state",
    errno.ENOTCONN: "the socket is not connected",
    errno.EISCONN: "the socket is already connected",
    errno.EPIPE: "the connection is no longer open for sending: shut down here, or reset by the peer",
    errno.ENOPROTOOPT: "no such option here: docs/linux-parity.md lists what is not modelled",
    errno.ENOENT: "no such name",
    errno.ENOBUFS: "a pool of the stack is exhausted",
}


def failure(number: int, what: str | None) -> OSError:
    """The exception for a Linux errno: "strerror: what was tried (what to do)"; Python picks the subclass by errno."""
    if number == errno.EAGAIN:      # the everyday answer of a non-blocking call
        return BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    text = os.strerror(number)
    if what:
        text = f"{text}: {what}"
    hint = _HINTS.get(number)
    return OSError(number, f"{text} ({hint})" if hint else text)
