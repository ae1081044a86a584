"""Passwords in URLs: found, and never shown."""

from __future__ import annotations

import pytest

from converge.errors import InvalidValue
from converge.urls import has_password, scheme_of, without_password


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
