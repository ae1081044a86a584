"""A store for Converge in the memory of one process: the smallest that keeps the whole contract."""

from converge_store_toy.options import ToyOptions
from converge_store_toy.store import ToyStore

__all__ = ["ToyOptions", "ToyStore"]
