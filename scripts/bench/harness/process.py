"""Servers and clients as processes. A server prints a line when it is ready; a client prints one JSON object when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READY_SECONDS = 30


class Failed(RuntimeError):
    """A measurement could not be made."""


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def stolen() -> float:
    """Seconds that the machine's cores were ready and the host ran something else (a virtual machine's "steal"), since it started."""
    return float(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that a process's threads have run, and that they were ready to run but waited for the core."""
    ran = waited = 0
    for task in _tasks(pid):
        with contextlib.suppress(OSError, ValueError):
            fields = (task / "schedstat").read_text().split()
            ran += int(fields[0])
            waited += int(fields[1])
    return ran / 1e9, waited / 1e9


def resident(pid: int) -> int:
    """Resident bytes of a process (its own pages: no page table, no kernel object)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The kernel's caches of what a TCP connection or request is made of.
_CACHES = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "filp", "dentry", "tcp_bind_bucket", "tcp_bind2_bucket", "eventpoll_epi")


def _slabs() -> dict[str, tuple[int, int]]:
    """The kernel's caches of all namespaces: objects in use and bytes of one."""
    lines = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return {fields[0]: (int(fields[1]), int(fields[3])) for fields in lines}


def slab_bytes() -> float:
    """Bytes of the kernel's objects of connections and requests."""
    slabs = _slabs()
    return sum(objects * size for name in _CACHES for objects, size in [slabs.get(name, (0, 0))])


def slab_objects(name: str) -> int:
    slabs = _slabs()
    if name not in slabs:
        raise Failed(f"this kernel has no cache {name}")
    return slabs[name][0]


class Server:
    """A server process, ready when made."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, settle: float = 0.05) -> None:
        self._errors = tempfile.TemporaryFile("w+")     # noqa: SIM115 - closed by stop(); not a pipe, which a server that logs much would fill
        self.command = list(command)
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self._errors, env={**os.environ, **(env or {})})
        self.pid = self.process.pid
        try:
            self._await_ready()
            time.sleep(settle)
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as wait:
            wait.register(self.process.stdout, selectors.EVENT_READ)
            if not wait.select(READY_SECONDS):
                raise Failed(f"not ready after {READY_SECONDS} s: {' '.join(self.command)}: {self.errors()}")
        line = os.read(self.process.stdout.fileno(), 100)
        if not line:
            raise Failed(f"ended before it was ready: {' '.join(self.command)}: {self.errors()}")
        said = line.split()
        self.connection_bytes = int(said[1]) if len(said) == 2 else 0      # of a server whose pools are static

    def errors(self) -> str:
        """The last of what it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-500:].strip()

    def alive(self) -> bool:
        return self.process.poll() is None

    def pause(self, paused: bool) -> None:
        """Takes all CPU from it, or gives it back."""
        self.process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def stop(self) -> None:
        if self.alive():
            self.pause(False)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()


class Holder:
    """A client that stays: its first JSON line, and an end on request."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            self.stop()
            raise Failed(f"{' '.join(command)}: exit {self._process.returncode}")
        self.values: dict[str, Any] = json.loads(line)

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


def client(command: Sequence[str], timeout: float = 60) -> dict[str, Any]:
    """Runs a client to its end: its JSON line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"{' '.join(command)}: not done after {timeout:.0f} s") from exc
    if done.returncode or not done.stdout.startswith("{"):
        raise Failed(f"{' '.join(command)}: exit {done.returncode} {done.stderr.strip()[-300:]}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values
