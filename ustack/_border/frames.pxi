# The frames that an Engine hands out as Python bytes. Included by _fastpath.pyx after the class.

cdef uint32_t frame_pieces(txframe_t* f, bint gso, uint8_t** p, uint32_t* lens, int64_t* ats, uint16_t* sizes) noexcept nogil:
    """Copy one frame out, cut into MTU-sized packets unless gso. Returns the number of packets."""
    cdef uint32_t k
    cdef uint32_t n
    cdef uint32_t pieces = 1 if gso else tx_segs(f)
    for k in range(pieces):
        n = tx_whole(f, p[0]) if gso else tx_segment(f, k, p[0])
        lens[k] = n
        ats[k] = f.at
        sizes[k] = f.gso_size if gso and tx_segs(f) > 1 else 0
        p[0] += n
    return pieces


cdef list take_frames(Engine engine, bint gso):
    """Engine.transmit and transmit_gso: copied out under the lock, made Python objects after it."""
    cdef uint32_t i
    cdef uint32_t n
    cdef uint32_t k
    cdef uint32_t pieces
    cdef size_t total = 0
    cdef uint8_t* buf
    cdef uint8_t* p
    cdef uint32_t* lens
    cdef int64_t* ats
    cdef uint16_t* sizes
    cdef txframe_t* f
    cdef list out = []
    acquire(engine.e, &engine.s)
    n = engine.e.tx_n
    if n == 0:
        engine_tx_done(engine.e)
        release(engine.e, &engine.s)
        return out
    # Room for every piece of every frame: headers are repeated per segment.
    k = 0
    for i in range(n):
        f = &engine.e.tx[i]
        pieces = 1 if gso else tx_segs(f)
        k += pieces
        total += tx_len(f) + <size_t> f.hlen * (pieces - 1)
    buf = <uint8_t*> malloc(total + 1)
    lens = <uint32_t*> malloc(k * sizeof(uint32_t))
    ats = <int64_t*> malloc(k * sizeof(int64_t))
    sizes = <uint16_t*> malloc(k * sizeof(uint16_t))
    if buf == NULL or lens == NULL or ats == NULL or sizes == NULL:
        release(engine.e, &engine.s)
        free(buf)
        free(lens)
        free(ats)
        free(sizes)
        raise MemoryError
    p = buf
    k = 0
    for i in range(n):
        f = &engine.e.tx[i]
        k += frame_pieces(f, gso, &p, lens + k, ats + k, sizes + k)
    engine_tx_done(engine.e)
    release(engine.e, &engine.s)
    p = buf
    for i in range(k):
        packet = PyBytes_FromStringAndSize(<char*> p, lens[i])
        p += lens[i]
        out.append((ats[i], packet, sizes[i]) if gso else (ats[i], packet))
    free(buf)
    free(lens)
    free(ats)
    free(sizes)
    return out
