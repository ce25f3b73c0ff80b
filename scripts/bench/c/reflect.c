/* reflect: the limit of SYNs answered. A stateless responder on a TUN device: each SYN is turned into its SYN-ACK in place (addresses and
 * ports swapped, a SipHash-2-4 ISN, the checksum adjusted) and written back. What any userspace stack on TUN pays at the least.
 *
 *   reflect -i DEVICE [-V] [-c CPU] [-d SECONDS]       -V: with virtio_net_hdr, as a stack that uses offload must */
#include "common.h"

/* The SYN at p becomes its SYN-ACK; 0 if it is no SYN. */
static int answer(uint8_t *p, int n)
{
	uint32_t from, to, seq, isn, ack;
	uint16_t from_port, to_port, sum;
	if (n < 40 || p[0] != 0x45 || p[9] != IPPROTO_TCP || (p[33] & 0x17) != 2)
		return 0;
	memcpy(&from, p + 12, 4);
	memcpy(&to, p + 16, 4);
	memcpy(&from_port, p + 20, 2);
	memcpy(&to_port, p + 22, 2);
	memcpy(&seq, p + 24, 4);
	memcpy(&sum, p + 36, 2);
	isn = (uint32_t)siphash((uint64_t)from << 32 | to, (uint32_t)from_port << 16 | to_port, 1, 2);
	ack = htonl(ntohl(seq) + 1);
	/* RFC 1624: out with the old sequence number (the old acknowledgment is 0), in with both new ones and the ACK bit. */
	sum = ~fold((uint64_t)(uint16_t)~sum + (uint32_t)~seq + isn + ack + htons(0x0010));
	p[33] |= 0x10;
	memcpy(p + 12, &to, 4);
	memcpy(p + 16, &from, 4);
	memcpy(p + 20, &to_port, 2);
	memcpy(p + 22, &from_port, 2);
	memcpy(p + 24, &isn, 4);
	memcpy(p + 28, &ack, 4);
	memcpy(p + 36, &sum, 2);
	return 1;
}

int main(int argc, char **argv)
{
	static uint8_t buffer[70000];
	const char *device = "tun0";
	int vnet = 0, cpu = -1, option, seconds = 60, head;
	while ((option = getopt(argc, argv, "i:Vc:d:")) != -1)
		switch (option) {
		case 'i': device = optarg; break;
		case 'V': vnet = 1; break;
		case 'c': cpu = atoi(optarg); break;
		case 'd': seconds = atoi(optarg); break;
		default: return 2;
		}
	stop_after(seconds);
	pin(cpu);
	head = vnet ? (int)sizeof(struct virtio_net_hdr) : 0;
	struct pollfd wait = { .fd = tun_open(device, vnet), .events = POLLIN };
	ready();
	while (!stopped) {
		int n = read(wait.fd, buffer, sizeof buffer);
		if (n < 0) {
			poll(&wait, 1, 100);
			continue;
		}
		if (answer(buffer + head, n - head)) {
			memset(buffer, 0, head);
			(void)!write(wait.fd, buffer, n);
		}
	}
	return 0;
}
