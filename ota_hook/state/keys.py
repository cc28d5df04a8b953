"""The names of every key in Redis, and which of them share a slot. No other module spells a key.

Pure: no I/O. What is stored under a key is the business of the module that uses it.

Catalogue-wide keys share the hash tag `{c}`, a device's keys the tag of its bucket, and a firmware's counters have one
of their own: every script touches one slot of a Redis Cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import xxhash

from ota_hook.errors import ConfigurationError
from ota_hook.model import DocumentKind

DEFAULT_PREFIX: Final = "ota"
DEFAULT_BUCKETS: Final = 65_536
"""Up to 512 devices of a bucket stay in Redis's compact encoding: 33 million in all."""
BUCKETS_MAX: Final = 2**24

_PREFIX_MAX_CHARACTERS: Final = 64


def as_bytes(text: str) -> bytes:
    """The text as Redis keeps it. A lone surrogate, which JSON can spell, survives the round trip."""
    return text.encode("utf-8", "surrogatepass")


def as_text(stored: bytes) -> str:
    """What `as_bytes` was given."""
    return stored.decode("utf-8", "surrogatepass")


def meta_key(prefix: str) -> str:
    """Hash: `format`, `buckets`, `revision`, `token`, `list_seed`. Known before the number of buckets is."""
    return f"{prefix}:{{c}}:meta"


def checked_prefix(prefix: str) -> str:
    """The prefix, or ConfigurationError where it would break the hash tags."""
    if not prefix or len(prefix) > _PREFIX_MAX_CHARACTERS or not prefix.isascii() or not prefix.isprintable():
        raise ConfigurationError("The Redis prefix must be 1 to 64 printable ASCII characters.")
    if set(prefix) & set("{}*?[]\\ "):
        raise ConfigurationError("The Redis prefix must not contain braces, brackets, blanks, `*`, `?` or a backslash.")
    return prefix


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one deployment. `buckets` is what its meta key says; `open_layout` makes the value."""

    prefix: str = DEFAULT_PREFIX
    buckets: int = DEFAULT_BUCKETS

    def bucket_of(self, identifier: str) -> int:
        """The bucket that holds a device: a gateway and all its children share one."""
        return self.bucket_of_name(as_bytes(identifier))

    def bucket_of_name(self, name: bytes) -> int:
        """`bucket_of` for an identifier that is encoded already."""
        return xxhash.xxh64_intdigest(name.partition(b"/")[0]) % self.buckets

    def devices(self, bucket: int) -> str:
        """Hash: identifier → packed state, in Redis's compact encoding; empty where the state is in `long_devices`."""
        return f"{self.prefix}:{{{bucket}}}:d"

    def long_devices(self, bucket: int) -> str:
        """Hash: identifier → packed state, of devices whose state or identifier would unpack the compact hash."""
        return f"{self.prefix}:{{{bucket}}}:x"

    def offers(self, bucket: int) -> str:
        """Hash: identifier → packed list of open offers."""
        return f"{self.prefix}:{{{bucket}}}:o"

    def attempts(self, bucket: int) -> str:
        """Hash: identifier → packed attempts of firmware."""
        return f"{self.prefix}:{{{bucket}}}:a"

    def presence(self, bucket: int) -> str:
        """Hash: identifier → the connection that it has, and since when."""
        return f"{self.prefix}:{{{bucket}}}:p"

    def last_write(self, bucket: int) -> str:
        """String, gone within a second: written so that there is a write to wait for (durability.py)."""
        return f"{self.prefix}:{{{bucket}}}:w"

    def history(self, bucket: int, identifier: str) -> bytes:
        """List: packed settled offers of one device, newest first."""
        return self.history_of(bucket, as_bytes(identifier))

    def history_of(self, bucket: int, identifier: bytes) -> bytes:
        """`history` of an identifier as it was read from Redis."""
        return f"{self.prefix}:{{{bucket}}}:h:".encode() + identifier

    def counters(self, firmware_id: str) -> str:
        """Hash: outcome → how often."""
        return f"{self.prefix}:{{{firmware_id}}}:n"

    @property
    def meta(self) -> str:
        return meta_key(self.prefix)

    def documents(self, kind: DocumentKind) -> str:
        """Hash: document key → JSON."""
        return f"{self.prefix}:{{c}}:doc:{kind}"

    @property
    def changes(self) -> str:
        """Stream: what changed in the catalogue; an entry's id begins with the revision that brought it."""
        return f"{self.prefix}:{{c}}:changes"

    def device_list(self, name: str) -> str:
        """List: the identifiers of one device list, many in each element; never changed once a firmware names it."""
        return f"{self.prefix}:{{c}}:list:{name}"

    def device_list_digests(self, name: str) -> str:
        """String: the seed of the digests of one device list (8 bytes), how many there are (8 bytes), the digests."""
        return f"{self.prefix}:{{c}}:list:{name}:digests"

    @property
    def command_ids(self) -> str:
        """Integer: the last command id that was handed out in a block."""
        return f"{self.prefix}:{{c}}:ids"

    def idempotency(self, digest: str) -> str:
        """String: one request under an `Idempotency-Key`, expiring."""
        return f"{self.prefix}:{{c}}:idem:{digest}"

    @property
    def live_hooks(self) -> str:
        """Sorted set: hook process → when its liveness runs out (epoch ms, by Redis's clock)."""
        return f"{self.prefix}:{{c}}:live"

    @property
    def broker_nodes(self) -> str:
        """Sorted set: node of the broker → when it began to tell of its connections (epoch ms)."""
        return f"{self.prefix}:{{c}}:broker-nodes"

    @property
    def check_timer(self) -> str:
        """String, expiring: the worker that looks for offers of checks that are overdue; empty while none need look."""
        return f"{self.prefix}:{{c}}:check-timer"

    # ---- tasks and runs: what is shared is beside the catalogue, what belongs to one run has a slot of its own

    @property
    def tasks(self) -> str:
        """Hash: task id → JSON."""
        return f"{self.prefix}:{{c}}:tasks"

    @property
    def due(self) -> str:
        """Sorted set: task id → when it is due next (epoch ms)."""
        return f"{self.prefix}:{{c}}:due"

    @property
    def runs(self) -> str:
        """Sorted set: run id → when it was made (epoch ms)."""
        return f"{self.prefix}:{{c}}:runs"

    @property
    def open_runs(self) -> str:
        """Hash: run id → JSON of its head, for runs that are not over."""
        return f"{self.prefix}:{{c}}:open-runs"

    @property
    def open_run_by_task(self) -> str:
        """Hash: task id → id of its open run."""
        return f"{self.prefix}:{{c}}:open-by-task"

    def runs_of(self, task_id: str) -> str:
        """Sorted set: id of a run of that task → when it was made."""
        return f"{self.prefix}:{{c}}:task-runs:{task_id}"

    def skips_of(self, task_id: str) -> str:
        """List: the last due times of a task that were skipped, and why."""
        return f"{self.prefix}:{{c}}:skips:{task_id}"

    @property
    def work(self) -> str:
        """Stream: what workers shall do; a consumer group claims it."""
        return f"{self.prefix}:{{c}}:work"

    @property
    def dead_work(self) -> str:
        """Stream: work that was tried too often."""
        return f"{self.prefix}:{{c}}:dead-work"

    @property
    def run_events(self) -> str:
        """Stream: what became of offers that belong to a run."""
        return f"{self.prefix}:{{c}}:run-events"

    @property
    def failing(self) -> str:
        """Set: firmware that failed somewhere since somebody looked."""
        return f"{self.prefix}:{{c}}:failing"

    @property
    def stops(self) -> str:
        """Hash: firmware id → JSON of its last stop."""
        return f"{self.prefix}:{{c}}:stops"

    @property
    def notices(self) -> str:
        """Stream: what people outside shall hear of."""
        return f"{self.prefix}:{{c}}:notices"

    def run(self, run_id: str) -> str:
        """Hash: state, times, counters (`n:OUTCOME`) and leases (`l:CHUNK`) of one run."""
        return f"{self.prefix}:{{{run_id}}}:run"

    def run_chunk(self, run_id: str, chunk: int) -> str:
        """Hash: identifier → packed record, of some devices of a run."""
        return f"{self.prefix}:{{{run_id}}}:c:{chunk}"

    def run_unsent(self, run_id: str) -> str:
        """Sorted set: chunk with devices that were not sent their command → when it was put into the queue, or 0."""
        return f"{self.prefix}:{{{run_id}}}:unsent"

    def run_later(self, run_id: str) -> str:
        """Sorted set: chunk → when the first of its devices that wait may be sent its command (epoch ms)."""
        return f"{self.prefix}:{{{run_id}}}:later"

    def run_deadlines(self, run_id: str) -> str:
        """Sorted set: chunk → when the first of its devices times out (epoch ms)."""
        return f"{self.prefix}:{{{run_id}}}:deadlines"

    def devices_pattern(self) -> str:
        """What SCAN matches for the hashes of devices, short and long."""
        return f"{self.prefix}:{{*}}:[dx]"

    def offers_pattern(self) -> str:
        """What SCAN matches for the hashes of open offers."""
        return f"{self.prefix}:{{*}}:o"

    def attempts_pattern(self) -> str:
        """What SCAN matches for the hashes of attempts."""
        return f"{self.prefix}:{{*}}:a"

    def bucket_in(self, key: bytes) -> int | None:
        """The bucket that a bucketed key belongs to, None for any other key."""
        number = key[len(self.prefix) + 2 :].split(b"}", 1)[0]
        return int(number) if number.isdigit() and int(number) < self.buckets else None
