# The one compiled unit. For now it only makes the core's leaf files compile together.

cimport ustack.core.acceptq as acceptq
cimport ustack.core.bind as bind
cimport ustack.core.cc as cc
cimport ustack.core.cksum as cksum
cimport ustack.core.connect as connect
cimport ustack.core.cookies as cookies
cimport ustack.core.ehash as ehash
cimport ustack.core.engine as engine
cimport ustack.core.fastopen_client as fastopen_client
cimport ustack.core.ipopt as ipopt
cimport ustack.core.metrics as metrics
cimport ustack.core.ipout as ipout
cimport ustack.core.paws as paws
cimport ustack.core.pool as pool
cimport ustack.core.rate as rate
cimport ustack.core.ring as ring
cimport ustack.core.route as route
cimport ustack.core.rtt as rtt
cimport ustack.core.sendq as sendq
cimport ustack.core.seqno as seqno
cimport ustack.core.siphash as siphash
cimport ustack.core.stats as stats
cimport ustack.core.tx as tx
cimport ustack.core.timewait as timewait
cimport ustack.core.wheel as wheel
cimport ustack.core.wire as wire
