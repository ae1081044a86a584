"""The pages of the kit and of the bench name all that an author can set; nobody has to read the kit for it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from _pytest.fixtures import FixtureFunctionDefinition

from converge.testing import (
    Bench,
    DiscoveryContract,
    ServerBench,
    StoreContract,
    StreamTransportContract,
    TaskContract,
)

DOCS = Path(__file__).parents[2] / "docs/reference"
OWN: dict[type[Any], set[str]] = {
    StoreContract: {"anyio_backend", "limit", "opening", "quick", "store", "time_limit", "transaction"},
    TaskContract: {"anyio_backend", "limit", "one", "opening", "quick", "store", "time_limit", "two"},
    StreamTransportContract: {"named_clause", "time_limit"},
    DiscoveryContract: {"anyio_backend", "quick", "time_limit"},
}
"""The kit's own fixtures, which no author gives; and `pytestmark` is pytest's."""


def given_to(kit: type[Any]) -> set[str]:
    """Return the fixtures and attributes of a kit that its author may give."""
    fixtures = {name for name, one in inspect.getmembers(kit) if isinstance(one, FixtureFunctionDefinition)}
    attributes = {name for base in kit.__mro__ for name in inspect.get_annotations(base) if not name.startswith("_")}
    return fixtures - OWN[kit] | attributes - {"pytestmark"}


@pytest.mark.parametrize("kit", OWN, ids=lambda kit: kit.__name__)
def test_the_page_of_the_kit_names_what_an_author_gives(kit: type[Any]) -> None:
    page = (DOCS / "kit.md").read_text()
    assert OWN[kit] <= {name for name, _ in inspect.getmembers(kit)}
    assert {name for name in given_to(kit) if f"`{name}`" not in page} == set()


def test_the_page_of_the_kit_names_its_helpers() -> None:
    page = (DOCS / "kit.md").read_text()
    names = ["CutProxy", "Cut.BEFORE", "Cut.AFTER", "die(process)", "free_port", "The longest key", "URLs"]
    assert [name for name in names if name not in page] == []


@pytest.mark.parametrize("bench", [Bench, ServerBench])
def test_the_section_of_the_bench_names_what_it_has(bench: type) -> None:
    section = (DOCS / "cli.md").read_text().partition("### The bench of a plugin\n")[2].partition("\n#")[0]
    public = [name for name in dir(bench) if not name.startswith("_")]
    assert [name for name in public if f"`{name}`" not in section] == []
