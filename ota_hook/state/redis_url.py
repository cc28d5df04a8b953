"""What `OTA_HOOK_REDIS_URL` may say: one Redis, Sentinels, or a Cluster.

Pure: no I/O. The spellings for Sentinel and Cluster are those that most Python programs share; redis-py knows none.
What stands behind a `?` goes to redis-py's connections (`ssl_ca_certs`, `client_name`, …).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NoReturn
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from ota_hook.errors import ConfigurationError

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_MEND: Final = (
    "Write redis://HOST:PORT/0, rediss://…, unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
    " or redis+cluster://HOST:PORT,HOST:PORT."
)
_SENTINEL_LOGIN: Final = {"sentinel_username": "username", "sentinel_password": "password"}
# They are the pool's, not a connection's.
_POOL_OPTIONS: Final = frozenset({"max_connections", "timeout"})


class Deployment(StrEnum):
    """How this Redis is deployed, spelled as in the URL's scheme."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_KINDS: Final = {
    "redis": Deployment.SINGLE,
    "rediss": Deployment.SINGLE,
    "unix": Deployment.SINGLE,
    "redis+sentinel": Deployment.SENTINEL,
    "rediss+sentinel": Deployment.SENTINEL,
    "redis+cluster": Deployment.CLUSTER,
    "rediss+cluster": Deployment.CLUSTER,
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, read. Its secrets are in no representation."""

    kind: Deployment
    nodes: tuple[tuple[str, int], ...] = ()
    """Host and port of the Redis, of the Sentinels, or of some nodes of the Cluster. None for a unix socket."""
    path: str | None = None
    """The unix socket."""
    service: str = ""
    """The name under which the Sentinels watch the primary."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What redis-py's connections to a Redis are made with, but host, port and path."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What its connections to a Sentinel are made with, likewise."""

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several primaries, by their slots."""
        return self.kind is Deployment.CLUSTER


def parse_redis_url(url: str) -> RedisUrl:
    """Read the URL. ConfigurationError says what is wrong with it, and repeats no secret."""
    scheme, found, rest = url.strip().partition("://")
    kind = _KINDS.get(scheme.lower())
    if not found or kind is None:
        _refuse("it begins with none of the known schemes")
    tail = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    login, at, hosts = rest[:tail].rpartition("@")
    path, _, query = rest[tail:].partition("?")
    if "#" in path or "#" in query:
        _refuse("it has a `#`; inside a password write it as %23")
    if scheme.lower() == "unix":
        if hosts or not path:
            _refuse("behind unix:// it needs the absolute path of a socket")
        return _assemble(kind, f"unix://{login}{at}{path}", query, path=unquote(path))
    nodes = _read_nodes(hosts, SENTINEL_PORT if kind is Deployment.SENTINEL else REDIS_PORT)
    if kind is Deployment.SINGLE and len(nodes) > 1:
        _refuse("it names several servers; Sentinels need redis+sentinel://, a Cluster redis+cluster://")
    service, db = _read_path(kind, path)
    transport = "rediss" if scheme.lower().startswith("rediss") else "redis"
    return _assemble(kind, f"{transport}://{login}{at}host/{db}", query, nodes=nodes, service=service)


def _read_nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for node in hosts.split(","):
        try:
            parts = urlsplit(f"//{node}")
            host, port = parts.hostname, parts.port
        except ValueError:
            _refuse(f"{node!r} is not HOST:PORT")
        if hosts and not host:
            _refuse("one of its hosts is empty")
        nodes.append((unquote(host or "localhost"), default_port if port is None else port))
    return tuple(nodes)


def _read_path(kind: Deployment, path: str) -> tuple[str, int]:
    """The service that Sentinels watch, and the database."""
    segments = [unquote(segment) for segment in path.removeprefix("/").split("/")] if path not in {"", "/"} else []
    service = ""
    if kind is Deployment.SENTINEL:
        if not segments or not segments[0]:
            _refuse("behind the Sentinels it must name the service that they watch, as in …:26379/mymaster")
        service = segments.pop(0)
    database = segments.pop(0) if segments else "0"
    if segments or not (database or "0").isascii() or not (database or "0").isdigit():
        _refuse("the database at its end is not a number")
    if kind is Deployment.CLUSTER and int(database or "0") != 0:
        _refuse("a Cluster has no database but 0")
    return service, int(database or "0")


def _assemble(
    kind: Deployment,
    for_redis_py: str,
    query: str,
    *,
    nodes: tuple[tuple[str, int], ...] = (),
    path: str | None = None,
    service: str = "",
) -> RedisUrl:
    try:
        options: dict[str, Any] = dict(parse_url(f"{for_redis_py}?{query}"))
    except ValueError as exc:
        _refuse(str(exc).rstrip("."))
    for place in ("host", "port", "path"):
        options.pop(place, None)
    if kind is Deployment.CLUSTER and options.get("db"):
        _refuse("a Cluster has no database but 0")
    connection_class = options.setdefault("connection_class", Connection)
    sentinel_options = {
        name: value for name, value in options.items() if name.startswith("ssl_") or name == "connection_class"
    }
    for name, plain in _SENTINEL_LOGIN.items():
        if name in options and kind is Deployment.SENTINEL:
            sentinel_options[plain] = options.pop(name)
    return RedisUrl(
        kind=kind,
        nodes=nodes,
        path=path,
        service=service,
        username=options.get("username"),
        password=options.get("password"),
        db=options.get("db", 0),
        tls=_try_options(connection_class, options),
        options=options,
        sentinel_options=sentinel_options if kind is Deployment.SENTINEL else {},
    )


def _try_options(
    connection_class: type[Connection | SSLConnection | UnixDomainSocketConnection], options: Mapping[str, Any]
) -> ssl.SSLContext | None:
    """Make a connection, without connecting: what it can't be made with is refused here, not at the first command."""
    left_out = _POOL_OPTIONS | {"connection_class"}
    try:
        connection = connection_class(**{name: value for name, value in options.items() if name not in left_out})
        return connection.ssl_context.get() if isinstance(connection, SSLConnection) else None
    except TypeError as exc:
        _refuse(f"redis-py takes no such option: {str(exc).rpartition(' ')[2]}")
    except (OSError, ValueError, RedisError) as exc:  # a certificate that is not there, a word that is none
        _refuse(f"its options can't be used: {exc}")


def _refuse(reason: str) -> NoReturn:
    raise ConfigurationError(f"The Redis URL can't be read: {reason}.", mend=_MEND, field="redis_url") from None
