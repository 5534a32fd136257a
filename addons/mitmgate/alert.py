"""Tell somebody when a rule's figure is too much, once, and once more when it is over.

Nothing of this is on a request's way. One thread looks at the trace database every few seconds (``alert_look``), and
what there is to tell goes to ``notify``. Of several workers one watches, whoever holds ``alerts.lock``; the kernel
lets go of it when its holder ends, however that is, and another takes over.

Promises: a breach is told once, whatever the figure does above its limit; it is over when the figure has been below for
one full look. ``alerts.db`` remembers both, so a restart neither repeats nor forgets: what was not delivered before the
end is delivered after the start. A rule with ``shadow: true`` is watched and logged, and tells nobody.

Each breach and each end is an event (room ``alert``, action ``flag``) that belongs to no exchange.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mitmgate import alert_message, notify_send
from mitmgate.alert_look import TROUBLE, Watcher
from mitmgate.alert_message import Notice
from mitmgate.alert_watch import watch_of
from mitmgate.clock import Clock, iso
from mitmgate.inert import inert
from mitmgate.metrics import Metrics
from mitmgate.notify import Notifier
from mitmgate.policy import Policy
from mitmgate.policy.values import Alert, Budget
from mitmgate.store import alert_file, ledger_file
from mitmgate.store.alert_file import AlertFile, State, Watched
from mitmgate.store.budget_uses import BudgetUse, budget_uses
from mitmgate.store.watch import Values
from mitmgate.store.writer import Rows, Writer

log = logging.getLogger("mitmgate.alert")

EVERY_S = 5.0
"""Between two looks."""

LOCK = "alerts.lock"


# -- whose turn it is -------------------------------------------------------------------------------------------------


class Turn:
    """The lock that one of several workers holds, for as long as it lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Return whether it is ours, now or already."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


# -- the room ---------------------------------------------------------------------------------------------------------


class Alerts:
    """The thread that looks, for one gateway process. It runs where a policy has an alert rule."""

    name = "mitmgate.alert"

    def __init__(
        self,
        policy: Policy,
        database: Path,
        clock: Clock,
        writer: Writer,
        metrics: Metrics,
        *,
        notifier: Notifier | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        """Raises ``StartError`` where a rule tells somebody who cannot be told."""
        notify_send.check(policy)
        self.policy = policy
        """What is to be watched; taken up by the next look."""
        self.database, self.clock, self.writer = database, clock, writer
        self.notifier = notifier or Notifier(policy.upstream)
        self.every_s = every_s
        self._file = AlertFile(database.with_name(alert_file.NAME))
        self._turn = Turn(database.with_name(LOCK))
        self._watcher: Watcher | None = None
        self._looking = threading.RLock()
        """Guards the watcher and its states: the threads that deliver note there what has been told."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_started = False
        self._outage: str | None = None
        """Why nothing can be seen just now; said once."""
        metrics.series["mitmgate_alerts_sent_total"] = partial(self.notifier.series, "sent")
        metrics.series["mitmgate_alerts_dropped_total"] = partial(self.notifier.series, "dropped")

    def start(self) -> None:
        self._is_started = True
        self._begin()

    def take(self, policy: Policy) -> None:
        """Go by *policy* from the next look on; what is breached stays so. Raises ``StartError``, as at the start."""
        notify_send.check(policy)
        self.policy = policy
        self.notifier.upstream = policy.upstream
        self._begin()

    def close(self, timeout_s: float) -> None:
        """End the thread, and give what is to be delivered so long to arrive; the next start tells the rest."""
        end = time.monotonic() + timeout_s
        self._closing.set()
        if self._thread:
            self._thread.join(timeout_s)
        self.notifier.close(max(0.0, end - time.monotonic()))
        if self._looking.acquire(timeout=max(0.0, end - time.monotonic())):
            self._let_go()  # else a look takes too long: it ends with the process, and so does its turn
            self._looking.release()

    def _let_go(self) -> None:
        """Watch no longer; another worker may."""
        if self._watcher:
            self._watcher.close()
            self._watcher = None
        self._turn.let_go()

    def _begin(self) -> None:
        if self._is_started and self.policy.alert and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mitmgate-alert", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self.every_s):
            try:
                self.look()
            except Exception as e:
                if repr(e) != self._outage:
                    self._outage = repr(e)
                    log.exception("alert: a look failed; the next one comes (said once)")

    # -- one look

    def look(self) -> list[State]:
        """Look once, tell what there is to tell, and return it; nothing where another worker does."""
        with self._looking:
            policy = self.policy
            try:
                if not policy.alert:
                    self._end()
                    return []
                if not self._turn.take():
                    return []
                watcher = self._watcher_of(policy)
                changed = watcher.look(self.clock.wall())
            except TROUBLE as e:
                self._failed(e)
                return []
            self._outage = None
            self._file.save(changed)
            for state in changed:
                self._tell(watcher, state)
            return changed

    def _watcher_of(self, policy: Policy) -> Watcher:
        """Return the watcher for *policy*: a new one knows what the old one did, the first what the file has."""
        old = self._watcher
        if old and old.policy is policy:
            return old
        states = old.states.values() if old else self._file.load(self.clock.wall())
        if old:
            old.close()
        names = {rule.name for rule in policy.alert}
        watcher = Watcher(policy, self.database, [state for state in states if state.rule in names], self._uses)
        self._watcher = watcher
        self._file.keep(watched(policy))
        if old is None:
            for state in [state for state in watcher.states.values() if not state.told]:
                self._send(watcher, state)
        return watcher

    def _end(self) -> None:
        """The policy has no alert rule any more."""
        if self._watcher:
            self._file.keep([])
            self._let_go()

    def _uses(self, budget: Budget) -> Mapping[Values, BudgetUse]:
        path = self.database.with_name(ledger_file.NAME)
        return budget_uses(path, budget, self.clock, self.policy.timezone)

    def _failed(self, error: Exception) -> None:
        """Nothing can be seen. Before the first call there is no database: nobody needs to hear of that."""
        if self.database.exists() and str(error) != self._outage:
            self._outage = str(error)
            log.warning("alert: nothing can be watched just now: %s", error)

    # -- telling

    def _tell(self, watcher: Watcher, state: State) -> None:
        notice = notice_of(state)
        about = ", ".join(f"{name} {value or '-'}" for name, value in notice.per.items())
        line = inert(f"{notice.title}: {notice.says}" + (f" ({about})" if about else ""))
        is_shadow = state.told
        log.warning("alert: %s%s", "would tell: " if is_shadow else "", line)
        event = {
            "exchange_id": None,
            "at": iso(state.changed_at),
            "room": "alert",
            "rule": state.rule,
            "action": "flag",
            "shadow": int(is_shadow),
            "detail": line,
        }
        self.writer.put(Rows(policy_events=[dict(event)]), len(line) + 256)
        if not is_shadow:
            self._send(watcher, state)

    def _send(self, watcher: Watcher, state: State) -> None:
        [rule] = [rule for rule in watcher.policy.alert if rule.name == state.rule]
        self.notifier.send(notice_of(state), rule.to, partial(self._is_told, state))

    def _is_told(self, state: State) -> None:
        """Note that *state* has been told, unless there is newer to tell of the same. Comes from any thread."""
        with self._looking:
            watcher = self._watcher
            if watcher and watcher.states.get(state.key) == state:
                told = replace(state, told=True)
                watcher.keep(told)
                self._file.save([told])


def notice_of(state: State) -> Notice:
    fields: dict[str, Any] = dict(state.notice)
    return Notice(**{**fields, "evidence": tuple(fields["evidence"])})


def watched(policy: Policy) -> list[Watched]:
    """Return the alert rules of *policy*, as the command shows them."""
    return [
        Watched(
            rule.name,
            alert_message.condition(rule.when),
            names_of(rule, policy),
            tuple(map(notify_send.shown, rule.to)),
            rule.shadow,
            policy.where(f"alert[{n}]"),
        )
        for n, rule in enumerate(policy.alert)
    ]


def names_of(rule: Alert, policy: Policy) -> tuple[str, ...]:
    """Return what the values of a rule's states are called."""
    return watch_of(rule, policy, lambda _budget: {}).names
