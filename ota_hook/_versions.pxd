# What _matcher.pyx takes from _versions.pyx without going through Python.

cdef enum Scheme:
    AUTO
    SEMVER
    PEP440
    DEBIAN

cdef Scheme scheme_named(object name) except *
cdef str plain(object text)
cdef bytes key_in(Scheme scheme, str text)
