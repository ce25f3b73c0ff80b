"""RawLink: one end of a veth pair, or any Ethernet interface, through a packet socket (AF_PACKET).

The interface must not carry the stack's address in the kernel: then the kernel neither answers ARP for it nor resets our connections (it
drops what is not addressed to it), and no firewall rule is needed. ARP is ours. Checksums and segmentation go through PACKET_VNET_HDR: what
the peer's kernel left open on the veth is "partial", not bad.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ustack.links.base import Link, Port

if TYPE_CHECKING:
    from ustack.stack import Stack

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFCONF = 0x8921, 0x8927, 0x8913, 0x8914, 0x8912
IFF_UP = 1


class RawLink(Link):
    """Packets of the interface ifname. gateway: where packets for addresses outside the stack's prefix go (default: everything is on link).

    mac: our Ethernet address, default the interface's. offload=False: single packets with full checksums towards the wire.
    """

    def __init__(self, ifname: str, *, gateway: str | None = None, mac: bytes | None = None, offload: bool = True) -> None:
        self.name = ifname
        self.gateway = gateway
        self.offload = offload
        if gateway is not None:
            ipaddress.IPv4Address(gateway)
        try:
            self._socket: socket.socket | None = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except PermissionError as exc:
            raise PermissionError(
                exc.errno, f"a packet socket on {ifname!r} needs CAP_NET_RAW: run as root, give the Python binary the capability "
                "(setcap cap_net_raw+ep), or work inside a user and network namespace of your own (unshare -Urn)") from None
        try:
            self._check(ifname)
            own = self._ioctl(SIOCGIFHWADDR)
            family = struct.unpack("H", own[:2])[0]
            if family != ARPHRD_ETHER:
                what = "the loopback" if family == ARPHRD_LOOPBACK else f"of type {family}"
                raise OSError(errno.EINVAL, f"{ifname!r} is no Ethernet interface ({what}): use one end of a veth pair, or TunLink")
            self.mac = bytes(own[2:8]) if mac is None else bytes(mac)
            self.mtu = struct.unpack("i", self._ioctl(SIOCGIFMTU)[:4])[0]
            if not struct.unpack("h", self._ioctl(SIOCGIFFLAGS)[:2])[0] & IFF_UP:
                raise OSError(errno.ENETDOWN, f"{ifname!r} is down: ip link set {ifname} up")
            self._configure()
        except BaseException:
            self.close()
            raise

    def _check(self, ifname: str) -> None:
        if len(ifname.encode()) > 15 or not ifname:
            raise OSError(errno.ENODEV, f"{ifname!r} is no interface name")
        try:
            socket.if_nametoindex(ifname)
        except OSError:
            have = ", ".join(sorted(n for _, n in socket.if_nameindex())) or "none"
            raise OSError(errno.ENODEV, f"there is no interface {ifname!r} (there are: {have})") from None

    def _ioctl(self, request: int) -> bytes:
        assert self._socket is not None
        return fcntl.ioctl(self._socket, request, struct.pack("16s24x", self.name.encode()))[16:]

    def _configure(self) -> None:
        sock = self._socket
        assert sock is not None
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.setblocking(False)
        sock.bind((self.name, ETH_P_ALL))

    def _kernel_addresses(self) -> set[str]:
        """Addresses that the kernel of this namespace holds."""
        assert self._socket is not None
        buffer = array.array("B", bytes(40 * 256))
        where, size = buffer.buffer_info()
        conf = struct.pack("iL", size, where)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            used = struct.unpack("iL", fcntl.ioctl(probe, SIOCGIFCONF, conf))[0]
        raw = buffer.tobytes()
        return {socket.inet_ntoa(raw[i + 20:i + 24]) for i in range(0, used, 40)}

    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        if self._socket is None:
            raise OSError(errno.EBADF, "this RawLink was closed: make a new one")
        from ustack import _fastpath

        ours = _fastpath.addresses(stack.engine)
        taken = self._kernel_addresses()
        network: tuple[str, int] | None = None
        for addr, plen, whole in ours:
            clash = {a for a in taken if ipaddress.IPv4Address(a) in ipaddress.ip_network(f"{addr}/{plen}", strict=False)} \
                if whole else taken & {addr}
            if clash:
                raise OSError(
                    errno.EADDRINUSE, f"the kernel holds {', '.join(sorted(clash))} too and would reset our connections: take it off "
                    f"({self.name}: ip addr del ...), or give the stack another address")
            if network is None and plen < 32:
                network = (addr, plen)
        if Path("/proc/sys/net/ipv4/ip_forward").exists() and self._forwards():
            import logging

            logging.getLogger("ustack").warning(
                "%s: the kernel forwards (net.ipv4.ip_forward=1) and may answer for our address; turn it off in this namespace", self.name)
        return Port(self._socket.fileno(), kind="ether", vnet=True, gso=self.offload and offload, mac=self.mac, network=network, gateway=self.gateway)

    @staticmethod
    def _forwards() -> bool:
        with contextlib.suppress(OSError):
            return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
        return False

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def after_fork(self) -> None:
        if self._socket is not None:
            os.close(self._socket.detach())
            self._socket = None

    def __repr__(self) -> str:
        return f"RawLink({self.name!r})"
