"""What was counted in a window of time, as values that pack into a few bytes; the arithmetic under ``store/ledger``.

Pure: times come in, nothing is asked. A ``Window`` holds what was *used* and what is *reserved* by calls under way,
each booked at the time of its admission. There are three kinds.

``Sliding``: nothing above the limit in any window of so many seconds, the borders of a clock included. It keeps what
was counted with its time, and a count leaves exactly that long after it came. GCRA would need one number instead, but
it admits 60 and then one more each second: 119 within the first minute of "60 every 1 m". Here it is 60.
``Turning``: a day, a week (from Monday) or a month of the calendar, in a timezone, from local midnight on.
``Slots``: what goes on at once; only ever reserved.

A sliding window is bounded: of more than ``PARTS`` counts neighbours are merged into parts of ``every / PARTS``, where
the latest time stands. So it errs on the strict side, by less than a part. A correction (a call used less than it had
reserved) is booked at the time of what it corrects, and where that has left the window it is nobody's any more.

Times are whole microseconds: *steady* ones for what slides, which no setting of a clock can move, and *wall* ones since
1970 for the calendar.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from mitmgate.policy.units import Calendar
from mitmgate.policy.values import Span

US = 1_000_000
"""Microseconds in a second."""

PARTS = 64
"""A sliding window with more counts than these is kept in so many parts."""

SLACK = 16
"""Counts beyond ``PARTS`` before a sliding window is merged: it is not to happen with every one."""

SLOT_WAIT_S = 1.0
"""Nobody knows when one of the calls under way will end; whoever finds no slot is told to wait so long."""

MOST = 2**62
"""No count goes beyond; a client may claim any number of tokens."""

NEVER = MOST
"""A time that does not come."""

LOOK_BACK_US = 86_400 * US
"""A calendar's count is remembered for so long after its window, in case the clock is set back into it."""


class Booked(NamedTuple):
    """One count, or several that were merged."""

    at: int
    """Steady microseconds; the window's start in wall microseconds where it turns; 0 of a slot."""
    used: int
    reserved: int


class Turn(NamedTuple):
    """A day, week or month: wall microseconds, *end* is the next one's start."""

    start: int
    end: int


class Calendars:
    """The calendar of one timezone; each unit's latest turn is remembered, as all questions are about now."""

    def __init__(self, timezone: str) -> None:
        self.timezone = timezone
        self.zone: tzinfo = UTC if timezone == "UTC" else ZoneInfo(timezone)
        self._latest: dict[Calendar, Turn] = {}

    def turn(self, unit: Calendar, wall: int) -> Turn:
        """Return the day, week or month that the moment *wall* lies in."""
        latest = self._latest.get(unit)
        if latest is None or not latest.start <= wall < latest.end:
            latest = self._latest[unit] = turn_of(unit, self.zone, wall)
        return latest


class Moment(NamedTuple):
    """Now, by both clocks and the calendar."""

    steady: int
    wall: int
    calendars: Calendars


class Window(Protocol):
    """What was counted. ``roll`` comes first: the rest is about the moment that it was rolled to."""

    @property
    def used(self) -> int: ...
    @property
    def reserved(self) -> int: ...

    def roll(self, now: Moment) -> int:
        """Let go of what has left; return the ``at`` that counts of *now* are booked under."""

    def add(self, at: int, used: int, reserved: int) -> None:
        """Book, or correct what was booked under *at*; nothing where that has left."""

    def booked(self) -> Iterator[Booked]: ...

    def reset_s(self, now: Moment) -> float:
        """Return the seconds until the oldest count leaves or the calendar turns; 0 where nothing will."""

    def empty_at(self, now: Moment) -> int:
        """Return the steady time from which on it says no more than a new one."""

    def pack(self) -> bytes: ...


# -- so many seconds --------------------------------------------------------------------------------------------------


class Sliding:
    """Counts of the last *every_s* seconds, oldest first, in three columns."""

    __slots__ = ("_all_reserved", "_all_used", "_at", "_every", "_left", "_reserved", "_used")

    def __init__(self, every_s: float, packed: bytes = b"") -> None:
        self._every = max(1, round(every_s * US))
        whole = array("q", packed or (-MOST,))
        if len(whole) % 3 != 1:
            raise ValueError(f"{len(packed)} bytes are no sliding window")
        n = len(whole) // 3
        self._at, self._used, self._reserved = whole[:n], whole[n : 2 * n], whole[2 * n : 3 * n]
        self._left = whole[-1]
        """What was booked up to this time has left."""
        self._all_used, self._all_reserved = sum(self._used), sum(self._reserved)

    def pack(self) -> bytes:
        whole = self._at + self._used + self._reserved
        whole.append(self._left)
        return whole.tobytes()

    @property
    def used(self) -> int:
        return max(0, self._all_used)

    @property
    def reserved(self) -> int:
        return max(0, self._all_reserved)

    def roll(self, now: Moment) -> int:
        left = now.steady - self._every
        if left <= self._left:
            return now.steady
        self._left = left
        if self._at and self._at[0] <= left:
            self._cut(0, bisect_right(self._at, self._left))
        return now.steady

    def add(self, at: int, used: int, reserved: int) -> None:
        if at <= self._left:
            return
        place = bisect_left(self._at, at)
        size = len(self._at)
        if place < size and (self._at[place] == at or self._together(at, self._at[place])):
            self._change(place, used, reserved)
        elif place == size >= PARTS and self._together(self._at[-1], at):
            self._at[-1] = at
            self._change(place - 1, used, reserved)
        elif used or reserved:
            self._insert(place, Booked(at, used, reserved))

    def booked(self) -> Iterator[Booked]:
        return map(Booked, self._at, self._used, self._reserved)

    def reset_s(self, now: Moment) -> float:
        return max(0.0, (self._at[0] + self._every - now.steady) / US) if self._at else 0.0

    def empty_at(self, now: Moment) -> int:
        return self._at[-1] + self._every if self._at else 0

    def leaves_at(self, at: int) -> int:
        """Return the steady time at which what is booked under *at* leaves."""
        return at + self._every

    def shift(self, us: int) -> None:
        """Add *us* to every time."""
        self._at = array("q", (at + us for at in self._at))
        self._left += us

    def _together(self, one: int, other: int) -> bool:
        """Return whether two times lie in one part."""
        part = max(1, self._every // PARTS)
        return one // part == other // part

    def _change(self, place: int, used: int, reserved: int) -> None:
        was_used, was_reserved = self._used[place], self._reserved[place]
        is_used, is_reserved = _bounded(was_used + used), _bounded(was_reserved + reserved)
        self._used[place], self._reserved[place] = is_used, is_reserved
        self._all_used += is_used - was_used
        self._all_reserved += is_reserved - was_reserved
        if not is_used and not is_reserved:
            self._cut(place, place + 1)

    def _insert(self, place: int, booked: Booked) -> None:
        used, reserved = _bounded(booked.used), _bounded(booked.reserved)
        self._at.insert(place, booked.at)
        self._used.insert(place, used)
        self._reserved.insert(place, reserved)
        self._all_used += used
        self._all_reserved += reserved
        if len(self._at) > PARTS + SLACK:
            self._merge()

    def _cut(self, start: int, end: int) -> None:
        self._all_used -= sum(self._used[start:end])
        self._all_reserved -= sum(self._reserved[start:end])
        for column in (self._at, self._used, self._reserved):
            del column[start:end]

    def _merge(self) -> None:
        """Make one count of those that lie in one part."""
        counts = list(self.booked())
        self._cut(0, len(counts))
        for count in counts:
            if self._at and self._together(self._at[-1], count.at):
                self._at[-1] = count.at
                self._used[-1] = _bounded(self._used[-1] + count.used)
                self._reserved[-1] = _bounded(self._reserved[-1] + count.reserved)
            else:
                self._at.append(count.at)
                self._used.append(count.used)
                self._reserved.append(count.reserved)
        self._all_used, self._all_reserved = sum(self._used), sum(self._reserved)


# -- the calendar -----------------------------------------------------------------------------------------------------


class Turning:
    """Counts of one day, week or month. A clock that is set back does not open the one before again: what comes is
    booked in the later one until the clock has caught up. Only where the clock was wrong by more than a whole window
    does the count move into the window that is now, or a wrong year would hold it for ever.
    """

    __slots__ = ("_now_is", "_reserved", "_start", "_unit", "_used")

    def __init__(self, unit: Calendar, packed: bytes = b"") -> None:
        self._unit = unit
        self._start, self._used, self._reserved = array("q", packed or (-MOST, 0, 0))
        self._now_is = Turn(-MOST, -MOST)
        """Where it was rolled to."""

    def pack(self) -> bytes:
        return array("q", (self._start, self._used, self._reserved)).tobytes()

    @property
    def used(self) -> int:
        return max(0, self._used)

    @property
    def reserved(self) -> int:
        return max(0, self._reserved)

    def roll(self, now: Moment) -> int:
        turn = self._now_is = now.calendars.turn(self._unit, now.wall)
        if turn.start > self._start:
            self._start, self._used, self._reserved = turn.start, 0, 0
        elif self._start > turn.end:
            self._start = turn.start
        return self._start

    def add(self, at: int, used: int, reserved: int) -> None:
        if at < self._start:
            return
        self._used = _bounded(self._used + used)
        self._reserved = _bounded(self._reserved + reserved)

    def booked(self) -> Iterator[Booked]:
        if self._used or self._reserved:
            yield Booked(self._start, self._used, self._reserved)

    def reset_s(self, now: Moment) -> float:
        return max(0.0, (self._end(now) - now.wall) / US)

    def empty_at(self, now: Moment) -> int:
        if not self._used and not self._reserved:
            return 0
        return now.steady + self._end(now) - now.wall + LOOK_BACK_US

    def _end(self, now: Moment) -> int:
        if self._now_is.start == self._start:
            return self._now_is.end
        return turn_of(self._unit, now.calendars.zone, self._start).end  # the clock was set back, or the timezone moved


def turn_of(unit: Calendar, zone: tzinfo, wall: int) -> Turn:
    """Return the day, week or month of *zone* that the moment *wall* lies in."""
    today = datetime.fromtimestamp(wall / US, zone).date()
    first = _FIRST[unit](today)
    return Turn(_midnight(first, zone), _midnight(_next(unit, first), zone))


def _first_of_month(day: date) -> date:
    return day.replace(day=1)


_FIRST: Mapping[Calendar, Callable[[date], date]] = {
    "day": lambda day: day,
    "week": lambda day: day - timedelta(days=day.weekday()),
    "month": _first_of_month,
}


def _next(unit: Calendar, first: date) -> date:
    if unit == "month":
        return _first_of_month(first + timedelta(days=31))
    return first + timedelta(days=7 if unit == "week" else 1)


def _midnight(day: date, zone: tzinfo) -> int:
    """Return when *day* begins. Where the clocks skip midnight that is the moment of the skip (``fold=0`` goes by the
    offset before it), and where midnight comes twice, the first.
    """
    return round(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() * US)


# -- at once ----------------------------------------------------------------------------------------------------------


class Slots:
    """Calls under way. They have no time: a slot is given back when its call is over."""

    __slots__ = ("_reserved",)

    def __init__(self, packed: bytes = b"") -> None:
        (self._reserved,) = array("q", packed or (0,))

    def pack(self) -> bytes:
        return array("q", (self._reserved,)).tobytes()

    @property
    def used(self) -> int:
        return 0

    @property
    def reserved(self) -> int:
        return max(0, self._reserved)

    def roll(self, now: Moment) -> int:
        return 0

    def add(self, at: int, used: int, reserved: int) -> None:
        self._reserved = _bounded(self._reserved + reserved)

    def booked(self) -> Iterator[Booked]:
        if self._reserved:
            yield Booked(0, 0, self._reserved)

    def reset_s(self, now: Moment) -> float:
        return 0.0

    def empty_at(self, now: Moment) -> int:
        return NEVER if self._reserved else 0


def _bounded(count: int) -> int:
    if -MOST <= count <= MOST:
        return count
    return MOST if count > 0 else -MOST


# -- of all kinds -----------------------------------------------------------------------------------------------------


def window_of(every: Span | None, packed: bytes = b"") -> Window:
    """Return the window that a rule's *every* asks for: as it was packed, or a new one."""
    if every is None:
        return Slots(packed)
    return Turning(every, packed) if isinstance(every, str) else Sliding(every, packed)


def merge(window: Window, counts: Iterable[Booked]) -> None:
    """Add to *window* what was counted elsewhere; both are rolled to the same moment."""
    for count in counts:
        window.add(count.at, count.used, count.reserved)


def used_alone(window: Window) -> Iterator[Booked]:
    """Yield what was used, without what calls under way have reserved."""
    return (Booked(count.at, count.used, 0) for count in window.booked())


def wait_s(window: Window, grants: Window | None, amount: int, most: int, now: Moment) -> float | None:
    """Return the seconds until *amount* fits below *most* and the *grants*, if nothing else comes; None = never."""
    if isinstance(window, Slots):
        return SLOT_WAIT_S if amount <= most else None
    if not isinstance(window, Sliding):
        return window.reset_s(now) if amount <= most else None
    over = window.used + window.reserved + amount - most - (grants.used if grants else 0)
    changes = Counter[int]()
    for count in window.booked():
        changes[window.leaves_at(count.at)] -= count.used + count.reserved
    for grant in grants.booked() if grants else ():
        changes[window.leaves_at(grant.at)] += grant.used
    for at in sorted(changes):
        over += changes[at]
        if over <= 0:
            return max(0.0, (at - now.steady) / US)
    return None
