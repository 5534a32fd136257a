"""``cache_store``: where answers are kept, how many, and whether calls in flight share one."""

from mitmgate.policy.forms import Form, Key, boolean, one_of, positive, record, size
from mitmgate.policy.values import CacheStore

form: Form[CacheStore] = record(
    CacheStore,
    {
        "max": Key(positive(size), "max_bytes"),
        "key_header": Key(one_of("scope", "replace")),
        "coalesce": Key(boolean),
    },
)
