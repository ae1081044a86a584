"""What is checked now, and the places on which its tests run."""

from __future__ import annotations

import uuid
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs

from converge.plugins.declaration import Backend


@attrs.define
class Given:
    """The backend that is checked, where, and a folder for what it writes. Each test has a place of its own: another
    network of the same URL where the backend's options name networks, else another path.
    """

    backend: Backend
    url: str
    folder: Path
    _number: count[int] = attrs.field(factory=count)

    def options(self) -> Any:
        """Return options that name a network of its own, where the backend has networks."""
        made = {"network": f"check-{uuid.uuid4().hex[:16]}"} if self._has_networks else {}
        return self.backend.options(**made)

    @property
    def _has_networks(self) -> bool:
        return "network" in {field.alias or field.name for field in attrs.fields(self.backend.options)}

    def place(self) -> str:
        """Return a URL that no other test uses."""
        scheme = self.backend.schemes[0] if self.backend.schemes else self.backend.name
        if not self.url:
            return f"{scheme}:"
        parts = urlsplit(self.url)
        if self._has_networks or not parts.path or parts.netloc:
            return self.url
        return urlunsplit(parts._replace(path=str(self.folder / f"{next(self._number)}{Path(parts.path).suffix}")))


CURRENT: list[Given] = []
"""The one that is checked: the modules of tests are found by pytest, which passes them nothing."""


def current() -> Given:
    """Return what is checked now."""
    return CURRENT[-1]
