"""`ustack nstat`: the MIB counters of a running stack, with nstat's options and names."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import click

from ..control import ask
from ..observe import nstat as view
from . import FAILED


def _history(name: str | None) -> Path:
    """Where the last reading is kept, per user and stack, as nstat does."""
    place = os.environ.get("NSTAT_HISTORY")
    return Path(place) if place else Path(tempfile.gettempdir()) / f".ustack-nstat.u{os.geteuid()}.{name or 'stack'}"


def _read(path: Path) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        if path.lstat().st_uid == os.geteuid():
            return {str(k): int(v) for k, v in json.loads(path.read_text()).items()}
    return {}


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option("-a", "absolute", is_flag=True, help="Absolute values, not the change since the last call.")
@click.option("-z", "zeros", is_flag=True, help="Zero counters too.")
@click.option("-s", "keep", is_flag=True, help="Do not update the history.")
@click.option("-r", "reset", is_flag=True, help="Reset the history: count from the beginning.")
@click.option("-n", "silent", is_flag=True, help="Print nothing, only update the history.")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON.")
@click.option("--name", help="Which stack, if several run.")
@click.argument("patterns", nargs=-1)
@click.pass_context
def nstat(ctx: click.Context, absolute: bool, zeros: bool, keep: bool, reset: bool, silent: bool, as_json: bool,
          name: str | None, patterns: tuple[str, ...]) -> None:
    """Show the counters of a running stack since the last call (or all time with -a). PATTERNS choose names: TcpExtListen*."""
    try:
        now = ask({"op": "nstat"}, name)
    except OSError as exc:
        click.echo(f"ustack nstat: {exc.strerror}", err=True)
        ctx.exit(FAILED)
    path = _history(name)
    old = {} if absolute or reset else _read(path)
    values = {k: v if k in view.GAUGES else v - old.get(k, 0) for k, v in now.items()}
    if any(v < 0 for v in values.values()):         # the stack was started anew since
        values = now
    if not keep:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as stream:
                json.dump(now, stream)
    if silent:
        return
    if patterns:
        values = {k: v for k, v in values.items() if any(fnmatchcase(k, p) for p in patterns)}
    if as_json:
        click.echo(json.dumps({"ustack": {k: v for k, v in values.items() if v or zeros}}))
        return
    click.echo("#ustack")
    for line in view.lines(values, zeros=zeros or bool(patterns)):
        click.echo(line)
