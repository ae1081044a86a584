"""`converge plugins new`: the package of a plugin to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import Json
from converge.errors import InvalidValue
from converge.operations.plugins.scaffold import TEMPLATES, write_plugin


def new(
    kind: Annotated[
        Literal["store", "transport", "discovery", "hooks"],
        Parameter(help="What it is: a store, a transport, a discovery, or hooks (a decision and a guard)."),
    ],
    name: Annotated[str, Parameter(help="The name that users type: --plugin NAME, and NAME: as a URL's scheme.")],
    /,
    *,
    embedded: Annotated[
        bool, Parameter(negative=(), help="A store in files that the processes of one host share; the default.")
    ] = False,
    server: Annotated[
        bool, Parameter(negative=(), help="A store that is a server; the package has a small one.")
    ] = False,
    dir: Annotated[Path, Parameter(name="--dir", metavar="FOLDER", help="Where to put the package's folder.")] = Path(),
    json: Json = False,
) -> int:
    """Write a new plugin: a complete package that passes the conformance kit, for you to change part by part.

    Its folder is converge-KIND-NAME. What to replace is marked REPLACE; its README says how to install and test it.
    """
    if (embedded or server) and kind != "store":
        raise InvalidValue("--server" if server else "--embedded", kind, "a store; other kinds have one form only")
    if embedded and server:
        raise InvalidValue("--server", "--embedded --server", "one of them")
    folder, *written = write_plugin(TEMPLATES["store --server" if server else kind], name, dir)
    if json:
        output.line({"folder": str(folder), "files": [str(file.relative_to(folder)) for file in written]})
        return DONE
    for file in written:
        output.write(str(file))
    output.note(f"next: pip install -e '{folder}[testing]'; pytest {folder}; converge plugins check {name}")
    return DONE
