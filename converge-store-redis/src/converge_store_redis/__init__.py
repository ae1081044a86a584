"""Redis and Valkey as a store for Converge."""

from converge_store_redis.options import RedisOptions
from converge_store_redis.plugin import REDIS
from converge_store_redis.store import RedisStore

__all__ = ["REDIS", "RedisOptions", "RedisStore"]
