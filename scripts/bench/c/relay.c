/* relay - a path between two TUN devices: the same seeded loss, delay and reordering in both directions.
 *
 * usage: relay -a NETNS:DEV -b NETNS:DEV [-l LOSS] [-d DELAY_MS] [-r REORDER] [-j LATE_MS] [-s SEED]
 *
 *   -l, -r   probabilities (0.01 is 1 %), per packet
 *   -d       one-way delay; -j: what a reordered packet waits longer, so that those behind it overtake (negative:
 *            shorter, so that it overtakes)
 *
 * Both devices are made if they are missing (no offloads: one packet a read). Prints "ready" and relays until a signal; then one JSON line of
 * counters per direction. Fates depend on the seed and the number of the packet in its direction only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 2048, SLOTS = 1 << 14 };

struct packet {
	int64_t due;
	int len;
	uint8_t bytes[MTU];
};

/* Packets of one direction, ordered by the time they are due; ties in the order of arrival. */
struct path {
	int from, to;
	uint64_t count, lost, late, full, sent, refused;
	uint64_t random;
	unsigned head, used;
	struct packet *ring;
};

static double loss, reorder;
static int64_t delay_ns = 20000000, late_ns = 3000000;
static volatile sig_atomic_t ended;

static void end(int sig)
{
	(void)sig;
	ended = 1;
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double draw(struct path *p)		/* splitmix64, uniform in [0, 1) */
{
	uint64_t z = (p->random += 0x9e3779b97f4a7c15ULL);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return ((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static void fail(const char *what)
{
	fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int device(char *place)			/* NETNS:DEV */
{
	char path[256], *name = strchr(place, ':');
	struct ifreq ifr = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	int ns, home, fd;

	if (!name)
		fail("a device is written NETNS:DEV");
	*name++ = 0;
	snprintf(path, sizeof(path), "/run/netns/%s", place);
	home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	ns = open(path, O_RDONLY | O_CLOEXEC);
	if (home < 0 || ns < 0 || setns(ns, CLONE_NEWNET) < 0)
		fail(path);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0 || ioctl(fd, TUNSETOFFLOAD, 0) < 0)
		fail(name);
	if (setns(home, CLONE_NEWNET) < 0)
		fail("setns");
	close(ns);
	close(home);
	return fd;
}

static void insert(struct path *p, int64_t due, const uint8_t *bytes, int len)
{
	unsigned i = p->used++;
	struct packet *slot;

	/* Nearly sorted already: what is due later than the new one moves up by one. */
	while (i && p->ring[(p->head + i - 1) % SLOTS].due > due) {
		slot = &p->ring[(p->head + i) % SLOTS];
		memcpy(slot, &p->ring[(p->head + i - 1) % SLOTS], sizeof(*slot));
		i--;
	}
	slot = &p->ring[(p->head + i) % SLOTS];
	slot->due = due;
	slot->len = len;
	memcpy(slot->bytes, bytes, len);
}

static void take(struct path *p)
{
	uint8_t buf[MTU];
	double fate, order;
	int len;

	while ((len = read(p->from, buf, sizeof(buf))) > 0) {
		int64_t due = now_ns() + delay_ns;
		p->count++;
		fate = draw(p);
		order = draw(p);
		if (fate < loss) {
			p->lost++;
			continue;
		}
		if (p->used == SLOTS) {
			p->full++;
			continue;
		}
		if (order < reorder) {
			p->late++;
			due += late_ns;
		}
		insert(p, due, buf, len);
	}
}

static int64_t give(struct path *p, int64_t now)	/* returns when the next is due */
{
	while (p->used) {
		struct packet *first = &p->ring[p->head];
		if (first->due > now)
			return first->due;
		if (write(p->to, first->bytes, first->len) < 0)
			p->refused++;
		else
			p->sent++;
		p->head = (p->head + 1) % SLOTS;
		p->used--;
	}
	return INT64_MAX;
}

static void report(const char *name, const struct path *p)
{
	printf("{\"path\": \"%s\", \"packets\": %lu, \"lost\": %lu, \"reordered\": %lu, \"full\": %lu, \"sent\": %lu, \"refused\": %lu}\n", name,
	       (unsigned long)p->count, (unsigned long)p->lost, (unsigned long)p->late, (unsigned long)p->full, (unsigned long)p->sent,
	       (unsigned long)p->refused);
}

int main(int argc, char **argv)
{
	struct path way[2] = { { 0 } };
	char *place[2] = { NULL, NULL };
	uint64_t seed = 1;
	int c, i, fd[2];

	while ((c = getopt(argc, argv, "a:b:l:d:r:j:s:")) != -1) {
		switch (c) {
		case 'a': place[0] = optarg; break;
		case 'b': place[1] = optarg; break;
		case 'l': loss = atof(optarg); break;
		case 'd': delay_ns = atof(optarg) * 1e6; break;
		case 'r': reorder = atof(optarg); break;
		case 'j': late_ns = atof(optarg) * 1e6; break;
		case 's': seed = strtoull(optarg, NULL, 0); break;
		default: return 2;
		}
	}
	if (!place[0] || !place[1]) {
		fprintf(stderr, "relay: -a NETNS:DEV and -b NETNS:DEV are needed\n");
		return 2;
	}
	for (i = 0; i < 2; i++)
		fd[i] = device(place[i]);
	for (i = 0; i < 2; i++) {
		way[i].from = fd[i];
		way[i].to = fd[!i];
		way[i].random = seed * 2 + i;
		way[i].ring = calloc(SLOTS, sizeof(struct packet));
		if (!way[i].ring)
			fail("memory");
	}
	signal(SIGTERM, end);
	signal(SIGINT, end);
	printf("ready\n");
	fflush(stdout);
	while (!ended) {
		struct pollfd fds[2] = { { fd[0], POLLIN, 0 }, { fd[1], POLLIN, 0 } };
		int64_t now = now_ns(), next = INT64_MAX, at;
		struct timespec wait, *limit = NULL;

		for (i = 0; i < 2; i++) {
			at = give(&way[i], now);
			next = at < next ? at : next;
		}
		if (next != INT64_MAX) {
			int64_t left = next - now_ns();
			left = left > 0 ? left : 0;
			wait.tv_sec = left / 1000000000;
			wait.tv_nsec = left % 1000000000;
			limit = &wait;
		}
		if (ppoll(fds, 2, limit, NULL) < 0 && errno != EINTR)
			fail("ppoll");
		for (i = 0; i < 2; i++)
			if (fds[i].revents)
				take(&way[i]);
	}
	report("a to b", &way[0]);
	report("b to a", &way[1]);
	return 0;
}
