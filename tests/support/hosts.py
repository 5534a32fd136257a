"""Scripts by host: several hosts are dialled at one scripted provider, and each answers, or fails, in its own way.

A host that has no script for a path answers 404, so a request that went astray shows.
"""

from collections import Counter

from support.provider import Heard, Provider, Script, Wire


class Hosts:
    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.scripts: dict[tuple[str, str], Script] = {}
        """(host, path) -> what happens there."""

    def on(self, host: str, path: str, script: Script) -> None:
        """Run *script* at *path* of *host*; with a query it is for that query alone."""
        self.scripts[host, path] = script
        self.provider.on(path, self._play)

    def says(self, host: str, path: str, body: bytes, status: str = "200 OK", *more: str) -> None:
        """Answer with a whole body."""

        async def script(_heard: Heard, wire: Wire) -> None:
            await wire.answer(body, status, "application/json", *more)

        self.on(host, path, script)

    def streams(self, host: str, path: str, pieces: list[bytes]) -> None:
        """Answer with a stream, one chunk a piece."""

        async def script(_heard: Heard, wire: Wire) -> None:
            await wire.stream(pieces)

        self.on(host, path, script)

    async def _play(self, heard: Heard, wire: Wire) -> None:
        host = heard.sni or ""
        script = self.scripts.get((host, heard.path)) or self.scripts.get((host, heard.path.partition("?")[0]))
        if script is None:
            await wire.answer(b'{"error":{"message":"no script"}}', "404 Not Found")
            return
        await script(heard, wire)

    @property
    def asked(self) -> Counter[str]:
        """How often each host was asked."""
        return Counter(heard.sni or "" for heard in self.provider.heard)

    def heard(self, host: str) -> list[Heard]:
        """Return what *host* was asked, in order."""
        return [heard for heard in self.provider.heard if heard.sni == host]


def carries(heard: Heard, secret: str) -> bool:
    """True where *secret* stands anywhere in what was heard: path, fields, body."""
    fields = b"\n".join(name + b": " + value for name, value in heard.fields)
    return secret.encode() in b"\n".join([heard.path.encode(), fields, heard.body])


async def is_down(_heard: Heard, wire: Wire) -> None:
    await wire.answer(DOWN, "503 Service Unavailable")


async def is_silent(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


async def resets(_heard: Heard, wire: Wire) -> None:
    wire.reset()


DOWN = b'{"error":{"message":"no capacity","type":"server_error","code":null}}'
