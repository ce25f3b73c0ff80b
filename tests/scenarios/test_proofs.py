"""The scripts that prove the listen path: a sample of the mutants, and the flood beside the kernel's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sample_of_mutants_is_found() -> None:
    words = [sys.executable, str(TOP / "scripts" / "mutants"), "--count", "10", "--seed", "5"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.root
@pytest.mark.slow
def test_a_flood_fills_the_queue_as_the_kernels() -> None:
    """What does not hang on the instant at which a timer fires (docs/linux-parity.md)."""
    done = subprocess.run([sys.executable, str(TOP / "scripts" / "flood_compare"), "--json"], capture_output=True, text=True, timeout=240)
    if done.returncode not in (0, 1) or not done.stdout:
        pytest.skip(f"no kernel to compare with: {done.stderr[-300:]}")
    runs = json.loads(done.stdout)["runs"]
    for sides in runs.values():
        for side in sides.values():
            assert max(n for _, n in side["curve"]) == 129
    for side in runs["1"].values():
        assert side["served"] == side["opened"] == side["first_try"]
    assert runs["0"]["ustack"]["served"] <= 0.2 * runs["0"]["ustack"]["opened"]
