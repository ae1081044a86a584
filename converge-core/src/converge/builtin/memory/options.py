"""Options of the memory store: it has none."""

import attrs


@attrs.frozen(kw_only=True)
class MemoryOptions:
    """Nothing to choose."""
