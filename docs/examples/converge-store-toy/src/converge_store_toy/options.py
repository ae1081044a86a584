"""The options of the toy store."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class ToyOptions:
    """What may be chosen.

    Attributes:
        capacity_keys: How many keys the store may hold; a commit that could exceed it is refused with `StoreFull`. 1 to
            10,000,000.
        network: Set by Converge: whose keys to see.
        must_exist: Set by Converge for those who only look: refuse a place at which nothing was ever stored.
    """

    capacity_keys: int = attrs.field(
        default=1_000_000,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(10_000_000)],
        metadata={"help": "how many keys the store may hold"},
    )
    network: str = attrs.field(
        default="converge",
        validator=[validators.instance_of(str), validators.min_len(1)],
        metadata={"help": "whose keys to see; several networks share one place"},
    )
    must_exist: bool = attrs.field(
        default=False,
        validator=validators.instance_of(bool),
        metadata={"help": "refuse a place at which nothing was ever stored"},
    )
