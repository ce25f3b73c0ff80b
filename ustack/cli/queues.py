"""`ustack queues`: the SYN queue and the accept queue of each listener of a running stack."""

from __future__ import annotations

import json
import sys
import time

import click

from ..control import ask
from ..observe.queues import table
from . import FAILED


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-w", "--watch", is_flag=True, help="Again and again, until interrupted.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Seconds between two readings.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="So many readings (with --watch).")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON, one line a reading.")
@click.option("--name", help="Which stack, if several run.")
@click.pass_context
def queues(ctx: click.Context, watch: bool, interval: float, count: int | None, as_json: bool, name: str | None) -> None:
    """Show both queues of each listener: half-open connections (young ones: never retransmitted), accept queue, limit, peaks, and what was dropped.

    Each queue holds one entry more than the limit. Cookies: sent/come back.
    """
    left = (count or -1) if watch else 1
    try:
        while left:
            listeners = ask({"op": "queues"}, name)
            if as_json:
                click.echo(json.dumps(listeners))
            else:
                clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
                click.echo(clear + table(listeners), nl=False)
            left -= 1
            if left:
                time.sleep(interval)
    except BrokenPipeError:
        raise
    except OSError as exc:
        click.echo(f"ustack queues: {exc.strerror}", err=True)
        ctx.exit(FAILED)
