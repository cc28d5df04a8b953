"""`ota-hook task` against a real `ota-hook serve` whose broker is away: nothing that is run gets sent."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.operator import SECONDS, Operator
from tests.e2e.service import Service, running, until, upload

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environ = {"OTA_HOOK_MQTT_URL": "mqtt://127.0.0.1:1"}
    with running(Service(tmp_path_factory.mktemp("tasks") / "data", environ=environ)) as started:
        with started.operator() as operator:
            assert operator.put("/device-types/tracker", json={}).status_code == 201
            for name in ("d1", "d2"):
                device = {"type": "tracker", "versions": {"version": "1.0"}}
                assert operator.put(f"/devices/{name}", json=device).status_code == 201
            assert upload(operator, "2.0").status_code == 201
        yield started


@pytest.fixture
def operator(service: Service, tmp_path: Path) -> Operator:
    return Operator(service, tmp_path)


def add(operator: Operator, *options: str, name: str = "nightly") -> dict[str, Any]:
    target = () if "--device" in options or "--devices" in options else ("--type", "tracker")
    task: dict[str, Any] = operator.ask("task", "add", name, *target, *options)
    return task


def test_a_task_is_added_shown_switched_and_deleted(operator: Operator) -> None:
    added = operator.run(
        *("task", "add", "冬季版本", "--type", "tracker", "--days", "mon-fri", "--times", "02:30,14:00"),
        *("--zone", "Asia/Shanghai", "--rate", "600", "--ramp-from", "10", "--max-concurrent", "50", "--jitter", "5s"),
        *("--window", "sat-sun 01:00-05:00 Asia/Shanghai", "--timeout", "30m", "--expires", "2d", "--retries", "3"),
        *("--backoff", "2m", "--stop-percent", "20", "--missed", "skip"),
    ).stdout
    task_id = ULID.search(added)
    assert task_id is not None
    assert re.search(r"it runs weekdays at 02:30 and 14:00, Asia/Shanghai, next on \d{4}-.* CST\.", added)
    shown = operator.run("task", "show", task_id[0]).stdout
    for text in (
        *("冬季版本", "tracker", "weekdays at 02:30 and 14:00, Asia/Shanghai"),
        "600 a minute, from 10 on, at most 50 devices at a time, each up to 5s later",
        *("sat,sun 01:00-05:00 Asia/Shanghai", "30m, waits for absent devices 2d", "3, the first after 2m"),
        *("at 20 % failed of 20 or more", "skipped", "the module by the attribute of the type's rule"),
    ):
        assert text in shown
    assert "it is disabled" in operator.run("task", "disable", task_id[0]).stdout
    assert operator.ask("task", "show", task_id[0])["next_due"] is None
    assert "next on" in operator.run("task", "enable", task_id[0]).stdout
    listed = operator.run("task", "list", "--type", "tracker").stdout
    assert task_id[0] in listed
    assert "冬季版本" in listed
    assert operator.ask("task", "delete", task_id[0]) == {"deleted": task_id[0]}
    assert "There is no task" in operator.refused("task", "show", task_id[0])


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ((), {"kind": "manual"}),
        (("--at", "2999-05-04T02:30"), {"kind": "once", "at": "2999-05-03T18:30:00.000Z"}),
        (("--at", "2999-05-04T02:30", "--zone", "UTC"), {"kind": "once", "at": "2999-05-04T02:30:00.000Z"}),
        (("--at", "2999-05-04T02:30:00+02:00"), {"kind": "once", "at": "2999-05-04T00:30:00.000Z"}),
        (("--cron", "30 2 1 * *", "--zone", "UTC"), {"kind": "repeat", "cron": "30 2 1 * *", "zone": "UTC"}),
        (
            ("--times", "02:30", "--zone", "UTC", "--days", "sat-mon"),
            {"kind": "repeat", "days": ["mon", "sat", "sun"], "times": ["02:30"], "zone": "UTC"},
        ),
    ],
)
def test_a_schedule_is_said_by_options(operator: Operator, options: tuple[str, ...], schedule: dict[str, Any]) -> None:
    assert add(operator, *options)["schedule"] == schedule


def test_a_time_alone_is_meant_for_every_day(operator: Operator) -> None:
    assert len(add(operator, "--times", "02:30", "--zone", "UTC")["schedule"]["days"]) == 7
    assert add(operator, "--every", "6h")["schedule"]["every_seconds"] == 21_600


def test_devices_are_named_or_come_from_a_file(operator: Operator) -> None:
    assert add(operator, "--device", "d2", "--device", "d1")["target"] == {"devices": ["d2", "d1"]}
    file = operator.file("pilot.txt", "d1\r\n\n  升级-1 \ngw/a\u2028b\n")
    assert add(operator, "--devices", file)["target"] == {"devices": ["d1", "升级-1", "gw/a\u2028b"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--at", "tomorrow"), "--at 'tomorrow' is no time. Give it as 2026-05-04T02:30."),
        (("--at", "2999-01-01T00:00", "--zone", "Mars/Base"), "is no time zone"),
        (("--at", "2001-01-01T00:00"), "--at is past. Give a later time."),
        (("--times", "02:30"), "--zone is missing. Give the time zone that is meant"),
        (("--times", "2:30", "--zone", "UTC"), "'2:30' is no time of day"),
        (("--times", "02:30", "--zone", "Asia/Shanghia"), "Did you mean Asia/Shanghai?"),
        (("--days", "mon-someday", "--times", "02:30", "--zone", "UTC"), "'mon-someday' is no range of days"),
        (("--days", "mon", "--zone", "UTC"), "A time is missing"),
        (("--every", "often"), "--every 'often' is no span of time. Give it as 90s, 15m, 6h or 7d."),
        (("--every", "6h", "--cron", "0 0 * * *"), "A task has one schedule."),
        (("--window", "02:00-05:00"), "lacks its time zone"),
        (("--window", "at night"), "is no window. Give it as 'mon-fri 02:00-05:00 Asia/Shanghai'"),
        (("--window", "02:00-25:00 UTC"), "'25:00' is no time of day"),
        (("--jitter", "61m"), "--jitter, in seconds, must be at most 3600."),
        (("--ramp-from", "5"), "--ramp-from: A ramp leads to a rate. Give --rate as well."),
        (("--every", "5s"), "--every: An interval has 60 to"),
        (("--zone", "UTC"), "A schedule of the kind 'manual' has no --zone."),
        (("--attribute", "gps"), "Give both --attribute and --module"),
    ],
)
def test_a_mistake_is_told_with_its_mend(operator: Operator, options: tuple[str, ...], said: str) -> None:
    assert said in operator.refused("task", "add", "n", "--type", "tracker", *options)


def test_the_next_time_is_told_by_the_clocks_of_the_schedule(operator: Operator) -> None:
    options = ("--type", "tracker", "--times", "02:30", "--zone", "Asia/Tokyo")
    assert re.search(r"next on \d{4}-\d\d-\d\d 02:30:00 JST\.", operator.run("task", "add", "n", *options).stdout)


@pytest.mark.parametrize(
    ("days", "shown"),
    [("mon-fri ", "mon-fri 01:00-02:00 UTC"), ("", "01:00-02:00 UTC"), ("sat,sun ", "sat,sun 01:00-02:00 UTC")],
)
def test_a_window_is_shown_as_it_may_be_typed(operator: Operator, days: str, shown: str) -> None:
    task_id = add(operator, "--window", f"{days}01:00-02:00 UTC")["id"]
    assert re.search(rf"window +{shown}\n", operator.run("task", "show", task_id).stdout)


def test_devices_that_nobody_registered_are_told_of(operator: Operator) -> None:
    added = operator.run("task", "add", "n", "--device", "d1", "--device", "d9")
    assert "Not registered: 1 of the 2 listed." in added.stderr
    assert "no device type 'nobody'" in operator.refused("task", "list", "--type", "nobody")


def test_a_task_is_no_run(operator: Operator) -> None:
    assert "A run's id is not its task's: `ota-hook task runs`" in operator.refused(
        "task", "watch", add(operator)["id"]
    )


def test_a_target_is_one_of_three(operator: Operator) -> None:
    assert "A task is for somebody." in operator.refused("task", "add", "n")
    both = operator.refused("task", "add", "n", "--type", "tracker", "--device", "d1")
    assert "exclude each other" in both
    assert "no device type 'nobody'" in operator.refused("task", "add", "n", "--type", "nobody")


def test_an_edit_changes_what_is_given(operator: Operator) -> None:
    options = ("--times", "02:30", "--zone", "UTC", "--days", "mon", "--rate", "60", "--window", "01:00-02:00 UTC")
    task_id = add(operator, *options)["id"]
    edited = operator.ask("task", "edit", task_id, "--times", "03:00", "--rate", "0", "--window", "")
    assert edited["schedule"] == {"kind": "repeat", "days": ["mon"], "times": ["03:00"], "zone": "UTC"}
    assert (edited["rate_per_minute"], edited["window"], edited["name"]) == (None, None, "nightly")
    assert operator.ask("task", "edit", task_id, "--zone", "Asia/Tokyo")["schedule"]["zone"] == "Asia/Tokyo"
    cron = operator.ask("task", "edit", task_id, "--cron", "0 4 * * *", "--name", "later")
    assert (cron["schedule"]["cron"], cron["schedule"].get("times"), cron["name"]) == ("0 4 * * *", None, "later")
    assert operator.ask("task", "edit", task_id, "--manual")["schedule"] == {"kind": "manual"}
    assert operator.ask("task", "edit", task_id, "--device", "d1")["target"] == {"devices": ["d1"]}
    assert "Nothing to change" in operator.refused("task", "edit", task_id)


def test_a_task_stops_itself_unless_it_is_told_not_to(operator: Operator) -> None:
    task_id = add(operator)["id"]
    assert "at 50 % failed of 20 or more" in operator.run("task", "show", task_id).stdout
    assert operator.ask("task", "edit", task_id, "--stop-percent", "0")["stop_percent"] is None
    assert re.search(r"stops itself\s+never", operator.run("task", "show", task_id).stdout)
    assert add(operator, "--stop-percent", "0")["stop_percent"] is None
    assert "[50]" in operator.run("task", "add", "--help").stdout


def test_a_new_version_attribute_is_told(operator: Operator) -> None:
    done = operator.run("task", "add", "gps", "--type", "tracker", "--attribute", "gps", "--module", "gps")
    assert "report once more" in done.stderr


def test_a_run_is_made_paused_resumed_and_cancelled(operator: Operator) -> None:
    task_id = add(operator)["id"]
    said = operator.run("task", "run", task_id, "--device", "d1").stdout
    run_id = ULID.search(said)
    assert run_id is not None
    assert f"ota-hook task watch {run_id[0]}" in said
    assert run_id[0] in operator.refused("task", "run", task_id)
    assert "The task is not for 'd9'." in operator.refused("task", "run", add(operator)["id"], "--device", "d9")
    until(lambda: operator.ask("task", "status", run_id[0])["total"] == 1, seconds=SECONDS)
    assert "is paused: Paused by an operator. 1 device: 1 " in operator.run("task", "pause", run_id[0]).stdout
    shown = operator.run("task", "status", run_id[0]).stdout
    assert "Paused by an operator." in shown
    assert "is running" in operator.run("task", "resume", run_id[0]).stdout
    assert operator.ask("task", "cancel", run_id[0])["state"] == "cancelled"
    assert "it can't be paused" in operator.refused("task", "pause", run_id[0])
    assert run_id[0] in operator.run("task", "runs").stdout
    assert [run["id"] for run in operator.ask("task", "runs", task_id)] == [run_id[0]]
    assert [run["id"] for run in operator.ask("task", "runs", task_id, "--state", "cancelled")] == [run_id[0]]
    assert operator.ask("task", "runs", task_id, "--state", "running") == []
    watched = operator.run("task", "watch", run_id[0], status=1).stdout
    assert "is cancelled: Cancelled by an operator. 1 device: 1 cancelled." in watched
    (device,) = operator.ask("task", "devices", run_id[0])
    assert (device["identifier"], device["outcome"], device["from_version"]) == ("d1", "cancelled", "1.0")
    assert operator.ask("task", "devices", run_id[0], "--outcome", "failed") == []
    assert "Outcomes are planned" in operator.refused("task", "devices", run_id[0], "--outcome", "lost")
    assert operator.ask("task", "dead") == []


def test_a_run_shows_a_bar_at_a_terminal(service: Service, tmp_path: Path) -> None:
    outside = Operator(service, tmp_path, in_process=False)
    task_id = add(outside)["id"]
    leader, follower = pty.openpty()
    watching = outside.start("task", "run", task_id, "--watch", stderr=follower, env=outside.environ({"TERM": "xterm"}))
    os.close(follower)
    shown = b""
    with io.FileIO(leader) as terminal:
        while b"0/2" not in shown:
            shown += terminal.read(1000) or b""
        assert b"nightly" in shown
        (run,) = outside.ask("task", "runs", task_id)
        outside.run("task", "cancel", run["id"])
        output, _ = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 1
    assert "2 cancelled" in output.decode()


def test_the_run_goes_on_when_nobody_watches_any_more(service: Service, tmp_path: Path) -> None:
    outside = Operator(service, tmp_path, in_process=False)
    task_id = add(outside)["id"]
    watching = outside.start("task", "run", task_id, "--watch", stdin=subprocess.DEVNULL)
    until(lambda: outside.ask("task", "runs", task_id) != [], seconds=SECONDS)
    (run,) = outside.ask("task", "runs", task_id)
    with pytest.raises(subprocess.TimeoutExpired):
        watching.communicate(timeout=2)
    watching.send_signal(2)
    _, errors = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 130
    assert f"ota-hook task cancel {run['id']}" in errors.decode()
    assert outside.ask("task", "status", run["id"])["state"] == "running"
    outside.run("task", "cancel", run["id"])
