"""What a program trusted before it met the gateway, it still trusts.

Most CA variables replace a client's roots (``SSL_CERT_FILE``, ``REQUESTS_CA_BUNDLE`` …), and calls to hosts that are
no provider are tunnelled and keep their real certificates. So ``ca/bundle.pem``, which those variables point to, holds
certifi's roots and our CA from the start, and gets here what else the user's variables and the system trusted: a
company's own CA. Another gateway's CA is never taken over.

``ca/truststore.p12`` is the same for Java, which cannot read PEM.
"""

import base64
import binascii
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mitmgate.cli.environment import JAVA_PASSWORD, TABLE_OF_VARIABLES

if TYPE_CHECKING:
    from cryptography import x509

TRUSTSTORE = "truststore.p12"

SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS, BSD
)

BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
GATEWAY_NAMES = (b"mitmproxy", b"mitmgate")
"""In the subject of every gateway's CA: two of them with one name and two keys would confuse clients."""


def prepare(bundle: Path, env: Mapping[str, str]) -> tuple[Path | None, list[str]]:
    """Bring *bundle* up to what *env* trusts and write the trust store beside it.

    Returns the trust store (None where there is none) and a sentence for each thing that could not be done.
    """
    try:
        extend(bundle, env)
        return write_truststore(bundle), []
    except (OSError, ValueError) as e:
        return None, [f"{bundle.parent} could not be brought up to date, programs get what it holds: {e}"]


def extend(bundle: Path, env: Mapping[str, str]) -> int:
    """Add to *bundle* the roots that *env* and the system trust and it lacks; return how many."""
    held = bundle.read_bytes()
    new = missing(held, (read(path) for path in trusted_files(env) if path != bundle))
    if new:
        replace(bundle, held.rstrip() + b"\n" + b"".join(map(to_pem, new)))
    return len(new)


def trusted_files(env: Mapping[str, str]) -> list[Path]:
    """Return the files that clients in *env* take roots from, those that exist."""
    named = [env.get(name, "") for row in TABLE_OF_VARIABLES if row.kind == "bundle" for name in row.names]
    paths = [Path(name) for name in dict.fromkeys((*named, *SYSTEM_BUNDLES)) if name]
    return [path for path in paths if path.is_file()]


def missing(held: bytes, others: Iterable[bytes]) -> list[bytes]:
    """Return the certificates (DER) of the PEM texts *others* that *held* lacks; none of another gateway."""
    known = set(certificates(held))
    new: dict[bytes, None] = {}
    for text in others:
        new.update(dict.fromkeys(der for der in certificates(text) if der not in known and not is_gateway(der)))
    return list(new)


def certificates(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM text as DER. Text between them, and a block that is none, is passed over."""
    found = []
    for block in BLOCK.findall(pem):
        try:
            found.append(base64.b64decode(b"".join(block.split()), validate=True))
        except binascii.Error:
            continue
    return found


def is_gateway(der: bytes) -> bool:
    return any(name in der for name in GATEWAY_NAMES)


def to_pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = (text[at : at + 64] for at in range(0, len(text), 64))
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----")) + b"\n"


def write_truststore(bundle: Path) -> Path:
    """Return the PKCS #12 trust store beside *bundle*, written anew where it is older than it."""
    truststore = bundle.with_name(TRUSTSTORE)
    if truststore.is_file() and truststore.stat().st_mtime >= bundle.stat().st_mtime:
        return truststore
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

    entries = [
        pkcs12.PKCS12Certificate(certificate, f"root-{n}".encode())
        for n, der in enumerate(certificates(bundle.read_bytes()))
        if (certificate := parsed(der))
    ]
    replace(truststore, pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(JAVA_PASSWORD.encode())))
    return truststore


def parsed(der: bytes) -> "x509.Certificate | None":
    """Return the certificate; None for one that is against the rules. Old roots are, such as one with the serial 0."""
    from cryptography import x509

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return x509.load_der_x509_certificate(der)
        except ValueError:
            return None


def read(path: Path) -> bytes:
    """Return the file's bytes; nothing where it cannot be read: what a client could not read, it did not trust."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def replace(path: Path, content: bytes) -> None:
    """Write *path* so that a reader sees the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
