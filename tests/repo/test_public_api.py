"""Nothing public goes away unnoticed: each name is there, and can be called as before. What is new may come."""

from __future__ import annotations

import json

import pytest
from public_api import NOTED, Parameters, found

HOW = "if that is meant, warn a release before, say so in a fragment, and run `python tests/repo/public_api.py`"
NAMED, BY_PLACE = "KEYWORD_ONLY", ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")


def broken(before: Parameters | None, now: Parameters | None) -> str:
    """Say which call that worked before works no longer; nothing if all do."""
    if before is None or now is None:
        return "" if before is None or now == before else "it can no longer be called"
    by_name = {name: (kind, has_default) for name, kind, has_default in now}
    for name, kind, has_default in before:
        if name not in by_name:
            return f"it no longer takes {name}"
        if by_name[name][0] not in (kind, "POSITIONAL_OR_KEYWORD"):
            return f"{name} was {kind}, and is {by_name[name][0]}"
        if has_default and not by_name[name][1]:
            return f"{name} has no default any more"
    places = [[name for name, kind, _ in some if kind in BY_PLACE] for some in (before, now)]
    if places[1][: len(places[0])] != places[0]:
        return f"by place it took {places[0]}, and takes {places[1]}"
    known = {name for name, _, _ in before}
    new = [name for name, kind, has in now if name not in known and not has and not kind.startswith("VAR_")]
    return f"it needs {', '.join(new)} now" if new else ""


def test_every_public_name_is_there_and_is_called_as_before() -> None:
    noted = json.loads(NOTED.read_text())
    now = found()
    assert len(noted) > 300
    wrong = {name: "it is gone" for name in noted if name not in now}
    as_tuples = {name: None if some is None else [tuple(one) for one in some] for name, some in noted.items()}
    wrong |= {name: said for name, some in as_tuples.items() if name in now and (said := broken(some, now[name]))}
    assert wrong == {}, HOW


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([("a", "POSITIONAL_OR_KEYWORD", False), ("b", NAMED, True)], ""),
        ([("a", "POSITIONAL_OR_KEYWORD", True), ("b", NAMED, True), ("c", NAMED, True)], ""),
        ([("a", "POSITIONAL_OR_KEYWORD", False)], "it no longer takes b"),
        ([("a", NAMED, False), ("b", NAMED, True)], "a was POSITIONAL_OR_KEYWORD, and is KEYWORD_ONLY"),
        ([("a", "POSITIONAL_OR_KEYWORD", False), ("b", NAMED, False)], "b has no default any more"),
        ([("a", "POSITIONAL_OR_KEYWORD", False), ("b", NAMED, True), ("c", NAMED, False)], "it needs c now"),
        (None, "it can no longer be called"),
    ],
)
def test_a_call_that_would_fail_is_found(now: Parameters | None, said: str) -> None:
    before = [("a", "POSITIONAL_OR_KEYWORD", False), ("b", NAMED, True)]
    assert broken(before, now) == said
