"""How this machine's kernel takes values of sysctls: names, defaults, and for each a series of writes with errno and value after.

`python -m tests.kit.sysctl_probe NAME...` (root) answers in JSON; it works in a network namespace of its own and writes nothing that is not of
that namespace. tests/data/sysctl.json.gz is its answer on a 6.18 kernel for all names of ustack.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
VALUES = [
    "0", "1", "2", "3", "-1", "255", "256", "127", "128", "31", "32", "300", "301", "1000", "1001", "65535", "65536", "86400", "86401",
    "8589934", "8589935", "16777216", "16777217", "17179869", "17179870", "2147483647", "2147483648", "-2147483648", "-2147483649",
    "-8589934", "-8589935", "4294967295", "4294967296", "9223372036854775807", "x", "", "1 ", "1 2", "1 2 3", "1 2 3 4", "0 0 0", "3 2 1",
    "1 2 x", "1 x", "1,2", "1\t2\t3", "0x10", "010", "08", "0x", " 5", "5x", "-", "1.5", "40000 40010", "50000 40000", "1024 1024", "1024",
    "100 2000", "1 65535", "0 100", "1024 65536", "+5", "\n", "5\n6", "1-2-3-4", "1-2-3-4,5-6-7-8", "1-2-3", "1-2-3-4,", "1-2-3-4 ",
    "123456789-1-1-1", "5,1-3", "3-1", "1-", "1,2,", ",", "80,443,8080-8090\n", "reno\n", "reno x", " reno",
]
FOLDERS = ("net/ipv4", "net/core")


def file_of(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def names() -> list[str]:
    """What the kernel has in a fresh namespace, neighbours and the loopback device left out."""
    found = []
    for folder in FOLDERS:
        for place, _, files in os.walk(f"/proc/sys/{folder}"):
            found += [f"{place}/{f}"[len("/proc/sys/"):].replace("/", ".") for f in files]
    return sorted(n for n in found if ".neigh." not in n and ".conf.lo." not in n)


def write(name: str, value: str) -> str | None:
    """The errno's name, None for success."""
    fd = os.open(file_of(name), os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    finally:
        os.close(fd)
    return None


def read(name: str) -> str:
    return file_of(name).read_text().rstrip("\n")


def probe(name: str) -> dict[str, object]:
    """Default and writes of one sysctl; without writes where it is not this namespace's own."""
    default = read(name)
    writes = []
    if os.access(file_of(name), os.W_OK):
        for value in VALUES:
            error = write(name, value)
            writes.append([value, error, read(name)])
        write(name, default)
    return {"default": default, "writes": writes}


def main(wanted: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit("no network namespace: run as root")
    there = names()
    print(json.dumps({"names": there, "sysctls": {n: probe(n) for n in wanted if n in there}}))


if __name__ == "__main__":
    main(sys.argv[1:])
