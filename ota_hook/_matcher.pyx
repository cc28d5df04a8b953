# cython: auto_pickle=False, autotestdict=False
"""The firmware index.

Owns the meaning of "the best eligible firmware". It must not know where firmware or devices come from, nor the clock,
settings or Redis: texts and entries in, ids out. docs/versions.md says what is eligible in words; tests/oracle.py says
it again in slow Python, and the property tests hold the two equal.

What one device costs does not depend on how many firmware or devices there are. What can be said of a current version
alone is worked out once per distinct text (a fleet runs few); who is listed is one look into a table; firmware for tags
or a percentage are asked one by one, from the best down to the first that is worse than what was found already.
"""

from typing import NamedTuple

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, memcmp

from ota_hook._device_set cimport DeviceGroups, DeviceSet, digest_of, span_of
from ota_hook._packed cimport BucketReader, Span, TextNumbers, text_of
from ota_hook._versions cimport Scheme, key_in, plain, scheme_named
from ota_hook._xxhash cimport XXH3_64bits_withSeed

cdef enum:
    # Texts come from devices, so what is remembered is bounded: it is forgotten all at once when there are so many,
    # and a text that is longer than any version with white space around it is not remembered.
    SITUATIONS_MAX = 65_536
    REMEMBERED_MAX_BYTES = 192
    BASIS_POINTS = 10_000


class FirmwareEntry(NamedTuple):
    """What the index needs of one firmware of its (type, module).

    `devices`, `tags` and `basis_points` (hundredths of a per cent) select devices; where all are None every device is
    selected, else who is in `devices`, or has one of the `tags` (where set) and is within the percentage (where set).
    An empty one selects nobody. `source_versions` empty: any current version, else exact texts (compared after trimming
    white space on both sides).
    """

    id: str
    version: str
    enabled: bool = True
    devices: DeviceSet | None = None
    tags: tuple[str, ...] | None = None
    basis_points: int | None = None
    percentage_seed: int = 0
    source_versions: tuple[str, ...] = ()
    allow_downgrade: bool = False
    created_at_ms: int = 0


class Explanation(NamedTuple):
    """Why one firmware is, or is not, the device's next: `reasons` is empty for the chosen one alone.

    Reasons: `disabled`, `not_selected` (followed, where tags or a percentage are set, by which did not hold:
    `not_listed`, `tags_differ`, `outside_percentage`), `source_version_differs`, `current_version_unknown` (none
    stored, or not a version in the scheme), `same_version`, `not_newer`, `outranked` (eligible, another is better).
    """

    firmware_id: str
    chosen: bool
    reasons: tuple[str, ...]


class Match(NamedTuple):
    """A device of a bucket that has something newer."""

    identifier: str
    firmware_id: str
    current: str


cdef enum Specificity:
    EVERYONE
    HAS_TAGS_OR_PERCENTAGE
    HAS_SOURCE_VERSIONS
    LISTED


cdef struct Asker:
    # A device, as far as it matters who it is. `tags` are separated by single spaces.
    Span identifier
    Span tags


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
    cdef DeviceSet devices
    cdef list tags  # of bytes; None where they are not set
    cdef int basis_points  # -1 where it is not set
    cdef uint64_t percentage_seed
    cdef tuple source_versions
    cdef tuple eligible_sources  # those of them that are versions and from which it leads in a direction that it may
    cdef tuple order

    def __init__(self, Scheme scheme, object entry not None):
        self.id = plain(entry.id)
        self.key = key_in(scheme, plain(entry.version))
        if self.key is None:
            raise ValueError(f"firmware {self.id}: {entry.version!r} is not a version in this scheme")
        self.source_versions = tuple([plain(text).strip() for text in entry.source_versions])
        self.allow_downgrade = entry.allow_downgrade
        if self.allow_downgrade and not self.source_versions:
            raise ValueError(f"firmware {self.id}: a downgrade needs source versions")
        self.enabled = entry.enabled
        self.devices = entry.devices
        self.tags = None
        if entry.tags is not None:
            self.tags = [plain(tag).encode("utf-8", "surrogatepass") for tag in entry.tags]
        self.basis_points = -1
        if entry.basis_points is not None:
            if not 0 <= entry.basis_points <= BASIS_POINTS:
                raise ValueError(f"firmware {self.id}: {entry.basis_points} is no number of hundredths of a per cent")
            self.basis_points = entry.basis_points
        self.percentage_seed = entry.percentage_seed
        self.created_at_ms = entry.created_at_ms
        if self.devices is not None:
            self.specificity = LISTED
        elif self.source_versions:
            self.specificity = HAS_SOURCE_VERSIONS
        else:
            self.specificity = HAS_TAGS_OR_PERCENTAGE if self.asks_who() else EVERYONE
        self.eligible_sources = tuple([text for text in self.source_versions if self._leads_from(scheme, text)])
        self.order = (self.key, <int>self.specificity, self.created_at_ms, self.id)

    cdef _Candidate copy(self):
        """For another index, where it may have another rank."""
        cdef _Candidate made = _Candidate.__new__(_Candidate)
        made.id = self.id
        made.key = self.key
        made.specificity = self.specificity
        made.created_at_ms = self.created_at_ms
        made.rank = self.rank
        made.enabled = self.enabled
        made.allow_downgrade = self.allow_downgrade
        made.devices = self.devices
        made.tags = self.tags
        made.basis_points = self.basis_points
        made.percentage_seed = self.percentage_seed
        made.source_versions = self.source_versions
        made.eligible_sources = self.eligible_sources
        made.order = self.order
        return made

    cdef bint _leads_from(self, Scheme scheme, str text) except -1:
        cdef bytes source_key = key_in(scheme, text)
        return source_key is not None and self.is_eligible_at(text, source_key)

    cdef bint asks_who(self) noexcept:  # compares
        """Whether tags or a percentage are set."""
        return self.tags is not None or self.basis_points >= 0

    cdef bint is_eligible_at(self, str text, bytes key) except -1:
        """Whether the current version allows it: the source versions, and the direction in which it leads."""
        if self.source_versions and text not in self.source_versions:
            return False
        return self.key != key if self.allow_downgrade else self.key > key

    cdef bint has_tag_of(self, Asker* asker) except -1:
        cdef bytes tag
        if asker.tags.data is not NULL:
            for tag in self.tags:
                if _is_among(tag, asker.tags):
                    return True
        return False

    cdef bint has_in_percentage(self, Asker* asker) noexcept:  # hashes and compares
        cdef uint64_t hashed = XXH3_64bits_withSeed(asker.identifier.data, asker.identifier.size, self.percentage_seed)
        return hashed % BASIS_POINTS < <uint64_t>self.basis_points

    cdef bint selects(self, Asker* asker) except -1:
        """Whether tags and percentage, of which one is set at least, select a device."""
        if self.tags is not None and not self.has_tag_of(asker):
            return False
        return self.basis_points < 0 or self.has_in_percentage(asker)


cdef bint _is_among(bytes tag, Span tags) noexcept:  # reads within `tags`, which has a size of at least 0
    cdef const char* at = tags.data
    cdef const char* end = at + tags.size
    cdef const char* space
    cdef Py_ssize_t size
    while at <= end:
        space = <const char*>memchr(at, c' ', end - at) if at < end else NULL
        size = (end if space is NULL else space) - at
        if size == len(tag) and memcmp(at, <const char*>tag, size) == 0:
            return True
        if space is NULL:
            return False
        at = space + 1
    return False


cdef class _Best:
    """The best of some firmware for a device that may have any of them, asked for one current version after another."""

    cdef _Candidate from_any_version
    cdef dict from_version  # text → the best candidate that names it as a source and is eligible there

    def __cinit__(self, list candidates not None):
        cdef _Candidate candidate, known
        cdef str text
        self.from_version = {}
        for candidate in candidates:
            if not candidate.source_versions:
                if self.from_any_version is None or candidate.rank > self.from_any_version.rank:
                    self.from_any_version = candidate
                continue
            for text in candidate.eligible_sources:
                known = self.from_version.get(text)
                if known is None or candidate.rank > known.rank:
                    self.from_version[text] = candidate

    cdef _Candidate better(self, _Candidate best, _Situation situation):
        """The best at that version, or `best` (may be None) where that is better."""
        # The highest key of all that take any version decides for the others too: not newer, none is.
        cdef _Candidate candidate = self.from_any_version
        if candidate is not None and (best is None or candidate.rank > best.rank) and candidate.key > situation.key:
            best = candidate
        if self.from_version:
            candidate = self.from_version.get(situation.text)
            if candidate is not None and (best is None or candidate.rank > best.rank):
                best = candidate
        return best


@cython.final
cdef class _Situation:
    """What can be said of a current version, whoever runs it. `key` None: it is not a version."""

    cdef str text  # trimmed
    cdef bytes key
    cdef _Candidate for_everyone
    cdef list asking_who  # those with tags or a percentage that may be offered and are better than that, best first


@cython.final
cdef class FirmwareIndex:
    """The firmware of one (type, module), immutable; built once, asked often. Not for several threads at once."""

    cdef Scheme scheme
    cdef dict by_id  # every candidate, in the order in which they were given
    cdef list candidates  # best first
    cdef _Best for_everyone
    cdef list asking_who  # enabled, with tags or a percentage, best first
    cdef DeviceGroups groups  # None where nothing has a device list
    cdef list listing  # for each set of `groups` the enabled candidates that it belongs to
    cdef list for_groups  # a _Best for each group that was asked for, else None
    cdef TextNumbers texts
    cdef list situations

    def __cinit__(self, *args, **kwargs):
        self.by_id = {}
        self.candidates = []
        self.for_everyone = _Best([])
        self.asking_who = []
        self.texts = TextNumbers()
        self.situations = []

    def __init__(self, scheme not None, entries not None):
        """See the stub."""
        cdef _Candidate candidate
        self.scheme = scheme_named(scheme)
        for entry in entries:
            candidate = _Candidate(self.scheme, entry)
            self.by_id[candidate.id] = candidate
        self._lay_out(list(self.by_id.values()), None)

    def with_changes(self, changed not None, removed=()):
        """See the stub."""
        cdef FirmwareIndex made = FirmwareIndex.__new__(FirmwareIndex)
        cdef _Candidate candidate
        cdef list nearly_sorted = []
        cdef dict new = {}
        made.scheme = self.scheme
        for entry in changed:
            candidate = _Candidate(self.scheme, entry)
            new[candidate.id] = candidate
        made.by_id = dict(self.by_id)
        for firmware_id in removed:
            made.by_id.pop(firmware_id, None)
        for candidate in self.candidates:
            if candidate.id in made.by_id and candidate.id not in new:
                candidate = candidate.copy()
                made.by_id[candidate.id] = candidate  # where it stands already
                nearly_sorted.append(candidate)
        made.by_id.update(new)
        made._lay_out(nearly_sorted + list(new.values()), self)
        return made

    cdef int _lay_out(self, list candidates, FirmwareIndex previous) except -1:
        """Rank them, and prepare what is asked: all that does not depend on who asks."""
        cdef _Candidate candidate
        cdef Py_ssize_t rank = len(candidates)
        self._group_devices(previous)
        self.candidates = sorted(candidates, key=_order_of, reverse=True)
        for candidate in self.candidates:
            candidate.rank = rank
            rank -= 1
        enabled = [candidate for candidate in self.candidates if (<_Candidate>candidate).enabled]
        self.asking_who = [candidate for candidate in enabled if (<_Candidate>candidate).asks_who()]
        self.for_everyone = _Best([candidate for candidate in enabled if _is_for_everyone(candidate)])
        return 0

    cdef int _group_devices(self, FirmwareIndex previous) except -1:
        """Lay out who is listed. Lists that `previous` had, all and in this order, need no new table."""
        cdef _Candidate candidate
        cdef dict numbers = {}  # id() of a set → its number
        cdef list sets = []
        cdef tuple as_tuple
        cdef uint64_t seed
        self.listing = []
        for candidate in self.by_id.values():
            if candidate.devices is None or candidate.devices.count == 0:
                continue
            if id(candidate.devices) not in numbers:
                numbers[id(candidate.devices)] = len(sets)
                sets.append(candidate.devices)
                self.listing.append([])
            if candidate.enabled:
                self.listing[numbers[id(candidate.devices)]].append(candidate)
        if not sets:
            return 0
        as_tuple = tuple(sets)
        if previous is not None and previous.groups is not None and _are_same(previous.groups.sets, as_tuple):
            self.groups = previous.groups
        else:
            seed = sets[0].seed
            self.groups = DeviceGroups(as_tuple, seed=seed)
        self.for_groups = [None] * self.groups.group_count
        return 0

    def __len__(self):
        return len(self.candidates)

    def resolve(self, identifier not None, current not None, tags=()):
        """See the stub."""
        cdef list keep = []
        cdef Asker asker
        cdef _Situation situation
        cdef _Candidate best
        asker.identifier = span_of(identifier, keep)
        asker.tags = _joined(tags, keep)
        situation = self._situation(span_of(current, keep))
        best = self._best(situation, &asker)
        return None if best is None else best.id

    def resolve_many(self, bytes bucket not None, device_type not None, attribute not None):
        """See the stub."""
        cdef BucketReader reader = BucketReader(device_type, attribute)
        cdef list found = []
        cdef Asker asker
        cdef _Candidate best
        reader.open(bucket)
        while reader.next():
            if reader.version.data is NULL:
                continue
            asker.identifier = reader.identifier
            asker.tags = reader.tags
            try:
                best = self._best(self._situation(reader.version), &asker)
                if best is not None:
                    found.append(Match(text_of(reader.identifier), best.id, text_of(reader.version)))
            except UnicodeDecodeError:
                continue
        return found

    def explain(self, identifier not None, current, tags=()):
        """See the stub."""
        cdef list keep = []
        cdef Asker asker
        cdef _Situation situation = None
        cdef _Candidate best = None
        cdef _Candidate candidate
        cdef list reasons
        asker.identifier = span_of(identifier, keep)
        asker.tags = _joined(tags, keep)
        if current is not None:
            situation = self._situation(span_of(current, keep))
            best = self._best(situation, &asker)
        explanations = []
        for candidate in self.candidates:
            reasons = _obstacles(candidate, situation, &asker)
            if not reasons and candidate is not best:
                reasons.append("outranked")
            explanations.append(Explanation(candidate.id, candidate is best, tuple(reasons)))
        return explanations

    cdef _Situation _situation(self, Span text):
        """Remembered, or worked out."""
        cdef Py_ssize_t number = self.texts.find(text)
        cdef _Situation situation
        if number >= 0:
            return <_Situation>self.situations[number]
        situation = self._work_out(text_of(text))
        if text.size <= REMEMBERED_MAX_BYTES:
            if len(self.situations) >= SITUATIONS_MAX:
                self.texts.clear()
                self.situations = []
            self.texts.add(text)
            self.situations.append(situation)
        return situation

    cdef _Situation _work_out(self, str text):
        cdef _Situation situation = _Situation.__new__(_Situation)
        cdef _Candidate candidate
        situation.text = text.strip()
        situation.key = key_in(self.scheme, text)
        situation.asking_who = []
        if situation.key is None:
            return situation
        situation.for_everyone = self.for_everyone.better(None, situation)
        for candidate in self.asking_who:
            if situation.for_everyone is not None and candidate.rank < situation.for_everyone.rank:
                break
            if candidate.is_eligible_at(situation.text, situation.key):
                situation.asking_who.append(candidate)
        return situation

    cdef _Candidate _best(self, _Situation situation, Asker* asker):
        cdef _Candidate best = situation.for_everyone
        cdef _Candidate candidate
        cdef uint32_t group
        if situation.key is None:
            return None
        if self.groups is not None:
            group = self.groups.group_of(digest_of(asker.identifier, self.groups.seed))
            if group:
                best = self._best_of_group(group).better(best, situation)
        for candidate in situation.asking_who:
            if best is not None and candidate.rank < best.rank:
                break
            if candidate is best or candidate.selects(asker):
                return candidate
        return best

    cdef _Best _best_of_group(self, uint32_t group):
        """Worked out for who asks first, then remembered."""
        cdef _Best best = self.for_groups[group]
        cdef list candidates
        if best is None:
            candidates = []
            for number in self.groups.sets_of(group):
                candidates += self.listing[number]
            best = _Best(candidates)
            self.for_groups[group] = best
        return best


def _order_of(_Candidate candidate not None):
    return candidate.order


cdef bint _is_for_everyone(_Candidate candidate) noexcept:  # compares
    return candidate.devices is None and not candidate.asks_who()


cdef bint _are_same(tuple ours, tuple theirs) except -1:
    """Whether they hold the same objects."""
    cdef Py_ssize_t place
    if len(ours) != len(theirs):
        return False
    for place in range(len(ours)):
        if ours[place] is not theirs[place]:
            return False
    return True


cdef Span _joined(object tags, list keep) except *:
    """Tags as packed devices have them."""
    cdef Span span
    if tags:
        joined = " ".join(tags)
        keep.append(joined)  # the span points into it
        return span_of(joined, keep)
    span.data = NULL
    span.size = 0
    return span


cdef list _obstacles(_Candidate candidate, _Situation situation, Asker* asker):
    """Every reason why it is not eligible, always in this order. `situation` None: no version is stored."""
    cdef list reasons = []
    if not candidate.enabled:
        reasons.append("disabled")
    reasons += _unmet_selectors(candidate, asker)
    if situation is not None and candidate.source_versions and situation.text not in candidate.source_versions:
        reasons.append("source_version_differs")
    if situation is None or situation.key is None:
        reasons.append("current_version_unknown")
    elif situation.key == candidate.key:
        reasons.append("same_version")
    elif not candidate.allow_downgrade and candidate.key < situation.key:
        reasons.append("not_newer")
    return reasons


cdef list _unmet_selectors(_Candidate candidate, Asker* asker):
    cdef bint has_list = candidate.devices is not None
    cdef list unmet = ["not_selected"]
    if _is_for_everyone(candidate):
        return []
    if has_list and candidate.devices.has(digest_of(asker.identifier, candidate.devices.seed)):
        return []
    if not candidate.asks_who():
        return unmet
    if candidate.selects(asker):
        return []
    if has_list:
        unmet.append("not_listed")
    if candidate.tags is not None and not candidate.has_tag_of(asker):
        unmet.append("tags_differ")
    if candidate.basis_points >= 0 and not candidate.has_in_percentage(asker):
        unmet.append("outside_percentage")
    return unmet
