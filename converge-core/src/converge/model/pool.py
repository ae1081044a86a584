"""A pool: who may join, and the rules that every process enforces alike."""

from __future__ import annotations

from typing import Annotated, Literal

import attrs
import msgspec

from converge.codec import Seconds, encode

DAY_SEC = 86_400.0

KEEP_FORMAT = 3
"""The format of a pool with `keep_count` or `keep_bytes`."""

KEEP_GREATEST = 2**53
"""The greatest of these: any program that reads JSON has the number whole."""


@attrs.frozen(kw_only=True)
class Pool:
    """A named set of agents and the tasks they share.

    Attributes:
        id: 1 to 64 characters of A-Z a-z 0-9 . _ : -
        admission: `open`: anybody may join; `allow`: the agents of `allow`; `secret`: whoever knows the join secret.
        allow: Agent ids that may join under `allow`.
        secret_hash: Salted hash of the join secret; set by `create_pool(pool, secret=...)`, never the secret.
        is_paused: Nothing is claimed while it is.
        priority_step_sec: How much head start one step of priority is worth.
        dedup_window_sec: How long a dedup key is remembered at least.
        keep_completed_sec, keep_failed_sec: How long ended tasks are kept; cancelled ones as failed ones.
        keep_count, keep_bytes: How many ended tasks are kept, and how many bytes of them; 0: without a limit. Of those
            that are too many the completed ones go first, then cancelled, then failed ones, each from the oldest.
        require_durability: `D0` to `D3`, or empty; a store that has less is refused.
    """

    id: str
    admission: Literal["open", "allow", "secret"] = "open"
    allow: tuple[str, ...] = ()
    secret_hash: str = attrs.field(default="", repr=False)
    is_paused: bool = False
    priority_step_sec: Seconds = 3_600.0
    dedup_window_sec: Seconds = DAY_SEC
    keep_completed_sec: Seconds = DAY_SEC
    keep_failed_sec: Seconds = 7 * DAY_SEC
    keep_count: Annotated[int, msgspec.Meta(ge=0, le=KEEP_GREATEST)] = 0
    keep_bytes: Annotated[int, msgspec.Meta(ge=0, le=KEEP_GREATEST)] = 0
    require_durability: str = ""

    def encoded(self) -> bytes:
        """Return its record: what releases before `KEEP_FORMAT` do not know stands in it only where it is used."""
        record = attrs.asdict(self)
        if self.keeps_less:
            return encode(record | {"v": KEEP_FORMAT})
        return encode({name: value for name, value in record.items() if name not in ("keep_count", "keep_bytes")})

    @property
    def keeps_less(self) -> bool:
        """Whether there is a limit besides time."""
        return bool(self.keep_count or self.keep_bytes)

    def check(self) -> None:
        """Raise ValueError for what a stored pool cannot have; `create_pool` checks what a new one may."""
        bytes.fromhex(self.secret_hash)
