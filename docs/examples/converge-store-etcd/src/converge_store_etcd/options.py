"""The options of the etcd store."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class EtcdOptions:
    """What may be chosen.

    Attributes:
        call_sec: How long a call waits for an answer; 0.1 to 60 s.
        idle_sec: After how long without any client the next one sets the clock to UTC; 10 to 86,400 s, more than
            `lease_sec`. All processes name the same.
        network: Set by Converge: whose keys to see.
        must_exist: Set by Converge for those who only look: refuse a place at which nothing was ever stored.
    """

    call_sec: float = attrs.field(
        default=5.0,
        validator=[validators.ge(0.1), validators.le(60.0)],
        metadata={"help": "longest wait for an answer", "unit": "s"},
    )
    idle_sec: int = attrs.field(
        default=120,
        validator=[validators.instance_of(int), validators.ge(10), validators.le(86_400)],
        metadata={"help": "after how long without any client the next one sets the clock to UTC", "unit": "s"},
    )
    network: str = attrs.field(
        default="converge",
        validator=[validators.instance_of(str), validators.min_len(1)],
        metadata={"help": "whose keys to see; several networks share one cluster"},
    )
    must_exist: bool = attrs.field(
        default=False,
        validator=validators.instance_of(bool),
        metadata={"help": "refuse a network that has never stored anything"},
    )
