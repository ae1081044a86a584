"""`converge plugins`: what is installed, and what one of them declares."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import Json, import_here
from converge.cli.plugins.commands import check_parameters
from converge.errors import ConfigError, InvalidValue
from converge.operations.plugins.info import Facts, checked, facts_of, last_cards, loaded_and_packed, save_cards
from converge.plugins import PluginHost
from converge.plugins.found import misplaced
from converge.plugins.loaded import Loaded
from converge.secret import without_password


def list_plugins(
    *,
    plugin: Annotated[
        list[str] | None,
        Parameter(name="--plugin", negative=(), help="Load this one first, so that its kinds are shown."),
    ] = None,
    json: Json = False,
) -> int:
    """List installed plugins; none of them is imported, unless --plugin names it."""
    import_here(plugin or ())
    found = PluginHost(tuple(plugin or ())).installed()
    if json:
        for one in found:
            output.line(
                {
                    **attrs.asdict(one),
                    "schemes": list(one.schemes),
                    "kinds": list(one.kinds),
                    "backends": list(one.backends),
                }
            )
        return DONE
    columns, rows = (
        ["name", "distribution", "version", "schemes"],
        [[one.name, one.distribution, one.version, " ".join(one.schemes)] for one in found],
    )
    if any(one.is_loaded for one in found):  # nothing is known of the others' kinds
        columns.append("kinds")
        rows = [[*row, " ".join(one.kinds)] for row, one in zip(rows, found, strict=True)]
    output.table(columns, rows, has_lines=True)
    for text in misplaced():
        output.note(text)
    return DONE


def show(
    name: Annotated[str, Parameter(help="The plugin's name, as `plugins list` has it, or module:attribute.")],
    /,
    *,
    json: Json = False,
) -> int:
    """Show one plugin: its distribution, its file and hash, its hooks, and the options of each backend. Only this
    plugin is imported.
    """
    import_here([name])
    facts = facts_of(name)
    if json:
        output.line(attrs.asdict(facts, value_serializer=_plain))
        return DONE
    output.table(("field", "value"), [row for row in _own(facts) if row[1]])
    for card in last_cards(facts.name):
        if card.keys() >= _ABOUT_ALL:  # else another release wrote it
            output.write("")
            _write_card(card)
    for backend in facts.backends:
        output.write("")
        rows = [
            (backend.kind, backend.name),
            ("schemes", " ".join(backend.schemes)),
            ("contract", backend.contract),
            ("features", " ".join(backend.features)),
            ("durability", backend.durability),
        ]
        output.table(("backend", "value"), [row for row in rows if row[1]])
        if backend.options:
            output.write("")
            title = f"[options.{backend.name}]"
            output.table(
                (title, "value", "default", "bounds", "unit", "meaning"),
                [
                    (one.name, one.type, _default(one.default), one.bounds, one.unit, one.help)
                    for one in backend.options
                ],
            )
    return DONE


def check(
    name: Annotated[str, Parameter(help="The plugin's name, as `plugins list` has it, or module:attribute.")],
    url: Annotated[
        str, Parameter(help="SCHEME://HOST of a server, or SCHEME:PATH of a file; by default the scheme alone.")
    ] = "",
    /,
    *,
    quick: Annotated[
        bool, Parameter(negative=(), help="Fewer random histories and repeats; every clause is still tested.")
    ] = False,
    long: Annotated[bool, Parameter(negative=(), help="More random histories and repeats: for a release.")] = False,
    certify: Annotated[
        bool, Parameter(negative=(), help="Also test it while its server or peer restarts, freezes or is cut off.")
    ] = False,
    other_python: Annotated[
        str,
        Parameter(
            metavar="PYTHON",
            help="Also certify beside another release of the plugin: the interpreter of its environment.",
        ),
    ] = "",
    only: Annotated[str, Parameter(metavar="TEST", help="Run one test of the kit alone.")] = "",
    seed: Annotated[
        int | None, Parameter(metavar="NUMBER", help="The seed of the random histories, as a card shows it.")
    ] = None,
    report: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="Also write the report cards to this file, one JSON object per line."),
    ] = None,
    json: Json = False,
) -> int:
    """Check a plugin: its declaration, then the whole conformance kit on each of its backends.

    It needs no file of tests. Each test has a place of its own: another network on a server, another path in a folder
    of its own for a store in a file. The card says which clauses passed, which failed with what was seen, and which
    were not tried and why; `plugins show NAME` shows the last one. Needs converge-core[testing].
    """
    import_here([name])
    loaded = loaded_and_packed(name)
    _check_url(loaded, url)
    check_parameters(PluginHost([loaded.name]).commands)
    asked = {"quick": quick, "long": long, "certify": certify or bool(other_python), "only": only, "seed": seed}
    asked["other_python"] = other_python
    if find_spec("pytest") is None or find_spec("hypothesis") is None:
        raise ConfigError("the kit needs pytest and hypothesis; pip install 'converge-core[testing]' brings them")
    with output.progress(loaded.name, is_wanted=True) as on_progress:
        cards = checked(loaded.name, url, on_progress or (lambda done, total, bad: None), asked)
    text = "".join(f"{json_.dumps(card, ensure_ascii=False)}\n" for card in cards)
    if not only:
        save_cards(loaded.name, text)  # one test alone is no check
    if report is not None:
        report.write_text(text, encoding="utf-8")
    for card in cards:
        output.line(card) if json else _write_card(card)
    if not cards:
        output.note(f"{loaded.name} declares no backend; its hooks are well formed")
    return FAILED if any(card["broken"] for card in cards) else DONE


def _check_url(loaded: Loaded, url: str) -> None:
    """Refuse a URL that names none of the plugin's backends: nothing would be tried, and nothing found."""
    schemes = sorted({scheme for some in loaded.backends.values() for one in some for scheme in one.schemes})
    if url and url.partition(":")[0] not in schemes:
        wanted = f"a URL that begins with {' or '.join(f'{scheme}:' for scheme in schemes)}"
        none = f"none, since no backend of {loaded.name} has a scheme"
        raise InvalidValue("URL", url, wanted if schemes else none, shown=f'"{without_password(url)}"')


def _write_card(card: Mapping[str, Any]) -> None:
    rows = [(name, _words(card[name])) for name in _ABOUT]
    rows += [("certified", f"{name}: {said}") for name, said in card.get("certified", {}).items()]
    rows += [*_ended(card), *(("not tried", f"{name}: {why}") for name, why in card["not_tried"].items())]
    rows += [("not applicable", f"{name}: {why}") for name, why in card["not_applicable"].items()]
    output.table(("report card", "value"), [row for row in rows if row[1] not in ("", None)])
    _write_broken(card["broken"])


def _ended(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return which clauses passed, and which are broken: a clause of which one test failed is none that passed."""
    broken = dict.fromkeys(one["clause"] for one in card["broken"])
    passed = ", ".join(name for name in card["passed"] if name not in broken) if broken else card["tried"]
    rows = [("passed", f"{passed}: {sum(card['passed'].values())} tests, {card['seconds']:.0f} s")]
    return rows + ([("broken", f"{', '.join(broken)}: {len(card['broken'])} tests")] if broken else [])


def _write_broken(broken: Sequence[Mapping[str, Any]]) -> None:
    """Write failures, of those that say the same the first one whole: one mistake may break each test of a kit."""
    seen = set[str]()
    for one in broken[:BROKEN_SHOWN]:
        is_whole = one["said"] not in seen and len(seen) < REPORTS_SHOWN
        seen.add(one["said"])
        if is_whole:
            output.write("")
        output.marked("broken ", "red", f"{one['clause']} in {one['test']}: {one['said']}")
        if is_whole:
            for line in one["report"].splitlines()[-REPORT_LINES:]:
                output.write(line)
            output.write(f"again: {one.get('again', '')}")
    if len(broken) > BROKEN_SHOWN:
        output.write(f"and {len(broken) - BROKEN_SHOWN} more; --report FILE writes all that is known of each")


_ABOUT = ("plugin", "version", "kind", "backend", "contract", "features", "durability", "turn", "url", "release", "at")

_ABOUT_ALL = {*_ABOUT, "tried", "passed", "seconds", "broken", "not_tried", "not_applicable"}

BROKEN_SHOWN = 40
"""Failures that are shown, a line each; the card has all."""

REPORTS_SHOWN = 10
"""Failures of which the report is shown, too."""

REPORT_LINES = 30
"""Lines of a failure's report that are shown; the card has more."""


def _words(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _own(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("name", facts.name),
        ("distribution", f"{facts.distribution} {facts.version}".strip() or "none: it is from the import path"),
        ("summary", facts.summary),
        ("module", facts.module),
        ("file", facts.file),
        ("sha256", facts.sha256),
        ("hooks", " ".join(facts.hooks)),
        ("decisions", " ".join(facts.decisions)),
    ]


def _default(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value in (None, "") else output.text(value)


def _plain(_instance: object, _field: object, value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
