"""The stubs of the compiled unit say what is there, and the package passes mypy --strict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
pytest.importorskip("mypy")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [
    ["mypy.stubtest", "ustack._fastpath", "--mypy-config-file", "pyproject.toml", "--concise", "--allowlist",
     "tests/stubtest-allowlist.txt"],
    ["mypy", "ustack"],
], ids=["stubs", "types"])
def test_types(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
