/* lwIP for throughput: raw API, no operating system, large windows, pools that never run dry in these measurements. 1,000 pcbs: the pcb lists
 * are linear, so ten times as many in TIME-WAIT cost it a factor of four in connections/s. */
#ifndef BENCH_LWIPOPTS_H
#define BENCH_LWIPOPTS_H

#define NO_SYS 1
#define LWIP_SOCKET 0
#define LWIP_NETCONN 0
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_STATS 0

#define MEM_ALIGNMENT 8
#define MEM_LIBC_MALLOC 1
#define MEMP_NUM_TCP_PCB 1000
#define MEMP_NUM_TCP_PCB_LISTEN 8
#define MEMP_NUM_TCP_SEG 60000
#define MEMP_NUM_PBUF 60000
#define PBUF_POOL_SIZE 8000
#define PBUF_POOL_BUFSIZE 1536

#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_ARP 0
#define LWIP_ETHERNET 0
#define LWIP_UDP 0
#define LWIP_ICMP 1
#define LWIP_SINGLE_NETIF 1
#define LWIP_CHKSUM_ALGORITHM 3

#define TCP_MSS 1460
#define TCP_WND (512 * 1024)
#define TCP_SND_BUF (1024 * 1024)
#define TCP_SND_QUEUELEN 8000
#define TCP_SNDLOWAT 32768
#define TCP_SNDQUEUELOWAT 32
#define LWIP_WND_SCALE 1
#define TCP_RCV_SCALE 4
#define LWIP_TCP_SACK_OUT 1
#define TCP_LISTEN_BACKLOG 1
#define TCP_DEFAULT_LISTEN_BACKLOG 255
#endif
