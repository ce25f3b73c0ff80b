"""Built-in services (core/service.pxd) in virtual time: two stacks on a wire, no Python between the packets."""

import pytest

import ustack

MS = 1_000_000


@pytest.fixture
def pair():
    clock = ustack.VirtualClock()
    left, right = ustack.MemoryLink.pair()
    with (
        ustack.Stack(left, "192.0.2.1/24", clock=clock, seed=1) as client,
        ustack.Stack(right, "192.0.2.2/24", clock=clock, seed=2) as server,
    ):
        yield client, server


def serve(stack, kind, port=80):
    sock = stack.create_server(("192.0.2.2", port))
    stack.engine.set_service(sock.handle, kind)
    return sock


def read_all(sock):
    out = b""
    while data := sock.recv(65536):
        out += data
    return out


def test_echo_returns_what_it_gets_and_closes(pair):
    client, server = pair
    with serve(server, "echo"), client.create_connection(("192.0.2.2", 80)) as conn:
        data = bytes(range(256)) * 2000
        done = client.submit(conn, "sendall", data)
        got = b""
        while len(got) < len(data):
            got += conn.recv(65536)
        assert done.done and got == data
        conn.shutdown(1)
        assert conn.recv(1) == b""


def test_discard_takes_everything(pair):
    client, server = pair
    with serve(server, "discard"), client.create_connection(("192.0.2.2", 80)) as conn:
        conn.sendall(bytes(1_000_000))
        conn.shutdown(1)
        assert conn.recv(10) == b""
        assert server.ss("-tan state established") == []


def test_chargen_repeats_its_95_lines(pair):
    client, server = pair
    with serve(server, "chargen"), client.create_connection(("192.0.2.2", 80)) as conn:
        got = b""
        while len(got) < 20000:
            got += conn.recv(65536)
        line = bytes(32 + i % 95 for i in range(72)) + b"\r\n"
        assert got.startswith(line)
        assert got[74:76] == b"!\""
        assert got[:5000] == got[95 * 74 : 95 * 74 + 5000]


@pytest.mark.parametrize("heads, answers, closes", [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1, False),
    (b"GET / HTTP/1.1\r\n\r\n" * 16, 16, False),
    (b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", 1, True),
    (b"GET / HTTP/1.0\r\n\r\n", 1, True),
    (b"GET / HTTP/1.1\r\n", 0, False),
])
def test_http_answers_each_request_head(pair, heads, answers, closes):
    client, server = pair
    with serve(server, "http"), client.create_connection(("192.0.2.2", 80)) as conn:
        conn.sendall(heads)
        client.clock.advance(client.clock.now + 100 * MS)
        conn.setblocking(False)
        got = b""
        ended = False
        while True:
            try:
                data = conn.recv(65536)
            except BlockingIOError:
                break
            if not data:
                ended = True
                break
            got += data
        assert got.count(b"HTTP/1.1 200 OK") == answers
        assert got.count(b"hello, world!") == answers
        assert ended == closes


def test_http_refuses_an_endless_head(pair):
    client, server = pair
    with serve(server, "http"), client.create_connection(("192.0.2.2", 80)) as conn:
        conn.sendall(b"x" * 9000)
        assert read_all(conn).startswith(b"HTTP/1.1 400")


def test_only_a_listener_takes_a_service(pair):
    _client, server = pair
    with server.socket() as sock, pytest.raises(OSError, match="listening"):
        server.engine.set_service(sock.handle, "echo")
    with serve(server, "echo") as sock, pytest.raises(OSError, match="no built-in service"):
        server.engine.set_service(sock.handle, "gopher")
