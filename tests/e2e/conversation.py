"""Conversations of the device protocol: tests/wire's files, how their payloads are written, whether what came is it.

Pure but for reading the files. tests/wire/README.md says what a file may hold.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "wire"
PAYLOAD_KEYS: Final = frozenset({"json", "text", "hex"})
ID_LIMIT: Final = 2**53
CLOCKS_DIFFER_MS: Final = 5_000

_PLACEHOLDER: Final = re.compile(r"\{\{(?P<kind>id|ts|url) ?(?P<name>[\w.-]*)(?P<width>:u64)?\}\}")
_SPACE: Final = re.compile(r"(?P<kept>\{\{[^{}]*\}\})|\s+")
_QUOTED_NUMBER: Final = re.compile(r'"(\{\{(?:id|ts)[^{}:]*\}\})"')


@dataclass(frozen=True)
class Conversation:
    """One file."""

    path: Path
    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def settings(self) -> Mapping[str, str]:
        return dict(self.document.get("settings", {}))

    @property
    def given(self) -> Mapping[str, Any]:
        return dict(self.document["given"])

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        return list(self.document["steps"])

    @property
    def topics_of_arrivals(self) -> Sequence[str]:
        """Every topic on which something arrives, once."""
        arrivals = (arrival for step in self.steps for arrival in step.get("arrives", []))
        return list(dict.fromkeys(arrival["topic"] for arrival in arrivals))

    @property
    def client_ids(self) -> Mapping[str, str]:
        """By user name, where the two differ."""
        return dict(self.document.get("client_ids", {}))

    @property
    def speakers(self) -> Sequence[str]:
        """Who publishes, or is a device to which something is said; by user name."""
        publishing = [step["from"] for step in self.steps if "from" in step]
        listening = [
            device
            for device in self.given.get("devices", {})
            if any(self.hears(device, topic) for topic in self.topics_of_arrivals)
        ]
        others = [device for device in listening if device not in self.client_ids.values()]
        return list(dict.fromkeys([*publishing, *others]))

    def hears(self, name: str, topic: str) -> bool:
        """Whether it is said to that client: a level of the topic is its user name, or its client id."""
        return not {name, self.client_ids.get(name, name)}.isdisjoint(topic.split("/"))


def load_conversations() -> list[Conversation]:
    """Every file of the folder, in the order of their names."""
    return [Conversation(path, json.loads(path.read_text("utf-8"))) for path in sorted(FOLDER.glob("*.json"))]


@dataclass
class Values:
    """What placeholders stand for, so far: ids and times once they came, addresses of packages from the beginning."""

    urls: Mapping[str, str] = field(default_factory=dict)
    bound: dict[tuple[str, str], int] = field(default_factory=dict)

    def written(self, payload: Mapping[str, Any]) -> bytes:
        """The bytes of a payload whose placeholders are all known."""
        kind, text = payload_text(payload)
        filled = _PLACEHOLDER.sub(self._fill, text)
        return bytes.fromhex(filled) if kind == "hex" else filled.encode()

    def _fill(self, found: re.Match[str]) -> str:
        kind, name = found["kind"], found["name"]
        if kind == "url":
            return self.urls[name]
        value = self.bound[kind, name]
        return f"{value:016x}" if found["width"] else str(value)

    def match(self, payload: Mapping[str, Any], came: bytes) -> dict[tuple[str, str], int] | None:
        """The values that make `came` of the payload as it is written, those known already with them; else None."""
        kind, text = payload_text(payload)
        try:
            shown = came.hex() if kind == "hex" else came.decode()
        except UnicodeDecodeError:
            return None
        pattern, names = self._pattern(text)
        found = re.fullmatch(pattern, shown, re.DOTALL)
        if found is None:
            return None
        values = dict(self.bound)
        for (what, name, base), digits in zip(names, found.groups(), strict=True):
            value = int(digits, base)
            if values.setdefault((what, name), value) != value or not _is_plausible(what, value):
                return None
        ids = [value for (what, _), value in values.items() if what == "id"]
        return values if len(set(ids)) == len(ids) else None

    def _pattern(self, text: str) -> tuple[str, list[tuple[str, str, int]]]:
        parts: list[str] = []
        names: list[tuple[str, str, int]] = []
        end = 0
        for found in _PLACEHOLDER.finditer(text):
            parts.append(re.escape(text[end : found.start()]))
            end = found.end()
            if found["kind"] == "url":
                parts.append(re.escape(self.urls[found["name"]]))
                continue
            names.append((found["kind"], found["name"], 16 if found["width"] else 10))
            parts.append("([0-9a-f]{16})" if found["width"] else "([1-9][0-9]*)")
        return "".join([*parts, re.escape(text[end:])]), names


def _is_plausible(what: str, value: int) -> bool:
    if what == "id":
        return 0 < value < ID_LIMIT
    return abs(value - time.time_ns() // 1_000_000) < CLOCKS_DIFFER_MS


def payload_text(payload: Mapping[str, Any]) -> tuple[str, str]:
    """How a payload is written (`json`, `text`, `hex`), and its text, or its hexadecimal digits without spaces."""
    (kind,) = PAYLOAD_KEYS & payload.keys()
    value = payload[kind]
    if kind == "json":
        compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return kind, _QUOTED_NUMBER.sub(r"\1", compact)
    text = _joined(value)
    return kind, _SPACE.sub(lambda found: found["kept"] or "", text) if kind == "hex" else text


def _joined(value: str | Sequence[str | Mapping[str, Any]]) -> str:
    """A text, or its parts: each is a text, or one that is repeated."""
    parts = [value] if isinstance(value, str) else value
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in parts)


def pair_up(
    expected: Sequence[Mapping[str, Any]], came: Sequence[tuple[str, int, bytes]], values: Values
) -> dict[tuple[str, str], int] | None:
    """The values with which each message that came (topic, qos, payload) is one that was expected, in any order.

    None where there are none: one is missing, one too many, or one differs.
    """
    if len(expected) != len(came):
        return None
    return next(_pairings(list(expected), list(came), values), None)


def _pairings(
    expected: list[Mapping[str, Any]], came: list[tuple[str, int, bytes]], values: Values
) -> Iterator[dict[tuple[str, str], int]]:
    if not expected:
        yield dict(values.bound)
        return
    first, *others = expected
    for at, (topic, qos, payload) in enumerate(came):
        if topic != first["topic"] or qos != first.get("qos", qos):
            continue
        bound = values.match(first, payload)
        if bound is not None:
            yield from _pairings(others, came[:at] + came[at + 1 :], Values(values.urls, bound))
