"""What waits for the disk is bounded: bodies go before rows, the oldest first, and all that goes is counted."""

from mitmgate.store.backlog import Backlog, Limits
from mitmgate.store.rows import Rows


class Item:
    """An item with a body of *body* bytes beside *light* bytes of row."""

    def __init__(self, name: str, body: int = 0, light: int = 10) -> None:
        self.name = name
        self.body = body
        self.size = body + light

    def render(self) -> Rows:
        return Rows()

    def shed(self) -> int:
        freed, self.body = self.body, 0
        return freed


def backlog_of(limits: Limits, *items: Item) -> Backlog:
    backlog = Backlog(limits)
    for item in items:
        backlog.put(item, item.size)
    return backlog


def names(backlog: Backlog) -> list[str]:
    return [slot.item.name for slot in backlog.take() if isinstance(slot.item, Item)]


def test_items_leave_in_the_order_they_came() -> None:
    assert names(backlog_of(Limits(), Item("a"), Item("b"), Item("c"))) == ["a", "b", "c"]


def test_a_batch_ends_at_its_number_of_items() -> None:
    backlog = backlog_of(Limits(batch_items=2), Item("a"), Item("b"), Item("c"))
    assert [names(backlog), names(backlog), names(backlog)] == [["a", "b"], ["c"], []]


def test_a_batch_ends_at_its_bytes() -> None:
    backlog = backlog_of(Limits(batch_bytes=100), Item("a", body=100), Item("b"), Item("c"))
    assert [names(backlog), names(backlog)] == [["a"], ["b", "c"]]


def test_too_many_bytes_cost_the_oldest_bodies_and_no_row() -> None:
    items = [Item("a", body=50), Item("b", body=50), Item("c", body=50)]
    backlog = backlog_of(Limits(bytes=120), *items)
    assert [item.body for item in items] == [0, 0, 50]
    assert (backlog.payloads_dropped, backlog.rows_dropped, backlog.bytes) == (2, 0, 80)
    assert names(backlog) == ["a", "b", "c"]


def test_where_no_body_is_left_the_oldest_rows_go() -> None:
    backlog = backlog_of(Limits(bytes=25), Item("a"), Item("b", body=100), Item("c"))
    assert (backlog.payloads_dropped, backlog.rows_dropped, backlog.bytes) == (1, 1, 20)
    assert names(backlog) == ["b", "c"]


def test_too_many_items_cost_the_oldest() -> None:
    backlog = backlog_of(Limits(items=2), Item("a", body=5), Item("b"), Item("c"))
    assert (backlog.payloads_dropped, backlog.rows_dropped) == (0, 1)
    assert names(backlog) == ["b", "c"]


def test_what_was_taken_counts_until_it_is_written() -> None:
    backlog = backlog_of(Limits(bytes=60), Item("a", body=40))
    batch = backlog.take()
    backlog.put(late := Item("b", body=20), late.size)
    assert (late.body, backlog.bytes) == (0, 60)
    backlog.done(batch)
    assert backlog.bytes == 10


def test_ready_rows_shed_their_bodies() -> None:
    rows = Rows(exchanges=[{"id": "x"}], payloads=[{"body": "four"}, {"body": b"five!"}, {"body": None}])
    assert rows.shed() == 9
    assert (rows.exchanges, rows.payloads) == ([{"id": "x"}], [])
