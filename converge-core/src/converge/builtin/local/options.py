"""Options of the local transport: there are none."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class LocalOptions:
    """What an operator may set under `[options.local]`: nothing."""
