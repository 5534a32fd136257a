"""Responses: the terminal event is what counts, and it takes four forms."""

from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Reading
from support.readings import counts, read, stream

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 20},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 30},
    "total_tokens": 150,
}
COUNTS = {
    "input_tokens": 100,
    "output_tokens": 50,
    "cache_read_input_tokens": 60,
    "cache_creation_input_tokens": 20,
    "reasoning_output_tokens": 30,
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}
TEXT = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}


def response(status: str, output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "model": "gpt-5", "status": status, "output": output or [], **more}


def created(**more: Any) -> dict[str, Any]:
    return {"type": "response.created", "response": response("in_progress", usage=None, **more)}


def delta(text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": 0, "delta": text}


def item(kind: str, place: int, what: dict[str, Any]) -> dict[str, Any]:
    return {"type": f"response.output_item.{kind}", "output_index": place, "item": what}


def ended(status: str, output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": response(status, output, usage=USAGE, **more)}


def responses(*events: dict[str, Any]) -> Reading:
    return read(dialects.RESPONSES, stream(*events, named=True))


@pytest.mark.parametrize("status", ["completed", "incomplete", "cancelled"])
def test_every_terminal_event_bills(status: str) -> None:
    reading = responses(created(), delta("hel"), delta("lo"), ended(status, [TEXT], service_tier="flex"))
    assert counts(reading) == {**COUNTS, "service_tier": "flex"}
    assert (reading.finish_reasons, reading.usage_source) == ([status], "reported")
    assert (reading.ended, reading.finished, reading.text_chars) == (True, True, 5)
    assert reading.error_type is None


def test_a_failed_response_bills_and_is_an_error_event() -> None:
    reading = responses(created(), ended("failed", error={"code": "server_error", "message": "x"}))
    assert counts(reading) == COUNTS
    assert (reading.finish_reasons, reading.error_type, reading.error_event) == (
        ["failed"],
        "error_event:server_error",
        True,
    )


@pytest.mark.parametrize(
    "error",
    [
        {"type": "error", "code": "rate_limit_exceeded", "message": "x", "param": None, "sequence_number": 3},
        {"type": "error", "error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "x"}},
    ],
)
def test_an_error_event_comes_flat_or_nested(error: dict[str, Any]) -> None:
    reading = responses(created(), delta("a"), error)
    assert (reading.error_type, reading.error_event, reading.ended) == ("error_event:rate_limit", True, False)


def test_a_stream_that_breaks_off_has_no_status() -> None:
    reading = responses(created(), delta("a"))
    assert (reading.response_id, reading.response_model) == ("resp_1", "gpt-5")
    assert (reading.finish_reasons, reading.ended, reading.usage_source) == ([], False, "none")


def test_a_done_marker_alone_is_no_end() -> None:
    assert not read(dialects.RESPONSES, stream(created(), delta("a"), done=True)).ended


def test_the_event_field_stands_in_for_a_missing_type() -> None:
    body = b'event: response.completed\ndata: {"response": {"id": "r", "status": "completed"}}\n\n'
    assert read(dialects.RESPONSES, body).finish_reasons == ["completed"]


@pytest.mark.parametrize(
    ("event", "is_content"),
    [
        (created(), False),
        (item("added", 0, {"type": "message", "content": []}), False),
        (item("added", 0, {"type": "reasoning", "summary": []}), False),
        (delta(""), False),
        (delta("x"), True),
        (delta("x", "reasoning_summary_text"), True),
        (delta("{", "function_call_arguments"), True),
        (delta("x", "refusal"), True),
        (item("added", 0, CALL), True),
        ({"type": "response.something_new", "anything": 1}, False),
    ],
)
def test_the_first_content_is_what_a_person_would_see(event: dict[str, Any], is_content: bool) -> None:
    assert responses(event).first_content is is_content


def test_calls_are_counted_once_though_every_event_names_them_anew() -> None:
    """GitHub Copilot makes new ids in every event; the last event repeats all output."""
    again = {**CALL, "id": "fc_2"}
    custom = {"type": "custom_tool_call", "name": "apply_patch", "input": "x"}
    events = [created(), item("added", 1, CALL), item("done", 1, again), item("done", 2, custom)]
    assert responses(*events).tool_calls == 2
    assert responses(*events, ended("completed", [{"type": "reasoning"}, CALL, custom])).tool_calls == 2
    assert responses(*events, ended("completed", [])).tool_calls == 2


def test_the_last_event_corrects_what_the_others_left_in_doubt() -> None:
    """Without places and with ids made anew one call looks like two, until all output is repeated."""
    events = [{"type": f"response.output_item.{kind}", "item": {**CALL, "id": kind}} for kind in ("added", "done")]
    assert responses(created(), *events).tool_calls == 2
    assert responses(created(), *events, ended("completed", [CALL])).tool_calls == 1


def test_tools_that_the_provider_runs_are_no_calls_for_the_client() -> None:
    search = {"type": "web_search_call", "status": "completed"}
    output = [
        search,
        search,
        {"type": "code_interpreter_call"},
        {"type": "mcp_call"},
        {"type": "mcp_approval_request"},
        TEXT,
    ]
    reading = responses(created(), item("done", 0, search), item("done", 1, search), ended("completed", output))
    assert reading.tool_calls == 0
    assert reading.usage.server_tools == {"web_search": 2, "code_interpreter": 1, "mcp": 1}


def test_xais_own_count_of_its_tools_stands() -> None:
    details = {"web_search_calls": 2, "x_search_calls": 0}
    usage = {**USAGE, "server_side_tool_usage_details": details, "cost_in_usd_ticks": 160_708_500}
    reading = read(dialects.RESPONSES, response("completed", [TEXT], usage=usage))
    assert reading.usage.server_tools == {"web_search": 2}
    assert reading.usage.cost_reported_usd == pytest.approx(0.01607085)


def test_a_plain_answer() -> None:
    output = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, TEXT, CALL]
    reading = read(dialects.RESPONSES, response("completed", output, usage=USAGE, service_tier="default"))
    assert counts(reading) == {**COUNTS, "service_tier": "default"}
    assert (reading.finish_reasons, reading.tool_calls, reading.ended) == (["completed"], 1, True)
    assert reading.text_chars == len("hm" + "hello" + "f" + "{}")


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_background_call_is_answered_before_it_begins(status: str) -> None:
    reading = read(dialects.RESPONSES, response(status, usage=None))
    assert (reading.finish_reasons, reading.usage_source, reading.ended) == ([status], "none", True)


def test_a_plain_failure_is_told() -> None:
    reading = read(dialects.RESPONSES, response("failed", error={"code": "server_error", "message": "x"}, usage=USAGE))
    assert (reading.error_type, reading.error_event) == ("error_event:server_error", False)


def test_a_terminal_event_of_megabytes_still_bills() -> None:
    picture = {"type": "image_generation_call", "result": "A" * 3_000_000}
    reading = read(dialects.RESPONSES, stream(created(), ended("completed", [picture, CALL])), size=65536)
    assert counts(reading) == {**COUNTS, "server_tools": {"image_generation": 1}}
    assert (reading.tool_calls, reading.parse_errors, reading.ended) == (1, 0, True)
