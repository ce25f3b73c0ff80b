"""Fast Open of our own connects: cookies, data in the SYN, what makes us give it up (RFC 7413 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import IP, TCP, raw  # type: ignore[attr-defined]

from ustack import Stack, VirtualClock

PEER, SERVER = "192.0.2.2", "192.0.2.1"
SECOND = 1_000_000_000
FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = (6, 30), (6, 34)
COOKIE = bytes.fromhex("aabbccdd11223344")


def new_stack(**sysctl: int) -> Stack:
    return Stack(None, SERVER + "/24", clock=VirtualClock(wall=1_700_000_000_000_000_000), seed=1,
                 sysctl={f"net.ipv4.{k}": v for k, v in sysctl.items()})


@pytest.fixture
def stack() -> Iterator[Stack]:
    with new_stack() as s:
        yield s


def send(stack: Stack, size: int, *options: tuple[int, int], port: int = 80) -> tuple[Any, int | None, Any]:
    """A non-blocking sendto with MSG_FASTOPEN: the socket, what it returned (None: EINPROGRESS), the SYN."""
    sock = stack.socket()
    sock.setblocking(False)
    for option in options:
        sock.setsockopt(*option, 1)
    try:
        taken = sock.sendto(b"x" * size, FASTOPEN, (PEER, port))
    except BlockingIOError as exc:
        assert exc.errno == 115
        taken = None
    (packet,) = (p for _, p in stack.take())
    return sock, taken, IP(packet)


def option(syn: Any) -> tuple[int, bytes] | None:
    """Kind and cookie of the Fast Open option."""
    data = raw(syn[TCP])[20 : syn[TCP].dataofs * 4]
    while data:
        if data[0] in (0, 1):
            data = data[1:]
            continue
        if data[0] == 34:
            return 34, data[2 : data[1]]
        if data[0] == 254:
            return 254, data[4 : data[1]]
        data = data[data[1] :]
    return None


def answer(stack: Stack, syn: Any, ack: int, cookie: bytes | None = None, kind: int = 34, flags: str = "SA", mss: int = 1460) -> list[str]:
    """A SYN-ACK for the SYN and `ack` bytes of its data; the flags of what the stack says to it."""
    options: list[Any] = [("MSS", mss)]
    if cookie is not None:
        options.append((kind, (b"\xf9\x89" if kind == 254 else b"") + cookie))
    stack.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=syn[TCP].dport, dport=syn[TCP].sport, flags=flags, seq=5000,
                                                   ack=syn[TCP].seq + 1 + ack, window=60000, options=options)))
    return [str(IP(p)[TCP].flags) for _, p in stack.take()]


def learn(stack: Stack, cookie: bytes = COOKIE, **kw: Any) -> None:
    sock, taken, syn = send(stack, 0)
    assert (taken, len(syn[TCP].payload)) == (None, 0)
    assert option(syn) == (34, b"")
    assert answer(stack, syn, 0, cookie, **kw) == ["A"]
    sock.disconnect()
    stack.take()


def test_the_first_syn_asks(stack: Stack) -> None:
    _, taken, syn = send(stack, 500)
    assert (taken, len(syn[TCP].payload), option(syn)) == (None, 0, (34, b""))


def test_data_goes_with_the_cookie(stack: Stack) -> None:
    learn(stack)
    sock, taken, syn = send(stack, 500)
    assert (taken, len(syn[TCP].payload), option(syn)) == (500, 500, (34, COOKIE))
    assert answer(stack, syn, 500) == ["A"]
    assert stack.nstat()["TcpExtTCPFastOpenActive"] == 1
    assert sock.poll() & 4


def test_the_cached_mss_limits_the_data(stack: Stack) -> None:
    learn(stack, mss=1000)
    _, taken, syn = send(stack, 5000)
    assert (taken, len(syn[TCP].payload)) == (960, 960)     # all 40 bytes of options are set aside


def test_data_that_was_not_taken_is_sent_again_at_once(stack: Stack) -> None:
    learn(stack)
    _sock, _, syn = send(stack, 500)
    assert answer(stack, syn, 0) == ["PA"]
    assert stack.nstat()["TcpExtTCPFastOpenActiveFail"] == 1


@pytest.mark.parametrize("size", [4, 6, 16])
def test_cookies_of_any_legal_size(stack: Stack, size: int) -> None:
    learn(stack, b"c" * size)
    assert option(send(stack, 10)[2]) == (34, b"c" * size)


def test_an_unasked_cookie_is_ignored(stack: Stack) -> None:
    sock = stack.socket()
    sock.setblocking(False)
    assert sock.connect_ex((PEER, 80)) == 115
    answer(stack, IP(stack.take()[0][1]), 0, COOKIE)
    assert send(stack, 10)[1] is None


def test_cookies_go_with_the_metrics(stack: Stack) -> None:
    learn(stack)
    stack.tcp_metrics_flush()
    assert option(send(stack, 10)[2]) == (34, b"")


def test_no_answer_to_the_request_tries_the_experimental_option_next(stack: Stack) -> None:
    for asked in ((34, b""), (254, b""), (34, b"")):
        sock, _, syn = send(stack, 0)
        assert option(syn) == asked
        answer(stack, syn, 0)
        sock.disconnect()
        stack.take()


def test_experimental_cookie(stack: Stack) -> None:
    sock, _, syn = send(stack, 0)
    answer(stack, syn, 0)
    sock.disconnect()
    stack.take()
    sock, _, syn = send(stack, 0)
    answer(stack, syn, 0, COOKIE, kind=254)
    sock.disconnect()
    stack.take()
    _, taken, syn = send(stack, 10)
    assert (taken, option(syn)) == (10, (254, COOKIE))


def test_the_retransmitted_syn_is_plain(stack: Stack) -> None:
    learn(stack)
    _sock, _, _ = send(stack, 500)
    ((_, packet),) = stack.run_until(stack.clock.now + SECOND)
    again = IP(packet)
    assert (len(again[TCP].payload), option(again)) == (0, None)


# ---- without a cookie -------------------------------------------------------------------------------------
def test_switched_off() -> None:
    with new_stack(tcp_fastopen=0) as stack:
        sock = stack.socket()
        with pytest.raises(OSError) as caught:
            sock.sendto(b"x", FASTOPEN, (PEER, 80))
        assert caught.value.errno == 95


def test_data_without_cookie_by_sysctl() -> None:
    with new_stack(tcp_fastopen=5) as stack:
        _, taken, syn = send(stack, 10)
        assert (taken, len(syn[TCP].payload), option(syn)) == (10, 10, None)


def test_data_without_cookie_by_socket_or_route(stack: Stack) -> None:
    assert send(stack, 10, TCP_FASTOPEN_NO_COOKIE)[1] == 10
    stack.route("change 192.0.2.0/24 fastopen_no_cookie 1")
    assert send(stack, 10)[1] == 10


# ---- TCP_FASTOPEN_CONNECT ---------------------------------------------------------------------------------
def test_connect_waits_for_data(stack: Stack) -> None:
    learn(stack)
    sock = stack.socket()
    sock.setblocking(False)
    sock.setsockopt(*TCP_FASTOPEN_CONNECT, 1)
    sock.connect((PEER, 80))
    assert stack.take() == []
    assert sock.poll() & 4
    assert sock.send(b"x" * 20) == 20
    syn = IP(stack.take()[0][1])
    assert (len(syn[TCP].payload), option(syn)) == (20, (34, COOKIE))


def test_connect_without_cookie_asks_for_one(stack: Stack) -> None:
    sock = stack.socket()
    sock.setblocking(False)
    sock.setsockopt(*TCP_FASTOPEN_CONNECT, 1)
    with pytest.raises(BlockingIOError):
        sock.connect((PEER, 80))
    assert option(IP(stack.take()[0][1])) == (34, b"")


def test_a_connect_that_waited_for_nothing_is_closed_silently(stack: Stack) -> None:
    learn(stack)
    sock = stack.socket()
    sock.setsockopt(*TCP_FASTOPEN_CONNECT, 1)
    sock.connect((PEER, 80))
    sock.close()
    assert stack.take() == []
    assert {k: v for k, v in stack.pools().items() if v} == {}


# ---- black holes ------------------------------------------------------------------------------------------
def lose(stack: Stack) -> None:
    """A Fast Open connect whose SYNs all get lost but the fourth."""
    sock, _, _ = send(stack, 10)
    stack.run_until(stack.clock.now + 4 * SECOND)
    sock.close()
    stack.take()


def test_a_black_hole_stops_fast_open_for_longer_each_time() -> None:
    with new_stack(tcp_fastopen_blackhole_timeout_sec=100) as stack:
        learn(stack)
        for n, pause in enumerate((100, 200, 400)):
            assert option(send(stack, 10)[2]) == (34, COOKIE)
            lose(stack)
            assert stack.nstat()["TcpExtTCPFastOpenBlackhole"] == n + 1
            at = stack.clock.now - SECOND        # the third timeout came a second before
            stack.run_until(at + pause * SECOND - 1)
            stack.take()
            sock, taken, syn = send(stack, 10)
            assert (taken, option(syn)) == (None, None)
            sock.close()
            stack.run_until(at + pause * SECOND)
            stack.take()


def test_no_black_hole_detection_by_default(stack: Stack) -> None:
    learn(stack)
    lose(stack)
    assert option(send(stack, 10)[2]) == (34, COOKIE)
    assert "TcpExtTCPFastOpenBlackhole" not in stack.nstat()


def fin_out_of_order(stack: Stack) -> None:
    """A Fast Open connection on which nothing arrives but a FIN behind a hole."""
    sock, _, syn = send(stack, 10)
    answer(stack, syn, 10)
    stack.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=80, dport=syn[TCP].sport, flags="FA", seq=5101,
                                                   ack=syn[TCP].seq + 11, window=60000)))
    sock.disconnect()
    stack.take()


def test_data_lost_on_the_way_back_is_a_black_hole_too() -> None:
    with new_stack(tcp_fastopen_blackhole_timeout_sec=100) as stack:
        learn(stack)
        fin_out_of_order(stack)
        assert stack.nstat()["TcpExtTCPFastOpenBlackhole"] == 1
        assert option(send(stack, 10)[2]) is None


def test_success_or_a_write_of_the_sysctl_forgets_the_black_hole() -> None:
    with new_stack(tcp_fastopen_blackhole_timeout_sec=100) as stack:
        learn(stack)
        fin_out_of_order(stack)
        stack.sysctl["net.ipv4.tcp_fastopen_blackhole_timeout_sec"] = 100
        fin_out_of_order(stack)                     # 100 s again, not 200
        stack.run_until(stack.clock.now + 100 * SECOND)
        stack.take()
        sock, taken, syn = send(stack, 10)
        assert taken == 10
        answer(stack, syn, 10)
        stack.inject(raw(IP(src=PEER, dst=SERVER) / TCP(sport=80, dport=syn[TCP].sport, flags="PA", seq=5001,
                                                       ack=syn[TCP].seq + 11, window=60000) / b"data"))
        sock.disconnect()
        stack.take()
        fin_out_of_order(stack)
        stack.run_until(stack.clock.now + 100 * SECOND)     # the first pause again
        stack.take()
        assert send(stack, 10)[1] == 10
