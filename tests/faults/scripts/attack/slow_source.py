"""Static discovery: a stranger asks for descriptors, so it is asked back; it answers each page late and never comes to an end. Do honest nodes still find each other? (G13)"""
import asyncio, time
from common import *
from converge.codec import decode, encode
from converge.services.messages.descriptors import DESCRIPTORS, _Answer, _Question


async def main() -> None:
    problems = []
    with redis_server() as url:
        port = free_port()
        more = {"discovery": "static", "options": {"static": {"endpoints": [f"tcp://127.0.0.1:{port}"]}}}
        with running("victim", {"store": url, "echo": 1, "transport": f"tcp://127.0.0.1:{port}", "more": more}) as v:
            async with rogue(v.info["endpoint"]) as r:
                async def be_slow() -> None:
                    while True:
                        for kind, body in await r.ch.receive():
                            if kind == records.MESSAGE:
                                header, payload = unpack(body, MessageHeader)
                                if header.wants == DESCRIPTORS:
                                    answers.append(time.monotonic())
                                    await asyncio.sleep(4.5)
                                    await r.ch.send([(records.RECEIPT, pack(ReceiptHeader(header.id, DESCRIPTORS), encode(_Answer(life="x", changes=len(answers), signed=(), next="n"))))])

                answers: list[float] = []
                attack = asyncio.create_task(be_slow())
                if "--calm" not in sys.argv:
                    await r.ch.send([(records.MESSAGE, pack(r.header("", wants=DESCRIPTORS), encode(_Question())))])
                await asyncio.sleep(3)
                # An honest node starts now: its agent must be found, and its messages taken, by the victim.
                with running("asker", {"store": url, "to": v.info["echo"][0], "timeout": 3, "more": more, "as_agent": True}) as a:
                    t0 = time.monotonic()
                    await asyncio.sleep(25)
                    found = quantiles(a, t0, time.monotonic())
                attack.cancel()
            seen = f"the stranger was asked {len(answers)} times; an honest node that started meanwhile, in 25 s: {found}"
            if found["n"] < 10:
                problems.append(f"one stranger that answers slowly holds up discovery for everybody: {found['first'][:1]}")
        verdict(problems, seen)


asyncio.run(main())
