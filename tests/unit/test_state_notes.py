"""What is noted in Redis while devices wait for answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from ota_hook.state import hot_calls
from ota_hook.state.connection import Script
from ota_hook.state.hot_calls import Notes
from ota_hook.state.pipe import Done, Unavailable

NOTE = Script("return 1")
MOST = hot_calls.NOTES_AT_ONCE


class Pipe:
    """A pipe, and hot_calls.Pipes of it, that answers when it is told to, or at once that Redis is away."""

    def __init__(self) -> None:
        self.asked: list[Done] = []
        self.is_away = False

    def of(self, key: str) -> Any:
        return self

    def submit(self, command: bytes, done: Done) -> None:
        if self.is_away:
            done(Unavailable("away"))
        else:
            self.asked.append(done)

    def answer(self, count: int) -> None:
        asked, self.asked = self.asked[:count], self.asked[count:]
        for done in asked:
            done(1)


def note_all(notes: Notes, count: int) -> list[tuple[int, Any]]:
    """The replies, with the number of the note, as they come."""
    replies: list[tuple[int, Any]] = []
    for number in range(count):
        notes.run(NOTE, (("key",), ()), partial(lambda number, reply: replies.append((number, reply)), number))
    return replies


def test_so_many_notes_are_under_way_at_a_time_and_all_come_in_their_order() -> None:
    pipe = Pipe()
    replies = note_all(Notes(pipe), 3 * MOST)
    assert len(pipe.asked) == MOST
    pipe.answer(5)
    assert len(pipe.asked) == MOST
    while pipe.asked:
        pipe.answer(7)
    assert replies == [(number, 1) for number in range(3 * MOST)]


def test_what_is_noted_because_of_a_reply_waits_behind_what_was_noted_before() -> None:
    pipe = Pipe()
    notes = Notes(pipe)
    order: list[str] = []

    def note(name: str, *more: str) -> None:
        def take(reply: Any) -> None:
            order.append(name)
            for other in more:
                note(other)

        notes.run(NOTE, (("key",), ()), take)

    note("first", "behind it")
    for number in range(MOST):
        note(str(number))
    while pipe.asked:
        pipe.answer(1)
    assert order == ["first", *map(str, range(MOST)), "behind it"]


def test_where_redis_goes_away_every_note_that_waits_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, count = Pipe(), 20_000
    replies = note_all(Notes(pipe), count)
    pipe.is_away = True
    pipe.answer(MOST)
    assert sorted(number for number, _ in replies) == list(range(count))
    assert sum(type(reply) is Unavailable for _, reply in replies) == count - MOST


def test_a_note_too_many_is_refused_and_those_that_wait_at_the_end_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_calls, "NOTES_WAITING_MAX", 2)
    pipe = Pipe()
    notes = Notes(pipe)
    replies = note_all(notes, MOST + 3)
    assert [(number, type(reply)) for number, reply in replies] == [(MOST + 2, Unavailable)]
    assert notes.close() == 2
    pipe.answer(MOST)
    assert not pipe.asked


def test_a_note_whose_reply_can_not_be_taken_keeps_none_of_the_others() -> None:
    pipe = Pipe()
    notes = Notes(pipe)

    def fail(reply: Any) -> None:
        raise ValueError(reply)

    notes.run(NOTE, (("key",), ()), fail)
    replies = note_all(notes, MOST)
    with pytest.raises(ValueError, match="1"):
        pipe.answer(1)
    pipe.answer(MOST)
    assert len(replies) == MOST
