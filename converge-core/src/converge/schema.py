"""What an attrs class of settings says of its fields, as rows for people, or as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from converge.settings import expected

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_JSON_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}

_BOUNDS: Mapping[str, str] = {">=": "minimum", "<=": "maximum", ">": "exclusiveMinimum", "<": "exclusiveMaximum"}
"""What JSON Schema calls the comparisons of attrs' own validators."""


@attrs.frozen(kw_only=True)
class Setting:
    """One field: its key, what a value is, its default (None: required), its bounds in words, its purpose, its unit."""

    name: str
    type: str
    default: Any
    is_required: bool
    bounds: str
    help: str
    unit: str


def settings_of(cls: type[Any], *, without: Sequence[str] = ()) -> list[Setting]:
    """Return a row for each field that can be set."""
    return [
        Setting(
            name=field.alias or field.name,
            type=expected(field.type),
            default=None if field.default is attrs.NOTHING else plain(default_of(field)),
            is_required=field.default is attrs.NOTHING,
            bounds=bounds_of(field),
            help=field.metadata.get("help", ""),
            unit=field.metadata.get("unit", ""),
        )
        for field in _fields(cls)
        if field.name not in without
    ]


def json_schema(cls: type[Any], *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON Schema of the class's settings; unknown keys are refused, as at run time."""
    fields = [field for field in _fields(cls) if field.name not in without]
    required = [field.alias or field.name for field in fields if field.default is attrs.NOTHING]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.alias or field.name: _property(field) for field in fields},
    }
    return schema | {"additionalProperties": False} | ({"required": required} if required else {})


def default_of(field: attrs.Attribute[Any]) -> Any:
    """Return the default, made if a factory makes it."""
    default: Any = field.default
    return default.factory() if isinstance(default, attrs.Factory) and not default.takes_self else default  # type: ignore[arg-type]  # attrs' stubs


def plain(value: Any) -> Any:
    """Return a setting's value as JSON has it."""
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def _fields(cls: type[Any]) -> Sequence[attrs.Attribute[Any]]:
    attrs.resolve_types(cls)
    return [field for field in attrs.fields(cls) if field.init]


def _property(field: attrs.Attribute[Any]) -> dict[str, Any]:
    text, unit = field.metadata.get("help", ""), field.metadata.get("unit", "")
    described = ", in ".join(part for part in (text, unit) if part)
    one = _limited(_of_type(field.type), dict(_limits(field.validator)))
    if "pattern" in one and default_of(field) == "":
        one["pattern"] = f"^({one['pattern'][1:-1]})?$"  # left out is written as empty text
    if described:
        one["description"] = described
    if field.default is not attrs.NOTHING and (default := plain(default_of(field))) is not None:
        one["default"] = default
    return one


def _limited(schema: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with the limits, which of several types mean the numbers."""
    if "anyOf" not in schema:
        return schema | limits
    return {"anyOf": [one | limits if one.get("type") in ("integer", "number") else one for one in schema["anyOf"]]}


def _of_type(type_: Any) -> dict[str, Any]:
    origin, args = get_origin(type_), get_args(type_)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, UnionType):
        some = [_of_type(arg) for arg in args]
        return some[0] if len(some) == 1 else {"anyOf": some}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": _of_type(args[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _of_type(args[1])}
    if type_ is type(None):
        return {"type": "null"}
    if isinstance(type_, type) and issubclass(type_, Enum):
        return {"enum": [member.value for member in type_]}
    if attrs.has(type_):
        return json_schema(type_)
    return {"type": _JSON_TYPES[type_]} if type_ in _JSON_TYPES else {}


def _limits(validator: Any) -> Iterator[tuple[str, Any]]:
    """Yield what JSON Schema can say of a validator; the check at run time has the last word."""
    for one in _parts(validator):
        if (least := getattr(one, "least", None)) is not None:
            yield "minimum", least
        if (greatest := getattr(one, "greatest", None)) is not None:
            yield "maximum", greatest
        if (name := _BOUNDS.get(getattr(one, "compare_op", ""))) is not None:
            yield name, one.bound
        if (choices := getattr(one, "options", None)) is not None:
            yield "enum", sorted(choices)
        if (pattern := getattr(one, "pattern", None)) is not None:
            yield "pattern", f"^{pattern.pattern}$"


def _parts(validator: Any) -> Iterator[Any]:
    inner = getattr(validator, "_validators", None) or getattr(validator, "validator", None)
    if inner is None:
        yield validator
        return
    for one in inner if isinstance(inner, list | tuple) else [inner]:
        yield from _parts(one)


def bounds_of(field: attrs.Attribute[Any]) -> str:
    """Return the bounds of a number in words; empty: it has none that can be told."""
    limits = dict(_limits(field.validator))
    least, greatest = limits.get("minimum"), limits.get("maximum")
    if least is not None and greatest is not None:
        return f"{_number(least)} to {_number(greatest)}"
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
    }
    return ", ".join(f"{word} {_number(limits[name])}" for name, word in words.items() if name in limits)


def _number(value: float) -> str:
    return f"{int(value) if float(value).is_integer() else value:,}"
