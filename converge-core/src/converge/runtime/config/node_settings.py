"""What a node is made of: its keyword arguments, checked as the configuration is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import attrs

from converge.runtime.config.config import like, stall_problem, stall_sec_of
from converge.settings import Problem, raise_problems, structured


@attrs.frozen(kw_only=True)
class NodeSettings:
    """What a node is made of; `docs/reference/config.md` says what each means. Their bounds are those of the
    configuration.
    """

    store: str = "memory:"
    transport: str = ""
    discovery: str = "store"
    plugins: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    network: str = like("network")
    advertise: str = ""
    lease_sec: float = like("lease_sec")
    stall_sec: float = like("stall_sec")
    grace_sec: float = like("grace_sec")
    poll_sec: float = like("poll_sec")
    max_connections: int = like("max_connections")
    require_durability: str = ""
    identity_dir: str = ""
    trust: Literal["drop", "warn", "allow"] = like("trust")
    discovery_store: str = ""
    require_tls: bool = False
    options: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, store: object, settings: Mapping[str, Any]) -> NodeSettings:
        """Return the settings of a node's keyword arguments.

        Raises:
            UnknownSetting, ConfigError: All problems at once; an unknown name with the nearest.
        """
        made = structured(cls, {"store": store, **settings}, "Node")
        if "stall_sec" not in settings:
            made = attrs.evolve(made, stall_sec=stall_sec_of(made.lease_sec))
        if text := stall_problem(made.stall_sec, made.lease_sec):
            raise_problems([Problem("stall_sec", text)], "Node")
        return made


class NodeArguments(TypedDict, total=False):
    """The keyword arguments of a node, for type checkers: the attributes of `NodeSettings`, but the store."""

    transport: str
    discovery: str
    plugins: Sequence[str]
    network: str
    advertise: str
    lease_sec: float
    stall_sec: float
    grace_sec: float
    poll_sec: float
    max_connections: int
    require_durability: str
    identity_dir: str
    trust: Literal["drop", "warn", "allow"]
    discovery_store: str
    require_tls: bool
    options: Mapping[str, Any]
