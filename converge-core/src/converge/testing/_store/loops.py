"""The event loops on which the tests of a store or a discovery run."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from converge.testing.clauses import check_case, loops_of
from converge.testing.fixtures import is_quick


class LoopCase:
    """One backend, each of whose coroutine tests runs on the event loops of `loops_of`; the first with `--quick`."""

    backend: ClassVar[Any]
    loops: ClassVar[tuple[str, ...]] = ("asyncio", "trio")
    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.anyio]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_case(cls)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run coroutine tests on asyncio and, unless the backend declares ASYNCIO_ONLY, on trio."""
        if "anyio_backend" in metafunc.fixturenames:
            loops = loops_of(type(self))
            metafunc.parametrize(
                "anyio_backend", loops[:1] if is_quick(metafunc.config) else loops, indirect=True, scope="module"
            )

    @pytest.fixture(scope="module")
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> str:
        """Return the event loop of this run of the test."""
        return str(request.param)
