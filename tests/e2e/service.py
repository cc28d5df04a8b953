"""Runs `ota-hook` as a user does – a process of its own – and talks to it as EMQX, a device or an operator would."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from ota_hook.exhook.exhook_pb2 import Message, MessagePublishRequest, RequestMeta, ValuedResponse
from tests.held_ports import free_port

START_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "ota_hook")


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTA_HOOK_")} | more


@dataclass
class Service:
    """One `ota-hook` process. `environ` adds settings."""

    data_dir: Path
    command: str = "serve"
    arguments: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    hook_port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def log(self) -> str:
        return (self.data_dir.parent / f"{self.command}-{self.admin_port}.log").read_text()

    def start(self) -> None:
        log = (self.data_dir.parent / f"{self.command}-{self.admin_port}.log").open("ab")
        environ = {
            "OTA_HOOK_DATA_DIR": str(self.data_dir),
            "OTA_HOOK_HOOK_LISTEN": f"127.0.0.1:{self.hook_port}",
            "OTA_HOOK_ADMIN_LISTEN": f"127.0.0.1:{self.admin_port}",
            # A busy machine is no broken Redis; tests of the budget set their own.
            "OTA_HOOK_ANSWER_BUDGET_MS": "2000",
        }
        with log:
            self.process = subprocess.Popen(
                [*COMMAND, self.command, *self.arguments],
                env=clean_environment(**(environ | self.environ)),
                stdout=log,
                stderr=log,
            )
        self.wait_serving()

    def wait_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.command} ended with {self.process.returncode}:\n{self.log}")
            if self._serves():
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.command} did not start:\n{self.log}")

    def _serves(self) -> bool:
        if self.command == "hook":
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.hook_port), 1):
                return True
            return False
        path = "/readyz" if self.command == "serve" else "/livez"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(self.api_url + path, timeout=1).status_code == 200
        return False

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def operator(self) -> httpx.Client:
        token = (self.data_dir / "admin-token").read_text().strip()
        return httpx.Client(base_url=f"{self.api_url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30)


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    try:
        service.start()
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


class Emqx:
    """A broker as the hook sees it: EMQX's calls, on a plain gRPC channel."""

    def __init__(self, port: int, package: str = "v2") -> None:
        self.package = package
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def close(self) -> None:
        self.channel.close()

    def call(self, method: str, request: bytes = b"") -> bytes:
        invoke = self.channel.unary_unary(f"/emqx.exhook.{self.package}.HookProvider/{method}", None, None)
        answer = invoke(request, timeout=5, wait_for_ready=True)
        assert isinstance(answer, bytes)
        return answer

    def publish(self, topic: str, payload: bytes, *, username: str, qos: int = 1, at_ms: int | None = None) -> bytes:
        message = Message(
            node="emqx@127.0.0.1",
            id="0006311B2D2FE2A8F445000008A50000",
            qos=qos,
            topic=topic,
            payload=payload,
            timestamp=at_ms if at_ms is not None else time.time_ns() // 1_000_000,
            headers={"username": username, "protocol": "mqtt", "peerhost": "127.0.0.1", "allow_publish": "true"},
            **{"from": f"client-{username}"},
        )
        meta = RequestMeta(node="emqx@127.0.0.1", version="5.8.9", sysdescr="EMQX", cluster_name="emqxcl")
        return self.call("OnMessagePublish", MessagePublishRequest(message=message, meta=meta).SerializeToString())

    def report(self, device: str, version: str) -> bytes:
        return self.publish(f"attributes/{device}", f'{{"version": "{version}"}}'.encode(), username=device)

    def check(self, device: str, *, qos: int = 1) -> Message | None:
        """The command that the check became, None for IGNORE."""
        response = self.publish(
            f"event_report/{device}", b'{"method": "otaCheck", "params": {}}', username=device, qos=qos
        )
        valued = ValuedResponse.FromString(response)
        if valued.type == ValuedResponse.IGNORE:
            assert response == b"\x08\x01"
            return None
        assert valued.type == ValuedResponse.STOP_AND_RETURN
        return valued.message


def upload(operator: httpx.Client, version: str, content: bytes = b"firmware", **fields: Any) -> httpx.Response:
    """POST a firmware of the type `tracker`; list values become repeated fields."""
    form = {"device_type": "tracker", "version": version, "name": f"tracker {version}", **fields}
    return operator.post("/firmware", data=form, files={"file": (f"tracker-{version}.bin", content)})


def until(condition: Any, *, seconds: float) -> float:
    """Poll until `condition()` holds and return how long it took; fail after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - started
