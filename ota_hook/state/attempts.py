"""How often devices tried firmware, in Redis: implements ports.attempts.AttemptStore.

Owns how attempts are read and reset; offer_scripts.py counts them, beside the offers that they are of. Must not know
how many are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

import msgpack

from ota_hook.model import Attempts
from ota_hook.state.buckets import batches_of_buckets, read_cursor, write_cursor
from ota_hook.state.connection import Call, RedisClient, Script, redis_errors, run_commands, run_pipelined
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.lua_functions import DEVICE_LUA
from ota_hook.state.offer_scripts import RESET, reset_call
from ota_hook.state.records import read_device

_RESET_BATCH: Final = 500

_LOAD: Final = Script(
    DEVICE_LUA
    + """
local packed = read_device(KEYS[1], KEYS[2], ARGV[1])
if not packed then return {} end
return {packed, redis.call('HGET', KEYS[3], ARGV[1]) or ''}
"""
)
"""KEYS: devices, long devices, attempts. The device and its attempts as they are stored."""


class RedisAttempts:
    """ports.attempts.AttemptStore."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)

    async def load_attempts(self, identifier: str) -> list[Attempts]:
        """See ports.attempts.AttemptStore."""
        with redis_errors("reading attempts"):
            (attempts,) = await self._load([as_bytes(identifier)])
        return attempts

    async def page_attempts(
        self, firmware_id: str, *, cursor: str | None, limit: int, only_exhausted: bool = False
    ) -> tuple[Sequence[tuple[str, Attempts]], str | None]:
        """See ports.attempts.AttemptStore. Ordered by bucket, then identifier."""
        first, after = read_cursor(cursor) if cursor else (0, b"")
        page: list[tuple[str, Attempts]] = []
        last = (first, after)
        with redis_errors("reading attempts"):
            async with aclosing(
                batches_of_buckets(self._redis, self._keys, self._keys.attempts_pattern(), first=first)
            ) as batches:
                async for batch in batches:
                    for bucket, identifiers in await self._find(batch, firmware_id):
                        wanted = [one for one in identifiers if bucket > first or one > after]
                        for identifier, attempts in zip(wanted, await self._load(wanted), strict=True):
                            found = next((one for one in attempts if one.firmware_id == firmware_id), None)
                            if found is None or (only_exhausted and not found.is_exhausted):
                                continue
                            if len(page) == limit:
                                return page, write_cursor(*last)
                            page.append((as_text(identifier), found))
                            last = (bucket, identifier)
        return page, None

    async def reset_attempts(self, identifier: str, firmware_id: str | None = None) -> bool:
        """See ports.attempts.AttemptStore."""
        call = reset_call(self._keys, as_bytes(identifier), firmware_id or "")
        (gone,) = await self._writer.write_or_fail(RESET, [call])
        return bool(gone)

    async def reset_firmware(self, firmware_id: str) -> int:
        """See ports.attempts.AttemptStore."""
        reset = 0
        with redis_errors("resetting attempts"):
            async with aclosing(batches_of_buckets(self._redis, self._keys, self._keys.attempts_pattern())) as batches:
                async for batch in batches:
                    calls = [
                        reset_call(self._keys, identifier, firmware_id)
                        for _, identifiers in await self._find(batch, firmware_id)
                        for identifier in identifiers
                    ]
                    for start in range(0, len(calls), _RESET_BATCH):
                        reset += sum(await self._writer.write_or_fail(RESET, calls[start : start + _RESET_BATCH]))
        return reset

    async def _find(self, buckets: Sequence[int], firmware_id: str) -> list[tuple[int, list[bytes]]]:
        """Of each bucket the identifiers whose attempts may name the firmware, sorted."""
        named = firmware_id.encode()
        found = await run_commands(self._redis, [("HGETALL", self._keys.attempts(bucket)) for bucket in buckets])
        return [
            (bucket, sorted(identifier for identifier, packed in attempts.items() if named in packed))
            for bucket, attempts in zip(buckets, found, strict=True)
            if attempts
        ]

    async def _load(self, identifiers: Sequence[bytes]) -> list[list[Attempts]]:
        calls: list[Call] = []
        for identifier in identifiers:
            bucket = self._keys.bucket_of_name(identifier)
            touched = (self._keys.devices(bucket), self._keys.long_devices(bucket), self._keys.attempts(bucket))
            calls.append((touched, (identifier,)))
        stored, _ = await run_pipelined(self._redis, _LOAD, calls)
        return [
            _attempts(identifier, *found) if found else []
            for identifier, found in zip(identifiers, stored, strict=True)
        ]


def _attempts(identifier: bytes, packed: bytes, stored: bytes) -> list[Attempts]:
    """The newest first; what is exhausted and was counted too long ago to be kept comes last."""
    device = read_device(identifier, packed)
    exhausted = device.exhausted if device is not None else ()
    attempts = [
        Attempts(firmware_id, count, last_at_ms, firmware_id in exhausted)
        for firmware_id, count, last_at_ms in _counts(stored)
    ]
    counted = {one.firmware_id for one in attempts}
    attempts.sort(key=lambda one: (-(one.last_at_ms or 0), one.firmware_id))
    return attempts + [Attempts(name, 0, None, is_exhausted=True) for name in exhausted if name not in counted]


def _counts(stored: bytes) -> list[tuple[str, int, int]]:
    """`[firmware, count, last_at_ms, firmware, …]`; none where it can't be read, as for the scripts."""
    try:
        flat: list[Any] = msgpack.unpackb(stored) if stored else []
        found = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
    except Exception:  # noqa: BLE001 - msgpack has many, and any shape may come out of it
        return []
    is_whole = all(isinstance(name, str) and type(n) is int and type(at) is int for name, n, at in found)
    return found if is_whole else []
