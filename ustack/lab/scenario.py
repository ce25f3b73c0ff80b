"""Scenario files: TOML with step lines, or Python.

TOML holds `[[scenario]]` tables: `id`, `rules` (names of the facts), `desc`, `steps` (the lines of `script`),
and if needed `sysctl` (a table, set before the first step), `congestion`, `varies`, `tolerance` (a table: by how much
a field of TCP_INFO may differ), `draws` (the kernel draws random numbers here: how many seeds to try), `calm` (record again if a packet
came in later than this, in seconds, than was written down). `for.NAME = [...]` makes
a family: one scenario for each value (of several names: each combination), `{NAME}` standing for the value in
all texts. `cases = [{...}, ...]` lists the combinations instead.

A Python file offers `scenarios()`, which gives dicts of the same members; `steps` may be a function that
takes the `Script` and plays what it wants.
"""

from __future__ import annotations

import itertools
import runpy
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import errors

Player = Callable[[Any], None]
MEMBERS = frozenset({"id", "rules", "desc", "steps", "sysctl", "congestion", "varies", "for", "cases", "section", "explained",
                     "tolerance", "draws", "calm"})


@dataclass
class Scenario:
    id: str
    section: str
    rules: list[str]
    desc: str
    steps: str | Player
    sysctl: dict[str, str] = field(default_factory=dict)
    congestion: str = "cubic"
    varies: str | None = None
    explained: str = ""
    file: str = ""
    tolerance: dict[str, float] = field(default_factory=dict)
    draws: int = 1
    calm: float = 1.0


def _fill(value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, str):
        for name, word in names.items():
            value = value.replace("{" + name + "}", str(word))
        return value
    if isinstance(value, dict):
        return {_fill(k, names): _fill(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, names) for v in value]
    return value


def _family(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    plain = {k: v for k, v in table.items() if k not in ("for", "cases")}
    over = table.get("for", {})
    combos = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())] if over else [{}]
    for combo in combos:
        for case in table.get("cases", [{}]):
            names = {**combo, **case}
            yield _fill(plain, names) if names else plain


def _scenario(table: dict[str, Any], path: Path) -> Scenario:
    unknown = table.keys() - MEMBERS
    if unknown:
        raise errors.ScenarioError(f"{path}: {table.get('id', '?')}: unknown member {sorted(unknown)[0]!r}")
    for key in ("id", "steps"):
        if key not in table:
            raise errors.ScenarioError(f"{path}: {table.get('id', '?')}: member {key!r} is missing")
    name = table["id"]
    return Scenario(name, table.get("section", name[:1]), table.get("rules", []), table.get("desc", ""), table["steps"],
                    {k: str(v) for k, v in table.get("sysctl", {}).items()}, table.get("congestion", "cubic"), table.get("varies"),
                    table.get("explained", ""), str(path),
                    dict(table.get("tolerance", {})), table.get("draws", 1), table.get("calm", 1.0))


def load(path: Path) -> list[Scenario]:
    """All scenarios of a file."""
    try:
        if path.suffix == ".py":
            tables = list(runpy.run_path(str(path))["scenarios"]())
        else:
            tables = tomllib.loads(path.read_text()).get("scenario", [])
    except (OSError, tomllib.TOMLDecodeError, KeyError) as e:
        raise errors.ScenarioError(f"{path}: {e}") from e
    found = [_scenario(t, path) for table in tables for t in _family(table)]
    if not found:
        raise errors.ScenarioError(f"{path}: no [[scenario]] in it")
    names = [s.id for s in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise errors.ScenarioError(f"{path}: the id {twice} stands there twice")
    return found
