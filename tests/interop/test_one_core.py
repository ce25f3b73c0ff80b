"""Users' threads at the link: calls that write their own packets, read before they sleep, and an engine thread that lets them run first."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import ustack
from ustack import MemoryLink, Stack, _fastpath

A, B = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def one_core() -> Iterator[None]:
    """Everything on one core: threads made meanwhile inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def stacks() -> Iterator[tuple[Stack, Stack]]:
    left, right = MemoryLink.pair()
    with Stack(left, f"{A}/24") as a, Stack(right, f"{B}/24") as b:
        yield a, b


def each_connection(listener: ustack.Socket, failures: list[BaseException], talk: Callable[[ustack.Socket], None]) -> None:
    """Until the listener ends: a thread for each connection, which it closes."""
    def handle(conn: ustack.Socket) -> None:
        try:
            with conn:
                talk(conn)
        except BaseException as exc:
            failures.append(exc)

    with contextlib.suppress(OSError):
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=handle, args=(conn,), daemon=True).start()


def serve(listener: ustack.Socket, failures: list[BaseException]) -> None:
    def echo(conn: ustack.Socket) -> None:
        while data := conn.recv(4096):
            conn.sendall(data[::-1])

    each_connection(listener, failures, echo)


def ask(stack: Stack, who: int, times: int, failures: list[BaseException]) -> None:
    try:
        for k in range(times):
            with stack.create_connection((A, 80), timeout=20) as sock:
                for text in (b"%d.%d" % (who, k), bytes(3000)):
                    sock.sendall(text)
                    back = b""
                    while len(back) < len(text):
                        more = sock.recv(8192)
                        assert more
                        back += more
                    assert back == text[::-1]
    except BaseException as exc:
        failures.append(exc)


def many_connections() -> dict[str, int]:
    """Counters of the server's loop after 200 connections from eight threads, none of which failed."""
    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=serve, args=(listener, failures), daemon=True).start()
        clients = [threading.Thread(target=ask, args=(b, i, 25, failures)) for i in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(60)
        assert failures == []
        assert a.nstat()["TcpPassiveOpens"] == 200
        assert not a.nstat().get("TcpExtTCPOFOQueue") and not b.nstat().get("TcpExtTCPOFOQueue")
        return a.drivers[0].counters()      # type: ignore[attr-defined]


def test_on_one_core_users_read_and_write_the_link(one_core: None) -> None:
    counters = many_connections()
    assert counters["direct"] and counters["helped"] and counters["yields"], counters
    assert not counters["tx_dropped"] and not counters["tx_errors"]


def test_on_any_core_no_packet_is_lost_or_overtaken() -> None:
    counters = many_connections()
    assert not counters["tx_dropped"] and not counters["tx_errors"]


def test_a_full_link_does_not_hold_the_caller_up_and_loses_nothing() -> None:
    """200 SYNs into a socket pair that holds a few: callers write until it is full, the engine thread goes on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    ours.setblocking(False)
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    engine = _fastpath.Engine(f"{A}/24", now=time.monotonic_ns())
    loop = _fastpath.Loop(engine, ours.fileno(), wake)
    thread = threading.Thread(target=loop.run)
    thread.start()
    seen: set[bytes] = set()

    def drain() -> None:
        theirs.settimeout(5)
        while len(seen) < 200:
            seen.add(theirs.recv(2048)[20:22])

    reader = threading.Thread(target=drain)
    reader.start()
    for _ in range(200):
        with pytest.raises(BlockingIOError):
            engine.connect(engine.socket(), B, 80)
    reader.join(10)
    counters = loop.counters()
    loop.stop()
    thread.join(10)
    _fastpath.kill(engine)
    os.close(wake)
    ours.close()
    theirs.close()
    assert len(seen) == 200
    assert counters["direct"] > 0, counters


def test_stop_while_calls_are_at_the_link() -> None:
    """Whoever is at the link leaves it before its descriptor is closed; everyone then gets an error."""
    for _ in range(5):
        ended: list[type[BaseException]] = []
        with stacks() as (a, b):
            listener = a.create_server((A, 80))
            threading.Thread(target=serve, args=(listener, []), daemon=True).start()

            def talk(stack: Stack = b, ended: list[type[BaseException]] = ended) -> None:
                try:
                    with stack.create_connection((A, 80), timeout=10) as sock:
                        while True:
                            sock.sendall(b"x")
                            sock.recv(10)
                except OSError as exc:
                    ended.append(type(exc))

            threads = [threading.Thread(target=talk) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.05)
            b.stop()
            for thread in threads:
                thread.join(10)
        assert len(ended) == 4


def test_a_call_that_was_woken_late_sleeps_on(one_core: None) -> None:
    """Waiters come and go by timeout while others are woken: a wake-up meant for one that has gone ends nobody's wait."""
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        listener.settimeout(0.002)
        got = []
        client = threading.Thread(target=lambda: [b.create_connection((A, 80), timeout=10).close() for _ in range(50)])
        client.start()
        end = time.monotonic() + 20
        while len(got) < 50 and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                conn, peer = listener.accept()
                got.append(peer)
                conn.close()
        client.join(10)
        assert len(set(got)) == 50


def answer_once(listener: ustack.Socket, failures: list[BaseException], first: Callable[[ustack.Socket], None] | None = None,
                then: Callable[[ustack.Socket], None] | None = None) -> None:
    """Read the request, answer, close."""
    def talk(conn: ustack.Socket) -> None:
        if first is not None:
            first(conn)
        request = b""
        while not request.endswith(b"\n"):
            request += conn.recv(4096)
        conn.sendall(b"answer to " + request)
        if then is not None:
            then(conn)

    each_connection(listener, failures, talk)


def ask_once(stack: Stack, text: bytes) -> bytes:
    """What comes back, until the end of the stream or a reset."""
    with stack.create_connection((A, 80), timeout=20) as sock:
        sock.sendall(text)
        back = b""
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(4096):
                back += more
        return back


def test_the_answer_carries_the_ack_and_the_fin(one_core: None) -> None:
    """Of a connection that is asked, answers and closes: SYN-ACK, answer, ACK of the client's FIN. With an ACK and a FIN apart it were five."""
    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=answer_once, args=(listener, failures), daemon=True).start()

        def many() -> None:
            try:
                for _ in range(25):
                    assert ask_once(b, b"request\n") == b"answer to request\n"
            except BaseException as exc:
                failures.append(exc)

        clients = [threading.Thread(target=many) for _ in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(60)
        sent = a.drivers[0].counters()["tx_packets"]      # type: ignore[attr-defined]
        assert failures == []
        assert 3 * 200 <= sent < 4.4 * 200


def test_an_answer_leaves_while_the_program_computes(one_core: None) -> None:
    """It may wait for the close that follows; if the program does something else, the engine thread's turn comes."""
    left = threading.Event()

    def compute(conn: ustack.Socket) -> None:
        end = time.monotonic() + 2
        while time.monotonic() < end and not left.is_set():
            pass

    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=answer_once, args=(listener, failures, None, compute), daemon=True).start()
        with b.create_connection((A, 80), timeout=20) as sock:
            asked = time.monotonic()
            sock.sendall(b"request\n")
            assert sock.recv(100) == b"answer to request\n"
            took = time.monotonic() - asked
            left.set()
        assert failures == []
        assert took < 1


def test_half_a_request_is_acknowledged_when_it_is_read(one_core: None) -> None:
    """A client that holds the rest of its request until then (Nagle) does not wait for it."""
    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=answer_once, args=(listener, failures), daemon=True).start()
        best = 9.0
        for _ in range(10):
            with b.create_connection((A, 80), timeout=20) as sock:
                asked = time.monotonic()
                sock.sendall(b"req")
                sock.sendall(b"uest\n")
                assert sock.recv(100) == b"answer to request\n"
                best = min(best, time.monotonic() - asked)
        assert failures == []
        assert best < 0.008


def test_what_was_sent_goes_before_the_reset(one_core: None) -> None:
    """A close with a linger time of zero, or with bytes unread, resets; what a send has taken leaves first, as on kernel sockets."""
    def reset(conn: ustack.Socket) -> None:
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=answer_once, args=(listener, failures, reset), daemon=True).start()
        for _ in range(30):
            assert ask_once(b, b"request\n") == b"answer to request\n"
        assert failures == []
        assert a.nstat()["TcpOutRsts"] >= 30


def test_more_to_come_stays(one_core: None) -> None:
    """MSG_MORE: nothing that is sent for other reasons takes the bytes along before the next send."""
    def halves(conn: ustack.Socket) -> None:
        conn.recv(100)
        conn.send(b"first ", socket.MSG_MORE)
        time.sleep(0.02)
        conn.send(b"second")

    failures: list[BaseException] = []
    with stacks() as (a, b):
        listener = a.create_server((A, 80))
        threading.Thread(target=each_connection, args=(listener, failures, halves), daemon=True).start()
        for _ in range(10):
            with b.create_connection((A, 80), timeout=20) as sock:
                sock.sendall(b"request")
                assert sock.recv(100) == b"first second"
        assert failures == []
