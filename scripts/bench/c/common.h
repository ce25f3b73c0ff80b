/* What the measuring programs share: time, pinning, stop signals, checksums, a TUN queue, and the guard that keeps all traffic on
 * documentation addresses. Every program prints one JSON object a line on stdout; a server first prints "ready". */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ECHO = 7, DISCARD = 9, CHARGEN = 19, HTTP = 80 };

#define ANSWER_KEEP "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world\n"
#define ANSWER_LAST "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nHello, world\n"

static volatile sig_atomic_t stopped;

static inline void on_signal(int number) { (void)number; stopped = 1; }

/* Ends the program's loop on SIGTERM, SIGINT and, whatever the peer does, after so many seconds. */
static inline void stop_after(unsigned seconds)
{
	struct sigaction act = { .sa_handler = on_signal };	/* no SA_RESTART: a blocked call returns */
	sigaction(SIGINT, &act, NULL);
	sigaction(SIGTERM, &act, NULL);
	sigaction(SIGALRM, &act, NULL);
	signal(SIGPIPE, SIG_IGN);
	alarm(seconds);
}

static inline void fail(const char *what)
{
	perror(what);
	exit(1);
}

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static inline double now_s(void) { return now_ns() * 1e-9; }

static inline void pin(int cpu)
{
	cpu_set_t set;
	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		fail("sched_setaffinity");
}

static inline void many_files(void)
{
	struct rlimit most = { 1 << 20, 1 << 20 };
	if (setrlimit(RLIMIT_NOFILE, &most)) {
		getrlimit(RLIMIT_NOFILE, &most);
		most.rlim_cur = most.rlim_max;
		setrlimit(RLIMIT_NOFILE, &most);
	}
}

/* An IPv4 address in host order; only those set aside for documentation (RFC 5737) are taken. */
static inline uint32_t documentation_address(const char *text)
{
	struct in_addr a;
	uint32_t net;
	if (inet_pton(AF_INET, text, &a) != 1)
		goto refused;
	net = ntohl(a.s_addr) & 0xffffff00;
	if (net == 0xc0000200 || net == 0xc6336400 || net == 0xcb007100)
		return ntohl(a.s_addr);
refused:
	fprintf(stderr, "%s: only documentation addresses (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24)\n", text);
	exit(2);
}

/* One's complement sum of a buffer, in memory order; fold makes 16 bits of it (not complemented). */
static inline uint64_t sum_bytes(const void *p, size_t n, uint64_t sum)
{
	const uint8_t *b = p;
	uint32_t w[8] = { 0 };
	for (; n >= 32; b += 32, n -= 32) {
		memcpy(w, b, 32);
		sum += (uint64_t)w[0] + w[1] + w[2] + w[3] + w[4] + w[5] + w[6] + w[7];
	}
	for (; n >= 4; b += 4, n -= 4) {
		memcpy(w, b, 4);
		sum += w[0];
	}
	if (n) {
		w[0] = 0;
		memcpy(w, b, n);
		sum += w[0];
	}
	return sum;
}

static inline uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* SipHash-2-4 of the 12 bytes of a connection's addresses and ports. */
static inline uint64_t siphash(uint64_t addresses, uint32_t ports, uint64_t k0, uint64_t k1)
{
	uint64_t v[4] = { k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573 };
	uint64_t words[2] = { addresses, ports | (uint64_t)12 << 56 };
#define ROTATED(x, b) ((x) << (b) | (x) >> (64 - (b)))
#define ROUND() do { \
		v[0] += v[1]; v[1] = ROTATED(v[1], 13) ^ v[0]; v[0] = ROTATED(v[0], 32); \
		v[2] += v[3]; v[3] = ROTATED(v[3], 16) ^ v[2]; \
		v[0] += v[3]; v[3] = ROTATED(v[3], 21) ^ v[0]; \
		v[2] += v[1]; v[1] = ROTATED(v[1], 17) ^ v[2]; v[2] = ROTATED(v[2], 32); \
	} while (0)
	for (int i = 0; i < 2; i++) {
		v[3] ^= words[i];
		ROUND(); ROUND();
		v[0] ^= words[i];
	}
	v[2] ^= 0xff;
	ROUND(); ROUND(); ROUND(); ROUND();
#undef ROUND
#undef ROTATED
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* The only queue of a TUN device, non-blocking. vnet: each packet has a virtio_net_hdr, segmentation and checksums are left to the other
 * side. A persistent device keeps its last opener's offload bits, so they are set in both cases. */
static inline int tun_open(const char *name, int vnet)
{
	struct ifreq r = { 0 };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK), header = sizeof(struct virtio_net_hdr);
	if (fd < 0)
		fail("/dev/net/tun");
	snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
	r.ifr_flags = IFF_TUN | IFF_NO_PI | (vnet ? IFF_VNET_HDR : 0);
	if (ioctl(fd, TUNSETIFF, &r))
		fail("TUNSETIFF");
	if (vnet && ioctl(fd, TUNSETVNETHDRSZ, &header))
		fail("TUNSETVNETHDRSZ");
	if (ioctl(fd, TUNSETOFFLOAD, vnet ? TUN_F_CSUM | TUN_F_TSO4 : 0))
		fail("TUNSETOFFLOAD");
	return fd;
}

static inline void ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

/* Prints ', "waited_s": ...' for the JSON object that is being printed: how long this process was ready to run and did not, because others
 * had its core. */
static inline void print_waited(void)
{
	unsigned long long ran, waited = 0;
	FILE *f = fopen("/proc/self/schedstat", "r");
	if (f && fscanf(f, "%llu %llu", &ran, &waited) == 2)
		printf(", \"waited_s\": %.4f", waited * 1e-9);
	if (f)
		fclose(f);
}

/* Latencies: kept as they are, sorted once at the end. */
typedef struct { uint32_t *ns; long n, most; } latencies_t;

static inline void latency_add(latencies_t *l, uint64_t ns)
{
	if (!l->ns) {
		l->most = 1 << 22;
		l->ns = malloc(l->most * sizeof *l->ns);
	}
	if (l->n < l->most)
		l->ns[l->n++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static inline int latency_order(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

/* The same for ', "p50_us": ...'. */
static inline void latency_print(latencies_t *l)
{
	if (l->n == 0)
		return;
	qsort(l->ns, l->n, sizeof *l->ns, latency_order);
	printf(", \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.1f", l->ns[l->n / 2] / 1e3, l->ns[l->n * 9 / 10] / 1e3,
	       l->ns[l->n * 99 / 100] / 1e3, l->ns[l->n - 1] / 1e3);
}
#endif
