"""The declaration of the Redis store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_redis.options import RedisOptions
from converge_store_redis.store import RedisStore

REDIS = StoreBackend(
    name="redis",
    schemes=("redis", "rediss", "unix"),
    options=RedisOptions,
    open=RedisStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES, Feature.ASYNCIO_ONLY}),
    durability=Durability.D2,
    look=RedisStore.look,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the Redis store."""
    return [REDIS]
