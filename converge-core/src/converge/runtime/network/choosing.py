"""What the settings name, found and checked before anything is opened: backends, their options, and every address."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs

from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import Feature
from converge.contracts.transport import TransportBackend
from converge.errors import ConfigError
from converge.net.hosts import is_anywhere, is_for_many
from converge.plugins import PluginHost
from converge.runtime.config.node_settings import NodeSettings, addresses
from converge.runtime.network.discovery_store import store_url
from converge.secret import without_password
from converge.services.store.opening import backend_options, check_loop

NO_TRANSPORT = (
    "require_tls: is not allowed without a transport: agents of one process reach each other without a connection"
)

NOWHERE = "none"
"""`advertise`: no endpoint is told to others; they reach this node over the connections that it makes."""


@attrs.frozen(kw_only=True)
class ChosenTransport:
    """A transport of the node: where it listens, and where others dial it; empty: where it listens."""

    backend: TransportBackend
    options: Any
    url: str
    advertise: str = ""


@attrs.frozen(kw_only=True)
class Chosen:
    """The backends that the settings name, with their options; none is open. No transport: the node does not listen."""

    discovery: DiscoveryBackend
    discovery_options: Any
    transports: tuple[ChosenTransport, ...] = ()


class _Problems:
    """What is wrong, gathered to be told at once."""

    def __init__(self) -> None:
        self._found: list[ConfigError] = []

    @contextmanager
    def gathered(self, key: str) -> Iterator[None]:
        """Keep what the block refuses; its problems begin with a key: this one, where it names none."""
        try:
            yield
        except ConfigError as error:
            text = str(error)
            error.problems = error.problems or (text if _names_key(text) else f"{key}: {text}",)
            self._found.append(error)

    def tell(self) -> None:
        """Raise what was gathered.

        Raises:
            ConfigError: Something was.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            lines = [line for error in self._found for line in error.problems]
            raise ConfigError("\n".join(lines), problems=lines)


def choose(settings: NodeSettings, host: PluginHost, *, listens: bool = True) -> Chosen:
    """Return what the settings name, so that a mistyped one is told before anything is opened.

    Args:
        settings: Of the node.
        host: Where backends are found.
        listens: Whether this process is to listen; the files of TLS need not be where settings are only checked.

    Raises:
        ConfigError: A backend is not there or cannot run here, an option is wrong, or an address cannot be meant.
    """
    problems, discovery, options = _Problems(), None, None
    with problems.gathered("discovery"):
        discovery = host.discovery_backend(settings.discovery)
        check_loop(discovery.name, discovery.features)
        options = backend_options(discovery.name, discovery.options, settings.options)
    discovery_store = settings.discovery_store and store_url(settings.discovery_store)
    for key, url in (("store", settings.store), ("discovery_store", discovery_store)):
        if url:
            with problems.gathered(key):
                store = host.store_backend(url)
                check_loop(store.name, store.features)
    urls, transports = addresses(settings.transport), list[ChosenTransport]()
    if not urls and discovery is not None:
        with problems.gathered("discovery"):
            _check_alone(settings, discovery)
    known = dict.fromkeys(map(_scheme, urls))  # by scheme: a transport that is there, None for one that is not
    for url in urls:
        with problems.gathered("transport"):
            backend = host.transport_backend(url)
            known |= dict.fromkeys(backend.schemes, backend)
            transports.append(_transport(url, backend, settings, listens=listens))
    with problems.gathered("transport"):
        if len({one.backend.name for one in transports}) < len(transports):
            raise ConfigError(f"transport: {', '.join(map(without_password, urls))}: one address for each transport")
    for peer in getattr(options, "endpoints", ()) if urls else ():
        with problems.gathered("options"):
            _check("options.static: endpoints", peer, known)
            _check_dialled("options.static: endpoints", peer)
    advertised = _advertised(settings, urls, known, problems) if urls else {}
    problems.tell()
    assert discovery is not None, "or its absence was told"
    chosen = tuple(attrs.evolve(one, advertise=advertised.get(one.backend.name, "")) for one in transports)
    return Chosen(discovery=discovery, discovery_options=options, transports=chosen)


def _check_alone(settings: NodeSettings, discovery: DiscoveryBackend) -> None:
    """Refuse what needs a transport, which this node does not have."""
    if settings.require_tls:
        raise ConfigError(NO_TRANSPORT)
    if not discovery.publishes:
        raise ConfigError(
            f'discovery: "{discovery.name}" knows nodes by their endpoints only, and this one has no transport '
            "to ask them; add transport"
        )


def _transport(url: str, backend: TransportBackend, settings: NodeSettings, *, listens: bool) -> ChosenTransport:
    check_loop(backend.name, backend.features)
    if settings.require_tls and Feature.TLS not in backend.features and _scheme(url) not in backend.secure_schemes:
        better = "".join(f"; use {scheme}://" for scheme in sorted(backend.secure_schemes))
        raise ConfigError(
            f'require_tls: transport "{backend.name}" has connections without TLS at {_scheme(url)}://{better}; they '
            "are encrypted all the same, by core"
        )
    if ":" not in url:
        schemes = " or ".join(f"{scheme}:" for scheme in sorted(backend.schemes))
        raise ConfigError(f"transport: {url} is not allowed: expected a URL here, which begins with {schemes}")
    _check("transport", url, dict.fromkeys(backend.schemes, backend))
    options = backend_options(backend.name, backend.options, settings.options)
    if listens and backend.check_listening is not None:
        _tried("transport", url, partial(backend.check_listening, url, options))
    return ChosenTransport(backend=backend, options=options, url=url)


def _advertised(
    settings: NodeSettings, urls: Sequence[str], known: Mapping[str, TransportBackend | None], problems: _Problems
) -> dict[str, str]:
    """Return what others dial, by the transport's name."""
    found: dict[str, str] = {}
    for text in addresses(settings.advertise):
        if text == NOWHERE:
            return {backend.name: NOWHERE for backend in known.values() if backend is not None}
        with problems.gathered("advertise"):
            if "://" not in text and len(urls) > 1:
                raise ConfigError(f"advertise: {text} is not allowed with several transports; write a URL for each")
            url = text
            if "://" not in text:
                _, slash, path = urls[0].partition("://")[2].partition("/")
                url = f"{_scheme(urls[0])}://{text}{slash}{path}"
            backend = _check("advertise", url, known)
            _check_dialled("advertise", url, text)
            if backend is not None:
                if backend.name in found:
                    raise ConfigError(f"advertise: {text} is not allowed: one address for each transport")
                found[backend.name] = url if "://" in text else text
    return found


def _check(what: str, url: str, known: Mapping[str, TransportBackend | None]) -> TransportBackend | None:
    """Check an address by the rules of its transport, and return that; None where that is told to be missing itself.

    Raises:
        ConfigError: It can never be meant, or this node has no transport for it.
    """
    if _scheme(url) not in known:
        raise ConfigError(
            f"{what}: {without_password(url)} is not allowed: this node has no transport for it; its own have "
            f"{', '.join(f'{one}://' for one in known)}"
        )
    backend = known[_scheme(url)]
    if backend is not None and backend.check_address is not None:
        _tried(what, url, partial(backend.check_address, url))
    return backend


def _check_dialled(what: str, url: str, text: str = "") -> None:
    """Refuse an address that nobody can dial, however it is written. `text`: as the operator has."""
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    is_zero = port.isdecimal() and int(port) == 0
    if is_zero or is_anywhere(host) or is_for_many(host):
        problem = "port 0" if is_zero else host
        raise ConfigError(f"{what}: {text or without_password(url)} is not allowed: nobody can dial {problem}")


def _tried(what: str, url: str, check: Callable[[], object]) -> None:
    try:
        check()
    except ValueError as error:
        raise ConfigError(f"{what}: {without_password(url)} is not allowed: {error}") from error


def _names_key(text: str) -> bool:
    first = text.partition(":")[0].partition(".")[0]
    return first in attrs.fields_dict(NodeSettings)


def _scheme(url: str) -> str:
    return url.partition(":")[0]
