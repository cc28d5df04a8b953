"""The embedded Redis: what survives which death, and who owns the server."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind
from ota_hook.standin import redis as embedded
from ota_hook.standin.redis import embedded_redis
from ota_hook.state import catalogue as catalogue_module
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.format import open_layout
from tests.integration.waiting import eventually

ROOT: Final = Path(__file__).parents[2]
OWNER: Final = """
import asyncio, sys
from pathlib import Path
from ota_hook.standin.redis import embedded_redis

async def main():
    async with embedded_redis(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    client = connect_redis(url, timeout_seconds=2.0)
    assert isinstance(client, Redis)
    try:
        yield client
    finally:
        await client.aclose()


async def start_owner(data_dir: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Another process that has entered the context; it leaves it when its standard input ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(data_dir)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


async def pid_of(client: Redis) -> int:
    return int((await client.info("server"))["process_id"])


def is_gone(pid: int) -> Callable[[], bool]:
    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"

    return gone


async def restarted(client: Redis, old_pid: int) -> None:
    async def is_another() -> bool:
        try:
            return await pid_of(client) != old_pid
        except RedisError:
            return False

    await eventually(is_another, within_s=15, what="the restart of the server")


async def test_data_outlives_the_context(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        async with embedded_redis(tmp_path) as url, client_of(url) as client:
            assert await client.get("k") == expected
            await client.incr("k")


async def test_the_server_ends_with_the_context(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        pid = await pid_of(client)
    assert is_gone(pid)()


async def test_every_acknowledged_write_survives_a_kill_9_of_redis_mid_write(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        devices = RedisDevices(client, await open_layout(client))
        acknowledged: list[str] = []

        async def write_on(writer: int) -> None:
            for number in range(10_000):
                name = f"{writer}-{number}"
                try:
                    await devices.put_device(name, "tracker", {"version": name})
                except DependencyError:
                    return
                acknowledged.append(name)

        writers = [asyncio.create_task(write_on(writer)) for writer in range(8)]
        await eventually(lambda: len(acknowledged) > 200, what="two hundred writes")
        pid = await pid_of(client)
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*writers)
        await restarted(client, pid)
        stored = {state.identifier: state.versions["version"].text async for state in devices.scan_devices()}
        assert len(acknowledged) > 200
        assert {name: stored.get(name) for name in acknowledged} == {name: name for name in acknowledged}


async def test_a_server_dies_with_its_killed_owner_and_the_next_one_finds_everything(tmp_path: Path) -> None:
    owner, url = await start_owner(tmp_path)
    async with client_of(url) as client:
        for number in range(50):
            await client.set(f"k{number}", number)
        pid = await pid_of(client)
        owner.kill()
        await owner.wait()
        await eventually(is_gone(pid), what="the end of the server")
    async with embedded_redis(tmp_path) as again, client_of(again) as client:
        assert again == url
        assert await client.dbsize() == 50


async def test_a_new_owner_comes_at_once_after_a_kill_9(tmp_path: Path) -> None:
    owner, url = await start_owner(tmp_path)
    async with client_of(url) as client:
        await client.set("k", "v")
        pid = await pid_of(client)
    owner.kill()
    await owner.wait()
    # The old server may still be ending: it is used while it answers, and replaced when it is gone.
    async with embedded_redis(tmp_path) as again, client_of(again) as client:
        await restarted(client, pid)
        assert await client.get("k") == b"v"
        assert is_gone(pid)()


async def test_a_second_process_joins_the_server_and_takes_over_when_the_owner_ends(tmp_path: Path) -> None:
    owner, url = await start_owner(tmp_path)
    async with embedded_redis(tmp_path) as joined, client_of(joined) as client:
        assert joined == url
        pid = await pid_of(client)
        await client.set("k", "v")
        assert owner.stdin is not None
        owner.stdin.close()
        assert await owner.wait() == 0
        await restarted(client, pid)
        assert await client.get("k") == b"v"


async def test_one_who_joined_leaves_the_server_running(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        pid = await pid_of(client)
        joiner, joined = await start_owner(tmp_path)
        assert joined == url
        assert joiner.stdin is not None
        joiner.stdin.close()
        assert await joiner.wait() == 0
        assert await pid_of(client) == pid


async def test_the_folder_the_socket_and_the_files_are_private(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        await client.set("k", "v")
        folder = tmp_path / "redis"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
        assert {"redis.sock", "redis.log", "lock"} <= set(modes)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [name for name, mode in modes.items() if mode & 0o077] == []
        assert (await client.config_get("port"))["port"] == "0"


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where sockets go whose path would be too long; pytest's own folders are long themselves."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.mark.usefixtures("short_folder")
async def test_a_path_too_long_for_a_socket_works_for_every_process(tmp_path: Path) -> None:
    long = tmp_path / ("a folder with blanks %20 " + "x" * 100) / ("y" * 100)
    async with embedded_redis(long) as url, client_of(url) as client:
        assert await client.ping()
        joiner, joined = await start_owner(long)
        assert joined == url
        joiner.kill()
        await joiner.wait()


@pytest.mark.usefixtures("short_folder")
async def test_a_folder_for_the_socket_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100) / "data"
    async with embedded_redis(long) as url:
        pass
    short = Path(url.removeprefix("unix://")).parent
    short.chmod(0o755)
    with pytest.raises(ConfigurationError, match="private"):
        async with embedded_redis(long):
            pass


async def test_a_file_cut_off_in_the_middle_of_a_write_is_recovered(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        await client.mset({f"k{number}": "v" * 100 for number in range(3)})
        await client.set("last", "v" * 100)
    files = [path for path in (tmp_path / "redis").rglob("*.aof*") if path.suffix == ".aof" and path.stat().st_size]
    written = max(files, key=lambda path: path.stat().st_mtime)
    with written.open("rb+") as file:
        file.truncate(written.stat().st_size - 20)
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        assert await client.dbsize() == 3
        assert await client.get("last") is None


async def test_data_that_redis_can_not_load_is_a_configuration_error_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    content = b"nothing of Redis" * 100
    (tmp_path / "redis" / "appendonly.aof").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"does not start.*redis\.log"):
        async with embedded_redis(tmp_path):
            pass
    (kept,) = (tmp_path / "redis").rglob("appendonly.aof")  # Redis 7 moves it into a folder of its own
    assert kept.read_bytes() == content


async def test_without_a_redis_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="apt-get install redis-server"):
        async with embedded_redis(tmp_path):
            pass


async def test_data_of_a_newer_redis_is_not_started_empty_by_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)

    async def find_old() -> tuple[Path, tuple[int, ...]]:
        return Path("/usr/bin/redis-server"), (6, 2, 14)

    monkeypatch.setattr(embedded, "find_server", find_old)
    with pytest.raises(ConfigurationError, match="Redis 7"):
        async with embedded_redis(tmp_path):
            pass


async def test_a_data_directory_that_can_not_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file"):
        async with embedded_redis(tmp_path / "file"):
            pass


async def test_a_log_that_grew_long_makes_room(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    log = tmp_path / "redis" / "redis.log"
    log.write_bytes(b"x" * 2_000_000)
    async with embedded_redis(tmp_path):
        pass
    assert log.stat().st_size < 100_000
    assert log.with_suffix(".log.1").stat().st_size == 2_000_000


def test_it_runs_under_uvloop(tmp_path: Path) -> None:
    async def run() -> None:
        async with embedded_redis(tmp_path) as url, client_of(url) as client:
            await client.set("k", "v")
            pid = await pid_of(client)
            os.kill(pid, signal.SIGKILL)
            await restarted(client, pid)
            assert await client.get("k") == b"v"

    uvloop.run(run())


async def test_while_redis_is_away_the_catalogue_stays_in_force_and_catches_up_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "STALE_SECONDS", 1.0)
    first = DeviceType(key="first", name="First")
    async with embedded_redis(tmp_path) as url:
        clients = [connect_redis(url, timeout_seconds=2.0) for _ in range(2)]
        keys = await open_layout(clients[0])
        one, other = (RedisCatalogue(client, keys) for client in clients)
        await one.start()
        await other.start()
        await one.change(lambda _: [CatalogueChange(DocumentKind.DEVICE_TYPE, "first", first)])
        await eventually(lambda: other.current.revision == 1)
    with pytest.raises(DependencyError):
        await one.change(lambda _: [CatalogueChange(DocumentKind.DEVICE_TYPE, "first", None)])
    assert one.current.types == other.current.types == {"first": first}
    await eventually(lambda: not one.healthy, what="the age of the snapshot")
    async with embedded_redis(tmp_path):
        await one.change(lambda _: [CatalogueChange(DocumentKind.DEVICE_TYPE, "first", None)])
        await eventually(lambda: other.current.types == {} and other.healthy, what="catching up")
        for catalogue, client in zip((one, other), clients, strict=True):
            await catalogue.close()
            await client.aclose()
