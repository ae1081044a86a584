"""Options classes of plugins: strict types, all problems at once, in words."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import validators

from converge.errors import ConfigError, UnknownSetting
from converge.settings import structured


class Mode(Enum):
    """Some choice."""

    FAST = "fast"
    SAFE = "safe"


@attrs.frozen(kw_only=True)
class Inner:
    """A table in a table."""

    size: int = attrs.field(default=1, validator=[validators.instance_of(int), validators.ge(1)])


@attrs.frozen(kw_only=True)
class Options:
    """One of each."""

    url: str
    timeout_sec: float = attrs.field(
        default=1.0, converter=float, validator=validators.le(60.0), metadata={"help": "longest call", "unit": "s"}
    )
    file: Path | None = None
    password: str | None = attrs.field(default=None, validator=validators.optional(validators.max_len(3)))
    mode: Mode = Mode.SAFE
    level: Literal["low", "high"] = "low"
    names: tuple[str, ...] = ()
    inner: Inner = attrs.field(factory=Inner)
    inners: list[Inner] = attrs.field(factory=list)
    table: dict[str, int] = attrs.field(factory=dict)
    least: int = 0
    greatest: int = attrs.field(default=9)

    @greatest.validator
    def _check(self, _attribute: object, value: int) -> None:
        if value < self.least:
            raise ValueError("greatest is below least")


def lines(data: Any) -> list[str]:
    """The problems of the data, without where it comes from."""
    with pytest.raises(ConfigError) as raised:
        structured(Options, data, "here")
    assert all(line.startswith("here: ") for line in raised.value.problems)
    return [line.removeprefix("here: ") for line in raised.value.problems]


def test_good_data_becomes_an_instance() -> None:
    data = {
        "url": "x",
        "timeout_sec": 3,
        "file": "a/b",
        "mode": "fast",
        "names": ["a", "b"],
        "inners": [{"size": 2}, {}],
        "table": {"a": 1},
    }
    made = structured(Options, data, "here")
    assert made == Options(
        url="x",
        timeout_sec=3.0,
        file=Path("a/b"),
        mode=Mode.FAST,
        names=("a", "b"),
        inners=[Inner(size=2), Inner()],
        table={"a": 1},
    )
    assert type(made.timeout_sec) is float


def test_every_problem_is_told_with_path_value_and_expectation() -> None:
    data = {
        "timeout_sec": 100,
        "fil": "x",
        "mode": "slow",
        "level": "mid",
        "names": "abc",
        "inner": {"siz": 1},
        "inners": [{}, {"size": 0}, 3],
    }
    assert lines(data) == [
        'fil: unknown key; did you mean "file"?',
        "url: is missing; expected text",
        "timeout_sec: 100 is not allowed; must be <= 60.0 (longest call, in s)",
        "mode: 'slow' is not allowed; expected one of fast, safe",
        "level: 'mid' is not allowed; expected one of low, high",
        "names: 'abc' is not allowed; expected a list, each item text",
        'inner.siz: unknown key; did you mean "size"?',
        "inners[1].size: 0 is not allowed; must be >= 1",
        "inners[2]: 3 is not allowed; expected a table of settings",
    ]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"url": 3}, "url: 3 is not allowed; expected text"),
        ({"url": "x", "timeout_sec": "3"}, "timeout_sec: '3' is not allowed; expected a number (longest call, in s)"),
        ({"url": "x", "timeout_sec": True}, "timeout_sec: True is not allowed; expected a number (longest call, in s)"),
        ({"url": "x", "names": ["a", 1]}, "names[1]: 1 is not allowed; expected text"),
        ({"url": "x", "table": {"a": 1.5}}, "table.a: 1.5 is not allowed; expected an integer"),
        ({"url": "x", "file": 3}, "file: 3 is not allowed; expected a path"),
        ({"url": "x", "least": 3, "greatest": 1}, "greatest is below least"),
        (
            {"url": "redis://u:geheim@h", "least": "redis://u:geheim@h"},
            "least: 'redis://u:***@h' is not allowed; expected an integer",
        ),
        ({"url": "x", "password": "geheim"}, "password: *** is not allowed; Length of 'password' must be <= 3"),
        ([], "[] is not allowed; expected a table of settings"),
    ],
)
def test_one_problem(data: Any, line: str) -> None:
    assert lines(data) == [line]


def test_unknown_keys_alone_are_unknown_settings() -> None:
    with pytest.raises(UnknownSetting):
        structured(Options, {"url": "x", "fil": 1, "mod": 2}, "here")
