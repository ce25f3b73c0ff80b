"""What scripts/bench makes of its samples: which count, medians, ratios round by round, results of two runs put together, the document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
BENCH = TOP / "scripts" / "bench"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def row(better: str = "more", **kwargs: Any) -> Any:
    from harness import rows

    return rows.Row("work", "some work", "1/s", lambda *_: {"value": 0.0}, better=better, **kwargs)


def samples(*values: float, lost: float = 0.0) -> list[dict[str, float] | None]:
    return [{"value": v, "lost": lost} for v in values]


def test_samples_that_lost_their_core_count_only_for_want_of_others() -> None:
    from harness.measure import clean

    good, bad = samples(1, 2, 3), samples(9, 9, 9, lost=0.5)
    assert clean(good + bad) == good
    assert clean(good[:1] + bad) == good[:1] + bad
    assert clean([None, *bad]) == bad


def test_median_best_and_what_came_with_it() -> None:
    from harness.measure import reduce

    got = reduce(row(), [{"value": v, "lost": 0.0, "p99_us": v * 10} for v in (3.0, 1.0, 2.0)])
    assert got is not None
    assert (got["median"], got["best"], got["lowest"], got["highest"], got["p99_us"], got["noisy"]) == (2.0, 3.0, 1.0, 3.0, 20.0, False)
    less = reduce(row("less"), samples(3, 1, 2))
    assert less is not None and less["best"] == 1
    assert reduce(row(), [None, None]) is None


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine at half its speed in one round does not change the ratio."""
    from harness.measure import ratio

    taken = {"ustack": samples(90, 45, 90), "limit": samples(100, 50, 100)}
    got = ratio(row(), taken, "ustack", "limit")
    assert got is not None and got["median"] == pytest.approx(0.9)
    assert ratio(row(), {"ustack": samples(1), "limit": [None]}, "ustack", "limit") is None


def result(**figures: float) -> dict[str, Any]:
    from harness import measure

    run = measure.Measurement([], __import__("harness.rows").rows.Plan())
    run.samples["work"] = {name.replace("_", "-"): samples(v, v, v) for name, v in figures.items()}
    return measure.results([row(to_limit=0.85, to_kernel=1.5)], run)


def test_peers_measured_later_do_not_replace_the_first_figures() -> None:
    from harness.measure import merge

    first, later = result(limit=100, kernel=50, ustack=80), result(ustack=40, lwip=20)
    got = merge(first, later)["work"]
    assert got["figures"]["ustack"]["median"] == 80
    assert got["ratios"]["lwip"]["median"] == 2, "taken beside the other in its own run"
    assert got["ratios"]["limit"]["median"] == pytest.approx(0.8)
    assert merge(first, result(limit=10, kernel=5, ustack=9))["work"]["figures"]["ustack"]["median"] == 9


def test_a_row_of_ustack_alone_is_replaced() -> None:
    from harness.measure import merge

    assert merge(result(ustack=80), result(ustack=40))["work"]["figures"]["ustack"]["median"] == 40


def test_the_document_says_how_ustack_was_built() -> None:
    from harness.document import built

    rows: dict[str, Any] = {"old": {"taken": {}}, "new": {"taken": {"profiled": True}}}
    assert built({"rows": rows}).endswith("with plain -O2: old.")
    rows["new"]["taken"]["profiled"] = False
    assert "without a profile" in built({"rows": rows})
    assert built({"rows": {"new": {"taken": {"profiled": True}}}}) == "The figures are of a profile-guided build."


def test_what_must_hold_is_said_in_both_outputs() -> None:
    from harness import document, tables

    rows = result(limit=100, kernel=50, ustack=80)
    assert "must >= 0.85: MISSED" in tables.text(rows) and "must >= 1.5: holds" in tables.text(rows)
    assert tables.verdicts(rows) == [("work to the limit (0.80, must >= 0.85)", False), ("work to the kernel (1.60, must >= 1.5)", True)]
    assert "1 of 2 that must hold do, these do not:" in tables.text(rows)
    line = document.must({"rows": rows}).splitlines()[-1]
    assert "**no**" in line and "| 0.80 |" in line and "| yes |" in line


@pytest.mark.parametrize(("value", "text"), [(12_345_678, "12,345,678"), (664_321, "664,000"), (12_345, "12,300"), (1234.5, "1,234"), (12.34, "12.3"),
                                             (0.8512, "0.85")])
def test_figures_have_the_digits_that_say_something(value: float, text: str) -> None:
    from harness.tables import figure

    assert figure(value) == text


def test_the_document_is_what_the_results_make_of_it() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "report"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_row_that_must_hold_is_in_the_kept_results() -> None:
    from harness.rows import ROWS

    kept = json.loads((TOP / "docs" / "performance.json").read_text())["rows"]
    assert {r.name for r in ROWS} <= set(kept)
