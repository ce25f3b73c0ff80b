"""The command line as a whole: every command is listed, whether its library is installed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def without_lark(*words: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules['lark'] = None; from ustack.cli import main; main({list(words)!r}, 'ustack')"
    return subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, timeout=30)


def test_help_needs_no_library() -> None:
    got = without_lark("--help")
    assert got.returncode == 0 and not got.stderr
    assert "(needs the package lark)" in got.stdout and "nstat" in got.stdout


def test_a_command_whose_library_is_missing_says_which() -> None:
    got = without_lark("drill", "--strict", "a.pkt")
    assert got.returncode == 3
    assert got.stderr == "Error: `ustack drill` needs the package lark: pip install lark\n"


def test_no_such_command_is_a_usage_error() -> None:
    assert without_lark("drills").returncode == 2
