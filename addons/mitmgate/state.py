"""What outlives a policy: what was counted, kept, learned and written, and who rests.

Made once per gateway process; the rooms of each policy are built around it, so an edited file forgets nothing. The
section ``state`` of the policy says where it lives: ``memory`` is this machine, its workers share what is in files.
"""

import asyncio
import logging
from pathlib import Path
from random import random

from mitmgate.alert import Alerts
from mitmgate.breaker import Breakers
from mitmgate.clock import Clock
from mitmgate.hedge import Hedges
from mitmgate.limit_lengths import Lengths
from mitmgate.metrics import Metrics
from mitmgate.observe import Observed
from mitmgate.policy import Policy
from mitmgate.pool import Pool
from mitmgate.pricing import PRICES
from mitmgate.provider_pool import KeyStates
from mitmgate.retry import Retries
from mitmgate.route_memory import Places, Windows
from mitmgate.shape_summary import Summaries
from mitmgate.store import provider_keys
from mitmgate.store.answers import AnswerStore
from mitmgate.store.gateway_keys import GatewayKeys
from mitmgate.store.ledger import Ledger
from mitmgate.store.writer import Writer
from mitmgate.tape import Tape

log = logging.getLogger("mitmgate.state")


SWEEP_S = 5.0
"""How often it is looked whether another worker has died, whose reservations nobody would settle."""


class State:
    def __init__(self, policy: Policy, database: Path, secret: bytes, clock: Clock) -> None:
        self.clock = clock
        self.secret = secret
        """Keys the hashes of credentials; made once per home."""
        self.database = database
        self.metrics = Metrics()
        self.writer = Writer(database, clock, trace=policy.trace)
        self.answers = AnswerStore(database.with_name("cache.db"), policy.cache_store.max_bytes, clock)
        self.tapes: dict[str, Tape] = {}
        """Cache key -> answer on its way that others may follow."""
        self.keys = GatewayKeys(database.with_name("keys.db"), secret, clock)
        self.provider_keys = KeyStates(clock, database.with_name(provider_keys.FILE))
        self.prices_first = bool(policy.budget)
        """The first call asks for a price, and the table takes a third of a second to load."""
        self.ledger = Ledger(database.with_name("spend.db"), clock, policy.timezone)
        self.summaries = Summaries(clock)
        self.lengths = Lengths()
        """Of what models usually answer."""
        self.observed = Observed(policy, self.metrics, self.writer, clock)
        self.breakers = Breakers(clock)
        self.hedges = Hedges(clock)
        self.retries = Retries(clock, random)
        self.places: Places[tuple[str, str | None]] = Places(clock)
        """(rule, field, value) -> (target, model) where somebody was last answered."""
        self.windows = Windows(clock)
        self.usage_refused: dict[tuple[str, str], float] = {}
        """(host, api-version) -> when it would not be asked for usage, monotonic seconds."""
        self.pool: Pool | None = None
        self.alerts = Alerts(policy, database, clock, self.writer, self.metrics)
        self._count()

    def _count(self) -> None:
        self.metrics.gauges |= {
            "mitmgate_cache_entries": lambda: self.answers.stats.entries,
            "mitmgate_cache_bytes": lambda: self.answers.stats.bytes,
            "mitmgate_cache_dropped_total": lambda: self.answers.stats.dropped,
            "mitmgate_ledger_outage": lambda: self.ledger.stats.outage,
            "mitmgate_ledger_counters": lambda: self.ledger.stats.counters,
            "mitmgate_ledger_taken_back_total": lambda: self.ledger.stats.taken_back,
            "mitmgate_rows_written_total": lambda: self.writer.stats.rows_written,
            "mitmgate_rows_dropped_total": lambda: self.writer.stats.rows_dropped,
            "mitmgate_payloads_dropped_total": lambda: self.writer.stats.payloads_dropped,
        }
        self.metrics.series["mitmgate_breaker_state"] = self._breaker_states
        self.metrics.series["mitmgate_provider_key_state"] = self.provider_keys.states

    def _breaker_states(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
        states = self.breakers.states()
        return {
            ("mitmgate_breaker_state", (("target", target),)): ("closed", "half_open", "open").index(state)
            for target, state in states.items()
        }

    def open(self, policy: Policy) -> None:
        """Start what needs a running loop or a thread; raise ``StartError``."""
        self.pool = self.pool_for(policy)
        self.writer.start()
        self.answers.open()
        self.keys.open()
        self.ledger.open()
        self.alerts.start()
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_for_ever())
        if self.prices_first:
            PRICES.warm()
        else:  # in good time all the same: the first rows would wait for the imports
            asyncio.get_running_loop().run_in_executor(None, PRICES.warm)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.ledger.sweep()
            except Exception:
                log.exception("state: a sweep of the ledger failed; the next one comes")

    def take(self, policy: Policy, pool: Pool) -> None:
        """Go by *policy* from now on, and by *pool*. Raises ``StartError`` where an alert could not be told; then
        everything is as before.
        """
        self.alerts.take(policy)
        self.pool = pool
        self.writer.keep(policy.trace)
        self.answers.resize(policy.cache_store.max_bytes)
        self.observed.take(policy)
        self.ledger.timezone = policy.timezone

    def pool_for(self, policy: Policy) -> Pool:
        """Return the pool of connections that *policy* asks for: the one there is, unless it was made for other roots,
        another proxy or other places. Needs the running loop; raises ``StartError``.
        """
        if self.pool is None or self.pool.made_for != Pool.needs(policy):
            return Pool(policy)
        return self.pool

    async def close(self) -> None:
        self._sweeping.cancel()
        await self.provider_keys.close()
        self.ledger.close()
        await asyncio.to_thread(self.keys.close)
        await asyncio.to_thread(self.alerts.close, 2.0)
        await asyncio.to_thread(self.answers.close)
        await asyncio.to_thread(self.writer.close, 5.0)
