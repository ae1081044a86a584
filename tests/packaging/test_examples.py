"""The example plugins, as strangers publish them: built to wheels, installed beside the core in fresh environments, and
kit-tested there from copies of their tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(file.parent for file in ROOT.glob("docs/examples/*/pyproject.toml"))
KIT_SEC = 900
"""The whole kit of an example, both event loops, on a machine that does other things beside."""


def build(package: Path, target: Path) -> Path:
    """Build a package's wheel."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(target.glob(f"{package.name.replace('-', '_')}-*.whl"))


def test_all_examples_are_tested_from_their_sources_too() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    for example in EXAMPLES:
        where = f"docs/examples/{example.name}"
        assert f"{where}/tests" in settings["pytest"]["ini_options"]["testpaths"]
        assert f"{where}/src" in settings["pytest"]["ini_options"]["pythonpath"]
        assert f"{where}/src" in settings["mypy"]["files"]


@pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.timeout(KIT_SEC + 200)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_built_to_a_wheel_passes_the_kit_in_a_fresh_environment(
    example: Path, wheels: dict[str, Path], dependencies: Path, tmp_path: Path
) -> None:
    source = tmp_path / example.name
    shutil.copytree(example, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    wheel = build(source, tmp_path)
    assert f"{example.name.replace('-', '_')}/py.typed" in zipfile.ZipFile(wheel).namelist()
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (next(folder.glob("lib/python*/site-packages")) / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, str(wheels["converge-core"]), str(wheel)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source / "src")  # what is tested is what was installed
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    run = [str(python), "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "tests"]
    tested = subprocess.run(run, cwd=source, env=environment, capture_output=True, text=True, timeout=KIT_SEC)
    assert tested.returncode == 0, tested.stdout[-6_000:] + tested.stderr[-2_000:]
