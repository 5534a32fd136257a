"""mitmproxy's engine with only the parts that a gateway needs, and faster on its way through the addons.

Stock mitmproxy walks thirty-five addons at each of nine hooks a request, a third of what a request costs. Here are
seven, and who listens to which hook is looked up once.
"""

import asyncio
import gc
import inspect
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from mitmproxy import exceptions, flow, hooks, master, options
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import block, clientplayback, core, disable_h2c, errorcheck, next_layer, proxyserver, tlsconfig
from mitmproxy.proxy import mode_servers

from mitmgate import layer
from mitmgate.door import Door
from mitmgate.tunnels import BASE_URL_HOST

log = logging.getLogger("mitmgate.serve")

DRAIN_S = 30.0
"""Live streams get this long to finish after SIGTERM."""
TOLD_S = 1.0
"""Then their clients get this long to hear that it is over."""
QUIET: dict[str, Any] = {
    "connection_strategy": "lazy",
    "upstream_cert": False,
    "http3": False,
    "rawtcp": False,
    "tcp_timeout": 3600,
    "showhost": True,
    "body_size_limit": "64m",
}
"""Options under which the gateway works; reasons in ``layer`` and ``door``. The size limit is for bodies held in
memory."""


class GatewayMaster(master.Master):
    """A master with the doors and nothing else."""

    def __init__(self, opts: options.Options, door: Door) -> None:
        super().__init__(opts)
        self.addons.add(
            core.Core(),
            block.Block(),
            clientplayback.ClientPlayback(),
            disable_h2c.DisableH2C(),
            proxyserver.Proxyserver(),
            door,
            next_layer.NextLayer(),
            tlsconfig.TlsConfig(),
            start_check(),
        )
        self.run_now = Dispatch(self.addons).run_now


def start_check() -> errorcheck.ErrorCheck:
    """Return the addon by which an error that is logged at start ends the start.

    Not one of the store's: a database that cannot be written stops no traffic, so it stops no gateway either.
    """
    check = errorcheck.ErrorCheck()
    check.logger.addFilter(lambda record: record.name != "mitmgate.store")
    return check


class Dispatch:
    """An addon manager's way to its addons, with a memory of who listens to which hook."""

    def __init__(self, manager: AddonManager) -> None:
        self.manager = manager
        self.found: dict[str, tuple[list[Callable[..., Any]], bool]] = {}
        """Hook name -> (its listeners, whether all of them return without waiting)."""
        for name in ("register", "remove", "add", "clear"):
            setattr(manager, name, self._forgetting(getattr(manager, name)))
        manager.trigger_event = self.trigger_event  # type: ignore[method-assign]
        manager.handle_lifecycle = self.handle_lifecycle  # type: ignore[method-assign]

    def _forgetting(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any) -> Any:
            self.found.clear()
            return change(*arguments)

        return changed

    def listeners(self, name: str, event: hooks.Hook) -> tuple[list[Callable[..., Any]], bool]:
        if (known := self.found.get(name)) is None:
            pairs = [pair for addon in self.manager.chain for pair in self.manager._iter_hooks(addon, event)]
            functions = [function for _, function in pairs]
            known = self.found[name] = functions, not any(map(inspect.iscoroutinefunction, functions))
        return known

    def run_now(self, event: hooks.Hook, subject: flow.Flow) -> bool:
        """Run all listeners of *event*, a hook of *subject*, at once; False, and none has run, where one may wait."""
        functions, at_once = self.listeners(event.name, event)
        if not at_once or self.hear_updates(subject):
            return False
        for function in functions:
            try:
                function(subject)
            except exceptions.AddonHalt:
                break
            except Exception:
                log.error("addon error", exc_info=True)
        return True

    def hear_updates(self, subject: flow.Flow) -> bool:
        """True where somebody (a screen) wants to know of every hook of a flow."""
        known = self.found.get(hooks.UpdateHook.name)
        return bool((known or self.listeners(hooks.UpdateHook.name, hooks.UpdateHook([subject])))[0])

    async def trigger_event(self, event: hooks.Hook) -> None:
        arguments = event.args()
        for function in self.listeners(event.name, event)[0]:
            try:
                result = function(*arguments)
                if result is not None and inspect.isawaitable(result):
                    await result
            except exceptions.AddonHalt:
                return
            except Exception:
                log.error("addon error", exc_info=True)

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        await self.trigger_event(event)
        subject = event.args()[0]
        if isinstance(subject, flow.Flow) and self.hear_updates(subject):
            await self.trigger_event(hooks.UpdateHook([subject]))


def listen_on(sockets: dict[str, socket.socket]) -> None:
    """Let mitmproxy's listeners take sockets that are bound already; keys are ``proxy`` and ``base-url``.

    So a port in use is our error, found before anything starts, and several workers can share one port.
    """

    async def listen(self: Any, host: str, port: int) -> list[asyncio.Server]:
        bound = sockets["base-url" if self.mode.full_spec.startswith(f"reverse:http://{BASE_URL_HOST}") else "proxy"]
        # Accepted sockets inherit it. asyncio sets it only where a socket knows its protocol, and ours, made without
        # getaddrinfo, do not: small answers then waited 40 ms for an ACK.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return [await asyncio.start_server(self.handle_stream, sock=bound, backlog=512)]

    mode_servers.AsyncioServerInstance.listen = listen  # type: ignore[assignment, method-assign]


def modes(base_url: bool) -> list[str]:
    """Return mitmproxy's ``mode`` option for our doors; addresses come with the sockets."""
    return ["regular@127.0.0.1:1", f"reverse:http://{BASE_URL_HOST}@127.0.0.1:2"][: 2 if base_url else 1]


async def run(engine: master.Master, door: Door, ready: Callable[[], None]) -> None:
    """Run *engine* until it is told to stop; *ready* is called once both doors accept. Raises ``StartError``."""
    layer.check()
    door.chain.open()  # here, and not in a hook, a ``StartError`` reaches the user
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def stop() -> None:
        if stopping:  # asked twice
            engine.shutdown()
        else:
            stopping.append(loop.create_task(drain(engine, door, DRAIN_S)))

    class Ready:
        """Stands last, so its ``running`` hook comes when every door is open."""

        name = "mitmgate.ready"

        def running(self) -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 50)
            ready()

    engine.addons.add(Ready())
    await engine.run()


async def drain(engine: master.Master, door: Door, grace_s: float) -> None:
    """Close the doors, let live exchanges finish, cut those that do not, and stop."""
    door.closing = True
    engine.options.update(server=False)
    deadline = asyncio.get_running_loop().time() + grace_s
    while door.chain.live and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    for _ in range(2):  # the second time nobody waits any more for a client that does not read
        if over := [down.task for down in door.chain.live if down.task]:
            for task in over:
                task.cancel("the gateway stops")
            await asyncio.wait(over, timeout=TOLD_S)
    for handler in list(engine.addons.get("proxyserver").connections.values()):
        await handler.on_timeout()  # closes idle client connections the way mitmproxy does
    engine.shutdown()
