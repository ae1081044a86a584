"""What the kit was asked to find, and the backend or core, broken on purpose, by which it is known to find it.

Each of those is run by the test of its own module, which says by which clause it is found.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from converge.testing.clauses import CLAUSES

HERE = Path(__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

WAKES = "test_a_store_with_broken_wakes_breaks_the_clause_and_no_other"
VALUES = "test_a_store_that_changes_values_breaks_the_clause_and_no_other"

# What is broken: the module, the broken thing in it, and the clause. No store sees a turn that cancels a task and takes
# it: core splits such a turn, which `tests/core/services/test_commits.py` holds.
STORES = {
    "checks are ignored": ("broken_stores", "IgnoresChecks", "S-3"),
    "checks are compared before the atomic step": ("broken_stores", "ComparesBeforeTheStep", "S-4"),
    "half a batch is applied": ("broken_stores", "AppliesHalfABatch", "S-3"),
    "one conflict undoes its neighbours": ("broken_stores", "UndoesNeighbours", "S-5"),
    "windows are ignored": ("broken_stores", "IgnoresWindows", "S-7"),
    "windows are compared with the client's clock": ("broken_stores", "TrustsClientsClocks", "S-7"),
    "revisions repeat after a reopen": ("broken_stores", "StartsRevisionsAgain", "S-6"),
    "revisions are counted by key": ("broken_stores", "CountsRevisionsPerKey", "S-6"),
    "one key is taken twice": ("broken_stores", "TakesOneKeyTwice", "S-11"),
    "ranges of a take are merged in the wrong order": ("broken_stores", "TakesLaneAfterLane", "S-10"),
    "a take ignores its checks": ("broken_stores", "TakesWithoutChecks", "S-10"),
    "a scan leaks a neighbour prefix": ("broken_stores", "LeaksNeighbours", "S-2"),
    "a scan skips at a page's border": ("broken_stores", "SkipsAtPageBorders", "S-2"),
    "two absences of one key both hold": ("broken_stores", "LetsTwoAbsencesHold", "S-4"),
    "a take commits after its lease has ended": ("broken_stores", "TakesAfterTheLeaseHasEnded", "S-12"),
    "a reopen loses the last write": ("broken_stores", "LosesTheLastWrite", "S-14"),
    "long values are cut": ("broken_stores", "CutsLongValues", "S-15"),
    "an unknown outcome is called not applied": ("broken_stores", "CallsTheUnknownNotApplied", "S-16"),
}
MACHINES = {
    "the token is not compared": ("broken_tasks", "compares_no_token", "T-4"),
    "the nonce is not compared": ("broken_tasks", "compares_no_nonce", "T-4"),
    "an unknown take is left behind": ("broken_tasks", "leaves_an_unknown_take_behind", "T-13"),
    "a submit strands behind a freed key": ("broken_tasks", "strands_a_submit_behind_a_key_that_was_freed", "T-9"),
    "a claim reads, then writes": ("broken_tasks", "reads_and_then_writes_a_claim", "T-2"),
    "a renewal revives an ended lease": ("broken_tasks", "revives_an_ended_lease", "T-10"),
    "a worker's clock ends leases": ("broken_tasks", "ends_leases_by_its_own_clock", "T-10"),
    "the content's digest is ignored": ("broken_tasks", "ignores_the_contents_digest", "T-1"),
    "only failures count as attempts": ("broken_tasks", "counts_failures_only", "T-7"),
    "the refund is forgotten": ("broken_tasks", "forgets_the_refund", "T-7"),
    "a cancel overwrites an end": ("broken_tasks", "overwrites_a_terminal_task_by_cancel", "T-6"),
    "a retry frees the ordering key": ("broken_tasks", "frees_an_ordering_key_by_a_retry", "T-9"),
    "a lower sequence wins": (
        "broken_discovery",
        "test_a_core_in_which_a_lower_descriptor_sequence_wins_is_caught",
        "D-9",
    ),
    "an ended lease is listed": (
        "broken_discovery",
        "test_a_core_that_lists_agents_of_an_ended_lease_is_caught",
        "D-6",
    ),
}
AUTHORS = {
    "checks hold in one process only": ("broken_processes", "ComparesOutsideTheLock", "S-4"),
    "shared in words only": ("broken_processes", "IsSharedWithNobody", "S-14"),
    "persistent in words only": ("broken_processes", "IsGoneWithItsProcess", "S-14"),
    "a durability class in words only": ("broken_places", "TellsABetterClass", "S-24"),
    "a power loss takes what was acknowledged": ("broken_power", "NeverSyncs", "S-14"),
    "a call never answers": ("broken_stores", "NeverCounts", "S-18"),
    "a call of a discovery never answers": ("broken_discovery", "SilentContract", "D-1"),
    "a discovery lets errors of its driver out": ("broken_discovery", "LeakingContract", "D-1"),
    "notifies in words only": ("broken_stores", "SaysThatItNotifies", "S-9"),
    "watchers are told before there is anything to read": ("broken_stores", "TellsBeforeItWrites", "S-9"),
    "watchers are told before a turn writes": ("broken_wakes", WAKES, "S-9"),
    "a wake is lost while its watcher looks": ("broken_wakes", WAKES, "S-9"),
    "a refused take wakes nobody": ("broken_wakes", WAKES, "S-9"),
    "wakes stay in one process": ("broken_processes", "WakesItsOwnProcess", "S-9"),
    "reads of one process are kept": ("broken_processes", "ReadsWhatItKept", "S-14"),
    "half a batch is seen by another process": ("broken_processes", "PutsOneKeyAfterTheOther", "S-3"),
    "a discovery in one process only": (
        "broken_processes",
        "test_a_discovery_that_knows_its_own_process_only_is_found",
        "D-6",
    ),
    "line ends are tidied": ("broken_values", VALUES, "S-15"),
    "an empty value is taken for none": ("broken_values", VALUES, "S-10"),
    "networks see each other": ("broken_places", "MixesNetworks", "S-21"),
    "a store blocks the event loop": ("cheating_channels", "SleepsInGet", "S-17"),
    "a transport blocks the event loop": ("cheating_channels", "SleepsInSend", "C-9"),
    "a discovery blocks the event loop": ("cheating_channels", "SleepsInSnapshot", "D-10"),
    "a store leaves descriptors open": ("cheats", "LeavesAFileOpen", "S-19"),
    "a transport leaves descriptors open": ("cheating_channels", "LeavesAFileForEachChannel", "C-11"),
    "a discovery leaves descriptors open": ("cheating_channels", "LeavesAFileForEachPublish", "D-10"),
    "a cancelled call loses frames": ("broken_transport", "DroppingContract", "C-10"),
    "lengths are unbounded": ("broken_transport", "LimitlessContract", "C-6"),
    "what breaks the framing is let out": ("broken_transport", "RawContract", "C-12"),
    "a look makes a store": ("broken_places", "OpensAnythingForWhoLooks", "S-20"),
    "a claim never settles": ("broken_tasks", "leaves_an_unknown_take_behind", "T-13"),
}
# What is no backend's matter, and the test that shows it.
ELSEWHERE = {
    "a mistake of a declaration is told with its plugin and its mend": (
        "core/test_declarations.py",
        "test_a_mistake_is_told_with_its_plugin_and_its_mend",
    ),
    "all mistakes of a declaration are told at once": (
        "core/test_declarations.py",
        "test_all_mistakes_are_told_at_once",
    ),
    "a test of the kit cannot be overridden, left out or skipped": (
        "core/testing/test_cases.py",
        "test_a_test_of_the_kit_cannot_be_replaced",
    ),
    "a kit without event loops is refused": (
        "core/testing/test_cases.py",
        "test_a_class_that_would_try_nothing_is_refused",
    ),
    "what was not tried is told in the closing line": (
        "core/testing/test_cases.py",
        "test_the_closing_line_names_clauses_that_were_not_tried_with_the_reason",
    ),
    "what was not tried is told on the card": (
        "kit/test_broken_power.py",
        "test_without_the_means_the_card_says_that_it_was_not_tried",
    ),
    "an advertised address is checked by its transport": (
        "core/runtime/test_choose.py",
        "test_every_address_is_checked_when_it_is_given",
    ),
    "what an author gives to the kit is on its page": (
        "docs/test_kit_page.py",
        "test_the_page_of_the_kit_names_what_an_author_gives",
    ),
    "the kit's helpers are on its page": ("docs/test_kit_page.py", "test_the_page_of_the_kit_names_its_helpers"),
}
ASKED = {**STORES, **MACHINES, **AUTHORS}
OWN = 15
"""How many more there are at least."""


@cache
def broken_things(module: str) -> dict[str, str]:
    """Return the classes and functions at the top of a module of broken things, with their decorators, as text."""
    source = (HERE / f"test_{module}.py").read_text()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            told = [ast.get_source_segment(source, one) or "" for one in node.decorator_list]
            found[node.name] = "\n".join([*told, ast.get_source_segment(source, node) or ""])
    return found


@pytest.mark.parametrize("what", ASKED)
def test_what_was_asked_for_is_broken_on_purpose_and_found_by_its_clause(what: str) -> None:
    module, name, clause = ASKED[what]
    assert clause in CLAUSES
    assert name in broken_things(module), f"{name} is no longer in test_{module}.py, so nothing shows that {what}"
    assert f'"{clause}"' in broken_things(module)[name], f"{name} is not found by {clause}"


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_no_backend_shows_has_a_test_of_its_own(what: str) -> None:
    file, name = ELSEWHERE[what]
    found = [node for node in ast.walk(ast.parse((HERE.parent / file).read_text())) if isinstance(node, FUNCTIONS)]
    (test,) = [node for node in found if node.name == name]
    assert not [one for one in test.decorator_list if "mark.skip" in ast.unparse(one)], f"{name} is not always run"


def test_there_are_as_many_more() -> None:
    named = {name for _, name, _ in ASKED.values()}
    modules = [file.stem.removeprefix("test_") for file in HERE.glob("test_*.py")]
    marked = ("@breaks", "breaks(", "cheats(", "breaks = ", "breaks: ClassVar[str] = ")
    all_of_them = {
        (module, name)
        for module in modules
        for name, text in broken_things(module).items()
        if text.startswith(marked) or 'breaks = "' in text or 'breaks: ClassVar[str] = "' in text
    }
    others = {(module, name) for module, name in all_of_them if name not in named}
    assert len(others) >= OWN
    kinds = {"stores", "tasks", "transport", "discovery"}
    assert {kind for kind in kinds if any(f"broken_{kind}" == module for module, _ in others)} == kinds
