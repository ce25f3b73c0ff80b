"""Scripts that are broken, by chance: whatever the text, the outcome is pass, fail, syntax or skipped, and never a defect of the tool."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ustack.drill.parse import ScriptSyntaxError, parse_text
from ustack.drill.report import Outcome, Result
from ustack.drill.run import run_script

TEXTS = [path.read_text() for path in sorted((Path(__file__).parents[1] / "drill").rglob("*.pkt"))]
WORDS = [
    "...", "<", ">", "+0", "*", "(", ")", "[", "]", "{", "}", "`", "%{", "}%", "=", "-1", "EAGAIN", "0x", "4294967296",
    "99999999999999999999", "@a", "@a*3", "@a.9", "sack 1:2", "FO", "FO 00", "md5 00", "ECN e0b 1",
    "accept(3, ..., ...)", "close(3) = 0", "poll([], 0, 0) = 0", "NULL", '"\\x', "/*", "//", "icmp", "unreachable",
    "win", "ack", "mss 70000", "ttl 300", "--mss=x", "--nope", "+.1~+.0", "1...0", "S.", "-", "\0", "é", "nstat | ",
    "$((", "recvmsg(3, {}, 0) = 0", "epoll_wait(3, {}, 1, 0) = 0", "[1, 2]", "{fd=9}", "setsockopt(3, 1, 2, 3, 4) = 0",
    "write(3, ..., 9999999999) = 0", "read(3, ..., -5) = 0", "queue(3, 1) = 0",
]


NUMBERS = [0, 1, 3, 4, 8, 100, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, -1, -2**31, 2**63, 2**64]
NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


def misnumbered(text: str, chance: random.Random) -> str:
    """One to three numbers changed: mostly still a script."""
    for _ in range(chance.randint(1, 3)):
        place = chance.choice(list(NUMBER.finditer(text)))
        text = text[:place.start()] + str(chance.choice(NUMBERS)) + text[place.end():]
    return text


def broken(text: str, chance: random.Random) -> str:
    """One to four changes: a word for another, a piece gone, twice, or elsewhere, a character for another."""
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(5)
        words = text.split(" ")
        at = chance.randrange(len(words))
        if kind == 0:
            words[at] = chance.choice(WORDS)
        elif kind == 1:
            del words[at:at + chance.randint(1, 3)]
        elif kind == 2:
            words.insert(at, chance.choice(words))
        elif kind == 3:
            other = chance.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        text = " ".join(words)
        if kind == 4 and text:
            spot = chance.randrange(len(text))
            text = text[:spot] + chance.choice("0123456789.,:;<>()[]{}=|+-~`\"'%@#$ \nSFPRn\\") + text[spot + 1:]
    return text


def outcome_of(text: str) -> Outcome:
    try:
        script = parse_text(text)
    except ScriptSyntaxError as error:
        assert 1 <= error.pos.line <= text.count("\n") + 2 and error.pos.column >= 1
        return Outcome("", Result.SYNTAX, error.message, error.pos)
    return run_script(script)


def sane(outcome: Outcome) -> None:
    assert not outcome.reason.startswith("internal error"), outcome.reason
    assert outcome.result is Result.PASS or outcome.reason
    assert outcome.text(verbose=True) and outcome.json()["result"] in ("pass", "fail", "syntax", "skipped")


@pytest.mark.parametrize("part", range(4))
def test_broken_scripts_have_an_outcome(part: int) -> None:
    chance = random.Random(part)
    for _ in range(60):
        sane(outcome_of(broken(chance.choice(TEXTS), chance)))
        sane(outcome_of(misnumbered(chance.choice(TEXTS), chance)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_broken_scripts_have_an_outcome() -> None:
    chance = random.Random("many")
    for _ in range(3000):
        sane(outcome_of(broken(chance.choice(TEXTS), chance)))
        sane(outcome_of(misnumbered(chance.choice(TEXTS), chance)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_text_has_an_outcome(text: str) -> None:
    sane(outcome_of(text))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_any_words_have_an_outcome(words: list[str]) -> None:
    sane(outcome_of(" ".join(words)))
