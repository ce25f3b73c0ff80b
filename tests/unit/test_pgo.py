"""The profile-guided build (USTACK_PGO=1): what it refuses, and its training program on an ordinary build (whole: interop/test_pgo_build.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
TRAIN = TOP / "scripts" / "pgo" / "train.py"
SWITCHES = ("USTACK_PGO", "USTACK_FAST", "USTACK_DEBUG", "USTACK_SANITIZE", "USTACK_COVERAGE", "USTACK_CTEST", "USTACK_BENCH")


def run(*words: str | Path, cwd: Path = TOP, seconds: float = 50, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in SWITCHES}
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=seconds, env={**clean, **env})


@pytest.fixture
def pgo(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(TOP / "scripts"))
    from pgo import build

    return build


@pytest.mark.parametrize("other", ["USTACK_SANITIZE", "USTACK_COVERAGE", "USTACK_DEBUG", "USTACK_FAST"])
def test_what_contradicts_it_is_refused(other: str) -> None:
    pytest.importorskip("Cython")
    done = run("setup.py", "--version", USTACK_PGO="1", **{other: "1"})
    assert done.returncode != 0
    assert f"USTACK_PGO=1 builds for release, {other} for something else" in done.stderr


def test_switches_that_are_off_contradict_nothing(pgo: Any) -> None:
    assert pgo.contradiction({"USTACK_PGO": "1", "USTACK_FAST": "", "USTACK_DEBUG": "0", "USTACK_BENCH": "1"}) is None


@pytest.mark.parametrize(("macros", "taken"), [("#define __GNUC__ 12", True), ("#define __GNUC__ 4\n#define __clang__ 1", False), ("", False)])
def test_other_compilers_are_refused(pgo: Any, tmp_path: Path, macros: str, taken: bool) -> None:
    compiler = tmp_path / "some-cc"
    compiler.write_text(f"#!/bin/sh\necho '{macros}'\n")
    compiler.chmod(0o755)
    if taken:
        pgo.want_gcc([str(compiler)])
        return
    with pytest.raises(pgo.CompileError, match=r"needs gcc, and .*some-cc is not: set CC=gcc, or build without USTACK_PGO"):
        pgo.want_gcc([str(compiler)])


def test_no_compiler_is_refused(pgo: Any) -> None:
    for command in (["/nonexistent/cc"], []):
        with pytest.raises(pgo.CompileError, match="needs gcc"):
            pgo.want_gcc(command)


def test_the_training_program_runs_on_an_ordinary_build() -> None:
    done = run(TRAIN, "--scale", "0.01", "--build", TOP, PYTHONPATH=str(TOP))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_the_training_program_wants_the_build_it_is_to_train(tmp_path: Path) -> None:
    done = run(TRAIN, "--build", tmp_path, PYTHONPATH=str(TOP))
    assert done.returncode == 2
    assert "ustack is imported from" in done.stderr


def test_it_needs_nothing_but_the_sources() -> None:
    """As in the environment that pip makes for a build: without the TUN device's package."""
    hide = "import sys; sys.modules['pytun_pmd3'] = None; import runpy; sys.argv = ['train', '--scale', '0.001']; " \
           f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')"
    done = run("-c", hide, PYTHONPATH=str(TOP))
    assert done.returncode == 0, done.stderr


def test_training_that_fails_ends_the_build(pgo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: no compiled unit where it should be."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(pgo.CompileError, match="the training program ended with"):
        pgo.train(tmp_path)
