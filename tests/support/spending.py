"""The rooms that count, wired together over a real ledger in memory, and calls to send through them."""

from dataclasses import dataclass, field
from pathlib import Path

from mitmgate import dialects
from mitmgate.account import Account
from mitmgate.budget import Budget
from mitmgate.clock import ManualClock
from mitmgate.dialects.base import Json, Reading, Usage
from mitmgate.door_paths import hosts_of
from mitmgate.exchange import Answer, Attempt, Event, Exchange
from mitmgate.limit import Limit
from mitmgate.limit_lengths import Lengths
from mitmgate.policy import loads
from mitmgate.providers import Hosts
from mitmgate.spend import Spend
from mitmgate.store.ledger import Ledger

PATHS = {
    "api.openai.com": "/v1/chat/completions",
    "api.anthropic.com": "/v1/messages",
    "generativelanguage.googleapis.com": "/v1beta/models/gemini-2.5-pro:generateContent",
}


def call(
    model: str = "gpt-4o", host: str = "api.openai.com", path: str = "", tenant: str | None = "acme", **body: Json
) -> Exchange:
    """Return a call as it stands before ``limit``; *body* are members of its request beside model and messages."""
    path = path or PATHS[host]
    provider = Hosts().find(host, 443)
    x = Exchange("POST", "https", host, 443, path, [], {}, 0.0, 1_700_000_000.0, tenant=tenant)
    x.provider, x.dialect = provider, dialects.find(provider, "POST", path)
    x.json = {"model": model, "messages": [{"role": "user", "content": "hello, who are you?"}]} | body
    x.request = x.dialect.read_request(path, x.json) if x.dialect else x.request
    x.operation = x.dialect.operation if x.dialect else None
    return x


@dataclass
class Till:
    """``limit``, ``budget`` and ``spend`` of one policy."""

    policy: str
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        policy = loads(self.policy, "policy.yaml", {})
        self.ledger = Ledger(Path("never-opened"), self.clock)
        self.lengths = Lengths()
        self.limit = Limit(policy, self.ledger)
        self.budget = Budget(policy, hosts_of(policy), self.ledger, self.limit, self.lengths)
        self.spend = Spend(policy, self.ledger, self.lengths)
        self.account = Account(self.clock)

    def admit(self, x: Exchange) -> Exchange:
        """Let *x* come to where its answer is asked for, or was refused."""
        x.started, x.started_wall = self.clock.now(), self.clock.wall()
        for room in (self.limit, self.budget):
            if not x.refusal and not x.replay:
                room.admit(x)
        return x

    def settle(self, x: Exchange) -> Exchange:
        if x.refusal:
            x.how, x.status = "refused", x.refusal.status
        self.account.settle(x)
        self.spend.settle(x)
        return x

    def answer(self, x: Exchange, input_tokens: int = 0, output_tokens: int = 0, model: str | None = None) -> Exchange:
        """Have *x* answered by a provider that reports these tokens, and settle it."""
        if x.refusal:
            raise AssertionError(f"it was refused: {x.refusal.message}")
        asked = x.downgrade.model if x.downgrade and x.downgrade.model else x.request.model
        attempt(x, Usage(input_tokens, output_tokens), model=model or asked)
        x.status, x.how = 200, "end"
        return self.settle(x)

    def spent(self, x: Exchange, input_tokens: int = 0, output_tokens: int = 0) -> Exchange:
        """Admit, answer and settle *x*."""
        return self.answer(self.admit(x), input_tokens, output_tokens)


def attempt(x: Exchange, usage: Usage | None = None, status: int = 200, model: str | None = None) -> Attempt:
    """Add an attempt to *x*, which answers with *usage*, None where it reported none."""
    slug = x.provider.slug if x.provider else ""
    name = x.provider.provider_name if x.provider else ""
    one = Attempt(len(x.attempts) + 1, slug, name, x.host, x.started, status=status, model=model)
    one.answer = Answer(Reading(ended=True, response_model=model))
    if usage:
        reading = one.answer.reading
        reading.usage, reading.usage_seen, reading.usage_final, reading.first_content = usage, True, True, True
    x.attempts.append(one)
    x.origin, x.answer = one.origin, one.answer
    return one


def events(x: Exchange) -> list[tuple[str, str, str, bool]]:
    """Return (room, rule, action, shadow) of what rules did."""
    return [(event.room, event.rule, event.action, event.shadow) for event in x.events]


def event(x: Exchange) -> Event:
    """Return the only one."""
    [only] = x.events
    return only
