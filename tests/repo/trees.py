"""Each module is parsed once, however many rules look at it."""

from __future__ import annotations

import ast
import gc
from functools import cache


@cache
def parsed(source: str) -> ast.Module:
    """Return the tree of a module, which nobody changes."""
    return ast.parse(source)


@cache
def walked(source: str) -> tuple[ast.AST, ...]:
    """Return all nodes of a module; no garbage is looked for among what is all kept."""
    gc.disable()
    try:
        return tuple(ast.walk(parsed(source)))
    finally:
        gc.enable()
