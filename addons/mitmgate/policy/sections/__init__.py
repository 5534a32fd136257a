"""The sections of a policy, in the order a request meets their rooms.

A room that is built adds its form to its row here, and its value to ``Policy`` under the same name.
"""

from typing import Any

from mitmgate.policy.forms import Form
from mitmgate.policy.sections import (
    alert,
    auth,
    breaker,
    budget,
    cache,
    cache_store,
    export,
    guard,
    head,
    hedge,
    identify,
    latency,
    limit,
    observe,
    providers,
    retry,
    route,
    shape,
    state,
    targets,
    timeout,
    trace,
    upstream,
)

FLOW: dict[str, Form[Any]] = {
    "version": head.version,
    "timezone": head.timezone,
    "usage": head.usage,
    "providers": providers.form,
    "observe": observe.form,
    "auth": auth.form,
    "identify": identify.form,
    "guard": guard.form,
    "limit": limit.form,
    "budget": budget.form,
    "cache": cache.form,
    "cache_store": cache_store.form,
    "shape": shape.form,
    "route": route.form,
    "retry": retry.form,
    "timeout": timeout.form,
    "breaker": breaker.form,
    "hedge": hedge.form,
    "targets": targets.form,
    "upstream": upstream.form,
    "latency": latency.form,
    "trace": trace.form,
    "alert": alert.form,
    "export": export.form,
    "state": state.form,
}
