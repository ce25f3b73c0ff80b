"""The calls that run in C beside an engine thread (_border/socket.pxi): blocking, ends of waits, and what Socket is to Python programs."""

from __future__ import annotations

import copy
import errno
import functools
import gc
import pickle
import socket
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ustack
from ustack import MemoryLink, Socket, Stack

A, B = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def pair() -> Iterator[tuple[Stack, Stack]]:
    left, right = MemoryLink.pair()
    with Stack(left, f"{A}/24") as a, Stack(right, f"{B}/24") as b:
        yield a, b


@pytest.fixture
def ends(pair: tuple[Stack, Stack]) -> Iterator[tuple[Socket, Socket]]:
    """(server side, client side)"""
    with pair[0].create_server((A, 80)) as server:
        client = pair[1].create_connection((A, 80))
        conn, peer = server.accept()
        assert peer == client.getsockname()
    with conn, client:
        yield conn, client


class Call:
    """A call in a thread of its own, until it sleeps (or has ended)."""

    def __init__(self, stack: Stack, call: Callable[[], Any]) -> None:
        self.outcome: Any = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while self._thread.is_alive() and not stack.pools()["waiters"]:
            time.sleep(0.001)

    def _run(self) -> None:
        try:
            self.outcome = self._call()
        except BaseException as exc:
            self.outcome = exc

    def end(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.outcome


def number(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


# ---- data ----------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [100, 4095, 4096, 4097, 10_000, 65_537, 1 << 40])
def test_reads_of_all_sizes(ends: tuple[Socket, Socket], size: int) -> None:
    conn, client = ends
    sent = bytes(range(256)) * 150
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
    while conn.ioctl(0x541B) < len(sent):
        time.sleep(0.001)
    got = [conn.recv(size)]
    assert len(got[0]) == min(size, len(sent)), "all that is there, if it fits"
    while got[-1]:
        got.append(conn.recv(size))
    assert b"".join(got) == sent
    assert conn.recv(size) == b""


def test_a_read_into_a_buffer(ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    buffer = bytearray(b"." * 10)
    reading = Call(conn._stack, lambda: conn.recv_into(buffer, 4))
    client.sendall(b"abcdefghijklm")
    assert reading.end() == 4
    assert conn.recv_into(memoryview(buffer)[4:]) == 6
    assert buffer == b"abcdefghij"
    assert conn.recv(0) == b""
    assert conn.recv_into(buffer, 100) == 3
    for call in (lambda: conn.recv(-1), lambda: conn.recv_into(buffer, -1)):
        with pytest.raises(ValueError, match="negative"):
            call()
    with pytest.raises((TypeError, BufferError)):
        conn.recv_into(b"read only")
    for wrong in (lambda: conn.send("text"), lambda: conn.sendall("text"), lambda: conn.recv("1")):     # type: ignore[arg-type]
        with pytest.raises(TypeError):
            wrong()
    assert client.send(b"") == 0
    client.sendall(memoryview(b"12"))
    assert conn.recv(10, socket.MSG_PEEK) == b"12", "flags: the driver's way"
    assert conn.recv(2, socket.MSG_WAITALL) == b"12"


def test_a_blocked_write_goes_on_as_room_comes(ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    blob = bytes(5_000_000)
    for call, result in ((lambda: client.sendall(blob), None), (lambda: client.send(blob), len(blob))):
        writing = Call(client._stack, call)
        left = len(blob)
        while left:
            left -= len(conn.recv(left))
        assert writing.end() == result


# ---- how waits end ------------------------------------------------------------------------------------------------------------------
def test_timeouts(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    with pair[0].create_server((A, 81)) as server:
        for sock in (server, conn, client):
            sock.settimeout(0.05)
        full = bytes(10_000_000)
        assert 0 < client.send(full) < len(full), "with a timeout: what there is room for"
        for call in (server.accept, lambda: conn.recv(1 << 30) and conn.recv(1 << 30) and conn.recv(1), lambda: client.sendall(full)):
            start = time.monotonic()
            with pytest.raises(TimeoutError, match="timed out") as caught:
                while True:
                    call()
            assert caught.value.errno is None
            assert time.monotonic() - start >= 0.05
        conn.settimeout(1e-12)
        with pytest.raises(TimeoutError):
            while True:
                conn.recv(1 << 30)
    assert conn.timeout == conn.gettimeout() == 1e-12
    assert pair[0].pools()["waiters"] == pair[1].pools()["waiters"] == 0
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError):
            conn.settimeout(wrong)
    with pair[0].create_server((A, 82)) as server:
        server.settimeout(1e300)
        waiting = Call(pair[0], server.accept)
        pair[1].create_connection((A, 82)).close()
        waiting.end()[0].close()


def test_non_blocking(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    with pair[0].create_server((A, 81)) as server:
        for sock in (server, conn, client):
            sock.setblocking(False)
        assert number(server.accept) == number(lambda: conn.recv(1)) == number(lambda: conn.recv_into(bytearray(1))) == errno.EAGAIN
        assert 0 < client.send(bytes(10_000_000)) < 10_000_000
        assert number(lambda: client.sendall(bytes(10_000_000))) == errno.EAGAIN


def test_so_rcvtimeo_and_so_rcvlowat_count_for_all_sockets(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    assert number(lambda: conn.recv(1)) == errno.EAGAIN
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5)
    reading = Call(pair[0], lambda: conn.recv(100))
    for part in (b"123", b"45"):
        client.sendall(part)
        time.sleep(0.02)
    assert reading.end() == b"12345"


def test_close_in_another_thread(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, _ = ends
    reading = Call(pair[0], lambda: conn.recv(1))
    conn.close()
    assert reading.end().errno == errno.EBADF
    for whole in (False, True):
        with pair[0].create_server((A, 81)) as server:
            sender = pair[1].create_connection((A, 81))
            held = server.accept()[0]
        writing = Call(pair[1], functools.partial(sender.sendall if whole else sender.send, bytes(50_000_000)))
        sender.close()
        while held.recv(1 << 20):       # as the kernel does, close() itself wakes nobody who sends
            pass
        outcome = writing.end()
        if whole:
            assert outcome.errno == errno.EBADF
        else:
            assert 0 < outcome < 50_000_000, "what was taken before"
        held.close()


def test_detach_in_another_thread(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    reading = Call(pair[0], lambda: conn.recv(1))
    again = Socket(pair[0], conn.detach())
    client.sendall(b"x")
    assert reading.end().errno == errno.EBADF
    with again:
        assert again.recv(1) == b"x"


def test_a_reset_ends_a_write(ends: tuple[Socket, Socket]) -> None:
    conn, client = ends
    writing = Call(client._stack, lambda: client.sendall(bytes(50_000_000)))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()
    assert writing.end().errno == errno.ECONNRESET
    assert number(lambda: client.send(b"x")) == errno.EPIPE


def test_stop(pair: tuple[Stack, Stack], ends: tuple[Socket, Socket]) -> None:
    conn, _ = ends
    with pair[0].create_server((A, 81)) as server:
        waiting = Call(pair[0], server.accept)
        pair[0].stop()
        assert waiting.end().errno == errno.EBADF
    for call in (lambda: conn.recv(1), lambda: conn.send(b"x"), lambda: conn.recv_into(bytearray(1)), lambda: conn.sendall(b"x")):
        assert number(call) == errno.EBADF


def test_a_hook_that_comes_while_accept_waits_is_asked(pair: tuple[Stack, Stack]) -> None:
    with pair[0].create_server((A, 80)) as server:
        waiting = Call(pair[0], server.accept)
        asked: list[int] = []

        def refuse_first(view: Any) -> str | None:
            asked.append(view.peer[1])
            return "reset" if len(asked) == 1 else None

        pair[0].on("accept", refuse_first)
        first, second = (pair[1].create_connection((A, 80)) for _ in range(2))
        conn, peer = waiting.end()
        assert peer == second.getsockname()
        assert asked == [first.getsockname()[1], peer[1]]
        for sock in (conn, first, second):
            sock.close()


# ---- what it is to Python ---------------------------------------------------------------------------------------------------------------
class Named(Socket):
    def __init__(self, stack: Stack, handle: int | None = None) -> None:
        super().__init__(stack, handle)
        self.name = "named"
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_a_subclass(pair: tuple[Stack, Stack]) -> None:
    with Named(pair[0]) as sock:
        sock.bind((A, 80))
        sock.listen()
        pair[1].create_connection((A, 80)).close()
        conn, _ = sock.accept()
        assert type(conn) is Socket
        conn.close()
    assert sock.closed == 1 and sock.name == "named"


def test_an_accepted_socket_is_as_any_other(pair: tuple[Stack, Stack]) -> None:
    pair[0].default_timeout = 7
    with pair[0].create_server((A, 80)) as server:
        server.settimeout(None)
        client = pair[1].create_connection((A, 80))
        conn, _ = server.accept()
    assert conn.gettimeout() == 7 and not conn._closed
    assert "laddr=('192.0.2.1', 80)" in repr(conn)
    seen = weakref.ref(conn)
    conn.mine = "an attribute"    # type: ignore[attr-defined]
    assert conn.mine == "an attribute"      # type: ignore[attr-defined]
    for take in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            take(conn)
    file = conn.makefile("rb")
    conn.close()
    client.sendall(b"for the file")
    assert file.read(12) == b"for the file"
    file.close()
    assert conn.fileno() == -1
    client.close()
    del conn, file
    gc.collect()
    assert seen() is None


def test_a_forgotten_connection_is_reported_and_closed(pair: tuple[Stack, Stack]) -> None:
    with pair[0].create_server((A, 80)) as server, pair[1].create_connection((A, 80)) as client:
        conn, _ = server.accept()
        with pytest.warns(ResourceWarning, match="unclosed <ustack.Socket"):
            del conn
            gc.collect()
        assert client.recv(1) == b"", "it was closed"
    cycle: list[Any] = [pair[0].socket()]
    cycle.append(cycle)
    cycle[0].cycle = cycle
    with pytest.warns(ResourceWarning, match="unclosed"):
        del cycle
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sock = pair[0].socket()
        pair[0].stop()
        del sock
        gc.collect()


def test_an_object_that_was_never_made_is_closed(pair: tuple[Stack, Stack]) -> None:
    bare = Socket.__new__(Socket)
    for call in (bare.accept, lambda: bare.recv(1), lambda: bare.recv_into(bytearray(1)), lambda: bare.send(b""), lambda: bare.sendall(b""),
                 lambda: bare.handle):
        assert number(call) == errno.EBADF
    bare.close()
    assert bare.fileno() == -1
    for wrong in ((), (object(),), (pair[0], "x"), (pair[0], None, 5)):
        with pytest.raises((TypeError, AttributeError, IndexError)):
            ustack.Socket(*wrong)       # type: ignore[arg-type]
