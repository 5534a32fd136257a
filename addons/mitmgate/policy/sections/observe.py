"""``observe``: other hosts of the same runs. They are intercepted, each call leaves a span, bodies are never kept."""

from mitmgate.policy.forms import Form, Key, listed, one_of, record
from mitmgate.policy.sections.hosts import host
from mitmgate.policy.values import Observe

form: Form[tuple[Observe, ...]] = listed(
    record(
        Observe,
        {
            "hosts": Key(listed(host), required=True),
            "kind": Key(one_of("retrieval", "tool", "mcp", "other"), required=True),
        },
    )
)
