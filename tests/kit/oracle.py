"""scapy as the independent oracle: what it says about a packet that ustack sent."""

from __future__ import annotations

from typing import Any

from scapy.all import ICMP, IP, TCP  # type: ignore[attr-defined]


def decode(packet: bytes) -> Any:
    """The packet as scapy reads it. Fails unless all lengths and checksums are what scapy itself would write,
    and every byte is accounted
    for."""
    p = IP(packet)
    assert p.version == 4 and p.len == len(packet), f"length {len(packet)}: {p!r}"
    again = IP(packet)
    del again.chksum
    if p.frag == 0 and not p.flags.MF:
        for layer in (TCP, ICMP):
            if layer in p and not isinstance(p[layer].underlayer, ICMP):
                del again[layer].chksum
                break
        else:
            raise AssertionError(f"neither TCP nor ICMP: {p!r}")
    assert bytes(again) == packet, f"scapy writes it differently: {p!r}"
    return p
