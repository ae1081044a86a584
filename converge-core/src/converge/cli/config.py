"""`converge config`: show the effective configuration and its origins, check a file, write the schema."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import CONFIGURATION, DONE, told
from converge.cli.options import NONE, Common, Json, Plugins, PoolId, Verbose, import_here
from converge.errors import ConfigError
from converge.plugins import PluginHost
from converge.runtime.config.config import KEYS, Config
from converge.runtime.config_check import check_file, schema_of, shown_settings

File = Annotated[Path, Parameter(help="The TOML file; YAML is read where its library is installed.")]


def show(
    *,
    origin: Annotated[
        bool,
        Parameter(negative=(), help="Show where each value comes from: a file, a variable, a flag, or the default."),
    ] = False,
    changed: Annotated[bool, Parameter(negative=(), help="Only what is not at its default.")] = False,
    pool: PoolId = None,
    common: Common = NONE,
) -> int:
    """Show the configuration as `run` would use it, passwords masked: flags override the environment, then the
    file, then defaults.
    """
    settings = common.configured(pool_id=pool)
    rows = shown_settings(settings, is_changed_only=changed)
    if common.json:
        for one in rows:
            output.line({"key": one.key, "value": one.value, "origin": one.origin})
        return DONE
    columns = ("key", "value", "origin") if origin else ("key", "value")
    output.table(columns, [(one.key, _cell(one.value), one.origin)[: len(columns)] for one in rows])
    return DONE


def check(file: File, /, *, plugin: Plugins = None, json: Json = False, verbose: Verbose = False) -> int:
    """List everything that is wrong with a configuration file; exit with 3 if anything is.

    The environment and other flags play no part. The plugins, backends and options that it names are looked up on this
    machine.
    """
    try:
        import_here(("here:",))  # plugins of the working directory may be named in the file
        settings, problems = check_file(file, plugin or ())
    except ConfigError as error:
        problems = list(error.problems) or [str(error)]
        settings = Config()
    if json:
        output.line({"file": str(file), "is_valid": not problems, "problems": problems})
    elif problems:
        told(*problems)
    else:
        count = sum(settings.origins[key] == str(file) for key in KEYS)
        output.write(f"{file}: nothing is wrong; it sets {count} key{'' if count == 1 else 's'}")
    return CONFIGURATION if problems else DONE


def schema(*, plugin: Plugins = None, json: Json = False) -> int:
    """Write the JSON Schema of the configuration file, with the options of the built-in backends and of the plugins
    named.
    """
    import_here(plugin or ())
    made = schema_of(PluginHost(plugin or ()))
    if json:
        output.line(made)
    else:
        output.write(json_.dumps(made, indent=2, ensure_ascii=False))
    return DONE


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return (
        " ".join(value)
        if isinstance(value, list) and all(isinstance(one, str) for one in value)
        else output.text(value)
    )
