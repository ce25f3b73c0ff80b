"""ustack: a userspace TCP/IPv4 stack whose listen path is Linux's."""

from ustack._fastpath import Engine, parse
from ustack._socket import Socket
from ustack.clock import VirtualClock
from ustack.links.impair import ImpairedLink
from ustack.links.memory import MemoryLink
from ustack.links.pcap import PcapLink
from ustack.links.raw import RawLink
from ustack.links.tun import TunLink
from ustack.stack import Stack

__all__ = [
    "Engine", "ImpairedLink", "MemoryLink", "PcapLink", "RawLink", "Socket", "Stack", "TunLink", "VirtualClock", "parse",
]
