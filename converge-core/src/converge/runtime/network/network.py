"""The network side of a node: its listeners, links and messages, and the descriptors that make its agents known."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs

from converge.contracts.discovery import Discovery
from converge.contracts.transport import Listener
from converge.env import Env
from converge.errors import StoreError
from converge.machines.records import Item
from converge.machines.secure import Terms
from converge.model.descriptor import AgentDescriptor, network_tag
from converge.model.envelope import CHAINS, PINGS, TOGETHER
from converge.model.identity import Identity
from converge.plugins import PluginHost
from converge.runtime.agents.background import Background
from converge.runtime.agents.boundary import Boundary
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.inbox import Inbox
from converge.runtime.agents.supervision import Supervision
from converge.runtime.config.node_settings import NodeSettings
from converge.runtime.keys.identity_dir import IdentityDir
from converge.runtime.network.address import endpoint_of
from converge.runtime.network.choosing import Chosen
from converge.runtime.network.discovery_store import discovery_opened, keep_listed
from converge.runtime.network.fetching import Asked, Fetcher
from converge.runtime.network.link import OnItems
from converge.runtime.network.links import Bounds, Links, Standing
from converge.runtime.network.mail import Mail
from converge.runtime.network.publishing import Announced
from converge.runtime.network.transports import listening
from converge.services.discovery.directory import Directory
from converge.services.discovery.registry import IdentityRegistry
from converge.services.discovery.service import DiscoveryService
from converge.services.messages.descriptors import Asking
from converge.services.messages.fanout import Fanouts
from converge.services.messages.inboxes import Inboxes
from converge.services.messages.mailbox import Mailboxes
from converge.services.messages.receiving import Aside, Received
from converge.services.messages.routes import Outside, Routes
from converge.services.messages.sending import Post
from converge.services.messages.under_way import Link as MessageLink
from converge.services.store.handle import StoreHandle

log = logging.getLogger("converge.network")

WITHDRAW_SEC = 3.0
"""How long a call of discovery's own store may take while the node stops; the lease ends what is left then."""


@attrs.frozen(kw_only=True)
class Ground:
    """What a network is made of. `identity` is the node's own, `kept` the folder of its keys; user code runs, and tasks
    are started, behind `boundary`.
    """

    handle: StoreHandle
    identity: Identity
    env: Env
    boundary: Boundary
    settings: NodeSettings
    host: PluginHost
    chosen: Chosen
    kept: IdentityDir


@attrs.frozen(kw_only=True)
class _Wire:
    """What is open between this node and others: `links` whose tasks `background` starts, its listeners and
    endpoints; `why_not` says of an endpoint why it can never be dialled.
    """

    listeners: tuple[Listener, ...]
    links: Links
    background: Background
    endpoints: tuple[str, ...]
    why_not: Callable[[str], str]


@attrs.frozen(kw_only=True)
class Sighted:
    """Discovery, open: the store that it uses, and what it sights."""

    handle: StoreHandle
    sightings: Discovery


class Network:
    """Messages, discovery and, where a transport is named, links to other nodes. `wire` is None: it has none."""

    def __init__(self, ground: Ground, sighted: Sighted, wire: _Wire | None) -> None:
        self._handle, self._identity, self._boundary = ground.handle, ground.identity, ground.boundary
        self._settings, self._sighted = ground.settings, sighted.handle
        one, own, directory = ground.settings, ground.identity, Directory(ground.settings.network)
        self.links = None if wire is None else wire.links
        self.endpoints: tuple[str, ...] = () if wire is None else wire.endpoints
        self.sightings = sighted.sightings
        self.announced = Announced(
            sighted.handle, sighted.sightings, own.public_key, one.network, ground.kept.keyring, self.endpoints
        )
        asking = fetch = None
        if wire is not None and ground.chosen.discovery.publishes:
            asking = Asking(ground.env, own.id, self.announced)
        elif wire is not None:  # discovery knows nodes by their endpoints only: they are asked
            lease_sec = ground.handle.lease_settings.lease_sec
            asked = Asked(env=ground.env, node_id=own.id, patience_sec=lease_sec, errand=wire.background.errand)
            fetcher = Fetcher(asked, self.announced, wire.links, directory)
            asking, fetch = fetcher.asking, fetcher.fetch
        self.discovery = DiscoveryService(
            store=sighted.handle.store,
            network=one.network,
            discovery=sighted.sightings,
            directory=directory,
            fetch=fetch,
        )
        self.registry = IdentityRegistry(
            directory, trust=one.trust, pins=ground.kept.pins(), monotonic=ground.env.monotonic
        )
        tag, inboxes = network_tag(one.network), Inboxes(ground.host, ground.env.monotonic)
        outside = Outside(
            links=self.links,
            errand=(ground.boundary.background if wire is None else wire.background).errand,
            credential=self.announced.credentials.get,
            why_not=(lambda endpoint: "") if wire is None else wire.why_not,
        )
        routes = Routes(ground.env, own.public_key, self.discovery, self.registry, outside)
        mailboxes = Mailboxes(ground.handle, tag, inboxes, self.registry.admits)
        self.mail = Mail(mailboxes, inboxes, routes, ground.boundary.background)
        self.post = Post(ground.handle, own, mailboxes, routes, ground.host, self.mail.stored)
        self.fanouts = Fanouts(self.post, own.public_key)
        aside = Aside(on_mail=self.mail.hinted, asking=asking)
        self.received = Received(ground.handle, tag, inboxes, routes, self.post.under_way, aside)

    @classmethod
    @asynccontextmanager
    async def open(cls, ground: Ground) -> AsyncIterator[Network]:
        """Open discovery; listen, if a transport is named, and keep the directory fresh."""

        async def on_items(link: MessageLink, items: list[Item]) -> None:
            await one.received.on_items(link, items)  # no link is served, or dialled, before that is there

        def standing(node_key: bytes) -> Standing:
            if one.post.routes.is_stranger(node_key):
                return Standing.STRANGER
            return Standing.LISTED if one.post.routes.endpoints(node_key) else Standing.LISTENS_NOWHERE

        async with (
            _sighting(ground) as sighted,
            ground.boundary.background.ending_early() as background,
            _listening(ground, on_items, standing) as wire,
        ):
            with suppress(StoreError):  # messages tell when they were sent; while the store is away, roughly
                await ground.handle.now()
            if wire is not None:  # the lease begins later: its record is what `ps` shows
                ground.handle.lease_settings = attrs.evolve(ground.handle.lease_settings, endpoints=wire.endpoints)
            one = cls(ground, sighted, wire)
            ground.boundary.background.loop(one.mail.run)
            if wire is not None:
                for listener in wire.listeners:
                    wire.background.loop(wire.links.serve, listener)
                wire.background.loop(wire.links.watch)
                where, known = (", ".join(one.address for one in wire.listeners), ", ".join(wire.endpoints))
                log.info("listening on %s, known to others as %s", where, known or "nothing: it only dials them")
            background.loop(one._follow)
            if sighted.handle is not ground.handle:
                background.loop(keep_listed, sighted.handle, one.announced, ground.settings.poll_sec)
            yield one

    def refusals(self) -> Counter[str]:
        """Return what was refused so far of what others sent, by reason."""
        found = self.received.quietly.refusals + self.post.routes.speakers.quietly.refusals
        found["descriptor"] += self.discovery.directory.refused
        return found if self.links is None else found + self.links.quietly.refusals

    async def prepare(self, agents: Sequence[Hosted]) -> None:
        """Let the agents send to others: from `on_start` on, before they are listed.

        Raises:
            InvalidValue: Their descriptor is longer than anybody accepts.
            StoreError, LeaseEnded, KeyFileRefused: It could not be signed.
        """
        for agent in agents:
            self.post.inboxes.introduce(agent.id, agent.identity)
        await self.announced.prepare({agent.id: (agent.identity, _describe(agent)) for agent in agents})

    async def add(self, agents: Sequence[Hosted], supervision: Supervision) -> None:
        """Start delivering messages to the agents, and publish them where others can see them. `supervision` counts
        the failures of their handlers.
        """
        for agent in agents:
            self.post.inboxes.add(agent, agent.loop or Inbox(agent, self._boundary, supervision))
        await self.mail.begin_first(agent.id for agent in agents)
        living = [agent for agent in agents if not agent.is_retired]  # by a message that it has had already
        await self.announced.publish({agent.id: (agent.identity, _describe(agent)) for agent in living})

    def hush(self, agents: Iterable[Hosted]) -> None:
        """Revoke the right to send of agents that have ended, or did not start."""
        for agent in agents:
            self.post.inboxes.remove(agent.id)
            self.announced.credentials.pop(agent.id, None)
            for link in () if self.links is None else self.links.all():
                link.gone(agent.id)

    def forget(self, agents: Sequence[Hosted]) -> None:
        """Deliver nothing more to agents that did not start whole, and publish them no more."""
        for agent in agents:
            self.post.inboxes.close(agent.id)
        self.announced.forget(agent.id for agent in agents)

    async def withdraw_one(self, agent: Hosted) -> None:
        """Withdraw the descriptor of an agent that ends; it speaks until `hush`.

        Raises:
            StoreError, LeaseEnded: It is listed until the lease ends.
        """
        await self.announced.retire([agent.id])
        self.discovery.directory.drop(agent.id)

    async def describe_again(self, agent: Hosted) -> None:
        """Publish what has changed of an agent."""
        if agent.id in self.announced:
            await self.announced.publish({agent.id: (agent.identity, _describe(agent))})

    async def publish_again(self) -> None:
        """Publish under the new lease what was published under the old one."""
        await self.announced.again()

    async def add_node(self) -> None:
        """Publish the node's own descriptor: under it the node itself sends."""
        if self.links is not None:
            own = AgentDescriptor(id=self._identity.id, public_key=self._identity.public_key.hex(), name="node")
            await self.announced.publish({own.id: (self._identity, own)})

    async def withdraw(self) -> None:
        """Withdraw the descriptors, and claim no more mail."""
        self.mail.stop()
        if self._sighted is not self._handle:
            self._sighted.hurry(WITHDRAW_SEC)
        await self.announced.withdraw()

    async def _follow(self) -> None:
        """Keep the directory fresh: for messages always, else from the first query on."""
        if self.links is None:
            await self.discovery.is_wanted.wait()
        await self.discovery.follow(self._settings.poll_sec)


@asynccontextmanager
async def _sighting(ground: Ground) -> AsyncIterator[Sighted]:
    chosen, one = ground.chosen, ground.settings
    own = discovery_opened(ground.handle, one.discovery_store, one.network, one.options, ground.host)
    async with own as handle:
        opens = partial(chosen.discovery.open, chosen.discovery_options, store=handle.store, poll_sec=one.poll_sec)
        async with ground.host.opened(chosen.discovery, opens, Discovery) as sightings:
            yield Sighted(handle=handle, sightings=sightings)


@asynccontextmanager
async def _listening(
    ground: Ground, on_items: OnItems, standing: Callable[[bytes], Standing]
) -> AsyncIterator[_Wire | None]:
    one = ground.settings
    if not ground.chosen.transports:
        yield None
        return
    async with (
        listening(ground.chosen.transports, ground.host, requires_tls=one.require_tls) as (transports, listeners),
        ground.boundary.background.ending_early() as background,  # before the transport under its tasks is closed
    ):
        told = [await endpoint_of(found.address, chosen.advertise, one.store) for found, chosen in listeners]
        terms = Terms(network=network_tag(one.network), identity=ground.identity, features=CHAINS | PINGS | TOGETHER)
        bounds = Bounds(greatest=one.max_connections, standing=standing)
        yield _Wire(
            listeners=tuple(found for found, _ in listeners),
            links=Links(transports, terms, ground.env, background, on_items, bounds),
            background=background,
            endpoints=tuple(endpoint for endpoint in told if endpoint),
            why_not=transports.why_not,
        )


def _describe(agent: Hosted) -> AgentDescriptor:
    return AgentDescriptor(
        id=agent.id,
        public_key=agent.identity.public_key.hex(),
        name=agent.kind.name,
        topics=agent.topics,
        capabilities=agent.capabilities,
        pools=agent.pools,
    )
