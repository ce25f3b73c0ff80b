# Active open: source address, port, initial sequence number, SYN (layer above output).
#
# Linux: tcp_v4_connect, __inet_hash_connect, __inet_check_established, tcp_twsk_unique; RFC 6056, RFC 6191.
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport E_OPNOTSUPP, uint16_t, uint32_t


cdef inline int tcp_v4_connect(engine_t* e, tcb_t* sk, uint32_t addr, uint16_t port) noexcept nogil:
    # 0 when the SYN is out (or waits for data: sk.defer_connect), else -errno with the socket back in CLOSE.
    return -E_OPNOTSUPP
