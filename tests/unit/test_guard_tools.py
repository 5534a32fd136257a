"""Which tools a request offers, in the words of each API, and which of them a list has."""

import pytest

from mitmgate.guard_tools import Allowed, offered


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "name": "b"}]}, ["a", "b"]),
        ({"functions": [{"name": "a"}]}, ["a"]),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}, {"type": "custom", "name": "b"}]}, ["a", "b"]),
        ({"tools": [{"type": "web_search"}, {"type": "mcp", "server_label": "x"}]}, ["web_search", "mcp"]),
        ({"tools": [{"name": "a", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]}, ["a", "bash"]),
        (
            {"tools": [{"functionDeclarations": [{"name": "a"}, {"name": "b"}]}, {"googleSearch": {}}]},
            ["a", "b", "googleSearch"],
        ),
        ({"tools": [{"function_declarations": [{"name": "a"}], "codeExecution": {}}]}, ["a", "codeExecution"]),
        (
            {"toolConfig": {"tools": [{"toolSpec": {"name": "a"}}, {"cachePoint": {"type": "default"}}]}},
            ["a", "cachePoint"],
        ),
        ({"tools": "none", "toolConfig": None}, []),
        ({"tools": [None, 1, "x"]}, []),
        (["tools"], []),
        (None, []),
    ],
)
def test_the_tools_of_each_api_are_known_by_their_names(body: object, names: list[str]) -> None:
    assert offered(body) == names


def test_a_list_knows_globs_and_no_case() -> None:
    allowed = Allowed(["get_*", "Search"])

    assert [name for name in ("get_x", "GET_y", "search", "search2", "forget_x", "") if allowed.has(name)] == [
        "get_x",
        "GET_y",
        "search",
    ]
