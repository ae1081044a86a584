"""README's two commands: the first does its work in a fresh clone, the second is what CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Creating an environment and installing into it, on a slow network.
INSTALL_SEC = 400
IS_FULL = os.environ.get("FULL_TESTS") == "1"
INSTALLS = ("python3 -m venv .venv &&\n", ".venv/bin/pip install --quiet ./converge-core &&\n")


def only_block(page: str, heading: str) -> str:
    """The single `sh` block under a heading of a page."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"{len(blocks)} blocks under {heading}"
    return str(blocks[0])


def fresh_clone(target: Path) -> None:
    """What `git clone` of the checkout gives; where git is absent, a copy without what git would ignore."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        subprocess.run(
            [git, "-c", "advice.detachedHead=false", "clone", "--quiet", str(ROOT), str(target)], check=True, timeout=60
        )
    else:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """The environment of a user who has activated nothing."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }
    folders = environment["PATH"].split(os.pathsep)
    active = os.environ.get("VIRTUAL_ENV", "")
    environment["PATH"] = os.pathsep.join(folder for folder in folders if not active or not folder.startswith(active))
    return environment


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SEC + 100)
def test_the_first_command_does_its_work_in_a_fresh_clone(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    """Without FULL_TESTS=1 the clone has the tested environment, and nothing is installed."""
    clone = tmp_path / "converge"
    fresh_clone(clone)
    block = only_block((clone / "README.md").read_text(), "Run it")
    assert block.startswith("".join(INSTALLS))
    if not IS_FULL:
        (clone / ".venv").symlink_to(sys.prefix)
        block = block.removeprefix("".join(INSTALLS))
    done = subprocess.run(
        ["sh", "-c", block], cwd=clone, env=plain_environment, capture_output=True, text=True, timeout=INSTALL_SEC
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(
        path
        for path in clone.glob("docs/**/*.md")
        if not any(part.startswith(".") for part in path.relative_to(clone).parts)
    )
    every_page = b"".join(path.read_bytes() for path in pages)
    counted = subprocess.run(
        ["wc", "-w"], input=every_page, env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    ).stdout
    *rows, total = done.stdout.strip().splitlines()
    assert total.split() == ["total", f"({len(pages)}", "tasks)", counted.decode().strip()]
    assert [row.split()[0] for row in rows[1:]] == [str(path.relative_to(clone)) for path in pages]


def test_the_second_command_is_what_ci_runs() -> None:
    shown = subprocess.run([str(ROOT / ".ci" / "run"), "--show"], capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == only_block((ROOT / "README.md").read_text(), "Test it")


def test_both_commands_accept_the_environment_that_the_other_made() -> None:
    page = (ROOT / "README.md").read_text()
    for heading in ("Run it", "Test it"):
        assert only_block(page, heading).startswith("python3 -m venv .venv &&\n"), heading


def test_a_second_block_under_a_heading_is_refused() -> None:
    with pytest.raises(AssertionError, match="2 blocks"):
        only_block("\n## Run it\n```sh\na\n```\n```sh\nb\n```\n", "Run it")
