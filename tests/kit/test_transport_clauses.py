"""The transport kit's tests name their clauses, and each part of it covers what it promises."""

from __future__ import annotations

import inspect
import re

from converge.testing import StreamTransportContract, TransportContract
from converge.testing.clauses import CLAUSES

NAMES = {name for name in CLAUSES if name.startswith("C-")}
# What only the wire shows.
OF_STREAMS = {"C-12"}


def cited(contract: type) -> dict[str, str]:
    """The clause that each test of a contract class names first."""
    tests = {name: test for name, test in inspect.getmembers(contract, inspect.isfunction) if name.startswith("test_")}
    found = {name: re.match(r"C-\d+(?=: )", inspect.getdoc(test) or "") for name, test in tests.items()}
    return {name: match[0] if match else "?" for name, match in found.items()}


def test_every_clause_has_a_test_and_every_test_a_clause() -> None:
    assert set(cited(StreamTransportContract).values()) == NAMES
    assert set(cited(TransportContract).values()) == NAMES - OF_STREAMS


def test_a_tests_name_says_the_clause_that_it_cites() -> None:
    assert [
        name
        for name, clause in cited(StreamTransportContract).items()
        if not name.startswith(f"test_{clause.replace('-', '').lower()}_")
    ] == []
