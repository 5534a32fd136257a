"""Tell people, and be in nobody's way: a queue for each address, and a thread while that is not empty.

A dead receiver holds up nobody, least of all the one who is on call. A message is tried three times; then it is given
up, counted and said. What is not delivered before the gateway ends stays untold: ``alert`` sends it after the start.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mitmgate.alert_message import Notice
from mitmgate.notify_send import Answer, deliver, shown
from mitmgate.policy.values import Upstream

log = logging.getLogger("mitmgate.alert")

WAITS_S = (2.0, 10.0)
"""Before the second and the third try."""

MOST_WAITING = 100
"""Messages per address; a further one is dropped."""


@dataclass(slots=True)
class Errand:
    """One message to one address."""

    notice: Notice
    done: Callable[[], None]
    """Called when it was taken, or given up."""


class Courier:
    """One address: its queue, and its thread while that is not empty."""

    def __init__(self, address: str, office: "Notifier") -> None:
        self.address, self.office = address, office
        self._queue: deque[Errand] = deque()
        self._lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def put(self, errand: Errand) -> None:
        with self._lock:
            full = len(self._queue) >= MOST_WAITING
            if not full:
                self._queue.append(errand)
                if self.thread is None:
                    self.thread = threading.Thread(target=self._run, name="mitmgate-notify", daemon=True)
                    self.thread.start()
        if full:
            self.office.dropped(errand, self.address, f"{MOST_WAITING} messages wait for it already")

    def _run(self) -> None:
        while errand := self._next():
            self._carry(errand)

    def _next(self) -> Errand | None:
        with self._lock:
            if self._queue and not self.office.closing.is_set():
                return self._queue.popleft()
            self.thread = None
            return None

    def _carry(self, errand: Errand) -> None:
        """Try until it is taken or given up; where the gateway ends first, it stays untold and is told by the next."""
        office = self.office
        for wait_s in (*office.waits_s, None):
            answer = office.deliver(self.address, errand.notice, office.upstream)
            if answer.ok:
                office.sent(errand)
                return
            if wait_s is None or not answer.again:
                break
            if office.closing.wait(max(wait_s, answer.wait_s or 0.0)):
                return
        office.dropped(errand, self.address, answer.says)


type Deliver = Callable[[str, Notice, Upstream], Answer]


class Notifier:
    """All addresses of a gateway."""

    def __init__(self, upstream: Upstream, *, waits_s: tuple[float, ...] = WAITS_S, deliver: Deliver = deliver) -> None:
        self.upstream = upstream
        self.waits_s = waits_s
        self.deliver = deliver
        self.closing = threading.Event()
        self.counts: Counter[tuple[str, str]] = Counter()
        """(``sent`` or ``dropped``, state) -> messages."""
        self._couriers: dict[str, Courier] = {}
        self._lock = threading.Lock()

    def send(self, notice: Notice, addresses: Iterable[str], told: Callable[[], None]) -> None:
        """Have *notice* delivered; *told* is called, in any thread, once no address waits for it any more."""
        unique = tuple(dict.fromkeys(addresses))
        left = len(unique)
        lock = threading.Lock()

        def done() -> None:
            nonlocal left
            with lock:
                left -= 1
                is_last = left == 0
            if is_last:
                told()

        for address in unique:
            courier = self._couriers.get(address) or self._couriers.setdefault(address, Courier(address, self))
            courier.put(Errand(notice, done))

    def sent(self, errand: Errand) -> None:
        self._count("sent", errand)

    def dropped(self, errand: Errand, address: str, why: str) -> None:
        log.error("alert: %s did not reach %s: %s", errand.notice.title, shown(address), why)
        self._count("dropped", errand)

    def _count(self, outcome: str, errand: Errand) -> None:
        with self._lock:
            self.counts[outcome, errand.notice.state] += 1
        errand.done()

    def series(self, outcome: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
        """Return the counts of *outcome* as ``/metrics`` takes them."""
        metric = f"mitmgate_alerts_{outcome}_total"
        with self._lock:
            counts = dict(self.counts)
        return {(metric, (("state", state),)): count for (how, state), count in counts.items() if how == outcome}

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is to be delivered any more; return False where that took too long."""
        end = time.monotonic() + timeout_s
        threads = [courier.thread for courier in list(self._couriers.values())]
        for thread in filter(None, threads):
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread and thread.is_alive() for thread in threads)

    def close(self, timeout_s: float) -> None:
        """Give what is to be delivered so long to arrive, and deliver nothing more."""
        self.wait(timeout_s)
        self.closing.set()
