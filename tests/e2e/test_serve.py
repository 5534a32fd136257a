"""``mitmgate serve`` as a process: how it comes up, how it ends, and what survives when it does not end well."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from support import serving
from support.client import Answer, Http1
from support.provider import Heard, Provider, Wire
from support.serving import Serving
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP

HOST = "api.openai.com"


def trust(gateway: Serving) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(gateway.running.ca_bundle))


async def connect(gateway: Serving) -> Http1:
    return await Http1.tunnel(gateway.port, HOST, trust(gateway))


async def call(gateway: Serving, times: int = 1) -> None:
    """Make *times* plain calls on one connection."""
    client = await connect(gateway)
    for _ in range(times):
        answer = await client.ask("POST", CHAT, HOST, ASK)
        assert (answer.status, answer.complete) == (200, True)
    await client.close()


async def ask_plainly(gateway: Serving, path: str) -> Answer:
    """Ask the base-URL door on a connection of its own."""
    client = await Http1.plain(int(gateway.base_url.rpartition(":")[2]))
    answer = await client.ask("GET", path, "localhost")
    await client.close()
    return answer


# -- up and down


async def test_run_json_says_where_it_is_and_goes_with_it(served_home: Path, policy: str) -> None:
    with serving.serve(served_home, policy) as gateway:
        said = json.loads((served_home / "run.json").read_bytes())
        health = await ask_plainly(gateway, "/healthz")
        assert json.loads(health.body) == {"status": "ok"}
        assert said["pid"] == gateway.process.pid
        assert Path(said["db"]) == served_home / "traces.db"
        assert Path(said["ca_bundle"]).read_bytes().endswith(Path(said["ca_cert"]).read_bytes())
        assert stat.S_IMODE(served_home.stat().st_mode) == 0o700

        assert gateway.stop() == 0

    assert not (served_home / "run.json").exists()


async def test_sigterm_lets_a_live_stream_finish_and_writes_its_row(
    served_home: Path, policy: str, beside: Provider
) -> None:
    go_on = threading.Event()

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await wire.chunk(HEL)
        await asyncio.to_thread(go_on.wait, 10)
        for event in (LO, STOP, DONE):
            await wire.chunk(event)
        await wire.send(b"0\r\n\r\n")

    beside.on(CHAT, script)
    with serving.serve(served_home, policy + "usage: leave\n") as gateway:
        client = await connect(gateway)
        await client.send("POST", CHAT, HOST, ASK_STREAM)
        status, _ = await client.head()
        gateway.signal()
        await asyncio.to_thread(serving.until, lambda: _is_closed(gateway.port) or None, "the door's end")
        go_on.set()
        rest = await client.reader.readuntil(b"\r\n0\r\n\r\n")
        assert await asyncio.to_thread(gateway.ended) == 0

    assert status == 200
    assert DONE in rest
    [row] = gateway.query("select status_code, terminal from exchanges")
    assert row == {"status_code": 200, "terminal": "complete"}


def _is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_second_sigterm_does_not_wait_for_streams(served_home: Path, policy: str, beside: Provider) -> None:
    async def never_ends(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await asyncio.Event().wait()

    beside.on(CHAT, never_ends)
    with serving.serve(served_home, policy) as gateway:
        client = await connect(gateway)
        await client.send("POST", CHAT, HOST, ASK_STREAM)
        await client.head()
        gateway.signal()
        await asyncio.to_thread(serving.until, lambda: _is_closed(gateway.port) or None, "the door's end")
        gateway.signal()

        assert await asyncio.to_thread(gateway.process.wait, 5) == 0


# -- when it is killed, and who else may write


async def test_kill_9_loses_nothing_older_than_a_second_and_damages_nothing(
    served_home: Path, policy: str, beside: Provider
) -> None:
    beside.says(CHAT, ANSWER)
    with serving.serve(served_home, policy) as gateway:
        await call(gateway, 50)
        assert len(await asyncio.to_thread(gateway.new_rows, 50)) == 50  # a second is more than enough
        await call(gateway, 50)
        gateway.signal(signal.SIGKILL)
        await asyncio.to_thread(gateway.ended)

        assert gateway.query("pragma integrity_check") == [{"integrity_check": "ok"}]
        assert 50 <= gateway.query("select count(*) as n from exchanges")[0]["n"] <= 100

    assert (served_home / "run.json").exists()  # of a dead process: the next one is not kept from starting
    with serving.serve(served_home, policy) as again:
        await call(again)
        assert again.stop() == 0


async def test_two_gateways_may_write_one_database(
    made_home: Path, served_home: Path, tmp_path: Path, policy: str, beside: Provider
) -> None:
    beside.says(CHAT, ANSWER)
    shared = tmp_path / "both.db"
    other_home = Path(shutil.copytree(made_home, tmp_path / "other"))
    with (
        serving.serve(served_home, policy, "--db", str(shared)) as one,
        serving.serve(other_home, policy, "--db", str(shared)) as other,
    ):
        await asyncio.gather(*(call(gateway, 20) for gateway in (one, other, one, other)))
        assert (one.stop(), other.stop()) == (0, 0)

        assert one.query("select count(*) as n from exchanges") == [{"n": 80}]
        assert one.query("pragma integrity_check") == [{"integrity_check": "ok"}]


# -- several workers


async def test_two_workers_share_the_doors_and_the_database(served_home: Path, policy: str, beside: Provider) -> None:
    beside.says(CHAT, ANSWER)
    with serving.serve(served_home, policy, "--workers", "2") as gateway:
        for _ in range(3):
            await asyncio.gather(*(call(gateway) for _ in range(17)))
        rows = await asyncio.to_thread(gateway.new_rows, 51)  # an odd number, so that no two workers count the same
        counted = await _counts_of_workers(gateway, 2)
        assert gateway.stop() == 0

    assert {row["status_code"] for row in rows} == {200}
    assert sum(counted) == 51
    assert min(counted) > 0
    assert not (served_home / "run.json").exists()


async def _counts_of_workers(gateway: Serving, workers: int) -> set[int]:
    """Return what each worker counts: whoever takes a connection answers for itself."""
    found: set[int] = set()
    for _ in range(200):
        page = await ask_plainly(gateway, "/metrics")
        lines = [line for line in page.body.decode().splitlines() if line.startswith("mitmgate_requests_total{")]
        found.add(sum(int(line.rpartition(" ")[2]) for line in lines))
        if len(found) == workers:
            break
    return found


async def test_a_worker_that_dies_is_replaced(served_home: Path, policy: str, beside: Provider) -> None:
    beside.says(CHAT, ANSWER)
    with serving.serve(served_home, policy, "--workers", "2") as gateway:
        await asyncio.gather(*(call(gateway) for _ in range(8)))
        first, second = _children(gateway.process.pid)
        await asyncio.to_thread(gateway.new_rows, 8)
        os.kill(first, signal.SIGKILL)
        after = await asyncio.to_thread(
            serving.until, lambda: _full(_children(gateway.process.pid), without=first), "a new worker"
        )
        await asyncio.gather(*(call(gateway) for _ in range(8)))
        assert second in after
        assert gateway.stop() == 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _full(children: list[int], without: int) -> list[int] | None:
    return children if len(children) == 2 and without not in children else None


async def test_workers_do_not_outlive_their_parent(served_home: Path, policy: str) -> None:
    with serving.serve(served_home, policy, "--workers", "2") as gateway:
        children = _children(gateway.process.pid)
        gateway.signal(signal.SIGKILL)

        await asyncio.to_thread(
            serving.until,
            lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children) or None,
            "their end",
        )
        assert len(children) == 2


# -- what keeps it from starting is one sentence


def one_sentence(said: str) -> str:
    [line] = said.strip().splitlines()
    assert "Traceback" not in line
    return line


def test_a_port_in_use_is_said(served_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = serving.refused(served_home, "--listen", address)

    assert code == 1
    assert address in one_sentence(said)
    assert "--listen" in said


def test_a_home_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    code, said = serving.refused(tmp_path / "file" / "home")

    assert code == 1
    assert "--home" in one_sentence(said)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_newer_database_is_said(served_home: Path, workers: str) -> None:
    with closing(sqlite3.connect(served_home / "traces.db")) as newer:
        newer.execute("pragma user_version = 99")

    code, said = serving.refused(served_home, "--workers", workers)

    assert code == 1
    assert "version 99" in one_sentence(said)
    assert not (served_home / "run.json").exists()


def test_a_database_in_no_folder_is_said(served_home: Path, tmp_path: Path) -> None:
    code, said = serving.refused(served_home, "--db", str(tmp_path / "nowhere" / "traces.db"))

    assert code == 1
    assert "--db" in one_sentence(said)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("version: 1\nidentfy: {}\n", "policy.yaml:2: identfy"),
        ("version: 1\nusage: aks\n", "policy.yaml:2: usage"),
        ("version: 1\nretry: [\n", "policy.yaml:"),
    ],
)
def test_a_wrong_policy_is_said_with_its_line(served_home: Path, tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)

    code, said = serving.refused(served_home, "--policy", str(path))

    assert code == 2
    assert where in one_sentence(said)


def test_a_policy_that_is_not_there_is_said(served_home: Path, tmp_path: Path) -> None:
    code, said = serving.refused(served_home, "--policy", str(tmp_path / "none.yaml"))

    assert code == 2
    assert "none.yaml" in one_sentence(said)


def test_a_ca_that_is_no_certificate_is_said(served_home: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (tmp_path / "policy.yaml").write_text("version: 1\nupstream: {ca: ca.pem}\n")

    code, said = serving.refused(served_home, "--policy", str(tmp_path / "policy.yaml"))

    assert code in (1, 2)
    assert "ca.pem" in one_sentence(said)


@pytest.mark.parametrize("option", ["--listen", "--base-url-listen"])
@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_a_door_to_other_machines_needs_auth(served_home: Path, option: str, address: str) -> None:
    code, said = serving.refused(served_home, option, address)

    assert code == 1
    assert "auth" in one_sentence(said)


def test_a_door_to_other_machines_opens_once_somebody_has_a_key(served_home: Path, policy: str) -> None:
    everywhere = ("--listen", "0.0.0.0:0", "--base-url-listen", "0.0.0.0:0")
    (served_home / "policy.yaml").write_text(policy + "auth: {}\n")
    code, said = serving.refused(served_home, "--policy", str(served_home / "policy.yaml"), *everywhere)
    made = serving.command("keys", "new", "first", "--home", str(served_home))
    key = subprocess.run(made, env=serving.clean_environment(), check=True, capture_output=True, text=True).stdout
    from_outside = f"http://{address_of_this_machine()}"

    with serving.serve(served_home, policy + "auth: {}\n", *everywhere) as gateway:
        port = str(gateway.running.base_url_listen).rpartition(":")[2]
        asked = [
            get(f"{from_outside}:{port}/healthz"),
            get(f"{from_outside}:{port}/metrics"),
            get(f"{from_outside}:{port}/metrics", authorization=f"Bearer {key.strip()}"),
            get(f"http://127.0.0.1:{port}/metrics"),
        ]

    assert code == 1
    assert f"mitmgate keys new NAME --home {served_home}" in one_sentence(said)
    assert asked == [200, 401, 200, 200]


def address_of_this_machine() -> str:
    """Return an address by which other machines know this one; asking for it sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        return str(asking.getsockname()[0])


def get(url: str, **fields: str) -> int:
    """Return the status of *url*, asked without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=fields)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_second_gateway_in_the_same_home_is_told_of_the_first(served_home: Path, policy: str) -> None:
    with serving.serve(served_home, policy) as first:
        code, said = serving.refused(served_home)

        assert code == 1
        assert str(first.process.pid) in one_sentence(said)
        assert (served_home / "run.json").exists()


def test_the_base_url_door_may_be_shut(served_home: Path, policy: str) -> None:
    with serving.serve(served_home, policy, "--base-url-listen", "off") as gateway:
        assert gateway.running.base_url_listen is None
        assert gateway.stop() == 0


# -- secrets


async def test_no_key_is_in_any_file_of_the_gateway(served_home: Path, policy: str, beside: Provider) -> None:
    key = "sk-proj-e2e9ZyXwVuTsRqPoNmLkJiHgFeDcBa543210"
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": f"my key is {key}, keep it"}]})
    beside.says(CHAT, ANSWER.replace(b"hello", f"your key is {key}".encode()))
    with serving.serve(served_home, policy) as gateway:
        client = await connect(gateway)
        path = f"{CHAT}?api_key={key}"
        answer = await client.ask(
            "POST", path, HOST, body.encode(), f"Authorization: Bearer {key}", f"x-api-key: {key}"
        )
        await asyncio.to_thread(gateway.new_row)
        assert gateway.stop() == 0
        texts = gateway.query("select * from v_payloads")

    assert key.encode() in answer.body  # the client and the provider see all of it
    assert key.encode() in beside.heard[0].body
    assert texts
    assert not [row for row in texts if key in str(row)]
    assert any("keep it" in str(row) for row in texts)
    files = [path for path in served_home.rglob("*") if path.is_file()]
    assert not [path.name for path in files if key.encode() in path.read_bytes()]
