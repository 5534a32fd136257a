"""mitmweb's engine with the gateway inside: ``mitmgate web``.

Its own addons stay, since its page is made of them; the door stands before them all. The page is served on this machine
alone and opens with mitmweb's random token.
"""

import os
import socket
from typing import TYPE_CHECKING

from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.tools.web.master import WebMaster
from tornado.httpserver import HTTPServer

from mitmgate.errors import StartError
from mitmgate.master import Dispatch

if TYPE_CHECKING:
    from mitmgate.chain import Chain
    from mitmgate.door import Door

COLUMNS = ["icon", "path", "method", "status", "size", "time", "comment"]
"""mitmweb's usual columns, with the comment in place of the lock that every call has."""
LOADED_BYTES = 1 << 32
"""Largest file of flows that may be loaded on the page; mitmweb's own limit."""


class WebGatewayMaster(WebMaster):
    """mitmweb, with the door in front of its own addons: so our ``next_layer`` comes before mitmproxy's."""

    def __init__(self, opts: Options, door: "Door") -> None:
        super().__init__(opts, with_termlog=False)
        self.page = HTTPServer(self.app, max_buffer_size=LOADED_BYTES)
        self.addons.add(door)
        self.addons.chain.remove(door)
        self.addons.chain.insert(0, door)
        Dispatch(self.addons)

    async def running(self) -> None:
        """Serve the page as mitmweb does, but say in a sentence what is wrong, and know the page's real port."""
        place = f"{self.options.web_host}:{self.options.web_port}"
        try:
            bound = socket.create_server((self.options.web_host, self.options.web_port))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise StartError(
                f"mitmweb's page cannot be served on {place}: {reason}; give another with --web-port PORT"
            ) from error
        bound.setblocking(False)
        self.page.add_socket(bound)
        self.options.update(web_port=bound.getsockname()[1])  # 0 = any free one
        await Master.running(self)

    async def done(self) -> None:
        await super().done()
        self.page.stop()
        await self.page.close_all_connections()


def web_master(opts: Options, chain: "Chain", web_port: int, open_browser: bool) -> WebGatewayMaster:
    """Return mitmweb with the gateway inside, its page on *web_port* of this machine alone."""
    engine = WebGatewayMaster(opts, chain.door)
    engine.options.update(
        web_host="127.0.0.1",
        web_port=web_port,
        web_open_browser=open_browser,
        web_columns=COLUMNS,
        keep_alt_svc_header=True,  # a provider's header is the client's business, as without mitmweb
    )
    return engine


def page_url(engine: WebMaster) -> str:
    """Return the address of the page, with the token that opens it."""
    return engine.web_url
