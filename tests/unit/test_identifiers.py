"""Who a device is: direct devices and children behind gateways."""

from __future__ import annotations

import pytest

from ota_hook.identifiers import child_identifier, gateway_of, is_address, is_direct_identifier, is_identifier, path_of


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        (("ADDR1",), "GW/ADDR1"),
        (("ADDR1", "ADDR1_1"), "GW/ADDR1/ADDR1_1"),
        (("a/b", "50%"), "GW/a%2Fb/50%25"),
        (("a%2Fb",), "GW/a%252Fb"),
        (("地址 1",), "GW/地址 1"),
        (("+#",), "GW/+#"),
    ],
)
def test_a_child_is_named_by_its_way_from_the_gateway(path: tuple[str, ...], identifier: str) -> None:
    assert child_identifier("GW", path) == identifier
    assert is_identifier(identifier)
    assert not is_direct_identifier(identifier)
    assert (gateway_of(identifier), path_of(identifier)) == ("GW", path)


def test_a_direct_device_has_no_gateway_but_itself() -> None:
    assert (gateway_of("DU_1"), path_of("DU_1")) == ("DU_1", ())
    assert is_identifier("DU_1")


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("",),
        ("a", ""),
        ("a\n",),
        ("\x00",),
        ("\x85",),
        (" a",),
        ("a ",),
        ("x" * 129,),
        ("号" * 43,),
        ("\ud800",),
        ("a",) * 9,
        ("x" * 128,) * 4,
    ],
)
def test_what_no_child_can_be_has_no_identifier(path: tuple[str, ...]) -> None:
    assert child_identifier("GW", path) is None


@pytest.mark.parametrize(
    "text",
    [
        *("GW/", "/a", "GW//a", "GW/a/", "GW/a%2fb", "GW/%41", "GW/%", "GW/a\nb", "G+W/a", "GW/" + "a/" * 8 + "a"),
        *("GW/" + "x" * 129, "GW/ a", "GW/a ", "GW/" + "/".join(["x" * 128] * 4)),
    ],
)
def test_what_is_not_spelled_as_we_do_identifies_nobody(text: str) -> None:
    assert not is_identifier(text)


def test_an_address_may_be_as_long_as_a_direct_identifier() -> None:
    assert is_address("x" * 128)
    assert is_address("号" * 42)
