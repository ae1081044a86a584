"""An agent with a valid key and store access publishes descriptors that verify but hold junk: node keys, endpoints, names; then an honest node sends to it, publishes to its topic, lists agents."""
import asyncio, time
from common import *

TRANSPORT = "ws://127.0.0.1:0/c" if "ws" in sys.argv else "tcp://127.0.0.1:0"
JUNK = {
    "node key no hex": {"node_key": "zz"}, "node key empty": {"node_key": ""}, "node key short": {"node_key": "ab"}, "node key small order": {"node_key": "00" * 32},
    "no endpoint": {"endpoints": ()}, "endpoint junk": {"endpoints": ("junk",)}, "endpoint wss": {"endpoints": ("wss://127.0.0.1:1/x",)}, "endpoint redis": {"endpoints": ("redis://127.0.0.1:1",)},
    "endpoint port": {"endpoints": ("tcp://127.0.0.1:99999",)}, "endpoint nul": {"endpoints": ("tcp://a\0b:80",)}, "endpoint idna": {"endpoints": ("tcp://" + "ü" * 100 + ":80",)},
    "endpoint v6": {"endpoints": ("tcp://[::1",)}, "endpoint user": {"endpoints": ("tcp://u:p@127.0.0.1:1",)}, "endpoint long host": {"endpoints": ("tcp://" + "a." * 3000 + ":80",)},
    "100 endpoints": {"endpoints": tuple(f"tcp://127.0.0.1:{n}" for n in range(1, 100))},
    "name": {"name": "x\n\x1b[2J\u202eevil"}, "topic names": {"topics": ("work", "\x1b[31m", "a" * 5000)},
}


async def main() -> None:
    import anyio
    from converge import DiscoveryQuery, Node
    from converge.model.keys import AGENT
    from converge.services.discovery.reader import marker_key, marker_value, write_sighting
    from converge.contracts.discovery import Sighting
    from converge.contracts.store import Batch

    problems: list[str] = []
    with redis_server() as url, running("worker", {"store": url, "pools": ["p"], "transport": TRANSPORT}) as w:
        for number, (name, junk) in enumerate(JUNK.items()):
          try:
            async with Node(store=url, transport=TRANSPORT, network=NETWORK, poll_sec=0.1) as node:
                await anyio.sleep(0.6)
                lease = (await node.handle.lease()).id
                who = Identity.generate(os.urandom)
                values = {"id": who.id, "public_key": who.public_key.hex(), "topics": ("work",), "node_key": os.urandom(32).hex(), "endpoints": ("tcp://127.0.0.1:1",), "lease": lease.hex(), "sequence": 10**15}
                signed = sign_descriptor(who, AgentDescriptor(**{**values, **junk}), NETWORK)
                sighting = Sighting(who.id, ("tcp://127.0.0.1:1",), signed)
                commits = await node.handle.commits()
                await commits.commit([Batch([], [(AGENT(lease, who.id), write_sighting(sighting)), (marker_key(lease), marker_value(1000 + number, [who.id]))])], wake=["agents"])
                await anyio.sleep(0.4)
                seen = [d.id for d in await node.discovery.query(DiscoveryQuery(topics=("work",)), refresh_from_store=True)]
                out = []
                for what, call in (("send", lambda: node.send(who.id, 1, timeout=1.5)), ("publish", lambda: node.publish("work", 1, timeout=2)), ("mail", lambda: node.send(who.id, 1, mailbox=True, timeout=2))):
                    t = time.monotonic()
                    try:
                        got = await call()
                        good = sum(f.accepted for f in got) if what == "publish" else "ok"
                        out.append(f"{what} {good}")
                        if what == "publish" and good < 2:
                            problems.append(f"{name}: publish reached {good} agents of the honest node, not 2: {got}")
                    except ConvergeError as error:
                        out.append(f"{what} {type(error).__name__}")
                        if what == "publish":
                            problems.append(f"{name}: publish failed for all: {type(error).__name__}: {error}"[:250])
                    except Exception as error:
                        out.append(f"{what} !!{type(error).__name__}: {error}"[:120])
                        problems.append(f"{name}: {what} raised {type(error).__name__}: {error}"[:250])
                    if time.monotonic() - t > 4:
                        problems.append(f"{name}: {what} took {time.monotonic() - t:.1f} s")
                print(f"{name:22} listed {who.id in seen}; {'; '.join(out)}")
                if name == "name":
                    p = subprocess.run([str(pathlib.Path(PY).with_name("converge")), "agents", "list", "--store", url, "--network", NETWORK], capture_output=True, text=True)
                    if "\x1b[2J" in p.stdout or "\u202e" in p.stdout:
                        problems.append("agents list shows control characters")
          except Exception as error:
            problems.append(f"{name}: THE WHOLE NODE DIED of {type(error).__name__}: {error}"[:250])
        text = w.log_text()
        if "Traceback" in text:
            problems.append("worker: " + text[text.index("Traceback"):][:600])
    verdict(problems)


asyncio.run(main())
