"""msghdr and control messages: what sendmsg() passes and what recvmsg() must have returned.

Layouts are those of Linux on a 64-bit machine: struct sock_extended_err, struct scm_timestamping.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ustack.drill import nodes, values
from ustack.drill.nodes import Value
from ustack.drill.state import Failure
from ustack.drill.symbols import SYMBOLS

ControlMessage = tuple[int, int, bytes]
_SOL_SOCKET, _SOL_TCP = SYMBOLS["SOL_SOCKET"], SYMBOLS["SOL_TCP"]
_RECVERR = {(SYMBOLS["SOL_IP"], SYMBOLS["IP_RECVERR"]), (SYMBOLS["SOL_IPV6"], SYMBOLS["IPV6_RECVERR"])}
_TIMESTAMPING = (_SOL_SOCKET, SYMBOLS["SCM_TIMESTAMPING"])
_EE_FIELDS = ("ee_errno", "ee_origin", "ee_type", "ee_code", "ee_pad", "ee_info", "ee_data")


def iov_lengths(message: nodes.Struct) -> list[int]:
    """`msg_iov(n)=[{..., len}, ...]`; n must be how many there are."""
    for item in message.members:
        if item.name == "msg_iov":
            lengths = values.iovec_lengths(item.value)
            said = None if item.arg is None or values.is_dots(item.arg) else values.number(item.arg)
            if said is not None and said != len(lengths):
                raise Failure("script", item.pos,
                              f"msg_iov({said}) has {len(lengths)} elements")
            return lengths
    return []


def outgoing_control(message: nodes.Struct) -> list[ControlMessage]:
    """The control messages that sendmsg() passes: integers only."""
    control = message.get("msg_control")
    if control is None or values.is_dots(control):
        return []
    out = []
    for item in values.array(control):
        fields = values.struct(item)
        level = values.number(values.member(fields, "cmsg_level"))
        kind = values.number(values.member(fields, "cmsg_type"))
        data = values.number(values.member(fields, "cmsg_data"))
        out.append((level, kind, struct.pack("=I", data & 0xFFFFFFFF)))
    return out


class Incoming:
    """Checks what recvmsg() gave against the script; `time_ok(relative_ns, wall_ns)` judges timestamps."""

    def __init__(self, message: nodes.Struct, time_ok: Callable[[int, int], str | None]) -> None:
        self.message = message
        self.time_ok = time_ok
        control = message.get("msg_control")
        self.expected = None if control is None or values.is_dots(control) else values.array(control)

    @property
    def control_size(self) -> int:
        """Without msg_control= the caller gives no room, and the kernel sets MSG_CTRUNC if it had any."""
        return 0 if self.expected is None else 4096

    def check(self, flags: int, control: list[ControlMessage]) -> None:
        wanted = self.message.get("msg_flags")
        if wanted is not None and not values.is_dots(wanted) and values.number(wanted) != flags:
            raise Failure("syscall", wanted.pos, "recvmsg() returned other msg_flags",
                          f"{values.number(wanted):#x}", f"{flags:#x}")
        if self.expected is None:
            return
        if len(self.expected) != len(control):
            raise Failure("syscall", self.message.pos,
                          "recvmsg() returned another number of control messages",
                          str(len(self.expected)),
                          f"{len(control)}: {[(a, b, c.hex()) for a, b, c in control]}")
        for item, got in zip(self.expected, control, strict=True):
            self._check_one(values.struct(item), got)

    def _check_one(self, want: nodes.Struct, got: ControlMessage) -> None:
        level, kind, data = got
        key = (values.number(values.member(want, "cmsg_level")),
               values.number(values.member(want, "cmsg_type")))
        if key != (level, kind):
            raise Failure("syscall", want.pos, "another control message (level, type)", str(key),
                          str((level, kind)))
        expected = want.get("cmsg_data")
        if expected is None or values.is_dots(expected):
            return
        if key == _TIMESTAMPING:
            self._check_time(values.struct(expected), data)
        elif key in _RECVERR:
            self._check_error(values.struct(expected), data)
        else:
            self._check_int(expected, data)

    def _check_time(self, want: nodes.Struct, data: bytes) -> None:
        if len(data) < 16:
            raise Failure("syscall", want.pos, "SCM_TIMESTAMPING is too short", "48 bytes",
                          f"{len(data)} bytes")
        seconds, nanos = struct.unpack_from("=qq", data)
        relative = values.number(values.member(want, "scm_sec")) * 1_000_000_000
        relative += values.number(values.member(want, "scm_nsec"))
        wrong = self.time_ok(relative, seconds * 1_000_000_000 + nanos)
        if wrong is not None:
            raise Failure("syscall", want.pos, "the timestamp is another time", f"{relative / 1e9:.9f} s",
                          wrong)

    @staticmethod
    def _check_error(want: nodes.Struct, data: bytes) -> None:
        if len(data) < 16:
            raise Failure("syscall", want.pos, "the error record is too short", "16 bytes",
                          f"{len(data)} bytes")
        got = dict(zip(_EE_FIELDS, struct.unpack_from("=IBBBBII", data), strict=True))
        for item in want.members:
            if item.name not in got:
                raise Failure("script", item.pos, f"sock_extended_err has no member {item.name}")
            if not values.is_dots(item.value) and values.number(item.value) & 0xFFFFFFFF != got[item.name]:
                raise Failure("syscall", item.pos, f"{item.name} differs", str(values.number(item.value)),
                              str(got[item.name]))

    @staticmethod
    def _check_int(want: Value, data: bytes) -> None:
        number = int.from_bytes(data[:4], "little", signed=True)
        if len(data) != 4 or values.number(want) != number:
            raise Failure("syscall", want.pos, "the control message's data differs", str(values.number(want)),
                          str(number) if len(data) == 4 else data.hex())
