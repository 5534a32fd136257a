"""The scripted provider: real TLS and real bytes on a free port of this machine, under the providers' own names.

Its certificate is signed by a CA made for the occasion, which the demo's policy names (``upstream: {ca: …}``), and the
policy dials it in place of the real hosts (``connect_to``). So everything between the SDK and the provider is the
product's.
"""

import asyncio
import datetime
import ipaddress
import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitmgate.demo.scenes import Scene, scene_of
from mitmgate.demo.speech import say

OPENAI, AZURE = "api.openai.com", "demo.openai.azure.com"
HOSTS = (OPENAI, "api.anthropic.com", "generativelanguage.googleapis.com", AZURE)

FIRST_S = 0.04
"""Before the first byte: thinking."""
GAP_S = 0.01
"""Between two events of a stream."""
SLOW_GAP_S = 0.05
"""The same towards a client that will leave."""
CUT_AFTER = 7
"""Events of a stream that is cut."""
BUSY_MS = 150
"""So long a busy provider asks to be left alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the provider is, and whom to trust to believe it."""

    address: str
    """``127.0.0.1:PORT``."""
    ca: Path


@contextmanager
def provider(folder: Path) -> Iterator[Place]:
    """Run the provider in a thread of its own; its certificates go into *folder*."""
    ca, leaf = write_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    context.set_alpn_protocols(["http/1.1"])
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(Stage().serve, "127.0.0.1", 0, ssl=context))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="demo-provider", daemon=True)
    thread.start()
    try:
        yield Place(f"127.0.0.1:{port}", ca)
    finally:
        asyncio.run_coroutine_threadsafe(close(server), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


async def close(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


# -- one connection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    host: str
    body: bytes


class Stage:
    """Plays the scenes, and remembers which it has played."""

    def __init__(self) -> None:
        self.played: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, one after the other, until a side ends it."""
        try:
            while (asked := await read_request(reader)) is not None:
                if not await self.answer(asked, writer):
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # whoever asked has left: the demo has a scene for it
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def answer(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        """Play the scene; return whether the connection may serve on."""
        scene = scene_of(asked.body)
        if scene is None:
            await whole(error("this provider only knows the scenes of the demo"), "404 Not Found", writer)
            return True
        self.played[scene.prompt] += 1
        await asyncio.sleep(FIRST_S)
        if scene.trouble == "busy" and self.played[scene.prompt] == 1:
            await whole(error("too many requests"), "429 Too Many Requests", writer, f"retry-after-ms: {BUSY_MS}")
            return True
        if scene.trouble == "down" and asked.host == OPENAI:
            await whole(error("no capacity"), "503 Service Unavailable", writer)
            return True
        pieces = say(as_asked(scene, asked.body), asked.body)
        if not scene.stream:
            await whole(pieces[0], "200 OK", writer)
            return True
        return await stream(scene, pieces, writer)


def as_asked(scene: Scene, body: bytes) -> Scene:
    """Return *scene* with the model that *body* asks for: that one answers, whatever the app had asked for."""
    return replace(scene, model=json.loads(body).get("model", scene.model))  # Gemini has it in the path


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


async def read_request(reader: asyncio.StreamReader) -> Asked | None:
    """Return the next request, None at the connection's end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    host = fields.get(b"host", b"").strip().decode()
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return Asked(host, await read_chunks(reader))
    return Asked(host, await reader.readexactly(int(fields.get(b"content-length", b"0"))))


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(pieces)


async def whole(body: bytes, status: str, writer: asyncio.StreamWriter, *more: str) -> None:
    head = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *more, "", ""]
    writer.write("\r\n".join(head).encode() + body)
    await writer.drain()


async def stream(scene: Scene, pieces: list[bytes], writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for piece in pieces[:CUT_AFTER] if scene.ending == "cut" else pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(SLOW_GAP_S if scene.ending == "client leaves" else GAP_S)
    if scene.ending == "cut":
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


# -- certificates -----------------------------------------------------------------------------------------------------


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """Write a CA's certificate, and a key with a certificate of it for ``HOSTS``; return both files."""
    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of the demo's provider")])
    ca = (
        certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in HOSTS]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    leaf = (
        certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])]), ca_name, leaf_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    ca_file, leaf_file = folder / "provider-ca.pem", folder / "provider.pem"
    ca_file.write_bytes(ca.public_bytes(pem))
    leaf_file.write_bytes(secret + leaf.public_bytes(pem))
    leaf_file.chmod(0o600)
    return ca_file, leaf_file


def certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """Return what all our certificates have in common; good for a day, and from an hour ago on."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
