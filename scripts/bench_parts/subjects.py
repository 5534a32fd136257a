"""The processes of the benchmark: what is weighed, and what it is weighed with.

Promise: no process outlives the benchmark, also where one did not start or does not answer.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from mitmproxy.certs import CertStore

import wire

PARTS = Path(__file__).parent
ADDONS = PARTS.parent.parent / "addons"
START_S = 30.0
TASK_S = 60.0
"""The longest task takes a third of it on a busy machine; what takes longer hangs."""
OPEN_S = 15.0
"""A proxy that has not answered its first calls by then never will."""


class Subject:
    """A proxy that is weighed."""

    def __init__(self, process: subprocess.Popen[bytes], place: dict[str, Any]) -> None:
        self.process, self.place = process, place

    def cpu_ms(self) -> float:
        """Return the CPU time (user and system) that the process and its children have used so far."""
        return sum(_cpu_ns(pid) for pid in _family(self.process.pid)) / 1e6

    def rss_mb(self) -> float:
        """Return the resident memory of the process and its children."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.process.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in _family(int(child)))]


def _cpu_ns(pid: int) -> int:
    """Nanoseconds on a CPU of all threads that live; ``/proc/PID/stat`` counts in steps of 10 ms only."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


class Load:
    """The load generator; a method call is one of its tasks."""

    def __init__(self, stack: ExitStack) -> None:
        command = [sys.executable, str(PARTS / "load.py")]
        self.process = run(stack, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def do(self, task: str, within_s: float = TASK_S, **arguments: Any) -> Any:
        """Return what *task* returns; end the benchmark where it fails, or takes longer than *within_s*."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the load generator has no pipes")
        self.process.stdin.write(json.dumps([task, arguments]).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], within_s)[0]:
            raise SystemExit(f"bench: {task} {arguments} did not end within {within_s:g} s: somebody does not answer")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("bench: the load generator ended; its traceback is above")
        return json.loads(answer)


def run(stack: ExitStack, command: list[str], **more: Any) -> subprocess.Popen[bytes]:
    """Start *command*; it ends with *stack*."""
    process: subprocess.Popen[bytes] = subprocess.Popen(command, **more)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make an authority and a certificate for the provider; return (the authority's file, the provider's file)."""
    store = CertStore.from_store(folder, "provider", 2048)
    entry = store.get_cert(wire.HOST, _names(wire.HOST, "localhost"), None)
    key = entry.privatekey.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "provider.pem"
    path.write_bytes(key + entry.cert.to_pem())
    return folder / "provider-ca-cert.pem", path


def _names(*hosts: str) -> Any:
    from cryptography import x509

    return x509.GeneralNames([x509.DNSName(host) for host in hosts])


def start_provider(stack: ExitStack, pem: Path) -> int:
    """Start the provider; return its port."""
    process = run(stack, [sys.executable, str(PARTS / "provider.py"), str(pem)], stdout=subprocess.PIPE)
    said = process.stdout.readline() if process.stdout else b""
    if not said:
        raise SystemExit("bench: the provider did not start; its traceback is above")
    return int(said)


def start_mitmdump(stack: ExitStack, folder: Path, addon: str, ca: Path, provider_port: int) -> Subject:
    """Start ``mitmdump -q`` with *addon*; it reaches the provider by its port, the gateway by ``connect_to``."""
    port = free_port()
    options = {
        "listen_host": "127.0.0.1",
        "listen_port": port,
        "confdir": folder,
        "connection_strategy": "lazy",
        "ssl_verify_upstream_trusted_ca": ca,
    }
    sets = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    process = run(stack, [str(Path(sys.executable).with_name("mitmdump")), "-q", "-s", str(PARTS / addon), *sets])
    authority = folder / "mitmproxy-ca-cert.pem"
    _wait(process, lambda: authority.exists() and _accepts(port))
    return Subject(process, {"door": port, "host": "localhost", "port": provider_port, "ca": str(authority)})


def start_gateway(
    stack: ExitStack, folder: Path, ca: Path, provider_port: int, workers: int, rules: str = ""
) -> Subject:
    """Start ``mitmgate serve`` as anyone would, tracing on; only ``connect_to`` leads it to the provider. *rules* are
    more sections of its policy."""
    folder.mkdir(exist_ok=True)
    policy = folder / "policy.yaml"
    policy.write_text(
        f'version: 1\nupstream: {{ca: {ca}, connect_to: {{"{wire.HOST}:443": "127.0.0.1:{provider_port}"}}}}\n'
        + rules
    )
    home = folder / "home"
    command = [sys.executable, "-m", "mitmgate", "serve", "--policy", str(policy), "--home", str(home)]
    doors = ["--listen", "127.0.0.1:0", "--base-url-listen", "127.0.0.1:0", "--workers", str(workers)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MITMGATE_")}
    environment["PYTHONPATH"] = str(ADDONS)
    process = run(stack, command + doors, env=environment, stdout=subprocess.DEVNULL)
    run_file = home / "run.json"
    _wait(process, run_file.exists)
    said = json.loads(run_file.read_bytes())
    door = int(said["listen"].rpartition(":")[2])
    return Subject(process, {"door": door, "host": wire.HOST, "port": 443, "ca": said["ca_bundle"]})


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _accepts(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _wait(process: subprocess.Popen[bytes], is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"bench: {' '.join(map(str, process.args))} did not start")  # type: ignore[arg-type]
        time.sleep(0.05)
