"""The errors that cross a layer. Each docstring says what the caller may do about it.

"No match" is a value, never an error. Adapters wrap what their library raises (`raise DependencyError(...) from exc`).
"""

from __future__ import annotations


class OtaHookError(Exception):
    """The root. `detail` is one sentence for a person; `mend` (may be empty) says what to do."""

    def __init__(self, detail: str, *, mend: str = "", field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.mend = mend
        self.field = field

    def __str__(self) -> str:
        return f"{self.detail} {self.mend}".strip()


class ConfigurationError(OtaHookError):
    """A setting is missing, unknown or contradictory. Raised at start-up: print it and exit 2."""


class InputError(OtaHookError):
    """What was asked is not acceptable as it stands (422). Correct `field` and ask again."""


class NotFound(OtaHookError):  # noqa: N818 - the word of the API
    """What was named does not exist (404). `gone` says that it once did (410)."""

    def __init__(self, detail: str, *, mend: str = "", gone: bool = False) -> None:
        super().__init__(detail, mend=mend)
        self.gone = gone


class ConflictError(OtaHookError):
    """What was asked contradicts what exists (409); `stale` means an If-Match that no longer matches (412)."""

    def __init__(self, detail: str, *, mend: str = "", field: str | None = None, stale: bool = False) -> None:
        super().__init__(detail, mend=mend, field=field)
        self.stale = stale


class DependencyError(OtaHookError):
    """Redis, the package store or the broker does not answer (503). Try again.

    Nothing was changed, unless `detail` says that it was or that this is not known: then `maybe_written` is set.
    """

    def __init__(self, detail: str, *, mend: str = "", field: str | None = None, maybe_written: bool = False) -> None:
        super().__init__(detail, mend=mend, field=field)
        self.maybe_written = maybe_written
