"""How the kit says which clause of a contract a backend has broken."""

from __future__ import annotations

import re

from converge.contracts import discovery, store, transport
from converge.machines import task

_CLAUSE = re.compile(r"^([A-Z]-\d+) {1,2}(.+(?:\n     .+)*)", re.MULTILINE)


def _texts() -> dict[str, str]:
    pages = (store.__doc__ or "", transport.__doc__ or "", discovery.__doc__ or "", task.__doc__ or "")
    return {name: " ".join(text.split()) for page in pages for name, text in _CLAUSE.findall(page)}


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
