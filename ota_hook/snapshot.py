"""The catalogue in force: an immutable value that every check reads, compiled from documents, swapped whole.

Pure. It must not know where documents come from; state/catalogue.py loads them and swaps snapshots.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ota_hook._device_set import DeviceSet
from ota_hook._matcher import FirmwareEntry, FirmwareIndex
from ota_hook._versions import version_key
from ota_hook.model import BASIS_POINTS, CatalogueChange, DeviceType, DocumentKind, Firmware, Rule

NOBODY: Final = DeviceSet(0)
"""The members of the list "", which needs no place in Redis."""

_SEED_LIMIT: Final = 2**64

_Scope = tuple[str, str]
"""(device type, event) of rules, (device type, module) of firmware."""


@dataclass(frozen=True, slots=True)
class RefusedDocument:
    """A document that can't be used; the last good one under its key stays in force. `firmware` is what it says, where
    it can be read at least.
    """

    kind: DocumentKind
    key: str
    reason: str
    firmware: Firmware | None = None

    @property
    def shown_key(self) -> str:
        """The key for people: nothing of ours wrote one that is not UTF-8, but it may be there."""
        return self.key.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Documents by key, and what checks look up. `firmware` holds tombstones too; no index does.

    `revision` is the catalogue's, 0 for the empty one. `device_lists` holds the members of every list that a living
    firmware names. `refused` is what was stored last under its kind and key and can't be used. `responds`: some type
    has its messages responded to.
    """

    revision: int = 0
    types: Mapping[str, DeviceType] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    firmware: Mapping[str, Firmware] = field(default_factory=dict)
    device_lists: Mapping[str, DeviceSet] = field(default_factory=dict)
    refused: Mapping[tuple[DocumentKind, str], RefusedDocument] = field(default_factory=dict)
    kept_by_type: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept_attributes: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    responds: bool = False
    _rules: Mapping[_Scope, tuple[Rule, ...]] = field(default_factory=dict)
    _indices: Mapping[_Scope, FirmwareIndex] = field(default_factory=dict)

    def rules_for(self, device_type: str, event: str) -> tuple[Rule, ...]:
        """The enabled rules that make `event` a check, by module."""
        return self._rules.get((device_type, event), ())

    def index(self, device_type: str, module: str) -> FirmwareIndex | None:
        """The firmware of that module, None where there is none."""
        return self._indices.get((device_type, module))

    def living_firmware(self, device_type: str, module: str | None = None) -> list[Firmware]:
        """Every firmware of the type (and module) that is not deleted, enabled or not."""
        return [
            firmware
            for firmware in self.firmware.values()
            if firmware.deleted_at_ms is None
            and firmware.device_type == device_type
            and module in (None, firmware.module)
        ]

    def with_changes(
        self,
        changes: Collection[CatalogueChange],
        *,
        revision: int,
        device_lists: Mapping[str, DeviceSet],
        unreadable: Sequence[RefusedDocument] = (),
    ) -> tuple[Snapshot, list[RefusedDocument]]:
        """The next snapshot and the documents among the changes that it refused.

        `device_lists` holds the members of lists that the changed documents name and this snapshot does not have yet;
        `unreadable` are changed documents that say nothing. Only the rules and indices that a change touches are made
        anew.
        """
        draft = _Draft(self, device_lists)
        # Types before what refers to them, whatever order the changes came in.
        for change in sorted(changes, key=lambda change: change.kind is not DocumentKind.DEVICE_TYPE):
            draft.apply(change)
        snapshot = draft.finish(revision)
        touched = {(change.kind, change.key) for change in changes}
        kept = {place: document for place, document in self.refused.items() if place not in touched}
        added = {(document.kind, document.key): document for document in (*unreadable, *draft.refused)}
        return replace(snapshot, refused=kept | added), draft.refused


class _Draft:
    """A snapshot in the making: changeable copies of the documents, and what the changes touched."""

    def __init__(self, base: Snapshot, device_lists: Mapping[str, DeviceSet]) -> None:
        self.base = base
        self.types = dict(base.types)
        self.rules = dict(base.rules)
        self.firmware = dict(base.firmware)
        self.lists = {**base.device_lists, **device_lists}
        self.touched_firmware: dict[_Scope, set[str]] = {}
        self.refused: list[RefusedDocument] = []

    def apply(self, change: CatalogueChange) -> None:
        match change.document:
            case None:
                self._remove(change)
            case DeviceType() as device_type:
                self.types[device_type.key] = device_type
            case Rule() as rule:
                self.rules[rule.id] = rule
            case Firmware() as firmware:
                if not self._is_usable(firmware):
                    return
                self._touch(self.firmware.get(firmware.id))
                self._touch(firmware)
                self.firmware[firmware.id] = firmware

    def _remove(self, change: CatalogueChange) -> None:
        match change.kind:
            case DocumentKind.DEVICE_TYPE:
                self.types.pop(change.key, None)
            case DocumentKind.RULE:
                self.rules.pop(change.key, None)
            case DocumentKind.FIRMWARE:
                self._touch(self.firmware.pop(change.key, None))

    def _touch(self, firmware: Firmware | None) -> None:
        if firmware is not None:
            self.touched_firmware.setdefault((firmware.device_type, firmware.module), set()).add(firmware.id)

    def finish(self, revision: int) -> Snapshot:
        named = {f.device_list for f in self.firmware.values() if f.device_list and f.deleted_at_ms is None}
        self.lists = {name: members for name, members in self.lists.items() if name in named}
        kept_by_type = {key: frozenset(t.version_attributes) for key, t in self.types.items()}
        rules = _group_rules(self.rules.values(), self.types)
        return Snapshot(
            revision=revision,
            types=self.types,
            rules=self.rules,
            firmware=self.firmware,
            device_lists=self.lists,
            kept_by_type=kept_by_type,
            kept_attributes=frozenset().union(*kept_by_type.values()),
            events=frozenset(event for _, event in rules),
            responds=any(device_type.responses_enabled for device_type in self.types.values()),
            _rules=rules,
            _indices=self._index_firmware(),
        )

    def _index_firmware(self) -> dict[_Scope, FirmwareIndex]:
        """The indices in force, with what the changes touched; a scope without firmware has none."""
        base, types = self.base, self.types
        other_scheme = {key for key in base.types.keys() | types.keys() if self._has_other_scheme(key)}
        indices = {
            scope: index
            for scope, index in base._indices.items()  # noqa: SLF001 - the draft is the snapshot's own maker
            if scope[0] not in other_scheme
        }
        for scope, touched in self.touched_firmware.items():
            if scope[0] in other_scheme or scope[0] not in types:
                continue
            living = [firmware for key in touched if (firmware := self._living(key, scope)) is not None]
            gone = touched - {firmware.id for firmware in living}
            before = indices.get(scope) or FirmwareIndex(types[scope[0]].version_scheme, ())
            indices[scope] = before.with_changes([_entry(firmware, self.lists) for firmware in living], gone)
            if not len(indices[scope]):
                del indices[scope]
        return indices | self._index_anew(other_scheme & types.keys())

    def _has_other_scheme(self, key: str) -> bool:
        before, after = self.base.types.get(key), self.types.get(key)
        return before is not after and (
            before is None or after is None or before.version_scheme != after.version_scheme
        )

    def _living(self, firmware_id: str, scope: _Scope) -> Firmware | None:
        firmware = self.firmware.get(firmware_id)
        if firmware is None or firmware.deleted_at_ms is not None:
            return None
        return firmware if (firmware.device_type, firmware.module) == scope else None

    def _index_anew(self, types: Collection[str]) -> dict[_Scope, FirmwareIndex]:
        """The indices of these types, whose scheme is another than before."""
        members: dict[_Scope, list[FirmwareEntry]] = {}
        for firmware in self.firmware.values() if types else ():
            # A type's edited scheme may refuse a version that it took before: better no offer than a wrong one.
            if firmware.device_type in types and firmware.deleted_at_ms is None and self._is_usable(firmware):
                members.setdefault((firmware.device_type, firmware.module), []).append(_entry(firmware, self.lists))
        return {
            scope: FirmwareIndex(self.types[scope[0]].version_scheme, entries) for scope, entries in members.items()
        }

    def _is_usable(self, firmware: Firmware) -> bool:
        if reason := _unusable(firmware, self.types, self.lists):
            self.refused.append(RefusedDocument(DocumentKind.FIRMWARE, firmware.id, reason, firmware))
            return False
        return True


def _unusable(firmware: Firmware, types: Mapping[str, DeviceType], lists: Mapping[str, DeviceSet]) -> str | None:
    """Why this firmware can't be matched, None where it can."""
    if firmware.deleted_at_ms is not None:
        return None
    device_type = types.get(firmware.device_type)
    if device_type is None:
        return f"its device type {firmware.device_type!r} does not exist"
    if version_key(device_type.version_scheme, firmware.version) is None:
        return f"{firmware.version!r} is not a version in the scheme {device_type.version_scheme!r}"
    if firmware.allow_downgrade and not firmware.source_versions:
        return "it allows downgrade without source versions"
    return _unusable_selector(firmware, lists)


def _unusable_selector(firmware: Firmware, lists: Mapping[str, DeviceSet]) -> str | None:
    if firmware.basis_points is not None and not 0 <= firmware.basis_points <= BASIS_POINTS:
        return f"its percentage of {firmware.basis_points / 100:g} is none"
    if not 0 <= firmware.percentage_seed < _SEED_LIMIT:
        return "the seed of its percentage has more than 64 bits"
    if firmware.device_list and firmware.device_list not in lists:
        return f"its device list {firmware.device_list!r} is not there, or not whole"
    return None


def _group_rules(rules: Iterable[Rule], types: Mapping[str, DeviceType]) -> dict[_Scope, tuple[Rule, ...]]:
    grouped: dict[_Scope, list[Rule]] = {}
    for rule in sorted(rules, key=lambda rule: (rule.module, rule.id)):
        if rule.enabled and rule.device_type in types:
            grouped.setdefault((rule.device_type, rule.event), []).append(rule)
    return {scope: tuple(members) for scope, members in grouped.items()}


def _entry(firmware: Firmware, lists: Mapping[str, DeviceSet]) -> FirmwareEntry:
    devices = None
    if firmware.device_list is not None:
        devices = lists[firmware.device_list] if firmware.device_list else NOBODY
    return FirmwareEntry(
        id=firmware.id,
        version=firmware.version,
        enabled=firmware.enabled,
        devices=devices,
        tags=firmware.tags,
        basis_points=firmware.basis_points,
        percentage_seed=firmware.percentage_seed,
        source_versions=firmware.source_versions,
        allow_downgrade=firmware.allow_downgrade,
        created_at_ms=firmware.created_at_ms,
    )
