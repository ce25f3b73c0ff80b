# Built-in services: echo, discard, chargen and a minimal HTTP responder, served inside the engine (above user).
#
# RFC 862, 863, 864; HTTP/1.1 as far as a load generator needs it: any request head gets a small fixed answer, pipelined heads one
# each, `Connection: close` or HTTP/1.0 ends the connection. They exist to measure the stack without Python, and as `ustack serve inetd`.
# service_pump is called by the driver once per batch, under the lock: it runs the sockets with wake-ups and leaves all others on e.ready.
# A service keeps no data of its own: what cannot be sent yet stays in the receive queue, so the peer's window closes.

from libc.string cimport memcmp, memcpy

from ustack.core.recvmsg cimport tcp_recvmsg
from ustack.core.sendmsg cimport tcp_sendmsg
from ustack.core.sock cimport sk_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport SF_DEAD, SF_IN_READY, SF_NOSPACE, TCP_NAGLE_OFF, TCP_NAGLE_PUSH, tcb_t
from ustack.core.types cimport (
    E_AGAIN, MSG_MORE, MSG_PEEK, MSG_TRUNC, TCP_LISTEN, idx_t, int64_t, uint8_t, uint32_t,
)
from ustack.core.user cimport user_accept, user_close, user_close_finish

cdef enum:
    SVC_NONE = 0
    SVC_ECHO = 1
    SVC_DISCARD = 2
    SVC_CHARGEN = 3
    SVC_HTTP = 4
    SVC_CHUNK = 65536
    PATTERN = 95 * 74           # 95 lines of 72 characters and CRLF: then it repeats
    HEAD_MAX = 8192             # a longer request head is refused

cdef extern from *:
    """
    static const char ustack_http_ok[] =
      "HTTP/1.1 200 OK\\r\\nServer: ustack\\r\\nContent-Type: text/plain\\r\\nContent-Length: 14\\r\\n\\r\\nhello, world!\\n\\n";
    static const char ustack_http_bye[] =
      "HTTP/1.1 200 OK\\r\\nServer: ustack\\r\\nContent-Type: text/plain\\r\\nContent-Length: 14\\r\\nConnection: close\\r\\n\\r\\nhello, world!\\n\\n";
    static const char ustack_http_bad[] =
      "HTTP/1.1 400 Bad Request\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
    static unsigned char ustack_pattern[95 * 74 * 2];
    static int ustack_pattern_made;
    static void ustack_make_pattern(void) {
      int line, i;
      for (line = 0; line < 190; line++) {
        for (i = 0; i < 72; i++) ustack_pattern[line * 74 + i] = (unsigned char)(32 + (line + i) % 95);
        ustack_pattern[line * 74 + 72] = '\\r'; ustack_pattern[line * 74 + 73] = '\\n';
      }
      ustack_pattern_made = 1;
    }
    static int ustack_lower_find(const unsigned char *p, int n, const char *word, int k) {
      int i, j;
      for (i = 0; i + k <= n; i++) {
        for (j = 0; j < k; j++) { unsigned char c = p[i + j]; if (c >= 'A' && c <= 'Z') c += 32; if (c != (unsigned char)word[j]) break; }
        if (j == k) return i;
      }
      return -1;
    }
    #define USTACK_LEN(s) ((int)sizeof(s) - 1)
    """
    const uint8_t* http_ok "((const unsigned char*)ustack_http_ok)"
    const uint8_t* http_bye "((const unsigned char*)ustack_http_bye)"
    const uint8_t* http_bad "((const unsigned char*)ustack_http_bad)"
    const int http_ok_len "USTACK_LEN(ustack_http_ok)"
    const int http_bye_len "USTACK_LEN(ustack_http_bye)"
    const int http_bad_len "USTACK_LEN(ustack_http_bad)"
    uint8_t* pattern "ustack_pattern"
    int pattern_made "ustack_pattern_made"
    void make_pattern "ustack_make_pattern"() nogil
    int lower_find "ustack_lower_find"(const uint8_t*, int, const char*, int) nogil


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


cdef inline void svc_echo(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    cdef int64_t got
    cdef int64_t sent
    while True:
        got = tcp_recvmsg(e, sk, buf, SVC_CHUNK, MSG_PEEK)
        if svc_over(e, sk, got) or got <= 0:
            return
        sent = tcp_sendmsg(e, sk, buf, <size_t> got, 0)
        if sent > 0:
            tcp_recvmsg(e, sk, buf, <size_t> sent, MSG_TRUNC)
        if sent == -E_AGAIN:
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
        n = tcp_sendmsg(e, sk, pattern + (sk.write_seq - sk.iss - 1) % PATTERN, PATTERN, 0)
        if n == -E_AGAIN:
            return
        if n <= 0:
            svc_close(e, sk)
            return


cdef inline int svc_head_end(const uint8_t* p, int n) noexcept nogil:
    """Length of the request head with its blank line, 0 if it is not whole yet."""
    cdef int i
    for i in range(n - 3):
        if p[i] == 13 and p[i + 1] == 10 and p[i + 2] == 13 and p[i + 3] == 10:
            return i + 4
    return 0


cdef inline void svc_http(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    """Answer every whole request head; a batch of pipelined ones goes out as one run of records."""
    cdef int64_t got
    cdef int64_t sent
    cdef int used
    cdef int head
    cdef bint bye
    while True:
        got = tcp_recvmsg(e, sk, buf, SVC_CHUNK, MSG_PEEK)
        if svc_over(e, sk, got) or got <= 0:
            return
        used = 0
        bye = False
        sent = 0
        while not bye:
            head = svc_head_end(buf + used, <int> got - used)
            if head == 0:
                if <int> got - used < HEAD_MAX:
                    break
                tcp_recvmsg(e, sk, buf, <size_t> got, MSG_TRUNC)        # unread bytes would turn the close into a reset
                tcp_sendmsg(e, sk, http_bad, http_bad_len, 0)
                svc_close(e, sk)
                return
            bye = (lower_find(buf + used, head, b"http/1.0\r\n", 10) >= 0
                   or lower_find(buf + used, head, b"connection: close", 17) >= 0)
            if sk.sndbuf - <int64_t> sk.wmem_queued < 4096:
                sk.sflags |= SF_NOSPACE                 # finish this one when there is room for its answer
                bye = False
                break
            if bye:
                sent = tcp_sendmsg(e, sk, http_bye, http_bye_len, 0)
            else:
                sent = tcp_sendmsg(e, sk, http_ok, http_ok_len, MSG_MORE if used + head < got else 0)
            if sent < 0:
                svc_close(e, sk)
                return
            used += head
        if used:
            tcp_recvmsg(e, sk, buf, used, MSG_TRUNC)
        if bye:
            svc_close(e, sk)
            return
        if used == 0 or used < got:
            return


cdef inline void svc_run(engine_t* e, tcb_t* sk, uint8_t* buf) noexcept nogil:
    cdef idx_t child
    cdef tcb_t* c
    if sk.state == TCP_LISTEN:
        while user_accept(e, sk, &child) == 0:
            c = sk_at(e, child)
            c.svc = sk.svc
            c.nonagle = TCP_NAGLE_OFF
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
    if not pattern_made:
        make_pattern()
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
        return -22
    if svc and not sk.svc:
        e.n_services += 1
    elif sk.svc and not svc:
        e.n_services -= 1
    sk.svc = svc
    return 0
