"""Every setting, declared once: its type, unit, default and reason. docs/settings.md is held to this by a test.

Precedence: flag > environment > file > default. An unknown name is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from ota_hook.dialect import BUILT_IN_DIALECTS, Dialect, parse_dialect
from ota_hook.errors import ConfigurationError, InputError

ENV_PREFIX: Final = "OTA_HOOK_"
_EXEMPT_PREFIXES: Final = ("OTA_HOOK_TEST_", "OTA_HOOK_BUILD_")
_DIALECTS_TABLE: Final = "dialects"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Listen(NamedTuple):
    """Where a server binds. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host in _LOOPBACK or self.host.startswith("127.")


def parse_listen(value: object) -> Listen:
    if isinstance(value, Listen):
        return value
    host, _, port = str(value).strip().rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("give HOST:PORT, as in 127.0.0.1:9000 or [::1]:9000")
    return Listen(host.removeprefix("[").removesuffix("]"), int(port))


def _parse_base_url(value: object) -> str:
    text = str(value).strip().rstrip("/")
    if not text.startswith(("http://", "https://")) or any(c in text for c in "?# \t\r\n"):
        raise ValueError("give an http:// or https:// address without query or fragment")
    return text


ListenField = Annotated[Listen, BeforeValidator(parse_listen)]
BaseUrl = Annotated[str, BeforeValidator(_parse_base_url)]


def _parse_https_base_url(value: object) -> str:
    text = _parse_base_url(value)
    if not text.startswith("https://"):
        raise ValueError("give an https:// address")
    return text


class Settings(BaseModel):
    """The settings of all roles. Each field is `OTA_HOOK_` + its name in capitals, and its name in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hook_listen: ListenField = Field(
        default=Listen("127.0.0.1", 9000), description="Where the broker reaches the ExHook gRPC server."
    )
    hook_insecure: bool = Field(
        default=False,
        description="Allow `hook_listen` beyond loopback without mTLS; whoever reaches it can be every device.",
    )
    hook_tls_cert: Path | None = Field(default=None, description="Certificate chain (PEM) of the hook's port.")
    hook_tls_key: Path | None = Field(default=None, description="Its private key (PEM).")
    hook_tls_client_ca: Path | None = Field(
        default=None, description="Certificates (PEM) that the broker's client certificate must chain to: mTLS."
    )
    hook_workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Hook processes on that one port; about one per core that the hook may use.",
    )
    hook_metrics_listen: ListenField | None = Field(
        default=None, description="Where worker 0 serves its metrics over HTTP; worker 1 on the next port, and so on."
    )
    hook_transport: Literal["native", "grpcio"] = Field(
        default="native",
        description="What serves the hook's port: `native` (compiled, fast) or the reference `grpcio`.",
    )
    hook_message_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="The largest call that is read, in bytes."
    )
    hook_payload_bytes: int = Field(
        default=256 * 1024,
        ge=1024,
        le=16 * 1024 * 1024,
        description="The largest device payload that is read, in bytes.",
    )
    answer_budget_ms: int = Field(
        default=50, ge=1, le=60_000, description="After so long a call is answered with IGNORE; the device asks again."
    )
    admin_listen: ListenField = Field(
        default=Listen("127.0.0.1", 8080), description="Where the admin API and downloads are served over HTTP."
    )
    admin_tls_listen: ListenField | None = Field(
        default=None, description="Where they are served over HTTPS as well; needs the two settings below."
    )
    admin_tls_cert: Path | None = Field(default=None, description="Certificate chain (PEM) of the HTTPS port.")
    admin_tls_key: Path | None = Field(default=None, description="Its private key (PEM).")
    admin_token: SecretStr | None = Field(
        default=None,
        description="The bearer token. Unset: made once, printed once, kept in the data directory with mode 600.",
    )
    max_package_bytes: int = Field(
        default=1024**3, ge=1, le=64 * 1024**3, description="The largest firmware package that is accepted, in bytes."
    )
    data_dir: Path = Field(
        default=Path("ota-hook-data"), description="Packages, the admin token and the embedded Redis."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="One Redis, Sentinels or a Cluster; see below. Unset: an embedded Redis in the data directory.",
    )
    redis_prefix: str = Field(
        default="ota", pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Begins every key; separates deployments."
    )
    redis_wait_replicas: int = Field(
        default=0, ge=0, le=16, description="Admin writes wait until so many replicas have them (WAIT)."
    )
    public_url: BaseUrl | None = Field(
        default=None, description="What devices download from. Unset: `http://` and the admin listen address."
    )
    public_url_https: Annotated[str, BeforeValidator(_parse_https_base_url)] | None = Field(
        default=None, description="The same over HTTPS, for firmware with `use_https`."
    )
    topics: str = Field(
        default="eztcloud", description="The topic dialect: `eztcloud`, `typed`, or one of the file's `[dialects]`."
    )
    identity: Literal["username", "clientid"] = Field(
        default="username", description="Which field of an MQTT connection identifies the device."
    )
    reply: Literal["rewrite", "publish"] = Field(
        default="rewrite",
        description="`rewrite` answers a check in place; `publish` leaves the event to its other subscribers and sends"
        " the command through `publisher`.",
    )
    presence: bool = Field(
        default=True,
        description="Ask the broker who connects and disconnects: pushes then wait for devices that are away, and"
        " `online` is known (docs/fleet.md). Costs each connect and disconnect a call.",
    )
    report_interval_ms: int = Field(
        default=0,
        ge=0,
        le=3_600_000,
        description="A device that reports again sooner than so many ms after its last report is refused, and told so"
        " where its type has responses; 0 refuses nobody.",
    )
    chunk_cache_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=64 * 1024,
        description="Of packages, each hook process keeps so many bytes in memory for devices that take firmware over"
        " MQTT (`otaChunk`).",
    )
    children_max: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="So many children may a gateway have; one more is not registered by its word.",
    )
    attempts_max: int = Field(
        default=10,
        ge=1,
        le=1_000,
        description="So often, once an hour at most, a device may try a firmware in vain: fail, or come back with its"
        " old version. Then it is not offered it any more, until its attempts are reset.",
    )
    mqtt_url: SecretStr | None = Field(
        default=None, description="`mqtt://` or `mqtts://` of the broker, for commands that are published."
    )
    mqtt_connections: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Connections to it of each hook process, and of each worker. One carries some ten thousand commands"
        " a second; with more, commands go on where one is lost, and reach several nodes of a cluster.",
    )
    publisher: Literal["mqtt", "emqx_api"] = Field(
        default="mqtt",
        description="How commands are published: `mqtt` through `mqtt_url`, or `emqx_api` through EMQX's REST API.",
    )
    emqx_api_url: BaseUrl | None = Field(
        default=None, description="The address of EMQX's REST API, before `/api/v5`, as in `http://10.0.0.7:18083`."
    )
    emqx_api_key: str | None = Field(default=None, description="An API key of EMQX that may publish.")
    emqx_api_secret: SecretStr | None = Field(default=None, description="Its secret.")
    check_timeout_seconds: int = Field(
        default=86_400,
        ge=60,
        le=365 * 86_400,
        description="So long after its last check a device may take to report the version that it was offered, in"
        " seconds; then that offer has timed out. Runs have a timeout of their own.",
    )
    worker_metrics_listen: ListenField | None = Field(
        default=None, description="Where a worker serves its metrics over HTTP."
    )
    stop_percent: int = Field(
        default=50,
        ge=1,
        le=100,
        description="A firmware is disabled when so many per cent of the devices that finished failed or timed out.",
    )
    stop_after: int = Field(
        default=20, ge=1, le=1_000_000, description="Not before so many devices finished, counted since its last stop."
    )
    webhook_url: BaseUrl | None = Field(
        default=None, description="Where is told (POST) that a run ended or that a firmware or run stopped itself."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Signs it: `OTA-Hook-Signature` (docs/pushes.md)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto` writes for people on a terminal and JSON lines elsewhere."
    )
    dialects: Mapping[str, Mapping[str, str]] = Field(
        default_factory=dict, description="Topic dialects of your own; in the file alone (docs/dialects.md)."
    )

    @property
    def dialect(self) -> Dialect:
        """The dialect that `topics` names, parsed."""
        return parse_dialect(self.topics, {**BUILT_IN_DIALECTS, **self.dialects}[self.topics])

    @property
    def can_publish(self) -> bool:
        """Whether a broker is configured that commands can be published to."""
        return self.publisher == "emqx_api" or self.mqtt_url is not None

    @property
    def effective_public_url(self) -> str:
        return self.public_url or f"http://{self.admin_listen}"

    @model_validator(mode="after")
    def _check_topics(self) -> Self:
        known = [*BUILT_IN_DIALECTS, *self.dialects]
        if self.topics not in known:
            theirs = "" if self.dialects else "; one of your own stands in the file that --config names"
            raise ValueError(f"OTA_HOOK_TOPICS: {self.topics!r} is none of the dialects {', '.join(known)}{theirs}")
        for name, templates in self.dialects.items():
            try:
                parse_dialect(name, templates)
            except InputError as exc:
                raise ValueError(f"dialects.{name}: {exc}") from exc
        return self

    @model_validator(mode="after")
    def _check_webhook(self) -> Self:
        if (self.webhook_url is None) != (self.webhook_secret is None):
            raise ValueError("OTA_HOOK_WEBHOOK_URL and OTA_HOOK_WEBHOOK_SECRET go together")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.admin_tls_listen is not None and (self.admin_tls_cert is None or self.admin_tls_key is None):
            raise ValueError("OTA_HOOK_ADMIN_TLS_LISTEN needs OTA_HOOK_ADMIN_TLS_CERT and OTA_HOOK_ADMIN_TLS_KEY")
        hook_tls = (self.hook_tls_cert, self.hook_tls_key)
        if any(hook_tls) and not all(hook_tls):
            raise ValueError("OTA_HOOK_HOOK_TLS_CERT and OTA_HOOK_HOOK_TLS_KEY go together")
        if self.hook_tls_client_ca is not None and not all(hook_tls):
            raise ValueError("OTA_HOOK_HOOK_TLS_CLIENT_CA needs OTA_HOOK_HOOK_TLS_CERT and OTA_HOOK_HOOK_TLS_KEY")
        if not self.hook_listen.is_loopback and self.hook_tls_client_ca is None and not self.hook_insecure:
            raise ValueError(
                f"OTA_HOOK_HOOK_LISTEN: {self.hook_listen} is open to others, and whoever reaches it can pretend to be"
                " every device: set OTA_HOOK_HOOK_TLS_CERT, _KEY and _CLIENT_CA (mTLS), or OTA_HOOK_HOOK_INSECURE=true"
                " where the network itself keeps others out"
            )
        if self.hook_workers > 1 and self.hook_transport == "grpcio":
            raise ValueError(
                "OTA_HOOK_HOOK_WORKERS: the grpcio transport is the reference for tests and has one worker"
            )
        return self

    @model_validator(mode="after")
    def _check_publisher(self) -> Self:
        api = (self.emqx_api_url, self.emqx_api_key, self.emqx_api_secret)
        if self.publisher == "emqx_api" and None in api:
            raise ValueError(
                "OTA_HOOK_PUBLISHER=emqx_api needs OTA_HOOK_EMQX_API_URL, OTA_HOOK_EMQX_API_KEY and"
                " OTA_HOOK_EMQX_API_SECRET"
            )
        if self.reply == "publish" and self.publisher == "mqtt" and self.mqtt_url is None:
            raise ValueError("OTA_HOOK_REPLY=publish needs OTA_HOOK_MQTT_URL")
        return self


def load_settings(
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: Path | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """The settings in force. `flags` holds what the command line gave (None: not given).

    `defaults` are a command's own, in place of those that are declared. Raises ConfigurationError with every fault on
    one line each.
    """
    known = set(Settings.model_fields)
    values: dict[str, Any] = {**defaults}
    if config is not None:
        values |= _read_file(config, known)
    values |= _read_environment(environ, known)
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        faults = [_describe_fault(error["loc"], error["msg"]) for error in exc.errors(include_input=False)]
        text = "; ".join(faults)
        raise ConfigurationError(text if text.endswith((".", "?")) else text + ".") from exc


def _describe_fault(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    return f"{ENV_PREFIX}{str(location[0]).upper()}: {text}" if location else text


def _read_file(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"The file {path} can't be read: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"The file {path} is not TOML: {exc}.") from exc
    for name in values:
        if name not in known:
            raise ConfigurationError(f"The file {path} sets {name!r}, which is no setting{_nearest(name, known)}")
    return values


def _read_environment(environ: Mapping[str, str], known: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    by_variable = {ENV_PREFIX + name.upper(): name for name in known - {_DIALECTS_TABLE}}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable.startswith(_EXEMPT_PREFIXES):
            continue
        name = by_variable.get(variable)
        if name is None:
            raise ConfigurationError(f"{variable} is no setting{_nearest(variable, by_variable)}")
        if text:  # an empty variable is how compose files and unit files say "unset"
            values[name] = text
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else "."
