"""The policies that come with the gateway, opened as they stand: only where they lead to is scripted."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from mitmgate.policy import Policy, load
from support.gateway import Gateway

FOLDER = Path(__file__).parents[2] / "policies"

type OpenPolicy = Callable[..., AbstractAsyncContextManager[Gateway]]


def shipped(name: str, env: Mapping[str, str], ca: Path, port: int, hosts: tuple[str, ...]) -> Policy:
    """Return the policy *name*; its *hosts* are dialled at *port* of this machine, where *ca* is trusted."""
    policy = load(FOLDER / f"{name}.yaml", env, f"{name}.yaml")
    dialled = {f"{host}:443": ("127.0.0.1", port) for host in hosts}
    return replace(policy, upstream=replace(policy.upstream, ca=str(ca), connect_to=dialled))
