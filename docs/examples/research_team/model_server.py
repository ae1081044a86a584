"""A server that stands in for a language model, a search engine and a press: always the same answers, each counted.

    python -m research_team.model_server FILE

It listens on a free port of 127.0.0.1 and writes its URL to the file.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CALLS: list[str] = []
"""What was asked, in the order in which it came."""

PUBLISHED: dict[str, Any] = {}
"""By idempotency key: what is published twice under one key is published once."""

_LOCK = threading.Lock()


def planner(question: str) -> dict[str, Any]:
    """Find the topics of a question: its long words."""
    return {"topics": [word.strip("?.,").lower() for word in question.split() if len(word) > 4], "tokens": 20}


def worker(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask for a search, then write a note on what was found."""
    if len(messages) == 1:
        return {"tool": "search", "id": "1", "args": [messages[0]["text"]], "tokens": 10}
    return {"text": f"a note on {messages[0]['text']}: {messages[-1]['text']}", "tokens": 30}


def critic(notes: Mapping[str, str]) -> dict[str, Any]:
    """Be content with a topic once its note names a second source."""
    return {"missing": sorted(topic for topic, note in notes.items() if "more" not in note), "tokens": 15}


def search(words: str) -> dict[str, Any]:
    """Find something."""
    return {"text": f"{len(words)} pages"}


def publish(report: Mapping[str, Any]) -> dict[str, Any]:
    """Print the report under its key."""
    PUBLISHED.setdefault(report["key"], report["text"])
    return {"is_published": True}


def withdraw(key: str) -> dict[str, Any]:
    """Take back what was printed."""
    PUBLISHED.pop(key, None)
    return {"is_published": False}


ROLES = {one.__name__: one for one in (planner, worker, critic, search, publish, withdraw)}


class Handler(BaseHTTPRequestHandler):
    """Answers POST /<role> with what the role makes of the JSON in it, and GET /calls with what was asked."""

    def do_POST(self) -> None:
        role, text = self.path.strip("/"), self.rfile.read(int(self.headers["Content-Length"]))
        with _LOCK:
            CALLS.append(f"{role} {text.decode()}")
            answer = ROLES[role](json.loads(text))
        self._write(answer)

    def do_GET(self) -> None:
        with _LOCK:
            self._write({"calls": CALLS, "published": PUBLISHED})

    def _write(self, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def main(file: Path) -> None:
    """Serve until the process is ended."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        new = file.with_suffix(".new")
        new.write_text(f"http://127.0.0.1:{server.server_port}")
        new.rename(file)
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
