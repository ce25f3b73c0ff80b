# Transmit timestamps, SO_TIMESTAMPING (layer: above sendq).
#
# Linux: tcp_tx_timestamp, __skb_tstamp_tx, tcp_ack_tstamp. A timestamp is asked for by a send call and belongs to its last byte: it is
# reported through the error queue when the record that holds that byte is queued to the link, handed to it, and acknowledged. Hardware
# timestamps do not exist here.

from ustack.core.errq cimport SO_EE_ORIGIN_TIMESTAMPING, errq_put
from ustack.core.records cimport srec_t
from ustack.core.sendq cimport sq_wq_tail
from ustack.core.seqno cimport before
from ustack.core.access cimport sr_at
from ustack.core.state cimport engine_t
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport idx_t, uint8_t, uint32_t, likely

cdef enum:
    # srec_t.tstamp_flags
    SRT_SCHED = 1
    SRT_SW = 2
    SRT_ACK = 4
    # SO_TIMESTAMPING
    SOF_TX_SOFTWARE = 0x2
    SOF_OPT_ID = 0x80
    SOF_TX_SCHED = 0x100
    SOF_TX_ACK = 0x200
    E_NOMSG = 42
    SCM_TSTAMP_SND = 0
    SCM_TSTAMP_SCHED = 1
    SCM_TSTAMP_ACK = 2


cdef inline void tcp_tx_timestamp(engine_t* e, tcb_t* sk) noexcept nogil:
    """End of a send call: its last byte is to be stamped as SO_TIMESTAMPING says."""
    cdef idx_t i = sq_wq_tail(sk)
    cdef srec_t* r
    cdef uint32_t want = sk.opt.tsflags
    cdef uint8_t flags = 0
    if likely(i == 0) or not want & (SOF_TX_SOFTWARE | SOF_TX_SCHED | SOF_TX_ACK):
        return
    if want & SOF_TX_SCHED:
        flags |= SRT_SCHED
    if want & SOF_TX_SOFTWARE:
        flags |= SRT_SW
    if want & SOF_TX_ACK:
        flags |= SRT_ACK
    r = sr_at(e, i)
    r.tstamp_flags |= flags
    r.tskey = r.seq + r.len - 1


cdef inline void tstamp_report_(engine_t* e, tcb_t* sk, const srec_t* r, uint32_t what) noexcept nogil:
    errq_put(e, sk, E_NOMSG, SO_EE_ORIGIN_TIMESTAMPING, what, r.tskey - sk.opt.tskey if sk.opt.tsflags & SOF_OPT_ID else 0)


cdef inline void tcp_sent_tstamp(engine_t* e, tcb_t* sk, const srec_t* r) noexcept nogil:
    """The record has gone to the link, which takes it at once."""
    if r.tstamp_flags & SRT_SCHED:
        tstamp_report_(e, sk, r, SCM_TSTAMP_SCHED)
    if r.tstamp_flags & SRT_SW:
        tstamp_report_(e, sk, r, SCM_TSTAMP_SND)


cdef inline void tcp_ack_tstamp(engine_t* e, tcb_t* sk, const srec_t* r, uint32_t prior_una) noexcept nogil:
    """An ACK has moved snd_una from prior_una over the record, or over part of it."""
    if r.tstamp_flags & SRT_ACK and not before(r.tskey, prior_una) and before(r.tskey, sk.snd_una):
        tstamp_report_(e, sk, r, SCM_TSTAMP_ACK)
