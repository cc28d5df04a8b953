"""`ota-hook serve` on its defaults, driven with EMQX's bytes and a plain HTTP client."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.e2e.service import COMMAND, Emqx, Service, clean_environment, running, until, upload
from tests.held_ports import free_port

DEVICE = "DU_7VFGiJjjv8QoS"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(Service(tmp_path_factory.mktemp("serve") / "data")) as started:
        yield started


@pytest.fixture
def operator(service: Service) -> Iterator[httpx.Client]:
    """An operator of an empty deployment with one type `tracker` and one device."""
    with service.operator() as client:
        for firmware in client.get("/firmware", params={"limit": 1000}).json()["items"]:
            assert client.delete(f"/firmware/{firmware['id']}").status_code == 204
        assert client.put("/device-types/tracker", json={"name": "Tracker"}).status_code in (200, 201)
        client.delete(f"/devices/{DEVICE}")
        assert client.put(f"/devices/{DEVICE}", json={"type": "tracker"}).status_code == 201
        yield client


@pytest.fixture(params=["v2", "v3"])
def emqx(service: Service, request: pytest.FixtureRequest) -> Iterator[Emqx]:
    broker = Emqx(service.hook_port, request.param)
    yield broker
    broker.close()


def test_a_device_upgrades_through_the_broker(service: Service, operator: httpx.Client, emqx: Emqx) -> None:
    content = os.urandom(100_000)
    created = upload(operator, "1.1.5", content)
    assert created.status_code == 201, created.text
    assert emqx.report(DEVICE, "1.0.0") == b"\x08\x01"

    command = emqx.check(DEVICE)
    assert command is not None
    assert (command.topic, command.qos) == (f"command_send/{DEVICE}", 1)
    said = json.loads(command.payload)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    url = f"{service.api_url}/firmware/{created.json()['id']}/tracker-1.1.5.bin"
    assert (
        command.payload
        == (
            '{"method":"otaUpgrade","params":{"module":"main","upgrade":true,"version":"1.1.5",'
            f'"url":"{url}","size":100000,"md5":"{md5}"}},"command_name":"OTA升级","id":{said["id"]}}}'
        ).encode()
    )
    assert 0 < said["id"] < 2**53

    assert httpx.get(said["params"]["url"]).content == content

    assert emqx.report(DEVICE, "1.1.5") == b"\x08\x01"
    command = emqx.check(DEVICE, qos=1)
    assert command is not None
    assert (command.topic, command.qos) == (f"command_send/{DEVICE}", 0)
    nothing = json.loads(command.payload)
    assert nothing["params"] == {"module": "main", "upgrade": False}
    assert nothing["id"] != said["id"]
    offers = operator.get("/offers", params={"device": DEVICE}).json()["items"]
    assert [offer["outcome"] for offer in offers] == ["succeeded"]


def test_what_is_not_ours_is_ignored(operator: httpx.Client, emqx: Emqx) -> None:
    upload(operator, "2.0")
    emqx.report(DEVICE, "1.0")
    ignore = b"\x08\x01"
    check = b'{"method": "otaCheck", "params": {}}'
    assert emqx.publish("event_report/stranger", check, username="stranger") == ignore
    assert emqx.publish(f"event_report/{DEVICE}", check, username="stranger") == ignore
    assert emqx.publish(f"event_report/{DEVICE}", b'{"method": "doorOpened"}', username=DEVICE) == ignore
    assert emqx.publish("telemetry/x", check, username=DEVICE) == ignore
    assert emqx.call("OnMessagePublish", b"\xff\xff\xff") == ignore
    assert emqx.call("OnClientAuthenticate") == ignore
    assert emqx.call("OnSessionResumed") == b""
    assert emqx.check(DEVICE) is not None


@pytest.mark.alone
def test_disabling_a_firmware_stops_its_offers_within_a_second(operator: httpx.Client, emqx: Emqx) -> None:
    firmware = upload(operator, "2.0").json()
    emqx.report(DEVICE, "1.0")

    def is_offered() -> bool:
        command = emqx.check(DEVICE)
        assert command is not None
        return bool(json.loads(command.payload)["params"]["upgrade"])

    until(is_offered, seconds=1)
    assert operator.patch(f"/firmware/{firmware['id']}", json={"enabled": False}).status_code == 200
    until(lambda: not is_offered(), seconds=1)
    assert operator.patch(f"/firmware/{firmware['id']}", json={"enabled": True}).status_code == 200
    until(is_offered, seconds=1)


def test_an_empty_device_list_offers_to_nobody(operator: httpx.Client, emqx: Emqx) -> None:
    firmware = upload(operator, "2.0", devices=[""]).json()
    assert firmware["devices"] == []
    emqx.report(DEVICE, "1.0")
    command = emqx.check(DEVICE)
    assert command is not None
    assert json.loads(command.payload)["params"]["upgrade"] is False
    why = operator.get("/check", params={"device": DEVICE}).json()
    assert why["offer"] is None
    assert why["firmware"][0]["reasons"] == ["not_selected"]


def test_a_referenced_device_type_is_not_deleted(operator: httpx.Client) -> None:
    refused = operator.delete("/device-types/tracker")
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert "device" in refused.json()["detail"]


def test_a_duplicate_firmware_is_refused(operator: httpx.Client) -> None:
    assert upload(operator, "3.0").status_code == 201
    assert upload(operator, "v3.0.0").status_code == 409
    assert upload(operator, "3.0", source_versions=["2.0"]).status_code == 201
    assert upload(operator, "3.0", source_versions=["2.0", "1.0"]).status_code == 409
    assert upload(operator, "3.0", source_versions=["1.0"]).status_code == 201
    assert upload(operator, "3.0", devices=[DEVICE]).status_code == 201


@pytest.mark.alone
def test_a_deleted_firmware_is_offered_no_more_and_its_address_is_gone(operator: httpx.Client, emqx: Emqx) -> None:
    firmware = upload(operator, "2.0").json()
    emqx.report(DEVICE, "1.0")
    until(lambda: b'"upgrade":true' in getattr(emqx.check(DEVICE), "payload", b""), seconds=1)
    assert operator.delete(f"/firmware/{firmware['id']}").status_code == 204
    until(lambda: b'"upgrade":false' in getattr(emqx.check(DEVICE), "payload", b""), seconds=1)
    assert httpx.get(firmware["url"]).status_code == 410
    offers = operator.get("/offers", params={"device": DEVICE}).json()["items"]
    assert [offer["outcome"] for offer in offers] == ["cancelled"]


def test_readiness_and_metrics_need_no_token_and_the_api_does(service: Service, operator: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(service.api_url + path).status_code == 200
    assert httpx.get(f"{service.api_url}/api/v1/devices").status_code == 401
    assert "ota_hook_checks_total" in httpx.get(f"{service.api_url}/metrics").text


def test_the_token_is_kept_for_its_owner_alone(service: Service) -> None:
    assert (service.data_dir / "admin-token").stat().st_mode & 0o777 == 0o600
    token = (service.data_dir / "admin-token").read_text().strip()
    assert service.log.count(token) == 1


def test_killed_after_an_acknowledged_upload_everything_is_there_again(tmp_path: Path) -> None:
    service = Service(tmp_path / "data")
    content = os.urandom(3_000_000)
    with running(service):
        with service.operator() as operator:
            operator.put("/device-types/tracker", json={"name": "Tracker 追踪器", "version_scheme": "semver"})
            operator.put(f"/devices/{DEVICE}", json={"type": "tracker"})
            emqx = Emqx(service.hook_port)
            emqx.report(DEVICE, "1.0.0")
            emqx.close()
            created = upload(operator, "2.0.0", content, devices=[DEVICE])
            assert created.status_code == 201
        service.kill()

        service.start()
        with service.operator() as operator:
            device_type = operator.get("/device-types/tracker").json()
            assert (device_type["name"], device_type["version_scheme"]) == ("Tracker 追踪器", "semver")
            assert operator.get(f"/devices/{DEVICE}").json()["versions"] == {"version": "1.0.0"}
            kept = operator.get(f"/firmware/{created.json()['id']}").json()
            assert created.json().items() <= kept.items()
        stored = httpx.get(kept["url"]).content
        assert hashlib.sha256(stored).hexdigest() == kept["sha256"] == hashlib.sha256(content).hexdigest()
        emqx = Emqx(service.hook_port)
        command = emqx.check(DEVICE)
        emqx.close()
        assert command is not None
        assert json.loads(command.payload)["params"]["version"] == "2.0.0"


@pytest.mark.alone
def test_an_edit_is_in_force_in_another_process_within_a_second(tmp_path: Path) -> None:
    admin = Service(tmp_path / "data", command="admin")
    hook = Service(tmp_path / "data", command="hook", admin_port=admin.admin_port)
    with running(admin), running(hook), admin.operator() as operator:
        until(lambda: httpx.get(f"{admin.api_url}/readyz").status_code == 200, seconds=5)
        operator.put("/device-types/tracker", json={"name": "Tracker"})
        operator.put(f"/devices/{DEVICE}", json={"type": "tracker"})
        emqx = Emqx(hook.hook_port)
        until(lambda: emqx.check(DEVICE) is not None, seconds=1)
        emqx.report(DEVICE, "1.0")
        firmware = upload(operator, "2.0").json()
        until(lambda: b'"upgrade":true' in getattr(emqx.check(DEVICE), "payload", b""), seconds=1)
        operator.patch(f"/firmware/{firmware['id']}", json={"enabled": False})
        until(lambda: b'"upgrade":false' in getattr(emqx.check(DEVICE), "payload", b""), seconds=1)
        emqx.close()
        assert hook.stop() == 0
        until(lambda: httpx.get(f"{admin.api_url}/readyz").status_code == 503, seconds=10)


def test_the_admin_role_serves_tls_where_a_certificate_is_set(tmp_path: Path) -> None:
    key, cert, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(cert)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    environ = {
        "OTA_HOOK_ADMIN_TLS_LISTEN": f"127.0.0.1:{port}",
        "OTA_HOOK_ADMIN_TLS_CERT": str(cert),
        "OTA_HOOK_ADMIN_TLS_KEY": str(key),
        "OTA_HOOK_PUBLIC_URL_HTTPS": f"https://127.0.0.1:{port}",
    }
    with running(Service(tmp_path / "data", environ=environ)) as service, service.operator() as operator:
        operator.put("/device-types/tracker", json={"name": "Tracker"})
        operator.put(f"/devices/{DEVICE}", json={"type": "tracker"})
        created = upload(operator, "2.0", b"secret", use_https="true")
        assert created.status_code == 201, created.text
        emqx = Emqx(service.hook_port)
        emqx.report(DEVICE, "1.0")
        command = emqx.check(DEVICE)
        emqx.close()
        assert command is not None
        url = json.loads(command.payload)["params"]["url"]
        assert url.startswith(f"https://127.0.0.1:{port}/firmware/")
        assert httpx.get(url, verify=trust).content == b"secret"


def refused_start(command: str, tmp_path: Path, **environ: str) -> str:
    """Start a role that can't; returns the one line that says why."""
    ours = {
        "OTA_HOOK_DATA_DIR": str(tmp_path),
        "OTA_HOOK_ADMIN_LISTEN": "127.0.0.1:0",
        "OTA_HOOK_HOOK_LISTEN": "127.0.0.1:0",
    }
    done = subprocess.run(
        [*COMMAND, command],
        env=clean_environment(**ours, **environ),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_redis_that_can_not_be_reached_names_the_setting(tmp_path: Path) -> None:
    said = refused_start("admin", tmp_path, OTA_HOOK_REDIS_URL="redis://127.0.0.1:1/0")
    assert "127.0.0.1:1" in said
    assert "OTA_HOOK_REDIS_URL" in said


@pytest.mark.parametrize("missing", ["CERT", "KEY"])
def test_a_certificate_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("CERT", "KEY")}
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(files["CERT"])
    issued.private_key_pem.write_to_path(files["KEY"])
    files[missing].unlink()
    admin = {f"OTA_HOOK_ADMIN_TLS_{name}": str(path) for name, path in files.items()}
    said = refused_start("admin", tmp_path / "data", OTA_HOOK_ADMIN_TLS_LISTEN="127.0.0.1:0", **admin)
    assert f"OTA_HOOK_ADMIN_TLS_{missing}" in said
    assert str(files[missing]) in said
    hook = {f"OTA_HOOK_HOOK_TLS_{name}": str(path) for name, path in files.items()}
    assert str(files[missing]) in refused_start("hook", tmp_path / "data", **hook)


def test_https_without_a_base_is_refused_naming_the_setting(operator: httpx.Client) -> None:
    refused = upload(operator, "9.0", use_https="true")
    assert refused.status_code == 422
    assert "OTA_HOOK_PUBLIC_URL_HTTPS" in refused.text
