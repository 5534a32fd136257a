"""``latency``: how long a phase should take at most; reports and incidents name the one that is over it."""

from mitmgate.policy.forms import Form, Key, optional, positive, record, time
from mitmgate.policy.values import Latency

_phase = optional(positive(time))

form: Form[Latency] = record(
    Latency,
    {
        "policy": Key(_phase, "policy_s"),
        "retrieval": Key(_phase, "retrieval_s"),
        "first_token": Key(_phase, "first_token_s"),
    },
)
