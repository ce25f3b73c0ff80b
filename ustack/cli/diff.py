"""`ustack diff`: scenarios on a real kernel and on ustack, or recordings of a kernel on ustack, and what differs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from ..lab import errors, run
from ..replay import FormatError, Result, load, parse, replay
from ..replay.report import Difference, differs, lines, skipped, totals, totals_line
from . import FAILED, MACHINE, SKIPPED


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, p) for p in patterns)


def _replayed(files: Sequence[Path], patterns: Sequence[str]) -> Iterator[Result]:
    for recording in [load(f) for f in files]:
        for s in recording.scenarios:
            if _wanted(s.id, patterns):
                yield replay(recording, s)


def _against_file(chosen: Sequence[Any], path: Path) -> Iterator[Result]:
    recording = load(path)
    have = {s.id: s for s in recording.scenarios}
    for s in chosen:
        yield replay(recording, have[s.id]) if s.id in have else skipped(s.id, s.section, f"{path} holds no such scenario")


def _against_kernel(chosen: Sequence[Any], jobs: int, record: Path | None) -> Iterator[Result]:
    made: list[dict[str, Any]] = []
    for one in run.record_all(chosen, jobs):
        if "error" in one:
            yield differs(one["id"], one["section"], [Difference(0.0, "scenario", "script", "one that makes sense", one["error"])])
            continue
        made.append(one)
        recording = parse(run.recording([one]))
        yield replay(recording, recording.scenarios[0])
    if record is not None:
        save(record, run.recording(made))


def save(path: Path, recording: dict[str, Any]) -> None:
    text = json.dumps(recording, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


@click.command()
@click.argument("scenarios", metavar="[SCENARIO]...", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--against", default="kernel", metavar="kernel|FILE", show_default=True,
              help="What the scenarios are compared with: this machine's kernel, or a recording of them.")
@click.option("--record", metavar="FILE", type=click.Path(path_type=Path), help="Write the kernel's side down (.json or .json.gz).")
@click.option("--replay", "files", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
              help="Recording to replay (JSON, may be gzip-compressed). May be given again.")
@click.option("--only", "patterns", metavar="ID", multiple=True, help="Only scenarios with this id; may be a glob and may be given again.")
@click.option("--jobs", default=run.JOBS, show_default=True, type=click.IntRange(1, 64), help="Scenarios recorded at a time.")
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON object per scenario and line.")
@click.option("-v", "--verbose", is_flag=True, help="All differences of a scenario, with the packets.")
@click.pass_context
def diff(ctx: click.Context, scenarios: tuple[Path, ...], against: str, record: Path | None, files: tuple[Path, ...], patterns: tuple[str, ...],
         jobs: int, as_json: bool, verbose: bool) -> None:
    """Run scenarios (TOML or Python files, or folders of them) on the host's kernel, in a network namespace made for each, and on ustack
    in virtual time; or replay recordings. Every difference in packets, times, counters and results is told.

    Exit code 0 if all is equal, 1 on any difference, 2 if a file makes no sense, 3 if this machine offers no kernel to compare with, 4 if
    all was skipped.
    """
    if bool(scenarios) == bool(files):
        raise click.UsageError("give scenarios, or --replay FILE")
    if record is not None and (files or against != "kernel"):
        raise click.UsageError("--record goes with scenarios against the kernel")
    results: list[Result] = []
    try:
        if files:
            found = _replayed(files, patterns)
        else:
            chosen = [s for s in run.load_all(scenarios) if _wanted(s.id, patterns)]
            found = iter(()) if not chosen else (
                _against_kernel(chosen, jobs, record) if against == "kernel" else _against_file(chosen, Path(against)))
        for result in found:
            results.append(result)
            for line in [result.json_line()] if as_json else lines(result, verbose):
                click.echo(line)
    except (FormatError, errors.ScenarioError) as e:
        raise click.UsageError(str(e)) from e
    except errors.MachineCannot as e:
        click.echo(f"Error: {e}", err=True)
        ctx.exit(MACHINE)
    if not results:
        raise click.UsageError("no scenario has such an id" if patterns else "there is no scenario")
    click.echo(totals_line(results, as_json))
    count = totals(results)
    if count["differs"]:
        ctx.exit(FAILED)
    if not count["pass"]:
        ctx.exit(SKIPPED)
