"""`ustack doctor`: what this machine allows, and the fixes for what it does not."""

from __future__ import annotations

import json

import click

from .. import machine as checks
from . import MACHINE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tun-node", default="/dev/net/tun", show_default=True, metavar="PATH", help="The TUN clone device.")
@click.option("-j", "--json", "as_json", is_flag=True, help="JSON.")
@click.pass_context
def doctor(ctx: click.Context, tun_node: str, as_json: bool) -> None:
    """Say what this machine allows: TUN devices, privilege, user namespaces, raw interfaces; with the fix for each that it does not.

    Exit code 3 if no way leads to a stack on a device (in virtual time and on memory links ustack needs nothing).
    """
    findings = checks.examine(tun_node)
    ready = checks.can_run(findings)
    if as_json:
        click.echo(json.dumps({"ready": ready, "checks": [checks.as_dict(f) for f in findings]}))
    else:
        for f in findings:
            click.echo(f"{'ok' if f.ok else 'no':<4}{f.what}: {f.seen}")
            if f.fix:
                click.echo(f"      fix: {f.fix}")
        click.echo("A stack can run on a device here." if ready else
                   "No stack can run on a device here; in virtual time and on memory links everything works.")
    ctx.exit(0 if ready else MACHINE)
