"""What `ss -o -m -i` write about one socket: timer, memory, TCP internals.

Formats, order of the words and the conditions under which a word is left out are those of ss 6.1, whose peculiarities (`3.840ms` for 3.84 s)
are kept since readers and scripts know them. Input: the bytes of TCP_INFO, of SO_MEMINFO and of the congestion control's own report.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from .tcp_info import OPT_ECN, OPT_ECN_SEEN, OPT_SACK, OPT_SYN_DATA, OPT_TIMESTAMPS, OPT_WSCALE, decode

LISTEN = 10


def ms_timer(ms: int) -> str:
    """A remaining time as ss writes it: `1min`, `3.840ms` (that is 3.84 s), `960ms`, `59sec`; empty for
    none."""
    ms = max(0, ms)
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    out = ""
    if minutes:
        ms = 0
        out = f"{minutes}min"
        if minutes > 9:
            seconds = 0
    if seconds:
        if seconds > 9:
            ms = 0
        out += f"{seconds}{'.' if ms else 'sec'}"
    if ms:
        out += f"{ms:03d}ms"
    return out


def _bandwidth(bits: float, numeric: bool) -> str:
    if numeric:
        return f"{bits:.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits > size:
            return f"{bits / size:.3g}{unit}"
    return f"{bits:g}"


def _share(part: int, whole: int) -> str:
    return f"{part // 1000}ms({100.0 * part / whole if whole else 0.0:.1f}%)"


def _option_words(options: int) -> Iterable[str]:
    """What was negotiated; ss shows it with -o or -e only."""
    for bit, word in ((OPT_TIMESTAMPS, "ts"), (OPT_SACK, "sack"), (OPT_ECN, "ecn"), (OPT_ECN_SEEN, "ecnseen"),
                      (OPT_SYN_DATA, "fastopen")):
        if options & bit:
            yield word


def _tcp_words(info: Mapping[str, int], cc: str, listening: bool) -> Iterable[str]:
    """Congestion control and the figures up to the segment counts."""
    options = info["options"]
    if cc:
        yield cc
    if options & OPT_WSCALE:
        yield f"wscale:{info['snd_wscale']},{info['rcv_wscale']}"
    if info["rto_us"] and info["rto_us"] != 3_000_000:
        yield f"rto:{info['rto_us'] / 1000:g}"
    if info["backoff"]:
        yield f"backoff:{info['backoff']}"
    if info["rtt_us"]:
        yield f"rtt:{info['rtt_us'] / 1000:g}/{info['rttvar_us'] / 1000:g}"
    if info["ato_us"]:
        yield f"ato:{info['ato_us'] / 1000:g}"
    for key, word in (("snd_mss", "mss"), ("pmtu", "pmtu"), ("rcv_mss", "rcvmss"), ("advmss", "advmss"),
                      ("snd_cwnd", "cwnd")):
        if info[key]:
            yield f"{word}:{info[key]}"
    if not listening and info["snd_ssthresh"] < 0xFFFF:
        yield f"ssthresh:{info['snd_ssthresh']}"
    for key in ("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received", "segs_out", "segs_in",
                "data_segs_out", "data_segs_in"):
        if info.get(key):
            yield f"{key}:{info[key]}"


def _bbr_word(raw: bytes, numeric: bool) -> str:
    """struct tcp_bbr_info: bandwidth (bytes/s), smallest RTT (us), pacing and window gain (256 = 1)."""
    low, high, min_rtt, pacing, window = struct.unpack_from("=5I", raw)
    gains = "".join(f",{name}_gain:{gain / 256:g}" for name, gain in (("pacing", pacing), ("cwnd", window)) if gain)
    return f"bbr:(bw:{_bandwidth((high << 32 | low) * 8.0, numeric)}bps,mrtt:{min_rtt / 1000:g}{gains})"


def _rate_words(info: Mapping[str, int], numeric: bool) -> Iterable[str]:
    if info["rtt_us"] and info["snd_mss"] and info["snd_cwnd"]:
        yield f"send {_bandwidth(info['snd_cwnd'] * info['snd_mss'] * 8e6 / info['rtt_us'], numeric)}bps"
    for key in ("last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms"):
        if info[key]:
            word = {"last_data_sent_ms": "lastsnd", "last_data_recv_ms": "lastrcv"}.get(key, "lastack")
            yield f"{word}:{info[key]}"
    pacing = info["pacing_rate"]
    if pacing and pacing != 0xFFFFFFFFFFFFFFFF:
        word = f"pacing_rate {_bandwidth(pacing * 8.0, numeric)}bps"
        limit = info["max_pacing_rate"]
        if limit and limit != 0xFFFFFFFFFFFFFFFF:
            word += f"/{_bandwidth(limit * 8.0, numeric)}bps"
        yield word
    if info["delivery_rate"]:
        yield f"delivery_rate {_bandwidth(info['delivery_rate'] * 8.0, numeric)}bps"


def _state_words(info: Mapping[str, int], listening: bool) -> Iterable[str]:
    """Delivery, limits, the retransmission state and the receive side."""
    for key in ("delivered", "delivered_ce"):
        if info.get(key):
            yield f"{key}:{info[key]}"
    if info["delivery_rate_app_limited"]:
        yield "app_limited"
    if info["busy_time_us"]:
        yield f"busy:{info['busy_time_us'] // 1000}ms"
        for key, word in (("rwnd_limited_us", "rwnd_limited"), ("sndbuf_limited_us", "sndbuf_limited")):
            if info[key]:
                yield f"{word}:{_share(info[key], info['busy_time_us'])}"
    if info["unacked"]:
        yield f"unacked:{info['unacked']}"
    if info["retrans"] or info["total_retrans"]:
        yield f"retrans:{info['retrans']}/{info['total_retrans']}"
    if info["lost"]:
        yield f"lost:{info['lost']}"
    if info["sacked"] and not listening:
        yield f"sacked:{info['sacked']}"
    for key in ("dsack_dups", "fackets"):
        if info.get(key):
            yield f"{key}:{info[key]}"
    if info["reordering"] != 3:
        yield f"reordering:{info['reordering']}"
    if info.get("reord_seen"):
        yield f"reord_seen:{info['reord_seen']}"
    if info["rcv_rtt_us"]:
        yield f"rcv_rtt:{info['rcv_rtt_us'] / 1000:g}"
    for key, word in (("rcv_space", "rcv_space"), ("rcv_ssthresh", "rcv_ssthresh"),
                      ("notsent_bytes", "notsent")):
        if info[key]:
            yield f"{word}:{info[key]}"
    if info["min_rtt_us"] not in (0, 0xFFFFFFFF):
        yield f"minrtt:{info['min_rtt_us'] / 1000:g}"
    for key in ("rcv_ooopack", "snd_wnd"):
        if info.get(key):
            yield f"{key}:{info[key]}"


def tcp_text(raw: bytes, cc: str, *, numeric: bool = True, options: bool = True, bbr: bytes | None = None) -> str:
    """The words of `ss -i` for one socket's TCP_INFO; with the negotiated options as -o and -e add them."""
    info = decode(raw.ljust(232, b"\0"))
    listening = info["state"] == LISTEN
    return " ".join([*(_option_words(info["options"]) if options else ()), *_tcp_words(info, cc, listening),
                     *((_bbr_word(bbr, numeric),) if bbr else ()), *_rate_words(info, numeric), *_state_words(info, listening)])


def skmem_text(values: Iterable[int]) -> str:
    names = ("r", "rb", "t", "tb", "f", "w", "o", "bl", "d")
    return "skmem:(" + ",".join(f"{n}{v}" for n, v in zip(names, values, strict=False)) + ")"
