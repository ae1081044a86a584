"""Wheels of this checkout, and fresh virtual environments with one of them beside the core."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(file.parent.name for file in ROOT.glob("converge-*/pyproject.toml"))
IS_FULL = os.environ.get("FULL_TESTS") == "1"
BUILD = ("build", "--wheel", "--no-isolation", "--outdir") if IS_FULL else ("hatchling", "build", "-t", "wheel", "-d")
# Of the running environment, whatever is this checkout itself: installed packages, and the hooks of editable installs.
OWN = ("converge", "_converge", "_editable", "__editable__")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package, built from the checkout, once for all workers of a run; with FULL_TESTS=1 by the
    command that releases build with.
    """
    target = tmp_path_factory.getbasetemp()
    target = (target.parent if "PYTEST_XDIST_WORKER" in os.environ else target) / "wheels"
    target.mkdir(exist_ok=True)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "built").exists():
            for package in PACKAGES:
                command = [sys.executable, "-m", *BUILD, str(target)]
                done = subprocess.run(
                    [*command, str(ROOT / package)] if IS_FULL else command,
                    cwd=ROOT / package,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, done.stdout + done.stderr
            (target / "built").touch()
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
    """Makes an environment where the core and one package are installed from their wheels; returns its interpreter.

    The core is always installed by pip, which adds the command. A plugin's wheel is what it unpacks to: without
    FULL_TESTS=1 that is done with those of a plugin.
    """

    def make(package: str) -> Path:
        folder = tmp_path_factory.mktemp(package)
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "dependencies.pth").write_text(f"{dependencies}\n")
        if package != "converge-core" and not IS_FULL:
            for name in ("converge-core", package):
                zipfile.ZipFile(wheels[name]).extractall(site)
            return python
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
