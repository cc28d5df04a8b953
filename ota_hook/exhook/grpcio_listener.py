"""The provider on grpcio.aio: raw bytes in, raw bytes out. It must not know what a call means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from ota_hook.errors import ConfigurationError
from ota_hook.exhook.provider import METHODS, PACKAGES, SERVICE, HookProvider

_DRAIN_SECONDS = 5.0
_OPTIONS = (
    # The broker ignores a low bound and its further calls are never sent: advertise the highest.
    ("grpc.max_concurrent_streams", 2**31 - 1),
    ("grpc.so_reuseport", 0),
    # It pings every 60 s and must never be told to calm down: that would end connections with calls open.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

_Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class GrpcioListener:
    """Serves one provider on one port until `stop`."""

    def __init__(
        self,
        provider: HookProvider,
        *,
        listen: str,
        message_bytes: int,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        tls_client_ca: Path | None = None,
    ) -> None:
        self._listen = listen
        options = [*_OPTIONS, ("grpc.max_receive_message_length", message_bytes)]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers(tuple(_service(package, provider) for package in PACKAGES))
        self._credentials = _credentials(tls_cert, tls_key, tls_client_ca)
        self.port = 0

    async def start(self) -> None:
        """Bind and serve. ConfigurationError where the address can't be bound."""
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self._listen)
            else:
                self.port = self._server.add_secure_port(self._listen, self._credentials)
        except RuntimeError as exc:
            raise ConfigurationError(
                f"OTA_HOOK_HOOK_LISTEN: {self._listen} can't be bound.",
                mend="Is another ota-hook running? Choose another port with --hook-listen.",
            ) from exc
        await self._server.start()

    async def stop(self) -> None:
        """Take no new calls and let those under way finish (5 s at most)."""
        await self._server.stop(grace=_DRAIN_SECONDS)


def _service(package: str, provider: HookProvider) -> grpc.GenericRpcHandler[bytes, bytes]:
    def handler(method: str) -> _Handler:
        async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await provider.handle(method, request)

        return answer

    handlers = {method: grpc.unary_unary_rpc_method_handler(handler(method)) for method in METHODS}
    return grpc.method_handlers_generic_handler(f"{package}.{SERVICE}", handlers)


def _credentials(cert: Path | None, key: Path | None, client_ca: Path | None) -> grpc.ServerCredentials | None:
    if cert is None or key is None:
        return None
    try:
        pair = (key.read_bytes(), cert.read_bytes())
        authorities = client_ca.read_bytes() if client_ca is not None else None
    except OSError as exc:
        raise ConfigurationError(f"The hook's TLS file {exc.filename} can't be read: {exc.strerror}.") from exc
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=authorities is not None
    )
