"""How the kit reports which clause of a contract a backend has broken."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection

from converge.contracts import discovery, store, transport
from converge.contracts.store import Feature
from converge.machines import durable, task

_CLAUSE = re.compile(r"^([A-Z]-\d+) {1,2}(.+(?:\n     .+)*)", re.MULTILINE)


def _texts() -> dict[str, str]:
    pages = (one.__doc__ or "" for one in (store, transport, discovery, task, durable))
    return {name: " ".join(text.split()) for page in pages for name, text in _CLAUSE.findall(page)}


def check_case(case: type) -> None:
    """Refuse a class of tests that leaves out a clause, or tests none.

    Raises:
        TypeError: It has a test of the kit in its own words, or runs on no event loop; say so with a strict `xfail`.
    """
    if case.__module__.startswith("converge.testing."):
        return
    for name, member in vars(case).items():
        is_inherited = any(name in vars(base) for base in case.__mro__[1:])
        if name.startswith("test_") and is_inherited and not _is_expected_to_fail(member):
            said = f"{case.__name__}.{name} stands in place of a test of the kit, so its clause is not tried"
            raise TypeError(f"{said}; mark one that is not kept yet with pytest.mark.xfail(strict=True, reason=...)")
    if not loops_of(case):
        raise TypeError(f"{case.__name__}.loops has no event loop of the backend, so nothing would be tried; name one")
    for name in ("examples", "rounds"):
        if getattr(case, name, 1) < 1:
            raise TypeError(f"{case.__name__}.{name} is below 1, so nothing would be tried; --quick makes them few")


def _is_expected_to_fail(member: object) -> bool:
    marks = getattr(member, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("strict") and mark.kwargs.get("reason") for mark in marks)


def loops_of(case: type) -> list[str]:
    """Return the event loops that a class of tests runs on: its `loops`, without trio where the backend has none."""
    features: Collection[Feature] = getattr(getattr(case, "backend", None), "features", ())
    loops: Collection[str] = getattr(case, "loops", ("asyncio",))
    return [loop for loop in loops if loop != "trio" or Feature.ASYNCIO_ONLY not in features]


def cited(function: object) -> list[str]:
    """Return the clauses that a test's docstring names, its own first."""
    return _CITED.findall(inspect.getdoc(function) or "")


def in_short(clauses: Collection[str]) -> str:
    """Return clauses as people write them: `S-1 to S-5, S-9`."""
    ordered = sorted({(letter, int(number)) for letter, number in (name.split("-") for name in clauses)})
    runs: list[list[tuple[str, int]]] = []
    for letter, number in ordered:
        if runs and runs[-1][-1] == (letter, number - 1):
            runs[-1].append((letter, number))
        else:
            runs.append([(letter, number)])
    ends = [(f"{run[0][0]}-{run[0][1]}", f"{run[-1][0]}-{run[-1][1]}") for run in runs]
    return ", ".join(first if first == last else f"{first} to {last}" for first, last in ends)


_CITED = re.compile(r"\b[A-Z]-\d+\b")

CLAUSES = _texts()
"""The words of each clause by its name, such as `S-4`, from the contracts themselves."""


class ClauseBroken(AssertionError):
    """A backend did not do what a clause of its contract says."""

    def __init__(self, clause: str, what: str) -> None:
        super().__init__(f"{clause}: {what}\n  {clause} says: {CLAUSES.get(clause, '?')}")
        self.clause, self.what = clause, what


def expect(clause: str, holds: bool, what: str) -> None:
    """Fail the test, naming the clause, if it does not hold; `what` says what was seen."""
    if not holds:
        raise ClauseBroken(clause, what)


def expect_equal(clause: str, got: object, wanted: object, what: str) -> None:
    """Fail the test, naming the clause, if two values differ; both are shown, shortened."""
    if got != wanted:
        raise ClauseBroken(clause, f"{what}\n    got:    {_short(got)}\n    wanted: {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:450]} ... {text[-120:]} ({len(text)} characters)"
