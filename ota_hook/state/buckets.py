"""Walking the buckets in order, a few at first and then many per round trip.

Knows which buckets there are, not what is in them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from ota_hook.errors import InputError
from ota_hook.state.connection import RedisClient, list_primaries
from ota_hook.state.keys import Keys

_FIRST_BATCH: Final = 8
_LARGEST_BATCH: Final = 256
_SCAN_COUNT: Final = 5_000
_CURSOR_DIGITS: Final = 8
_SPARSE: Final = 4
"""With fewer keys than a quarter of the buckets, asking which exist is cheaper than asking each bucket."""


async def batches_of_buckets(
    redis: RedisClient, keys: Keys, pattern: str, *, first: int = 0, largest: int = _LARGEST_BATCH
) -> AsyncGenerator[list[int]]:
    """The numbers of the buckets from `first` on, ascending, in batches that grow to `largest`.

    A bucket that has no key matching `pattern` may be left out (as may one that moves between the primaries of a
    Cluster just then). Raises what redis-py raises.
    """
    numbers: Iterable[int] = range(first, keys.buckets)
    primaries = await list_primaries(redis)
    if sum([await primary.dbsize() for primary in primaries]) < keys.buckets // _SPARSE:
        found = {
            keys.bucket_in(key)
            for primary in primaries
            async for key in primary.scan_iter(match=pattern, count=_SCAN_COUNT)
        }
        numbers = sorted(number for number in found if number is not None and number >= first)
    size = _FIRST_BATCH
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if len(batch) == size:
            yield batch
            batch, size = [], min(2 * size, largest)
    if batch:
        yield batch


def write_cursor(bucket: int, identifier: bytes) -> str:
    """A place in the walk, for a page that goes on behind it: the last identifier of a bucket that was shown."""
    return base64.urlsafe_b64encode(b"%d/%b" % (bucket, identifier)).decode().rstrip("=")


def read_cursor(cursor: str, *, only: int | None = None) -> tuple[int, bytes]:
    """What `write_cursor` was given, in the bucket `only` where that is named. Raises InputError for anything else."""
    try:
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        decoded = b""
    bucket, slash, identifier = decoded.partition(b"/")
    is_place = slash and bucket.isdigit() and len(bucket) <= _CURSOR_DIGITS
    if not is_place or only not in (None, int(bucket)):
        raise InputError("The cursor is not one of this list.", mend="Start without one.", field="cursor")
    return int(bucket), identifier
