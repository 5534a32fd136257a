"""One message to one address, by HTTP or through the notification library.

An ``http(s)`` address gets a JSON POST. Its body is ``{"text": …}``, which Slack, Mattermost, Rocket.Chat and Discord
(``…/slack``) show, with the notice's fields beside it for programs; where a host is known to refuse what it does not
know, it gets only what it takes. Any other address (``mailto://``, ``msteams://``, ``pagerduty://`` …) goes through
apprise, which comes with ``pip install 'mitmgate[alert]'``.

An address is a secret: nothing that is logged, printed or answered here quotes it.
"""

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import certifi
from yarl import URL

from mitmgate import __version__
from mitmgate.alert_message import Notice, as_fields, text
from mitmgate.errors import StartError
from mitmgate.extras import needed
from mitmgate.inert import inert
from mitmgate.policy import Policy
from mitmgate.policy.secret import Secret
from mitmgate.policy.values import Upstream
from mitmgate.pool import proxy_of

log = logging.getLogger("mitmgate.alert")

TIMEOUT_S = 5.0
"""One try, from the look-up of the name to the answer."""

LIBRARY_TIMEOUT_S = 15.0
"""One try of apprise: a mail server takes its time."""

LONGEST_WAIT_S = 60.0
"""A receiver may ask to be left alone for so long (``retry-after``)."""

SAID_CHARS = 200
"""Of what a receiver answers."""

TEXT_CHARS = 2900
"""Of a message: a block of Slack's takes 3,000, Discord 2,000 (and cuts for itself what comes by ``/slack``)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one try."""

    ok: bool
    says: str
    """``200 ok``, ``404 no_service``, ``no connection: …``; without anything of the address."""
    again: bool = False
    """It failed, and another try may work."""
    wait_s: float | None = None
    """The receiver asks for so long a rest."""


# -- what is sent -----------------------------------------------------------------------------------------------------


def _plain(notice: Notice) -> dict[str, Any]:
    return {"text": _cut(text(notice)), **as_fields(notice)}


def _slack(notice: Notice) -> dict[str, Any]:
    """Slack's own: ``& < >`` would be mark-up, so that a tenant could call a whole channel."""
    said = _cut(text(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return {"text": said, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": said}}]}


def _discord(notice: Notice) -> dict[str, Any]:
    return {"content": _cut(text(notice), 1900), "allowed_mentions": {"parse": []}}


def _text_only(notice: Notice) -> dict[str, Any]:
    return {"text": _cut(text(notice))}


def _cut(said: str, most: int = TEXT_CHARS) -> str:
    return said if len(said) <= most else said[: most - 1] + "…"


BODIES: tuple[tuple[re.Pattern[str], Callable[[Notice], dict[str, Any]]], ...] = (
    (re.compile(r"hooks\.slack(-gov)?\.com/"), _slack),
    (re.compile(r"(\w+\.)?discord(app)?\.com/api/webhooks/.*/slack$"), _text_only),
    (re.compile(r"(\w+\.)?discord(app)?\.com/api/webhooks/"), _discord),
    (re.compile(r"chat\.googleapis\.com/"), _text_only),
)
"""Host and path of an address -> what is sent there; the first that fits. All others get ``_plain``."""


def body(address: str, notice: Notice) -> dict[str, Any]:
    """Return the JSON that *address* gets."""
    parts = urlsplit(address)
    place = f"{(parts.hostname or '').lower()}{parts.path}"
    made = next((made for pattern, made in BODIES if pattern.match(place)), _plain)
    return made(notice)


# -- one try ----------------------------------------------------------------------------------------------------------


def is_http(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def shown(address: str) -> str:
    """Return what an address may be called: where it stands in the environment."""
    return address.source if isinstance(address, Secret) else f"{address.partition('://')[0]}://…"


def check(policy: Policy) -> None:
    """Raise ``StartError`` where an alert of *policy* goes to an address that nothing here can send to."""
    for n, rule in enumerate(policy.alert):
        for address in rule.to:
            if not is_http(address):
                _apprise_for(address, policy.where(f"alert[{n}]") or f"alert {rule.name}")


def deliver(address: str, notice: Notice, upstream: Upstream, timeout_s: float = TIMEOUT_S) -> Answer:
    """Try once to tell *address*; never raises. Not for the event loop's thread."""
    try:
        if is_http(address):
            return asyncio.run(_post(address, json.dumps(body(address, notice)).encode(), upstream, timeout_s))
        return _through_apprise(address, notice)
    except TimeoutError:
        return Answer(False, f"no answer within {timeout_s:g} s", again=True)
    except (aiohttp.ClientError, OSError, StartError, ValueError) as e:
        return Answer(False, scrubbed(str(e) or type(e).__name__, address), again=True)
    except Exception as e:  # a library of somebody else's: its bug costs this message and nothing else
        log.debug("alert: %s", shown(address), exc_info=True)
        return Answer(False, scrubbed(f"{type(e).__name__}: {e}", address), again=True)


async def _post(address: str, data: bytes, upstream: Upstream, timeout_s: float) -> Answer:
    """POST *data*. The environment's proxies are not asked: it may well name this gateway."""
    headers = {"content-type": "application/json", "user-agent": f"mitmgate/{__version__}"}
    connector = aiohttp.TCPConnector(ssl=_roots(upstream.ca), force_close=True)
    async with (
        asyncio.timeout(timeout_s),
        aiohttp.ClientSession(connector=connector, trust_env=False) as session,
        session.post(address, data=data, headers=headers, allow_redirects=False, **_proxy(address, upstream)) as got,
    ):
        said = (await got.content.read(SAID_CHARS)).decode(errors="replace").strip()
        ok = 200 <= got.status < 300
        again = got.status in (408, 429) or got.status >= 500
        return Answer(ok, scrubbed(f"{got.status} {said}".strip(), address), again, _wait_s(got.headers))


def _proxy(address: str, upstream: Upstream) -> dict[str, Any]:
    """Return how aiohttp is told of the corporate proxy, which reaches nobody on this machine."""
    if URL(address).host in ("localhost", "127.0.0.1", "::1"):
        return {}
    proxy, fields = proxy_of(upstream.proxy)
    return {"proxy": proxy, "proxy_headers": fields} if proxy else {}


@lru_cache(8)
def _roots(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    if ca:
        context.load_verify_locations(ca)
    return context


def _wait_s(headers: Mapping[str, str]) -> float | None:
    asked = headers.get("retry-after", "")
    return min(float(asked), LONGEST_WAIT_S) if asked.isdigit() else None


def _apprise_for(address: str, why: str) -> Any:
    """Return apprise, ready to send to *address*; raise ``StartError``, *why* says whose it is."""
    library = needed("apprise", "alert", f"{why}: {shown(address)}")
    logging.getLogger("apprise").propagate = False  # it says more of addresses than a log may hold
    sender = library.Apprise()
    if not sender.add(str(address)):
        scheme = address.partition("://")[0]
        raise StartError(f"{why}: {shown(address)} is no {scheme}:// address that apprise understands")
    return sender


def _through_apprise(address: str, notice: Notice) -> Answer:
    sender = _apprise_for(address, f"alert {notice.alert}")
    result = sender.notify(
        title=f"mitmgate: {notice.title}", body=text(notice), body_format="text", timeout=LIBRARY_TIMEOUT_S
    )
    if result:
        return Answer(True, "delivered")
    said = [entry.message for entry in result.logs()]
    return Answer(False, scrubbed(said[-1] if said else "apprise could not deliver it", address), again=True)


PIECE = re.compile(r"[\w.+-]{6,}")
"""A part of an address that is long enough to be a secret."""


def scrubbed(said: str, address: str) -> str:
    """Return *said* without the pieces of *address* that could be its secret: all but scheme and host of a webhook."""
    secret = address.partition("://")[2]
    login, _, place = secret.rpartition("@")
    if is_http(address):
        place = place.partition("/")[2]
    pieces = {*PIECE.findall(f"{login} {place}"), *(part for part in login.split(":") if len(part) > 2)}
    for piece in sorted(pieces, key=len, reverse=True):
        said = said.replace(piece, "…")
    return inert(said)[:SAID_CHARS]
