"""`ustack netstat`: the sockets and the statistics of a running stack, in net-tools' words."""

from __future__ import annotations

import json

import click

from ..control import ask
from . import FAILED


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-s", "--statistics", "statistics", is_flag=True, help="Statistics in words.")
@click.option("-t", "--tcp", "flags", flag_value="t", multiple=True, help="TCP (there is nothing else).")
@click.option("-u", "--udp", "flags", flag_value="u", multiple=True, help="UDP: a stack has none.")
@click.option("-w", "--raw", "flags", flag_value="w", multiple=True, help="Raw sockets: a stack has none; with -s: IP and ICMP.")
@click.option("-a", "--all", "flags", flag_value="a", multiple=True, help="All sockets.")
@click.option("-l", "--listening", "flags", flag_value="l", multiple=True, help="Listeners only.")
@click.option("-n", "--numeric", "flags", flag_value="n", multiple=True, help="Numbers, no names.")
@click.option("-e", "--extend", "flags", flag_value="e", multiple=True, help="User and inode.")
@click.option("-p", "--programs", "flags", flag_value="p", multiple=True, help="Process of the stack.")
@click.option("-o", "--timers", "flags", flag_value="o", multiple=True, help="Timers.")
@click.option("-W", "--wide", "flags", flag_value="W", multiple=True, help="Do not cut long names.")
@click.option("-4", "flags", flag_value="4", multiple=True, help="IPv4 (there is nothing else).")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON.")
@click.option("--name", help="Which stack, if several run.")
@click.pass_context
def netstat(ctx: click.Context, statistics: bool, flags: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Show sockets (-antp, -l, -o, -e) or statistics (-s) of a running stack as net-tools' netstat does.

    A listener's Recv-Q is its accept queue; the limit stands in ss only.
    """
    try:
        answer = ask({"op": "netstat", "args": "-" + "".join(flags) + "s" * statistics, "json": as_json}, name)
    except OSError as exc:
        click.echo(f"ustack netstat: {exc.strerror}", err=True)
        ctx.exit(FAILED)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        click.echo(answer, nl=False)
