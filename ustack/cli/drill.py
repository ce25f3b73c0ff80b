"""`ustack drill FILE...`: run packetdrill scripts in process, on virtual time.

Exit codes: 0 all pass, 1 one fails, 2 usage or syntax, 3 the machine cannot, 4 skipped; of several files the worst, where a
failure is worse than a mistake in the text and that is worse than a skip.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from ustack.cli import MACHINE
from ustack.drill.many import Settings, run_files
from ustack.drill.options import FLAGS, SETTINGS, Options, read_setting
from ustack.drill.report import Outcome, Result
from ustack.drill.source import parse_define
from ustack.lab.errors import MachineCannot

_WORST_LAST = (Result.PASS, Result.SKIPPED, Result.SYNTAX, Result.FAIL)


def _setting(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Read a --name=value override the way the script's own option lines are read."""
    if value is None or value is False:
        return None
    assert param.name is not None
    try:
        return read_setting(param.name, None if value is True else str(value))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each setting of the language, spelled as in a script."""
    for name in reversed(SETTINGS):
        extra: dict[str, Any] = {"is_flag": True, "default": False} if name in FLAGS else {"metavar": "VALUE"}
        decorate = click.option(f"--{name}", name, callback=_setting, help="as the script's option line",
                                **extra)
        command = decorate(command)
    return command


def _defines(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    try:
        return dict(parse_define(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _sysctls(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str],
                                                                                           ...]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"NAME=VALUE is needed, not {value!r}", ctx, param)
    return tuple((name, text) for name, _, text in (value.partition("=") for value in values))


def _say(outcome: Outcome, as_json: bool, verbose: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome.json(), ensure_ascii=False))
        return
    click.echo(outcome.text(verbose), err=outcome.result is Result.SYNTAX)
    if verbose and outcome.printed:
        click.echo(outcome.printed, nl=False)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON object a script: path, result, reason.")
@click.option("-v", "--verbose", is_flag=True, help="Show the packets of scripts that pass, too.")
@click.option("-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", callback=_defines,
              help="Replace the word NAME in the scripts.")
@click.option("--pcap", type=click.Path(dir_okay=False, writable=True),
              help="Write all packets to this file.")
@click.option("--strict", is_flag=True, help="Verify TCP checksums; a packet left over at the end fails.")
@click.option("--sysctl", "sysctls", multiple=True, metavar="NAME=VALUE", callback=_sysctls,
              help="Set before the script starts.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of the stack's secrets and the peer's ports.")
@click.option("--time", "time_", type=click.Choice(["virtual", "real"]), default="virtual", show_default=True,
              help="real: on ustack's engine thread and a TUN device, in a network namespace made for each script.")
@click.option("--kernel", is_flag=True, help="Against this machine's kernel instead of ustack, in real time.")
@click.option("-n", "--jobs", type=click.IntRange(1), help="Worker processes  [default: 1; in real time 4]")
@_with_settings
@click.pass_context
def drill(ctx: click.Context, /, files: tuple[str, ...], as_json: bool, verbose: bool,
          defines: dict[str, str],
          pcap: str | None, strict: bool, sysctls: tuple[tuple[str, str], ...], seed: int,
          time_: str, kernel: bool, jobs: int | None, **settings: Any) -> None:
    """Run packetdrill scripts against ustack, in process and on virtual time.

    The --name=value lines of a script are options here too, and win over the script's. Exit codes: 0 pass, 1 fail,
    2 usage or syntax, 3 the machine cannot (real time only), 4 skipped; of several files the worst.
    """
    if pcap is not None and len(files) > 1:
        raise click.UsageError("--pcap takes one script at a time")
    target = "kernel" if kernel else "tun" if time_ == "real" else "virtual"
    command_line = {name: value for name, value in settings.items() if value is not None}
    base = Options(strict=strict, sysctl=sysctls, seed=seed)
    results = []
    common = Settings(target, base, command_line, defines, pcap)
    try:
        for outcome in run_files(files, common, jobs):
            results.append(outcome.result)
            _say(outcome, as_json, verbose)
    except MachineCannot as error:
        click.echo(f"ustack drill: {error}", err=True)
        ctx.exit(MACHINE)
    if not as_json and len(files) > 1:
        click.echo(", ".join(f"{results.count(r)} {r.name.lower()}" for r in Result if r in results))
    ctx.exit(int(max(results, key=_WORST_LAST.index)))
