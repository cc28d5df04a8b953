"""The admin API from its client's side: requests out, documents in, problems as our errors.

Owns how the API is addressed, authorised, paged, streamed and asked again. It must not know the terminal, the settings
or what a field means: documents are plain dictionaries, as the API's schema describes them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from io import SEEK_END
from types import TracebackType
from typing import IO, Any, BinaryIO, Final, Self, cast
from urllib.parse import quote, urlsplit

import httpx
import orjson

from ota_hook.errors import (
    ConfigurationError,
    ConflictError,
    DependencyError,
    InputError,
    NotFound,
    OtaHookError,
)

Document = dict[str, Any]
Progress = Callable[[int], None]
"""Is told how many bytes went out so far; starts again from 0 where a cut upload is sent again."""

PAGE_LIMIT: Final = 1000
NDJSON: Final = "application/x-ndjson"
_EVENT_STREAM: Final = "text/event-stream"
_API_PREFIX: Final = "/api/v1"
_CONNECT_S: Final = 5.0
_STALL_S: Final = 60.0
"""So long may one read or write take: the service answers a plain request in milliseconds."""
_STORING_S: Final = 900.0
"""After its last byte an upload is fsynced and read back; a gigabyte on a slow disk takes a while."""
_PAUSES_S: Final = (0.5, 2.0)
"""Before a request whose connection broke is sent again: twice, and long enough for a restart in between."""
_FOLLOW_PAUSES_S: Final = (0.5, 2.0, 5.0, 10.0)
_EVENT_MAX_BYTES: Final = 1024 * 1024
_FAULTS_TOLD: Final = 3
_JSON: Final = "application/json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_PROBLEM: Final = "application/problem+json"
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
# The connection broke with the request under way: the service may have done it, or not.
_CUTS: Final = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


def api_path(*segments: str) -> str:
    """`("devices", "a b")` → `/devices/a%20b`. InputError for what is no Unicode text."""
    return "".join("/" + _quoted(segment) for segment in segments)


class ApiClient:
    """One connection to an admin API.

    Every method raises DependencyError where the service can't be reached, breaks off or is not well, and otherwise
    what the problem means: InputError, NotFound, ConflictError, or ConfigurationError for a token that is not good.
    A request whose connection breaks is sent again twice at most, where that can't do it twice.
    """

    def __init__(self, base_url: str, token: str, *, token_source: str = "the caller") -> None:  # noqa: S107 - a place
        """`base_url` is the admin role's address, with or without `/api/v1`. `token_source` is told with a 401."""
        self.base_url = _read_base_url(base_url)
        self._token_source = token_source
        self._http = httpx.Client(
            base_url=self.base_url + _API_PREFIX,
            headers={"Authorization": f"Bearer {token}", "Accept": f"{_JSON}, {_PROBLEM}, {NDJSON}"},
            timeout=httpx.Timeout(_STALL_S, connect=_CONNECT_S),
            mounts=_direct_mounts(urlsplit(self.base_url).hostname or ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- documents

    def get(self, path: str, **query: object) -> Document:
        """One document. Queries that are None are left out."""
        return _read_document(self._ask("GET", path, params=_given(query)))

    def get_tagged(self, path: str) -> tuple[Document, str]:
        """One document and its entity tag, for `patch`."""
        response = self._ask("GET", path)
        return _read_document(response), response.headers.get("ETag", "")

    def each(self, path: str, **query: object) -> Iterator[Document]:
        """Every entry of a list, page by page as it is read."""
        cursor: str | None = None
        while True:
            page = self.get(path, **{"limit": PAGE_LIMIT, **query, "cursor": cursor})
            yield from page.get("items", ())
            before, cursor = cursor, page.get("next_cursor")
            if cursor is None:
                return
            if cursor == before:
                raise DependencyError(f"The service at {self.base_url} gave the same page twice.")

    def put(self, path: str, document: Mapping[str, object], *, only_new: bool = False) -> tuple[Document, bool]:
        """Create or replace; returns the document and whether it was created.

        `only_new`: ConflictError (`stale`) where it exists.
        """
        headers = {"If-None-Match": "*"} if only_new else {}
        response = self._ask("PUT", path, content=_encode(document), headers=headers | {"Content-Type": _JSON})
        return _read_document(response), response.status_code == HTTPStatus.CREATED

    def post(self, path: str, document: Mapping[str, object]) -> tuple[Document, bool]:
        """Create; returns the document and whether it is new (a rule may be there already)."""
        headers = {"Content-Type": _JSON, "Idempotency-Key": secrets.token_urlsafe(24)}
        response = self._ask("POST", path, content=_encode(document), headers=headers)
        return _read_document(response), response.status_code == HTTPStatus.CREATED

    def patch(self, path: str, changes: Mapping[str, object], *, etag: str | None = None) -> Document:
        """Change the named fields; None only where null is a value of the field (`devices`: every device).

        With `etag`, only where the document still has it: else ConflictError.
        """
        headers = {"Content-Type": _MERGE_PATCH}
        if etag is not None:
            headers["If-Match"] = etag
        return _read_document(self._ask("PATCH", path, content=_encode(changes), headers=headers))

    def delete(self, path: str, **query: object) -> None:
        """Delete it; NotFound where it does not exist. Queries that are None are left out."""
        self._ask("DELETE", path, params=_given(query))

    # ---- streams

    def upload_firmware(
        self, package: BinaryIO, *, filename: str, fields: Mapping[str, object], progress: Progress | None = None
    ) -> Document:
        """Upload a firmware and return it. `package` is seekable and read from its start, never whole into memory.

        `fields` are those of the API; None is left out, a list becomes repeated fields, and an empty one (`devices`:
        nobody) one empty field. Fields go first, so that a refusal need not wait for the bytes.
        """
        form = {name: ([""] if value == [] else value) for name, value in _given(fields).items()}
        source = cast("IO[bytes]", _PackageReader(package, progress or (lambda _: None)))
        return _read_document(
            self._ask(
                "POST",
                "/firmware",
                data=form,
                files={"file": (filename, source, "application/octet-stream")},
                headers={"Idempotency-Key": secrets.token_urlsafe(24)},
                timeout=httpx.Timeout(_STALL_S, connect=_CONNECT_S, read=_STORING_S),
            )
        )

    def send_lines(
        self, method: str, path: str, chunks: Iterable[bytes], *, media_type: str = NDJSON, **query: object
    ) -> Document:
        """Send lines in chunks of any size and return the answer. Not sent again where the connection breaks."""
        headers = {"Content-Type": media_type}
        response = self._ask(method, path, again=False, content=chunks, headers=headers, params=_given(query))
        return _read_document(response)

    @contextmanager
    def receive_lines(self, path: str, *, media_type: str = NDJSON, **query: object) -> Iterator[Iterator[bytes]]:
        """Receive lines: chunks of any size, as they come. A stream that breaks off is a DependencyError."""
        headers = {"Accept": f"{media_type}, {_PROBLEM}"}
        with self._errors(), self._http.stream("GET", path, params=_given(query), headers=headers) as response:
            if not response.is_success:
                response.read()
                raise self._error_of(response)
            yield response.iter_bytes()

    def follow(self, path: str) -> Iterator[Document]:
        """What server-sent events say, one after the other, until who asks has seen enough.

        A stream that ends or breaks is opened again; where that brings nothing several times, DependencyError.
        """
        pauses = iter(_FOLLOW_PAUSES_S)
        while True:
            try:
                with self.receive_lines(path, media_type=_EVENT_STREAM) as chunks:
                    for document in _read_events(chunks):
                        yield document
                        pauses = iter(_FOLLOW_PAUSES_S)
                failure = DependencyError(f"The service at {self.base_url} ends the stream again and again.")
            except DependencyError as exc:
                failure = exc
            pause_s = next(pauses, None)
            if pause_s is None:
                raise failure
            time.sleep(pause_s)

    # ---- requests

    def _ask(self, method: str, path: str, *, again: bool = True, **request: Any) -> httpx.Response:  # noqa: ANN401
        """The answer to one request; a refusal is raised. With `again`, a cut connection is survived."""
        cuts = 0
        with self._errors():
            while True:
                try:
                    response = self._http.request(method, path, **request)
                    break
                except (*_CUTS, httpx.ConnectError) as exc:
                    # Who was never reached is told so at once; who was may be restarting.
                    never_reached = not cuts and isinstance(exc, httpx.ConnectError)
                    if not again or never_reached or cuts == len(_PAUSES_S):
                        raise
                    time.sleep(_PAUSES_S[cuts])
                    cuts += 1
        if cuts and method == "DELETE" and response.status_code == HTTPStatus.NOT_FOUND:
            return response  # the first attempt did it, and its answer was lost
        if not response.is_success:
            raise self._error_of(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What httpx raises, as ours."""
        try:
            yield
        except httpx.ConnectError as exc:
            if "CERTIFICATE_VERIFY_FAILED" in str(exc):
                raise ConfigurationError(
                    f"The certificate of {self.base_url} is not trusted here: {exc}.",
                    mend="Name its authority's certificates (PEM) in SSL_CERT_FILE.",
                ) from exc
            raise self._unreachable(exc) from exc
        except httpx.ConnectTimeout as exc:
            raise self._unreachable(exc) from exc
        except httpx.TimeoutException as exc:
            raise DependencyError(
                f"The service at {self.base_url} stopped answering.", mend="Whether it did what was asked is not known."
            ) from exc
        except (*_CUTS, httpx.DecodingError) as exc:
            raise DependencyError(
                f"The connection to {self.base_url} broke: {str(exc).rstrip('.') or 'it was cut'}.",
                mend="Whether the service did what was asked is not known: look before you ask again.",
            ) from exc
        except httpx.HTTPError as exc:
            raise DependencyError(f"The service at {self.base_url} can't be asked: {exc}.") from exc
        except UnicodeEncodeError as exc:
            raise InputError("What was given is not Unicode text.") from exc

    def _unreachable(self, exc: httpx.TransportError) -> DependencyError:
        reason = str(exc) or "nothing answers"
        return DependencyError(
            f"The admin API at {self.base_url} can't be reached ({reason}).",
            mend="Start it with `ota-hook serve`, or give its address with --api.",
        )

    def _error_of(self, response: httpx.Response) -> OtaHookError:
        """What a refusal means. The service speaks problem JSON; whatever does not is something in front of it."""
        problem = _read_problem(response)
        if problem is None:
            return self._foreign(response)
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            return ConfigurationError(
                f"The service at {self.base_url} does not accept the admin token from {self._token_source}.",
                mend="Its token is in the file admin-token of its data directory.",
            )
        return _error_from(response.status_code, problem)

    def _foreign(self, response: httpx.Response) -> OtaHookError:
        status = response.status_code
        if response.is_redirect:
            return ConfigurationError(
                f"{self.base_url} sends elsewhere: {response.headers.get('location', '')}.", mend="Use that address."
            )
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return InputError("A proxy before the service refuses a body that large (HTTP 413).")
        if status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}:
            return DependencyError(f"A proxy before the service answers HTTP {status}.", mend="Try again in a moment.")
        return DependencyError(
            f"What answers at {self.base_url} is not the admin API of ota-hook (HTTP {status}).",
            mend="Check the address.",
        )


class _PackageReader:
    """A file that tells how far it was read, and that it changed: its length is promised before its first byte goes.

    httpx takes the length by seeking and reads from the start.
    """

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._size_bytes = file.seek(0, SEEK_END)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        done = self._file.tell()
        if done > self._size_bytes or (not data and done < self._size_bytes):
            raise InputError("The file changed while it was sent.", mend="Send it again.")
        self._progress(done)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _quoted(segment: str) -> str:
    try:
        text = quote(segment, safe="")
    except UnicodeEncodeError as exc:
        raise InputError(f"{segment[:160]!r} is not Unicode text.") from exc
    # As they stand, "." and ".." are steps in a path.
    return text.replace(".", "%2E") if text in {".", ".."} else text


def _read_base_url(text: str) -> str:
    """`http(s)://HOST[:PORT][/PREFIX]`, without a slash or `/api/v1` at its end; ConfigurationError for all else."""
    base = text.strip().rstrip("/").removesuffix(_API_PREFIX).rstrip("/")
    try:
        parts = urlsplit(base)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        httpx.URL(base)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable or any(c in base for c in "?# \t\r\n@"):
        raise ConfigurationError(
            f"{text[:200]!r} is no address of an admin API.", mend="Give one as in http://127.0.0.1:8080."
        )
    return base


def _direct_mounts(host: str) -> dict[str, httpx.BaseTransport | None]:
    """A proxy for the outside world (HTTP_PROXY) must not be asked for this machine."""
    if host not in {"localhost", "::1"} and not host.startswith("127."):
        return {}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None}


def _given(values: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _encode(document: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError as exc:  # what the command line gave is not UTF-8
        raise InputError(f"What was given can't be sent: {exc}.") from exc


def _read_document(response: httpx.Response) -> Document:
    if response.status_code == HTTPStatus.NO_CONTENT:
        return {}
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise DependencyError(
            f"What answers at {response.url.host} is not the admin API of ota-hook.", mend="Check the address."
        )
    return document


def _read_events(chunks: Iterable[bytes]) -> Iterator[Document]:
    """The data of each event, in one line as the service sends it."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _EVENT_MAX_BYTES:
            raise DependencyError("The service sent an event without an end.")
        for line in lines:
            if line.startswith(b"data:"):
                document = orjson.loads(line[5:])
                if isinstance(document, dict):
                    yield document


def _read_problem(response: httpx.Response) -> Document | None:
    if response.headers.get("content-type", "").partition(";")[0].strip() != _PROBLEM:
        return None
    try:
        problem = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None
    return problem if isinstance(problem, dict) else None


def _error_from(status: int, problem: Document) -> OtaHookError:
    """The reverse of the service's table from errors to statuses."""
    detail, mend, field = _detail_of(problem), str(problem.get("mend", "")), _field_of(problem)
    error: OtaHookError
    match status:
        case HTTPStatus.NOT_FOUND | HTTPStatus.GONE:
            error = NotFound(detail, mend=mend, gone=status == HTTPStatus.GONE)
        case HTTPStatus.CONFLICT | HTTPStatus.PRECONDITION_FAILED:
            error = ConflictError(detail, mend=mend, field=field, stale=status == HTTPStatus.PRECONDITION_FAILED)
        case HTTPStatus.INTERNAL_SERVER_ERROR:
            error = OtaHookError(detail, mend=mend)
        case _ if status > HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
            error = DependencyError(detail, mend=mend or "Try again in a moment.")
        case _:
            error = InputError(detail, mend=mend, field=field)
    return error


def _faults_of(problem: Document) -> list[Document]:
    faults = problem.get("errors")
    return [fault for fault in faults if isinstance(fault, dict)] if isinstance(faults, list) else []


def _field_of(problem: Document) -> str | None:
    faults = _faults_of(problem)
    return str(faults[0].get("field", "")) or None if faults else None


def _detail_of(problem: Document) -> str:
    """The problem's sentence and those of the faults that it leaves out."""
    faults = _faults_of(problem)
    first = {"field": _field_of(problem), "detail": problem.get("detail")}
    return " ".join(filter(None, map(_fault_text, [first, *faults[1:_FAULTS_TOLD]])))


def _fault_text(fault: Document) -> str:
    """What is wrong, with the value as it was given, else with the field: fields are the API's words, not people's."""
    field, detail = str(fault.get("field") or ""), str(fault.get("detail") or "")
    detail = detail.removeprefix(f"`{field}`: ") if f"`{field}`: '" in detail else detail
    named = "'" in detail or field in detail or field.replace("_", " ") in detail.lower()
    return detail if named else f"{field}: {detail}"
