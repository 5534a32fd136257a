"""``retry``: one mapping, or a list of them with a ``match`` each; the first that matches acts.

The value always ends with a rule that matches everything: one attempt, where the file has none.
"""

from mitmgate.policy.forms import Form, Key, one_of, percent, positive, time, whole
from mitmgate.policy.sections.places import MOST_ATTEMPTS
from mitmgate.policy.sections.rules import causes, first_matches, matches_all, rule, unique_names
from mitmgate.policy.values import Retry

_rule = rule(
    Retry,
    {
        "attempts": Key(whole(1, MOST_ATTEMPTS)),
        "delay": Key(time, "delay_s"),
        "backoff": Key(one_of("constant", "linear", "exponential")),
        "max_delay": Key(positive(time), "max_delay_s"),
        "jitter": Key(one_of("full", "none")),
        "retry_on": Key(causes),
        "within": Key(positive(time), "within_s"),
        "ratio": Key(percent),
    },
    Retry().name,
)

form: Form[tuple[Retry, ...]] = unique_names(first_matches(_rule, matches_all, Retry()))
