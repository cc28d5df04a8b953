"""`ota-hook demo` and `ota-hook fleet`, as a user runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.service import COMMAND, Service, clean_environment, running, upload
from tests.held_ports import free_port


def ota_hook(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        env=clean_environment(**environ),
        check=False,
    )


def test_the_demo_converges_and_prints_one_summary_last() -> None:
    done = ota_hook("demo", "--once", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    keys = {"devices", "gateways", "children", "upgraded", "offers", "downloads", "failed", "seconds"}
    assert set(summary) == keys
    assert (summary["devices"], summary["upgraded"], summary["failed"]) == (50, 44, 0)
    assert (summary["gateways"], summary["children"]) == (1, 5)
    assert summary["downloads"] == summary["offers"] == 44


def test_the_demo_runs_again_on_the_data_of_the_first_time(tmp_path: Path) -> None:
    for _ in range(2):
        done = ota_hook("demo", "--once", "--json", "--data-dir", str(tmp_path / "demo"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["upgraded"] == 44


def test_the_demo_fails_with_the_reason_where_the_fleet_does_not_become_what_it_should(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    assert ota_hook("demo", "--once", "--data-dir", str(data)).returncode == 0
    with running(Service(data)) as service, service.operator() as operator:
        foreign = upload(operator, "9.0.0", device_type="demo-sensor", name="not the demo's")
        assert foreign.status_code == 201
    done = ota_hook("demo", "--once", "--json", "--data-dir", str(data))
    assert done.returncode == 1
    assert "not the demo's" in done.stderr


def test_without_once_the_demo_serves_until_a_signal() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo"], env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if "Ctrl-C" in line:
                    break
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("topics", ["eztcloud", "typed"])
def test_a_fleet_upgrades_against_a_running_service(tmp_path: Path, topics: str) -> None:
    broker = f"127.0.0.1:{free_port()}"
    arguments = ("--standin", "--standin-listen", broker, "--standin-package", "v3")
    service = Service(tmp_path / "data", arguments=arguments, environ={"OTA_HOOK_TOPICS": topics})
    with running(service), service.operator() as operator:
        operator.put("/device-types/tracker", json={"name": "Tracker", "auto_register": topics == "typed"})
        assert upload(operator, "1.2.0", b"full" * 1000).status_code == 201
        register = () if topics == "typed" else ("--register",)
        done = ota_hook(
            *("fleet", "--mqtt-url", f"mqtt://{broker}", "--type", "tracker", "--devices", "12", "--topics", topics),
            *("--version", "1.0.0", "--version", "1.2.0", "--json", "--data-dir", str(service.data_dir), *register),
            *("--api", service.api_url),
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["devices"], summary["upgraded"], summary["failed"]) == (12, 6, 0)
        versions = [device["versions"] for device in operator.get("/devices", params={"limit": 100}).json()["items"]]
        assert versions == [{"version": "1.2.0"}] * 12
        assert service.stop() == 0


def test_a_fleet_has_gateways_and_devices_that_take_pieces(tmp_path: Path) -> None:
    broker = f"127.0.0.1:{free_port()}"
    service = Service(tmp_path / "data", arguments=("--standin", "--standin-listen", broker))
    with running(service), service.operator() as operator:
        operator.put("/device-types/meter", json={})
        assert upload(operator, "1.2.0", b"full" * 20_000, device_type="meter").status_code == 201
        fleet = ("fleet", "--mqtt-url", f"mqtt://{broker}", "--type", "meter", "--register", "--api", service.api_url)
        done = ota_hook(
            *(*fleet, "--data-dir", str(service.data_dir), "--devices", "3", "--chunked", "2", "--cut"),
            *("--gateways", "3", "--children", "4", "--version", "1.0.0", "--version", "1.2.0"),
        )
        assert done.returncode == 0, done.stderr
        # Of the devices two in three, of each gateway's children one in two ran something older.
        shown = r"18 devices \(3 gateways, 12 children\): 8 upgraded, 0 failed, 8 offers, 8 downloads"
        assert re.search(shown, done.stderr)
        found = operator.get("/devices", params={"type": "meter", "limit": 100}).json()["items"]
        assert [device["versions"] for device in found] == [{"version": "1.2.0"}] * 15
        metrics = httpx.get(f"{service.api_url}/metrics").text
        assert re.search(r'ota_hook_chunks_total\{result="served"\} [5-9]\.0', metrics)


def test_a_setting_that_can_not_work_ends_with_status_2_and_one_line() -> None:
    done = ota_hook("serve", OTA_HOOK_REDIS_ULR="x")
    assert done.returncode == 2
    assert done.stderr.strip() == "ota-hook: OTA_HOOK_REDIS_ULR is no setting; did you mean OTA_HOOK_REDIS_URL?"
