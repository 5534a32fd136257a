"""A value that expires is made once for all, and anew before anybody has to wait for it."""

import asyncio

import pytest

from mitmgate.clock import ManualClock
from mitmgate.fresh import Fresh, Made


class Source:
    """Makes ``v1``, ``v2``, … that last an hour each, when it is let."""

    def __init__(self, *, waits: bool = False) -> None:
        self.clock = ManualClock()
        self.made = 0
        self.fault: Exception | None = None
        self.may_go = asyncio.Event()
        if not waits:
            self.may_go.set()
        self.fresh = Fresh("the token", self._make, self.clock)

    async def _make(self) -> Made[str]:
        self.made += 1
        name = f"v{self.made}"
        await self.may_go.wait()
        if self.fault:
            raise self.fault
        return Made(name, 3600.0)

    async def settle(self) -> None:
        """Let what was begun beside the traffic come to its end."""
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_hundred_who_ask_at_once_share_one() -> None:
    source = Source(waits=True)
    asking = [asyncio.ensure_future(source.fresh.get()) for _ in range(100)]
    await source.settle()
    source.may_go.set()

    assert set(await asyncio.gather(*asking)) == {"v1"}
    assert source.made == 1


async def test_who_leaves_while_it_is_made_does_not_spoil_it_for_the_others() -> None:
    source = Source(waits=True)
    leaves, stays = (asyncio.ensure_future(source.fresh.get()) for _ in range(2))
    await source.settle()
    leaves.cancel()
    await source.settle()
    source.may_go.set()

    assert await stays == "v1"
    assert leaves.cancelled()


@pytest.mark.parametrize(
    ("passed_s", "at_once", "a_moment_later"),
    [
        (0, "v1", "v1"),
        (3299, "v1", "v1"),
        (3301, "v1", "v2"),
        (3569, "v1", "v2"),
        (3571, "v2", "v2"),
        (9999, "v2", "v2"),
    ],
)
async def test_near_its_end_it_is_made_anew_beside_the_traffic(
    passed_s: float, at_once: str, a_moment_later: str
) -> None:
    source = Source()
    await source.fresh.get()
    source.clock.advance(passed_s)

    assert await source.fresh.get() == at_once
    await source.settle()
    assert await source.fresh.get() == a_moment_later


async def test_a_failure_to_make_a_new_one_costs_nobody_anything_while_the_old_one_holds() -> None:
    source = Source()
    await source.fresh.get()
    source.clock.advance(3400)
    source.fault = OSError("down")

    for _ in range(3):
        assert await source.fresh.get() == "v1"
        await source.settle()

    assert source.made == 2
    source.clock.advance(11)
    source.fault = None
    await source.fresh.get()
    await source.settle()
    assert await source.fresh.get() == "v3"


async def test_where_there_is_none_the_failure_is_told_and_the_next_call_tries_again() -> None:
    source = Source()
    source.fault = OSError("down")

    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            await source.fresh.get()

    assert source.made == 2


async def test_a_value_that_nobody_takes_is_forgotten_unless_it_is_new() -> None:
    source = Source()
    await source.fresh.get()

    source.fresh.forget()
    assert await source.fresh.get() == "v1"

    source.clock.advance(60)
    source.fresh.forget()
    assert await source.fresh.get() == "v2"
