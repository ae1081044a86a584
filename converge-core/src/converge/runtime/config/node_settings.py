"""What a node is made of: each setting declared once, with its default, bounds, unit and help.

Keyword arguments of `Node`, the configuration file, environment, flags, schema and docs follow from these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import attrs

from converge.runtime.config.fields import Matching, Within, a_name, described
from converge.runtime.config.health_address import an_address
from converge.secret import masked_repr
from converge.settings import Problem, raise_problems, structured

STALL_LEASES = 10
"""`stall_sec` where nobody sets it, in leases."""

_ADDRESS = r"([a-z][a-z0-9+.-]*://[^\s,]+|(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\],]+):\d{1,5})"
_ADVERTISED = re.compile(rf"none|{_ADDRESS}(\s*,\s*{_ADDRESS})*")

LISTS = ("transport", "advertise")
"""Settings that take several addresses, as a list or separated by commas."""


def addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of a setting, in their order."""
    return tuple(one.strip() for one in text.split(",") if one.strip())


def joined(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with lists of addresses as the text that stands for them."""
    return {
        key: ",".join(value)
        if key in LISTS and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        else value
        for key, value in settings.items()
    }


@attrs.frozen(kw_only=True)
class NodeSettings:
    """What a node is made of; `docs/reference/config.md` says what each setting means."""

    plugins: tuple[str, ...] = attrs.field(
        default=(), metadata=described("plugins to load: NAME, module:attribute, or no:NAME to refuse one")
    )
    network: str = attrs.field(
        default="converge",
        validator=a_name,
        metadata=described("the network: only its keys are seen on a shared store"),
    )
    store: str = attrs.field(
        default="memory:",
        repr=masked_repr,
        metadata=described("URL of the store, such as file:state.db or redis://host:6379/0"),
    )
    discovery_store: str = attrs.field(
        default="",
        repr=masked_repr,
        metadata=described("a separate store for discovery: `memory`, a path, a URL; it has its own lease"),
    )
    discovery: str = attrs.field(
        default="store", metadata=described("how nodes find one another: `store`, `static`, or a plugin's discovery")
    )
    transport: str = attrs.field(
        default="",
        repr=masked_repr,
        metadata=described(
            "URL to listen at, or several, separated by commas; or a transport's name with host and port"
        ),
    )
    advertise: str = attrs.field(
        default="",
        validator=Matching(_ADVERTISED, "HOST:PORT, [IPV6]:PORT, a URL for each transport, or none"),
        metadata=described("where others reach this node; none: only over connections that it makes itself"),
    )
    health: str = attrs.field(
        default="",
        validator=an_address,
        metadata=described("where /livez, /readyz and /metrics are served; a port alone is on 127.0.0.1"),
    )
    lease_sec: float = attrs.field(
        default=15.0, validator=Within(0.5, 3_600), metadata=described("how long a process may be away", "s")
    )
    stall_sec: float = attrs.field(
        default=150.0, validator=Within(0.5, 86_400), metadata=described("how long its loop may be blocked", "s")
    )
    call_sec: float = attrs.field(
        default=10.0,
        validator=Within(0.05, 3_600),
        metadata=described("how long a call on the store may take, less than lease_sec", "s"),
    )
    grace_sec: float = attrs.field(
        default=25.0, validator=Within(0, 3_600), metadata=described("how long tasks may take to end at a stop", "s")
    )
    poll_sec: float = attrs.field(
        default=1.0, validator=Within(0.01, 60), metadata=described("how often to look without a wake-up", "s")
    )
    max_connections: int = attrs.field(
        default=1_000, validator=Within(1, 100_000), metadata=described("most channels with other nodes")
    )
    identity_dir: str = attrs.field(
        default="",
        metadata=described(
            "folder where keys are kept between starts, created if absent, for its owner only; empty: new keys at each "
            "start"
        ),
    )
    trust: Literal["drop", "warn", "allow", "listed"] = attrs.field(
        default="allow",
        metadata=described(
            "what happens to messages of an authenticated sender that is not pinned: refused, accepted with a warning, "
            "accepted, or accepted once discovery has listed it"
        ),
    )
    require_tls: bool = attrs.field(default=False, metadata=described("refuse connections without TLS"))
    require_durability: Literal["", "D0", "D1", "D2", "D3"] = attrs.field(
        default="", metadata=described("the least durability class that the store must have")
    )
    options: dict[str, dict[str, Any]] = attrs.field(
        factory=dict, repr=masked_repr, metadata=described("[options.NAME]: a backend's options")
    )

    @classmethod
    def of(cls, store: object, settings: Mapping[str, Any]) -> NodeSettings:
        """Return the settings of a node's keyword arguments.

        Raises:
            UnknownSetting, ConfigError: All problems at once; an unknown name with the nearest.
        """
        made = structured(cls, {"store": store, **joined(settings)}, "Node")
        if "stall_sec" not in settings:
            made = attrs.evolve(made, stall_sec=stall_sec_of(made.lease_sec))
        if "call_sec" not in settings:
            made = attrs.evolve(made, call_sec=call_sec_of(made.lease_sec))
        if text := stall_problem(made.stall_sec, made.lease_sec):
            raise_problems([Problem("stall_sec", text)], "Node")
        if text := call_problem(made.call_sec, made.lease_sec):
            raise_problems([Problem("call_sec", text)], "Node")
        return made


class NodeArguments(TypedDict, total=False):
    """The keyword arguments of a node, for type checkers: the attributes of `NodeSettings`, but the store."""

    transport: str | Sequence[str]
    discovery: str
    plugins: Sequence[str]
    network: str
    advertise: str | Sequence[str]
    health: str
    lease_sec: float
    stall_sec: float
    call_sec: float
    grace_sec: float
    poll_sec: float
    max_connections: int
    require_durability: str
    identity_dir: str
    trust: Literal["drop", "warn", "allow", "listed"]
    discovery_store: str
    require_tls: bool
    options: Mapping[str, Any]


def stall_sec_of(lease_sec: float) -> float:
    """Return `stall_sec` where nobody sets it."""
    return min(STALL_LEASES * lease_sec, 86_400.0)


def call_sec_of(lease_sec: float) -> float:
    """Return `call_sec` where nobody sets it: so much of the lease that a silent call leaves time for another."""
    return min(10.0, lease_sec * 2 / 3)


def call_problem(call_sec: float, lease_sec: float) -> str:
    """Return what is wrong with the two together; empty: nothing."""
    return f"{call_sec:g} is not allowed; expected less than lease_sec, {lease_sec:g}" if call_sec >= lease_sec else ""


def stall_problem(stall_sec: float, lease_sec: float) -> str:
    """Return what is wrong with the two together; empty: nothing."""
    return f"{stall_sec:g} is not allowed; expected at least lease_sec, {lease_sec:g}" if stall_sec < lease_sec else ""
