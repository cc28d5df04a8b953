"""The catalogue in force: an immutable value that every check reads, compiled from documents, swapped whole.

Pure. It must not know where documents come from; state/catalogue.py loads them and swaps snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    """A document that can't be used; the last good one under its key stays in force."""

    kind: DocumentKind
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Documents by key, and what checks look up. `firmware` holds tombstones too; no index does.

    `revision` is the catalogue's, 0 for the empty one. `device_lists` holds the members of every list that a living
    firmware names.
    """

    revision: int = 0
    types: Mapping[str, DeviceType] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    firmware: Mapping[str, Firmware] = field(default_factory=dict)
    device_lists: Mapping[str, DeviceSet] = field(default_factory=dict)
    kept_by_type: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept_attributes: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
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
        changes: Iterable[CatalogueChange],
        *,
        revision: int,
        device_lists: Mapping[str, DeviceSet],
    ) -> tuple[Snapshot, list[RefusedDocument]]:
        """The next snapshot and the documents that it refused.

        `device_lists` holds the members of lists that the changed documents name and this snapshot does not have yet.
        Only the rules and indices that a change touches are made anew.
        """
        draft = _Draft(self, device_lists)
        # Types before what refers to them, whatever order the changes came in.
        for change in sorted(changes, key=lambda change: change.kind is not DocumentKind.DEVICE_TYPE):
            draft.apply(change)
        return draft.finish(revision), draft.refused


class _Draft:
    """A snapshot in the making: changeable copies of the documents, and what the changes touched."""

    def __init__(self, base: Snapshot, device_lists: Mapping[str, DeviceSet]) -> None:
        self.types = dict(base.types)
        self.rules = dict(base.rules)
        self.firmware = dict(base.firmware)
        self.lists = {**base.device_lists, **device_lists}
        self.indices = base._indices  # noqa: SLF001 - the draft is the snapshot's own maker
        self.touched_types: set[str] = set()
        self.touched_scopes: set[_Scope] = set()
        self.refused: list[RefusedDocument] = []

    def apply(self, change: CatalogueChange) -> None:
        match change.document:
            case None:
                self._remove(change)
            case DeviceType() as device_type:
                self.types[device_type.key] = device_type
                self.touched_types.add(device_type.key)
            case Rule() as rule:
                self.rules[rule.id] = rule
            case Firmware() as firmware:
                if reason := _unusable(firmware, self.types, self.lists):
                    self.refused.append(RefusedDocument(DocumentKind.FIRMWARE, firmware.id, reason))
                    return
                self._touch(self.firmware.get(firmware.id))
                self._touch(firmware)
                self.firmware[firmware.id] = firmware

    def _remove(self, change: CatalogueChange) -> None:
        match change.kind:
            case DocumentKind.DEVICE_TYPE:
                self.types.pop(change.key, None)
                self.touched_types.add(change.key)
            case DocumentKind.RULE:
                self.rules.pop(change.key, None)
            case DocumentKind.FIRMWARE:
                self._touch(self.firmware.pop(change.key, None))

    def _touch(self, firmware: Firmware | None) -> None:
        if firmware is not None:
            self.touched_scopes.add((firmware.device_type, firmware.module))

    def finish(self, revision: int) -> Snapshot:
        living = [firmware for firmware in self.firmware.values() if firmware.deleted_at_ms is None]
        named = {firmware.device_list for firmware in living if firmware.device_list}
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
            _rules=rules,
            _indices=self._rebuild(living),
        )

    def _rebuild(self, living: Iterable[Firmware]) -> dict[_Scope, FirmwareIndex]:
        """The indices with those of the touched scopes made anew; a scope without firmware has none."""
        members: dict[_Scope, list[Firmware]] = {}
        for firmware in living:
            scope = (firmware.device_type, firmware.module)
            if scope in self.touched_scopes or firmware.device_type in self.touched_types:
                members.setdefault(scope, []).append(firmware)
        rebuilt = {
            scope: index
            for scope, index in self.indices.items()
            if scope not in self.touched_scopes and scope[0] not in self.touched_types
        }
        for scope, candidates in members.items():
            device_type = self.types.get(scope[0])
            if device_type is not None:
                entries = [_entry(firmware, self.lists) for firmware in candidates if self._is_usable(firmware)]
                previous = self.indices.get(scope)
                rebuilt[scope] = FirmwareIndex(device_type.version_scheme, entries, previous=previous)
        return rebuilt

    def _is_usable(self, firmware: Firmware) -> bool:
        # A type's edited scheme may refuse a version that it took before: better no offer than a wrong one.
        if reason := _unusable(firmware, self.types, self.lists):
            self.refused.append(RefusedDocument(DocumentKind.FIRMWARE, firmware.id, reason))
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
        return f"its device list {firmware.device_list!r} does not exist"
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
