"""`rediss://` is TLS with the system's authorities and the host's name checked; there is nothing that turns this
off.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from converge.contracts.store import Batch, Committed
from converge.errors import StoreUnavailable
from converge.model.keys import POOL
from converge.testing.proxy import host_and_port
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
async def tls_before(url: str, certificate: Path) -> AsyncIterator[str]:
    """Serve TLS before a Redis server; gives the `rediss://` URL."""
    host, port = host_and_port(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

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
