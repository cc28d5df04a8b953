"""Precedence, refusals and the guards around open ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from ota_hook.errors import ConfigurationError
from ota_hook.settings import Settings, load_settings


def load(
    *, flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> Settings:
    return load_settings(flags=flags or {}, environ=environ or {}, config=config)


def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = load()
    assert str(settings.hook_listen) == "127.0.0.1:9000"
    assert str(settings.admin_listen) == "127.0.0.1:8080"
    assert settings.data_dir == Path("ota-hook-data")
    assert settings.redis_url is None
    assert settings.effective_public_url == "http://127.0.0.1:8080"
    assert settings.public_url_https is None
    assert (settings.topics, settings.identity, settings.reply) == ("eztcloud", "username", "rewrite")
    assert settings.admin_token is None
    assert settings.mqtt_url is None


def test_a_commands_own_default_is_in_place_of_the_declared_one_and_of_nothing_that_was_said() -> None:
    own = {"mqtt_url": "mqtt://127.0.0.1:1883"}
    for environ, url in (({}, own["mqtt_url"]), ({"OTA_HOOK_MQTT_URL": "mqtt://broker"}, "mqtt://broker")):
        settings = load_settings(flags={}, environ={"OTA_HOOK_REPLY": "publish", **environ}, defaults=own)
        assert settings.mqtt_url is not None
        assert settings.mqtt_url.get_secret_value() == url


def test_a_flag_outranks_the_environment_which_outranks_the_file(tmp_path: Path) -> None:
    config = tmp_path / "ota-hook.toml"
    config.write_text('hook_listen = "127.0.0.1:1"\nadmin_listen = "127.0.0.1:2"\nidentity = "clientid"\n')
    settings = load(
        flags={"hook_listen": "127.0.0.1:5", "admin_listen": None},
        environ={"OTA_HOOK_HOOK_LISTEN": "127.0.0.1:3", "OTA_HOOK_ADMIN_LISTEN": "127.0.0.1:4"},
        config=config,
    )
    assert (settings.hook_listen.port, settings.admin_listen.port, settings.identity) == (5, 4, "clientid")


@pytest.mark.parametrize("variable", ["OTA_HOOK_REDIS_ULR", "OTA_HOOK_HOOK_LISTENS"])
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean OTA_HOOK_(REDIS_URL|HOOK_LISTEN)\?"):
        load(environ={variable: "x"})


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    config = tmp_path / "ota-hook.toml"
    config.write_text('redis_ulr = "redis://x"\n')
    with pytest.raises(ConfigurationError, match=r"did you mean redis_url\?"):
        load(config=config)


def test_variables_of_tests_and_builds_are_exempt() -> None:
    load(environ={"OTA_HOOK_TEST_EMQX": "mqtt://h", "OTA_HOOK_BUILD_DEBUG": "1", "OTHER": "x"})


@pytest.mark.parametrize("connections", ["0", "17", "many"])
def test_connections_to_the_broker_are_one_to_sixteen(connections: str) -> None:
    assert load().mqtt_connections == 1
    assert load(environ={"OTA_HOOK_MQTT_CONNECTIONS": "16"}).mqtt_connections == 16
    with pytest.raises(ConfigurationError, match="OTA_HOOK_MQTT_CONNECTIONS"):
        load(environ={"OTA_HOOK_MQTT_CONNECTIONS": connections})


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load(environ={"OTA_HOOK_REDIS_URL": ""}).redis_url is None


def test_the_hook_is_not_opened_beyond_loopback_without_mtls_or_a_word() -> None:
    with pytest.raises(ConfigurationError, match="OTA_HOOK_HOOK_INSECURE=true"):
        load(environ={"OTA_HOOK_HOOK_LISTEN": "0.0.0.0:9000"})
    assert load(environ={"OTA_HOOK_HOOK_LISTEN": "0.0.0.0:9000", "OTA_HOOK_HOOK_INSECURE": "true"}).hook_insecure
    tls = {"OTA_HOOK_HOOK_TLS_CERT": "c", "OTA_HOOK_HOOK_TLS_KEY": "k", "OTA_HOOK_HOOK_TLS_CLIENT_CA": "a"}
    assert load(environ={"OTA_HOOK_HOOK_LISTEN": "[::]:9000", **tls}).hook_listen.host == "::"


API = {
    "OTA_HOOK_PUBLISHER": "emqx_api",
    "OTA_HOOK_EMQX_API_URL": "http://10.0.0.7:18083",
    "OTA_HOOK_EMQX_API_KEY": "key",
    "OTA_HOOK_EMQX_API_SECRET": "do not show",
}


def test_commands_can_be_published_through_the_api_alone() -> None:
    settings = load(environ=API | {"OTA_HOOK_REPLY": "publish"})
    assert settings.publisher == "emqx_api"
    assert API["OTA_HOOK_EMQX_API_SECRET"] not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"OTA_HOOK_HOOK_LISTEN": "9000"}, "OTA_HOOK_HOOK_LISTEN: give HOST:PORT"),
        ({"OTA_HOOK_HOOK_LISTEN": "127.0.0.1:70000"}, "give HOST:PORT"),
        ({"OTA_HOOK_PUBLIC_URL": "ftp://x"}, "http:// or https://"),
        ({"OTA_HOOK_PUBLIC_URL_HTTPS": "http://x"}, "OTA_HOOK_PUBLIC_URL_HTTPS: give an https:// address"),
        ({"OTA_HOOK_TOPICS": "eztclod"}, "eztcloud, typed; one of your own stands in the file that --config names"),
        ({"OTA_HOOK_IDENTITY": "ip"}, "OTA_HOOK_IDENTITY"),
        ({"OTA_HOOK_ADMIN_TLS_LISTEN": "127.0.0.1:8443"}, "OTA_HOOK_ADMIN_TLS_CERT"),
        ({"OTA_HOOK_REPLY": "publish"}, "OTA_HOOK_MQTT_URL"),
        ({"OTA_HOOK_PUBLISHER": "http"}, "OTA_HOOK_PUBLISHER"),
        ({"OTA_HOOK_PUBLISHER": "emqx_api", "OTA_HOOK_MQTT_URL": "mqtt://h"}, "OTA_HOOK_EMQX_API_URL"),
        (API | {"OTA_HOOK_EMQX_API_SECRET": ""}, "OTA_HOOK_EMQX_API_SECRET"),
        (API | {"OTA_HOOK_EMQX_API_URL": "mqtt://h"}, "OTA_HOOK_EMQX_API_URL: give an http"),
        ({"OTA_HOOK_ANSWER_BUDGET_MS": "0"}, "OTA_HOOK_ANSWER_BUDGET_MS"),
    ],
)
def test_a_bad_value_names_its_setting(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load(environ=environ)


def test_a_third_dialect_comes_from_the_file(tmp_path: Path) -> None:
    config = tmp_path / "ota-hook.toml"
    config.write_text(
        'topics = "ours"\n[dialects.ours]\nattributes = "v1/{u}/props"\nevent_report = "v1/{u}/events"\n'
        'command_send = "v1/{u}/commands"\n'
    )
    assert load(config=config).dialect.topic_filters == ("v1/+/props", "v1/+/events")


def test_secrets_do_not_show_in_a_printed_settings_object() -> None:
    settings = load(environ={"OTA_HOOK_ADMIN_TOKEN": "hunter2-hunter2-hunter2", "OTA_HOOK_REDIS_URL": "redis://:pw@h"})
    assert "hunter2" not in repr(settings)
    assert ":pw@" not in repr(settings)
