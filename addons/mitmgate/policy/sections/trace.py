"""``trace``: which bodies are kept with the rows, for how long, and whether a request may ask for less."""

from mitmgate.policy.forms import Form, Key, one_of, positive, record, size, time
from mitmgate.policy.values import Trace

form: Form[Trace] = record(
    Trace,
    {
        "payloads": Key(one_of("full", "redacted", "none")),
        "keep": Key(positive(time), "keep_s"),
        "max": Key(positive(size), "max_bytes"),
        "keep_rows": Key(positive(time), "keep_rows_s"),
        "header": Key(one_of("obey", "ignore")),
    },
)
