"""The file store keeps every clause of the store contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from converge.builtin.file.plugin import FILE
from converge.testing import StoreContract, TaskContract


class _OnFile(StoreContract):
    backend = FILE

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """A file of the test's own."""
        return f"file:{tmp_path / 'state.db'}"


class TestFileStore(_OnFile):
    """With its own turn, count and watch."""


class TestFileStoreInherited(_OnFile):
    """With those that every store inherits."""

    inherited_turn = True


class TestFileTasks(TaskContract):
    """Tasks on it."""

    backend = FILE

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """A file of the test's own."""
        return f"file:{tmp_path / 'state.db'}"
