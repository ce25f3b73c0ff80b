"""`ustack nstat`: the MIB counters of a running stack, with nstat's options, lines and history."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import click

from ..control import ask, find
from ..observe import nstat as view
from . import FAILED


def _history(stack: str) -> Path:
    """Where the last reading is kept, per user and stack, as nstat does."""
    place = os.environ.get("NSTAT_HISTORY")
    return Path(place) if place else Path(tempfile.gettempdir()) / f".nstat.ustack.{stack}.u{os.geteuid()}"


def _read(path: Path) -> dict[str, int]:
    """The history; empty if there is none, or if it is not a file of this user's that nstat wrote."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd) as stream:
            if os.fstat(fd).st_uid == os.geteuid():
                found = view.parse_history(stream.read())
                if found is None:
                    click.echo("nstat: history is stale, ignoring it.", err=True)
                return found or {}
    return {}


def _write(path: Path, counters: dict[str, int]) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write("\n".join([view.HEADER, *view.lines(counters)]) + "\n")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-a", "--ignore", "absolute", is_flag=True, help="Absolute values, not the change since the last call.")
@click.option("-z", "--zeros", is_flag=True, help="Zero counters too.")
@click.option("-s", "--noupdate", "keep", is_flag=True, help="Do not update the history.")
@click.option("-r", "--reset", is_flag=True, help="Reset the history: count from the beginning.")
@click.option("-n", "--nooutput", "silent", is_flag=True, help="Print nothing, only update the history.")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON.")
@click.option("-p", "--pretty", is_flag=True, help="JSON on several lines.")
@click.option("--name", help="Which stack, if several run.")
@click.argument("patterns", nargs=-1)
@click.pass_context
def nstat(ctx: click.Context, absolute: bool, zeros: bool, keep: bool, reset: bool, silent: bool, as_json: bool, pretty: bool,
          name: str | None, patterns: tuple[str, ...]) -> None:
    """Show the counters of a running stack since the last call (or all time with -a). PATTERNS choose names: TcpExtListen*.

    The last reading is kept in $NSTAT_HISTORY, else in a file of the temporary directory.
    """
    try:
        stack = find(name)
        now = ask({"op": "nstat"}, stack)
    except OSError as exc:
        click.echo(f"ustack nstat: {exc.strerror}", err=True)
        ctx.exit(FAILED)
    path = _history(stack)
    old = {} if absolute or reset else _read(path)
    if any(now.get(k, 0) < v for k, v in old.items()):
        click.echo("nstat: history is stale, ignoring it.", err=True)        # the stack was started anew since
        old = {}
    if not keep:
        _write(path, now)
    if silent:
        return
    values = {k: v - old.get(k, 0) for k, v in now.items()}
    if as_json:
        click.echo(json.dumps({view.HEADER[1:]: view.chosen(values, only=patterns, zeros=zeros)}, indent=4 if pretty else None,
                              separators=(",", ": ") if pretty else (",", ":")))
        return
    click.echo("\n".join([view.HEADER, *view.lines(values, only=patterns, zeros=zeros)]))
