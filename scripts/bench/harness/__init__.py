"""The measuring harness behind scripts/bench/run: what is measured (rows), on what (peers), in which order and how often (measure).

net       namespaces of its own with a TUN or TAP device or a veth pair, removed also on failure
build     the C programs, ustack at -O2, the other stacks
process   a server and a client as processes: ready line, JSON lines, CPU time, time spent waiting for a core
peers     how each peer is started
rows      what is measured, with what must hold
memory    the rows about bytes
measure   alternating rounds, medians, ratios
tables    the results as text
plots     the results as pictures
document  the results as docs/performance.md
"""
