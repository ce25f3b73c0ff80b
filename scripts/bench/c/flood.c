/* flood: a bounded SYN generator. Each SYN is a new client's: the n-th comes from 203.0.113.(1 + n % 254), port 1024 + n / 254.
 *
 *   flood -t ADDRESS [-p PORT] [-d SECONDS] [-n SYNS] [-r PER_SECOND] [-o FIRST] [-c CPU]
 *
 * 60-byte SYNs (MSS, SACK-permitted, timestamps, window scale) with full checksums through a raw socket, 64 a call. Ends after -d seconds
 * (at most 30) or -n SYNs (at most 10 million), whichever comes first. Only documentation addresses. */
#include "common.h"

enum { LENGTH = 60, BATCH = 64, ADDRESSES = 254, PORTS = 64512, MOST_SECONDS = 30, MOST_SYNS = 10000000 };

static uint8_t packets[BATCH][LENGTH];
static uint64_t ip_sum, tcp_sum;	/* of the fields that do not change */

static void make_template(uint32_t to, uint16_t port)
{
	static const uint8_t options[20] = { 2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7 };
	uint8_t *p = packets[0];
	uint16_t pseudo[2] = { htons(IPPROTO_TCP), htons(LENGTH - 20) };
	to = htonl(to);
	port = htons(port);
	p[0] = 0x45;
	p[3] = LENGTH;
	p[6] = 0x40;
	p[8] = 64;
	p[9] = IPPROTO_TCP;
	memcpy(p + 16, &to, 4);
	memcpy(p + 22, &port, 2);
	p[32] = (LENGTH - 20) / 4 << 4;
	p[33] = 2;
	p[34] = p[35] = 0xff;
	memcpy(p + 40, options, sizeof options);
	ip_sum = sum_bytes(p, 20, 0);
	tcp_sum = sum_bytes(p + 20, LENGTH - 20, sum_bytes(&to, 4, sum_bytes(pseudo, 4, 0)));
	for (int i = 1; i < BATCH; i++)
		memcpy(packets[i], p, LENGTH);
}

static void make_syn(uint8_t *p, uint64_t n)
{
	uint32_t from = htonl(0xcb007100 | (1 + n % ADDRESSES)), seq = (uint32_t)(n * 2654435761u);
	uint16_t port = htons(1024 + n / ADDRESSES % PORTS), id = (uint16_t)n, sum;
	memcpy(p + 4, &id, 2);
	memcpy(p + 12, &from, 4);
	sum = ~fold(ip_sum + id + from);
	memcpy(p + 10, &sum, 2);
	memcpy(p + 20, &port, 2);
	memcpy(p + 24, &seq, 4);
	sum = ~fold(tcp_sum + from + port + seq);
	memcpy(p + 36, &sum, 2);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct mmsghdr messages[BATCH] = { 0 };
	struct iovec parts[BATCH];
	double seconds = 1, rate = 0, start, now;
	long most = MOST_SYNS, sent = 0, refused = 0;
	int port = HTTP, cpu = -1, batch = BATCH, option, fd, size = 8 << 20;
	uint64_t first = 0;
	uint32_t address = 0;
	while ((option = getopt(argc, argv, "t:p:d:n:r:o:c:")) != -1)
		switch (option) {
		case 't': address = documentation_address(optarg); break;
		case 'p': port = atoi(optarg); break;
		case 'd': seconds = atof(optarg); break;
		case 'n': most = atol(optarg); break;
		case 'r': rate = atof(optarg); break;
		case 'o': first = strtoull(optarg, NULL, 10); break;
		case 'c': cpu = atoi(optarg); break;
		default: return 2;
		}
	if (!address || seconds > MOST_SECONDS || most > MOST_SYNS)
		return fprintf(stderr, "see the head of flood.c\n"), 2;
	if (rate > 0 && rate < 100000)
		batch = 16;
	stop_after((unsigned)seconds + 2);
	pin(cpu);
	if ((fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW)) < 0)
		fail("raw socket");
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
	to.sin_addr.s_addr = htonl(address);
	make_template(address, port);
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ packets[i], LENGTH };
		messages[i].msg_hdr = (struct msghdr){ .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	start = now = now_s();
	while (!stopped && sent < most && (now = now_s()) - start < seconds) {
		if (rate > 0 && now < start + sent / rate)
			continue;
		int n = most - sent < batch ? (int)(most - sent) : batch;
		for (int i = 0; i < n; i++)
			make_syn(packets[i], first + sent + i);
		for (int done = 0; done < n;) {
			int k = sendmmsg(fd, messages + done, n - done, 0);
			if (k < 0 && errno != ENOBUFS && errno != EAGAIN)
				fail("sendmmsg");
			refused += k < 0;
			done += k < 0 ? 1 : k;
		}
		sent += n;
	}
	now = now_s();
	printf("{\"sent\": %ld, \"refused\": %ld, \"seconds\": %.4f, \"per_s\": %.0f", sent, refused, now - start, sent / (now - start));
	print_waited();
	printf("}\n");
	return 0;
}
