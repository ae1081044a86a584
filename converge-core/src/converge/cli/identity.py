"""`converge identity`: kept keys. Key type, id and file are shown, a key never is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import Common, ConfigFile, Json, Verbose
from converge.env import SYSTEM
from converge.errors import ConfigError
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.keyring import KeyShown, new_key, rotate_key, show_key, show_keys

IdentityDir = Annotated[str | None, Parameter(help="The folder of the keys; by default what the configuration says.")]


def new(
    kind: Annotated[
        str, Parameter(help="The kind: node, or an agent's class; with --rotate a key's name, such as node.0.")
    ] = "node",
    /,
    *,
    rotate: Annotated[
        bool,
        Parameter(negative=(), help="Replace this key by a new one that it signs; no process may be using it."),
    ] = False,
    identity_dir: IdentityDir = None,
    config: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Create a key, which the next process without one of its kind uses; or rotate one."""
    with _folder(config, identity_dir, is_verbose=verbose) as folder:
        _write([rotate_key(folder, kind, SYSTEM) if rotate else new_key(folder, kind, SYSTEM)], is_json=json)
    return DONE


def show(
    name: Annotated[str | None, Parameter(help="A key's name, such as node.0; without one all are shown.")] = None,
    /,
    *,
    identity_dir: IdentityDir = None,
    config: ConfigFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Show kept keys: type, id and file, never the key, and whether a live process uses it."""
    with _folder(config, identity_dir, is_verbose=verbose, is_made=False) as folder:
        _write([show_key(folder, name)] if name else list(show_keys(folder)), is_json=json)
    return DONE


@contextmanager
def _folder(
    config: Path | None, identity_dir: str | None, *, is_verbose: bool, is_made: bool = True
) -> Iterator[KeyFolder]:
    chosen = Common(config=config, verbose=is_verbose).configured(identity_dir=identity_dir).identity_dir
    if not chosen:
        raise ConfigError(
            "identity_dir: is missing: name the folder of the keys with --identity-dir, or in the configuration"
        )
    with closing(KeyFolder.open(Path(chosen), is_made=is_made)) as folder:
        yield folder


def _write(keys: list[KeyShown], *, is_json: bool) -> None:
    if is_json:
        for key in keys:
            output.line({**attrs.asdict(key), "path": str(key.path)})
        return
    rows = [(key.name, key.type, key.id, key.rotations, "yes" if key.is_used else "no", str(key.path)) for key in keys]
    output.table(("name", "type", "id", "rotations", "in use", "file"), rows)
