# Packets that are discarded some time after they were taken: out of an out-of-order queue, out of a datagram in reassembly (layer above sock).
#
# What is discarded on arrival is a return value (DROP_*) and counted in engine.pxd. What was kept first and goes later is counted here, under its own
# reason, in the same table and the same events; no listener decides about it, and the bytes are no longer a packet for a hook to answer.
# Callers: ofo, prune, frag.

from libc.string cimport memset

from ustack.core.hooks cimport hook_drop, hook_drop_t, hooked
from ustack.core.access cimport sk_fport, sk_lport
from ustack.core.wake cimport ev_push
from ustack.core.state cimport EV_DROP, engine_t, event_t
from ustack.core.stats cimport drop_inc
from ustack.core.tcb cimport tcb_t
from ustack.core.types cimport flow_t, uint16_t


cdef inline void drop_late(engine_t* e, const flow_t* flow, int reason) noexcept nogil:
    cdef event_t* ev
    cdef hook_drop_t a
    drop_inc(&e.stats, reason)
    ev = ev_push(e, EV_DROP, <uint16_t>reason)
    if ev != NULL:
        ev.flow = flow[0]
    if hooked(e.hooks):
        memset(&a, 0, sizeof(hook_drop_t))
        a.reason = <uint16_t>reason
        a.flow = flow[0]
        hook_drop(e.hooks, &a)


cdef inline void sk_drop_late(engine_t* e, tcb_t* sk, int reason) noexcept nogil:
    cdef flow_t flow = flow_t(sk.en.laddr, sk.en.faddr, sk_lport(sk), sk_fport(sk))
    drop_late(e, &flow, reason)
