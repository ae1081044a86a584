"""Messages to all agents of a topic or pool: once over the wire to each node, which fans them out to its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio

from converge.errors import ConvergeError
from converge.ids import check_name
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.envelope import ACCEPTED, MessageHeader
from converge.model.identity import agent_id, node_name
from converge.model.message import Fanout
from converge.services.messages.options import SendOptions
from converge.services.messages.sending import Post, by_deadline
from converge.services.messages.under_way import Link, UnderWay

LEAST_SEC = 0.01

PATIENCE_SEC = 1.0
"""How long a node is tried again that cannot be reached: then its outcome says so, and keeps nobody waiting."""

REACH_SEC, REACH_AGAIN_SEC = 5.0, 2.0
"""How long a connection to a node is waited for; the second where the last try to connect failed. Either is enough for
a lost packet or two of a dial, and neither ends it: what comes of it serves the next message.
"""

AT_A_TIME_BYTES = 67_108_864
"""Copies that are under way to nodes at a time; the others wait, within the deadline. A node that is not connected yet
takes no place.
"""


class Fanouts:
    """Publishes and broadcasts for the agents of one process."""

    def __init__(self, post: Post, node_key: bytes) -> None:
        self._post, self._node_key = post, node_key.hex()

    async def publish(self, sender: str, topic: str, payload: object, timeout: float) -> list[Fanout]:
        """Send to every agent that has the topic. See `Node.publish`."""
        return await self._send(sender, DiscoveryQuery(topics=(check_name("topic", topic),)), payload, timeout)

    async def broadcast(self, sender: str, pool_id: str, payload: object, timeout: float) -> list[Fanout]:
        """Send to every agent of a pool. See `Node.broadcast`."""
        return await self._send(sender, DiscoveryQuery(pool_id=check_name("pool", pool_id)), payload, timeout)

    async def _send(self, sender: str, query: DiscoveryQuery, payload: object, timeout: float) -> list[Fanout]:
        post = self._post
        draft = post.draft(sender, payload, ACCEPTED, SendOptions(timeout=timeout))
        topic, pool = "".join(query.topics), query.pool_id or ""
        outcomes: list[Fanout] = []
        # Written once for all: the guards see it once, and what they refuse goes nowhere.
        header, body = post.write(draft, "", topic=topic, pool=pool)
        taken, refused = await post.inboxes.fan_out(header, body)
        if taken or refused:
            outcomes.append(Fanout(node=agent_id(bytes.fromhex(self._node_key)), accepted=taken, refused=refused))
        places = anyio.CapacityLimiter(max(1, AT_A_TIME_BYTES // len(body)))
        began = anyio.current_time()
        found = await self._known(query, timeout)
        async with anyio.create_task_group() as group:
            for node in self._nodes(found, sender):
                group.start_soon(
                    self._send_to,
                    node,
                    header,
                    body,
                    max(LEAST_SEC, timeout + began - anyio.current_time()),
                    places,
                    outcomes,
                )
        return sorted(outcomes, key=lambda one: one.node)

    async def _known(self, query: DiscoveryQuery, timeout: float) -> Sequence[AgentDescriptor]:
        """Ask discovery; where that takes too long, as with a store that is away, those known last are enough."""
        with anyio.move_on_after(timeout / 2):
            return await self._post.routes.query(query)
        return self._post.routes.discovery.directory.query(query)

    def _nodes(self, found: Sequence[AgentDescriptor], sender: str) -> list[AgentDescriptor]:
        """Return one agent of each other node: it says where that is."""
        return list(
            {
                one.node_key: one for one in found if one.id != sender and one.node_key not in ("", self._node_key)
            }.values()
        )

    async def _send_to(
        self,
        node: AgentDescriptor,
        header: MessageHeader,
        body: bytes,
        timeout: float,
        places: anyio.CapacityLimiter,
        outcomes: list[Fanout],
    ) -> None:
        key, whom = node.node_key_bytes, f"node {node_name(node.node_key_bytes)}"
        one, has_place = UnderWay(header, body, node.node_key), False

        async def reach() -> Link:
            nonlocal has_place
            link = await self._post.routes.link_soon(key, whom, REACH_SEC, REACH_AGAIN_SEC)
            if not has_place:
                await places.acquire_on_behalf_of(one)
                has_place = True
            return link

        try:
            with by_deadline(timeout, whom, one, dialled_at=partial(self._post.routes.dialled_at, agent_id(key))):
                await self._post.under_way.deliver(one, reach, patience_sec=PATIENCE_SEC)
        except ConvergeError as error:
            self._post.outcomes[type(error).__name__] += 1
            outcomes.append(Fanout(node=agent_id(key), error=f"{type(error).__name__}: {error}"))
        else:
            self._post.outcomes[ACCEPTED] += 1
            assert one.receipt is not None, "what was delivered has a receipt"
            outcomes.append(Fanout(node=agent_id(key), accepted=one.receipt.taken, refused=one.receipt.refused))
        finally:
            if has_place:
                places.release_on_behalf_of(one)
