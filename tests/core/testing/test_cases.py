"""A contract class that leaves something out says so: when it is made, or in the closing lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from converge.contracts.store import Feature
from converge.testing import DiscoveryContract, StoreContract, TransportContract
from converge.testing.clauses import in_short
from converge_store_toy.plugin import TOY

ROOT = Path(__file__).parents[3]
CASES = Path(__file__).parent / "cases"
TEST = "test_every_handle_sees_what_was_committed"


async def nothing(self: object) -> None:
    """A test that tries nothing."""


@pytest.mark.skip(reason="later")
async def skipped(self: object) -> None:
    """The same, later."""


@pytest.mark.parametrize("instead", [nothing, None, skipped], ids=["own", "none", "skipped"])
def test_a_test_of_the_kit_cannot_be_replaced(instead: object) -> None:
    with pytest.raises(TypeError, match=f"{TEST} stands in place of a test of the kit"):
        type("Mine", (StoreContract,), {"backend": TOY, TEST: instead})


def test_a_clause_that_is_not_kept_yet_is_a_strict_expected_failure() -> None:
    async def one(self: object) -> None: ...

    async def other(self: object) -> None: ...

    known = pytest.mark.xfail(strict=True, reason="the engine has no such thing")(one)
    type("Mine", (StoreContract,), {"backend": TOY, TEST: known, "test_of_my_own": nothing})
    with pytest.raises(TypeError, match="xfail"):
        type("Mine", (StoreContract,), {"backend": TOY, TEST: pytest.mark.xfail(reason="x")(other)})


@pytest.mark.parametrize("contract", [StoreContract, TransportContract, DiscoveryContract])
def test_a_class_that_would_try_nothing_is_refused(contract: type) -> None:
    with pytest.raises(TypeError, match="loops has no event loop of the backend"):
        type("Mine", (contract,), {"loops": ()})
    asyncio_only: Any = attrs.evolve(TOY, features=frozenset({Feature.ASYNCIO_ONLY}))
    with pytest.raises(TypeError, match="loops has no event loop of the backend"):
        type("Mine", (contract,), {"backend": asyncio_only, "loops": ("trio",)})
    with pytest.raises(TypeError, match="rounds is below 1"):
        type("Mine", (contract,), {"rounds": 0})


def test_clauses_are_named_in_short() -> None:
    assert in_short({"S-1", "S-2", "S-3", "S-16", "T-9", "S-10", "T-10"}) == "S-1 to S-3, S-10, S-16, T-9 to T-10"


def run(case: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(ROOT), "-q", "--noconftest"]
    plugins = ["-p", "anyio", "-p", "converge.testing.fixtures", "-p", "no:timeout", "-p", "no:cacheprovider"]
    file = CASES / case
    path = str(ROOT / "docs/examples/converge-store-toy/src")
    done = subprocess.run(
        [*command, *plugins, "-o", f"pythonpath={path}", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout


def test_a_call_that_blocks_the_event_loop_is_ended_with_its_clause() -> None:
    others = [str(CASES / f"blocking_{kind}.py") for kind in ("transport", "discovery")]
    said = run("blocking_store.py", *others, "-k", "count_answers or c2_receive or d1_what_was")
    for clause in ("S-18", "C-2", "D-1"):
        assert f"ClauseBroken: {clause}: the test did not end within 1 s: a call blocks the event loop" in said, said


def test_a_call_that_nothing_cancels_is_ended_and_the_tests_after_it_run() -> None:
    watch, count = (
        "test_a_wake_reaches_a_watcher_of_another_handle",
        "test_count_answers_how_many_keys_are_under_each_prefix",
    )
    file = CASES / "waiting_store.py"
    others = [f"{file}::TestEndless::{count}[asyncio]", f"{file}::TestShielded::{TEST}[trio]"]
    said = run(f"waiting_store.py::TestDeaf::{watch}[asyncio]", *others)
    for clause in ("S-9", "S-18", "S-14"):
        assert f"ClauseBroken: {clause}: the test did not end within 2 s: " in said, said


def test_the_closing_line_names_clauses_that_were_not_tried_with_the_reason() -> None:
    said = run("blocking_store.py", "--quick", "-k", "told_truly or every_handle or passes_through")
    line = "TestBlocking: S-14 tried; S-16 not tried: the fixture `cut` gives nothing, so no connection is broken"
    assert line in said.splitlines(), said
