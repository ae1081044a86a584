"""A rogue agent of a capability refuses a question, and then answers it in the name of the honest agent that is asked next: receipts are matched by id alone, and the id goes to every agent that is tried (G12)."""
import asyncio, time
from common import *


async def main() -> None:
    import anyio
    from converge import Agent, Node
    from converge.model.message import Capability
    from converge.model.envelope import FULL

    problems: list[str] = []

    class Honest(Agent):
        capabilities = ("cap",)

        async def on_message(self, message):
            await anyio.sleep(0.5)
            return "honest"

    class Bad(Agent):
        capabilities = ("cap",)

        async def on_message(self, message):
            return "bad"

    with redis_server() as url:
        async with Node(store=url, transport="tcp://127.0.0.1:0", network=NETWORK, poll_sec=0.1) as asker, Node(store=url, transport="tcp://127.0.0.1:0", network=NETWORK) as honest, \
                Node(store=url, transport="tcp://127.0.0.1:0", network=NETWORK) as bad:
            (good,) = await honest.spawn(Honest)
            await bad.spawn(Bad)
            received = bad.network.received

            def take(link, header, payload):
                async def forge() -> None:
                    await anyio.sleep(0.2)
                    await link.send([(records.RECEIPT, pack(ReceiptHeader(header.id, "handled"), b'"forged"'))])

                asyncio.ensure_future(forge())
                return FULL, "its inbox is full"

            received._accept = take
            await anyio.sleep(1)
            forged = 0
            for n in range(12):
                got = await asker.network.post._deliver(asker.network.post.draft(asker.identity.id, n, "handled", __import__("converge.services.messages.options", fromlist=["SendOptions"]).SendOptions(timeout=5)), Capability("cap"), 5)
                if got.answer == b'"forged"' and got.recipient == good.id:
                    forged += 1
            print(f"of 12 questions to Capability('cap') {forged} were answered 'forged', told as the answer of the honest agent {good.id[:14]}")
            if forged:
                problems.append(f"{forged} of 12 answers that are told as the honest agent's were written by the rogue one")
    verdict(problems)


asyncio.run(main())
