"""A node behind a real reverse proxy: WebSocket under a path of nginx, plain, and with TLS that ends there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converge import Agent, Message, Node
from converge.errors import DeliveryTimeout
from converge.testing.servers import free_port

pytestmark = pytest.mark.slow

CONFIG = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
        ssl_protocols TLSv1.3; ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server-key.pem;
        location /agents/one {{
            proxy_pass http://127.0.0.1:{node}/one;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }}
    }}
}}
"""


class Echo(Agent):
    """Answers with what it was sent."""

    async def on_message(self, message: Message) -> object:
        return message.payload


class Ports:
    """Where nginx and the node listen."""

    def __init__(self) -> None:
        self.plain, self.tls, self.node = free_port(), free_port(), free_port()


@pytest.fixture
def anyio_backend() -> str:
    """The library runs on asyncio only."""
    return "asyncio"


@pytest.fixture
def ports(tmp_path: Path, debian: Callable[[str, str], str]) -> Iterator[Ports]:
    """Nginx, with a certificate for this host."""
    ports, program = Ports(), debian("nginx", "nginx")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(tmp_path / "server-key.pem"), "-out", str(tmp_path / "server.pem"), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "nginx.conf").write_text(CONFIG.format(folder=tmp_path, **vars(ports)))
    with subprocess.Popen([program, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]) as process:
        yield ports
        process.terminate()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_agents_talk_through_a_path_of_a_reverse_proxy(ports: Ports, tmp_path: Path, scheme: str) -> None:
    store, port = f"file:{tmp_path / 's.db'}", ports.tls if scheme == "wss" else ports.plain
    options = {"ca": str(tmp_path / "server.pem")}
    async with (
        Node(
            store=store,
            transport=f"ws://127.0.0.1:{ports.node}/one",
            advertise=f"{scheme}://127.0.0.1:{port}/agents/one",
            options={"ws": {**options, "tls_terminated": scheme == "wss"}},
            grace_sec=0.0,
        ) as behind,
        Node(store=store, transport="ws://127.0.0.1:0/", options={"ws": options}, grace_sec=0.0) as other,
    ):
        (agent,) = await behind.spawn(Echo)
        for payload in ("hello", "x" * 500_000):
            assert await other.ask(agent.id, payload, timeout=20) == payload


async def test_tls_that_ends_elsewhere_and_is_not_declared_is_refused(ports: Ports, tmp_path: Path) -> None:
    store, options = f"file:{tmp_path / 's.db'}", {"ws": {"ca": str(tmp_path / "server.pem")}}
    async with (
        Node(
            store=store,
            transport=f"ws://127.0.0.1:{ports.node}/one",
            advertise=f"wss://127.0.0.1:{ports.tls}/agents/one",
            grace_sec=0.0,
        ) as behind,
        Node(store=store, transport="ws://127.0.0.1:0/", options=options, grace_sec=0.0) as other,
    ):
        (agent,) = await behind.spawn(Echo)
        with pytest.raises(DeliveryTimeout, match="different TLS certificates"):
            await other.ask(agent.id, 1, timeout=6)
