"""A constant's name says what it counts: `SIGN_BATCH` can be searched for, and `PAGE` is another one in each module."""

from __future__ import annotations

import ast
from pathlib import Path

from trees import parsed

ROOT = Path(__file__).parents[2]
VAGUE = {"PAGE", "ROUNDS", "SUBSET", "TOGETHER"}


def vague_constants(source: str) -> list[str]:
    """The numbers of a module that are called what many numbers could be called."""
    return [
        target.id
        for node in parsed(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) is int
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in VAGUE
    ]


def test_constants_have_names_of_their_own() -> None:
    found = {
        str(file.relative_to(ROOT)): names
        for file in sorted(ROOT.glob("converge-*/src/**/*.py"))
        if (names := vague_constants(file.read_text()))
    }
    assert found == {}


def test_a_vague_constant_is_found() -> None:
    assert vague_constants("PAGE = 64\n") == ["PAGE"]
    assert not vague_constants("READ_PAGE = 64\nPAGE = 'docs'\n")
