# cython: auto_pickle=False, autotestdict=False
"""Packed devices, read without a Python object for each.

Owns the reading of whole buckets as state/devices.py packs them: concatenated MessagePack arrays of identifier, packed
state, identifier, packed state, …, where an empty state stands for one in a later array. A packed state is the array
that state/records.py describes. It must not know what a version means.

Whatever the bytes are, nothing outside of them is read: a record that can't be read is counted and left out, and what
follows a broken array is one unreadable record.
"""

import secrets

cimport cython
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memset

from ota_hook._xxhash cimport XXH3_64bits_withSeed

cdef enum:
    NESTING_MAX = 8
    SLOTS_AT_FIRST = 64

cdef enum Record:
    OF_TYPE
    OF_ANOTHER_TYPE
    UNREADABLE


# --- MessagePack ------------------------------------------------------------------------------------------------------


cdef inline uint64_t _big_endian(const uint8_t* at, int size) noexcept:  # the caller saw that so many bytes are there
    cdef uint64_t number = 0
    cdef int place
    for place in range(size):
        number = number << 8 | at[place]
    return number


cdef Py_ssize_t _take_size(Cursor* cursor, int width) noexcept:  # compares and adds numbers
    """A size of `width` bytes behind the first byte, which is taken too; -1 where they are not all there."""
    if cursor.end - cursor.at < 1 + width:
        return -1
    cdef uint64_t size = _big_endian(cursor.at + 1, width)
    cursor.at += 1 + width
    return <Py_ssize_t>size


cdef bint _take_bytes(Cursor* cursor, Py_ssize_t size, Span* taken) noexcept:  # compares and adds numbers
    if size < 0 or size > cursor.end - cursor.at:
        return False
    taken.data = <const char*>cursor.at
    taken.size = size
    cursor.at += size
    return True


cdef bint _take_text(Cursor* cursor, Span* text) noexcept:  # bounds are checked before each byte
    """A string (or binary) value; False where something else stands there, or it is cut off."""
    if cursor.at >= cursor.end:
        return False
    cdef uint8_t head = cursor.at[0]
    if head >> 5 == 0b101:
        cursor.at += 1
        return _take_bytes(cursor, head & 31, text)
    if head == 0xd9 or head == 0xc4:
        return _take_bytes(cursor, _take_size(cursor, 1), text)
    if head == 0xda or head == 0xc5:
        return _take_bytes(cursor, _take_size(cursor, 2), text)
    if head == 0xdb or head == 0xc6:
        return _take_bytes(cursor, _take_size(cursor, 4), text)
    return False


cdef Py_ssize_t _take_array(Cursor* cursor) noexcept:  # likewise
    """How many values the array has that begins here; -1 where none does."""
    if cursor.at >= cursor.end:
        return -1
    cdef uint8_t head = cursor.at[0]
    if head >> 4 == 0b1001:
        cursor.at += 1
        return head & 15
    if head == 0xdc:
        return _take_size(cursor, 2)
    if head == 0xdd:
        return _take_size(cursor, 4)
    return -1


cdef int _fixed_size(uint8_t head) noexcept:  # looks a number up
    """How many bytes follow the first byte of a value of fixed size; -1 for one of another kind."""
    if head < 0x80 or head >= 0xe0 or head == 0xc0 or head == 0xc2 or head == 0xc3:
        return 0
    if head == 0xcc or head == 0xd0:
        return 1
    if head == 0xcd or head == 0xd1:
        return 2
    if head == 0xca or head == 0xce or head == 0xd2:
        return 4
    if head == 0xcb or head == 0xcf or head == 0xd3:
        return 8
    return -1


cdef bint _skip(Cursor* cursor, int nesting) noexcept:  # likewise
    """Step over one value: a number, nil, a boolean, a text, or an array of these; False for anything else."""
    cdef Span ignored
    cdef Py_ssize_t count
    cdef int size
    if cursor.at >= cursor.end:
        return False
    size = _fixed_size(cursor.at[0])
    if size >= 0:
        cursor.at += 1
        return _take_bytes(cursor, size, &ignored)
    if _take_text(cursor, &ignored):
        return True
    if nesting == 0:
        return False
    count = _take_array(cursor)
    if count < 0:
        return False
    while count > 0:
        if not _skip(cursor, nesting - 1):
            return False
        count -= 1
    return True


# --- buckets ----------------------------------------------------------------------------------------------------------


cdef inline bint _is(Span span, bytes text) noexcept:  # `text` is never None
    return span.size == len(text) and memcmp(span.data, <const char*>text, span.size) == 0


cdef str text_of(Span span):
    """As state/keys.py reads what it wrote. UnicodeDecodeError for what it did not write."""
    return span.data[:span.size].decode("utf-8", "surrogatepass")


@cython.final
cdef class BucketReader:
    """Steps through the devices of one type in bucket after bucket, with the version under one attribute.

    After each `next` that answers True `identifier`, `version` and `tags` point into the bucket that was opened last.
    """

    def __cinit__(self, str device_type not None, str attribute not None):
        self.device_type = device_type.encode("utf-8", "surrogatepass")
        self.attribute = attribute.encode("utf-8", "surrogatepass")
        self.unreadable = 0
        self.open(b"")

    cdef int open(self, bytes bucket) except -1:
        """Begin with another bucket."""
        self.bucket = bucket
        self.cursor.at = <const uint8_t*><const char*>bucket
        self.cursor.end = self.cursor.at + len(bucket)
        self.left = 0
        return 0

    cdef bint next(self) noexcept:  # reads within the bucket, which this object holds
        """Step to the next device of the type; False behind the last one."""
        cdef Span packed
        cdef Py_ssize_t values
        while True:
            if self.left == 0:
                if self.cursor.at == self.cursor.end:
                    return False
                values = _take_array(&self.cursor)
                if values < 0 or values % 2:
                    return self._give_up()
                self.left = values // 2
                continue
            self.left -= 1
            if not _take_text(&self.cursor, &self.identifier) or not _take_text(&self.cursor, &packed):
                return self._give_up()
            if packed.size == 0:
                continue
            found = self._read_record(packed)
            if found == OF_TYPE:
                return True
            if found == UNREADABLE:
                self.unreadable += 1

    cdef bint _give_up(self) noexcept:  # adds a number
        self.unreadable += 1
        self.cursor.at = self.cursor.end
        self.left = 0
        return False

    cdef int _read_record(self, Span packed) noexcept:  # reads within `packed`
        cdef Cursor cursor
        cdef Span name, value
        cdef Py_ssize_t values
        cursor.at = <const uint8_t*>packed.data
        cursor.end = cursor.at + packed.size
        values = _take_array(&cursor)
        if values < 1 or not _take_text(&cursor, &name):
            return UNREADABLE
        if not _is(name, self.device_type):
            return OF_ANOTHER_TYPE
        self.version.data = NULL
        self.tags.data = NULL
        values -= 1
        while values >= 3:
            if not _take_text(&cursor, &name) or not _skip(&cursor, NESTING_MAX) or not _take_text(&cursor, &value):
                return UNREADABLE
            if name.size == 0:
                self.tags = value
            elif _is(name, self.attribute):
                self.version = value
            values -= 3
        return OF_TYPE if values == 0 else UNREADABLE


# --- distinct texts ---------------------------------------------------------------------------------------------------


@cython.final
cdef class TextNumbers:
    """Numbers distinct texts 0, 1, 2, … in the order in which they came. Who asks bounds how many.

    Texts come from devices: the hash has a secret seed, so that nobody can choose texts that collide.
    """

    def __cinit__(self):
        self.hashes = NULL
        self.slots = NULL
        self.seed = secrets.randbits(64)
        self.clear()

    def __dealloc__(self):
        free(self.hashes)
        free(self.slots)

    cdef int clear(self) except -1:
        """Forget them all."""
        self.texts = []
        self._resize(SLOTS_AT_FIRST)
        return 0

    cdef Py_ssize_t find(self, Span text) noexcept:  # looks at what it has
        """The number of a text, -1 where it was not added."""
        cdef uint64_t hashed = XXH3_64bits_withSeed(text.data, text.size, self.seed)
        cdef size_t slot = hashed & self.mask
        cdef uint32_t number
        while self.slots[slot]:
            number = self.slots[slot] - 1
            if self.hashes[number] == hashed and _is(text, <bytes>self.texts[number]):
                return number
            slot = (slot + 1) & self.mask
        return -1

    cdef Py_ssize_t add(self, Span text) except -1:
        """Number a text that is not there yet."""
        cdef Py_ssize_t number = len(self.texts)
        cdef size_t slot
        if <size_t>(number + 1) * 2 > self.mask + 1:
            self._resize((self.mask + 1) * 2)
        self.texts.append(text.data[:text.size])
        self.hashes[number] = XXH3_64bits_withSeed(text.data, text.size, self.seed)
        slot = self.hashes[number] & self.mask
        while self.slots[slot]:
            slot = (slot + 1) & self.mask
        self.slots[slot] = <uint32_t>(number + 1)
        return number

    cdef int _resize(self, size_t slots) except -1:
        """Room for half as many texts as slots."""
        cdef uint32_t* new_slots = <uint32_t*>malloc(slots * sizeof(uint32_t))
        cdef uint64_t* new_hashes = <uint64_t*>malloc(slots // 2 * sizeof(uint64_t))
        cdef Py_ssize_t number
        cdef size_t slot
        if new_slots is NULL or new_hashes is NULL:
            free(new_slots)
            free(new_hashes)
            raise MemoryError
        memset(new_slots, 0, slots * sizeof(uint32_t))
        for number in range(len(self.texts)):
            new_hashes[number] = self.hashes[number]
            slot = new_hashes[number] & (slots - 1)
            while new_slots[slot]:
                slot = (slot + 1) & (slots - 1)
            new_slots[slot] = <uint32_t>(number + 1)
        free(self.slots)
        free(self.hashes)
        self.slots = new_slots
        self.hashes = new_hashes
        self.mask = slots - 1
        return 0


@cython.final
cdef class VersionCounter:
    """How many devices of a type run each version under one attribute, counted over whole buckets.

    The first `texts_max` distinct texts are told apart; devices with another one are counted in `other`.
    """

    cdef BucketReader reader
    cdef TextNumbers numbers
    cdef list counted
    cdef readonly Py_ssize_t devices
    cdef readonly Py_ssize_t without
    cdef readonly Py_ssize_t other
    cdef Py_ssize_t texts_max

    def __cinit__(self, device_type not None, attribute not None, *, Py_ssize_t texts_max=10_000):
        self.reader = BucketReader(device_type, attribute)
        self.numbers = TextNumbers()
        self.counted = []
        self.texts_max = texts_max
        self.devices = 0
        self.without = 0
        self.other = 0

    @property
    def unreadable(self):
        return self.reader.unreadable

    def add(self, bytes bucket not None):
        """Count the devices of one bucket."""
        cdef Py_ssize_t number
        self.reader.open(bucket)
        while self.reader.next():
            self.devices += 1
            if self.reader.version.data is NULL:
                self.without += 1
                continue
            number = self.numbers.find(self.reader.version)
            if number < 0:
                if len(self.counted) >= self.texts_max:
                    self.other += 1
                    continue
                number = self.numbers.add(self.reader.version)
                self.counted.append(0)
            self.counted[number] += 1

    def counts(self):
        """See the stub."""
        cdef dict by_text = {}
        for stored, count in zip(self.numbers.texts, self.counted, strict=True):
            text = stored.decode("utf-8", "replace")
            by_text[text] = by_text.get(text, 0) + count
        return by_text
