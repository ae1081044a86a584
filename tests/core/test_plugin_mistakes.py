"""What a newcomer's plugin may do wrong before it declares anything: the plugin is named, with what to do."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from converge.builtin.memory.plugin import MEMORY
from converge.errors import HookUnknown, PluginBroken, PluginError, PluginMissing, StoreUnavailable
from converge.operations.plugins.info import loaded_and_packed
from converge.plugins import PluginHost, loading
from converge.plugins.found import misplaced
from converge.plugins.opened import Opened

Owl = Callable[..., None]
warning: Callable[..., None] = loading.log.warning
HOOK = "from converge.hookspecs import hookimpl\n@hookimpl\ndef converge_stores():\n    "
OWL = "return [attrs.evolve(MEMORY, name='owl', schemes=('owl',))]\n"
ODD = "class Odd(BaseException): ...\n"


@pytest.fixture
def owl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owl:
    """`owl(source)` puts the distribution owl-store with the module owl_of_tests onto the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "owl_of_tests", raising=False)

    def owl(source: str = "", *, target: str = "owl_of_tests", group: str = "converge", needs: str = "") -> None:
        (tmp_path / "owl_of_tests.py").write_text(source)
        folder = tmp_path / "owl_store-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: owl-store\nVersion: 1.2\n{needs}")
        schemes = "[converge.schemes]\nowl = owl_of_tests\n"
        (folder / "entry_points.txt").write_text(f"[{group}]\nowl = {target}\n{schemes}")

    return owl


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (HOOK + "raise SystemExit(0)", "converge_stores failed: SystemExit: 0 (owl_of_tests.py, line 4)"),
        (ODD + HOOK + "raise Odd('oh')", "converge_stores failed: Odd: oh (owl_of_tests.py, line 5)"),
        (
            HOOK + "yield\n    raise ValueError('late')",
            "converge_stores failed: ValueError: late (owl_of_tests.py, line 5)",
        ),
        (HOOK + "yield\n    raise SystemExit", "converge_stores failed: SystemExit:  (owl_of_tests.py, line 5)"),
        (HOOK + "return None", "converge_stores returned NoneType, expected a list of declarations"),
        (ODD + "raise Odd('oh')", "cannot be imported: Odd: oh (owl_of_tests.py, line 2)"),
        ("import os\nos._exit(0)", "cannot be imported: SystemExit: os._exit(0) was called (owl_of_tests.py, line 2)"),
        (
            HOOK + "__import__('os')._exit(7)",
            "converge_stores failed: SystemExit: os._exit(7) was called (owl_of_tests",
        ),
        ("raise SystemExit('no licence')", "cannot be imported: SystemExit: no licence (owl_of_tests.py, line 1)"),
        (
            "import owl_driver_that_is_not_there",
            "; install what has it, and name that in the dependencies of owl-store",
        ),
        ("import owl_of_tests.engine", "; name one that the package has, in the entry point or the import"),
    ],
)
def test_what_a_plugin_raises_when_it_is_loaded_is_its_mistake_and_ends_no_process(
    owl: Owl, source: str, said: str
) -> None:
    owl(source)
    with pytest.raises(PluginBroken) as raised:
        PluginHost(["owl"])
    assert str(raised.value).startswith('plugin "owl" (owl-store 1.2)')
    assert said in str(raised.value)


FORKS = """
import os, threading
from os import _exit
if (child := os.fork()) == 0:
    os._exit(3)
STATUS = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 says so of every such fork
def test_a_child_of_a_plugin_may_exit_and_what_it_keeps_for_later_is_the_systems(owl: Owl) -> None:
    before = os._exit
    owl(FORKS + HOOK + "return []")
    PluginHost(["owl"])
    module = sys.modules["owl_of_tests"]
    assert module.STATUS == 3
    assert os._exit is before
    if (child := os.fork()) == 0:
        try:
            module._exit(4)  # it was replaced when the plugin took it
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_a_plugin_that_hangs_when_it_is_loaded_is_told_with_its_line(
    owl: Owl, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, waits = threading.Event(), "import threading\nthreading.TOLD.wait(60)\n"
    monkeypatch.setattr(threading, "TOLD", told, raising=False)
    monkeypatch.setattr(loading, "SLOW_SEC", 0.01)

    def tell(*values: object) -> None:
        warning(*values)
        told.set()

    monkeypatch.setattr(loading.log, "warning", tell)
    owl(waits + HOOK + "return []")
    PluginHost(["owl"])
    assert told.is_set() and 'plugin "owl" (owl-store 1.2) has been loading for 0.01 s, and is at line 2' in caplog.text


@pytest.mark.parametrize("target", ["", ":OWL", "owl of tests", "owl_of_tests [fast]"])
def test_an_entry_point_that_names_no_module_says_what_is_expected(owl: Owl, target: str) -> None:
    owl(target=target)
    with pytest.raises(PluginBroken, match="expected a module or module:attribute"):
        PluginHost(["owl"])


@pytest.mark.parametrize(("source", "target"), [("VALUE = 3", "owl_of_tests:VALUE"), ("", "owl_of_tests")])
def test_an_entry_point_without_a_hook_is_a_mistake(owl: Owl, source: str, target: str) -> None:
    owl(source, target=target)
    with pytest.raises(HookUnknown, match=f"{target} has no hook; name the module that has it"):
        PluginHost(["owl"])


@pytest.mark.parametrize("group", ["converge.plugins", "Converge"])
def test_a_plugin_in_another_group_is_told_where_it_must_be(owl: Owl, group: str) -> None:
    owl(HOOK + "return []", group=group)
    with pytest.raises(PluginMissing) as raised:
        PluginHost(["owl"])
    assert f'owl-store 1.2 has "owl" in the group "{group}"' in str(raised.value)
    assert "[project.entry-points.converge]" in str(raised.value)
    assert misplaced() == [
        f'owl-store 1.2 has "owl" in the group "{group}", which is none: its author must put it into '
        "[project.entry-points.converge]"
    ]


def test_a_plugin_that_is_a_scheme_alone_is_told_where_it_must_be_too(owl: Owl, tmp_path: Path) -> None:
    owl(HOOK + "return []")
    (tmp_path / "owl_store-1.2.dist-info" / "entry_points.txt").write_text("[converge.schemes]\nowl = owl_of_tests\n")
    with pytest.raises(PluginMissing) as raised:
        PluginHost(["owl"])
    assert 'owl-store 1.2 has "owl" as a URL scheme alone: its author must put it into [project.' in str(raised.value)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("entry_points.txt", "[converge]\nowl owl_of_tests\n", "the entry points of owl-store 1.2 cannot be read ("),
        ("METADATA", "", 'the metadata of what provides "owl" (owl_of_tests) '),
        ("METADATA", None, 'the metadata of what provides "owl" (owl_of_tests) '),
    ],
)
def test_a_damaged_installation_is_told_with_the_mend(
    owl: Owl, tmp_path: Path, file: str, text: str | None, said: str
) -> None:
    owl(HOOK + "return []")
    damaged = tmp_path / "owl_store-1.2.dist-info" / file
    if text is None:
        damaged.unlink()
    else:
        damaged.write_text(text)
    with pytest.raises(PluginBroken) as raised:
        PluginHost()
    assert str(raised.value).startswith(said) and str(raised.value).endswith("; install it again")


def test_an_editable_installation_whose_folder_is_gone_is_told_so(owl: Owl, tmp_path: Path) -> None:
    owl(target="owl_that_went.plugin")
    url = {"url": (tmp_path / "gone").as_uri(), "dir_info": {"editable": True}}
    (tmp_path / "owl_store-1.2.dist-info" / "direct_url.json").write_text(json.dumps(url))
    with pytest.raises(PluginBroken) as raised:
        PluginHost(["owl"])
    gone = f"; it was installed from {tmp_path / 'gone'}, which is gone: install it from where it is now, or pip"
    assert str(raised.value).endswith(f"{gone} uninstall owl-store"), str(raised.value)


def test_check_says_what_a_plugin_prints_when_it_is_loaded(owl: Owl, capsys: pytest.CaptureFixture[str]) -> None:
    owl("print('imported')\n" + HOOK + "return []")
    with pytest.raises(PluginBroken, match='owl prints "imported" when it is loaded, amid what commands answer'):
        loaded_and_packed("owl")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import os\nos.chdir('/')\n", "the working directory"),
        ("import signal\nsignal.signal(signal.SIGHUP, print)\n", "the handlers of signals"),
        ("import logging\nlogging.getLogger().addHandler(logging.NullHandler())\n", "the handlers of the root logger"),
        ("import sys\nsys.excepthook = print\n", "what Python calls for errors"),
    ],
)
def test_check_says_what_a_plugin_changes_of_the_process_when_it_is_loaded(
    owl: Owl, source: str, what: str, as_a_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, handler = os.getcwd(), signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    owl(source + HOOK + "return []")
    try:
        with pytest.raises(PluginBroken) as raised:
            loaded_and_packed("owl")
    finally:
        os.chdir(place)
        signal.signal(signal.SIGHUP, handler)
    assert f"owl changes {what} when it is loaded, for all that runs beside it" in str(raised.value)
    assert str(raised.value).count(" changes ") == 1


def test_check_says_what_the_package_needs_and_nothing_of_what_could_not_be_read(owl: Owl) -> None:
    needs = "Requires-Dist: attrs>=9999\nRequires-Dist: owldb>=1.0\nRequires-Dist: owlx>=1; extra == 'x'\n"
    owl("import owl_driver_that_is_not_there", needs=needs)
    with pytest.raises(PluginError) as raised:
        loaded_and_packed("owl")
    lines = str(raised.value).splitlines()
    assert any(line.startswith("owl-store 1.2: it needs attrs>=9999, and ") for line in lines)
    assert "owl-store 1.2: it needs owldb, which is not installed; pip install 'owldb>=1.0'" in lines
    assert not any("owlx" in line or "is no scheme of a backend" in line for line in lines)


def test_check_says_what_a_version_is_and_who_else_has_the_scheme(owl: Owl, tmp_path: Path) -> None:
    owl(HOOK + "from converge.builtin.memory.plugin import MEMORY; import attrs\n    " + OWL)
    folder = tmp_path / "owl_store-1.2.dist-info"
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: owl-store\nVersion: banana\n")
    other = tmp_path / "barn-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: barn\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[converge]\nbarn = barn\n[converge.schemes]\nowl = barn\n")
    with pytest.raises(PluginBroken) as raised:
        loaded_and_packed("owl")
    lines = str(raised.value).splitlines()
    assert 'owl-store banana: its version is "banana", which is none; write one such as 1.0 to pyproject.toml' in lines
    said = 'the scheme "owl" is that of barn 1.0 too, so its URLs find neither; uninstall one'
    assert f"owl-store banana: {said}" in lines
    assert 'owl-store banana: its metadata does not say what it does, on a page; add readme = "README.md"' in str(
        raised.value
    )


@asynccontextmanager
async def raising(error: BaseException) -> AsyncIterator[str]:
    raise error
    yield ""


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "error", [SystemExit("no licence"), OSError("no disk"), ExceptionGroup("", [OSError("no disk")])]
)
async def test_what_an_open_raises_is_the_mistake_of_its_plugin(error: BaseException) -> None:
    with pytest.raises(PluginBroken, match=r"the owl cannot be opened: .*no (licence|disk)"):
        async with Opened("the owl", lambda: raising(error), str, MEMORY):
            pass


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("error", [StoreUnavailable("away"), ExceptionGroup("", [StoreUnavailable("away")])])
async def test_what_an_open_raises_of_the_contract_is_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        async with Opened("the owl", lambda: raising(error), str, MEMORY):
            pass
    assert raised.value is error
