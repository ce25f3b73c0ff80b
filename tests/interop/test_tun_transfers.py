"""Files through a TUN device, kernel's TCP and curl at the other end: every byte as it was, in spite of what the path does."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import struct
import subprocess
from pathlib import Path

import pytest

import ustack
from tests.interop.conftest import STACK, TunLab, WebServer

pytestmark = pytest.mark.root
URL = f"http://{STACK}/file"
LARGE = 100_000_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def download(lab: TunLab, server: WebServer, into: Path, seconds: int = 45) -> subprocess.CompletedProcess[bytes]:
    got = lab.ns.run("curl", "-sS", "-m", str(seconds), "-o", str(into), URL, timeout=seconds + 10)
    assert got.returncode == 0, got.stderr
    assert sha(into.read_bytes()) == sha(server.blob)
    return got


def upload(lab: TunLab, server: WebServer, blob: bytes, path: Path, seconds: int = 45) -> None:
    path.write_bytes(blob)
    got = lab.ns.run("curl", "-sS", "-m", str(seconds), "-T", str(path), URL, timeout=seconds + 10)
    assert got.returncode == 0, got.stderr
    server.join()
    assert server.uploads[-1] == sha(blob)


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [1500, 576, 9000])
def test_both_ways(lab: TunLab, tmp_path: Path, offload: bool, mtu: int) -> None:
    stack = lab.stack(lab.tun(offload=offload, mtu=mtu))
    server = WebServer(stack, os.urandom(3_000_000))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(3_000_000), tmp_path / "up")
    assert server.errors == []
    assert stack.drops().keys() <= {"TCP_TW", "IP_INHDR", "TCP_OLD_DATA"}  # IP_INHDR: the kernel's IPv6 router solicitations
    assert stack.nstat().get("TcpInCsumErrors", 0) == 0


@pytest.mark.parametrize("off", ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"])
def test_a_kernel_without(lab: TunLab, tmp_path: Path, off: str) -> None:
    lab.ns.sysctl(f"net.ipv4.{off}", 0)
    server = WebServer(lab.stack(), os.urandom(LARGE))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(LARGE), tmp_path / "up")
    assert server.errors == []


@pytest.mark.parametrize("off", ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"])
def test_ustack_without(lab: TunLab, tmp_path: Path, off: str) -> None:
    server = WebServer(lab.stack(sysctl={f"net.ipv4.{off}": 0}), os.urandom(2_000_000))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(2_000_000), tmp_path / "up")
    assert server.errors == []


@pytest.mark.parametrize("congestion", ["reno", "cubic", "bbr"])
def test_through_a_bad_line(lab: TunLab, tmp_path: Path, congestion: str) -> None:
    """2 % loss, 5 ms, reordering, duplicates and damage, both ways."""
    link = ustack.ImpairedLink(lab.tun(), loss=0.02, delay=0.005, reorder=0.05, duplicate=0.02, corrupt=0.005, seed=7)
    stack = lab.stack(link, sysctl={"net.ipv4.tcp_congestion_control": congestion})
    server = WebServer(stack, os.urandom(2_000_000))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(2_000_000), tmp_path / "up")
    assert server.errors == []
    seen = link.counters()
    assert all(seen[way][what] > 0 for way in ("in", "out") for what in ("lost", "duplicated", "reordered", "corrupted")), seen
    assert stack.nstat()["TcpRetransSegs"] > 0


@pytest.mark.parametrize("off", ["tcp_timestamps", "tcp_sack"])
def test_through_a_bad_line_to_a_kernel_without(lab: TunLab, tmp_path: Path, off: str) -> None:
    lab.ns.sysctl(f"net.ipv4.{off}", 0)
    link = ustack.ImpairedLink(lab.tun(), loss=0.02, delay=0.005, reorder=0.02, duplicate=0.02, seed=11)
    server = WebServer(lab.stack(link), os.urandom(500_000))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(500_000), tmp_path / "up")
    assert server.errors == []


def test_a_slow_line_is_filled_and_not_broken(lab: TunLab, tmp_path: Path) -> None:
    link = ustack.ImpairedLink(lab.tun(), rate=80e6, delay=0.01, limit=100)
    server = WebServer(lab.stack(link), os.urandom(5_000_000))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(5_000_000), tmp_path / "up")
    assert server.errors == []


def test_a_large_file_both_ways(lab: TunLab, tmp_path: Path) -> None:
    server = WebServer(lab.stack(), os.urandom(LARGE))
    download(lab, server, tmp_path / "down", 80)
    upload(lab, server, os.urandom(LARGE), tmp_path / "up", 80)
    assert server.errors == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("off", ["nothing", "tcp_timestamps", "tcp_sack", "tcp_window_scaling"])
def test_a_large_file_through_a_bad_line(lab: TunLab, tmp_path: Path, off: str) -> None:
    """2 % loss, 5 ms, reordering and duplicates, both ways: 100 MB each way."""
    if off != "nothing":
        lab.ns.sysctl(f"net.ipv4.{off}", 0)
    link = ustack.ImpairedLink(lab.tun(), loss=0.02, delay=0.005, reorder=0.02, duplicate=0.02, seed=5)
    server = WebServer(lab.stack(link), os.urandom(LARGE))
    download(lab, server, tmp_path / "down", 400)
    upload(lab, server, os.urandom(LARGE), tmp_path / "up", 400)
    assert server.errors == []


def test_the_stack_as_client_of_a_kernel_server(lab: TunLab) -> None:
    """connect() from the stack: a kernel's listener in the namespace echoes."""
    import socket
    import threading

    stack = lab.stack()
    with lab.ns.inside():
        listener = socket.create_server(("192.0.2.1", 7000))

    def echo() -> None:
        conn, _ = listener.accept()
        with conn:
            while block := conn.recv(65536):
                conn.sendall(block)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    blob = os.urandom(1_000_000)
    with stack.create_connection(("192.0.2.1", 7000), timeout=10) as conn:
        sender = threading.Thread(target=lambda: (conn.sendall(blob), conn.shutdown(socket.SHUT_WR)))
        sender.start()
        back = bytearray()
        while block := conn.recv(65536):
            back += block
        sender.join()
    assert back == blob
    thread.join(10)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        stack.create_connection(("192.0.2.1", 7001), timeout=10)


def random_steering(fd: int) -> None:
    """TUNSETSTEERINGEBPF: every packet to a queue drawn by lot. OSError where the kernel lets nobody load programs."""
    program = bytes.fromhex("8500000007000000 9500000000000000")       # r0 = bpf_get_prandom_u32(); exit
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 1, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\0")
    loaded = ctypes.CDLL(None, use_errno=True).syscall(321, 5, attr, len(attr))     # BPF_PROG_LOAD, a socket filter
    if loaded < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    try:
        fcntl.ioctl(fd, 0x800454E0, struct.pack("i", loaded))
    finally:
        os.close(loaded)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")
def test_four_queues_and_a_device_that_steers_by_lot(lab: TunLab, tmp_path: Path) -> None:
    link = lab.tun(queues=4)
    try:
        random_steering(link.fileno())
    except OSError as exc:
        pytest.skip(f"no steering program can be loaded: {exc}")
    stack = lab.stack(link)
    server = WebServer(stack, os.urandom(LARGE))
    download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(LARGE), tmp_path / "up")
    server.join()
    assert server.errors == []
    assert stack.nstat().get("TcpOutRsts", 0) == 0
    assert stack.shards is not None and sum(n for n, _ in stack.shards.counters()) > 1000


def test_four_queues_as_the_device_steers(lab: TunLab, tmp_path: Path) -> None:
    stack = lab.stack(lab.tun(queues=4))
    server = WebServer(stack, os.urandom(3_000_000))
    for _ in range(8):
        download(lab, server, tmp_path / "down")
    upload(lab, server, os.urandom(3_000_000), tmp_path / "up")
    assert server.errors == []
    assert stack.nstat()["TcpPassiveOpens"] == 9 and stack.nstat().get("TcpOutRsts", 0) == 0
