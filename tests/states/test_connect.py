"""Active open: addresses, ports, the SYN and what may answer it (RFC 9293 3.10.1 and 3.10.7.3, facts H11, M)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, raw  # type: ignore[attr-defined]

from ustack import Stack, VirtualClock

PEER, SERVER = "192.0.2.2", "192.0.2.1"
SECOND = 1_000_000_000
SO_ERROR = (1, 4)


def new_stack(**kw: Any) -> Stack:
    return Stack(None, kw.pop("address", SERVER + "/24"), clock=VirtualClock(wall=1_700_000_000_000_000_000), seed=1, **kw)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with new_stack() as s:
        yield s


def start(stack: Stack, port: int = 80, host: str = PEER, bind: tuple[str, int] | None = None) -> tuple[Any, Any]:
    """A non-blocking connect: the socket and its SYN."""
    sock = stack.socket()
    sock.setblocking(False)
    if bind is not None:
        sock.bind(bind)
    with pytest.raises(BlockingIOError) as caught:
        sock.connect((host, port))
    assert caught.value.errno == 115
    (packet,) = (p for _, p in stack.take())
    return sock, IP(packet)


def answer(stack: Stack, syn: Any, flags: str, **kw: Any) -> None:
    """A segment of the peer, by default acceptable in answer to the SYN."""
    fields = {"seq": 5000, "ack": syn[TCP].seq + 1, "window": 60000, **kw}
    options = fields.pop("options", [])
    stack.inject(
        raw(
            IP(src=syn.dst, dst=syn.src)
            / TCP(sport=syn[TCP].dport, dport=syn[TCP].sport, flags=flags, options=options, **fields)
        )
    )


def flags_out(stack: Stack) -> list[str]:
    return [str(IP(p)[TCP].flags) for _, p in stack.take()]


def errno_of(sock: Any) -> int:
    return int(sock.getsockopt(*SO_ERROR))


# ---- the SYN ----------------------------------------------------------------------------------------------
def test_the_syn(stack: Stack) -> None:
    sock, syn = start(stack)
    assert (syn.src, syn.dst, syn.ttl, syn.tos, str(syn.flags)) == (SERVER, PEER, 64, 0, "DF")
    assert syn.id != 0
    assert (str(syn[TCP].flags), syn[TCP].window, syn[TCP].ack) == ("S", 64240, 0)
    assert [k for k, _ in syn[TCP].options] == ["MSS", "SAckOK", "Timestamp", "NOP", "WScale"]
    assert dict(syn[TCP].options)["WScale"] == 10
    assert sock.getsockname() == (SERVER, syn[TCP].sport)
    assert stack.nstat()["TcpActiveOpens"] == 1


@pytest.mark.parametrize(
    ("sysctl", "kinds"),
    [
        ({"tcp_timestamps": 0}, ["MSS", "NOP", "NOP", "SAckOK", "NOP", "WScale"]),
        ({"tcp_sack": 0}, ["MSS", "NOP", "NOP", "Timestamp", "NOP", "WScale"]),
        ({"tcp_window_scaling": 0}, ["MSS", "SAckOK", "Timestamp"]),
        ({"tcp_window_scaling": 0, "tcp_sack": 0, "tcp_timestamps": 0}, ["MSS"]),
    ],
)
def test_options_follow_the_sysctls(sysctl: dict[str, int], kinds: list[str]) -> None:
    with new_stack(sysctl={f"net.ipv4.{k}": v for k, v in sysctl.items()}) as stack:
        assert [k for k, _ in start(stack)[1][TCP].options] == kinds


def test_ecn_is_asked_for(stack: Stack) -> None:
    stack.sysctl["net.ipv4.tcp_ecn"] = 1
    assert str(start(stack)[1][TCP].flags) == "SEC"


def test_retransmission(stack: Stack) -> None:
    """Four linear timeouts of a second, then doubling; ETIMEDOUT after tcp_syn_retries more."""
    sock, syn = start(stack)
    out = stack.run_until(300 * SECOND)
    assert [at / SECOND for at, _ in out] == [1, 2, 3, 4, 5, 7, 11, 19, 35, 67]
    assert {IP(p)[TCP].seq for _, p in out} == {syn[TCP].seq}
    assert errno_of(sock) == 110
    n = stack.nstat()
    assert (n["TcpAttemptFails"], n["TcpExtTCPTimeouts"], n["TcpExtTCPSynRetrans"]) == (1, 11, 10)
    assert stack.next_timeout() is None


def test_syn_retries_of_the_socket(stack: Stack) -> None:
    stack.sysctl["net.ipv4.tcp_syn_linear_timeouts"] = 0
    sock = stack.socket()
    sock.setsockopt(6, 7, 2)
    with pytest.raises(TimeoutError):
        sock.connect((PEER, 80))
    assert [at / SECOND for at, _ in stack.take()] == [0, 1, 3]
    assert stack.clock.now == 7 * SECOND


# ---- answers ----------------------------------------------------------------------------------------------
def test_handshake(stack: Stack) -> None:
    sock, syn = start(stack)
    assert sock.poll() == 0
    answer(stack, syn, "SA", options=[("MSS", 1000), ("WScale", 3)])
    ((_, packet),) = stack.take()
    ack = IP(packet)[TCP]
    assert (str(ack.flags), ack.seq, ack.ack, ack.window) == ("A", syn[TCP].seq + 1, 5001, 63)
    assert sock.poll() & 4
    assert sock.getpeername() == (PEER, 80)
    sock.send(b"x" * 3000)
    assert [len(IP(p)[TCP].payload) for _, p in stack.take()] == [1000, 1000, 1000]
    assert sock.connect_ex((PEER, 80)) == 0
    assert sock.connect_ex((PEER, 80)) == 106


@pytest.mark.parametrize(
    ("flags", "ack", "reply", "error"),
    [
        ("RA", 1, [], 111),
        ("R", 1, [], 0),
        ("A", 1, [], 0),
        ("SA", 0, ["R"], 0),
        ("SA", 2, ["R"], 0),
        ("A", 2, ["R"], 0),
        ("RA", 2, [], 0),
        ("F", 1, [], 0),
        ("SA", 1, ["A"], 0),
        ("SFA", 1, ["A"], 0),
        ("SPA", 1, ["A"], 0),
    ],
)
def test_answers_in_syn_sent(stack: Stack, flags: str, ack: int, reply: list[str], error: int) -> None:
    sock, syn = start(stack)
    answer(stack, syn, flags, ack=syn[TCP].seq + ack)
    assert flags_out(stack) == reply
    assert errno_of(sock) == error


def test_a_stray_answer_makes_the_syn_come_again_soon(stack: Stack) -> None:
    _, syn = start(stack)
    answer(stack, syn, "A", ack=syn[TCP].seq + 99)
    stack.take()
    assert stack.next_timeout() == 8_000_000


def test_simultaneous_open(stack: Stack) -> None:
    sock, syn = start(stack)
    answer(stack, syn, "S", options=[("MSS", 1460)])
    ((_, packet),) = stack.take()
    synack = IP(packet)[TCP]
    assert (str(synack.flags), synack.seq, synack.ack) == ("SA", syn[TCP].seq, 5001)
    answer(stack, syn, "SA")
    assert sock.poll() & 4
    assert sock.connect_ex((PEER, 80)) == 0


@pytest.mark.parametrize(
    ("type_", "code", "error"), [(3, 0, 101), (3, 1, 113), (3, 2, 92), (3, 3, 111), (11, 0, 113), (12, 0, 71), (4, 0, 0), (3, 4, 0)]
)
def test_icmp_ends_the_attempt(stack: Stack, type_: int, code: int, error: int) -> None:
    sock, syn = start(stack)
    stack.inject(raw(IP(src="198.51.100.1", dst=SERVER) / ICMP(type=type_, code=code) / raw(syn)[:28]))
    assert bool(sock.poll() & 8) == bool(error)
    assert errno_of(sock) == error
    assert stack.nstat().get("TcpAttemptFails", 0) == bool(error)


def test_icmp_about_another_number_is_ignored(stack: Stack) -> None:
    sock, syn = start(stack)
    syn[TCP].seq += 5
    stack.inject(raw(IP(src=PEER, dst=SERVER) / ICMP(type=3, code=1) / raw(syn)[:28]))
    assert errno_of(sock) == 0
    assert stack.nstat()["TcpExtOutOfWindowIcmps"] == 1


def test_blocking_connect_is_refused(stack: Stack) -> None:
    sock = stack.socket()
    done = stack.submit(sock, "connect", (PEER, 80))
    assert not done.done
    answer(stack, IP(stack.take()[0][1]), "RA")
    assert (done.done, done.errno) == (True, "ECONNREFUSED")
    again = stack.submit(sock, "connect", (PEER, 80))       # the socket can be used again
    answer(stack, IP(stack.take()[0][1]), "SA")
    assert (again.done, again.errno) == (True, None)


# ---- addresses --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["203.0.113.1", "192.0.2.255", "224.0.0.1", "255.255.255.255"])
def test_unreachable(host: str) -> None:
    with new_stack(default_route=False) as stack:
        sock = stack.socket()
        assert sock.connect_ex((host, 80)) == 101
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert stack.next_timeout() is None


def test_source_address_is_that_of_the_prefix() -> None:
    with new_stack(address=["192.0.2.1/24", "198.51.100.1/24"]) as stack:
        stack.route("add 203.0.113.128/25 src 198.51.100.1")
        assert start(stack, host="192.0.2.9")[1].src == "192.0.2.1"
        assert start(stack, host="198.51.100.9")[1].src == "198.51.100.1"
        assert start(stack, host="10.0.0.1")[1].src == "192.0.2.1"
        assert start(stack, host="203.0.113.200")[1].src == "198.51.100.1"
        assert start(stack, host="192.0.2.9", bind=("198.51.100.1", 0))[1].src == "198.51.100.1"


def test_a_whole_prefix_may_be_ours() -> None:
    with new_stack(address="203.0.113.0/24") as stack:
        assert start(stack, host=PEER)[1].src == "203.0.113.1"
        assert start(stack, host=PEER, bind=("203.0.113.77", 0))[1].src == "203.0.113.77"
        server = stack.create_server(("0.0.0.0", 80))
        for host in ("203.0.113.0", "203.0.113.200", "203.0.113.255"):
            assert stack.inject(raw(IP(src=PEER, dst=host) / TCP(sport=9, dport=80, flags="S"))) == 0
            assert IP(stack.take()[0][1]).src == host
        server.close()


def test_to_ourselves(stack: Stack) -> None:
    server = stack.create_server(("0.0.0.0", 80))
    for host, seen in ((SERVER, SERVER), ("127.0.0.1", "127.0.0.1"), ("", "127.0.0.1")):
        client = stack.create_connection((host, 80))
        conn, peer = server.accept()
        assert peer == client.getsockname()
        assert (peer[0], client.getpeername()[0]) == (seen, seen)
        client.sendall(b"x" * 100_000)
        assert len(conn.recv(100_000, 0x100)) == 100_000
        conn.close()
        assert client.recv(1) == b""
        client.close()
    with pytest.raises(ConnectionRefusedError):
        stack.create_connection(("127.0.0.1", 81))
    assert stack.take() == []


def test_a_socket_can_connect_to_itself(stack: Stack) -> None:
    sock = stack.socket()
    sock.bind((SERVER, 4000))
    sock.connect((SERVER, 4000))
    sock.sendall(b"narcissus")
    assert sock.recv(100) == b"narcissus"


# ---- ports ------------------------------------------------------------------------------------------------
def test_ports_are_even_first_and_never_twice(stack: Stack) -> None:
    stack.sysctl["net.ipv4.ip_local_port_range"] = "40000 40019"
    socks = [start(stack)[0] for _ in range(20)]
    ports = [s.getsockname()[1] for s in socks]
    assert sorted(ports) == list(range(40000, 40020))
    assert all(p % 2 == 0 for p in ports[:10])
    sock = stack.socket()
    assert sock.connect_ex((PEER, 80)) == 99
    assert sock.getsockname() == ("0.0.0.0", 0)


def test_another_destination_may_share_the_port(stack: Stack) -> None:
    stack.sysctl["net.ipv4.ip_local_port_range"] = "40000 40000"
    socks = [start(stack, port)[0] for port in (80, 81, 82)] + [start(stack, host="192.0.2.3")[0]]
    assert {s.getsockname()[1] for s in socks} == {40000}
    assert stack.socket().connect_ex((PEER, 80)) == 99


def test_ports_of_others_are_left_alone(stack: Stack) -> None:
    stack.sysctl["net.ipv4.ip_local_port_range"] = "40000 40003"
    stack.sysctl["net.ipv4.ip_local_reserved_ports"] = "40002"
    taken = stack.socket()
    taken.bind(("0.0.0.0", 40000))
    socks = [start(stack)[0] for _ in range(2)]
    assert {s.getsockname()[1] for s in socks} == {40001, 40003}
    assert stack.socket().connect_ex((PEER, 80)) == 99


def test_bound_port(stack: Stack) -> None:
    sock, syn = start(stack, bind=("0.0.0.0", 5555))
    assert syn[TCP].sport == 5555
    answer(stack, syn, "RA")
    assert sock.connect_ex((PEER, 80)) == 111
    assert sock.getsockname() == ("0.0.0.0", 5555)      # the port stays, the address was not the user's
    assert sock.connect_ex((PEER, 81)) == 115
    other = stack.socket()
    with pytest.raises(OSError) as caught:
        other.bind(("0.0.0.0", 5555))
    assert caught.value.errno == 98


def test_start_of_the_search_depends_on_seed_and_destination() -> None:
    seen = set()
    for seed in range(4):
        with Stack(None, SERVER + "/24", clock=VirtualClock(wall=0), seed=seed) as stack:
            seen |= {start(stack, host=f"192.0.2.{i}")[1][TCP].sport for i in range(10, 14)}
    assert len(seen) >= 15


# ---- TIME_WAIT (H11) --------------------------------------------------------------------------------------
def closed(stack: Stack, stamps: bool) -> Any:
    """A connection from port 40000 that we closed first; its SYN."""
    stack.sysctl["net.ipv4.ip_local_port_range"] = "40000 40000"
    sock, syn = start(stack)
    options = [("MSS", 1460), ("Timestamp", (100, dict(syn[TCP].options)["Timestamp"][0]))] if stamps else []
    echo = options[1:]
    answer(stack, syn, "SA", options=options)
    sock.close()
    stack.take()
    answer(stack, syn, "FA", seq=5001, ack=syn[TCP].seq + 2, options=echo)
    assert flags_out(stack) == ["A"]
    assert [r["state"] for r in stack.ss("-tan")] == ["TIME-WAIT"]
    return syn


@pytest.mark.parametrize(("reuse", "stamps", "wait"), [(0, True, 2.0), (2, True, 2.0), (1, False, 2.0), (1, True, 0.9)])
def test_a_port_in_time_wait_is_not_chosen(stack: Stack, reuse: int, stamps: bool, wait: float) -> None:
    stack.sysctl["net.ipv4.tcp_tw_reuse"] = reuse
    closed(stack, stamps)
    stack.run_until(stack.clock.now + int(wait * SECOND))
    assert stack.socket().connect_ex((PEER, 80)) == 99


def test_a_port_in_time_wait_is_chosen_after_the_delay(stack: Stack) -> None:
    stack.sysctl["net.ipv4.tcp_tw_reuse"] = 1
    old = closed(stack, True)
    stack.run_until(stack.clock.now + SECOND)
    _, syn = start(stack)
    assert syn[TCP].seq == (old[TCP].seq + 2 + 65537) % 2**32
    assert stack.nstat()["TcpExtTWRecycled"] == 1
    assert [r["state"] for r in stack.ss("-tan")] == ["SYN-SENT"]


def test_a_bound_port_in_time_wait_needs_timestamps_only(stack: Stack) -> None:
    """bind() says that the port is meant: tcp_tw_reuse and its delay do not matter."""
    stack.sysctl["net.ipv4.tcp_tw_reuse"] = 0
    first = stack.socket()
    first.setsockopt(1, 2, 1)
    first.setblocking(False)
    first.bind((SERVER, 40000))
    assert first.connect_ex((PEER, 80)) == 115
    syn = IP(stack.take()[0][1])
    stamp = [("Timestamp", (100, dict(syn[TCP].options)["Timestamp"][0]))]
    answer(stack, syn, "SA", options=stamp)
    first.close()
    answer(stack, syn, "FA", seq=5001, ack=syn[TCP].seq + 2, options=stamp)
    stack.take()
    assert [r["state"] for r in stack.ss("-tan")] == ["TIME-WAIT"]
    second = stack.socket()
    second.setsockopt(1, 2, 1)
    second.setblocking(False)
    second.bind((SERVER, 40000))
    assert second.connect_ex((PEER, 80)) == 115
    assert IP(stack.take()[0][1])[TCP].seq == (syn[TCP].seq + 2 + 65537) % 2**32


def test_on_loopback_time_wait_is_reused_by_default(stack: Stack) -> None:
    server = stack.create_server(("127.0.0.1", 80))
    stack.sysctl["net.ipv4.ip_local_port_range"] = "40000 40000"
    for _ in range(3):
        client = stack.create_connection(("127.0.0.1", 80))
        conn, _ = server.accept()
        client.close()
        conn.close()
        stack.run_until(stack.clock.now + 2 * SECOND)
    assert stack.nstat()["TcpExtTWRecycled"] == 2


# ---- again ------------------------------------------------------------------------------------------------
def test_disconnect_and_connect_again(stack: Stack) -> None:
    sock, syn = start(stack)
    answer(stack, syn, "SA")
    stack.take()
    sock.disconnect()
    assert flags_out(stack) == ["RA"]
    assert sock.getsockname() == ("0.0.0.0", 0)
    with pytest.raises(BlockingIOError):
        sock.connect((PEER, 80))
    again = IP(stack.take()[-1][1])
    assert again[TCP].seq != syn[TCP].seq
    answer(stack, again, "SA", seq=9000)
    assert sock.connect_ex((PEER, 80)) == 0


def test_linger_zero_resets_a_connection_under_way(stack: Stack) -> None:
    sock, _ = start(stack)
    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
    sock.close()
    assert stack.take() == []
    assert stack.next_timeout() is None
    assert stack.ss("-tan") == []
