"""What a run tells: the outcome of a script, the failure in words, the ladder of packets, a pcap file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import BinaryIO

from ustack.drill.nodes import Pos, Script
from ustack.drill.packets import Flow
from ustack.drill.state import Failure

_LADDER_ROWS = 24
_LINKTYPE_RAW = 101


class Result(IntEnum):
    """The values are the exit codes."""

    PASS = 0
    FAIL = 1
    SYNTAX = 2
    SKIPPED = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the ladder."""

    at: int
    mark: str  # "<" injected, ">" emitted, "*" anything else
    text: str
    pos: Pos | None = None
    raw: bytes | None = None  # an emitted packet, and the flow under test when it came
    flow: Flow | None = None


@dataclass
class Outcome:
    path: str
    result: Result
    reason: str = ""
    pos: Pos | None = None
    expected: str = ""
    got: str = ""
    source_line: str = ""
    ladder: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    printed: str = ""

    def json(self) -> dict[str, str]:
        place = f"{self.pos}: " if self.pos is not None else ""
        details = f" (expected {self.expected}; got {self.got})" if self.expected or self.got else ""
        return {"path": self.path, "result": self.result.name.lower(),
                "reason": place + self.reason + details if self.reason else ""}

    def text(self, verbose: bool = False) -> str:
        """For a person: one line, and for a failure what was expected, what came, and how it came to it."""
        where = f"{self.path}:{self.pos}" if self.pos is not None else self.path
        lines = [f"{where}: {self.result.name.lower()}" + (f": {self.reason}" if self.reason else "")]
        if self.result is Result.FAIL:
            if self.source_line:
                lines.append(f"    script:   {self.source_line}")
            if self.expected:
                lines.append(f"    expected: {self.expected}")
            if self.got:
                lines.append(f"    got:      {self.got}")
            lines += ladder_text(self.ladder)
        elif verbose:
            lines += ladder_text(self.ladder, len(self.ladder))
        lines += [f"    warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def failed(script: Script, failure: Failure) -> Outcome:
    return Outcome(script.path, Result.FAIL, failure.message, failure.pos, failure.expected, failure.got,
                   script.line_text(failure.pos))


def ladder_text(rows: list[Row], most: int = _LADDER_ROWS) -> list[str]:
    """The exchange so far: peer on the left, stack on the right."""
    shown = rows[-most:]
    lines = [f"    ... {len(rows) - len(shown)} earlier"] if len(rows) > len(shown) else []
    for row in shown:
        arrow = {"<": "peer --> stack", ">": "peer <-- stack"}.get(row.mark, "              ")
        line = f"  (line {row.pos.line})" if row.pos is not None else ""
        lines.append(f"    {row.at / 1e9:12.6f}  {arrow}  {row.text}{line}")
    return lines


class PcapFile:
    """A pcap file of raw IP packets with nanosecond times."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        stream.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, _LINKTYPE_RAW))

    def write(self, at: int, raw: bytes) -> None:
        at = max(at, 0)
        self._stream.write(struct.pack("=IIII", at // 10**9, at % 10**9, len(raw), len(raw)) + raw)
