"""Options of the local transport: there are none."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class LocalOptions:
    """Options under `[options.local]`: there are none."""
