# cython: auto_pickle=False, autotestdict=False
"""The firmware index.

Owns the meaning of "the best eligible firmware". It must not know where firmware or devices come from, nor the clock,
settings or Redis: texts and entries in, ids out. docs/versions.md says what is eligible in words; tests/oracle.py says
it again in slow Python, and the property tests hold the two equal.
"""

from typing import NamedTuple

cimport cython

from ota_hook._versions cimport Scheme, key_in, plain, scheme_named


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
            source_key = key_in(scheme, text)
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
        self.scheme = scheme_named(scheme)
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
        cdef _Candidate best = self._best(identifier, plain(current))
        return None if best is None else best.id

    def explain(self, identifier not None, current):
        """One explanation per firmware, best version first."""
        cdef str text = None if current is None else plain(current).strip()
        cdef bytes key = None if text is None else key_in(self.scheme, text)
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
        cdef bytes key = key_in(self.scheme, current)
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
