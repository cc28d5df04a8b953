"""docs/settings.md says of every setting what the code says."""

from __future__ import annotations

from pathlib import Path

from ota_hook.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def rows() -> list[str]:
    """The table's rows as the declarations make them; copy them into the page when this test fails."""
    made = []
    for name, field in Settings.model_fields.items():
        if name == "dialects":
            continue
        default = field.default
        shown = "unset" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        made.append(f"| `OTA_HOOK_{name.upper()}` | `{shown}` | {field.description} |")
    return made


def test_the_page_holds_exactly_the_declared_settings() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith("| `OTA_HOOK_")] == rows()
