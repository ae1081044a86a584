"""The checks of `converge doctor`: each has a code, says what it found and how to fix it."""

from __future__ import annotations

import importlib.util
import ipaddress
import platform
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio

from converge.contracts.store import Finding, error, fine, warning
from converge.errors import ConvergeError
from converge.plugins import PluginHost
from converge.runtime.agents.boundary import worker_kind
from converge.runtime.config.config import KEYS, Config
from converge.runtime.config.node_settings import addresses
from converge.runtime.config_check import problems_of
from converge.runtime.keys.folder import KeyFolder
from converge.secret import has_password, names_secret_file, without_password
from converge.urls import scheme_of

PYTHONS = ((3, 11), (3, 13))
"""The first and the last release of Python that this release is tested with."""

PLAIN_SCHEMES = {"redis": "rediss", "ws": "wss"}
"""Schemes that say nothing of encryption, and those that do."""


def check_process() -> Iterator[Finding]:
    """Check this process: Python and the event loop."""
    running = sys.version_info[:2]
    shown = (
        f"converge-core {version('converge-core')} on Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}"
    )
    first, last = (".".join(map(str, one)) for one in PYTHONS)
    if PYTHONS[0] <= running <= PYTHONS[1]:
        yield fine("python", shown)
    else:
        yield warning("python", shown, f"this release is tested with Python {first} to {last}; use one of them")
    if importlib.util.find_spec("uvloop") is not None:
        yield fine("uvloop", f"uvloop {version('uvloop')} is used on asyncio")
    elif sys.platform != "win32":
        yield warning(
            "uvloop",
            "uvloop is not installed: the event loop is the slower one of the standard library",
            "pip install uvloop",
        )
    kind = anyio.run(worker_kind)
    if kind.is_fast:
        yield fine("user-code", "calls of user code share a task, and each is checked after it has ended")
    else:
        yield warning(
            "user-code",
            f"anyio {version('anyio')} keeps its tasks in another way than is known: each call costs a task of its own",
            "use a release of anyio that this one was tested with",
        )


def check_config(config: Config) -> Iterator[Finding]:
    """Check what the configuration names, who can read its secrets, and what crosses the network unencrypted."""
    sources = sorted(set(config.origins.values()) - {"default"})
    yield fine("config", f"read from {', '.join(sources)}" if sources else "nothing is set: every key has its default")
    problems = problems_of(config)
    for problem in problems:
        yield error(
            "plugins", problem, "fix the key, or install what it names; `converge plugins list` shows what there is"
        )
    if not problems:
        host = PluginHost()
        loaded = [
            f"{one.name} {one.version}" for one in host.installed() if not one.distribution.startswith("converge-core")
        ]
        yield fine("plugins", f"installed: {', '.join(loaded)}" if loaded else "only the built-in ones are installed")
        yield from _check_options(config)
    yield from _check_secrets(config)
    yield from _check_keys(config)
    yield from _check_plaintext(config)


def _check_options(config: Config) -> Iterator[Finding]:
    """Find options of another kind of store than the one that the same plugin opens here."""
    host = PluginHost(config.plugins)
    used = {host.store_backend(url).name for url in (config.store, config.discovery_store) if url}
    for plugin in host.loaded():
        names = {backend.name for backend in plugin.backends["store"]}
        for name in sorted(config.options.keys() & names - used if names & used else ()):
            read = " and ".join(f"options.{one}" for one in sorted(names & used))
            yield warning(
                "options", f"options.{name} is not used: the store reads {read}", f"rename it, or write {read}, too"
            )


def _check_secrets(config: Config) -> Iterator[Finding]:
    """Find files with passwords that others of this host can read."""
    named: dict[Path, str] = {}
    for key in KEYS:
        value, origin = getattr(config, key), config.origins.get(key, "default")
        if isinstance(value, str) and has_password(value) and not origin.startswith(("CONVERGE_", "-")):
            named[Path(origin)] = f"it holds the password of {key}"
    for name, options in config.options.items():
        named |= {path: f"options.{name}.{option} names it" for option, path in _secret_files(options)}
    readable = {
        path: why
        for path, why in named.items()
        if path.exists() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    }
    for path, why in readable.items():
        yield error("secrets", f"{path} can be read by other users ({why})", f"chmod 600 {path}")
    if named and not readable:
        yield fine("secrets", f"{', '.join(map(str, named))}: for their owner only")


def _secret_files(options: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    for option, value in options.items():
        if isinstance(value, str) and value and names_secret_file(option):
            yield option, Path(value)


def _check_keys(config: Config) -> Iterator[Finding]:
    """Check the folder of keys: modes, owners, contents. Nothing is created or locked."""
    if not config.identity_dir:
        return
    path = Path(config.identity_dir)
    if not path.exists():
        yield fine("keys", f"{path} is not there yet: the first start makes it")
        return
    try:
        folder = KeyFolder.open(path, is_made=False)
    except ConvergeError as problem:
        yield error(
            "keys",
            str(problem),
            "see above; the keys in it may be known to others: `converge identity new` makes others",
        )
        return
    try:
        names = [name for name in folder.names() if not name.endswith((".lock", ".new"))]
        bad = list(_unreadable(folder, names))
    finally:
        folder.close()
    for text in bad:
        yield error(
            "keys", text, "a key that others could read is no secret any more: remove it, and a new one is made"
        )
    if not bad:
        yield fine("keys", f"{path} holds {len(names)} file{'' if len(names) == 1 else 's'}, for their owner only")


def _unreadable(folder: KeyFolder, names: list[str]) -> Iterator[str]:
    for name in names:
        try:
            folder.read(name)
        except ConvergeError as problem:
            yield str(problem)


def _check_plaintext(config: Config) -> Iterator[Finding]:
    """Find connections to other hosts without TLS."""
    for key in ("store", "discovery_store"):
        url = getattr(config, key)
        scheme = scheme_of(url, key).partition("+")[0] if ":" in url else ""
        host = _host(url)
        if scheme in PLAIN_SCHEMES and not _is_local(host):
            better = PLAIN_SCHEMES[scheme]
            yield warning(
                "plaintext",
                f"{key}: what goes to {host} can be read on the way, passwords and tasks alike",
                f"use {better}:// with TLS",
            )
    for transport in addresses(config.transport_url):
        if _is_local(_host(transport)) or transport.startswith(("tls:", "wss:")):
            continue
        shown = without_password(transport)
        yield fine(
            "transport",
            f"{shown}: messages are encrypted by Converge, whatever the transport; TLS would hide their number and "
            "size too",
        )


def _host(url: str) -> str:
    rest = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return rest.partition("]")[0].removeprefix("[") if rest.startswith("[") else rest.partition(":")[0]


def _is_local(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
