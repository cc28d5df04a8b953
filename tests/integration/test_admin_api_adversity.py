"""Uploads and downloads of a service in a process of its own: bounded memory, and what a kill leaves."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service, running

PACKAGE_BYTES = 64 * 1024 * 1024
GROWTH_BYTES = 32 * 1024 * 1024
BLOCK = os.urandom(64 * 1024)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(Service(tmp_path / "data")) as started:
        yield started


def resident_bytes(service: Service) -> int:
    assert service.process is not None
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def upload_head(service: Service, body_bytes: int) -> bytes:
    token = (service.data_dir / "admin-token").read_text().strip()
    return (
        f"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {body_bytes}\r\n\r\n"
    ).encode()


FIELDS = (
    b'--b\r\nContent-Disposition: form-data; name="device_type"\r\n\r\nDU\r\n'
    b'--b\r\nContent-Disposition: form-data; name="version"\r\n\r\n1.1\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="fw.bin"\r\n\r\n'
)
END = b"\r\n--b--\r\n"


def test_memory_does_not_grow_with_a_package(service: Service) -> None:
    with service.operator() as api:
        api.post("/device-types", json={"key": "DU"}).raise_for_status()
        api.post("/firmware", data={"device_type": "DU", "version": "1.0"}, files={"file": ("a.bin", b"x")})
        before = resident_bytes(service)
        most = before
        digest = hashlib.sha256()
        with socket.create_connection(("127.0.0.1", service.admin_port)) as connection:
            connection.sendall(upload_head(service, len(FIELDS) + PACKAGE_BYTES + len(END)) + FIELDS)
            for _ in range(PACKAGE_BYTES // len(BLOCK)):
                connection.sendall(BLOCK)
                digest.update(BLOCK)
                most = max(most, resident_bytes(service))
            connection.sendall(END)
            assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 201 ")
        firmware = api.get("/firmware?version=1.1").json()["items"][0]
        assert (firmware["size"], firmware["sha256"]) == (PACKAGE_BYTES, digest.hexdigest())
        received = hashlib.sha256()
        with api.stream("GET", firmware["url"]) as download:
            for chunk in download.iter_raw():
                received.update(chunk)
                most = max(most, resident_bytes(service))
        assert received.hexdigest() == firmware["sha256"]
        assert most - before < GROWTH_BYTES


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_half_made(service: Service) -> None:
    packages = service.data_dir / "packages"
    with service.operator() as api:
        api.post("/device-types", json={"key": "DU"}).raise_for_status()
        whole = api.post("/firmware", data={"device_type": "DU", "version": "1.0"}, files={"file": ("a.bin", b"whole")})
        firmware = whole.json()
    with socket.create_connection(("127.0.0.1", service.admin_port)) as connection:
        connection.sendall(upload_head(service, len(FIELDS) + PACKAGE_BYTES + len(END)) + FIELDS + BLOCK * 64)
        wait_until(lambda: any(path.stat().st_size for path in (packages / ".incoming").iterdir()))
        service.kill()
    service.start()
    with service.operator() as api:
        (left,) = api.get("/firmware").json()["items"]
        assert left == firmware
        assert api.get(firmware["url"]).content == b"whole"
        assert {path.name for path in packages.iterdir()} == {".incoming", firmware["id"]}
        # The same upload again is taken: what was killed has no trace in the catalogue.
        again = api.post("/firmware", data={"device_type": "DU", "version": "1.1"}, files={"file": ("b.bin", b"again")})
        assert again.status_code == 201
