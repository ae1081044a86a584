"""Mistakes in a declaration: all of them at once, each in a line that names the plugin, what is wrong, and its mend."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import attrs
import pytest
from attrs import validators

from converge.builtin.local.plugin import LOCAL
from converge.builtin.memory.plugin import MEMORY
from converge.builtin.static.plugin import STATIC
from converge.contracts.commands import Command
from converge.contracts.decisions import DecisionKind
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
any_handler: Any = no_context
NO: Any = "no"


def generates(url: str, options: Any) -> Iterator[None]:
    """Has no decorator, and is not async."""
    yield None


def exits(*_: Any) -> None:
    """Validates by ending the process."""
    raise SystemExit("no licence")


@attrs.frozen
class Inner:
    """A table of settings, of which one has no help."""

    deep: str = ""


@attrs.frozen(kw_only=True)
class Together:
    """Defaults that are allowed one by one."""

    size: str = attrs.field(default="", metadata=HELP)

    def __attrs_post_init__(self) -> None:
        raise ValueError("not so")


class Hides(type):
    """A metaclass that raises when it is asked for what is not there."""

    def __getattr__(cls, name: str) -> Any:
        raise RuntimeError("hidden")


class Hidden(metaclass=Hides):
    """No class that anybody can look at."""


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


async def looks_by_url(url: str) -> None:
    """A look that core cannot call."""


def takes_no_address() -> None:
    """A check that core cannot call."""


takes_nothing: Any = takes_no_address


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
    (store(look=looks_by_url), "its look cannot be called as look(url, options): too many positional arguments"),
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
        "its option \"size\" has a default that is not allowed (b'x' is no Path); give one that is",
    ),
    (store(options=option(default="many")), 'its option "size" has a default that is not allowed ("many" is no int)'),
    (store(options=option(default=True)), 'its option "size" has a default that is not allowed (True is no int)'),
    (store(options=option(typing.List)), 'its option "size" has the type typing.List, which no configuration file'),  # noqa: UP006  # with no type of members
    (
        store(options=option(list[str], default=[], validator=None)),
        'its option "size" has a list as its default, which all options share; write factory=list',
    ),
    (
        store(options=attrs.define(type("Options", (), {"size": 5, "_kept": 3, "LEAST": 1}))),
        'its option "size" has no type, so no configuration file can give it; write size: int',
    ),
    (store(options=option(Literal["a"], default="b")), "(\"b\" is no typing.Literal['a'])"),
    (store(options=option(list[str], default=("a", 5), validator=None)), "(('a', 5) is no list[str])"),
    (store(options=option(validator=exits)), 'its option "size" has a default that is not allowed (no licence)'),
    (store(options=option(metadata={"help": 5})), 'its option "size" has no help; add metadata={"help"'),
    (
        store(options=option(Inner | None, default=None, validator=None)),
        '"size.deep" has no help; add metadata={"help"',
    ),
    (store(options=Together), "its options cannot be made of their defaults (ValueError: not so); give defaults that"),
    (store(options=Hidden), "it cannot be looked at: RuntimeError: hidden; declare plain values"),
    (store(open=generates), "its open is a generator function, which gives no async context manager; put @async"),
    (
        store(open=contextmanager(generates)),
        "its open is made by @contextmanager, which gives no async context manager; put @asynccontextmanager of",
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
        "converge_transports",
        attrs.evolve(LOCAL, name="foo", schemes=("foo",), secure_schemes=NO),
        'its secure_schemes are "no", expected a frozenset of text, such as frozenset({"tls"})',
    ),
    (
        "converge_transports",
        attrs.evolve(LOCAL, name="foo", schemes=("foo",), check_address=takes_nothing),
        "its check_address cannot be called as check_address(url): too many positional arguments; core calls it so",
    ),
    (
        "converge_transports",
        attrs.evolve(LOCAL, name="foo", schemes=("foo",), check_listening=takes_nothing),
        "its check_listening cannot be called as check_listening(url, options): too many positional arguments",
    ),
    ("converge_discoveries", attrs.evolve(STATIC, name="foo", publishes=NO), 'its publishes is "no", expected True'),
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
        (
            {"converge_stores": [store(), store(schemes=("bar",))]},
            PluginBroken,
            'it declares the store "foo" twice; give one of them another',
        ),
        (
            {"converge_stores": [store(), store(name="bar")]},
            PluginBroken,
            'it declares the store with the scheme "foo" twice; give one of them another',
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
        (
            lambda url, options: io.StringIO(),
            'the store "foo": its open gave StringIO, expected an async context manager; put @asynccontextmanager of',
        ),
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


ODD: list[Any] = [
    *(None, 1, float("nan"), "Bad Name", "\ud800", (), [None], {"a"}, (("a",),), object(), Hidden, len, no_context),
]
DECISION = DecisionKind(name="foo", type=Inner, handler=any_handler)
COMMAND = Command(name="foo", run=lambda: 0, help="Does it.")


class Raising:
    """Raises, whatever it is asked."""

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __len__(self) -> int:
        raise RuntimeError("len")


@pytest.mark.parametrize(
    ("hook", "declaration"),
    [
        ("converge_stores", store()),
        ("converge_transports", attrs.evolve(LOCAL, name="foo", schemes=("foo",))),
        ("converge_discoveries", attrs.evolve(STATIC, name="foo")),
        ("converge_decisions", DECISION),
        ("converge_commands", COMMAND),
    ],
)
def test_nothing_that_a_declaration_holds_is_an_error_of_ours(hook: str, declaration: Any, load: Load) -> None:
    load(**{hook: [declaration]})  # as it is, it is right
    refused = 0
    for value in [*ODD, Raising(), (Raising(),), [Raising()]]:
        changed = [attrs.evolve(declaration, **{one.name: value}) for one in attrs.fields(type(declaration))]
        for returned in (*([one] for one in changed), [value], value):
            try:
                load(**{hook: hookimpl(lambda returned=returned: returned)})
            except PluginError as error:
                refused += 1
                assert str(error).startswith('plugin "declaring_of_the_tests:" (from the import path)')
    assert refused > 30
