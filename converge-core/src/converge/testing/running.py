"""Run a contract class from within a program, and learn which clauses were broken: how the kit tests itself."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import attrs
import pytest

from converge.testing.clauses import cited

_BROKEN = re.compile(r"ClauseBroken: (([A-Z]-\d+): .*)")
_RAISED = re.compile(r"^(?:(?!E ).*\nE {2,}|[ |]*\| (?=[\w.]+(?:: |$)))(\S.*)", re.MULTILINE)
"""The first line of what pytest says was raised; in a group of errors, of each of them."""

# The run is a guest in a process that may be a test run itself: it loads no conftest, draws no seed of its own, keeps
# no cache, and leaves alone what belongs to the process (signals, captured output). A host with leak checks has asked
# for them on the very functions that are run here.
GUEST = (
    *("-c", "/dev/null", "--noconftest", "--import-mode=importlib", "--strict-markers", "-q", "-W", "error"),
    *(
        "-p",
        "converge.testing.fixtures",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-p",
        "no:xdist",
        "-p",
        "no:faulthandler",
        "-p",
        "no:timeout",
        "--capture=no",
    ),
)


@attrs.frozen(kw_only=True)
class Failure:
    """One test that failed.

    Attributes:
        test: Its name.
        cited: The first clause that its docstring names.
        clause: The clause that it said was broken; the one cited if it failed in another way.
        said: What was seen, in one line.
        report: The end of pytest's report.
    """

    test: str
    cited: str
    clause: str
    said: str
    report: str


@attrs.frozen(kw_only=True)
class Run:
    """The result of running a contract class."""

    passed: int
    failures: Sequence[Failure]
    output: str

    def failed(self, clause: str) -> list[Failure]:
        """Return the failures of tests of this clause that say so, too."""
        return [failure for failure in self.failures if failure.cited == clause == failure.clause]


def said_of(report: str, cited: str) -> tuple[str, str]:
    """Return from pytest's report of a failure what was seen, in one line, and the clause that it says was broken, else
    the one that the test cites.
    """
    found = _BROKEN.findall(report)
    if not found:
        raised = _RAISED.findall(report)
        return (raised[-1] if raised else report.strip().rpartition("\n")[2]), cited
    said, clause = found[-1]
    return said, clause


class _Collector:
    def __init__(self, sought: Collection[str]) -> None:
        self.passed = 0
        self.failures: list[Failure] = []
        self.cited: dict[str, str] = {}
        self._sought = set(sought)
        self._guest: pytest.Session | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._guest = session
        for item in session.items:
            self.cited[item.nodeid] = next(iter(cited(getattr(item, "function", None))), "?")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text, cited = report.longreprtext, self.cited[report.nodeid]
            said, clause = said_of(text, cited)
            name = report.nodeid.rpartition("::")[2]
            self.failures.append(Failure(test=name, cited=cited, clause=clause, said=said, report=text[-3_000:]))
            if clause == cited in self._sought:
                self._sought.remove(clause)
                if not self._sought and self._guest is not None:
                    self._guest.shouldfail = "what was sought is found"
        elif report.when == "call" and report.passed:
            self.passed += 1


def citing(contract: type, clauses: Collection[str]) -> str:
    """Return the tests of a contract that cite one of these clauses first, as `run_contract` and pytest's `-k` take
    them.
    """
    tests = [name for name in dir(contract) if name.startswith("test_")]
    return " or ".join(name for name in tests if set(cited(getattr(contract, name))[:1]) & set(clauses))


def run_contract(contract: type, *, tests: str | None = None, until: Collection[str] = ()) -> Run:
    """Run a subclass of a contract that stands at the top of a module.

    Args:
        contract: Its module is collected by pytest as if named on the command line, whatever its own name and the
            class's are.
        tests: As pytest's `-k`: which tests of it.
        until: Clauses: once a test of each has failed by it, no more tests are run. None: all are.

    Raises:
        RuntimeError: No test was run: the class cannot be collected.
    """
    collector = _Collector(until)
    module = Path(inspect.getfile(contract)).resolve()
    place = f"{module}::{contract.__name__}"
    # Not above the module's folder: pytest would list the folders of every parent.
    named = ["--rootdir", str(module.parent), "--confcutdir", str(module.parent)]
    named += ["-o", f"python_classes={contract.__name__}"]
    chosen = ["-k", tests] if tests else []
    parts = tests.split(" or ") if tests else []
    if parts and all(part.isidentifier() for part in parts):
        # What `-k` leaves out is collected first, which takes as long as many a test.
        names = [name for name in dir(contract) if name.startswith("test_") and any(part in name for part in parts)]
        chosen = ["-o", f"python_functions={' '.join(names)}"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        pytest.main([*GUEST, "--tb=native", *named, *chosen, place], plugins=[collector])
    if not collector.passed and not collector.failures:
        raise RuntimeError(f"pytest ran no test of {place}:\n{output.getvalue()[-3_000:]}")
    return Run(passed=collector.passed, failures=tuple(collector.failures), output=output.getvalue())
