"""Options of static discovery: a list of endpoints, or a file of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs

from converge.secret import without_password

ENDPOINTS = 1_000
"""Endpoints at most: each is asked for its agents every poll interval."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*:[^\s@]+")


def check_endpoint(text: str) -> str:
    """Return the endpoint.

    Raises:
        ValueError: It is not the URL of a transport.
    """
    if not _URL.fullmatch(text):
        raise ValueError(f"expected URLs of a transport, such as tcp://10.0.0.1:7000, not {without_password(text)!r}")
    return text


def _tuple(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _endpoints(_instance: object, _attribute: object, value: tuple[str, ...]) -> None:
    if len(value) > ENDPOINTS:
        raise ValueError(f"expected at most {ENDPOINTS:,} endpoints")
    for one in value:
        check_endpoint(one)


def _either(instance: Any, _attribute: object, value: str) -> None:
    if not value and not instance.endpoints:
        return  # a node that only waits for others to find it
    if value and instance.endpoints:
        raise ValueError("expected endpoints or a file, not both")


@attrs.frozen(kw_only=True)
class StaticOptions:
    """What an operator may set under `[options.static]`. Neither: this node asks only those that have asked it."""

    endpoints: tuple[str, ...] = attrs.field(
        default=(),
        converter=_tuple,
        validator=_endpoints,
        metadata={"help": "URLs of nodes, this one's own may be among them"},
    )
    file: str = attrs.field(
        default="", validator=_either, metadata={"help": "a file with one URL a line, read again when it changes"}
    )
