# What _matcher.pyx takes from _packed.pyx without going through Python.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Span:
    # `size` bytes of somebody else's buffer; `data` is NULL where there is nothing.
    const char* data
    Py_ssize_t size

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end

cdef class TextNumbers:
    cdef list texts
    cdef uint64_t* hashes
    cdef uint32_t* slots
    cdef size_t mask
    cdef uint64_t seed
    cdef Py_ssize_t find(self, Span text) noexcept
    cdef Py_ssize_t add(self, Span text) except -1
    cdef int clear(self) except -1
    cdef int _resize(self, size_t slots) except -1

cdef class BucketReader:
    cdef bytes bucket
    cdef bytes device_type
    cdef bytes attribute
    cdef Cursor cursor
    cdef Py_ssize_t left
    cdef Py_ssize_t unreadable
    cdef Span identifier
    cdef Span version
    cdef Span tags
    cdef int open(self, bytes bucket) except -1
    cdef bint next(self) noexcept
    cdef bint _give_up(self) noexcept
    cdef int _read_record(self, Span packed) noexcept

cdef str text_of(Span span)
