"""`ustack sysctl`: read and write the sysctls of a running stack, with procps' options and words."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import click

from ..control import ask
from ..sysctl import canonical
from . import FAILED


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-a", "-A", "-X", "--all", "everything", is_flag=True, help="All variables.")
@click.option("-w", "--write", is_flag=True, help="All arguments are settings (NAME=VALUE is one without it too).")
@click.option("-n", "--values", "values", is_flag=True, help="Values only.")
@click.option("-N", "--names", "names_only", is_flag=True, help="Names only.")
@click.option("-b", "--binary", is_flag=True, help="Values only, without a newline.")
@click.option("-e", "--ignore", is_flag=True, help="No word about unknown names.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print what was set.")
@click.option("-r", "--pattern", help="Only names that match this regular expression.")
@click.option("-p", "-f", "--load", "files", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Settings from a file.")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON.")
@click.option("--name", "stack", help="Which stack, if several run.")
@click.argument("variables", nargs=-1)
@click.pass_context
def sysctl(ctx: click.Context, everything: bool, write: bool, values: bool, names_only: bool, binary: bool, ignore: bool, quiet: bool,
           pattern: str | None, files: tuple[Path, ...], as_json: bool, stack: str | None, variables: tuple[str, ...]) -> None:
    """Read or set sysctls of a running stack: NAME, NAME=VALUE; dots, slashes or /proc/sys/... in names."""
    lines = [*variables]
    for file in files:
        lines += [line.strip() for line in file.read_text().splitlines() if line.strip()[:1] not in ("", "#", ";")]
    if not lines and not everything:
        raise click.UsageError("no variables specified")
    failed = False
    shown: dict[str, str] = {}

    def show(found: dict[str, str]) -> None:
        for key, value in found.items():
            if pattern and not re.search(pattern, key):
                continue
            shown[key] = value
            if not as_json:
                text = key if names_only else value if values or binary else f"{key} = {value}"
                click.echo(text, nl=not binary)

    try:
        existing = ask({"op": "sysctl"}, stack) if everything else {}
        show({k: v for k, v in existing.items() if not k.startswith("/")})
        for line in lines:
            key, equals, value = line.partition("=")
            key = key.strip()
            key = key if key.startswith("/sys/") else canonical(key)
            try:
                if equals:
                    got = ask({"op": "sysctl_set", "name": key, "value": value.strip()}, stack)
                    if not quiet:
                        show({key: got})
                elif write:
                    click.echo(f'sysctl: "{line}" must be of the form name=value', err=True)
                    failed = True
                else:
                    show(ask({"op": "sysctl", "under": key}, stack))
            except OSError as exc:
                if exc.errno == errno.ENOENT and not _is_unknown(exc, key):
                    raise
                failed |= _complain(exc, key, bool(equals), ignore)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        click.echo(f"ustack sysctl: {exc.strerror}", err=True)
        ctx.exit(FAILED)
    if as_json:
        click.echo(json.dumps(shown))
    ctx.exit(FAILED if failed else 0)


def _is_unknown(exc: OSError, key: str) -> bool:
    """The stack answered that it has no such variable (and not: there is no stack)."""
    return key in (exc.strerror or "")


def _complain(exc: OSError, key: str, setting: bool, ignore: bool) -> bool:
    """procps' words; whether it counts as a failure."""
    if exc.errno == errno.ENOENT and _is_unknown(exc, key):
        if ignore:
            return False
        click.echo(f"sysctl: cannot stat /proc/sys/{key.replace('.', '/')}: No such file or directory", err=True)
    else:
        verb = "setting" if setting else "reading"
        click.echo(f'sysctl: {verb} key "{key}": {os.strerror(exc.errno or errno.EIO)}', err=True)
    return True
