"""The health of the processes of one supervisor, as one answer: each serves its own at a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from converge.runtime.agents.ailments import Code
from converge.runtime.probes.answer import Health, Reason

ANSWER_SEC = 2.0
"""How long a process may take to answer; its endpoint has a thread of its own."""

AT_ONCE = 8
"""Processes that are asked at a time."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SEC)
        self._path = str(path)
        self.sock: socket.socket | None = None

    def connect(self) -> None:
        self.sock = one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.settimeout(self.timeout)
        one.connect(self._path)


def _ask(path: Path, what: str) -> bytes | None:
    """Return what the process at the socket answers; None: it does not."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", what)
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return None  # it starts, or has ended: the supervisor starts it again
    finally:
        connection.close()


class Children(Collector):
    """Asks all processes at once: live as long as each is, ready when all are."""

    def __init__(self, folder: Path, count: int) -> None:
        self._sockets = [socket_of(folder, number) for number in range(count)]
        self._began = datetime.now(UTC)

    def health(self) -> Health:
        """Return the health of all; each reason's text begins with the process's number."""
        reasons: list[Reason] = []
        notes: list[Reason] = []
        is_live = True
        for number, raw in enumerate(self._asked("/readyz")):
            if raw is None:
                reasons.append(Reason(code=Code.STARTING, text=f"[{number}] does not answer yet", since=self._began))
                continue
            told = json.loads(raw)
            is_live &= told["live"]
            reasons += _read(number, told["reasons"])
            notes += _read(number, told["notes"])
        return Health(is_live=is_live, is_ready=not reasons, reasons=tuple(reasons), notes=tuple(notes))

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all, each with the label `process`."""
        merged: dict[str, Metric] = {}
        for number, raw in enumerate(self._asked("/metrics")):
            for family in text_string_to_metric_families(raw.decode()) if raw is not None else ():
                one = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                one.samples += [_labelled(sample, number) for sample in family.samples]
        return merged.values()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect at registration."""
        return ()

    def _asked(self, what: str) -> Sequence[bytes | None]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda path: _ask(path, what), self._sockets))


def socket_of(folder: Path, number: int) -> Path:
    """Return where the process of that number serves its health."""
    return folder / f"{number}.sock"


def _read(number: int, rows: Iterable[dict[str, Any]]) -> list[Reason]:
    return [
        Reason(code=row["code"], text=f"[{number}] {row['text']}", since=datetime.fromisoformat(row["since"]))
        for row in rows
    ]


def _labelled(sample: Sample, number: int) -> Sample:
    return sample._replace(labels={**sample.labels, "process": str(number)})
