"""`rediss://`, also through sentinels and in a cluster, is TLS with the system's authorities or one's own, the host's
name checked, with a certificate of the client where the server asks for one; there is nothing that turns this off.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
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
from hiredis import ReplyError

from converge.contracts.store import Batch, Committed
from converge.errors import ConfigError, StoreError, StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.proxy import host_and_port
from converge.testing.servers import free_port, port_answers, running
from converge_store_redis import RedisOptions, RedisStore
from converge_store_redis.connection import Connection
from converge_store_redis.credentials import tls_context
from converge_store_redis.place import Address

Start = Callable[..., int]


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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The certificate of every server, which is its own authority."""
    return make_certificate(tmp_path, "127.0.0.1")


@pytest.fixture
def shown(options: RedisOptions, certificate: Path) -> RedisOptions:
    """What a client needs: servers ask it for a certificate."""
    return attrs.evolve(options, tls_ca=certificate, tls_certificate=certificate, connect_timeout_sec=20.0)


@pytest.fixture
def start(debian: Callable[[str, str], str], tmp_path: Path, certificate: Path) -> Iterator[Start]:
    """Starts a server that speaks TLS only, Debian's Redis 7.0, since the wheels are built without; gives its port."""
    program = debian("redis-server", "redis-server")
    with ExitStack() as stack:

        def run(*options: str, config: Path | None = None) -> int:
            port = free_port()
            folder = tmp_path / str(port)
            folder.mkdir()
            command = [program, *([str(config), "--sentinel"] if config else []), "--port", "0"]
            command += ["--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
            for flag in ("cert", "key", "ca-cert"):
                command += [f"--tls-{flag}-file", str(certificate)]
            command += ["--tls-replication", "yes", *options]
            stack.enter_context(running(command, directory=folder, ready=lambda: port_answers(port)))
            return port

        yield run


async def test_redis_itself_speaks_tls_with_us(start: Start, shown: RedisOptions) -> None:
    async with RedisStore.open(f"rediss://127.0.0.1:{start()}/0", shown) as store:
        (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        assert isinstance(outcome, Committed)
        told = await store.inspect()
        assert told.product.startswith("Redis 7.0") and not told.is_tested


async def asked(options: RedisOptions, port: int, *command: Any) -> Any:
    """Return a server's answer over TLS, past the store."""
    connection = await Connection.open(Address("127.0.0.1", port), tls_context(options))
    try:
        answer = await connection.ask(*command)
    finally:
        connection.close()
    if isinstance(answer, ReplyError):
        raise answer
    return answer


async def works(url: str, options: RedisOptions) -> None:
    """Write and read through the URL; without a certificate of the client, nobody is let in."""
    async with RedisStore.open(url, options) as store:
        (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        assert isinstance(outcome, Committed)
        (entry,) = await store.get([POOL("p")])
        assert entry is not None and entry.value == b"1"
    with pytest.raises(StoreError):
        async with RedisStore.open(url, attrs.evolve(options, tls_certificate=None)):
            pass
    with pytest.raises(StoreUnavailable, match="certificate"):
        async with RedisStore.open(url, attrs.evolve(options, tls_ca=None)):
            pass


async def test_sentinels_and_the_primary_that_they_name_speak_tls(
    start: Start, shown: RedisOptions, tmp_path: Path
) -> None:
    primary = start()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor main 127.0.0.1 {primary} 1\n")
    sentinel = start(config=config)

    async def sees_it() -> bool:
        found = await asked(shown, sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return bool(found == [b"127.0.0.1", b"%d" % primary])

    await wait_until(sees_it, timeout=30, what="the sentinel watches the primary")
    await works(f"rediss+sentinel://127.0.0.1:{sentinel}/main/0", shown)


async def test_the_nodes_of_a_cluster_speak_tls(start: Start, shown: RedisOptions) -> None:
    flags = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-require-full-coverage", "no")
    buses = [free_port() for _ in range(2)]  # by default 10,000 above the port, which may be none
    first, second = (start(*flags, "--cluster-port", str(bus)) for bus in buses)
    await asked(shown, first, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await asked(shown, second, "CLUSTER", "MEET", "127.0.0.1", first, buses[0])

    async def knows_the_owner() -> bool:
        slots = await asked(shown, second, "CLUSTER", "SLOTS")
        state = [await asked(shown, port, "CLUSTER", "INFO") for port in (first, second)]
        return bool(slots and slots[0][2][1] == first and all(b"cluster_state:ok" in one for one in state))

    await wait_until(knows_the_owner, timeout=30, what="the other node knows who owns the slots")
    await works(f"rediss+cluster://127.0.0.1:{second}", shown)
