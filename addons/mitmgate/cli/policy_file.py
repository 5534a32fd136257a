"""The policy for commands that only look: they need its rules and names, not its secrets.

What the policy takes from the environment may not be set in the shell of whoever looks, and nothing is sent anywhere.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, override

import click

from mitmgate.cli.common import read_run
from mitmgate.policy import Policy, default, load


class Environment(dict[str, str]):
    """The environment, where what is not set is something all the same: an address, and another for each name."""

    @override
    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, f"http://{name.lower().replace('_', '-')}.not-set.invalid:80")


def policy_of(home: Path, path: str | None) -> Policy:
    """Return the policy named, else the running gateway's, else the built-in one. Raises ``PolicyError``."""
    running = None if path else read_run(home)
    path = path or (running.policy if running else None)
    return load(Path(path), Environment(os.environ), path) if path else default()


def policy_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--policy`` (``MITMGATE_POLICY``), as ``policy_path``."""
    return click.option(
        "--policy",
        "policy_path",
        envvar="MITMGATE_POLICY",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="The policy; without one, the running gateway's.",
    )(command)
