"""Static discovery: a stranger that asks is asked back, and tells of AGENTS descriptors of 10 KiB, all changed at each poll: memory, CPU, honest p99. told_flood.py [agents]"""
import asyncio, base64, time
from common import *
from converge.codec import encode
from converge.services.messages.descriptors import DESCRIPTORS, _Answer, _Question

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 6_000


async def main() -> None:
    problems = []
    with redis_server() as url:
        port = free_port()
        more = {"discovery": "static", "options": {"static": {"endpoints": [f"tcp://127.0.0.1:{port}"]}}}
        with running("victim", {"store": url, "echo": 1, "transport": f"tcp://127.0.0.1:{port}", "more": more}) as v, running("asker", {"store": url, "to": v.info["echo"][0], "timeout": 3, "more": more}) as a:
            me = Identity.generate(os.urandom)
            signed = []
            for n in range(COUNT):
                who = Identity.generate(os.urandom)
                d = AgentDescriptor(id=who.id, public_key=who.public_key.hex(), node_key=me.public_key.hex(), topics=tuple(f"t{n}x{k}" for k in range(600)), sequence=1)
                signed.append(base64.b64encode(sign_descriptor(who, d, NETWORK)).decode())
            size = len(signed[0])
            pages = [tuple(signed[at : at + 60]) for at in range(0, COUNT, 60)]
            await asyncio.sleep(3)
            before, rss0 = quantiles(a, time.monotonic() - 3, time.monotonic()), v.rss_mb
            async with rogue(v.info["endpoint"], me) as r:
                async def tell() -> None:
                    while True:
                        for kind, body in await r.ch.receive():
                            if kind == records.MESSAGE:
                                header, payload = unpack(body, MessageHeader)
                                if header.wants == DESCRIPTORS:
                                    from converge.codec import decode
                                    q = decode(payload, _Question, "q")
                                    at = int(q.after or "0")
                                    more_ = str(at + 1) if at + 1 < len(pages) else ""
                                    await r.ch.send([(records.RECEIPT, pack(ReceiptHeader(header.id, DESCRIPTORS), encode(_Answer(life="x", changes=1, signed=pages[at], next=more_))))])

                await r.ch.send([(records.MESSAGE, pack(r.header("", wants=DESCRIPTORS), encode(_Question())))])
                task = asyncio.create_task(tell())
                t0 = time.monotonic()
                await asyncio.sleep(25)
                during = quantiles(a, t0 + 1, time.monotonic())
                known = max((line.get("known", 0) for line in v.lines()[1:]), default=0)
                gap = max((line.get("gap", 0) for line in v.lines()[1:] if line["t"] > t0), default=0)
                peak = v.hwm_mb
                task.cancel()
        print(f"{COUNT} descriptors of {size} bytes ({COUNT * size / 1e6:.0f} MB) told by one stranger; the node knows {known}; rss {rss0:.0f} -> {peak:.0f} MB; loop gap {gap * 1000:.0f} ms; honest before {before}, during {during}")
        if peak - rss0 > 64:
            problems.append(f"one stranger's descriptors cost {peak - rss0:.0f} MB (limits: 100,000 agents and 268 MB a link, up to max_connections links)")
        if not during["n"] or during["p99"] > 2 * max(5, before["p99"]):
            problems.append(f"honest p99 {before.get('p99')} -> {during.get('p99')}")
    verdict(problems)


asyncio.run(main())
