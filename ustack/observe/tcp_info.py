"""The 280 bytes of TCP_INFO as Linux 6.18 lays them out, field by field.

Used by `ss -i`, by the replay of recordings and by users who look at a connection. Names are the kernel's
without the `tcpi_` prefix; times carry their unit (`rto_us`, `last_data_sent_ms`). A shorter buffer (an
older caller's buflen) gives the fields that are wholly in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

SIZE = 280

_BYTES = ("state", "ca_state", "retransmits", "probes", "backoff", "options")
_WORDS = (
    ("rto_us", "I"), ("ato_us", "I"), ("snd_mss", "I"), ("rcv_mss", "I"), ("unacked", "I"), ("sacked", "I"),
    ("lost", "I"), ("retrans", "I"), ("fackets", "I"), ("last_data_sent_ms", "I"), ("last_ack_sent_ms", "I"),
    ("last_data_recv_ms", "I"), ("last_ack_recv_ms", "I"), ("pmtu", "I"), ("rcv_ssthresh", "I"),
    ("rtt_us", "I"), ("rttvar_us", "I"), ("snd_ssthresh", "I"), ("snd_cwnd", "I"), ("advmss", "I"),
    ("reordering", "I"), ("rcv_rtt_us", "I"), ("rcv_space", "I"), ("total_retrans", "I"),
    ("pacing_rate", "Q"), ("max_pacing_rate", "Q"), ("bytes_acked", "Q"), ("bytes_received", "Q"),
    ("segs_out", "I"), ("segs_in", "I"), ("notsent_bytes", "I"), ("min_rtt_us", "I"), ("data_segs_in", "I"),
    ("data_segs_out", "I"), ("delivery_rate", "Q"), ("busy_time_us", "Q"), ("rwnd_limited_us", "Q"),
    ("sndbuf_limited_us", "Q"), ("delivered", "I"), ("delivered_ce", "I"), ("bytes_sent", "Q"),
    ("bytes_retrans", "Q"), ("dsack_dups", "I"), ("reord_seen", "I"), ("rcv_ooopack", "I"), ("snd_wnd", "I"),
    ("rcv_wnd", "I"), ("rehash", "I"), ("total_rto", "H"), ("total_rto_recoveries", "H"),
    ("total_rto_time_ms", "I"), ("received_ce", "I"), ("delivered_e1_bytes", "I"),
    ("delivered_e0_bytes", "I"),
    ("delivered_ce_bytes", "I"), ("received_e1_bytes", "I"), ("received_e0_bytes", "I"),
    ("received_ce_bytes", "I"), ("accecn_fail_mode", "H"), ("accecn_opt_seen", "H"),
)

OPT_TIMESTAMPS = 1
OPT_SACK = 2
OPT_WSCALE = 4
OPT_ECN = 8
OPT_ECN_SEEN = 16
OPT_SYN_DATA = 32


def _places(fields: Iterable[tuple[str, str]]) -> dict[str, tuple[int, str]]:
    places: dict[str, tuple[int, str]] = {}
    at = 8
    for name, code in fields:
        size = struct.calcsize("=" + code)
        at = (at + size - 1) // size * size
        places[name] = (at, "=" + code)
        at += size
    return places


PLACES = _places(_WORDS)


def decode(raw: bytes) -> dict[str, int]:
    """The fields of a TCP_INFO buffer by name."""
    out = {name: raw[i] for i, name in enumerate(_BYTES) if i < len(raw)}
    if len(raw) > 6:
        out["snd_wscale"], out["rcv_wscale"] = raw[6] & 15, raw[6] >> 4
    if len(raw) > 7:
        out["delivery_rate_app_limited"], out["fastopen_client_fail"] = raw[7] & 1, raw[7] >> 1 & 3
    for name, (at, code) in PLACES.items():
        if at + struct.calcsize(code) <= len(raw):
            out[name] = struct.unpack_from(code, raw, at)[0]
    return out
