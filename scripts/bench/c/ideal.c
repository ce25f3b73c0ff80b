/* ideal: the limit of a userspace TCP on TUN, for upper bounds only. It takes every short cut: in order or not at all, no congestion
 * control, no reassembly, no SACK, no timestamps, SYN-ACKs without a trace (the ISN is a keyed hash, the first ACK makes the connection),
 * answers computed in the packet's own turn, no TIME_WAIT. Ports: 7 echo, 9 discard, 19 chargen, 80 HTTP.
 *
 *   ideal -i DEVICE [-V] [-W WINDOW] [-c CPU] [-d SECONDS] [-s]
 *
 * -V: with virtio_net_hdr (frames of up to 64 KiB and open checksums both ways); -s: spin on the device instead of sleeping.
 * Without -V a window above txqueuelen * MSS overruns the device's ring. */
#include "common.h"

enum { BUCKETS = 1 << 16, MTU = 1500, MSS = MTU - 40, WSCALE = 8, HEAD = sizeof(struct virtio_net_hdr), MOST_FRAME = 65495 };
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
static const uint64_t STALLED_NS = 200000000, LOOK_EVERY_NS = 50000000;

/* Addresses and ports in network order, sequence numbers in host order. */
typedef struct conn {
	struct conn *next;
	uint32_t peer, own;
	uint16_t peer_port, own_port;
	uint32_t rcv_nxt, snd_una, snd_nxt, wnd;
	uint8_t fin_sent, fin_got, dupacks;
	uint64_t progress;		/* when snd_una last moved */
} conn_t;

static conn_t *bucket[BUCKETS], *spare;
static int fd, vnet, peer_wscale = 7;
static uint32_t window = 4 << 20;
static uint8_t in[70000], reply[70000], bulk[70000];	/* a frame to send: HEAD, IP 20, TCP 20, payload */

static inline uint16_t load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return ntohs(v); }
static inline uint32_t load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return ntohl(v); }

static unsigned slot(uint32_t peer, uint16_t peer_port, uint16_t own_port)
{
	return ((uint64_t)peer << 32 | (uint32_t)peer_port << 16 | own_port) * 0x9e3779b97f4a7c15 >> 48;
}

static conn_t *find(uint32_t peer, uint16_t peer_port, uint16_t own_port)
{
	conn_t *c = bucket[slot(peer, peer_port, own_port)];
	while (c && (c->peer != peer || c->peer_port != peer_port || c->own_port != own_port))
		c = c->next;
	return c;
}

static void forget(conn_t *c)
{
	conn_t **p = &bucket[slot(c->peer, c->peer_port, c->own_port)];
	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	c->next = spare;
	spare = c;
}

static conn_t *new_conn(void)
{
	conn_t *c = spare ? spare : malloc(sizeof *c);
	if (spare)
		spare = c->next;
	memset(c, 0, sizeof *c);
	return c;
}

/* Writes the frame whose payload (n bytes, after thl bytes of TCP header) lies in b. c: addresses, acknowledgment. */
static void emit(const conn_t *c, uint8_t *b, uint32_t seq, int flags, uint16_t wnd, int thl, int n)
{
	static uint16_t id;
	struct virtio_net_hdr *h = (void *)b;
	uint8_t *ip = b + HEAD, *tcp = ip + 20;
	uint16_t words[6] = { htons(0x4500), htons(20 + thl + n), id++, htons(0x4000), htons(0x4006), 0 }, sum;
	uint32_t ack = htonl(c->rcv_nxt);
	uint64_t pseudo;
	memcpy(ip, words, 12);
	memcpy(ip + 12, &c->own, 4);
	memcpy(ip + 16, &c->peer, 4);
	sum = ~fold(sum_bytes(ip, 20, 0));
	memcpy(ip + 10, &sum, 2);
	seq = htonl(seq);
	wnd = htons(wnd);
	memcpy(tcp, &c->own_port, 2);
	memcpy(tcp + 2, &c->peer_port, 2);
	memcpy(tcp + 4, &seq, 4);
	memcpy(tcp + 8, &ack, 4);
	tcp[12] = thl << 2;
	tcp[13] = flags;
	memcpy(tcp + 14, &wnd, 2);
	memset(tcp + 16, 0, 4);
	pseudo = sum_bytes(ip + 12, 8, htons(IPPROTO_TCP)) + htons(thl + n);
	sum = vnet ? fold(pseudo) : (uint16_t)~fold(sum_bytes(tcp, thl + n, pseudo));
	memcpy(tcp + 16, &sum, 2);
	memset(h, 0, HEAD);
	if (vnet) {
		h->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		h->csum_start = 20;
		h->csum_offset = 16;
		h->hdr_len = 20 + thl;
		h->gso_type = n > MSS ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE;
		h->gso_size = n > MSS ? MSS : 0;
	}
	(void)!write(fd, vnet ? b : ip, 20 + thl + n + (vnet ? HEAD : 0));
}

static void send_segment(conn_t *c, uint8_t *b, int flags, int n)
{
	uint32_t wnd = window >> WSCALE;
	emit(c, b, c->snd_nxt, flags, wnd > 65535 ? 65535 : wnd, 20, n);
	c->snd_nxt += n + (flags & FIN);
}

/* Sends what the peer's window takes. */
static void pump(conn_t *c)
{
	uint32_t frame = vnet ? MOST_FRAME / MSS * MSS : MSS;
	while (!c->fin_sent && c->snd_nxt - c->snd_una + frame <= c->wnd)
		send_segment(c, bulk, ACK, frame);
}

static void answer_syn(conn_t *c, const uint8_t *tcp, int thl, uint32_t isn)
{
	static const uint8_t options[8] = { 2, 4, MSS >> 8, MSS & 255, 1, 3, 3, WSCALE };
	for (int i = 20; i + 2 < thl && tcp[i]; i += tcp[i] == 1 ? 1 : tcp[i + 1] > 1 ? tcp[i + 1] : 2)
		if (tcp[i] == 3)
			peer_wscale = tcp[i + 2];
	c->rcv_nxt = load32(tcp + 4) + 1;
	memcpy(reply + HEAD + 40, options, sizeof options);
	emit(c, reply, isn, SYN | ACK, 65535, 28, 0);
}

static void data(conn_t *c, const uint8_t *p, int n, int flags)
{
	int port = ntohs(c->own_port), out = 0, last;
	const char *answer;
	if (port == ECHO) {
		memcpy(reply + HEAD + 40, p, n);
		send_segment(c, reply, ACK | PSH, n);
	} else if (port == HTTP) {
		last = memmem(p, n, "close", 5) != NULL;
		answer = last ? ANSWER_LAST : ANSWER_KEEP;
		for (const uint8_t *end = p + n; (p = memmem(p, end - p, "\r\n\r\n", 4)); p += 4) {
			memcpy(reply + HEAD + 40 + out, answer, strlen(answer));
			out += strlen(answer);
		}
		c->fin_sent |= last;
		send_segment(c, reply, ACK | PSH | (last ? FIN : 0), out);
	} else if (!(flags & FIN)) {
		send_segment(c, reply, ACK, 0);
	}
}

static void established(conn_t *c, const uint8_t *tcp, int thl, int n)
{
	uint32_t seq = load32(tcp + 4), ack = load32(tcp + 8);
	int flags = tcp[13];
	if ((int32_t)(ack - c->snd_una) > 0 && (int32_t)(ack - c->snd_nxt) <= 0) {
		c->snd_una = ack;
		c->dupacks = 0;
		c->progress = 0;
	} else if (n == 0 && ack == c->snd_una && ack != c->snd_nxt && ++c->dupacks == 3) {
		c->snd_nxt = c->snd_una;	/* go back N */
	}
	c->wnd = (uint32_t)load16(tcp + 14) << peer_wscale;
	if (n > 0 && seq != c->rcv_nxt) {
		send_segment(c, reply, ACK, 0);
		return;
	}
	if (n > 0) {
		c->rcv_nxt += n;
		data(c, tcp + thl, n, flags);
	}
	if (flags & FIN && seq + n == c->rcv_nxt) {
		c->rcv_nxt++;
		c->fin_got = 1;
		send_segment(c, reply, c->fin_sent ? ACK : ACK | FIN, 0);
		c->fin_sent = 1;
	}
	if (c->fin_got && c->fin_sent && c->snd_una == c->snd_nxt)
		forget(c);
	else if (c->own_port == htons(CHARGEN))
		pump(c);
}

static void receive(uint8_t *p, int n, int checked)
{
	conn_t key = { 0 }, *c;
	uint8_t *tcp = p + 20;
	uint32_t isn;
	int thl, port, total;
	if (n < 40 || p[0] != 0x45 || p[9] != IPPROTO_TCP || (total = load16(p + 2)) > n)
		return;
	if (!checked && fold(sum_bytes(tcp, total - 20, sum_bytes(p + 12, 8, htons(IPPROTO_TCP)) + htons(total - 20))) != 0xffff)
		return;
	memcpy(&key.peer, p + 12, 4);
	memcpy(&key.own, p + 16, 4);
	memcpy(&key.peer_port, tcp, 2);
	memcpy(&key.own_port, tcp + 2, 2);
	thl = (tcp[12] >> 4) * 4;
	port = ntohs(key.own_port);
	if (port != ECHO && port != DISCARD && port != CHARGEN && port != HTTP)
		return;
	c = find(key.peer, key.peer_port, key.own_port);
	isn = (uint32_t)siphash((uint64_t)key.peer << 32 | key.own, (uint32_t)key.peer_port << 16 | key.own_port, 3, 4);
	if (c && tcp[13] & (SYN | RST)) {
		forget(c);
		c = NULL;
	}
	if (tcp[13] & RST)
		return;
	if (tcp[13] & SYN) {
		answer_syn(&key, tcp, thl, isn);
		return;
	}
	if (!c) {
		if (load32(tcp + 8) != isn + 1)
			return;
		key.rcv_nxt = load32(tcp + 4);
		key.snd_una = key.snd_nxt = isn + 1;
		c = new_conn();
		*c = key;
		c->next = bucket[slot(c->peer, c->peer_port, c->own_port)];
		bucket[slot(c->peer, c->peer_port, c->own_port)] = c;
	}
	established(c, tcp, thl, total - 20 - thl);
}

/* A bulk sender whose window lies lost in the device's ring goes back to its start. */
static void look_at_stalled(uint64_t now)
{
	for (int i = 0; i < BUCKETS; i++)
		for (conn_t *c = bucket[i]; c; c = c->next) {
			if (c->own_port != htons(CHARGEN) || c->snd_una == c->snd_nxt)
				continue;
			if (c->progress == 0)
				c->progress = now;
			else if (now - c->progress > STALLED_NS) {
				c->snd_nxt = c->snd_una;
				c->progress = now;
				pump(c);
			}
		}
}

int main(int argc, char **argv)
{
	const char *device = "tun0";
	int cpu = -1, option, seconds = 60, spin = 0, head;
	uint64_t looked = 0, turns = 0;
	while ((option = getopt(argc, argv, "i:VW:c:d:s")) != -1)
		switch (option) {
		case 'i': device = optarg; break;
		case 'V': vnet = 1; break;
		case 'W': window = atoi(optarg); break;
		case 'c': cpu = atoi(optarg); break;
		case 'd': seconds = atoi(optarg); break;
		case 's': spin = 1; break;
		default: return 2;
		}
	stop_after(seconds);
	pin(cpu);
	memset(bulk, 'x', sizeof bulk);
	head = vnet ? HEAD : 0;
	fd = tun_open(device, vnet);
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	ready();
	while (!stopped) {
		int n = read(fd, in, sizeof in);
		if (n > head)
			receive(in + head, n - head, vnet && ((struct virtio_net_hdr *)in)->flags);
		else if (n < 0 && !spin)
			poll(&wait, 1, 100);
		if (++turns % 256 == 0 || (n < 0 && !spin)) {
			uint64_t now = now_ns();
			if (now - looked > LOOK_EVERY_NS) {
				looked = now;
				look_at_stalled(now);
			}
		}
	}
	return 0;
}
