"""ETags and the conditional requests made of them (RFC 9110 §13)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Header

from ota_hook.errors import ConflictError, InputError
from ota_hook.model import DeviceType, DocumentKind, Firmware, Rule
from ota_hook.ports.devices import ExpectedDevice
from ota_hook.snapshot import Snapshot
from ota_hook.task import Task

_TAGS: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')

_DIGEST: Final = re.compile(r'"([0-9a-f]{40})"')


_REFUSED_ETAG: Final = '"refused"'
"""Of a document that can't be read and so has no tag of its own: `*` matches it, as something that is there."""


def document_etag(document: DeviceType | Rule | Firmware | Task) -> str:
    """The strong ETag of a task, or of a document in the catalogue.

    Its age is a part: one that was deleted and made anew under its key is another, and begins with revision 1 again.
    """
    return f'"{document.revision}-{document.created_at_ms}"'


def current_etag(
    snapshot: Snapshot, kind: DocumentKind, key: str, document: DeviceType | Rule | Firmware | None
) -> str | None:
    """The tag of what is there under the key, `document` or one that can't be used; None for nothing."""
    if document is not None:
        return document_etag(document)
    refused = snapshot.refused.get((kind, key))
    if refused is None:
        return None
    return document_etag(refused.firmware) if refused.firmware else _REFUSED_ETAG


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What the client expects; a tuple of entity tags as they were written, `*` among them for any; None: not said."""

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def require(self, etag: str | None) -> None:
        """Refuse (412) to change what is not as expected. `etag` is the current one, None where nothing is there."""
        if self.if_match is not None and not _matches(self.if_match, etag, weakly=False):
            raise ConflictError("It was changed since you read it, or is gone.", mend="Read it again.", stale=True)
        if self.if_none_match is not None and _matches(self.if_none_match, etag, weakly=True):
            raise ConflictError("It is there already.", stale=True)

    def expect_device(self) -> ExpectedDevice:
        """The same as `require` for a device's digest, which is judged where the device is written."""
        return ExpectedDevice(_digests(self.if_match, weakly=False), _digests(self.if_none_match, weakly=True))

    def is_fresh(self, etag: str) -> bool:
        """Whether a reader has this very state already (304)."""
        return self.if_none_match is not None and _matches(self.if_none_match, etag, weakly=True)


def _matches(expected: tuple[str, ...], etag: str | None, *, weakly: bool) -> bool:
    if etag is None:
        return False
    if "*" in expected:
        return True
    return any((tag.removeprefix("W/") if weakly else tag) == etag for tag in expected)


def _digests(tags: tuple[str, ...] | None, *, weakly: bool) -> tuple[str, ...] | None:
    """The tags that can be a device's without their quotes, and `*`. The others match nothing."""
    if tags is None or "*" in tags:
        return tags
    found = (_DIGEST.fullmatch(tag.removeprefix("W/") if weakly else tag) for tag in tags)
    return tuple(digest[1] for digest in found if digest)


def parse_entity_tags(text: str) -> tuple[str, ...]:
    """`"1", W/"2"` or `*`. InputError where it is neither."""
    if text.strip() == "*":
        return ("*",)
    rest = _TAGS.sub("", text)
    if rest.strip(" \t,"):
        raise InputError(f"{text[:64]!r} is no list of entity tags.", field="If-Match")
    return tuple(_TAGS.findall(text))


def _read_preconditions(
    if_match: Annotated[str | None, Header(description="Entity tags, or `*`; 412 where none matches.")] = None,
    if_none_match: Annotated[str | None, Header(description="Entity tags, or `*`.")] = None,
) -> Preconditions:
    return Preconditions(
        None if if_match is None else parse_entity_tags(if_match),
        None if if_none_match is None else parse_entity_tags(if_none_match),
    )


Conditions = Annotated[Preconditions, Depends(_read_preconditions)]
"""The parameter type by which a route gets the request's preconditions."""
