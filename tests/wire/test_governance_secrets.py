"""What is secret is nowhere: not in a row, a payload, an event, a log, a metric, a screen, nor in any file of the home.

One policy with a rule in every section, calls that end in every way, and then a search of all that is kept and shown.
"""

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import trustme

from mitmgate.policy import Policy
from mitmgate.store import key_file
from mitmgate.store.key_file import Made
from support import gateway as gateways
from support.client import Answer
from support.gateway import Gateway
from support.provider import HOSTS, Heard, Provider, Wire
from support.receiver import Receiver, receiver
from support.selling import asks, used
from support.speech import CHAT, DONE, ROLE, STOP, USAGE, chunk
from support.web import Page, web_gateway

APP, HELD, POOLED, JUDGES = (
    "mg-of-the-app-0123456789",
    "sk-held-0123456789",
    "sk-pooled-0123456789",
    "sk-judge-0123456789",
)
OWN, MADE_UP = "sk-own-0123456789", "of-nobody-0123456789"
PROMPTED, ANSWERED = "sk-ant-api03-Ab12Cd34Ef56Gh78Ij90", "ghp_Ab12Cd34Ef56Gh78Ij90Kl12Mn34Op56Qr78"
ANN, USER, MARY = "ann@corp.example", "user7@corp.example", "mary@corp.example"
CARD = "4111 1111 1111 1111"

POLICY = """
auth: {keys: [{name: app, key: env:APP, tenant: acme}]}
guard:
  - {name: secrets, find: [secret, credit_card], in: [request, response], then: block}
  - {name: people, find: email, in: [request, response], then: redact, restore: true}
  - {name: judge, match: {metadata.judged: present}, then: {ask: judge, model: small}}
limit:
  - {name: each, per: [tenant, user], requests: 100, every: 1 h}
  - {name: parallel, per: header.authorization, concurrent: 20}
  - {name: tokens, per: metadata.owner, tokens: 1_000_000, every: day}
budget: [{name: day, per: user, cost: 1 USD, every: day, soft: 1 %, downgrade: {at: 2 %, to: {model: gpt-4o-mini}}}]
cache: [{match: {header.x-keep: present}, ttl: 1 h, scope: [tenant, user]}]
shape: [{name: brief, then: {max_output_tokens: 100}}]
route: [{name: pooled, match: {metadata.place: pooled}, try: [pooled]}]
targets:
  held: {provider: openai, base_url: "https://api.openai.com/v1", headers: {authorization: "Bearer env:HELD"}}
  pooled: {provider: openai, base_url: "https://llm.corp.example/v1", keys: {only: env:POOLED}}
  judge: {provider: openai, base_url: "https://api.groq.com/judge", headers: {authorization: "Bearer env:JUDGES"}}
alert: [{name: soft, when: {budget: day, at: soft}, to: env:HOOK}]
trace: {payloads: full}
"""


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


@pytest.fixture
def policy(provider: Provider, ca_file: Path, hook: Receiver) -> Policy:
    env = {"APP": APP, "HELD": HELD, "POOLED": POOLED, "JUDGES": JUDGES, "HOOK": hook.url}
    return gateways.policy_for(provider.port, ca_file, HOSTS[:8], POLICY, env=env)


async def says(heard: Heard, wire: Wire) -> None:
    """Repeat what was asked, whole or streamed; where a leak is asked for, answer with a secret."""
    asked = json.loads(heard.body)
    text = asked["messages"][-1]["content"]
    text = f"Here it is, and nobody has seen it: {ANSWERED}" if "leak" in text else f"{text} by {MARY}"
    if asked.get("stream"):
        pieces = [chunk(text[at : at + 9]) for at in range(0, len(text), 9)]
        await wire.stream([ROLE, *pieces, STOP, USAGE, DONE])
    else:
        answer = json.loads(used(asked["model"], 1000, 500))
        answer["choices"][0]["message"]["content"] = text
        await wire.answer(json.dumps(answer).encode())


async def judges(_heard: Heard, wire: Wire) -> None:
    await wire.answer(used("small", 10, 1).replace(b"hello", b"CLEAN"))


async def call_in_every_way(gateway: Gateway, made: str) -> list[Answer]:
    """Return the answers to calls that are kept out, redacted, blocked, judged, kept, moved and downgraded."""
    client, door = await gateway.http1(), await gateway.plain()

    async def post(text: str, *fields: str, stream: bool = False, **tags: str) -> Answer:
        tags = {"userId": USER, "owner": USER} | tags
        body = asks("gpt-4o", text, stream=stream)
        return await client.post(
            CHAT, body, "content-type: application/json", f"cf-aig-metadata: {json.dumps(tags)}", *fields
        )

    ours, own = f"cf-aig-authorization: Bearer {APP}", f"authorization: Bearer {OWN}"
    given = [
        await post("hi", f"authorization: Bearer {MADE_UP}"),
        await post("hi", f"authorization: Bearer {APP}"),
        await post("hi", f"authorization: Bearer {made}"),
        await post(f"Write to {ANN}", ours, own),
        await post(f"Write to {ANN}", ours, own, stream=True),
        await post(f"My key is {PROMPTED}", ours, own),
        await post(f"Pay with {CARD}", ours, own),
        await post("Please leak", ours, own),
        await post("Please leak", ours, own, stream=True),
        await post(f"Judge {ANN}", ours, own, judged="yes"),
        await post(f"Keep {ANN}", ours, own, "x-keep: 1"),
        await post(f"Keep {ANN}", ours, own, "x-keep: 1"),
        await post("hi", ours, place="pooled"),
        await client.post(CHAT, asks(PROMPTED), "content-type: application/json", ours, own),
        await door.post(f"/openai/chat/completions?api-key={APP}", asks("gpt-4o", f"Or {ANN}"), own),
    ]
    await gateway.rows(len(given))
    return given


def everything_kept(gateway: Gateway) -> dict[str, str]:
    """Return each table of each database of the home, and each file, as text."""
    kept = {}
    for path in sorted(gateway.home.path.glob("*.db")):
        with closing(sqlite3.connect(path)) as conn:
            tables = [
                name for (name,) in conn.execute("select name from sqlite_master where type in ('table', 'view')")
            ]
            for table in tables:
                kept[f"{path.name} {table}"] = str(conn.execute(f'select * from "{table}"').fetchall())
    for path in sorted(gateway.home.path.rglob("*")):
        if path.is_file() and "ca" not in path.parts:
            kept[path.name] = path.read_bytes().decode("utf-8", "replace")
    return kept


async def everything_shown(gateway: Gateway, page: Page) -> dict[str, str]:
    """Return what mitmweb shows, and what the doors tell."""
    flows = await page.flows()
    shown: dict[str, Any] = {"flows": flows, "dump": (await page.ask("GET", "/flows/dump")).body.decode("latin-1")}
    for n, flow in enumerate(flows):
        for message in ("request", "response"):
            for view in ("Auto", "Raw"):
                path = f"/flows/{flow['id']}/{message}/content/{view}"
                shown[f"flow {n} {message} {view}"] = (await page.ask("GET", path)).body.decode("utf-8", "replace")
    metrics = await (await gateway.plain()).ask("GET", "/metrics", "127.0.0.1")
    return {name: str(value) for name, value in shown.items()} | {"metrics": metrics.body.decode()}


async def test_no_secret_is_kept_or_shown_or_told_anywhere(
    policy: Policy,
    provider: Provider,
    hook: Receiver,
    authority: trustme.CA,
    home_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "mitmgate")
    for path in (CHAT, "/v1/chat/completions"):
        provider.on(path, says)
    provider.on("/judge/chat/completions", judges)
    async with web_gateway(home_path, policy, authority) as inside:
        gateway = inside.gateway
        made = key_file.new_key()
        digest = key_file.digest_of(gateway.chain.state.secret, made)
        with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
            key_file.add(conn, Made(digest, "made", "globex", None, (), 0.0, None))
        given = await call_in_every_way(gateway, made)
        gateway.chain.state.alerts.look()
        gateway.chain.state.alerts.notifier.wait(10.0)
        shown = await everything_shown(gateway, inside.page)
        rows = await gateway.rows(len(given), "select * from exchanges where door != 'gateway' order by rowid")
    kept = everything_kept(gateway)

    ends = [(end, len(list(some))) for end, some in groupby(row["terminal"] for row in rows)]
    assert ends == [("refused", 1), ("complete", 4), ("refused", 4), ("complete", 4), ("refused", 1), ("complete", 1)]
    assert [row["key_name"] for row in rows] == [None, "app", "made", *["app"] * 12]
    assert len(hook.messages) == 1
    told = {"hook": json.dumps(hook.messages), "log": caplog.text, "errors": str([answer.fields for answer in given])}
    places = kept | shown | told
    secrets = (APP, made, HELD, POOLED, JUDGES, OWN, MADE_UP, PROMPTED, ANSWERED, ANN, USER, MARY, CARD)
    leaks = {secret: [name for name, text in places.items() if secret in text] for secret in secrets}
    assert {secret: names for secret, names in leaks.items() if names} == {}
    heard = "\n".join(f"{heard.path} {heard.fields} {heard.body!r}" for heard in provider.heard)
    assert not any(secret in heard for secret in (APP, made, MADE_UP, PROMPTED, ANN, USER, CARD))
