"""A node with an identity_dir has the same keys at its next start, and knows whether its store is still the one that it
saw.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from converge import Agent, Identity, Message, Node, Pool
from converge.contracts.store import Batch
from converge.env import SYSTEM
from converge.errors import ConfigError, InvalidValue, KeyFileRefused, PoolClosed, StoreRolledBack
from converge.model.descriptor import DiscoveryQuery
from converge.model.keys import EPOCH
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.history import History
from converge.runtime.keys.keyring import rotate_key
from converge.services.store import epoch as epochs
from converge.services.store.opening import open_store


class Listener(Agent):
    async def on_message(self, message: Message) -> str:
        return message.sender


class Other(Agent):
    async def on_message(self, message: Message) -> None: ...


async def ids(path: Path, count: int = 2, *, store: str = "memory:") -> list[str]:
    async with Node(store=store, identity_dir=str(path)) as node:
        agents = [*await node.spawn(Listener, count=count), *await node.spawn(Other)]
        return [node.identity.id, *(one.id for one in agents)]


async def test_a_node_and_its_agents_have_the_same_ids_at_the_next_start(tmp_path: Path) -> None:
    first = await ids(tmp_path / "keys")
    assert await ids(tmp_path / "keys") == first
    assert len(set(first)) == 4


async def test_without_identity_dir_each_start_draws_fresh_ids() -> None:
    async with Node() as one, Node() as other:
        assert one.identity.id != other.identity.id
        assert (await one.spawn(Listener))[0].id != (await other.spawn(Listener))[0].id


async def test_two_nodes_on_one_folder_share_no_id(tmp_path: Path) -> None:
    async with Node(identity_dir=str(tmp_path / "keys")) as one, Node(identity_dir=str(tmp_path / "keys")) as other:
        agents = [*await one.spawn(Listener, count=2), *await other.spawn(Listener, count=2)]
        found = [one.identity.id, other.identity.id, *(agent.id for agent in agents)]
    assert len(set(found)) == 6


async def test_the_descriptor_of_a_kept_key_has_a_higher_sequence_at_each_start(tmp_path: Path) -> None:
    sequences = []
    for _ in range(3):
        async with Node(identity_dir=str(tmp_path / "keys")) as node:
            await node.spawn(Listener)
            (found,) = await node.discovery.query(DiscoveryQuery(), refresh_from_store=True)
            sequences.append((found.id, found.sequence))
    assert len({id_ for id_, _ in sequences}) == 1
    assert [number for _, number in sequences] == sorted({number for _, number in sequences})


async def test_an_identity_can_be_given_from_python() -> None:
    own, theirs = Identity.generate(SYSTEM.entropy), Identity.generate(SYSTEM.entropy)
    async with Node(identity=own) as node:
        (agent,) = await node.spawn(Listener, identities=[theirs])
        assert (node.identity.id, agent.id) == (own.id, theirs.id)
        with pytest.raises(InvalidValue, match="as many as agents"):
            await node.spawn(Listener, count=2, identities=[theirs])


def test_a_trust_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"drop.*warn.*allow"):
        Node(trust="perhaps")  # type: ignore[arg-type]  # that is the point


async def test_agents_that_no_pool_admits_give_their_keys_back(tmp_path: Path) -> None:
    async with Node(identity_dir=str(tmp_path / "keys")) as node:
        await node.pools.create_pool(Pool(id="closed", admission="allow"))
        for _ in range(2):
            with pytest.raises(PoolClosed):
                await node.spawn(Listener, count=3, pool="closed")
        assert len(list((tmp_path / "keys").glob("agent.*.key"))) == 3


async def test_a_node_refuses_to_start_on_a_folder_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(KeyFileRefused, match="chmod 0700"):
        async with Node(identity_dir=str(tmp_path / "keys")):
            pytest.fail("it started")


async def test_a_rotated_key_is_described_with_its_succession_and_its_pin_follows(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    old = (await ids(path, 1))[1]
    folder = KeyFolder.open(path)
    rotate_key(folder, "agent.Listener.0", SYSTEM)
    folder.write("pins", f"# friends\n{old}  # the listener\n".encode())
    folder.close()
    async with Node(identity_dir=str(path), trust="drop") as node:
        (agent,) = await node.spawn(Listener)
        assert node.registry.pins == {old}
        await node.discovery.query(DiscoveryQuery(), refresh_from_store=True)
        assert node.registry.pins == {agent.id} != {old}
        assert node.registry.current(old) == agent.id


async def test_a_pin_that_is_no_id_is_refused_with_the_line(tmp_path: Path) -> None:
    folder = KeyFolder.open(tmp_path / "keys")
    folder.write("pins", b"somebody\n")
    folder.close()
    with pytest.raises(KeyFileRefused, match="'somebody' is not an agent's id"):
        async with Node(identity_dir=str(tmp_path / "keys")):
            pytest.fail("it started")


# G15: what a process that starts later knows of the store.


async def start(path: Path, store: str) -> None:
    async with Node(store=store, identity_dir=str(path)) as node:
        await node.spawn(Listener, pool="docs")


def files(path: Path) -> list[Path]:
    return [file for file in path.glob("state.db*") if file.is_file()]


async def redraw_epoch(url: str) -> None:
    async with open_store(url) as store:
        (entry,) = await store.get([EPOCH()])
        assert entry is not None
        await store.commit([Batch([(EPOCH(), entry.revision)], [(EPOCH(), b'"another"')])])


async def test_a_process_that_starts_on_a_store_that_was_replaced_refuses_to_until_it_is_accepted(
    tmp_path: Path,
) -> None:
    url, keys = f"file:{tmp_path}/state.db", tmp_path / "keys"
    await start(keys, url)
    await redraw_epoch(url)
    with pytest.raises(StoreRolledBack, match="converge store accept"):
        await start(keys, url)
    folder = KeyFolder.open(keys)
    accepted = History(folder, url, "converge").accept("another")
    folder.close()
    assert accepted.epoch == "another" and accepted.before not in ("", "another")
    await start(keys, url)


async def test_an_accept_in_the_store_itself_is_enough_for_every_process(tmp_path: Path) -> None:
    url, keys = f"file:{tmp_path}/state.db", tmp_path / "keys"
    await start(keys, url)
    async with open_store(url) as store:
        await epochs.accept(store, SYSTEM)
    await start(keys, url)


async def test_a_process_that_starts_on_a_store_that_was_flushed_refuses_to(tmp_path: Path) -> None:
    url, keys = f"file:{tmp_path}/state.db", tmp_path / "keys"
    await start(keys, url)
    for file in files(tmp_path):
        file.unlink()
    with pytest.raises(StoreRolledBack):
        await start(keys, url)


async def test_a_process_that_starts_on_a_backup_refuses_to_though_the_epoch_is_the_same(tmp_path: Path) -> None:
    url, keys = f"file:{tmp_path}/state.db", tmp_path / "keys"
    await start(keys, url)
    backup = {file: file.read_bytes() for file in files(tmp_path)}
    for _ in range(3):
        await start(keys, url)
    for file in files(tmp_path):
        file.unlink()
    for file, data in backup.items():
        file.write_bytes(data)
    with pytest.raises(StoreRolledBack):
        await start(keys, url)


async def test_the_same_file_by_another_path_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(tmp_path / "keys", f"file:{tmp_path}/state.db")
    await redraw_epoch(f"file:{tmp_path}/state.db")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreRolledBack):
        await start(tmp_path / "keys", "file:state.db")


async def test_a_new_store_in_memory_is_no_rollback(tmp_path: Path) -> None:
    for _ in range(2):
        await start(tmp_path / "keys", "memory:")
    assert not list((tmp_path / "keys").glob("store.*"))


async def test_an_agent_that_did_not_start_leaves_its_key_and_its_pools_to_the_next_try(tmp_path: Path) -> None:
    class Once(Listener):
        is_first = True

        async def on_start(self) -> None:
            was_first, type(self).is_first = self.is_first, False
            await self.join("q")
            if was_first:
                raise RuntimeError("it does not start")

    async with Node(identity_dir=str(tmp_path / "keys")) as node:
        await node.pools.create_pool(Pool(id="q"))
        with pytest.raises(RuntimeError, match="it does not start"):
            await node.spawn(Once, pool="p")
        assert await node.pools.members("p") == await node.pools.members("q") == []
        (agent,) = await node.spawn(Once, pool="p")
        assert await node.pools.members("p") == await node.pools.members("q") == [agent.id]
        assert sorted(path.name for path in (tmp_path / "keys").glob("agent.*.key")) == ["agent.Once.0.key"]


async def test_agents_that_cannot_be_made_leave_their_keys_to_the_next_try(tmp_path: Path) -> None:
    class Unmade(Listener):
        is_made = False

        def __init__(self) -> None:
            if not self.is_made:
                raise RuntimeError("it cannot be made")

    async with Node(identity_dir=str(tmp_path / "keys")) as node:
        with pytest.raises(RuntimeError, match="it cannot be made"):
            await node.spawn(Unmade, 2)
        Unmade.is_made = True
        await node.spawn(Unmade, 2)
    assert sorted(path.name for path in (tmp_path / "keys").glob("agent.*.key")) == [
        "agent.Unmade.0.key",
        "agent.Unmade.1.key",
    ]


async def test_a_start_that_is_cancelled_leaves_its_key_and_its_pools_to_the_next_try(tmp_path: Path) -> None:
    class Slow(Listener):
        began, is_slow = anyio.Event(), True

        async def on_start(self) -> None:
            self.began.set()
            if self.is_slow:
                await anyio.sleep_forever()

    async with Node(identity_dir=str(tmp_path / "keys")) as node:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: node.spawn(Slow, pool="p"))
            await Slow.began.wait()
            group.cancel_scope.cancel()
        assert await node.pools.members("p") == [] and not node.network.announced.credentials
        Slow.is_slow = False
        (agent,) = await node.spawn(Slow, pool="p")
        assert await node.pools.members("p") == [agent.id]
    assert [path.name for path in (tmp_path / "keys").glob("agent.*.key")] == ["agent.Slow.0.key"]


@pytest.mark.parametrize("scheme", ["file:", "sqlite:///", "SQLite:///"])
def test_a_relative_path_of_a_store_means_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    folder = KeyFolder.open(tmp_path / "keys")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        History(folder, f"{scheme}state.db", "converge").note(name, 5, 0)  # of another folder it is another store
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        assert History(folder, f"{scheme}{tmp_path / name / 'state.db'}", "converge").floor(name) == 5
    folder.close()
