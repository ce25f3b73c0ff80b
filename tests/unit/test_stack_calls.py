"""Stack and Socket in virtual time: blocking calls that run the clock, completions, timeouts, errors, the rest of the socket interface."""

from __future__ import annotations

import errno
import gc
import io
import pickle
import socket
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ustack import MemoryLink, Socket, Stack, VirtualClock

A, B = "192.0.2.1", "192.0.2.2"
MS = 1_000_000


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def pair(clock: VirtualClock) -> tuple[Stack, Stack]:
    left, right = MemoryLink.pair()
    return Stack(left, f"{A}/24", clock=clock, name="a"), Stack(right, f"{B}/24", clock=clock, name="b")


@pytest.fixture
def connected(pair: tuple[Stack, Stack]) -> tuple[Socket, Socket]:
    """(server side, client side)"""
    with pair[0].create_server((A, 80)) as server:
        client = pair[1].create_connection((A, 80))
        return server.accept()[0], client


def number(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


# ---- blocking in virtual time -----------------------------------------------------------------------------------------------------
def test_a_blocking_call_runs_the_clock(pair: tuple[Stack, Stack], clock: VirtualClock) -> None:
    a, b = pair
    server = a.create_server((A, 80))
    client = b.socket()
    client.connect((A, 80))
    conn, peer = server.accept()
    assert peer == client.getsockname()
    assert conn.getpeername() == peer
    assert client.getpeername() == conn.getsockname() == (A, 80)
    assert clock.now == 0


def test_nothing_can_ever_happen(pair: tuple[Stack, Stack]) -> None:
    server = pair[0].create_server((A, 80))
    with pytest.raises(RuntimeError, match="would block for ever"):
        server.accept()
    assert pair[0].pools()["waiters"] == 0


def test_timeouts_are_virtual_and_exact(pair: tuple[Stack, Stack], clock: VirtualClock, connected: tuple[Socket, Socket]) -> None:
    conn, _ = connected
    start = clock.now
    conn.settimeout(2.5)
    with pytest.raises(TimeoutError):
        conn.recv(1)
    assert clock.now == start + 2_500 * MS
    conn.settimeout(None)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 500_000))
    with pytest.raises(BlockingIOError):
        conn.recv(1)
    assert clock.now == start + 4_000 * MS
    conn.setblocking(False)
    assert number(lambda: conn.recv(1)) == errno.EAGAIN
    assert number(lambda: conn.recv(1, socket.MSG_DONTWAIT)) == errno.EAGAIN
    assert clock.now == start + 4_000 * MS


def test_connect_times_out_or_is_refused(pair: tuple[Stack, Stack], clock: VirtualClock) -> None:
    a, b = pair
    sock = b.socket()
    with pytest.raises(ConnectionRefusedError):
        sock.connect((A, 81))
    assert sock.connect_ex((A, 81)) == errno.ECONNREFUSED
    a.stop()
    sock = b.socket()
    sock.settimeout(3)
    start = clock.now
    with pytest.raises(TimeoutError):
        sock.connect((A, 80))
    assert clock.now == start + 3_000 * MS
    sock = b.socket()
    start = clock.now
    with pytest.raises(TimeoutError) as caught:
        sock.connect((A, 80))
    assert caught.value.errno == errno.ETIMEDOUT
    assert clock.now - start > 60_000 * MS, "tcp_syn_retries"


def test_completions(pair: tuple[Stack, Stack], clock: VirtualClock) -> None:
    a, b = pair
    server = a.create_server((A, 80))
    first, second = a.submit(server, "accept"), a.submit(server, "accept")
    assert not first.done and not second.done
    with pytest.raises(RuntimeError, match="not completed"):
        first.get()
    client = b.create_connection((A, 80))
    clock.advance(clock.now + MS)
    assert first.done and not second.done, "in the order of arrival, one connection wakes one"
    conn = first.get()[0]
    read = a.submit(conn, "recv", 100)
    assert not read.done
    clock.advance(clock.now + MS)
    client.sendall(b"abc")
    clock.advance(clock.now + MS)
    assert (read.done, read.result, read.errno, read.at) == (True, b"abc", None, clock.now - MS)
    failed = a.submit(conn, "bind", (A, 1))
    assert (failed.done, failed.errno) == (True, "EINVAL")
    second.cancel()
    assert second.errno == "EINTR"
    assert a.pools()["waiters"] == 0


def test_submit_with_a_timeout_completes_at_its_deadline(pair: tuple[Stack, Stack], clock: VirtualClock) -> None:
    server = pair[0].create_server((A, 80))
    server.settimeout(0.25)
    waiting = pair[0].submit(server, "accept")
    clock.advance(1_000 * MS)
    assert waiting.done
    assert waiting.at == 250 * MS
    with pytest.raises(TimeoutError):
        waiting.get()


def test_a_lingering_close(pair: tuple[Stack, Stack], clock: VirtualClock, connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
    conn.sendall(b"x" * 100)
    before = clock.now
    conn.close()
    assert clock.now - before < 100 * MS, "until the FIN is acknowledged"
    assert client.recv(1000) == b"x" * 100


def test_a_server_without_a_reader_blocks_the_sender(pair: tuple[Stack, Stack], clock: VirtualClock,
                                                     connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    sending = pair[0].submit(conn, "sendall", bytes(10_000_000))
    clock.advance(clock.now + 5_000 * MS)
    assert not sending.done
    total = 0
    while total < 10_000_000:
        total += len(client.recv(1 << 20))
    assert sending.done


# ---- data --------------------------------------------------------------------------------------------------------------------------
def test_recv_in_all_its_forms(connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    client.sendall(b"hello world")
    assert conn.recv(5, socket.MSG_PEEK) == b"hello"
    assert conn.recv(0) == b""
    buffer = bytearray(20)
    assert conn.recv_into(buffer, 3) == 3
    assert conn.recv_into(memoryview(buffer)[3:5]) == 2
    assert buffer[:5] == b"hello"
    assert conn.recvfrom(1) == (b" ", None)
    client.sendall(b"!" * 10)
    assert conn.recv(15, socket.MSG_WAITALL) == b"world" + b"!" * 10
    with pytest.raises(ValueError):
        conn.recv(-1)
    with pytest.raises((TypeError, BufferError)):
        conn.recv_into(b"read only")
    client.shutdown(socket.SHUT_WR)
    assert conn.recv(100) == b""
    assert conn.recv(100) == b""


def test_waitall_takes_what_there_is_at_the_end(connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    client.sendall(b"short")
    client.close()
    assert conn.recv(100, socket.MSG_WAITALL) == b"short"


def test_send_in_all_its_forms(connected: tuple[Socket, Socket], tmp_path: Path) -> None:
    conn, client = connected
    assert client.send(b"a") == 1
    assert client.send(memoryview(bytearray(b"bc"))) == 2
    assert client.sendmsg([b"d", b"ef"]) == 3
    assert client.sendto(b"g", (A, 80)) == 1
    with pytest.raises(OSError):
        client.sendmsg([b"x"], [(1, 2, b"")])
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert client.sendfile(file) == 10
        assert client.sendfile(file, offset=7) == 3
        assert client.sendfile(file, offset=2, count=3) == 3
        assert file.tell() == 5
    with pytest.raises(TypeError):
        client.send("text")  # type: ignore[arg-type]
    assert conn.recv(23, socket.MSG_WAITALL) == b"abcdefg0123456789789234"


def test_files_over_sockets(connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    with client.makefile("w", encoding="utf-8", newline="\n") as out:
        out.write("grün\nblau\n")
    with conn.makefile("r", encoding="utf-8") as text:
        assert text.readline() == "grün\n"
        assert text.readline() == "blau\n"
    with conn.makefile("rwb", buffering=0) as raw:
        raw.write(b"raw")
        assert raw.readable() and raw.writable()
    assert client.recv(10) == b"raw"
    file = conn.makefile("rb")
    conn.close()
    client.sendall(b"after close")
    assert file.read(5) == b"after", "the file keeps the socket open"
    file.close()
    assert number(lambda: conn.send(b"x")) == errno.EBADF
    with pytest.raises(ValueError):
        client.makefile("x")
    with pytest.raises(ValueError):
        client.makefile("w", buffering=0)
    assert isinstance(client.makefile("rb"), io.BufferedReader)


def test_shutdown_and_reset(connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    client.shutdown(socket.SHUT_WR)
    assert number(lambda: client.send(b"x")) == errno.EPIPE
    conn.sendall(b"still")
    assert client.recv(10) == b"still"
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert client.recv(1) == b""


def test_out_of_band(clock: VirtualClock, connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    client.send(b"ab!", socket.MSG_OOB)
    clock.advance(clock.now)
    assert conn.poll() & 2
    assert conn.recv(10) == b"ab"
    assert conn.recv(1, socket.MSG_OOB) == b"!"


def test_ioctl(clock: VirtualClock, connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    client.sendall(b"12345")
    assert client.ioctl(0x5411) == 5
    conn.recv(1)
    assert conn.ioctl(0x541B) == 4
    clock.advance(clock.now + 40 * MS)
    assert client.ioctl(0x5411) == 0


# ---- options, names, life -----------------------------------------------------------------------------------------------------------
def test_names_and_options(pair: tuple[Stack, Stack]) -> None:
    a, _ = pair
    sock = a.socket()
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert sock.getsockname() == ("0.0.0.0", 0)
    assert number(sock.getpeername) == errno.ENOTCONN
    sock.bind(("", 0))
    assert sock.getsockname()[1] > 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
    assert len(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1000)) >= 232
    assert number(lambda: sock.getsockopt(socket.IPPROTO_TCP, 9999)) == errno.ENOPROTOOPT
    for bad in ("text", (A,), (A, "80"), [A, 80]):
        with pytest.raises(TypeError):
            sock.bind(bad)
    with pytest.raises(OverflowError):
        sock.bind((A, 70000))
    assert number(lambda: a.socket(socket.AF_INET6)) == errno.EAFNOSUPPORT
    assert number(lambda: a.socket(socket.AF_INET, socket.SOCK_DGRAM)) == errno.EPROTONOSUPPORT


def test_blocking_modes(pair: tuple[Stack, Stack]) -> None:
    sock = pair[0].socket()
    assert sock.gettimeout() is None and sock.getblocking()
    sock.settimeout(0)
    assert not sock.getblocking()
    sock.setblocking(True)
    assert sock.timeout is None
    with pytest.raises(ValueError):
        sock.settimeout(-1)
    assert not pair[0].socket(2, 1 | socket.SOCK_NONBLOCK).getblocking()


def test_errors_name_the_way_out(pair: tuple[Stack, Stack]) -> None:
    a, _ = pair
    a.create_server((A, 80)).detach()
    for call, num, text in (
        (lambda: a.create_server((A, 80)), errno.EADDRINUSE, "SO_REUSEPORT"),
        (lambda: a.create_server(("198.51.100.1", 80)), errno.EADDRNOTAVAIL, "stack.address"),
        (lambda: a.socket().bind(("not an address", 1)), errno.EINVAL, "a.b.c.d"),
        (lambda: a.socket().send(b"x"), errno.EPIPE, "Broken pipe"),
        (lambda: a.socket().recv(1), errno.ENOTCONN, "not connected"),
        (lambda: a.route("nonsense"), errno.EINVAL, "begins with"),
        (lambda: a.socket().accept(), errno.EINVAL, "not valid"),
    ):
        with pytest.raises(OSError, match=text) as caught:
            call()
        assert caught.value.errno == num


def test_listen_again_moves_the_limit(pair: tuple[Stack, Stack]) -> None:
    a, _ = pair
    server = a.create_server((A, 80), backlog=5)
    assert a.ss("-ltn")[0]["sendq"] == 5
    server.listen(9)
    assert a.ss("-ltn")[0]["sendq"] == 9
    server.listen(-1)
    assert a.ss("-ltn")[0]["sendq"] == int(a.sysctl["net.core.somaxconn"])


def test_closed_is_ebadf_everywhere(pair: tuple[Stack, Stack]) -> None:
    sock = pair[0].socket()
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    for call in (sock.accept, sock.listen, sock.getsockname, sock.poll, lambda: sock.recv(1), lambda: sock.send(b""),
                 lambda: sock.bind((A, 1)), lambda: sock.connect((A, 1)), lambda: sock.setsockopt(1, 2, 1),
                 lambda: sock.getsockopt(1, 2), lambda: sock.shutdown(0), lambda: sock.recv_into(bytearray(1)),
                 lambda: sock.ioctl(0x541B), sock.detach):
        assert number(call) == errno.EBADF
    assert "[closed]" in repr(sock)


def test_a_stale_handle_is_never_another_socket(pair: tuple[Stack, Stack]) -> None:
    engine = pair[0].engine
    old = engine.socket()
    engine.close(old)
    new = engine.socket()
    assert new != old
    for call in (lambda: engine.poll_mask(old), lambda: engine.close(old), lambda: engine.getsockname(1 << 40),
                 lambda: engine.getsockname(0), lambda: engine.getsockname((1 << 64) - 1)):
        assert number(call) == errno.EBADF


def test_detach_and_wrap_again(connected: tuple[Socket, Socket]) -> None:
    conn, client = connected
    stack = conn._stack
    handle = conn.detach()
    assert number(lambda: conn.recv(1)) == errno.EBADF
    again = Socket(stack, handle)
    client.sendall(b"x")
    assert again.recv(1) == b"x"


def test_a_leaked_socket_is_reported_and_closed(pair: tuple[Stack, Stack]) -> None:
    a, _ = pair
    sock = a.create_server((A, 80))
    with pytest.warns(ResourceWarning, match="unclosed"):
        del sock
        gc.collect()
    assert a.pools()["sockets"] == a.pools()["listeners"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with a.create_server((A, 80)):
            pass


def test_no_pickles(pair: tuple[Stack, Stack]) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(pair[0].socket())


def test_stop(pair: tuple[Stack, Stack], connected: tuple[Socket, Socket]) -> None:
    conn, _ = connected
    waiting = pair[0].submit(conn, "recv", 1)
    pair[0].stop()
    assert waiting.done and waiting.errno in ("EINTR", "EBADF")
    assert number(pair[0].socket) == errno.EBADF
    pair[0].stop()
    conn.close()


def test_threaded_things_are_refused_in_virtual_time_and_the_other_way_round(pair: tuple[Stack, Stack]) -> None:
    with Stack(MemoryLink(), f"{A}/24") as threaded, pytest.raises(RuntimeError, match="VirtualClock"):
        threaded.run_until(5)
    with pytest.raises(ValueError, match="needs a link"):
        Stack(None, f"{A}/24")
    with pytest.raises(ValueError):
        Stack(None, "nonsense/24", clock=VirtualClock())


# ---- a stack that talks to itself, several stacks -------------------------------------------------------------------------------------
def test_loopback_inside_the_stack(clock: VirtualClock) -> None:
    stack = Stack(None, [f"{A}/24", "198.51.100.1/24"], clock=clock)
    for address in (A, "198.51.100.1", "127.0.0.1"):
        with stack.create_server((address, 80)) as server, stack.create_connection((address, 80)) as client:
            with server.accept()[0] as conn:
                conn.sendall(b"to myself")
                assert client.recv(100) == b"to myself"
    assert stack.take() == [], "nothing reaches the link"


def test_a_whole_prefix_is_ours(clock: VirtualClock) -> None:
    left, right = MemoryLink.pair()
    a = Stack(left, "198.51.100.0/24", clock=clock)
    b = Stack(right, f"{B}/24", clock=clock)
    server = a.create_server(("", 80))
    for last in (1, 77, 254):
        with b.create_connection((f"198.51.100.{last}", 80)) as client, server.accept()[0] as conn:
            assert conn.getsockname() == (f"198.51.100.{last}", 80) == client.getpeername()


def test_stacks_of_one_process_know_nothing_of_each_other(pair: tuple[Stack, Stack]) -> None:
    a, b = pair
    a.sysctl["net.ipv4.tcp_syncookies"] = 2
    assert b.sysctl["net.ipv4.tcp_syncookies"] == "1"
    with a.create_server((A, 80)):
        assert b.ss("-ltn") == []
    assert b.nstat() == {}
