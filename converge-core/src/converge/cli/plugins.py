"""`converge plugins`: what is installed, and what one of them declares."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import Json, import_here
from converge.operations.plugin_info import Facts, facts_of
from converge.plugins import PluginHost


def list_plugins(
    *,
    plugin: Annotated[
        list[str] | None, Parameter(name="--plugin", negative=(), help="Load this one first; then its kinds are known.")
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
    columns = ("name", "distribution", "version", "schemes", "kinds")
    output.table(
        columns,
        [(one.name, one.distribution, one.version, " ".join(one.schemes), " ".join(one.kinds)) for one in found],
        has_lines=True,
    )
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
