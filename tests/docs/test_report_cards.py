"""The cards on the page are of the backends as they are declared now; in the full run, as they are found to be now."""

from __future__ import annotations

import os

import pytest
from report_cards import DECLARED, PACKAGES, PLUGINS, cards_of, kept

from converge.operations.plugins.info import facts_of
from converge.testing.clauses import CLAUSES


def test_each_backend_of_each_package_has_a_card_that_says_what_it_declares() -> None:
    declared = [
        (facts.distribution, plugin, one.kind, one.name, one.contract, sorted(one.features), one.durability)
        for plugin in PLUGINS
        for facts in [facts_of(plugin)]
        for one in facts.backends
    ]
    assert declared == [tuple(card[name] for name in DECLARED) for card in kept()]
    assert {card["distribution"] for card in kept()} == {*PACKAGES}


def spread(clauses: str) -> set[str]:
    """Return the names that `S-1 to S-3, S-5` stands for."""
    names = set()
    for part in clauses.split(", "):
        (letter, first), (_, last) = (end.split("-") for end in (part.split(" to ") * 2)[:2])
        names |= {f"{letter}-{number}" for number in range(int(first), int(last) + 1)}
    return names


def test_each_clause_of_its_contract_is_kept_or_the_card_says_why_not() -> None:
    letters = {"store": "ST", "transport": "C", "discovery": "D"}
    for card in kept():
        asked = {name for name in CLAUSES if name[0] in letters[card["kind"]]}
        assert spread(card["tried"]) | {*card["not_tried"], *card["not_applicable"]} == asked, card["backend"]


@pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_check_finds_what_the_card_says(plugin: str) -> None:
    assert cards_of(plugin) == [card for card in kept() if card["plugin"] == plugin]
