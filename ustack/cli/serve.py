"""`ustack serve`: a server on a TUN device (or a raw interface), with a control socket for ss and nstat."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click

from .. import services
from .._socket import Socket
from ..control import ControlServer
from ..links.base import Link
from ..links.tun import MAX_QUEUES, TunLink
from ..stack import Stack
from . import INTERRUPTED, MACHINE

_PORTS = {"http": 80, "echo": 7, "discard": 9, "chargen": 19, "inetd": 0}


def _built_in(stack: Stack, host: str, kind: str, backlog: int) -> Socket:
    sock = stack.create_server((host, _PORTS[kind]), backlog=backlog)
    sock.serve(kind)
    return sock


def _link(tun: str, raw: str | None, queues: int) -> Link:
    if raw is None:
        return TunLink(tun, queues=queues)
    if queues != 1:
        raise click.UsageError("--raw has one queue")
    from ..links.raw import RawLink

    return RawLink(raw)


@click.command()
@click.argument("service", type=click.Choice(list(_PORTS)))
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tun", "tun", metavar="NAME", default="ustack0", show_default=True, help="TUN device: attached to, or created.")
@click.option("--raw", "raw", metavar="IFNAME", help="Serve on this Ethernet interface (AF_PACKET) instead of a TUN device.")
@click.option("--address", metavar="A.B.C.D/LEN", default="192.0.2.2/24", show_default=True, help="The stack's address.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; the service's own by default.")
@click.option("--backlog", type=int, default=128, show_default=True, help="listen() backlog.")
@click.option("--sysctl", "sysctls", metavar="KEY=VALUE", multiple=True, help="Set a sysctl of the stack. May be given again.")
@click.option("--seed", help="Seed of all randomness (default: the system's).")
@click.option("--mtu", type=click.IntRange(68, 65535), help="MTU (default: the device's).")
@click.option("--queues", type=click.IntRange(1, MAX_QUEUES), default=1, show_default=True,
              help="Queues of the TUN device, with an engine thread each.")
@click.option("--busy-poll", "busy_poll", metavar="USEC", type=click.FloatRange(0),
              help="Read on for so long after a packet before the engine thread sleeps; 0: not at all. Default: shortly, while that costs no more\n"
              "than the sleeps that it saves.")
@click.option("--name", help="Name of the stack for ss and nstat (default: the device's name).")
@click.option("--uploads", is_flag=True, help="http: let PUT write files into DIRECTORY.")
@click.option("--ready-fd", type=int, help="Write a newline to this descriptor when listening, and close it.")
@click.option("-q", "quiet", is_flag=True, help="No line per request.")
@click.pass_context
def serve(ctx: click.Context, service: str, directory: Path | None, tun: str, raw: str | None, address: str, port: int | None,
          backlog: int, sysctls: tuple[str, ...], seed: str | None, mtu: int | None, queues: int, busy_poll: float | None,
          name: str | None, uploads: bool, ready_fd: int | None, quiet: bool) -> None:
    """Serve http (the files of DIRECTORY), echo, discard or chargen from ustack until interrupted.

    inetd serves ports 7, 9, 19 and 80 (echo, discard, chargen, a minimal HTTP responder) inside the engine, without Python."""
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    if service == "http" and directory is None:
        raise click.UsageError("http wants the DIRECTORY to serve")
    settings = {}
    for item in sysctls:
        key, eq, value = item.partition("=")
        if not eq:
            raise click.UsageError(f"--sysctl {item!r}: write KEY=VALUE")
        settings[key] = value
    number = _PORTS[service] if port is None else port
    try:
        link = _link(tun, raw, queues)
        stack = Stack(link, address, sysctl=settings, seed=seed.encode() if seed else None, mtu=mtu, name=name or raw or tun,
                      busy_poll_us=busy_poll)
        host = address.partition("/")[0]
        if service == "inetd":
            built_in = [_built_in(stack, host, kind, backlog) for kind in ("echo", "discard", "chargen", "http")]
            listener = built_in[-1]
        else:
            listener = stack.create_server((host, number), backlog=backlog)
        control = ControlServer(stack)
    except OSError as exc:
        click.echo(f"ustack serve: {exc.strerror or exc}", err=True)
        ctx.exit(MACHINE)
    services_by_name: dict[str, Callable[[Socket], None]] = {
        "echo": services.echo, "discard": services.discard, "chargen": services.chargen,
    }
    handler: Callable[[Socket], None] | None = None
    if service != "inetd":
        handler = services.http_files(os.fspath(directory), uploads) if directory and service == "http" else services_by_name[service]
    where = "ports 7, 9, 19, 80" if service == "inetd" else f"port {number}"
    click.echo(f"{service} on {host}, {where} ({raw or tun}), backlog {backlog}", err=True)
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
    done = threading.Event()
    for number_ in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_, lambda *_: done.set())
    if handler is not None:
        threading.Thread(target=services.run, args=(stack, listener, handler), daemon=True).start()
    code = 0
    try:
        done.wait()
    except KeyboardInterrupt:
        code = INTERRUPTED
    control.close()
    stack.stop()
    ctx.exit(code)
