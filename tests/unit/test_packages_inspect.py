"""Names of packages, and their digests."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_hook.errors import InputError
from ota_hook.packages.inspect import EXTENSIONS, DigestWriter, file_stem, read_filename


@pytest.mark.parametrize("end", EXTENSIONS)
def test_every_documented_extension_is_taken(end: str) -> None:
    assert read_filename(f"fw{end}") == f"fw{end}"
    assert read_filename(f"fw{end.upper()}") == f"fw{end.upper()}"


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("固件 v1.0.bin", "固件 v1.0.bin"),
        ("../../etc/passwd.bin", "passwd.bin"),
        ("C:\\Users\\me\\fw.bin", "fw.bin"),
        ("/abs/fw.tar.gz", "fw.tar.gz"),
        ("a?b#c%20&d;e.bin", "a?b#c%20&d;e.bin"),
        ("..bin.bin", "..bin.bin"),
        (" fw.bin ", "fw.bin"),
    ],
)
def test_a_name_keeps_its_last_part_as_data(given_name: str, name: str) -> None:
    assert read_filename(given_name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "fw", "fw.exe", ".bin", "folder/", "a.bin/", "fw.bin.txt", "a\x00.bin", "a\n.bin", "a\x85.bin"],
)
def test_a_name_that_is_none_or_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_filename(name)
    assert caught.value.field == "file"


def test_a_name_is_measured_in_bytes() -> None:
    assert read_filename("固" * 83 + "ab.bin") == "固" * 83 + "ab.bin"
    with pytest.raises(InputError, match="256 bytes"):
        read_filename("固" * 84 + ".bin")


def test_a_name_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InputError, match="not Unicode"):
        read_filename("a\ud800.bin")


@pytest.mark.parametrize(("name", "stem"), [("fw.bin", "fw"), ("fw.TAR.GZ", "fw"), ("a.b.img", "a.b")])
def test_the_stem_is_the_name_without_its_extension(name: str, stem: str) -> None:
    assert file_stem(name) == stem


@given(st.lists(st.binary(max_size=64)))
def test_digests_of_pieces_are_those_of_the_whole(pieces: list[bytes]) -> None:
    digests = DigestWriter()
    for piece in pieces:
        digests.update(piece)
    whole = b"".join(pieces)
    package = digests.package("a.bin")
    assert package.size_bytes == len(whole)
    assert package.md5 == hashlib.md5(whole, usedforsecurity=False).hexdigest()
    assert package.sha256 == hashlib.sha256(whole).hexdigest()
    assert int(package.crc32, 16) == zlib.crc32(whole)
    assert len(package.crc32) == 8
