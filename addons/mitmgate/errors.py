"""What can go wrong, as values: a refusal for a client, a sentence for whoever starts the gateway.

A ``Refusal`` knows no wire format; the client's dialect writes it as the SDK at the other end expects it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

type Kind = Literal[
    "bad_request",
    "too_large",
    "authentication",
    "permission",
    "not_found",
    "rate_limit",
    "insufficient_quota",
    "overloaded",
    "timeout",
    "connection",
    "internal",
]
"""Why, in words that every dialect has its own name for."""

type Source = Literal["provider", "cache", "rate-limit", "budget", "guard", "gateway"]
"""Who wrote an answer: the values of ``cf-aig-source``."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the gateway's own instead of the provider's."""

    status: int
    kind: Kind
    message: str
    """What happened, by which rule, and what to do: one or two sentences for a developer."""
    source: Source = "gateway"
    error_type: str | None = None
    """The row's ``error_type``; None means the status as text."""
    param: str | None = None
    """The request header or field at fault."""
    rule: str | None = None
    where: str | None = None
    """``policy.yaml:12`` of the rule."""
    retry_after_s: float | None = None
    should_retry: bool | None = None
    """``x-should-retry``; None leaves the decision to the client."""


class StartError(Exception):
    """The gateway cannot start; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a policy file."""

    path: str
    """As given on the command line."""
    line: int
    """0 where the fault is in no line: the file itself cannot be had."""
    key: str
    """Dotted: ``targets.azure-eu.base_url``; empty for the file itself."""
    text: str

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        key = f" {self.key}:" if self.key else ""
        return f"{self.path}{line}:{key} {self.text}"


class PolicyError(Exception):
    """The policy cannot be used; carries every fault found, in file order."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)
