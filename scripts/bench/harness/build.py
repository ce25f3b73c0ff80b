"""Builds what is measured: under build/bench-pgo ustack, as it is released, under build/bench the C programs, lwIP, gVisor's netstack, smoltcp and
PyTCP at pinned versions.

Each function returns how to run the thing and does nothing when it is up to date. A peer whose tools are missing raises Missing; one that
fails to build raises Broken, and that fails the run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
TOP = BENCH.parents[1]
OUT = TOP / "build" / "bench"
OUT_USTACK = TOP / "build" / "bench-pgo"

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
    """The folder to put on PYTHONPATH: ustack and its timing loops (tests._cbench), profile-guided as a release. Three minutes, if something has
    changed that is compiled."""
    lib = OUT_USTACK / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    _make([sys.executable, "setup.py", "-q", "build_py", "--build-lib", lib], cwd=TOP)
    sources = [p for folder in ("ustack", "tests") for p in sorted((TOP / folder).rglob("*.p*")) if p.suffix in (".pyx", ".pxd", ".pxi")]
    with_which = subprocess.run([_tool("gcc"), "-dumpfullversion"], capture_output=True, text=True).stdout
    digest = _digest(*sources, TOP / "setup.py", *sorted((TOP / "scripts" / "pgo").glob("*.py")), with_which)
    if not _current(lib, digest):
        env = {"USTACK_PGO": "1", "USTACK_BENCH": "1", "USTACK_CTEST": "", "USTACK_FAST": "", "USTACK_DEBUG": "", "USTACK_SANITIZE": "",
               "USTACK_COVERAGE": ""}
        _make([sys.executable, "setup.py", "-q", "build_ext", "-j", "2", "--build-lib", lib, "--build-temp", OUT_USTACK / "temp"], cwd=TOP, env=env)
        _built(lib, digest)
    return lib


def profiled(lib: Path) -> bool:
    """Whether the ustack of this folder is a profile-guided build, by its timing loops."""
    code = "import sys; from tests import _cbench; sys.exit(not _cbench.PROFILED)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": str(lib.resolve())})
    return done.returncode == 0


# ---- other stacks -------------------------------------------------------------------------------------------------------------
def _debian_source(name: str, version: str) -> Path:
    """A Debian source package, unpacked. Asked for through apt state of its own, as most machines list no source packages."""
    place = OUT / f"{name}-{version}"
    if place.exists():
        return place
    _tool("apt-get")
    _tool("dpkg-source")
    state = OUT / "apt"
    parts = state / "sources"
    for folder in (parts, state / "lists" / "partial", state / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    etc = Path("/etc/apt")
    for path in [etc / "sources.list", *etc.glob("sources.list.d/*.list"), *etc.glob("sources.list.d/*.sources")]:
        if path.exists():
            lines = path.read_text().splitlines()
            lines = [("deb-src" + x[3:] if x.startswith("deb ") else "Types: deb-src" if x.startswith("Types:") else x) for x in lines]
            (parts / path.name).write_text("\n".join(lines) + "\n")
    options = ["-qq", "-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={parts}", "-o", f"Dir::State::Lists={state / 'lists'}",
               "-o", f"Dir::Cache={state / 'cache'}", "-o", "APT::Sandbox::User=root"]
    _make(["apt-get", *options, "update"])
    _make(["apt-get", *options, "--download-only", "source", f"{name}={version}"], cwd=state)
    (package,) = state.glob(f"{name}_*.dsc")
    _make(["dpkg-source", "--no-check", "-x", package, place], cwd=state)
    return place


def lwip() -> str:
    """lwIP's server, from Debian's source package (the binary package is built for another kind of use: threads, small windows)."""
    ours, target = BENCH / "peers" / "lwip", OUT / "lwip"
    digest = _digest(ours, BENCH / "c" / "common.h", LWIP_VERSION)
    if not _current(target, digest):
        OUT.mkdir(parents=True, exist_ok=True)
        src = _debian_source("lwip", LWIP_VERSION) / "src"
        sources = [*sorted((src / "core").glob("*.c")), *(src / "core" / "ipv4" / f"{n}.c" for n in ("ip4", "ip4_addr", "ip4_frag", "icmp"))]
        _make([_tool("gcc"), "-O2", "-w", "-I", ours, "-I", BENCH / "c", "-I", src / "include", "-o", target, ours / "server.c", *sources])
        _built(target, digest)
    return str(target)


def netstack() -> str:
    """gVisor's netstack, at the version go.mod pins."""
    ours, target = BENCH / "peers" / "netstack", OUT / "netstack"
    digest = _digest(ours)
    if not _current(target, digest):
        OUT.mkdir(parents=True, exist_ok=True)
        _make([_tool("go"), "build", "-o", target, "."], cwd=ours)
        _built(target, digest)
    return str(target)


def smoltcp() -> str:
    """smoltcp, at the version Cargo.lock pins."""
    ours, target = BENCH / "peers" / "smoltcp", OUT / "smoltcp-server"
    digest = _digest(ours)
    if not _current(target, digest):
        OUT.mkdir(parents=True, exist_ok=True)
        _make([_tool("cargo"), "build", "-q", "--release", "--locked", "--target-dir", OUT / "cargo"], cwd=ours)
        shutil.copy2(OUT / "cargo" / "release" / target.name, target)
        _built(target, digest)
    return str(target)


def pytcp() -> str:
    """The interpreter of a virtual environment of its own with PyTCP in it."""
    target = OUT / "pytcp" / "bin" / "python"
    if not _current(target, PYTCP_VERSION):
        _make([sys.executable, "-m", "venv", OUT / "pytcp"])
        _make([target, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"PyTCP=={PYTCP_VERSION}"])
        _built(target, PYTCP_VERSION)
    return str(target)


def pinned(path: Path, pattern: str) -> str:
    """The version that a lock file or go.mod names."""
    match = re.search(pattern, path.read_text())
    if match is None:
        raise Broken(f"{path} pins no version")
    return match[1]
