"""The lines that every article on listen queues uses, verbatim behind `ustack`, against `ustack serve`."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import KERNEL, STACK, Namespace

pytestmark = pytest.mark.root
TOP = Path(__file__).parents[2]
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]
Flood = Callable[[range], None]

LINES = {
    # half-open connections: the header and five of them
    "ss -n state syn-recv sport :80 | wc -l": r"6\n",
    "ss -ant | grep -c SYN-RECV": r"5\n",
    "ss -o state syn-recv '( sport = :http )' | grep -c 'timer:(on,'": r"5\n",
    "netstat -nt | grep -c SYN_RECV": r"5\n",
    "netstat -an | awk '/^tcp/ {print $6}' | sort | uniq -c | sort -rn | head -1": r" *5 SYN_RECV\n",
    # listeners: accept queue and its limit
    "ss -ntl | head": r"State .*\nLISTEN 0      7          192.0.2.2:80        0.0.0.0:\*.*\n",
    "ss -lnt 'sport = :80'": r"State .*\nLISTEN 0      7 .*\n",
    "ss -ltnp | grep ':80 '": r"LISTEN .*users:\(\(\".*\",pid=\d+,fd=\d+\)\)\n",
    "netstat -lnt | grep :80": r"tcp        0      0 192.0.2.2:80            0.0.0.0:\*               LISTEN     \n",
    # counters
    "netstat -s | grep -i listen": r"",
    "netstat -s | grep -iE 'passive|cookies'": r"    \d+ passive connection openings\n",
    "nstat -az TcpExtListenOverflows TcpExtListenDrops": r"#kernel\nTcpExtListenOverflows           0 .*\nTcpExtListenDrops               0 .*\n",
    "nstat -az | grep -i listen": r"TcpExtListenOverflows .*\nTcpExtListenDrops .*\nTcpExtTCPFastOpenListenOverflow .*\n",
    "nstat -as | grep TcpInSegs": r"TcpInSegs                       5                  0.0\n",
    # sysctls
    "sysctl net.ipv4.tcp_max_syn_backlog": r"net.ipv4.tcp_max_syn_backlog = 2048\n",
    "sysctl net.core.somaxconn": r"net.core.somaxconn = 4096\n",
    "sysctl -n net.ipv4.tcp_syncookies": r"1\n",
    "sysctl -w net.ipv4.tcp_syncookies=0": r"net.ipv4.tcp_syncookies = 0\n",
    "sysctl -a | grep tcp_synack_retries": r"net.ipv4.tcp_synack_retries = 5\n",
    "ss -s | head -2": r"Total: 1\nTCP:   1 \(estab 0, closed 0, orphaned 0, timewait 0\)\n",
}


def syn(source: str, sport: int) -> bytes:
    """An IPv4 packet with a SYN from an address where nobody lives (the kernel fills in the IP checksum)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(STACK)
    tcp = struct.pack(">HHIIBBHHH", sport, 80, 1000, 0, 0x50, 2, 64240, 0, 0)
    total = sum(struct.unpack(">16H", addresses + struct.pack(">HH", 6, len(tcp)) + tcp))
    total = (total & 0xFFFF) + (total >> 16)
    tcp = tcp[:16] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + tcp[18:]
    return struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses + tcp


@pytest.fixture
def served(netns: Callable[[], Namespace], tmp_path: Path) -> Iterator[tuple[Shell, Flood]]:
    """`ustack serve` in a namespace; a shell outside of it where `ustack` is a command; spoofed SYNs."""
    ns = netns()
    tool = tmp_path / "bin" / "ustack"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m ustack "$@"\n')
    tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(TOP),
           "NSTAT_HISTORY": str(tmp_path / "history")}
    ready, told = os.pipe()
    server = subprocess.Popen(ns.command(str(tool), "serve", "discard", "--port", "80", "--address", f"{STACK}/24", "--backlog", "7", "-q",
                                         "--ready-fd", str(told)), env=env, pass_fds=[told], stderr=subprocess.DEVNULL)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"\n"
        ns.ip_ok("addr", "replace", f"{KERNEL}/24", "dev", "ustack0")

        def flood(ports: range) -> None:
            with ns.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                for port in ports:
                    raw.sendto(syn(f"192.0.2.{50 + port % 100}", port), (STACK, 0))
            time.sleep(0.2)

        yield lambda line: subprocess.run(["bash", "-c", f"ustack {line}"], env=env, capture_output=True, text=True, timeout=30), flood
    finally:
        os.close(ready)
        server.terminate()
        server.wait(20)


def test_the_lines_of_the_articles(served: tuple[Shell, Flood]) -> None:
    shell, flood = served
    flood(range(4000, 4005))
    for line, wanted in LINES.items():
        done = shell(line)
        assert re.fullmatch(wanted, done.stdout), f"$ ustack {line}\n{done.stdout}"
        assert not done.stderr, f"$ ustack {line}\n{done.stderr}"
    # without cookies the backlog is the limit: eight half-open connections, the rest is dropped
    flood(range(5000, 5050))
    dropped = re.fullmatch(r"    (\d+) SYNs to LISTEN sockets dropped\n", shell("netstat -s | grep -i listen").stdout)
    assert dropped and 42 <= int(dropped[1]) < 50, "some of the first five may have expired by now"
    assert re.search(rf"TcpExtTCPReqQFullDrop +{dropped[1]} ", shell("nstat -a 'TcpExtTCPReqQ*'").stdout)
