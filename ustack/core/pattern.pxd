# The text of the chargen service (RFC 864): 95 lines of 72 printable characters, each line beginning one character later (leaf).
#
# Its byte at stream offset n depends on n modulo PATTERN only, and the table holds enough repetitions for the longest record to lie in one
# piece wherever it begins. So a socket whose payload is this text (SF_NO_RINGS) needs no send buffer: a frame points into the table.
# pattern_make before the first use; making it twice at the same time is harmless.

from ustack.core.types cimport uint8_t, uint32_t

cdef enum:
    PATTERN = 95 * 74           # then it repeats

cdef extern from *:
    """
    #define USTACK_PATTERN_REPEATS 11   /* 7030 + 65536 bytes and a little */
    static unsigned char ustack_pattern[95 * 74 * USTACK_PATTERN_REPEATS];
    static int ustack_pattern_made;
    static void ustack_make_pattern(void) {
      int line, i;
      if (ustack_pattern_made) return;
      for (line = 0; line < 95 * USTACK_PATTERN_REPEATS; line++) {
        for (i = 0; i < 72; i++) ustack_pattern[line * 74 + i] = (unsigned char)(32 + (line + i) % 95);
        ustack_pattern[line * 74 + 72] = '\\r'; ustack_pattern[line * 74 + 73] = '\\n';
      }
      ustack_pattern_made = 1;
    }
    """
    uint8_t* pattern_text_ "ustack_pattern"
    void pattern_make "ustack_make_pattern"() noexcept nogil


cdef inline const uint8_t* pattern_at(uint32_t offset) noexcept nogil:
    """At least 65,536 bytes of the text from this offset of the stream on."""
    return pattern_text_ + offset % PATTERN
