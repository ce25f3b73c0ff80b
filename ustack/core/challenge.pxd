# Challenge ACKs (layer above output, below ack and input).
#
# RFC 5961 3.2, 4.2, 5.2, facts J21: an ordinary ACK of the socket, limited to one per tcp_invalid_ratelimit and
# socket (together with duplicate ACKs for segments out of window), then to about tcp_challenge_ack_limit per second
# and stack, with random jitter so that the count cannot be probed from outside. Called by ack and input.

from ustack.core.access cimport sk_los
from ustack.core.types cimport NS_PER_SEC, int64_t, uint32_t
from ustack.core.output cimport tcp_send_ack
from ustack.core.paws cimport tcp_ack_rate_limited
from ustack.core.siphash cimport prng_below
from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPACKSkippedChallenge, MIB_TcpExtTCPChallengeACK, mib_inc
from ustack.core.tcb cimport tcb_t

cdef enum:
    CHALLENGE_UNLIMITED = 0x7fffffff


cdef inline bint challenge_budget_(engine_t* e) noexcept nogil:
    cdef int64_t limit = e.cfg.tcp_challenge_ack_limit
    cdef int64_t second
    cdef int64_t half
    # 0 does not forbid: Linux draws its budget from an empty range then, which gives any number.
    if limit == CHALLENGE_UNLIMITED or limit == 0:
        return True
    second = e.now // NS_PER_SEC + 1
    if second != e.challenge_epoch:
        half = (limit + 1) >> 1
        e.challenge_epoch = second
        e.challenge_count = <uint32_t> half
        if limit > 0:
            e.challenge_count += prng_below(&e.prng, <uint32_t> limit)
    if e.challenge_count == 0:
        return False
    e.challenge_count -= 1
    return True


cdef inline void tcp_send_challenge_ack(engine_t* e, tcb_t* sk) noexcept nogil:
    if tcp_ack_rate_limited(e, MIB_TcpExtTCPACKSkippedChallenge, &sk_los(e, sk).last_oow_ack):
        return
    if challenge_budget_(e):
        mib_inc(&e.stats, MIB_TcpExtTCPChallengeACK)
        tcp_send_ack(e, sk)
