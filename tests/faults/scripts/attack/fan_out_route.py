"""A rogue agent with store access signs a descriptor that names an honest node's key with endpoints of its own: does a publication still reach the honest node? (one agent stands for its node in a fan-out)"""
import asyncio, time
from common import *


async def main() -> None:
    import anyio
    from converge import Node
    from converge.model.keys import AGENT
    from converge.services.discovery.reader import marker_key, marker_value, write_sighting
    from converge.contracts.discovery import Sighting
    from converge.contracts.store import Batch
    from converge import DiscoveryQuery

    problems: list[str] = []
    with redis_server() as url, running("worker", {"store": url, "pools": ["p"]}) as w:
        async with Node(store=url, transport="", network=NETWORK) as writer, Node(store=url, transport="tcp://127.0.0.1:0", network=NETWORK, poll_sec=0.1) as fresh:
            await anyio.sleep(1.5)
            honest = [d for d in await fresh.discovery.query(DiscoveryQuery(topics=("work",)), refresh_from_store=True)]
            lease = (await writer.handle.lease()).id
            who = Identity.generate(os.urandom)
            while who.id < max(d.id for d in honest):
                who = Identity.generate(os.urandom)
            if "--calm" not in sys.argv:
                signed = sign_descriptor(who, AgentDescriptor(id=who.id, public_key=who.public_key.hex(), topics=("work",), node_key=honest[0].node_key, endpoints=("tcp://127.0.0.1:1",), lease=lease.hex(), sequence=1), NETWORK)
                commits = await writer.handle.commits()
                await commits.commit([Batch([], [(AGENT(lease, who.id), write_sighting(Sighting(who.id, ("tcp://127.0.0.1:1",), signed))), (marker_key(lease), marker_value(1, [who.id]))])], wake=["agents"])
            await anyio.sleep(1)
            got = await fresh.publish("work", 1, timeout=3)
            print(got)
            if sum(f.accepted for f in got) < 2:
                problems.append(f"the honest node's two agents did not get the publication: the stranger's endpoint was dialled for it: {got}")
    verdict(problems)


asyncio.run(main())
