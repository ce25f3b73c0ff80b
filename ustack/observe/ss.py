"""The socket table as iproute2's `ss` prints it, from the rows of `Engine.dump()`.

`rows(dump, args)` takes ss's own words (`-tan state syn-recv sport = :80`) and gives one dict per socket: {"state", "recvq", "sendq", "local",
"peer"} and "info" when there is a rest of the line. `text(dump, args)` is what ss would print, byte for byte (`cells` and `layout` are its two
halves: a control socket carries the cells, the terminal's width is known at the other end). What the words mean stands in ss_query, the rest of
a line in ss_words, the columns in ss_layout.

A row of the dump: kind "listen"|"sock"|"req"|"tw", state (Linux's number), laddr, lport, faddr, fport, recvq, sendq, timer (ss's name or None),
timer_expires_ns (what is left of it), retrans, id; sockets besides: info (the bytes of TCP_INFO), meminfo (those of SO_MEMINFO), cc (its
name), bbr, uid, mark, tos, shutdown, handle, owned (a program holds it).
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ss_layout import layout
from .ss_query import LISTEN, Query, Row, UsageError, parse
from .ss_words import ms_timer, skmem_text, tcp_text

__all__ = ["STATES", "Query", "UsageError", "Where", "cells", "layout", "ms_timer", "parse", "print_cells", "rows", "skmem_text", "summary",
           "tcp_text", "text"]

STATES = {1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT",
          7: "UNCONN", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECV"}


@dataclass(frozen=True)
class Where:
    """What the words need to know about the process: name and pid for -p, its cgroup for -e, which ports have no service names."""

    program: str = "ustack"
    pid: int = 0
    cgroup: str = "/"
    ephemeral: tuple[int, int] = (32768, 60999)

    @staticmethod
    def here(ephemeral: tuple[int, int] = (32768, 60999)) -> Where:
        """This process."""
        try:
            program = Path("/proc/self/comm").read_text().strip()
            cgroup = next(line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0:"))
        except (OSError, StopIteration):
            program, cgroup = "ustack", "/"
        return Where(program, os.getpid(), cgroup, ephemeral)


# ---- the rest of the line ------------------------------------------------------------------------------------------------------------


def _timer(row: Row) -> str:
    if not row.get("timer"):
        return ""
    return f"timer:({row['timer']},{ms_timer((row['timer_expires_ns'] or 0) // 1_000_000)},{row.get('retrans', 0)})"


def _process(row: Row, where: Where) -> str:
    return f'users:(("{where.program}",pid={where.pid},fd={row.get("handle", 0) & 0xFFFFFFFF}))' if row.get("owned") else ""


def _tos(row: Row) -> str:
    return f"tos:{row.get('tos', 0):#x} class_id:{row.get('priority', 0):#x}".replace(":0x0", ":0")


def _identity(row: Row, where: Where) -> str:
    """Owner, inode (a handle's number; 0 for what no program holds), cookie; a full socket's cgroup and which directions are open."""
    words = [f"uid:{row['uid']}"] if row.get("uid") else []
    words += [f"ino:{row.get('handle', 0) & 0xFFFFFFFF if row.get('owned') else 0}", f"sk:{row.get('id', row.get('handle', 0)):x}"]
    if row.get("mark"):
        words.append(f"fwmark:{row['mark']:#x}")
    if row["kind"] in ("sock", "listen"):
        shut = row.get("shutdown", 0)
        words += [f"cgroup:{where.cgroup}", f"{'-' if shut & 1 else '<'}-{'-' if shut & 2 else '>'}"]
    return " ".join(words)


def _internals(row: Row, query: Query) -> str:
    """What stands on the second line: memory, TCP internals."""
    words = []
    if "m" in query.flags and row.get("meminfo"):
        raw = row["meminfo"]
        words.append(skmem_text(struct.unpack(f"={len(raw) // 4}I", raw)))
    if "i" in query.flags and row["kind"] in ("sock", "listen") and row.get("info"):
        words.append(tcp_text(row["info"], row.get("cc", ""), numeric="n" in query.flags, options=query.shows_options, bbr=row.get("bbr")))
    return " ".join(w for w in words if w)


def _first_words(row: Row, query: Query, where: Where) -> str:
    flags = query.flags
    full = row["kind"] in ("sock", "listen")
    words = [
        _process(row, where) if flags & {"p", "T"} else "",
        _timer(row) if query.shows_options else "",
        _identity(row, where) if "e" in flags else "",
        _tos(row) if "tos" in flags and full else "",
        f"cgroup:{where.cgroup}" if "cgroup" in flags and full else "",
        "queue:{}/{}".format(*row["shard"]) if row.get("shard") else "",    # queues and limits are this shard's alone
    ]
    return " ".join(w for w in words if w)


# ---- rows and cells ------------------------------------------------------------------------------------------------------------------


def rows(dump: Iterable[Row], args: str | Sequence[str] = "-tan", where: Where | None = None) -> list[dict[str, Any]]:
    """The rows that `ss ARGS` shows, listeners first."""
    query = parse(args)
    where = where or Where()
    out = []
    for r in _chosen(dump, query):
        local, lport, peer, fport = _places(r, query, where)
        row = {"state": STATES[r["state"]], "recvq": r["recvq"], "sendq": r["sendq"], "local": f"{local}:{lport}", "peer": f"{peer}:{fport}"}
        info = " ".join(w for w in (_first_words(r, query, where), _internals(r, query)) if w)
        if info:
            row["info"] = info
        out.append(row)
    return out


def cells(dump: Iterable[Row], query: Query, where: Where) -> list[list[str]]:
    """One list of texts per socket, as `layout` wants them."""
    out = []
    for r in _chosen(dump, query):
        local, lport, peer, fport = _places(r, query, where)
        rest = _first_words(r, query, where)
        rest = f" {rest}" if rest else ""
        if query.flags & {"m", "i"}:
            internals = _internals(r, query)
            rest += ("" if "O" in query.flags else "\n\t") + (f" {internals}" if internals else "")
        out.append(["tcp", STATES[r["state"]], f"{r['recvq']:<6}", f"{r['sendq']:<6}", f"{local}:", lport, f"{peer}:", fport, rest])
    return out


def text(dump: Iterable[Row], args: str | Sequence[str] = "-tan", *, width: int | None = None, where: Where | None = None) -> str:
    """What `ss ARGS` prints; width: that of the terminal, None when stdout is none."""
    query = parse(args)
    return print_cells(cells(dump, query, where or Where()), query, width)


def print_cells(table: Sequence[Sequence[str]], query: Query, width: int | None = None) -> str:
    """The second half of `text`."""
    return layout(table, netid=query.shows_netid, state=query.shows_state, header="H" not in query.flags, width=width)


def _chosen(dump: Iterable[Row], query: Query) -> list[Row]:
    return sorted((r for r in dump if query.wants(r)), key=lambda r: r["state"] != LISTEN)


def _places(row: Row, query: Query, where: Where) -> tuple[str, str, str, str]:
    numeric = "n" in query.flags
    resolve = "r" in query.flags
    return (_host(row["laddr"], resolve), _port(row["lport"], numeric, where), _host(row["faddr"], resolve),
            _port(row["fport"], numeric, where))


def _host(addr: str, resolve: bool) -> str:
    return host_name(addr) if resolve and addr != "0.0.0.0" else addr


@functools.lru_cache(1024)
def host_name(addr: str) -> str:
    """The name of an address, or the address."""
    try:
        return socket.gethostbyaddr(addr)[0]
    except OSError:
        return addr


def _port(port: int, numeric: bool, where: Where) -> str:
    if port == 0:
        return "*"
    low, high = where.ephemeral
    return str(port) if numeric or low <= port <= high else service_name(port)


@functools.lru_cache(1024)
def service_name(port: int) -> str:
    """The name of a TCP port in /etc/services, or its number."""
    try:
        return socket.getservbyport(port, "tcp")
    except OSError:
        return str(port)


# ---- ss -s ---------------------------------------------------------------------------------------------------------------------------


def summary(dump: Iterable[Row], sockets: int) -> str:
    """What `ss -s` prints. sockets: all TCP sockets there are, unbound ones too; as in ss TIME_WAIT counts among the closed."""
    table = [r for r in dump if r["kind"] != "req"]
    waiting = sum(r["kind"] == "tw" for r in table)
    full = [r for r in table if r["kind"] != "tw"]
    orphans = sum(bool(r.get("dead")) for r in full)
    estab = sum(r["state"] in (1, 8) for r in full)
    out = [f"Total: {sockets - orphans}",
           f"TCP:   {sockets + waiting} (estab {estab}, closed {sockets - len(full) + waiting}, orphaned {orphans}, timewait {waiting})", "",
           "Transport Total     IP        IPv6"]
    for name, n in (("RAW", 0), ("UDP", 0), ("TCP", len(full)), ("INET", len(full)), ("FRAG", 0)):
        out.append(f"{name}\t  {n:<9d} {n:<9d} {0:<9d}")
    return "\n".join(out) + "\n\n"
