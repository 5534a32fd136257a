"""A JSON text is changed at its places, and nowhere else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.shape_text import Edit, Path, edited, gone, placed, preceded_by, put, written

BODY = '{ "n" : 1.0e5,\r\n\t"turns": [ {"a": "\\u00e9"} , {"b": 2},{"c":3} ], "empty": {}, "none": null }'

CASES: dict[str, tuple[list[tuple[Path, Edit]], str]] = {
    "a value": ([(("n",), put(7))], BODY.replace("1.0e5", "7")),
    "a value within": ([(("turns", 1, "b"), put("x"))], BODY.replace('{"b": 2}', '{"b": "x"}')),
    "a new member": ([(("turns", 2, "d"), put(True))], BODY.replace('{"c":3}', '{"c":3,"d":true}')),
    "two new members": (
        [(("turns", 2, "d"), put(1)), (("turns", 2, "e"), put(2))],
        BODY.replace('{"c":3}', '{"c":3,"d":1,"e":2}'),
    ),
    "a new member at the end": ([(("z",), put(1))], BODY.replace("null }", 'null,"z":1 }')),
    "the first of an empty object": ([(("empty", "x"), put(1))], BODY.replace("{}", '{"x":1}')),
    "a member of what is null": ([(("none", "x"), put(1))], BODY.replace("null", '{"x":1}')),
    "a member of what is not there": ([(("new", "x"), put(1))], BODY.replace("null }", 'null,"new":{"x":1} }')),
    "the first item goes": ([(("turns", 0), gone)], BODY.replace('{"a": "\\u00e9"} , ', "")),
    "the last item goes": ([(("turns", 2), gone)], BODY.replace(',{"c":3}', "")),
    "all but the middle go": (
        [(("turns", 0), gone), (("turns", 2), gone)],
        BODY.replace('{"a": "\\u00e9"} , ', "").replace(',{"c":3}', ""),
    ),
    "all items go": (
        [(("turns", at), gone) for at in range(3)],
        f"{BODY[: BODY.index('[')]}[]{BODY[BODY.index(']') + 1 :]}",
    ),
    "items come before one": ([(("turns", 1), preceded_by(1, "x"))], BODY.replace('{"b"', '1,"x",{"b"')),
    "a value by its own text": (
        [(("turns", 0, "a"), lambda old: f"[{old}]")],
        BODY.replace('"\\u00e9"', '["\\u00e9"]'),
    ),
    "nothing": ([], BODY),
}


@pytest.mark.parametrize(("edits", "changed"), CASES.values(), ids=CASES)
def test_every_other_byte_stays(edits: list[tuple[Path, Edit]], changed: str) -> None:
    assert edited(BODY, placed(edits)) == changed


def test_a_value_that_stands_twice_changes_twice_since_hosts_differ_in_which_they_read() -> None:
    assert edited('{"n":1,"n":2}', {"n": put(3)}) == '{"n":3,"n":3}'


FAULTS: dict[str, tuple[str, list[tuple[Path, Edit]]]] = {
    "no such item": ("[1]", [((1,), put(2))]),
    "a member of a list": ("[1]", [(("a",), put(2))]),
    "a member of a number": ('{"a":1}', [(("a", "b"), put(2))]),
    "a list that stands twice": ('{"a":[1],"a":[2]}', [(("a", 0), put(2))]),
    "a member that is to go": ('{"a":1}', [(("a",), gone)]),
    "a member that is not there is to go": ("{}", [(("a",), gone)]),
    "a text that ends early": ('{"a":1', [(("b",), put(2))]),
    "no JSON": ("a", [(("b",), put(2))]),
}


@pytest.mark.parametrize(("text", "edits"), FAULTS.values(), ids=FAULTS)
def test_a_place_that_is_not_there_is_told(text: str, edits: list[tuple[Path, Edit]]) -> None:
    with pytest.raises((ValueError, IndexError)):
        edited(text, placed(edits))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3), JSON), st.text(max_size=3), JSON, st.sampled_from([None, 1, "\t"]))
def test_whatever_the_body_the_member_has_the_new_value_and_the_rest_its_own(
    body: dict[str, object], name: str, value: object, indent: int | str | None
) -> None:
    changed = json.loads(edited(json.dumps(body, indent=indent), {name: put(value)}))

    assert changed == {**body, name: value}
    assert list(changed)[: len(body)] == list(body)


@given(st.lists(JSON, max_size=6), st.sets(st.integers(0, 5)), st.sampled_from([None, 1]))
def test_whatever_items_go_the_others_stay_in_order(items: list[object], going: set[int], indent: int | None) -> None:
    going = {at for at in going if at < len(items)}

    changed = edited(json.dumps(items, indent=indent), dict.fromkeys(going, gone))

    assert json.loads(changed) == [item for at, item in enumerate(items) if at not in going]


def test_half_a_character_is_written_as_an_escape_and_a_whole_one_as_itself() -> None:
    assert (written("\ud83d"), written("é"), written({"a": [1]})) == ('"\\ud83d"', '"é"', '{"a":[1]}')
