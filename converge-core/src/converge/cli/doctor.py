"""`converge doctor`: what is wrong, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import CONFIGURATION, DONE, FAILED, UNREACHABLE
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.cli.wording import runnable
from converge.contracts.store import Finding, Level, error, fine
from converge.errors import ConfigError, NoSuchStore, PluginBroken, SchemaTooNew, StoreError, TornRecord
from converge.operations import run as main
from converge.operations.doctor import check_config, check_process
from converge.operations.doctor_store import check_place, check_store, is_looked_into
from converge.plugins import PluginHost
from converge.runtime.config.config import Config

_CODES = {"config": CONFIGURATION, "plugins": CONFIGURATION, "store": UNREACHABLE}
"""Exit codes of checks that went wrong, in the order in which they count; 1 for all others."""

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def doctor(
    *,
    strict: Annotated[
        bool, Parameter(negative=(), help="Count warnings as errors: exit with 1 if there is one.")
    ] = False,
    probe: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Also send a message to each live process, and a task through a temporary pool; "
            "say how long both take.",
        ),
    ] = False,
    common: Common = NONE,
) -> int:
    """Check configuration, plugins, keys and the store; say of each check what it found and, where something is wrong,
    how to fix it.

    Nothing is changed, except by --probe, and no store is created. Exits with 0 unless there are errors: then with 3
    for the configuration or a plugin, 4 for a store that was not reached, else 1.

    Example: converge doctor --probe --store redis://db:6379/0
    """
    findings = list(check_process())
    try:
        settings = common.configured()
    except ConfigError as problem:
        lines = problem.problems or [str(problem)]
        findings += [
            error("config", line, "`converge config schema` and the reference page list the keys") for line in lines
        ]
    else:
        findings += check_config(settings)
        if not any(one.level is Level.ERROR and one.code == "plugins" for one in findings):
            findings += anyio.run(_look, settings, probe, backend_options=loop_options())
    _write(findings, as_json=common.json)
    return _code(findings, is_strict=strict)


async def _look(config: Config, is_probed: bool) -> list[Finding]:
    host, found = PluginHost(config.plugins), list[Finding]()
    if not is_looked_into(config, host):
        return [
            fine(
                "store",
                f"{config.store} is seen by its own process only, so there is nothing to look at; --store names "
                f"another",
            )
        ]
    try:
        found += await _look_into(config, host)
        if is_probed:
            from converge.operations.probing.network import probe

            found += [one async for one in probe(config)]
    except PluginBroken as problem:
        found.append(error("plugins", str(problem), "mend or replace the plugin; `converge plugins check` checks it"))
    except ConfigError as problem:
        found.append(error("config", str(problem), "change the configuration"))
    except (TornRecord, SchemaTooNew) as problem:
        found.append(
            error(
                "records",
                str(problem),
                "find out what else, or which release, writes to this store; the checks behind it were not made",
            )
        )
    except StoreError as problem:
        found.append(error("store", str(problem), "fix that first; the contents of the store could not be checked"))
    return found


async def _look_into(config: Config, host: PluginHost) -> list[Finding]:
    try:
        async with main.opened_store(config) as store:
            return [one async for one in check_store(store, config, host)]
    except NoSuchStore as problem:
        return [one async for one in check_place(problem, config, host)]


def _write(found: Sequence[Finding], *, as_json: bool) -> None:
    findings = [attrs.evolve(one, mend=runnable(one.mend)) for one in found]
    if as_json:
        for one in findings:
            output.line({"code": one.code, "level": one.level.value, "finding": one.text, "mend": one.mend})
        return
    width = max(len(one.code) for one in findings)
    for one in findings:
        output.marked(f"{one.level:<7}", _STYLES[one.level], f"  {one.code:<{width}}  {one.text}")
        if one.mend:
            output.write(f"{'':7}  {'':{width}}  -> {one.mend}")
    counts = {level: sum(one.level is level for one in findings) for level in Level}
    output.write("")
    output.write(
        f"{_counted(counts[Level.ERROR], 'error')}, {_counted(counts[Level.WARNING], 'warning')}, {counts[Level.OK]} "
        "fine"
    )


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count or 'no'} {word}s"


def _code(findings: Sequence[Finding], *, is_strict: bool) -> int:
    wrong = [one.code for one in findings if one.level is Level.ERROR]
    for code, exit_code in _CODES.items():
        if code in wrong:
            return exit_code
    is_wrong = bool(wrong) or (is_strict and any(one.level is Level.WARNING for one in findings))
    return FAILED if is_wrong else DONE
