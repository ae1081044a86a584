"""A node's health, as reported."""

from __future__ import annotations

from datetime import datetime

import attrs


@attrs.frozen(kw_only=True)
class Reason:
    """Why a node is not ready, or what else is to be known: a code for programs, a text for people, and since when."""

    code: str
    text: str
    since: datetime


@attrs.frozen(kw_only=True)
class Health:
    """A node at one moment. `is_live`: false when only a restart helps. `is_ready`: it claims tasks and takes messages
    as it should; `reasons` say why not. `notes` are worth knowing, and do not make it less ready.
    """

    is_live: bool
    is_ready: bool
    reasons: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()
