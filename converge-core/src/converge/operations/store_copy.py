"""`converge store copy`: from the store of one URL to the store of another."""

from __future__ import annotations

import os
from functools import partial

import attrs

from converge.env import SYSTEM, Env
from converge.errors import ConfigError, SecretOnCommandLine
from converge.operations.run import checked_host
from converge.plugins import PluginHost
from converge.runtime.config.config import Config, options_with_origin
from converge.secret import has_password, without_password
from converge.services.store.copy import Copied, Progress, copy_store
from converge.services.store.opening import NETWORK, open_store

VARIABLE = "env:"
"""What a URL may begin with: then the environment variable of that name holds it, where a command line should not."""


def url_of(given: str) -> str:
    """Return the URL that is given, or that the variable of `env:NAME` holds.

    Raises:
        ConfigError: The variable is not set.
        SecretOnCommandLine: It has a password, and stands on the command line.
    """
    if given.startswith(VARIABLE):
        name = given.removeprefix(VARIABLE)
        if not os.environ.get(name):
            raise ConfigError(f"{given}: the environment variable {name} is not set; let it hold the store's URL")
        return os.environ[name]
    if has_password(given):
        raise SecretOnCommandLine(
            f"{without_password(given)}: a password on the command line can be read by every user of this machine; put "
            "the URL into an environment variable, MY_STORE say, and write env:MY_STORE"
        )
    return given


async def copy(
    config: Config, source: str, target: str, *, on_progress: Progress | None = None, env: Env = SYSTEM
) -> Copied:
    """Copy the network of the configuration from one store to another that is empty; both URLs are whole.

    Raises:
        ConfigError: The two are one, only this process would see one of them, or a plugin cannot be used.
        CopyRefused, StoreError: As `copy_store`.
    """
    if without_password(source) == without_password(target):
        raise ConfigError(f"{without_password(source)} is both source and destination; name two stores")
    hosts = [checked_host(attrs.evolve(config, store=url)) for url in (source, target)]
    networks = [_network(config, host, url) for host, url in zip(hosts, (source, target), strict=True)]
    opens = partial(open_store, options=config.options)
    with options_with_origin(config):
        async with (
            opens(source, plugins=hosts[0], network=networks[0], must_exist=True) as one,
            opens(target, plugins=hosts[1], network=networks[1], may_be_unfinished=True) as other,
        ):
            return await copy_store(one, other, without_password(source), env, on_progress)


def _network(config: Config, host: PluginHost, url: str) -> str:
    """Return the network to copy; a store that keeps a single one has no name for it."""
    fields = {field.name for field in attrs.fields(host.store_backend(url).options)}
    return config.network if "network" in fields else NETWORK
