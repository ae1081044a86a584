"""The health endpoint: `/livez`, `/readyz` and `/metrics`, served by a thread, even while the event loop is blocked."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app
from waitress.server import create_server

from converge import forks
from converge.errors import ConfigError
from converge.net.throttle import Throttle
from converge.runtime.config.health_address import Address, parsed
from converge.runtime.probes.answer import Health, Reason

log = logging.getLogger("converge.health")

THREADS = 2
"""One that answers and one in reserve: an answer takes about a millisecond."""

CONNECTIONS, SPARE = 64, 16
"""Open connections at most: what watches over a process opens few. Past that the oldest that waits for no answer is
closed for a new one, so that nobody keeps a probe out by holding them all. `SPARE`: for those that do wait.
"""

IDLE_SEC = 10
"""How long a connection may be silent."""

LOOK_SEC = 5.0
"""How often silent connections are looked for; a request or a stop is heard at once."""

EXHAUSTED_SEC = 0.1
"""While no connection can be accepted, as where descriptors have run out, it is tried again at this interval."""

PATHS = ("/livez", "/readyz", "/metrics")


class HealthServer:
    """Serves the health of one process until `close`."""

    def __init__(self, text: str, health: Callable[[], Health], registry: CollectorRegistry) -> None:
        self._health = health
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._address = parsed(text)
        self._socket = _bound(text, self._address)
        self._map: dict[int, Any] = {}
        self._server: Any = create_server(
            self._answer,
            map=self._map,
            sockets=[self._socket],
            threads=THREADS,
            connection_limit=CONNECTIONS + SPARE,
            channel_timeout=IDLE_SEC,
            cleanup_interval=int(LOOK_SEC),
            max_request_header_size=8_192,
            max_request_body_size=1_024,
            ident=None,
            asyncore_use_poll=True,
        )
        # Probes that come at once wait for each other: no warning is due, though the library gives one for each.
        self._server.task_dispatcher.queue_logger = logging.Logger("waitress.queue", logging.ERROR)
        self._accept, self._server.accept = self._server.accept, self._accepted
        self._throttle = Throttle(log, time.monotonic)
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="converge-health", daemon=True)
        forks.watch(self, _lay_down)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread left
            self._release()
            raise
        log.info("health at %s", self.url)

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the port that was chosen."""
        if self._address.path:
            return f"unix:{self._address.path}"
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Stop; no request is answered from then on."""
        self._is_closing = True
        self._server.pull_trigger()
        self._thread.join()
        # Only now: what wakes the thread must be open until it has ended, which may be before it is woken.
        self._release()

    def _release(self) -> None:
        self._server.task_dispatcher.shutdown(timeout=1)
        self._server.close()
        self._server.asyncore.close_all(self._map, ignore_all=True)
        if self._address.path:
            with suppress(FileNotFoundError):
                Path(self._address.path).unlink()

    def _serve(self) -> None:
        while not self._is_closing:
            self._server.asyncore.loop(timeout=LOOK_SEC, use_poll=True, map=self._map, count=1)

    def _accepted(self) -> Any:
        """Accept a connection, as the library wants it. It would try again at once, and log each time."""
        try:
            found = self._accept()
        except OSError as error:
            self._throttle.warning(self.url, "health: no connection is accepted: %s", error.strerror or error)
            time.sleep(EXHAUSTED_SEC)
            return None
        if len(self._server.active_channels) >= CONNECTIONS:
            self._make_room()
        return found

    def _make_room(self) -> None:
        """Close the oldest connection that waits for no answer, as the library closes silent ones."""
        for channel in self._server.active_channels.values():
            if not channel.requests and not channel.will_close:
                channel.will_close = True
                return

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _response(start, "405 Method Not Allowed", {"error": "only GET and HEAD"}, [("Allow", "GET, HEAD")])
        if path == "/metrics":
            return self._metrics(environ, start)
        if path not in PATHS:
            return _response(start, "404 Not Found", {"error": f"only {', '.join(PATHS)}"})
        health = self._health()
        is_well = health.is_live if path == "/livez" else health.is_ready
        return _response(start, "200 OK" if is_well else "503 Service Unavailable", _shown(health))


def _shown(health: Health) -> dict[str, Any]:
    return {
        "v": 1,
        "live": health.is_live,
        "ready": health.is_ready,
        "reasons": [_reason(one) for one in health.reasons],
        "notes": [_reason(one) for one in health.notes],
    }


def _reason(reason: Reason) -> dict[str, str]:
    return {"code": reason.code, "text": reason.text, "since": reason.since.isoformat(timespec="milliseconds")}


def _response(
    start: Callable[..., Any], status: str, content: dict[str, Any], headers: Iterable[tuple[str, str]] = ()
) -> list[bytes]:
    body = json.dumps(content).encode() + b"\n"
    about = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start(status, [*about, *headers])
    return [body]


def _bound(text: str, address: Address) -> socket.socket:
    """Return a socket that is bound to the address.

    Raises:
        ConfigError: Nobody may listen there, or somebody does.
    """
    try:
        if address.path:
            return _bound_at(address.path)
        family, kind, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        one = socket.socket(family, kind)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(where)
        except BaseException:
            one.close()
            raise
        return one
    except OSError as error:
        raise ConfigError(
            f"health: cannot listen at {text}: {error.strerror or error}; name another address"
        ) from error
    except UnicodeError as error:  # a label of the name is empty or too long
        raise ConfigError(f"health: cannot listen at {text}: no host has such a name; name another address") from error


def _bound_at(path: str) -> socket.socket:
    """Return a socket at a path; one that nobody listens at any more is taken over."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            raise OSError(98, "another process listens there")
        with suppress(FileNotFoundError):
            Path(path).unlink()
        one.bind(path)
    except BaseException:
        one.close()
        raise
    return one


def _lay_down(server: HealthServer) -> None:
    """Leave the address to the parent: a child has no thread that would answer."""
    server._socket.close()
