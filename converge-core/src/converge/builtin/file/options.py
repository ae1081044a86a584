"""Options of the file store: keys, units, bounds, defaults, help."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class FileOptions:
    """How the file store opens and waits.

    Attributes:
        must_exist: Refuse a path at which there is no store, instead of making one; set by commands that look at what
            others do.
        busy_sec: How long a call waits for its turn before it raises StoreBusy; 0.1 to 60 s.
        poll_sec: How often a watch looks whether the file has changed, should a wake-up be lost; 0.05 to 60 s.
    """

    must_exist: bool = attrs.field(
        default=False, validator=validators.instance_of(bool), metadata={"help": "refuse a path without a store"}
    )
    busy_sec: float = attrs.field(
        default=5.0,
        validator=[validators.ge(0.1), validators.le(60.0)],
        metadata={"help": "longest wait for a turn to write", "unit": "s"},
    )
    poll_sec: float = attrs.field(
        default=1.0,
        validator=[validators.ge(0.05), validators.le(60.0)],
        metadata={"help": "how often to look without a wake-up", "unit": "s"},
    )
