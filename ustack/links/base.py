"""What a link is: a way for IPv4 packets in and out of a stack.

A link serves two kinds of drivers. A threaded stack calls open(): the link gives a descriptor, on which the engine thread reads and writes
packets without the GIL. A stack in virtual time calls attach_manual(): the link takes the packets from the driver's sink and injects its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ustack._fastpath import Engine, Impairment
    from ustack.clock import VirtualClock
    from ustack.stack import Stack


@dataclass
class Port:
    """An open link as the engine thread needs it.

    fd       non-blocking; one read() or write() is one packet.
    kind     "ip": IPv4 packets; "ether": Ethernet frames (then mac, and for neighbours network and gateway).
    vnet     a virtio_net_hdr stands in front of each packet, both ways.
    gso      super-segments and open checksums may go out (needs vnet).
    stages   impairments, the one next to the stack first.
    """

    fd: int
    kind: str = "ip"
    vnet: bool = False
    gso: bool = False
    mac: bytes | None = None
    network: tuple[str, int] | None = None
    gateway: str | None = None
    stages: list[Impairment] = field(default_factory=list)


class Packets(Protocol):
    """The side of a manual driver that a link sees; ImpairedLink puts itself in between."""

    engine: Engine
    clock: VirtualClock

    def set_sink(self, sink: Callable[[int, bytes], None] | None) -> None: ...

    def inject(self, packet: bytes, at: int | None = None, csum: int = 0, gso_size: int = 0) -> int: ...


class Link:
    """The base of all links. mtu: what the link carries; None leaves it to the stack (1500)."""

    mtu: int | None = None
    queues: int = 1

    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        """For a threaded stack. offload=False: no segmentation or checksum offload, whoever asks works on single packets."""
        raise NotImplementedError(f"{type(self).__name__} has no descriptor: use it with clock=VirtualClock()")

    def open_queues(self, stack: Stack, queues: int) -> list[Port]:
        """For a threaded stack with an engine per queue: as many ports."""
        if queues != 1:
            raise ValueError(f"{type(self).__name__} has one queue, not {queues}")
        return [self.open(stack)]

    def attach_manual(self, stack: Stack, driver: Packets) -> None:
        """For a stack in virtual time."""
        raise NotImplementedError(f"{type(self).__name__} is a real device: it cannot run in virtual time (leave clock out)")

    def close(self) -> None:
        """Give the device back. Idempotent."""

    def after_fork(self) -> None:
        """In the child of a fork: close the descriptors, so that the device is not kept busy."""
        self.close()

    def counters(self) -> dict[str, Any]:
        """What the link itself counts."""
        return {}
