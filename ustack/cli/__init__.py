"""The command line: `ustack SUBCOMMAND`, also `python -m ustack`.

One file per subcommand: `ustack/cli/NAME.py` holds the click command NAME under that name and is imported
only when it is asked for, so a subcommand whose library is not installed does not disturb the others. Exit
codes: 0 ok, 1 failed, 2 usage, 3 the machine cannot (with the fix), 4 skipped, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

import click

FAILED, MACHINE, SKIPPED, INTERRUPTED = 1, 3, 4, 130          # 2, a wrong command line, is click's


def lacking(command: str, package: str) -> click.Command:
    """Stands for a command whose library is not installed: listed like the others, refuses to run."""

    def refuse(**_: object) -> int:
        click.echo(f"Error: `ustack {command}` needs the package {package}: pip install {package}", err=True)
        return MACHINE

    anything = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    return click.Command(command, callback=refuse, context_settings=anything, help=f"(needs the package {package})")


class Group(click.Group):
    """A group that finds its commands in this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = {m.name.rstrip("_") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
        return sorted(found | set(super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            module = importlib.import_module(f"{__name__}.{cmd_name}")
        except ModuleNotFoundError as e:
            if e.name is None or e.name.startswith("ustack"):
                raise
            return lacking(cmd_name, e.name)
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None,
             complete_var: str | None = None, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as e:
            e.show()
            sys.exit(e.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader has gone (`| head`); keep Python from complaining again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FAILED)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A userspace TCP/IPv4 stack that listens as Linux does."""
