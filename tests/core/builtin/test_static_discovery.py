"""Static discovery keeps every clause of the discovery contract that is about one that does not publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.builtin.static import StaticOptions
from converge.builtin.static.plugin import STATIC
from converge.contracts.discovery import Sighting
from converge.testing import DiscoveryContract

ENDPOINTS = ("tcp://10.0.0.1:7000", "local:a")


class TestStaticDiscovery(DiscoveryContract):
    """With endpoints in its options."""

    backend = STATIC

    @pytest.fixture
    def options(self) -> Any:
        return StaticOptions(endpoints=ENDPOINTS)

    @pytest.fixture
    def configured(self) -> list[Sighting]:
        return [Sighting(endpoint, (endpoint,)) for endpoint in ENDPOINTS]


class TestStaticDiscoveryOfAFile(TestStaticDiscovery):
    """With a file of endpoints."""

    @pytest.fixture
    def options(self, tmp_path: Path) -> Any:
        file = tmp_path / "nodes"
        file.write_text("# nodes\n" + "\n".join(ENDPOINTS) + "\n")
        return StaticOptions(file=str(file))

    @pytest.fixture
    def configure(self, options: Any) -> Callable[[int], list[Sighting]]:
        def configure(number: int) -> list[Sighting]:
            endpoints = [f"tcp://10.0.0.{host}:7000" for host in range(number)]
            new = Path(f"{options.file}.new")
            new.write_text("\n".join(endpoints))
            new.replace(options.file)
            return [Sighting(endpoint, (endpoint,)) for endpoint in endpoints]

        return configure


def test_a_refused_endpoint_is_shown_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"not 'tcp://me:\*\*\*@host:1'") as refused:
        StaticOptions(endpoints=["tcp://me:hidden@host:1"])
    assert "hidden" not in str(refused.value)
