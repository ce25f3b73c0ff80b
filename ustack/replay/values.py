"""The value forms of a recording: option values, payloads, poll masks.

Each form is turned into what a socket call takes, and what a call gave is turned into the same form for
comparison. Forms: integer; SO_LINGER {"onoff","linger"}; SO_RCVTIMEO/SO_SNDTIMEO {"sec","usec"}; {"hex"};
payloads {"len","hex"}, {"len","repeat"}, {"len","runs"}, {"len","first","sha256"}.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

POLL_BITS = {
    "IN": 0x001, "PRI": 0x002, "OUT": 0x004, "ERR": 0x008, "HUP": 0x010, "NVAL": 0x020, "RDNORM": 0x040,
    "RDBAND": 0x080, "WRNORM": 0x100, "WRBAND": 0x200, "MSG": 0x400, "RDHUP": 0x2000,
}
POLL_ALWAYS = 0x008 | 0x010 | 0x020


class BadValue(ValueError):
    """A value of the recording has none of the known forms."""


def option_in(value: Any) -> int | bytes:
    """What setsockopt takes for a recorded value."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict):
        if "onoff" in value:
            return struct.pack("ii", value["onoff"], value["linger"])
        if "sec" in value:
            return struct.pack("qq", value["sec"], value["usec"])
        if "hex" in value:
            return bytes.fromhex(value["hex"])
    if isinstance(value, str):
        return value.encode()
    raise BadValue(f"option value {value!r} has no known form")


def option_size(like: Any, buflen: int | None = None) -> int:
    """The buffer length for getsockopt of a value of this form."""
    if buflen is not None:
        return buflen
    if isinstance(like, dict):
        if "onoff" in like:
            return 8
        if "sec" in like:
            return 16
        if "hex" in like:
            return int(like.get("len", len(like["hex"]) // 2))
    if isinstance(like, str):
        return max(16, len(like))
    return 4


def option_out(raw: bytes, like: Any) -> Any:
    """The bytes of a getsockopt in the form of `like`; another length shows as hex."""
    if isinstance(like, int) and len(raw) in (1, 4, 8):
        return int.from_bytes(raw, "little", signed=True)
    if isinstance(like, dict) and "onoff" in like and len(raw) == 8:
        return dict(zip(("onoff", "linger"), struct.unpack("ii", raw), strict=True))
    if isinstance(like, dict) and "sec" in like and len(raw) == 16:
        return dict(zip(("sec", "usec"), struct.unpack("qq", raw), strict=True))
    if isinstance(like, str):
        return raw.rstrip(b"\0").decode("latin-1")
    if isinstance(like, dict) and "len" in like:
        return {"len": len(raw), "hex": raw.hex()}
    return {"hex": raw.hex()}


def payload(form: dict[str, Any]) -> bytes:
    """The bytes of an exact payload form."""
    if "hex" in form:
        data = bytes.fromhex(form["hex"])
    elif "repeat" in form:
        data = bytes.fromhex(form["repeat"]) * form["len"]
    elif "runs" in form:
        data = b"".join(bytes.fromhex(unit) * n for unit, n in form["runs"])
    elif form.get("len") == 0:
        data = b""
    else:
        raise BadValue(f"payload {form!r} is not exact")
    if "len" in form and len(data) != form["len"]:
        raise BadValue(f"payload of {len(data)} bytes says len {form['len']}")
    return data


def brief(data: bytes) -> str:
    """A payload in words short enough for a report."""
    if not data:
        return "nothing"
    if len(set(data)) == 1 and len(data) > 8:
        return f"{len(data)} bytes of {data[0]:02x}"
    return f"{len(data)} bytes {data[:16].hex()}{'...' if len(data) > 16 else ''}"


def payload_fault(form: dict[str, Any], got: bytes) -> tuple[str, str] | None:
    """(expected, got) if the received bytes are not those of the form."""
    if "sha256" in form:
        if len(got) == form["len"] and hashlib.sha256(got).hexdigest() == form["sha256"]:
            return None
        return f"{form['len']} bytes with SHA-256 {form['sha256'][:16]}...", \
            f"{len(got)} bytes with SHA-256 {hashlib.sha256(got).hexdigest()[:16]}..."
    want = payload(form)
    if want == got:
        return None
    at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None)
    where = f" (first difference at byte {at})" if at is not None else ""
    return brief(want), brief(got) + where


def mask_in(names: list[str]) -> int:
    mask = 0
    for name in names:
        if name not in POLL_BITS:
            raise BadValue(f"unknown poll event {name!r}")
        mask |= POLL_BITS[name]
    return mask


def mask_out(mask: int) -> list[str]:
    return [name for name, bit in POLL_BITS.items() if mask & bit]
