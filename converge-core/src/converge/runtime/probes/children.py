"""The health of the processes of one supervisor, as one answer: each serves its own at a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from converge.runtime.agents.ailments import Code
from converge.runtime.probes.answer import Health, Reason

ANSWER_SEC = 1.0
"""How long a process may take to answer; its endpoint has a thread of its own. Whoever asks waits for 2 s."""

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


def _ask(path: Path, what: str) -> bytes | Code:
    """Return what the process at the socket answers, or why it does not."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", what)
        return connection.getresponse().read()
    except (TimeoutError, BlockingIOError):
        return Code.LOOP_BLOCKED  # it listens, and nothing of it runs
    except (OSError, http.client.HTTPException):
        return Code.STARTING  # or it has ended: the supervisor starts it again
    finally:
        connection.close()


class Children(Collector):
    """Asks all processes at once: live as long as each is, ready when all are."""

    def __init__(self, folder: Path, count: int, stall_sec: float) -> None:
        self._sockets = [socket_of(folder, number) for number in range(count)]
        self._stall_sec = stall_sec
        self._silent = dict.fromkeys(range(count), time.monotonic())
        """Since when a process does not answer."""

    def health(self) -> Health:
        """Return the health of all; each reason's text begins with the process's number."""
        reasons: list[Reason] = []
        notes: list[Reason] = []
        is_live = True
        for number, raw in enumerate(self._asked("/readyz")):
            if isinstance(raw, Code):
                is_live &= self._is_live(number, raw)
                reasons.append(_silence(number, raw, self._silent_sec(number)))
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
            told = self._unready(number, raw) if isinstance(raw, Code) else text_string_to_metric_families(raw.decode())
            for family in told:
                one = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                one.samples += [_labelled(sample, number) for sample in family.samples]
        return merged.values()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect at registration."""
        return ()

    def _silent_sec(self, number: int) -> float:
        now = time.monotonic()
        return now - self._silent.get(number, now)

    def _is_live(self, number: int, code: Code) -> bool:
        """Return whether no restart is needed of a process that does not answer."""
        return code is Code.STARTING or self._silent_sec(number) <= self._stall_sec

    def _unready(self, number: int, code: Code) -> Iterable[Metric]:
        """Yield what is known of a process that does not answer."""
        yield GaugeMetricFamily("converge_live", "0: only a restart helps.", value=self._is_live(number, code))
        yield GaugeMetricFamily("converge_ready", "1: it claims tasks and takes messages.", value=0)
        reason = GaugeMetricFamily("converge_unready_reason", "1: why it is not ready.", labels=["code"])
        reason.add_metric([code], 1)
        yield reason

    def _asked(self, what: str) -> Sequence[bytes | Code]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda path: _ask(path, what), self._sockets))
        for number, answer in enumerate(answers):
            if isinstance(answer, bytes):
                self._silent.pop(number, None)
            else:
                self._silent.setdefault(number, time.monotonic())
        return answers


def socket_of(folder: Path, number: int) -> Path:
    """Return where the process of that number serves its health."""
    return folder / f"{number}.sock"


def _silence(number: int, code: Code, silent_sec: float) -> Reason:
    told = "does not answer yet" if code is Code.STARTING else f"nothing of it has run for {silent_sec:.0f} s"
    return Reason(code=code, text=f"[{number}] {told}", since=datetime.now(UTC) - timedelta(seconds=silent_sec))


def _read(number: int, rows: Iterable[dict[str, Any]]) -> list[Reason]:
    return [
        Reason(code=row["code"], text=f"[{number}] {row['text']}", since=datetime.fromisoformat(row["since"]))
        for row in rows
    ]


def _labelled(sample: Sample, number: int) -> Sample:
    return sample._replace(labels={**sample.labels, "process": str(number)})
