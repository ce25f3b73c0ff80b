"""Sysctls: names, defaults, ranges, formats and refusals of the kernel's."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import recordings
from ustack import Engine, _sysctl_inert
from ustack.sysctl import Sysctl, sysctl_get, sysctl_names, sysctl_set

TOP = Path(__file__).parents[2]
#: not ustack's: IPsec; and a switch that can only be written
LEFT_OUT = {"net.core.xfrm_acq_expires", "net.core.xfrm_aevent_etime", "net.core.xfrm_aevent_rseqth", "net.core.xfrm_larval_drop",
            "net.ipv4.xfrm4_gc_thresh", "net.ipv4.route.flush"}
#: the machine's, not the namespace's; a kernel shows them in the first namespace only
OF_THE_MACHINE = {"net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans"}
#: from memory size and build; ustack's are fixed (facts M)
DERIVED = {"net.ipv4.tcp_congestion_control", "net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control",
           "net.ipv4.tcp_ehash_entries", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_max_tw_buckets"}
#: milliseconds that the kernel multiplies without looking: beyond an int they wrap there and are refused here
WRAP = {("net.ipv4.icmp_ratelimit", v) for v in ("-2147483649", "4294967296")} | {
    ("net.ipv4.tcp_invalid_ratelimit", v) for v in ("-2147483649", "4294967296")}
WORKING = [n for n in sysctl_names() if n not in _sysctl_inert.DEFAULTS and not n.startswith("/")]


def engine() -> Engine:
    return Engine(["192.0.2.1/24"])


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((TOP / "tests" / "data" / "sysctl.json.gz").read_bytes()))
    return data


def differences(kernel: dict[str, Any]) -> list[str]:
    """Every write whose errno or value afterwards differs, and every default."""
    out = []
    for name, seen in kernel["sysctls"].items():
        e = engine()
        if name not in DERIVED and sysctl_get(e, name) != seen["default"]:
            out.append(f"{name}: default {sysctl_get(e, name)!r}, the kernel's {seen['default']!r}")
        if name in DERIVED and seen["writes"]:
            sysctl_set(e, name, seen["default"])
        for value, error, after in seen["writes"]:
            try:
                sysctl_set(e, name, value)
                got = None
            except OSError as exc:
                got = errno.errorcode[exc.errno or 0]
            if (got, sysctl_get(e, name)) != (error, after) and (name, value) not in WRAP:
                out.append(f"{name} = {value!r}: {got}, {sysctl_get(e, name)!r}; the kernel {error}, {after!r}")
            if sysctl_get(e, name) != after:
                with contextlib.suppress(OSError):
                    sysctl_set(e, name, after)
    return out


def test_every_value_is_taken_or_refused_as_recorded(recorded: dict[str, Any]) -> None:
    assert len(recorded["sysctls"]) > 110 and sum(len(s["writes"]) for s in recorded["sysctls"].values()) > 8000
    assert differences(recorded) == []


def test_the_names_are_the_kernels(recorded: dict[str, Any]) -> None:
    ours = {n for n in sysctl_names() if not n.startswith("/")}
    assert set(recorded["names"]) - ours == LEFT_OUT
    assert ours - set(recorded["names"]) == OF_THE_MACHINE
    assert {n for n in sysctl_names() if n.startswith("/")} == {
        f"/sys/module/tcp_cubic/parameters/{n}" for n in ("beta", "bic_scale", "fast_convergence", "hystart", "hystart_ack_delta_us",
                                                          "hystart_detect", "hystart_low_window", "initial_ssthresh", "tcp_friendliness")}


def test_defaults_are_those_of_the_reference_recording() -> None:
    """Scenario M-sysctl: the dump of a fresh namespace of the reference kernel."""
    dump = recordings.scenario("M-sysctl")["checks"]["sysctl"]
    e = engine()
    compared = [n for n in sysctl_names() if n in dump and n not in DERIVED | OF_THE_MACHINE]
    assert {n: sysctl_get(e, n).split() for n in compared} == {n: dump[n].split() for n in compared}
    assert len(compared) > 150
    assert {n for n in dump if n.startswith("net.ipv4.tcp_")} <= set(sysctl_names())


def test_fixed_values() -> None:
    """What Linux derives from memory or build is fixed (facts M)."""
    e = engine()
    assert sysctl_get(e, "net.ipv4.tcp_max_syn_backlog") == "2048"
    assert sysctl_get(e, "net.ipv4.tcp_max_tw_buckets") == "131072"
    assert sysctl_get(e, "net.ipv4.tcp_congestion_control") == "cubic"
    assert sysctl_get(e, "net.ipv4.tcp_available_congestion_control") == "reno bbr cubic"
    assert int(sysctl_get(Engine(["192.0.2.1/24"], ehash_entries=1024), "net.ipv4.tcp_ehash_entries")) == 1024


@pytest.mark.parametrize("name", ["net.ipv4.tcp_sack", "net/ipv4/tcp_sack", "/proc/sys/net/ipv4/tcp_sack", " net.ipv4.tcp_sack"])
def test_spellings(name: str) -> None:
    table = Sysctl(engine())
    table[name] = 0
    assert table["net.ipv4.tcp_sack"] == table[name] == "0" and name in table


def test_python_values_and_refusals() -> None:
    table = Sysctl(engine())
    table["net.ipv4.tcp_rmem"] = (1, 2, 3)
    table["net.ipv4.tcp_sack"] = False
    assert table["net.ipv4.tcp_rmem"] == "1\t2\t3" and table["net.ipv4.tcp_sack"] == "0"
    table["net.ipv6.conf.all.disable_ipv6"] = 1
    table["net.ipv4.conf.eth0.rp_filter"] = 2
    assert table["net.ipv4.conf.default.rp_filter"] == "2"
    for name, value, code in [("net.ipv4.nonsense", 1, errno.ENOENT), ("net.ipv4.tcp_sack", 256, errno.EINVAL),
                              ("net.ipv4.tcp_sack", "on", errno.EINVAL),
                              ("net.ipv4.tcp_available_congestion_control", "reno", errno.EACCES), ("net.ipv4.tcp_ehash_entries", 5, errno.EACCES),
                              ("net.ipv4.tcp_congestion_control", "nonsense", errno.ENOENT), ("net.ipv4.udp_hash_entries", 1, errno.EACCES)]:
        with pytest.raises(OSError) as info:
            table[name] = value
        assert info.value.errno == code, name
    with pytest.raises(OSError):
        table["net.ipv4.nonsense"]
    with pytest.raises(OSError):
        del table["net.ipv4.tcp_sack"]
    assert "net.ipv4.nonsense" not in table and len(table) == len(list(table)) == len(set(table))


def test_what_decides_nothing_is_kept_per_engine() -> None:
    a, b = engine(), engine()
    for name, default in _sysctl_inert.DEFAULTS.items():
        assert sysctl_get(a, name) == default
    sysctl_set(a, "net.ipv4.conf.all.send_redirects", 0)
    sysctl_set(a, "net.ipv4.ping_group_range", "0 5")
    assert sysctl_get(a, "net.ipv4.conf.all.send_redirects") == "0" and sysctl_get(b, "net.ipv4.conf.all.send_redirects") == "1"
    assert sysctl_get(a, "net.ipv4.ping_group_range") == "0\t5"


@pytest.mark.root
def test_against_the_live_kernel() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    done = subprocess.run([sys.executable, "-m", "tests.kit.sysctl_probe", *WORKING], cwd=TOP, capture_output=True, text=True, timeout=50)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    assert differences(json.loads(done.stdout)) == []
