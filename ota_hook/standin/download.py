"""A package, downloaded over HTTP and verified without keeping the bytes. It must not know who installs it."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from enum import IntEnum
from typing import NamedTuple

import httpx

from ota_hook.standin.commands import UpgradeCommand


class InstallResult(IntEnum):
    """What a device replies as `ota_result`: 0 is success, and the hook reads the others as failures (progress.py)."""

    OK = 0
    DOWNLOAD_FAILED = -2
    DIGEST_DIFFERS = -3


class Fetched(NamedTuple):
    """What came of a download; `reason` says more of a failure, for people."""

    result: InstallResult
    reason: str = ""


class Received:
    """What is there of a package so far: a count and running digests."""

    def __init__(self) -> None:
        self.count = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0

    def take(self, chunk: bytes) -> None:
        self.count += len(chunk)
        self._md5.update(chunk)
        self._sha256.update(chunk)
        self._crc32 = zlib.crc32(chunk, self._crc32)

    def verify(self, command: UpgradeCommand) -> Fetched:
        """Size, then every digest that the command carries."""
        size_bytes, extras = command.size_bytes, command.extras
        if self.count != size_bytes:
            shown = f"more than {size_bytes}" if self.count > size_bytes else f"{self.count} of {size_bytes}"
            return Fetched(InstallResult.DOWNLOAD_FAILED, f"{shown} bytes came")
        right = (
            self._md5.hexdigest() == command.md5
            and self._sha256.hexdigest() == extras.get("sha256", self._sha256.hexdigest())
            and f"{self._crc32:08x}" == extras.get("crc32", f"{self._crc32:08x}")
        )
        return Fetched(InstallResult.OK if right else InstallResult.DIGEST_DIFFERS)


async def fetch_package(
    http: httpx.AsyncClient, command: UpgradeCommand, *, attempts: int, pause_s: float, timeout_s: float
) -> Fetched:
    """Download and verify; a cut download is resumed where it was cut."""
    download = _Download(command)
    reason = ""
    try:
        async with asyncio.timeout(timeout_s):
            for attempt in range(attempts):
                if attempt:
                    await asyncio.sleep(pause_s)
                try:
                    finished = await download.go_on(http)
                except httpx.TransportError as exc:
                    reason = _reason_of(exc)
                    continue
                if finished:
                    return download.verify()
                reason = download.refusal
    except TimeoutError:
        reason = f"not done in {timeout_s:g} s" + (f"; before that: {reason}" if reason else "")
    except (httpx.InvalidURL, httpx.TooManyRedirects) as exc:
        reason = _reason_of(exc)
    return Fetched(InstallResult.DOWNLOAD_FAILED, reason)


def _reason_of(exc: Exception) -> str:
    return str(exc).rstrip(".") or type(exc).__name__  # some of httpx's have no text


class _Download:
    """One package under way. `refusal` is the server's, empty where none."""

    def __init__(self, command: UpgradeCommand) -> None:
        self.refusal = ""
        self._command = command
        self._etag: str | None = None
        self._received = Received()

    async def go_on(self, http: httpx.AsyncClient) -> bool:
        """Fetch what is missing. False: the server may do better next time. Raises TransportError where it was cut."""
        self.refusal = ""
        headers = {"Accept-Encoding": "identity"}
        count = self._received.count
        if count:
            headers["Range"] = f"bytes={count}-"
            if self._etag:
                headers["If-Range"] = self._etag
        async with http.stream("GET", self._command.url, headers=headers) as response:
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                self.refusal = _status_of(response)
                return False
            resumed = (
                response.status_code == httpx.codes.PARTIAL_CONTENT
                and count > 0
                and response.headers.get("content-range", "").startswith(f"bytes {count}-")
            )
            if not resumed:
                self._received = Received()
                if response.status_code != httpx.codes.OK:
                    self.refusal = _status_of(response)
                    return True
                self._etag = response.headers.get("etag")
            async for chunk in response.aiter_raw():
                self._received.take(chunk)
                if self._received.count > self._command.size_bytes:
                    return True
        return True

    def verify(self) -> Fetched:
        if self.refusal:
            return Fetched(InstallResult.DOWNLOAD_FAILED, self.refusal)
        return self._received.verify(self._command)


def _status_of(response: httpx.Response) -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
