"""Our own scripts hold, and a script that says one untrue thing does not.

First against the echo, which needs no protocol: this tests the matcher alone, on every mutant. Then
against the stack itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.echo import EchoStack
from tests.kit.mutate import stack_runner, survivors
from ustack.drill.interp import Interpreter
from ustack.drill.nodes import Code, Command, Script
from ustack.drill.options import Options
from ustack.drill.parse import parse_file
from ustack.drill.report import Outcome
from ustack.drill.run import run_file, run_script

SCRIPTS = sorted((Path(__file__).parent.parent / "drill").glob("*.pkt"))
NAMES = [path.stem for path in SCRIPTS]


def without_code(script: Script) -> Script:
    """The echo has no state that a block or a question for a counter could look at."""
    events = tuple(e for e in script.events if not isinstance(e.action, Code)
                   and not (isinstance(e.action, Command) and "nstat |" in e.action.text))
    return Script(script.path, script.options, script.init, events, script.cleanup, script.lines)


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
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


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_mutant_fails_on_the_stack(path: Path) -> None:
    assert survivors(parse_file(str(path)), stack_runner()) == []
