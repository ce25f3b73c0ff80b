"""`ustack ss`: the socket table of a running stack, with ss's arguments and columns."""

from __future__ import annotations

import json

import click

from ..control import ask
from ..observe import ss as view
from . import FAILED


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--name", help="Which stack, if several run.")
@click.option("-j", "--json", "as_json", is_flag=True, help="The rows as JSON.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def ss(ctx: click.Context, name: str | None, as_json: bool, args: tuple[str, ...]) -> None:
    """Show the sockets of a running stack: -t -n -a -l -o -i -e -m -H, `state syn-recv`, `sport = :80` as in ss.

    For LISTEN rows Recv-Q is the accept queue and Send-Q its limit. Without -a or -l: connected sockets only.
    """
    words = " ".join(args) or "-t"
    try:
        query = view.parse(words)
    except view.UsageError as exc:
        raise click.UsageError(str(exc)) from exc
    try:
        rows = ask({"op": "ss", "args": words}, name)
    except OSError as exc:
        click.echo(f"ustack ss: {exc.strerror}", err=True)
        ctx.exit(FAILED)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        click.echo(view.text(rows, header="H" not in query.flags), nl=False)
