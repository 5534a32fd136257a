"""``mitmgate check NEW --replay`` says what a gateway with the new policy then does, when the same calls come again."""

import json
import shutil
import ssl
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support import serving
from support.client import Http1
from support.provider import Heard, Provider, Wire
from support.serving import Serving
from support.speech import ANSWER, CHAT

LABELS = """
identify:
  route: {faq: {metadata.feature: faq}}
  tier: {large: {model: [gpt-4o, gpt-5]}}
"""

OLD = f"""{LABELS}
limit:
  - {{name: burst, per: tenant, requests: 10, every: 1 h}}
cache:
  - {{name: faq, match: {{route: faq, tenant: globex}}, ttl: 1 h, scope: [tenant]}}
"""

NEW = f"""{LABELS}
guard:
  - {{name: pii, find: [email], then: redact}}
  - {{name: topics, find: ["(?i)project kestrel"], in: response, then: flag}}
  - {{name: no-nano, match: {{model: gpt-4.1-nano}}, then: block}}
limit:
  - {{name: burst, per: tenant, requests: 7, every: 1 h}}
budget:
  - name: day
    per: tenant
    match: {{tier: large}}
    cost: 0.01 USD
    every: day
    downgrade: {{at: 60 %, to: {{model: gpt-4o-mini}}}}
cache:
  - {{name: faq, match: {{route: faq}}, ttl: 1 h, scope: [tenant]}}
shape:
  - {{name: long, match: {{input_tokens: "> 500"}}, then: {{keep_last: 500}}}}
route:
  - {{name: moved, match: {{model: gpt-5}}, try: [groq]}}
targets:
  groq: {{provider: openai, base_url: "https://api.groq.com/v1", headers: {{authorization: "env:GROQ_KEY"}}}}
"""

LONG = [{"role": role, "content": "word " * 400} for role in ("user", "assistant", "user", "assistant")]


def ask(model: str, text: str = "hi", before: list[dict[str, str]] | None = None) -> bytes:
    said = [*(before or []), {"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": said, "max_tokens": 10}).encode()


FAQ, CHATS = "faq", "chat"

CALLS: list[tuple[str, str, bytes]] = [
    ("acme", FAQ, ask("gpt-4o", "what are your hours?")),
    ("acme", FAQ, ask("gpt-4o", "what are your hours?")),  # a hit of the new policy
    ("globex", FAQ, ask("gpt-4o", "what are your hours?")),
    ("globex", FAQ, ask("gpt-4o", "what are your hours?")),  # a hit of both
    ("acme", CHATS, ask("gpt-4o", "write to joe@corp.example.com")),  # redacted
    ("acme", CHATS, ask("gpt-4o", "again", LONG)),  # shaped
    ("globex", CHATS, ask("gpt-5")),  # moved
    ("globex", CHATS, ask("gpt-4.1-nano")),  # blocked
    ("globex", CHATS, ask("gpt-4o-mini", "what of kestrel?")),  # its answer is flagged
    *[("acme", CHATS, ask("gpt-4o", f"question {n}")) for n in range(8)],  # downgraded, then refused
]
"""(tenant, feature, body): two of acme's are over the old limit, five over the new one."""


async def answers(heard: Heard, wire: Wire) -> None:
    """Answer as the model that was asked for, with 600 tokens in and 150 out."""
    asked = json.loads(heard.body)
    text = "Project Kestrel is secret" if "kestrel" in asked["messages"][-1]["content"] else "hello"
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 600, "completion_tokens": 150, "total_tokens": 750}
    said = {**json.loads(ANSWER), "model": asked["model"], "choices": [choice], "usage": usage}
    await wire.answer(json.dumps(said).encode())


async def send_all(gateway: Serving) -> list[int]:
    """Send ``CALLS`` one after the other; return the statuses."""
    trust = ssl.create_default_context(cafile=str(gateway.running.ca_bundle))
    client = await Http1.tunnel(gateway.port, "api.openai.com", trust)
    statuses = []
    for tenant, feature, body in CALLS:
        tags = json.dumps({"tenantId": tenant, "feature": feature})
        fields = (f"cf-aig-metadata: {tags}", "content-type: application/json", "authorization: Bearer sk-1")
        statuses.append((await client.ask("POST", CHAT, "api.openai.com", body, *fields)).status)
    await client.close()
    return statuses


def replay(policy: Path, gateway: Serving, *options: str) -> dict[str, Any]:
    told = serving.command("check", str(policy), "--replay", "all", "--db", str(gateway.running.db), "--json", *options)
    done = subprocess.run(told, env=serving.clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def homes(made_home: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return two fresh homes: counters of the second begin at 0, as those of a replay do."""
    made = [Path(shutil.copytree(made_home, tmp_path / name)) for name in ("then", "now")]
    return made[0], made[1]


async def test_a_replay_says_what_the_same_calls_then_come_to(
    homes: tuple[Path, Path], beside: Provider, ca_file: Path, tmp_path: Path
) -> None:
    beside.on(CHAT, answers)
    then, now = homes
    new = tmp_path / "new.yaml"
    new.write_text(serving.policy_text(beside.port, ca_file, NEW))
    with serving.serve(then, serving.policy_text(beside.port, ca_file, OLD)) as gateway:
        before = await send_all(gateway)
        old_rows = gateway.new_rows(len(CALLS))
        said = replay(new, gateway)

    with serving.serve(now, new.read_text(), GROQ_KEY="gsk-made-up") as gateway:
        after = await send_all(gateway)
        rows = gateway.new_rows(len(CALLS))
        events = gateway.query("select room, rule, action, exchange_id from policy_events where action != 'usage'")

    assert (before.count(429), after.count(429)) == (2, 5)
    total = said["total"]
    assert total["calls"] == len(CALLS)
    assert total["refused"] == after.count(429) - before.count(429) + after.count(403)
    hits = [[row["cache_status"] for row in found].count("HIT") for found in (old_rows, rows)]
    assert (hits, total["hits"], total["lost"]) == ([1, 2], 1, 0)
    assert total["cost_then_nanousd"] == sum(row["cost_nanousd"] for row in old_rows)
    assert total["cost_now_nanousd"] == sum(row["cost_nanousd"] for row in rows)
    acted = Counter((event["room"], event["rule"], event["action"]) for event in events)
    told = {
        (rule["room"], rule["rule"], rule["action"]): rule["now"]
        for rule in said["rules"]
        if rule["action"] not in ("hit", "move") and rule["now"]
    }
    assert told == dict(acted)
    moved = [row for row in rows if row["target"] == "groq"]
    sent = {row["id"] for row in rows if row["status_code"] == 200}
    downgraded = sum(event["action"] == "downgrade" and event["exchange_id"] in sent for event in events)
    assert (total["moved"], total["downgraded"]) == (len(moved) + downgraded, downgraded)
    assert downgraded > 0
    per_tenant = {row["tenant"]: row for row in said["tenants"]}
    for tenant in ("acme", "globex"):
        cost = sum(row["cost_nanousd"] for row in rows if row["tenant"] == tenant)
        assert per_tenant[tenant]["cost_now_nanousd"] == cost, tenant
    assert [one["what"] for one in said["undecided"]] == []


async def test_the_policy_that_held_changes_nothing(
    served_home: Path, beside: Provider, ca_file: Path, tmp_path: Path
) -> None:
    beside.on(CHAT, answers)
    text = serving.policy_text(beside.port, ca_file, NEW)
    (tmp_path / "same.yaml").write_text(text)
    with serving.serve(served_home, text, GROQ_KEY="gsk-made-up") as gateway:
        await send_all(gateway)
        gateway.new_rows(len(CALLS))

        said = replay(tmp_path / "same.yaml", gateway)

    total = said["total"]
    assert (total["calls"], total["changed"]) == (len(CALLS), 0)
    assert total["cost_now_nanousd"] == total["cost_then_nanousd"]
    assert [rule for rule in said["rules"] if rule["then"] != rule["now"]] == []
    [undecided] = said["undecided"]
    assert undecided["calls"] == 1
    assert "kept with its secrets masked" in undecided["what"]
