"""Hosts: which count as one in the bounds for strangers, and which nobody can dial."""

from __future__ import annotations

import socket

import pytest

from converge.env import SYSTEM
from converge.net.failures import connect_failed, reason_of
from converge.net.hosts import check_name, is_anywhere, is_for_many, source_of
from converge.net.sockets import resolve, show
from converge.runtime.network.handshakes import UNFINISHED_PER_ADDRESS, Handshakes


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("10.0.0.1:7000", "10.0.0.1"),
        ("[::ffff:10.0.0.1]:7000", "10.0.0.1"),
        ("[2001:db8:1:2:3:4:5:6]:7000", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::]:1", "2001:db8:1:2::/64"),
        ("[2001:db8:1:3::1]:1", "2001:db8:1:3::/64"),
        ("[::1]:7000", "::1"),
        ("[fe80::1%eth0]:7000", "fe80::1"),
        ("pod-3.pods:7000", "pod-3.pods"),
        ("", ""),
    ],
)
def test_a_network_of_ipv6_counts_as_one_host(peer: str, source: str) -> None:
    assert source_of(peer) == source


async def test_a_host_with_a_network_of_ipv6_has_the_places_of_one() -> None:
    handshakes = Handshakes(SYSTEM)
    places = [handshakes.enter(source_of(f"[2001:db8::{number:x}]:1")) for number in range(1, 65)]
    assert sum(place is not None for place in places) == UNFINISHED_PER_ADDRESS
    assert handshakes.enter(source_of("[2001:db8:1::1]:1")) is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "0.0", "00.00.00.00", "[::]", "[::0]", "[::ffff:0.0.0.0]"])
def test_every_way_to_write_all_addresses_is_recognised(host: str) -> None:
    assert is_anywhere(host) and not is_for_many(host)


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "[ff02::1]"])
def test_groups_of_machines_are_recognised(host: str) -> None:
    assert is_for_many(host) and not is_anywhere(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "[::1]", "host", "", "a b", "h\u00f6st"])
def test_what_can_be_dialled_is_neither(host: str) -> None:
    assert not is_anywhere(host) and not is_for_many(host)


def test_a_name_that_does_not_resolve_is_told_without_python_s_number() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert reason_of(error) == "Name or service not known"


@pytest.mark.parametrize("host", ["a..b", ".a", ".", "x" * 64, "a." + "x" * 64 + ".b"])
def test_a_name_with_a_label_that_is_empty_or_too_long_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="no host has such a name"):
        check_name(host)


@pytest.mark.parametrize("host", ["a", "a.b.", "x" * 63, "m\u00f6we.example", "my_host-1.pods", "::1", "fe80::1%eth0"])
def test_other_names_and_addresses_are_none_of_these(host: str) -> None:
    check_name(host)


async def test_the_zone_of_an_address_is_its_interface() -> None:
    index, name = socket.if_nameindex()[0]
    for zone in (name, str(index)):
        assert await resolve(f"fe80::1%{zone}", 7000) == [(socket.AF_INET6, ("fe80::1", 7000, 0, index))]
    assert show(("fe80::1", 7000, 0, index)) == f"[fe80::1%{name}]:7000"
    with pytest.raises(OSError, match="no interface"):
        await resolve("fe80::1%nowhere", 7000)


def test_a_connection_that_was_reset_is_told_as_the_system_does() -> None:
    assert "Connection reset by peer" in str(connect_failed("wss://h:1/", ConnectionResetError()))
