# Built-in services: echo, discard, chargen and a minimal HTTP responder, served inside the engine (above user).
#
# RFC 862, 863, 864; HTTP/1.1 as far as a load generator needs it: any request head gets a small fixed answer, pipelined heads one
# each, `Connection: close` or HTTP/1.0 ends the connection. They exist to measure the stack without Python, and as `ustack serve inetd`.
# service_pump is called by the driver once per batch, under the lock: it runs the sockets with wake-ups and leaves all others on e.ready.
# A service keeps no data of its own: what cannot be sent yet stays in the receive queue, so the peer's window closes. What discard and
# chargen receive is never stored, and what chargen sends is not copied (SF_NO_RINGS).

from libc.string cimport memcpy

from ustack.core.pattern cimport pattern_at, pattern_make
from ustack.core.recvmsg cimport tcp_recv_drained, tcp_recv_look, tcp_recvmsg
from ustack.core.seqno cimport u32_min
from ustack.core.sendmsg cimport tcp_sendmsg
from ustack.core.access cimport sk_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport (
    SF_DEAD, SF_IN_READY, SF_NOSPACE, SF_NO_RINGS, TCP_NAGLE_OFF, tcb_t,
)
from ustack.core.types cimport (
    E_AGAIN, E_INVAL, MSG_MORE, MSG_PEEK, MSG_TRUNC, TCP_LISTEN, idx_t, int64_t, uint8_t, uint32_t,
)
from ustack.core.user cimport user_accept, user_close, user_close_finish

cdef enum:
    SVC_NONE = 0
    SVC_ECHO = 1
    SVC_DISCARD = 2
    SVC_CHARGEN = 3
    SVC_HTTP = 4
    SVC_CHUNK = 65536           # bytes of scratch memory
    HTTP_IN = 32768             # of these, for requests; the rest takes their answers
    HEAD_MAX = 8192             # a longer request head is refused
    CHARGEN_CALL = 1 << 20      # bytes of one send: the buffer's free room decides

cdef extern from *:
    """
    #include <string.h>
    #define USTACK_HTTP_BODY "hello, world!\\n"
    static const char ustack_http_ok[] = "HTTP/1.1 200 OK\\r\\nContent-Length: 14\\r\\n\\r\\n" USTACK_HTTP_BODY;
    static const char ustack_http_bye[] = "HTTP/1.1 200 OK\\r\\nContent-Length: 14\\r\\nConnection: close\\r\\n\\r\\n" USTACK_HTTP_BODY;
    static const char ustack_http_bad[] = "HTTP/1.1 400 Bad Request\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";

    /* length of a request head with its blank line, 0 if it is not whole; *bye: the client wants the connection closed */
    static int ustack_head(const unsigned char *p, int n, int *bye) {
      static const char word[] = "connection: close";
      const unsigned char *first = p, *line = p, *end = p + n, *nl;
      int i;
      *bye = 0;
      while ((nl = memchr(line, '\\n', end - line))) {
        if (nl == line || (nl == line + 1 && *line == '\\r')) {
          if (line != first) return nl + 1 - p;
          first = nl + 1;           /* empty lines before a request are skipped (RFC 9112 2.2) */
        }
        else if (line == first) *bye |= nl - line >= 9 && !memcmp(nl - 9, "HTTP/1.0\\r", 9);
        else if ((*line | 32) == 'c' && nl - line >= (int)sizeof word - 1) {
          for (i = 0; i < (int)sizeof word - 1 && (line[i] >= 'A' && line[i] <= 'Z' ? line[i] | 32 : line[i]) == word[i]; i++) ;
          *bye |= i == (int)sizeof word - 1;
        }
        line = nl + 1;
      }
      return 0;
    }
    #define USTACK_LEN(s) ((int)sizeof(s) - 1)
    """
    const uint8_t* http_ok "((const unsigned char*)ustack_http_ok)"
    const uint8_t* http_bye "((const unsigned char*)ustack_http_bye)"
    const uint8_t* http_bad "((const unsigned char*)ustack_http_bad)"
    const int http_ok_len "USTACK_LEN(ustack_http_ok)"
    const int http_bye_len "USTACK_LEN(ustack_http_bye)"
    const int http_bad_len "USTACK_LEN(ustack_http_bad)"
    int http_head "ustack_head"(const uint8_t*, int, int*) noexcept nogil


cdef inline void svc_close(engine_t* e, tcb_t* sk) noexcept nogil:
    """The connection ends; sk is gone afterwards, or an orphan."""
    sk.svc = SVC_NONE
    user_close(e, sk)
    user_close_finish(e, sk)


cdef inline bint svc_over(engine_t* e, tcb_t* sk, int64_t got) noexcept nogil:
    """End of stream or an error closes; nothing yet does not."""
    if got > 0 or got == -E_AGAIN:
        return False
    svc_close(e, sk)
    return True


cdef inline int64_t svc_look(engine_t* e, tcb_t* sk, uint8_t* buf, uint32_t n, const uint8_t** p) noexcept nogil:
    """What can be read, left where it is if it lies there in one piece, else copied to buf (n bytes); as tcp_recvmsg says."""
    cdef uint32_t got = tcp_recv_look(sk, p)
    if got:
        return u32_min(got, n)
    p[0] = buf
    return tcp_recvmsg(e, sk, buf, n, MSG_PEEK)


cdef inline void svc_echo(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    cdef const uint8_t* p
    cdef int64_t got
    cdef int64_t sent
    while True:
        got = svc_look(e, sk, buf, SVC_CHUNK, &p)
        if svc_over(e, sk, got) or got <= 0:
            return
        sent = tcp_sendmsg(e, sk, p, <size_t> got, 0)
        if sent > 0:
            tcp_recvmsg(e, sk, buf, <size_t> sent, MSG_TRUNC)
        if sent == -E_AGAIN or tcp_recv_drained(sk):
            return
        if sent < 0:
            svc_close(e, sk)
            return


cdef inline void svc_discard(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    cdef int64_t got
    while True:
        got = tcp_recvmsg(e, sk, buf, 0x40000000, MSG_TRUNC)
        if svc_over(e, sk, got) or got <= 0:
            return


cdef inline void svc_chargen(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    """As much as the send buffer takes; what the peer sends is thrown away."""
    cdef int64_t n
    n = tcp_recvmsg(e, sk, buf, 0x40000000, MSG_TRUNC)
    if svc_over(e, sk, n):
        return
    while True:
        n = tcp_sendmsg(e, sk, pattern_at(0), CHARGEN_CALL, 0)
        if n == -E_AGAIN:
            return
        if n <= 0:
            svc_close(e, sk)
            return


cdef inline int64_t svc_http_room(const tcb_t* sk) noexcept nogil:
    """Bytes of answers that a send will certainly take: records cost more than their payload."""
    cdef int64_t room = <int64_t> sk.sndbuf - <int64_t> sk.wmem_queued
    if room < 4096:
        return 0
    return http_bad_len if room // 20 < http_bad_len else room // 20


cdef inline void svc_http_refuse(engine_t* e, tcb_t* sk, int64_t got, uint8_t* buf) noexcept nogil:
    tcp_recvmsg(e, sk, buf, <size_t> got, MSG_TRUNC)        # unread bytes would turn the close into a reset
    tcp_sendmsg(e, sk, http_bad, http_bad_len, MSG_MORE)
    svc_close(e, sk)


cdef inline void svc_http(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    """Answer every whole request head: those of one read with one send; the last answer takes the FIN along."""
    cdef uint8_t* answer = buf + HTTP_IN
    cdef const uint8_t* ask
    cdef int64_t got
    cdef int64_t room
    cdef int used
    cdef int out
    cdef int head
    cdef int bye
    while True:
        got = svc_look(e, sk, buf, HTTP_IN, &ask)
        if svc_over(e, sk, got) or got <= 0:
            return
        room = svc_http_room(sk)
        if room > SVC_CHUNK - HTTP_IN:
            room = SVC_CHUNK - HTTP_IN
        used = 0
        out = 0
        bye = 0
        while not bye:
            head = http_head(ask + used, <int> got - used, &bye)
            if head == 0:
                bye = 0
                if <int> got - used >= HEAD_MAX and out == 0:
                    svc_http_refuse(e, sk, got, buf)
                    return
                break
            if out + http_bye_len > room:
                sk.sflags |= SF_NOSPACE                 # finish this one when there is room for its answer
                bye = 0
                break
            if bye:
                memcpy(answer + out, http_bye, http_bye_len)
                out += http_bye_len
            else:
                memcpy(answer + out, http_ok, http_ok_len)
                out += http_ok_len
            used += head
        if out and tcp_sendmsg(e, sk, answer, <size_t> out, MSG_MORE if bye else 0) != out:
            svc_close(e, sk)
            return
        if used:
            tcp_recvmsg(e, sk, buf, <size_t> used, MSG_TRUNC)
        if bye:
            svc_close(e, sk)
            return
        if used == 0 or used < got or tcp_recv_drained(sk):
            return


cdef inline void svc_run(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    cdef idx_t child
    cdef tcb_t* c
    if sk.state == TCP_LISTEN:
        while user_accept(e, sk, &child) == 0:
            c = sk_at(e, child)
            c.svc = sk.svc
            c.nonagle = TCP_NAGLE_OFF
            if c.svc == SVC_DISCARD or c.svc == SVC_CHARGEN:
                c.sflags |= SF_NO_RINGS
            svc_run(e, c, buf)
        return
    if sk.svc == SVC_ECHO:
        svc_echo(e, sk, buf)
    elif sk.svc == SVC_DISCARD:
        svc_discard(e, sk, buf)
    elif sk.svc == SVC_CHARGEN:
        svc_chargen(e, sk, buf)
    elif sk.svc == SVC_HTTP:
        svc_http(e, sk, buf)


cdef inline void service_pump(engine_t* e, uint8_t* buf) noexcept nogil:
    """Serve what became ready; buf: CHUNK bytes of scratch memory of the caller's."""
    cdef idx_t i
    cdef tcb_t* sk
    cdef idx_t kept = 0
    if e.n_services == 0:
        return
    while e.ready:
        i = e.ready
        sk = sk_at(e, i)
        e.ready = sk.ready_next
        sk.ready_next = 0
        if sk.svc == SVC_NONE or sk.sflags & SF_DEAD:
            sk.ready_next = kept
            kept = i
            continue
        sk.sflags &= ~<uint32_t> SF_IN_READY
        sk.wake_mask = 0
        svc_run(e, sk, buf)
    e.ready = kept


cdef inline int service_set(engine_t* e, tcb_t* sk, uint8_t svc) noexcept nogil:
    """Let the engine serve a listener's connections; -EINVAL for another socket."""
    if sk.state != TCP_LISTEN:
        return -E_INVAL
    if svc == SVC_CHARGEN:
        pattern_make()
    if svc and not sk.svc:
        e.n_services += 1
    elif sk.svc and not svc:
        e.n_services -= 1
    sk.svc = svc
    return 0
