"""Columns as ss lays them out (iproute2 6.1): every column as wide as its longest cell, addresses right-aligned to their colon.

Not on a terminal the widths are bare. On a terminal columns are gathered into lines of the terminal's width, and the room that is left on each
is shared out evenly among its columns, the last ones first; a row is then as long as these lines together, and the terminal wraps it.
The last column (timers, memory, TCP internals) is one cell even where it begins with a line break.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cells = Sequence[str]       # netid, state, recv-q, send-q, local address, port, peer address, port, the rest


@dataclass
class _Column:
    header: str
    before: str
    right: bool = False
    width: int = 0


def _columns() -> list[_Column]:
    return [_Column("Netid", ""), _Column("State", " "), _Column("Recv-Q", " "), _Column("Send-Q", " "), _Column("Local Address:", " ", True),
            _Column("Port", ""), _Column("Peer Address:", " ", True), _Column("Port", ""), _Column("Process", "")]


def layout(rows: Sequence[Cells], *, netid: bool, state: bool, header: bool = True, width: int | None = None) -> str:
    """The table as text. width: columns of the terminal, None when there is none."""
    columns = _columns()
    shown = [i for i in range(len(columns)) if (i != 0 or netid) and (i != 1 or state)]
    lines = [[c.header for c in columns]] if header else []
    lines += [list(r) for r in rows]
    if not lines:
        return ""
    used = [columns[i] for i in shown]
    table = [[line[i] for i in shown] for line in lines]
    if rows:
        table[-1] = [*table[-1][:-1], ""]       # ss measures a cell when the next one begins: the very last one never
    _measure(used, table, width)
    return "".join(_line(used, [line[i] for i in shown]) for line in lines)


def _measure(columns: list[_Column], lines: list[list[str]], width: int | None) -> None:
    first = True
    for i, c in enumerate(columns):
        longest = max(len(line[i]) for line in lines)
        c.width = longest if first or not longest else longest + len(c.before)
        if width is not None:
            c.width = min(c.width, width)
        if c.width:
            first = False
    if width is not None:
        _spread([c for c in columns if c.width], width)


def _spread(columns: list[_Column], width: int) -> None:
    """Gather columns into the terminal's lines and share out the room that is left."""
    start = used = at = 0
    while at < len(columns):
        used += columns[at].width
        last = at == len(columns) - 1
        if not last and used < width:
            at += 1
            continue
        if used != width:
            if used > width:
                used -= columns[at].width
                at -= 1
            share, more = divmod(width - used, at - start + 1)
            for c in reversed(columns[start:at + 1]):
                c.width += share + (1 if more else 0)
                more -= 1 if more else 0
        at += 1
        start, used = at, 0


def _line(columns: list[_Column], cells: list[str]) -> str:
    out: list[str] = []
    for i, (c, text) in enumerate(zip(columns, cells, strict=True)):
        before = c.before if i else ""
        pad = " " * max(0, c.width - len(before) - len(text))
        out.append(before + (pad + text if c.right else text + pad))
    return "".join(out) + "\n"
