"""The random scenarios: the same from the same seed, and (root) equal on this machine's kernel and on ustack."""

from __future__ import annotations

import os

import pytest

from ustack.lab import errors, hunt, run
from ustack.replay import parse, replay


@pytest.mark.parametrize("family", hunt.FAMILIES)
def test_a_name_is_a_scenario(family: str) -> None:
    one, two = hunt.scenario(family, 3, 7), hunt.scenario(family, 3, 7)
    assert (one.steps, one.sysctl) == (two.steps, two.sysctl)
    assert one.steps != hunt.scenario(family, 3, 8).steps
    assert one.steps != hunt.scenario(family, 4, 7).steps


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a namespace of the kernel")
@pytest.mark.parametrize("family", hunt.FAMILIES)
def test_the_kernel_does_the_same(family: str) -> None:
    """A few of each family; one that differs gets a second chance, as the kernel decides some moments either way."""
    left = [hunt.scenario(family, 42, n) for n in range(12)]
    for _ in range(3):
        try:
            made = list(run.record_all(left, 4))
        except errors.MachineCannot as e:
            pytest.skip(str(e))
        reasons = {}
        for scenario, one in zip(left, made, strict=True):
            assert "error" not in one, one["error"]
            recording = parse(run.recording([one]))
            result = replay(recording, recording.scenarios[0])
            if result.verdict == "differs":
                reasons[scenario.id] = result.reason
        left = [s for s in left if s.id in reasons]
        if not left:
            return
    assert not reasons
