"""The options of the LMDB store."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class LmdbOptions:
    """What may be chosen.

    Attributes:
        size_mb: How large the file may become, in megabytes; a write beyond it is refused with `StoreFull`. 1 to
            1,048,576. All processes name the same.
        sync: Whether a commit waits until it is on the disk; without, a power cut loses the last ones.
        network: Set by Converge: whose keys to see.
        must_exist: Set by Converge for those who only look: refuse a place at which nothing was ever stored.
    """

    size_mb: int = attrs.field(
        default=1_024,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(1_048_576)],
        metadata={"help": "how large the file may become", "unit": "MB"},
    )
    sync: bool = attrs.field(
        default=True,
        validator=validators.instance_of(bool),
        metadata={"help": "wait until a commit is on the disk"},
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
