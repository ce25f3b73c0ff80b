"""Our own scripts hold, and a script that says one untrue thing does not.

First against the echo, which needs no protocol: this tests the matcher alone, on every mutant. Then
against the stack itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.echo import EchoStack
from tests.kit.mutate import Mutant, stack_runner, survivors
from ustack.drill.interp import Interpreter
from ustack.drill.nodes import Code, Command, Script
from ustack.drill.options import Options
from ustack.drill.parse import parse_file
from ustack.drill.report import Outcome
from ustack.drill.run import run_file, run_script

SCRIPTS = sorted((Path(__file__).parent.parent / "drill").rglob("*.pkt"))
NAMES = [path.stem for path in SCRIPTS]
PLAIN = [path for path in SCRIPTS if path.parent.name == "drill"]


def without_code(script: Script) -> Script:
    """The echo has no state that a block or a question for a counter could look at."""
    events = tuple(e for e in script.events if not isinstance(e.action, Code)
                   and not (isinstance(e.action, Command) and "nstat |" in e.action.text))
    return Script(script.path, script.options, script.init, events, script.cleanup, script.lines)


@pytest.mark.parametrize("path", PLAIN, ids=[path.stem for path in PLAIN])
def test_every_mutant_fails_against_the_echo(path: Path) -> None:
    original = without_code(parse_file(str(path)))

    def run(script: Script) -> tuple[Outcome, Interpreter | None]:
        echo = EchoStack(original, Options())
        seen: list[Interpreter] = []

        def watch(interpreter: Interpreter) -> None:
            seen.append(interpreter)
            interpreter.on_event = echo.begin

        outcome = run_script(script, stack_factory=lambda options: echo,
                             watch=watch)  # type: ignore[arg-type,return-value]
        return outcome, seen[0] if seen else None

    assert survivors(original, run) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_script_holds_on_the_stack(path: Path) -> None:
    outcome = run_file(str(path), Options(strict=True))
    assert outcome.result == 0, outcome.text()


def some(share: float, name: str) -> Callable[[Mutant], bool]:
    """A seeded choice of mutants."""
    chance = random.Random(name)
    return lambda mutant: chance.random() < share


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_mutants_fail_on_the_stack(path: Path) -> None:
    share = 0.2 if path in PLAIN else 0.04
    assert survivors(parse_file(str(path)), stack_runner(), some(share, path.stem)) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_mutant_fails_on_the_stack(path: Path) -> None:
    assert survivors(parse_file(str(path)), stack_runner()) == []


def given_scripts() -> list[Path]:
    """Scripts written elsewhere, where they lie beside the project (docs/conformance.md)."""
    beside = Path(__file__).parents[3] / "shared" / "packetdrill"
    return sorted(beside.rglob("*.pkt"))


@pytest.mark.parametrize("share", [0.004, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["sample", "all"])
def test_mutants_of_the_given_scripts_fail(share: float) -> None:
    """Of every script that passes, each expected packet and result said wrong in one way."""
    scripts = given_scripts()
    if not scripts:
        pytest.skip("no packetdrill scripts beside the project")
    run, out, killed = stack_runner(), [], 0
    for path in scripts if share == 1 else random.Random("scripts").sample(scripts, 40):
        script = parse_file(str(path))
        if run(script)[0].result:
            continue
        counted: list[Mutant] = []
        chosen = some(share * (1 if share == 1 else 5), str(path.relative_to(path.parents[3])))
        out += survivors(script, run, lambda mutant: chosen(mutant) and not counted.append(mutant))  # noqa: B023
        killed += len(counted)
    print(f"{killed} mutants, {len(out)} pass")
    assert out == [] and killed > 50
