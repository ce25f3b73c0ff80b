"""The names a script may use for numbers, as strace prints them, with Linux's values.

Written out rather than taken from the `socket` module: a script means Linux's numbers wherever the
interpreter runs.  A name that is not here is an error at the place where it stands, never zero.
"""

from __future__ import annotations

ERRNO: dict[str, int] = {
    "EPERM": 1, "ENOENT": 2, "ESRCH": 3, "EINTR": 4, "EIO": 5, "ENXIO": 6, "E2BIG": 7, "ENOEXEC": 8,
    "EBADF": 9, "ECHILD": 10, "EAGAIN": 11, "EWOULDBLOCK": 11, "ENOMEM": 12, "EACCES": 13, "EFAULT": 14,
    "ENOTBLK": 15, "EBUSY": 16, "EEXIST": 17, "EXDEV": 18, "ENODEV": 19, "ENOTDIR": 20, "EISDIR": 21,
    "EINVAL": 22, "ENFILE": 23, "EMFILE": 24, "ENOTTY": 25, "ETXTBSY": 26, "EFBIG": 27, "ENOSPC": 28,
    "ESPIPE": 29, "EROFS": 30, "EMLINK": 31, "EPIPE": 32, "EDOM": 33, "ERANGE": 34, "EDEADLK": 35,
    "ENAMETOOLONG": 36, "ENOLCK": 37, "ENOSYS": 38, "ENOTEMPTY": 39, "ELOOP": 40, "ENOMSG": 42,
    "ENOSTR": 60, "ENODATA": 61, "ETIME": 62, "ENONET": 64, "EPROTO": 71, "EBADMSG": 74, "EOVERFLOW": 75,
    "EILSEQ": 84, "EUSERS": 87, "ENOTSOCK": 88, "EDESTADDRREQ": 89, "EMSGSIZE": 90, "EPROTOTYPE": 91,
    "ENOPROTOOPT": 92, "EPROTONOSUPPORT": 93, "ESOCKTNOSUPPORT": 94, "EOPNOTSUPP": 95, "ENOTSUP": 95,
    "EPFNOSUPPORT": 96, "EAFNOSUPPORT": 97, "EADDRINUSE": 98, "EADDRNOTAVAIL": 99, "ENETDOWN": 100,
    "ENETUNREACH": 101, "ENETRESET": 102, "ECONNABORTED": 103, "ECONNRESET": 104, "ENOBUFS": 105,
    "EISCONN": 106, "ENOTCONN": 107, "ESHUTDOWN": 108, "ETOOMANYREFS": 109, "ETIMEDOUT": 110,
    "ECONNREFUSED": 111, "EHOSTDOWN": 112, "EHOSTUNREACH": 113, "EALREADY": 114, "EINPROGRESS": 115,
    "ESTALE": 116, "EDQUOT": 122, "ECANCELED": 125, "EKEYREJECTED": 129,
}

_SOCKET = {
    "AF_UNSPEC": 0, "AF_INET": 2, "AF_INET6": 10, "PF_INET": 2, "PF_INET6": 10, "SOCK_STREAM": 1,
    "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_NONBLOCK": 0o4000, "SOCK_CLOEXEC": 0o2000000, "IPPROTO_IP": 0,
    "IPPROTO_ICMP": 1, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_IPV6": 41, "IPPROTO_MPTCP": 262,
    "SOL_IP": 0, "SOL_SOCKET": 1, "SOL_TCP": 6, "SOL_UDP": 17, "SOL_IPV6": 41, "SOL_RAW": 255, "SHUT_RD": 0,
    "SHUT_WR": 1, "SHUT_RDWR": 2, "INADDR_ANY": 0, "SOMAXCONN": 4096, "SO_DEBUG": 1, "SO_REUSEADDR": 2,
    "SO_TYPE": 3, "SO_ERROR": 4, "SO_DONTROUTE": 5, "SO_BROADCAST": 6, "SO_SNDBUF": 7, "SO_RCVBUF": 8,
    "SO_KEEPALIVE": 9, "SO_OOBINLINE": 10, "SO_NO_CHECK": 11, "SO_PRIORITY": 12, "SO_LINGER": 13,
    "SO_BSDCOMPAT": 14, "SO_REUSEPORT": 15, "SO_PASSCRED": 16, "SO_PEERCRED": 17, "SO_RCVLOWAT": 18,
    "SO_SNDLOWAT": 19, "SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21, "SO_BINDTODEVICE": 25, "SO_ATTACH_FILTER": 26,
    "SO_DETACH_FILTER": 27, "SO_PEERNAME": 28, "SO_TIMESTAMP": 29, "SO_ACCEPTCONN": 30, "SO_PEERSEC": 31,
    "SO_SNDBUFFORCE": 32, "SO_RCVBUFFORCE": 33, "SO_PASSSEC": 34, "SO_TIMESTAMPNS": 35, "SO_MARK": 36,
    "SO_TIMESTAMPING": 37, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_RXQ_OVFL": 40, "SO_WIFI_STATUS": 41,
    "SO_PEEK_OFF": 42, "SO_NOFCS": 43, "SO_LOCK_FILTER": 44, "SO_SELECT_ERR_QUEUE": 45, "SO_BUSY_POLL": 46,
    "SO_MAX_PACING_RATE": 47, "SO_BPF_EXTENSIONS": 48, "SO_INCOMING_CPU": 49, "SO_ATTACH_BPF": 50,
    "SO_ATTACH_REUSEPORT_CBPF": 51, "SO_ATTACH_REUSEPORT_EBPF": 52, "SO_CNX_ADVICE": 53, "SO_MEMINFO": 55,
    "SO_INCOMING_NAPI_ID": 56, "SO_COOKIE": 57, "SO_PEERGROUPS": 59, "SO_ZEROCOPY": 60, "SO_TXTIME": 61,
    "SO_BINDTOIFINDEX": 62, "SO_PREFER_BUSY_POLL": 69, "SO_BUSY_POLL_BUDGET": 70, "SO_RESERVE_MEM": 73,
    "SO_TXREHASH": 74, "SO_RCVMARK": 75, "SO_RCVPRIORITY": 82, "SCM_RIGHTS": 1, "SCM_CREDENTIALS": 2,
    "SCM_TIMESTAMP": 29, "SCM_TIMESTAMPNS": 35, "SCM_TIMESTAMPING": 37, "SCM_TIMESTAMPING_OPT_STATS": 54,
    "SCM_TXTIME": 61, "SCM_TS_OPT_ID": 81, "SCM_TSTAMP_SND": 0, "SCM_TSTAMP_SCHED": 1, "SCM_TSTAMP_ACK": 2,
    "SCM_TSTAMP_COMPLETION": 3,
}

_MSG = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_DONTROUTE": 4, "MSG_CTRUNC": 8, "MSG_PROBE": 0x10, "MSG_TRUNC": 0x20,
    "MSG_DONTWAIT": 0x40, "MSG_EOR": 0x80, "MSG_WAITALL": 0x100, "MSG_FIN": 0x200, "MSG_SYN": 0x400,
    "MSG_CONFIRM": 0x800, "MSG_RST": 0x1000, "MSG_ERRQUEUE": 0x2000, "MSG_NOSIGNAL": 0x4000,
    "MSG_MORE": 0x8000, "MSG_WAITFORONE": 0x10000, "MSG_BATCH": 0x40000, "MSG_ZEROCOPY": 0x4000000,
    "MSG_FASTOPEN": 0x20000000, "MSG_CMSG_CLOEXEC": 0x40000000,
}

_TCP = {
    "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_CORK": 3, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 6, "TCP_SYNCNT": 7, "TCP_LINGER2": 8, "TCP_DEFER_ACCEPT": 9, "TCP_WINDOW_CLAMP": 10,
    "TCP_INFO": 11, "TCP_QUICKACK": 12, "TCP_CONGESTION": 13, "TCP_MD5SIG": 14,
    "TCP_COOKIE_TRANSACTIONS": 15, "TCP_THIN_LINEAR_TIMEOUTS": 16, "TCP_THIN_DUPACK": 17,
    "TCP_USER_TIMEOUT": 18, "TCP_REPAIR": 19, "TCP_REPAIR_QUEUE": 20, "TCP_QUEUE_SEQ": 21,
    "TCP_REPAIR_OPTIONS": 22, "TCP_FASTOPEN": 23, "TCP_TIMESTAMP": 24, "TCP_NOTSENT_LOWAT": 25,
    "TCP_CC_INFO": 26, "TCP_SAVE_SYN": 27, "TCP_SAVED_SYN": 28, "TCP_REPAIR_WINDOW": 29,
    "TCP_FASTOPEN_CONNECT": 30, "TCP_ULP": 31, "TCP_MD5SIG_EXT": 32, "TCP_FASTOPEN_KEY": 33,
    "TCP_FASTOPEN_NO_COOKIE": 34, "TCP_ZEROCOPY_RECEIVE": 35, "TCP_INQ": 36, "TCP_CM_INQ": 36,
    "TCP_TX_DELAY": 37, "TCP_AO_ADD_KEY": 38, "TCP_AO_DEL_KEY": 39, "TCP_AO_INFO": 40,
    "TCP_AO_GET_KEYS": 41, "TCP_AO_REPAIR": 42, "TCP_IS_MPTCP": 43, "TCP_RTO_MAX_MS": 44,
    "TCP_RTO_MIN_US": 45, "TCP_DELACK_MAX_US": 46, "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2,
    "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4, "TCP_FIN_WAIT2": 5, "TCP_TIME_WAIT": 6, "TCP_CLOSE": 7,
    "TCP_CLOSE_WAIT": 8, "TCP_LAST_ACK": 9, "TCP_LISTEN": 10, "TCP_CLOSING": 11, "TCP_NEW_SYN_RECV": 12,
    "TCP_CA_Open": 0, "TCP_CA_Disorder": 1, "TCP_CA_CWR": 2, "TCP_CA_Recovery": 3, "TCP_CA_Loss": 4,
    "TCPI_OPT_TIMESTAMPS": 1, "TCPI_OPT_SACK": 2, "TCPI_OPT_WSCALE": 4, "TCPI_OPT_ECN": 8,
    "TCPI_OPT_ECN_SEEN": 16, "TCPI_OPT_SYN_DATA": 32, "TCPI_OPT_USEC_TS": 64, "TCPI_OPT_TFO_CHILD": 128,
}

_IP = {
    "IP_TOS": 1, "IP_TTL": 2, "IP_HDRINCL": 3, "IP_OPTIONS": 4, "IP_ROUTER_ALERT": 5, "IP_RECVOPTS": 6,
    "IP_RETOPTS": 7, "IP_PKTINFO": 8, "IP_PKTOPTIONS": 9, "IP_MTU_DISCOVER": 10, "IP_RECVERR": 11,
    "IP_RECVTTL": 12, "IP_RECVTOS": 13, "IP_MTU": 14, "IP_FREEBIND": 15, "IP_IPSEC_POLICY": 16,
    "IP_XFRM_POLICY": 17, "IP_PASSSEC": 18, "IP_TRANSPARENT": 19, "IP_ORIGDSTADDR": 20, "IP_MINTTL": 21,
    "IP_NODEFRAG": 22, "IP_CHECKSUM": 23, "IP_BIND_ADDRESS_NO_PORT": 24, "IP_RECVFRAGSIZE": 25,
    "IP_RECVERR_RFC4884": 26, "IP_MULTICAST_IF": 32, "IP_MULTICAST_TTL": 33, "IP_MULTICAST_LOOP": 34,
    "IP_UNICAST_IF": 50, "IP_LOCAL_PORT_RANGE": 51, "IP_PMTUDISC_DONT": 0, "IP_PMTUDISC_WANT": 1,
    "IP_PMTUDISC_DO": 2, "IP_PMTUDISC_PROBE": 3, "IP_PMTUDISC_INTERFACE": 4, "IP_PMTUDISC_OMIT": 5,
    "IPV6_RECVERR": 25, "IPV6_V6ONLY": 26, "IPV6_MTU_DISCOVER": 23, "IPV6_MTU": 24, "IPV6_TCLASS": 67,
    "IPV6_RECVTCLASS": 66, "IPV6_UNICAST_HOPS": 16, "IPTOS_LOWDELAY": 0x10, "IPTOS_THROUGHPUT": 0x08,
    "IPTOS_RELIABILITY": 0x04, "IPTOS_MINCOST": 0x02,
}

_FILES = {
    "O_RDONLY": 0, "O_WRONLY": 1, "O_RDWR": 2, "O_ACCMODE": 3, "O_CREAT": 0o100, "O_EXCL": 0o200,
    "O_NOCTTY": 0o400, "O_TRUNC": 0o1000, "O_APPEND": 0o2000, "O_NONBLOCK": 0o4000, "O_NDELAY": 0o4000,
    "O_DSYNC": 0o10000, "O_ASYNC": 0o20000, "O_DIRECT": 0o40000, "O_CLOEXEC": 0o2000000,
    "O_SYNC": 0o4010000, "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5,
    "F_SETLK": 6, "F_SETLKW": 7, "F_SETOWN": 8, "F_GETOWN": 9, "F_SETSIG": 10, "F_GETSIG": 11,
    "FD_CLOEXEC": 1, "FIONREAD": 0x541B, "FIONBIO": 0x5421, "SIOCINQ": 0x541B, "SIOCOUTQ": 0x5411,
    "TIOCOUTQ": 0x5411, "TIOCINQ": 0x541B, "SIOCOUTQNSD": 0x894B, "SIOCATMARK": 0x8905, "NULL": 0,
}

_POLL = {
    "POLLIN": 0x1, "POLLPRI": 0x2, "POLLOUT": 0x4, "POLLERR": 0x8, "POLLHUP": 0x10, "POLLNVAL": 0x20,
    "POLLRDNORM": 0x40, "POLLRDBAND": 0x80, "POLLWRNORM": 0x100, "POLLWRBAND": 0x200, "POLLMSG": 0x400,
    "POLLRDHUP": 0x2000, "EPOLLIN": 0x1, "EPOLLPRI": 0x2, "EPOLLOUT": 0x4, "EPOLLERR": 0x8,
    "EPOLLHUP": 0x10, "EPOLLRDNORM": 0x40, "EPOLLRDBAND": 0x80, "EPOLLWRNORM": 0x100, "EPOLLWRBAND": 0x200,
    "EPOLLMSG": 0x400, "EPOLLRDHUP": 0x2000, "EPOLLEXCLUSIVE": 1 << 28, "EPOLLWAKEUP": 1 << 29,
    "EPOLLONESHOT": 1 << 30, "EPOLLET": 1 << 31, "EPOLL_CTL_ADD": 1, "EPOLL_CTL_DEL": 2, "EPOLL_CTL_MOD": 3,
    "EPOLL_CLOEXEC": 0o2000000,
}

_ERROR_QUEUE = {
    "SO_EE_ORIGIN_NONE": 0, "SO_EE_ORIGIN_LOCAL": 1, "SO_EE_ORIGIN_ICMP": 2, "SO_EE_ORIGIN_ICMP6": 3,
    "SO_EE_ORIGIN_TXSTATUS": 4, "SO_EE_ORIGIN_TIMESTAMPING": 4, "SO_EE_ORIGIN_ZEROCOPY": 5,
    "SO_EE_ORIGIN_TXTIME": 6, "SO_EE_CODE_ZEROCOPY_COPIED": 1, "SOF_TIMESTAMPING_TX_HARDWARE": 1 << 0,
    "SOF_TIMESTAMPING_TX_SOFTWARE": 1 << 1, "SOF_TIMESTAMPING_RX_HARDWARE": 1 << 2,
    "SOF_TIMESTAMPING_RX_SOFTWARE": 1 << 3, "SOF_TIMESTAMPING_SOFTWARE": 1 << 4,
    "SOF_TIMESTAMPING_SYS_HARDWARE": 1 << 5, "SOF_TIMESTAMPING_RAW_HARDWARE": 1 << 6,
    "SOF_TIMESTAMPING_OPT_ID": 1 << 7, "SOF_TIMESTAMPING_TX_SCHED": 1 << 8,
    "SOF_TIMESTAMPING_TX_ACK": 1 << 9, "SOF_TIMESTAMPING_OPT_CMSG": 1 << 10,
    "SOF_TIMESTAMPING_OPT_TSONLY": 1 << 11, "SOF_TIMESTAMPING_OPT_STATS": 1 << 12,
    "SOF_TIMESTAMPING_OPT_PKTINFO": 1 << 13, "SOF_TIMESTAMPING_OPT_TX_SWHW": 1 << 14,
    "SOF_TIMESTAMPING_BIND_PHC": 1 << 15, "SOF_TIMESTAMPING_OPT_ID_TCP": 1 << 16,
    "SOF_TIMESTAMPING_OPT_RX_FILTER": 1 << 17, "SOF_TIMESTAMPING_TX_COMPLETION": 1 << 18,
    # For the records of the error queue (IP_RECVERR).
    "ICMP_DEST_UNREACH": 3, "ICMP_NET_UNREACH": 0, "ICMP_HOST_UNREACH": 1, "ICMP_PROT_UNREACH": 2,
    "ICMP_PORT_UNREACH": 3, "ICMP_FRAG_NEEDED": 4, "ICMP_SR_FAILED": 5, "ICMP_SOURCE_QUENCH": 4,
    "ICMP_TIME_EXCEEDED": 11, "ICMP_PARAMETERPROB": 12,
}

SYMBOLS: dict[str, int] = {**ERRNO, **_SOCKET, **_MSG, **_TCP, **_IP, **_FILES, **_POLL, **_ERROR_QUEUE}

# What the python blocks see besides the values of the snapshot.
PYTHON_NAMES: dict[str, int] = {
    name: value for name, value in _TCP.items()
    if name.startswith(("TCPI_OPT_", "TCP_CA_")) or name in {
        "TCP_ESTABLISHED", "TCP_SYN_SENT", "TCP_SYN_RECV", "TCP_FIN_WAIT1", "TCP_FIN_WAIT2", "TCP_TIME_WAIT",
        "TCP_CLOSE", "TCP_CLOSE_WAIT", "TCP_LAST_ACK", "TCP_LISTEN", "TCP_CLOSING"}
}

ICMP_TYPES: dict[str, int] = {
    "echo_reply": 0, "unreachable": 3, "source_quench": 4, "redirect": 5, "echo_request": 8,
    "router_advertisement": 9, "router_solicitation": 10, "time_exceeded": 11, "parameter_problem": 12,
    "timestamp_request": 13, "timestamp_reply": 14, "information_request": 15, "information_reply": 16,
    "address_mask_request": 17, "address_mask_reply": 18,
}

ICMP_CODES: dict[str, dict[str, int]] = {
    "unreachable": {
        "net_unreachable": 0, "host_unreachable": 1, "protocol_unreachable": 2, "port_unreachable": 3,
        "frag_needed": 4, "source_route_failed": 5, "net_unknown": 6, "host_unknown": 7,
        "source_host_isolated": 8, "net_prohibited": 9, "host_prohibited": 10, "net_unreachable_for_tos": 11,
        "host_unreachable_for_tos": 12, "packet_filtered": 13, "precedence_violation": 14,
        "precedence_cutoff": 15,
    },
    "redirect": {"net": 0, "host": 1, "net_for_tos": 2, "host_for_tos": 3, "redirect_net": 0,
                 "redirect_host": 1,
                 "redirect_net_for_tos": 2, "redirect_host_for_tos": 3},
    "time_exceeded": {"ttl_exceeded_in_transit": 0, "frag_reass_exceeded": 1},
    "parameter_problem": {"pointer_problem": 0, "option_absent": 1, "bad_length": 2},
}


def errno_name(number: int) -> str:
    """The usual name of an errno, for messages."""
    for name, value in ERRNO.items():
        if value == number:
            return name
    return f"errno {number}"


def _numbered(word: str, prefix: str) -> int | None:
    digits = word.removeprefix(prefix)
    return int(digits) if digits != word and digits.isdecimal() and int(digits) < 256 else None


def icmp_type(word: str) -> int | None:
    """`unreachable`, or `type_N` for any other; None if it is neither."""
    return ICMP_TYPES[word] if word in ICMP_TYPES else _numbered(word, "type_")


def icmp_code(type_word: str, word: str | None) -> int | None:
    """The code of a type, or `code_N`; a type without code words has code 0."""
    if word is None:
        return 0
    code = ICMP_CODES.get(type_word, {}).get(word)
    return code if code is not None else _numbered(word, "code_")
