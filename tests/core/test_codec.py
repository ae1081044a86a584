"""Records of another format: what is written says so, what is newer is refused as such, not as damaged."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec
import pytest

import converge
from converge.codec import FIRST, FORMAT, decode, decoder, encode
from converge.errors import SchemaTooNew, TornRecord
from converge.model.place import Held, KeyRow
from converge.model.pool import Pool
from converge.model.task import DURABLE, Spec
from converge.services.tasks.claim import read_found


def _record_types() -> Iterator[type[Any]]:
    for found in pkgutil.walk_packages(converge.__path__, "converge."):
        if not found.name.startswith("converge.testing") and not found.name.endswith("__main__"):
            yield from _of_module(importlib.import_module(found.name))


def _of_module(module: Any) -> Iterator[type[Any]]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and _default_of_v(value) is not None:
            yield value


def _default_of_v(record: type[Any]) -> object:
    if issubclass(record, msgspec.Struct):
        return next((field.default for field in msgspec.structs.fields(record) if field.name == "v"), None)
    if attrs.has(record):
        return next((field.default for field in attrs.fields(record) if field.name == "v"), None)
    return None


RECORDS = sorted(set(_record_types()), key=lambda record: record.__qualname__)


def test_every_record_type_is_found() -> None:
    assert {"Spec", "State", "KeyRow", "Lane", "AgentDescriptor"} <= {record.__name__ for record in RECORDS}


@pytest.mark.parametrize("record", [*RECORDS, Pool], ids=lambda record: record.__name__)
def test_a_record_without_a_version_has_the_first(record: type[Any]) -> None:
    assert _default_of_v(record) in (FIRST, DURABLE, None)  # what came later has the format that it came with


@pytest.mark.parametrize("record", [*RECORDS, Pool], ids=lambda record: record.__name__)
@pytest.mark.parametrize("may_have_more", [False, True])
def test_a_newer_record_of_every_type_is_too_new(record: type[Any], may_have_more: bool) -> None:
    raw = encode({"v": FORMAT + 1, "something": "new"})
    with pytest.raises(SchemaTooNew, match=rf"format {FORMAT + 1} .* up to {FORMAT}"):
        decode(raw, record, "it", may_have_more=may_have_more)


@pytest.mark.parametrize("type_", [str, tuple[str, str], tuple[list[str], str], tuple[int, list[str]], dict[str, Any]])
def test_so_is_one_of_a_kind_that_has_no_version_yet(type_: Any) -> None:
    with pytest.raises(SchemaTooNew):
        decode(encode({"v": FORMAT + 1, "id": "00"}), type_, "it")


def test_the_version_is_written_when_it_is_not_the_first() -> None:
    assert b'"v"' not in encode(KeyRow(1))
    assert b'"v":2' in encode(KeyRow(1, v=2))


def test_what_has_no_version_and_is_none_of_ours_is_torn() -> None:
    with pytest.raises(TornRecord):
        decode(b'{"something": 1}', Spec, "it")
    with pytest.raises(TornRecord):
        decode(b'{"v": "2"}', Spec, "it")


def test_a_claim_reads_a_newer_task_as_too_new() -> None:
    spec = Spec("p", "00" * 16, 0, 0, 0, v=FORMAT + 1)
    assert decoder(Spec)(encode(spec)).v == FORMAT + 1
    place = Held(bytes(16), bytes(16), 1)
    with pytest.raises(SchemaTooNew):
        read_found(bytes(16), encode(spec), None, place)
