# What _matcher.pyx takes from _device_set.pyx without going through Python.

from libc.stdint cimport uint32_t, uint64_t

from ota_hook._packed cimport Span

cdef struct Digest:
    # A digest of 128 bits, as the two numbers that its 16 bytes are, most significant first.
    uint64_t high
    uint64_t low

cdef Digest digest_of(Span identifier, uint64_t seed) noexcept nogil
cdef Span span_of(object text, list keep) except *

cdef class DeviceSet:
    cdef readonly uint64_t seed
    cdef Digest* members
    cdef Py_ssize_t count
    cdef int _take(self, Digest* members, Py_ssize_t count) except -1
    cdef bint has(self, Digest digest) noexcept nogil

cdef class DeviceGroups:
    cdef readonly tuple sets
    cdef uint64_t seed
    cdef Digest* keys
    cdef uint32_t* groups
    cdef size_t slots
    cdef size_t used
    cdef uint32_t* wider
    cdef uint32_t* added
    cdef uint32_t* narrowed_by
    cdef uint32_t* narrowed_to
    cdef size_t group_count
    cdef size_t group_room
    cdef uint32_t group_of(self, Digest digest) noexcept nogil
    cdef list sets_of(self, uint32_t group)
    cdef int _add_set(self, DeviceSet members, uint32_t index) except -1 nogil
    cdef uint32_t _narrow(self, uint32_t wider, uint32_t index) except? 0 nogil
    cdef int _make_room(self, size_t slots) except -1 nogil
