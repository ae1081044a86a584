"""A docstring of a function says what it does, in the imperative: "Return whether", not "Tell whether" or "Whether"."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
CLAUSE = re.compile(r"[A-Z]-\d")
"""What a check of the kit begins with: its clause."""

NO_VERB = re.compile(
    r"(?:An?|All|Another|Any|Each|Every|Everything|No|One|Other|Several|Some|Th(?:e|ese|is|ose)|Two|Three|Both"
    r"|Nobody|Nothing|It|They|There|What|When|Where|Whether|While|Who|How|If|Not|Only|Said|Called|Value|Revision"
    r"|After|As|At|By|For|From|In|On|Through|To|With|Without)\b"
)
"""Beginnings that say what is so, not what the function does."""

TELLING = re.compile(r"\b(?:tell|say|answer|give)s? (?:whether|how many|which|what)\b", re.IGNORECASE)
"""Words in the place of "return", where they are the function's verb."""

THINGS = frozenset(("property", "cached_property", "fixture", "rule", "invariant", "hookspec"))
"""What makes of a function a thing, a step of a story or an event: its docstring may say what that is."""


def wrong_beginnings(source: str) -> list[str]:
    """The functions whose docstring begins otherwise. Tests state a rule, and `__init__` explains its arguments."""
    found = []
    for node in walked(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(("test_", "__init__")):
            text = ast.get_docstring(node) or ""
            if not CLAUSE.match(text) and not THINGS & {_name(one) for one in node.decorator_list} and _is_wrong(text):
                found.append(f"{node.name}: {' '.join(text.split()[:4])}")
    return found


def _name(decorator: ast.expr) -> str:
    inner = decorator.func if isinstance(decorator, ast.Call) else decorator
    return inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")


def _is_wrong(text: str) -> bool:
    first = (text.split() or ["Nothing"])[0].rstrip(",;:.")
    is_third_person = first.endswith("s") and not first.endswith("ss")
    verbs = re.split(r"[;:.]\s+", text.partition("\n\n")[0])
    is_telling = any(TELLING.match(verb) for verb in verbs)
    return bool(text) and (NO_VERB.match(first) is not None or first.startswith("`") or is_third_person or is_telling)


def test_docstrings_of_functions_are_in_the_imperative() -> None:
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    assert {str(file.relative_to(ROOT)): found for file in files if (found := wrong_beginnings(file.read_text()))} == {}


def test_another_beginning_is_found() -> None:
    for text in (
        "Tell whether it is.",
        "Returns it.",
        "The values.",
        "`x`: a.",
        "Stop it; tell how many ran.",
        "Answer what is.",
    ):
        assert wrong_beginnings(f'async def f():\n    """{text}"""'), text


def test_a_verb_and_what_is_no_action_are_right() -> None:
    for text in ("Return whether it is.", "Pass it on.", "Tell others of it.", "S-3. One of them wins."):
        assert not wrong_beginnings(f'def f():\n    """{text}"""'), text
    assert not wrong_beginnings('@property\ndef g():\n    """Whether it is."""')
    assert not wrong_beginnings('@pytest.fixture(scope="module")\ndef g():\n    """A store."""')
