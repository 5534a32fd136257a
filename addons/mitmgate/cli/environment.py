"""The variables that bring a program to the gateway: one table, used by ``env``, ``run`` and ``doctor``.

Clients do not agree on a name. Which variable serves whom was tried with real clients (2026-11); the reason stands
beside each row. What the user had is merged, never dropped: hosts in ``NO_PROXY`` stay, options in
``JAVA_TOOL_OPTIONS`` stay, and roots that a CA variable named are in the bundle that takes its place (``roots.py``).
Only a proxy is replaced.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from mitmgate.cli.common import Running
from mitmgate.providers import TABLE, Provider

type Kind = Literal["proxy", "direct", "bundle", "switch", "java", "home"]


@dataclass(frozen=True, slots=True)
class Variable:
    names: tuple[str, ...]
    """All get the same value; the first is the one to speak of."""
    kind: Kind
    why: str


TABLE_OF_VARIABLES: tuple[Variable, ...] = (
    Variable(("HTTPS_PROXY", "https_proxy"), "proxy", "nearly every client; gRPC reads the lower-case name only"),
    Variable(("HTTP_PROXY", "http_proxy"), "proxy", "observed hosts without TLS; curl reads the lower-case one"),
    Variable(("grpc_proxy",), "proxy", "where it is set, gRPC prefers it to https_proxy"),
    Variable(("NO_PROXY", "no_proxy"), "direct", "this machine and the clouds' metadata are reached directly"),
    Variable(("SSL_CERT_FILE",), "bundle", "all Python LLM SDKs but boto3, Go on Linux, Bun, Claude Code, Codex"),
    Variable(("REQUESTS_CA_BUNDLE",), "bundle", "requests, boto3"),
    Variable(("CURL_CA_BUNDLE",), "bundle", "curl, requests"),
    Variable(("AWS_CA_BUNDLE",), "bundle", "boto3, AWS CLI"),
    Variable(("NODE_EXTRA_CA_CERTS",), "bundle", "Node, Bun, Deno, Claude Code, Gemini CLI"),
    Variable(("NODE_USE_ENV_PROXY",), "switch", "Node 22.21 and 24 read proxy variables only with it, older never"),
    Variable(("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",), "bundle", "gRPC, which reads no other CA variable"),
    Variable(("GIT_SSL_CAINFO",), "bundle", "git, where it is built on GnuTLS"),
    Variable(("DENO_CERT",), "bundle", "Deno"),
    Variable(("CODEX_CA_CERTIFICATE",), "bundle", "Codex, before SSL_CERT_FILE"),
    Variable(("JAVA_TOOL_OPTIONS",), "java", "Java, which reads no variable but this one (and says so on stderr)"),
    Variable(("MITMGATE_HOME",), "home", "mitmgate itself, called by the program"),
)  # fmt: skip

DIRECT = ("localhost", "127.0.0.1", "::1", "169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""What ``NO_PROXY`` always holds. A cloud machine's credentials come from the last three and must not pass a proxy."""

JAVA_PASSWORD = "changeit"  # Java's own default: the file holds public certificates, there is nothing to keep secret


@dataclass(frozen=True, slots=True)
class Way:
    """What the variables point to."""

    proxy_url: str
    bundle: Path
    home: Path
    truststore: Path | None = None
    """PKCS #12 with the bundle's certificates; None where it could not be written."""


KEY = "MITMGATE_KEY"
"""The variable with the key of whoever calls, for a gateway that asks for one."""


def way_to(running: Running, home: Path, truststore: Path | None = None, key: str | None = None) -> Way:
    """Return the way to *running*; with *key* its proxy's address has that, as nearly every client sends it from there
    (Java does not).
    """
    url = running.proxy_url
    if key:
        url = url.replace("://", f"://mitmgate:{quote(key, safe='')}@", 1)
    return Way(url, running.ca_bundle, home, truststore)


def variables(way: Way, env: Mapping[str, str]) -> dict[str, str]:
    """Return every variable to set for a program whose environment is *env* so far. Doing it twice changes nothing."""
    return {name: value_of(row, way, env) for row in TABLE_OF_VARIABLES for name in row.names}


def value_of(row: Variable, way: Way, env: Mapping[str, str]) -> str:
    match row.kind:
        case "proxy":
            return way.proxy_url
        case "direct":
            return ",".join(merged(DIRECT, hosts_of(env.get(name, "") for name in row.names)))
        case "bundle":
            return str(way.bundle)
        case "switch":
            return "1"
        case "java":
            return java_options(way, env.get(row.names[0], ""))
        case "home":
            return str(way.home)


def merged(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """Return both without repetition, theirs first: a reader finds their own words where they left them."""
    return list(dict.fromkeys((*theirs, *ours)))


def hosts_of(values: Iterable[str]) -> list[str]:
    """Return the entries of ``NO_PROXY`` values: parted by commas or blanks."""
    return [host for value in values for host in re.split(r"[,\s]+", value) if host]


# -- Java -------------------------------------------------------------------------------------------------------------


def java_options(way: Way, before: str) -> str:
    """Return ``JAVA_TOOL_OPTIONS``: the user's options, then ours. Ours replace the same property."""
    kept = [option for option in split_java(before) if property_of(option) not in JAVA_PROPERTIES]
    direct = next((value_of_property(o) for o in split_java(before) if property_of(o) == "http.nonProxyHosts"), "")
    ours = [f"-D{name}={java_quoted(value)}" for name, value in java_properties(way, direct).items()]
    return " ".join((*kept, *ours))


JAVA_PROPERTIES = frozenset(
    {
        "http.proxyHost",
        "http.proxyPort",
        "https.proxyHost",
        "https.proxyPort",
        "http.nonProxyHosts",
        "javax.net.ssl.trustStore",
        "javax.net.ssl.trustStoreType",
        "javax.net.ssl.trustStorePassword",
    }
)


def java_properties(way: Way, direct: str) -> dict[str, str]:
    """Return Java's names for what the other variables say; *direct* is the user's own ``http.nonProxyHosts``."""
    url = urlsplit(way.proxy_url)
    ours = ["localhost", "127.*", "[::1]", *DIRECT[3:]]
    properties = {
        "http.proxyHost": url.hostname or "",
        "http.proxyPort": str(url.port),
        "https.proxyHost": url.hostname or "",
        "https.proxyPort": str(url.port),
        "http.nonProxyHosts": "|".join(merged(ours, [host for host in direct.split("|") if host])),
    }
    if way.truststore is not None:
        properties["javax.net.ssl.trustStore"] = str(way.truststore)
        properties["javax.net.ssl.trustStoreType"] = "PKCS12"
        properties["javax.net.ssl.trustStorePassword"] = JAVA_PASSWORD
    return properties


def split_java(options: str) -> list[str]:
    """Split as the Java launcher does: on blanks outside quotes; there is no escape character."""
    return re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", options)


def property_of(option: str) -> str | None:
    """Return ``http.proxyHost`` of ``-Dhttp.proxyHost=…``; None for any other option."""
    name, equals, _ = option.removeprefix("-D").partition("=")
    return name if option.startswith("-D") and equals else None


def value_of_property(option: str) -> str:
    return option.partition("=")[2].strip("'\"")


def java_quoted(value: str) -> str:
    return f"'{value}'" if re.search(r"\s", value) else value


# -- what stands in the way -------------------------------------------------------------------------------------------


def remarks(way: Way, env: Mapping[str, str]) -> list[str]:
    """Return sentences on what the user should know of *env*, before a program runs in it as merged with ours."""
    return [*proxy_remarks(way, env), *direct_remarks(env), *java_remarks(way, env)]


def proxy_remarks(way: Way, env: Mapping[str, str]) -> list[str]:
    for name in ("HTTPS_PROXY", "https_proxy"):
        other = env.get(name, "")
        if other and other.rstrip("/") != way.proxy_url:
            return [
                f"{name} was {without_password(other)}: the gateway takes its place and goes out directly, "
                f"unless the policy says upstream: {{proxy: env:NAME}}"
            ]
    return []


def direct_remarks(env: Mapping[str, str]) -> list[str]:
    providers = [row for row in TABLE if plain_hosts(row)]
    hidden = [row.slug for row in providers if any(is_direct(host, env) for host in plain_hosts(row))]
    if not hidden:
        return []
    who = "every provider" if len(hidden) == len(providers) else ", ".join(hidden)
    return [f"NO_PROXY sends calls past the gateway, unseen: {who}"]


def java_remarks(way: Way, env: Mapping[str, str]) -> list[str]:
    for option in split_java(env.get("JAVA_TOOL_OPTIONS", "")):
        own = value_of_property(option)
        if property_of(option) == "javax.net.ssl.trustStore" and way.truststore and own != str(way.truststore):
            return [f"Java's trust store {own} is replaced by {way.truststore}; roots that only it has are not trusted"]
    return []


def plain_hosts(row: Provider) -> list[str]:
    """Return the hosts of a provider that can be compared by name: no globs, and not the ones of this machine."""
    return [host for host in row.hosts if "*" not in host and ":" not in host]


def is_direct(host: str, env: Mapping[str, str]) -> bool:
    """Return whether ``NO_PROXY`` in *env* makes clients go to *host* past any proxy."""
    for entry in hosts_of((env.get("NO_PROXY", ""), env.get("no_proxy", ""))):
        name = entry.lower().removeprefix("*").lstrip(".")
        if entry == "*" or host == name or host.endswith(f".{name}"):
            return True
    return False


def without_password(url: str) -> str:
    """Return *url* fit to be shown."""
    return re.sub(r"//[^/@]*@", "//…@", url)
