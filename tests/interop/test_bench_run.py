"""scripts/bench/run end to end, as short as it goes: what it measures is the machine's matter, that it measures and cleans up is ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.timeout(120), pytest.mark.xdist_group("bench")]


def command(*words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "BENCH_PYTHON": sys.executable}
    return subprocess.Popen([str(TOP / "scripts/bench/run"), "--ustack", str(TOP), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=env)


def namespaces_of(pid: int) -> list[str]:
    listed = json.loads(subprocess.run(["ip", "-j", "netns", "list"], capture_output=True, text=True).stdout or "[]")
    return [n["name"] for n in listed if n["name"].startswith(f"ubench-{pid}-")]


def pids_in(namespace: str) -> list[str]:
    return subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()


def test_a_run_measures_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = command("--peers", "limit,kernel,ustack", "--rows", "syn-cookies,connect-64", "--rounds", "1", "--seconds", "0.2", "--json", str(out))
    text, errors = run.communicate(timeout=100)
    assert run.returncode == 0, errors
    rows = json.loads(out.read_text())["rows"]
    for row in rows.values():
        assert set(row["figures"]) == {"limit", "kernel", "ustack"}
        assert set(row["ratios"]) == {"limit", "kernel"}
        assert all(f["median"] > 0 for f in row["figures"].values())
    assert "ustack/limit" in text
    assert namespaces_of(run.pid) == []


def test_a_run_that_is_ended_leaves_nothing() -> None:
    run = command("--peers", "limit,ustack", "--rows", "connect-64", "--rounds", "1", "--seconds", "30")
    end = time.monotonic() + 60
    while not namespaces_of(run.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert namespaces_of(run.pid), run.communicate(timeout=1)
    name = namespaces_of(run.pid)[0]
    while not (inside := pids_in(name)) and time.monotonic() < end:
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=30)
    assert namespaces_of(run.pid) == []
    assert [pid for pid in inside if os.path.exists(f"/proc/{pid}")] == []
