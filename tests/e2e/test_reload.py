"""A policy file that is edited under a running ``mitmgate serve``: all workers take it, nothing counted is lost."""

import json
import subprocess
from pathlib import Path

from support import serving
from support.client import Http1
from support.provider import Provider
from support.serving import Serving, clean_environment, command, until
from support.speech import ANSWER, ASK, CHAT

FIVE = "limit: [{name: few, requests: 5, every: 1 h}]\n"
THREE = "limit: [{name: few, requests: 3, every: 1 h}]\n"
WRONG = "limit: [{name: few, requests: many, every: 1 h}]\n"


async def status(gateway: Serving) -> int:
    """Return what a call on a connection of its own gets: whichever worker takes it."""
    client = await Http1.plain(int(gateway.base_url.rpartition(":")[2]))
    answer = await client.ask("POST", f"/openai{CHAT.removeprefix('/v1')}", "localhost", ASK)
    await client.close()
    return answer.status


def both_took(gateway: Serving, version: int) -> None:
    """Return once each of two workers has written down its so many-th version."""

    def look() -> bool | None:
        [written] = gateway.query("select count(*) as rows from policy_versions")
        return written["rows"] >= 2 * version or None

    until(look, "the edit")


def versions(home: Path) -> list[str]:
    """Return the hashes that ``mitmgate policy log`` lists, the newest first."""
    told = command("policy", "log", "--json", "--home", str(home))
    done = subprocess.run(told, capture_output=True, text=True, check=True, env=clean_environment())
    return [version["sha256"] for version in json.loads(done.stdout)]


async def test_all_workers_take_an_edit_keep_their_counts_and_refuse_what_is_wrong(
    served_home: Path, policy: str, beside: Provider
) -> None:
    beside.says(CHAT, ANSWER)
    file = served_home / "policy.yaml"
    with serving.serve(served_home, policy + FIVE, "--workers", "2") as gateway:
        assert [await status(gateway) for _ in range(4)] == [200] * 4

        file.write_text(policy + THREE)
        both_took(gateway, 2)
        refused = {await status(gateway) for _ in range(8)}

        file.write_text(policy + WRONG)
        file.write_text(policy + FIVE)
        both_took(gateway, 3)
        again = [await status(gateway) for _ in range(8)]

    assert refused == {429}
    assert again.count(200) == 1
    assert versions(served_home)[0] == versions(served_home)[2] != versions(served_home)[1]
