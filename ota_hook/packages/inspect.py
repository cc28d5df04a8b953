"""What a package is allowed to be called, and its digests. Pure: it must not know where the bytes lie."""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

from ota_hook.errors import InputError
from ota_hook.model import Package

FILENAME_MAX_BYTES: Final = 255
EXTENSIONS: Final = (".bin", ".img", ".dav", ".tar", ".gz", ".zip", ".gzip", ".apk", ".tar.gz")


def read_filename(text: str) -> str:
    """The name that a client gave its file, without folders (both slashes). It is data for the URL, never a path.

    InputError where it is empty, over 255 bytes of UTF-8, holds control characters or ends otherwise than EXTENSIONS.
    """
    name = text.replace("\\", "/").rpartition("/")[2].strip()
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in name):
        raise InputError("The file's name holds control characters.", field="file")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError as exc:
        raise InputError("The file's name is not Unicode text.", field="file") from exc
    if size_bytes > FILENAME_MAX_BYTES:
        raise InputError(f"The file's name has {size_bytes} bytes; {FILENAME_MAX_BYTES} are allowed.", field="file")
    stem = next((name[: -len(end)] for end in reversed(EXTENSIONS) if name.lower().endswith(end)), "")
    if not stem:
        raise InputError(f"The file must be named, and end in one of {' '.join(EXTENSIONS)}.", field="file")
    return name


def file_stem(filename: str) -> str:
    """The name without its extension: what a firmware is called that was given no name."""
    for end in reversed(EXTENSIONS):
        if filename.lower().endswith(end):
            return filename[: -len(end)]
    return filename


class DigestWriter:
    """md5, sha256, crc32 and size of bytes that are fed in order."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)  # the command's format asks for it; sha256 is what we trust
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._md5.update(data)
        self._sha256.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self.size_bytes += len(data)

    def package(self, filename: str) -> Package:
        """What was fed so far, as the package called `filename`."""
        return Package(
            filename=filename,
            size_bytes=self.size_bytes,
            md5=self._md5.hexdigest(),
            sha256=self._sha256.hexdigest(),
            crc32=f"{self._crc32:08x}",
        )
