"""``timeout``: one mapping, or a list of them with a ``match`` each; the first that matches acts.

The value always ends with a rule that matches everything (the defaults, where the file has none), so that every request
finds one.
"""

from mitmgate.policy import match
from mitmgate.policy.forms import Form, Key, or_none, positive, record, time
from mitmgate.policy.sections.rules import first_matches, matches_all
from mitmgate.policy.values import Timeout

_phase = or_none(positive(time))

_rule = record(
    Timeout,
    {
        "match": Key(match.form()),
        "unless": Key(match.form()),
        "connect": Key(_phase, "connect_s"),
        "first_byte": Key(_phase, "first_byte_s"),
        "idle": Key(_phase, "idle_s"),
        "total": Key(_phase, "total_s"),
    },
)

form: Form[tuple[Timeout, ...]] = first_matches(_rule, matches_all, Timeout())
