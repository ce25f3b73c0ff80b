"""`ustack ss`: the socket table of a running stack, with the arguments, filters and columns of iproute2's ss."""

from __future__ import annotations

import json
import os
import sys

import click

from ..control import ask
from ..observe import ss as view
from . import FAILED


def _width() -> int | None:
    """Columns of the terminal on stdout; None if there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.option("--name", help="Which stack, if several run.")
@click.option("-j", "--json", "as_json", is_flag=True, help="The rows as JSON.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def ss(ctx: click.Context, name: str | None, as_json: bool, args: tuple[str, ...]) -> None:
    """Show the sockets of a running stack as ss shows those of the kernel.

    \b
    ustack ss [-atlnoiempHOs4] [state STATE] [exclude STATE] [EXPRESSION]
      STATE       established, syn-sent, syn-recv, fin-wait-1, ... or all, connected, synchronized, bucket, big
      EXPRESSION  src|dst ADDRESS[/LEN][:PORT], sport|dport [=|!=|<|>|<=|>=] :PORT, and, or, not, ( )

    For LISTEN rows Recv-Q is the accept queue and Send-Q its limit. Without -a, -l or a state: connected sockets only.
    """
    try:
        query = view.parse(args)
        if as_json:
            click.echo(json.dumps(ask({"op": "ss", "args": args}, name)))
            return
        if "s" in query.flags:
            click.echo(ask({"op": "ss_summary"}, name), nl=False)
            if not query.tables:
                return
        click.echo(view.print_cells(ask({"op": "ss_cells", "args": args}, name), query, _width()), nl=False)
    except view.UsageError as exc:
        raise click.UsageError(str(exc)) from exc
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        click.echo(f"ustack ss: {exc.strerror}", err=True)
        ctx.exit(FAILED)
