# The error queue of a socket: extended errors (IP_RECVERR), and the notifications of zero-copy sends (layer: above sock, below sendq).
#
# Linux: sock_queue_err_skb, ip_icmp_error, msg_zerocopy_realloc, msg_zerocopy_ubuf_complete. An entry is an ext record; MSG_ERRQUEUE reads them
# in order (recvmsg). Transmit timestamps are entries too (txstamp.pxd). MSG_ZEROCOPY: the bytes are copied here all the same, since the caller may
# reuse its memory at once, but the bookkeeping is the kernel's: each call has a number, its records hold a notification, and when the last
# of them is acknowledged the range of numbers is reported, with SO_EE_CODE_ZEROCOPY_COPIED if any of it went to a link (a TUN device copies).

from ustack.core.pool cimport pool_alloc, pool_free
from ustack.core.records cimport reqext_t, srec_t
from ustack.core.access cimport ext_at, sk_opt, wall_ns
from ustack.core.wake cimport sk_error_report
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport SF_DEAD, tcb_t
from ustack.core.types cimport idx_t, ns_t, uint8_t, uint32_t, uint64_t

cdef enum:
    # sock_extended_err
    SO_EE_ORIGIN_NONE = 0
    SO_EE_ORIGIN_LOCAL = 1
    SO_EE_ORIGIN_ICMP = 2
    SO_EE_ORIGIN_TIMESTAMPING = 4
    SO_EE_ORIGIN_ZEROCOPY = 5
    SO_EE_CODE_ZEROCOPY_COPIED = 1
    ZC_MAX_CALLS = 65534
    ZC_MAX_BYTES = (1 << 19) - 4096


cdef inline void errq_append(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """Queue a filled entry and wake whoever polls for errors."""
    ext_at(e, i).next = 0
    if sk.opt.errq_tail:
        ext_at(e, sk.opt.errq_tail).next = i
    else:
        sk_opt(e, sk).errq_head = i
    sk_opt(e, sk).errq_tail = i
    sk_error_report(e, sk)


cdef inline reqext_t* errq_put(engine_t* e, tcb_t* sk, uint32_t errno, uint8_t origin, uint32_t info, uint32_t data) noexcept nogil:
    """Append an entry; type and code are the caller's to fill in. NULL: no memory, the entry is lost."""
    cdef idx_t i = pool_alloc(&e.ext)
    cdef reqext_t* x
    if i == 0:
        return NULL
    x = ext_at(e, i)
    x.ee_errno = errno
    x.ee_origin = origin
    x.ee_info = info
    x.ee_data = data
    x.ee_time = <ns_t> wall_ns(e)
    errq_append(e, sk, i)
    return x


# ---- zero copy -------------------------------------------------------------------------------------------------------------------
cdef inline idx_t zc_begin(engine_t* e, tcb_t* sk, uint32_t n, idx_t tail_zc) noexcept nogil:
    """A call with MSG_ZEROCOPY for n bytes: the notification it belongs to, held by the call; 0 without memory. It joins that of the
    last unsent record if its number follows."""
    cdef idx_t i = tail_zc
    cdef reqext_t* x
    if i:
        x = ext_at(e, i)
        if x.zc_len < ZC_MAX_CALLS and x.zc_bytes + n <= ZC_MAX_BYTES and x.ee_info + x.zc_len == sk.opt.zckey:
            x.zc_len += 1
            x.zc_bytes += n
            x.zc_refs += 1
            sk_opt(e, sk).zckey += 1
            return i
    i = pool_alloc(&e.ext)
    if i == 0:
        return 0
    x = ext_at(e, i)
    x.ee_origin = SO_EE_ORIGIN_ZEROCOPY
    x.ee_info = sk.opt.zckey
    x.zc_len = 1
    x.zc_bytes = n
    x.zc_refs = 1
    sk_opt(e, sk).zckey += 1
    return i


cdef inline bint zc_extend(engine_t* e, tcb_t* sk, const reqext_t* x) noexcept nogil:
    """Does the last entry end where x begins? Then it grows instead."""
    cdef reqext_t* tail
    if sk.opt.errq_tail == 0:
        return False
    tail = ext_at(e, sk.opt.errq_tail)
    if tail.ee_origin != SO_EE_ORIGIN_ZEROCOPY or x.ee_info != tail.ee_data + 1:
        return False
    if <uint64_t> (tail.ee_data - tail.ee_info) + 1 + x.zc_len > 0xffffffffULL:
        return False
    tail.ee_data += x.zc_len
    return True


cdef inline void zc_put(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """A record or a call lets go; with the last one the numbers are reported."""
    cdef reqext_t* x = ext_at(e, i)
    x.zc_refs -= 1
    if x.zc_refs:
        return
    if x.zc_len == 0 or sk.sflags & SF_DEAD:
        pool_free(&e.ext, i)
        return
    x.ee_data = x.ee_info + x.zc_len - 1
    x.ee_code = SO_EE_CODE_ZEROCOPY_COPIED if x.zc_copied else 0
    if zc_extend(e, sk, x):
        pool_free(&e.ext, i)
        sk_error_report(e, sk)
    else:
        errq_append(e, sk, i)


cdef inline void zc_abort(engine_t* e, tcb_t* sk, idx_t i) noexcept nogil:
    """The call failed: its number is given back."""
    ext_at(e, i).zc_len -= 1
    sk_opt(e, sk).zckey -= 1
    zc_put(e, sk, i)


cdef inline void zc_attach(engine_t* e, srec_t* r, idx_t i) noexcept nogil:
    """The record holds bytes of the call."""
    if i and r.zc == 0:
        r.zc = i
        ext_at(e, i).zc_refs += 1
