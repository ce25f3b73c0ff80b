"""The figures of scripts/bench as loose checks: a regression by a factor is caught, a busy machine is not a failure.

What the figures are on a quiet machine stands in the scripts' own output; here the limits are several times what must hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("bench")]


def bench(name: str, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(TOP / "scripts" / "bench" / name), "-j", *words],
                          capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_syn_costs_little_at_a_million_half_open_connections() -> None:
    """Must hold: under 500 ns on a quiet machine."""
    pytest.importorskip("tests._cbench", reason="built with USTACK_BENCH=1 only")
    few, many = bench("syn", "--repeat", "3", "1000", "1000000")
    assert many["best"] < 1500
    assert many["best"] < 6 * few["best"]


def test_syns_are_answered_while_python_spins() -> None:
    """Must hold: median under 200 us. With the GIL in the way it would be the switch interval, 5 ms."""
    row = bench("latency", "--seconds", "2", "answer")[0]["answer"]["spinning"]
    assert row["answers"] > 50
    assert row["median_us"] < 2000


def test_calls_go_on_beside_a_flood() -> None:
    """Must hold: 50,000 calls a second. A lock held over I/O would let a handful through."""
    both = bench("latency", "--seconds", "2", "calls")[0]["calls"]["both"]
    assert both["syns_per_s"] > 1000
    assert both["calls_per_s"] > 5000


def test_no_operation_of_the_core_takes_more_instructions_than_kept() -> None:
    """scripts/bench/instructions.json, plus 3 %. Counted by callgrind, so the machine's load is not in it."""
    done = subprocess.run([sys.executable, str(TOP / "scripts" / "bench" / "instructions"), "--check"], capture_output=True, text=True, timeout=170)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
