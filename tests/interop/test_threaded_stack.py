"""The engine thread and blocking calls, over a socket pair in this process: no privilege needed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import ustack
from ustack import ImpairedLink, MemoryLink, Stack

A, B = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def pair() -> Iterator[tuple[Stack, Stack]]:
    left, right = MemoryLink.pair()
    with Stack(left, f"{A}/24") as a, Stack(right, f"{B}/24") as b:
        yield a, b


def connected(pair: tuple[Stack, Stack]) -> tuple[ustack.Socket, ustack.Socket]:
    a, b = pair
    with a.create_server((A, 80)) as server:
        client = b.create_connection((A, 80), timeout=10)
        client.settimeout(None)
        conn, peer = server.accept()
        assert peer == client.getsockname()
    return conn, client


def test_both_directions_at_once(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    blobs = os.urandom(5_000_000), os.urandom(5_000_000)
    got = {}

    def pump(sock: ustack.Socket, out: bytes, name: str) -> None:
        sender = threading.Thread(target=lambda: (sock.sendall(out), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        back = bytearray()
        while block := sock.recv(262144):
            back += block
        got[name] = bytes(back)
        sender.join()

    with conn, client:
        other = threading.Thread(target=pump, args=(client, blobs[0], "client"))
        other.start()
        pump(conn, blobs[1], "conn")
        other.join()
    assert got["conn"] == blobs[0]
    assert got["client"] == blobs[1]


def test_a_stack_talks_to_itself() -> None:
    with Stack(MemoryLink(), f"{A}/24") as stack, stack.create_server((A, 80)) as server:
        client = stack.create_connection((A, 80), timeout=10)
        conn, _ = server.accept()
        with client, conn:
            client.sendall(b"x" * 1_000_000)
            client.close()
            total = 0
            while block := conn.recv(65536):
                total += len(block)
        assert total == 1_000_000


def test_timeouts(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    with conn, client:
        conn.settimeout(0.05)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            conn.recv(1)
        assert 0.045 < time.monotonic() - start < 2
        conn.settimeout(None)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
        with pytest.raises(BlockingIOError):
            conn.recv(1)
        conn.setblocking(False)
        with pytest.raises(BlockingIOError):
            conn.recv(1)
        conn.settimeout(0.05)
        with pytest.raises(TimeoutError):
            conn.sendall(bytes(50_000_000))
        with pair[0].create_server((A, 81)) as server:
            server.settimeout(0.02)
            with pytest.raises(TimeoutError):
                server.accept()


def test_a_lingering_close_waits_for_the_acknowledgement(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    conn.sendall(b"x" * 10_000)
    start = time.monotonic()
    conn.close()
    assert time.monotonic() - start < 4
    total = 0
    while block := client.recv(65536):
        total += len(block)
    assert total == 10_000
    client.close()
    conn, client = connected(pair)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
    conn.sendall(bytes(150_000))
    start = time.monotonic()
    conn.close()
    assert 0.9 < time.monotonic() - start < 3, "nobody reads, so the FIN is not acknowledged: as long as SO_LINGER says"
    client.close()


def test_one_wake_up_for_one_connection(pair: tuple[Stack, Stack]) -> None:
    """Several threads in accept(): each connection goes to exactly one, none is lost."""
    a, b = pair
    taken: list[ustack.Socket] = []
    with a.create_server((A, 80), backlog=100) as server:
        def worker() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threads = [threading.Thread(target=worker) for _ in range(5)]
        for thread in threads:
            thread.start()
        clients = [b.create_connection((A, 80), timeout=10) for _ in range(50)]
        deadline = time.monotonic() + 10
        while len(taken) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "close() ends the accept() of other threads"
    assert len({s.getpeername() for s in taken}) == 50
    for sock in [*taken, *clients]:
        sock.close()


def test_stop_ends_blocked_calls_and_kills_handles(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    outcome: list[BaseException] = []

    def reader() -> None:
        try:
            conn.recv(1)
        except OSError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=reader)
    thread.start()
    while not pair[0].pools()["waiters"]:
        time.sleep(0.001)
    pair[0].stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [exc.errno for exc in outcome if isinstance(exc, OSError)] == [errno.EBADF]
    for call in (lambda: conn.send(b"x"), lambda: conn.getsockname(), lambda: pair[0].socket(), lambda: conn.poll()):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    pair[0].stop()
    conn.close()
    client.close()


def test_what_was_sent_before_stop_leaves(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    conn.sendall(b"last words")
    conn.close()
    pair[0].stop()
    client.settimeout(10)
    assert client.recv(100) == b"last words"
    assert client.recv(100) == b""
    client.close()


def test_an_impaired_link(pair: tuple[Stack, Stack]) -> None:
    left, right = MemoryLink.pair()
    bad = ImpairedLink(ImpairedLink(left, loss=0.02, delay=0.002, seed=1), duplicate=0.02, reorder=0.02, seed=2)
    with Stack(bad, f"{A}/24") as a, Stack(right, f"{B}/24") as b:
        conn, client = connected((a, b))
        blob = os.urandom(1_000_000)
        thread = threading.Thread(target=lambda: (conn.sendall(blob), conn.close()))
        thread.start()
        got = bytearray()
        while block := client.recv(65536):
            got += block
        thread.join()
        client.close()
        assert got == blob
    assert bad.counters()["out"]["duplicated"] > 0
    assert bad.link.counters()["out"]["lost"] > 0


def test_a_forgotten_stack_is_reported_and_its_thread_ends() -> None:
    before = threading.active_count()
    stack = Stack(MemoryLink(), f"{A}/24")
    assert threading.active_count() == before + 2       # the engine's, and the one that brings its notes to Python
    with pytest.warns(ResourceWarning, match="unstopped"):
        del stack
        gc.collect()
    until(lambda: threading.active_count() == before)


# ---- descriptors -----------------------------------------------------------------------------------------------------------------
def ready(sock: ustack.Socket, wait: float = 0) -> tuple[bool, bool]:
    """(readable, writable) of the descriptor."""
    r, w, _ = select.select([sock.fileno()], [sock.fileno()], [], wait)
    return bool(r), bool(w)


def until(what: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.001)


def test_the_descriptor_shows_all_four_states(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    with conn, client:
        conn.setblocking(False)
        assert ready(conn) == (False, True)
        client.sendall(b"x" * 1000)
        until(lambda: ready(conn) == (True, True))
        assert len(conn.recv(500)) == 500
        assert ready(conn) == (True, True), "there is more"
        assert len(conn.recv(5000)) == 500
        assert ready(conn) == (False, True), "taking the last byte shows at once"
        while select.select([], [conn.fileno()], [], 0.1)[1]:   # until both buffers are full
            with contextlib.suppress(BlockingIOError):
                conn.send(bytes(65536))
        assert ready(conn) == (False, False)
        client.send(b"y")
        until(lambda: ready(conn) == (True, False))
        assert conn.recv(10) == b"y"
        client.settimeout(5)
        while not ready(conn)[1]:
            client.recv(1 << 20)
        assert ready(conn) == (False, True)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        until(lambda: ready(conn) == (True, True))
        with pytest.raises(ConnectionResetError):
            conn.recv(1)


def test_a_listener_s_descriptor(pair: tuple[Stack, Stack]) -> None:
    a, b = pair
    with a.create_server((A, 80)) as server:
        server.setblocking(False)
        assert ready(server) == (False, False)
        clients = [b.create_connection((A, 80), timeout=10) for _ in range(2)]
        until(lambda: ready(server) == (True, False))
        first = server.accept()[0]
        until(lambda: ready(server) == (True, False))
        second = server.accept()[0]
        assert ready(server) == (False, False)
        for sock in (first, second, *clients):
            sock.close()


def test_every_wake_up_is_an_edge(pair: tuple[Stack, Stack]) -> None:
    conn, client = connected(pair)
    with conn, client, select.epoll() as ep:
        conn.setblocking(False)
        ep.register(conn.fileno(), select.EPOLLIN | select.EPOLLET)
        for _ in range(20):
            client.sendall(b"x")
            assert ep.poll(5), "new data is a new edge although the old was not read"
        assert conn.recv(100) == b"x" * 20
        assert not ep.poll(0)


def test_many_descriptors(pair: tuple[Stack, Stack]) -> None:
    a, b = pair
    with a.create_server((A, 80), backlog=200) as server:
        clients = [b.create_connection((A, 80), timeout=10) for _ in range(150)]
        conns = [server.accept()[0] for _ in clients]
        fds = {conn.fileno(): conn for conn in conns}
        assert len(fds) == 150
        for client in clients:
            client.sendall(b"hello")
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        until(lambda: len(poll.poll(0)) == 150)
        for conn in conns:
            assert conn.recv(10) == b"hello"
        assert poll.poll(0) == []
        for sock in [*conns, *clients]:
            sock.close()


def test_closing_gives_the_descriptors_back(pair: tuple[Stack, Stack]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        conn, client = connected(pair)
        conn.fileno()
        client.fileno()
        conn.close()
        client.close()
        assert conn.fileno() == -1
    assert len(os.listdir("/proc/self/fd")) == before


def test_asyncio_streams(pair: tuple[Stack, Stack]) -> None:
    """An unmodified asyncio server and clients on ustack sockets."""
    a, b = pair

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def client(n: int) -> bool:
        sock = b.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (A, 80))  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection(sock=sock)  # type: ignore[arg-type]
        blob = os.urandom(200_000 + n)
        writer.write(blob)
        writer.write_eof()
        back = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        return back == blob

    async def main() -> list[bool]:
        server = await asyncio.start_server(echo, sock=a.create_server((A, 80)))  # type: ignore[arg-type]
        async with server:
            return await asyncio.gather(*(client(n) for n in range(20)))

    assert all(asyncio.run(asyncio.wait_for(main(), 30)))


# ---- signals, exit, fork -----------------------------------------------------------------------------------------------------------
BLOCKED = """
import sys, ustack
stack = ustack.Stack(ustack.MemoryLink(), "192.0.2.1/24")
server = stack.create_server(("192.0.2.1", 80))
print("listening", flush=True)
try:
    server.accept()
except KeyboardInterrupt:
    print("interrupted", stack.pools()["waiters"], flush=True)
    server.settimeout(0.01)
    try:
        server.accept()
    except TimeoutError:
        print("works on")
"""


def test_ctrl_c_ends_accept(program: Callable[..., subprocess.Popen[str]]) -> None:
    run = program(BLOCKED)
    assert run.stdout is not None
    assert run.stdout.readline() == "listening\n"
    time.sleep(0.2)
    start = time.monotonic()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert (run.returncode, out) == (0, "interrupted 0\nworks on\n"), err


def test_a_handler_that_does_not_raise_lets_the_wait_go_on(program: Callable[..., subprocess.Popen[str]]) -> None:
    run = program(BLOCKED.replace("import sys, ustack", """import signal, sys, ustack
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
"""))
    assert run.stdout is not None
    assert run.stdout.readline() == "listening\n"
    time.sleep(0.2)
    run.send_signal(signal.SIGUSR1)
    assert run.stdout.readline() == "handled\n"
    time.sleep(0.1)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out) == (0, "interrupted 0\nworks on\n"), err


def test_a_program_that_forgets_to_stop_ends_at_once(program: Callable[..., subprocess.Popen[str]]) -> None:
    run = program("""
import threading, ustack
stack = ustack.Stack(ustack.MemoryLink(), "192.0.2.1/24")
server = stack.create_server(("192.0.2.1", 80))
threading.Thread(target=server.accept, daemon=True).start()
print("end of the program", flush=True)
""")
    start = time.monotonic()
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out) == (0, "end of the program\n"), err
    assert time.monotonic() - start < 10


def test_the_child_of_a_fork_has_a_dead_stack_and_the_parent_a_live_one(program: Callable[..., subprocess.Popen[str]]) -> None:
    run = program("""
import errno, os, threading, time, ustack
a, b = ustack.MemoryLink.pair()
left, right = ustack.Stack(a, "192.0.2.1/24"), ustack.Stack(b, "192.0.2.2/24")
server = left.create_server(("192.0.2.1", 80))
client = right.create_connection(("192.0.2.1", 80))
conn, _ = server.accept()
busy = threading.Thread(target=lambda: [conn.sendall(bytes(100000)) for _ in range(300)], daemon=True)
busy.start()
fd = left._driver.loop.counters and a._fd
for i in range(10):
    pid = os.fork()
    if pid == 0:
        try:
            client.recv(1)
            code = 1
        except OSError as exc:
            code = 0 if exc.errno == errno.EBADF else 2
        try:
            os.fstat(fd)
            code = 3
        except OSError:
            pass
        left.stop()
        right.stop()
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0, "child"
    assert len(client.recv(65536)) > 0
got = 0
client.settimeout(10)
busy_done = False
while busy.is_alive():
    client.recv(1 << 20)
print("parent lives")
left.stop(); right.stop()
pid = os.fork()
if pid == 0:
    raise SystemExit(0)
assert os.waitpid(pid, 0)[1] == 0
""")
    out, err = run.communicate(timeout=40)
    assert (run.returncode, out) == (0, "parent lives\n"), err


def test_a_busy_python_thread_does_not_slow_the_engine(pair: tuple[Stack, Stack]) -> None:
    """The packet path never takes the interpreter's lock: pings are answered while Python computes."""
    a, _ = pair
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        before = a._driver.counters()["turns"]
        conn, client = connected(pair)
        for _ in range(20):
            client.sendall(b"x")
            assert conn.recv(1) == b"x"
        assert a._driver.counters()["turns"] > before
    finally:
        stop.set()
        thread.join()
    conn.close()
    client.close()


def test_several_threads_call_at_once(pair: tuple[Stack, Stack]) -> None:
    """Calls from many threads while packets flow: no deadlock, no lost byte."""
    conn, client = connected(pair)
    stop = threading.Event()
    failures: list[BaseException] = []

    def nosy() -> None:
        try:
            while not stop.is_set():
                pair[0].nstat()
                pair[0].ss()
                conn.getsockopt(socket.IPPROTO_TCP, 11, 280)
                pair[0].pools()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=nosy) for _ in range(3)]
    for thread in threads:
        thread.start()
    sender = threading.Thread(target=lambda: (client.sendall(bytes(3_000_000)), client.close()))
    sender.start()
    total = 0
    while block := conn.recv(65536):
        total += len(block)
    stop.set()
    for thread in [*threads, sender]:
        thread.join(10)
    assert (total, failures) == (3_000_000, [])
    conn.close()
