"""What an alert tells: a ``Notice``, in a few lines for people and as fields for programs.

Tenants, models and tags come out of requests, so whoever sends one could try to speak to the people who read an alert:
such text is made inert and stands between backquotes, where chat programs take nothing for a mention.
"""

import shlex
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from mitmgate.alert_watch import Sighting, step_of
from mitmgate.clock import iso
from mitmgate.inert import inert
from mitmgate.policy import units
from mitmgate.policy.values import Alert, Budget, When
from mitmgate.store.watch import COLUMNS, Values

type State = Literal["breach", "clear"]

VALUE_CHARS = 100
"""Of a text that a client chose."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One message. Plain values only: it is kept as JSON until it has been told."""

    alert: str
    """Name of the rule."""
    state: Literal["breach", "clear", "test"]
    watch: str
    says: str
    """What happened, in a sentence."""
    at: float
    """Seconds since 1970, as all times here."""
    since: float
    """When the breach began."""
    per: Mapping[str, str]
    """Whom it is about; empty = everybody."""
    value: float | None = None
    limit: float | None = None
    unit: Literal["share", "ms", "nanousd"] | None = None
    evidence: tuple[str, ...] = ()
    """Ids of rows."""
    where: str | None = None
    """``policy.yaml:31`` of the rule."""
    report: str | None = None
    """The command that shows more."""
    host: str = ""
    """The machine that the gateway runs on."""

    @property
    def lasted_s(self) -> float | None:
        return self.at - self.since if self.state == "clear" else None

    @property
    def title(self) -> str:
        after = "" if self.lasted_s is None else f" after {span(self.lasted_s)}"
        return f"[{self.state}] {inert(self.alert)}{after}"


def text(notice: Notice) -> str:
    """Return the lines that people read."""
    lines = [f"{notice.title}: {notice.says}", *_facts(notice)]
    if notice.evidence:
        lines.append("calls: " + ", ".join(f"`mitmgate show {id_}`" for id_ in notice.evidence))
    if notice.report:
        lines.append(f"more: `{notice.report}`")
    return "\n".join(lines)


def _facts(notice: Notice) -> Iterable[str]:
    about = [_quoted(name, value) for name, value in notice.per.items()]
    since = f"since {datetime.fromtimestamp(notice.since, UTC):%Y-%m-%d %H:%M:%S} UTC"
    rule = f"rule {inert(notice.alert)}" + (f", {inert(notice.where)}" if notice.where else "")
    yield " · ".join([*about, since, rule, *([f"on {inert(notice.host)}"] if notice.host else [])])


def _quoted(name: str, value: str) -> str:
    return f"{name} `{harmless(value)}`" if value else f"no {name}"


def harmless(value: str) -> str:
    """Return *value* as what it says, and nothing that it does."""
    cut = value if len(value) <= VALUE_CHARS else value[: VALUE_CHARS - 1] + "…"
    return inert(cut).replace("`", "'")


def as_fields(notice: Notice) -> dict[str, Any]:
    """Return what programs read; times are ISO 8601."""
    return {
        **asdict(notice),
        "at": iso(notice.at),
        "since": iso(notice.since),
        "lasted_s": notice.lasted_s,
        "evidence": list(notice.evidence),
    }


# -- how a rule's notices come about ----------------------------------------------------------------------------------


def notice(
    rule: Alert,
    state: State,
    seen: Sighting,
    *,
    names: Iterable[str],
    at: float,
    since: float,
    evidence: Iterable[str] = (),
    where: str | None = None,
    budget: Budget | None = None,
) -> Notice:
    """Return what there is to tell of *rule*, whose figure is *seen*; *names* are those of its values."""
    per = dict(zip(names, seen.values, strict=False))
    kind = KINDS[rule.when.watch]
    return Notice(
        alert=rule.name,
        state=state,
        watch=rule.when.watch,
        says=kind.says(Told(rule.when, state, seen, budget)),
        at=at,
        since=since,
        per=per,
        value=seen.figure,
        limit=kind.limit(rule.when, budget),
        unit=kind.unit,
        evidence=tuple(evidence),
        where=where,
        report=report(rule.when, per, since - rule.when.over_s),
        host=socket.gethostname(),
    )


def trial(rule: Alert, at: float, where: str | None) -> Notice:
    """Return a message that only tries whether it arrives."""
    says = f"this is only a test; the rule watches {condition(rule.when)}"
    return Notice(rule.name, "test", rule.when.watch, says, at, at, {}, where=where, host=socket.gethostname())


@dataclass(frozen=True, slots=True)
class Told:
    """What a sentence is made of."""

    when: When
    state: State
    seen: Sighting
    budget: Budget | None

    @property
    def over(self) -> str:
        return units.show_time(self.when.over_s)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one thing that is watched is told."""

    says: Callable[[Told], str]
    rule: Callable[[When], str]
    """What a rule waits for."""
    limit: Callable[[When, Budget | None], float | None]
    unit: Literal["share", "ms", "nanousd"] | None
    by: str
    """What its report is grouped by."""


def _share(what: str, did: str) -> Callable[[Told], str]:
    def says(told: Told) -> str:
        seen = told.seen
        if seen.figure is None:
            return _too_few(told, what)
        limit = units.show_percent(told.when.above)
        counts = f"{seen.part} of {seen.whole}"
        return f"{percent(seen.figure)} of {what} {did} in the last {told.over} (limit {limit}): {counts}"

    return says


def _too_few(told: Told, what: str) -> str:
    return f"too few {what} to tell: {told.seen.whole} in the last {told.over}"


def _p95(told: Told) -> str:
    seen = told.seen
    if seen.figure is None or seen.whole < told.when.min_requests:
        return _too_few(told, "calls")
    limit = f"{told.when.above:,.0f} ms"
    return (
        f"the 95th percentile of the last {told.over} is {seen.figure:,.0f} ms (limit {limit}):"
        f" {seen.part} of {seen.whole} calls took longer"
    )


def _spend(told: Told) -> str:
    limit = usd(told.when.above)
    return f"{usd(told.seen.part)} were spent in the last {told.over} (limit {limit})"


def _budget(told: Told) -> str:
    seen, name = told.seen, inert(told.when.subject or "")
    used = f"{usd(seen.part)} of {usd(seen.whole)} are used ({percent(seen.figure or 0.0)})"
    if told.state == "clear":
        return f"budget {name} has room again: {used}"
    if told.when.at == "hard":
        state = "is used up" if (seen.figure or 0.0) >= 1 else "has no room for what was asked"
        return f"budget {name} {state}: {used}"
    step = _step(told.when, told.budget)
    return f"budget {name} is beyond its {told.when.at} step of {percent(step or 0.0)}: {used}"


def _breaker(told: Told) -> str:
    place = harmless(told.seen.values[0])
    return f"`{place}` keeps failing and rests" if told.state == "breach" else f"`{place}` answers again"


def _step(when: When, budget: Budget | None) -> float | None:
    return step_of(when, budget) if budget else None


def _above(when: When, _budget: Budget | None) -> float:
    return when.above


def _waits_for(what: str, show: Callable[[float], str]) -> Callable[[When], str]:
    def says(when: When) -> str:
        per = f" per {', '.join(when.per)}" if when.per else ""
        return f"{what} > {show(when.above)} over {units.show_time(when.over_s)}{per}"

    return says


KINDS: Mapping[str, Kind] = {
    "error_rate": Kind(
        _share("calls", "failed"),
        _waits_for("error_rate", units.show_percent),
        _above,
        "share",
        "provider,status,error",
    ),
    "interrupted": Kind(
        _share("streams", "were interrupted"),
        _waits_for("interrupted", units.show_percent),
        _above,
        "share",
        "provider,model,terminal",
    ),
    "p95_ms": Kind(_p95, _waits_for("p95", lambda ms: units.show_time(ms / 1000)), _above, "ms", "provider,model"),
    "spend": Kind(_spend, _waits_for("spend", lambda n: units.show_money(round(n))), _above, "nanousd", "tenant,model"),
    "budget": Kind(_budget, lambda when: f"budget {when.subject} at {when.at}", _step, "share", "tenant,model"),
    "breaker": Kind(
        _breaker, lambda when: f"breaker {when.subject or 'open'}", lambda _when, _budget: None, None, "target,error"
    ),
}


def condition(when: When) -> str:
    """Return what a rule waits for, as in the file."""
    return KINDS[when.watch].rule(when)


# -- the command that shows more --------------------------------------------------------------------------------------

OPTIONS = ("tenant", "model", "route", "provider")
"""Fields that ``mitmgate report`` has an option for."""


def report(when: When, per: Mapping[str, str], since: float) -> str:
    """Return the command that shows the calls of *per* since *since*."""
    words = ["mitmgate", "report", "--since", f"{datetime.fromtimestamp(since, UTC):%Y-%m-%dT%H:%M:%SZ}"]
    words += ["--by", KINDS[when.watch].by]
    conditions = []
    for name, value in per.items():
        if name in OPTIONS and value:
            words += [f"--{name}", value]
        elif column := _column(name):
            conditions.append(f"{column} = {_literal(value)}" if value else f"{column} IS NULL")
    if conditions:
        words += ["--where", " AND ".join(conditions)]
    return inert(shlex.join(words))


def _column(field: str) -> str | None:
    """Return *field* as SQL over the rows; None where they do not have it."""
    if field.startswith("metadata."):
        name = field.removeprefix("metadata.")
        return f"trim(metadata -> {_literal(f'$."{name}"')}, '\"')"  # as JSON, or true would be 1
    return REPORTED.get(field) or COLUMNS.get(field)


REPORTED: Mapping[str, str] = {
    "provider": "provider_name",
    "stream": "iif(stream, 'true', 'false')",
    "target": "coalesce(target, host)",
}
"""Fields that a person asks for in other words than rules do."""


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# -- numbers ----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Return ``12.5 %``; three digits that mean something."""
    return f"{share * 100:.3g} %"


def usd(nanousd: float) -> str:
    """Return ``12.5 USD``: cents from a dollar on, below that what there is."""
    dollars = Decimal(round(nanousd)).scaleb(-9)
    return f"{dollars:,.2f} USD" if abs(dollars) >= 1 or not dollars else f"{dollars.normalize():f} USD"


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: ``45 s``, ``12 m``, ``1 h 5 m``, ``2 d 3 h``."""
    parts = []
    left = round(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        n, left = divmod(left, size)
        if n:
            parts.append(f"{n} {unit}")
    return " ".join(parts[:2]) or "0 s"


def subject(names: Iterable[str], values: Values) -> str:
    """Return whom a state is about, for a log line or a list: ``provider openai, tenant -``."""
    return ", ".join(f"{name} {inert(value) or '-'}" for name, value in zip(names, values, strict=False))
