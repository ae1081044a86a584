"""The report card of a backend, and the run of the kit that fills it."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import json
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import attrs
import pytest

from converge.contracts.store import Store, StoreBackend
from converge.env import this_process
from converge.errors import InvalidValue
from converge.plugins.declaration import Backend
from converge.plugins.declared import KINDS
from converge.plugins.loaded import Loaded
from converge.testing._check.given import CURRENT, bench_of
from converge.testing._check.opening import try_opening
from converge.testing.clauses import CLAUSES, cited, in_short
from converge.testing.fixtures import CLAUSES_OF, FOLLOWS
from converge.testing.running import GUEST, said_of

_MODULES: Mapping[str, str] = {"store": "stores", "transport": "transports", "discovery": "discoveries"}

# The command has imported what pytest would rewrite.
IMPORTED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")

NOT_APPLICABLE, NOT_TRIED = "not applicable: ", "not tried: "

_CERTIFYING: Mapping[str, str] = {
    "store": "certified",
    "transport": "certified_transports",
    "discovery": "certified_discoveries",
}

CERTIFIED = "/certified"
"""How the names of modules begin whose tests are about no clause alone."""

INHERITED = ("turn", "count", "watch")
OF_INHERITED = frozenset({"S-1", "S-9", "S-10", "S-11", "S-12", "S-13", "S-17", "S-18"})
"""The clauses whose tests call a method that stores inherit."""

OF_STREAMS = frozenset({"C-12", "C-14"})
ON_THE_WIRE = "seen on the wire alone: of a TCP connection without TLS, whose bench has `oversized`"

OnTest = Callable[[int, int, int], None]
"""Called with how many tests have ended, of how many, and how many have failed."""


@attrs.frozen(kw_only=True)
class Broken:
    """A test that failed: its name, the clause that was broken, what was seen, and the end of pytest's report, with the
    shortest history where there is one; and the command that runs this test alone, in which it fails again.
    """

    test: str
    clause: str
    said: str
    report: str
    again: str


@attrs.frozen(kw_only=True)
class Card:
    """The report on a backend: its declaration, and the kit's findings. `not_tried`: why, by clause."""

    plugin: str
    distribution: str
    version: str
    kind: str
    backend: str
    contract: int
    features: tuple[str, ...]
    durability: str
    turn: str
    url: str
    release: str
    python: str
    at: str
    seconds: float
    tried: str
    certified: Mapping[str, str]
    passed: Mapping[str, int]
    broken: tuple[Broken, ...]
    not_tried: Mapping[str, str]
    not_applicable: Mapping[str, str]


class _Filler:
    """A plugin of pytest that notes how each test ended, by the clause that it tries."""

    def __init__(self, backend: Backend, on_test: OnTest, again: Sequence[str]) -> None:
        self._backend, self._on_test, self._again = backend, on_test, again
        self._clauses: dict[str, str] = {}
        self._ended = self.total = 0
        self.passed: dict[str, int] = {}
        self.failed: list[Broken] = []
        self.skipped: dict[str, str] = {}
        self.certified: dict[str, str] = {}
        self.is_store_broken = False

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what would be the same again with the inherited methods: all else of a store is its own anyway."""
        is_own = not isinstance(self._backend, StoreBackend) or any(
            _whose(self._backend, name) != "inherited" for name in INHERITED
        )
        items[:] = [
            item
            for item in items
            if "::TestStoreInherited::" not in item.nodeid
            or (is_own and OF_INHERITED & set(cited(getattr(item, "function", None))))
        ]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            name = next(iter(cited(getattr(item, "function", None))), "?")
            if CERTIFIED in f"/{item.nodeid}":
                name = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
            self._clauses[item.nodeid] = name
        self.total = len(self._clauses)
        self._on_test(0, self.total, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        clause = self._clauses[report.nodeid]
        if report.failed:
            said, broken = said_of(report.longreprtext, clause)
            owner, _, name = report.nodeid.rpartition("::")
            self.is_store_broken |= owner.endswith(("::TestStore", "::TestStoreInherited"))
            if owner.endswith("::TestTasks") and self.is_store_broken:
                said += FOLLOWS
            again = shlex.join([*self._again, "--only", name.partition("[")[0]])
            text = report.longreprtext[-6_000:]
            self.failed.append(Broken(test=name, clause=broken, said=said, report=text, again=again))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            # What was not tried is told, also where another test of the clause does not apply.
            if clause not in self.skipped or not reason.startswith(NOT_APPLICABLE):
                self.skipped[clause] = reason
        elif report.when == "call":
            self.passed[clause] = self.passed.get(clause, 0) + 1
            if CERTIFIED in f"/{report.nodeid}":
                self.certified |= {name: str(said) for name, said in report.user_properties if name != CLAUSES_OF}
        if report.when == "teardown":
            self._ended += 1
            self._on_test(self._ended, len(self._clauses), len(self.failed))


@attrs.frozen(kw_only=True)
class Asked:
    """What is to be run.

    Attributes:
        quick, long: Fewer histories and repeats, or more.
        certify: Certification, too.
        only: The name of a test; empty: all.
        seed: Of what the histories draw; None: another one each time.
        other_python: An interpreter with another release of the plugin, for certification; empty: as the bench says.
    """

    quick: bool = False
    long: bool = False
    certify: bool = False
    only: str = ""
    seed: int | None = None
    other_python: str = ""


def check(plugin: Loaded, backend: Backend, url: str, asked: Asked, *, on_test: OnTest) -> Card:
    """Run the whole kit on the backend, if it can be opened at all, and return its card.

    Args:
        url: Where; empty: the scheme alone.

    Raises:
        InvalidValue: No test has the name that was asked for.
        PluginBroken: It cannot be opened; what is wrong with it.
        StoreError, ChannelError: What is behind it refuses, or cannot be reached.
        RuntimeError: No test could be run.
    """
    kind = next(kind.word for kind in KINDS if isinstance(backend, kind.type))
    seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    sizes = [f"--{name}" for name in ("quick", "long") if getattr(asked, name)]
    filler, output, began = (
        _Filler(backend, on_test, _again(plugin.name, url, sizes, asked, seed)),
        io.StringIO(),
        time.monotonic(),
    )
    with tempfile.TemporaryDirectory(prefix="converge-check-") as folder:
        bench = bench_of(plugin.name, backend, url, Path(folder))
        bench.other_python = asked.other_python or bench.other_python
        CURRENT.append(bench)
        try:
            names = [_MODULES[kind], *([_CERTIFYING[kind]] if asked.certify else [])]
            modules = [importlib.reload(importlib.import_module(f"converge.testing._check.{name}")) for name in names]
            having = [module for module in modules if _has(module, asked.only)] or modules
            places = [str(Path(inspect.getfile(module)).resolve()) for module in having]
            root = str(Path(places[0]).parent)
            given = ["--rootdir", root, "--confcutdir", root, "--basetemp", f"{folder}/tests"]
            given += ["-o", "python_classes=Test*", *sizes, f"--hypothesis-seed={seed}"]
            given += ["-k", asked.only] if asked.only else []
            with bench.running(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                try_opening(plugin, backend, bench)
                pytest.main([*GUEST, *IMPORTED, *given, *places], plugins=[filler])
        finally:
            CURRENT.pop()
    if not filler.passed and not filler.failed and not filler.skipped:
        if asked.only and not filler.total:
            raise _unknown(asked.only, modules, kind)
        raise RuntimeError(f"no test of the kit could be run:\n{output.getvalue()[-3_000:]}")
    not_tried, not_applicable = _left(filler, is_whole=not asked.only)
    return Card(
        plugin=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        kind=kind,
        backend=backend.name,
        contract=backend.contract,
        features=tuple(sorted(feature.value for feature in backend.features)),
        durability=backend.durability.name if isinstance(backend, StoreBackend) else "",
        turn=_whose(backend, "turn"),
        url=bench.given,
        release=this_process().release,
        python=sys.version.partition(" ")[0],
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        tried=in_short({name for name in (*filler.passed, *(one.clause for one in filler.failed)) if "-" in name}),
        seconds=round(time.monotonic() - began, 3),
        certified=filler.certified,
        passed=dict(sorted(filler.passed.items(), key=_in_order)),
        broken=tuple(filler.failed),
        not_tried=not_tried,
        not_applicable=not_applicable,
    )


def _again(name: str, url: str, sizes: Sequence[str], asked: Asked, seed: int) -> list[str]:
    """Return the command that checks the same again, but for the test that is to be run alone."""
    certify = ["--certify"] if asked.certify else []
    certify += ["--other-python", asked.other_python] if asked.other_python else []
    return ["converge", "plugins", "check", name, *([url] if url else []), *sizes, *certify, "--seed", str(seed)]


def _unknown(test: str, modules: Sequence[ModuleType], kind: str) -> InvalidValue:
    """Return the error that no test of the kit has this name."""
    known = {name for module in modules for one in vars(module).values() for name in dir(one)}
    near = difflib.get_close_matches(test, sorted(name for name in known if name.startswith("test_")), n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return InvalidValue("only", test, f"the name of a test of the kit for this {kind}{hint}")


def _has(module: ModuleType, test: str) -> bool:
    """Return whether a class of the module has the test: hundreds of others need not be collected for it."""
    return any(isinstance(one, type) and hasattr(one, test) for one in vars(module).values())


def _left(filler: _Filler, *, is_whole: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return why clauses were not tried, and why others are not applicable; of a whole run, those
    without a test, too.
    """
    not_applicable = {
        clause: why.removeprefix(NOT_APPLICABLE)
        for clause, why in filler.skipped.items()
        if why.startswith(NOT_APPLICABLE) and clause not in filler.passed
    }
    letters = {name[0] for name in (*filler.passed, *(one.clause for one in filler.failed))}
    seen = {*filler.passed, *(one.clause for one in filler.failed), *not_applicable}
    expected = [name for name in CLAUSES if is_whole and name[0] in letters and name not in seen]
    untold = {name: ON_THE_WIRE if name in OF_STREAMS else "no test of the kit tries it" for name in expected}
    skipped = {
        clause: why.removeprefix(NOT_TRIED)
        for clause, why in filler.skipped.items()
        if not why.startswith(NOT_APPLICABLE)
    }
    not_tried = untold | skipped
    return dict(sorted(not_tried.items(), key=_in_order)), dict(sorted(not_applicable.items(), key=_in_order))


def _in_order(item: tuple[str, object]) -> tuple[str, int]:
    letter, _, number = item[0].partition("-")
    return letter, int(number) if number.isdigit() else 0


def _whose(backend: Backend, method: str) -> str:
    """Return whether a store has a method of its own: `own`, `inherited`, or empty where it cannot be seen."""
    if not isinstance(backend, StoreBackend):
        return ""
    cls = getattr(backend.open, "__self__", None)
    if not isinstance(cls, type) or not issubclass(cls, Store):
        return ""
    return "own" if getattr(cls, method) is not getattr(Store, method) else "inherited"


def card_text(card: Card) -> str:
    """Return the card as one JSON object on one line, with `"v": 1`."""
    return json.dumps({"v": 1, **attrs.asdict(card)}, ensure_ascii=False)
