"""What is committed runs anywhere: no package index, no path of somebody's machine, no way to execute data."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

from trees import walked

ROOT = Path(__file__).parents[2]
# Written in two pieces, so that this file does not hold what it looks for.
INDEX_HOSTS = re.compile(
    "pypi" + r"\.org|python" + r"hosted\.org|index" + r"-url|find" + r"-links|crates" + r"\.io|npmjs" + r"\.org"
)
MACHINE_PATHS = re.compile(r"(?<![\w.:/~}$-])/(?:home|root|work|Users|mnt|opt)" + r"/[\w.]|[A-Z]:\\Users")
LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_YAML = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load"}


def _committed() -> list[Path]:
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    hidden = re.compile(r"/(?:\.(?!ci|gitignore)|__pycache__)")
    return [file for file in ROOT.rglob("*") if file.is_file() and not hidden.search(f"/{file.relative_to(ROOT)}")]


def local_text(text: str) -> list[str]:
    """Whatever in a text holds on one machine or with one package index only."""
    return [match.group() for pattern in (INDEX_HOSTS, MACHINE_PATHS) for match in pattern.finditer(text)]


def executed_data(source: str) -> list[str]:
    """Where a module could turn data into code."""
    found = []
    for node in walked(source):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] in LOADERS]
        elif isinstance(node, ast.ImportFrom):
            names = [name for name in [(node.module or "").split(".")[0]] if name in LOADERS]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec", "__import__")
        ):
            names = [node.func.id]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            names = [f"yaml.{node.func.attr}"] if node.func.value.id == "yaml" and node.func.attr in UNSAFE_YAML else []
        found += [f"line {getattr(node, 'lineno', 0)}: {name}" for name in names]
    return found


def test_nothing_committed_names_a_package_index_or_a_path_of_a_machine() -> None:
    files = _committed()
    assert files
    texts = {file: file.read_text(errors="replace") for file in files}
    assert {str(file.relative_to(ROOT)): found for file, text in texts.items() if (found := local_text(text))} == {}


def test_no_package_can_execute_data() -> None:
    files = sorted(ROOT.glob("converge-*/src/**/*.py"))
    assert files
    assert {str(file.relative_to(ROOT)): found for file in files if (found := executed_data(file.read_text()))} == {}


def test_the_licence_is_the_same_everywhere() -> None:
    texts = {file.read_text() for file in [ROOT / "LICENSE", *ROOT.glob("converge-*/LICENSE")]}
    assert len(texts) == 1
    assert "Apache License" in texts.pop()


def test_a_local_text_is_found() -> None:
    assert local_text("--extra-index" + "-url x")
    assert local_text("https://files.python" + "hosted.org/x")
    assert local_text("see /home" + "/ann/notes")
    assert local_text('"/work' + '/venv"')
    assert not local_text("/tmp/x ./work/y https://example.org/work/z ~/opt/x")


def test_a_way_to_execute_data_is_found() -> None:
    samples = [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "exec(text)",
        "def f():\n    import shelve",
        "yaml.load(text)",
    ]
    assert [sample for sample in samples if not executed_data(sample)] == []
    assert not executed_data("yaml.safe_load(text)\nclient.eval(script)\nre.compile('x')")
