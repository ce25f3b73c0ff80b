"""An own SYN cookie format, in two hooks: SACK and the window scale survive without timestamps.

Linux's cookie has room for a time and one of four MSS values; SACK and the window scale go into the timestamp, so a client without
timestamps loses them under a flood. This one spends fewer bits on authentication: 21 bits of MAC, 3 of MSS, 5 of SACK and scale, 3 of time.
"""

import hashlib
import hmac

import ustack
from ustack.hooks import CookieCheck, CookieMake

MSS = (536, 1220, 1300, 1400, 1440, 1452, 1460, 8960)
NO_SCALE = 15
PERIOD_NS = 64 * 1_000_000_000      # a cookie is good in the period it was made in and in the next


class OwnCookie:
    """The format; `install` hooks it into a stack. bits: 31-29 period, 28-26 MSS, 25-22 scale, 21 SACK, 20-0 MAC."""

    def __init__(self, stack: ustack.Stack, key: bytes) -> None:
        self.stack = stack
        self.key = key
        self.good = self.bad = 0

    def install(self) -> None:
        self.stack.on("cookie_make", self.make)
        self.stack.on("cookie_check", self.check)

    def period(self) -> int:
        return self.stack.engine.now // PERIOD_NS & 7

    def mac(self, view: CookieMake | CookieCheck, head: int) -> int:
        text = repr((view.local, view.peer, view.seq, head)).encode()
        return int.from_bytes(hmac.digest(self.key, text, hashlib.sha256)[:4], "big") & 0x1FFFFF

    def make(self, view: CookieMake) -> None:
        mss = max(i for i, value in enumerate(MSS) if value <= max(view.mss, MSS[0]))
        scale = NO_SCALE if view.wscale is None else view.wscale
        head = self.period() << 8 | mss << 5 | scale << 1 | view.sack
        view.cookie = head << 21 | self.mac(view, head)
        view.keeps_options = True

    def check(self, view: CookieCheck) -> str | None:
        head = view.cookie >> 21
        age = self.period() - (head >> 8) & 7
        if age > 1 or view.cookie & 0x1FFFFF != self.mac(view, head):
            self.bad += 1
            return "drop"
        self.good += 1
        view.mss = MSS[head >> 5 & 7]
        view.keeps_options = True
        view.sack = bool(head & 1)
        if head >> 1 & 15 != NO_SCALE:
            view.wscale = head >> 1 & 15
        return None


def options_after_a_cookie(own: bool) -> tuple[bool, int, int]:
    """(SACK, the client's window scale, its MSS) on the server after a cookie, with a client that has no timestamps."""
    clock = ustack.VirtualClock()
    near, far = ustack.MemoryLink.pair()
    with (
        ustack.Stack(near, "192.0.2.1/24", clock=clock, seed=1, sysctl={"net.ipv4.tcp_timestamps": 0}) as client,
        ustack.Stack(far, "192.0.2.2/24", clock=clock, seed=2, sysctl={"net.ipv4.tcp_syncookies": 2}) as server,
    ):
        if own:
            OwnCookie(server, b"a key").install()
        listener = server.create_server(("192.0.2.2", 80))
        conn = client.create_connection(("192.0.2.2", 80))
        accepted, _ = listener.accept()
        info = accepted.getsockopt(6, 11, 280)         # TCP_INFO
        found = bool(info[5] & 2), info[6] & 15, int.from_bytes(info[16:20], "little")
        for sock in (conn, accepted, listener):
            sock.close()
    return found


def main() -> None:
    for own in (False, True):
        sack, scale, mss = options_after_a_cookie(own)
        print(f"{'own format:  ' if own else 'Linux format:'} SACK {'yes' if sack else 'no '}  window scale {scale:2}  MSS {mss}")


if __name__ == "__main__":
    main()
