"""Open offers, histories and counters in Redis: implements ports.offers.OfferStore.

Owns the hashes of open offers, the lists of settled ones and the counters per firmware. Must not know when an offer is
settled, nor how.

An offer that is repeated keeps one entry: the newest `offered_at_ms` (attempts count since the last offer) and the last
command ids. Counters live in another slot than the device, so they follow the script that changed something: a process
that dies in between loses a count, and none is ever counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import structlog
from redis.exceptions import ResponseError

from ota_hook.model import OpenOffer, Outcome, SettledOffer
from ota_hook.state.buckets import batches_of_buckets
from ota_hook.state.connection import (
    Argument,
    Command,
    RedisClient,
    redis_errors,
    run_command,
    run_commands,
    run_pipelined,
)
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.lua_functions import HISTORY_LENGTH
from ota_hook.state.offer_scripts import (
    DEFAULT_ATTEMPTS_MAX,
    RECORD,
    SETTLE,
    cancel_call,
    record_call,
    settle_call,
)
from ota_hook.state.records import read_offers, read_settled
from ota_hook.task import RunMove

RUN_EVENTS_KEPT: Final = 200_000
FAILURES: Final = frozenset({Outcome.FAILED, Outcome.TIMED_OUT})
"""Outcomes that speak against the firmware."""
CANCEL_BATCH: Final = 500

_log = structlog.get_logger("ota_hook.state.offers")


class RedisOffers:
    """ports.offers.OfferStore."""

    def __init__(self, redis: RedisClient, keys: Keys, *, attempts_max: int = DEFAULT_ATTEMPTS_MAX) -> None:
        self._redis = redis
        self._keys = keys
        self._attempts_max = attempts_max

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (it was deleted). Returns how many; idempotent.

        Reads every bucket that holds open offers.
        """
        cancelled = 0
        with redis_errors("cancelling offers"):
            pattern = self._keys.offers_pattern()
            async with aclosing(batches_of_buckets(self._redis, self._keys, pattern)) as batches:
                async for batch in batches:
                    holders = await run_commands(
                        self._redis, [("HGETALL", self._keys.offers(bucket)) for bucket in batch]
                    )
                    for bucket, offers in zip(batch, holders, strict=True):
                        cancelled += await self._cancel_in(bucket, offers, firmware_id, settled_at_ms)
            await count_outcomes(self._redis, self._keys, {(firmware_id, Outcome.CANCELLED): cancelled})
        return cancelled

    async def _cancel_in(
        self, bucket: int, holders: Mapping[bytes, bytes], firmware_id: str, settled_at_ms: int
    ) -> int:
        named = firmware_id.encode()
        calls = [
            (identifier, cancel_call(self._keys, identifier, offer, settled_at_ms=settled_at_ms))
            for identifier, packed in holders.items()
            if named in packed
            for offer in read_offers(packed)
            if offer.firmware_id == firmware_id
        ]
        closed = 0
        for start in range(0, len(calls), CANCEL_BATCH):
            batch = calls[start : start + CANCEL_BATCH]
            results, _ = await run_pipelined(self._redis, SETTLE, [call for _, call in batch])
            closed += sum(done for done, _, _ in results)
            moves = [
                RunMove(as_text(run_id), chunk, as_text(identifier), Outcome.CANCELLED, at_ms=settled_at_ms)
                for (identifier, _), (_, run_id, chunk) in zip(batch, results, strict=True)
                if run_id
            ]
            await tell_runs(self._redis, self._keys, moves)
        return closed

    async def record_offers(self, offers: Sequence[tuple[str, OpenOffer]]) -> list[bool]:
        """See ports.offers.OfferStore."""
        with redis_errors("noting offers"):
            calls = [record_call(self._keys, identifier, offer) for identifier, offer in offers]
            results, _ = await run_pipelined(self._redis, RECORD, calls)
            counts: Counter[tuple[str, Outcome]] = Counter()
            moves = []
            for (identifier, offer), (happened, superseded, run_id, chunk) in zip(offers, results, strict=True):
                if happened == b"opened":
                    counts[offer.firmware_id, Outcome.OFFERED] += 1
                if superseded:
                    counts[as_text(superseded), Outcome.SUPERSEDED] += 1
                if run_id:
                    moves.append(RunMove(as_text(run_id), chunk, identifier, Outcome.SUPERSEDED))
        await count_outcomes(self._redis, self._keys, counts)
        await tell_runs(self._redis, self._keys, moves)
        return [happened != b"unknown" for happened, *_ in results]

    async def settle_offers(
        self, offers: Sequence[tuple[str, OpenOffer]], outcome: Outcome, *, code: str = "", settled_at_ms: int
    ) -> list[bool]:
        """See ports.offers.OfferStore."""
        with redis_errors("settling offers"):
            calls = [
                settle_call(
                    *(self._keys, identifier, offer, outcome),
                    code=code,
                    settled_at_ms=settled_at_ms,
                    attempts_max=self._attempts_max,
                    run_id=offer.run_id,
                )
                for identifier, offer in offers
            ]
            results, _ = await run_pipelined(self._redis, SETTLE, calls)
        settled = [bool(happened) for happened, _, _ in results]
        counts = Counter((offer.firmware_id, outcome) for (_, offer), done in zip(offers, settled, strict=True) if done)
        await count_outcomes(self._redis, self._keys, counts)
        return settled

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """See ports.offers.OfferStore."""
        key = self._keys.history(self._keys.bucket_of(identifier), identifier)
        with redis_errors("reading a device's history"):
            entries: Sequence[bytes] = await run_command(self._redis, "LRANGE", key, 0, HISTORY_LENGTH - 1)
        settled = [offer for entry in entries if (offer := read_settled(entry)) is not None]
        if len(settled) < len(entries):
            _log.warning("history_unreadable", device=identifier, entries=len(entries) - len(settled))
        return settled

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """See ports.offers.OfferStore. A firmware that was never offered has none; what is no count is left out."""
        wanted = list(firmware_ids)
        with redis_errors("reading counters"):
            found = await run_commands(
                self._redis, [("HGETALL", self._keys.counters(firmware_id)) for firmware_id in wanted]
            )
        return {
            firmware_id: {
                outcome.decode(): int(count)
                for outcome, count in counters.items()
                if outcome.isascii() and count.isdigit()
            }
            for firmware_id, counters in zip(wanted, found, strict=True)
        }


async def count_cancelled(redis: RedisClient, keys: Keys, cancelled: Iterable[bytes]) -> None:
    """Count what the scripts cancelled, and tell the runs of it. Each is `FIRMWARE RUN CHUNK DEVICE`."""
    split = [as_text(one).split(" ", 3) for one in cancelled]
    await count_outcomes(redis, keys, Counter((firmware, Outcome.CANCELLED) for firmware, *_ in split))
    moves = [RunMove(run_id, int(chunk), device, Outcome.CANCELLED) for _, run_id, chunk, device in split if run_id]
    await tell_runs(redis, keys, moves)


async def tell_runs(redis: RedisClient, keys: Keys, moves: Sequence[RunMove]) -> None:
    """Put what became of offers where workers read it. May be lost: a run looks itself, when its devices time out."""
    if moves:
        with redis_errors("telling runs"):
            await run_commands(redis, [tell_command(keys, move) for move in moves])


def tell_command(keys: Keys, move: RunMove) -> tuple[Argument, ...]:
    """The command that appends to the stream of run events."""
    return (
        *("XADD", keys.run_events, "MAXLEN", "~", RUN_EVENTS_KEPT, "*"),
        *("run", move.run_id, "chunk", move.chunk, "device", as_bytes(move.identifier)),
        *("outcome", move.outcome.value, "code", as_bytes(move.code), "at", move.at_ms),
    )


async def count_outcomes(redis: RedisClient, keys: Keys, counts: Mapping[tuple[str, Outcome], int]) -> None:
    """Add to the counters of each (firmware, outcome). Not repeated on failure: better lost than counted twice."""
    if not any(counts.values()):
        return
    failing = [firmware_id for (firmware_id, outcome), count in counts.items() if count and outcome in FAILURES]
    commands: list[Command] = [
        ("HINCRBY", keys.counters(firmware_id), outcome.value, count)
        for (firmware_id, outcome), count in counts.items()
    ]
    commands += [("SADD", keys.failing, firmware_id) for firmware_id in failing]
    with redis_errors("counting outcomes"):
        try:
            await run_commands(redis, commands)
        except ResponseError as exc:  # a counter that holds something else must not keep anybody from deleting
            _log.warning("outcomes_not_counted", problem=str(exc))
