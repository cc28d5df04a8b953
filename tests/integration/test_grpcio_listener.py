"""The provider behind real gRPC: paths, statuses, size bound, TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme

from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.errors import ConfigurationError
from ota_hook.exhook.exhook_pb2 import LoadedResponse, Message, MessagePublishRequest, ValuedResponse
from ota_hook.exhook.grpcio_listener import GrpcioListener
from ota_hook.exhook.provider import METHODS, HookOptions, HookProvider
from ota_hook.metrics import HookMetrics
from ota_hook.model import DeviceState, ReportedVersion
from tests.doubles import CountingIds, FixedSnapshot, MemoryDevices, MemoryOffers, make_firmware, make_snapshot


def make_provider() -> HookProvider:
    versions = {"version": ReportedVersion("1.0", 1)}
    devices = MemoryDevices({"d1": DeviceState(identifier="d1", device_type="tracker", versions=versions)})
    return HookProvider(
        HookOptions(dialect=parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]), http_base="http://h"),
        snapshots=FixedSnapshot(make_snapshot(make_firmware("F", "2.0"))),
        devices=devices,
        offers=MemoryOffers(devices),
        command_ids=CountingIds(),
        publisher=None,
        metrics=HookMetrics(),
    )


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    listener = GrpcioListener(make_provider(), listen="127.0.0.1:0", message_bytes=64 * 1024)
    await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as opened:
        yield opened
    await listener.stop()


async def call(channel: grpc.aio.Channel, path: str, request: bytes = b"") -> bytes:
    answer: bytes = await channel.unary_unary(path, None, None)(request, timeout=5)
    return answer


CHECK = MessagePublishRequest(
    message=Message(topic="event_report/d1", payload=b'{"method":"otaCheck"}', qos=1, headers={"username": "d1"})
).SerializeToString()


@pytest.mark.parametrize("package", ["v1", "v2", "v3"])
async def test_every_package_is_served(channel: grpc.aio.Channel, package: str) -> None:
    service = f"/emqx.exhook.{package}.HookProvider"
    loaded = LoadedResponse.FromString(await call(channel, f"{service}/OnProviderLoaded"))
    assert [hook.name for hook in loaded.hooks] == ["message.publish"]
    answer = ValuedResponse.FromString(await call(channel, f"{service}/OnMessagePublish", CHECK))
    assert answer.message.topic == "command_send/d1"


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_every_method_is_served_without_having_seen_the_load(channel: grpc.aio.Channel, method: str) -> None:
    await call(channel, f"/emqx.exhook.v2.HookProvider/{method}")


@pytest.mark.parametrize(
    "path", ["/emqx.exhook.v4.HookProvider/OnMessagePublish", "/emqx.exhook.v2.HookProvider/OnCoffeeReady", "/x/y"]
)
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, path)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_bound_is_refused_and_the_connection_goes_on(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "/emqx.exhook.v2.HookProvider/OnMessagePublish", b"x" * 70_000)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await call(channel, "/emqx.exhook.v2.HookProvider/OnMessagePublish", CHECK) != b"\x08\x01"


async def test_with_mtls_only_a_client_with_a_certificate_is_served(tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("emqx@example.com")
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    server.cert_chain_pems[0].write_to_path(cert)
    server.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    listener = GrpcioListener(
        make_provider(), listen="127.0.0.1:0", message_bytes=65_536, tls_cert=cert, tls_key=key, tls_client_ca=ca
    )
    await listener.start()
    known = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(), client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    )
    async with grpc.aio.secure_channel(f"localhost:{listener.port}", known) as opened:
        assert await call(opened, "/emqx.exhook.v2.HookProvider/OnMessagePublish", CHECK)
    anonymous = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{listener.port}", anonymous) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(opened, "/emqx.exhook.v2.HookProvider/OnMessagePublish", CHECK)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    await listener.stop()


async def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    first = GrpcioListener(make_provider(), listen="127.0.0.1:0", message_bytes=65_536)
    await first.start()
    second = GrpcioListener(make_provider(), listen=f"127.0.0.1:{first.port}", message_bytes=65_536)
    with pytest.raises(ConfigurationError, match="can't be bound"):
        await second.start()
    await first.stop()
