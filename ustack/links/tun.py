"""TunLink: a TUN device of the kernel (pytun-pmd3).

Attaches to the persistent device of that name or creates one, which goes away with the link. The kernel's side (its address, routes) is the
user's to configure; the device is brought up if that is permitted. With offload the kernel hands over segments of up to 64 KiB whose
checksums are left open, and takes the same from us (IFF_VNET_HDR, TUN_F_TSO4).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from pytun_pmd3 import TunTapDevice
from pytun_pmd3.linux import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR

from ustack.links.base import Link, Port

if TYPE_CHECKING:
    from ustack.stack import Stack

# Not in pytun_pmd3.linux.
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO_ECN = 0x01, 0x02, 0x08

MAX_QUEUES = 16                 # engines behind one device (core/state.pxd)

WAYS_OUT = (
    "Three ways out: run as root or with CAP_NET_ADMIN (setcap cap_net_admin+ep on the Python binary); "
    "let root make the device for you (ip tuntap add mode tun user $USER name {name}; ip link set {name} up) and open {path} to you "
    "(chmod 666 {path}); or run inside a user and network namespace of your own (unshare -Urn, or `ustack run`)."
)


class _Device(TunTapDevice):  # type: ignore[misc]
    """TunTapDevice, without its second close() of the descriptor number after a failed TUNSETIFF: that number may be someone else's by then."""

    def __init__(self, name: str, flags: int, path: str) -> None:
        try:
            super().__init__(name, flags, path)
        except BaseException:
            self._fd = -1
            raise


class TunLink(Link):
    """A TUN device. name: of the interface ("ustack%d" lets the kernel number it); path: the clone device.

    mtu: set on the device if given, else read from it. offload=False: every packet single and with full checksums.
    queues: with more than one the device is (or must be) of the multi-queue kind, and the stack runs an engine thread per queue.
    """

    def __init__(self, name: str = "ustack0", *, path: str = "/dev/net/tun", mtu: int | None = None, offload: bool = True,
                 up: bool = True, queues: int = 1) -> None:
        if len(name.encode()) > 15:
            raise ValueError(f"an interface name has at most 15 bytes: {name!r}")
        if not 1 <= queues <= MAX_QUEUES:
            raise ValueError(f"a device has from 1 to {MAX_QUEUES} queues here, not {queues}")
        self.path = path
        self.offload = offload
        self.queues = queues
        self._device: TunTapDevice | None = self._make(name, path, offload, queues)
        self._more: list[TunTapDevice] = []
        self.name: str = self._device.name
        try:
            for _ in range(queues - 1):
                self._more.append(self._make(self.name, path, offload, queues))
            self._set_offload(self._device.fileno(), offload)
            if mtu is not None:
                self._device.mtu = mtu
            self.mtu = self._device.mtu
            if up:
                with contextlib.suppress(PermissionError):
                    self._device.up()
            for one in (self._device, *self._more):
                os.set_blocking(one.fileno(), False)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _make(name: str, path: str, offload: bool, queues: int) -> TunTapDevice:
        flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if offload else 0) | (IFF_MULTI_QUEUE if queues > 1 else 0)
        ways = WAYS_OUT.format(name=name, path=path)
        try:
            return _Device(name, flags, path)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, f"there is no {path}: load the driver (modprobe tun), or make the node "
                f"(mkdir -p /dev/net; mknod {path} c 10 200); in a container pass it in (--device {path}). "
                "Without a device: MemoryLink, PcapLink or a VirtualClock") from None
        except PermissionError as exc:
            if not os.access(path, os.R_OK | os.W_OK):
                raise PermissionError(exc.errno, f"{path} is not open to this user. {ways}") from None
            raise PermissionError(exc.errno, f"not permitted to attach to or make the TUN device {name!r}. {ways}") from None
        except OSError as exc:
            if exc.errno == errno.EPERM:
                raise PermissionError(exc.errno, f"not permitted to attach to or make the TUN device {name!r}. {ways}") from None
            if exc.errno == errno.EBUSY:
                raise OSError(exc.errno, f"the TUN device {name!r} is in use by another program: stop it, or choose another name") from None
            if exc.errno == errno.EINVAL:
                raise OSError(
                    exc.errno, f"an interface {name!r} exists and is no TUN device of the same kind (no TAP, "
                    f"{'several queues' if queues > 1 else 'one queue'}): choose another name") from None
            if exc.errno in (errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EBADFD):
                raise OSError(exc.errno, f"{path} is no TUN clone device: load the driver (modprobe tun)") from None
            raise

    @staticmethod
    def _set_offload(fd: int, offload: bool) -> None:
        # A persistent device keeps the bits of its last opener, so this is said in both cases.
        with contextlib.suppress(OSError):
            if offload:
                fcntl.ioctl(fd, TUNSETVNETHDRSZ, (10).to_bytes(4, "little"))
        bits = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN if offload else 0
        fcntl.ioctl(fd, TUNSETOFFLOAD, bits)

    def open(self, stack: Stack, *, offload: bool = True) -> Port:
        if self._device is None:
            raise OSError(errno.EBADF, "this TunLink was closed: make a new one")
        if self.offload and not offload:
            self._set_offload(self._device.fileno(), False)
        return Port(self._device.fileno(), vnet=self.offload, gso=self.offload and offload)

    def open_queues(self, stack: Stack, queues: int) -> list[Port]:
        if queues != self.queues:
            raise ValueError(f"this TunLink was made with {self.queues} queue(s): TunLink(name, queues={queues})")
        first = self.open(stack)
        return [first, *(Port(one.fileno(), vnet=first.vnet, gso=first.gso) for one in self._more)]

    def fileno(self) -> int:
        return -1 if self._device is None else int(self._device.fileno())

    def close(self) -> None:
        for one in self._more:
            one.close()
        self._more.clear()
        if self._device is not None:
            self._device.close()
            self._device = None

    def __repr__(self) -> str:
        return f"TunLink({self.name!r})"
