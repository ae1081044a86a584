"""Run by `test_closing_lines` in a pytest of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("number", range(3))
def test_of_a_package_that_is_absent(debian: Callable[[str, str], str], number: int) -> None:
    debian("nginx", "a-program-that-no-package-has")


def test_of_a_clause_that_does_not_apply() -> None:
    pytest.skip("not applicable: the options have no colour")


def test_that_runs() -> None:
    assert True


async def test_a_coroutine(anyio_backend: str) -> None:
    assert anyio_backend in ("asyncio", "trio")
