"""The control socket of a running stack: how `ustack ss`, `ustack nstat` and friends in another process ask it.

An AF_UNIX stream socket NAME.sock in a folder that only its owner can enter: `$XDG_RUNTIME_DIR/ustack`, `/run/ustack` for root, else a folder of
the user's own under the temporary directory (mode 0700, owner checked). One JSON object per line asks, one answers:
{"op": "ss", "args": "-tan"} -> {"ok": [...]} or {"error": "...", "errno": n}.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ustack.errors import failure
from ustack.sysctl import SWITCHES, canonical, sysctl_get, sysctl_names

if TYPE_CHECKING:
    from ustack.stack import Stack

_MAX_LINE = 1 << 20


def folder() -> Path:
    """Where this user's control sockets are; not created here."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "ustack"
    if os.geteuid() == 0:
        return Path("/run/ustack")
    return Path(tempfile.gettempdir()) / f"ustack-{os.geteuid()}"


def _own_folder() -> Path:
    """The folder, made if need be; PermissionError if it is somebody else's or open to others."""
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = place.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise failure(errno.EACCES, f"{place} is not a folder of yours alone (mode 0700): remove it, or set XDG_RUNTIME_DIR")
    return place


class ControlServer:
    """Answers for one stack on a daemon thread."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.path = _own_folder() / f"{stack.name}.sock"
        with contextlib.suppress(FileNotFoundError):
            if _is_alive(self.path):
                raise failure(errno.EADDRINUSE, f"a stack named {stack.name!r} is running already: give this one another name")
            self.path.unlink()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(os.fspath(self.path))
        self._server.listen(16)
        self._thread = threading.Thread(target=self._serve, name=f"ustack-control-{stack.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(conn,), daemon=True).start()

    def _talk(self, conn: socket.socket) -> None:
        with conn, conn.makefile("rwb") as stream:
            conn.settimeout(30)
            with contextlib.suppress(OSError, ValueError):
                while line := stream.readline(_MAX_LINE):
                    stream.write(json.dumps(self._answer(line)).encode() + b"\n")
                    stream.flush()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            ask = json.loads(line)
            return {"ok": _OPS[ask["op"]](self._stack, ask)}
        except OSError as exc:
            return {"error": exc.strerror or str(exc), "errno": exc.errno}
        except (KeyError, TypeError, ValueError) as exc:
            return {"error": f"not understood: {exc}", "errno": errno.EINVAL}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _set(stack: Stack, ask: dict[str, Any]) -> str:
    stack.sysctl[ask["name"]] = ask["value"]
    name = canonical(ask["name"])
    if name in SWITCHES or name.startswith("net.ipv6."):
        return str(ask["value"])
    return sysctl_get(stack.engine, ask["name"])


def _sysctl(stack: Stack, ask: dict[str, Any]) -> dict[str, str]:
    """{"under": a name, or a folder of names}, {"names": [...]}; all without."""
    names = ask.get("names") or sysctl_names()
    if "under" in ask:
        names = [n for n in names if n == ask["under"] or n.startswith(ask["under"].rstrip(".") + ".")] or [ask["under"]]
    return {n: sysctl_get(stack.engine, n) for n in names}


def _netstat(stack: Stack, ask: dict[str, Any]) -> Any:
    from ustack.observe import netstat

    if not ask.get("json"):
        return stack.netstat(ask["args"])
    flags = netstat.parse(ask["args"])
    return netstat.counters(stack) if "s" in flags else netstat.rows(stack.dump(), flags, stack.where())


_OPS: dict[str, Callable[[Stack, dict[str, Any]], Any]] = {
    "ss": lambda stack, ask: stack.ss(ask.get("args", "-tan")),
    "ss_cells": lambda stack, ask: stack.ss_cells(ask.get("args", "-tan")),
    "ss_summary": lambda stack, ask: stack.ss_text("-s"),
    "listeners": lambda stack, ask: [
        {k: v for k, v in row.items() if not isinstance(v, bytes)}
        for row in stack.dump() if row["kind"] == "listen"
    ],
    "queues": lambda stack, ask: stack.queues(),
    "requests": lambda stack, ask: stack.requests(),
    "nstat": lambda stack, ask: stack.nstat(zeros=True),
    "drops": lambda stack, ask: stack.drops(),
    "pools": lambda stack, ask: stack.pools(),
    "sysctl": _sysctl,
    "netstat": _netstat,
    "sysctl_set": _set,
    "info": lambda stack, ask: {"name": stack.name, "pid": os.getpid(), "now": stack.engine.now},
}


def _is_alive(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1)
    try:
        probe.connect(os.fspath(path))
    except OSError:
        if not path.exists():
            raise FileNotFoundError(path) from None
        return False
    finally:
        probe.close()
    return True


def stacks() -> list[str]:
    """Names of the stacks that answer, sorted."""
    place = folder()
    if not place.is_dir():
        return []
    return sorted(p.stem for p in place.glob("*.sock") if _is_alive(p))


def find(name: str | None = None) -> str:
    """The running stack of this name (the only one, if no name is given). OSError(ENOENT) if there is none or more than one."""
    running = stacks()
    if name is None:
        if len(running) != 1:
            what = f"several stacks run ({', '.join(running)}): choose one with --name" if running else (
                "no stack of yours is running (looked in " + os.fspath(folder()) + "): start one with `ustack serve`")
            raise OSError(errno.ENOENT, what)
        name = running[0]
    elif name not in running:
        raise OSError(errno.ENOENT, f"no stack named {name!r} is running" + (f" (there are: {', '.join(running)})" if running else ""))
    return name


def ask(request: dict[str, Any], name: str | None = None) -> Any:
    """Ask a running stack, as `find` finds it. OSError as it answers."""
    name = find(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
        conn.settimeout(30)
        conn.connect(os.fspath(folder() / f"{name}.sock"))
        with conn.makefile("rwb") as stream:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            answer = json.loads(stream.readline())
    if "error" in answer:
        raise OSError(answer.get("errno") or errno.EIO, answer["error"])
    return answer["ok"]
