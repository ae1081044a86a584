"""`converge plugins new`: names that no new plugin can have are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Acme", 2, "a-z first"),
        ("acme_two", 2, "a-z first"),
        ("acme-", 2, "joined by single dashes"),
        ("a" * 41, 2, "at most 40 characters"),
        ("memory", 3, "converge-core's own"),
        ("redis", 3, "converge-store-redis's own"),
        ("postgresql", 3, "converge-store-sql's own"),
    ],
)
def test_a_name_that_no_plugin_can_have_is_refused(
    name: str, code: int, said: str, converge: Converge, folder: Path
) -> None:
    answer = converge("plugins", "new", "store", name)
    assert (answer.code, said in answer.err) == (code, True), answer.err
    assert [path.name for path in folder.iterdir()] == ["counting.py"]


def test_a_name_of_an_installed_plugin_is_refused_with_its_owner(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = folder / "site" / "converge_store_owl-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: converge-store-owl\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[converge]\nowl = owl\n[converge.schemes]\nowls = owl\n")
    monkeypatch.syspath_prepend(str(folder / "site"))
    for name in ("owl", "owls"):
        answer = converge("plugins", "new", "discovery", name)
        assert (answer.code, "taken by converge-store-owl 1.2" in answer.err) == (3, True), answer.err


@pytest.mark.parametrize("flags", [("transport", "x", "--server"), ("store", "x", "--server", "--embedded")])
def test_a_form_that_the_kind_does_not_have_is_refused(flags: tuple[str, ...], converge: Converge) -> None:
    answer = converge("plugins", "new", *flags)
    assert (answer.code, "--server" in answer.err) == (2, True), answer.err


def test_a_folder_that_is_there_is_left_alone(converge: Converge, folder: Path) -> None:
    (folder / "in" / "converge-hooks-acme").mkdir(parents=True)
    answer = converge("plugins", "new", "hooks", "acme", "--dir", "in")
    assert (answer.code, "move it away" in answer.err) == (2, True), answer.err
    assert list((folder / "in" / "converge-hooks-acme").iterdir()) == []
    assert converge("plugins", "new", "hooks", "acme", "--dir", "out").code == 0
    assert (folder / "out" / "converge-hooks-acme" / "pyproject.toml").is_file()
