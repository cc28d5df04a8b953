"""What the framework finds wrong with a request, in our words: a sentence for each fault, with the field in it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

_FIELD_SHOWN_CHARS: Final = 256

_SENTENCES: Final = {
    "bool_parsing": "{it} must be true or false.",
    "bool_type": "{it} must be true or false.",
    "dict_type": "{it} must be an object.",
    "extra_forbidden": "{it}: there is no such {kind}.",
    "greater_than_equal": "{it} must be at least {ge}.",
    "int_from_float": "{it} must be a whole number.",
    "int_parsing": "{it} must be a whole number.",
    "int_parsing_size": "{it} must be a whole number.",
    "int_type": "{it} must be a whole number.",
    "json_invalid": "{it} is not JSON.",
    "less_than_equal": "{it} must be at most {le}.",
    "list_type": "{it} must be a list.",
    "literal_error": "{it} must be {expected}.",
    "missing": "{it} is missing.",
    "model_attributes_type": "{it} must be an object.",
    "model_type": "{it} must be an object.",
    "string_too_long": "{it} must have at most {max_length} characters.",
    "string_type": "{it} must be text.",
    "string_unicode": "{it} must be Unicode text.",
    "too_long": "{it} must have at most {max_length} entries.",
    "too_short": "{it} must have {min_length} or more entries.",
}
"""By pydantic's error types; in braces, what it says beside them. A type that is not here keeps pydantic's words."""


def describe_fault(
    fault: Mapping[str, Any], *, whole: str = "The body", parameters: Collection[str] = ()
) -> tuple[str, str]:
    """The fault's field (empty where it is about the whole) and a sentence that names it.

    `parameters` are those that there are, where the query is at fault: one near to it is named.
    """
    kind, location = str(fault["type"]), fault.get("loc", ())
    # Where JSON breaks off, the location is a place in the text.
    field = "" if kind == "json_invalid" else _field_name(location)
    said = {
        **{name: _shown(value) for name, value in fault.get("ctx", {}).items()},
        "it": f"`{field}`" if field else whole,
        "kind": "parameter" if location[:1] == ("query",) else "field",
    }
    sentence = _SENTENCES.get(kind, "{it}: {msg}").format_map({"msg": fault["msg"], **said})
    near = _near(field, parameters) if kind == "extra_forbidden" and said["kind"] == "parameter" else ""
    return field, sentence + (f" Did you mean `{near}`?" if near else "")


def _near(name: str, known: Collection[str]) -> str:
    """The known name that is in `name` (`type` in `device_type`), or the other way round, or nearly it."""
    within = [other for other in known if name and (other in name or name in other)]
    return next(iter(within or difflib.get_close_matches(name, known, n=1, cutoff=0.7)), "")


def _shown(value: object) -> object:
    """`100`, where it is 100.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _field_name(location: Sequence[Any]) -> str:
    """`("body", "versions", "main")` → `versions.main`."""
    parts = [str(part) for part in location]
    if parts and parts[0] in {"body", "query", "path", "header"}:
        parts = parts[1:]
    return ".".join(parts)[:_FIELD_SHOWN_CHARS]
