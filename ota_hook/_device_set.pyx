# cython: auto_pickle=False, autotestdict=False
"""Sets of devices that hold up to a million identifiers: 16 bytes of memory for each.

Of an identifier only a digest of 128 bits is kept: XXH3's, with a seed that is the deployment's secret. That two
identifiers of a fleet share one is as likely as guessing a key of a hundred bits, and who can't see the seed can't look
for two that do. It must not know what a set is for.
"""

cimport cython
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcpy
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

from ota_hook._xxhash cimport XXH128_hash_t, XXH3_128bits_withSeed

cdef extern from *:
    """
    #define OTA_SWAP_ON_LITTLE_ENDIAN (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
    static inline uint64_t ota_big_endian(uint64_t n) { return OTA_SWAP_ON_LITTLE_ENDIAN ? __builtin_bswap64(n) : n; }
    /* n of [0, 2^64) onto [0, slots): no division, and any number of slots */
    static inline size_t ota_slot(uint64_t n, size_t slots) { return (size_t)(((unsigned __int128)n * slots) >> 64); }
    """
    uint64_t ota_big_endian(uint64_t number) noexcept nogil
    size_t ota_slot(uint64_t number, size_t slots) noexcept nogil

cdef enum:
    DIGEST_BYTES = 16
    ROOM_AT_FIRST = 64

cdef uint32_t NONE = 0xffffffff


cdef Digest digest_of(Span identifier, uint64_t seed) noexcept nogil:  # computes numbers
    cdef XXH128_hash_t hashed = XXH3_128bits_withSeed(identifier.data, identifier.size, seed)
    return Digest(hashed.high64, hashed.low64)


cdef Span span_of(object text, list keep) except *:
    """The UTF-8 of a text. It belongs to the text, or to what is put into `keep`."""
    cdef Span span
    cdef bytes encoded
    if type(text) is str and (<str>text).isascii():
        span.data = PyUnicode_AsUTF8AndSize(text, &span.size)
        return span
    if not isinstance(text, str):
        raise TypeError(f"expected str, got {type(text).__name__}")
    # A lone surrogate, which JSON can spell, must not raise.
    encoded = str.encode(text, "utf-8", "surrogatepass")
    keep.append(encoded)
    span.data = encoded
    span.size = len(encoded)
    return span


cdef inline bint _is_less(Digest left, Digest right) noexcept nogil:  # compares numbers
    return left.high < right.high or (left.high == right.high and left.low < right.low)


cdef inline bint _is_same(Digest left, Digest right) noexcept nogil:  # likewise
    return left.high == right.high and left.low == right.low


cdef int _order(const void* left, const void* right) noexcept nogil:  # likewise
    if _is_less((<const Digest*>left)[0], (<const Digest*>right)[0]):
        return -1
    return _is_less((<const Digest*>right)[0], (<const Digest*>left)[0])


@cython.final
cdef class DeviceSet:
    """An immutable set of devices, sorted by digest."""

    def __cinit__(self, uint64_t seed, bytes digests not None=b""):
        cdef Py_ssize_t count = len(digests) // DIGEST_BYTES
        cdef const char* source = digests
        cdef Digest* members
        cdef Py_ssize_t place
        if len(digests) % DIGEST_BYTES:
            raise ValueError(f"digests of {DIGEST_BYTES} bytes, but {len(digests)} bytes in all")
        self.seed = seed
        self.members = NULL
        members = <Digest*>malloc(max(len(digests), 1))
        if members is NULL:
            raise MemoryError
        with nogil:
            memcpy(members, source, count * DIGEST_BYTES)
            for place in range(count):
                members[place].high = ota_big_endian(members[place].high)
                members[place].low = ota_big_endian(members[place].low)
        self._take(members, count)

    def __dealloc__(self):
        free(self.members)

    @staticmethod
    def of(identifiers not None, *, uint64_t seed):
        """The set of these identifiers."""
        builder = DeviceSetBuilder(seed)
        for identifier in identifiers:
            builder.add(identifier)
        return builder.finish()

    def __len__(self):
        return self.count

    def __contains__(self, identifier):
        cdef list keep = []
        return self.has(digest_of(span_of(identifier, keep), self.seed))

    def __eq__(self, other):
        if not isinstance(other, DeviceSet):
            return NotImplemented
        return self.seed == other.seed and self.digests() == other.digests()

    def __hash__(self):
        return hash((self.seed, self.count))

    def __sizeof__(self):
        return object.__sizeof__(self) + self.count * DIGEST_BYTES

    def digests(self):
        """What the constructor takes: 16 bytes for each member, ascending."""
        cdef bytearray all_bytes = bytearray(self.count * DIGEST_BYTES)
        cdef Digest* into = <Digest*><char*>all_bytes
        cdef Py_ssize_t place
        for place in range(self.count):
            into[place].high = ota_big_endian(self.members[place].high)
            into[place].low = ota_big_endian(self.members[place].low)
        return bytes(all_bytes)

    def isdisjoint(self, DeviceSet other not None):
        """Whether no device is in both. Sets of different seeds can't be compared: ValueError."""
        cdef Py_ssize_t ours = 0
        cdef Py_ssize_t theirs = 0
        if self.count == 0 or other.count == 0:
            return True
        if self.seed != other.seed:
            raise ValueError("the sets were made with different seeds")
        with nogil:
            while ours < self.count and theirs < other.count:
                if _is_same(self.members[ours], other.members[theirs]):
                    with gil:
                        return False
                if _is_less(self.members[ours], other.members[theirs]):
                    ours += 1
                else:
                    theirs += 1
        return True

    cdef int _take(self, Digest* members, Py_ssize_t count) except -1:
        """Make these the members, sorted and each once."""
        cdef Py_ssize_t place
        cdef Py_ssize_t kept = 0
        cdef bint is_sorted = True
        with nogil:
            for place in range(1, count):
                if not _is_less(members[place - 1], members[place]):
                    is_sorted = False
                    break
            if not is_sorted:
                qsort(members, count, sizeof(Digest), _order)
                for place in range(count):
                    if kept == 0 or not _is_same(members[kept - 1], members[place]):
                        members[kept] = members[place]
                        kept += 1
                count = kept
        free(self.members)
        self.members = members
        self.count = count
        return 0

    cdef bint has(self, Digest digest) noexcept nogil:  # looks between 0 and count
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        while low < high:
            middle = low + (high - low) // 2
            if _is_less(self.members[middle], digest):
                low = middle + 1
            else:
                high = middle
        return low < self.count and _is_same(self.members[low], digest)


@cython.final
cdef class DeviceSetBuilder:
    """Collects identifiers and tells which of them are new."""

    cdef DeviceGroups seen

    def __cinit__(self, uint64_t seed):
        self.seen = DeviceGroups((), seed=seed)

    def __len__(self):
        return self.seen.used

    def add(self, identifier not None):
        """Add one; whether it was not there yet."""
        cdef list keep = []
        cdef Digest digest = digest_of(span_of(identifier, keep), self.seen.seed)
        cdef size_t slot
        if (self.seen.used + 1) * 4 > self.seen.slots * 3:
            self.seen._make_room(self.seen.slots * 2)
        slot = _find_slot(self.seen, digest)
        if self.seen.groups[slot]:
            return False
        self.seen.keys[slot] = digest
        self.seen.groups[slot] = 1
        self.seen.used += 1
        return True

    def add_new(self, list identifiers not None):
        """Add these; those of them that were not there yet, in their order."""
        return [identifier for identifier in identifiers if self.add(identifier)]

    def finish(self):
        """The set of all that were added."""
        cdef DeviceSet made = DeviceSet(self.seen.seed)
        cdef Digest* members = <Digest*>malloc(max(self.seen.used, 1) * sizeof(Digest))
        cdef size_t slot
        cdef Py_ssize_t count = 0
        if members is NULL:
            raise MemoryError
        with nogil:
            for slot in range(self.seen.slots):
                if self.seen.groups[slot]:
                    members[count] = self.seen.keys[slot]
                    count += 1
        made._take(members, count)
        return made


cdef size_t _find_slot(DeviceGroups table, Digest digest) noexcept nogil:  # a quarter of the slots is always empty
    """Where the digest is, or the empty slot where it belongs."""
    cdef size_t slot = ota_slot(digest.low, table.slots)
    while table.groups[slot] and not _is_same(table.keys[slot], digest):
        slot += 1
        if slot == table.slots:
            slot = 0
    return slot


@cython.final
cdef class DeviceGroups:
    """Several sets in one table: devices that the same sets have are one group. Immutable, asked in constant time.

    Group 0 is who is in none. Each other group is a wider one and one set more. About 27 to 53 bytes for each device.
    """

    def __cinit__(self, tuple sets not None, *, uint64_t seed):
        cdef DeviceSet members
        cdef size_t largest = 0
        cdef uint32_t index
        self.keys = NULL
        self.groups = self.wider = self.added = self.narrowed_by = self.narrowed_to = NULL
        self.slots = self.used = self.group_count = self.group_room = 0
        self.sets = sets
        self.seed = seed
        for members in sets:
            if members.seed != seed:
                raise ValueError("a set was made with another seed")
            largest = max(largest, <size_t>members.count)
        self._make_room(max(largest * 3 // 2, <size_t>ROOM_AT_FIRST))
        self._narrow(NONE, 0)  # group 0
        for index in range(<uint32_t>len(sets)):
            members = sets[index]
            with nogil:
                self._add_set(members, index)

    def __dealloc__(self):
        free(self.keys)
        free(self.groups)
        free(self.wider)
        free(self.added)
        free(self.narrowed_by)
        free(self.narrowed_to)

    def __len__(self):
        return self.used

    def __sizeof__(self):
        return (
            object.__sizeof__(self)
            + self.slots * (sizeof(Digest) + sizeof(uint32_t))
            + self.group_room * 4 * sizeof(uint32_t)
        )

    cdef uint32_t group_of(self, Digest digest) noexcept nogil:  # see _find_slot
        return self.groups[_find_slot(self, digest)]

    cdef list sets_of(self, uint32_t group):
        """The numbers of the sets that all devices of the group are in, the last first."""
        cdef list numbers = []
        while group:
            numbers.append(self.added[group])
            group = self.wider[group]
        return numbers

    cdef int _add_set(self, DeviceSet members, uint32_t index) except -1 nogil:
        cdef Py_ssize_t place
        cdef size_t slot
        for place in range(members.count):
            slot = _find_slot(self, members.members[place])
            if not self.groups[slot]:
                if (self.used + 1) * 4 > self.slots * 3:
                    self._make_room(self.slots * 2)
                    slot = _find_slot(self, members.members[place])
                self.keys[slot] = members.members[place]
                self.used += 1
            self.groups[slot] = self._narrow(self.groups[slot], index)
        return 0

    cdef uint32_t _narrow(self, uint32_t wider, uint32_t index) except? 0 nogil:
        """The group of who is in `wider` and in the set of that number too; made where it is not there."""
        cdef uint32_t made
        if wider != NONE and self.narrowed_by[wider] == index:
            return self.narrowed_to[wider]
        if self.group_count == self.group_room:
            self.group_room = max(self.group_room * 2, <size_t>ROOM_AT_FIRST)
            self.wider = <uint32_t*>_grown(self.wider, self.group_room)
            self.added = <uint32_t*>_grown(self.added, self.group_room)
            self.narrowed_by = <uint32_t*>_grown(self.narrowed_by, self.group_room)
            self.narrowed_to = <uint32_t*>_grown(self.narrowed_to, self.group_room)
        made = <uint32_t>self.group_count
        self.group_count += 1
        self.wider[made] = wider
        self.added[made] = index
        self.narrowed_by[made] = NONE
        if wider != NONE:
            self.narrowed_by[wider] = index
            self.narrowed_to[wider] = made
        return made

    cdef int _make_room(self, size_t slots) except -1 nogil:
        cdef Digest* old_keys = self.keys
        cdef uint32_t* old_groups = self.groups
        cdef size_t old_slots = self.slots
        cdef size_t old, slot
        cdef Digest* new_keys = <Digest*>malloc(slots * sizeof(Digest))
        cdef uint32_t* new_groups = <uint32_t*>malloc(slots * sizeof(uint32_t))
        if new_keys is NULL or new_groups is NULL:
            free(new_keys)
            free(new_groups)
            with gil:
                raise MemoryError
        for slot in range(slots):
            new_groups[slot] = 0
        self.keys, self.groups, self.slots = new_keys, new_groups, slots
        for old in range(old_slots):
            if old_groups[old]:
                slot = _find_slot(self, old_keys[old])
                new_keys[slot] = old_keys[old]
                new_groups[slot] = old_groups[old]
        free(old_keys)
        free(old_groups)
        return 0


cdef void* _grown(void* numbers, size_t room) except NULL nogil:
    cdef void* grown = realloc(numbers, room * sizeof(uint32_t))
    if grown is NULL:
        with gil:
            raise MemoryError
    return grown
