"""Small servers for `ustack serve` and for tests: http, echo, discard, chargen. One thread per connection, plain blocking sockets."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any

from ustack._socket import Socket
from ustack.stack import Stack

log = logging.getLogger("ustack.serve")


def echo(conn: Socket) -> None:
    """RFC 862."""
    buffer = bytearray(65536)
    view = memoryview(buffer)
    while n := conn.recv_into(view):
        conn.sendall(view[:n])


def discard(conn: Socket) -> None:
    """RFC 863."""
    buffer = bytearray(262144)
    while conn.recv_into(buffer):
        pass


def chargen(conn: Socket) -> None:
    """RFC 864: lines of 72 characters, each shifted by one."""
    ring = bytes(range(32, 127)) * 2
    block = b"".join(ring[i : i + 72] + b"\r\n" for i in range(95))
    for _ in itertools.count():
        conn.sendall(block)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and PUT into it where uploads are allowed."""

    protocol_version = "HTTP/1.1"
    uploads = False

    def log_message(self, format: str, *args: Any) -> None:
        log.info("%s %s", self.address_string(), format % args)

    def address_string(self) -> str:
        return str(self.client_address[0])

    def do_PUT(self) -> None:
        if not self.uploads:
            self.send_error(405, "uploads are off (--uploads)")
            return
        length = int(self.headers.get("Content-Length", 0))
        path = self.translate_path(self.path)
        with open(path, "wb") as out:
            while length > 0:
                block = self.rfile.read(min(length, 262144))
                if not block:
                    break
                out.write(block)
                length -= len(block)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()


def http_files(directory: str, uploads: bool = False) -> Callable[[Socket], None]:
    """A service that serves the files of a folder over HTTP/1.1."""
    handler = type("Handler", (_Handler,), {"uploads": uploads})

    class Server:
        """What BaseHTTPRequestHandler looks at."""

        server_name = "ustack"
        server_port = 80

    def serve(conn: Socket) -> None:
        handler(conn, conn.getpeername(), Server(), directory=directory)

    return serve


def run(stack: Stack, listener: Socket, service: Callable[[Socket], None]) -> None:
    """Accept for ever; each connection on a daemon thread. Returns when the listener or the stack is closed."""

    def one(conn: Socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(None)
            service(conn)

    while True:
        try:
            conn, _ = listener.accept()
        except OSError:
            if stack.stopped or listener._closed:
                return
            raise
        threading.Thread(target=one, args=(conn,), daemon=True).start()
