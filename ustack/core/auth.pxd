# Signatures on segments (TCP-MD5, RFC 2385; TCP-AO, RFC 5925) as a stack without keys treats them. Facts B2.
#
# Layer: above stats; called by ipin and request before a segment reaches a listener, a request or a connection, and by ipout before a
# stateless reset. wire has walked the options and left OPT_MD5, OPT_AO and OPT_AUTH_BAD.

from ustack.core.state cimport engine_t
from ustack.core.stats cimport MIB_TcpExtTCPAOBad, MIB_TcpExtTCPMD5Unexpected, mib_inc
from ustack.core.types cimport (
    DROP_NONE, DROP_TCP_AOFAILURE, DROP_TCP_AUTH_HDR, DROP_TCP_MD5UNEXPECTED, OPT_AO, OPT_AUTH_BAD, OPT_MD5, seg_t,
    likely,
)


cdef inline int auth_fault(engine_t* e, const seg_t* s, bint half_open) noexcept nogil:
    """Why the segment is refused, or DROP_NONE. An AO signature goes unread, as in a kernel without AO, but no half-open connection agreed on one."""
    if likely(not s.opts & (OPT_MD5 | OPT_AO | OPT_AUTH_BAD)):
        return DROP_NONE
    if s.opts & OPT_AUTH_BAD:
        return DROP_TCP_AUTH_HDR
    if s.opts & OPT_MD5:
        mib_inc(&e.stats, MIB_TcpExtTCPMD5Unexpected)
        return DROP_TCP_MD5UNEXPECTED
    if half_open:
        mib_inc(&e.stats, MIB_TcpExtTCPAOBad)
        return DROP_TCP_AOFAILURE
    return DROP_NONE


cdef inline bint auth_forbids_reset(const seg_t* s) noexcept nogil:
    """A signed segment gets no stateless reset, since nobody could sign the answer; nor does one whose options make no sense."""
    return (s.opts & (OPT_MD5 | OPT_AO | OPT_AUTH_BAD)) != 0
