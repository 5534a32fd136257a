"""What a call may use is bounded by its own body, or learned from the answers of its model."""

import pytest

from mitmgate.dialects.base import Json, Usage
from mitmgate.exchange import Exchange
from mitmgate.lately import MOST_TARGETS, SAMPLES_KEPT, SAMPLES_NEEDED
from mitmgate.limit_lengths import FIRST_TOKENS, Lengths, Need, choices
from mitmgate.policy.values import Choice
from support.spending import attempt, call

ASKING = call().request.input_tokens_estimate


def answered(output: int, model: str = "gpt-4o", served: str = "gpt-4o-2024-08-06", **body: Json) -> Exchange:
    """Return a call that was answered in full with *output* tokens."""
    x = call(model, **body)
    attempt(x, Usage(10, output), model=model).reading.response_model = served
    x.status, x.how, x.terminal = 200, "end", "complete"
    return x


def learned(lengths: Lengths, outputs: range | list[int], **how: Json) -> Lengths:
    for output in outputs:
        lengths.note(answered(output, **how))
    return lengths


def test_the_bound_of_the_body_is_the_estimate() -> None:
    assert Lengths().need(call(max_tokens=77), "gpt-4o") == Need(ASKING, 77)
    assert Need(ASKING, 77).total == ASKING + 77


def test_without_a_bound_a_new_model_is_taken_for_a_thousand_tokens() -> None:
    few = learned(Lengths(), [9000] * (SAMPLES_NEEDED - 1))

    assert few.need(call(), "gpt-4o") == Need(ASKING, FIRST_TOKENS)


@pytest.mark.parametrize("model", ["gpt-4o", "GPT-4o", "gpt-4o-2024-08-06"])
def test_later_it_is_what_most_answers_stay_below_by_either_name(model: str) -> None:
    assert learned(Lengths(), range(1, 101)).need(call(model), model).output == 95


def test_only_the_latest_answers_count() -> None:
    lengths = learned(Lengths(), [5000] * SAMPLES_KEPT)
    learned(lengths, [10] * SAMPLES_KEPT)

    assert lengths.need(call(), "gpt-4o").output == 10


def test_what_a_cheaper_model_answered_in_its_place_says_nothing_of_a_model() -> None:
    lengths = Lengths()
    for _ in range(SAMPLES_NEEDED):
        x = answered(20)
        x.downgrade, x.attempts[0].model, x.reading.response_model = Choice(model="mini"), "mini", "mini"
        lengths.note(x)

    assert lengths.need(call(), "gpt-4o").output == FIRST_TOKENS
    assert lengths.need(call(), "mini").output == 20


def test_an_embedding_has_no_output() -> None:
    x = call("text-embedding-3-small", path="/v1/embeddings", input="hello")

    assert Lengths().need(x, "text-embedding-3-small").output == 0


def was_bounded() -> Exchange:
    return answered(50, max_tokens=50)


def was_estimated() -> Exchange:
    x = answered(50)
    x.reading.estimated = True
    return x


def was_cut() -> Exchange:
    x = answered(50)
    x.terminal = "truncated"
    return x


def came_out_of_the_cache() -> Exchange:
    x = answered(50)
    x.source = "cache"
    return x


def was_never_asked() -> Exchange:
    x = answered(50)
    x.attempts.clear()
    return x


@pytest.mark.parametrize("ends", [was_bounded, was_estimated, was_cut, came_out_of_the_cache, was_never_asked])
def test_nothing_is_learned_from_an_answer_that(ends: object) -> None:
    lengths = Lengths()
    for _ in range(SAMPLES_NEEDED):
        lengths.note(ends())  # type: ignore[operator]

    assert lengths.need(call(), "gpt-4o").output == FIRST_TOKENS


def test_an_answer_that_stayed_below_its_bound_is_learned_from() -> None:
    assert learned(Lengths(), [49] * SAMPLES_NEEDED, max_tokens=50).need(call(), "gpt-4o").output == 49


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 1, "best_of": 4}, 4),
        ({"generationConfig": {"candidateCount": 2}}, 2),
        ({"generation_config": {"candidate_count": 2}}, 2),
        ({"n": 0}, 1),
        ({"n": -5}, 1),
        ({"n": "many"}, 1),
        ({"n": True}, 1),
        ({"n": 10**9}, 128),
        (["n"], 1),
        (None, 1),
    ],
)
def test_several_answers_at_once_are_counted(body: Json, count: int) -> None:
    assert choices(body) == count


def test_a_bound_and_a_learned_length_hold_for_each_of_several_answers() -> None:
    lengths = learned(Lengths(), [300] * SAMPLES_NEEDED, n=3)

    assert lengths.need(call(max_tokens=77, n=3), "gpt-4o").output == 231
    assert lengths.need(call(n=2), "gpt-4o").output == 200


def test_memory_does_not_grow_with_the_names_that_strangers_bring() -> None:
    lengths = learned(Lengths(), [10] * SAMPLES_NEEDED)
    for n in range(MOST_TARGETS):
        lengths.need(call(), f"made-up-{n}")

    assert lengths.need(call(), "gpt-4o").output == FIRST_TOKENS
