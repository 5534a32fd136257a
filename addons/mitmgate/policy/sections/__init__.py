"""The sections of a policy, in the order a request meets their rooms.

A room that is built adds its form to its row here, and its value to ``Policy`` under the same name. Until then a file
that has the section is refused: a limit that nothing enforces is worse than no limit.
"""

from dataclasses import dataclass
from typing import Any

from mitmgate.policy.forms import Form
from mitmgate.policy.sections import (
    breaker,
    cache,
    cache_store,
    head,
    hedge,
    identify,
    observe,
    providers,
    retry,
    route,
    targets,
    timeout,
    trace,
    upstream,
)


@dataclass(frozen=True, slots=True)
class Later:
    """A section that the contract knows and this version cannot act on."""

    without: str
    """What would not happen: completes "remove the section (…)"."""


FLOW: dict[str, Form[Any] | Later] = {
    "version": head.version,
    "timezone": head.timezone,
    "usage": head.usage,
    "providers": providers.form,
    "observe": observe.form,
    "auth": Later("nobody would be asked for a key"),
    "identify": identify.form,
    "guard": Later("nothing would be blocked or redacted"),
    "limit": Later("nothing would enforce it"),
    "budget": Later("nothing would enforce it"),
    "cache": cache.form,
    "cache_store": cache_store.form,
    "shape": Later("no request would be changed"),
    "route": route.form,
    "retry": retry.form,
    "timeout": timeout.form,
    "breaker": breaker.form,
    "hedge": hedge.form,
    "targets": targets.form,
    "upstream": upstream.form,
    "latency": Later("no phase would be compared with it"),
    "trace": trace.form,
    "alert": Later("nobody would be told"),
    "export": Later("nothing would be exported"),
    "state": Later("nothing would be shared"),
}
