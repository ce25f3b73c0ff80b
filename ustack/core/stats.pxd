# Counters: the kernel's MIB counters, drop reasons, ICMP types (layer 2).
#
# Each counter stands in one list, which makes the C enum and the name table, so a name cannot drift from its number;
# the enum declarations below only tell Cython that the names exist, and one that is not in the list does not compile.
# Order and names are those of /proc/net/snmp and /proc/net/netstat of Linux 6.18 (nstat's spelling: group + name).
# The read-only values of /proc/net/snmp (IpForwarding, TcpRtoMin, ...) are no counters and are rendered by Python;
# MPTcpExt is left out. TcpCurrEstab is a level: it goes down too.

from libc.stdint cimport int64_t, uint64_t

from ustack.core.types cimport DROP_REASONS

cdef extern from *:
    """
    #define USTACK_MIB_LIST(X) \
        X(IpInReceives) X(IpInHdrErrors) X(IpInAddrErrors) X(IpForwDatagrams) X(IpInUnknownProtos) \
        X(IpInDiscards) X(IpInDelivers) X(IpOutRequests) X(IpOutDiscards) X(IpOutNoRoutes) X(IpReasmTimeout) \
        X(IpReasmReqds) X(IpReasmOKs) X(IpReasmFails) X(IpFragOKs) X(IpFragFails) X(IpFragCreates) \
        X(IpOutTransmits) \
        X(IcmpInMsgs) X(IcmpInErrors) X(IcmpInCsumErrors) X(IcmpInDestUnreachs) X(IcmpInTimeExcds) \
        X(IcmpInParmProbs) X(IcmpInSrcQuenchs) X(IcmpInRedirects) X(IcmpInEchos) X(IcmpInEchoReps) \
        X(IcmpInTimestamps) X(IcmpInTimestampReps) X(IcmpInAddrMasks) X(IcmpInAddrMaskReps) X(IcmpOutMsgs) \
        X(IcmpOutErrors) X(IcmpOutRateLimitGlobal) X(IcmpOutRateLimitHost) X(IcmpOutDestUnreachs) \
        X(IcmpOutTimeExcds) X(IcmpOutParmProbs) X(IcmpOutSrcQuenchs) X(IcmpOutRedirects) X(IcmpOutEchos) \
        X(IcmpOutEchoReps) X(IcmpOutTimestamps) X(IcmpOutTimestampReps) X(IcmpOutAddrMasks) \
        X(IcmpOutAddrMaskReps) \
        X(TcpActiveOpens) X(TcpPassiveOpens) X(TcpAttemptFails) X(TcpEstabResets) X(TcpCurrEstab) X(TcpInSegs) \
        X(TcpOutSegs) X(TcpRetransSegs) X(TcpInErrs) X(TcpOutRsts) X(TcpInCsumErrors) \
        X(UdpInDatagrams) X(UdpNoPorts) X(UdpInErrors) X(UdpOutDatagrams) X(UdpRcvbufErrors) X(UdpSndbufErrors) \
        X(UdpInCsumErrors) X(UdpIgnoredMulti) X(UdpMemErrors) \
        X(UdpLiteInDatagrams) X(UdpLiteNoPorts) X(UdpLiteInErrors) X(UdpLiteOutDatagrams) X(UdpLiteRcvbufErrors) \
        X(UdpLiteSndbufErrors) X(UdpLiteInCsumErrors) X(UdpLiteIgnoredMulti) X(UdpLiteMemErrors) \
        X(TcpExtSyncookiesSent) X(TcpExtSyncookiesRecv) X(TcpExtSyncookiesFailed) X(TcpExtEmbryonicRsts) \
        X(TcpExtPruneCalled) X(TcpExtRcvPruned) X(TcpExtOfoPruned) X(TcpExtOutOfWindowIcmps) \
        X(TcpExtLockDroppedIcmps) X(TcpExtArpFilter) X(TcpExtTW) X(TcpExtTWRecycled) X(TcpExtTWKilled) \
        X(TcpExtPAWSActive) X(TcpExtPAWSEstab) X(TcpExtBeyondWindow) X(TcpExtTSEcrRejected) X(TcpExtPAWSOldAck) \
        X(TcpExtPAWSTimewait) X(TcpExtDelayedACKs) X(TcpExtDelayedACKLocked) X(TcpExtDelayedACKLost) \
        X(TcpExtListenOverflows) X(TcpExtListenDrops) X(TcpExtTCPHPHits) X(TcpExtTCPPureAcks) X(TcpExtTCPHPAcks) \
        X(TcpExtTCPRenoRecovery) X(TcpExtTCPSackRecovery) X(TcpExtTCPSACKReneging) X(TcpExtTCPSACKReorder) \
        X(TcpExtTCPRenoReorder) X(TcpExtTCPTSReorder) X(TcpExtTCPFullUndo) X(TcpExtTCPPartialUndo) \
        X(TcpExtTCPDSACKUndo) X(TcpExtTCPLossUndo) X(TcpExtTCPLostRetransmit) X(TcpExtTCPRenoFailures) \
        X(TcpExtTCPSackFailures) X(TcpExtTCPLossFailures) X(TcpExtTCPFastRetrans) X(TcpExtTCPSlowStartRetrans) \
        X(TcpExtTCPTimeouts) X(TcpExtTCPLossProbes) X(TcpExtTCPLossProbeRecovery) X(TcpExtTCPRenoRecoveryFail) \
        X(TcpExtTCPSackRecoveryFail) X(TcpExtTCPRcvCollapsed) X(TcpExtTCPBacklogCoalesce) \
        X(TcpExtTCPDSACKOldSent) X(TcpExtTCPDSACKOfoSent) X(TcpExtTCPDSACKRecv) X(TcpExtTCPDSACKOfoRecv) \
        X(TcpExtTCPAbortOnData) X(TcpExtTCPAbortOnClose) X(TcpExtTCPAbortOnMemory) X(TcpExtTCPAbortOnTimeout) \
        X(TcpExtTCPAbortOnLinger) X(TcpExtTCPAbortFailed) X(TcpExtTCPMemoryPressures) \
        X(TcpExtTCPMemoryPressuresChrono) X(TcpExtTCPSACKDiscard) X(TcpExtTCPDSACKIgnoredOld) \
        X(TcpExtTCPDSACKIgnoredNoUndo) X(TcpExtTCPSpuriousRTOs) X(TcpExtTCPMD5NotFound) X(TcpExtTCPMD5Unexpected) \
        X(TcpExtTCPMD5Failure) X(TcpExtTCPSackShifted) X(TcpExtTCPSackMerged) X(TcpExtTCPSackShiftFallback) \
        X(TcpExtTCPBacklogDrop) X(TcpExtPFMemallocDrop) X(TcpExtTCPMinTTLDrop) X(TcpExtTCPDeferAcceptDrop) \
        X(TcpExtIPReversePathFilter) X(TcpExtTCPTimeWaitOverflow) X(TcpExtTCPReqQFullDoCookies) \
        X(TcpExtTCPReqQFullDrop) X(TcpExtTCPRetransFail) X(TcpExtTCPRcvCoalesce) X(TcpExtTCPOFOQueue) \
        X(TcpExtTCPOFODrop) X(TcpExtTCPOFOMerge) X(TcpExtTCPChallengeACK) X(TcpExtTCPSYNChallenge) \
        X(TcpExtTCPFastOpenActive) X(TcpExtTCPFastOpenActiveFail) X(TcpExtTCPFastOpenPassive) \
        X(TcpExtTCPFastOpenPassiveFail) X(TcpExtTCPFastOpenListenOverflow) X(TcpExtTCPFastOpenCookieReqd) \
        X(TcpExtTCPFastOpenBlackhole) X(TcpExtTCPSpuriousRtxHostQueues) X(TcpExtBusyPollRxPackets) \
        X(TcpExtTCPAutoCorking) X(TcpExtTCPFromZeroWindowAdv) X(TcpExtTCPToZeroWindowAdv) \
        X(TcpExtTCPWantZeroWindowAdv) X(TcpExtTCPSynRetrans) X(TcpExtTCPOrigDataSent) \
        X(TcpExtTCPHystartTrainDetect) X(TcpExtTCPHystartTrainCwnd) X(TcpExtTCPHystartDelayDetect) \
        X(TcpExtTCPHystartDelayCwnd) X(TcpExtTCPACKSkippedSynRecv) X(TcpExtTCPACKSkippedPAWS) \
        X(TcpExtTCPACKSkippedSeq) X(TcpExtTCPACKSkippedFinWait2) X(TcpExtTCPACKSkippedTimeWait) \
        X(TcpExtTCPACKSkippedChallenge) X(TcpExtTCPWinProbe) X(TcpExtTCPKeepAlive) X(TcpExtTCPMTUPFail) \
        X(TcpExtTCPMTUPSuccess) X(TcpExtTCPDelivered) X(TcpExtTCPDeliveredCE) X(TcpExtTCPAckCompressed) \
        X(TcpExtTCPZeroWindowDrop) X(TcpExtTCPRcvQDrop) X(TcpExtTCPWqueueTooBig) \
        X(TcpExtTCPFastOpenPassiveAltKey) X(TcpExtTcpTimeoutRehash) X(TcpExtTcpDuplicateDataRehash) \
        X(TcpExtTCPDSACKRecvSegs) X(TcpExtTCPDSACKIgnoredDubious) X(TcpExtTCPMigrateReqSuccess) \
        X(TcpExtTCPMigrateReqFailure) X(TcpExtTCPPLBRehash) X(TcpExtTCPAORequired) X(TcpExtTCPAOBad) \
        X(TcpExtTCPAOKeyNotFound) X(TcpExtTCPAOGood) X(TcpExtTCPAODroppedIcmps) \
        X(IpExtInNoRoutes) X(IpExtInTruncatedPkts) X(IpExtInMcastPkts) X(IpExtOutMcastPkts) X(IpExtInBcastPkts) \
        X(IpExtOutBcastPkts) X(IpExtInOctets) X(IpExtOutOctets) X(IpExtInMcastOctets) X(IpExtOutMcastOctets) \
        X(IpExtInBcastOctets) X(IpExtOutBcastOctets) X(IpExtInCsumErrors) X(IpExtInNoECTPkts) X(IpExtInECT1Pkts) \
        X(IpExtInECT0Pkts) X(IpExtInCEPkts) X(IpExtReasmOverlaps)

    #define USTACK_DROP_LIST(X) \
        X(NONE) X(NOT_SPECIFIED) X(NO_SOCKET) X(PKT_TOO_SMALL) X(TCP_CSUM) X(SOCKET_FILTER) X(IP_CSUM) \
        X(IP_INHDR) X(IP_TRUNCATED) X(IP_RPFILTER) X(IP_INVALID_SOURCE) X(IP_INVALID_DEST) X(IP_LOCAL_SOURCE) \
        X(IP_INADDRERRORS) X(IP_NOPROTO) X(IP_SOURCE_ROUTE) X(UDP_NO_PORT) X(FRAG_REASM_TIMEOUT) X(FRAG_TOO_FAR) \
        X(FRAG_OVERLAP) X(FRAG_MEMORY) X(DUP_FRAG) X(TCP_MINTTL) X(TCP_MD5UNEXPECTED) X(TCP_FLAGS) \
        X(TCP_LISTEN_RST) X(TCP_LISTEN_OVERFLOW) X(TCP_REQQFULL_DROP) X(TCP_SYN_BACKLOG_RESERVE) \
        X(TCP_LISTEN_BCAST) X(TCP_NO_ROUTE) X(TCP_DEFER_ACCEPT) X(TCP_REQ_OOW) X(TCP_REQ_NOACK) \
        X(TCP_REQ_LIMITED) X(TCP_TW) X(TCP_CLOSE) X(TCP_ZEROWINDOW) X(TCP_OLD_DATA) X(TCP_OVERWINDOW) \
        X(TCP_OFOMERGE) X(TCP_RFC7323_PAWS) X(TCP_RFC7323_PAWS_ACK) X(TCP_RFC7323_TSECR) X(TCP_OLD_SEQUENCE) \
        X(TCP_INVALID_SEQUENCE) X(TCP_INVALID_END_SEQUENCE) X(TCP_RESET) X(TCP_INVALID_SYN) \
        X(TCP_INVALID_ACK_SEQUENCE) X(TCP_TOO_OLD_ACK) X(TCP_ACK_UNSENT_DATA) X(TCP_OFO_QUEUE_PRUNE) \
        X(TCP_OFO_DROP) X(TCP_ABORT_ON_DATA) X(TCP_FASTOPEN) X(TCP_OLD_ACK) X(ICMP_CSUM) X(ICMP_INVALID) \
        X(ICMP_NO_SOCKET) X(ICMP_OOW) X(POOL_REQ) X(POOL_TCB) X(POOL_RCV) X(HOOK) X(PROTO_MEM) X(SOCKET_RCVBUFF) \
        X(TCP_AUTH_HDR) X(TCP_AOFAILURE)

    #define USTACK_MIB_ENUM(n) MIB_##n,
    #define USTACK_NAME(n) #n,
    enum { USTACK_MIB_LIST(USTACK_MIB_ENUM) MIB_COUNT };
    static const char *const ustack_mib_names[] = { USTACK_MIB_LIST(USTACK_NAME) };
    static const char *const ustack_drop_names[] = { USTACK_DROP_LIST(USTACK_NAME) };
    #define USTACK_DROP_NAMES (sizeof(ustack_drop_names) / sizeof(ustack_drop_names[0]))
    #define ustack_assert_drop_names(n) _Static_assert((n) == USTACK_DROP_NAMES, "drop names and types.pxd differ")
    """
    const char* ustack_mib_names[]
    const char* ustack_drop_names[]
    void ustack_assert_drop_names(int n) noexcept nogil
    enum:
        MIB_IpInReceives, MIB_IpInHdrErrors, MIB_IpInAddrErrors, MIB_IpForwDatagrams, MIB_IpInUnknownProtos
        MIB_IpInDiscards, MIB_IpInDelivers, MIB_IpOutRequests, MIB_IpOutDiscards, MIB_IpOutNoRoutes
        MIB_IpReasmTimeout, MIB_IpReasmReqds, MIB_IpReasmOKs, MIB_IpReasmFails, MIB_IpFragOKs, MIB_IpFragFails
        MIB_IpFragCreates, MIB_IpOutTransmits
        MIB_IcmpInMsgs, MIB_IcmpInErrors, MIB_IcmpInCsumErrors, MIB_IcmpInDestUnreachs, MIB_IcmpInTimeExcds
        MIB_IcmpInParmProbs, MIB_IcmpInSrcQuenchs, MIB_IcmpInRedirects, MIB_IcmpInEchos, MIB_IcmpInEchoReps
        MIB_IcmpInTimestamps, MIB_IcmpInTimestampReps, MIB_IcmpInAddrMasks, MIB_IcmpInAddrMaskReps, MIB_IcmpOutMsgs
        MIB_IcmpOutErrors, MIB_IcmpOutRateLimitGlobal, MIB_IcmpOutRateLimitHost, MIB_IcmpOutDestUnreachs
        MIB_IcmpOutTimeExcds, MIB_IcmpOutParmProbs, MIB_IcmpOutSrcQuenchs, MIB_IcmpOutRedirects, MIB_IcmpOutEchos
        MIB_IcmpOutEchoReps, MIB_IcmpOutTimestamps, MIB_IcmpOutTimestampReps, MIB_IcmpOutAddrMasks
        MIB_IcmpOutAddrMaskReps
        MIB_TcpActiveOpens, MIB_TcpPassiveOpens, MIB_TcpAttemptFails, MIB_TcpEstabResets, MIB_TcpCurrEstab
        MIB_TcpInSegs, MIB_TcpOutSegs, MIB_TcpRetransSegs, MIB_TcpInErrs, MIB_TcpOutRsts, MIB_TcpInCsumErrors
        MIB_UdpInDatagrams, MIB_UdpNoPorts, MIB_UdpInErrors, MIB_UdpOutDatagrams, MIB_UdpRcvbufErrors
        MIB_UdpSndbufErrors, MIB_UdpInCsumErrors, MIB_UdpIgnoredMulti, MIB_UdpMemErrors
        MIB_UdpLiteInDatagrams, MIB_UdpLiteNoPorts, MIB_UdpLiteInErrors, MIB_UdpLiteOutDatagrams
        MIB_UdpLiteRcvbufErrors, MIB_UdpLiteSndbufErrors, MIB_UdpLiteInCsumErrors, MIB_UdpLiteIgnoredMulti
        MIB_UdpLiteMemErrors
        MIB_TcpExtSyncookiesSent, MIB_TcpExtSyncookiesRecv, MIB_TcpExtSyncookiesFailed, MIB_TcpExtEmbryonicRsts
        MIB_TcpExtPruneCalled, MIB_TcpExtRcvPruned, MIB_TcpExtOfoPruned, MIB_TcpExtOutOfWindowIcmps
        MIB_TcpExtLockDroppedIcmps, MIB_TcpExtArpFilter, MIB_TcpExtTW, MIB_TcpExtTWRecycled, MIB_TcpExtTWKilled
        MIB_TcpExtPAWSActive, MIB_TcpExtPAWSEstab, MIB_TcpExtBeyondWindow, MIB_TcpExtTSEcrRejected
        MIB_TcpExtPAWSOldAck, MIB_TcpExtPAWSTimewait, MIB_TcpExtDelayedACKs, MIB_TcpExtDelayedACKLocked
        MIB_TcpExtDelayedACKLost, MIB_TcpExtListenOverflows, MIB_TcpExtListenDrops, MIB_TcpExtTCPHPHits
        MIB_TcpExtTCPPureAcks, MIB_TcpExtTCPHPAcks, MIB_TcpExtTCPRenoRecovery, MIB_TcpExtTCPSackRecovery
        MIB_TcpExtTCPSACKReneging, MIB_TcpExtTCPSACKReorder, MIB_TcpExtTCPRenoReorder, MIB_TcpExtTCPTSReorder
        MIB_TcpExtTCPFullUndo, MIB_TcpExtTCPPartialUndo, MIB_TcpExtTCPDSACKUndo, MIB_TcpExtTCPLossUndo
        MIB_TcpExtTCPLostRetransmit, MIB_TcpExtTCPRenoFailures, MIB_TcpExtTCPSackFailures, MIB_TcpExtTCPLossFailures
        MIB_TcpExtTCPFastRetrans, MIB_TcpExtTCPSlowStartRetrans, MIB_TcpExtTCPTimeouts, MIB_TcpExtTCPLossProbes
        MIB_TcpExtTCPLossProbeRecovery, MIB_TcpExtTCPRenoRecoveryFail, MIB_TcpExtTCPSackRecoveryFail
        MIB_TcpExtTCPRcvCollapsed, MIB_TcpExtTCPBacklogCoalesce, MIB_TcpExtTCPDSACKOldSent, MIB_TcpExtTCPDSACKOfoSent
        MIB_TcpExtTCPDSACKRecv, MIB_TcpExtTCPDSACKOfoRecv, MIB_TcpExtTCPAbortOnData, MIB_TcpExtTCPAbortOnClose
        MIB_TcpExtTCPAbortOnMemory, MIB_TcpExtTCPAbortOnTimeout, MIB_TcpExtTCPAbortOnLinger, MIB_TcpExtTCPAbortFailed
        MIB_TcpExtTCPMemoryPressures, MIB_TcpExtTCPMemoryPressuresChrono, MIB_TcpExtTCPSACKDiscard
        MIB_TcpExtTCPDSACKIgnoredOld, MIB_TcpExtTCPDSACKIgnoredNoUndo, MIB_TcpExtTCPSpuriousRTOs
        MIB_TcpExtTCPMD5NotFound, MIB_TcpExtTCPMD5Unexpected, MIB_TcpExtTCPMD5Failure, MIB_TcpExtTCPSackShifted
        MIB_TcpExtTCPSackMerged, MIB_TcpExtTCPSackShiftFallback, MIB_TcpExtTCPBacklogDrop, MIB_TcpExtPFMemallocDrop
        MIB_TcpExtTCPMinTTLDrop, MIB_TcpExtTCPDeferAcceptDrop, MIB_TcpExtIPReversePathFilter
        MIB_TcpExtTCPTimeWaitOverflow, MIB_TcpExtTCPReqQFullDoCookies, MIB_TcpExtTCPReqQFullDrop
        MIB_TcpExtTCPRetransFail, MIB_TcpExtTCPRcvCoalesce, MIB_TcpExtTCPOFOQueue, MIB_TcpExtTCPOFODrop
        MIB_TcpExtTCPOFOMerge, MIB_TcpExtTCPChallengeACK, MIB_TcpExtTCPSYNChallenge, MIB_TcpExtTCPFastOpenActive
        MIB_TcpExtTCPFastOpenActiveFail, MIB_TcpExtTCPFastOpenPassive, MIB_TcpExtTCPFastOpenPassiveFail
        MIB_TcpExtTCPFastOpenListenOverflow, MIB_TcpExtTCPFastOpenCookieReqd, MIB_TcpExtTCPFastOpenBlackhole
        MIB_TcpExtTCPSpuriousRtxHostQueues, MIB_TcpExtBusyPollRxPackets, MIB_TcpExtTCPAutoCorking
        MIB_TcpExtTCPFromZeroWindowAdv, MIB_TcpExtTCPToZeroWindowAdv, MIB_TcpExtTCPWantZeroWindowAdv
        MIB_TcpExtTCPSynRetrans, MIB_TcpExtTCPOrigDataSent, MIB_TcpExtTCPHystartTrainDetect
        MIB_TcpExtTCPHystartTrainCwnd, MIB_TcpExtTCPHystartDelayDetect, MIB_TcpExtTCPHystartDelayCwnd
        MIB_TcpExtTCPACKSkippedSynRecv, MIB_TcpExtTCPACKSkippedPAWS, MIB_TcpExtTCPACKSkippedSeq
        MIB_TcpExtTCPACKSkippedFinWait2, MIB_TcpExtTCPACKSkippedTimeWait, MIB_TcpExtTCPACKSkippedChallenge
        MIB_TcpExtTCPWinProbe, MIB_TcpExtTCPKeepAlive, MIB_TcpExtTCPMTUPFail, MIB_TcpExtTCPMTUPSuccess
        MIB_TcpExtTCPDelivered, MIB_TcpExtTCPDeliveredCE, MIB_TcpExtTCPAckCompressed, MIB_TcpExtTCPZeroWindowDrop
        MIB_TcpExtTCPRcvQDrop, MIB_TcpExtTCPWqueueTooBig, MIB_TcpExtTCPFastOpenPassiveAltKey
        MIB_TcpExtTcpTimeoutRehash, MIB_TcpExtTcpDuplicateDataRehash, MIB_TcpExtTCPDSACKRecvSegs
        MIB_TcpExtTCPDSACKIgnoredDubious, MIB_TcpExtTCPMigrateReqSuccess, MIB_TcpExtTCPMigrateReqFailure
        MIB_TcpExtTCPPLBRehash, MIB_TcpExtTCPAORequired, MIB_TcpExtTCPAOBad, MIB_TcpExtTCPAOKeyNotFound
        MIB_TcpExtTCPAOGood, MIB_TcpExtTCPAODroppedIcmps
        MIB_IpExtInNoRoutes, MIB_IpExtInTruncatedPkts, MIB_IpExtInMcastPkts, MIB_IpExtOutMcastPkts
        MIB_IpExtInBcastPkts, MIB_IpExtOutBcastPkts, MIB_IpExtInOctets, MIB_IpExtOutOctets, MIB_IpExtInMcastOctets
        MIB_IpExtOutMcastOctets, MIB_IpExtInBcastOctets, MIB_IpExtOutBcastOctets, MIB_IpExtInCsumErrors
        MIB_IpExtInNoECTPkts, MIB_IpExtInECT1Pkts, MIB_IpExtInECT0Pkts, MIB_IpExtInCEPkts, MIB_IpExtReasmOverlaps
        MIB_COUNT

cdef struct stats_t:
    uint64_t mib[MIB_COUNT]
    uint64_t icmp_in_type[256]          # IcmpMsgInType<n>
    uint64_t icmp_out_type[256]         # IcmpMsgOutType<n>
    uint64_t drops[DROP_REASONS]


cdef inline void mib_inc(stats_t* s, int id) noexcept nogil:
    s.mib[id] += 1


cdef inline void mib_add(stats_t* s, int id, int64_t n) noexcept nogil:
    s.mib[id] += <uint64_t>n


cdef inline void mib_dec(stats_t* s, int id) noexcept nogil:
    # For levels only.
    s.mib[id] -= 1


cdef inline void drop_inc(stats_t* s, int reason) noexcept nogil:
    s.drops[reason] += 1


cdef inline const char* mib_name(int id) noexcept nogil:
    # nstat's name ("TcpExtListenDrops"), NULL outside the table.
    if id < 0 or id >= MIB_COUNT:
        return NULL
    return ustack_mib_names[id]


cdef inline const char* drop_name(int reason) noexcept nogil:
    # "TCP_LISTEN_OVERFLOW", NULL outside the table.
    ustack_assert_drop_names(DROP_REASONS)
    if reason < 0 or reason >= DROP_REASONS:
        return NULL
    return ustack_drop_names[reason]
