"""What is wrong with the declaration of a backend: all of it at once, each mistake with its mend."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import Durability, Feature, StoreBackend
from converge.contracts.transport import TransportBackend
from converge.foreign import Raised, describe, guarded, name_of, text_of
from converge.schema import bounds_of, default_of, plain

NAME = re.compile(r"[a-z][a-z0-9-]*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_NAME_RULE = "lower case, a-z first, then a-z 0-9 -"

Backend = StoreBackend | TransportBackend | DiscoveryBackend

OPEN_ARGUMENTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "store": (("url", "options"), ()),
    "transport": (("options",), ()),
    "discovery": (("options",), ("store", "poll_sec")),
}
"""How each contract calls `open`: by position, then by name."""

CORE_OPTIONS: Mapping[str, type] = {"must_exist": bool, "network": str}
"""Options that core sets where a store has them."""

PUT_DECORATOR = "put @asynccontextmanager of contextlib before it"
_PLAIN_MANAGER = contextmanager(lambda: iter(())).__code__
"""The code of all functions that `@contextmanager` makes."""

_PLAIN = (bool, int, float, str, Path)
_VALUES = (*_PLAIN, list, dict)


def mistakes(word: str, backend: Backend) -> Iterator[str]:
    """Yield what is wrong with the declaration of a backend, but for the number of its contract; `word` is the kind's.

    No text names the plugin; whoever raises it does.
    """
    what = f"the {word} {shown(backend.name)}"
    for check in (_of_names, _of_features, _of_kind, _of_open, _of_calls, _of_options):
        yield from (f"{what}: {mistake}" for mistake in told(check, word, backend))


def told(check: Callable[..., Iterator[str]], *given: Any) -> list[str]:
    """Return the mistakes that a check yields. It asks what a plugin gave, which may raise when it is asked."""
    found = list[str]()
    if type(raised := guarded(lambda: found.extend(check(*given)))) is Raised:
        found.append(f"it cannot be looked at: {raised.text}; declare plain values")
    return found


def shown(value: object) -> str:
    """Return a value of the plugin's as a message may show it: `"toy"`, `None`."""
    text = json.dumps(value) if isinstance(value, str) else text_of(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _of_names(word: str, backend: Backend) -> Iterator[str]:
    name: object = backend.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield f"{shown(backend.name)} is not a name for a {word}: {_NAME_RULE}"
    schemes: Any = backend.schemes
    if isinstance(schemes, str) or not isinstance(schemes, Sequence):
        yield f'its schemes are {shown(schemes)}, expected a tuple of text, such as ("toy",) with its comma'
        return
    if not schemes and word != "discovery":
        yield "it has no scheme, so no URL can name it; give one, such as its name"
    for scheme in schemes:
        if not isinstance(scheme, str) or not _SCHEME.fullmatch(scheme):
            yield f"{shown(scheme)} is not a scheme of a URL: {_NAME_RULE} + ."


def _of_kind(word: str, backend: Backend) -> Iterator[str]:
    """Check what only one kind of backend has."""
    if isinstance(backend, TransportBackend):
        secure: Any = backend.secure_schemes
        if not isinstance(secure, frozenset | set):
            yield f'its secure_schemes are {shown(secure)}, expected a frozenset of text, such as frozenset({{"tls"}})'
        elif extra := [one for one in secure if one not in backend.schemes]:
            yield f"secure_schemes names {', '.join(map(shown, extra))}, which its schemes do not; name it in both"
    elif isinstance(backend, DiscoveryBackend) and type(backend.publishes) is not bool:
        yield f"its publishes is {shown(backend.publishes)}, expected True or False"


def _of_features(word: str, backend: Backend) -> Iterator[str]:
    features: Any = backend.features
    if isinstance(features, str | Feature) or not isinstance(features, frozenset | set | tuple | list):
        yield f"its features are {shown(features)}, expected a frozenset of converge.contracts.store.Feature"
        return
    for one in features:
        if not isinstance(one, Feature):
            known = ", ".join(feature.name for feature in Feature)
            yield f"{shown(one)} is no Feature; there are {known}"
    if not isinstance(backend, StoreBackend):
        return
    if not isinstance(backend.durability, Durability):
        yield f"its durability is {shown(backend.durability)}, expected Durability.D0 to Durability.D3"
    elif backend.durability > Durability.D0 and Feature.PERSISTENT not in features:
        yield f"its durability is {backend.durability.name} without Feature.PERSISTENT; declare both, or D0"


def _of_open(word: str, backend: Backend) -> Iterator[str]:
    opens: Any = backend.open
    if not callable(opens):
        yield f"its open is {shown(opens)}, expected a function that returns an async context manager"
        return
    kinds = {
        "a coroutine function": inspect.iscoroutinefunction,
        "an async generator function": inspect.isasyncgenfunction,
        "a generator function": inspect.isgeneratorfunction,
    }
    kind = next((kind for kind, is_one in kinds.items() if is_one(opens)), "")
    if getattr(opens, "__code__", None) is _PLAIN_MANAGER:
        kind = "made by @contextmanager"
    if kind:
        yield f"its open is {kind}, which gives no async context manager; {PUT_DECORATOR}, and yield the {word}"
    yield from _of_arguments("open", opens, *OPEN_ARGUMENTS[word])


def _of_arguments(name: str, call: Any, positions: Sequence[str], names: Sequence[str] = ()) -> Iterator[str]:
    try:
        inspect.signature(call).bind(*positions, **dict.fromkeys(names))
    except TypeError as error:
        wanted = ", ".join([*positions, *(["*"] if names else []), *names])
        yield f"its {name} cannot be called as {name}({wanted}): {error}; core calls it so"
    except ValueError:
        pass  # written in C: its signature is not told


def _of_calls(word: str, backend: Backend) -> Iterator[str]:
    is_async = isinstance(backend, StoreBackend)
    for field in attrs.fields(type(backend)):
        call: Any = getattr(backend, field.name)
        if field.default is not None or call is None:
            continue  # what a backend need not give is a call, and None without
        if not callable(call):
            yield f"its {field.name} is {shown(call)}, expected a function"
            continue
        if inspect.iscoroutinefunction(call) is not is_async:
            what, mend = ("no", "add") if is_async else ("a", "drop")
            yield f"its {field.name} is {what} coroutine function; {mend} async"
        yield from _of_arguments(field.name, call, ("url",) if field.name == "check_address" else ("url", "options"))


def _of_options(word: str, backend: Backend) -> Iterator[str]:
    cls: Any = backend.options
    if not isinstance(cls, type) or not attrs.has(cls):
        kind = name_of(cls) if isinstance(cls, type) else f"{name_of(type(cls))}, and no class"
        yield f"its options are no attrs class ({kind}); put @attrs.frozen(kw_only=True) before the class"
        return
    try:
        attrs.resolve_types(cls)
    except Exception as error:
        yield f"the types of its options cannot be told ({describe(error)}); import what they name, at the top"
        return
    found = [mistake for field in attrs.fields(cls) for mistake in _of_field(field, "")]
    yield from found
    for name in [name for name, value in vars(cls).items() if name.islower() and isinstance(value, _VALUES)]:
        if name[0] != "_" and name not in cls.__annotations__:
            yield f'its option "{name}" {_untyped(name)}'
    is_made = all(field.default is not attrs.NOTHING for field in attrs.fields(cls) if field.init)
    if not found and is_made and type(made := guarded(cls)) is Raised:
        yield f"its options cannot be made of their defaults ({made.text}); give defaults that go together"


def _of_field(field: attrs.Attribute[Any], within: str) -> Iterator[str]:
    """Yield the mistakes of an option, and of the options in it."""
    if not field.init:
        return
    name = f"{within}{field.alias or field.name}"
    yield from (f'its option "{name}" {mistake}' for mistake in told(_of_option, field, not within))
    for inner in _inner(field.type):
        yield from (mistake for one in attrs.fields(inner) for mistake in _of_field(one, f"{name}."))


def _untyped(name: str) -> str:
    return f"has no type, so no configuration file can give it; write {name}: int, or what else it is"


def _inner(type_: Any) -> list[type[Any]]:
    """Return the attrs classes that a type is made of."""
    if isinstance(type_, type) and attrs.has(type_):
        return [attrs.resolve_types(type_)]
    return [one for part in get_args(type_) for one in _inner(part)] if get_origin(type_) is not Literal else []


def _of_option(field: attrs.Attribute[Any], is_outermost: bool) -> Iterator[str]:
    name = field.alias or field.name
    if is_outermost and (wanted := CORE_OPTIONS.get(name)) and field.type is not wanted:
        yield f"is set by core, as {wanted.__name__}; its type is {_name(field.type)}"
    if field.type is None:
        yield _untyped(name)
        return
    if not _is_setting(field.type):
        yield (
            f"has the type {_name(field.type)}, which no configuration file can give; use bool, int, float, str, Path, "
            "Literal, an Enum, a list or a table of such, or an attrs class"
        )
        return
    help_: Any = field.metadata.get("help")
    if not isinstance(help_, str) or not help_.strip():
        yield 'has no help; add metadata={"help": "what it is for"}'
    if any(kind in (int, float) for kind in _kinds(field.type)) and not bounds_of(field):
        yield "is a number without bounds; add validators.ge(...) and validators.le(...)"
    if isinstance(field.default, list | dict | set):
        kind = name_of(type(field.default))
        yield f"has a {kind} as its default, which all options share; write factory={kind}"
    if field.default is attrs.NOTHING or getattr(field.default, "takes_self", False):
        return
    if type(raised := guarded(_check_default, field)) is Raised and not raised.is_a(AttributeError):
        # An AttributeError comes of a rule between several options: all of the defaults are tried together later.
        yield f"has a default that is not allowed ({text_of(raised.error)}); give one that is"


def _check_default(field: attrs.Attribute[Any]) -> None:
    default = default_of(field)
    if field.converter is None and not _fits(field.type, default):
        raise TypeError(f"{shown(default)} is no {_name(field.type)}")
    json.dumps(plain(default))
    if field.validator is not None and default is not None:
        field.validator(_Instance(**{field.name: default}), field, default)


class _Instance:
    """Stands for an instance that holds this one value."""

    def __init__(self, **values: object) -> None:
        self.__dict__ |= values


def _name(type_: Any) -> str:
    return "none" if type_ is None else name_of(type_) if isinstance(type_, type) else text_of(type_)


def _kinds(type_: Any) -> Sequence[Any]:
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


def _is_setting(type_: Any) -> bool:
    """Return whether values of the type can come from a file of TOML."""
    origin, args = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        return all(arg is NoneType or _is_setting(arg) for arg in args)
    if origin is Literal:
        return all(isinstance(arg, bool | int | str) for arg in args)
    if origin in (list, tuple, Sequence):
        return bool(args) and _is_setting(args[0]) and args[1:] in ((), (...,))
    if origin in (dict, Mapping):
        return len(args) == 2 and args[0] is str and _is_setting(args[1])
    return isinstance(type_, type) and (type_ in _PLAIN or attrs.has(type_) or issubclass(type_, Enum))


def _fits(type_: Any, value: Any) -> bool:
    """Return whether a value is one of a type of settings."""
    origin, args = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(args[0], one) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(str, name) and _fits(args[1], value[name]) for name in value)
    if isinstance(value, bool) and type_ in (int, float):
        return False
    return isinstance(value, int | float if type_ is float else type_)
