"""Names and numbers: against Python's own view of this Linux, and the words of ICMP."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import sys

import pytest

from ustack.drill import symbols

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with Linux's headers")
MODULES = (socket, select, fcntl, os)
# Python's name for another thing than the kernel's.
DIFFERENT = {"SOMAXCONN", "O_SYNC", "O_DIRECT", "TCP_FASTOPEN_KEY"}


def test_every_name_python_knows_agrees() -> None:
    compared = 0
    for name, value in symbols.SYMBOLS.items():
        for module in MODULES:
            known = getattr(module, name, None)
            if isinstance(known, int) and name not in DIFFERENT:
                assert int(known) & 0xFFFFFFFF == value & 0xFFFFFFFF, name
                compared += 1
    assert compared > 120


def test_every_errno_agrees() -> None:
    for name, value in symbols.ERRNO.items():
        assert getattr(errno, name, value) == value, name
    assert symbols.errno_name(11) == "EAGAIN"
    assert symbols.errno_name(4000) == "errno 4000"


def test_no_name_is_missing_from_what_the_language_names() -> None:
    for name in ("SO_TIMESTAMPING", "TCP_NOTSENT_LOWAT", "TCP_FASTOPEN_CONNECT", "MSG_FASTOPEN",
                 "SIOCOUTQNSD",
                 "EPOLLET", "IP_PMTUDISC_DONT", "SO_EE_ORIGIN_TIMESTAMPING", "TCP_CM_INQ", "SCM_TSTAMP_ACK",
                 "NULL"):
        assert name in symbols.SYMBOLS


@pytest.mark.parametrize(("kind", "code", "numbers"), [
    ("unreachable", "frag_needed", (3, 4)), ("unreachable", "code_200", (3, 200)),
                                                       ("type_255", "code_0", (255, 0)),
    ("echo_request", None, (8, 0)), ("time_exceeded", "frag_reass_exceeded", (11, 1)),
                                                       ("redirect", None, (5, 0)),
    ("unreachable", "host_unreachable_for_tos", (3, 12)), ("source_quench", None, (4, 0)),
])
def test_icmp_words(kind: str, code: str | None, numbers: tuple[int, int]) -> None:
    assert (symbols.icmp_type(kind), symbols.icmp_code(kind, code)) == numbers


def test_unknown_icmp_words() -> None:
    assert symbols.icmp_type("nothing") is None and symbols.icmp_type("type_256") is None
    assert symbols.icmp_type("type_x") is None
    assert symbols.icmp_code("unreachable", "nothing") is None
    assert symbols.icmp_code("echo_request", "net_unreachable") is None
