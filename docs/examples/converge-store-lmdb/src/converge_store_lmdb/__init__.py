"""A store for Converge in an LMDB file, shared by the processes of a host."""

from converge_store_lmdb.options import LmdbOptions
from converge_store_lmdb.store import LmdbStore

__all__ = ["LmdbOptions", "LmdbStore"]
