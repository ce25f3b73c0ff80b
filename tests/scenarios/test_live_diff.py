"""`ustack diff` over the scenario files: against the shipped recording of a 6.18 kernel, and (root) against this machine's kernel."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ustack.cli import main
from ustack.lab import errors, run
from ustack.lab.scenario import load
from ustack.replay import parse, replay

TOP = Path(__file__).parents[2]
RECORDING = TOP / "tests" / "data" / "scenarios.json.gz"
SECTIONS = "ABCDEFGHIJKLMN"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress(RECORDING.read_bytes()))
    return data


def test_there_are_scenarios_for_every_section() -> None:
    found = run.load_all([TOP / "scenarios"])
    assert len(found) >= 150
    assert {s.section for s in found} >= set(SECTIONS)
    assert all(s.rules for s in found)


@pytest.mark.parametrize("section", SECTIONS)
def test_ustack_equals_the_recorded_kernel(recorded: dict[str, Any], section: str) -> None:
    chosen = [s for s in recorded["scenarios"] if s["section"] == section]
    recording = parse({**recorded, "scenarios": chosen})
    odd = [r.reason for r in (replay(recording, s) for s in recording.scenarios) if r.verdict != "pass"]
    assert chosen and not odd


def test_a_changed_recording_differs(recorded: dict[str, Any]) -> None:
    chosen = copy.deepcopy(next(s for s in recorded["scenarios"] if s["id"] == "E-first-rst+1"))
    mark = next(s for s in chosen["steps"] if s.get("counters"))
    mark["counters"]["TcpExtTCPChallengeACK"] = 9
    recording = parse({**recorded, "scenarios": [chosen]})
    assert replay(recording, recording.scenarios[0]).verdict == "differs"


def test_families_and_clear_errors(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[[scenario]]\nid = "A-{n}-{m}"\nfor.n = [1, 2]\ncases = [{m = "a"}, {m = "b"}]\nsteps = "wait {n}"\n')
    assert [(s.id, s.steps) for s in load(file)] == [("A-1-a", "wait 1"), ("A-1-b", "wait 1"), ("A-2-a", "wait 2"), ("A-2-b", "wait 2")]
    file.write_text('[[scenario]]\nid = "A"\nsteps = ""\ncolour = "red"\n')
    with pytest.raises(errors.ScenarioError, match="colour"):
        load(file)
    assert CliRunner().invoke(main, ["diff"]).exit_code == 2


@pytest.mark.root
def test_against_the_live_kernel(tmp_path: Path) -> None:
    import os

    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("not root, or no /dev/net/tun")
    out = tmp_path / "kernel.json"
    words = ["diff", str(TOP / "scenarios"), "--record", str(out), "--only", "E-first-*", "--only", "A-fill-*", "--only", "G-block-*"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    again = CliRunner().invoke(main, ["diff", "--replay", str(out)])
    assert again.exit_code == 0, again.output
