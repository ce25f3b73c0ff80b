"""What state tests of hooks share: a SYN with the usual options, and the packets that came out, as scapy's."""

from scapy.all import TCP

OPTS = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
SECOND = 1_000_000_000


def sent(t, port=1000):
    """The packets to this port so far as (seconds, scapy packet); forgets them."""
    t.collect()
    out = [(at / SECOND, p) for at, p in t.flow(port).out]
    t.flow(port).out.clear()
    return out


def answer(t, port=1000):
    """The one packet that came out."""
    ((_, packet),) = sent(t, port)
    return packet


def options(packet):
    return dict(packet[TCP].options)


def syn(t, at, port=1000, words="", opts=OPTS, flags="S"):
    t.line(f"{at} {port} < {flags} 0 win 65535 {words}{opts}")
