# An op-table written in C terms, as an experiment outside ustack would: it cimports ustack.core.hooks (and types) only. Built with
# USTACK_CTEST=1 for the tests; docs/hooks.md shows it as the pattern.
#
# Each function of the table does one thing that a packet or a result shows; Ops chooses which of them are in the table.

from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset

from ustack.core.hooks cimport (
    CONN_TOS, HOOKS_CAPSULE, HOOKS_VERSION, HOOK_DROP, HOOK_FRONT, HOOK_RESET, SYN_ISN, SYN_MSS, hook_accept_t, hook_acceptq_t,
    hook_ack_t, hook_conn_t, hook_connect_t, hook_drop_t, hook_listen_t, hook_overflow_t, hook_select_t, hook_syn_t, hook_synack_t, hooks_t,
)
from ustack.core.types cimport uint16_t, uint32_t, uint64_t

cdef struct counts_t:           # what `user` points to
    uint64_t calls
    uint32_t isn
    uint16_t mss
    uint16_t reason             # of the last drop


cdef void on_listen(void* user, hook_listen_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.err = 13                  # EACCES


cdef void on_connect(void* user, hook_connect_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.rto_ms = 300


cdef void on_syn(void* user, hook_syn_t* a) noexcept nogil:
    cdef counts_t* c = <counts_t*> user
    c.calls += 1
    a.set |= SYN_ISN | SYN_MSS
    a.isn = c.isn
    a.mss = c.mss


cdef void on_overflow(void* user, hook_overflow_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.verdict = HOOK_RESET


cdef void on_synack(void* user, hook_synack_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.next_ms = 250


cdef void on_ack(void* user, hook_ack_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.verdict = HOOK_DROP


cdef void on_acceptq(void* user, hook_acceptq_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.verdict = HOOK_FRONT


cdef void on_accept(void* user, hook_accept_t* a) noexcept nogil:
    cdef counts_t* c = <counts_t*> user
    c.calls += 1
    if c.calls == 1:
        a.verdict = HOOK_RESET


cdef void on_established(void* user, hook_conn_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.set |= CONN_TOS
    a.tos = 0x20


cdef void on_drop(void* user, hook_drop_t* a) noexcept nogil:
    cdef counts_t* c = <counts_t*> user
    c.calls += 1
    c.reason = a.reason


cdef void on_select(void* user, hook_select_t* a) noexcept nogil:
    (<counts_t*> user).calls += 1
    a.choice = a.n - 1


cdef void forget(object capsule) noexcept:
    Py_DECREF(<object> PyCapsule_GetContext(capsule))


cdef class Ops:
    # The table and what it counts.
    cdef hooks_t table
    cdef counts_t counts

    def __init__(self, *names, isn=0x01020304, mss=1000, version=HOOKS_VERSION):
        memset(&self.table, 0, sizeof(hooks_t))
        memset(&self.counts, 0, sizeof(counts_t))
        self.counts.isn = isn
        self.counts.mss = mss
        self.table.version = version
        self.table.user = &self.counts
        self.table.listen = on_listen if "listen" in names else self.table.listen
        self.table.connect = on_connect if "connect" in names else self.table.connect
        self.table.syn = on_syn if "syn" in names else self.table.syn
        self.table.overflow = on_overflow if "overflow" in names else self.table.overflow
        self.table.synack = on_synack if "synack" in names else self.table.synack
        self.table.ack = on_ack if "ack" in names else self.table.ack
        self.table.acceptq = on_acceptq if "acceptq" in names else self.table.acceptq
        self.table.accept = on_accept if "accept" in names else self.table.accept
        self.table.established = on_established if "established" in names else self.table.established
        self.table.drop = on_drop if "drop" in names else self.table.drop
        self.table.select = on_select if "select" in names else self.table.select

    def capsule(self):
        # It keeps the table and what `user` points to alive, and the engine keeps the capsule.
        capsule = PyCapsule_New(&self.table, HOOKS_CAPSULE, forget)
        PyCapsule_SetContext(capsule, <void*> self)
        Py_INCREF(self)
        return capsule

    @property
    def calls(self):
        return self.counts.calls

    @property
    def reason(self):
        return self.counts.reason


def wrong_capsule():
    return PyCapsule_New(<void*> HOOKS_CAPSULE, b"something.else", NULL)
