"""Script text before parsing: `--define` substitution with places that still point at the original.

Substitution replaces whole words outside comments, strings, shell commands and code blocks, in one
pass (a replacement is not looked at again), as the language defines it for `-D NAME=value`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from ustack.drill.nodes import Pos

# What the reference's own test runner defines for IPv4 runs (see the language's description).
DEFAULT_DEFINES: dict[str, str] = {
    "TFO_COOKIE": "3021b9d889017eeb",
    "TFO_COOKIE_ZERO": "b7c12350a90dc8f5",
    "CODE": "host_unreachable",
    "CMSG_LEVEL_IP": "SOL_IP",
    "CMSG_TYPE_RECVERR": "IP_RECVERR",
}

DEFINE_LINE = r"""--define=((?:"[^"\n]*"|`[^`]*`|[^\s"`])+)"""
_OPAQUE = DEFINE_LINE.replace("((?:", "(?:(?:") + (
    r'|//[^\n]*|/\*(?:.|\n)*?\*/|`[^`]*`|%\{(?:.|\n)*?\}%|"(?:[^"\\\n]|\\.)*"')
_DEFINE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Source:
    """The text handed to the parser, and the way back from its offsets to the file's lines."""

    def __init__(self, original: str, defines: Mapping[str, str]) -> None:
        self.original = original
        self.lines = tuple(original.split("\n"))
        self._line_starts = [0]
        for line in self.lines:
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)
        self._starts: list[int] = [0]  # offsets in the expanded text where a new shift begins ...
        self._shifts: list[tuple[int, int]] = [(0, -1)]  # ... (original - expanded, fixed place or -1)
        self.text = self._expand(defines)

    def _expand(self, defines: Mapping[str, str]) -> str:
        if not defines:
            return self.original
        names = "|".join(sorted(map(re.escape, defines), key=len, reverse=True))
        pattern = re.compile(rf"(?P<opaque>{_OPAQUE})|(?<![A-Za-z0-9_])(?P<name>{names})(?![A-Za-z0-9_])")
        out: list[str] = []
        size = last = 0
        for match in pattern.finditer(self.original):
            if match["name"] is None:
                continue
            out.append(self.original[last:match.start()])
            size += match.start() - last
            value = defines[match["name"]]
            self._starts.append(size)
            self._shifts.append((0, match.start()))
            out.append(value)
            size += len(value)
            last = match.end()
            self._starts.append(size)
            self._shifts.append((last - size, -1))
        out.append(self.original[last:])
        return "".join(out)

    def place(self, offset: int) -> Pos:
        """Line and column, in the file, of an offset into `text`."""
        shift, fixed = self._shifts[bisect_right(self._starts, offset) - 1]
        at = fixed if fixed >= 0 else offset + shift
        line = min(bisect_right(self._line_starts, at), len(self.lines))
        return Pos(line, at - self._line_starts[line - 1] + 1)


def parse_define(text: str) -> tuple[str, str]:
    """`NAME=value` of the command line or of `--define=NAME=value`; ValueError if it is not one."""
    name, equals, value = text.partition("=")
    if not equals or not _DEFINE_NAME.match(name):
        raise ValueError(f"a definition is NAME=value, not {text!r}")
    return name, value
