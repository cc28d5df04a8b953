"""The admin token: made once, kept to its owner, replaced by a configured one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from admin_api.auth import AdminToken, load_admin_token
from ota_hook.errors import ConfigurationError


def test_a_token_is_made_once_and_kept_readable_by_its_owner_alone(tmp_path: Path) -> None:
    token, made = load_admin_token(tmp_path / "data", None)
    assert made
    assert len(token) >= 43
    assert stat.S_IMODE((tmp_path / "data" / "admin-token").stat().st_mode) == 0o600
    assert load_admin_token(tmp_path / "data", None) == (token, False)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["admin-token"]


def test_two_deployments_make_different_tokens(tmp_path: Path) -> None:
    assert load_admin_token(tmp_path / "a", None)[0] != load_admin_token(tmp_path / "b", None)[0]


def test_a_configured_token_replaces_the_kept_one(tmp_path: Path) -> None:
    load_admin_token(tmp_path, None)
    assert load_admin_token(tmp_path, "configured-token-1") == ("configured-token-1", False)
    assert load_admin_token(tmp_path, None) == ("configured-token-1", False)
    assert stat.S_IMODE((tmp_path / "admin-token").stat().st_mode) == 0o600


@pytest.mark.parametrize("token", ["", "short", "with spaces in it 123", "t" * 1025, "ümlaut-0123456789abc"])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(tmp_path: Path, token: str) -> None:
    kept, _ = load_admin_token(tmp_path, None)
    with pytest.raises(ConfigurationError, match="OTA_HOOK_ADMIN_TOKEN"):
        load_admin_token(tmp_path, token)
    assert load_admin_token(tmp_path, None) == (kept, False)


def test_an_empty_token_file_is_refused_not_taken_as_a_token(tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("\n")
    with pytest.raises(ConfigurationError, match="admin-token"):
        load_admin_token(tmp_path, None)


def test_a_data_directory_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be kept"):
        load_admin_token(tmp_path / "file", None)


@pytest.mark.parametrize("token", ["", "wrong", "t" * 20 + " ", "\ud800"])
def test_only_the_very_token_is_good(token: str) -> None:
    tokens = AdminToken("t" * 20)
    assert tokens.verify(token) is None
    assert tokens.verify("t" * 20) == "admin"
