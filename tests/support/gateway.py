"""A gateway in this process: the real master, the real doors on free ports, the real database."""

import asyncio
import contextlib
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import trustme
from mitmproxy import certs, options
from mitmproxy.master import Master

from mitmgate import master
from mitmgate.chain import Chain
from mitmgate.clock import Clock
from mitmgate.door import Door
from mitmgate.exchange import Exchange
from mitmgate.home import Home, secret_of
from mitmgate.policy import Policy, loads
from support.client import PATIENCE_S, Client, Http1, Http2

# Each gateway reads its CA, and checking an RSA key takes 60 ms; all homes of a run have the same one.
certs.load_pem_private_key = lru_cache(8)(certs.load_pem_private_key)


@dataclass
class Gateway:
    chain: Chain
    engine: Master
    home: Home
    db: Path
    port: int
    base_url_port: int
    running: asyncio.Future[None]
    """Done when the gateway has ended."""
    clients: list[Client] = field(default_factory=list)
    """Opened by ``client`` and its kin; dropped at the end of the test."""
    settled: list[Exchange] = field(default_factory=list)
    """LLM calls whose books are closed, in that order."""
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.chain.after.append(self._note)

    def _note(self, x: Exchange) -> None:
        self.settled.append(x)
        self._closed.set()

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.base_url_port}"

    def trust(self, *alpn: str) -> ssl.SSLContext:
        """Return client TLS settings that trust the gateway's CA."""
        context = ssl.create_default_context(cafile=str(self.home.ca_cert))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    async def rows(self, count: int = 0, sql: str = "select * from exchanges order by rowid") -> list[dict[str, Any]]:
        """Return the rows once at least *count* calls are over and nothing is under way any more."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.settled) < count:
                self._closed.clear()
                await self._closed.wait()
            while tasks := [down.task for down in self.chain.live if down.task]:
                await asyncio.wait(tasks)
        await asyncio.to_thread(self.chain.state.writer.flush, 5.0)
        with contextlib.closing(sqlite3.connect(self.db)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql)]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once *holds* says so; for what happens inside the gateway, where nobody sets an event."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0)

    async def row(self) -> dict[str, Any]:
        """Return the only row."""
        [row] = await self.rows(1)
        return row

    async def http1(self, host: str = "api.openai.com") -> Http1:
        """Return an HTTP/1.1 connection to *host* through the proxy door."""
        client = await Http1.tunnel(self.port, host, self.trust())
        self.clients.append(client)
        return client

    async def http2(self, host: str = "api.openai.com") -> Http2:
        """Return an HTTP/2 connection to *host* through the proxy door."""
        client = await Http2.tunnel(self.port, host, self.trust("h2"))
        self.clients.append(client)
        return client

    async def client(self, version: str, host: str = "api.openai.com") -> Client:
        """Return a connection that speaks *version*, ``h1`` or ``h2``."""
        return await (self.http2(host) if version == "h2" else self.http1(host))

    async def plain(self) -> Http1:
        """Return a connection to the base-URL door."""
        client = await Http1.plain(self.base_url_port)
        self.clients.append(client)
        return client


type OpenGateway = Callable[..., AbstractAsyncContextManager[Gateway]]


def policy_for(
    port: int,
    ca: Path | None,
    hosts: tuple[str, ...],
    text: str = "",
    upstream: str = "",
    env: Mapping[str, str] | None = None,
    elsewhere: Mapping[str, int] | None = None,
) -> Policy:
    """Return a policy whose provider *hosts* are dialled at *port* of this machine, those of *elsewhere* at theirs.

    *text* is more YAML: whole sections; *upstream* more lines of that section; *env* what ``env:NAME`` stands for.
    """
    ports = dict.fromkeys(hosts, port) | dict(elsewhere or {})
    lines = ["upstream:", "  connections_per_host: 100", *(f"  {line}" for line in upstream.splitlines())]
    if ca:
        lines.append(f"  ca: {ca}")
    if ports:
        lines += ["  connect_to:", *(f'    "{host}:443": "127.0.0.1:{dialled}"' for host, dialled in ports.items())]
    return loads("\n".join([*lines, text]), "policy.yaml", env or {})


def headless(opts: options.Options, chain: Chain) -> Master:
    """Return the engine of ``mitmgate serve``."""
    return master.GatewayMaster(opts, chain.door)


type Run = Callable[[Master, Door, Callable[[], None]], Coroutine[None, None, None]]


async def run_plainly(engine: Master, _door: Door, ready: Callable[[], None]) -> None:
    """Run *engine* as ``master.run`` does, but leave alone what belongs to this process: its signals and its memory."""

    class Ready:
        def running(self) -> None:
            ready()

    engine.addons.add(Ready())
    await engine.run()


@contextlib.asynccontextmanager
async def gateway(
    home_path: Path,
    policy: Policy,
    authority: trustme.CA,
    build: Callable[[options.Options, Chain], Master] = headless,
    run: Run = run_plainly,
    clock: Clock | None = None,
) -> AsyncIterator[Gateway]:
    """Run a gateway whose home is *home_path*, prepared."""
    home = Home(home_path)
    secret = secret_of(home_path)
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("proxy", "base-url")}
    chain = Chain(policy, home_path / "traces.db", secret, clock)
    master.listen_on(sockets)
    engine = build(options.Options(confdir=str(home.ca)), chain)
    engine.options.update(**master.QUIET, mode=master.modes(True))
    ready = asyncio.Event()
    factory = asyncio.get_running_loop().get_task_factory()

    running = asyncio.ensure_future(run(engine, chain.door, ready.set))
    await asyncio.wait({running, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    ports = {name: bound.getsockname()[1] for name, bound in sockets.items()}
    opened = Gateway(chain, engine, home, home_path / "traces.db", ports["proxy"], ports["base-url"], running)
    try:
        yield opened
    finally:
        for client in opened.clients:
            client.abort()
        engine.options.update(server=False)
        for handler in list(engine.addons.get("proxyserver").connections.values()):
            await handler.on_timeout()
        engine.shutdown()
        async with asyncio.timeout(PATIENCE_S):
            await running
        asyncio.get_running_loop().set_task_factory(factory)
