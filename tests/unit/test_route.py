"""Which places may answer, in which order: by header, by rule, or the request's own host; and never outside a zone."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from mitmgate import dialects, route_memory
from mitmgate.clock import ManualClock
from mitmgate.exchange import Event, Exchange, Fields, Origin, joined
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.match import Match, compile_match
from mitmgate.policy.values import CAUSES, Branch, Choice, Target, Within
from mitmgate.providers import Hosts
from mitmgate.route import Route, draw, share_of
from mitmgate.route_memory import MOST_VALUES, Places, Windows

HOSTS = Hosts()
TARGETS = {
    "za": Target("za", "azure-openai", "https://za.openai.azure.com", {"api-key": "k-za"}, zone="za"),
    "eu": Target("eu", "azure-openai", "https://eu.openai.azure.com", {"api-key": "k-eu"}, zone="eu"),
    "groq": Target("groq", "groq", "https://api.groq.com"),
    "claude": Target("claude", "anthropic", "https://claude.example"),
    "bedrock": Target("bedrock", "aws-bedrock", "https://bedrock.example"),
    "apim": Target("apim", "openai", "https://apim.example/eu", zone="eu"),
    "apim-za": Target("apim-za", "openai", "https://apim.example/eu/za", zone="za"),
}
AZURE = "https://za.openai.azure.com/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21"
OPENAI = "https://api.openai.com/v1/chat/completions"
OWN_KEY = (b"api-key", b"the-clients")


def exchange(url: str = OPENAI, *fields: tuple[bytes, bytes], model: str = "gpt-5", **facts: object) -> Exchange:
    """Return the exchange as ``identify`` leaves it; *facts* are fields of it."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path = slash + path
    sent: Fields = [(b"host", host.encode()), *fields]
    x = Exchange("POST", scheme, host, 443, path, sent, joined(sent), 0.0, 0.0, provider=HOSTS.find(host, 443))
    x.sent_fields = sent
    x.body = json.dumps({"model": model}).encode()
    x.json = json.loads(x.body)
    x.dialect = dialects.find(x.provider, "POST", path)
    if x.dialect:
        x.request = x.dialect.read_request(path, x.json)
    for name, value in facts.items():
        setattr(x, name, value)
    return x


def dynamic(model: str, **facts: object) -> Exchange:
    """Return a call of the door's ``/compat/chat/completions`` that names no provider."""
    x = exchange(OPENAI, model=model, entry="compat", path="/compat/chat/completions", **facts)
    x.provider, x.host = None, ""
    return x


def policy(*route: rules.Route, hedge: tuple[rules.Hedge, ...] = ()) -> Policy:
    lines = {f"route[{n}]": 10 + n for n in range(len(route))}
    return Policy(path="policy.yaml", route=route, targets=TARGETS, hedge=hedge, lines=lines)


class Gateway:
    """The room with a clock that stands still and chance that is told."""

    def __init__(self, *route: rules.Route, hedge: tuple[rules.Hedge, ...] = (), chance: float = 0.5) -> None:
        self.clock = ManualClock()
        self.chance = chance
        memory = Places(self.clock), Windows(self.clock)
        self.room = Route(policy(*route, hedge=hedge), HOSTS, *memory, lambda: self.chance)

    def routed(self, x: Exchange, fallback: tuple[str, ...] | None = None) -> list[str]:
        """Return the places that *x* may go to, in order."""
        if fallback is not None:
            x.controls = {"fallback": fallback}
        self.room.admit(x)
        return [leg.target for leg in x.legs]

    def answered(self, x: Exchange, step: int, status: int = 200) -> None:
        leg = x.legs[step]
        x.step, x.status, x.origin = step, status, Origin(leg.target, "", leg.host)
        self.room.settle(x)


def tries(*targets: str, name: str = "order", **more: object) -> rules.Route:
    return rules.Route(name, tries=tuple(map(Choice, targets)), **more)  # type: ignore[arg-type]


def matching(**says: str) -> Match:
    return compile_match(says)


# -- the order --------------------------------------------------------------------------------------------------------


def test_without_rules_a_request_goes_to_its_own_host_as_it_came() -> None:
    x = exchange()

    assert Gateway().routed(x) == ["openai"]
    assert (x.legs[0].fields, x.legs[0].body, x.route_rule) == (x.sent_fields, None, "route")


def test_a_note_is_made_only_of_what_a_rule_could_not_move() -> None:
    x = exchange("https://api.openai.com/v1/files")

    assert Gateway(tries("za", match=matching(provider="groq"))).routed(x) == ["openai"]
    assert x.notes == []


def test_a_rule_names_the_places_in_order_and_what_leads_on() -> None:
    gateway = Gateway(tries("za", "eu", match=matching(provider="azure-openai"), fall_back_on=frozenset({429})))
    azure, other = exchange(AZURE), exchange()

    assert gateway.routed(azure) == ["za", "eu"]
    assert (azure.route_rule, azure.fall_back_on) == ("order", frozenset({429}))
    assert gateway.routed(other) == ["openai"]
    assert (other.route_rule, other.fall_back_on) == ("route", CAUSES)


def test_only_the_first_rule_that_matches_acts() -> None:
    assert Gateway(tries("za"), tries("eu", name="second")).routed(exchange()) == ["za"]


@pytest.mark.parametrize(
    ("fallback", "order"),
    [
        (("eu", "za"), ["eu", "za"]),
        (("groq",), ["groq"]),
        ((), ["za"]),
        (None, ["za", "groq"]),
    ],
)
def test_the_header_goes_before_the_rule(fallback: tuple[str, ...] | None, order: list[str]) -> None:
    assert Gateway(tries("za", "groq")).routed(exchange(), fallback) == order


def test_the_header_alone_is_the_whole_order() -> None:
    x = exchange()

    assert Gateway().routed(x, ("eu", "groq")) == ["eu", "groq"]
    assert (x.route_rule, x.fall_back_on) == ("cf-aig-fallback", CAUSES)
    assert Gateway().routed(exchange(), ()) == ["openai"]


def test_an_unknown_target_in_the_header_is_refused_with_those_there_are() -> None:
    x = exchange()
    Gateway().routed(x, ("eu", "us"))

    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.param) == (400, "cf-aig-fallback")
    assert x.refusal.message == (
        "The request header cf-aig-fallback names 'us', which is no target;"
        " there are apim, apim-za, bedrock, claude, eu, groq, za."
    )


def test_a_policy_without_targets_says_so() -> None:
    x = exchange(controls={"fallback": ("eu",)})
    clock = ManualClock()
    Route(Policy(), HOSTS, Places(clock), Windows(clock), float).admit(x)

    assert x.refusal is not None
    assert x.refusal.message.endswith("'eu', which is no target; the policy has no targets.")


def test_a_target_that_does_not_take_the_request_is_left_out_with_a_note() -> None:
    x = exchange()

    assert Gateway(tries("bedrock", "groq")).routed(x) == ["groq"]
    assert x.notes == ["route: bedrock is left out: aws-bedrock does not take OpenAI's chat/completions"]


def test_where_no_target_of_a_rule_takes_the_request_its_own_host_stands() -> None:
    assert Gateway(tries("groq")).routed(exchange("https://api.anthropic.com/v1/messages")) == ["anthropic"]


def test_where_no_target_of_the_header_takes_the_request_it_is_refused() -> None:
    x = exchange("https://api.anthropic.com/v1/messages")

    assert Gateway().routed(x, ("groq",)) == []
    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.param) == (400, "cf-aig-fallback")
    assert "groq does not take Anthropic's messages" in x.refusal.message


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (exchange("https://api.openai.com/v1/files"), "a call that generates nothing"),
        (exchange(streamed_upload=True), "a streamed upload"),
        (exchange(headers={"authorization": "AWS4-HMAC-SHA256 Credential=AKIA/x"}), "a signed request"),
    ],
)
def test_what_cannot_be_moved_stays_at_its_own_host(x: Exchange, reason: str) -> None:
    by_header = replace(x, legs=[], notes=[])

    assert Gateway(tries("za", "eu")).routed(x) == ["openai"]
    assert Gateway().routed(by_header, ("za",)) == ["openai"]
    assert x.notes == by_header.notes == [f"route: {reason} stays at its own host"]


def test_a_place_may_be_another_model_at_the_own_host_with_times_of_its_own() -> None:
    mini = Choice(model="gpt-5-mini", timeout_s=3.0, attempts=2)
    x = exchange()

    assert Gateway(rules.Route("smaller", tries=(Choice("groq"), mini))).routed(x) == ["groq", "openai"]
    assert json.loads(x.legs[1].body or b"") == {"model": "gpt-5-mini"}
    assert (x.legs[1].first_byte_s, x.legs[1].attempts) == (3.0, 2)


def test_the_target_that_a_path_names_is_the_own_host() -> None:
    x = exchange(AZURE, target="za")

    assert Gateway().routed(x) == ["za"]
    assert (b"api-key", b"k-za") in x.legs[0].fields


def test_legs_that_are_there_already_stay() -> None:
    x = exchange()
    Gateway().routed(x)
    legs = list(x.legs)

    assert Gateway(tries("za")).routed(x) == ["openai"]
    assert x.legs == legs


# -- split ------------------------------------------------------------------------------------------------------------

CANARY = rules.Route("canary", split=((Choice(model="gpt-5"), 90), (Choice(model="gpt-5-next"), 10)), by="session")


@pytest.mark.parametrize(
    ("chance", "model"), [(0.0, "gpt-5"), (0.899, "gpt-5"), (0.901, "gpt-5-next"), (0.999, "gpt-5-next")]
)
def test_a_split_draws_by_weight(chance: float, model: str) -> None:
    x = exchange()

    assert Gateway(CANARY, chance=chance).routed(x) == ["openai"]
    assert x.legs[0].model == model
    assert x.events == [Event("route", "canary", "split", detail=f"model {model}")]


def test_a_session_keeps_its_side_of_a_split() -> None:
    sides: Counter[str | None] = Counter()
    for n in range(400):
        drawn = set()
        for chance in (0.0, 0.95):
            x = exchange(session=f"s-{n}")
            Gateway(CANARY, chance=chance).routed(x)
            drawn.add(x.legs[0].model)
        assert len(drawn) == 1
        sides.update(drawn)

    assert 20 <= sides["gpt-5-next"] <= 60


def test_a_side_is_the_same_in_every_process_and_differs_between_rules() -> None:
    assert share_of("canary", "s-1") == 0.4438562447997658
    assert share_of("other", "s-1") != share_of("canary", "s-1")


@pytest.mark.parametrize(
    ("weights", "share", "index"),
    [((1, 1), 0.0, 0), ((1, 1), 0.5, 1), ((0.1, 0.2, 0.7), 0.29, 1), ((3,), 0.999, 0), ((1, 1), 1.0, 1)],
)
def test_weights_are_shares_of_their_sum(weights: tuple[float, ...], share: float, index: int) -> None:
    assert draw([(Choice("a"), weight) for weight in weights], share) == index


def test_a_split_draws_among_those_that_take_the_request() -> None:
    halves = rules.Route("halves", split=((Choice("bedrock"), 99), (Choice("groq"), 1)))

    assert Gateway(halves, chance=0.0).routed(exchange()) == ["groq"]


# -- stickiness of a try ----------------------------------------------------------------------------------------------

STICKY = tries("za", "eu", by="session")


def test_a_session_begins_where_it_was_last_answered_for_ten_minutes() -> None:
    gateway = Gateway(STICKY)
    x = exchange(session="s-1")
    gateway.routed(x)
    gateway.answered(x, step=1)

    gateway.clock.advance(599)
    assert gateway.routed(exchange(session="s-1")) == ["eu", "za"]
    assert gateway.routed(exchange(session="s-2")) == ["za", "eu"]
    assert gateway.routed(exchange()) == ["za", "eu"]
    gateway.clock.advance(2)
    assert gateway.routed(exchange(session="s-1")) == ["za", "eu"]


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_place_that_did_not_answer_is_not_kept(status: int) -> None:
    gateway = Gateway(STICKY)
    x = exchange(session="s-1")
    gateway.routed(x)
    gateway.answered(x, step=1, status=status)

    assert gateway.routed(exchange(session="s-1")) == ["za", "eu"]


def test_an_answer_out_of_the_cache_says_nothing_of_a_place() -> None:
    gateway = Gateway(STICKY)
    x = exchange(session="s-1")
    gateway.routed(x)
    x.source = "cache"
    gateway.answered(x, step=1)

    assert gateway.routed(exchange(session="s-1")) == ["za", "eu"]


def test_a_branch_remembers_by_its_own_field() -> None:
    branch = Branch(tries=(Choice("za"), Choice("eu")), by="user")
    gateway = Gateway(rules.Route("branches", choose=(branch,)))
    x = exchange(user="u-1", session="s-1")
    gateway.routed(x)
    gateway.answered(x, step=1)

    assert gateway.routed(exchange(user="u-1")) == ["eu", "za"]
    assert gateway.routed(exchange(session="s-1")) == ["za", "eu"]


def test_what_was_answered_longest_ago_is_forgotten_first() -> None:
    places: Places[str] = Places(ManualClock())
    places.put("first", "eu")
    places.put("second", "eu")
    places.put("first", "za")
    for n in range(MOST_VALUES - 1):
        places.put(n, "eu")

    assert places.get("first") == "za"
    assert places.get("second") is None


# -- choose -----------------------------------------------------------------------------------------------------------

BY_PLAN = rules.Route(
    "plans",
    match=matching(model="dynamic/support"),
    choose=(
        Branch(match=matching(**{"metadata.plan": "gold"}), tries=(Choice("eu", "gpt-5"), Choice("za", "gpt-5"))),
        Branch(
            match=matching(**{"body.model": "*"}), within=Within(2, 60.0, ("user",)), tries=(Choice("groq", "llama"),)
        ),
    ),
)


def test_the_first_branch_whose_conditions_hold_is_taken() -> None:
    gateway = Gateway(BY_PLAN)

    assert gateway.routed(dynamic("dynamic/support", metadata={"plan": "gold"})) == ["eu", "za"]
    free = dynamic("dynamic/support", metadata={"plan": "free"})
    assert gateway.routed(free) == ["groq"]
    assert (free.legs[0].host, free.legs[0].path) == ("api.groq.com", "/openai/v1/chat/completions")
    assert json.loads(free.legs[0].body or b"") == {"model": "llama"}


def test_a_branch_that_is_full_is_passed_over_and_the_refusal_says_when_it_opens() -> None:
    gateway = Gateway(BY_PLAN)
    for _ in range(2):
        gateway.routed(dynamic("dynamic/support", user="u-1"))
        gateway.clock.advance(10)
    full = dynamic("dynamic/support", user="u-1")

    assert gateway.routed(full) == []
    assert full.refusal is not None
    assert (full.refusal.status, full.refusal.kind, full.refusal.retry_after_s) == (429, "rate_limit", 40.0)
    assert (full.refusal.rule, full.refusal.where, full.refusal.should_retry) == ("plans", "policy.yaml:10", True)
    assert [event.action for event in full.events] == ["refuse"]
    assert gateway.routed(dynamic("dynamic/support", user="u-2")) == ["groq"]
    gateway.clock.advance(40)
    assert gateway.routed(dynamic("dynamic/support", user="u-1")) == ["groq"]


def test_where_no_branch_holds_the_own_host_stands() -> None:
    gold = Branch(match=matching(**{"metadata.plan": "gold"}), tries=(Choice("groq"),))

    assert Gateway(rules.Route("gold-only", choose=(gold,))).routed(exchange()) == ["openai"]


def test_a_branch_that_is_full_does_not_let_the_request_out_by_its_own_host() -> None:
    full = Branch(within=Within(0, 60.0), tries=(Choice("groq"),))
    x = exchange()

    assert Gateway(rules.Route("never", choose=(full,))).routed(x) == []
    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.source) == (429, "rate-limit")


def test_where_no_branch_holds_and_there_is_no_host_it_is_refused() -> None:
    gold = Branch(match=matching(**{"metadata.plan": "gold"}), tries=(Choice("eu", "gpt-5"),))
    x = dynamic("dynamic/support")

    Gateway(rules.Route("gold-only", choose=(gold,))).routed(x)

    assert x.refusal is not None
    assert x.refusal.status == 404
    assert x.refusal.message == (
        "No place can answer model 'dynamic/support': none of its branches holds (rule gold-only, policy.yaml:10)."
    )


def test_a_dynamic_model_without_a_rule_is_refused_with_those_there_are() -> None:
    x = dynamic("dynamic/suport")

    Gateway(BY_PLAN).routed(x)

    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.param) == (404, "model")
    assert x.refusal.message == "No route rule matches model 'dynamic/suport'; there are rules for dynamic/support."


def test_a_dynamic_model_needs_a_model_of_the_place() -> None:
    x = dynamic("dynamic/faq")

    Gateway(rules.Route("faq", tries=(Choice("groq"), Choice(model="gpt-5")))).routed(x)

    assert x.refusal is not None
    assert "groq is left out: nothing says which model dynamic/faq is there" in x.refusal.message
    assert "model gpt-5 is left out: dynamic/faq has no host of its own" in x.refusal.message


def test_an_alias_at_a_providers_own_host_is_a_rule_like_any_other() -> None:
    alias = rules.Route("fast", match=matching(model="fast"), tries=(Choice(model="gpt-5-mini"),))
    x = exchange(model="fast")

    assert Gateway(alias).routed(x) == ["openai"]
    assert x.legs[0].model == "gpt-5-mini"


# -- windows ----------------------------------------------------------------------------------------------------------


def test_a_window_slides_and_is_exact() -> None:
    clock = ManualClock()
    windows = Windows(clock)
    within = Within(3, 10.0)
    passed = []
    for _ in range(40):
        if windows.enter("all", within) is None:
            passed.append(clock.now())
        clock.advance(1)

    assert passed == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_a_full_window_says_when_it_opens_and_does_not_count_whom_it_turned_away() -> None:
    clock = ManualClock()
    windows = Windows(clock)
    windows.enter("all", Within(1, 10.0))
    clock.advance(4)

    assert windows.enter("all", Within(1, 10.0)) == 6.0
    clock.advance(6)
    assert windows.enter("all", Within(1, 10.0)) is None


def test_windows_are_bounded_and_forget_the_longest_idle() -> None:
    windows = Windows(ManualClock())
    once = Within(1, 10.0)
    for n in range(MOST_VALUES):
        windows.enter(n, once)
    windows.enter(0, once)
    windows.enter("one more", once)

    assert windows.enter(0, once) == 10.0
    assert windows.enter(1, once) is None


def test_all_windows_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_memory, "MOST_STAMPS", 10)
    windows = Windows(ManualClock())
    for _ in range(8):
        windows.enter("idle", Within(8, 10.0))
    for _ in range(3):
        windows.enter("busy", Within(100, 10.0))

    assert windows.enter("idle", Within(8, 10.0)) is None


# -- zones ------------------------------------------------------------------------------------------------------------

STAYS_IN_ZA = rules.Route("stays", zone="za")


def test_a_zone_leaves_only_its_own_places() -> None:
    in_order = tries("eu", "za", "groq", zone="za")

    assert Gateway(in_order).routed(exchange(AZURE)) == ["za"]


@pytest.mark.parametrize(
    ("route", "fallback"),
    [
        ((STAYS_IN_ZA,), ("eu", "groq")),
        ((tries("eu", zone="za"),), None),
        ((tries("eu"), STAYS_IN_ZA), None),
        ((STAYS_IN_ZA, tries("eu")), None),
        ((rules.Route("half", split=((Choice("eu"), 9), (Choice("groq"), 1))), STAYS_IN_ZA), None),
    ],
)
def test_nothing_leads_out_of_a_zone(route: tuple[rules.Route, ...], fallback: tuple[str, ...] | None) -> None:
    x = exchange(AZURE)

    assert Gateway(*route).routed(x, fallback) == []
    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.kind) == (403, "permission")
    assert x.refusal.message.startswith("No place in zone za may answer this request: eu is in zone eu")
    rule = next(rule for rule in route if rule.zone)
    assert (x.refusal.rule, x.refusal.where) == (rule.name, f"policy.yaml:{10 + route.index(rule)}")
    assert [(event.rule, event.action) for event in x.events] == [(rule.name, "refuse")]


def test_a_zone_alone_chooses_no_places_so_the_next_rule_still_does() -> None:
    assert Gateway(STAYS_IN_ZA, tries("eu", "za")).routed(exchange()) == ["za"]


def test_a_split_draws_inside_the_zone() -> None:
    halves = rules.Route("halves", split=((Choice("eu"), 99), (Choice("za"), 1)), zone="za")

    assert Gateway(halves, chance=0.0).routed(exchange()) == ["za"]


def test_the_own_host_is_in_the_zone_of_the_target_that_stands_there() -> None:
    assert Gateway(STAYS_IN_ZA).routed(exchange(AZURE, OWN_KEY)) == ["azure-openai"]
    assert Gateway(STAYS_IN_ZA).routed(exchange(AZURE.replace("za.", "ZA."), OWN_KEY)) == ["azure-openai"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files", "/v1/models"])
def test_a_host_of_no_zone_is_outside_of_every_zone(path: str) -> None:
    x = exchange(f"https://api.openai.com{path}")

    assert Gateway(STAYS_IN_ZA).routed(x) == []
    assert x.refusal is not None
    assert x.refusal.message == (
        "No place in zone za may answer this request: openai is in no zone (rule stays, policy.yaml:10)."
    )


def test_of_two_targets_on_one_host_the_longer_path_tells_the_zone() -> None:
    hosts = Hosts([replace(HOSTS.providers["openai"], hosts=("apim.example",))])
    clock = ManualClock()
    room = Route(policy(STAYS_IN_ZA), hosts, Places(clock), Windows(clock), float)
    found = []
    for path in ("/eu/za/chat/completions", "/eu/zab/chat/completions"):
        x = exchange(f"https://apim.example{path}", dialect=dialects.CHAT)
        room.admit(x)
        found.append(len(x.legs))

    assert found == [1, 0]


def test_a_zone_holds_for_the_elements_of_a_universal_request() -> None:
    x = exchange(AZURE, OWN_KEY, entry="universal")
    Gateway().routed(x)
    x.legs[0].zone = None
    x.legs.append(replace(x.legs[0], target="openai", host="api.openai.com"))

    assert Gateway(STAYS_IN_ZA).routed(x) == ["azure-openai"]


def test_two_zones_at_once_are_met_by_nobody() -> None:
    x = exchange(AZURE)
    Gateway(STAYS_IN_ZA, rules.Route("other", zone="eu")).routed(x, ("za", "eu"))

    assert x.refusal is not None
    assert x.refusal.message.startswith("No place in zone za and eu may answer this request: za is in zone za, eu is")


def test_a_zone_of_a_rule_that_does_not_match_holds_nobody() -> None:
    only_acme = rules.Route("acme", match=matching(tenant="acme"), zone="za")

    assert Gateway(only_acme).routed(exchange()) == ["openai"]
    assert Gateway(only_acme).routed(exchange(tenant="acme")) == []


# -- shadow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "action", "detail"),
    [
        (tries("za", "eu", shadow=True), "fallback", "would try za, eu"),
        (replace(CANARY, shadow=True), "split", "would draw model gpt-5"),
        (replace(STAYS_IN_ZA, shadow=True), "refuse", "would keep the request in zone za"),
        (replace(BY_PLAN, match=None, shadow=True), "fallback", "would try groq with model llama"),
    ],
)
def test_a_shadow_rule_says_what_it_would_do_and_does_nothing(rule: rules.Route, action: str, detail: str) -> None:
    x = exchange()

    assert Gateway(rule).routed(x) == ["openai"]
    assert x.legs[0].body is None
    assert x.events == [Event("route", rule.name, action, shadow=True, detail=detail)]


def test_a_full_branch_of_a_shadow_turns_nobody_away() -> None:
    gateway = Gateway(replace(BY_PLAN, match=None, shadow=True))
    for _ in range(3):
        x = exchange()
        assert gateway.routed(x) == ["openai"]

    assert x.events[0].detail == "would find no branch that is open"


def test_a_full_branch_of_a_shadow_is_no_reason_to_wait() -> None:
    full = Branch(within=Within(0, 60.0), tries=(Choice("groq", "llama"),))
    gold = Branch(match=matching(**{"metadata.plan": "gold"}), tries=(Choice("groq", "llama"),))
    x = dynamic("dynamic/faq")

    Gateway(rules.Route("shadow", choose=(full,), shadow=True), rules.Route("gold", choose=(gold,))).routed(x)

    assert x.refusal is not None
    assert x.refusal.status == 404


def test_a_shadow_zone_has_nothing_to_say_of_who_is_in_it() -> None:
    x = exchange(AZURE, OWN_KEY)

    assert Gateway(replace(STAYS_IN_ZA, shadow=True)).routed(x) == ["azure-openai"]
    assert x.events == []


# -- hedge ------------------------------------------------------------------------------------------------------------

HEDGE = rules.Hedge("tail", after_s=1.0, percentile=95, to="eu")


@pytest.mark.parametrize(
    ("route", "fallback", "spare"),
    [
        ((), None, "eu"),
        ((tries("groq", "eu"),), None, "eu"),
        ((tries("eu", "groq"),), None, None),
        ((), ("groq", "eu"), "eu"),
        ((), ("groq",), None),
        ((), (), None),
        ((STAYS_IN_ZA,), None, None),
    ],
)
def test_a_hedge_has_its_second_place_unless_something_closes_it(
    route: tuple[rules.Route, ...], fallback: tuple[str, ...] | None, spare: str | None
) -> None:
    x = exchange(AZURE)
    Gateway(*route, hedge=(HEDGE,)).routed(x, fallback)

    assert (x.spare.target if x.spare else None) == spare


def test_a_hedge_asks_for_the_model_that_a_split_drew() -> None:
    x = exchange()
    Gateway(CANARY, hedge=(HEDGE,), chance=0.95).routed(x)

    assert x.spare is not None
    assert x.hedge == HEDGE
    assert (x.spare.model, x.legs[0].model) == ("gpt-5-next", "gpt-5-next")


def test_a_shadow_hedge_only_says_what_it_would_do() -> None:
    x = exchange()
    Gateway(hedge=(replace(HEDGE, shadow=True),)).routed(x)

    assert (x.hedge, x.spare) == (None, None)
    assert x.events == [Event("hedge", "tail", "hedge", shadow=True, detail="would ask eu, too")]


@pytest.mark.parametrize("x", [exchange("https://api.openai.com/v1/files"), exchange(streamed_upload=True)])
def test_what_cannot_be_moved_is_not_hedged(x: Exchange) -> None:
    Gateway(hedge=(HEDGE,)).routed(x)

    assert (x.hedge, x.spare) == (None, None)


# -- whose key goes with it -------------------------------------------------------------------------------------------


def fields_of_leg(x: Exchange) -> dict[str, str]:
    return joined(x.legs[0].fields)


def test_at_its_own_host_a_request_without_a_key_is_the_targets_that_stands_there() -> None:
    x = exchange(AZURE, (b"cookie", b"c=1"), (b"openai-organization", b"org-1"), (b"x-app", b"1"))

    assert Gateway().routed(x) == ["za"]

    leg = x.legs[0]
    assert (leg.is_target, leg.zone, leg.key, leg.path) == (True, "za", "za", x.path)
    assert fields_of_leg(x) == {"host": "za.openai.azure.com", "x-app": "1", "api-key": "k-za"}


@pytest.mark.parametrize(
    "own", [OWN_KEY, (b"Authorization", b"Bearer eyJ"), (b"x-api-key", b"k")], ids=["api-key", "token", "another form"]
)
def test_a_key_of_the_clients_own_goes_to_its_own_host_untouched(own: tuple[bytes, bytes]) -> None:
    x = exchange(AZURE, own)

    assert Gateway().routed(x) == ["azure-openai"]
    assert x.legs[0].fields == x.sent_fields
    assert not x.legs[0].is_target


def test_a_key_in_the_query_is_one_too() -> None:
    x = exchange(f"{AZURE}&key=k")

    assert Gateway().routed(x) == ["azure-openai"]


def test_a_target_that_brings_no_key_takes_none_away() -> None:
    x = exchange("https://apim.example/eu/v1/chat/completions", (b"cookie", b"c=1"))
    x.provider = HOSTS.providers["openai"]

    assert Gateway().routed(x) == ["apim"]
    assert fields_of_leg(x) == {"host": "apim.example", "cookie": "c=1"}


def test_under_auth_places_without_a_key_are_left_out_and_named() -> None:
    gateway = Gateway(tries("groq", "za"))
    gateway.room.policy = replace(gateway.room.policy, auth=rules.Auth())
    x = exchange(keyless=True)

    assert gateway.routed(x) == ["za"]
    assert [note.partition(",")[0] for note in x.notes] == ["route: Target groq has no key"]


def test_under_auth_a_request_that_has_no_key_anywhere_is_refused() -> None:
    gateway = Gateway()
    gateway.room.policy = replace(gateway.room.policy, auth=rules.Auth())
    x = exchange(keyless=True)

    gateway.routed(x)

    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.kind) == (401, "authentication")


# -- a budget sends it elsewhere --------------------------------------------------------------------------------------


def downgraded(to: Choice, *fields: tuple[bytes, bytes], url: str = OPENAI) -> Exchange:
    """Return the exchange as ``budget`` leaves it."""
    event = Event("budget", "day", "downgrade")
    return exchange(url, *fields, downgrade=to, route_notes=["downgraded; rule=day"], events=[event])


def asked(x: Exchange) -> list[tuple[str, str | None]]:
    """Return (place, model in the body) of the legs."""
    return [(leg.target, json.loads(leg.body or x.body or b"{}")["model"]) for leg in x.legs]


def test_a_downgrade_asks_its_own_host_for_the_cheaper_model() -> None:
    x = downgraded(Choice(model="gpt-5-mini"))

    Gateway().routed(x)

    assert asked(x) == [("openai", "gpt-5-mini")]
    assert x.route_notes == ["downgraded; rule=day"]


def test_a_downgrade_asks_every_place_of_a_rule_for_the_cheaper_model() -> None:
    x = downgraded(Choice(model="gpt-5-mini"))

    Gateway(tries("apim", "groq")).routed(x)

    assert asked(x) == [("apim", "gpt-5-mini"), ("groq", "gpt-5-mini")]


def test_a_downgrade_to_a_target_goes_before_rules_and_headers() -> None:
    x = downgraded(Choice("groq"))

    assert Gateway(tries("apim")).routed(x, ("apim",)) == ["groq"]


def test_a_downgrade_that_cannot_be_leaves_the_request_as_it_was_and_says_so() -> None:
    x = downgraded(Choice(model="gpt-5-mini"), (b"content-encoding", b"gzip"))

    assert Gateway(tries("apim")).routed(x) == ["apim"]

    assert (x.downgrade, x.route_notes, x.events, x.legs[0].body) == (None, [], [], None)
    why = "apim with model gpt-5-mini is left out: the body is compressed, so the model in it cannot be changed"
    assert x.notes[0].startswith(f"budget: not downgraded, because {why}")


def test_a_downgrade_stays_in_its_zone() -> None:
    x = downgraded(Choice("eu"), OWN_KEY, url=AZURE)

    assert Gateway(STAYS_IN_ZA).routed(x) == ["azure-openai"]

    assert x.refusal is None
    assert x.notes == ["budget: not downgraded, because eu is in zone eu"]
