"""What devices say of an upgrade, in several vocabularies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_hook.messages import BadMessage
from ota_hook.model import Outcome
from ota_hook.progress import Said, read_command, read_progress, read_reply


def reply(result: object, **more: object) -> dict[str, object]:
    return {"method": "otaUpgrade", "params": {"ota_result": result}, **more}


def progress(**params: object) -> dict[str, object]:
    return {"method": "otaProgress", "params": params}


@pytest.mark.parametrize(
    ("result", "outcome", "code"),
    [
        (0, Outcome.INSTALLING, ""),
        (-1, Outcome.FAILED, "install_failed"),
        (-2, Outcome.FAILED, "download_failed"),
        (-3, Outcome.FAILED, "verify_failed"),
        (-4, Outcome.FAILED, "flash_failed"),
        (4, Outcome.REJECTED, "low_battery"),
        (255, Outcome.FAILED, "internal"),
        (77, Outcome.FAILED, "77"),
    ],
)
def test_a_reply_says_how_it_went_and_never_that_it_succeeded(result: int, outcome: Outcome, code: str) -> None:
    assert read_reply(reply(result, id=98_310)) == Said(98_310, None, outcome, code)


@pytest.mark.parametrize("command_id", [None, 0, -1, 2**53, 1.5, "x", True, [], "9" * 30])
def test_a_reply_without_a_usable_id_answers_the_newest_command(command_id: object) -> None:
    said = read_reply(reply(0, id=command_id))
    assert said is not None
    assert said.command_id is None


def test_an_id_may_be_spelled_as_text() -> None:
    assert read_reply(reply(0, id="98310")) == Said(98_310, None, Outcome.INSTALLING, "")


def test_a_reply_without_a_result_says_nothing() -> None:
    assert read_reply({"method": "otaUpgrade", "id": 3}) is None
    assert read_reply({"params": [], "id": 3}) is None


@pytest.mark.parametrize("result", ["0", None, True, 1.0, {}])
def test_a_result_that_is_no_number_is_bad(result: object) -> None:
    with pytest.raises(BadMessage, match="bad_result"):
        read_reply(reply(result))


@pytest.mark.parametrize(
    ("params", "outcome", "code"),
    [
        ({"step": 0}, Outcome.DOWNLOADING, ""),
        ({"step": 99}, Outcome.DOWNLOADING, ""),
        ({"step": 100}, Outcome.DOWNLOADED, ""),
        ({"step": -3}, Outcome.FAILED, "verify_failed"),
        ({"state": "DOWNLOADED"}, Outcome.DOWNLOADED, ""),
        ({"state": "VERIFIED"}, Outcome.DOWNLOADED, ""),
        ({"state": "UPDATING", "step": 10}, Outcome.INSTALLING, ""),
        ({"state": "UPDATED"}, Outcome.INSTALLING, ""),
        ({"state": "failed", "code": "E7 磁盘满"}, Outcome.FAILED, "E7 磁盘满"),
        ({"state": "failed", "code": -2}, Outcome.FAILED, "download_failed"),
        ({"state": "failed"}, Outcome.FAILED, ""),
        ({"code": 4, "step": 10}, Outcome.REJECTED, "low_battery"),
    ],
)
def test_progress_is_read_in_the_words_of_several_platforms(
    params: dict[str, object], outcome: Outcome, code: str
) -> None:
    assert read_progress(progress(module="main", **params)) == Said(None, "main", outcome, code)


@pytest.mark.parametrize("params", [{}, {"state": "who knows"}, {"step": "10"}, {"step": True}])
def test_progress_that_says_nothing_is_bad(params: dict[str, object]) -> None:
    with pytest.raises(BadMessage, match="bad_progress"):
        read_progress(progress(**params))


def test_a_failures_code_is_one_short_line() -> None:
    said = read_progress(progress(state="failed", code="a\nb" + "c" * 100))
    assert said.code == "ab" + "c" * 62


def test_only_an_offer_is_a_command_that_is_tracked() -> None:
    assert read_command({"params": {"upgrade": True}, "id": 5}) == 5
    assert read_command({"params": {"upgrade": False}, "id": 5}) is None
    assert read_command({"params": {"upgrade": True}}) is None
    assert read_command({"id": 5}) is None


words = st.sampled_from(["params", "id", "ota_result", "step", "state", "code", "module"])


@given(
    st.dictionaries(
        words,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(words, inner),
        ),
    )
)
def test_nothing_a_device_says_raises_anything_else(document: dict[str, object]) -> None:
    for read in (read_reply, read_progress):
        try:
            said = read(document)
        except BadMessage:
            continue
        assert said is None or said.outcome is not Outcome.SUCCEEDED
    read_command(document)
