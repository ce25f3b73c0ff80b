"""Results of a replay and how they are told: in words, or one JSON object per scenario and line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["pass", "differs", "skipped"]


@dataclass(frozen=True)
class Difference:
    """One thing in which the stack differs, at recorded time t."""

    t: float
    where: str
    what: str
    expected: str
    got: str
    detail: str = ""

    def text(self) -> str:
        return f"{self.where}: {self.what}: expected {self.expected}, got {self.got}"


@dataclass
class Result:
    id: str
    section: str
    verdict: Verdict
    reason: str = ""
    differences: list[Difference] = field(default_factory=list)

    def json_line(self) -> str:
        return json.dumps({"id": self.id, "result": self.verdict, "reason": self.reason})


def passed(id: str, section: str) -> Result:
    return Result(id, section, "pass")


def skipped(id: str, section: str, reason: str) -> Result:
    """Left out; a reason is owed."""
    if not reason:
        raise ValueError("a skip needs a reason")
    return Result(id, section, "skipped", reason)


def differs(id: str, section: str, differences: list[Difference]) -> Result:
    found = sorted(differences, key=lambda d: d.t)
    return Result(id, section, "differs", found[0].text(), found)


def totals(results: Iterable[Result]) -> dict[str, int]:
    count = {"pass": 0, "differs": 0, "skipped": 0}
    for r in results:
        count[r.verdict] += 1
    return count


def totals_line(results: Iterable[Result], as_json: bool) -> str:
    count = totals(results)
    if as_json:
        return json.dumps({"totals": count})
    return f"{count['pass']} equal, {count['differs']} differ, {count['skipped']} skipped"


def lines(result: Result, verbose: bool) -> list[str]:
    """What a person reads about one scenario."""
    out = [f"{result.verdict:<8} {result.id}" + (f": {result.reason}" if result.reason else "")]
    if verbose:
        for d in result.differences:
            out.append(f"    {d.text()}")
            out += [f"        {line}" for line in d.detail.splitlines()]
    return out
