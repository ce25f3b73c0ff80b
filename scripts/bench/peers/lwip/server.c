/* lwIP (raw API) on a TUN device behind a small server: echo (7), discard (9), chargen (19), HTTP (80).
 *
 *   server -i DEVICE -a ADDRESS -g GATEWAY [-c CPU] [-d SECONDS] [-s]          -s: spin on the device instead of sleeping
 *
 * lwIP has no segmentation offload, so the device is opened without virtio_net_hdr. Its backlog is 8 bits wide and it has no SYN cookies. */
#include "common.h"
#include <sys/uio.h>

#include "lwip/init.h"
#include "lwip/ip4.h"
#include "lwip/netif.h"
#include "lwip/priv/tcp_priv.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"

enum { BACKLOG = 255, BULK = 65535 / TCP_MSS * TCP_MSS, MOST_SLEEP_MS = 50 };

static int fd;
static char bulk[BULK];

u32_t sys_now(void)
{
	return (u32_t)(now_ns() / 1000000);
}

static err_t transmit(struct netif *netif, struct pbuf *p, const ip4_addr_t *to)
{
	struct iovec parts[64];
	int n = 0;
	(void)netif;
	(void)to;
	for (; p && n < 64; p = p->next)
		parts[n++] = (struct iovec){ p->payload, p->len };
	return writev(fd, parts, n) > 0 ? ERR_OK : ERR_IF;
}

static err_t netif_up(struct netif *netif)
{
	netif->name[0] = 't';
	netif->name[1] = 'n';
	netif->mtu = TCP_MSS + 40;
	netif->output = transmit;
	return ERR_OK;
}

static void end(struct tcp_pcb *pcb)
{
	tcp_arg(pcb, NULL);
	tcp_recv(pcb, NULL);
	tcp_sent(pcb, NULL);
	if (tcp_close(pcb) != ERR_OK)
		tcp_abort(pcb);
}

static void fill(struct tcp_pcb *pcb)
{
	while (tcp_sndbuf(pcb) >= BULK && tcp_sndqueuelen(pcb) < TCP_SND_QUEUELEN - 64)
		if (tcp_write(pcb, bulk, BULK, 0) != ERR_OK)
			break;
	tcp_output(pcb);
}

static err_t on_sent(void *port, struct tcp_pcb *pcb, u16_t n)
{
	(void)port;
	(void)n;
	fill(pcb);
	return ERR_OK;
}

/* Answers each request in the data; 1 if the last one said "close". */
static int http(struct tcp_pcb *pcb, char *p, char *stop)
{
	int last = memmem(p, stop - p, "close", 5) != NULL;
	const char *answer = last ? ANSWER_LAST : ANSWER_KEEP;
	for (; (p = memmem(p, stop - p, "\r\n\r\n", 4)); p += 4)
		tcp_write(pcb, answer, strlen(answer), TCP_WRITE_FLAG_COPY);
	return last;
}

static err_t on_received(void *port, struct tcp_pcb *pcb, struct pbuf *data, err_t error)
{
	int last = 0;
	if (!data || error != ERR_OK) {
		end(pcb);
		return ERR_OK;
	}
	if ((intptr_t)port == ECHO)
		for (struct pbuf *p = data; p; p = p->next)
			tcp_write(pcb, p->payload, p->len, TCP_WRITE_FLAG_COPY);
	else if ((intptr_t)port == HTTP)
		last = http(pcb, data->payload, (char *)data->payload + data->len);
	tcp_recved(pcb, data->tot_len);
	pbuf_free(data);
	if (last)
		end(pcb);
	else if ((intptr_t)port != DISCARD)
		tcp_output(pcb);
	return ERR_OK;
}

static err_t on_accepted(void *port, struct tcp_pcb *pcb, err_t error)
{
	if (error != ERR_OK || !pcb)
		return ERR_VAL;
	tcp_arg(pcb, port);
	tcp_recv(pcb, on_received);
	tcp_nagle_disable(pcb);
	if ((intptr_t)port == CHARGEN) {
		tcp_sent(pcb, on_sent);
		fill(pcb);
	}
	return ERR_OK;
}

static void listen_on(intptr_t port)
{
	struct tcp_pcb *pcb = tcp_new();
	if (tcp_bind(pcb, IP_ADDR_ANY, (u16_t)port) != ERR_OK || !(pcb = tcp_listen_with_backlog(pcb, BACKLOG)))
		fail("listen");
	tcp_arg(pcb, (void *)port);
	tcp_accept(pcb, on_accepted);
}

int main(int argc, char **argv)
{
	const char *device = "tun0", *address = NULL, *gateway = NULL;
	int cpu = -1, option, seconds = 60, spin = 0;
	struct pollfd wait = { .events = POLLIN };
	struct pbuf *p = NULL;
	struct netif netif;
	ip4_addr_t own, via, mask;
	unsigned turns = 0;
	while ((option = getopt(argc, argv, "i:a:g:c:d:s")) != -1)
		switch (option) {
		case 'i': device = optarg; break;
		case 'a': address = optarg; break;
		case 'g': gateway = optarg; break;
		case 'c': cpu = atoi(optarg); break;
		case 'd': seconds = atoi(optarg); break;
		case 's': spin = 1; break;
		default: return 2;
		}
	if (!address || !gateway || !ip4addr_aton(address, &own) || !ip4addr_aton(gateway, &via))
		return fprintf(stderr, "see the head of server.c\n"), 2;
	stop_after(seconds);
	pin(cpu);
	srandom((unsigned)now_ns());
	wait.fd = fd = tun_open(device, 0);
	lwip_init();
	IP4_ADDR(&mask, 255, 255, 255, 0);
	netif_add(&netif, &own, &mask, &via, NULL, netif_up, ip4_input);
	netif_set_default(&netif);
	netif_set_up(&netif);
	netif_set_link_up(&netif);
	listen_on(ECHO);
	listen_on(DISCARD);
	listen_on(CHARGEN);
	listen_on(HTTP);
	printf("ready %zu\n", sizeof(struct tcp_pcb));
	fflush(stdout);
	while (!stopped) {
		int n = -1;
		if (!p)
			p = pbuf_alloc(PBUF_RAW, TCP_MSS + 40, PBUF_POOL);
		if (p && (n = read(fd, p->payload, p->len)) > 0) {
			struct pbuf *got = p;
			p = NULL;
			pbuf_realloc(got, (u16_t)n);
			if (netif.input(got, &netif) != ERR_OK)
				pbuf_free(got);
		} else if (!spin) {
			u32_t ms = sys_timeouts_sleeptime();
			poll(&wait, 1, ms > MOST_SLEEP_MS ? MOST_SLEEP_MS : (int)ms);
		}
		if (++turns % 64 == 0 || n <= 0)
			sys_check_timeouts();
	}
	return 0;
}
