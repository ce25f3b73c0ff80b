"""The scripts that prove the listen path: a sample of the mutants, and the flood beside the kernel's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_a_sample_of_mutants_is_found() -> None:
    words = [sys.executable, str(TOP / "scripts" / "mutants"), "--count", "10", "--seed", "5"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_flood_fills_the_queue_as_the_kernels() -> None:
    """Curve, goodput and counters are the kernel's when the SYN-ACK timers end with its wheel's slots (docs/linux-parity.md)."""
    done = subprocess.run([sys.executable, str(TOP / "scripts" / "flood_compare"), "--json"], capture_output=True, text=True, timeout=240)
    if not done.stdout:
        pytest.skip(f"no kernel to compare with: {done.stderr[-300:]}")
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert done.returncode == 0
    for cookies, runs in found["runs"].items():
        for run in runs.values():
            assert max(n for _, n in run["curve"]) == 129
            if cookies == "1":
                assert run["served"] == run["opened"] == run["first_try"]
    for dips in found["dips"].values():
        assert [48 <= n <= 65 for _, n in dips["kernel"]] == [48 <= n <= 65 for _, n in dips["slots"]] == [True]    # 129 to 64, and SYNs since
        assert dips["exact"] == []
