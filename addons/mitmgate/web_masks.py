"""Hide credentials in the flows that mitmweb shows, saves and copies; give them back where somebody replays a flow.

A secret header value becomes ``[secret-0f3a…]``: the same key always gets the same handle, so one still sees who
called with what. The real value stays in this process's memory alone, and only a replay gets it back, which takes
mitmweb's own token to ask for. After a restart a saved flow has no key any more, so the provider answers 401.

Promise: only the copy for the screens changes. What a provider gets was taken from the request before this runs.
"""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from functools import lru_cache

from mitmproxy import http

from mitmgate import redact

type Fields = tuple[tuple[bytes, bytes], ...]

REMEMBERED = 10_000
"""So many different values can be given back; the one that was used longest ago is forgotten first."""

HANDLE = re.compile(rb"\[secret-[0-9a-f]{12}\]")
SCHEMES = (b"bearer", b"basic", b"token")
"""Authorization schemes that stay readable in front of a handle."""


class Masks:
    """Secrets by their handles."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._secrets: OrderedDict[bytes, bytes] = OrderedDict()

    # -- values

    def mask(self, value: bytes) -> bytes:
        """Return what is shown for the secret *value*; a handle stays as it is."""
        scheme, space, key = value.partition(b" ")
        if space and scheme.lower() in SCHEMES:
            return scheme + space + self.mask(key)
        if not value or HANDLE.fullmatch(value):
            return value
        handle = b"[secret-%b]" % hmac.new(self._salt, value, hashlib.sha256).hexdigest()[:12].encode()
        self._secrets[handle] = value
        self._secrets.move_to_end(handle)
        if len(self._secrets) > REMEMBERED:
            self._secrets.popitem(last=False)
        return handle

    def unmask(self, text: bytes) -> bytes:
        """Return *text* with every handle that is known replaced by its secret."""
        return HANDLE.sub(lambda found: self._secrets.get(found[0], found[0]), text)

    # -- flows

    def hide(self, flow: http.HTTPFlow) -> bool:
        """Mask what the request of *flow* holds: header values, query parameters; True where that is news."""
        request = flow.request
        before = request.headers.fields, request.data.path
        request.headers.fields = self.fields(request.headers.fields)
        request.data.path = self.path(request.data.path)
        if flow._backup:  # what mitmweb's "revert" goes back to
            kept = flow._backup["request"]  # type: ignore[index]
            kept["headers"] = self.fields(kept["headers"])
            kept["path"] = self.path(kept["path"])
        return before != (request.headers.fields, request.data.path)

    def hide_cookies(self, flow: http.HTTPFlow) -> bool:
        """Mask the cookies of an answer, once the client has it: before, they would be masked for the client, too."""
        if flow.response is None or "set-cookie" not in flow.response.headers:
            return False
        headers = flow.response.headers
        before = headers.fields
        headers.fields = tuple(
            (name, self.mask(value) if name.lower() == b"set-cookie" else value) for name, value in before
        )
        return before != headers.fields

    def give_back(self, flow: http.HTTPFlow) -> None:
        """Make a flow that is being replayed as it was; ``hide`` follows again."""
        headers = flow.request.headers
        headers.fields = tuple((name, self.unmask(value)) for name, value in headers.fields)
        flow.request.data.path = self.unmask(flow.request.data.path)

    def fields(self, fields: Fields) -> Fields:
        """Return request header *fields* with credentials and cookies masked; order, case and duplicates stay."""
        return tuple((name, self.mask(value) if _is_secret(name, value) else value) for name, value in fields)

    def path(self, path: bytes) -> bytes:
        """Return a path with the values of secret query parameters masked."""
        head, mark, query = path.partition(b"?")
        return head + mark + b"&".join(self._parameter(part) for part in query.split(b"&"))

    def _parameter(self, part: bytes) -> bytes:
        name, equals, value = part.partition(b"=")
        alone = "?" + part.decode("latin-1")
        return name + equals + self.mask(value) if equals and redact.url(alone) != alone else part


@lru_cache(4096)
def _is_secret(name: bytes, value: bytes) -> bool:
    """True where a header holds what must not be kept. Cached: a client sends the same dozen with every call."""
    return redact.headers([(name, value)]) != [(name, value)]
