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
    """

    capacity_keys: int = attrs.field(
        default=1_000_000,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(10_000_000)],
        metadata={"help": "how many keys the store may hold"},
    )
