"""The health of several processes as one, also while some of them do not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from converge.runtime.agents.ailments import Code
from converge.runtime.probes import children
from converge.runtime.probes.answer import Health
from converge.runtime.probes.children import Children, socket_of
from converge.runtime.probes.server import HealthServer


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a process that listens, and nothing of which runs."""
    monkeypatch.setattr(children, "ANSWER_SEC", 0.05)
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(socket_of(tmp_path, 0)))
        listening.listen()
        yield tmp_path


def samples(of: Children) -> dict[str, float]:
    """What is shown, by name and code."""
    found = [sample for family in of.collect() for sample in family.samples]
    assert all(sample.labels["process"] == "0" for sample in found)
    return {f"{sample.name} {sample.labels.get('code', '')}".strip(): sample.value for sample in found}


@pytest.mark.parametrize(("stall_sec", "is_live"), [(600.0, True), (0.0, False)])
def test_a_process_that_listens_and_does_not_run_is_not_ready_and_soon_not_live(
    frozen: Path, stall_sec: float, is_live: bool
) -> None:
    all_ = Children(frozen, 1, stall_sec)
    found = all_.health()
    assert (found.is_ready, found.is_live, found.reasons[0].code) == (False, is_live, Code.LOOP_BLOCKED)
    assert samples(all_) == {"converge_live": is_live, "converge_ready": 0, "converge_unready_reason loop_blocked": 1}


def test_a_process_that_is_not_there_is_starting_since_it_was_last_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "ANSWER_SEC", 30.0)
    all_ = Children(tmp_path, 1, 0.0)
    assert samples(all_) == {"converge_live": 1, "converge_ready": 0, "converge_unready_reason starting": 1}
    server = HealthServer(
        f"unix:{socket_of(tmp_path, 0)}", lambda: Health(is_live=True, is_ready=True), CollectorRegistry()
    )
    answered = datetime.now(UTC)
    assert all_.health() == Health(is_live=True, is_ready=True)
    server.close()
    found = all_.health()
    assert (found.is_ready, found.is_live, found.reasons[0].code) == (False, True, Code.STARTING)
    assert found.reasons[0].since > answered
