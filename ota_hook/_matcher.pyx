# cython: auto_pickle=False, autotestdict=False
"""Version keys and the firmware index.

Owns the meaning of "a newer version" and of "the best eligible firmware". It must not know where firmware or devices
come from, nor the clock, settings or Redis: texts and entries in, ids out. docs/versions.md says the order in words;
tests/oracle.py says it again in slow Python, and the property tests hold the two equal.
"""

from typing import NamedTuple

cimport cython


# --- version keys -----------------------------------------------------------------------------------------------------
#
# A key is a run of pieces, each of which shows where it ends, so two keys first differ inside pieces of the same place
# and bytes order is version order. The first byte of a piece is its class. Every class is below every byte that a word
# is made of: what follows a word ends it, and a word is older than one that it begins. The classes of `auto`, in order:

cdef enum:
    # 1 to 6 are the pre-release words themselves, see _PRE_RELEASE_RANKS
    END = 16
    WORD = 32
    NUMBER = 48
    WORD_BEHIND_PRE_RELEASE = 64

# ... and of `semver`, whose pieces stand in other places and may use the same bytes:

cdef enum:
    SEMVER_PRE_RELEASE = 1
    SEMVER_RELEASE = 2
    SEMVER_END = 3
    SEMVER_NUMBER = 4
    SEMVER_WORD = 5

cdef enum Scheme:
    AUTO
    SEMVER

cdef enum:
    VERSION_MAX_BYTES = 128
    MEMO_ENTRIES = 65536

cdef dict _PRE_RELEASE_RANKS = {
    b"dev": 1,
    b"snapshot": 2,
    b"nightly": 2,
    b"alpha": 3,
    b"a": 3,
    b"beta": 4,
    b"b": 4,
    b"pre": 5,
    b"preview": 5,
    b"rc": 6,
}
cdef frozenset _NEED_A_NUMBER = frozenset((b"a", b"b"))
cdef frozenset _PRE_RELEASE_OF_PRE_RELEASE = frozenset((b"dev", b"snapshot", b"nightly"))
cdef frozenset _LEADING_WORDS = frozenset((b"v", b"ver", b"version"))

# Texts come from devices, so what is remembered is bounded: a full memo is emptied, and a text that is longer than any
# version is not remembered at all.
cdef dict _auto_memo = {}
cdef dict _semver_memo = {}


def version_key(scheme not None, text not None):
    """The text's key in `scheme` ("auto", "semver"); bytes order is version order. None: not a version there.

    Never raises on any text; an unknown scheme raises ValueError.
    """
    return _memoised_key(_scheme_named(scheme), _plain(text))


cdef Scheme _scheme_named(object name) except *:
    if name == "auto":
        return AUTO
    if name == "semver":
        return SEMVER
    raise ValueError(f"unknown version scheme {str(name)!r}; known are 'auto' and 'semver'")


cdef str _plain(object text):
    """`text` as an exact str: a StrEnum member or another subclass is one too, and typed variables refuse it."""
    if type(text) is str:
        return text
    if isinstance(text, str):
        return str.__str__(text)
    raise TypeError(f"expected str, got {type(text).__name__}")


cdef bytes _memoised_key(Scheme scheme, str text):
    cdef dict memo = _auto_memo if scheme == AUTO else _semver_memo
    cdef object known = memo.get(text, memo)
    if known is not memo:
        return known
    cdef bytes key = _make_key(scheme, text)
    if len(text) <= VERSION_MAX_BYTES:
        if len(memo) >= MEMO_ENTRIES:
            memo.clear()
        memo[text] = key
    return key


cdef bytes _make_key(Scheme scheme, str text):
    """The key of `text`, trimmed here; None where it is too long, can't be UTF-8 or is no version of the scheme."""
    cdef bytes data
    cdef str trimmed = text.strip()
    if len(trimmed) > VERSION_MAX_BYTES:
        return None
    try:
        data = trimmed.encode()
    except UnicodeEncodeError:  # a lone surrogate, as JSON can spell one
        return None
    if len(data) > VERSION_MAX_BYTES:
        return None
    return _auto_key(data.lower()) if scheme == AUTO else _semver_key(data)


cdef inline bint _is_digit(unsigned char c) noexcept:  # compares two numbers
    return c'0' <= c <= c'9'


cdef inline bint _is_lower(unsigned char c) noexcept:  # compares two numbers
    return c'a' <= c <= c'z'


cdef Py_ssize_t _end_of_digits(bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    while at < stop and _is_digit(data[at]):
        at += 1
    return at


cdef int _append_number(bytearray key, bytes data, Py_ssize_t start, Py_ssize_t stop) except -1:
    """Significant digits behind their count: a longer number is greater. Zero has none."""
    while start < stop and data[start] == c'0':
        start += 1
    key.append(stop - start)
    key += data[start:stop]
    return 0


# --- auto -------------------------------------------------------------------------------------------------------------


cdef bytes _auto_key(bytes data):
    """`data` is trimmed, in lower case and at most VERSION_MAX_BYTES long."""
    cdef bytearray key = bytearray()
    cdef Py_ssize_t stop = len(data)
    cdef Py_ssize_t plus = data.find(b"+")
    cdef unsigned char c
    for c in data:
        if _is_digit(c):
            break
    else:
        return None
    if plus < 0:
        plus = stop
    _append_tokens(key, data, _behind_leading_word(data, plus), plus)
    # Without a build part the key ends here: it begins, and is less than, the key of every build.
    if _next_token(data, plus, stop) < stop:
        _append_tokens(key, data, plus, stop)
    return bytes(key)


cdef Py_ssize_t _next_token(bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    while at < stop and not _is_digit(data[at]) and not _is_lower(data[at]):
        at += 1
    return at


cdef Py_ssize_t _end_of_word(bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    while at < stop and _is_lower(data[at]):
        at += 1
    return at


cdef bint _number_follows(bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    at = _next_token(data, at, stop)
    return at < stop and _is_digit(data[at])


cdef Py_ssize_t _behind_leading_word(bytes data, Py_ssize_t stop) except -1:
    """Where the tokens begin that count: behind a first token `v`, `ver` or `version` that a number follows."""
    cdef Py_ssize_t start = _next_token(data, 0, stop)
    cdef Py_ssize_t end = _end_of_word(data, start, stop)
    if data[start:end] in _LEADING_WORDS and _number_follows(data, end, stop):
        return end
    return start


cdef int _append_tokens(bytearray key, bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    """The pieces of one part, the main or the build part, and its END."""
    cdef Py_ssize_t end
    cdef Py_ssize_t zeros = 0  # not yet known to be dropped: what follows them decides
    cdef bint behind_pre_release = False
    cdef bytes word
    cdef int rank
    at = _next_token(data, at, stop)
    while at < stop:
        if _is_digit(data[at]):
            end = _end_of_digits(data, at, stop)
            if not behind_pre_release and _is_zero(data, at, end):
                zeros += 1
            else:
                for _ in range(zeros):
                    key.append(NUMBER)
                    key.append(0)
                zeros = 0
                key.append(NUMBER)
                _append_number(key, data, at, end)
        else:
            zeros = 0
            end = _end_of_word(data, at, stop)
            word = data[at:end]
            rank = _pre_release_rank(word, behind_pre_release, data, end, stop)
            if rank:
                behind_pre_release = True
                key.append(rank)
            else:
                key.append(WORD_BEHIND_PRE_RELEASE if behind_pre_release else WORD)
                key += word
        at = _next_token(data, end, stop)
    key.append(END)
    return 0


cdef bint _is_zero(bytes data, Py_ssize_t start, Py_ssize_t stop) except -1:
    while start < stop and data[start] == c'0':
        start += 1
    return start == stop


cdef int _pre_release_rank(
    bytes word, bint behind_pre_release, bytes data, Py_ssize_t end, Py_ssize_t stop
) except -1:
    """The rank of `word`, which ends at `end`, among pre-release words; 0 where it is not one in this place."""
    if behind_pre_release and word not in _PRE_RELEASE_OF_PRE_RELEASE:
        return 0
    if word in _NEED_A_NUMBER and not _number_follows(data, end, stop):
        return 0
    return _PRE_RELEASE_RANKS.get(word, 0)


# --- semver -----------------------------------------------------------------------------------------------------------


cdef inline bint _is_identifier_byte(unsigned char c) noexcept:  # compares numbers
    return c'0' <= c <= c'9' or c'a' <= c <= c'z' or c'A' <= c <= c'Z' or c == c'-'


cdef bytes _semver_key(bytes data):
    """The key by SemVer 2.0.0 §11, None where `data` is not in its grammar. Build metadata is checked, not weighed."""
    cdef bytearray key = bytearray()
    cdef bytes build = None
    cdef bytes pre_release = None
    cdef list core
    cdef bytes number, identifier
    if b"+" in data:
        data, _, build = data.partition(b"+")
        if not _are_identifiers(build):
            return None
    if b"-" in data:
        data, _, pre_release = data.partition(b"-")
        if not _are_identifiers(pre_release):
            return None
    core = data.split(b".")
    if len(core) != 3:
        return None
    for number in core:
        if not _is_semver_number(number):
            return None
        _append_number(key, number, 0, len(number))
    if pre_release is None:
        key.append(SEMVER_RELEASE)
        return bytes(key)
    key.append(SEMVER_PRE_RELEASE)
    for identifier in pre_release.split(b"."):
        if _end_of_digits(identifier, 0, len(identifier)) < len(identifier):
            key.append(SEMVER_WORD)
            key += identifier
        elif _is_semver_number(identifier):
            key.append(SEMVER_NUMBER)
            _append_number(key, identifier, 0, len(identifier))
        else:
            return None
    key.append(SEMVER_END)
    return bytes(key)


cdef bint _is_semver_number(bytes text) except -1:
    """Digits without a leading zero."""
    cdef Py_ssize_t size = len(text)
    return size > 0 and _end_of_digits(text, 0, size) == size and (size == 1 or text[0] != c'0')


cdef bint _are_identifiers(bytes text) except -1:
    """Whether these are SemVer identifiers between dots, none of them empty. Leading zeros are another question."""
    cdef bytes identifier
    cdef unsigned char c
    for identifier in text.split(b"."):
        if not identifier:
            return False
        for c in identifier:
            if not _is_identifier_byte(c):
                return False
    return True


# --- the firmware index -----------------------------------------------------------------------------------------------


class FirmwareEntry(NamedTuple):
    """What the index needs of one firmware of its (type, module).

    `devices` None: every device; empty: nobody. `source_versions` empty: any current version, else exact texts
    (compared after trimming white space on both sides).
    """

    id: str
    version: str
    enabled: bool = True
    devices: frozenset[str] | None = None
    source_versions: tuple[str, ...] = ()
    allow_downgrade: bool = False
    created_at_ms: int = 0


class Explanation(NamedTuple):
    """Why one firmware is, or is not, the device's next: `reasons` is empty for the chosen one alone.

    Reasons: `disabled`, `not_selected`, `source_version_differs`, `current_version_unknown` (none stored, or not a
    version in the scheme), `same_version`, `not_newer`, `outranked` (eligible, but another is better).
    """

    firmware_id: str
    chosen: bool
    reasons: tuple[str, ...]


cdef enum Specificity:
    EVERYONE = 0
    HAS_SOURCE_VERSIONS = 1
    LISTED = 2


@cython.final
cdef class _Candidate:
    """One firmware with its key. Of two that are eligible for a device, the one of greater `rank` is better."""

    cdef str id
    cdef bytes key
    cdef Specificity specificity
    cdef object created_at_ms
    cdef Py_ssize_t rank
    cdef bint enabled
    cdef bint allow_downgrade
    cdef frozenset devices
    cdef tuple source_versions

    def __cinit__(self, Scheme scheme, object entry not None):
        self.id = _plain(entry.id)
        self.key = _memoised_key(scheme, _plain(entry.version))
        if self.key is None:
            raise ValueError(f"firmware {self.id}: {entry.version!r} is not a version in this scheme")
        self.source_versions = tuple([_plain(text).strip() for text in entry.source_versions])
        self.allow_downgrade = entry.allow_downgrade
        if self.allow_downgrade and not self.source_versions:
            raise ValueError(f"firmware {self.id}: a downgrade needs source versions")
        self.enabled = entry.enabled
        self.devices = entry.devices
        self.created_at_ms = entry.created_at_ms
        if self.devices is not None:
            self.specificity = LISTED
        else:
            self.specificity = HAS_SOURCE_VERSIONS if self.source_versions else EVERYONE

    cdef tuple order(self):
        return (self.key, <int>self.specificity, self.created_at_ms, self.id)

    cdef bint upgrades(self, bytes current_key) except -1:
        """Whether it leads away from `current_key` in a direction that it may go."""
        return self.key != current_key if self.allow_downgrade else self.key > current_key


@cython.final
cdef class _Audience:
    """Devices that the same lists name, or every device: what they may get, each question answered beforehand.

    While lists are read an audience is `wider` and one candidate more, and `devices` counts who is in no narrower one.
    """

    cdef _Audience wider
    cdef _Candidate added
    cdef Py_ssize_t devices
    cdef _Candidate from_any_version
    cdef dict from_version  # text → the best candidate that names it as a source and is eligible there

    def __cinit__(self):
        self.devices = 0
        self.from_version = {}

    cdef int admit(self, _Candidate candidate, Scheme scheme) except -1:
        """Take note of `candidate`; called once for each that these devices may get."""
        cdef bytes source_key
        cdef _Candidate known
        cdef str text
        if not candidate.source_versions:
            if self.from_any_version is None or candidate.rank > self.from_any_version.rank:
                self.from_any_version = candidate
            return 0
        for text in candidate.source_versions:
            source_key = _memoised_key(scheme, text)
            if source_key is None or not candidate.upgrades(source_key):
                continue
            known = self.from_version.get(text)
            if known is None or candidate.rank > known.rank:
                self.from_version[text] = candidate
        return 0

    cdef int settle(self, Scheme scheme) except -1:
        """Admit what this audience and the wider ones added."""
        cdef _Audience audience = self
        while audience is not None:
            self.admit(audience.added, scheme)
            audience = audience.wider
        return 0

    cdef _Candidate better(self, _Candidate best, str text, bytes key):
        """The best for a device at version `text` with that `key`, or `best` (may be None) where that is better."""
        # The highest key of all that take any version decides for the others too: not newer, none is.
        cdef _Candidate candidate = self.from_any_version
        if candidate is not None and (best is None or candidate.rank > best.rank) and candidate.key > key:
            best = candidate
        if self.from_version:
            candidate = self.from_version.get(text)
            if candidate is not None and (best is None or candidate.rank > best.rank):
                best = candidate
        return best


@cython.final
cdef class FirmwareIndex:
    """The firmware of one (type, module), immutable; built once, asked often."""

    cdef Scheme scheme
    cdef list candidates  # best first
    cdef _Audience everyone
    cdef dict listed  # identifier → _Audience

    def __cinit__(self, *args, **kwargs):
        self.candidates = []
        self.everyone = _Audience()
        self.listed = {}

    def __init__(self, scheme not None, entries not None):
        """ValueError names the firmware whose version the scheme refuses, or a downgrade without source versions."""
        cdef _Candidate candidate
        cdef Py_ssize_t rank
        self.scheme = _scheme_named(scheme)
        self.candidates = [_Candidate(self.scheme, entry) for entry in entries]
        self.candidates.sort(key=_order_of, reverse=True)
        rank = len(self.candidates)
        for candidate in self.candidates:
            candidate.rank = rank
            rank -= 1
        self.everyone = _Audience()
        for candidate in self.candidates:
            if candidate.enabled and candidate.devices is None:
                self.everyone.admit(candidate, self.scheme)
        self.listed = _group_by_lists(self.candidates, self.scheme)

    def __len__(self):
        return len(self.candidates)

    def resolve(self, identifier not None, current not None):
        """The id of the best eligible firmware for that device at that version, or None. Never raises."""
        cdef _Candidate best = self._best(identifier, _plain(current))
        return None if best is None else best.id

    def explain(self, identifier not None, current):
        """One explanation per firmware, best version first."""
        cdef str text = None if current is None else _plain(current).strip()
        cdef bytes key = None if text is None else _memoised_key(self.scheme, text)
        cdef _Candidate best = None if text is None else self._best(identifier, text)
        cdef _Candidate candidate
        cdef list reasons
        explanations = []
        for candidate in self.candidates:
            reasons = _obstacles(candidate, identifier, text, key)
            if not reasons and candidate is not best:
                reasons.append("outranked")
            explanations.append(Explanation(candidate.id, candidate is best, tuple(reasons)))
        return explanations

    cdef _Candidate _best(self, object identifier, str current):
        cdef bytes key = _memoised_key(self.scheme, current)
        cdef _Audience audience
        cdef _Candidate best
        if key is None:
            return None
        current = current.strip()
        best = self.everyone.better(None, current, key)
        audience = self.listed.get(identifier)
        return best if audience is None else audience.better(best, current, key)


def _order_of(_Candidate candidate not None):
    return candidate.order()


cdef list _obstacles(_Candidate candidate, object identifier, str text, bytes key):
    """Every reason why `candidate` is not eligible, always in this order. `text` None: no version is stored."""
    cdef list reasons = []
    if not candidate.enabled:
        reasons.append("disabled")
    if candidate.devices is not None and identifier not in candidate.devices:
        reasons.append("not_selected")
    if text is not None and candidate.source_versions and text not in candidate.source_versions:
        reasons.append("source_version_differs")
    if key is None:
        reasons.append("current_version_unknown")
    elif key == candidate.key:
        reasons.append("same_version")
    elif not candidate.upgrades(key):
        reasons.append("not_newer")
    return reasons


cdef dict _group_by_lists(list candidates, Scheme scheme):
    """Each listed identifier with its audience. Devices in the same lists share one, so a list costs one per group.

    Reading a list moves each of its devices from its audience to the one that this list narrows it to.
    """
    cdef dict listed = {}
    cdef list audiences = []
    cdef dict narrowed
    cdef _Candidate candidate
    cdef _Audience audience, wider
    cdef object identifier
    for candidate in candidates:
        if not candidate.enabled or not candidate.devices:
            continue
        narrowed = {}
        for identifier in candidate.devices:
            wider = listed.get(identifier)
            audience = narrowed.get(wider)
            if audience is None:
                audience = _Audience()
                audience.wider = wider
                audience.added = candidate
                narrowed[wider] = audience
                audiences.append(audience)
            if wider is not None:
                wider.devices -= 1
            audience.devices += 1
            listed[identifier] = audience
    for audience in audiences:
        if audience.devices:
            audience.settle(scheme)
    for audience in audiences:
        audience.wider = None
    return listed
