"""Plain data to attrs classes: strictly typed, every problem at once, each with its path, value and expectation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from converge.errors import ConfigError, ConvergeError, UnknownSetting
from converge.secret import MASK, is_secret, masked_repr

_T = TypeVar("_T")

_WORDS: Mapping[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
"""The types that are taken as they are, never made out of another one: `"false"` is not False."""


_SEQUENCES: tuple[Any, ...] = (list, tuple, Sequence)
_MAPPINGS: tuple[Any, ...] = (dict, Mapping)


@attrs.frozen
class Problem:
    """One thing that is wrong: where, and what with it. `is_unknown`: the key itself is not known."""

    path: str
    text: str
    is_unknown: bool = False

    def under(self, parent: str) -> Problem:
        """Return it as seen from the settings that hold these."""
        joined = parent + self.path if self.path.startswith("[") else f"{parent}.{self.path}" if self.path else parent
        return attrs.evolve(self, path=joined)


class ProblemsError(ValueError):
    """Carries the problems of nested settings to where they are gathered."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = tuple(problems)


def structured(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    """Return an instance of the attrs class.

    Args:
        where: Where the data comes from; every problem begins with it.

    Raises:
        UnknownSetting: All that is wrong are unknown keys; the nearest known one is named.
        ConfigError: With all problems, in its text and as `problems`.
    """
    values, problems = checked(cls, data)
    raise_problems(problems, where)
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a rule between several of its fields
        raise ConfigError(f"{where}: {error}", problems=[f"{where}: {error}"]) from error


def raise_problems(problems: Sequence[Problem], where: str = "") -> None:
    """Raise one error with all problems, if there are any."""
    lines = [": ".join(part for part in (where, problem.path, problem.text) if part) for problem in problems]
    if lines:
        kind = UnknownSetting if all(problem.is_unknown for problem in problems) else ConfigError
        raise kind("\n".join(lines), problems=lines)


def unknown(path: str, known: Sequence[str]) -> Problem:
    """Return the problem of an unknown key."""
    near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1)
    hint = (
        f'did you mean "{near[0]}"?'
        if near
        else f"known are {', '.join(known)}"
        if known
        else "there is nothing to set here"
    )
    return Problem(path, f"unknown key; {hint}", True)


def checked(cls: type[Any], data: object) -> tuple[dict[str, Any], list[Problem]]:
    """Return the class's arguments that the data gives, and all problems; a class with problems is not to be made."""
    if not isinstance(data, Mapping):
        return {}, [Problem("", f"{shown('', data)} is not allowed; expected a table of settings")]
    attrs.resolve_types(cls)
    fields = {field.alias or field.name: field for field in attrs.fields(cls) if field.init}
    problems = [unknown(str(key), list(fields)) for key in data if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            value, found = _value(field, data[name])
            problems += [problem.under(name) for problem in found]
            values[name] = value
        elif field.default is attrs.NOTHING:
            problems.append(Problem(name, f"is missing; expected {expected(field.type)}{_help(field)}"))
    return values, problems


def shown(name: str, value: object) -> str:
    """Return a value as messages may show it: short, without secrets."""
    if value and is_secret(name):
        return MASK
    text = masked_repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def expected(type_: Any) -> str:
    """Return in words what a value of this type is."""
    origin, args = get_origin(type_), get_args(type_)
    if origin is Literal:
        return f"one of {', '.join(str(arg) for arg in args if arg != '')}"
    if origin in (Union, UnionType):
        return " or ".join(expected(arg) for arg in args if arg is not type(None))
    if origin in _SEQUENCES:
        return f"a list, each item {expected(args[0])}"
    if origin in _MAPPINGS:
        return "a table"
    if isinstance(type_, type) and issubclass(type_, Enum):
        return f"one of {', '.join(str(member.value) for member in type_)}"
    return _WORDS.get(type_, "a table of settings" if attrs.has(type_) else "another value")


def _value(field: attrs.Attribute[Any], raw: object) -> tuple[Any, list[Problem]]:
    type_: Any = field.type or Any
    try:
        value = _CONVERTER.structure(raw, type_)
    except ProblemsError as error:
        return None, list(error.problems)
    except Exception:  # whatever a hook of cattrs says, it is this value that does not fit
        return None, [Problem("", f"{shown(field.name, raw)} is not allowed; expected {expected(type_)}{_help(field)}")]
    if field.validator is None:
        return value, []
    # The validators of a class stop at the first problem; here each runs for itself, on an instance that holds this one
    # value.
    try:
        field.validator(SimpleNamespace(**{field.name: value}), field, value)
    except (ValueError, TypeError, ConvergeError) as error:
        return None, [Problem("", f"{shown(field.name, raw)} is not allowed; {_reason(error, field)}{_help(field)}")]
    except AttributeError:  # it compares several fields: the whole class will say
        pass
    return value, []


def _reason(error: Exception, field: attrs.Attribute[Any]) -> str:
    """Return what a validator said, without the name and the value that attrs puts around it."""
    if isinstance(wanted := getattr(error, "expected", None), str):
        return f"expected {wanted}"
    text = str(error.args[0]) if error.args else str(error)
    text = text.removeprefix(f"'{field.name}' ")
    text = re.sub(r"<class '([\w.]+)'>", lambda found: found[1].rpartition(".")[2], text)
    return re.sub(r"( \(got .*|: [^:]*)$", "", text, flags=re.DOTALL)


def _help(field: attrs.Attribute[Any]) -> str:
    text, unit = field.metadata.get("help", ""), field.metadata.get("unit", "")
    return f" ({text}{', ' if text and unit else ''}{f'in {unit}' if unit else ''})" if text or unit else ""


def _exact(raw: object, type_: type[Any]) -> Any:
    if type_ is Path and isinstance(raw, str) and raw:
        return Path(raw)
    if type_ is float and type(raw) is int:
        return float(raw)
    if (
        isinstance(raw, bool) != (type_ is bool)
        or not isinstance(raw, type_)
        or raw in (float("inf"), float("-inf"))
        or raw != raw
    ):
        raise ValueError(expected(type_))
    return raw


def _sequence(raw: object, type_: Any) -> Any:
    if not isinstance(raw, list | tuple):
        raise ValueError(expected(type_))
    items = [_item(f"[{at}]", item, get_args(type_)[0]) for at, item in enumerate(raw)]
    return _gathered(items, list if get_origin(type_) is list else tuple)


def _mapping(raw: object, type_: Any) -> Any:
    if not isinstance(raw, Mapping):
        raise ValueError(expected(type_))
    items = [_item(str(key), item, get_args(type_)[1]) for key, item in raw.items()]
    return _gathered(items, lambda values: dict(zip(map(str, raw), values, strict=True)))


def _is_union(type_: Any) -> bool:
    origin: Any = get_origin(type_)
    return origin in (Union, UnionType)


def _one_of(raw: object, type_: Any) -> Any:
    """Return the value as the one of a union's types that its kind fits: a number has no problems of a list's."""
    args = get_args(type_)
    if raw is None and type(None) in args:
        return None
    fits = [arg for arg in args if arg is not type(None) and isinstance(raw, _kind(arg))]
    if not fits:
        raise ValueError(expected(type_))
    return _CONVERTER.structure(raw, fits[0])


def _kind(type_: Any) -> Any:
    origin = get_origin(type_)
    if origin in _SEQUENCES:
        return list | tuple
    if origin in _MAPPINGS or attrs.has(type_):
        return Mapping
    return {float: int | float, Path: str | Path}.get(type_, type_) if isinstance(type_, type) else object


def _item(path: str, raw: object, type_: Any) -> tuple[Any, list[Problem]]:
    try:
        return _CONVERTER.structure(raw, type_), []
    except ProblemsError as error:
        return None, [problem.under(path) for problem in error.problems]
    except Exception:  # as in _value
        return None, [Problem(path, f"{shown(path, raw)} is not allowed; expected {expected(type_)}")]


def _gathered(items: Sequence[tuple[Any, list[Problem]]], make: Callable[[list[Any]], Any]) -> Any:
    problems = [problem for _, some in items for problem in some]
    if problems:
        raise ProblemsError(problems)
    return make([value for value, _ in items])


def _nested(raw: object, cls: type[Any]) -> Any:
    values, problems = checked(cls, raw)
    if problems:
        raise ProblemsError(problems)
    return cls(**values)


def _new_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for type_ in _WORDS:
        converter.register_structure_hook(type_, _exact)
    converter.register_structure_hook_func(lambda type_: get_origin(type_) in _SEQUENCES, _sequence)
    converter.register_structure_hook_func(lambda type_: get_origin(type_) in _MAPPINGS, _mapping)
    converter.register_structure_hook_func(attrs.has, _nested)
    converter.register_structure_hook_func(_is_union, _one_of)
    return converter


_CONVERTER = _new_converter()
