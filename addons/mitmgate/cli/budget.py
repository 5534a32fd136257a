"""``mitmgate budget``: who stands where with each limit and budget, and how to give somebody more.

Works beside running gateways, and without one: the ledger says what was counted, the policy how much may be. Secrets
that the policy names need not be set here; nothing is sent anywhere.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mitmgate.charges import Charge, Standing, Unit, counter_name
from mitmgate.cli import render
from mitmgate.cli.cache import span
from mitmgate.cli.common import db_option, db_path, home_option
from mitmgate.cli.policy_file import policy_of, policy_option
from mitmgate.clock import Clock, SystemClock, iso
from mitmgate.counting import US, Calendars, Moment
from mitmgate.policy import Policy, units
from mitmgate.policy.forms import closest, listing
from mitmgate.policy.values import Budget, Limit, Span
from mitmgate.store import ledger_file
from mitmgate.store.ledger_books import Counter
from mitmgate.store.ledger_transaction import FileBooks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

type State = Literal["ok", "soft", "downgrade", "full"]

STYLES: Mapping[State, str] = {"ok": "green", "soft": "yellow", "downgrade": "magenta", "full": "red"}

BAR_COLUMNS = 20

MOST_GRANTED = 10**18
"""A billion dollars in nano-dollars."""

GRANT_PATIENCE_S = 10.0
"""A person waits longer for a lock than a request may."""


# -- what the policy says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit or a budget, as far as counting goes."""

    room: Literal["limit", "budget"]
    name: str
    unit: Unit
    most: int
    every: Span | None
    per: tuple[str, ...]
    soft: float | None = None
    """Shares of *most*, of what is settled."""
    downgrade: float | None = None

    def counter(self, values: Mapping[str, str]) -> str:
        """Return the name of the counter for *values* of ``per``."""
        return counter_name(self.room, self.name, self.unit, self.every, [(one, values[one]) for one in self.per])

    def charge(self, counter: str) -> Charge:
        return Charge(self.room, self.name, counter, self.unit, self.most, self.every, amount=1)

    def amount(self, count: int) -> str:
        """Return a count in the rule's unit: ``0.8`` of money, ``1,204`` of the rest."""
        return render.usd(count) if self.unit == "cost" else render.count(count)

    @property
    def limit(self) -> str:
        """``20 USD every day``, ``60 requests every 1 m``, ``8 at once``."""
        if self.every is None:
            return f"{self.most:,} at once"
        amount = units.show_money(self.most) if self.unit == "cost" else f"{self.most:,} {self.unit}"
        return f"{amount} every {units.show_span(self.every)}"


def rules(policy: Policy) -> list[Rule]:
    """Return what counts, limits first, each in the order of the file."""
    return [_of_limit(limit) for limit in policy.limit] + [_of_budget(budget) for budget in policy.budget]


def _of_limit(limit: Limit) -> Rule:
    counts: dict[Unit, int | None] = {
        "requests": limit.requests,
        "tokens": limit.tokens,
        "concurrent": limit.concurrent,
    }
    unit, most = next((unit, most) for unit, most in counts.items() if most is not None)
    return Rule("limit", limit.name, unit, most, None if unit == "concurrent" else limit.every, limit.per)


def _of_budget(budget: Budget) -> Rule:
    downgrade = budget.downgrade.at if budget.downgrade else None
    every, most = budget.every, budget.cost_nanousd
    return Rule("budget", budget.name, "cost", most, every, budget.per, budget.soft, downgrade)


# -- what was counted -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One counter, or a rule that has none yet."""

    rule: Rule
    values: Mapping[str, str]
    standing: Standing
    resets_at: float | None
    """Seconds since 1970; None where nothing will."""

    @property
    def most(self) -> int:
        return self.standing.charge.most + self.standing.granted

    @property
    def share(self) -> float:
        """Of what may be, used and reserved."""
        return (self.standing.used + self.standing.reserved) / self.most if self.most else 1.0

    @property
    def state(self) -> State:
        used = self.standing.used / self.most if self.most else 1.0
        if self.standing.left <= 0:
            return "full"
        if self.rule.downgrade is not None and used >= self.rule.downgrade:
            return "downgrade"
        return "soft" if self.rule.soft is not None and used >= self.rule.soft else "ok"

    @property
    def whose(self) -> str:
        """``acme``, or ``tenant=acme model=gpt-5`` where several fields count."""
        if len(self.values) == 1:
            return next(iter(self.values.values())) or "(none)"
        return " ".join(f"{field}={value or '(none)'}" for field, value in self.values.items())


def row_of(rule: Rule, counter: Counter, now: Moment) -> Row:
    values = json.loads(counter.name)[4]
    shown = {field: value if isinstance(value, str) else f"{value[0]}…" for field, value in values.items()}
    standing = counter.standing(rule.charge(counter.name), now)
    return Row(rule, shown, standing, round(now.wall / US + standing.reset_s, 3) if standing.reset_s else None)


def read(path: Path, found: Sequence[Rule], timezone: str, clock: Clock) -> list[Row]:
    """Return how the counters of the rules stand: in the order of the rules, whoever has least left first."""
    by_kind = {kind_of(rule.counter(dict.fromkeys(rule.per, ""))): rule for rule in found}
    rows: dict[Rule, list[Row]] = {rule: [] for rule in found}
    with ledger_file.looking(path) as conn:
        now = ledger_file.moment_of(conn, clock, Calendars(timezone), ledger_file.boot_id())
        for counter in ledger_file.counters(conn, now):
            rule = by_kind.get(kind_of(counter.name))
            if rule and (counter.window.used or counter.window.reserved or counter.granted):
                rows[rule].append(row_of(rule, counter, now))
    return [row for rule in found for row in sorted(rows[rule], key=lambda row: (-row.share, row.whose))]


def kind_of(name: str) -> tuple[str, ...]:
    """Return what a counter's name says besides whose it is."""
    return tuple(json.loads(name)[:4])


# -- how it looks -----------------------------------------------------------------------------------------------------


def as_object(row: Row) -> dict[str, Any]:
    """Return a row for machines; money in nano-dollars."""
    rule, standing = row.rule, row.standing
    return {
        "room": rule.room,
        "rule": rule.name,
        "for": dict(row.values),
        "unit": "nanousd" if rule.unit == "cost" else rule.unit,
        "every": None if rule.every is None else units.show_span(rule.every),
        "used": standing.used,
        "reserved": standing.reserved,
        "most": row.most,
        "granted": standing.granted,
        "left": standing.left,
        "share": round(row.share, 6),
        "state": row.state,
        "resets_at": iso(row.resets_at) if row.resets_at else None,
    }


def print_rows(out: "Console", found: Sequence[Rule], rows: Sequence[Row], most: int) -> None:
    """Print a table under each rule, *most* rows in all."""
    left = most or len(rows)
    for rule in found:
        mine = [row for row in rows if row.rule is rule]
        out.print()
        out.print(_heading(rule), soft_wrap=True)
        if not mine:
            out.out("  nothing is counted yet", style="dim", highlight=False)
        elif left:
            out.print(_table(mine[:left], render.is_ascii(out)))
        left = max(0, left - len(mine))
    if most and len(rows) > most:
        out.out(f"\n{len(rows) - most:,} more; --rows 0 prints all", style="dim", highlight=False)


def _heading(rule: Rule) -> "Text":
    from rich.text import Text

    per = f" per {listing(rule.per, 'and')}" if rule.per else ""
    return Text.assemble((render.inert(rule.name), "bold"), f"  {rule.room}: {rule.limit}{render.inert(per)}")


def _table(rows: Sequence[Row], ascii_only: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    rule = rows[0].rule
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  for" if rule.per else " ", overflow="fold")
    table.add_column(" ", width=BAR_COLUMNS)
    for name in ("share", "used", "reserved", "of", "granted", "resets in"):
        table.add_column(name, justify="right")
    for row in rows:
        standing = row.standing
        table.add_row(
            Text(f"  {render.inert(row.whose)}"),
            _bar(row, ascii_only),
            Text(f"{row.share:.0%}", STYLES[row.state]),
            rule.amount(standing.used),
            rule.amount(standing.reserved),
            rule.amount(row.most),
            rule.amount(standing.granted) if standing.granted else render.NULL,
            span(standing.reset_s) if standing.reset_s else render.NULL,
        )
    return table


def _bar(row: Row, ascii_only: bool) -> "Text":
    """Return what is used in the colour of the state, and behind it, dim, what is reserved."""
    from rich.text import Text

    whole = row.most or 1
    used = render.bar(row.standing.used / whole, BAR_COLUMNS, ascii_only=ascii_only)
    both = render.bar(row.share, BAR_COLUMNS, ascii_only=ascii_only)
    return Text.assemble((used, STYLES[row.state]), (both[len(used) :], "dim"))


# -- the commands -----------------------------------------------------------------------------------------------------


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  mitmgate budget                                    who stands where
  mitmgate budget --policy team.yaml --rows 0
  mitmgate budget --json | jq '.counters[] | select(.state != "ok")'
  mitmgate budget grant tenant-day 5 USD --for tenant=acme""",
)
@policy_option
@click.option("--rows", default=40, show_default=True, type=click.IntRange(0), help="Counters to print; 0 = all.")
@click.option("--json", "as_json", is_flag=True, help="All of them, as one JSON object; money in nano-dollars.")
@home_option
@db_option
@click.pass_context
def budget(ctx: click.Context, policy_path: str | None, rows: int, as_json: bool, home: Path, db: Path | None) -> None:
    """Who stands where with each limit and budget.

    Green has room, yellow is over `soft`, magenta over `downgrade`, red is full. What calls under way have reserved is
    the dim end of the bar.
    """
    if ctx.invoked_subcommand:
        return
    clock = SystemClock()
    policy = policy_of(home, policy_path)
    found = rules(policy)
    path = ledger_file.beside(db_path(home, db))
    with render.said():
        counted = read(path, found, policy.timezone, clock) if path.exists() else []
    if as_json:
        said = {"at": iso(clock.wall()), "policy": policy.path, "counters": list(map(as_object, counted))}
        click.echo(render.as_json(said))
        return
    out = render.console()
    name = render.inert(policy.path or "the built-in policy")
    if not found:
        hint = "add one, and a running gateway takes it at once" if policy.path else "name another with --policy FILE"
        out.print(f"{name} has no limit and no budget: {hint}", soft_wrap=True)
    elif not path.exists():
        out.print(f"Nothing is counted at {path} yet; this is what {name} allows:", soft_wrap=True)
    print_rows(out, found, counted, rows)


@budget.command(
    epilog="""\b
Examples:
  mitmgate budget grant tenant-day 5 USD --for tenant=acme
  mitmgate budget grant daily-tokens 500_000 --for tenant=acme
  mitmgate budget grant parallel-day 100 --for tenant=acme --for model=gpt-5"""
)
@click.argument("rule")
@click.argument("amount", nargs=-1, required=True)
@click.option("--for", "whose", multiple=True, metavar="FIELD=VALUE", help="Whose counter, for each field of `per`.")
@click.option("--json", "as_json", is_flag=True, help="How the counter stands then, as one JSON object.")
@policy_option
@home_option
@db_option
def grant(
    rule: str,
    amount: tuple[str, ...],
    whose: tuple[str, ...],
    as_json: bool,
    policy_path: str | None,
    home: Path,
    db: Path | None,
) -> None:
    """Add AMOUNT to what RULE allows in this window.

    Every running gateway heeds it at once. Of a day, week or month it holds until the next one begins; of a window that
    slides, for that long from now on. AMOUNT is money (`5 USD`) for a budget, a number of requests or tokens for a
    limit.
    """
    clock = SystemClock()
    policy = policy_of(home, policy_path)
    found = rule_of(rules(policy), rule, " ".join(amount))
    more = amount_of(found, " ".join(amount))
    values = values_of(found, whose)
    path = ledger_file.beside(db_path(home, db))
    with render.said(), ledger_file.looking(path, "rw") as conn:
        row, was_new = give(conn, found, values, more, policy.timezone, clock)
    ends = end_of(row, clock.wall())
    if as_json:
        click.echo(render.as_json(as_object(row)))
        return
    granted = units.show_money(more) if found.unit == "cost" else f"{more:,} {found.unit}"
    used = f"{found.amount(row.standing.used)} of {found.amount(row.most)} are used"
    to = f" of {render.inert(row.whose)}" if values else ""
    click.echo(f"{render.inert(found.name)}{to}: {granted} more until {ends}; {used}")
    if was_new:
        click.echo("nothing was counted there before: is that who you mean?", err=True)


def end_of(row: Row, wall: float) -> str:
    """Return when a grant of now will end, to the minute."""
    ends = wall + row.rule.every if isinstance(row.rule.every, float | int) else row.resets_at or wall
    return f"{iso(ends)[:16].replace('T', ' ')} UTC"


def rule_of(found: Sequence[Rule], name: str, amount: str) -> Rule:
    """Return the rule of that *name*; where a limit and a budget share it, the one that *amount* suits."""
    named = [rule for rule in found if rule.name == name]
    if not named:
        meant = closest(name, [rule.name for rule in found])
        hint = (
            f"; did you mean {meant!r}?" if meant else f"; there are {listing(_names(found), 'and')}" if found else ""
        )
        raise click.UsageError(f"the policy has no limit or budget {name!r}{hint}")
    is_money = "USD" in amount.upper()
    return next((rule for rule in named if (rule.unit == "cost") is is_money), named[0])


def _names(found: Sequence[Rule]) -> list[str]:
    return [repr(rule.name) for rule in found]


def amount_of(rule: Rule, text: str) -> int:
    """Return *text* in the rule's unit; money in nano-dollars."""
    if rule.every is None:
        raise click.UsageError(
            f"{rule.name} counts calls at once, of which no window ends: edit its `concurrent`, it is taken at once"
        )
    try:
        more = units.money(text) if rule.unit == "cost" else int(text.removesuffix(rule.unit).replace(",", "_"))
    except ValueError as e:
        if rule.unit == "cost":
            raise click.UsageError(str(e)) from e
        raise click.UsageError(f"{text!r} is no number of {rule.unit}; write it like 50_000") from e
    if not 0 < more <= MOST_GRANTED:
        raise click.UsageError(f"{text!r} is nothing that could be granted")
    return more


def values_of(rule: Rule, given: Sequence[str]) -> dict[str, str]:
    """Return the value of each field of ``per``."""
    values: dict[str, str] = {}
    for one in given:
        field, equals, value = one.partition("=")
        if not equals:
            raise click.UsageError(f"--for {one}: write FIELD=VALUE")
        if field not in rule.per:
            counts = f"counts per {listing(rule.per, 'and')}" if rule.per else "is one counter for all"
            raise click.UsageError(f"--for {one}: {rule.name} {counts}")
        values[field] = value
    missing = [field for field in rule.per if field not in values]
    if missing:
        wanted = " ".join(f"--for {field}=VALUE" for field in missing)
        raise click.UsageError(f"{rule.name} counts per {listing(rule.per, 'and')}: say whose, with {wanted}")
    return values


def give(
    conn: sqlite3.Connection, rule: Rule, values: Mapping[str, str], more: int, timezone: str, clock: Clock
) -> tuple[Row, bool]:
    """Grant *more*; return how the counter stands then, and whether there was none before."""
    ledger_file.begin(conn, GRANT_PATIENCE_S)
    with ledger_file.ending(conn):
        now = ledger_file.moment_of(conn, clock, Calendars(timezone), ledger_file.boot_id())
        books = FileBooks(conn, "", now)
        counter = books.counter(rule.counter(values), rule.every)
        was_new = counter.saved is None
        books.grant(counter, more)
        books.write()
    return row_of(rule, counter, now), was_new
