"""libFuzzer against the codec, guided by the coverage of its compiled code: `make fuzz` builds and runs it.

Each input is read where the bytes end before a page that can't be read, and compared with the generated class; what
could be read is written as an answer and compared again. The arguments are libFuzzer's (-runs=, -max_total_time=, a
corpus folder). FUZZ_CODEC names the codec that was built for it (tests/fuzz/run.sh).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import atheris  # type: ignore[import-untyped]

GUIDED_BY = "atheris.core_with_libfuzzer"
MAX_BYTES = 4096


def load_instrumented_codec() -> ModuleType:
    """In the place of the ordinary one. libFuzzer's symbols come first, and in sight of what is loaded after them."""
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    importlib.import_module(GUIDED_BY)
    sys.setdlopenflags(flags)
    spec = importlib.util.spec_from_file_location("ota_hook.exhook._codec", os.environ["FUZZ_CODEC"])
    if spec is None or spec.loader is None:
        raise ImportError(os.environ["FUZZ_CODEC"])
    module = importlib.util.module_from_spec(spec)
    sys.modules["ota_hook.exhook._codec"] = module
    spec.loader.exec_module(module)
    return module


CODEC = load_instrumented_codec()

from ota_hook.exhook.exhook_pb2 import Message, ValuedResponse  # noqa: E402 - the instrumented codec has to come first
from tests.guarded_bytes import GuardedBytes  # noqa: E402
from tests.publish_requests import (  # noqa: E402
    MESSAGE,
    META,
    PROPS,
    REFUSED,
    UNUSUAL,
    V3_CHECK,
    PublishFields,
    field,
    fields_by_generated_class,
    fields_of,
)

GUARDED = GuardedBytes(MAX_BYTES * 2)


# An input's first byte says what the rest is: a whole request, or the body of a part whose lengths are then right.
# Without this nearly every change ends at the first length.
FORMS = (
    lambda rest: rest,
    lambda rest: field(1, rest),
    lambda rest: field(1, field(8, rest)),
    lambda rest: field(1, field(5, rest)),
    lambda rest: field(1, MESSAGE) + field(1, rest),
    lambda rest: field(2, rest),
    lambda rest: field(4, rest),
)
SEEDS = (
    *((0, request) for request in (V3_CHECK, *REFUSED.values(), *(request for request, _ in UNUSUAL.values()))),
    (1, MESSAGE),
    (2, field(1, b"username") + field(2, b"d1")),
    (3, "attributes/设备".encode()),
    (4, field(5, b"other") + b"\x18\x02"),
    (5, META[2:]),
    (6, PROPS[2:31]),
)


def read_held(held: bytes) -> PublishFields | None:
    return fields_of(CODEC.read_publish(held))


def compare(data: bytes) -> None:
    request = FORMS[data[0] % len(FORMS)](data[1:]) if data else b""
    expected = fields_by_generated_class(request)
    found = GUARDED.call(read_held, request)
    if found != expected:
        raise AssertionError(f"{request!r}: the codec read {found}, the generated class {expected}")
    if found is None:
        return
    topic, payload, _, _, qos, _ = found
    answer = ValuedResponse(
        type=ValuedResponse.STOP_AND_RETURN, message=Message(topic=topic, payload=payload, qos=qos)
    ).SerializeToString()
    if CODEC.write_rewrite(topic, payload, qos) != answer:
        raise AssertionError(f"{request!r}: the answers differ")


def write_seeds(folder: Path) -> None:
    for place, (form, rest) in enumerate(SEEDS):
        (folder / f"seed-{place}").write_bytes(bytes([form]) + rest)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[-1]))
    atheris.Setup([*sys.argv[:-1], f"-max_len={MAX_BYTES}", sys.argv[-1]], compare, internal_libfuzzer=True)
    atheris.Fuzz()
