"""scripts/score: the table is stable, and a fallen figure fails the check."""

import importlib.machinery
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "score"


@pytest.fixture(scope="module")
def score():
    loader = importlib.machinery.SourceFileLoader("score", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("score", loader))
    loader.exec_module(module)
    return module


def text(score, passed):
    table = {"B": Counter({"pass": 2, "skipped": 1}), "A": Counter({"pass": passed, "fail": 1})}
    return "\n".join(score.show("Recordings", "section", table))


def test_table_is_sorted_and_sums_up(score):
    assert text(score, 3).splitlines()[2:] == [
        "| section |  pass |    of | skipped |",
        "|---------|------:|------:|--------:|",
        "| A       |     3 |     4 |       0 |",
        "| B       |     2 |     3 |       1 |",
        "| all     |     5 |     7 |       1 |",
    ]


@pytest.mark.parametrize("now, code", [(3, 0), (4, 0), (2, 1)])
def test_check_fails_if_a_figure_fell(score, tmp_path, now, code, capsys):
    kept = tmp_path / "score.md"
    kept.write_text(text(score, 3))
    assert score.check(kept, text(score, now)) == code
    assert ("A: 3 -> 2" in capsys.readouterr().err) == bool(code)


def test_check_fails_if_a_line_is_gone(score, tmp_path):
    kept = tmp_path / "score.md"
    kept.write_text(text(score, 3))
    assert score.check(kept, "\n".join(score.show("Recordings", "section", {"A": Counter({"pass": 9})}))) == 1


def test_a_script_has_the_feature_of_the_nearest_catalogue(score, tmp_path):
    (tmp_path / "x").mkdir()
    script = tmp_path / "x" / "a.pkt"
    script.write_text("")
    (tmp_path / "catalogue.tsv").write_text("path\tfeature\nx/a.pkt\tlisten\n")
    assert score.features([script]) == {script: "listen"}
