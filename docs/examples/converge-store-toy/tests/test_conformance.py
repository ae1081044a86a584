"""The toy store keeps every clause of the store contract."""

from converge.testing import StoreContract
from converge_store_toy.plugin import TOY


class TestToyStore(StoreContract):
    """With nothing but the required methods there is nothing to override."""

    backend = TOY
