"""Simulated devices over real MQTT and real HTTP, against a provider that offers by script."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from ota_hook.errors import ConfigurationError
from ota_hook.exhook import exhook_pb2 as pb
from ota_hook.model import Outcome
from ota_hook.progress import FAILURES
from ota_hook.standin.broker import StandinBroker
from ota_hook.standin.fleet import (
    TOPICS,
    DeviceBehaviour,
    DeviceSpec,
    FleetOptions,
    FleetReport,
    FleetView,
    Phase,
    SimulatedFleet,
    run_fleet,
)
from tests.integration.scripted_provider import DEADLINE_S, IGNORE, ScriptedProvider, client_of, running, until

PACKAGE = os.urandom(200_000)
QUICK = DeviceBehaviour(answer_timeout_s=DEADLINE_S, retry_pause_s=0.01, reboot_s=0.01)


class PackageServer:
    """Serves one package over HTTP/1.1 with Range. `cuts`: after how many bytes of body each next request is cut."""

    def __init__(self, content: bytes = PACKAGE, *, cuts: tuple[int, ...] = (), ranges: bool = True) -> None:
        self.content = content
        self.cuts = list(cuts)
        self.ranges = ranges
        self.status = 200
        self.requested: list[str | None] = []
        self.tls: ssl.SSLContext | None = None
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[PackageServer]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self.tls)
        async with server:
            self.url = (
                f"http{'s' if self.tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/firmware/01X/fw.bin"
            )
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        }
        wanted = headers.get("range")
        self.requested.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        body = self.content[start:] if self.status == 200 else b""
        status = "206 Partial Content" if start else f"{self.status} X"
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", 'ETag: "x"', "Connection: close"]
        if start:
            lines.append(f"Content-Range: bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        writer.write(body[: self.cuts.pop(0)] if self.cuts else body)
        await writer.drain()
        writer.close()


class Cloud:
    """The provider's script: offers `target` to devices that last reported another version; keeps what was said."""

    def __init__(self, target: str = "2.0.0", **params: Any) -> None:
        self.target = target
        self.params = {"size": len(PACKAGE), "md5": hashlib.md5(PACKAGE, usedforsecurity=False).hexdigest(), **params}
        self.versions: dict[str, list[str]] = {}
        self.checks = 0
        self.replies: list[dict[str, Any]] = []
        self.answering = True
        self.provider = ScriptedProvider({"message.publish": []}, self.respond)

    async def respond(self, request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        message = request.message
        device = message.headers["username"]
        document = json.loads(message.payload)
        if "attributes" in message.topic:
            self.versions.setdefault(device, []).append(document["version"])
        elif "command_reply" in message.topic:
            self.replies.append(document)
        elif "event_report" in message.topic:
            self.checks += 1
            if self.answering:
                topic = message.topic.replace("event_report", "command_send")
                command = pb.Message(topic=topic, qos=1, payload=self.command(self.versions[device][-1]))
                return pb.ValuedResponse(type=pb.ValuedResponse.STOP_AND_RETURN, message=command)
        return IGNORE

    def command(self, current: str) -> bytes:
        params: dict[str, Any] = {"module": "main", "upgrade": current != self.target}
        if params["upgrade"]:
            params |= {"version": self.target} | {key: self.params[key] for key in ("url", "size", "md5")}
            params |= self.params
        document = {"method": "otaUpgrade", "params": params, "command_name": "OTA升级", "id": self.checks}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def options_for(broker: StandinBroker, *, count: int = 1, behaviour: DeviceBehaviour = QUICK) -> FleetOptions:
    devices = [DeviceSpec(f"device-{number}", "sensor", "1.0.0") for number in range(count)]
    return FleetOptions(mqtt_url=broker.mqtt_url, devices=devices, behaviour=behaviour)


async def run_one(
    cloud: Cloud, server: PackageServer, behaviour: DeviceBehaviour = QUICK, *, count: int = 1
) -> tuple[FleetView, FleetReport]:
    async with server.serving(), running(cloud.provider) as broker, asyncio.timeout(DEADLINE_S * 2):
        cloud.params.setdefault("url", server.url)
        fleet = SimulatedFleet(options_for(broker, count=count, behaviour=behaviour))
        report = await fleet.run()
        return fleet.view, report


async def test_a_fleet_downloads_verifies_replies_reboots_and_reports() -> None:
    cloud, server = Cloud(), PackageServer()
    view, report = await run_one(cloud, server, count=8)
    assert cloud.versions == {f"device-{number}": ["1.0.0", "2.0.0"] for number in range(8)}
    assert view.count_versions() == {"2.0.0": 8}
    assert view.count_phases() == {Phase.CURRENT: 8}
    assert {reply["params"]["ota_result"] for reply in cloud.replies} == {0}
    assert len({reply["id"] for reply in cloud.replies}) == len(cloud.replies) == 8
    assert cloud.checks == 16
    assert [device.fetched for device in view.devices] == [[server.url]] * 8
    assert replace(report, seconds=0) == FleetReport(
        devices=8, gateways=0, children=0, upgraded=8, offers=8, downloads=8, failed=0, seconds=0
    )


async def test_a_device_with_nothing_to_do_ends_where_it_began() -> None:
    view, report = await run_one(Cloud(target="1.0.0"), server := PackageServer())
    assert (view.devices[0].phase, view.devices[0].version) == (Phase.CURRENT, "1.0.0")
    assert (report.offers, server.requested) == (0, [])


async def test_the_typed_topics_carry_the_type_before_the_device() -> None:
    cloud, server = Cloud(), PackageServer()
    view, _ = await run_one(cloud, server, replace(QUICK, topics=TOPICS["typed"]))
    assert view.devices[0].version == "2.0.0"
    topics = {request.message.topic for request in cloud.provider.publishes}
    assert topics == {f"sensor/device-0/{last}" for last in ("attributes", "event_report", "command_reply")}


async def test_a_cut_download_goes_on_where_it_was_cut() -> None:
    cloud, server = Cloud(), PackageServer(cuts=(70_000, 50_000))
    view, _ = await run_one(cloud, server)
    assert server.requested == [None, "bytes=70000-", "bytes=120000-"]
    assert (view.devices[0].version, view.devices[0].downloads) == ("2.0.0", 1)


async def test_a_server_without_ranges_is_read_from_the_start_again() -> None:
    cloud, server = Cloud(), PackageServer(cuts=(70_000,), ranges=False)
    view, _ = await run_one(cloud, server)
    assert view.devices[0].version == "2.0.0"


async def test_a_download_that_is_cut_again_and_again_is_given_up() -> None:
    cloud, server = Cloud(), PackageServer(cuts=(10,) * 9)
    view, report = await run_one(cloud, server, replace(QUICK, download_attempts=3))
    assert len(server.requested) == 3
    assert [reply["params"]["ota_result"] for reply in cloud.replies] == [-2]
    assert (view.devices[0].phase, view.devices[0].version, report.failed) == (Phase.FAILED, "1.0.0", 1)


@pytest.mark.parametrize(
    ("params", "result", "said"),
    [
        ({"md5": "0" * 32}, -3, "digest_differs: http://"),
        ({"sha256": "0" * 64}, -3, "digest_differs: http://"),
        ({"crc32": "00000000"}, -3, "digest_differs: http://"),
        ({"size": len(PACKAGE) - 1}, -2, "(more than 199999 bytes came)"),
        ({"size": len(PACKAGE) + 1}, -2, "(200000 of 200001 bytes came)"),
        ({"url": "http://127.0.0.1:1/nobody"}, -2, "http://127.0.0.1:1/nobody (All connection attempts failed)"),
    ],
)
async def test_a_package_that_is_not_what_the_command_says_is_not_installed(
    params: dict[str, Any], result: int, said: str
) -> None:
    cloud = Cloud(**params)
    view, report = await run_one(cloud, PackageServer())
    assert [reply["params"]["ota_result"] for reply in cloud.replies] == [result]
    assert FAILURES[result][0] is Outcome.FAILED
    assert cloud.versions == {"device-0": ["1.0.0"]}
    assert said in (view.devices[0].error or "")
    assert (report.failed, report.upgraded, report.downloads) == (1, 0, 0)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (410, 1), (503, 5)])
async def test_a_refused_download_is_repeated_only_where_the_server_may_recover(status: int, requests: int) -> None:
    cloud, server = Cloud(), PackageServer()
    server.status = status
    view, _ = await run_one(cloud, server)
    assert f"(HTTP {status} X)" in (view.devices[0].error or "")
    assert len(server.requested) == requests
    assert [reply["params"]["ota_result"] for reply in cloud.replies] == [-2]


async def test_a_download_over_https_trusts_whom_ssl_cert_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority, server = trustme.CA(), PackageServer()
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server.tls)
    view, _ = await run_one(Cloud(), server)
    assert "CERTIFICATE_VERIFY_FAILED" in (view.devices[0].error or "")

    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    view, _ = await run_one(Cloud(), server)
    assert (view.devices[0].version, view.devices[0].error) == ("2.0.0", None)

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        await run_fleet(FleetOptions(mqtt_url="mqtt://127.0.0.1:1", devices=[]))


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    view, _ = await run_one(Cloud(), PackageServer())
    assert view.devices[0].version == "2.0.0"


async def test_a_check_that_nobody_answers_is_asked_a_bounded_number_of_times() -> None:
    cloud = Cloud()
    cloud.answering = False
    view, _ = await run_one(cloud, PackageServer(), replace(QUICK, answer_timeout_s=0.02, check_attempts=3))
    assert cloud.checks == 3
    assert cloud.versions == {"device-0": ["1.0.0"] * 3}  # its report may have been lost too
    assert (view.devices[0].phase, view.devices[0].error) == (Phase.FAILED, "no answer to 3 checks")


async def test_a_command_against_the_protocol_fails_the_device_with_the_difference() -> None:
    cloud = Cloud(sha1="00")
    view, _ = await run_one(cloud, PackageServer())
    assert view.devices[0].phase is Phase.FAILED
    assert "sha1" in (view.devices[0].error or "")
    assert cloud.replies == []


async def test_a_device_that_is_offered_what_it_runs_does_not_install_it_again() -> None:
    cloud, server = Cloud(), PackageServer()
    offer = cloud.command
    cloud.command = lambda current: offer("1.0.0")  # type: ignore[method-assign]
    view, report = await run_one(cloud, server)
    assert view.devices[0].error == "offered 2.0.0, which it runs"
    assert (report.downloads, report.failed) == (1, 1)


async def test_a_device_that_is_offered_upgrades_without_end_stops() -> None:
    cloud = Cloud()

    def always_another(current: str) -> bytes:
        cloud.target = f"{current}.1"
        return Cloud.command(cloud, current)

    cloud.command = always_another  # type: ignore[method-assign]
    view, _ = await run_one(cloud, PackageServer(), replace(QUICK, upgrades_max=3))
    assert (view.devices[0].upgrades, view.devices[0].phase) == (3, Phase.FAILED)


async def test_a_broker_that_is_not_there_fails_the_device_after_its_attempts() -> None:
    async with running(None) as broker:
        options = options_for(broker, behaviour=replace(QUICK, connect_attempts=2))
    report = await run_fleet(options)
    assert report.failed == 1


async def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        await run_fleet(FleetOptions(mqtt_url="localhost", devices=[]))


async def test_a_fleet_that_stays_takes_what_is_pushed_to_it() -> None:
    cloud, server = Cloud(target="1.0.0"), PackageServer()
    behaviour = replace(QUICK, check_interval_s=3600.0)
    changes = 0

    def count_change(view: FleetView) -> None:
        nonlocal changes
        changes += 1

    async with server.serving(), running(cloud.provider) as broker, asyncio.timeout(DEADLINE_S):
        cloud.params["url"] = server.url
        fleet = SimulatedFleet(options_for(broker, behaviour=behaviour), count_change)
        task = asyncio.create_task(fleet.run())
        await fleet.wait_settled()
        cloud.target = "2.0.0"
        async with client_of(broker, "operator") as operator:
            await operator.publish("command_send/device-0", cloud.command("1.0.0"), qos=1)
        await until(lambda: fleet.view.settled and fleet.view.devices[0].version == "2.0.0")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert fleet.report().upgraded == 1
    assert changes >= 5


async def test_a_fleet_that_stays_recovers_from_a_failure_and_asks_again() -> None:
    cloud, server = Cloud(), PackageServer()
    server.status = 404
    async with server.serving(), running(cloud.provider) as broker, asyncio.timeout(DEADLINE_S):
        cloud.params["url"] = server.url
        fleet = SimulatedFleet(options_for(broker, behaviour=replace(QUICK, check_interval_s=0.05)))
        task = asyncio.create_task(fleet.run())
        await until(lambda: fleet.view.devices[0].phase is Phase.FAILED)
        server.status = 200
        await until(lambda: fleet.view.devices[0].phase is Phase.CURRENT)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (fleet.view.devices[0].version, fleet.view.devices[0].error) == ("2.0.0", None)
