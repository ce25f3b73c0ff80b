"""`ustack drill` in real time: our own scripts on ustack over a TUN device, and on this machine's kernel.

The second is what the scripts' expectations, and the interpreter itself, are worth. A busy machine comes late, so the tolerance is
wide, and what fails is tried again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ustack.cli import main

SCRIPTS = sorted(str(path) for path in (Path(__file__).parents[1] / "drill").rglob("*.pkt"))
TRIES = 4


def passes(paths: list[str], *words: str) -> list[str]:
    """What has still not passed after some tries."""
    for _ in range(TRIES):
        done = CliRunner().invoke(main, ["drill", "-j", "-n", "6", "--tolerance_usecs=25000", *words, *paths])
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(told) == len(paths), done.output
        paths = [one["path"] for one in told if one["result"] != "pass"]
        if not paths:
            break
    return [f"{one['path']}: {one['reason']}" for one in told if one["result"] != "pass"]


@pytest.mark.root
@pytest.mark.slow
def test_a_sample_holds_on_ustack_in_real_time() -> None:
    assert passes(SCRIPTS[::4], "--time", "real") == []


@pytest.mark.root
@pytest.mark.slow
def test_a_sample_holds_on_the_kernel() -> None:
    assert passes(SCRIPTS[1::4], "--kernel") == []


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("words", [("--time", "real"), ("--kernel",)], ids=["ustack", "kernel"])
def test_all_hold_in_real_time(words: tuple[str, ...]) -> None:
    assert passes(SCRIPTS, *words) == []


@pytest.mark.root
@pytest.mark.parametrize("words", [("--time", "real"), ("--kernel",)], ids=["ustack", "kernel"])
def test_a_user_namespace_is_enough(words: tuple[str, ...]) -> None:
    script = next(s for s in SCRIPTS if s.endswith("/handshake.pkt"))
    for _ in range(TRIES):
        done = subprocess.run(["unshare", "-U", "-r", sys.executable, "-m", "ustack", "drill", *words, "--tolerance_usecs=50000", script],
                              capture_output=True, text=True, cwd=Path(__file__).parents[2])
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.parametrize("words", [("--time", "real"), ("--kernel",)], ids=["ustack", "kernel"])
def test_a_machine_that_cannot_says_so(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USTACK_TUN_NODE", "/dev/net/no-such-node")
    done = CliRunner().invoke(main, ["drill", *words, SCRIPTS[0]])
    assert done.exit_code == 3 and "no-such-node" in done.output


@pytest.mark.root
def test_the_packets_of_a_run_in_real_time_can_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    done = CliRunner().invoke(main, ["drill", "--kernel", "--tolerance_usecs=50000", "--pcap", str(file),
                                     *[s for s in SCRIPTS if s.endswith("/handshake.pkt")]])
    assert done.exit_code == 0, done.output
    assert file.read_bytes()[:4] == bytes.fromhex("4d3cb2a1") and file.stat().st_size > 24 + 3 * (16 + 40)
