"""What is secret: one definition, for URLs and for settings."""

from __future__ import annotations

import pytest

from converge import Node
from converge.errors import ConfigError, InvalidValue
from converge.plugins import PluginHost
from converge.runtime.config.config import Config
from converge.runtime.config.node_settings import NodeSettings
from converge.secret import MASK, has_password, is_secret, masked, names_secret_file, secrets_in, without_password
from converge.settings import shown
from converge.urls import check_host, scheme_of


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:geheim@h:1/0", "redis://:***@h:1/0"),
        ("redis://user:ge%40heim@h", "redis://user:***@h"),
        ("redis://user:ge@heim@h", "redis://user:***@h"),
        ("redis://user:ge@he/im@h/0", "redis://user:***@h/0"),
        ("redis://:ge/heim@h/0", "redis://:***@h/0"),
        ("redis://user:ge?heim#@h", "redis://user:***@h"),
        ("//user:geheim@h", "//user:***@h"),
        ("postgresql://h/db?a=b&password=geheim&c=d", "postgresql://h/db?a=b&password=***&c=d"),
        ("postgresql://u:geheim@h/db?sslpassword=geheim", "postgresql://u:***@h/db?sslpassword=***"),
    ],
)
def test_a_password_is_found_and_hidden(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert has_password(url)
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "url",
    [
        "memory:",
        "file:a@b:c.db",
        "tcp://0.0.0.0:7000",
        "tcp://[::1]:70",
        "tcp://[::1]",
        "redis://user@h:1/p@x",
        "redis://user:@h",
        "ws://h:1/p@x",
    ],
)
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    assert without_password(url) == url
    assert not has_password(url)


@pytest.mark.parametrize(("url", "scheme"), [("memory:", "memory"), ("FILE:x", "file"), ("a+b-c.d://h", "a+b-c.d")])
def test_the_scheme_is_what_stands_before_the_colon(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


@pytest.mark.parametrize("url", ["", "state.db", "1a:b", None])
def test_text_without_a_scheme_is_refused(url: object) -> None:
    with pytest.raises(InvalidValue, match="expected a URL"):
        scheme_of(url)


@pytest.mark.parametrize(
    "raw", ["ge@heim", "ge/heim", "1/geheim", "ge?heim", "1?geheim", "ge#heim", "1#geheim", "ge[heim"]
)
def test_a_url_whose_password_is_not_encoded_is_refused_without_it(raw: str) -> None:
    with pytest.raises(InvalidValue, match="%2F for /") as raised:
        check_host(f"redis://user:{raw}@h:1/0")
    assert "heim" not in str(raised.value)


@pytest.mark.parametrize(
    "host", ["h:1x", "h:65536", "::1", "[::1", "h:1,h:x", "a..b", "a" * 64, "ü" * 60, "h\0", "h\n"]
)
def test_a_host_that_is_none_is_refused_before_a_driver_sees_it(host: str) -> None:
    with pytest.raises(InvalidValue):
        check_host(f"redis://{host}/0")
    with pytest.raises(ConfigError):
        PluginHost().store_backend(f"redis://{host}/0")


@pytest.mark.parametrize(
    "url",
    [
        "memory:",
        "file:a@b:c.db",
        "sqlite:////a@b/c.db",
        "unix://u:p%40@/run/a@b.sock?db=1",
        "redis://u:p@[::1]:1,h:2/s@x/0",
        "redis://h:/0",
        "postgresql://h:1/db?user=a@b",
        "postgresql://u@%2Frun%2Fdb/x",
        "redis://ü.example/0",
    ],
)
def test_what_can_be_told_apart_is_not_refused(url: str) -> None:
    check_host(url)


SECRET_NAMES = ("password", "db_passwd", "passphrase", "pwd", "token", "tokens", "client_secret", "api_key", "API-KEY")


@pytest.mark.parametrize("name", [*SECRET_NAMES, "private_key", "access_key", "CONVERGE_REDIS_PASSWORD", "credentials"])
def test_a_setting_of_such_a_name_is_secret_to_all_who_show_settings(name: str) -> None:
    settings = {"deep": [{name: "geheim"}]}
    assert is_secret(name)
    assert shown(name, "geheim") == MASK
    assert "geheim" not in shown("options", settings)
    assert masked(settings) == {"deep": [{name: MASK}]}
    assert list(secrets_in(settings)) == ["geheim"]
    assert without_password(f"x://h/?{name}=geheim&a=b") == f"x://h/?{name}=***&a=b"


@pytest.mark.parametrize(
    "name", ["password_file", "token_sec", "tls_key", "key_file", "secret_dir", "host", "pass_it_on"]
)
def test_where_a_secret_is_kept_may_be_seen(name: str) -> None:
    assert not is_secret(name)
    assert shown(name, "/run/x") == "'/run/x'"
    assert masked({name: "/run/x"}) == {name: "/run/x"}
    assert list(secrets_in({name: "/run/x"})) == []


def test_all_below_a_secret_name_is_secret() -> None:
    settings = {"secrets": {"first": "one", "more": ["two"]}, "url": "redis://u:three@h", "n": 5}
    assert masked(settings) == {"secrets": MASK, "url": "redis://u:***@h", "n": 5}
    assert sorted(secrets_in(settings)) == ["one", "three", "two"]


def test_files_that_hold_a_secret_are_known_by_their_name() -> None:
    assert [
        name
        for name in ("password_file", "key_file", "tls_key", "private_key", "token_path")
        if not names_secret_file(name)
    ] == []
    assert [name for name in ("file", "path", "identity_dir", "log_file") if names_secret_file(name)] == []


def test_what_a_node_or_a_configuration_is_made_of_shows_no_secret() -> None:
    options = {"redis": {"password": "geheim"}}
    settings = NodeSettings.of("redis://u:geheim@h", {"options": options, "discovery_store": "redis://u:geheim@i"})
    assert "geheim" not in repr(settings) and "redis://u:***@h" in repr(settings)
    config = Config(store="redis://u:geheim@h", discovery_store="redis://u:geheim@i", options=options)
    assert "geheim" not in repr(config) and config.secrets == ("geheim",) * 3
    with pytest.raises(ConfigError) as raised:
        Node(store="redis://u:geheim@h", lease_sec="x", options={"redis": {"api_key": "geheim"}})  # type: ignore[arg-type]  # meant
    assert "geheim" not in str(raised.value)
