"""Traces of congestion control: a sender, a receiver that acknowledges by a script, TCP_INFO after every ACK.

The receiver stands behind a path with a round trip and a bottleneck: a segment is acknowledged `rtt` after it came, and two ACKs are at
least `gap` apart. Which transmissions are lost is told by their number (1 is the first data packet; retransmissions count too) and by how
many times the same segment was sent. So the ACKs depend on what the sender does and on nothing else, and `ustack diff` compares window,
cwnd, ssthresh and state after each of them.

Times are far from every limit that a decision depends on: round trips are no multiples of the 4 ms tick, ACK spacing is well below or well
above HyStart's 2 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ustack.lab.script import Script
from ustack.replay import packet as wire

MSS = 1448
SNDBUF = 400_000
DELACK = 0.030
Lost = Callable[[int, int], bool]


def lost(*numbers: int) -> Lost:
    """These transmissions are lost."""
    return lambda n, times: n in numbers


class Receiver:
    """The far end of one connection of the kernel: takes data, drops what it is told to, acknowledges."""

    def __init__(self, script: Script, rtt: float = 0.042, gap: float = 0.0, every: int = 1, drop: Lost | None = None, **opening: str) -> None:
        self.script, self.bench = script, script.bench
        self.rtt, self.gap, self.every = rtt, gap, every
        self.drop: Lost = drop or lost()
        self.count = 0
        self.times: dict[int, int] = {}
        self.due: deque[tuple[float, int, int]] = deque()
        self.next, self.ahead = 1, []           # type: tuple[int, list[tuple[int, int]]]
        self.unacked, self.last = 0, 0.0
        if paced(script):
            opening["nots"] = ""
        self.sack = "nosack" not in opening
        self.words: dict[str, str] = {}
        script.line("L0 = listen 8000 10")
        self.client = script.client("c1")
        script.line("c1: syn " + " ".join(f"{k}={v}" if v else k for k, v in opening.items()))
        self.bench.wait(rtt)
        self.bench.observers[self.client.src, self.client.sport, self.client.dst, self.client.dport] = self.arrived
        script.line("c1: ack" + (" nots" if "nots" in opening else ""))
        script.line("L0.accept C0")
        self.bench.quick = True

    def arrived(self, p: int, packet: wire.Packet) -> None:
        self.client.observe(p, packet)
        assert packet.tcp is not None
        if not packet.tcp.payload:
            return
        self.count += 1
        start = (packet.tcp.seq - self.client.isn) & 0xFFFFFFFF
        self.times[start] = self.times.get(start, 0) + 1
        if not self.drop(self.count, self.times[start]):
            self.due.append((self.bench.now() + self.rtt, start, start + len(packet.tcp.payload)))

    # ---- the application

    def option(self, words: str) -> None:
        self.script.line(f"C0.setsockopt {words}")

    def send(self, size: int) -> None:
        self.script.line(f"C0.send {size}")

    def info(self) -> None:
        self.script.line("C0.info")

    # ---- acknowledging

    def _take(self, start: int, end: int) -> bool:
        """Put a segment in; True: it leaves or fills a gap, or is old, and is to be acknowledged at once."""
        odd = start != self.next or bool(self.ahead)
        if end > self.next:
            if start <= self.next:
                self.next = end
            else:
                self.ahead = [b for b in self.ahead if not (b[0] >= start and b[1] <= end)]
                touching = [b for b in self.ahead if b[0] <= end and b[1] >= start]
                self.ahead = [b for b in self.ahead if b not in touching]
                self.ahead.insert(0, (min([start, *(b[0] for b in touching)]), max([end, *(b[1] for b in touching)])))
        for block in sorted(self.ahead):
            if block[0] <= self.next:
                self.next = max(self.next, block[1])
                self.ahead.remove(block)
        return odd

    def ack(self) -> None:
        words = {"flags": "A", "ack": str(self.next), **self.words}
        if self.sack and self.ahead:
            words["sack"] = ",".join(f"{a}-{b}" for a, b in self.ahead[:3])
        self.client.segment(words)
        self.last, self.unacked = self.bench.now(), 0
        self.info()

    def acks(self, n: int, patience: float = 0.6) -> int:
        """Send the next n ACKs; ends earlier when nothing has come for `patience` seconds. Returns how many were sent."""
        done, idle = 0, self.bench.now()
        while done < n and self.bench.now() - idle < patience:
            if not self.due:
                if self.unacked and self.bench.now() - idle > DELACK:
                    self.ack()
                    done += 1
                self.bench.wait(0.001)
                continue
            at, start, end = self.due[0]
            at = max(at, self.last + self.gap)
            if at > self.bench.now():
                self.bench.wait_until(at)
                continue
            self.due.popleft()
            idle = self.bench.now()
            self.unacked += 1
            if self._take(start, end) or self.unacked >= self.every:
                self.ack()
                done += 1
        return done

    def supply(self, n: int, at_a_time: int = 40, size: int = 80_000) -> None:
        """n ACKs while the application keeps the send buffer full."""
        while n > 0:
            self.send(size)
            got = self.acks(min(n, at_a_time))
            if not got:
                return
            n -= got

    def quiet(self, seconds: float) -> None:
        self.bench.wait(seconds)
        self.info()


def paced(script: Script) -> bool:
    """A paced packet leaves by a timer, so it may cross an ACK, and its echo of a timestamp would tell which came first."""
    return script.bench.kernel.congestion == "bbr"


# ---- what happens -------------------------------------------------------------------------------------------------------------

def slow_start(script: Script) -> None:
    r = Receiver(script, gap=0.0004, every=2)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(60, at_a_time=20)


def slow_start_every(script: Script) -> None:
    r = Receiver(script, gap=0.0031)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(90)


def train(script: Script) -> None:
    """ACKs less than 2 ms apart for more than half the round trip: HyStart's ACK train."""
    r = Receiver(script, gap=0.0004)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(120)


def delay(script: Script) -> None:
    """The round trip rises by 15 ms in the third round: HyStart's delay increase; then congestion avoidance."""
    r = Receiver(script, gap=0.0031)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(30)
    r.rtt += 0.015
    r.supply(150)


def one_loss(script: Script) -> None:
    """Packet 25 of slow start is lost: fast recovery, PRR, and congestion avoidance after it."""
    r = Receiver(script, gap=0.0023, drop=lost(25))
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(160)


def one_loss_nosack(script: Script) -> None:
    r = Receiver(script, gap=0.0023, drop=lost(25), nosack="")
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(120)


def many_losses(script: Script) -> None:
    """A third of a flight is lost: PRR below and above ssthresh."""
    r = Receiver(script, gap=0.0023, drop=lost(25, 27, 28, 31, 32, 33, 38))
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(140)


def lost_again(script: Script) -> None:
    """The retransmission is lost too: RACK."""
    r = Receiver(script, gap=0.0023, drop=lambda n, times: n == 25 or times == 2)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(140)


def two_losses(script: Script) -> None:
    """The second loss comes at a smaller window: fast convergence."""
    r = Receiver(script, gap=0.0023, drop=lost(41, 150))
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(360)


def timeout(script: Script) -> None:
    """A whole flight and the loss probe are lost: RTO, slow start up to ssthresh, congestion avoidance."""
    r = Receiver(script, gap=0.0023, drop=lambda n, times: 31 <= n <= 71)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(300_000)
    r.acks(140, patience=1.5)


def timeout_again(script: Script) -> None:
    """Two timeouts in a row."""
    r = Receiver(script, gap=0.0023, drop=lambda n, times: 11 <= n <= 32)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(120_000)
    r.acks(70, patience=1.5)


def spurious(script: Script) -> None:
    """The path stalls for longer than the RTO and nothing is lost: F-RTO undoes."""
    r = Receiver(script, gap=0.0023)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(120_000)
    r.acks(12)
    r.rtt += 0.6
    r.acks(20, patience=1.5)
    r.rtt -= 0.6
    r.acks(40)


def idle(script: Script) -> None:
    """Idle for several RTOs: the window restarts; then a second flight."""
    r = Receiver(script, gap=0.0023, every=2)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(80 * MSS)
    r.acks(60, patience=0.3)
    r.quiet(0.95)
    r.send(80 * MSS)
    r.acks(60, patience=0.3)


def idle_avoidance(script: Script) -> None:
    """After a loss, a pause shorter than the RTO: the curve goes on where it stopped. Then one that is longer."""
    r = Receiver(script, gap=0.0023, drop=lost(25))
    r.option(f"SO_SNDBUF={SNDBUF}")
    for pause in (0.17, 0.17, 1.3):
        r.send(70 * MSS)
        r.acks(90, patience=pause)
        r.info()
    r.send(70 * MSS)
    r.acks(90, patience=0.1)


def app_limited(script: Script) -> None:
    """Three segments per round trip: the window does not grow."""
    r = Receiver(script, gap=0.0005)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(60 * MSS)
    r.acks(60, patience=0.1)
    for _ in range(14):
        r.send(3 * MSS)
        r.acks(3)
    r.send(60 * MSS)
    r.acks(60, patience=0.1)


def window_limited(script: Script) -> None:
    """The peer's window is the limit."""
    r = Receiver(script, gap=0.0005)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.words = {"win": str(20 * MSS // 128)}
    r.send(150 * MSS)
    r.acks(150, patience=0.2)


def rate_limited(script: Script) -> None:
    """SO_MAX_PACING_RATE: the rate is the limit, not the window; a loss, and a higher rate."""
    r = Receiver(script, drop=lost(61), nots="")
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.option("SO_MAX_PACING_RATE=400000")
    r.supply(80)
    r.option("SO_MAX_PACING_RATE=1100000")
    r.supply(80)


def ecn(script: Script) -> None:
    """ECE: the window is reduced without a loss (CWR)."""
    r = Receiver(script, gap=0.0023, flags="SEW")
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.supply(20)
    r.words = {"flags": "AE"}
    r.supply(2)
    r.words = {}
    r.supply(70)


def reordered(script: Script) -> None:
    """One segment comes 8 places late, then a D-SACK: the reduction is undone."""
    r = Receiver(script, gap=0.0031)
    r.option(f"SO_SNDBUF={SNDBUF}")
    r.send(100_000)
    r.acks(14)
    late = r.due.popleft()
    r.acks(8)
    r.due.appendleft(late)
    r.acks(6)
    start = late[1]
    r.client.segment({"flags": "A", "ack": str(r.next), "sack": f"{start}-{start + MSS}"})
    r.info()
    r.acks(40)


PLAYS = {
    "slowstart": slow_start, "slowstart-every": slow_start_every, "train": train, "delay": delay, "loss": one_loss,
    "loss-nosack": one_loss_nosack, "losses": many_losses, "lost-again": lost_again, "two-losses": two_losses,
    "rto": timeout, "rto-again": timeout_again, "rto-spurious": spurious, "idle": idle, "idle-avoidance": idle_avoidance,
    "app-limited": app_limited, "window-limited": window_limited, "rate-limited": rate_limited,
    "ecn": ecn, "reordered": reordered,
}


# Two rates measured in microseconds are compared for this bit, and the variance behind the RTO is measured too.
MEASURED = {"delivery_rate_app_limited": 1, "rto_us": 16_000}
CALM = 0.001
# BBR's window is a product of a measured rate and a measured RTT, rounded up to packets and then to an even number: a microsecond may make
# it one packet or two larger for a few ACKs. The rate is of packets that left by the kernel's timers, some late by 3 ms in a round trip of 42.
# The phases of its gain cycle are random.
BBR_SIZED = {"snd_cwnd": 2, "snd_ssthresh": 2, "unacked": 2, "segs_out": 2, "data_segs_out": 2, "bytes_sent": 2 * 1460, "notsent_bytes": 2 * 1460,
             "pacing_rate": 0.1}
BBR_DRAWS = 24


def scenarios() -> Iterator[dict[str, Any]]:
    for congestion in ("cubic", "reno", "bbr"):
        for name, play in PLAYS.items():
            yield {"id": f"cc-{congestion}-{name}", "section": "J", "rules": ["J2", "J7"], "congestion": congestion, "steps": play,
                   "desc": f"{congestion}: {(play.__doc__ or name).splitlines()[0]}",
                   "calm": CALM, "tolerance": MEASURED,
                   **({"draws": BBR_DRAWS, "tolerance": MEASURED | BBR_SIZED} if congestion == "bbr" else {}),
                   "sysctl": {"tcp_ecn": "1", "tcp_no_metrics_save": "1"}}
