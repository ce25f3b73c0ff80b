"""The profile-guided build (USTACK_PGO=1), whole, in a copy of the sources: some minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SWITCHES = ("USTACK_PGO", "USTACK_FAST", "USTACK_DEBUG", "USTACK_SANITIZE", "USTACK_COVERAGE", "USTACK_CTEST", "USTACK_BENCH")


def run(*words: str, cwd: Path, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in SWITCHES}
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=seconds, env={**clean, **env})


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.xdist_group("bench")
def test_the_whole_build(tmp_path: Path) -> None:
    """Nothing of the two passes is left, and the unit tests pass on it."""
    pytest.importorskip("Cython")
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    tree = tmp_path / "tree"
    files = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if (TOP / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, tree / name)
    done = run("setup.py", "-q", "build_ext", "--inplace", "-j", "2", cwd=tree, seconds=1300, USTACK_PGO="1", USTACK_CTEST="1", USTACK_BENCH="1",
               CC="gcc")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [p for p in tree.rglob("*") if p.suffix in (".gcda", ".gcno", ".o")]
    code = "from tests import _cbench; import ustack; print(_cbench.OPTIMIZED, _cbench.PROFILED, ustack._fastpath.__file__)"
    told = run("-c", code, cwd=tree).stdout.split()
    assert told[:2] == ["True", "True"] and Path(told[2]).parent == tree / "ustack"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "tests/unit", cwd=tree, seconds=600)
    assert done.returncode == 0, done.stdout[-3000:]
