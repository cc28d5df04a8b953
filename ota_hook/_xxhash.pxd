# xxHash (xxhash.h, inlined): the hash functions that the compiled modules share.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #define XXH_INLINE_ALL
    #include <xxhash.h>
    """
    ctypedef struct XXH128_hash_t:
        uint64_t low64
        uint64_t high64

    uint64_t XXH3_64bits_withSeed(const void* data, size_t size, uint64_t seed) noexcept nogil
    XXH128_hash_t XXH3_128bits_withSeed(const void* data, size_t size, uint64_t seed) noexcept nogil
