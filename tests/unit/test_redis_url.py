"""What OTA_HOOK_REDIS_URL may say, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from ota_hook.errors import ConfigurationError
from ota_hook.state.primaries import Address, Primaries
from ota_hook.state.redis_url import Deployment, parse_redis_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"kind": Deployment.SINGLE, "nodes": (("localhost", 6379),), "db": 0, "password": None}),
        ("redis://10.0.0.5:7000/3", {"nodes": (("10.0.0.5", 7000),), "db": 3}),
        ("REDIS://:s%40cret@cache/", {"nodes": (("cache", 6379),), "password": "s@cret", "username": None}),
        ("redis://[::1]:7/1?client_name=ota", {"nodes": (("::1", 7),), "db": 1}),
        ("redis://h?db=4", {"db": 4}),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "nodes": (), "db": 2}),
        ("unix://user:pw@/run/redis.sock", {"path": "/run/redis.sock", "username": "user", "password": "pw"}),
        (
            "redis+sentinel://ann:p%2Fw@s1,s2:5000,[::2]:5001/main/2",
            {
                "kind": Deployment.SENTINEL,
                "nodes": (("s1", 26379), ("s2", 5000), ("::2", 5001)),
                "service": "main",
                "db": 2,
                "username": "ann",
                "password": "p/w",
                "tls": None,
            },
        ),
        ("redis+sentinel://s1/my%20main", {"service": "my main", "db": 0}),
        (
            "redis+cluster://:pw@n1:7000,n2",
            {"kind": Deployment.CLUSTER, "nodes": (("n1", 7000), ("n2", 6379)), "password": "pw", "db": 0},
        ),
        ("redis+cluster://n1/0", {"kind": Deployment.CLUSTER}),
    ],
)
def test_every_form_is_read(url: str, expected: dict[str, Any]) -> None:
    read = parse_redis_url(url)
    assert {name: getattr(read, name) for name in expected} == expected


def test_a_sentinels_login_is_its_own() -> None:
    read = parse_redis_url("redis+sentinel://ann:pw@s1/main?sentinel_username=bob&sentinel_password=other")
    assert (read.username, read.password) == ("ann", "pw")
    assert (read.sentinel_options["username"], read.sentinel_options["password"]) == ("bob", "other")
    without = parse_redis_url("redis+sentinel://ann:pw@s1/main").sentinel_options
    assert not {"username", "password", "db"} & without.keys()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host", "none of the known schemes"),
        ("localhost:6379", "none of the known schemes"),
        ("redis+sentinel://s1:26379", "must name the service"),
        ("redis+sentinel://s1//0", "must name the service"),
        ("redis+sentinel://s1/main/x", "is not a number"),
        ("redis+sentinel://s1/main/0/1", "is not a number"),
        ("redis+sentinel://s1,,s2/main", "one of its hosts is empty"),
        ("redis+cluster://n1:port", "'n1:port' is not HOST:PORT"),
        ("redis+cluster://n1:70000", "is not HOST:PORT"),
        ("redis+cluster://n1/1", "no database but 0"),
        ("redis+cluster://n1?db=1", "no database but 0"),
        ("redis://h1,h2/0", "names several servers"),
        ("redis://h/first", "is not a number"),
        ("redis://h/0?socket_timeout=soon", "socket_timeout"),
        ("redis://h/0?colour=red", "no such option: 'colour'"),
        ("redis+cluster://n1?sentinel_password=x", "no such option: 'sentinel_password'"),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "options can't be used"),
        ("rediss://h?ssl_cert_reqs=maybe", "options can't be used"),
        ("redis://:a#b@h/0", "write it as %23"),
        ("unix://host", "absolute path"),
    ],
)
def test_a_url_that_can_not_be_read_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_redis_url(url)
    assert reason in refused.value.detail
    assert refused.value.field == "redis_url"
    assert "redis+sentinel://" in refused.value.mend


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:s3cret@h/first",
        "redis+sentinel://ann:s3cret@s1",
        "redis+cluster://ann:s3cret@n1:x?sentinel_password=s3cret",
        "redis+sentinel://ann:s3cret@s1/main?sentinel_password=s3cret&colour=1",
    ],
)
def test_a_refusal_repeats_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_redis_url(url)
    assert "s3cret" not in str(refused.value)


def test_nothing_that_is_shown_holds_a_secret() -> None:
    primaries = Primaries("redis+sentinel://ann:s3cret@s1/main?sentinel_password=s3cret")
    shown = (primaries.url, primaries.address_at("h", 1), str(primaries.address_at("h", 1)))
    assert "s3cret" not in repr(shown)


def test_tls_comes_with_the_options_of_the_url(tmp_path: Path) -> None:
    ca = trustme.CA()
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    for url in ("rediss://h", "rediss+sentinel://s1/main", "rediss+cluster://n1"):
        context = Primaries(f"{url}?ssl_ca_certs={path}&ssl_check_hostname=no").address_at("h", 1).tls
        assert context is not None
        assert not context.check_hostname
        assert any("trustme" in str(certificate) for certificate in context.get_ca_certs())
    assert parse_redis_url(f"rediss+sentinel://s1/main?ssl_ca_certs={path}").sentinel_options["ssl_ca_certs"] == str(
        path
    )


def test_a_new_connection_logs_in_and_selects_where_it_must() -> None:
    assert Primaries("redis://h").address_at("h", 1).login == ()
    assert Primaries("redis://:pw@h/2").address_at("h", 1).login == (("AUTH", "pw"), ("SELECT", "2"))
    assert Primaries("redis+cluster://ann:pw@h").address_at("h", 1).login == (("AUTH", "ann", "pw"),)


async def test_a_single_redis_is_where_its_url_says() -> None:
    primaries = Primaries("redis://ann:pw@10.0.0.5:7000/3")
    address = Address(host="10.0.0.5", port=7000, username="ann", password="pw", db=3)
    await primaries.refresh()
    assert await primaries.locate() == await primaries.locate(16_383) == address
    assert primaries.slots() == ((0, 16_383, address),)
    assert (await Primaries("unix:///run/redis.sock").locate(None)).path == "/run/redis.sock"


def test_the_slot_of_a_key_is_that_of_its_hash_tag() -> None:
    assert Primaries.key_slot(b"123456789") == 12_739  # the example of the Cluster's specification
    assert Primaries.key_slot(b"ota:{c}:meta") == Primaries.key_slot(b"c") == Primaries.key_slot(b"x{c}{d}")
    assert Primaries.key_slot(b"a{}b") != Primaries.key_slot(b"")
