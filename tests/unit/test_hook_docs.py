"""docs/hooks.md, ustack/hooks.py and core/hooks.pxd name the same hooks, ops, settings and verdicts."""

import re
from pathlib import Path

import pytest

from ustack.hooks import HOOKS

TOP = Path(__file__).resolve().parents[2]
DOC = (TOP / "docs" / "hooks.md").read_text()
PXD = (TOP / "ustack" / "core" / "hooks.pxd").read_text()
PXI = (TOP / "ustack" / "_border" / "hooks.pxi").read_text()

# Linux 6.18, include/uapi/linux/bpf.h
SOCK_OPS = [
    "TIMEOUT_INIT", "RWND_INIT", "TCP_CONNECT_CB", "ACTIVE_ESTABLISHED_CB", "PASSIVE_ESTABLISHED_CB", "NEEDS_ECN", "BASE_RTT", "RTO_CB",
    "RETRANS_CB", "STATE_CB", "TCP_LISTEN_CB", "RTT_CB", "PARSE_HDR_OPT_CB", "HDR_OPT_LEN_CB", "WRITE_HDR_OPT_CB",
]


def rows():
    return {m[1]: m[0].split(" | ") for m in re.finditer(r"^\| `([a-z_]+)` \| `[a-z_]+` \|.*\|.*\|.*\|$", DOC, re.M)}


def test_the_table_has_every_hook_and_only_these():
    assert set(rows()) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_row_says_what_the_code_does(name):
    kind, (_, op, _, choices, thread) = HOOKS[name], rows()[name]
    assert op == f"`{kind.op}`"
    assert re.search(rf"\(\*{kind.op}\)\(void\* user", PXD), "no such op"
    said = {"": "C only", "call": "in the caller's thread", "two-phase": "two phases", "event": "afterwards"}[kind.beside_thread]
    assert said in thread
    if choices != "the same":
        for verdict in kind.view.VERDICTS:
            assert re.search(rf"\b{verdict}\b", choices)
        for setting in kind.view.SETTINGS:
            assert f"`{setting}`" in choices or name == "cookie_check"


@pytest.mark.parametrize("callback", SOCK_OPS)
def test_every_sock_ops_callback_is_mapped(callback):
    assert re.search(rf"^\| .*{callback}`.* \| .+ \| .+ \|$", DOC, re.M)


def test_bits_of_the_ops_agree_with_the_border():
    bits = dict(re.findall(r"^    (OP_\w+) = (\d+)$", PXI, re.M))
    names = {"syn": "SYN", "reuseport": "SELECT", "retransmit": "RETRANS", "cookie_make": "COOKIE", "cookie_check": "COOKIE"}
    for name, kind in HOOKS.items():
        if kind.bit:
            assert int(bits["OP_" + names.get(name, name.upper())]) == kind.bit


def test_the_python_block_of_the_document_runs():
    block = re.search(r"```python\n(import ustack.*?)```", DOC, re.S)
    exec(compile(block[1], "docs/hooks.md", "exec"), {})
