"""The release checklist: its page names its steps, it folds fragments into changelogs, and builds what is uploaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / ".ci" / "release"


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """The command, as a module."""
    spec = spec_from_loader("release", SourceFileLoader("release", str(COMMAND)))
    assert spec is not None and spec.loader is not None
    module, sys.dont_write_bytecode = module_from_spec(spec), True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = False
    return module


def test_the_page_has_the_steps_of_the_command_in_their_order(release: ModuleType) -> None:
    page = (ROOT / "docs/how-to/release.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(release.STEPS)


def test_fragments_become_a_section_and_are_gone(
    release: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "converge-core"
    (package / "changes").mkdir(parents=True)
    (package / "pyproject.toml").write_text('[project]\nversion = "1.3.0"\n')
    (package / "CHANGELOG.md").write_text("# Changes\n\nHow.\n\n## 1.2.0\n\n- Old.\n")
    for name in ("12.added.md", "2.added.md", "3.fixed.md"):
        (package / "changes" / name).write_text(f"What {name}\nbrings.\n")
    release.fold(tmp_path)
    assert (package / "CHANGELOG.md").read_text() == (
        "# Changes\n\nHow.\n\n## 1.3.0\n\n### Added\n\n- What 2.added.md brings.\n- What 12.added.md brings.\n"
        "\n### Fixed\n\n- What 3.fixed.md brings.\n\n## 1.2.0\n\n- Old.\n"
    )
    assert list((package / "changes").iterdir()) == []


@pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.timeout(600)
def test_each_package_builds_to_an_sdist_and_a_wheel_with_complete_metadata(tmp_path: Path) -> None:
    command = [sys.executable, str(COMMAND), "--only", "build", "metadata", "sums", "--dist", str(tmp_path / "dist")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-2_000:]
    lines = (tmp_path / "dist" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 10
    if found := shutil.which("sha256sum"):
        subprocess.run([found, "--check", "SHA256SUMS"], cwd=tmp_path / "dist", check=True, capture_output=True)
