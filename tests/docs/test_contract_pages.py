"""The pages of the contracts say each clause in the words of the code, and the kit tests each."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import attrs
import pytest

from converge.contracts.store import LIMITS, Feature
from converge.testing import DiscoveryContract, StoreContract, StreamTransportContract, TaskContract
from converge.testing.clauses import CLAUSES, cited

# Each links to its tests, by an anchor of its own name.
CLAUSE = re.compile(r"^- \*\*\[(\w-\d+)\]\(clause-tests\.md#(?:[a-z]-\d+)\)\*\* (.+(?:\n  .+)*)", re.MULTILINE)
PAGES = Path(__file__).parents[2] / "docs/reference"
KITS = {
    "S": ("store-contract.md", StoreContract),
    "T": ("task-contract.md", TaskContract),
    "D": ("discovery-contract.md", DiscoveryContract),
    "C": ("transport-contract.md", StreamTransportContract),
}


@pytest.mark.parametrize("letter", KITS)
def test_the_page_has_exactly_the_clauses_of_the_code(letter: str) -> None:
    text = (PAGES / KITS[letter][0]).read_text()
    on_page = {name: " ".join(words.split()) for name, words in CLAUSE.findall(text)}
    assert on_page == {name: words for name, words in CLAUSES.items() if name.startswith(letter)}


@pytest.mark.parametrize("letter", KITS)
def test_each_clause_links_to_its_own_tests(letter: str) -> None:
    links = re.findall(r"\[(\w-\d+)\]\(clause-tests\.md#(\w-\d+)\)", (PAGES / KITS[letter][0]).read_text())
    assert links and [(name, anchor) for name, anchor in links if name.lower() != anchor] == []


@pytest.mark.parametrize("letter", KITS)
def test_the_kit_has_a_test_for_each_clause(letter: str) -> None:
    kit = KITS[letter][1]
    tests = [method for name, method in inspect.getmembers(kit, inspect.isfunction) if name.startswith("test_")]
    tested = {clause for test in tests for clause in re.findall(r"[A-Z]-\d+", test.__doc__ or "")}
    assert {name for name in CLAUSES if name.startswith(letter)} - tested == set()


def test_the_page_has_the_limits_and_the_features_of_the_code() -> None:
    text = (PAGES / "store-contract.md").read_text()
    limits = {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", text, re.MULTILINE)
    }
    assert limits == attrs.asdict(LIMITS)
    assert [feature.name for feature in Feature if f"`{feature.name}`" not in text] == []


def test_each_step_of_the_tutorial_runs_tests_of_the_clauses_that_it_names() -> None:
    text = (PAGES.parent / "tutorials/write-a-store.md").read_text()
    steps = re.findall(r"^\| \d \| .* \| `-k \"?([\w ]+)\"?` \|$", text, re.MULTILINE)
    rows = re.findall(r"^\| \d \| .*$", text, re.MULTILINE)
    assert len(steps) == len(rows) == 7
    for words, row in zip(steps, rows, strict=True):
        tests = inspect.getmembers(StoreContract, inspect.isfunction)
        run = [test for name, test in tests if any(word in name for word in words.split(" or "))]
        cited_by_run = {clause for test in run for clause in cited(test)}
        assert set(re.findall(r"\[(S-\d+)\]", row)) <= cited_by_run, row
