"""The multipart body of an upload, piece by piece."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from admin_api.uploads import FIELD_MAX_BYTES, UploadForm
from ota_hook.errors import InputError

BOUNDARY = b"xYzZY"


def part(name: str, value: bytes, *, filename: str | None = None, headers: str = "") -> bytes:
    extra = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n{headers}\r\n'
    return head.encode() + value + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"


def read(*pieces: bytes, max_bytes: int = 1000) -> tuple[UploadForm, bytes]:
    form = UploadForm(BOUNDARY, max_bytes)
    file = b""
    for piece in pieces:
        form.feed(piece)
        file += b"".join(form.take_file_bytes())
    form.finish()
    return form, file


FIELDS = (
    part("device_type", b"DU") + part("file", b"\r\n--xYz not the end\r\n", filename="fw.bin") + part("version", b"1.0")
)


@given(st.lists(st.integers(min_value=0, max_value=len(FIELDS + END)), max_size=8))
def test_a_body_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    body = FIELDS + END
    places = [0, *sorted(cuts), len(body)]
    form, file = read(*(body[a:b] for a, b in pairwise(places) if a < b))
    assert file == b"\r\n--xYz not the end\r\n"
    assert form.filename == "fw.bin"
    assert form.read_fields() == {"device_type": "DU", "version": "1.0"}


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0, max_value=600), max_size=4))
def test_no_body_whatever_raises_anything_but_a_refusal(junk: bytes, cuts: list[int]) -> None:
    body = part("file", b"data", filename="fw.bin") + junk + END
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    with suppress(InputError, HTTPException):
        read(*(body[a:b] for a, b in pairwise(places) if a < b))


@given(st.text(max_size=60))
def test_no_disposition_whatever_raises_anything_but_a_refusal(text: str) -> None:
    header = f"--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; {text}\r\n\r\nx\r\n".encode("utf-8", "replace")
    with suppress(InputError):
        read(header + END)


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('name="file"; filename="fw.bin"', "fw.bin"),
        ("name=file; filename=fw.bin", "fw.bin"),
        ('name="file"; filename="固件.bin"', "固件.bin"),
        ("name=\"file\"; filename*=UTF-8''%E5%9B%BA%E4%BB%B6.bin", "固件.bin"),
        ('name="file"; filename="x.img"; filename*=UTF-8\'\'%E5%9B%BA.bin', "固.bin"),
        ('name="file"; filename*=UTF-8\'\'%E5%9B%BA.bin; filename="x.img"', "固.bin"),
        ('name="file"; filename="a;b\\"c.bin"', 'a;b"c.bin'),
        ('name="file"; filename="../../x.bin"', "x.bin"),
    ],
)
def test_the_files_name_is_read_in_every_way_clients_write_it(disposition: str, filename: str) -> None:
    body = f"--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; {disposition}\r\n\r\nx\r\n".encode()
    assert read(body + END)[0].filename == filename


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (part("colour", b"red"), "colour"),
        (part("name", b"a") + part("name", b"b"), "name"),
        (part("name", b"x" * (FIELD_MAX_BYTES + 1)), "name"),
        (part("name", b"\xff"), "name"),
        (part("file", b"x"), "file"),
        (part("file", b"x", filename="a.bin") + part("file", b"y", filename="b.bin"), "file"),
        (part("file", b"x", filename="a.exe"), "file"),
        (part("version", b"x", filename="a.bin"), "version"),
        (part("file", b"x", filename="a.bin", headers="Content-Transfer-Encoding: base64\r\n"), "file"),
        (b"".join(part("source_versions", b"%d" % n) for n in range(101)), "source_versions"),
    ],
    ids=[
        "unknown",
        "twice",
        "long",
        "not utf-8",
        "no name",
        "two files",
        "extension",
        "field as file",
        "encoded",
        "too many",
    ],
)
def test_a_bad_part_is_refused_by_its_name(body: bytes, field: str) -> None:
    with pytest.raises(InputError) as caught:
        read(body + END)
    assert caught.value.field == field
    assert field in caught.value.detail  # some people see that alone


@pytest.mark.parametrize("value", [b"yes", b"", b"TRUE ", b"2"])
def test_booleans_are_true_or_false(value: bytes) -> None:
    form, _ = read(part("enabled", value) + END)
    if value.strip().lower() == b"true":
        assert form.read_fields() == {"enabled": True}
    else:
        with pytest.raises(InputError, match="`enabled` must be true or false"):
            form.read_fields()


def test_one_empty_devices_field_is_the_empty_list() -> None:
    assert read(part("devices", b"") + END)[0].read_fields() == {"devices": []}
    assert read(part("devices", b"a") + part("devices", b"b") + END)[0].read_fields() == {"devices": ["a", "b"]}


@pytest.mark.parametrize(
    "body",
    [FIELDS, FIELDS + b"--xYz", b"", b"{}", b"--other\r\n\r\n", FIELDS[:30], b"\r\n" * 50],
    ids=["no end", "half an end", "empty", "json", "other boundary", "half a header", "newlines"],
)
def test_a_body_that_breaks_off_or_is_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        read(*([body] if body else []))


def test_a_file_over_the_limit_is_refused_at_once() -> None:
    form = UploadForm(BOUNDARY, 10)
    with pytest.raises(HTTPException) as caught:
        form.feed(part("file", b"x" * 11, filename="fw.bin"))
    assert caught.value.status_code == 413


def test_a_file_of_the_very_limit_is_taken() -> None:
    assert read(part("file", b"x" * 10, filename="fw.bin") + END, max_bytes=10)[1] == b"x" * 10


def test_fields_beside_the_file_are_bounded_too() -> None:
    form = UploadForm(BOUNDARY, 10)
    form.feed(part("file", b"x", filename="fw.bin") + END)
    for _ in range(52):  # 8 MiB are allowed
        form.feed(b"epilogue" * 20_000)
    with pytest.raises(HTTPException) as caught:
        form.feed(b"epilogue" * 20_000)
    assert caught.value.status_code == 413
