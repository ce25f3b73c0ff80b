/* kernel: the kernel's own TCP behind a small server, one thread around epoll: echo (7), discard (9), chargen (19), HTTP (80).
 *
 *   kernel -a ADDRESS [-B BACKLOG] [-c CPU] [-d SECONDS] [-s] [-g]
 *
 * -s: spin instead of sleeping. -g: the answers to requests that came together leave by one send() (the server gathers them itself); without it
 * each leaves by its own, with MSG_MORE while more follow. */
#include "common.h"
#include <netinet/tcp.h>
#include <sys/epoll.h>

enum { LISTENER = 0x8000, BUFFER = 1 << 18 };

static uint16_t kind[1 << 20];		/* by descriptor: the port, LISTENER set on listening sockets */
static char in[BUFFER], bulk[BUFFER];
static int gather;

static void watch(int ep, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
		fail("epoll_ctl");
}

static void accept_all(int ep, int listener)
{
	int port = kind[listener] & ~LISTENER, one = 1;
	for (int i = 0; i < 64; i++) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
		if (fd < 0)
			return;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		kind[fd] = port;
		watch(ep, fd, port == CHARGEN ? EPOLLOUT | EPOLLRDHUP : EPOLLIN);
	}
}

static int send_gathered(int fd, const char *answer, int count)
{
	static char out[BUFFER];
	size_t length = strlen(answer), n = 0;
	for (; count > 0 && n + length <= sizeof out; count--, n += length)
		memcpy(out + n, answer, length);
	return n && send(fd, out, n, 0) < 0 ? -1 : 0;
}

static int send_each(int fd, const char *answer, int count)
{
	size_t length = strlen(answer);
	for (; count > 0; count--)
		if (send(fd, answer, length, count > 1 ? MSG_MORE : 0) < 0)
			return -1;
	return 0;
}

static void answer_http(int fd, char *p, char *end)
{
	int last = memmem(p, end - p, "close", 5) != NULL, count = 0;
	const char *answer = last ? ANSWER_LAST : ANSWER_KEEP;
	for (; (p = memmem(p, end - p, "\r\n\r\n", 4)); p += 4)
		count++;
	if ((gather ? send_gathered : send_each)(fd, answer, count) || last)
		close(fd);
}

static void serve(int ep, int fd, uint32_t events)
{
	int port = kind[fd], n;
	if (port & LISTENER) {
		accept_all(ep, fd);
		return;
	}
	if (port == CHARGEN) {
		if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP) || (send(fd, bulk, sizeof bulk, 0) < 0 && errno != EAGAIN))
			close(fd);
		return;
	}
	n = recv(fd, in, sizeof in, 0);
	if (n == 0 || (n < 0 && errno != EAGAIN))
		close(fd);
	else if (n > 0 && port == ECHO)
		(void)!send(fd, in, n, 0);
	else if (n > 0 && port == HTTP)
		answer_http(fd, in, in + n);
}

int main(int argc, char **argv)
{
	static const int ports[] = { ECHO, DISCARD, CHARGEN, HTTP };
	struct epoll_event events[256];
	int backlog = 4096, cpu = -1, option, seconds = 60, timeout = 200, one = 1, ep = epoll_create1(0);
	uint32_t address = 0;
	while ((option = getopt(argc, argv, "a:B:c:d:sg")) != -1)
		switch (option) {
		case 'a': address = documentation_address(optarg); break;
		case 'B': backlog = atoi(optarg); break;
		case 'c': cpu = atoi(optarg); break;
		case 'd': seconds = atoi(optarg); break;
		case 's': timeout = 0; break;
		case 'g': gather = 1; break;
		default: return 2;
		}
	stop_after(seconds);
	pin(cpu);
	many_files();
	memset(bulk, 'x', sizeof bulk);
	for (int i = 0; i < 4; i++) {
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(ports[i]), .sin_addr.s_addr = htonl(address) };
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(fd, (void *)&to, sizeof to) || listen(fd, backlog))
			fail("listen");
		kind[fd] = LISTENER | ports[i];
		watch(ep, fd, EPOLLIN);
	}
	ready();
	while (!stopped) {
		int n = epoll_wait(ep, events, 256, timeout);
		for (int i = 0; i < n; i++)
			serve(ep, events[i].data.fd, events[i].events);
	}
	return 0;
}
