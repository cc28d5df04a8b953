"""Rules as models. Must not know how rules are kept."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel

from admin_api.documents.fields import Attribute, Document, Key, Name, checked_by, rfc3339
from ota_hook.admission.texts import check_event
from ota_hook.model import DEFAULT_EVENT, DEFAULT_MODULE, DEFAULT_VERSION_ATTRIBUTE, Rule

Event = Annotated[str, checked_by(check_event)]


class RuleFields(Document):
    """What an operator sets of a rule. `name` defaults to the event."""

    name: Name | None = None
    device_type: Key
    event: Event = DEFAULT_EVENT
    version_attribute: Attribute = DEFAULT_VERSION_ATTRIBUTE
    module: Key = DEFAULT_MODULE
    enabled: bool = True

    def to_rule(self, rule_id: str, *, now_ms: int) -> Rule:
        return Rule(
            id=rule_id,
            name=self.name or self.event,
            device_type=self.device_type,
            event=self.event,
            version_attribute=self.version_attribute,
            module=self.module,
            enabled=self.enabled,
            created_at_ms=now_ms,
        )


class RuleOut(BaseModel):
    """A rule. `notice` says what else a change did, null where nothing."""

    id: str
    name: str
    device_type: str
    event: str
    version_attribute: str
    module: str
    enabled: bool
    created_at: str | None
    revision: int
    notice: str | None = None

    @classmethod
    def of(cls, rule: Rule, *, notice: str | None = None) -> Self:
        return cls(
            id=rule.id,
            **rule_fields(rule),
            created_at=rfc3339(rule.created_at_ms),
            revision=rule.revision,
            notice=notice,
        )


def rule_fields(rule: Rule) -> dict[str, Any]:
    """What of it may be patched."""
    return {
        "name": rule.name,
        "device_type": rule.device_type,
        "event": rule.event,
        "version_attribute": rule.version_attribute,
        "module": rule.module,
        "enabled": rule.enabled,
    }
