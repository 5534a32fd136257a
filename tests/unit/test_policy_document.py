"""YAML 1.2 core as a tree that knows its lines: what a scalar is, where a key stands, what cannot be read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.errors import PolicyError
from mitmgate.policy import document


def value_of(text: str) -> object:
    root, faults = document.parse(f"key: {text}\n", "p")
    assert faults == []
    assert isinstance(root.value, dict)
    return root.value["key"].value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1:30:00", "1:30:00"),
        ("2024-10-21", "2024-10-21"),
        ("12", 12),
        ("-12", -12),
        ("+12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("2_000_000", 2_000_000),
        ("_1", "_1"),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("null", None),
        ("", None),
        ("nullify", "nullify"),
        ('"12"', "12"),
        ("'true'", "true"),
        ("500 ms", "500 ms"),
        ("!!str 12", "12"),
        ("!!int 12", 12),
        ("!!float 1", 1.0),
        ("env:KEY", "env:KEY"),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2_core(text: str, value: object) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_one() -> None:
    found = value_of(".NaN")
    assert isinstance(found, float)
    assert math.isnan(found)


def test_every_node_knows_its_line_and_its_dotted_key() -> None:
    text = "# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\ne: {f: 3,\n  g: 4}\n"
    root, _ = document.parse(text, "p")
    assert {node.key: node.line for node in root.walk()} == {
        "": 2,
        "a": 2,
        "a.b": 3,
        "a.c": 4,
        "a.c[0]": 5,
        "a.c[1]": 6,
        "a.c[1].d": 6,
        "e": 7,
        "e.f": 7,
        "e.g": 8,
    }


def test_an_alias_stands_for_the_whole_value() -> None:
    root, faults = document.parse("a: &x {b: 1}\nc: *x\n", "p")
    assert faults == []
    assert {node.key: node.value for node in root.walk() if node.raw} == {"a.b": 1, "c.b": 1}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_a_file_without_content_has_no_entries(text: str) -> None:
    root, faults = document.parse(text, "p")
    assert faults == []
    assert root.value in ({}, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "p:3: a: stands twice; the first is on line 1"),
        ("a: {b: 1,\n  b: 2}\n", "p:2: a.b: stands twice; the first is on line 1"),
        (
            "a: &x {b: 1}\nc:\n  <<: *x\n",
            "p:3: c.<<: merge keys are not part of YAML 1.2; write the keys out, or alias the",
        ),
        ("a: !foo x\n", "p:1: a: 'x' cannot be read as !foo"),
        ("a: !foo {b: 1}\n", "p:1: a: the tag !foo means nothing here; remove it"),
        ("a: !!set {b}\n", "p:1: a: the tag !!set means nothing here; remove it"),
        ("a: !!int x\n", "p:1: a: 'x' cannot be read as !!int"),
        ("a: !!bool 1\n", "p:1: a: '1' cannot be read as !!bool"),
        ("a: !!null x\n", "p:1: a: 'x' cannot be read as !!null"),
        ("a: !!binary x\n", "p:1: a: 'x' cannot be read as !!binary"),
        ('a: "\\ud800"\n', "p:1: a: '\\ud800' is no valid Unicode: an escape in it is half of a character"),
        ('a: {"\\ud800": 1}\n', "p:1: a: the key '\\ud800' is no valid Unicode: an escape in it is half of a"),
        ("? [a, b]\n: 1\n", "p:1: a key has to be text, not a list or mapping"),
        (f"a: {'9' * 5000}\n", "p:1: a: '9999"),
    ],
)
def test_what_the_tree_cannot_hold_is_told(text: str, fault: str) -> None:
    _, faults = document.parse(text, "p")
    assert len(faults) == 1
    assert str(faults[0]).startswith(fault)


def test_a_quoted_merge_sign_is_a_key_like_any_other() -> None:
    _, faults = document.parse('"<<": 1\n', "p")
    assert faults == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\n\tb: 2\n", "p:2: not readable as YAML: a tab stands where YAML wants spaces"),
        (
            "a: b: c\n",
            "p:1: not readable as YAML: a ':' stands where no key can be; check the indentation, or quote the value",
        ),
        (
            "a: 1\n  b: 2\n",
            "p:2: not readable as YAML: a ':' stands where no key can be; check the indentation, or quote the value",
        ),
        ("a:\n  'b\n", "p:2: not readable as YAML: the quote that opens here is never closed"),
        (
            "a: [1, 2\n",
            "p:1: not readable as YAML: the bracket that opens here is not closed, or a comma is missing in it",
        ),
        (
            "a: {b: 1\nc: 2\n",
            "p:1: not readable as YAML: the bracket that opens here is not closed, or a comma is missing in it",
        ),
        ("a: [", "p:1: not readable as YAML: a bracket is opened and never closed"),
        ("a: 1\n---\nb: 2\n", "p:2: not readable as YAML: the file holds more than one document ('---')"),
        ("a: *nobody\n", "p:1: not readable as YAML: an alias (*name) has no anchor (&name) before it"),
        (
            "a: 1\nb\nc: 2\n",
            "p:2: not readable as YAML: this line is neither 'key: value' nor the rest of the line before",
        ),
        ("a: 1\nb: \x01\n", "p:2: the character '\\x01' may not stand in YAML"),
        ("a: &x [*x]\n", "p:1: a[0]: an alias (*name) stands inside its own anchor"),
        ("[" * 60 + "]" * 60, "p:1: " + "[0]" * 50 + ": it is nested deeper than 50 levels"),
        ("[" * 20_000, "p:1: the file is nested too deep to be read"),
    ],
)
def test_a_file_that_is_no_tree_is_one_sentence_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(PolicyError) as refused:
        document.parse(text, "p")
    assert [str(fault) for fault in refused.value.faults] == [fault]


def test_aliases_of_aliases_cannot_unfold_into_all_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(PolicyError, match="unfolds to more than 100,000 values"):
        document.parse("\n".join(lines), "p")


@given(st.text(max_size=60))
def test_any_text_gives_a_tree_or_a_policy_error(text: str) -> None:
    try:
        root, _ = document.parse(text, "p")
    except PolicyError as e:
        assert e.faults
    else:
        assert root.path == "p"
