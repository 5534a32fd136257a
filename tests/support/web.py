"""A gateway inside mitmweb, in this process, and its page as a browser's script sees it."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme
from mitmproxy import options
from mitmproxy.http import HTTPFlow
from mitmproxy.master import Master

from mitmgate.chain import Chain
from mitmgate.policy import Policy
from mitmgate.web import Web
from mitmgate.web_master import WebGatewayMaster, page_url, web_master
from support.client import Answer, Http1
from support.gateway import Gateway, gateway

type OpenWeb = Callable[..., AbstractAsyncContextManager["WebGateway"]]


@dataclass
class Page:
    """mitmweb's page by its own API."""

    port: int
    token: str

    async def ask(self, method: str, path: str) -> Answer:
        client = await Http1.plain(self.port)
        try:
            xsrf = ("Cookie: _mitmproxy_xsrf=abc", "X-XSRFToken: abc")
            return await client.ask(method, path, "127.0.0.1", b"", f"Authorization: Bearer {self.token}", *xsrf)
        finally:
            await client.close()

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        if answer.status != 200:
            raise LookupError(f"{path}: {answer.status} {answer.body!r}")
        return json.loads(answer.body)

    async def flows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.get("/flows")
        return found

    async def flow(self) -> dict[str, Any]:
        """Return the only flow."""
        [flow] = await self.flows()
        return flow

    async def content(self, message: str, view: str = "Auto") -> dict[str, str]:
        """Return ``{"text", "view_name", …}`` of the only flow's ``request`` or ``response``."""
        flow = await self.flow()
        shown: dict[str, str] = await self.get(f"/flows/{flow['id']}/{message}/content/{quote(view)}")
        return shown


@dataclass
class WebGateway:
    gateway: Gateway
    engine: WebGatewayMaster
    page: Page

    @property
    def web(self) -> Web:
        if self.gateway.chain.web is None:
            raise LookupError("the room is not there")
        return self.gateway.chain.web

    def stored(self) -> HTTPFlow:
        """Return mitmproxy's own object of the only flow."""
        [flow] = self.engine.view.resolve("@all")
        if not isinstance(flow, HTTPFlow):
            raise LookupError(flow)
        return flow


@contextlib.asynccontextmanager
async def web_gateway(home_path: Path, policy: Policy, authority: trustme.CA) -> AsyncIterator[WebGateway]:
    built: list[WebGatewayMaster] = []

    def build(opts: options.Options, chain: Chain) -> Master:
        built.append(web_master(opts, chain, 0, False))
        return built[0]

    async with gateway(home_path, policy, authority, build) as running:
        [engine] = built
        token = page_url(engine).partition("?token=")[2]
        yield WebGateway(running, engine, Page(engine.options.web_port, token))
