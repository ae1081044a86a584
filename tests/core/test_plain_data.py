"""Plain data is encoded as it is where nothing in it must be changed: the same bytes as a checked copy gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converge.codec import _plain, decode_plain, encode, encode_plain
from converge.errors import InvalidValue


class Text(str):
    """A subclass, which encoders do not take."""


class Number(int):
    """Likewise."""


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=4)
    | st.binary(max_size=4)
    | st.builds(Text, st.text("ab", max_size=2))
    | st.builds(Number, st.integers(0, 5))
    | st.just(object)
)
NAMES = st.text(st.sampled_from("ab\0\ud800"), max_size=3) | st.just("$bytes") | st.integers(0, 3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner), max_leaves=12
)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def result(encoder: Any, value: Any) -> object:
    """What an encoder returns, or the text of its refusal."""
    try:
        return encoder(value)
    except InvalidValue as error:
        return str(error)


@given(VALUES)
@example(deep(30))
@example(deep(31))
@example(deep(32))
@example(deep(100))
@example([2**63 - 1, -(2**63)])
@example([2**63])
@example([-(2**63) - 1])
@example([[float("nan")]])
@example({"a": {"$bytes": "x"}})
@example([["a\0b"], ["\ud800"]])
def test_the_quick_way_gives_what_the_checked_copy_gives(value: Any) -> None:
    quick = result(lambda it: encode_plain(it, "it"), [value])
    assert quick == result(lambda it: encode(_plain(it, "it", 0)), [value])
    if isinstance(quick, bytes):
        assert encode_plain(decode_plain(quick, "it"), "it") == quick


@pytest.mark.parametrize("value", [[[]] * 1_000, {"a": [{"b": 1.5, "c": None}] * 100}, ((), (1,))])
def test_plain_data_is_not_copied(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.codec._plain", None)
    assert encode_plain(value, "it") == encode(value)
