"""Ask a gateway's own doors, past any proxy that the environment names."""

import http.client
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from mitmgate.cli.common import reachable

PATIENCE_S = 5.0


def get(url: str) -> str:
    """Return the body at *url* of the base-URL door; raise OSError on anything but 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except http.client.HTTPException as e:
        raise OSError(f"no HTTP ({e!r})") from e
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"{parts.path} says {answer.status}")
    return body


def handshake(listen: str, host: str, ca_cert: Path) -> None:
    """Do a TLS handshake for *host* through the proxy door at *listen*, trusting *ca_cert* alone.

    Nothing is asked over the connection, so the gateway dials nobody. Raises SSLCertVerificationError where another
    than our CA signed the certificate, OSError where there is no handshake.
    """
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(ca_cert)
    with socket.create_connection(reachable(listen), PATIENCE_S) as connection:
        connection.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\n\r\n".encode())
        status = head(connection).split(b"\r\n")[0]
        if status.split(b" ")[1:2] != [b"200"]:
            raise OSError(f"CONNECT was answered with {status.decode(errors='replace')!r}")
        trust.wrap_socket(connection, server_hostname=host).close()


def head(connection: socket.socket) -> bytes:
    """Return the bytes up to the empty line; one by one, since what follows it belongs to TLS."""
    read = b""
    while not read.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(read) > 8192:
            raise OSError("no answer to CONNECT")
        read += byte
    return read
