"""`ustack diff --replay FILE`: run the scenarios of a recording on ustack in virtual time and tell what
differs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import click

from ..replay import FormatError, load, replay
from ..replay.report import lines, totals, totals_line
from . import FAILED, SKIPPED


@click.command()
@click.option("--replay", "files", metavar="FILE", multiple=True, required=True,
              type=click.Path(path_type=Path),
              help="Recording to replay (JSON, may be gzip-compressed). May be given again.")
@click.option("--only", "patterns", metavar="ID", multiple=True,
              help="Only scenarios with this id; may be a glob and may be given again.")
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON object per scenario and line.")
@click.option("-v", "--verbose", is_flag=True, help="All differences of a scenario, with the packets.")
@click.pass_context
def diff(ctx: click.Context, files: tuple[Path, ...], patterns: tuple[str, ...], as_json: bool,
         verbose: bool) -> None:
    """Replay recordings of a real kernel on ustack, in virtual time, and tell every difference.

    Exit code 0 if all is equal, 1 on any difference, 2 if a file is not a recording, 4 if all was skipped.
    """
    results = []
    try:
        recordings = [load(f) for f in files]
        chosen = [(r, s) for r in recordings for s in r.scenarios
                  if not patterns or any(fnmatchcase(s.id, p) for p in patterns)]
        if not chosen:
            why = "no scenario has such an id" if patterns else "the recording has no scenario"
            raise click.UsageError(why)
        for recording, scenario in chosen:
            result = replay(recording, scenario)
            results.append(result)
            for line in [result.json_line()] if as_json else lines(result, verbose):
                click.echo(line)
    except FormatError as e:
        raise click.UsageError(str(e)) from e
    click.echo(totals_line(results, as_json))
    count = totals(results)
    if count["differs"]:
        ctx.exit(FAILED)
    if not count["pass"]:
        ctx.exit(SKIPPED)
