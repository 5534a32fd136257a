"""``breaker``: one mapping, or a list of them with a ``match`` each; the first that matches acts.

Empty, as it is by default, nothing ever rests.
"""

from mitmgate.policy.forms import Form, Key, percent, positive, time, whole
from mitmgate.policy.sections.rules import first_matches, matches_all, rule, unique_names
from mitmgate.policy.values import Breaker

_rule = rule(
    Breaker,
    {
        "window": Key(positive(time), "window_s"),
        "min_requests": Key(whole(1, 1_000_000)),
        "failures": Key(positive(percent)),
        "rest": Key(positive(time), "rest_s"),
    },
    Breaker().name,
)

form: Form[tuple[Breaker, ...]] = unique_names(first_matches(_rule, matches_all, None))
