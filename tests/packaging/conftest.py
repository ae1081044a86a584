"""Wheels of this checkout, and fresh virtual environments with one of them beside the core."""

from __future__ import annotations

import functools
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(file.parent.name for file in ROOT.glob("converge-*/pyproject.toml"))
# Of the running environment, whatever is this checkout itself: installed packages, and the hooks of editable installs.
OWN = ("converge", "_converge", "_editable", "__editable__")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package, built from the checkout."""
    target = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(target),
            str(ROOT / package),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    return {package: next(target.glob(f"{package.replace('-', '_')}-*.whl")) for package in PACKAGES}


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the running environment has, but for this checkout."""
    folder = tmp_path_factory.mktemp("dependencies")
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if not entry.name.startswith(OWN) and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def fresh_python(
    wheels: dict[str, Path], dependencies: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Makes an environment where the core and one package are installed from their wheels; returns its interpreter."""

    def make(package: str) -> Path:
        folder = tmp_path_factory.mktemp(package)
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "dependencies.pth").write_text(f"{dependencies}\n")
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        install += [str(wheels[name]) for name in sorted({"converge-core", package})]
        done = subprocess.run(install, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return python

    return make


@pytest.fixture(scope="session")
def python_with(fresh_python: Callable[[str], Path]) -> Callable[[str], Path]:
    """As `fresh_python`, one environment for each package, for tests that change nothing there."""
    return functools.cache(fresh_python)
