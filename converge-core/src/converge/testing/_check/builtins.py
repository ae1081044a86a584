"""The benches of built-in backends that the scheme alone does not give a place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from converge.contracts.discovery import Sighting
from converge.plugins.declaration import Backend
from converge.testing._check.bench import Bench


class LocalBench(Bench):
    """Names of this process for each listener."""

    def address(self) -> str:
        """Return one that draws a free name each time."""
        return "local:"

    def foreign_address(self) -> str:
        """Return one of another transport."""
        return "tcp://127.0.0.1:0"

    def unknown_address(self) -> str:
        """Return a name that nobody has."""
        return "local:nobody"


class FileBench(Bench):
    """A file for each store."""

    def url(self) -> str:
        """Return one of its own, whatever was given."""
        return f"{self._scheme}:{self.fresh() / 'state.db'}"


class StaticBench(Bench):
    """A file of endpoints for each test."""

    def __init__(self, backend: Backend, given: str, folder: Path) -> None:
        super().__init__(backend, given, folder)
        self._file = folder / "endpoints"

    def options(self) -> Any:
        """Return options that name an empty file."""
        self._file = self.fresh() / "endpoints"
        self._file.touch()
        return self.backend.options(file=str(self._file))

    def configure(self, options: Any, number: int) -> list[Sighting]:
        """Name so many endpoints in the file."""
        endpoints = [f"tcp://10.0.0.{host}:7000" for host in range(1, number + 1)]
        new = Path(options.file).with_suffix(".new")
        new.write_text("\n".join(endpoints), encoding="utf-8")
        new.replace(options.file)
        return [Sighting(one, (one,)) for one in endpoints]

    def restart(self) -> None:
        """Take the file of the last options away and put it back, as if its share was unmounted for a moment."""
        away = self._file.with_suffix(".away")
        self._file.rename(away)
        time.sleep(self.suffer_sec)  # away for as long as looks may notice
        away.rename(self._file)
