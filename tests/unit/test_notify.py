"""What is told goes out once, in the words of its receiver; a dead one is given up; an address stays secret."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from mitmgate import notify_send
from mitmgate.alert_message import Notice, as_fields, span, text, usd
from mitmgate.errors import StartError
from mitmgate.notify import MOST_WAITING, Notifier
from mitmgate.notify_send import Answer, body, check, deliver, scrubbed, shown
from mitmgate.policy import loads
from mitmgate.policy.secret import Secret
from mitmgate.policy.values import Upstream
from support.receiver import Receiver, receiver

NOTICE = Notice(
    alert="errors",
    state="breach",
    watch="error_rate",
    says="12.5 % of calls failed in the last 5 m (limit 5 %): 25 of 200",
    at=1_764_000_000.0,
    since=1_764_000_000.0,
    per={"tenant": "<!channel> & co"},
    value=0.125,
    limit=0.05,
    unit="share",
    evidence=("019e0000-0001",),
    where="policy.yaml:31",
    report="mitmgate report --since 1h",
    host="gateway-1",
)
DIRECT = Upstream()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


# -- one try ----------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_text_for_people_and_fields_for_programs(hook: Receiver) -> None:
    answer = deliver(hook.url, NOTICE, DIRECT)

    assert answer == Answer(True, "200 ok")
    assert hook.paths == ["/hook/0123456789"]
    assert hook.messages == [{"text": text(NOTICE), **as_fields(NOTICE)}]
    assert hook.heads[0]["content-type"] == "application/json"
    assert hook.heads[0]["user-agent"].startswith("mitmgate/")


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("https://hooks.slack.com/services/T0/B0/x", {"text", "blocks"}),
        ("https://HOOKS.slack-gov.com/services/T0/B0/x", {"text", "blocks"}),
        ("https://discord.com/api/webhooks/1/x", {"content", "allowed_mentions"}),
        ("https://discord.com/api/webhooks/1/x/slack", {"text"}),
        ("https://chat.googleapis.com/v1/spaces/A/messages?key=x", {"text"}),
        ("https://mattermost.example/hooks/x", {"text", *as_fields(NOTICE)}),
        ("https://hooks.slack.com.evil.example/services/T0/B0/x", {"text", *as_fields(NOTICE)}),
    ],
)
def test_each_receiver_gets_what_it_takes(address: str, keys: set[str]) -> None:
    assert body(address, NOTICE).keys() == keys


def test_a_tenant_cannot_call_a_channel_of_slack() -> None:
    sent = body("https://hooks.slack.com/services/T0/B0/x", NOTICE)
    assert "tenant `&lt;!channel&gt; &amp; co`" in sent["text"]
    assert sent["blocks"][0]["text"] == {"type": "mrkdwn", "text": sent["text"]}


def test_a_long_message_is_cut(hook: Receiver) -> None:
    deliver(hook.url, replace(NOTICE, says="x" * 5000), DIRECT)
    assert len(hook.messages[0]["text"]) == notify_send.TEXT_CHARS


@pytest.mark.parametrize(
    ("status", "says", "again"),
    [
        (200, "ok", False),
        (204, "", False),
        (302, "elsewhere", False),
        (404, "no_service", False),
        (408, "slow", True),
        (429, "rate_limited", True),
        (500, "oops", True),
    ],
)
def test_what_an_answer_means(hook: Receiver, status: int, says: str, again: bool) -> None:
    hook.answers = [(status, says)]
    hook.headers = {"location": "http://127.0.0.1:9/", "retry-after": "7"}
    answer = deliver(hook.url, NOTICE, DIRECT)
    assert answer == Answer(status < 300, f"{status} {says}".strip(), again, 7.0)


def test_a_receiver_that_is_not_there_is_no_error_of_ours() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    answer = deliver(f"http://127.0.0.1:{port}/hook/0123456789", NOTICE, DIRECT)
    assert not answer.ok and answer.again
    assert "127.0.0.1" in answer.says and "0123456789" not in answer.says


def test_a_receiver_that_says_nothing_is_not_waited_for(hook: Receiver) -> None:
    hook.silent.clear()
    assert deliver(hook.url, NOTICE, DIRECT, timeout_s=0.05) == Answer(False, "no answer within 0.05 s", again=True)


@pytest.mark.parametrize("address", ["http://", "http://[", "http://127.0.0.1:99999/x", "https://user name@/"])
def test_an_address_that_is_none_is_no_error_of_ours(address: str) -> None:
    assert not deliver(address, NOTICE, DIRECT).ok


def test_a_message_goes_through_the_corporate_proxy_but_not_to_this_machine(hook: Receiver) -> None:
    with receiver() as proxy:
        upstream = Upstream(proxy=f"http://user:secret@127.0.0.1:{proxy.port}")
        assert deliver("http://hooks.example/x", NOTICE, upstream).ok
        assert proxy.paths == ["http://hooks.example/x"]
        assert proxy.heads[0]["proxy-authorization"].startswith("Basic ")
        assert deliver(hook.url, NOTICE, upstream).ok
        assert len(proxy.messages) == 1


def test_proxies_of_the_environment_are_not_asked(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert deliver(hook.url, NOTICE, DIRECT).ok


def test_a_certificate_that_nobody_vouches_for_is_refused(
    hook: Receiver, authority: trustme.CA, tmp_path: Path
) -> None:
    hook.speaks_tls(authority)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    address = f"https://localhost:{hook.port}/hook"
    assert "ertificate" in deliver(address, NOTICE, DIRECT).says
    assert deliver(address, NOTICE, Upstream(ca=str(ca))) == Answer(True, "200 ok")


# -- the library ------------------------------------------------------------------------------------------------------


def test_other_addresses_go_through_the_library(hook: Receiver) -> None:
    pytest.importorskip("apprise")
    answer = deliver(f"json://127.0.0.1:{hook.port}/hook", NOTICE, DIRECT)

    assert answer == Answer(True, "delivered")
    assert hook.messages[0]["title"] == "mitmgate: [breach] errors"
    assert hook.messages[0]["message"] == text(NOTICE)


def test_why_the_library_failed_is_said_without_the_address(hook: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("apprise")
    hook.answers = [(503, "closed")]
    answer = deliver(f"json://someone:hunter2@127.0.0.1:{hook.port}/secret-path-1", NOTICE, DIRECT)
    assert not answer.ok
    assert "503" in answer.says
    assert "hunter2" not in answer.says + caplog.text
    assert "secret-path-1" not in answer.says + caplog.text


@pytest.mark.parametrize("address", ["nonsense://somewhere", "mailto://"])
def test_an_address_that_nothing_can_send_to_is_refused_at_the_start(address: str) -> None:
    pytest.importorskip("apprise")
    policy = loads('alert: [{name: a, when: {spend: "> 1 USD"}, to: env:TO}]', "policy.yaml", {"TO": f"{address}/x-1"})
    with pytest.raises(StartError, match=r"^policy.yaml:1: env:TO is no \w+:// address that apprise understands$"):
        check(policy)


def test_a_policy_whose_addresses_can_be_told_starts() -> None:
    policy = loads(
        'alert: [{name: a, when: {spend: "> 1 USD"}, to: env:TO}]', "p.yaml", {"TO": "https://hooks.example/x"}
    )
    check(policy)


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "address", "left"),
    [
        ("no T0123456 at hooks.slack.com", "https://hooks.slack.com/services/T0123456/x", "no … at hooks.slack.com"),
        ("bad token abcdef123", "https://h.example/x?token=abcdef123", "bad token …"),
        ("wrong pass for bob", "https://bob:pass@h.example/", "wrong … for …"),
        ("a\x1b[31mb\nc", "https://h.example/", "a␛[31mb␊c"),
    ],
)
def test_what_is_said_of_an_address_leaves_its_secret_out(said: str, address: str, left: str) -> None:
    assert scrubbed(said, address) == left


def test_an_address_is_called_by_where_it_came_from() -> None:
    assert shown(Secret("https://hooks.slack.com/x", "env:SLACK")) == "env:SLACK"
    assert shown("mailto://me:pw@example.com") == "mailto://…"


# -- in their own time ------------------------------------------------------------------------------------------------


class Told:
    """Counts what is over."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_message_to_several_is_told_when_all_have_it(hook: Receiver) -> None:
    with receiver() as other:
        office, told = Notifier(DIRECT, waits_s=(0, 0)), Told()
        other.silent.clear()
        office.send(NOTICE, [hook.url, other.url, hook.url], told)
        hook.wait_for(1)
        other.wait_for(1)
        assert told.count == 0
        other.silent.set()
        assert office.wait(10)
    assert told.count == 1
    assert (len(hook.messages), len(other.messages)) == (1, 1)
    assert office.series("sent") == {("mitmgate_alerts_sent_total", (("state", "breach"),)): 2}


def test_a_message_is_tried_three_times_and_no_more(hook: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    hook.answers = [(500, "a"), (503, "b"), (500, "c"), (500, "d")]
    office, told = Notifier(DIRECT, waits_s=(0, 0)), Told()
    office.send(NOTICE, [Secret(hook.url, "env:HOOK")], told)
    assert office.wait(10)
    assert (len(hook.messages), told.count) == (3, 1)
    assert office.series("dropped") == {("mitmgate_alerts_dropped_total", (("state", "breach"),)): 1}
    assert [record.getMessage() for record in caplog.records] == [
        "alert: [breach] errors did not reach env:HOOK: 500 c"
    ]


def test_a_receiver_that_fails_for_a_moment_gets_it_once(hook: Receiver) -> None:
    hook.answers = [(500, "a"), (429, "b")]
    office, told = Notifier(DIRECT, waits_s=(0, 0)), Told()
    office.send(NOTICE, [hook.url], told)
    assert office.wait(10)
    assert (len(hook.messages), told.count, office.series("dropped")) == (3, 1, {})


def test_what_can_never_work_is_tried_once(hook: Receiver) -> None:
    hook.answers = [(404, "no_service")]
    office = Notifier(DIRECT, waits_s=(0, 0))
    office.send(NOTICE, [hook.url], Told())
    assert office.wait(10)
    assert len(hook.messages) == 1


def test_waits_grow_and_a_receiver_may_ask_for_longer_ones() -> None:
    waited: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    answers = iter([Answer(False, "500", True), Answer(False, "429", True, 30.0), Answer(True, "200")])
    office = Notifier(DIRECT, deliver=lambda _address, _notice, _upstream: next(answers))
    office.closing = Clock()
    office.send(NOTICE, ["http://h.example/"], Told())
    assert office.wait(10)
    assert waited == [2.0, 30.0]


def test_a_dead_receiver_holds_up_nobody(hook: Receiver) -> None:
    with receiver() as dead:
        dead.silent.clear()
        office = Notifier(DIRECT, waits_s=(0, 0))
        for _ in range(3):
            office.send(NOTICE, [dead.url, hook.url], Told())
        assert len(hook.wait_for(3)) == 3
        assert len(dead.messages) == 1
        dead.silent.set()
        assert office.wait(10)


def test_what_waits_for_a_dead_receiver_is_bounded(hook: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    office, told = Notifier(DIRECT, waits_s=(0, 0)), Told()
    hook.silent.clear()
    office.send(NOTICE, [hook.url], told)
    hook.wait_for(1)
    with caplog.at_level(logging.ERROR):
        for _ in range(MOST_WAITING + 2):
            office.send(NOTICE, [hook.url], told)
    assert told.count == 2
    assert "100 messages wait for it already" in caplog.text
    office.closing.set()
    hook.silent.set()
    assert office.wait(10)


def test_at_the_end_what_is_not_delivered_stays_untold(hook: Receiver) -> None:
    office, told = Notifier(DIRECT, waits_s=(0, 0)), Told()
    hook.silent.clear()
    for _ in range(3):
        office.send(NOTICE, [hook.url], told)
    hook.wait_for(1)
    office.close(0.0)
    hook.silent.set()
    assert office.wait(10)
    assert (told.count, len(hook.messages)) == (1, 1)


def test_a_courier_ends_with_its_work_and_comes_back_for_more(hook: Receiver) -> None:
    office = Notifier(DIRECT, waits_s=(0, 0))
    for _ in range(2):
        office.send(NOTICE, [hook.url], Told())
        assert office.wait(10)
        assert not [thread for thread in threading.enumerate() if thread.name == "mitmgate-notify"]
    assert len(hook.messages) == 2


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (45, "45 s"), (720, "12 m"), (3905, "1 h 5 m"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_a_length_of_time_in_words(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("nanousd", "shown"),
    [(0, "0.00 USD"), (1_234_567_890_000, "1,234.57 USD"), (12_000_000, "0.012 USD"), (7, "0.000000007 USD")],
)
def test_money_in_words(nanousd: int, shown: str) -> None:
    assert usd(nanousd) == shown
