"""A pool: who may join, and the rules that every process enforces alike."""

from __future__ import annotations

from typing import Literal

import attrs

from converge.codec import Seconds

DAY_SEC = 86_400.0


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
    require_durability: str = ""

    def check(self) -> None:
        """Raise ValueError for what a stored pool cannot have; `create_pool` checks what a new one may."""
        bytes.fromhex(self.secret_hash)
