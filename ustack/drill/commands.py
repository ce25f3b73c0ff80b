"""The commands scripts run, carried out on the stack under test.

Configuration: sysctl, set_sysctls.py, defaults.sh, sysctl_restore_*.sh, echo > /proc/sys/..., ip, tc,
ethtool.  Looking: ss, nstat, cat.  Text: grep, wc, head, tail, echo, printf.  A form of a command that
is not understood is UnsupportedError, never a silent success.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ustack.drill.options import UnsupportedError
from ustack.drill.port import Port
from ustack.drill.shell import Result
from ustack.observe import ss as observed
from ustack.observe.nstat import lines

# The state every script starts from once it has called defaults.sh (language description, section 6).
DEFAULTS: dict[str, str] = {
    "tcp_rmem": "4096 540000 15728640", "tcp_wmem": "4096 262144 4194304", "tcp_timestamps": "1",
    "tcp_syn_retries": "5", "tcp_synack_retries": "5", "tcp_frto": "2", "tcp_sack": "1", "tcp_dsack": "1",
    "tcp_fack": "0", "tcp_reordering": "3", "tcp_congestion_control": "cubic",
                            "tcp_slow_start_after_idle": "0",
    "tcp_early_retrans": "4", "tcp_recovery": "1", "tcp_tso_win_divisor": "3", "tcp_ecn": "0",
    "tcp_ecn_option": "2", "tcp_pacing_ss_ratio": "200", "tcp_pacing_ca_ratio": "120",
    "tcp_notsent_lowat": "4294967295", "tcp_fastopen": "0x70403",
    "tcp_fastopen_key": "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4", "tcp_syncookies": "1",
}

# Schedulers that pace or delay: to the stack's device they do not exist, as on a kernel without their modules.
_NO_SUCH_QDISC = frozenset({"fq", "fq_codel", "codel", "netem", "cake"})
UNKNOWN_QDISC = "Error: Specified qdisc kind is unknown."

_PROC_SYS = re.compile(r"/proc/sys/([\w./-]+)\Z")
_CUBIC = re.compile(r"/sys/module/tcp_cubic/parameters/(\w+)\Z")


class Commands:
    """The table the shell looks commands up in."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.nstat_history: dict[str, int] = {}
        self._by_name: dict[str, Callable[[list[str], str], Result]] = {
            "sysctl": self.sysctl, "ip": self.ip, "tc": self.tc, "ethtool": self.ethtool, "ss": self.ss,
            "nstat": self.nstat, "cat": self.cat, "grep": self.grep, "egrep": self.egrep, "wc": self.wc,
            "echo": self.echo, "printf": self.printf, "head": self.head, "tail": self.tail,
            "true": lambda a, s: Result(), ":": lambda a, s: Result(), "false": lambda a, s: Result(1),
        }

    # -- the table
    def find(self, name: str) -> Callable[[list[str], str], Result] | None:
        base = name.rsplit("/", 1)[-1]
        if base == "defaults.sh":
            return self.defaults
        if base == "set_sysctls.py":
            return self.set_sysctls
        if re.fullmatch(r"sysctl_restore_\w*\.sh", base):
            return lambda args, stdin: Result()
        if "/" in name and not re.match(r"(/usr)?/s?bin/", name):
            return None
        return self._by_name.get(base)

    def read_file(self, path: str) -> str:
        if path == "/dev/null":
            return ""
        return self._get(self._setting(path)) + "\n"

    def write_file(self, path: str, text: str) -> Result:
        return Result() if path == "/dev/null" else self._set(self._setting(path), text.strip())

    @staticmethod
    def _setting(path: str) -> str:
        """The sysctl's name behind a file of /proc/sys or of the cubic module."""
        if match := _PROC_SYS.match(path):
            return match[1].replace("/", ".")
        if match := _CUBIC.match(path):
            return path
        raise UnsupportedError(f"the file {path}")

    # -- settings
    def _set(self, name: str, value: str) -> Result:
        try:
            self.port.stack.sysctl[name] = " ".join(value.split())
        except OSError as error:
            return Result(255, err=f"sysctl: setting key {name!r}: {error.strerror}\n")
        return Result()

    def _get(self, name: str) -> str:
        return str(self.port.stack.sysctl[name])

    def defaults(self, args: list[str], stdin: str) -> Result:
        errors = "".join(self._set(f"net.ipv4.{name}", value).err for name, value in DEFAULTS.items())
        self.port.stack.tcp_metrics_flush()
        return Result(0, "", errors)

    def set_sysctls(self, args: list[str], stdin: str) -> Result:
        total = Result()
        for arg in args:
            path, equals, value = arg.partition("=")
            if not equals:
                raise UnsupportedError(f"set_sysctls.py {arg}")
            result = self._set(self._setting(path), value)
            total = Result(max(total.status, result.status), "", total.err + result.err)
        return total

    def sysctl(self, args: list[str], stdin: str) -> Result:
        flags = "".join(a[1:] for a in args if a.startswith("-"))
        if set(flags) - set("qnwe"):
            raise UnsupportedError(f"sysctl -{flags}")
        total = Result()
        for arg in (a for a in args if not a.startswith("-")):
            name, equals, value = arg.partition("=")
            name = name.strip().replace("/", ".")
            if equals:
                result = self._set(name, value.strip())
                result.out = "" if "q" in flags or result.status else f"{name} = {value.strip()}\n"
            else:
                try:
                    result = Result(0, self._get(name) + "\n" if "n" in flags
                                    else f"{name} = {self._get(name)}\n")
                except OSError:
                    result = Result(255, err=f"sysctl: cannot stat {name}\n")
            total = Result(max(total.status, result.status), total.out + result.out, total.err + result.err)
        return total

    # -- network
    def ip(self, args: list[str], stdin: str) -> Result:
        words = [a for a in args if a not in ("-4", "-o", "-s")]
        match words:
            case ["tcp_metrics" | "tcp_metric" | "tcpm", "flush", *_]:
                self.port.stack.tcp_metrics_flush()
                return Result()
            case ["route" | "ro" | "r", ("change" | "replace" | "add" | "del" | "delete" | "append"), *_]:
                return self._configure(self.port.stack.route, " ".join(words[1:]))
            case ["link", "set", *rest]:
                return self._ip_link(rest)
        raise UnsupportedError(f"ip {' '.join(args)}")

    def _ip_link(self, words: list[str]) -> Result:
        words = [w for w in words if w not in ("dev", "up")][1:]
        if len(words) == 2 and words[0] == "mtu" and words[1].isdecimal():
            return self._configure(lambda mtu: self.port.stack.link(mtu=mtu), int(words[1]))
        if words:
            raise UnsupportedError(f"ip link set ... {' '.join(words)}")
        return Result()

    @staticmethod
    def _configure(call: Callable[[Any], Any], argument: Any) -> Result:
        try:
            call(argument)
        except (OSError, ValueError) as error:
            return Result(2, err=f"{error}\n")
        return Result()

    def tc(self, args: list[str], stdin: str) -> Result:
        """Only the queue's limit matters: a TUN queue with limit 0 refuses every packet."""
        match args:
            case ["qdisc", "delete" | "del", "dev", _, "root"]:
                return self._refuse(False)
            case ["qdisc", "add" | "replace" | "change", "dev", _, "root", *rest]:
                while rest and rest[0] in ("handle", "parent"):
                    rest = rest[2:]
                match rest:
                    case ["pfifo", "limit", number] if number.isdecimal():
                        return self._refuse(int(number) == 0)
                    case ["pfifo" | "pfifo_fast" | "noqueue"]:
                        return self._refuse(False)
                    case [kind, *_] if kind in _NO_SUCH_QDISC:
                        return Result(2, err=f"{UNKNOWN_QDISC}\n")
        raise UnsupportedError(f"tc {' '.join(args)}")

    def _refuse(self, refuse: bool) -> Result:
        self.port.stack.link(refuse=refuse)
        return Result()

    def ethtool(self, args: list[str], stdin: str) -> Result:
        """Segmentation offload off: packets leave with one MSS each."""
        if len(args) < 4 or args[0] != "-K" or len(args) % 2:
            raise UnsupportedError(f"ethtool {' '.join(args)}")
        for feature, state in zip(args[2::2], args[3::2], strict=True):
            if state not in ("on", "off"):
                raise UnsupportedError(f"ethtool -K ... {feature} {state}")
            if feature in ("tso", "gso"):
                self.port.set_offload(feature, state == "on")
            elif feature not in ("gro", "lro", "sg", "tx", "rx"):
                raise UnsupportedError(f"ethtool -K ... {feature}")
        return Result()

    # -- looking
    def ss(self, args: list[str], stdin: str) -> Result:
        words = " ".join(args)
        try:
            if not observed.parse(args).has_tcp:
                raise UnsupportedError(f"ss {words}")
            return Result(0, self.port.stack.ss_text(words))
        except ValueError as error:
            raise UnsupportedError(str(error)) from None

    def nstat(self, args: list[str], stdin: str) -> Result:
        flags = "".join(a[1:] for a in args if a.startswith("-"))
        names = [a for a in args if not a.startswith("-")]
        if set(flags) - set("naszr") or any(re.search(r"[*?\[]", n) for n in names):
            raise UnsupportedError(f"nstat {' '.join(args)}")
        now = dict(self.port.stack.nstat())
        base = {} if set(flags) & set("ar") else self.nstat_history
        shown = {name: value - base.get(name, 0) for name, value in now.items() if not names or name in names}
        if "s" not in flags:
            self.nstat_history = now
        if "n" in flags:
            return Result()
        return Result(0, "".join(line + "\n" for line in ["#kernel", *lines(shown, zeros="z" in flags)]))

    # -- text
    def cat(self, args: list[str], stdin: str) -> Result:
        if any(a.startswith("-") and a != "-" for a in args):
            raise UnsupportedError(f"cat {' '.join(args)}")
        return Result(0, "".join(stdin if a == "-" else self.read_file(a) for a in args) if args else stdin)

    @staticmethod
    def echo(args: list[str], stdin: str) -> Result:
        end = ""
        if args[:1] == ["-n"]:
            args = args[1:]
        else:
            end = "\n"
        return Result(0, " ".join(args) + end)

    @staticmethod
    def printf(args: list[str], stdin: str) -> Result:
        if len(args) != 1 or "%" in args[0]:
            raise UnsupportedError(f"printf {' '.join(args)}")
        return Result(0, args[0].replace("\\n", "\n").replace("\\t", "\t"))

    def head(self, args: list[str], stdin: str) -> Result:
        count = self._line_count(args, "head")
        return Result(0, "".join(stdin.splitlines(keepends=True)[:count]))

    def tail(self, args: list[str], stdin: str) -> Result:
        count = self._line_count(args, "tail")
        return Result(0, "".join(stdin.splitlines(keepends=True)[-count:] if count else []))

    @staticmethod
    def _line_count(args: list[str], name: str) -> int:
        text = " ".join(args)
        if not text:
            return 10
        match = re.fullmatch(r"-n ?(\d+)|-(\d+)", text)
        if match is None:
            raise UnsupportedError(f"{name} {text}")
        return int(match[1] or match[2])

    @staticmethod
    def wc(args: list[str], stdin: str) -> Result:
        counts = {"-l": stdin.count("\n"), "-w": len(stdin.split()), "-c": len(stdin.encode())}
        if len(args) != 1 or args[0] not in counts:
            raise UnsupportedError(f"wc {' '.join(args)}")
        return Result(0, f"{counts[args[0]]}\n")

    def egrep(self, args: list[str], stdin: str) -> Result:
        return self.grep(["-E", *args], stdin)

    @staticmethod
    def grep(args: list[str], stdin: str) -> Result:
        flags, patterns = "", []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "-e" and rest:
                patterns.append(rest.pop(0))
            elif re.fullmatch(r"-[A-Za-z]+", arg):
                flags += arg[1:]
            else:
                patterns.append(arg)
        if len(patterns) != 1 or set(flags) - set("qxvcEFiwo"):
            raise UnsupportedError(f"grep {' '.join(args)}")
        text = re.escape(patterns[0]) if "F" in flags else _regex(patterns[0], "E" in flags)
        if "w" in flags:
            text = rf"(?<!\w)(?:{text})(?!\w)"
        pattern = re.compile(rf"(?:{text})\Z" if "x" in flags else text, re.I if "i" in flags else 0)
        search = pattern.match if "x" in flags else pattern.search
        lines = [line for line in stdin.splitlines() if bool(search(line)) != ("v" in flags)]
        if "q" in flags:
            out = ""
        elif "c" in flags:
            out = f"{len(lines)}\n"
        elif "o" in flags:
            out = "".join(m[0] + "\n" for line in lines for m in pattern.finditer(line) if m[0])
        else:
            out = "".join(line + "\n" for line in lines)
        return Result(0 if lines else 1, out)


def _regex(pattern: str, extended: bool) -> str:
    """A POSIX pattern as Python's: in the basic form + ? | ( ) { } are plain unless escaped."""
    if re.search(r"\[:|\[\.|\[=", pattern):
        raise UnsupportedError(f"the pattern {pattern!r}")
    if extended:
        return pattern
    out, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern):
            following = pattern[at + 1]
            out += following if following in "+?|(){}" else char + following
            at += 2
            continue
        if char == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise UnsupportedError(f"the pattern {pattern!r}")
            out += pattern[at:end + 1]
            at = end + 1
            continue
        out += "\\" + char if char in "+?|(){}" else char
        at += 1
    return out
