"""An edited policy file holds at once for what comes, and a wrong one changes nothing."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from mitmgate.policy import load
from support import gateway as gateways
from support.gateway import Gateway
from support.provider import HOSTS, Heard, Provider, Wire
from support.speech import ANSWER, CHAT

ASK = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}).encode()
TENANT = 'cf-aig-metadata: {"tenantId": "acme"}'


class File:
    """The policy file, and what is written into it."""

    def __init__(self, path: Path, port: int, ca: Path) -> None:
        self.path = path
        places = "\n".join(f'    "{host}:443": "127.0.0.1:{port}"' for host in HOSTS[:10])
        self.base = f"upstream:\n  ca: {ca}\n  connect_to:\n{places}\n"

    def says(self, text: str) -> None:
        self.path.write_text(self.base + text)


@pytest.fixture
def file(tmp_path: Path, provider: Provider, ca_file: Path) -> File:
    file = File(tmp_path / "team.yaml", provider.port, ca_file)
    file.says("")
    return file


@pytest.fixture
async def edited(file: File, home_path: Path, authority: trustme.CA) -> AsyncIterator[Gateway]:
    """A gateway that was started with *file*; tests look at the file themselves."""
    policy = load(file.path, {}, "team.yaml")
    async with gateways.gateway(home_path, policy, authority) as running:
        running.chain.reload.watch(str(file.path))
        running.chain.reload.shown = "team.yaml"
        yield running


async def notices(gateway: Gateway) -> None:
    """Let the gateway look twice: a file is read when it has stayed the same for one look."""
    await gateway.chain.reload.look()
    await gateway.chain.reload.look()


async def test_an_edit_holds_for_the_next_request_and_each_row_says_under_which_version_it_came(
    edited: Gateway, file: File, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await edited.http1()
    before = await client.post(CHAT, ASK)

    file.says("identify: {require: [tenant]}\n")
    await notices(edited)
    refused = await client.post(CHAT, ASK)
    passed = await client.post(CHAT, ASK, TENANT)

    assert [before.status, refused.status, passed.status] == [200, 400, 200]
    assert "takes no request without tenant" in json.loads(refused.body)["error"]["message"]
    rows = await edited.rows(3)
    assert len({row["policy_sha256"] for row in rows}) == 2
    assert rows[1]["policy_sha256"] == rows[2]["policy_sha256"] == edited.chain.policy.sha256
    versions = await edited.rows(3, "select sha256 from policy_versions order by rowid")
    assert [row["sha256"] for row in versions] == [rows[0]["policy_sha256"], rows[1]["policy_sha256"]]


async def test_who_is_on_the_way_goes_on_under_the_policy_that_he_came_under(
    edited: Gateway, file: File, provider: Provider
) -> None:
    async def edits_meanwhile(_heard: Heard, wire: Wire) -> None:
        file.says("identify: {require: [tenant]}\ntrace: {payloads: none}\n")
        await notices(edited)
        await wire.answer(ANSWER)

    provider.on(CHAT, edits_meanwhile)
    client = await edited.http1()

    answer = await client.post(CHAT, ASK)

    assert answer.body == ANSWER
    row = await edited.row()
    assert row["policy_sha256"] != edited.chain.policy.sha256
    payloads = await edited.rows(1, "select kind from payloads order by kind")
    assert [each["kind"] for each in payloads] == ["request", "response"]


async def test_a_wrong_file_is_said_with_its_line_and_the_old_policy_stays(
    edited: Gateway, file: File, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.says(CHAT, ANSWER)
    client = await edited.http1()
    held = edited.chain.policy

    file.says("identify: {requires: [tenant]}\n")
    with caplog.at_level(logging.ERROR, "mitmgate.reload"):
        await notices(edited)
        await notices(edited)

    [said] = caplog.messages
    assert "team.yaml:14: identify.requires: unknown key; did you mean 'require'?" in said
    assert edited.chain.policy is held
    assert (await client.post(CHAT, ASK)).status == 200
    assert 'mitmgate_policy_reloads_total{result="refused"} 1' in edited.chain.state.metrics.text().decode()


async def test_a_file_that_is_still_being_written_is_not_taken(edited: Gateway, file: File) -> None:
    held = edited.chain.policy

    file.path.write_text("")  # an editor empties it first
    await edited.chain.reload.look()
    file.says("usage: leave\n")
    await edited.chain.reload.look()
    assert edited.chain.policy is held

    await edited.chain.reload.look()
    assert edited.chain.policy.usage == "leave"


async def test_a_file_that_is_gone_or_only_touched_changes_nothing(edited: Gateway, file: File) -> None:
    held = edited.chain.policy
    text = file.path.read_text()

    file.path.unlink()
    await notices(edited)
    file.path.write_text(text)
    await notices(edited)

    assert edited.chain.policy is held


async def test_new_roots_and_places_are_used_at_once_and_the_old_connections_are_closed(
    edited: Gateway, file: File, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await edited.http1()
    await client.post(CHAT, ASK)
    old = edited.chain.upstream.caller.pool
    assert old

    file.base = file.base.replace("upstream:\n", "upstream:\n  connections_per_host: 7\n")
    file.says("")
    await notices(edited)

    assert (await client.post(CHAT, ASK)).status == 200
    await edited.until(lambda: old.session.closed)


async def test_an_edit_that_leaves_connections_alone_keeps_them(
    edited: Gateway, file: File, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await edited.http1()
    await client.post(CHAT, ASK)

    file.says("usage: leave\n")
    await notices(edited)
    await client.post(CHAT, ASK)

    assert len({heard.connection for heard in provider.heard}) == 1


async def test_new_provider_hosts_are_intercepted_from_now_on(edited: Gateway, file: File, provider: Provider) -> None:
    file.says('providers:\n  corp-llm: {hosts: ["llm.corp.example"], dialect: openai}\n')
    await notices(edited)
    provider.says(CHAT, ANSWER)

    client = await edited.http1("llm.corp.example")

    assert (await client.post(CHAT, ASK)).body == ANSWER
    assert (await edited.row())["provider_name"] == "corp-llm"
