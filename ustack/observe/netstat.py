"""What net-tools' `netstat` prints (2.10): the socket table (-t -a -l -n -e -p -o -W) and the statistics in words (-s).

Input: the rows of `Engine.dump()` and the counters by nstat's names in the kernel's order. As net-tools reads /proc/net/tcp, a listener's Send-Q
is 0, and a half-open connection is counted by its timeouts, where ss shows its retransmissions.
"""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .ss import Where, host_name, service_name

if TYPE_CHECKING:
    from ustack.stack import Stack

Row = Mapping[str, Any]

STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK",
          10: "LISTEN", 11: "CLOSING", 12: "SYN_RECV"}
_TIMERS = {None: "off", "on": "on", "keepalive": "keepalive", "timewait": "timewait", "persist": "probe"}
_WIDTH = 23

# ---- statistics ----------------------------------------------------------------------------------------------------------------------

#: counter: words; those of _ALWAYS are printed at 0 too, any other counter as `Name: value`
_WORDS = {
    "IpInReceives": "{} total packets received", "IpInHdrErrors": "{} with invalid headers", "IpInAddrErrors": "{} with invalid addresses",
    "IpForwDatagrams": "{} forwarded", "IpInUnknownProtos": "{} with unknown protocol", "IpInDiscards": "{} incoming packets discarded",
    "IpInDelivers": "{} incoming packets delivered", "IpOutRequests": "{} requests sent out", "IpOutDiscards": "{} outgoing packets dropped",
    "IpOutNoRoutes": "{} dropped because of missing route", "IpReasmTimeout": "{} fragments dropped after timeout",
    "IpReasmReqds": "{} reassemblies required", "IpReasmOKs": "{} packets reassembled ok", "IpReasmFails": "{} packet reassemblies failed",
    "IpFragOKs": "{} outgoing packets fragmented ok", "IpFragFails": "{} outgoing packets failed fragmentation",
    "IpFragCreates": "{} fragments created",
    "IcmpInMsgs": "{} ICMP messages received", "IcmpInErrors": "{} input ICMP message failed", "IcmpOutMsgs": "{} ICMP messages sent",
    "IcmpOutErrors": "{} ICMP messages failed",
    "IcmpInDestUnreachs": "    destination unreachable: {}", "IcmpInTimeExcds": "    timeout in transit: {}",
    "IcmpInParmProbs": "    wrong parameters: {}", "IcmpInSrcQuenchs": "    source quenches: {}", "IcmpInRedirects": "    redirects: {}",
    "IcmpInEchos": "    echo requests: {}", "IcmpInEchoReps": "    echo replies: {}", "IcmpInTimestamps": "    timestamp request: {}",
    "IcmpInTimestampReps": "    timestamp reply: {}", "IcmpInAddrMasks": "    address mask request: {}",
    "IcmpInAddrMaskReps": "    address mask replies: {}",
    "IcmpOutDestUnreachs": "    destination unreachable: {}", "IcmpOutTimeExcds": "    time exceeded: {}",
    "IcmpOutParmProbs": "    wrong parameters: {}", "IcmpOutSrcQuenchs": "    source quench: {}", "IcmpOutRedirects": "    redirect: {}",
    "IcmpOutEchos": "    echo requests: {}", "IcmpOutEchoReps": "    echo replies: {}", "IcmpOutTimestamps": "    timestamp requests: {}",
    "IcmpOutTimestampReps": "    timestamp replies: {}", "IcmpOutAddrMasks": "    address mask requests: {}",
    "IcmpOutAddrMaskReps": "    address mask replies: {}",
    "TcpActiveOpens": "{} active connection openings", "TcpPassiveOpens": "{} passive connection openings",
    "TcpAttemptFails": "{} failed connection attempts", "TcpEstabResets": "{} connection resets received",
    "TcpCurrEstab": "{} connections established", "TcpInSegs": "{} segments received", "TcpOutSegs": "{} segments sent out",
    "TcpRetransSegs": "{} segments retransmitted", "TcpInErrs": "{} bad segments received", "TcpOutRsts": "{} resets sent",
    "UdpInDatagrams": "{} packets received", "UdpNoPorts": "{} packets to unknown port received", "UdpInErrors": "{} packet receive errors",
    "UdpOutDatagrams": "{} packets sent", "UdpRcvbufErrors": "{} receive buffer errors", "UdpSndbufErrors": "{} send buffer errors",
    "TcpExtSyncookiesSent": "{} SYN cookies sent", "TcpExtSyncookiesRecv": "{} SYN cookies received",
    "TcpExtSyncookiesFailed": "{} invalid SYN cookies received",
    "TcpExtEmbryonicRsts": "{} resets received for embryonic SYN_RECV sockets",
    "TcpExtPruneCalled": "{} packets pruned from receive queue because of socket buffer overrun",
    "TcpExtRcvPruned": "{} packets pruned from receive queue",
    "TcpExtOfoPruned": "{} packets dropped from out-of-order queue because of socket buffer overrun",
    "TcpExtOutOfWindowIcmps": "{} ICMP packets dropped because they were out-of-window",
    "TcpExtLockDroppedIcmps": "{} ICMP packets dropped because socket was locked",
    "TcpExtTW": "{} TCP sockets finished time wait in fast timer", "TcpExtTWRecycled": "{} time wait sockets recycled by time stamp",
    "TcpExtPAWSActive": "{} active connections rejected because of time stamp",
    "TcpExtPAWSEstab": "{} packets rejected in established connections because of timestamp",
    "TcpExtDelayedACKs": "{} delayed acks sent", "TcpExtDelayedACKLocked": "{} delayed acks further delayed because of locked socket",
    "TcpExtDelayedACKLost": "Quick ack mode was activated {} times",
    "TcpExtListenOverflows": "{} times the listen queue of a socket overflowed", "TcpExtListenDrops": "{} SYNs to LISTEN sockets dropped",
    "TcpExtTCPHPHits": "{} packet headers predicted", "TcpExtTCPPureAcks": "{} acknowledgments not containing data payload received",
    "TcpExtTCPHPAcks": "{} predicted acknowledgments",
    "TcpExtTCPRenoRecovery": "{} times recovered from packet loss due to fast retransmit",
    "TcpExtTCPSACKReorder": "Detected reordering {} times using SACK",
    "TcpExtTCPRenoReorder": "Detected reordering {} times using reno fast retransmit",
    "TcpExtTCPTSReorder": "Detected reordering {} times using time stamp",
    "TcpExtTCPFullUndo": "{} congestion windows fully recovered without slow start",
    "TcpExtTCPPartialUndo": "{} congestion windows partially recovered using Hoe heuristic",
    "TcpExtTCPLossUndo": "{} congestion windows recovered without slow start after partial ack",
    "TcpExtTCPRenoFailures": "{} timeouts after reno fast retransmit", "TcpExtTCPLossFailures": "{} timeouts in loss state",
    "TcpExtTCPFastRetrans": "{} fast retransmits", "TcpExtTCPSlowStartRetrans": "{} retransmits in slow start",
    "TcpExtTCPRcvCollapsed": "{} packets collapsed in receive queue due to low socket buffer",
    "TcpExtTCPAbortOnData": "{} connections reset due to unexpected data",
    "TcpExtTCPAbortOnClose": "{} connections reset due to early user close",
    "TcpExtTCPAbortOnMemory": "{} connections aborted due to memory pressure",
    "TcpExtTCPAbortOnTimeout": "{} connections aborted due to timeout",
    "TcpExtTCPAbortOnLinger": "{} connections aborted after user close in linger timeout",
    "TcpExtTCPAbortFailed": "{} times unable to send RST due to no memory", "TcpExtTCPMemoryPressures": "TCP ran low on memory {} times",
}
_ALWAYS = frozenset({
    "IpInReceives", "IpForwDatagrams", "IpInDiscards", "IpInDelivers", "IpOutRequests", "IcmpInMsgs", "IcmpInErrors", "IcmpOutMsgs",
    "IcmpOutErrors",
    "TcpActiveOpens", "TcpPassiveOpens", "TcpAttemptFails", "TcpEstabResets", "TcpCurrEstab", "TcpInSegs", "TcpOutSegs", "TcpRetransSegs",
    "TcpInErrs", "TcpOutRsts", "UdpInDatagrams", "UdpNoPorts", "UdpInErrors", "UdpOutDatagrams", "UdpRcvbufErrors", "UdpSndbufErrors",
    "TcpExtTCPHPHits",
})
_LABELS = {"IcmpInDestUnreachs": "ICMP input histogram:", "IcmpOutDestUnreachs": "ICMP output histogram:"}
#: sections in their order, and the letters that choose them (none given: all); MPTCP has no counters here
_SECTIONS = (("Ip", "w"), ("Icmp", "w"), ("IcmpMsg", "tuw"), ("Tcp", "t"), ("Udp", "u"), ("UdpLite", "tuw"), ("TcpExt", "t"), ("IpExt", "tuw"))
_NAMES_FIRST = ("UdpLite", "TcpExt", "IpExt", "IcmpMsg", "Icmp", "Udp", "Tcp", "Ip")


FLAGS = frozenset("stuwalnepoW4")


def parse(args: str) -> set[str]:
    """The letters of a command line. ValueError for others."""
    flags = set()
    for word in args.split():
        if not word.startswith("-") or word.startswith("--") or set(word[1:]) - FLAGS:
            raise ValueError(f"netstat: {word} is not understood")
        flags |= set(word[1:])
    return flags


def counters(stack: Stack) -> dict[str, int]:
    """A stack's counters, with the level that netstat shows and nstat does not."""
    return {"IpForwarding": 2 - bool(int(stack.sysctl["net.ipv4.ip_forward"])), **stack.nstat(zeros=True)}


def statistics(counters: Mapping[str, int], flags: Iterable[str] = ()) -> str:
    """`netstat -s`; of the flags those of t, u, w choose sections."""
    chosen = set(flags) & {"t", "u", "w"}
    by_section: dict[str, list[tuple[str, int]]] = {s: [] for s, _ in _SECTIONS}
    for name, value in counters.items():
        section = next((s for s in _NAMES_FIRST if name.startswith(s)), None)
        if section:
            by_section[section].append((name, value))
    out = []
    for section, letters in _SECTIONS:
        if chosen and not chosen & set(letters):
            continue
        out.append(f"{section}:")
        indent = "        " if section == "IcmpMsg" and (not chosen or "w" in chosen) else "    "
        for name, value in by_section[section]:
            if name in _LABELS:
                out.append(f"    {_LABELS[name]}")
            if value or name in _ALWAYS:
                words = _WORDS.get(name)
                out.append(f"    {words.format(value)}" if words else f"{indent}{name.removeprefix(section)}: {value}")
    return "\n".join(out) + "\n"


# ---- the socket table ----------------------------------------------------------------------------------------------------------------


def _place(addr: str, port: int, flags: set[str]) -> str:
    numeric = "n" in flags
    host = addr if numeric or addr == "0.0.0.0" else host_name(addr)
    service = "*" if port == 0 else str(port) if numeric else service_name(port)
    if "W" not in flags:
        host = host[:max(0, _WIDTH - 1 - len(service))]
    return f"{host}:{service}"


def _timer(row: Row) -> str:
    timer = row.get("timer")
    info = row.get("info") or bytes(4)
    retries, probes = (row.get("num_timeout", 0), 0) if row["kind"] == "req" else (info[2], info[3])
    left = max(0, row.get("timer_expires_ns") or 0) // 10_000_000 / 100 if timer else 0
    return f"{_TIMERS[timer]} ({left:.2f}/{retries}/{probes})"


def _user(uid: int, numeric: bool) -> str:
    if numeric:
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def rows(dump: Iterable[Row], flags: set[str], where: Where | None = None) -> list[dict[str, Any]]:
    """The rows that netstat shows, listeners first; flags: letters of a, l, n, e, p, o, W."""
    where = where or Where()
    out = []
    for row in sorted(dump, key=lambda r: r["kind"] != "listen"):
        if "a" in flags or bool(row["fport"]) is not ("l" in flags):
            owned = bool(row.get("owned"))
            out.append({
                "proto": "tcp", "recvq": row["recvq"], "sendq": 0 if row["kind"] == "listen" else row["sendq"],
                "local": _place(row["laddr"], row["lport"], flags), "foreign": _place(row["faddr"], row["fport"], flags),
                "state": STATES[row["state"]], "user": _user(row.get("uid", 0), "n" in flags),
                "inode": row.get("handle", 0) & 0xFFFFFFFF if owned else 0,
                "program": f"{where.pid}/{where.program}" if owned else "-", "timer": _timer(row),
            })
    return out


def _line(r: Row, flags: set[str]) -> str:
    parts = [f"{r['proto']:<5} {r['recvq']:6d} {r['sendq']:6d} {r['local']:<{_WIDTH}} {r['foreign']:<{_WIDTH}} {r['state']:<11}"]
    if "e" in flags:
        parts.append(f"{r['user']:<10} {r['inode']:<10}")
    if "p" in flags:
        parts.append(f"{r['program']:<20}")
    if "o" in flags:
        parts.append(r["timer"])
    return " ".join(parts)


def sockets(dump: Iterable[Row], flags: set[str], where: Where | None = None) -> str:
    """The table of TCP sockets, as `rows` takes its flags."""
    what = "servers and established" if "a" in flags else "only servers" if "l" in flags else "w/o servers"
    head = "Proto Recv-Q Send-Q Local Address           Foreign Address         State      "
    head += (" User       Inode     " if "e" in flags else "") + (" PID/Program name    " if "p" in flags else "")
    head += " Timer" if "o" in flags else ""
    out = [f"Active Internet connections ({what})", head]
    out += [_line(r, flags) for r in rows(dump, flags, where)]
    return "\n".join(out) + "\n"


def unix_sockets(flags: set[str]) -> str:
    """The empty table that follows when no kind of socket was asked for: a stack has no UNIX domain sockets."""
    what = "servers and established" if "a" in flags else "only servers" if "l" in flags else "w/o servers"
    return f"Active UNIX domain sockets ({what})\nProto RefCnt Flags       Type       State         I-Node   Path\n"
