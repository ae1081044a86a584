"""`rediss://` is TLS with the system's authorities or one's own, the host's name checked, with a certificate of the
client where the server asks for one; there is nothing that turns this off.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from converge.contracts.store import Batch, Committed
from converge.errors import ConfigError, StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.proxy import host_and_port
from converge.testing.servers import free_port, port_answers, running
from converge_store_redis import RedisOptions, RedisStore


def make_certificate(folder: Path, address: str) -> Path:
    """A file with a self-signed certificate for an IP address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{address}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@asynccontextmanager
async def tls_before(url: str, certificate: Path, *, clients: Path | None = None) -> AsyncIterator[str]:
    """Serve TLS before a Redis server, perhaps only to clients with that certificate; gives the `rediss://` URL."""
    host, port = host_and_port(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    async def serve(client: TLSStream) -> None:
        async with client, await anyio.connect_tcp(host, port) as server, anyio.create_task_group() as group:

            async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
                try:
                    async for data in source:
                        await sink.send(data)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass
                group.cancel_scope.cancel()

            group.start_soon(pump, client, server)
            group.start_soon(pump, server, client)

    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    own, listener = plain.extra(SocketAttribute.local_port), TLSListener(plain, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"rediss://127.0.0.1:{own}/0"
        group.cancel_scope.cancel()


async def test_a_server_with_a_trusted_certificate_is_used(
    redis_url: str, options: RedisOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with tls_before(redis_url, certificate) as url, RedisStore.open(url, options) as store:
        (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        assert isinstance(outcome, Committed)


@pytest.mark.parametrize(("address", "is_trusted"), [("127.0.0.1", False), ("127.0.0.2", True)])
async def test_a_server_whose_certificate_is_unknown_or_of_another_host_is_refused(
    redis_url: str,
    options: RedisOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    is_trusted: bool,
) -> None:
    certificate = make_certificate(tmp_path, address)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with tls_before(redis_url, certificate) as url:
        with pytest.raises(StoreUnavailable, match="certificate"):
            async with RedisStore.open(url, options):
                pass


async def test_an_authority_of_ones_own_and_a_certificate_of_the_client_are_options(
    redis_url: str, options: RedisOptions, tmp_path: Path
) -> None:
    server, client = (make_certificate(tmp_path, address) for address in ("127.0.0.1", "127.0.0.9"))
    async with tls_before(redis_url, server, clients=client) as url:
        shown = attrs.evolve(options, tls_ca=server, tls_certificate=client)
        async with RedisStore.open(url, shown) as store:
            (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            assert isinstance(outcome, Committed)
        with pytest.raises(StoreUnavailable):
            async with RedisStore.open(url, attrs.evolve(options, tls_ca=server)):
                pass


@pytest.mark.parametrize("name", ["tls_ca", "tls_certificate"])
async def test_a_file_that_is_no_certificate_is_an_error_of_the_configuration(
    options: RedisOptions, tmp_path: Path, name: str
) -> None:
    (tmp_path / "none.pem").write_text("none")
    for path in (tmp_path / "none.pem", tmp_path / "nowhere.pem"):
        files: dict[str, Any] = {name: path}
        wrong = attrs.evolve(options, **files)
        with pytest.raises(ConfigError, match=f"options.redis.{name}"):
            async with RedisStore.open("rediss://127.0.0.1:1", wrong):
                pass


async def test_tls_where_the_server_has_none_and_none_where_it_has_are_told(
    redis_url: str, options: RedisOptions, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match=r"redis://|cannot be reached"):
        hurried = attrs.evolve(options, connect_timeout_sec=0.5)
        async with RedisStore.open(redis_url.replace("redis://", "rediss://"), hurried):
            pass
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with tls_before(redis_url, certificate) as url:
        with pytest.raises((StoreUnavailable, StoreRefused)):
            async with RedisStore.open(url.replace("rediss://", "redis://"), options):
                pass


async def test_redis_itself_speaks_tls_with_us(
    debian: Callable[[str, str], str], options: RedisOptions, tmp_path: Path
) -> None:
    """Debian's Redis 7.0, which is built with TLS; the wheels are not."""
    program, certificate = Path(debian("redis-server", "redis-server")), make_certificate(tmp_path, "127.0.0.1")
    port = free_port()
    files = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
    command = [str(program), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    command += [word for flag in files for word in (flag, str(certificate))]
    with running(command, directory=tmp_path, ready=lambda: port_answers(port)):
        shown = attrs.evolve(options, tls_ca=certificate, tls_certificate=certificate)
        async with RedisStore.open(f"rediss://127.0.0.1:{port}/0", shown) as store:
            (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            assert isinstance(outcome, Committed)
            told = await store.inspect()
            assert told.product.startswith("Redis 7.0") and not told.is_tested
