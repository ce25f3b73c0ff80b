"""scapy as the independent oracle: what it says about a packet that ustack sent."""

from __future__ import annotations

from typing import Any

from scapy.all import ICMP, IP, TCP, Raw  # type: ignore[attr-defined]
from scapy.utils import checksum


def decode(packet: bytes) -> Any:
    """The packet as scapy reads it. Fails unless scapy itself would write these very bytes, lengths and checksums included."""
    p = IP(packet)
    assert p.version == 4 and p.len == len(packet), f"length {len(packet)}: {p!r}"
    again = IP(packet)
    del again.chksum
    if p.frag or p.flags.MF:
        again.payload = Raw(packet[p.ihl * 4 :])
    elif p.proto == 1:          # what it quotes may be anything: only the sum is compared
        assert ICMP in p and checksum(packet[p.ihl * 4 :]) == 0, f"wrong ICMP checksum: {p!r}"
        again.payload = Raw(packet[p.ihl * 4 :])
    else:
        assert p.proto == 6 and TCP in p, f"neither TCP nor ICMP: {p!r}"
        del again[TCP].chksum
    assert bytes(again) == packet, f"scapy writes it differently: {p!r}"
    return p
