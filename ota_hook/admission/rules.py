"""Which rules may be made and changed. Must not know how rules are written, or what they answer."""

from __future__ import annotations

from dataclasses import replace

from ota_hook.admission.changes import writing
from ota_hook.admission.device_types import find_type, keep_attribute
from ota_hook.errors import ConflictError, InputError
from ota_hook.model import CatalogueChange, Rule
from ota_hook.snapshot import Snapshot


def find_identical_rule(snapshot: Snapshot, proposed: Rule) -> Rule | None:
    """The rule that says the same as `proposed`, whatever its id, age and revision."""
    for rule in snapshot.rules.values():
        if replace(proposed, id=rule.id, created_at_ms=rule.created_at_ms, revision=rule.revision) == rule:
            return rule
    return None


def admit_rule(snapshot: Snapshot, proposed: Rule) -> tuple[CatalogueChange, ...]:
    """Create the rule or replace the one with its id. A version attribute that is new to the type joins it."""
    device_type = find_type(snapshot, proposed.device_type)
    old = snapshot.rules.get(proposed.id)
    if old is not None and old.device_type != proposed.device_type:
        raise InputError("A rule can't move to another device type.", field="device_type")
    for rule in snapshot.rules.values():
        same = (rule.device_type, rule.event, rule.module) == (proposed.device_type, proposed.event, proposed.module)
        if same and rule.id != proposed.id:
            raise ConflictError(
                f"The rule {rule.name!r} ({rule.id}) is there for that device type, event and module already.",
                mend="Change that one.",
            )
    if old is not None:
        proposed = replace(proposed, created_at_ms=old.created_at_ms, revision=old.revision + 1)
    return (*keep_attribute(device_type, proposed.version_attribute), writing(proposed))
