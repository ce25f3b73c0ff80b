"""Hooks beside an engine thread: calls, two phases, events afterwards, and what needs C. Two stacks over a memory link, in real time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import pytest

import ustack
from examples.engine_by_hand import syn
from ustack.hooks import HOOKS

SERVER, CLIENT = ("192.0.2.2", 80), "192.0.2.1"


@contextlib.contextmanager
def two(**sysctl: object):
    near, far = ustack.MemoryLink.pair()
    with ustack.Stack(near, CLIENT + "/24") as client, ustack.Stack(far, SERVER[0] + "/24", sysctl=sysctl) as stack:
        yield client, stack


def eventually(what, seconds: float = 5.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("name", [name for name, kind in HOOKS.items() if not kind.beside_thread])
def test_per_packet_hooks_name_the_c_table(name):
    with two() as (_, stack):
        with pytest.raises(ValueError, match=rf"op '{HOOKS[name].op}' of a C op-table"):
            stack.on(name, print)
        with pytest.raises(ValueError):
            stack.on(name)


def test_established_is_asked_before_anything_changes_and_may_use_the_stack():
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        seen = []

        @stack.on("established")
        def born(view):
            rows = [row["state"] for row in stack.ss("-tan")]
            seen.append((view.peer, view.passive, view.handle, rows, threading.current_thread().name))

        conn = client.create_connection(SERVER, timeout=5)
        got, peer = server.accept()
        assert seen[0][:4] == (peer, True, None, ["LISTEN", "SYN-RECV"])
        assert seen[0][4].startswith("ustack notes")
        conn.sendall(b"hello")
        assert got.recv(10) == b"hello" and len(seen) == 1
        assert stack.nstat()["TcpInSegs"] == 3, "a parked segment counts once"
        for sock in (conn, got, server):
            sock.close()


def test_established_reset_and_its_counters():
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        server.settimeout(0.2)
        hook = stack.on("established", lambda view: "reset")
        with pytest.raises(ConnectionResetError):       # of connect() already, if the thread is quick
            client.create_connection(SERVER, timeout=5).recv(1)
        with pytest.raises(TimeoutError):
            server.accept()
        assert stack.drops(server) == {"HOOK": 1} and stack.nstat()["TcpExtEmbryonicRsts"] == 1
        assert stack.requests() == [] and hook.calls == 1
        hook.remove()
        client.create_connection(SERVER, timeout=5).close()
        server.accept()[0].close()
        server.close()


def test_data_that_follows_the_third_ack_waits_its_turn():
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        go = threading.Event()
        hook = stack.on("established", lambda view: go.wait(5) and None)
        conn = client.create_connection(SERVER, timeout=5)
        for part in (b"one ", b"two ", b"three"):
            conn.sendall(part)
            time.sleep(0.01)
        go.set()
        got, _ = server.accept()
        got.settimeout(5)
        data = b""
        while len(data) < 13:
            data += got.recv(100)
        assert data == b"one two three" and hook.calls == 1
        assert client.nstat().get("TcpRetransSegs", 0) <= 1
        for sock in (conn, got, server):
            sock.close()


def test_a_request_that_is_gone_meanwhile_is_noticed():
    """The generation is checked: the listener has closed while the function was thinking."""
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        asked, go = threading.Event(), threading.Event()

        @stack.on("established")
        def slow(view):
            asked.set()
            go.wait(5)

        conn = client.create_connection(SERVER, timeout=5)
        assert asked.wait(5)
        server.close()
        go.set()
        with pytest.raises(ConnectionResetError):
            conn.recv(1)
        eventually(lambda: stack.pools()["requests"] == 0)
        assert stack.pools()["sockets"] == 0
        conn.close()


@pytest.mark.parametrize("verdict", [None, "reset"])
def test_established_after_a_cookie(verdict):
    with two(**{"net.ipv4.tcp_syncookies": 2}) as (client, stack):
        server = stack.create_server(SERVER)
        server.settimeout(5 if verdict is None else 0.2)
        hook = stack.on("established", lambda view: verdict if view.cookie else 1 / 0)
        if verdict is None:
            conn = client.create_connection(SERVER, timeout=5)
            got, _ = server.accept()
            conn.sendall(b"x")
            assert got.recv(1) == b"x"
            got.close()
            conn.close()
        else:
            with pytest.raises(ConnectionResetError):
                client.create_connection(SERVER, timeout=5).recv(1)
        assert stack.nstat()["TcpExtSyncookiesRecv"] == 1
        assert (hook.calls, hook.errors) == (1, 0)
        server.close()


def test_established_settings_reach_the_child():
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        stack.on("established", lambda view: setattr(view, "cwnd", 3))
        conn = client.create_connection(SERVER, timeout=5)
        got, _ = server.accept()
        assert int.from_bytes(got.getsockopt(6, 11, 280)[80:84], "little") == 3
        for sock in (conn, got, server):
            sock.close()


def test_listen_and_accept_in_the_callers_thread():
    with two() as (client, stack):
        seen = []
        stack.on("listen", lambda view: (seen.append(("listen", view.local[1], threading.current_thread())), 13 if view.local[1] == 81 else None)[1])
        with pytest.raises(PermissionError):
            stack.create_server((SERVER[0], 81))
        server = stack.create_server(SERVER)
        refused = []

        @stack.on("accept")
        def taken(view):
            seen.append(("accept", len(stack.ss("-tan")), threading.current_thread()))
            if not refused:
                refused.append(view.peer)
                return "reset"

        first = client.create_connection(SERVER, timeout=5)
        eventually(lambda: server.poll() & 1)
        second = client.create_connection(SERVER, timeout=5)
        got, peer = server.accept()
        assert refused == [first.getsockname()] and peer == second.getsockname()
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        me = threading.current_thread()
        assert all(thread is me for _, _, thread in seen) and len(seen) == 4
        for sock in (first, second, got, server):
            sock.close()


def test_connect_refused():
    with two() as (client, _):
        client.on("connect", lambda view: "ENETUNREACH" if view.peer[1] == 81 else None)
        with pytest.raises(OSError, match=r"connect hook"):
            client.create_connection((SERVER[0], 81), timeout=5)


def test_state_queued_and_drop_come_afterwards_and_choose_nothing(caplog):
    with two() as (client, stack), caplog.at_level(logging.ERROR, "ustack.hooks"):
        seen = []
        hooks = [stack.on(name, lambda view, name=name: seen.append((name, view))) for name in ("state", "queued", "drop")]
        late = stack.on("drop", lambda view: "reset")
        server = stack.create_server(SERVER)
        conn = client.create_connection(SERVER, timeout=5)
        got, _ = server.accept()
        refused = client.socket()
        with pytest.raises(ConnectionRefusedError):
            refused.connect((SERVER[0], 99))
        eventually(lambda: any(name == "drop" for name, _ in seen))
        states = [(view.state, view.new_state) for name, view in seen if name == "state"]
        assert states[:3] == [(7, 10), (7, 3), (3, 1)]
        assert [view.handle for name, view in seen if name == "queued"] == [got.handle]
        assert [view.reason for name, view in seen if name == "drop"] == ["NO_SOCKET"]
        eventually(lambda: "after the fact" in caplog.text)
        assert (late.errors, late.enabled) == (1, False)
        for hook in hooks:
            hook.remove()
        before = len(seen)
        for sock in (conn, got, server, refused):
            sock.close()
        assert len(seen) == before


def test_a_hook_that_raises_lets_the_connection_pass(caplog):
    with two() as (client, stack), caplog.at_level(logging.ERROR, "ustack.hooks"):
        hook = stack.on("established", lambda view: 1 / 0)
        server = stack.create_server(SERVER)
        for _ in range(2):
            conn = client.create_connection(SERVER, timeout=5)
            got, _ = server.accept()
            got.close()
            conn.close()
        assert (hook.calls, hook.errors, len(caplog.records)) == (1, 1, 1)
        server.close()


def test_log_lines_of_an_engine_thread(caplog):
    near, far = ustack.MemoryLink.pair()
    with ustack.Stack(far, SERVER[0] + "/24") as stack, caplog.at_level(logging.WARNING, "ustack.kernel"):
        server = stack.create_server(SERVER, backlog=0)
        for port in (2000, 2001, 2002):
            near._socket.send(syn(CLIENT, SERVER[0], port, 80, 1))
        eventually(lambda: caplog.records)
        assert [r.message for r in caplog.records] == ["TCP: request_sock_TCP: Possible SYN flooding on port 192.0.2.2:80. Sending cookies."]
        server.close()


def test_stop_inside_a_hook_and_while_one_waits():
    with two() as (client, stack):
        server = stack.create_server(SERVER)
        done = threading.Event()

        @stack.on("established")
        def end(view):
            stack.stop()
            done.set()

        conn = client.create_connection(SERVER, timeout=5)
        assert done.wait(5)
        assert stack.stopped
        conn.close()
        server.close()
