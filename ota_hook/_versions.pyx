# cython: auto_pickle=False, autotestdict=False
"""Version keys: each scheme turns a text into bytes whose order is the order of versions.

It must not know who runs a version. docs/versions.md says the orders in words; tests/oracle.py says them again in slow
Python, and the property tests hold the two equal.
"""

from packaging.version import InvalidVersion, Version

# A key is a run of pieces, each of which shows where it ends, so two keys first differ inside pieces of the same place
# and bytes order is version order. The first byte of a piece is its class. Every class is below every byte that a word
# is made of: what follows a word ends it, and a word is older than one that it begins. The classes of `auto`, in order:

cdef enum:
    # 1 to 6 are the pre-release words themselves, see _PRE_RELEASE_RANKS
    END = 16
    WORD = 32
    NUMBER = 48
    WORD_BEHIND_PRE_RELEASE = 64

# ... and of the others, whose pieces stand in other places and may use the same bytes:

cdef enum:
    SEMVER_PRE_RELEASE = 1
    SEMVER_RELEASE = 2
    SEMVER_END = 3
    SEMVER_NUMBER = 4
    SEMVER_WORD = 5

cdef enum:
    PEP440_END = 1  # of the release's numbers
    PEP440_WORD = 2
    PEP440_NUMBER = 3

    PEP440_DEV_ALONE = 1  # a dev release of a version that is neither a pre-release nor a post-release
    PEP440_ALPHA = 2
    PEP440_BETA = 3
    PEP440_CANDIDATE = 4
    PEP440_NO_PRE_RELEASE = 5

    PEP440_NO_POST = 1
    PEP440_POST = 2

    PEP440_DEV = 1
    PEP440_NO_DEV = 2

# A Debian run of other characters than digits is its letters as they are, and these:

cdef enum:
    DEBIAN_TILDE = 1
    DEBIAN_END = 2
    DEBIAN_OTHER = 128  # and the character itself: behind every letter

cdef enum:
    DEBIAN_EPOCH_MAX = 2147483647

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
cdef tuple _memos = ({}, {}, {}, {})  # by scheme


def version_key(scheme not None, text not None):
    """The text's key in `scheme` ("auto", "semver", "pep440", "debian"); None: not a version there.

    The order of the bytes is the order of the versions. Never raises on any text; an unknown scheme raises ValueError.
    """
    return key_in(scheme_named(scheme), plain(text))


cdef Scheme scheme_named(object name) except *:
    if name == "auto":
        return AUTO
    if name == "semver":
        return SEMVER
    if name == "pep440":
        return PEP440
    if name == "debian":
        return DEBIAN
    raise ValueError(f"unknown version scheme {str(name)!r}; known are 'auto', 'semver', 'pep440' and 'debian'")


cdef str plain(object text):
    """`text` as an exact str: a StrEnum member or another subclass is one too, and typed variables refuse it."""
    if type(text) is str:
        return text
    if isinstance(text, str):
        return str.__str__(text)
    raise TypeError(f"expected str, got {type(text).__name__}")


cdef bytes key_in(Scheme scheme, str text):
    """`version_key` for a scheme that is known already; the same text costs its key once."""
    cdef dict memo = _memos[scheme]
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
    if scheme == AUTO:
        return _auto_key(data.lower())
    if scheme == SEMVER:
        return _semver_key(data)
    if scheme == PEP440:
        return _pep440_key(data)
    return _debian_key(data)


cdef inline bint _is_digit(unsigned char c) noexcept:  # compares two numbers
    return c'0' <= c <= c'9'


cdef inline bint _is_lower(unsigned char c) noexcept:  # compares two numbers
    return c'a' <= c <= c'z'


cdef inline bint _is_letter(unsigned char c) noexcept:  # compares numbers
    return c'a' <= c <= c'z' or c'A' <= c <= c'Z'


cdef Py_ssize_t _end_of_digits(bytes data, Py_ssize_t at, Py_ssize_t stop) except -1:
    while at < stop and _is_digit(data[at]):
        at += 1
    return at


cdef inline bint _are_digits(bytes data) except -1:
    return len(data) > 0 and _end_of_digits(data, 0, len(data)) == len(data)


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
    return _is_digit(c) or _is_letter(c) or c == c'-'


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
    return _are_digits(text) and (len(text) == 1 or text[0] != c'0')


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


# --- pep440 -----------------------------------------------------------------------------------------------------------


cdef bytes _pep440_key(bytes data):
    """The key by PEP 440 as `packaging` reads it, None where it refuses `data`."""
    cdef bytearray key = bytearray()
    cdef bytes part
    # PEP 440 is ASCII; older releases of packaging let through letters that fold to ASCII ones.
    if not data.isascii():
        return None
    try:
        version = Version(data.decode())
    except InvalidVersion:
        return None
    _append_int(key, version.epoch)
    _append_pep440_release(key, version.release)
    _append_pep440_suffixes(key, version)
    # No local part is older than every one: its key ends here. A longer local part is newer, likewise.
    if version.local is not None:
        for part in version.local.encode().split(b"."):
            if _are_digits(part):
                key.append(PEP440_NUMBER)
                _append_number(key, part, 0, len(part))
            else:
                key.append(PEP440_WORD)
                key += part
    return bytes(key)


cdef int _append_int(bytearray key, object number) except -1:
    cdef bytes digits = str(number).encode()
    return _append_number(key, digits, 0, len(digits))


cdef int _append_pep440_release(bytearray key, tuple release) except -1:
    """Its numbers without the zeros at the end."""
    cdef Py_ssize_t stop = len(release)
    cdef Py_ssize_t place
    while stop and release[stop - 1] == 0:
        stop -= 1
    for place in range(stop):
        key.append(PEP440_NUMBER)
        _append_int(key, release[place])
    key.append(PEP440_END)
    return 0


cdef int _append_pep440_suffixes(bytearray key, object version) except -1:
    """Pre-release, post-release and dev release, each with a byte that says where its absence stands."""
    cdef str letter
    if version.pre is not None:
        letter, number = version.pre
        key.append(PEP440_ALPHA if letter == "a" else PEP440_BETA if letter == "b" else PEP440_CANDIDATE)
        _append_int(key, number)
    elif version.post is None and version.dev is not None:
        key.append(PEP440_DEV_ALONE)
    else:
        key.append(PEP440_NO_PRE_RELEASE)
    if version.post is None:
        key.append(PEP440_NO_POST)
    else:
        key.append(PEP440_POST)
        _append_int(key, version.post)
    if version.dev is None:
        key.append(PEP440_NO_DEV)
    else:
        key.append(PEP440_DEV)
        _append_int(key, version.dev)
    return 0


# --- debian -----------------------------------------------------------------------------------------------------------


cdef bytes _debian_key(bytes data):
    """The key by deb-version(7), None for what `dpkg --validate-version` refuses."""
    cdef bytearray key = bytearray()
    cdef bytes epoch = b"0"
    cdef bytes upstream = data
    cdef bytes revision = b""  # the same as "0"
    if b":" in data:
        epoch, _, upstream = data.partition(b":")
        epoch = epoch.removeprefix(b"+")  # dpkg takes a sign
        if not _are_digits(epoch) or int(epoch) > DEBIAN_EPOCH_MAX:
            return None
    if b"-" in upstream:
        upstream, _, revision = upstream.rpartition(b"-")
        if not revision or not _are_debian_characters(revision, b".+~"):
            return None
    if not upstream or not _is_digit(upstream[0]) or not _are_debian_characters(upstream, b".+~-:"):
        return None
    _append_number(key, epoch, 0, len(epoch))
    _append_debian_part(key, upstream)
    _append_debian_part(key, revision)
    return bytes(key)


cdef bint _are_debian_characters(bytes text, bytes others) except -1:
    """Whether `text` has ASCII letters, digits and `others` alone."""
    cdef unsigned char c
    for c in text:
        if not _is_letter(c) and not _is_digit(c) and c not in others:
            return False
    return True


cdef int _append_debian_part(bytearray key, bytes part) except -1:
    """Runs of other characters and numbers in turn, a missing last number being zero; then an empty run."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t stop = len(part)
    cdef Py_ssize_t end
    cdef unsigned char c
    while True:
        while at < stop and not _is_digit(part[at]):
            c = part[at]
            key.append(c if _is_letter(c) else DEBIAN_TILDE if c == c'~' else DEBIAN_OTHER + c)
            at += 1
        key.append(DEBIAN_END)
        end = _end_of_digits(part, at, stop)
        _append_number(key, part, at, end)
        at = end
        if at == stop:
            key.append(DEBIAN_END)
            return 0
