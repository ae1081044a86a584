"""The documentation site builds without a warning, and axe-core finds nothing in its pages.

With FULL_TESTS=1 only: the site has an environment of its own, and a browser reads it.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from converge.testing.fixtures import wait_until_sync

ROOT = Path(__file__).parents[2]
AXE = "axe-playwright-python==0.1.8"  # of which only axe.min.js is used
# Pages, each with what is read of it: the page of all modules is long, and one of them is made as all are.
PAGES = {
    "index.html": "body",
    "reference/store-contract.html": "body",
    "reference/modules.html": "#converge-hookspecs",
    "tutorials/write-a-discovery.html": "body",
}
# Findings of WCAG 2 A and AA; the rest are opinions.
RUN = """axe.run(%s, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).then(found => JSON.stringify(
    found.violations.map(one => [one.id, one.impact, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])))"""

pytestmark = [
    pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as the one command builds it."""
    target = tmp_path_factory.mktemp("site")
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [str(ROOT / ".ci" / "site"), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return target


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site's address on the loopback interface."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "axe"), AXE]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return next((folder / "axe").rglob("axe.min.js")).read_text(encoding="utf-8")


class Browser:
    """A browser without a window, told what to do over its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method, and wait for its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=120))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression in the page, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str, scheme: str) -> None:
        """Open a page in light or dark colours, and wait until it is there."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        loaded = f"document.readyState == 'complete' && location.href.startsWith({json.dumps(url)})"
        wait_until_sync(lambda: bool(self.evaluate(loaded)), timeout=60, what=url)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Debian's chromium; where it is absent, the test is not run."""
    program = shutil.which("chromium") or pytest.skip("needs Debian's chromium")
    profile = tmp_path / "profile"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    with (tmp_path / "chromium.log").open("wb") as log:
        command = [program, *flags, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_sync((profile / "DevToolsActivePort").exists, timeout=60, what="the browser")
        pattern = re.compile(r"DevTools listening on (ws://\S+)")
        log_file = tmp_path / "chromium.log"
        wait_until_sync(lambda: bool(pattern.search(log_file.read_text(errors="replace"))), timeout=60, what="its port")
        found = pattern.search(log_file.read_text(errors="replace"))
        assert found is not None
        with connect(found[1], max_size=None) as socket:
            target = Browser(socket).call("Target.createTarget", url="about:blank")["targetId"]
        with connect(f"{found[1].partition('/devtools')[0]}/devtools/page/{target}", max_size=None) as socket:
            made = Browser(socket)
            made.call("Page.enable")
            yield made
    finally:
        process.terminate()
        process.wait(30)


def test_the_site_has_every_page_and_the_public_modules(site: Path) -> None:
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 50
    assert [str(page) for page in pages if not (site / page).exists()] == []
    modules = (site / "reference/modules.html").read_text()
    assert "converge.contracts.store.Store.commit" in modules and "converge_store_redis" in modules


def test_axe_finds_nothing_in_the_pages(served: str, axe: str, browser: Browser) -> None:
    found = {}
    for page, part in PAGES.items():
        for scheme in ("light", "dark"):
            browser.open(f"{served}/{page}", scheme)
            browser.evaluate(axe)
            if violations := json.loads(browser.evaluate(RUN % json.dumps(part))):
                found[f"{page}, {scheme}"] = violations
    assert found == {}, json.dumps(found, indent=1)[:6_000]
