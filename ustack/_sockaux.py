"""What stands beside Socket: the raw file of makefile(), and control messages in Linux's layouts."""

from __future__ import annotations

import io
import socket as _std
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from ustack._socket import Socket

Control = tuple[int, int, bytes]
MSG_TRUNC, MSG_ERRQUEUE = 0x20, 0x2000
SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING = 29, 35, 37
RX_SOFTWARE, SOFTWARE, OPT_TSONLY = 8, 16, 0x800
IP_RECVERR, TCP_CM_INQ = 11, 36
ORIGIN_ICMP, ORIGIN_TIMESTAMPING = 2, 4


def received_control(stamp: int, left: int, options: tuple[int, bool, bool, bool]) -> list[Control]:
    """What tcp_recvmsg adds: a receive timestamp (wall clock, ns; 0: none), then TCP_CM_INQ. options: Engine.receive_options."""
    tsflags, micro, nano, inq = options
    control: list[Control] = []
    seconds, rest = divmod(stamp, 1_000_000_000)
    if stamp and nano:
        control.append((_std.SOL_SOCKET, SO_TIMESTAMPNS, struct.pack("=qq", seconds, rest)))
    elif stamp and micro:
        control.append((_std.SOL_SOCKET, SO_TIMESTAMP, struct.pack("=qq", seconds, rest // 1000)))
    if stamp and tsflags & RX_SOFTWARE and tsflags & SOFTWARE:
        control.append((_std.SOL_SOCKET, SO_TIMESTAMPING, struct.pack("=6q", seconds, rest, 0, 0, 0, 0)))
    if inq:
        control.append((_std.IPPROTO_TCP, TCP_CM_INQ, struct.pack("=i", left)))
    return control


def error_control(entry: tuple[int, int, int, int, int, int, int], tsflags: int) -> tuple[list[Control], int]:
    """(control messages, flags) of one entry of the error queue (Engine.take_error)."""
    number, origin, kind, code, info, data, at = entry
    control: list[Control] = []
    stamped = origin == ORIGIN_TIMESTAMPING
    if stamped and tsflags & SOFTWARE:
        control.append((_std.SOL_SOCKET, SO_TIMESTAMPING, struct.pack("=6q", *divmod(at, 1_000_000_000), 0, 0, 0, 0)))
    offender = struct.pack("=HH4s8x", 2 if origin == ORIGIN_ICMP else 0, 0, bytes(4))
    control.append((0, IP_RECVERR, struct.pack("=IBBBBII", number, origin, kind, code, 0, info, data) + offender))
    return control, MSG_ERRQUEUE | (MSG_TRUNC if stamped and not tsflags & OPT_TSONLY else 0)


class SocketIO(io.RawIOBase):
    """Raw file over a Socket, for makefile()."""

    def __init__(self, sock: Socket, mode: str) -> None:
        super().__init__()
        self._sock = sock
        self._mode = mode
        self._timed_out = False

    def readable(self) -> bool:
        return "r" in self._mode and not self.closed

    def writable(self) -> bool:
        return "w" in self._mode and not self.closed

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        if self._timed_out:
            raise OSError("cannot read from timed out object")
        try:
            return self._sock.recv_into(buffer)
        except TimeoutError:
            self._timed_out = True
            raise
        except BlockingIOError:
            return None

    def write(self, data: ReadableBuffer) -> int | None:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return None

    @property
    def name(self) -> int:
        return self._sock.fileno() if not self.closed else -1

    @property
    def mode(self) -> str:
        return self._mode + "b"

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock._decref_io()
