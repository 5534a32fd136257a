"""Hand the finished exchange to the database; nothing here waits for a disk.

Runs last. The snapshot is taken on the event loop; prices, redaction and compression happen in the writer's thread.
"""

from mitmgate.exchange import Exchange
from mitmgate.policy import Policy
from mitmgate.store.writer import Writer
from mitmgate.trace_rows import snapshot


class Trace:
    name = "mitmgate.trace"

    def __init__(self, policy: Policy, writer: Writer) -> None:
        self.policy = policy
        self.writer = writer

    def settle(self, x: Exchange) -> None:
        if not x.keep_row:
            return
        record = snapshot(x, self.policy)
        self.writer.put(record, len(x.answer.kept) + len(x.body or b"") + len(x.sent_body or b"") + 1024)
