"""The catalogue in force: an immutable value that every check reads, compiled from documents, swapped whole.

Pure. It must not know where documents come from; state/catalogue.py loads them and swaps snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ota_hook._matcher import FirmwareEntry, FirmwareIndex, version_key
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Firmware, Rule

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
    device_lists: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept_by_type: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept_attributes: frozenset[str] = frozenset()
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
        device_lists: Mapping[str, frozenset[str]],
    ) -> tuple[Snapshot, list[RefusedDocument]]:
        """The next snapshot and the documents that it refused.

        `device_lists` holds the members of lists that the changed documents name and this snapshot does not have yet.
        Only the rules and indices that a change touches are made anew.
        """
        refused: list[RefusedDocument] = []
        types, rules, firmware = dict(self.types), dict(self.rules), dict(self.firmware)
        lists = {**self.device_lists, **device_lists}
        touched_types: set[str] = set()
        touched_scopes: set[_Scope] = set()
        # Types before what refers to them, whatever order the changes came in.
        for change in sorted(changes, key=lambda change: change.kind is not DocumentKind.DEVICE_TYPE):
            match change.document:
                case None:
                    self._remove(change, types, rules, firmware, touched_types, touched_scopes)
                case DeviceType() as device_type:
                    types[device_type.key] = device_type
                    touched_types.add(device_type.key)
                case Rule() as rule:
                    rules[rule.id] = rule
                case Firmware() as candidate:
                    if reason := _unusable(candidate, types, lists):
                        refused.append(RefusedDocument(DocumentKind.FIRMWARE, candidate.id, reason))
                        continue
                    firmware[candidate.id] = candidate
                    touched_scopes.add((candidate.device_type, candidate.module))
        living = [f for f in firmware.values() if f.deleted_at_ms is None]
        touched_scopes |= {(f.device_type, f.module) for f in living if f.device_type in touched_types}
        named = {f.device_list for f in living if f.device_list}
        kept_lists = {name: members for name, members in lists.items() if name in named}
        kept_by_type = {key: frozenset(t.version_attributes) for key, t in types.items()}
        indices = _rebuild(self._indices, touched_scopes, living, types, kept_lists, refused)
        return (
            Snapshot(
                revision=revision,
                types=types,
                rules=rules,
                firmware=firmware,
                device_lists=kept_lists,
                kept_by_type=kept_by_type,
                kept_attributes=frozenset().union(*kept_by_type.values()),
                _rules=_group_rules(rules.values(), types),
                _indices=indices,
            ),
            refused,
        )

    @staticmethod
    def _remove(
        change: CatalogueChange,
        types: dict[str, DeviceType],
        rules: dict[str, Rule],
        firmware: dict[str, Firmware],
        touched_types: set[str],
        touched_scopes: set[_Scope],
    ) -> None:
        match change.kind:
            case DocumentKind.DEVICE_TYPE:
                types.pop(change.key, None)
                touched_types.add(change.key)
            case DocumentKind.RULE:
                rules.pop(change.key, None)
            case DocumentKind.FIRMWARE:
                gone = firmware.pop(change.key, None)
                if gone is not None:
                    touched_scopes.add((gone.device_type, gone.module))


def _unusable(
    firmware: Firmware, types: Mapping[str, DeviceType], lists: Mapping[str, frozenset[str]]
) -> str | None:
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
    if firmware.device_list and firmware.device_list not in lists:
        return f"its device list {firmware.device_list!r} does not exist"
    return None


def _group_rules(rules: Iterable[Rule], types: Mapping[str, DeviceType]) -> dict[_Scope, tuple[Rule, ...]]:
    grouped: dict[_Scope, list[Rule]] = {}
    for rule in sorted(rules, key=lambda rule: (rule.module, rule.id)):
        if rule.enabled and rule.device_type in types:
            grouped.setdefault((rule.device_type, rule.event), []).append(rule)
    return {scope: tuple(members) for scope, members in grouped.items()}


def _rebuild(
    indices: Mapping[_Scope, FirmwareIndex],
    touched: set[_Scope],
    living: Iterable[Firmware],
    types: Mapping[str, DeviceType],
    lists: Mapping[str, frozenset[str]],
    refused: list[RefusedDocument],
) -> dict[_Scope, FirmwareIndex]:
    """The indices with those of the touched scopes made anew; a scope without firmware has none."""
    members: dict[_Scope, list[Firmware]] = {scope: [] for scope in touched}
    for firmware in living:
        scope = (firmware.device_type, firmware.module)
        if scope in members:
            members[scope].append(firmware)
    rebuilt = {scope: index for scope, index in indices.items() if scope not in touched and scope[0] in types}
    for scope, candidates in members.items():
        device_type = types.get(scope[0])
        if device_type is None or not candidates:
            continue
        usable = []
        for firmware in candidates:
            # A type's edited scheme may refuse a version that it took before: better no offer than a wrong one.
            if reason := _unusable(firmware, types, lists):
                refused.append(RefusedDocument(DocumentKind.FIRMWARE, firmware.id, reason))
            else:
                usable.append(_entry(firmware, lists))
        rebuilt[scope] = FirmwareIndex(device_type.version_scheme, usable)
    return rebuilt


def _entry(firmware: Firmware, lists: Mapping[str, frozenset[str]]) -> FirmwareEntry:
    if firmware.device_list is None:
        devices = None
    else:
        devices = lists[firmware.device_list] if firmware.device_list else frozenset[str]()
    return FirmwareEntry(
        id=firmware.id,
        version=firmware.version,
        enabled=firmware.enabled,
        devices=devices,
        source_versions=firmware.source_versions,
        allow_downgrade=firmware.allow_downgrade,
        created_at_ms=firmware.created_at_ms,
    )
