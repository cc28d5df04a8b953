"""The API's client against servers that misbehave on real sockets: cuts, refusals, what is not our service at all."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from ota_hook import api_client
from ota_hook.api_client import ApiClient, api_path
from ota_hook.errors import (
    ConfigurationError,
    ConflictError,
    DependencyError,
    InputError,
    NotFound,
    OtaHookError,
)

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers, body; None cuts the connection instead."""


class Scripted(BaseHTTPRequestHandler):
    """Gives the answers that a test wrote down, one a request, and keeps what was asked."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[Answer]]
    asked: ClassVar[list[tuple[str, str, dict[str, str], bytes]]]

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, body))
        answer = self.answers.pop(0)
        self.close_connection = True
        if answer is None:
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - names that http.server calls

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[..., ApiClient]]:
    """Starts a server with the given answers and connects a client to it."""
    with contextlib.ExitStack() as stack:

        def start(*answers: Answer) -> ApiClient:
            Scripted.answers, Scripted.asked = list(answers), []
            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Scripted))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return stack.enter_context(
                ApiClient(f"http://127.0.0.1:{server.server_port}/", "a-good-token", token_source="the test")
            )

        yield start


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(api_client, "_FOLLOW_PAUSES_S", (0.0, 0.0))


def as_json(document: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


def problem(status: int, **fields: Any) -> Answer:
    body = {"type": "about:blank", "title": "No", "status": status, "detail": "It is so.", **fields}
    return status, {"Content-Type": "application/problem+json"}, json.dumps(body).encode()


@pytest.mark.parametrize(
    ("status", "kind", "attributes"),
    [
        (401, ConfigurationError, {}),
        (404, NotFound, {"gone": False}),
        (408, DependencyError, {}),
        (409, ConflictError, {"stale": False, "mend": "Mend it.", "field": "name"}),
        (410, NotFound, {"gone": True}),
        (412, ConflictError, {"stale": True}),
        (413, InputError, {}),
        (422, InputError, {"mend": "Mend it.", "field": "name"}),
        (500, OtaHookError, {}),
        (503, DependencyError, {}),
    ],
)
def test_a_problem_becomes_the_error_that_it_was(
    serve: Callable[..., ApiClient], status: int, kind: type[OtaHookError], attributes: dict[str, object]
) -> None:
    api = serve(problem(status, mend="Mend it.", errors=[{"field": "name", "detail": "It is so."}]))
    with pytest.raises(kind) as raised:
        api.get("/rules")
    assert type(raised.value) is kind
    assert {name: getattr(raised.value, name) for name in attributes} == attributes


def test_a_refusal_names_the_field_and_the_next_faults(serve: Callable[..., ApiClient]) -> None:
    faults = [{"field": "use_https", "detail": "It must be true or false."}, {"field": "name", "detail": "Too long."}]
    api = serve(problem(422, detail="It must be true or false.", errors=faults))
    with pytest.raises(InputError, match=r"^use_https: It must be true or false\. name: Too long\.$"):
        api.put("/rules", {})


def test_a_field_that_its_sentence_names_is_not_named_again(serve: Callable[..., ApiClient]) -> None:
    faults = [{"field": name, "detail": f"`{name}` must be text."} for name in ("name", "event")]
    api = serve(problem(422, detail=faults[0]["detail"], errors=faults))
    with pytest.raises(InputError, match=r"^`name` must be text\. `event` must be text\.$"):
        api.put("/rules", {})


def test_the_token_goes_with_every_request_and_a_401_says_where_it_came_from(serve: Callable[..., ApiClient]) -> None:
    api = serve(problem(401))
    with pytest.raises(ConfigurationError, match="the test"):
        api.get("/rules")
    assert Scripted.asked[0][2]["authorization"] == "Bearer a-good-token"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((200, {"Content-Type": "text/html"}, b"<h1>Welcome</h1>"), DependencyError, "not the admin API"),
        ((404, {"Content-Type": "text/html"}, b"<h1>404</h1>"), DependencyError, "not the admin API"),
        ((301, {"Location": "https://ota.example.com/"}, b""), ConfigurationError, r"https://ota\.example\.com/"),
        ((413, {"Content-Type": "text/html"}, b""), InputError, "proxy"),
        ((502, {"Content-Type": "text/html"}, b""), DependencyError, "proxy"),
        ((422, {"Content-Type": "application/problem+json"}, b"{"), DependencyError, "not the admin API"),
    ],
)
def test_what_is_not_the_service_is_told_apart(
    serve: Callable[..., ApiClient], answer: Answer, kind: type[OtaHookError], said: str
) -> None:
    api = serve(answer)
    with pytest.raises(kind, match=said):
        api.get("/rules")


def test_a_request_whose_connection_is_cut_is_sent_again(serve: Callable[..., ApiClient]) -> None:
    api = serve(None, None, as_json({"id": "1"}))
    assert api.get("/rules/1") == {"id": "1"}
    assert len(Scripted.asked) == 3


def test_after_three_cuts_it_is_given_up(serve: Callable[..., ApiClient]) -> None:
    api = serve(None, None, None)
    with pytest.raises(DependencyError, match="broke"):
        api.get("/rules/1")
    assert len(Scripted.asked) == 3


def test_an_upload_that_is_cut_goes_again_whole_under_the_same_key(serve: Callable[..., ApiClient]) -> None:
    api = serve(None, as_json({"id": "1"}, 201))
    content = bytes(range(256)) * 1000
    sent: list[int] = []
    fields = {"version": "1.0", "devices": [], "source_versions": ["0.9", "0.8"], "use_https": False, "name": None}
    created = api.upload_firmware(io.BytesIO(content), filename="固件.bin", fields=fields, progress=sent.append)
    assert created == {"id": "1"}
    (_, _, first, first_body), (_, _, second, second_body) = Scripted.asked
    assert first["idempotency-key"] == second["idempotency-key"]
    assert content in first_body
    assert content in second_body
    assert sent.count(len(content)) >= 2
    head = second_body.partition(content)[0].decode()
    assert head.index('name="use_https"\r\n\r\nfalse') < head.index('name="file"; filename="固件.bin"')
    assert 'name="devices"\r\n\r\n\r\n' in head
    assert head.count('name="source_versions"') == 2
    assert 'name="name"' not in head


def test_two_uploads_have_two_keys(serve: Callable[..., ApiClient]) -> None:
    api = serve(as_json({}, 201), as_json({}, 201))
    for _ in range(2):
        api.upload_firmware(io.BytesIO(b"x"), filename="a.bin", fields={"version": "1"})
    assert len({headers["idempotency-key"] for _, _, headers, _ in Scripted.asked}) == 2


def test_a_stream_of_lines_is_not_sent_again(serve: Callable[..., ApiClient]) -> None:
    api = serve(None, as_json({}))
    with pytest.raises(DependencyError):
        api.send_lines("POST", "/devices-import", [b'{"identifier": "d1"}\n'])
    assert len(Scripted.asked) == 1


def test_a_deletion_whose_answer_was_lost_is_done(serve: Callable[..., ApiClient]) -> None:
    api = serve(None, problem(404))
    api.delete("/rules/1")
    assert [method for method, *_ in Scripted.asked] == ["DELETE", "DELETE"]


def test_a_deletion_of_what_never_was_is_told(serve: Callable[..., ApiClient]) -> None:
    with pytest.raises(NotFound):
        serve(problem(404)).delete("/rules/1")


def test_pages_are_read_one_after_the_other(serve: Callable[..., ApiClient]) -> None:
    api = serve(
        as_json({"items": [{"id": 1}, {"id": 2}], "next_cursor": "a&b"}), as_json({"items": [], "next_cursor": None})
    )
    entries = api.each("/rules", device_type="t", enabled=None)
    assert next(entries) == {"id": 1}
    assert len(Scripted.asked) == 1
    assert [entry["id"] for entry in entries] == [2]
    assert [path.partition("?")[2] for _, path, _, _ in Scripted.asked] == [
        "limit=1000&device_type=t",
        "limit=1000&device_type=t&cursor=a%26b",
    ]


def test_a_list_that_runs_in_a_circle_ends(serve: Callable[..., ApiClient]) -> None:
    page = as_json({"items": [{}], "next_cursor": "same"})
    with pytest.raises(DependencyError, match="twice"):
        list(serve(page, page).each("/rules"))


def test_a_stream_that_breaks_off_is_an_error_and_not_an_end(serve: Callable[..., ApiClient]) -> None:
    api = serve((200, {"Content-Type": "application/x-ndjson", "Content-Length": "100"}, b'{"identifier": "d1"}\n'))
    received = []
    with pytest.raises(DependencyError, match="broke"), api.receive_lines("/devices-export") as chunks:
        received += list(chunks)


class Shrunk(io.BytesIO):
    """A file whose end comes sooner than its length said."""

    def read(self, size: int | None = -1) -> bytes:
        return b"" if self.tell() else super().read(10)


def test_a_file_that_shrinks_while_it_is_sent_is_told(serve: Callable[..., ApiClient]) -> None:
    api = serve(as_json({}, 201))
    with pytest.raises(InputError, match="changed while"):
        api.upload_firmware(Shrunk(b"x" * 1000), filename="a.bin", fields={})


@pytest.mark.parametrize("segment", [".", "..", "a b", "a/b", "ü%", "a?b#c", "冬"])
def test_every_identifier_arrives_as_it_is(serve: Callable[..., ApiClient], segment: str) -> None:
    serve(as_json({})).get(api_path("devices", segment))
    (_, path, _, _) = Scripted.asked[0]
    prefix, _, last = path.rpartition("/")
    assert prefix == "/api/v1/devices"
    assert unquote(last) == segment
    assert last not in {".", ".."}


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://ota.example.com/fw/api/v1/", "https://ota.example.com/fw"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_may_have_a_prefix_or_end_in_the_apis_own(address: str, base: str) -> None:
    with ApiClient(address, "token") as api:
        assert api.base_url == base


@pytest.mark.parametrize(
    "address", ["", "foo", "ftp://a", "http://", "http://a:99999", "http://a?b", "http://u:p@a", "http://a b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        ApiClient(address, "token")


def test_a_proxy_is_not_asked_for_this_machine(
    serve: Callable[..., ApiClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert serve(as_json({"id": "1"})).get("/rules/1") == {"id": "1"}


def test_who_is_not_there_is_asked_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and nothing answers
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            ApiClient(address, "token") as api,
            pytest.raises(DependencyError, match=r"can't be reached.*ota-hook serve"),
        ):
            api.get("/rules")


def as_events(*lines: str) -> Answer:
    return 200, {"Content-Type": "text/event-stream"}, "".join(f"{line}\n" for line in lines).encode()


def test_events_are_followed_over_a_stream_that_breaks_or_ends(serve: Callable[..., ApiClient]) -> None:
    first = as_events("retry: 2000", "", "event: run", 'data: {"n": 1}', "", ": still there", "")
    cut = 200, {"Content-Type": "text/event-stream", "Content-Length": "99"}, b'data: {"n": 2}\n\n'
    api = serve(first, None, cut, problem(503), as_events('data: {"n": 3}', ""))
    events = api.follow("/runs/R/events")
    assert [next(events)["n"] for _ in range(3)] == [1, 2, 3]
    assert {path for _, path, _, _ in Scripted.asked} == {"/api/v1/runs/R/events"}
    assert Scripted.asked[0][2]["accept"].startswith("text/event-stream")


def test_a_stream_that_brings_nothing_again_and_again_is_given_up(serve: Callable[..., ApiClient]) -> None:
    with pytest.raises(DependencyError):
        next(serve(as_events(""), None, problem(503)).follow("/runs/R/events"))
    with pytest.raises(DependencyError, match="again and again"):
        next(serve(*[as_events(": nothing")] * 3).follow("/runs/R/events"))
    with pytest.raises(NotFound):
        next(serve(problem(404)).follow("/runs/R/events"))
