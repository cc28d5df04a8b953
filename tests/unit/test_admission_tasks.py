"""What a task may not contradict, and which version attributes it brings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ota_hook.admission.device_types import admit_type, remove_type
from ota_hook.admission.tasks import admit_task
from ota_hook.errors import ConflictError, InputError
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Rule
from ota_hook.snapshot import Snapshot
from ota_hook.task import Pacing, Task

DU = DeviceType(key="DU", name="DU")
GW = DeviceType(key="GW", name="GW")
RULE = Rule(id="01JRULE", name="check", device_type="DU")
TASK = Task(id="01JTASK", name="nightly", device_type="DU")


def catalogue(*rules: Rule) -> Snapshot:
    changes = [CatalogueChange(DocumentKind.DEVICE_TYPE, known.key, known) for known in (DU, GW)]
    changes += [CatalogueChange(DocumentKind.RULE, rule.id, rule) for rule in rules]
    snapshot, refused = Snapshot().with_changes(changes, revision=1, device_lists={})
    assert not refused
    return snapshot


def admit(task: Task, *, old: Task | None = None, types: tuple[str, ...] = ("DU",), rule: Rule = RULE) -> list[str]:
    """The version attributes that join types, as `TYPE: …`."""
    changes = admit_task(catalogue(rule), task, old, device_types=types)
    documents = [change.document for change in changes]
    assert all(isinstance(known, DeviceType) and known.revision == 2 for known in documents)
    return [f"{d.key}: {' '.join(d.version_attributes)}" for d in documents if isinstance(d, DeviceType)]


def test_what_the_type_keeps_changes_nothing() -> None:
    assert admit(TASK) == []
    assert admit(replace(TASK, version_attribute="version", module="main")) == []


def test_a_new_attribute_joins_each_type_of_the_target() -> None:
    named = replace(TASK, version_attribute="gps", module="gps")
    assert admit(named) == ["DU: version gps"]
    listed = replace(named, device_type=None, devices=("d1",))
    assert admit(listed, types=("GW", "DU", "gone")) == ["DU: version gps", "GW: version gps"]
    assert admit(replace(listed, version_attribute=None), types=("DU",)) == []


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (replace(TASK, device_type="nobody"), "target.device_type"),
        (replace(TASK, device_type="GW"), "version_attribute"),
        (replace(TASK, module="gps"), "version_attribute"),
        (replace(TASK, version_attribute="gps"), "module"),
        (replace(TASK, pacing=Pacing(ramp_from_per_minute=1)), "ramp_from_per_minute"),
        (replace(TASK, pacing=Pacing(rate_per_minute=1, ramp_from_per_minute=2)), "ramp_from_per_minute"),
    ],
)
def test_a_contradiction_is_refused_by_name(task: Task, field: str) -> None:
    with pytest.raises(InputError) as refused:
        admit(task)
    assert refused.value.field == field


def test_a_task_whose_rule_was_disabled_meanwhile_can_be_disabled_too() -> None:
    disabled = replace(RULE, enabled=False)
    assert admit(replace(TASK, enabled=False), old=TASK, rule=disabled) == []
    with pytest.raises(InputError):
        admit(replace(TASK, module="main"), old=TASK, rule=disabled)


def test_a_type_keeps_what_its_tasks_name() -> None:
    task = replace(TASK, version_attribute="version")
    with pytest.raises(ConflictError, match="a task \\(nightly 01JTASK\\)"):
        remove_type(catalogue(), "DU", devices=[], tasks=[task])
    assert remove_type(catalogue(), "GW", devices=[], tasks=[task])
    fewer = replace(DU, version_attributes=("gps",))
    with pytest.raises(ConflictError, match="01JTASK"):
        admit_type(catalogue(), fewer, default_rule_id="R", tasks=[task])
    assert admit_type(catalogue(), fewer, default_rule_id="R", tasks=[TASK])
