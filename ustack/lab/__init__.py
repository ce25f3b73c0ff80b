"""The live side of `ustack diff`: scenarios run against the host's kernel and recorded.

`scenario` reads scenario files, `script` is their language, `kernel` is the namespace with its TUN device,
`bench` plays a scenario there and writes down every step in the format of recordings, `run` does that for
many scenarios at a time. The comparison itself is `ustack.replay`, on the recording made here.
"""
