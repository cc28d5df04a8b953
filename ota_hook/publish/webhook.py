"""Telling people outside: a signed POST for each notice. Must not know what a notice is about.

The signature is HMAC-SHA256 with the shared secret over `TIMESTAMP.BODY`, hex, in `OTA-Hook-Signature: t=…,v1=…`:
whoever checks it, and that the time is not long ago, knows who sent it and that nobody sends it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final

import httpx
import orjson

from ota_hook.errors import DependencyError

SIGNATURE_HEADER: Final = "OTA-Hook-Signature"
ID_HEADER: Final = "OTA-Hook-Id"
_TIMEOUT_S: Final = 10.0


class Webhook:
    """ports.notices.Listener: POSTs to one URL. An answer from 200 to 299 says that it was heard."""

    def __init__(self, url: str, secret: str, *, clock_s: Callable[[], float] = time.time) -> None:
        self._url = url
        self._secret = secret.encode()
        self._clock_s = clock_s
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False)

    async def tell(self, notice_id: str, body: dict[str, object]) -> None:
        """See ports.notices.Listener."""
        payload = orjson.dumps({"id": notice_id, **body})
        headers = {
            "content-type": "application/json",
            ID_HEADER: notice_id,
            SIGNATURE_HEADER: sign(self._secret, payload, at_s=int(self._clock_s())),
        }
        try:
            # The whole of it, not each byte; and what is said behind the status is not read.
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._client.stream("POST", self._url, content=payload, headers=headers) as answer,
            ):
                pass
        except (httpx.HTTPError, TimeoutError) as exc:
            raise DependencyError(f"The webhook can't be reached: {exc!r}.") from exc
        if not answer.is_success:
            raise DependencyError(f"The webhook answered {answer.status_code}.")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def sign(secret: bytes, payload: bytes, *, at_s: int) -> str:
    """The value of the signature's header."""
    digest = hmac.new(secret, b"%d." % at_s + payload, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"
