"""The two queues of each listener, and each half-open connection, from the rows of `Engine.dump()`.

The kernel shows neither: `ss` has the accept queue and its limit only, counters are of the whole machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_OPTIONS = {"sack": "sack_ok", "timestamps": "tstamp_ok", "ecn": "ecn_ok"}
_COUNTERS = {"syns": "n_syn", "accepted": "n_accepted", "overflows": "n_overflow", "syn_queue_full": "n_reqq_full", "cookies_sent": "n_cookie_sent",
             "cookies_received": "n_cookie_recv", "cookies_failed": "n_cookie_fail", "drops": "drops"}


def requests(dump: Iterable[Row], place: tuple[str, int] | None = None) -> list[dict[str, Any]]:
    """Half-open connections, the oldest first; place: those of the listener on this address and port. Fields: Stack.requests."""
    found = []
    for row in dump:
        if row["kind"] != "req" or (place is not None and (row["lport"] != place[1] or place[0] not in ("0.0.0.0", row["laddr"]))):
            continue
        found.append({
            **row, "local": (row["laddr"], row["lport"]), "peer": (row["faddr"], row["fport"]),
            "wscale": (row["snd_wscale"], row["rcv_wscale"]) if row["wscale_ok"] else None, **{k: row[v] for k, v in _OPTIONS.items()},
        })
    return sorted(found, key=lambda r: -(r["age_ns"] or 0))


def queues(dump: Iterable[Row]) -> list[dict[str, Any]]:
    """One dict per listener: local, half_open, young, accept (lengths now), limit (the backlog; each queue holds one more), their peaks
    half_open_peak and accept_peak, defer_accept, fastopen, and counters since listen()."""
    found = []
    for row in dump:
        if row["kind"] == "listen":
            one = {"local": (row["laddr"], row["lport"]), "half_open": row["qlen"], "young": row["young"], "half_open_peak": row["qlen_max"],
                   "accept": row["recvq"], "accept_peak": row["ackq_max"], "limit": row["sendq"], "defer_accept": row["defer_accept"],
                   "fastopen": row["fastopen_qlen"], **{k: row[v] for k, v in _COUNTERS.items()}}
            if "shard" in row:
                one["shard"] = row["shard"]
            found.append(one)
    return sorted(found, key=lambda q: (q["local"][1], q["local"][0], q.get("shard", (0, 1))))


HEADER = ("Listener", "Half-open", "Young", "Peak", "Accept", "Limit", "Peak", "SYNs", "Accepted", "Overflows", "SYN-q full", "Cookies", "Bad",
          "Drops")


def table(listeners: Sequence[Row]) -> str:
    """The listeners as text, one a line."""
    lines: list[tuple[str, ...]] = [HEADER]
    for q in listeners:
        name = f"{q['local'][0]}:{q['local'][1]}" + (f" [{q['shard'][0]}]" if "shard" in q else "")
        lines.append((name, *(str(q[k]) for k in (
            "half_open", "young", "half_open_peak", "accept", "limit", "accept_peak", "syns", "accepted", "overflows", "syn_queue_full")),
            f"{q['cookies_sent']}/{q['cookies_received']}", str(q["cookies_failed"]), str(q["drops"])))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    return "".join("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip() + "\n"
                   for line in lines)
