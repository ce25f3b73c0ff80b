"""The replay notices every change of a recording.

Each scenario of the recording is replayed on an echo of itself (a stand-in that does what the recording
says): nothing may differ. Then one thing of the recording is changed and it is replayed on the echo of the
unchanged one: that must be reported. A seeded sample of all kinds of changes over all scenarios; the whole
run takes seconds.
"""

from __future__ import annotations

import random

import pytest

from tests.kit import recordings
from tests.kit.echo_stack import EchoStack, echo
from tests.kit.recording_mutants import MUTATORS, mutate
from ustack.replay import parse, replay

SAMPLE = 30
EXACT = [s for s in recordings.raw()["scenarios"] if not s.get("varies")]
VARYING = [s for s in recordings.raw()["scenarios"] if s.get("varies") and "keyed hash" not in s["varies"]
           and "J-ack2" not in (s["id"], s["varies"][3:9])]
NAMES = [s["id"] for s in recordings.raw()["scenarios"]]


def verdict_on_echo_of(original, changed):
    """Replay `changed` on a stack that does what `original` says."""
    played = parse({"scenarios": [original]}).scenarios[0]
    recording = parse({"scenarios": [changed]})
    return replay(recording, recording.scenarios[0], lambda *_: EchoStack(played))


def test_every_scenario_equals_its_echo():
    recording = parse(recordings.raw())
    results = [replay(recording, s, echo) for s in recording.scenarios]
    assert [(r.id, r.reason) for r in results if r.verdict != "pass"] == []
    assert len(results) == len(NAMES) > 100


@pytest.mark.parametrize("kind", sorted(MUTATORS))
def test_mutants_are_found(kind):
    rng = random.Random(f"mutants of {kind}")
    assert notice(kind, rng.sample(EXACT, len(EXACT)) * 3, rng), f"no scenario has anything for {kind}"


@pytest.mark.parametrize("kind", ["flag", "window", "acknowledgement", "removed_packet", "added_packet"])
def test_mutants_are_found_where_runs_of_the_kernel_vary(kind):
    """What `varies` frees is the order among equals or a time; the packets themselves are still compared."""
    assert notice(kind, VARYING * 3, random.Random(f"varying {kind}"))


def notice(kind, scenarios, rng) -> int:
    """Change up to SAMPLE scenarios, one thing each; every change must be told. How many were changed."""
    made = 0
    for original in scenarios:
        mutant = mutate(kind, original, rng)
        if mutant is None:
            continue
        changed, what = mutant
        result = verdict_on_echo_of(original, changed)
        assert result.verdict == "differs", f"{original['id']}: {what} was not noticed"
        assert result.reason
        made += 1
        if made >= SAMPLE:
            break
    return made
