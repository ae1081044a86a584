"""URLs: what each says, and what is refused without showing a password."""

from __future__ import annotations

import pytest

from converge.errors import ConfigError
from converge_store_redis.place import Address, Kind, Place, place_of


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", Place(kind=Kind.SINGLE, addresses=(Address("h", 6379),))),
        (
            "rediss://u:p%40ss@[::1]:7/3",
            Place(
                kind=Kind.SINGLE,
                addresses=(Address("::1", 7),),
                database=3,
                username="u",
                password="p@ss",
                is_tls=True,
            ),
        ),
        ("unix:///run/r.sock?db=2", Place(kind=Kind.UNIX, addresses=(Address("/run/r.sock", 0),), database=2)),
        (
            "unix://u:p@/run/r.sock",
            Place(kind=Kind.UNIX, addresses=(Address("/run/r.sock", 0),), username="u", password="p"),
        ),
        (
            "redis+sentinel://:p@a:1,b/main/4",
            Place(
                kind=Kind.SENTINEL,
                addresses=(Address("a", 1), Address("b", 26379)),
                service="main",
                database=4,
                password="p",
            ),
        ),
        (
            "rediss+cluster://a:1,[fe::1]:2",
            Place(kind=Kind.CLUSTER, addresses=(Address("a", 1), Address("fe::1", 2)), is_tls=True),
        ),
    ],
)
def test_a_url_says_how_the_server_is_found(url: str, place: Place) -> None:
    assert place_of(url) == place
    assert "p@ss" not in repr(place_of(url))


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h:26379", "redis+sentinel://h:26379/main/x", "redis+cluster://h:6379/1", "redis+proxy://h",
        "unix://host/run/redis.sock", "unix:redis.sock", "unix:///run/redis.sock?ssl=no",
        "redis://h:6379/0?ssl_cert_reqs=none", "redis://h/0#x", "redis://a:1,b:2/0", "redis:///0", "redis://h:70000/0",
        "redis://h:x/0", "redis://[h/0", "redis://a..b/0", "redis://1/canary@h/0", "redis://h/zero", "redis://h/0/1",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    for one in (url, url.replace("//", "//user:canary@")):
        with pytest.raises(ConfigError, match=r"write (redis|unix)") as refused:
            place_of(one)
        assert "canary" not in str(refused.value) and "\n" not in str(refused.value)
