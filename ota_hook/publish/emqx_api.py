"""Publishes through EMQX's REST API, many messages to a request. Must not know what a command means.

Facts are EMQX 5's (its OpenAPI, `/publish/bulk`): the messages of a request are published in their order; it answers
200 with an object per message, or 202 where some had no subscriber, or 503 where some could not be dispatched; 400
refuses the whole request, and nothing of it was published.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import orjson

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports.commands import Message
from ota_hook.publish.batch import Batch, find_fault

_PATH: Final = "/api/v5/publish/bulk"
_CONNECT_S: Final = 5.0
_NO_SUBSCRIBER: Final = 16
_ANSWERED_PER_MESSAGE: Final = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.SERVICE_UNAVAILABLE})
_MENDS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "Check OTA_HOOK_EMQX_API_KEY and OTA_HOOK_EMQX_API_SECRET; the key may have expired.",
    HTTPStatus.FORBIDDEN: "Give the API key the role of a publisher or of an administrator.",
    HTTPStatus.NOT_FOUND: "OTA_HOOK_EMQX_API_URL must be the address of EMQX 5's API, as in http://HOST:18083.",
}


class EmqxApiPublisher:
    """ports.commands.Publisher. `url` is `http(s)://HOST:PORT`, before `/api/v5`.

    At most `connections` requests are under way, each of at most `batch_max` messages; what is published meanwhile
    waits, as much as callers do, and leaves with the next one. The requests with messages to one topic follow one
    another. A message that nobody subscribed to was taken, as over MQTT. Raises ConfigurationError for a URL that is
    none.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        secret: str,
        connections: int = 2,
        batch_max: int = 200,
        timeout_s: float = 10.0,
    ) -> None:
        self._url = _read_url(url)
        self._auth = httpx.BasicAuth(key, secret)
        self._connections = connections
        self._batch_max = batch_max
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient | None = None
        self._lanes: list[_Lane] = []

    async def start(self) -> None:
        """Get ready; the first publish connects."""
        if self._http is not None:
            return
        self._http = httpx.AsyncClient(
            auth=self._auth,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
            # The system's trust, as for `mqtts`; and no proxy of the environment: the broker is a neighbour.
            verify=ssl.create_default_context() if self._url.startswith("https:") else False,
            trust_env=False,
        )
        self._lanes = [
            _Lane(self._http, self._url + _PATH, batch_max=self._batch_max, timeout_s=self._timeout_s)
            for _ in range(self._connections)
        ]

    async def stop(self) -> None:
        """Publishes under way raise DependencyError."""
        lanes, self._lanes = self._lanes, []
        await asyncio.gather(*(lane.stop() for lane in lanes))
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish; returns when the broker dispatched it. Raises DependencyError."""
        (error,) = await self.publish_many((Message(topic, payload, qos),))
        if error is not None:
            raise error

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        """ports.commands.Publisher's, each as `publish`."""
        batch = Batch(len(messages))
        lanes = self._lanes
        for place, message in enumerate(messages):
            error = find_fault(message)
            if error is not None:
                batch.settle(place, error)
            elif not lanes:
                batch.settle(place, DependencyError("Publishing has not begun, or has ended."))
            else:
                lanes[hash(message.topic) % len(lanes)].put(_Waiting(message, batch, place))
        return await batch.results()


class _Waiting(NamedTuple):
    """A message with the place of its result."""

    message: Message
    batch: Batch
    place: int


class _Lane:
    """Requests one after another, each with what came during the one before."""

    def __init__(self, http: httpx.AsyncClient, url: str, *, batch_max: int, timeout_s: float) -> None:
        self._http = http
        self._url = url
        self._batch_max = batch_max
        self._timeout_s = timeout_s
        self._waiting: deque[_Waiting] = deque()
        self._sending: tuple[_Waiting, ...] = ()
        self._task: asyncio.Task[None] | None = None

    def put(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._send_all())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for _, batch, place in self._sending:
            batch.settle(place, DependencyError("Publishing was stopped.", maybe_written=True))
        for _, batch, place in self._waiting:
            batch.settle(place, DependencyError("Publishing was stopped."))
        self._sending = ()
        self._waiting.clear()

    async def _send_all(self) -> None:
        while self._waiting:
            count = min(len(self._waiting), self._batch_max)
            taken = (self._waiting.popleft() for _ in range(count))
            self._sending = tuple(waiting for waiting in taken if not waiting.batch.abandoned)
            if self._sending:
                results = await self._send([waiting.message for waiting in self._sending])
                for (_, batch, place), error in zip(self._sending, results, strict=True):
                    batch.settle(place, error)
                self._sending = ()
        self._task = None

    async def _send(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._http.post(self._url, content=_encode(messages))
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            return _for_each(messages, self._unreachable(exc))
        except (httpx.HTTPError, TimeoutError) as exc:
            error = DependencyError(
                f"EMQX's API at {self._url} did not answer a publish: {_describe(exc)}.", maybe_written=True
            )
            return _for_each(messages, error)
        if response.status_code == HTTPStatus.BAD_REQUEST and len(messages) > 1:
            # One of them is at fault, and EMQX does not say which.
            middle = len(messages) // 2
            return [*await self._send(messages[:middle]), *await self._send(messages[middle:])]
        return _read_results(response, len(messages))

    def _unreachable(self, exc: httpx.TransportError) -> DependencyError:
        return DependencyError(
            f"EMQX's API at {self._url} can't be reached: {_describe(exc)}.",
            mend="Is EMQX running, and is it where OTA_HOOK_EMQX_API_URL says?",
        )


def _read_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigurationError(
            "The URL of EMQX's API can't be used.", mend="Give http://HOST:PORT or https://HOST:PORT."
        )
    return url.rstrip("/")


def _encode(messages: Sequence[Message]) -> bytes:
    return orjson.dumps(
        [
            {
                "topic": topic,
                "payload": base64.b64encode(payload).decode(),
                "payload_encoding": "base64",
                "qos": qos,
                "retain": False,
            }
            for topic, payload, qos in messages
        ]
    )


def _read_results(response: httpx.Response, count: int) -> list[DependencyError | None]:
    """What EMQX says of each message, in their order; of all the same where it says nothing of each."""
    status = response.status_code
    answer = _read_json(response)
    if status in _ANSWERED_PER_MESSAGE and isinstance(answer, list) and len(answer) == count:
        return [_read_result(result) for result in answer]
    said = answer.get("message") or answer.get("code") if isinstance(answer, dict) else None
    error = DependencyError(
        f"EMQX's API answered a publish with {status}{f' ({str(said)[:200]})' if said else ''}.",
        mend=_MENDS.get(status, ""),
        maybe_written=status < HTTPStatus.BAD_REQUEST or status >= HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    return [error] * count


def _read_result(result: object) -> DependencyError | None:
    if isinstance(result, dict) and ("id" in result or result.get("reason_code") == _NO_SUBSCRIBER):
        return None
    said = result.get("message") if isinstance(result, dict) else None
    return DependencyError(f"EMQX did not publish a message: {str(said or 'it gave no reason')[:200]}.")


def _read_json(response: httpx.Response) -> Any:  # noqa: ANN401 - whatever it sent
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None


def _for_each(messages: Sequence[Message], error: DependencyError) -> list[DependencyError | None]:
    return [error] * len(messages)


def _describe(exc: Exception) -> str:
    return str(exc).rstrip(".") or type(exc).__name__  # some of httpx's have no text
