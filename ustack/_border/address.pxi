# IPv4 addresses as text and as numbers. Included by _fastpath.pyx.

cdef object py_flow(uint32_t laddr, uint16_t lport, uint32_t faddr, uint16_t fport):
    return (dotted(laddr), lport, dotted(faddr), fport)


cdef str dotted(uint32_t a):
    """Each accept() makes one: digits, not a format."""
    cdef char text[16]
    cdef uint32_t n = 0
    cdef uint32_t v
    cdef int shift
    for shift in range(24, -1, -8):
        v = a >> shift & 255
        if v >= 100:
            text[n] = <char> (48 + v // 100)
            n += 1
        if v >= 10:
            text[n] = <char> (48 + v // 10 % 10)
            n += 1
        text[n] = <char> (48 + v % 10)
        text[n + 1] = 46
        n += 2
    return PyUnicode_FromStringAndSize(text, n - 1)


cdef uint32_t undotted(object text) except? 0:
    """A host-order address from "a.b.c.d", an int, or "" (any)."""
    cdef list parts
    cdef uint32_t a = 0
    cdef long v
    if isinstance(text, int):
        return <uint32_t> text
    if text == "" or text is None:
        return 0
    parts = str(text).split(".")
    if len(parts) != 4:
        raise failure(E_INVAL, f"{text!r} is not an IPv4 address: write it as a.b.c.d")
    for part in parts:
        if not part.isdigit() or int(part) > 255:
            raise failure(E_INVAL, f"{text!r} is not an IPv4 address: write it as a.b.c.d")
        v = int(part)
        a = (a << 8) | <uint32_t> v
    return a


def add_address(Engine engine not None, text):
    """Make "a.b.c.d/len" ours; host bits all zero with len < 32: every address of the prefix."""
    host, _, length = str(text).partition("/")
    cdef uint32_t a = undotted(host)
    if length and not (length.isdigit() and int(length) <= 32):
        raise failure(E_INVAL, f"{text!r}: the prefix length is a number from 0 to 32")
    cdef int plen = int(length) if length else 32
    whole = plen < 32 and a & ((1 << (32 - plen)) - 1) == 0
    change_address(engine, "add", a, plen, whole)
