"""`converge plugins`: what is installed."""

from __future__ import annotations

from typing import Annotated

import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import Json, import_here
from converge.plugins import PluginHost


def list_plugins(
    *,
    plugin: Annotated[list[str] | None, Parameter(name="--plugin", negative=(), help="Load this one first; then its kinds are known.")] = None,
    json: Json = False,
) -> int:
    """List installed plugins; none of them is imported, unless --plugin names it."""
    import_here(plugin or ())
    found = PluginHost(tuple(plugin or ())).installed()
    if json:
        for one in found:
            output.line({**attrs.asdict(one), "schemes": list(one.schemes), "kinds": list(one.kinds), "backends": list(one.backends)})
        return DONE
    columns = ("name", "distribution", "version", "schemes", "kinds")
    output.table(columns, [(one.name, one.distribution, one.version, " ".join(one.schemes), " ".join(one.kinds)) for one in found])
    return DONE
