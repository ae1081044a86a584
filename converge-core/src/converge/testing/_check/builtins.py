"""The benches of built-in backends that the scheme alone does not give a place."""

from __future__ import annotations

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
