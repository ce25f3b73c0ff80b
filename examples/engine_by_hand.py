"""An Engine stepped by hand: a SYN goes in, the SYN-ACK and its retransmissions come out, in virtual time.

No device, no thread, no clock: time is an argument. The same seed gives the same bytes.
"""

import ustack

SECOND = 1_000_000_000


def syn(src: str, dst: str, sport: int, dport: int, seq: int) -> bytes:
    """A 40-byte SYN with correct checksums."""

    def checksum(data: bytes) -> int:
        total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        return total ^ 0xFFFF

    a, b = (bytes(int(x) for x in addr.split(".")) for addr in (src, dst))
    ip = bytes.fromhex("4500 0028 0001 4000 4006 0000") + a + b
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    tcp = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + seq.to_bytes(4, "big") + bytes.fromhex("00000000 5002 ffff 0000 0000")
    pseudo = a + b + bytes.fromhex("0006 0014") + tcp
    return ip + tcp[:16] + checksum(pseudo).to_bytes(2, "big") + tcp[18:]


def main() -> None:
    engine = ustack.Engine("192.0.2.1/24", seed=1)
    listener = engine.socket()
    engine.bind(listener, "192.0.2.1", 80)
    engine.listen(listener, 128)

    engine.receive(syn("192.0.2.2", "192.0.2.1", 40000, 80, 1000), now=0)
    while True:
        for at, packet in engine.transmit():
            seen = ustack.parse(packet)
            print(f"{at / SECOND:6.3f} s  flags {seen['flags']:#04x}  seq {seen['seq']}  ack {seen['ack']}  window {seen['window']}")
        due = engine.next_timeout()
        if due is None:
            break
        engine.poll(due)
    print(f"{engine.now / SECOND:6.3f} s  the request is gone:", {k: v for k, v in engine.nstat().items() if k.endswith("Timeouts")})


if __name__ == "__main__":
    main()
