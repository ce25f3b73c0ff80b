/* load: a client on kernel sockets that measures whatever serves ports 7 (echo), 9 (discard), 19 (chargen) and 80 (HTTP).
 *
 *   load WORK -t ADDRESS [-C CONCURRENT] [-P DEPTH] [-d SECONDS] [-c CPU] [-s] [-w SECONDS]
 *
 * WORK  echo      1 byte there and back on one connection: round trips and their latency (-s: spin on the socket)
 *       connect   connect, GET with "Connection: close", answer, FIN, close; CONCURRENT at a time
 *       request   GETs on CONCURRENT kept connections, DEPTH in flight on each
 *       up, down  bulk on CONCURRENT connections to the discard port, from the chargen port; the first fifth is not counted
 *       hold      opens CONCURRENT connections, prints the line, and holds them until it is told to end
 *       probe     one connect() after the other, 1 ms apart: the latency of connect
 * Sources are spread over 192.0.2.1-254 for connect, hold and probe. -w: give up on what has not connected by then. */
#include "common.h"
#include <netinet/tcp.h>
#include <sys/epoll.h>

enum { BUFFER = 1 << 18, MOST_DEPTH = 64, HOLD_AT_ONCE = 64, MOST_SECONDS = 120, REFUSED_PAUSE_US = 200, WARM_UP = 10 };

#define GET_LAST "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
#define GET_KEEP "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

typedef struct { int fd, got, sent; uint64_t start; } slot_t;

static struct sockaddr_in to = { .sin_family = AF_INET };
static int concurrent = 1, depth = 1, spin;
static double seconds = 1, connect_seconds = 10;
static latencies_t latencies;
static char buffer[BUFFER];

static int stream(int port, int flags, int spread)
{
	static unsigned next;
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | flags, 0);
	if (fd < 0)
		fail("socket");
	to.sin_port = htons(port);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (spread) {
		struct sockaddr_in from = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc0000200 | (1 + next++ % 254)) };
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, (void *)&from, sizeof from))
			fail("bind");
	}
	return fd;
}

/* A connection made by a blocking connect(); the stack may need a moment to come up, so refusals are tried again for a while. */
static int connected(int port)
{
	double end = now_s() + connect_seconds;
	while (!stopped) {
		int fd = stream(port, 0, 0);
		if (connect(fd, (void *)&to, sizeof to) == 0)
			return fd;
		if (now_s() > end)
			fail("connect");
		close(fd);
		usleep(20000);
	}
	exit(1);
}

/* Ends the line of JSON. */
static void end_line(void)
{
	latency_print(&latencies);
	print_waited();
	printf("}\n");
}

static void watch(int ep, int fd, uint32_t events, void *what)
{
	struct epoll_event e = { .events = events, .data.ptr = what };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
		fail("epoll_ctl");
}

/* ---- echo ---------------------------------------------------------------------------------------------------------------- */
static void echo(void)
{
	int fd = connected(ECHO), n = 0;
	double start, end;
	char byte = 'x';
	if (spin)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	start = now_s();
	end = start + seconds;
	for (; !stopped && now_s() < end; n++) {
		uint64_t before = now_ns();
		if (send(fd, &byte, 1, 0) != 1)
			fail("send");
		while (recv(fd, &byte, 1, 0) != 1)
			if (errno != EAGAIN || stopped)
				fail("recv");
		if (n >= WARM_UP)
			latency_add(&latencies, now_ns() - before);
	}
	printf("{\"per_s\": %.1f", n / (now_s() - start));
	end_line();
}

/* ---- connect ------------------------------------------------------------------------------------------------------------- */
static void begin(int ep, slot_t *s)
{
	s->fd = stream(HTTP, SOCK_NONBLOCK, 1);
	s->got = s->sent = 0;
	s->start = now_ns();
	if (connect(s->fd, (void *)&to, sizeof to) && errno != EINPROGRESS)
		fail("connect");
	watch(ep, s->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, s);
}

/* What became of the exchange: 0 it goes on, 1 it ended well, -1 it failed. */
static int advance(slot_t *s, uint32_t events)
{
	if (events & EPOLLERR)
		return -1;
	if (!s->sent && events & EPOLLOUT) {
		s->sent = 1;
		if (send(s->fd, GET_LAST, sizeof GET_LAST - 1, 0) < 0)
			return -1;
	}
	while (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP)) {
		int n = recv(s->fd, buffer, sizeof buffer, 0);
		if (n == 0)
			return s->got > 0 ? 1 : -1;
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		s->got += n;
		if (!(events & EPOLLRDHUP))
			return 0;		/* edge-triggered: the FIN makes an event of its own */
	}
	return 0;
}

static void connects(void)
{
	slot_t *slots = calloc(concurrent, sizeof *slots);
	struct epoll_event events[256];
	int ep = epoll_create1(0);
	long done = 0, failed = 0;
	double start = now_s();
	for (int i = 0; i < concurrent; i++)
		begin(ep, &slots[i]);
	while (!stopped && now_s() < start + seconds) {
		int n = epoll_wait(ep, events, 256, 100);
		for (int i = 0; i < n; i++) {
			slot_t *s = events[i].data.ptr;
			int end = advance(s, events[i].events);
			if (end == 0)
				continue;
			if (end > 0)
				latency_add(&latencies, now_ns() - s->start);
			else
				usleep(REFUSED_PAUSE_US);	/* refused at once: do not turn into a SYN flood */
			done += end > 0;
			failed += end < 0;
			close(s->fd);
			begin(ep, s);
		}
	}
	printf("{\"per_s\": %.1f, \"failed\": %ld", done / (now_s() - start), failed);
	end_line();
}

/* ---- request ------------------------------------------------------------------------------------------------------------- */
/* The length of one answer, learnt from the first. */
static int answer_length(int fd)
{
	int got = 0, n;
	char *body, *length;
	if (send(fd, GET_KEEP, sizeof GET_KEEP - 1, 0) < 0)
		fail("send");
	while ((n = recv(fd, buffer + got, sizeof buffer - 1 - got, 0)) > 0) {
		buffer[got += n] = 0;
		body = strstr(buffer, "\r\n\r\n");
		length = strcasestr(buffer, "content-length:");
		if (body && length && got >= body + 4 - buffer + atoi(length + 15))
			return body + 4 - buffer + atoi(length + 15);
	}
	fail("no answer");
	return 0;
}

static void requests(void)
{
	static char ask[MOST_DEPTH * sizeof GET_KEEP];
	slot_t *slots = calloc(concurrent, sizeof *slots);
	struct epoll_event events[256];
	int ep = epoll_create1(0), length = 0, size = depth * (sizeof GET_KEEP - 1);
	long done = 0;
	double start;
	for (int i = 0; i < depth; i++)
		memcpy(ask + i * (sizeof GET_KEEP - 1), GET_KEEP, sizeof GET_KEEP - 1);
	for (int i = 0; i < concurrent; i++) {
		slots[i].fd = connected(HTTP);
		length = answer_length(slots[i].fd);
		fcntl(slots[i].fd, F_SETFL, O_NONBLOCK);
		watch(ep, slots[i].fd, EPOLLIN, &slots[i]);
	}
	start = now_s();
	for (int i = 0; i < concurrent; i++) {
		slots[i].start = now_ns();
		if (send(slots[i].fd, ask, size, 0) != size)
			fail("send");
	}
	while (!stopped && now_s() < start + seconds) {
		int n = epoll_wait(ep, events, 256, 100);
		for (int i = 0; i < n; i++) {
			slot_t *s = events[i].data.ptr;
			int k = recv(s->fd, buffer, sizeof buffer, 0);
			if (k == 0 || (k < 0 && errno != EAGAIN))
				fail("connection lost");
			s->got += k > 0 ? k : 0;
			if (s->got < length * depth)
				continue;
			latency_add(&latencies, now_ns() - s->start);
			done += depth;
			s->got = 0;
			s->start = now_ns();
			if (send(s->fd, ask, size, 0) != size)
				fail("send");
		}
	}
	printf("{\"per_s\": %.1f", done / (now_s() - start));
	end_line();
}

/* ---- bulk ---------------------------------------------------------------------------------------------------------------- */
static void bulk(int up)
{
	int *fds = calloc(concurrent, sizeof *fds), ep = epoll_create1(0);
	struct epoll_event events[64];
	struct tcp_info info = { 0 };
	socklen_t size = sizeof info;
	uint64_t bytes = 0, warm_bytes = 0;
	double start, now, warm = 0;
	for (int i = 0; i < concurrent; i++) {
		fds[i] = connected(up ? DISCARD : CHARGEN);
		fcntl(fds[i], F_SETFL, O_NONBLOCK);
		watch(ep, fds[i], up ? EPOLLOUT : EPOLLIN, &fds[i]);
	}
	start = now = now_s();
	while (!stopped && (now = now_s()) < start + seconds) {
		int n = epoll_wait(ep, events, 64, 100);
		for (int i = 0; i < n; i++) {
			int fd = *(int *)events[i].data.ptr;
			long k = up ? send(fd, buffer, sizeof buffer, 0) : recv(fd, buffer, sizeof buffer, 0);
			if (k == 0 || (k < 0 && errno != EAGAIN))
				fail("stream lost");
			bytes += k > 0 ? k : 0;
		}
		if (warm == 0 && now >= start + seconds / 5) {
			warm = now;
			warm_bytes = bytes;
		}
	}
	getsockopt(fds[0], IPPROTO_TCP, TCP_INFO, &info, &size);
	printf("{\"mb_per_s\": %.2f, \"bytes\": %lu, \"retransmitted\": %u, \"rtt_us\": %u", (bytes - warm_bytes) / (now - warm) / 1e6,
	       (unsigned long)bytes, info.tcpi_total_retrans, info.tcpi_rtt);
	end_line();
}

/* ---- hold, probe --------------------------------------------------------------------------------------------------------- */
static void hold(void)
{
	slot_t *slots = calloc(concurrent, sizeof *slots);
	struct epoll_event events[HOLD_AT_ONCE];
	int ep = epoll_create1(0), open = 0, next = 0, failed = 0;
	double start = now_s(), end = start + connect_seconds;
	for (; next < concurrent && next < HOLD_AT_ONCE; next++) {
		slots[next].fd = stream(DISCARD, SOCK_NONBLOCK, 1);
		if (connect(slots[next].fd, (void *)&to, sizeof to) && errno != EINPROGRESS)
			fail("connect");
		watch(ep, slots[next].fd, EPOLLOUT, &slots[next]);
	}
	while (!stopped && open + failed < concurrent && now_s() < end) {
		int n = epoll_wait(ep, events, HOLD_AT_ONCE, 100);
		for (int i = 0; i < n; i++) {
			slot_t *s = events[i].data.ptr;
			int bad = (events[i].events & (EPOLLERR | EPOLLHUP)) != 0;
			epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, NULL);
			open += !bad;
			failed += bad;
			if (next == concurrent)
				continue;
			s = &slots[next++];
			s->fd = stream(DISCARD, SOCK_NONBLOCK, 1);
			if (connect(s->fd, (void *)&to, sizeof to) && errno != EINPROGRESS)
				fail("connect");
			watch(ep, s->fd, EPOLLOUT, s);
		}
	}
	printf("{\"open\": %d, \"failed\": %d, \"seconds\": %.3f}\n", open, failed, now_s() - start);
	fflush(stdout);
	while (!stopped)
		pause();
}

static void probe(void)
{
	long failed = 0, n = 0;
	double end = now_s() + seconds;
	for (; !stopped && now_s() < end; n++) {
		struct timeval limit = { 1, 0 };
		struct linger hard = { 1, 0 };
		int fd = stream(HTTP, 0, 1);
		uint64_t before;
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
		before = now_ns();
		if (connect(fd, (void *)&to, sizeof to))
			failed++;
		else
			latency_add(&latencies, now_ns() - before);
		close(fd);
		usleep(1000);
	}
	printf("{\"connects\": %ld, \"failed\": %ld", n, failed);
	end_line();
}

int main(int argc, char **argv)
{
	const char *work = argc > 1 ? argv[1] : "";
	int cpu = -1, option, limit;
	optind = 2;
	while (argc > 2 && (option = getopt(argc, argv, "t:C:P:d:c:sw:")) != -1)
		switch (option) {
		case 't': to.sin_addr.s_addr = htonl(documentation_address(optarg)); break;
		case 'C': concurrent = atoi(optarg); break;
		case 'P': depth = atoi(optarg); break;
		case 'd': seconds = atof(optarg); break;
		case 'c': cpu = atoi(optarg); break;
		case 's': spin = 1; break;
		case 'w': connect_seconds = atof(optarg); break;
		default: return 2;
		}
	if (!to.sin_addr.s_addr || seconds > MOST_SECONDS || concurrent < 1 || depth < 1 || depth > MOST_DEPTH)
		return fprintf(stderr, "see the head of load.c\n"), 2;
	limit = (int)(strcmp(work, "hold") ? seconds + connect_seconds : MOST_SECONDS) + 5;
	stop_after(limit);
	many_files();
	pin(cpu);
	memset(buffer, 'x', sizeof buffer);
	if (!strcmp(work, "echo"))
		echo();
	else if (!strcmp(work, "connect"))
		connects();
	else if (!strcmp(work, "request"))
		requests();
	else if (!strcmp(work, "up") || !strcmp(work, "down"))
		bulk(!strcmp(work, "up"));
	else if (!strcmp(work, "hold"))
		hold();
	else if (!strcmp(work, "probe"))
		probe();
	else
		return fprintf(stderr, "see the head of load.c\n"), 2;
	return 0;
}
