"""Mistakes in a declaration: all of them at once, each in a line that names the plugin, what is wrong, and its mend."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from attrs import validators

from converge.builtin.local.plugin import LOCAL
from converge.builtin.memory.plugin import MEMORY
from converge.builtin.static.plugin import STATIC
from converge.contracts.store import Durability, Store
from converge.errors import ContractMismatch, HookUnknown, PluginBroken, PluginError
from converge.hookspecs import hookimpl
from converge.plugins import PluginHost
from converge.services.store.opening import open_store

BOUNDS = [validators.ge(1), validators.le(9)]
HELP = {"help": "what it is for"}
Load = Callable[..., PluginHost]


def option(annotation: Any = int, name: str = "size", **changed: Any) -> type[Any]:
    """An options class with one option that is right but for what is changed."""
    given: dict[str, Any] = {"default": 5, "validator": BOUNDS, "metadata": HELP} | changed
    return attrs.make_class("Options", {name: attrs.field(type=annotation, **given)}, kw_only=True)


@attrs.frozen(kw_only=True)
class Unknown:
    """An annotation that names nothing."""

    size: Missing = attrs.field(default=1, metadata=HELP)  # type: ignore[name-defined]  # noqa: F821  # that is the mistake


@dataclasses.dataclass
class Dataclass:
    """No attrs class."""

    size: int = 5


async def no_context(url: str, options: Any) -> None:
    """A coroutine function."""


async def no_decorator(url: str, options: Any) -> AsyncIterator[None]:
    """An async generator function."""
    yield


@asynccontextmanager
async def few_arguments(url: str) -> AsyncIterator[None]:
    """Takes no options."""
    yield


no_place: Any = few_arguments


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(converge_stores=[...])` loads a plugin whose hooks return these."""

    def load(**hooks: Any) -> PluginHost:
        module = ModuleType("declaring_of_the_tests")
        for name, value in hooks.items():
            setattr(module, name, value if callable(value) else hookimpl(lambda value=value: value))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return PluginHost([f"{module.__name__}:"])

    return load


def store(**changed: Any) -> Any:
    """The memory store under another name, with these changes."""
    return attrs.evolve(MEMORY, **{"name": "foo", "schemes": ("foo",), **changed})


ONE = [
    (store(name="Foo"), '"Foo" is not a name for a store: lower case, a-z first'),
    (store(name=None), "None is not a name for a store"),
    (store(schemes="foo"), 'its schemes are "foo", expected a tuple of text, such as ("toy",) with its comma'),
    (store(schemes=()), "it has no scheme, so no URL can name it"),
    (store(schemes=("foo", 5)), "5 is not a scheme of a URL"),
    (store(features="shared"), 'its features are "shared", expected a frozenset of'),
    (store(features=frozenset({"shared"})), '"shared" is no Feature; there are SHARED, PERSISTENT'),
    (store(durability=2), "its durability is 2, expected Durability.D0 to Durability.D3"),
    (store(durability=Durability.D2), "its durability is D2 without Feature.PERSISTENT; declare both, or D0"),
    (store(open=None), "its open is None, expected a function that returns an async context manager"),
    (store(open=no_context), "its open is a coroutine function, which gives no async context manager; put @async"),
    (store(open=no_decorator), "its open is an async generator function, which gives no async context manager"),
    (store(open=few_arguments), "its open cannot be called as open(url, options): too many positional arguments"),
    (store(pending=lambda url, options: []), "its pending is no coroutine function; add async"),
    (store(options=Dataclass), "its options are no attrs class (Dataclass); put @attrs.frozen(kw_only=True) before"),
    (store(options=object()), "its options are no attrs class (object, and no class)"),
    (store(options=Unknown), "the types of its options cannot be told (NameError: name 'Missing' is not defined)"),
    (
        store(options=option(None)),
        'its option "size" has no type, so no configuration file can give it; write size: int',
    ),
    (store(options=option(re.Pattern)), 'its option "size" has the type Pattern, which no configuration file can give'),
    (store(options=option(metadata={})), 'its option "size" has no help; add metadata={"help"'),
    (store(options=option(validator=None)), 'its option "size" is a number without bounds; add validators.ge(...)'),
    (
        store(options=option(default=0)),
        "\"size\" has a default that is not allowed ('size' must be >= 1: 0)",
    ),
    (
        store(options=option(Path, default=b"x", validator=None)),
        'its option "size" has a default that is not allowed (Object of type bytes is not JSON serializable)',
    ),
    (store(options=option(str, "must_exist", default="", validator=None)), '"must_exist" is set by core, as bool'),
]
OTHERS = [
    ("converge_transports", attrs.evolve(LOCAL, name="foo", schemes=()), "it has no scheme, so no URL can name it"),
    (
        "converge_transports",
        attrs.evolve(LOCAL, name="foo", schemes=("foo",), secure_schemes=frozenset({"foos"})),
        'secure_schemes names "foos", which its schemes do not; name it in both',
    ),
    (
        "converge_discoveries",
        attrs.evolve(STATIC, name="foo", open=no_place),
        "its open cannot be called as open(options, *, store, poll_sec): got an unexpected keyword",
    ),
]


@pytest.mark.parametrize(("hook", "backend", "said"), [*(("converge_stores", *row) for row in ONE), *OTHERS])
def test_a_mistake_is_told_with_its_plugin_and_its_mend(hook: str, backend: Any, said: str, load: Load) -> None:
    with pytest.raises(PluginBroken) as raised:
        load(**{hook: [backend]})
    lines = str(raised.value).splitlines()
    assert any(said in line for line in lines), lines
    word = {"converge_stores": "store", "converge_transports": "transport"}.get(hook, "discovery")
    name = json.dumps(backend.name) if isinstance(backend.name, str) else "None"
    title = f'plugin "declaring_of_the_tests:" (from the import path): the {word} {name}: '
    assert all(line.startswith(title) for line in lines), lines


@pytest.mark.parametrize(
    ("hooks", "kind", "said"),
    [
        ({"converge_stores": [LOCAL]}, PluginBroken, "returned TransportBackend, expected StoreBackend"),
        ({"converge_stores": MEMORY}, PluginBroken, "returned StoreBackend, expected a list of declarations"),
        (
            {"converge_stores": [store(contract="1")]},
            ContractMismatch,
            'names the contract "1", expected a whole number',
        ),
        ({"converge_stores": [store(contract=99)]}, ContractMismatch, "upgrade converge-core"),
        (
            {"converge_store": hookimpl(lambda: [])},
            HookUnknown,
            'no hook "converge_store"; did you mean "converge_stores"?',
        ),
        ({"converge_stores": lambda: []}, HookUnknown, "is not marked; put @hookimpl of converge.hookspecs before it"),
    ],
)
def test_a_mistake_of_a_hook_is_told(hooks: dict[str, Any], kind: type[PluginError], said: str, load: Load) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        load(**hooks)


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    wrong = store(name="Foo", features="shared", open=no_context, options=option(validator=None, metadata={}))
    with pytest.raises(ContractMismatch) as raised:
        load(converge_stores=[attrs.evolve(wrong, contract=1), LOCAL], converge_discoveries=5)
    lines = str(raised.value).splitlines()
    assert len(lines) == 8, lines
    assert "contract 1" in lines[0], "what may explain the others comes first"


class Abstract(Store):
    """Lacks three methods."""

    async def time(self) -> int:
        """See the contract."""
        return 1


@asynccontextmanager
async def yields_nothing(url: str, options: Any) -> AsyncIterator[Any]:
    """Yields no store."""
    yield None


@asynccontextmanager
async def yields_abstract(url: str, options: Any) -> AsyncIterator[Any]:
    """Cannot make its store."""
    yield Abstract()  # type: ignore[abstract]  # that is the mistake


class Claiming(Abstract):
    """Says that it bears more than its declaration."""

    durability: Any = Durability.D3
    get = scan = commit = Abstract.time  # type: ignore[assignment]  # it is never called


@asynccontextmanager
async def yields_claiming(url: str, options: Any) -> AsyncIterator[Any]:
    """Claims class D3."""
    yield Claiming()


class Unclear(Claiming):
    """Has a number for its class."""

    durability = 1


@asynccontextmanager
async def yields_unclear(url: str, options: Any) -> AsyncIterator[Any]:
    """Has no class of durability."""
    yield Unclear()


@pytest.mark.parametrize(
    ("opens", "said"),
    [
        (
            yields_claiming,
            'the store "foo" was opened with durability D3, and at best D0 is declared; change one of the two',
        ),
        (yields_unclear, 'the store "foo" was opened with durability 1, expected Durability.D0 to Durability.D0'),
        (yields_nothing, 'the store "foo" was opened as NoneType, expected a Store; it must yield one'),
        (yields_abstract, 'the store "foo" cannot be opened: TypeError: Can\'t instantiate abstract class Abstract'),
    ],
)
async def test_what_open_gives_is_checked_too(opens: Any, said: str, load: Load) -> None:
    host = load(converge_stores=[store(open=opens)])
    with pytest.raises(PluginBroken) as raised:
        async with open_store("foo:", plugins=host):
            pass
    assert str(raised.value).startswith(f'plugin "declaring_of_the_tests:" (from the import path): {said}')


async def test_what_the_block_of_an_open_store_raises_stays_as_it_is(load: Load) -> None:
    host = load(converge_stores=[store(open=lambda url, options: MEMORY.open("memory:", options))])
    with pytest.raises(TypeError, match="mine"):
        async with open_store("foo:", plugins=host):
            raise TypeError("mine")
