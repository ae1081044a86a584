"""What the public modules hold: names, and what each can be called with. `python tests/repo/public_api.py` notes it in
`public_api.json`, which a release does; `test_public_api.py` holds that nothing noted is gone.
"""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTED = Path(__file__).with_name("public_api.json")
PLUGINS = ("converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws")
# Of the test kit the classes are inherited, not called: its pages say what an author gives.
LEFT_OUT = ("converge.testing",)

Parameters = list[tuple[str, str, bool]]
"""Of each parameter its name, its kind, and whether it has a default."""


def modules() -> list[str]:
    """Return the public modules, as their page names them."""
    rows = re.findall(r"^\| (`converge[^|]*)\|", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    return [name for name in (*names, *PLUGINS) if not name.startswith(LEFT_OUT)]


def names_of(module: Any) -> list[str]:
    """Return the public names of a module: those that it lists, or else its own."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(name for name in own if not name.startswith("_"))


def parameters(value: Any) -> Parameters | None:
    """Return what something can be called with; None of what cannot be, or does not say."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    some = signature.parameters.values()
    return [(one.name, one.kind.name, one.default is not inspect.Parameter.empty) for one in some]


def found() -> dict[str, Parameters | None]:
    """Return each public name and each public method, with its parameters."""
    api: dict[str, Parameters | None] = {}
    for name in modules():
        module = import_module(name)
        for public in names_of(module):
            value = getattr(module, public)
            api[f"{name}.{public}"] = parameters(value) if callable(value) else None
            if inspect.isclass(value) and value.__module__.startswith("converge"):
                for method, one in inspect.getmembers(value, inspect.isroutine):
                    if not method.startswith("_") and str(getattr(one, "__module__", "")).startswith("converge"):
                        api[f"{name}.{public}.{method}"] = parameters(one)
    return api


def main() -> None:
    """Note what there is."""
    lines = [f"{json.dumps(name)}: {json.dumps(api)}" for name, api in sorted(found().items())]
    NOTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
