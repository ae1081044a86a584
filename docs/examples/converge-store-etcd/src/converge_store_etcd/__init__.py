"""A store for Converge on etcd: compare-and-swap transactions over ordered keys, replicated by Raft."""

from converge_store_etcd.options import EtcdOptions
from converge_store_etcd.store import EtcdStore

__all__ = ["EtcdOptions", "EtcdStore"]
