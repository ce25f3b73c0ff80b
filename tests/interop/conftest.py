"""Namespaces made by the test itself, documentation addresses only, removed also on failure; programs that talk to the stack from them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ustack

CLONE_NEWNET = 0x40000000
STACK, KERNEL = "192.0.2.2", "192.0.2.1"
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def _why_not() -> str | None:
    """Why this machine cannot run the tests marked root."""
    if os.geteuid() != 0:
        return "not root: namespaces and TUN devices need it"
    for tool in ("ip", "curl"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as exc:
        return f"/dev/net/tun: {exc.strerror}"
    name = f"ustack-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


_reason: list[str | None] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") is not None:
            if not _reason:
                _reason.append(_why_not())
            if _reason[0]:
                item.add_marker(pytest.mark.skip(reason=_reason[0]))


class Namespace:
    """A network namespace of this test."""

    def __init__(self) -> None:
        self.name = f"ustack-{os.getpid()}-{next(_numbers)}"
        self.ip_ok("netns", "add", self.name, inside=False)
        self.ip_ok("link", "set", "lo", "up")

    def ip_ok(self, *words: str, inside: bool = True) -> str:
        where = ["-n", self.name] if inside else []
        done = subprocess.run(["ip", *where, *words], capture_output=True, text=True)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
        return done.stdout

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str, timeout: float = 50, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.command(*words), capture_output=True, timeout=timeout, **kwargs)  # type: ignore[call-overload]

    def sysctl(self, name: str, value: object) -> None:
        done = self.run("sh", "-c", f"echo {value} > /proc/sys/{name.replace('.', '/')}")
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread works in the namespace; devices opened here stay usable outside."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/var/run/netns/{self.name}", os.O_RDONLY)
        try:
            if _libc.setns(there, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            yield
        finally:
            assert _libc.setns(home, CLONE_NEWNET) == 0
            os.close(home)
            os.close(there)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@pytest.fixture
def netns() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces; they go when the test ends, however it ends."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.remove()


class TunLab:
    """A stack at 192.0.2.2 on a TUN device whose kernel side is 192.0.2.1 in a namespace."""

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.stacks: list[ustack.Stack] = []

    def tun(self, **kwargs: object) -> ustack.TunLink:
        with self.ns.inside():
            link = ustack.TunLink("ustack0", **kwargs)  # type: ignore[arg-type]
        self.ns.ip_ok("addr", "replace", f"{KERNEL}/24", "dev", "ustack0")
        return link

    def stack(self, link: ustack.links.base.Link | None = None, **kwargs: object) -> ustack.Stack:
        stack = ustack.Stack(link or self.tun(), f"{STACK}/24", **kwargs)  # type: ignore[arg-type]
        self.stacks.append(stack)
        return stack

    def close(self) -> None:
        for stack in self.stacks:
            stack.stop()


@pytest.fixture
def lab(netns: Callable[[], Namespace]) -> Iterator[TunLab]:
    lab = TunLab(netns())
    try:
        yield lab
    finally:
        lab.close()


class WebServer:
    """Serves one blob to GET and takes PUT, on a thread per connection; remembers what came."""

    def __init__(self, stack: ustack.Stack, blob: bytes, port: int = 80, backlog: int = 128) -> None:
        self.blob = blob
        self.uploads: list[str] = []
        self.errors: list[BaseException] = []
        self.listener = stack.create_server(("0.0.0.0", port), backlog=backlog)
        self._threads: list[threading.Thread] = []
        self._loop = threading.Thread(target=self._accept, daemon=True)
        self._loop.start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._guard, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _guard(self, conn: ustack.Socket) -> None:
        try:
            with conn:
                self._serve(conn)
        except BaseException as exc:
            self.errors.append(exc)

    def _serve(self, conn: ustack.Socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            block = conn.recv(65536)
            if not block:
                return
            head += block
        head, _, body = head.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            conn.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.blob))
            conn.sendall(self.blob)
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if fields.get(b"expect") == b"100-continue":
            conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        size, digest = len(body), hashlib.sha256(body)
        while size < int(fields[b"content-length"]):
            block = conn.recv(1 << 20)
            if not block:
                raise EOFError(f"the upload ended after {size} bytes")
            digest.update(block)
            size += len(block)
        self.uploads.append(digest.hexdigest())
        conn.sendall(b"HTTP/1.0 201 Created\r\nContent-Length: 0\r\n\r\n")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a Python program that may import ustack."""

    def start(source: str, *command: str, **kwargs: object) -> subprocess.Popen[str]:
        path = tmp_path / f"program{next(_numbers)}.py"
        path.write_text(source)
        top = Path(__file__).parents[2]
        env = {**os.environ, "PYTHONPATH": str(top)}
        return subprocess.Popen([*command, sys.executable, str(path)], env=env, text=True, stdout=subprocess.PIPE,  # type: ignore
                                stderr=subprocess.PIPE, **kwargs)

    return start
