"""Builds what is measured, under build/bench: the C programs, ustack at -O2, lwIP, gVisor's netstack, smoltcp and PyTCP at pinned versions.

Each function returns how to run the thing and does nothing when it is up to date. A peer whose tools are missing raises Missing; one that
fails to build raises Broken, and that fails the run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
TOP = BENCH.parents[1]
OUT = TOP / "build" / "bench"

LWIP_VERSION = "2.1.3+dfsg1-2"
PYTCP_VERSION = "2.7.6"


class Missing(RuntimeError):
    """The tools to build this peer are not on this machine."""


class Broken(RuntimeError):
    """The peer should build here and does not."""


def _make(command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    words = [str(w) for w in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        raise Broken(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")


def _digest(*parts: str | Path) -> str:
    h = hashlib.sha256()
    for part in parts:
        files = sorted(p for p in part.rglob("*") if p.is_file()) if isinstance(part, Path) and part.is_dir() else [part]
        for one in files:
            h.update(one.read_bytes() if isinstance(one, Path) else one.encode())
    return h.hexdigest()


def _current(target: Path, digest: str) -> bool:
    """Whether target was built from these sources; if not, the caller builds it and calls _built."""
    stamp = target.with_name(target.name + ".stamp")
    return target.exists() and stamp.exists() and stamp.read_text() == digest


def _built(target: Path, digest: str) -> None:
    target.with_name(target.name + ".stamp").write_text(digest)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def program(name: str) -> str:
    """A program of scripts/bench/c."""
    source, target = BENCH / "c" / f"{name}.c", OUT / name
    digest = _digest(source, BENCH / "c" / "common.h")
    if not _current(target, digest):
        OUT.mkdir(parents=True, exist_ok=True)
        _make([_tool("gcc"), "-O2", "-Wall", "-Wextra", "-o", target, source])
        _built(target, digest)
    return str(target)


def ustack() -> Path:
    """The folder to put on PYTHONPATH: ustack and its timing loops (tests._cbench) at -O2."""
    env = {"USTACK_BENCH": "1", "USTACK_FAST": "", "USTACK_DEBUG": "", "USTACK_SANITIZE": "", "USTACK_COVERAGE": "", "USTACK_CTEST": ""}
    _make([sys.executable, "setup.py", "-q", "build", "--build-base", OUT], cwd=TOP, env=env)
    return OUT / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
