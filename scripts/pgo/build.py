"""The profile-guided build (USTACK_PGO=1): compile with counters, run scripts/pgo/train.py on that build, compile again with what was counted.

gcc then knows which branches are taken: the way of a packet lies in fewer cache lines. What training never ran is compiled as without a profile
(-fprofile-partial-training), not for size. Objects of both passes have the same path, as gcc looks for an object's counters (.gcda) beside it;
that path is in a temporary folder under --build-temp, which goes when the build ends, so neither counters nor instrumented objects can get into
a later build. Used by setup.py only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

TRAIN = Path(__file__).with_name("train.py")
TOP = TRAIN.parents[2]
TRAINED = frozenset({"ustack._fastpath", "tests._cbench"})
OTHERS = ("USTACK_SANITIZE", "USTACK_COVERAGE", "USTACK_DEBUG", "USTACK_FAST")
# Threads count at once; the counters of one that is in the middle of a function at the end need not add up. The second pass gives the warnings.
COUNT = ["-fprofile-generate", "-fprofile-update=prefer-atomic", "-w"]
USE = ["-fprofile-use", "-fprofile-partial-training", "-fprofile-correction", "-Wno-missing-profile", "-Wno-coverage-mismatch"]
TRAINING_SECONDS = 900


def contradiction(env: Mapping[str, str]) -> str | None:
    """Why USTACK_PGO cannot be had with the other switches that are on; None if it can."""
    on = [name for name in OTHERS if env.get(name, "") not in ("", "0")]
    return f"USTACK_PGO=1 builds for release, {' and '.join(on)} for something else: leave one out" if on else None


def want_gcc(command: Sequence[str]) -> None:
    """CompileError if the command that compiles is not gcc: clang takes the same options and writes counters of another kind."""
    try:
        macros = subprocess.run([*command, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, text=True).stdout
    except OSError:
        macros = ""
    if "__GNUC__" not in macros or "__clang__" in macros:
        name = " ".join(command[:1]) or "the compiler"
        raise CompileError(f"USTACK_PGO=1 needs gcc, and {name} is not: set CC=gcc, or build without USTACK_PGO")


def train(lib: Path) -> None:
    """Run the training program on the build in lib, in a process of its own: counters are written when it ends."""
    # Beside the compiled units, the package they belong to.
    shutil.copytree(TOP / "ustack", lib / "ustack", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"), dirs_exist_ok=True)
    (lib / "tests").mkdir(exist_ok=True)
    (lib / "tests" / "__init__.py").touch()
    path = os.pathsep.join(p for p in (str(lib), os.environ.get("PYTHONPATH")) if p)
    try:
        done = subprocess.run([sys.executable, "-P", str(TRAIN), "--build", str(lib)], capture_output=True, text=True, timeout=TRAINING_SECONDS,
                              env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"})
    except subprocess.TimeoutExpired:
        raise CompileError(f"USTACK_PGO=1: the training program was not done after {TRAINING_SECONDS} s") from None
    if done.returncode:
        raise CompileError(f"USTACK_PGO=1: the training program ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")


class build_ext_profiled(build_ext):
    """build_ext in two passes. It never takes an extension for up to date: the one that is there may be of an ordinary build."""

    def build_extensions(self) -> None:
        want_gcc(getattr(self.compiler, "compiler_so", []))
        everything, lib, temp = list(self.extensions), self.build_lib, self.build_temp
        trained = [ext for ext in everything if ext.name in TRAINED]
        self.force = True
        os.makedirs(temp, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="pgo-", dir=temp) as place:
            counting = Path(place).resolve() / "lib"
            self.build_temp = os.path.join(place, "objects")
            self._build(trained, COUNT, str(counting))
            train(counting)
            missing = [ext.name for ext in trained if not list(Path(self.build_temp).glob(ext.name.replace(".", "/") + ".gcda"))]
            if missing:
                raise CompileError(f"USTACK_PGO=1: training has left no counters of {', '.join(missing)}")
            self._build(trained, USE, lib)
            self._build([ext for ext in everything if ext not in trained], [], lib)
        self.extensions, self.build_temp = everything, temp

    def _build(self, extensions: list[Any], options: list[str], lib: str) -> None:
        """One pass over some of the extensions."""
        self.extensions, self.build_lib = extensions, lib
        kept = [(ext.extra_compile_args, ext.extra_link_args) for ext in extensions]
        for ext in extensions:
            ext.extra_compile_args, ext.extra_link_args = [*ext.extra_compile_args, *options], [*ext.extra_link_args, *options]
        super().build_extensions()
        for ext, arguments in zip(extensions, kept, strict=True):
            ext.extra_compile_args, ext.extra_link_args = arguments
