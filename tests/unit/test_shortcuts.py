"""A short cut gives what mitmproxy's own way gives."""

from collections.abc import Iterator

import pytest
from mitmproxy import exceptions, http
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.proxy import commands, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpRequestHeadersHook
from mitmproxy.test import tflow

from mitmgate.master import Dispatch
from mitmgate.shortcuts import all_of, client_tls, joined

FIELDS = ((b"Host", b"api.openai.com"), (b"X-Two", b"one"), (b"x-two", b"two"), (b"X-Odd", b"\xe4\xff"), (b"X-", b""))


@pytest.mark.parametrize("name", ["host", "HOST", b"Host", "x-two", "x-odd", "x-", "absent", "x-tw", "x-twoo", ""])
def test_a_header_is_found_as_mitmproxy_finds_it(name: str | bytes) -> None:
    headers = http.Headers(FIELDS)

    wanted = [value.decode("utf-8", "surrogateescape") for key, value in FIELDS if key.lower() == _bytes(name).lower()]

    assert all_of(headers, name) == wanted


def _bytes(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


# -- what is sent in one go


CLIENT, OTHER = Server(address=("client", 1)), Server(address=("other", 1))


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        ([], []),
        ([(CLIENT, b"head"), (CLIENT, b"body"), (CLIENT, b"end")], [(CLIENT, b"headbodyend")]),
        ([(CLIENT, b"a"), (OTHER, b"b"), (CLIENT, b"c")], [(CLIENT, b"a"), (OTHER, b"b"), (CLIENT, b"c")]),
        ([(CLIENT, b"a"), None, (CLIENT, b"b"), (CLIENT, b"c")], [(CLIENT, b"a"), None, (CLIENT, b"bc")]),
        ([(CLIENT, b"a"), None], [(CLIENT, b"a"), None]),
    ],
)
def test_neighbours_to_one_connection_become_one_in_their_order(
    sent: list[tuple[Server, bytes] | None], written: list[tuple[Server, bytes] | None]
) -> None:
    def yielded() -> Iterator[commands.Command]:
        for one in sent:
            yield commands.SendData(*one) if one else commands.CloseConnection(CLIENT)

    found = list(joined(yielded()))  # type: ignore[arg-type]

    assert [(one.connection, one.data) if isinstance(one, commands.SendData) else None for one in found] == written


# -- where events enter


def _around(*kinds: type) -> layers.TCPLayer:
    """Return an innermost layer with layers of *kinds* around it, in the outermost that every connection has."""
    client = Client(peername=("client", 1), sockname=("gateway", 8080), state=ConnectionState.OPEN)
    context = Context(client, Options())
    for kind in (layers.modes.HttpProxy, *kinds):
        kind(context)
    return layers.TCPLayer(context)


def test_the_one_tls_layer_around_is_found() -> None:
    inner = _around(layers.ServerTLSLayer, layers.ClientTLSLayer)

    assert client_tls(inner) is inner.context.layers[-2]


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        (layers.ServerTLSLayer,),
        (layers.ClientTLSLayer, layers.ServerTLSLayer),
        (layers.ClientTLSLayer, layers.ServerTLSLayer, layers.ClientTLSLayer),
    ],
    ids=["no TLS", "the server's", "not next to it", "TLS inside TLS"],
)
def test_any_other_stack_is_left_alone(kinds: tuple[type, ...]) -> None:
    assert client_tls(_around(*kinds)) is None


# -- hooks without a task


class Quick:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.heard.append(flow.id)


class Slow:
    async def requestheaders(self, _flow: http.HTTPFlow) -> None:
        """May wait, so it needs a task."""


class Halting:
    def requestheaders(self, _flow: http.HTTPFlow) -> None:
        raise exceptions.AddonHalt


class Broken:
    def requestheaders(self, _flow: http.HTTPFlow) -> None:
        raise ValueError("broken")


class Screen:
    def update(self, _flows: list[http.HTTPFlow]) -> None:
        """Wants to know of every hook."""


def _dispatch(*addons: object) -> Dispatch:
    """Call inside a running loop: a master wants one."""
    manager = Master(Options()).addons
    manager.add(*addons)
    return Dispatch(manager)


@pytest.mark.parametrize(
    ("others", "at_once", "heard"),
    [
        ((), True, 1),
        ((Broken(),), True, 1),
        ((Halting(),), True, 0),
        ((Slow(),), False, 0),
        ((Screen(),), False, 0),
    ],
    ids=["alone", "after one that breaks", "after one that stops the rest", "with one that may wait", "with a screen"],
)
async def test_listeners_that_never_wait_are_run_at_once(others: tuple[object, ...], at_once: bool, heard: int) -> None:
    quick, flow = Quick(), tflow.tflow()
    dispatch = _dispatch(*others, quick)

    assert dispatch.run_now(HttpRequestHeadersHook(flow), flow) is at_once
    assert quick.heard == [flow.id] * heard


async def test_an_addon_that_comes_later_is_heard() -> None:
    quick, flow = Quick(), tflow.tflow()
    dispatch = _dispatch()
    dispatch.run_now(HttpRequestHeadersHook(flow), flow)

    dispatch.manager.add(quick)
    dispatch.run_now(HttpRequestHeadersHook(flow), flow)

    assert quick.heard == [flow.id]
