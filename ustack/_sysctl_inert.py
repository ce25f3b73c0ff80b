"""Sysctls of the kernel's net.ipv4 and net.core that decide nothing in ustack: other protocols, forwarding, neighbours, devices.

They are kept per engine so that scripts which set them run: a write of an int is taken and read back, nothing else happens. Names and defaults:
a fresh network namespace of 6.18. A device's conf.<dev>.* is the default's, as for the sysctls that work (see ustack/sysctl.py).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from ustack._fastpath import Engine

_CONF_1 = ("arp_evict_nocarrier", "secure_redirects", "send_redirects", "shared_media")
_CONF_0 = ("accept_local", "arp_accept", "arp_announce", "arp_filter", "arp_ignore", "arp_notify", "bc_forwarding", "bootp_relay", "disable_policy",
           "disable_xfrm", "drop_gratuitous_arp", "drop_unicast_in_l2_multicast", "force_igmp_version", "forwarding",
           "ignore_routes_with_linkdown", "mc_forwarding", "medium_id", "promote_secondaries", "proxy_arp", "proxy_arp_pvlan", "route_localnet",
           "src_valid_mark", "tag")
READ_ONLY = frozenset({"net.ipv4.conf.all.mc_forwarding", "net.ipv4.conf.default.mc_forwarding", "net.ipv4.udp_hash_entries"})

DEFAULTS: dict[str, str] = {
    "net.core.rps_default_mask": "0", "net.core.tstamp_allow_data": "1", "net.core.txrehash": "1",
    "net.ipv4.fib_multipath_hash_fields": "7", "net.ipv4.fib_multipath_hash_policy": "0", "net.ipv4.fib_multipath_hash_seed": "0",
    "net.ipv4.fib_multipath_use_neigh": "0", "net.ipv4.fib_notify_on_flag_change": "0", "net.ipv4.fwmark_reflect": "0",
    "net.ipv4.igmp_link_local_mcast_reports": "1", "net.ipv4.igmp_max_memberships": "20", "net.ipv4.igmp_max_msf": "10",
    "net.ipv4.igmp_qrv": "2", "net.ipv4.nexthop_compat_mode": "1", "net.ipv4.ping_group_range": "1\t0", "net.ipv4.raw_l3mdev_accept": "1",
    "net.ipv4.udp_child_hash_entries": "0", "net.ipv4.udp_early_demux": "1", "net.ipv4.udp_hash_entries": "-16384",
    "net.ipv4.udp_l3mdev_accept": "0", "net.ipv4.udp_rmem_min": "4096", "net.ipv4.udp_wmem_min": "4096",
}
for _which in ("all", "default"):
    DEFAULTS |= {f"net.ipv4.conf.{_which}.{name}": "1" for name in _CONF_1}
    DEFAULTS |= {f"net.ipv4.conf.{_which}.{name}": "0" for name in _CONF_0}
    DEFAULTS |= {f"net.ipv4.conf.{_which}.igmpv2_unsolicited_report_interval": "10000",
                 f"net.ipv4.conf.{_which}.igmpv3_unsolicited_report_interval": "1000"}

_kept: WeakKeyDictionary[Engine, dict[str, str]] = WeakKeyDictionary()


def read(engine: Engine, name: str) -> str:
    return _kept.get(engine, {}).get(name, DEFAULTS[name])


def write(engine: Engine, name: str, numbers: list[int]) -> None:
    """As many numbers as the default has."""
    n = len(DEFAULTS[name].split())
    _kept.setdefault(engine, {})[name] = "\t".join(map(str, [*numbers, *read(engine, name).split()[len(numbers):]][:n]))
