"""Options of discovery through the store: it has none of its own."""

import attrs


@attrs.frozen(kw_only=True)
class StoreDiscoveryOptions:
    """Nothing to choose."""
