"""Congestion controls of the user's own: Python classes and C op-tables, called where Linux calls tcp_congestion_ops."""

from __future__ import annotations

import errno
import gc
import importlib.util
import runpy
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ustack
from ustack import congestion
from ustack.observe import tcp_info

TOP = Path(__file__).parents[2]
CONGESTION = (socket.IPPROTO_TCP, socket.TCP_CONGESTION)


class Wire:
    """Two stacks on a wire with 10 ms each way that loses packets; what the sender sent is kept."""

    def __init__(self, loss: float = 0.01, seed: int = 3) -> None:
        self.clock = ustack.VirtualClock()
        left, right = ustack.MemoryLink.pair()
        self.client = ustack.Stack(ustack.ImpairedLink(left, delay=0.010, loss=loss, seed=seed), "192.0.2.1/24", clock=self.clock, seed=1)
        self.server = ustack.Stack(right, "192.0.2.2/24", clock=self.clock, seed=2)
        self.listener = self.server.create_server(("192.0.2.2", 80))

    def connect(self, name: str | None = None) -> tuple[Any, Any]:
        conn = self.client.socket()
        if name:
            conn.setsockopt(*CONGESTION, name.encode())
        conn.connect(("192.0.2.2", 80))
        return conn, self.listener.accept()[0]

    def transfer(self, name: str, size: int = 400_000) -> tuple[int, list[tuple[int, int]]]:
        """(ns it took, (cwnd, ssthresh) after each read of the receiver)."""
        conn, peer = self.connect(name)
        self.client.submit(conn, "sendall", bytes(size))
        windows, got = [], 0
        while got < size:
            got += len(peer.recv(65536))
            info = tcp_info.decode(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 280))
            windows.append((info["snd_cwnd"], info["snd_ssthresh"]))
        return self.clock.now, windows


@pytest.fixture
def registered() -> Iterator[None]:
    before = set(congestion.names())
    yield
    for name in set(congestion.names()) - before:
        congestion.unregister(name)


@pytest.fixture(scope="module")
def timid(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """examples/congestion_c, built as its text says."""
    folder = tmp_path_factory.mktemp("congestion_c")
    source = folder / "timid.pyx"
    source.write_text((TOP / "examples" / "congestion_c" / "timid.pyx").read_text())
    done = subprocess.run([sys.executable, "-c", "from Cython.Build.Cythonize import main; main()", "-i", "-3", "-q", str(source)], cwd=TOP,
                          capture_output=True, text=True, env={"CFLAGS": "-O0", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)})
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("timid", next(folder.glob("timid*.so")))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(registered: None) -> dict[str, Any]:
    return runpy.run_path(str(TOP / "examples" / "congestion_python.py"))


def test_the_base_class_is_reno(registered: None) -> None:
    """Packet by packet: the same times, the same windows."""
    @congestion.register
    class Same(congestion.CongestionControl):
        name = "same"

    assert Wire().transfer("same") == Wire().transfer("reno")


def test_a_python_variant_changes_the_packets(example: dict[str, Any]) -> None:
    assert Wire().transfer("timid") != Wire().transfer("reno")
    assert example["transfer"]("timid") < example["transfer"]("reno")


def test_the_same_in_c_is_equal(example: dict[str, Any], timid: Any) -> None:
    python = Wire().transfer("timid")
    wire = Wire()
    congestion.unregister("timid")
    wire.client.add_congestion_control(timid.capsule())
    assert wire.transfer("timid") == python


def test_c_tables_work_beside_an_engine_thread(timid: Any) -> None:
    left, right = ustack.MemoryLink.pair()
    with ustack.Stack(left, "192.0.2.1/24") as client, ustack.Stack(right, "192.0.2.2/24") as server:
        client.add_congestion_control(timid.capsule())
        client.sysctl["net.ipv4.tcp_congestion_control"] = "timid"
        with server.create_server(("192.0.2.2", 80)) as listener, client.create_connection(("192.0.2.2", 80), timeout=10) as conn:
            peer, _ = listener.accept()
            with peer:
                assert conn.getsockopt(*CONGESTION, 16).rstrip(b"\0") == b"timid"
                assert "\n\t timid wscale:" in client.ss_text("-tni"), "ss calls a congestion control by its own name"
                conn.sendall(b"x" * 100_000)
                got = 0
                while got < 100_000:
                    got += len(peer.recv(65536))


def test_python_beside_an_engine_thread_is_refused(example: dict[str, Any]) -> None:
    left, _ = ustack.MemoryLink.pair()
    with ustack.Stack(left, "192.0.2.1/24") as stack:
        with pytest.raises(ValueError, match="cc_ops_t"):
            stack.sysctl["net.ipv4.tcp_congestion_control"] = "timid"
        with stack.socket() as sock, pytest.raises(ValueError, match="cc_ops_t"):
            sock.setsockopt(*CONGESTION, b"timid")


def test_every_method_is_called_with_its_arguments(registered: None) -> None:
    calls: dict[str, list[Any]] = {}

    @congestion.register
    class Logged(congestion.CongestionControl):
        name = "logged"

        def note(self, method: str, *args: Any) -> None:
            calls.setdefault(method, []).append(args)

        def init(self) -> None:
            self.note("init", self.conn.cwnd, self.conn.mss)

        def release(self) -> None:
            self.note("release")

        def ssthresh(self) -> int:
            self.note("ssthresh", self.conn.in_flight, self.conn.ca_state)
            return super().ssthresh()

        def undo_cwnd(self) -> int:
            self.note("undo_cwnd")
            return super().undo_cwnd()

        def cong_avoid(self, *, ack: int, acked: int) -> None:
            self.note("cong_avoid", ack, acked)
            super().cong_avoid(ack=ack, acked=acked)

        def set_state(self, *, state: int) -> None:
            self.note("set_state", congestion.STATES[state])

        def cwnd_event(self, *, event: int) -> None:
            self.note("cwnd_event", congestion.CWND_EVENTS[event])

        def in_ack_event(self, *, flags: int) -> None:
            self.note("in_ack_event", flags)

        def pkts_acked(self, *, acked: int, rtt_us: int, in_flight: int) -> None:
            self.note("pkts_acked", acked, rtt_us, in_flight)

        def min_tso_segs(self) -> int:
            self.note("min_tso_segs")
            return 2

    wire = Wire(loss=0.03)
    conn, peer = wire.connect("logged")
    wire.client.submit(conn, "sendall", bytes(300_000))
    got = 0
    while got < 300_000:
        got += len(peer.recv(65536))
    conn.setsockopt(*CONGESTION, b"reno")
    assert calls["init"] == [(10, 1448)] and calls["release"] == [()]
    assert ("Recovery",) in calls["set_state"] and ("Open",) in calls["set_state"]
    assert ("TX_START",) in calls["cwnd_event"] and ("COMPLETE_CWR",) in calls["cwnd_event"]
    assert calls["ssthresh"] and calls["in_ack_event"] and calls["min_tso_segs"]
    assert any(rtt >= 20_000 for _, rtt, _ in calls["pkts_acked"])
    assert all(acked > 0 for _, acked in calls["cong_avoid"])


def test_cong_control_sets_window_and_rate(registered: None) -> None:
    rates: list[congestion.Rate] = []

    @congestion.register
    class Fixed(congestion.CongestionControl):
        name = "fixed"
        pacing = True

        def cong_control(self, *, ack: int, flag: int, rate: congestion.Rate) -> None:
            rates.append(rate)
            self.conn.cwnd, self.conn.pacing_rate = 7, 500_000

    wire = Wire(loss=0)
    took, windows = wire.transfer("fixed", 200_000)
    assert set(windows[3:]) == {(7, 0x7FFFFFFF)}
    assert took / 1e9 == pytest.approx(200_000 / (7 * 1448 / 0.020), rel=0.15)
    assert max(r["delivered"] for r in rates) <= 10 and any(r["rtt_us"] >= 20_000 for r in rates)


def test_an_exception_is_raised_by_the_call_that_drove_the_stack(registered: None) -> None:
    @congestion.register
    class Broken(congestion.CongestionControl):
        name = "broken"

        def cong_avoid(self, *, ack: int, acked: int) -> None:
            raise ZeroDivisionError("mine")

    wire = Wire(loss=0)
    conn, peer = wire.connect("broken")
    with pytest.raises(ZeroDivisionError, match="mine"):
        conn.sendall(bytes(50_000))
        peer.recv(1 << 20)
        peer.recv(1 << 20)


@pytest.mark.parametrize("answer", [0, -1, 2**31, "many", 1.5])
def test_a_threshold_that_is_no_window_is_an_error_and_renos_stands_in(registered: None, answer: Any) -> None:
    class Odd(congestion.CongestionControl):
        name = "odd"

        def ssthresh(self) -> Any:
            return answer

    congestion.register(Odd)
    wire = Wire(loss=0.03)
    with pytest.raises((ValueError, TypeError)):
        wire.transfer("odd")


def test_the_connection_is_looked_at_in_a_method_only_and_the_stack_not_acted_on(registered: None) -> None:
    kept: list[Any] = []

    @congestion.register
    class Nosy(congestion.CongestionControl):
        name = "nosy"

        def init(self) -> None:
            kept.append(self.conn)
            assert self.conn.now == wire.client.clock.now      # type: ignore[union-attr]
            assert wire.client.nstat()["TcpActiveOpens"] == 1
            wire.client.socket()

    wire = Wire()
    with pytest.raises(RuntimeError, match="not act on it"):
        wire.connect("nosy")
    with pytest.raises(RuntimeError, match="only while a method"):
        _ = kept[0].cwnd


def test_names(registered: None) -> None:
    class Named(congestion.CongestionControl):
        pass

    for name in ("", "cubic", "sixteen-letters.", "two words"):
        Named.name = name
        with pytest.raises(ValueError):
            congestion.register(Named)
    Named.name = "named"
    congestion.register(Named)
    stack = ustack.Stack(None, "192.0.2.1/24", clock=ustack.VirtualClock())
    assert stack.sysctl["net.ipv4.tcp_available_congestion_control"] == "reno bbr cubic"
    stack.sysctl["net.ipv4.tcp_congestion_control"] = "named"
    assert stack.sysctl["net.ipv4.tcp_available_congestion_control"] == "reno bbr cubic named"
    assert stack.socket().getsockopt(*CONGESTION, 16).rstrip(b"\0") == b"named"
    other = ustack.Stack(None, "192.0.2.1/24", clock=ustack.VirtualClock())
    other.route("add 198.51.100.0/24 dev tun0 congctl named")
    assert other.sysctl["net.ipv4.tcp_available_congestion_control"] == "reno bbr cubic named"
    with pytest.raises(OSError):
        other.route("add 203.0.113.0/24 dev tun0 congctl unheard")
    with pytest.raises(OSError) as caught:
        stack.socket().setsockopt(*CONGESTION, b"unheard")
    assert caught.value.errno == errno.ENOENT


def test_tables_that_will_not_do(timid: Any) -> None:
    stack = ustack.Stack(None, "192.0.2.1/24", clock=ustack.VirtualClock())
    with pytest.raises(ValueError, match="cc_ops_t"):
        stack.add_congestion_control(object())
    stack.add_congestion_control(timid.capsule())
    with pytest.raises(OSError) as caught:
        stack.add_congestion_control(timid.capsule())
    assert caught.value.errno == errno.EEXIST


def test_nothing_is_kept_of_connections_that_are_gone(registered: None) -> None:
    live: list[weakref.ref[Any]] = []

    @congestion.register
    class Seen(congestion.CongestionControl):
        name = "seen"

        def init(self) -> None:
            live.append(weakref.ref(self))

    wire = Wire(loss=0)
    for conn, peer in [wire.connect("seen") for _ in range(3)]:
        conn.close()
        peer.close()
    wire.clock.advance(wire.clock.now + 120 * 10**9)
    gc.collect()
    wire.connect("seen")
    assert [ref() is not None for ref in live] == [False, False, False, True]
