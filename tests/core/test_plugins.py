"""The plugin host on real little distributions: what is loaded, what is refused, and what each refusal says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from converge.contracts.store import CONTRACT
from converge.errors import (
    ConfigError,
    ContractMismatch,
    HookUnknown,
    PluginBroken,
    PluginDuplicate,
    PluginMissing,
    PluginRefused,
    Undeliverable,
)
from converge.model.message import Message
from converge.plugins import PluginHost

Install = Callable[..., None]

STORE = """
from pathlib import Path
import attrs
from converge.contracts.store import CONTRACT, StoreBackend
from converge.hookspecs import hookimpl
Path(__file__).with_suffix(".ran").touch()

@attrs.frozen(kw_only=True)
class Options:
    size: int = attrs.field(
        default=1,
        validator=[attrs.validators.ge(1), attrs.validators.le(9)],
        metadata={{"help": "how large it is"}},
    )

def opened(url, options):
    raise NotImplementedError

TOY = StoreBackend(name="{name}", schemes=("{name}",), options=Options, open=opened, contract={contract})

@hookimpl
def converge_stores():
    return [TOY]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, module, source, names=, schemes=)` puts a distribution of one module onto the import
    path.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def install(
        distribution: str, module: str, source: str, *, names: str = "", schemes: str = "", version: str = "1.2"
    ) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        groups = {"converge": names, "converge.schemes": schemes}
        lines = [
            line
            for group, some in groups.items()
            for line in (f"[{group}]", *(f"{name} = {module}" for name in some.split()))
        ]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    yield install
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def toy(name: str = "toy", contract: int = CONTRACT) -> str:
    """The source of a plugin that declares a store, and leaves a file beside itself when it is imported."""
    return STORE.format(name=name, contract=contract)


def hooks(*functions: str) -> str:
    """The source of a plugin with these marked functions."""
    head = "from converge.hookspecs import hookimpl\n"
    return head + "".join(f"\n@hookimpl\n{function}\n" for function in functions)


def message(payload: object = "hello") -> Message:
    """Some message."""
    return Message(id="00", sender="a", recipient="b", payload=payload, sent_at=datetime(2026, 1, 1, tzinfo=UTC))


def test_nothing_installed_is_imported_unless_it_was_named(install: Install, tmp_path: Path) -> None:
    install("toy-store", "toy_one", toy(), names="toy", schemes="toy")
    install("other-store", "toy_two", toy("other"), names="other", schemes="other")
    host = PluginHost()
    assert {"toy", "other", "memory"} <= {one.name for one in host.installed()}
    assert not list(tmp_path.glob("*.ran"))
    host.store_backend("toy:somewhere")
    assert [file.name for file in tmp_path.glob("*.ran")] == ["toy_one.ran"]
    PluginHost(["other"])
    assert len(list(tmp_path.glob("*.ran"))) == 2


def test_listing_tells_the_distribution_its_version_and_kinds_once_loaded(install: Install) -> None:
    install("toy-store", "toy_listed", toy(), names="toy", schemes="toy toys", version="3.4")
    host = PluginHost()
    (before,) = (one for one in host.installed() if one.name == "toy")
    assert (before.distribution, before.version, before.schemes, before.kinds, before.is_loaded) == (
        "toy-store",
        "3.4",
        ("toy", "toys"),
        (),
        False,
    )
    host.load("toy")
    (after,) = (one for one in host.installed() if one.name == "toy")
    assert (after.kinds, after.is_loaded) == (("store",), True)


def test_loading_logs_distribution_and_version(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("toy-store", "toy_logged", toy(), names="toy", version="3.4")
    caplog.set_level("INFO", "converge.plugins")
    PluginHost(["toy", "toy"])
    assert caplog.messages == ['loaded plugin "toy" (toy-store 3.4)']


def test_the_built_in_memory_store_comes_through_the_same_door() -> None:
    host = PluginHost()
    assert host.store_backend("memory:").name == "memory"
    (listed,) = (one for one in host.installed() if one.name == "memory")
    assert (listed.distribution, listed.kinds, listed.is_loaded) == ("converge-core", ("store",), True)


@pytest.mark.parametrize("attribute", ["TOY", "holder"])
def test_a_plugin_can_be_named_by_its_import_path(install: Install, attribute: str) -> None:
    install("unrelated", "toy_path", toy() + "\nimport sys\nholder = sys.modules[__name__]\n")
    host = PluginHost([f"toy_path:{attribute}"])
    assert host.store_backend("toy:x").name == "toy"
    (listed,) = (one for one in host.installed() if one.is_loaded)
    assert (listed.name, listed.distribution) == (f"toy_path:{attribute}", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("redis-", 'no installed distribution provides the plugin "redis-"; did you mean "redis"?'),
        ("qqq", 'no installed distribution provides the plugin "qqq"; `converge plugins list` shows what is installed'),
        (
            "toy_nowhere:TOY",
            'plugin "toy_nowhere:TOY" (from the import path): there is no module "toy_nowhere" on the import path',
        ),
        ("toy_here:TOI", 'plugin "toy_here:TOI" (from the import path): toy_here has no "TOI"; did you mean "TOY"?'),
    ],
)
def test_a_missing_plugin_names_the_nearest(install: Install, name: str, text: str) -> None:
    install("toy-store", "toy_here", toy())
    with pytest.raises(PluginMissing) as raised:
        PluginHost([name])
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("url", "distribution"),
    [("redis://u:geheim@h", "converge-store-redis"), ("postgresql://h", "converge-store-sql")],
)
def test_a_missing_plugin_of_this_project_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, distribution: str
) -> None:
    monkeypatch.setattr("converge.plugins.host.entries", lambda group: {})
    with pytest.raises(PluginMissing, match=f"pip install {distribution}$") as raised:
        PluginHost().store_backend(url)
    assert "geheim" not in str(raised.value)
    with pytest.raises(PluginMissing, match=r"pip install converge-transport-ws$"):
        PluginHost().transport_backend("wss://h")
    with pytest.raises(PluginMissing, match=r"pip install converge-transport-tcp$"):
        PluginHost(["tcp"])


def test_a_scheme_that_nobody_has_names_the_nearest() -> None:
    with pytest.raises(PluginMissing) as raised:
        PluginHost().store_backend("redis3://user:geheim@host")
    assert (
        str(raised.value)
        == 'no installed distribution provides the store with the URL scheme "redis3"; did you mean "redis"?'
    )


def test_text_that_is_no_url_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="store: '//user:") as raised:
        PluginHost().store_backend("//user:geheim@host")
    assert "geheim" not in str(raised.value)


def test_a_plugin_of_another_kind_says_so(install: Install) -> None:
    install("toy-store", "toy_kind", toy(), names="toy", schemes="toy")
    for url_or_name in ("toy://h:1", "toy"):
        with pytest.raises(PluginMissing, match=r'^plugin "toy" \(toy-store 1.2\) provides no transport '):
            PluginHost().transport_backend(url_or_name)


def test_two_distributions_with_one_name_are_both_named(install: Install, tmp_path: Path) -> None:
    install("toy-store", "toy_first", toy(), names="toy", schemes="toy")
    install("my-toys", "toy_second", toy(), names="toy", schemes="toy", version="0.1")
    for ask in (lambda: PluginHost(["toy"]), lambda: PluginHost().store_backend("toy:x")):
        with pytest.raises(
            PluginDuplicate, match=r"is provided by my-toys 0.1 and toy-store 1.2; uninstall all but one$"
        ):
            ask()
    assert not list(tmp_path.glob("*.ran"))


def test_two_plugins_that_declare_one_scheme_are_both_named(install: Install) -> None:
    install("toy-store", "toy_a", toy(), names="toy")
    install("my-toys", "toy_b", toy(), names="mine")
    with pytest.raises(PluginDuplicate) as raised:
        PluginHost(["toy", "mine"])
    first, second = 'plugin "mine" (my-toys 1.2)', 'plugin "toy" (toy-store 1.2)'
    assert (
        str(raised.value)
        == f'{first} and {second} both declare the store "toy"; load one of them, or refuse one with "no:NAME"'
    )


def test_a_built_in_name_cannot_be_taken(install: Install, tmp_path: Path) -> None:
    install("evil", "toy_evil", toy("memory"), names="memory evil", schemes="memory")
    for ask in (lambda: PluginHost(["memory"]), lambda: PluginHost().store_backend("memory:")):
        with pytest.raises(
            PluginDuplicate,
            match=r"provided by converge-core .* and evil 1.2; the name is converge-core's own; uninstall",
        ):
            ask()
    assert not list(tmp_path.glob("*.ran"))
    with pytest.raises(
        PluginDuplicate, match=r'plugin "evil" \(evil 1.2\) declares the store "memory", a name of converge-core'
    ):
        PluginHost(["evil"])


def test_a_refused_plugin_is_not_loaded_by_any_door(install: Install, tmp_path: Path) -> None:
    install("toy-store", "toy_refused", toy(), names="toy", schemes="toy toys")
    host = PluginHost(["no:toy"])
    asks: list[Callable[[], object]] = [lambda: host.load("toy"), lambda: host.store_backend("toys:x")]
    for ask in asks:
        with pytest.raises(PluginRefused, match=r'^plugin "toy" \(toy-store 1.2\) is needed, and refused by "no:toy"'):
            ask()
    with pytest.raises(PluginMissing, match='did you mean "no:toy"'):
        PluginHost(["no:toyy"])
    PluginHost(["no:something-else-entirely"])
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (hooks("def converge_store(): ..."), 'there is no hook "converge_store"; did you mean "converge_stores"?'),
        (
            hooks("def converge_node_started(node): ..."),
            "takes node, which the hook does not give; it gives node_id",
        ),
        ("def converge_stores(): ...", "converge_stores is not marked; put @hookimpl of converge.hookspecs before it"),
        (
            hooks("async def converge_node_started(): ..."),
            "converge_node_started is a coroutine; hooks are plain functions, and never awaited",
        ),
    ],
)
def test_a_misspelt_hook_is_an_error(install: Install, source: str, text: str) -> None:
    install("toy-store", "toy_hook", source, names="toy")
    with pytest.raises(HookUnknown) as raised:
        PluginHost(["toy"])
    assert str(raised.value).startswith('plugin "toy" (toy-store 1.2): ')
    assert str(raised.value).endswith(text)


@pytest.mark.parametrize(("contract", "mend"), [(3, "upgrade converge-core"), (1, "upgrade the plugin")])
def test_another_contract_number_says_which_side_to_upgrade(install: Install, contract: int, mend: str) -> None:
    install("toy-store", "toy_contract", toy(contract=contract), names="toy")
    with pytest.raises(ContractMismatch) as raised:
        PluginHost(["toy"])
    text = f'its store "toy" was written for contract {contract}, this release has 2; {mend}'
    assert str(raised.value) == f'plugin "toy" (toy-store 1.2): {text}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import toy_driver_that_is_not_there",
            "cannot be imported: ModuleNotFoundError: No module named 'toy_driver_that_is_not_there'; "
            "install what has it, and name that in the dependencies of toy-store",
        ),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (toy_broken.py, line 1)"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3 (toy_broken.py, line 1)"),
        (
            hooks("def converge_stores(): raise OSError('no disk')"),
            ": converge_stores failed: OSError: no disk (toy_broken.py, line 4)",
        ),
        (hooks("def converge_stores(): return ['toy']"), ": converge_stores returned str, expected StoreBackend"),
        (toy("Toy"), '"Toy" is not a scheme of a URL: lower case, a-z first, then a-z 0-9 - + .'),
    ],
)
def test_a_broken_plugin_is_one_chained_error(install: Install, source: str, text: str) -> None:
    install("toy-store", "toy_broken", source, names="toy")
    with pytest.raises(PluginBroken) as raised:
        PluginHost(["toy"])
    assert str(raised.value).startswith('plugin "toy" (toy-store 1.2)')
    assert str(raised.value).endswith(text)
    assert (raised.value.__cause__ is None) == ("expected" in text or "not a scheme" in text)


def test_an_observer_that_raises_is_logged_and_the_next_is_called(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("first", "toy_raises", hooks("def converge_node_started(node_id): raise ValueError('oh')"), names="first")
    install(
        "second",
        "toy_sees",
        "seen = []\n" + hooks("def converge_node_started(node_id): seen.append(node_id)"),
        names="second",
    )
    host = PluginHost(["first", "second"])
    host.observe("converge_node_started", node_id="n1")
    assert sys.modules["toy_sees"].seen == ["n1"]
    assert caplog.messages == ["plugin first: converge_node_started failed; what it observed goes on"]


def test_guards_chain_in_load_order(install: Install) -> None:
    for name in ("one", "two"):
        body = (
            f"def converge_message_before_send(message): return attrs.evolve(message, payload=message.payload "
            f"+ ' {name}')"
        )
        install(name, f"toy_guard_{name}", "import attrs\n" + hooks(body), names=name)
    install("three", "toy_guard_three", hooks("def converge_message_before_send(message): return None"), names="three")
    host = PluginHost(["two", "three", "one"])
    assert host.guard("converge_message_before_send", message()).payload == "hello two one"


@pytest.mark.parametrize(
    ("body", "why"),
    [("raise ValueError('no secrets')", "ValueError: no secrets"), ("return 3", "returned int, no Message")],
)
def test_a_guard_that_raises_or_answers_nonsense_refuses(install: Install, body: str, why: str) -> None:
    install("strict", "toy_strict", hooks(f"def converge_message_before_send(message): {body}"), names="strict")
    install(
        "never",
        "toy_never",
        "seen = []\n" + hooks("def converge_message_before_send(message): seen.append(message)"),
        names="never",
    )
    host = PluginHost(["strict", "never"])
    with pytest.raises(Undeliverable, match=f"plugin strict.*{why}"):
        host.guard("converge_message_before_send", message())
    assert sys.modules["toy_never"].seen == []
