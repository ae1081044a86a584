"""The page of the hooks has each hook, with its arguments and in the words of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from converge import hookspecs

PAGE = (Path(__file__).parents[2] / "docs/reference/hooks.md").read_text()
HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("converge_")}


def test_the_page_has_exactly_the_hooks_of_the_code_with_their_arguments() -> None:
    on_page = dict(re.findall(r"^### `(\w+)\(([\w, ]*)\)`$", PAGE, re.MULTILINE))
    assert on_page == {name: ", ".join(inspect.signature(function).parameters) for name, function in HOOKS.items()}


def test_each_hook_is_described_in_the_words_of_the_code() -> None:
    words = {
        name: " ".join(text.split())
        for name, text in re.findall(r"^### `(\w+)\([\w, ]*\)`\n\n(.+(?:\n.+)*)", PAGE, re.MULTILINE)
    }
    assert words == {name: " ".join((inspect.getdoc(function) or "").split()) for name, function in HOOKS.items()}


def test_hooks_that_declare_observe_and_guard_stand_under_their_headings() -> None:
    heading = ""
    kinds: dict[str, str] = {}
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## Hooks that ")
        elif found := re.match(r"### `(\w+)\(", line):
            kinds[found.group(1)] = heading
    # A guard returns something; what declares returns many.
    returns = {name: str(function.__annotations__["return"]) for name, function in HOOKS.items()}
    expected = {
        name: "declare" if "Iterable" in kind else "observe" if kind == "None" else "guard"
        for name, kind in returns.items()
    }
    assert kinds == expected
